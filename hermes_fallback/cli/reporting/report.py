"""Sums up the journal: what was paid, what it did, what stayed local, and what paying for everything would have cost.

Pure, but for the machine's time zone: days are local days. What `enabled: shadow` only decided is summed up for itself
and is never part of what was paid. Unknown is None, and how many calls are not in a sum stands beside it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from math import fsum
from typing import Literal, TypeVar

from ...journal import LocalTask, PaidCall

By = Literal["day", "week", "month", "trigger", "model", "task-type", "session"]

Price = Callable[[int, int], float | None]
"""What a call with so many input and output tokens costs, in dollars; None when that is not known."""

_Number = TypeVar("_Number", int, float)

_DATES = frozenset({"day", "week", "month"})
_OF_CALLS_ALONE = frozenset({"trigger", "model"})


@dataclass(frozen=True, slots=True)
class Calls:
    """Sums of calls of stronger models.

    An escalation counts once, where its first call of the period is. A sum is of the calls whose number is known, and
    None when that is not one of them; `unknown_…` is how many are not in it. A call whose cost was never told costs
    what was reserved for it.
    """

    escalations: int
    calls: int
    answered: int
    failed: int
    interrupted: int
    expired: int
    started: int
    input_tokens: int | None
    unknown_input: int
    output_tokens: int | None
    unknown_output: int
    cost_usd: float | None
    unknown_costs: int

    @property
    def ended(self) -> int:
        """How many ended by themselves: answered, failed, or expired (their end was never written)."""
        return self.answered + self.failed + self.expired

    @property
    def success(self) -> float | None:
        """The share of the ended ones that answered; interrupted and unfinished calls say nothing of the model."""
        return self.answered / self.ended if self.ended else None


@dataclass(frozen=True, slots=True)
class Local:
    """Sums of what the local model did.

    `tasks` are the user's, with their sub-agents; `stayed` of them had no answer of a paid call; `would_escalate` of
    these had one in shadow. Calls and tokens are those of sub-agents as well; `untold_calls` are not in the tokens.
    `paid_usd` is what the same tokens would have cost in calls of the same size.
    """

    tasks: int
    stayed: int
    would_escalate: int
    calls: int
    untold_calls: int
    input_tokens: int | None
    output_tokens: int | None
    paid_usd: float | None

    @property
    def share(self) -> float | None:
        """The share of the tasks that stayed local."""
        return self.stayed / self.tasks if self.tasks else None


@dataclass(frozen=True, slots=True)
class Sums:
    """What was paid, what shadow would have paid, and the local side; None where that has no such division."""

    paid: Calls
    shadow: Calls
    local: Local | None

    @property
    def all_paid_usd(self) -> float | None:
        """What it would have cost, had every call gone to the paid model: the local tokens' price and what was paid."""
        if self.local is None or self.local.paid_usd is None or self.paid.cost_usd is None:
            return None
        return self.local.paid_usd + self.paid.cost_usd

    @property
    def saved_usd(self) -> float | None:
        """How much less was paid than that."""
        if self.all_paid_usd is None or self.paid.cost_usd is None:
            return None
        return self.all_paid_usd - self.paid.cost_usd

    @property
    def is_at_least(self) -> bool:
        """Whether the estimate lacks calls of which nothing is known."""
        return bool(self.paid.unknown_costs or (self.local and self.local.untold_calls))


@dataclass(frozen=True, slots=True)
class Group:
    """The sums of one day, trigger, model, kind of task ('' for none) or session."""

    key: str
    sums: Sums


@dataclass(frozen=True, slots=True)
class Would:
    """What shadow would have escalated to a model because of a trigger."""

    model: str
    trigger: str
    calls: Calls


