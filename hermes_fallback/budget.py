"""What a paid call may cost at most, and whether that fits what the user allows.

Pure: what is spent already is the journal's to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, time

from .config import Budget
from .events import LimitName

LEAST_OUTPUT_TOKENS = 1024
"""A call with room for fewer is not worth its input: the answer, or its thinking, would be cut off."""

USUAL_OUTPUT_TOKENS = 16_384
"""How long a reply may get under a budget when the tier has no `max_tokens`: what a model can write at most is often
eight times as much, and reserving that would block the other sessions for nothing."""

# Of sums of binary fractions: ten times 0.1 must fit into 1.
_ROUNDING_USD = 1e-9


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used, as far as it can be told; None is unknown."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None


NOTHING_USED = Usage(0, 0, 0.0)

_MOST_TOKENS = 10**9


def told_tokens(usage: object, *names: str) -> int | None:
    """Return the first of these numbers in what an endpoint says a reply took; None is unknown, or cannot be true.

    Some count below nothing, and say 2 to the power of 64 or so.
    """
    for name in names:
        number = getattr(usage, name, None)
        if type(number) is int and 0 <= number <= _MOST_TOKENS:
            return number
    return None


@dataclass(frozen=True, slots=True)
class WorstCase:
    """What a call costs at most: `input_usd`, and so much for each token that is written."""

    input_tokens: int
    input_usd: float
    usd_per_output_token: float

    def usd(self, output_tokens: int) -> float:
        """Return dollars for a reply of so many tokens."""
        return self.input_usd + output_tokens * self.usd_per_output_token


@dataclass(frozen=True, slots=True)
class Spent:
    """Dollars used so far, open reservations included, and how many escalations the session had."""

    task: float = 0.0
    session: float = 0.0
    day: float = 0.0
    month: float = 0.0
    escalations: int = 0


@dataclass(frozen=True, slots=True)
class Allowed:
    """The call may be made, with so many output tokens (None: as many as the model likes); it may cost so much."""

    max_tokens: int | None
    reserved_usd: float | None


@dataclass(frozen=True, slots=True)
class Exceeded:
    """The call may not be made, for this limit; `why` is a sentence with the numbers, without its full stop."""

    why: str
    limit: LimitName


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of the limit that is nearest."""

    limit: LimitName
    usd: float
    limit_usd: float
    words: str

    def __str__(self) -> str:
        return f"${self.usd:.4f} of {amount(self.limit_usd)} {self.words} is left"


_SCOPES: tuple[tuple[LimitName, str, str], ...] = (
    ("per_task_usd", "task", "for this task"),
    ("per_session_usd", "session", "for this session"),
    ("per_day_usd", "day", "today"),
    ("per_month_usd", "month", "this month"),
)


def amount(usd: float) -> str:
    """Say an amount that a person has set: `$2`, `$0.50`, `$0.0125`."""
    if usd == int(usd):
        return f"${usd:.0f}"
    return f"${usd:.2f}" if round(usd, 2) == usd else f"${usd:g}"


def lefts(budget: Budget, spent: Spent) -> list[Left]:
    """Return what is left of each limit in dollars that is set."""
    return [
        Left(name, max(0.0, limit - getattr(spent, scope)), limit, words)
        for name, scope, words in _SCOPES
        if (limit := getattr(budget, name)) is not None
    ]


def left(budget: Budget, spent: Spent) -> Left | None:
    """Return what is left of the nearest limit in dollars; None when there is none."""
    return min(lefts(budget, spent), key=lambda one: one.usd, default=None)


def fit(
    budget: Budget,
    spent: Spent,
    worst: WorstCase | None,
    *,
    max_tokens: int | None,
    is_new: bool,
    least_tokens: int = LEAST_OUTPUT_TOKENS,
) -> Allowed | Exceeded:
    """Return how large a reply may get within the budget, at most `max_tokens` (None: the usual).

    `worst` is None when the price is not known; `is_new` says that the call begins an escalation. With less room than
    `least_tokens`, it is not made.
    """
    most = budget.max_escalations_per_session
    if is_new and most is not None and spent.escalations >= most:
        words = f"this session has had its {most} escalation{'' if most == 1 else 's'}"
        return Exceeded(words, "max_escalations_per_session")
    nearest = left(budget, spent)
    if worst is None:
        if budget.needs_price:
            return Exceeded(
                "its price is not known, and a budget in dollars is set; give the tier a `price`, or write "
                "`unknown_price: allow`",
                "unknown_price",
            )
        if nearest is not None and nearest.usd <= 0:
            return Exceeded(f"its price is not known, and {nearest}", nearest.limit)
        return Allowed(max_tokens, None)
    wanted = max_tokens or USUAL_OUTPUT_TOKENS
    if nearest is None:
        # Reserved all the same, so that a call that never ends is not forgotten.
        return Allowed(max_tokens, worst.usd(wanted))
    room = _room(nearest.usd - worst.input_usd, worst.usd_per_output_token, wanted)
    least = min(wanted, least_tokens)
    if room < least:
        needed = worst.usd(least)
        return Exceeded(f"it may cost ${needed:.4f}, and {nearest}", nearest.limit)
    return Allowed(room, worst.usd(room))


def _room(usd: float, usd_per_token: float, wanted: int) -> int:
    """Return how many tokens so many dollars pay for, `wanted` at most; -1 when not even none."""
    if usd < -_ROUNDING_USD:
        return -1
    if wanted * usd_per_token <= usd + _ROUNDING_USD:
        return wanted
    return int((usd + _ROUNDING_USD) / usd_per_token)


def day_and_month(now: datetime) -> tuple[datetime, datetime]:
    """Return when the local day and the local month of a moment began, as aware datetimes."""
    today = now.astimezone().date()
    # Through naive local times: the offset at the beginning may be another one than now (daylight saving).
    midnight = datetime.combine(today, time.min)
    return midnight.astimezone(), midnight.replace(day=1).astimezone()
