"""README and schema say what the code does."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import yaml
from packaging.requirements import Requirement

from hermes_fallback import lazy_litellm, prices, risk
from hermes_fallback.cli import set_up
from hermes_fallback.commands import HELP
from hermes_fallback.config import Budget, Handoff, Match, Policy, Tier, parse
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
    assert names == set(TRIGGERS)
    # It fires by `start_on` alone, so there is nothing to list.
    assert names - {"task_type"} == set(SCHEMA["$defs"]["trigger"]["enum"])
    assert all(f"| `{name}` |" in README for name in names)


def test_openrouter_has_no_prices() -> None:
    """As the README says: under a budget in dollars, such a tier needs a `price` of its own."""
    assert "as any of OpenRouter's" in README
    assert not [name for name in lazy_litellm.load().model_cost if name.startswith("openrouter/")]
    assert prices.cost(Tier("openrouter", "anthropic/claude-sonnet-4.5"), 1000, 1000) is None


def test_the_proxy_of_the_fleet_is_one_that_is_tested() -> None:
    """A reader installs what `make test-fleet` runs."""
    tested = re.search(r'"litellm\[proxy\](\S+)"', (ROOT / "Makefile").read_text("utf-8"))
    assert tested is not None
    assert f'"litellm[proxy,extra_proxy]{tested[1]}"' in (ROOT / "docs" / "fleet.md").read_text("utf-8")


def test_every_key_is_in_schema_and_readme() -> None:
    """Each field of the configuration has its place in the schema and its word in the README."""
    policy = SCHEMA["properties"]["fallback_policy"]["properties"]
    assert set(Policy.__dataclass_fields__) - {"after"} == set(policy) - {"triggers"}
    assert set(Tier.__dataclass_fields__) == set(SCHEMA["$defs"]["tier"]["properties"])
    handoff = SCHEMA["properties"]["handoff"]["properties"]
    assert set(Handoff.__dataclass_fields__) == set(handoff)
    assert all(f"| `handoff.{key}` |" in README for key in handoff)
    budget = policy["budget"]["properties"]
    assert set(Budget.__dataclass_fields__) == set(budget)
    assert all(f"`{key}`" in README for key in budget)
    kind = SCHEMA["properties"]["task_types"]["items"]["properties"]
    assert set(Match.__dataclass_fields__) == set(kind["match"]["properties"])
    assert all(f"`{key}`" in README or f"{key}:" in README for key in (*kind, *kind["match"]["properties"]))
    for key in (*policy, *SCHEMA["$defs"]["tier"]["properties"]):
        assert f"`.{key}`" in README or f"`fallback.{key}`" in README or f"`fallback_policy.{key}`" in README, key


def test_examples_of_the_readme_are_valid() -> None:
    """The blocks about money and task types mean something, put where the README says."""
    money, kinds = (
        yaml.safe_load(text)
        for text in re.findall(r"```yaml\n(  (?:fallback_policy|task_types):.*?)```", README, re.DOTALL)
    )
    config = parse({"fallback": {"provider": "openai", "model": "gpt-5.4"}, **money, **kinds})
    assert config.policy.budget.per_day_usd == 2
    assert [kind.name for kind in config.task_types] == ["coding", "research", "chat", "cron"]


def test_commands_are_all_in_the_readme() -> None:
    """Each command of `hermes escalation` has its row."""
    parser = argparse.ArgumentParser()
    set_up(parser)
    for name in parser._subparsers._group_actions[0].choices:  # type: ignore[union-attr]  # noqa: SLF001
        assert re.search(rf"^\|.*`{name}\b", README, re.MULTILINE), name


def test_measured_numbers_are_those_of_the_report() -> None:
    """What the README says of each sensitivity is what the benchmark wrote, by the thresholds that are shipped."""
    report = (ROOT / "benchmarks" / "detection.md").read_text("utf-8").splitlines()
    for name, threshold in risk.model().thresholds.items():
        (row,) = [line for line in report if line.startswith(f"| `{name}` |")]
        assert row in README
        assert f"| {threshold:.2f} |" in row
    (times,) = [line for line in report if " times the fixed rule." in line]
    assert f"{float(times.split()[0]):.1f} times what" in README


def test_facts_name_what_is_there() -> None:
    """Where docs/facts.md says what rests on a fact, that is there: our code by module and name, and our tests."""
    facts = (ROOT / "docs" / "facts.md").read_text("utf-8")
    ours = {path.stem: path for path in (ROOT / "hermes_fallback").glob("*.py")}
    named = [(module, name) for module, name in re.findall(r"`(\w+)\.(\w+)`", facts) if module in ours]
    assert len(named) > 10
    assert [f"{module}.{name}" for module, name in named if name not in {"py", *_names_in(ours[module])}] == []
    tests = {name for path in (ROOT / "tests").glob("test_*.py") for name in (path.stem, *_names_in(path))}
    assert [name for name in re.findall(r"`(test_\w+)", facts) if name not in tests] == []


def _names_in(path: Path) -> list[str]:
    return re.findall(r"^(?:def |class )?(\w+)", path.read_text("utf-8"), re.MULTILINE)


def test_malicious_releases_are_shut_out() -> None:
    """No installation of ours can bring litellm 1.82.7 or 1.82.8, nor one that Hermes or its calls cannot be beside."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (litellm,) = [one for one in map(Requirement, project["dependencies"]) if one.name == "litellm"]
    assert not any(litellm.specifier.contains(version) for version in ("1.82.7", "1.82.8", "1.105.4", "1.106.0"))
    assert litellm.specifier.contains("1.105.3")
