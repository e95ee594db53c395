"""The report: each of its numbers recomputed from the SQLite file."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermes_fallback import explain
from hermes_fallback.cli import figures
from hermes_fallback.cli.reporting import export, report, summary
from hermes_fallback.cli.reporting.report import By, Report
from hermes_fallback.journal import Journal, PaidCall
from tests.journals import BERLIN, BYS, SINCE, TIER, UNTIL, Writer, busy, made, opening, price

pytestmark = pytest.mark.usefixtures("berlin")


KEYS = {"trigger": "e.trigger", "model": "e.to_model", "task-type": "task_type", "session": "session_id"}
DATES = ("day", "week", "month")


def date_key(at: str, by: str) -> str:
    """A day, the Monday before it, or its month, in Berlin."""
    day = datetime.fromisoformat(at).astimezone(BERLIN).date()
    monday = date.fromordinal(day.toordinal() - (day.toordinal() - 1) % 7)
    return {"day": str(day), "week": str(monday), "month": str(day)[:7]}[by]


def mean_price(local: int, untold: int, tokens_in: int, tokens_out: int) -> float:
    """What a turn's told calls would have cost, each as large as their mean."""
    told = local - untold
    return told * price(round(tokens_in / told), round(tokens_out / told)) if told > 0 else 0.0


class Recomputed:
    """The numbers of a period by SQL on the journal's file."""

    def __init__(self, path: Path, since: datetime = SINCE, until: datetime = UNTIL) -> None:
        self.period = {"since": int(since.timestamp()), "until": int(until.timestamp())}
        self.days = [
            date.fromordinal(n)
            for n in range(since.date().toordinal(), until.astimezone(BERLIN).date().toordinal() + 1)
        ]
        self.database = sqlite3.connect(path)
        self.database.create_function("seconds", 1, lambda at: int(datetime.fromisoformat(at).timestamp()))
        self.database.create_function("date_key", 2, date_key)
        self.database.create_function("mean_price", 4, mean_price)

    def rows(self, query: str, **more: object) -> list[tuple[Any, ...]]:
        """Run a query over the period."""
        return self.database.execute(query, self.period | more).fetchall()

    def key(self, by: str | None) -> str:
        """A row's key in SQL."""
        return "''" if by is None else f"date_key(at, '{by}')" if by in DATES else KEYS[by].removeprefix("e.")

    def calls(self, by: str | None, *, is_shadow: bool) -> dict[str, dict[str, Any]]:
        """Sums of calls."""
        states = ("answered", "failed", "interrupted", "expired", "started")
        query = f"""
            WITH p AS (
                SELECT c.*, session_id, to_model, trigger, task_type, coalesce(cost_usd, reserved_usd) AS usd,
                    row_number() OVER (PARTITION BY escalation ORDER BY c.at, c.id) AS nth
                FROM calls c JOIN escalations e ON e.id = c.escalation
                WHERE is_shadow = :shadow AND seconds(c.at) BETWEEN :since AND :until
            )
            SELECT {self.key(by)}, sum(nth = 1), count(*), {", ".join(f"sum(state = '{one}')" for one in states)},
                CAST(sum(state = 'answered') AS REAL) / nullif(sum(state IN ('answered', 'failed', 'expired')), 0),
                sum(input_tokens), sum(input_tokens IS NULL), sum(output_tokens), sum(output_tokens IS NULL),
                sum(usd), sum(usd IS NULL)
            FROM p GROUP BY 1"""  # noqa: S608
        names = ("escalations", "calls", *states, "success", *USED)
        found = {row[0]: dict(zip(names, row[1:], strict=True)) for row in self.rows(query, shadow=is_shadow)}
        if not is_shadow:
            return found
        return {key: {name: sums[name] for name in ("escalations", "calls", *USED)} for key, sums in found.items()}

    def local(self, by: str | None) -> dict[str, dict[str, Any]]:
        """Sums of the local side."""
        answered = "SELECT task_id FROM calls c JOIN escalations e ON e.id = c.escalation WHERE state = 'answered' AND is_shadow = {}"
        own = "turn_id = task_id"
        stayed = f"{own} AND task_id NOT IN ({answered.format(0)})"
        query = f"""
            SELECT {self.key(by)}, sum({own}), sum({stayed}), CAST(sum({stayed}) AS REAL) / nullif(sum({own}), 0),
                sum({stayed} AND task_id IN ({answered.format(1)})), sum(local_calls), sum(untold_calls),
                sum(input_tokens), sum(output_tokens), sum(mean_price(local_calls, untold_calls, input_tokens, output_tokens)),
                sum(local_calls) = sum(untold_calls) AND sum(untold_calls) > 0
            FROM tasks WHERE seconds(at) BETWEEN :since AND :until GROUP BY 1"""  # noqa: S608
        found = {}
        for key, *values, is_unknown in self.rows(query):
            found[key] = dict(zip(LOCAL, values, strict=True))
            if is_unknown:
                found[key] |= dict.fromkeys(("input_tokens", "output_tokens", "paid_usd"))
        return found

    def sums(self, by: str | None) -> dict[str, dict[str, Any]]:
        """A report's groups; of `None`, its totals under ''."""
        paid, shadow = self.calls(by, is_shadow=False), self.calls(by, is_shadow=True)
        local = self.local(by) if by not in {"trigger", "model"} else {}
        keys = (
            {date_key(f"{day}T12:00+00:00", by) for day in self.days}
            if by in DATES
            else paid.keys() | shadow.keys() | local.keys()
        )
        keys |= {""} if by is None else set()
        made = {}
        for key in keys:
            mine = None if by in {"trigger", "model"} else local.get(key, NO_LOCAL)
            usd = paid.get(key, NO_CALLS)["cost_usd"]
            whole = None if mine is None or mine["paid_usd"] is None or usd is None else mine["paid_usd"] + usd
            made[key] = {
                "paid": paid.get(key, NO_CALLS),
                "shadow": shadow.get(key, {name: NO_CALLS[name] for name in ("escalations", "calls", *USED)}),
                "local": mine,
                "all_paid_usd": whole,
                "saved_usd": None if whole is None else whole - usd,
            }
        return made


