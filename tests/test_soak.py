"""The soak in small: threads, faults on both sides, `kill -9`, one budget; and that its checks find what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import checks
from benchmarks.soak.checks import Call, Limits
from benchmarks.soak.endpoints import Bill
from hermes_fallback.budget import Allowed, Usage
from hermes_fallback.journal import Journal, Opening

LIMITS = Limits(task_usd=0.02, session_usd=0.03, total_usd=0.05, escalations=3)
BILL = Bill(at=1.0, tag="3-1.0", model="m", fault="none", input_tokens=100, output_tokens=50, usd=0.0007)
CALL = Call(1, "3-1", "3-1.0", "3-1.0", "answered", 0.012, 0.0007, 100, 50)


@pytest.mark.timeout(600)
def test_soak(tmp_path: Path) -> None:
    """Nothing gets stuck, leaks, costs more than allowed or is lost, whatever fails and whoever is killed."""
    written = tmp_path / "result.json"
    size = ["--turns", "160", "--threads", "16", "--kill-seconds", "2", "3", "--kills", "1", "--growth-mb", "150"]
    size += ["--minutes", "5"]
    command = [
        sys.executable,
        "-m",
        "benchmarks.soak",
        *size,
        "--json",
        str(written),
        "--folder",
        str(tmp_path / "soak"),
    ]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[1],
        start_new_session=True,
    ) as soak:
        try:
            said, _ = soak.communicate(timeout=550)
        finally:
            with suppress(ProcessLookupError):  # its workers and endpoints, if it could not end them
                os.killpg(soak.pid, signal.SIGKILL)
    result = json.loads(written.read_text()) if written.exists() else {}
    assert (soak.returncode, result.get("violations")) == (0, []), said[-2000:]
    assert result["turns"] >= 160
    assert result["kills"] >= 1
    assert 0 < result["billed_usd"] <= result["limit_usd"]
    # It has been what it says: both endpoints failed in several ways, and the budget was in the way.
    assert min(len(faults) for faults in result["faults"].values()) > 3
    assert len(result["triggers"]) > 1
    assert sum(result["refused"].values()) > 0
    assert set(result["calls"]) >= {"answered", "failed"}


def bills(*usd: float, tag: str = "3-1.0") -> list[Bill]:
    """Requests of a turn that cost so much."""
    return [replace(BILL, tag=tag, usd=one) for one in usd]


MONEY: list[tuple[str, Callable[[], Iterable[str]]]] = [
    ("task 3-1.0 billed $0.024", lambda: checks.budget_by_bills(bills(0.012, 0.012), LIMITS)),
    ("task 3-1.0 billed", lambda: checks.budget_by_bills([*bills(0.012), *bills(0.012, tag="3-1.0+1")], LIMITS)),
    ("session 3-1 billed", lambda: checks.budget_by_bills([*bills(0.016), *bills(0.016, tag="3-1.1")], LIMITS)),
    ("all together billed", lambda: checks.budget_by_bills([b for n in range(4) for b in bills(0.016, tag=f"{n}-0.0")], LIMITS)),
    ("task 3-1.0 journaled", lambda: checks.budget_by_journal([replace(CALL, cost_usd=None, state="started")] * 2, LIMITS)),
    ("2 requests were billed, and 1 calls", lambda: checks.bills_have_rows(bills(0.001, 0.001), [CALL])),
    ("1 requests were billed, and 0 calls", lambda: checks.bills_have_rows([BILL], [replace(CALL, turn_id="3-1.1", state="failed")])),
    ("as answered, and 0 were billed", lambda: checks.bills_have_rows([], [CALL])),
    ("billed [(100, 50)]", lambda: checks.sums_agree([BILL], [replace(CALL, output_tokens=49)])),
    ("($0.000700), journaled", lambda: checks.sums_agree([BILL], [replace(CALL, cost_usd=0.0006)])),
    ("is started, and nobody was killed", lambda: checks.rows_without_an_end([replace(CALL, state="started")], ["3-2"])),
    ("is expired, and nobody was killed", lambda: checks.rows_without_an_end([replace(CALL, state="expired")], [])),
    ("a session that is off", lambda: checks.nobody_off_paid(bills(0.001, tag="3-1.0!"))),
    ("of no turn", lambda: checks.bills_are_of_turns(bills(0.001, tag=""))),
]  # fmt: skip


@pytest.mark.parametrize(("words", "check"), MONEY, ids=[words for words, _ in MONEY])
def test_a_check_finds_it(words: str, check: Callable[[], Iterable[str]]) -> None:
    """Each says what is wrong."""
    found = list(check())
    assert any(words in violation for violation in found), found


def test_the_checks_find_nothing_where_nothing_is() -> None:
    """Bills that the journal knows, a killed call that is reserved for, a whole agent's turn, a sub-agent's."""
    whole, child = replace(BILL, tag="3-1w2.0"), replace(BILL, tag="3-1.0+1")
    killed = replace(CALL, session_id="4-0", turn_id="4-0.0", state="started", cost_usd=None)
    calls = [
        *(CALL, replace(CALL, turn_id="3-1w2:task:1"), replace(CALL, turn_id="3-1.0+1"), killed),
        replace(CALL, turn_id="3-1.3", state="failed", cost_usd=0.0),
    ]
    known = [BILL, whole, child, replace(BILL, tag="4-0.0", output_tokens=3)]
    for found in (
        checks.budget_by_bills(known, LIMITS),
        checks.budget_by_journal(calls, LIMITS),
        checks.bills_have_rows(known, calls),
        checks.sums_agree(known, calls),
        checks.rows_without_an_end(calls, ["4-0"]),
        checks.nobody_off_paid(known),
        checks.bills_are_of_turns(known),
    ):
        assert list(found) == []


def test_checks_of_the_file(tmp_path: Path) -> None:
    """Too many escalations, one without a call, a turn that is missing or differs, and a broken page are found."""
    journal = Journal(tmp_path)
    for _ in range(4):
        reserved = journal.reserve(
            Opening("3-1", "local", "strong", "risk", "why"), turn_id="3-1.0", task_id="3-1.0", account="3-1",
            seconds=1, fit=lambda _: Allowed(None, 0.01),
        )  # fmt: skip
        call, used = getattr(reserved, "call", 0), Usage(100, 50, 0.0007)
        journal.end_call(call, "answered", turn_id="3-1.0", seconds=0, used=used)
    counts = {"local_calls": 2, "untold_calls": 0, "input_tokens": 1, "output_tokens": 1}
    journal.add_task(turn_id="3-1.0", task_id="3-1.0", session_id="3-1", task_type="", type_reason="", **counts)
    assert "had 4 escalations" in "".join(checks.escalations(journal.path, LIMITS))
    assert list(checks.turns_are_journaled(journal.path, ["3-1.0 2", "3-1.2 0"])) == []
    assert len(list(checks.turns_are_journaled(journal.path, ["3-1.0 3", "3-1.1 1"]))) == 2
    assert list(checks.references(journal.path)) == list(checks.sound(journal.path)) == []
    journal.open_escalation(Opening("3-1", "local", "strong", "risk", "why"))
    assert "has no call" in "".join(checks.references(journal.path))
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole.replace(b"3-1.0", b"9-9.9", 1))
    assert "integrity_check" in "".join(checks.sound(journal.path))


def status(done: int, *, final: bool = False, **more: Any) -> dict[str, Any]:
    """What a worker tells of itself."""
    quiet = {"rss_mb": 400.0, "threads": 30, "files": 20, "names": {"MainThread": 1}, "kept": {"adapter.turns": 0}}
    return {"done": done, "final": final, **quiet, **more}


LEAKS = [
    ("rss_mb grew", [*(status(n, rss_mb=400 + n) for n in range(100)), status(100, final=True)]),
    ("files grew", [*(status(n, files=20 + 2 * n) for n in range(100)), status(100, final=True)]),
    ("threads grew", [*(status(n, threads=30 + 2 * n) for n in range(100)), status(100, final=True)]),
    ("there is kept: {'adapter.turns': 1}", [*map(status, range(9)), status(9, final=True, kept={"adapter.turns": 1})]),
    ("there run: {'hermes-fallback-call': 2}", [*map(status, range(9)), status(9, final=True, names={"hermes-fallback-call": 2})]),
    ("not ended by itself", [*map(status, range(9))]),
    ("told nothing", []),
]  # fmt: skip


@pytest.mark.parametrize(("words", "statuses"), LEAKS, ids=[words for words, _ in LEAKS])
def test_a_leak_is_found(words: str, statuses: list[dict[str, Any]]) -> None:
    """What grows when it is warm, and what is left when all is over."""
    assert words in "".join(checks.nothing_leaks(statuses, growth_mb=30))


def test_no_leak_is_found_where_none_is(tmp_path: Path) -> None:
    """What grows in the beginning is warmth; a log without faults is clean, and one with them is not."""
    steady = [status(n, rss_mb=100.0 + min(n, 20) * 10) for n in range(100)]
    assert list(checks.nothing_leaks([*steady, status(100, final=True)], growth_mb=30)) == []
    (tmp_path / "log").write_text("WARNING escalation failed session=1\n")
    assert list(checks.logs_are_clean([tmp_path / "log"])) == []
    (tmp_path / "log").write_text("ERROR session=1: hermes-fallback failed in llm_execution (fault 1)\n")
    assert "logged 1 times" in "".join(checks.logs_are_clean([tmp_path / "log"]))
