"""What can happen in a task: one frozen dataclass per fact, and their union.

Events carry fingerprints and words from closed vocabularies, never a prompt, an argument or a result: the ledger can be
shown, logged and journaled as it is. `at` is monotonic seconds everywhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from .fingerprint import Fingerprint

FaultKind = Literal[
    "empty",
    "tool_call_as_text",
    "repetition",
    "truncated",
    "malformed_arguments",
    "unknown_tool",
    "schema_violation",
]
CallFailure = Literal["unreachable", "overloaded", "timed_out", "context_overflow", "refused", "broken"]
TriggerName = Literal[
    "repeated_tool_failure",
    "invalid_output",
    "no_progress",
    "task_timeout",
    "user_request",
    "provider_error",
    "silent_failure",
    "risk",
    "task_type",
]
LimitName = Literal[
    "per_task_usd",
    "per_session_usd",
    "per_day_usd",
    "per_month_usd",
    "max_escalations_per_session",
    "unknown_price",
]
"""What a call can be against, by its name in the `budget`."""
ResultSign = Literal["rejected", "empty", "polls", "changes", "reads"]
ReplySign = Literal["cannot", "announces", "claims_done", "asks", "unaided"]
MessageSign = Literal["cannot_say", "wants_content", "wants_change", "wants_reruns", "wants_refrain"]
Sign = ResultSign | ReplySign | MessageSign
"""What a text says, or a call does, in a word (`signs.py` reads them)."""

TROUBLE: frozenset[str] = frozenset({"rejected", "empty", "cannot", "cannot_say"})
"""The signs that a task goes badly; the others say what was asked for and done."""

UNCHANGED: Fingerprint = -1
"""Result fingerprint for "the same as this call gave last time", which Hermes says of a file read again."""


@dataclass(frozen=True, slots=True)
class TurnStarted:
    """The user sent a message; a task is one user turn."""

    at: float
    turn_id: str
    model: str
    signs: tuple[MessageSign, ...] = ()


@dataclass(frozen=True, slots=True)
class UserAnswered:
    """The user gave the answer that the model had asked for in mid-turn, and took so long: no time of the model's."""

    at: float
    seconds: float


@dataclass(frozen=True, slots=True)
class TurnEnded:
    """Hermes finished the turn, however it went."""

    at: float