@dataclass(frozen=True, slots=True)
class Report:
    """A period's sums; `tier` is the model whose prices the estimate reckons with, None where there is none."""

    by: By
    since: datetime
    until: datetime
    tier: str | None
    totals: Sums
    groups: tuple[Group, ...]
    would: tuple[Would, ...]
    forgotten_usd: float = 0.0
    """What was paid in rows that were deleted since (`hermes escalation forget`); in no other number."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        sums = self.totals
        return not (sums.paid.calls or sums.shadow.calls or (sums.local and sums.local.calls))

    @property
    def zone(self) -> str:
        """The local time of the period, which daylight saving may change: `CEST (UTC+02:00), CET (UTC+01:00)`."""
        # At both ends, and at noon of each day between them.
        noons = (datetime(day.year, day.month, day.day, 12).astimezone() for day in days(self.since, self.until))
        moments = (self.since, *noons, self.until)
        return ", ".join(dict.fromkeys(f"{moment:%Z} (UTC{moment.isoformat()[-6:]})" for moment in moments))


def make(
    paid: Sequence[PaidCall],
    tasks: Sequence[LocalTask],
    *,
    by: By,
    since: datetime,
    until: datetime,
    price: Price,
    tier: str | None = None,
    forgotten_usd: float = 0.0,
) -> Report:
    """Sum up the calls and tasks from `since` to `until` (aware), both included.

    `paid` may begin earlier: a task that ended in the period may have been helped before it. `price` is of the model
    named `tier`.
    """
    since, until = since.astimezone(), until.astimezone()
    calls = sorted((call for call in paid if since <= _moment(call) <= until), key=_moment)
    tasks = [task for task in tasks if since <= _moment(task) <= until]
    summing = _Summing(
        price,
        helped=frozenset(call.task_id for call in paid if call.state == "answered" and not call.is_shadow),
        shadowed=frozenset(call.task_id for call in paid if call.state == "answered" and call.is_shadow),
    )
    firsts: dict[int, PaidCall] = {}
    for call in calls:
        firsts.setdefault(call.escalation, call)
    first_calls = frozenset(map(id, firsts.values()))
    of_tasks = None if by in _OF_CALLS_ALONE else tasks
    return Report(
        by,
        since,
        until,
        tier,
        summing.sums(calls, tasks, first_calls),
        tuple(_groups(summing, calls, of_tasks, by=by, firsts=first_calls, days=days(since, until))),
        tuple(_would(calls, first_calls)),
        forgotten_usd,
    )


def days(since: datetime, until: datetime) -> Iterator[date]:
    """Return the local days of a period."""
    first, last = since.astimezone().date(), until.astimezone().date()
    return (first + timedelta(days=number) for number in range((last - first).days + 1))


def week_of(day: date) -> date:
    """Return the Monday of a day's week."""
    return day - timedelta(days=day.weekday())


def _moment(row: PaidCall | LocalTask) -> datetime:
    return datetime.fromisoformat(row.at)


@dataclass(frozen=True, slots=True)
class _Summing:
    """Sums up rows; `helped` and `shadowed` are the tasks with an answer of a stronger model, paid or in shadow."""

    price: Price
    helped: frozenset[str]
    shadowed: frozenset[str]
    _prices: dict[tuple[int, int], float | None] = field(default_factory=dict)

    def sums(self, calls: Sequence[PaidCall], tasks: Sequence[LocalTask] | None, firsts: frozenset[int]) -> Sums:
        paid = _sum_up([call for call in calls if not call.is_shadow], firsts)
        shadow = _sum_up([call for call in calls if call.is_shadow], firsts)
        return Sums(paid, shadow, None if tasks is None else self._local(tasks))

    def _local(self, tasks: Sequence[LocalTask]) -> Local:
        own = [task.task_id for task in tasks if not task.is_subagent]
        stayed = [task for task in own if task not in self.helped]
        calls, untold = sum(task.local_calls for task in tasks), sum(task.untold_calls for task in tasks)
        told = [task for task in tasks if task.local_calls > task.untold_calls]
        nothing_known = untold and not told
        prices = [self._price(task) for task in told]
        known = [price for price in prices if price is not None]
        return Local(
            tasks=len(own),
            stayed=len(stayed),
            would_escalate=sum(task in self.shadowed for task in stayed),
            calls=calls,
            untold_calls=untold,
            input_tokens=None if nothing_known else sum(task.input_tokens for task in told),
            output_tokens=None if nothing_known else sum(task.output_tokens for task in told),
            paid_usd=None if nothing_known or len(known) < len(prices) else fsum(known),
        )

    def _price(self, task: LocalTask) -> float | None:
        # By its mean call: many models cost twice as much beyond a size that no single call of the task had.
        told = task.local_calls - task.untold_calls
        mean = round(task.input_tokens / told), round(task.output_tokens / told)
        if mean not in self._prices:
            self._prices[mean] = self.price(*mean)
        price = self._prices[mean]
        return None if price is None else told * price