USED = (
    "input_tokens", "calls_with_unknown_input_tokens", "output_tokens", "calls_with_unknown_output_tokens",
    "cost_usd", "calls_with_unknown_cost",
)  # fmt: skip
LOCAL = (
    "tasks", "tasks_stayed", "share_stayed", "tasks_would_escalate", "calls", "calls_with_unknown_tokens",
    "input_tokens", "output_tokens", "paid_usd",
)  # fmt: skip
NO_CALLS: dict[str, Any] = {
    **dict.fromkeys(("escalations", "calls", "answered", "failed", "interrupted", "expired", "started"), 0),
    **dict.fromkeys(USED, 0),
    "success": None,
}
NO_LOCAL: dict[str, Any] = {**dict.fromkeys(LOCAL, 0), "share_stayed": None}


def near(value: object) -> object:
    """The same, with room for rounding in sums of dollars."""
    if isinstance(value, dict):
        return {key: near(part) for key, part in value.items()}
    return pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value


def check(journal: Journal, by: By) -> None:
    """Compare everything in a report with what SQL says."""
    told: Any = export.as_object(made(journal, by))
    with closing((sql := Recomputed(journal.path)).database):
        assert told["totals"] == near(sql.sums(None)[""])
        groups = {group.pop("key"): group for group in told["groups"]}
        assert groups == near(sql.sums(by))
        if by in DATES:
            assert list(groups) == sorted(groups)


@pytest.mark.parametrize("by", BYS)
def test_every_number_is_that_of_the_journal(tmp_path: Path, by: By) -> None:
    """Totals and groups are what SQL on the file says, over a change of the clocks and of the month."""
    check(busy(tmp_path), by)


