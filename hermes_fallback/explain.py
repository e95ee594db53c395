"""Decisions and events in plain sentences, for the screen, the log and the journal.

Nothing here quotes a prompt, an argument or a result: the words are ours, the names are those of tools and models. Who
chose these is not known, so a name is shown as `plain` text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import assert_never

from .events import (
    TROUBLE,
    CallFailed,
    CallFailure,
    Event,
    FaultKind,
    ReplyAccepted,
    ReplyInvalid,
    ToolFailed,
    ToolSucceeded,
    TriggerName,
    TurnStarted,
    TypeMatched,
)
from .journal import Entry

FAULT_WORDS: dict[FaultKind, str] = {
    "empty": "an empty reply",
    "tool_call_as_text": "a tool call written as text",
    "repetition": "a reply that repeats itself without end",
    "truncated": "a reply that was cut off",
    "malformed_arguments": "a tool call whose arguments are not JSON",
    "unknown_tool": "a call of a tool that does not exist",
    "schema_violation": "a tool call whose arguments do not fit the tool",
}
FAILURE_WORDS: dict[CallFailure, str] = {
    "unreachable": "the local endpoint cannot be reached",
    "overloaded": "the local endpoint is overloaded",
    "timed_out": "the local endpoint did not answer in time",
    "context_overflow": "the conversation is larger than the local model's context",
    "refused": "the local endpoint refused the request",
    "broken": "the local endpoint broke off or sent no usable answer",
}

# What may move a terminal's cursor, end a line or turn the direction of the writing.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def plain(name: str) -> str:
    """Return a name on one line without anything that a terminal would obey."""
    return "".join(" " if unicodedata.category(char) in _UNSEEN else char for char in name)


def reason(trigger: TriggerName, evidence: Sequence[Event]) -> str:
    """Say why a trigger fired: `read_file failed 3 times: file not found`."""
    match trigger:
        case "repeated_tool_failure":
            return _failures([event for event in evidence if isinstance(event, ToolFailed)])
        case "invalid_output":
            return _faults([event.fault for event in evidence if isinstance(event, ReplyInvalid)])
        case "no_progress":
            return _repeats([event for event in evidence if isinstance(event, ToolFailed | ToolSucceeded)])
        case "task_timeout":
            return "the task took longer than task_timeout_seconds"
        case "user_request":
            return "you asked for it with /escalate"
        case "task_type":
            names = [event.name for event in evidence if isinstance(event, TypeMatched)]
            return f"tasks of the type “{plain(''.join(names))}” start there"
        case "silent_failure":
            return _silent(evidence)
        case "risk":
            return f"signs of trouble together: {'; '.join(_signs_of_trouble(evidence))}"
        case "provider_error":
            failures = [event for event in evidence if isinstance(event, CallFailed)]
            return _times(FAILURE_WORDS[failures[-1].failure], len(failures))
        case _:
            assert_never(trigger)


def usage(input_tokens: int | None, output_tokens: int | None, cost_usd: float | None) -> str:
    """Say what calls used: `3,100 tokens in, 95 out, $0.0092`; what is unknown is said, not shown as nothing."""
    cost = "cost unknown" if cost_usd is None else usd(cost_usd)
    return f"{_count(input_tokens)} tokens in, {_count(output_tokens)} out, {cost}"


def usd(dollars: float | None) -> str:
    """Say an amount: `$0.0092`, `$12.50`, or that it is not known."""
    if dollars is None:
        return "an unknown amount"
    return f"${dollars:.4f}" if round(dollars, 4) < 1 else f"${dollars:,.2f}"


def local_time(at: str) -> str:
    """Say when, in local time, to the minute; `at` is ISO 8601."""
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M")


def tokens(count: int) -> str:
    """Say how many tokens: `12,300 tokens`."""
    return "1 token" if count == 1 else f"{count:,} tokens"


def calls(count: int) -> str:
    """Say how many calls."""
    return "1 call" if count == 1 else f"{count} calls"


def outcome(answered: int, failed: int) -> str:
    """Say how calls went: `2 calls`, `1 call and 1 failed`."""
    return calls(answered) + (f" and {failed} failed" if failed else "")


def helped(entry: Entry) -> str:
    """Say in a part of a sentence what a model did in a turn, and what that cost."""
    used, model = usage(entry.input_tokens, entry.output_tokens, entry.cost_usd), plain(entry.to_model)
    if entry.calls:
        return f"{model} helped, because {plain(entry.reason)} ({outcome(entry.calls, entry.failed)}, {used})"
    # Of a call that broke off, no provider says what it used.
    if entry.failed:
        return f"{model} did not help ({calls(entry.failed)}, about {used})"
    # The user stopped it; or its end could not be written, and what was reserved counts.
    return f"{model} was asked (about {used})"


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _failures(failures: Sequence[ToolFailed]) -> str:
    last = failures[-1]
    return f"{_times(f'{plain(last.tool)} failed', len(failures))}: {last.error}"


def _faults(faults: Sequence[FaultKind]) -> str:
    if len(set(faults)) == 1:
        return f"the local model gave {FAULT_WORDS[faults[0]]}{_again(len(faults))}"
    kinds = dict.fromkeys(FAULT_WORDS[fault] for fault in faults)
    return f"the local model gave {len(faults)} unusable replies: {', '.join(kinds)}"


def _repeats(calls: Sequence[ToolFailed | ToolSucceeded]) -> str:
    tool = plain(calls[-1].tool)
    return f"{tool} was called {len(calls)} times with the same arguments and the same result"


def _silent(evidence: Sequence[Event]) -> str:
    last = evidence[-1]
    if not isinstance(last, ReplyAccepted):
        return "the local model says itself that its answer does not fulfil the request"
    asked = evidence[0].signs if isinstance(evidence[0], TurnStarted) else ()
    if "announces" in last.signs:
        return "the local model announced work and did not do it"
    if "wants_change" in asked and "claims_done" in last.signs:
        return "the local model says that it is done, and nothing was changed"
    if "cannot" in last.signs:
        return "the local model says that it cannot, and has not tried"
    return "the local model answered without looking"


def _signs_of_trouble(evidence: Sequence[Event]) -> Iterator[str]:
    failed = sum(isinstance(event, ToolFailed) for event in evidence)
    invalid = sum(isinstance(event, ReplyInvalid) for event in evidence)
    signs = [sign for event in evidence for sign in getattr(event, "signs", ())]
    same = sum(isinstance(event, ToolSucceeded) and TROUBLE.isdisjoint(event.signs) for event in evidence)
    counted = [
        (failed, "failed call"),
        (invalid, "unusable reply"),
        (signs.count("rejected"), "result that said no"),
        (signs.count("empty"), "empty result"),
        (same, "result that came before"),
        (signs.count("cannot"), "reply that said it cannot"),
        (signs.count("cannot_say"), "message that could not give what was needed"),
    ]
    for count, words in counted:
        if count:
            noun, _, rest = words.partition(" that ")
            plural = noun if count == 1 else f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"
            yield f"{count} {plural}{' that ' + rest if rest else ''}"


def times(count: int) -> str:
    """Return how often, in words."""
    return "once" if count == 1 else f"{count:,} times"


def _times(words: str, count: int) -> str:
    return words + _again(count)


def _again(count: int) -> str:
    return "" if count == 1 else f" {count} times"
