"""Budgets: how large a reply may get, and that processes together never spend more than is allowed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_fallback.budget import (
    LEAST_OUTPUT_TOKENS,
    USUAL_OUTPUT_TOKENS,
    Allowed,
    Exceeded,
    Spent,
    Usage,
    WorstCase,
    fit,
)
from hermes_fallback.config import Budget
from hermes_fallback.journal import Journal, Opening, Reserved

# $0.01 for the input, $10 a million tokens for what is written.
WORST = WorstCase(4000, 0.01, 1e-5)

CASES = [
    # budget, spent, max_tokens → max_tokens, reserved, or words of the refusal
    (Budget(), Spent(), None, Allowed(None, 0.01 + USUAL_OUTPUT_TOKENS * 1e-5)),
    (Budget(), Spent(), 500, Allowed(500, 0.015)),
    (Budget(per_task_usd=1), Spent(), None, Allowed(USUAL_OUTPUT_TOKENS, 0.01 + USUAL_OUTPUT_TOKENS * 1e-5)),
    (Budget(per_task_usd=1), Spent(), 50_000, Allowed(50_000, 0.51)),
    (Budget(per_task_usd=0.06), Spent(), None, Allowed(5000, 0.06)),
    (Budget(per_task_usd=1, per_day_usd=2), Spent(task=0.1, day=1.94), None, Allowed(5000, 0.06)),
    (Budget(per_month_usd=2), Spent(month=1.98), None, "it may cost $0.0202, and $0.0200 of $2 this month is left"),
    (Budget(per_day_usd=2), Spent(day=3), None, "it may cost $0.0202, and $0.0000 of $2 today is left"),
    (Budget(per_session_usd=0.0202399), Spent(), None, "$0.0202 of $0.0202399 for this session is left"),
    (Budget(per_session_usd=0.02024), Spent(), None, Allowed(LEAST_OUTPUT_TOKENS, 0.02024)),
    (Budget(per_task_usd=0.0105), Spent(), 50, Allowed(50, 0.0105)),
    (Budget(per_task_usd=0.0104), Spent(), 50, "it may cost $0.0105"),
    (Budget(per_task_usd=0), Spent(), None, "$0.0000 of $0 for this task is left"),
]


@pytest.mark.parametrize(("budget", "spent", "max_tokens", "expected"), CASES)
def test_fit(budget: Budget, spent: Spent, max_tokens: int | None, expected: Allowed | str) -> None:
    """A call gets room for its reply as far as the nearest limit goes, and is not made when that is too little."""
    answer = fit(budget, spent, WORST, max_tokens=max_tokens, is_new=True)
    if isinstance(expected, str):
        assert isinstance(answer, Exceeded)
        assert expected in answer.why
        return
    assert isinstance(answer, Allowed)
    assert answer.max_tokens == expected.max_tokens
    assert answer.reserved_usd == pytest.approx(expected.reserved_usd)


def test_unknown_price() -> None:
    """Without a price, a budget in dollars blocks, unless the user says otherwise; one in escalations does not."""
    unknown = partial(fit, spent=Spent(), worst=None, max_tokens=None, is_new=True)
    assert unknown(Budget()) == unknown(Budget(max_escalations_per_session=1)) == Allowed(None, None)
    blocked = unknown(Budget(per_day_usd=5))
    assert isinstance(blocked, Exceeded)
    assert "give the tier a `price`, or write `unknown_price: allow`" in blocked.why
    assert unknown(Budget(per_day_usd=5, unknown_price="allow")) == Allowed(None, None)


def test_escalations_per_session() -> None:
    """The number limits what begins, not the calls of what has begun; a free model fits any budget."""
    budget = Budget(max_escalations_per_session=2)
    spent = Spent(escalations=2)
    refused = fit(budget, spent, WORST, max_tokens=9, is_new=True)
    assert refused == Exceeded("this session has had its 2 escalations", "max_escalations_per_session")
    assert isinstance(fit(budget, spent, WORST, max_tokens=9, is_new=False), Allowed)
    free = WorstCase(4000, 0.0, 0.0)
    assert fit(Budget(per_day_usd=0), Spent(), free, max_tokens=None, is_new=True) == Allowed(USUAL_OUTPUT_TOKENS, 0.0)


money = st.floats(0, 100, allow_nan=False).map(lambda usd: round(usd, 6))


@given(
    limit=st.none() | money,
    day=st.none() | money,
    spent=money,
    worst=st.builds(WorstCase, st.integers(0, 10**6), money, st.floats(0, 1e-3)),
    max_tokens=st.none() | st.integers(1, 10**6),
)
def test_never_more_than_any_limit(
    limit: float | None, day: float | None, spent: float, worst: WorstCase, max_tokens: int | None
) -> None:
    """Whatever is reserved fits into each limit, covers the reply that it allows, and is no larger than was asked for."""
    answer = fit(Budget(limit, None, day), Spent(task=spent, day=spent), worst, max_tokens=max_tokens, is_new=True)
    if isinstance(answer, Exceeded):
        assert limit is not None or day is not None
        return
    assert answer.reserved_usd is not None
    # A free call fits even a budget that is overdrawn.
    assert answer.reserved_usd < 1e-9 or all(
        one is None or spent + answer.reserved_usd <= one + 1e-8 for one in (limit, day)
    )
    if answer.max_tokens is not None:
        assert answer.reserved_usd == pytest.approx(worst.usd(answer.max_tokens))
        assert answer.max_tokens <= (max_tokens or USUAL_OUTPUT_TOKENS)


# One process of fifty: it asks for as much as it can get, and pays all or a part of what it reserved.
SPENDER = """
import random, sys, time
from functools import partial
from pathlib import Path
from hermes_fallback.budget import Exceeded, Usage, WorstCase, fit
from hermes_fallback.config import Budget
from hermes_fallback.journal import Journal, JournalError, Opening

