"""Decides, from what happened in a session, whether the next call goes up a tier.

Pure: no clock, no I/O, no logging. `adapter` owns what a decision does. No mode is kept anywhere: whether a tier holds
the task is read from the events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .config import Policy
from .events import (
    BudgetLifted,
    ConsentGiven,
    ConsentRefused,
    Escalated,
    EscalationFailed,
    EscalationRequested,
    Event,
    Index,
    SwitchedAuto,
    SwitchedOff,
    TierReplied,
    TriggerName,
    TurnEnded,
    TurnStarted,
    TypeMatched,
    UserAnswered,
    index_of,
)
from .triggers import TRIGGERS, Evidence, Limits

COOLDOWN_SECONDS = 60.0
"""How long a tier that failed for a passing reason (429, 5xx, timeout) is left alone; for any other, the whole task."""


@dataclass(frozen=True, slots=True)
class Stay:
    """The local model answers."""


@dataclass(frozen=True, slots=True)
class Escalate:
    """Tier number `tier` (from 0) answers; `held` is the escalation by which it has the task already, if it has."""

    tier: int
    trigger: TriggerName
    evidence: Evidence
    held: Escalated | None = None


Decision = Stay | Escalate


_ASIDE = frozenset({EscalationFailed, TypeMatched, ConsentGiven, ConsentRefused, BudgetLifted})
"""What changes nothing about what the model that has the task did last."""


def decide(
    events: Sequence[Event],
    policy: Policy,
    *,
    tiers: int,
    now: float,
    names: Sequence[str] | None = None,
    index: Index | None = None,
) -> Decision:
    """Return who answers the next call: the local model, or one of `tiers` tiers.

    `events` are a session's, oldest first; `now` is on the clock of their `at`. `names` are the tiers', where they may
    have changed since one of them took the session (`holding`). `index` is that of the events, where there is
    one (`Ledger.past`).
    """
    if not policy.enabled:
        return Stay()
    index = index_of(events) if index is None else index
    controls = [(at, events[at]) for at in index.controls]
    switches = [event for _, event in controls]
    if is_refused(switches):
        return Stay()
    holder = holding(switches, policy, names)
    matched = _match(
        events, controls, policy, calls=index.calls, holder=holder, is_switched_off=is_off(switches), now=now
    )
    if holder is None and matched is None:
        return Stay()
    if matched is not None:
        trigger, evidence = matched
        tier = _next_tier(switches, first=0 if holder is None else holder.tier + 1, tiers=tiers, now=now)
        if tier is not None:
            return Escalate(tier, trigger, evidence)
    if holder is None:
        return Stay()
    tier = _next_tier(switches, first=holder.tier, tiers=tiers, now=now)
    return (
        Stay()
        if tier is None
        else Escalate(tier, holder.trigger, holder.evidence, held=holder if tier == holder.tier else None)
    )


def holding(events: Sequence[Event], policy: Policy, names: Sequence[str] | None = None) -> Escalated | None:
    """Return the escalation whose tier has the task now, if one has.

    With `names`, only as long as the tier is in its place in the ladder: a session may be held over tasks of several
    types, and the configuration may change. What took a task alone does not come back by a later `hold: session`, and
    what was in shadow holds in shadow alone, where nothing else does.
    """
    replies = 0
    in_this_task = True
    for event in reversed(events):
        match event:
            case SwitchedOff():
                return None
            case TierReplied():
                replies += 1
            case TurnStarted() | TurnEnded():
                in_this_task = False
            case Escalated():
                moved = names is not None and event.model not in names[event.tier : event.tier + 1]
                if moved or event.is_shadow != policy.is_shadow:
                    return None
                if in_this_task:
                    holds = isinstance(policy.hold, str) or replies < policy.hold
                else:
                    holds = policy.hold == "session" and event.for_session
                return event if holds else None
    return None


def is_off(events: Sequence[Event]) -> bool:
    """Tell whether the user switched escalation off for this session."""
    switches = (event for event in reversed(events) if isinstance(event, SwitchedOff | SwitchedAuto))
    return isinstance(next(switches, None), SwitchedOff)


def is_refused(events: Sequence[Event]) -> bool:
    """Tell whether the question about money was answered with no in this task, and /escalate not said since."""
    for event in reversed(events):
        if isinstance(event, TurnStarted | TurnEnded | EscalationRequested):
            return False
        if isinstance(event, ConsentRefused):
            return True
    return False


_OF_CONTROLS = frozenset({"user_request", "task_type"})
"""The triggers that look at what was said, not at what the model did."""


def _match(
    events: Sequence[Event],
    controls: Sequence[tuple[int, Event]],
    policy: Policy,
    *,
    calls: Sequence[int],
    holder: Escalated | None,
    is_switched_off: bool,
    now: float,
) -> tuple[TriggerName, Evidence] | None:
    taken, task, started_at, aside = _borders(controls, holder)
    start = max(taken, task)
    observed = events[start:] if start else events
    if aside:
        observed = [event for at, event in enumerate(events) if at >= start and at not in aside]
    message = events[task] if events else None
    usual = Limits(
        after=policy.max_local_attempts,
        task_timeout_seconds=policy.task_timeout_seconds,
        started_at=now if started_at is None else started_at,
        now=now,
        sensitivity=policy.sensitivity,
        earlier=events[taken:task],
        calls=calls,
        asked=message.signs if isinstance(message, TurnStarted) else (),
    )
    for name, trigger in TRIGGERS.items():
        # /escalate is the user's own word: it stands even where the automatic ones were switched off.
        if name not in policy.trigger_on or (is_switched_off and name != "user_request"):
            continue
        if name == "task_type" and holder is not None:
            continue  # it is there already
        limits = replace(usual, after=policy.after[name]) if name in policy.after else usual
        # What the user asked for before the message (while idle) stands in front of it.
        seen = [event for at, event in controls if at >= taken] if name in _OF_CONTROLS else observed
        evidence = trigger(seen, limits)
        if evidence is not None:
            return name, evidence
    return None


def _borders(
    controls: Sequence[tuple[int, Event]], holder: Escalated | None
) -> tuple[int, int, float | None, set[int]]:
    """Return where that begins which the model that has the task now did; where the task does, and when; asides."""
    taken, task, started_at = 0, 0, None
    aside: set[int] = set()
    for at, event in controls:
        kind = type(event)
        if kind is TurnStarted:
            task, started_at = at, event.at
        elif kind is Escalated:
            taken, started_at = at + 1, event.at
        elif isinstance(event, UserAnswered) and started_at is not None:
            # Hermes measures by a clock that can be set, and that goes on while the machine sleeps.
            started_at = min(started_at + max(0.0, event.seconds), event.at)
        elif kind is TierReplied:
            taken = at + 1 if holder is None else taken
        elif kind in _ASIDE:
            aside.add(at)
    return taken, task, started_at, aside


def _next_tier(events: Sequence[Event], *, first: int, tiers: int, now: float) -> int | None:
    return next((tier for tier in range(first, tiers) if not _cooling(events, tier, now)), None)


def _cooling(events: Sequence[Event], tier: int, now: float) -> bool:
    for event in reversed(events):
        # A new /escalate is a new try, whatever failed before it.
        if isinstance(event, TurnStarted | EscalationRequested):
            return False
        if isinstance(event, EscalationFailed) and event.tier == tier:
            return not event.transient or now - event.at < COOLDOWN_SECONDS
    return False
