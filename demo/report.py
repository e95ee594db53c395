"""Makes docs/report.png: the page of `hermes escalation report --html`, of a month that is made up, in Chromium."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from hermes_fallback.budget import NOTHING_USED, Allowed, Spent, Usage
from hermes_fallback.cli.reporting import page, report
from hermes_fallback.config import Price
from hermes_fallback.journal import Journal, Opening, Reserved

FILE = Path(__file__).parents[1] / "docs" / "report.png"
SIZE = "1000,1312"
PAID = "openai/gpt-5.4"
PRICE = Price(2.5, 15.0)
UNTIL = datetime(2026, 11, 24, 17, 0, tzinfo=UTC)
DAYS, SHADOW_DAYS = 30, 8
TRIGGERS = {
    "repeated_tool_failure": 9,
    "no_progress": 5,
    "silent_failure": 4,
    "risk": 3,
    "invalid_output": 2,
    "user_request": 2,
}


def main() -> None:
    """Write the page, or with Chromium its picture."""
    os.environ["TZ"] = "Europe/Berlin"
    time.tzset()
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "report.html"
        html.write_text(page.page(made(Path(folder)), by="day"), "utf-8")
        if len(sys.argv) > 1:
            shutil.copy(html, sys.argv[1])
            return
        picture(html, Path(folder) / "profile")
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


def made(folder: Path) -> partial[report.Report]:
    """Write a month's journal; return what makes reports of it."""
    chance = random.Random(5)  # noqa: S311  # the same month each time
    first = UNTIL.astimezone().replace(hour=0, minute=0) - timedelta(days=DAYS - 1)
    moments = [first]
    journal = Journal(folder, now=lambda: moments[-1])
    for day in range(DAYS):
        start = first + timedelta(days=day, hours=8)
        busy = 0.25 if start.weekday() > 4 else 1.0
        for number in range(round(chance.randint(3, 9) * busy)):
            moments.append(start + timedelta(minutes=55 * number + chance.randint(0, 30)))
            task(journal, chance, f"{day}.{number}", is_shadow=day < SHADOW_DAYS)
    calls = journal.paid_calls(since=first)
    tasks = journal.local_tasks(since=first)
    return partial(report.make, calls, tasks, since=first, until=UNTIL, price=PRICE.of, tier=PAID)


def task(journal: Journal, chance: random.Random, turn: str, *, is_shadow: bool) -> None:
    """Write one task, every fifth of which is escalated."""
    session = f"session-{turn.partition('.')[0]}"
    if chance.random() < (0.22 if is_shadow else 0.19):
        (trigger,) = chance.choices(list(TRIGGERS), list(TRIGGERS.values()))
        opening = Opening(session, "qwen3.6:9b", PAID, trigger, "made up", is_shadow=is_shadow)
        escalate(journal, chance, opening, turn)
    local = chance.randint(4, 30)
    journal.add_task(
        turn_id=turn, task_id=turn, session_id=session, task_type="", type_reason="", local_calls=local, untold_calls=0,
        input_tokens=local * chance.randint(6_000, 16_000), output_tokens=local * chance.randint(150, 500),
    )  # fmt: skip


def escalate(journal: Journal, chance: random.Random, opening: Opening, turn: str) -> None:
    """Write an escalation's calls, one of which may fail."""
    shadow = journal.open_escalation(opening) if opening.is_shadow else None
    escalation: int | Opening = opening
    for _ in range(chance.randint(2, 7)):
        tokens = chance.randint(6_000, 22_000), chance.randint(200, 900)
        used = Usage(*tokens, PRICE.of(*tokens))
        if shadow is not None:
            journal.add_shadow_call(shadow, turn_id=turn, task_id=turn, used=used)
            continue
        call = journal.reserve(
            escalation,
            turn_id=turn,
            task_id=turn,
            account=opening.session_id,
            seconds=60.0,
            fit=allowing(used.cost_usd),
        )
        assert isinstance(call, Reserved)
        escalation = call.escalation
        if chance.random() < 0.06:
            journal.end_call(call.call, "failed", turn_id=turn, seconds=1.0, used=NOTHING_USED, error="made up")
            continue
        journal.end_call(call.call, "answered", turn_id=turn, seconds=6.0, used=used)


def allowing(usd: float | None) -> Callable[[Spent], Allowed]:
    """Return a budget that has room."""
    return lambda _spent: Allowed(None, usd)


def picture(html: Path, profile: Path) -> None:
    """Have Chromium draw the page."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or sys.exit("There is no Chromium here.")
    options = ["--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]
    # Its sandbox does not work for root.
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [chromium, *options, f"--window-size={SIZE}", f"--screenshot={FILE}", html.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)


if __name__ == "__main__":
    main()