folder, number, begin = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
random.seed(number)
journal, budget, worst = Journal(folder), Budget(per_day_usd=1.0), WorstCase(1000, 0.003, 1e-5)
time.sleep(max(0.0, begin - time.time()))
for turn in range(6):
    name = f"{number}-{turn}"
    try:
        reserved = journal.reserve(
            Opening(name, "local", "strong", "risk", "why"), turn_id=name, task_id=name, account=name, seconds=60,
            fit=partial(fit, budget, worst=worst, max_tokens=None, is_new=True),
        )
    except JournalError as error:
        print("unreachable", error)
        continue
    if isinstance(reserved, Exceeded):
        print("refused")
        continue
    time.sleep(random.uniform(0, 0.05))
    used = worst.usd(reserved.max_tokens) * random.choice([1.0, 1.0, 0.5])
    print("paid", repr(used), flush=True)
    spent = Usage(1000, reserved.max_tokens, used)
    journal.end_call(reserved.call, "answered", turn_id=name, seconds=0.0, used=spent)
"""


def test_fifty_processes_race_for_a_dollar(tmp_path: Path) -> None:
    """Fifty real processes want six times what there is: together they pay what the budget allows, and not a cent more."""
    begin = time.time() + 4
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(tmp_path), str(number), str(begin)], stdout=subprocess.PIPE, text=True
        )
        for number in range(50)
    ]
    said = [line for process in processes for line in process.communicate(timeout=100)[0].splitlines()]
    assert all(process.returncode == 0 for process in processes)
    paid = [float(line.split()[1]) for line in said if line.startswith("paid")]
    assert "refused" in said
    # Not merely little: the budget is used up, to less than the smallest call that makes sense.
    smallest = 0.003 + LEAST_OUTPUT_TOKENS * 1e-5
    assert 1.0 - smallest < sum(paid) <= 1.0 + 1e-9
    journal = Journal(tmp_path)
    assert journal.spent(task_id="", account="").day == pytest.approx(sum(paid))
    assert len(journal.entries(last=1000)) == len(paid)


HOLDER = """
import sys, time
from pathlib import Path
from hermes_fallback.budget import Allowed
from hermes_fallback.journal import Journal, Opening
Journal(Path(sys.argv[1])).reserve(
    Opening("s", "local", "strong", "risk", "why"), turn_id="t", task_id="t", account="s", seconds=30,
    fit=lambda spent: Allowed(None, 0.75),
)
print("reserved", flush=True)
time.sleep(60)
"""


def test_killed_in_the_middle_of_a_call(tmp_path: Path) -> None:
    """`kill -9` loses no money: what was reserved counts at once, goes on counting, and is spent when it expires."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "reserved\n"
        os.kill(process.pid, signal.SIGKILL)
    later = datetime.now(UTC) + timedelta(seconds=200)
    journal = Journal(tmp_path)
    assert journal.spent(task_id="t", account="s") == Spent(0.75, 0.75, 0.75, 0.75, 1)
    budget = partial(
        fit, Budget(per_session_usd=0.8), worst=replace(WORST, input_usd=0.06), max_tokens=None, is_new=False
    )
    afterwards = Journal(tmp_path, now=lambda: later)
    answer = afterwards.reserve(1, turn_id="u", task_id="u", account="s", seconds=1, fit=budget)
    assert isinstance(answer, Exceeded)
    afterwards.settle_expired()
    (entry,) = journal.entries()
    assert (entry.cost_usd, entry.failed) == (0.75, 1)
    assert "the process ended in the middle of it" in str(entry.error)
    assert afterwards.spent(task_id="t", account="s").session == 0.75


def test_a_day_and_a_month_begin_anew(tmp_path: Path) -> None:
    """What was spent yesterday does not count today; what was spent last month not this month."""
    now = datetime(2026, 11, 30, 20, 0).astimezone()
    journal = Journal(tmp_path, now=lambda: now)
    budget = Budget(per_day_usd=0.05, per_month_usd=0.07)

    def ask() -> Reserved | Exceeded:
        return journal.reserve(
            Opening("s", "local", "strong", "risk", "why"), turn_id="t", task_id="t", account="s", seconds=1,
            fit=partial(fit, budget, worst=WORST, max_tokens=2000, is_new=True),
        )  # fmt: skip

    def pay() -> None:
        reserved = ask()
        assert isinstance(reserved, Reserved)
        journal.end_call(reserved.call, "answered", turn_id="t", seconds=0, used=Usage(1, 1, reserved.usd))

    now = datetime(2026, 11, 29, 20, 0).astimezone()
    pay()
    assert "today" in str(ask())
    now = datetime(2026, 11, 30, 0, 1).astimezone()
    pay()
    assert "this month" in str(ask())
    now = datetime(2026, 12, 1, 0, 1).astimezone()
    pay()
    assert "today" in str(ask())
