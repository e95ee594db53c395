"""The named patterns in events that justify escalating: each is a pure function from events to evidence.

`observed` is what happened since the model that has the task now took it; evidence is the events that matched, oldest
first, or None. The name of a trigger is its config key.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .events import (
    UNCHANGED,
    CallFailed,
    EscalationRequested,
    Event,
    ReplyAccepted,
    ReplyInvalid,
    ToolFailed,
    ToolSucceeded,
    TriggerName,
    TurnEnded,
    TurnStarted,
)

# Hermes gives up after three unusable replies, or three failed calls, in a row (0.19 agent/conversation_loop.py:
# `_invalid_tool_retries >= 3`, `_empty_content_retries < 3`, `api_max_retries` 3), whatever the user's `after` says.
HOST_PATIENCE = 3

# Hermes's tools that change something when they succeed (0.19 toolsets.py); a command that fails before and after such
# a change is a test being run again, not the same failure.
CHANGING_TOOLS = frozenset({"write_file", "patch", "edit_file", "skill_manage"})

Evidence = tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a trigger compares with: `after` is a count of events, the rest are seconds (monotonic clock)."""

    after: int
    task_timeout_seconds: float
    started_at: float
    now: float


Trigger = Callable[[Sequence[Event], Limits], Evidence | None]


def repeated_tool_failure(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match when the same call, or the same tool with the same kind of error, has failed `after` times."""
    failures: defaultdict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in observed:
        if isinstance(event, ToolSucceeded) and event.tool in CHANGING_TOOLS:
            _forget_commands(failures)
        if not isinstance(event, ToolFailed):
            continue
        same_call = failures["call", _call_key(event)]
        same_call.append(event)
        if len(same_call) >= limits.after:
            return tuple(same_call)
        if event.kind is None:
            continue
        same_kind = failures[event.tool, event.kind]
        same_kind.append(event)
        if len(same_kind) >= limits.after:
            return tuple(same_kind)
    return None


def invalid_output(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match a reply that would end the turn; others when `after` of them came, or Hermes is about to give up."""
    invalid = tuple(event for event in observed if isinstance(event, ReplyInvalid))
    if not invalid:
        return None
    if isinstance(observed[-1], ReplyInvalid) and observed[-1].ends_turn:
        return invalid[-1:]
    if len(invalid) >= limits.after:
        return invalid[-limits.after :]
    in_a_row = _last_in_a_row(observed, ReplyInvalid, broken_by=ReplyAccepted)
    return in_a_row if len(in_a_row) >= HOST_PATIENCE else None


def no_progress(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match calls that come back with the result they had, alone or in a cycle, `after` times and nothing new."""
    seen: dict[tuple[str, str], list[Event]] = {}
    last_result: dict[str, str] = {}
    repeats: defaultdict[tuple[str, str], int] = defaultdict(int)
    for event in observed:
        if not isinstance(event, ToolSucceeded | ToolFailed):
            continue
        result = last_result.get(event.call, UNCHANGED) if event.result == UNCHANGED else event.result
        last_result[event.call] = result
        key = (event.call, result)
        if key not in seen:
            seen[key] = [event]
            repeats.clear()
            continue
        seen[key].append(event)
        repeats[key] += 1
        if repeats[key] + 1 >= limits.after:
            return tuple(seen[key][-limits.after :])
    return None


def task_timeout(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match when the task has run for longer than `task_timeout_seconds` on this model."""
    if limits.now - limits.started_at < limits.task_timeout_seconds:
        return None
    return tuple(event for event in observed if isinstance(event, TurnStarted))[-1:]


def user_request(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match the user's /escalate, until the task that it was meant for has ended."""
    del limits
    for event in reversed(observed):
        if isinstance(event, TurnEnded):
            return None
        if isinstance(event, EscalationRequested):
            return (event,)
    return None


def provider_error(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match a local endpoint's error that Hermes would give up on, or `after` errors in a row."""
    if not observed or not isinstance(observed[-1], CallFailed):
        return None
    in_a_row = _last_in_a_row(observed, CallFailed, broken_by=ReplyAccepted | ReplyInvalid)
    if observed[-1].ends_turn:
        return in_a_row[-1:]
    return in_a_row if len(in_a_row) >= min(limits.after, HOST_PATIENCE) else None


TRIGGERS: Mapping[TriggerName, Trigger] = {
    "user_request": user_request,
    "repeated_tool_failure": repeated_tool_failure,
    "invalid_output": invalid_output,
    "no_progress": no_progress,
    "provider_error": provider_error,
    "task_timeout": task_timeout,
}
"""In the order they are asked: what the user said first, the vaguest sign last."""


def _call_key(failure: ToolFailed) -> str:
    # A command that fails in a new way each time is being worked on; any other call fails for what it asks.
    return f"{failure.call}\0{failure.result}" if failure.command else failure.call


def _forget_commands(failures: defaultdict[tuple[str, str], list[Event]]) -> None:
    for key, events in list(failures.items()):
        if any(isinstance(event, ToolFailed) and event.command for event in events):
            del failures[key]


def _last_in_a_row(observed: Sequence[Event], kind: type[Event], *, broken_by: object) -> Evidence:
    matched: list[Event] = []
    for event in reversed(observed):
        if isinstance(event, broken_by):  # type: ignore[arg-type]  # a class or a union of classes, both fit isinstance
            break
        if isinstance(event, kind):
            matched.append(event)
    return tuple(reversed(matched))
