"""What a report says in words: its headline numbers, what shadow would have done, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import time

from ...explain import calls, plain, times
from ..figures import UNKNOWN, count, money, share
from .report import Calls, Group, Report, Sums, Would

HEADINGS = {
    "day": "Day",
    "week": "Week from",
    "month": "Month",
    "trigger": "Trigger",
    "model": "Model",
    "task-type": "Kind of task",
    "session": "Session",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One headline number: its name, the number, and what belongs beside it."""

    name: str
    value: str
    beside: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.beside})" if self.beside else self.value


def period(report: Report) -> str:
    """Say which period it is."""
    form = "%Y-%m-%d" if report.since.time() == time.min else "%Y-%m-%d %H:%M"
    first, last = report.since.strftime(form), report.until.strftime(form)
    return first if first == last else f"{first} to {last}"


def label(group: Group) -> str:
    """Name a group."""
    return plain(group.key) or "none given"


def facts(report: Report) -> tuple[Fact, ...]:
    """Return the headline numbers."""
    sums = report.totals
    return (
        _paid(sums.paid),
        Fact("Escalations", count(sums.paid.escalations), _states(sums.paid)),
        Fact("Success of the paid calls", *_success(sums.paid)),
        Fact("Tokens of the paid calls", *_tokens(sums.paid)),
        _stayed(sums),
        _local_calls(sums),
        Fact(f"Had every call gone to {_tier(report)}", *_estimate(report, sums.all_paid_usd, sums.paid.unknown_costs)),
        # What is not known of the paid calls is the same on both sides.
        Fact("Saved against that", *_estimate(report, sums.saved_usd, 0)),
    )


def shadow(report: Report) -> tuple[str, ...]:
    """Say what would have been escalated in shadow, and that none of it was paid."""
    if not report.would:
        return ()
    total = report.totals.shadow
    many = len(report.would) > 1
    in_all = f"In all {times(total.escalations)}, {calls(total.calls)}, {about(total)}; nothing" if many else "Nothing"
    return (*map(_would, report.would), f"{in_all} of this was paid, and it is in no other number.")


def about(shadow: Calls) -> str:
    """Say what shadow calls would have cost."""
    cost = money(shadow.cost_usd, shadow.unknown_costs)
    return "cost unknown" if cost == UNKNOWN else f"about {cost}"


def notes(report: Report) -> Iterator[Fact]:
    """Say what the numbers mean."""
    yield Fact(
        "Paid", "what the providers told; a call whose cost was never told counts with what was reserved for it."
    )
    if report.forgotten_usd:
        yield Fact("Forgotten", f"{money(report.forgotten_usd)} more was paid in rows that were deleted since.")
    yield Fact("Escalations", "each counts once, where its first call of the period is.")
    yield Fact(
        "Success",
        "the calls that answered, of those that answered, failed or expired (their end was never written); calls that "
        "you interrupted, or that still run, are left out.",
    )
    yield Fact(
        "Stayed local",
        "no paid call of the task gave an answer. A task is one message of yours and all that followed; what "
        "sub-agents did is part of it.",
    )
    yield Fact(
        f"Had every call gone to {_tier(report)}",
        "the tokens of the local calls, in calls of the same size, at its prices, and what was paid. An estimate: "
        "another model writes other answers and counts tokens in its own way.",
    )
    yield Fact("Days", f"those of local time, {plain(report.zone)}.")


def _paid(paid: Calls) -> Fact:
    beside = f"without {calls(paid.unknown_costs)} of unknown cost" if paid.unknown_costs else ""
    return Fact("Paid", money(paid.cost_usd), beside)


def _states(paid: Calls) -> str:
    states = ("answered", "failed", "expired", "interrupted", "started")
    named = [(state.replace("started", "not ended"), getattr(paid, state)) for state in states]
    told = ", ".join(f"{number:,} {state}" for state, number in named if number)
    return f"{calls(paid.calls)}: {told}" if told else calls(paid.calls)


def _success(paid: Calls) -> tuple[str, str]:
    if paid.success is None:
        return UNKNOWN, "none ended"
    return share(paid.success), f"{paid.answered:,} of {paid.ended:,}"


def _tokens(paid: Calls) -> tuple[str, str]:
    unknown = max(paid.unknown_input, paid.unknown_output)
    beside = f"without {calls(unknown)} of unknown number" if unknown else ""
    return f"{count(paid.input_tokens)} in, {count(paid.output_tokens)} out", beside


def _stayed(sums: Sums) -> Fact:
    local = sums.local
    if local is None or not local.tasks:
        return Fact("Tasks that stayed local", UNKNOWN, "no task is recorded")
    return Fact("Tasks that stayed local", share(local.share), f"{local.stayed:,} of {local.tasks:,}")


def _local_calls(sums: Sums) -> Fact:
    local = sums.local
    if local is None or not local.calls:
        return Fact("Calls of the local model", "0")
    tokens = f"{count(local.input_tokens)} tokens in, {count(local.output_tokens)} out"
    untold = f", without {calls(local.untold_calls)} that did not tell" if local.untold_calls else ""
    return Fact("Calls of the local model", count(local.calls), tokens + untold)


def _estimate(report: Report, usd: float | None, unknown_costs: int) -> tuple[str, str]:
    sums = report.totals
    local = sums.local
    if usd is not None:
        told = "" if local is None else _without(local.untold_calls, "local", "tokens")
        paid = _without(unknown_costs, "paid", "cost")
        beside = " and ".join(part for part in (told, paid) if part)
        nothing = "" if local is None or local.calls else "no local call is recorded"
        return f"about {money(usd)}", f"without {beside}" if beside else nothing
    if report.tier is None:
        return UNKNOWN, "no model that has prices is configured"
    if local is not None and local.input_tokens is None:
        return UNKNOWN, "no local call told its tokens"
    if sums.paid.cost_usd is None:
        return UNKNOWN, "the cost of the paid calls is not known"
    return UNKNOWN, "its price is not known; give the tier a `price`"


def _without(number: int, whose: str, what: str) -> str:
    return f"{number:,} {whose} {'call' if number == 1 else 'calls'} of unknown {what}" if number else ""


def _would(would: Would) -> str:
    made = would.calls
    return (
        f"Would have escalated {times(made.escalations)} to {plain(would.model)} because of {plain(would.trigger)}: "
        f"{calls(made.calls)}, {about(made)}."
    )


def _tier(report: Report) -> str:
    return plain(report.tier) if report.tier else "the paid model"