def _sum_up(calls: Sequence[PaidCall], firsts: frozenset[int]) -> Calls:
    states = Counter(call.state for call in calls)
    inputs, unknown_input = _known(call.input_tokens for call in calls)
    outputs, unknown_output = _known(call.output_tokens for call in calls)
    costs, unknown_costs = _known(call.cost_usd for call in calls)
    return Calls(
        escalations=sum(id(call) in firsts for call in calls),
        calls=len(calls),
        answered=states["answered"],
        failed=states["failed"],
        interrupted=states["interrupted"],
        expired=states["expired"],
        started=states["started"],
        input_tokens=None if inputs is None else sum(inputs),
        unknown_input=unknown_input,
        output_tokens=None if outputs is None else sum(outputs),
        unknown_output=unknown_output,
        cost_usd=None if costs is None else fsum(costs),
        unknown_costs=unknown_costs,
    )


def _known(numbers: Iterable[_Number | None]) -> tuple[list[_Number] | None, int]:
    """Return the known numbers, None when all that there are are unknown, and how many are."""
    everything = list(numbers)
    known = [number for number in everything if number is not None]
    unknown = len(everything) - len(known)
    return (None if unknown and not known else known), unknown


def _groups(
    summing: _Summing,
    calls: Sequence[PaidCall],
    tasks: Sequence[LocalTask] | None,
    *,
    by: By,
    firsts: frozenset[int],
    days: Iterator[date],
) -> list[Group]:
    calls_of: defaultdict[str, list[PaidCall]] = defaultdict(list)
    tasks_of: defaultdict[str, list[LocalTask]] = defaultdict(list)
    for call in calls:
        calls_of[_key(call, by)].append(call)
    for task in tasks or ():
        tasks_of[_key(task, by)].append(task)
    keys = dict.fromkeys((*calls_of, *tasks_of))
    if by in _DATES:
        # Those without anything as well: a gap is a fact.
        keys = dict.fromkeys(_date_key(day, by) for day in days)
    groups = [Group(key, summing.sums(calls_of[key], None if tasks is None else tasks_of[key], firsts)) for key in keys]
    return groups if by in _DATES else sorted(groups, key=_rank)


def _key(row: PaidCall | LocalTask, by: By) -> str:
    match by:
        case "session":
            return row.session_id
        case "task-type":
            return row.task_type
        case "trigger" | "model":
            assert isinstance(row, PaidCall)  # noqa: S101  # a task has neither
            return row.trigger if by == "trigger" else row.to_model
        case _:
            return _date_key(_moment(row).astimezone().date(), by)


def _date_key(day: date, by: By) -> str:
    if by == "month":
        return f"{day:%Y-%m}"
    return (week_of(day) if by == "week" else day).isoformat()


def _rank(group: Group) -> tuple[float, int, int, int, str]:
    """What was dearest first."""
    sums = group.sums
    tasks = sums.local.tasks if sums.local else 0
    return -(sums.paid.cost_usd or 0.0), -sums.paid.calls, -sums.shadow.calls, -tasks, group.key


def _would(calls: Sequence[PaidCall], firsts: frozenset[int]) -> list[Would]:
    found: defaultdict[tuple[str, str], list[PaidCall]] = defaultdict(list)
    for call in calls:
        if call.is_shadow:
            found[call.to_model, call.trigger].append(call)
    would = [Would(model, trigger, _sum_up(made, firsts)) for (model, trigger), made in found.items()]
    return sorted(would, key=lambda one: (-one.calls.escalations, -one.calls.calls, one.model, one.trigger))
