"""README and schema say what the code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from hermes_fallback import risk
from hermes_fallback.commands import HELP
from hermes_fallback.config import Handoff, Policy, Tier
from hermes_fallback.events import TriggerName
from hermes_fallback.triggers import TRIGGERS
from tests.world import ISSUE_BLOCK

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SCHEMA = json.loads((ROOT / "hermes_fallback" / "schema.json").read_text("utf-8"))


def test_readme_has_the_block_and_the_help() -> None:
    """What a newcomer copies is what the tests run; the help is the one that /escalate prints."""
    assert ISSUE_BLOCK in README
    assert HELP in README


def test_triggers_are_the_same_everywhere() -> None:
    """Type, table, schema and README name the same triggers."""
    names = set(get_args(TriggerName))
    assert names == set(TRIGGERS) == set(SCHEMA["$defs"]["trigger"]["enum"])
    assert all(f"| `{name}` |" in README for name in names)


def test_every_key_is_in_schema_and_readme() -> None:
    """Each field of the configuration has its place in the schema and its word in the README."""
    policy = SCHEMA["properties"]["fallback_policy"]["properties"]
    assert set(Policy.__dataclass_fields__) - {"after"} == set(policy) - {"triggers"}
    assert set(Tier.__dataclass_fields__) == set(SCHEMA["$defs"]["tier"]["properties"])
    handoff = SCHEMA["properties"]["handoff"]["properties"]
    assert set(Handoff.__dataclass_fields__) == set(handoff)
    assert all(f"| `handoff.{key}` |" in README for key in handoff)
    for key in (*policy, *SCHEMA["$defs"]["tier"]["properties"]):
        assert f"`.{key}`" in README or f"`fallback.{key}`" in README or f"`fallback_policy.{key}`" in README, key


def test_measured_numbers_are_those_of_the_report() -> None:
    """What the README says of each sensitivity is what the benchmark wrote, by the thresholds that are shipped."""
    report = (ROOT / "benchmarks" / "detection.md").read_text("utf-8").splitlines()
    for name, threshold in risk.model().thresholds.items():
        (row,) = [line for line in report if line.startswith(f"| `{name}` |")]
        assert row in README
        assert f"| {threshold:.2f} |" in row
    (times,) = [line for line in report if " times the fixed rule." in line]
    assert f"{float(times.split()[0]):.1f} times what" in README
