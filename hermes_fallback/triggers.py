"""The named patterns in events that justify escalating: each is a pure function from events to evidence.

`observed` is what happened in this task since the model that has it now took it; evidence is the events that matched,
oldest first, or None. The name of a trigger is its config key. What happened last must be part of the evidence: a model
that has found its way since is not stuck.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from . import risk as model
from .events import (
    UNCHANGED,
    Call,
    CallFailed,
    EscalationRequested,
    Event,
    MessageSign,
    ReplyAccepted,
    ReplyInvalid,
    SelfChecked,
    SwitchedOff,
    TierReplied,
    ToolFailed,
    ToolSucceeded,
    TriggerName,
    TurnEnded,
    TurnStarted,
    TypeMatched,
    is_telling,
    short,
)
from .fingerprint import Fingerprint

# Hermes gives up after three unusable replies, or three failed calls, in a row (0.19 agent/conversation_loop.py:
# `_invalid_tool_retries >= 3`, `_empty_content_retries < 3`, `api_max_retries` 3), whatever the user's `after` says.
HOST_PATIENCE = 3

_PATIENCE = 8
"""So many times as often may come what waits, and what the user wants again and again, until it is a loop after all."""

_DOUBT = 2
"""So many times as often may a command fail, between whose runs something was done that may have changed anything."""

_DONE_WELL = 8
"""After so many calls in a row that succeeded, what the tool failed at before was its being looked for."""

_HARMLESS = frozenset({"reads", "polls"})
_NOTES = frozenset({"todo", "memory", "session_search", "clarify"})
"""Tools of Hermes's that change nothing of what a command sees (0.17 to 0.19)."""

_Key = tuple[str | Fingerprint, ...]
"""What failures have in common that count together."""

Evidence = tuple[Event, ...]


@dataclass(slots=True)  # one is made for each call, and a frozen one would take thrice as long
class Limits:
    """What a trigger compares with: `after` is a count of events, the times are seconds (monotonic clock).

    `earlier` is what `risk` may add to the task's own signs: telling events of the session's last tasks. `calls` are
    those of the session (`events.Index`). `asked` is what the user's message asks for.
    """

    after: int
    task_timeout_seconds: float
    started_at: float
    now: float
    calls: Sequence[int]
    sensitivity: str = "normal"
    earlier: Sequence[Event] = ()
    asked: Sequence[MessageSign] = ()


Trigger = Callable[[Sequence[Event], Limits], Evidence | None]


