"""Writes docs/compatibility.md from what the tests of `make test-hermes-matrix` reported, a file for each Hermes version.

python tests/compatibility.py docs/compatibility.md .cache/hermes-0.17.0.xml .cache/hermes-0.19.0.xml …
"""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

ROWS = {
    "interactive CLI, typed into a terminal": r"test_screen::",
    "`hermes chat -q`, installed by pip": r"as_it_stands\[entry point\]",
    "`hermes chat -q`, as a folder in `plugins/`": r"as_it_stands\[folder\]",
    "`hermes -z`": r"test_script_output",
    "gateway: chats, streamed and not, 50 sessions at once": r"test_gateway::",
    "TUI": r"test_tui",
    "ACP (editors)": r"test_acp",
    "API server": r"test_api_server",
    "cron": r"test_cron",
    "sub-agents": r"test_sessions::.*child|sub_agent|reaches_children",
    "compression in mid-turn, `--resume`, `/new`": r"compression|resumed|new_session",
    "Hermes's own `fallback_providers` as a tier": r"own_chain|hands_over|chain_that|empty_chain|fell_over",
    "each trigger, and its near miss": r"test_escalation::test_trigger",
    "silent failures, weak signs together, `self_check`": r"test_detection::",
    "`hermes escalation replay`": r"test_replay::",
    "budgets, and what a call costs": r"test_money::",
    "a person is asked: CLI, gateway, TUI, ACP": r"asked_for_money|asks_for_money|person|a_no_holds|asked_first|answers_in_the_chat",
    "task types, shadow": r"test_kinds::",
    "`hermes escalation check`, `status`, `explain`, `forget`": r"test_cli::",
    "a stronger model that fails": r"test_escalation::.*(failed_escalation|tier)",
    "llama.cpp with a real model": r"test_local_model::",
}
PROVIDERS = {
    "OpenAI chat": "openai chat",
    "OpenAI Responses": "openai responses",
    "Anthropic messages": "anthropic",
    "Gemini": "gemini",
}


def main(target: Path, reports: list[Path]) -> None:
    """Read the reports and write the table."""
    versions = {report.stem.removeprefix("hermes-"): _outcomes(report) for report in reports}
    rows = {
        **ROWS,
        **{f"{name}, strict server": rf"test_providers::.*[\[-]{key}[\]-]" for name, key in PROVIDERS.items()},
    }
    lines = [
        "# What was run",
        "",
        "Written by `make test-hermes-matrix`: tests that passed, against the real Hermes of each version and the real litellm.",
        "Model endpoints are servers on loopback; no paid provider was called.",
        "",
        "| surface or provider | " + " | ".join(f"Hermes {version}" for version in versions) + " |",
        "|---|" + "---|" * len(versions),
    ]
    for name, pattern in rows.items():
        cells = [
            _cell([outcome for test, outcome in tests.items() if re.search(pattern, test)])
            for tests in versions.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    target.write_text("\n".join(lines) + "\n", "utf-8")


def _outcomes(report: Path) -> dict[str, str]:
    outcomes = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314  # pytest's own file
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        module = case.get("classname", "").rpartition(".")[2]
        outcomes[f"{module}::{case.get('name')}"] = outcome
    return outcomes


def _cell(outcomes: list[str]) -> str:
    counts = {kind: outcomes.count(kind) for kind in ("passed", "failed", "skipped")}
    said = [f"{count} {kind}" for kind, count in counts.items() if count]
    return ", ".join(said) or "not run"


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