@dataclass(frozen=True, slots=True)
class ToolSucceeded:
    """A tool gave a result; `call` and `result` are fingerprints."""

    at: float
    tool: str
    call: Fingerprint
    result: Fingerprint
    signs: tuple[ResultSign, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolFailed:
    """A tool gave an error, or a command ended with a non-zero status.

    `error` is a phrase for people, `kind` the fingerprint of the error with its names and numbers taken out (None when
    there was no text to compare, and of commands, whose output is their own), `command` whether it is a command's exit
    status, `on_purpose` whether that may be what the command was for (a test, a search): it printed no error that we
    know.
    """

    at: float
    tool: str
    call: Fingerprint
    result: Fingerprint
    error: str
    kind: Fingerprint | None
    command: bool = False
    on_purpose: bool = False
    signs: tuple[ResultSign, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyAccepted:
    """The local model gave a usable reply; `ends_turn` when it is the task's answer."""

    at: float
    ends_turn: bool = False
    signs: tuple[ReplySign, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyInvalid:
    """The local model gave a reply that is no use; `ends_turn` when Hermes would end the turn on it."""

    at: float
    fault: FaultKind
    ends_turn: bool


@dataclass(frozen=True, slots=True)
class CallFailed:
    """The local endpoint gave an error instead of a reply; `ends_turn` when Hermes would not try again."""

    at: float
    failure: CallFailure
    ends_turn: bool


@dataclass(frozen=True, slots=True)
class SelfChecked:
    """The local model was asked whether its answer fulfils the request by what the tools showed."""

    at: float
    fulfilled: bool


@dataclass(frozen=True, slots=True)
class TypeMatched:
    """The task is of one of the user's `task_types`."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class ConsentGiven:
    """A person said yes to spending."""

    at: float


@dataclass(frozen=True, slots=True)
class ConsentRefused:
    """A person said no to spending in this task, or nobody who may was there to ask."""

    at: float


@dataclass(frozen=True, slots=True)
class BudgetLifted:
    """A person said that this task may go beyond one limit of the budget."""

    at: float
    limit: LimitName


@dataclass(frozen=True, slots=True)
class EscalationRequested:
    """The user said /escalate."""

    at: float


@dataclass(frozen=True, slots=True)
class SwitchedOff:
    """The user said /escalate off."""

    at: float


@dataclass(frozen=True, slots=True)
class SwitchedAuto:
    """The user said /escalate auto."""

    at: float


@dataclass(frozen=True, slots=True)
class Escalated:
    """A tier took the task over: it gave its first reply, or is Hermes's own. `journal_id` is the escalation's row.

    `is_shadow`: it would have, were it not for `enabled: shadow`. `for_session`: it took the session, and not the task
    alone, for that was the `hold` when it did.
    """

    at: float
    tier: int
    model: str
    trigger: TriggerName
    evidence: tuple[Event, ...]
    journal_id: int
    is_shadow: bool = False
    for_session: bool = True


@dataclass(frozen=True, slots=True)
class TierReplied:
    """A tier gave a reply, the first one included; what it cost is in the journal.

    `is_broken` when its tool call cannot be made: it was cut off, or its arguments are no JSON.
    """

    at: float
    tier: int
    is_broken: bool = False


@dataclass(frozen=True, slots=True)
class EscalationFailed:
    """A tier was asked and gave nothing; `transient` when a later try may go better."""

    at: float
    tier: int
    error: str
    transient: bool


Event = (
    TurnStarted
    | UserAnswered
    | TurnEnded
    | ToolSucceeded
    | ToolFailed
    | ReplyAccepted
    | ReplyInvalid
    | CallFailed
    | SelfChecked
    | TypeMatched
    | ConsentGiven
    | ConsentRefused
    | BudgetLifted
    | EscalationRequested
    | SwitchedOff
    | SwitchedAuto
    | Escalated
    | TierReplied
    | EscalationFailed
)

CONTROLS = frozenset(
    {
        TurnStarted,
        UserAnswered,
        TurnEnded,
        Escalated,
        TierReplied,
        EscalationFailed,
        EscalationRequested,
        SwitchedOff,
        SwitchedAuto,
        TypeMatched,
        ConsentGiven,
        ConsentRefused,
        BudgetLifted,
    }
)
"""What decides who may answer; all other events say how it goes, and there are many more of those."""

Call = ToolSucceeded | ToolFailed
"""A tool was called and gave something."""


class Index(NamedTuple):
    """What is asked of events before each model call, and takes long to find by going through all of them."""

    controls: list[int]
    """The places of the CONTROLS."""
    calls: array[int]
    """`short` of each call, oldest first."""


def index_of(events: Sequence[Event]) -> Index:
    """Go through the events for their index."""
    calls = array("I", [short(event) for event in events if isinstance(event, Call)])
    return Index([at for at, event in enumerate(events) if type(event) in CONTROLS], calls)


def short(call: Call) -> int:
    """Return 32 bits of a call's fingerprint: the same for the same call, and seldom for another."""
    return call.call & 0xFFFFFFFF


def is_telling(event: Event) -> bool:
    """Tell whether an event is one that `risk` counts: a failure, or a sign of trouble.

    A command that ends with a status and no error that we know did most likely what it was for: tests and searches do.
    """
    if isinstance(event, ToolFailed):
        return not event.on_purpose
    signs = getattr(event, "signs", ())
    return bool(signs) and not TROUBLE.isdisjoint(signs)