def test_the_busy_fortnight_has_what_it_says(tmp_path: Path) -> None:
    """The comparison above is not one of nothing with nothing: some of its numbers, by hand."""
    sums = made(busy(tmp_path), "day")
    paid, local = sums.totals.paid, sums.totals.local
    assert local is not None
    assert (paid.calls, paid.answered, paid.failed, paid.interrupted, paid.expired, paid.started) == (14, 8, 2, 1, 1, 2)
    assert (paid.escalations, paid.unknown_costs) == (13, 3)
    assert paid.cost_usd == pytest.approx(0.25 + 4 * 0.001 + 0.5 + 0.125 + 0.75 + 0.0625 + 1e-5)
    assert (sums.totals.shadow.escalations, sums.totals.shadow.calls, sums.totals.shadow.unknown_costs) == (2, 3, 1)
    # t3-sub is no task of its own; helped are t-early, t1, the four of the 25th, t3 and t8.
    assert (local.tasks, local.stayed, local.would_escalate) == (12, 4, 1)
    (twenty_fifth,) = [group for group in sums.groups if group.key == "2026-10-25"]
    # 00:00 to 23:30: the interrupted call, and the four.
    assert twenty_fifth.sums.paid.calls == 5
    assert [group.key for group in sums.groups] == [str(date(2026, 10, 20) + timedelta(days=n)) for n in range(15)]
    assert sums.zone == "CEST (UTC+02:00), CET (UTC+01:00)"
    assert [(one.model, one.trigger, one.calls.calls, one.calls.cost_usd) for one in sums.would] == [
        (TIER, "no_progress", 2, 0.05),
        ("gemini/pro", "risk", 1, None),
    ]


def test_a_large_task_is_priced_by_its_calls(tmp_path: Path) -> None:
    """Ten calls of 50,000 tokens do not cost what one of 500,000 does, which is twice as much with some models."""
    to = Writer(tmp_path)
    to.task("t", calls=10, tokens=(500_000, 1000))
    assert made(to.journal, "day").totals.all_paid_usd == pytest.approx(10 * price(50_000, 100))


def test_without_a_price_the_estimate_is_unknown(tmp_path: Path) -> None:
    """Unknown is None and never nothing; what was paid is told all the same."""
    sums = made(busy(tmp_path), "session", reckon=lambda _i, _o: None).totals
    assert (sums.all_paid_usd, sums.saved_usd) == (None, None)
    assert sums.paid.cost_usd is not None


MOMENT = st.integers(0, int((UNTIL - SINCE).total_seconds()) // 60 + 3000).map(
    lambda n: SINCE - timedelta(days=1) + timedelta(minutes=n)
)
TOKENS = st.one_of(st.none(), st.integers(0, 300_000))
USD = st.one_of(st.none(), st.just(0.0), st.floats(1e-6, 5.0))
SOME = partial(st.sampled_from)
STEP = st.one_of(
    st.tuples(st.just("call"), MOMENT, SOME("abc"), SOME("xyz"), SOME([None, "answered", "failed", "interrupted"]), TOKENS, TOKENS, USD, USD, st.booleans()),
    st.tuples(st.just("shadow"), MOMENT, SOME("abc"), SOME("xyz"), st.lists(USD, max_size=3)),
    st.tuples(st.just("task"), MOMENT, SOME("abc"), SOME("xyzuv"), st.integers(0, 9), st.integers(0, 9), st.integers(0, 900_000), st.booleans()),
)  # fmt: skip


def play(to: Writer, steps: list[Any]) -> None:
    """Write a random journal."""
    escalation: int | None = None
    for kind, moment, session, task, *rest in steps:
        to.now = moment
        match kind, rest:
            case "call", (state, tokens_in, tokens_out, usd, reserved, goes_on):
                begun = opening(session, "m" + task, "no_progress" if session == "a" else "risk", session)
                of = escalation if goes_on and escalation is not None else begun
                escalation = to.call(of, task, state, tokens=(tokens_in, tokens_out), usd=usd, reserved=reserved)
            case "shadow", (costs,):
                to.shadow(opening(session, "m" + task, "risk", is_shadow=True), task, *costs)
            case "task", (calls, untold, tokens, is_part):
                known = tokens if calls > untold else 0
                turn = f"{task}{moment}" if is_part else task
                to.task(
                    turn,
                    of=task,
                    session=session,
                    kind=session,
                    calls=calls,
                    untold=min(calls, untold),
                    tokens=(known, known // 9),
                )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=14), SOME(BYS))
