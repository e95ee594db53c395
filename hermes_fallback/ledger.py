"""A session's events in memory: bounded, locked, and pruned to what the next task may need when a turn ends.

Everything that happened in older tasks is in the journal; a session that runs for a year takes no more room than a new
one.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Sequence

from .events import (
    CONTROLS,
    Call,
    ConsentGiven,
    Escalated,
    EscalationRequested,
    Event,
    Index,
    ReplyAccepted,
    ReplyInvalid,
    SwitchedAuto,
    SwitchedOff,
    TierReplied,
    ToolFailed,
    ToolSucceeded,
    TurnEnded,
    TurnStarted,
    index_of,
    short,
)

MAX_EVENTS = 128
"""How many events of one task the triggers see, and up to SPARE more: a loop of 15 calls, with their replies, shows
four times in it. With all that is kept beside them, these are some 30 KB a session (benchmarks/RESULTS.md)."""
SPARE = 8
"""So many more come before it is pruned again: the cost of an event stays the same however many came."""

MAX_EARLIER = 40
"""How many events are kept of what went before a message, for `risk`, and for how long: a person who comes back later
has most likely something else in mind."""
EARLIER_SECONDS = 1800.0

_BORDERS = (TurnStarted, TurnEnded)


class Ledger:
    """The events of one session, oldest first. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._index = index_of(())
        self._most = MAX_EVENTS + SPARE

    def append(self, *events: Event) -> None:
        """Add events; at the border of two turns, the task before it is let go."""
        with self._lock:
            for event in events:
                if isinstance(event, _BORDERS):
                    self._events = _carried_over([*self._events, event])
                    self._index = index_of(self._events)
                else:
                    self._add(event)
            if len(self._events) > self._most:
                self._events, self._index = _newest(self._events, self._index)
                # Landmarks stay, and there may be many of them.
                self._most = max(MAX_EVENTS, len(self._events)) + SPARE

    def _add(self, event: Event) -> None:
        if isinstance(event, Call):
            self._index.calls.append(short(event))
        elif type(event) in CONTROLS:
            self._index.controls.append(len(self._events))
        self._events.append(event)

    def events(self) -> tuple[Event, ...]:
        """Return what is known now; at most `MAX_EVENTS + SPARE` of them besides CONTROLS."""
        return self.past()[0]

    def controls(self) -> list[Event]:
        """Return those of the `events` that are CONTROLS."""
        with self._lock:
            return [self._events[at] for at in self._index.controls]

    def past(self) -> tuple[tuple[Event, ...], Index]:
        """Return what is known now (`events`), and its index."""
        with self._lock:
            # The calls are not copied: where one more is known, `no_progress` looks once more than it has to.
            return tuple(self._events), Index(self._index.controls[:], self._index.calls)


MAX_SESSIONS = 4000
"""How many sessions are remembered: of those of cron and of the API server, Hermes does not say that they are over."""


class Ledgers:
    """The ledgers of all sessions in this process, the one that was used last at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_session: dict[str, Ledger] = {}

    def of_session(self, session_id: str, *begins: Event) -> Ledger:
        """Return the session's ledger; one that is new here begins with these events, or is not there at all."""
        with self._lock:
            ledger = self._by_session.pop(session_id, None)
            if ledger is None:
                ledger = Ledger()
                ledger.append(*begins)
            self._by_session[session_id] = ledger
            return ledger

    def surplus(self) -> list[str]:
        """Return the sessions beyond MAX_SESSIONS, those that were not used for longest."""
        with self._lock:
            return list(itertools.islice(self._by_session, max(0, len(self._by_session) - MAX_SESSIONS)))

    def rename(self, old_id: str, new_id: str) -> None:
        """Let a session's ledger go by a new id, unless that id has one already."""
        with self._lock:
            ledger = self._by_session.pop(old_id, None)
            if ledger is not None:
                self._by_session.setdefault(new_id, ledger)

    def adopt(self, session_id: str, *, from_session: str) -> None:
        """Give what was said before a session had its id to that session."""
        with self._lock:
            early = self._by_session.pop(from_session, None)
        if early is not None:
            self.of_session(session_id).append(*early.events())

    def known(self, session_id: str) -> bool:
        """Tell whether the session has a ledger."""
        with self._lock:
            return session_id in self._by_session

    def forget(self, session_id: str) -> None:
        """Drop a session that ended."""
        with self._lock:
            self._by_session.pop(session_id, None)


def _carried_over(events: Sequence[Event]) -> list[Event]:
    escalated: Event | None = None
    off: Event | None = None
    auto: Event | None = None
    request: Event | None = None
    consent: Event | None = None
    border: Event | None = None
    for event in events:
        match event:
            case Escalated():
                escalated, request = event, None
            case SwitchedOff():
                # It ends what holds, and a later SwitchedAuto does not bring it back: for sub-agents at work neither.
                off, escalated, request = event, None, None
            case SwitchedAuto():
                auto = event
            case EscalationRequested():
                request = event
            case ConsentGiven():
                consent = event
            case TurnEnded():
                request, border = None, event
            case TurnStarted():
                border = event
            case _:
                pass
    if border is None:
        return list(events)
    recent = [
        event
        for event in _still_telling(_since_escalated(events))
        if event is not border and border.at - event.at <= EARLIER_SECONDS
    ]
    carried = [event for event in (escalated, off, auto, request, consent) if event is not None]
    return [*sorted([*recent[-MAX_EARLIER:], *carried], key=lambda event: event.at), border]


def _since_escalated(events: Iterable[Event]) -> list[Event]:
    """Return what models and tools did; what led to an escalation is used up."""
    done: list[Event] = []
    for event in events:
        match event:
            case Escalated():
                done.clear()
            case TurnStarted() | ToolSucceeded() | ToolFailed() | ReplyAccepted() | ReplyInvalid():
                done.append(event)
            case _:
                pass
    return done


def _still_telling(earlier: Sequence[Event]) -> list[Event]:
    """Return what counts in the next task: all when it answers the model's question, else nothing."""
    replies = (event for event in reversed(earlier) if isinstance(event, ReplyAccepted))
    last = next(replies, None)
    if last is not None and "asks" in last.signs:
        return list(earlier)
    return []


def _newest(events: list[Event], index: Index) -> tuple[list[Event], Index]:
    """Return the newest events with the newest CONTROLS before them, and their index; few of the others are touched.

    A tier that works for long has many replies, which must not displace what the user said, nor who has the task.
    """
    cut = len(events) - MAX_EVENTS
    earlier = [at for at in index.controls if at < cut]
    replies = [at for at in earlier if isinstance(events[at], TierReplied)]
    said = [at for at in earlier if not isinstance(events[at], TierReplied)]
    before = sorted([*replies[-MAX_EVENTS:], *said[-MAX_EVENTS:]])
    moved = cut - len(before)
    controls = [*range(len(before)), *[at - moved for at in index.controls if at >= cut]]
    gone = sum(isinstance(event, Call) for event in events[:cut])
    return [events[at] for at in before] + events[cut:], Index(controls, index.calls[gone:])