def repeated_tool_failure(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match when the same call, or the same tool with the same kind of error, has failed `after` times.

    Commands fail on purpose (tests, searches): only the same command counts, while it fails the same way and nothing
    was changed in between; twice as often, where something may have been. What a tool failed at counts until it has
    done well for long.
    """
    for key, row in _rows_of_the_newest(observed).items():
        is_patient = key[0] == "polls" or (key[0] == "command" and "wants_reruns" in limits.asked)
        if len(row.failures) >= limits.after * (_PATIENCE if is_patient else _DOUBT if row.is_doubtful else 1):
            return tuple(row.failures)
    return None


def _rows_of_the_newest(observed: Sequence[Event]) -> Mapping[_Key, _Row]:
    """Return all failures like those that came since this was last asked, by what they have in common."""
    newest = [event for event in _newest(observed) if isinstance(event, ToolFailed)]
    rows = {key: _Row() for event in newest for key in _failure_keys(event)}
    if not rows:
        return rows
    mended = [(key, row) for key, row in rows.items() if key[0] in {"command", "kind"}]
    for event in observed:
        if isinstance(event, ToolFailed):
            for key in _failure_keys(event):
                if key in rows:
                    rows[key].failed(event)
        elif isinstance(event, ToolSucceeded):
            for key, row in mended:
                if row.failures:
                    row.succeeded(key, event)
    return rows


@dataclass(slots=True)
class _Row:
    """Failures with one key, and what happened since the first of them."""

    failures: list[Event] = field(default_factory=list)
    is_doubtful: bool = False
    """Whether something was done in between that may have changed anything."""
    done_well: int = 0
    """How often the tool succeeded since the last of them."""

    def failed(self, event: ToolFailed) -> None:
        self.failures.append(event)
        self.done_well = 0

    def succeeded(self, key: _Key, event: ToolSucceeded) -> None:
        if key[0] == "command":
            is_changed = "changes" in event.signs
            self.is_doubtful |= _HARMLESS.isdisjoint(event.signs) and event.tool not in _NOTES
        else:
            self.done_well += key[1] == event.tool
            is_changed = self.done_well >= _DONE_WELL
        if is_changed:
            self.failures.clear()
            self.is_doubtful = False


def invalid_output(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match a reply that would end the turn; others when `after` of them came, or Hermes is about to give up."""
    if not observed or not isinstance(observed[-1], ReplyInvalid):
        return None
    if observed[-1].fault == "repetition" and "wants_refrain" in limits.asked:
        return None
    if observed[-1].ends_turn:
        return (observed[-1],)
    invalid = tuple(event for event in observed if isinstance(event, ReplyInvalid))
    if len(invalid) >= limits.after:
        return invalid[-limits.after :]
    in_a_row = _last_in_a_row(observed, ReplyInvalid, broken_by=ReplyAccepted)
    return in_a_row if len(in_a_row) >= HOST_PATIENCE else None


def no_progress(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match calls that came back with the result they had, alone or in a cycle, `after` times and nothing new since.

    Waiting for something (a process that is polled) is no lack of progress, for some time.
    """
    newest = [event for event in _newest(observed) if isinstance(event, Call)]
    # Of most calls the index knows that they were not made so often.
    often = [event for event in newest if limits.calls.count(short(event)) > limits.after]
    if not any(_came_before(event, observed, times=limits.after) for event in often):
        return None
    if newest and "polls" in newest[-1].signs:
        same = _same_at_last(newest[-1], observed)
        return same[-limits.after - 1 :] if len(same) > limits.after * _PATIENCE else None
    after = limits.after * (_PATIENCE if "wants_reruns" in limits.asked else 1)
    seen: dict[tuple[Fingerprint, Fingerprint], list[Event]] = {}
    last_result: dict[Fingerprint, Fingerprint] = {}
    repeats: defaultdict[tuple[Fingerprint, Fingerprint], int] = defaultdict(int)
    matched: Evidence | None = None
    for event in observed:
        if not isinstance(event, Call) or "polls" in event.signs:
            continue
        result = last_result.get(event.call, UNCHANGED) if event.result == UNCHANGED else event.result
        last_result[event.call] = result
        key = (event.call, result)
        if key not in seen:
            seen[key] = [event]
            repeats.clear()
            matched = None
            continue
        seen[key].append(event)
        repeats[key] += 1
        if repeats[key] >= after:
            matched = tuple(seen[key][-limits.after - 1 :])
    return matched


def _same_at_last(latest: Call, observed: Sequence[Event]) -> Evidence:
    """Return the calls like the latest that gave what it gave, up to the last one that gave something else."""
    same: list[Event] = []
    for event in reversed(observed):
        if isinstance(event, Call) and event.call == latest.call:
            if event.result not in (latest.result, UNCHANGED):
                break
            same.append(event)
    return tuple(reversed(same))


def _came_before(latest: Call, observed: Sequence[Event], *, times: int) -> bool:
    """Tell, quickly, whether a call gave what it gave now so often before that it is worth a closer look."""
    results = [event.result for event in observed if isinstance(event, Call) and event.call == latest.call]
    if latest.result == UNCHANGED:
        return len(results) > times
    return results.count(latest.result) + results.count(UNCHANGED) > times


def silent_failure(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match an answer that cannot be true: no work was done for it, or the local model itself denies it.

    That is: work is announced and no tool is called; a file's content is asked for, and no tool has shown anything; a
    change is asked for and claimed, and all that was done was to look; the model says that it cannot and did not try.
    """
    del limits
    last = observed[-1] if observed else None
    if isinstance(last, SelfChecked):
        return None if last.fulfilled else (last,)
    if not isinstance(last, ReplyAccepted) or not last.ends_turn or not last.signs or "asks" in last.signs:
        return None
    asked = next((event for event in reversed(observed) if isinstance(event, TurnStarted)), None)
    wanted = asked.signs if asked else ()
    calls = [event for event in observed if isinstance(event, Call)]
    matched = (
        ("announces" in last.signs and not calls)
        or ("wants_content" in wanted and "unaided" in last.signs)
        or ("wants_change" in wanted and "claims_done" in last.signs and not any(map(_may_have_changed, calls)))
        or (bool({"wants_content", "wants_change"} & {*wanted}) and "cannot" in last.signs and "unaided" in last.signs)
    )
    return ((last,) if asked is None else (asked, last)) if matched else None


def _may_have_changed(call: Call) -> bool:
    # A tool that failed changed nothing; a command that did may have, up to where it failed.
    return "reads" not in call.signs and (isinstance(call, ToolSucceeded) or call.command)


def risk(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match when the signs of trouble in this task and those before it add up to more than `sensitivity` allows."""
    if not may_add_up(observed) or "wants_reruns" in limits.asked:
        return None
    events = [*limits.earlier, *observed]
    if model.probability(events) < model.model().thresholds[limits.sensitivity]:
        return None
    return model.telling(events)


def may_add_up(observed: Sequence[Event]) -> bool:
    """Tell whether the model's last turn gave a sign of trouble: what was before it was judged before it.

    So a new message starts with the local model, however bad the task before it went.
    """
    return any(map(is_telling, _newest(observed)))


def may_be_replaced(answer: ReplyAccepted, said: Sequence[Event]) -> bool:
    """Tell, quickly, whether a trigger OF_ANSWERS may match this final answer: it has a sign, or the user asked for it.

    `said` are the session's CONTROLS, oldest first.
    """
    return bool(answer.signs) or any(isinstance(event, EscalationRequested) for event in said)


def task_timeout(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match when the task has run for longer than `task_timeout_seconds` on this model."""
    if limits.now - limits.started_at < limits.task_timeout_seconds:
        return None
    # The answer is there, however long it took.
    if observed and isinstance(observed[-1], ReplyAccepted | SelfChecked):
        return None
    return tuple(event for event in observed if isinstance(event, TurnStarted))[-1:]


def user_request(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match the user's /escalate, until the task that it was meant for has ended, or the user said /escalate off."""
    del limits
    for event in reversed(observed):
        if isinstance(event, TurnEnded | SwitchedOff):
            return None
        if isinstance(event, EscalationRequested):
            return (event,)
    return None


def task_type(observed: Sequence[Event], limits: Limits) -> Evidence | None:
    """Match a task whose type says `start_on: fallback`; asked only where the configuration says so."""
    del limits
    return next(((event,) for event in observed if isinstance(event, TypeMatched)), None)


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
    "task_type": task_type,
    "repeated_tool_failure": repeated_tool_failure,
    "invalid_output": invalid_output,
    "no_progress": no_progress,
    "provider_error": provider_error,
    "silent_failure": silent_failure,
    "risk": risk,
    "task_timeout": task_timeout,
}
"""In the order they are asked: what the user said first, the vaguest sign last."""

OF_ANSWERS: frozenset[TriggerName] = frozenset({"silent_failure", "risk", "user_request"})
"""What may take the task up when the local model has just given its final answer."""

_REPLIES = frozenset({ReplyAccepted, ReplyInvalid, TierReplied})


def _newest(observed: Sequence[Event]) -> list[Event]:
    """Return the last reply and the results since, or the results alone: what came since this was last asked."""
    newest: list[Event] = []
    for event in reversed(observed):
        kind = type(event)
        if kind is TurnStarted:
            break
        newest.append(event)
        if kind in _REPLIES:
            break
    return newest


def _failure_keys(failure: ToolFailed) -> tuple[_Key, ...]:
    if "polls" in failure.signs:
        return (("polls", failure.call, failure.result),)
    # A command that fails in a new way each time is being worked on; any other call fails for what it asks.
    if failure.command:
        return (("command", failure.call, failure.result),)
    if failure.kind is None:
        return (("call", failure.call),)
    return ("call", failure.call), ("kind", failure.tool, failure.kind)


def _last_in_a_row(observed: Sequence[Event], kind: type[Event], *, broken_by: object) -> Evidence:
    matched: list[Event] = []
    for event in reversed(observed):
        if isinstance(event, broken_by):  # type: ignore[arg-type]  # a class or a union of classes, both fit isinstance
            break
        if isinstance(event, kind):
            matched.append(event)
    return tuple(reversed(matched))
