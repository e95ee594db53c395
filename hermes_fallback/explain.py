"""Decisions and events in plain sentences, for the screen, the log and the journal.

Nothing here quotes a prompt, an argument or a result: the words are ours, the names are those of tools and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from .events import (
    CallFailed,
    CallFailure,
    Event,
    FaultKind,
    ReplyInvalid,
    ToolFailed,
    ToolSucceeded,
    TriggerName,
)

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
        case "provider_error":
            failures = [event for event in evidence if isinstance(event, CallFailed)]
            return _times(FAILURE_WORDS[failures[-1].failure], len(failures))
        case _:
            assert_never(trigger)


def usage(input_tokens: int | None, output_tokens: int | None, cost_usd: float | None) -> str:
    """Say what calls used: `3,100 tokens in, 95 out, $0.0092`; what is unknown is said, not shown as nothing."""
    cost = "cost unknown" if cost_usd is None else f"${cost_usd:.4f}"
    return f"{_count(input_tokens)} tokens in, {_count(output_tokens)} out, {cost}"


def calls(count: int) -> str:
    """Say how many calls."""
    return "1 call" if count == 1 else f"{count} calls"


def outcome(answered: int, failed: int) -> str:
    """Say how calls went: `2 calls`, `1 call and 1 failed`."""
    return calls(answered) + (f" and {failed} failed" if failed else "")


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _failures(failures: Sequence[ToolFailed]) -> str:
    last = failures[-1]
    return f"{_times(f'{last.tool} failed', len(failures))}: {last.error}"


def _faults(faults: Sequence[FaultKind]) -> str:
    if len(set(faults)) == 1:
        return f"the local model gave {FAULT_WORDS[faults[0]]}{_again(len(faults))}"
    kinds = dict.fromkeys(FAULT_WORDS[fault] for fault in faults)
    return f"the local model gave {len(faults)} unusable replies: {', '.join(kinds)}"


def _repeats(calls: Sequence[ToolFailed | ToolSucceeded]) -> str:
    return f"{calls[-1].tool} was called {len(calls)} times with the same arguments and the same result"


def _times(words: str, count: int) -> str:
    return words + _again(count)


def _again(count: int) -> str:
    return "" if count == 1 else f" {count} times"
