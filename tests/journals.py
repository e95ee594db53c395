"""Journals for the tests of the report, written by the real `Journal` at times of their own, mostly in Berlin."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

from hermes_fallback.budget import Allowed, Spent, Usage
from hermes_fallback.cli.reporting import report
from hermes_fallback.cli.reporting.report import By, Report
from hermes_fallback.journal import Journal, Opening, Reserved

BERLIN = ZoneInfo("Europe/Berlin")
TIER = "openai/gpt-5.4"
BYS = get_args(By)
# The clocks go back on 2026-10-25 at 03:00, so that day has 25 hours.
SINCE = datetime(2026, 10, 20, tzinfo=BERLIN)
UNTIL = datetime(2026, 11, 3, 12, tzinfo=BERLIN)


def price(input_tokens: int, output_tokens: int) -> float:
    """A model that costs twice as much beyond 200,000 tokens of input."""
    usd = input_tokens * 2.5e-6 + output_tokens * 15e-6
    return usd * 2 if input_tokens > 200_000 else usd


class Writer:
    """Writes a journal at times of its choosing."""

    def __init__(self, folder: Path) -> None:
        self.now = SINCE
        self.journal = Journal(folder, now=lambda: self.now)

    def at(self, text: str) -> Writer:
        """Go to a time in UTC, `10-25 00:30`, of the year 2026."""
        self.now = datetime.fromisoformat(f"2026-{text}").replace(tzinfo=UTC)
        return self

    def call(
        self, escalation: int | Opening, task: str, state: str | None = "answered", *, tokens: tuple[int | None, int | None] = (1000, 100),
        usd: float | None = None, reserved: float | None = None,
    ) -> int:  # fmt: skip
        """Write a paid call, left open when it has no state; return its escalation."""
        allow: Callable[[Spent], Allowed] = lambda _: Allowed(None, reserved)  # noqa: E731
        made = self.journal.reserve(escalation, turn_id=task, task_id=task, account="s", seconds=60.0, fit=allow)
        assert isinstance(made, Reserved)
        if state is not None:
            self.journal.end_call(made.call, state, turn_id=task, seconds=1.0, used=Usage(*tokens, usd))
        return made.escalation

    def shadow(self, opening: Opening, task: str, *costs: float | None) -> None:
        """Write an escalation that was only decided."""
        escalation = self.journal.open_escalation(opening)
        for cost in costs:
            used = Usage(50, None if cost is None else 5, cost)
            self.journal.add_shadow_call(escalation, turn_id=task, task_id=task, used=used, otherwise=opening)

    def task(
        self, turn: str, *, of: str | None = None, session: str = "s1", kind: str = "", calls: int = 4, untold: int = 0, tokens: tuple[int, int] = (9000, 700)
    ) -> None:  # fmt: skip
        """Write a task, or a sub-agent's part `of` one."""
        self.journal.add_task(
            turn_id=turn, task_id=of or turn, session_id=session, task_type=kind, type_reason="", local_calls=calls, untold_calls=untold, input_tokens=tokens[0], output_tokens=tokens[1],
        )  # fmt: skip


def opening(
    session: str = "s1", model: str = TIER, trigger: str = "no_progress", kind: str = "", *, is_shadow: bool = False
) -> Opening:
    """An escalation about to begin."""
    return Opening(session, "qwen", model, trigger, "why", kind, is_shadow=is_shadow)


def busy(folder: Path) -> Journal:
    """A fortnight with everything in it, over the end of summer time and of a month."""
    to = Writer(folder)
    # Before the period; the task ends in it.
    early = to.at("10-19 21:30").call(opening("s0"), "t-early", usd=9.0)
    to.call(opening("s0"), "t-outside", usd=9.0)
    to.task("t-outside")
    to.at("10-19 21:59:59").call(early, "t-early", usd=9.0)
    # The period's first second in Berlin; an escalation that is held for days.
    held = to.at("10-19 22:00").call(early, "t1", usd=0.25)
    to.task("t-early", session="s0", kind="code")
    to.at("10-20 10:00").call(held, "t1", "failed", tokens=(0, 0), usd=0.0)
    to.task("t1", session="s0")
    # 01:30, 02:30 in summer time and 02:30 in winter time, all on the 25th; 23:30 of the 25th.
    for clock in ("10-24 23:30", "10-25 00:30", "10-25 01:30", "10-25 22:30"):
        to.at(clock).call(opening("s2", "anthropic/claude", "risk", "code"), clock, usd=0.001)
        to.task(clock, session="s2", kind="code")
    to.at("10-24 22:00").call(opening("s2"), "t2", "interrupted", tokens=(700, None), reserved=0.5)
    to.at("10-25 23:00").call(opening("s3", trigger="user_request"), "t3", tokens=(None, None))
    to.call(opening("s3", "local/strong", "silent_failure"), "t3", "failed", tokens=(None, None))
    to.task("t3", session="s3", kind="write")
    to.task("t3-sub", of="t3", session="s3", kind="write", calls=2, tokens=(500_000, 9))
    to.task("t4", session="s3", calls=3, untold=3, tokens=(0, 0))
    to.task("t5", session="s4", calls=5, untold=2, tokens=(601_000, 60))
    to.task("t6", session="s5", calls=0, tokens=(0, 0))
    to.at("10-28 09:00").shadow(opening("s6", is_shadow=True), "t7", 0.02, 0.03)
    to.shadow(opening("s6", "gemini/pro", "risk", "code", is_shadow=True), "t7", None)
    to.task("t7", session="s6")
    # One that never ended, found by the next; one that runs.
    to.at("10-31 22:59").call(opening("s7"), "t8", None, reserved=0.125)
    to.at("10-31 23:30").call(opening("s7"), "t8", tokens=(10, 1), usd=0.75)
    to.task("t8", session="s7", kind="write")
    to.at("11-03 10:59").call(opening("s7"), "t9", None)
    to.call(opening("s7"), "t9", None, reserved=0.0625)
    to.at("11-03 11:00").call(opening("s7"), "t9", usd=1e-5)
    to.at("11-03 11:00:01").call(opening("s7"), "t-late", usd=9.0)
    to.task("t-late")
    return to.journal


def made(journal: Journal, by: By, *, reckon: report.Price = price) -> Report:
    """The report as the command makes it."""
    paid, tasks = journal.paid_calls(since=SINCE - timedelta(days=7)), journal.local_tasks(since=SINCE)
    return report.make(paid, tasks, by=by, since=SINCE, until=UNTIL, price=reckon, tier=TIER)


EVIL = {
    "session": '=HYPERLINK("http://example.invalid/")',
    "model": "<script>alert(1)</script>\x1b[31m[red]red[/red]",
    "trigger": "\u202e@SUM(1)<img src=http://example.invalid/x>",
}  # fmt: skip


def evil(folder: Path, at: datetime) -> Journal:
    """A journal whose names come from somebody who means harm."""
    to = Writer(folder)
    to.now = at
    to.call(opening(EVIL["session"], EVIL["model"], EVIL["trigger"]), "t", usd=0.5)
    to.shadow(opening("+1+1", EVIL["model"], "risk", is_shadow=True), "t2", 0.125)
    to.task("t", session=EVIL["session"], tokens=(4_000_000, 0))
    to.task("t2", session="+1+1", calls=1, untold=1, tokens=(0, 0))
    return to.journal