def test_random_journals(steps: list[Any], by: By) -> None:
    """Whatever was written, by whatever it is asked: SQL says the same, and the groups add up to the totals."""
    with tempfile.TemporaryDirectory() as folder:
        to = Writer(Path(folder))
        to.journal.set_off("s", is_off=False)
        play(to, steps)
        check(to.journal, by)
        adds_up(made(to.journal, by))


def adds_up(sums: Report) -> None:
    """The groups' numbers add up to the totals, known and unknown ones."""
    for side in ("paid", "shadow", "local"):
        total = getattr(sums.totals, side)
        parts = [getattr(group.sums, side) for group in sums.groups if getattr(group.sums, side) is not None]
        if side == "local" and not parts:
            continue
        for name in total.__dataclass_fields__:
            known = [number for part in parts if (number := getattr(part, name)) is not None]
            assert sum(known) == pytest.approx(getattr(total, name) or 0), (side, name)


def test_shadow_changes_nothing_that_was_paid(tmp_path: Path) -> None:
    """Without its shadow rows, a journal gives the same numbers, but for shadow's own."""
    journal = busy(tmp_path)
    paid, tasks = journal.paid_calls(since=SINCE), journal.local_tasks(since=SINCE)
    with_it, without = (
        report.make(calls, tasks, by="task-type", since=SINCE, until=UNTIL, price=price).totals
        for calls in (paid, [call for call in paid if not call.is_shadow])
    )
    assert with_it.local is not None
    assert without == replace(with_it, shadow=without.shadow, local=replace(with_it.local, would_escalate=0))
    assert without.shadow.calls == 0


@pytest.mark.parametrize(
    ("unknown", "words"),
    [
        ({"cost_usd": None}, ("Paid", "unknown", "without 1 call of unknown cost")),
        ({"input_tokens": None}, ("Tokens of the paid calls", "unknown in, 5 out", "without 1 call of unknown number")),
        ({"state": "started"}, ("Success of the paid calls", "unknown", "none ended")),
    ],
)
def test_unknown_is_said(unknown: dict[str, Any], words: tuple[str, str, str]) -> None:
    """No headline shows as nothing what is not known."""
    call = PaidCall(SINCE.isoformat(), "s", "t", 1, "m", "risk", "", False, "answered", 1.0, 10, 5, 0.5)
    one = report.make([replace(call, **unknown)], (), by="day", since=SINCE, until=UNTIL, price=price)
    assert summary.Fact(*words) in summary.facts(one)


@pytest.mark.parametrize(
    ("usd", "unknown", "said"),
    [
        (None, 3, "unknown"),
        (0.0, 0, "$0"),
        (0.0, 1, "$0 + 1 call of unknown cost"),
        (0.00001, 0, "under $0.0001"),
        (0.00005, 0, "$0.0001"),
        (0.04214, 0, "$0.0421"),
        (0.99994, 2, "$0.9999 + 2 calls of unknown cost"),
        (0.99996, 0, "$1.00"),
        (1234.567, 0, "$1,234.57"),
    ],
)
def test_money(usd: float | None, unknown: int, said: str) -> None:
    """Four digits below a dollar, two above; what is unknown is said."""
    assert figures.money(usd, unknown) == said


def test_shares_and_names() -> None:
    """Only all is 100% and only nothing is 0%; thousands have a comma; a name has no control characters."""
    assert [figures.share(part) for part in (None, 0.0, 0.001, 0.5, 0.999, 1.0)] == [
        "unknown",
        "0%",
        "under 1%",
        "50%",
        "over 99%",
        "100%",
    ]
    assert [explain.times(count) for count in (1, 2, 1200)] == ["once", "2 times", "1,200 times"]
    assert explain.plain("a\x1b[31mb\nc\u202ed\x9be\u2028f") == "a [31mb c d e f"
