"""Runs the events, triggers and policy of a live session over a recorded one: where would it have escalated, and why?

Nothing of a record is looked at that a live session would not have: no label, no cost, no name of a model or a task.
Records have one of two forms: `messages`, as chat requests have them, and `events` (a list of calls and texts).
"""

from __future__ import annotations

import gzip
import json
import multiprocessing
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from . import explain, fingerprint, handoff, host, signs
from .config import Policy
from .events import Escalated, Event, ReplyAccepted, ReplyInvalid, TriggerName, TurnEnded, TurnStarted
from .fingerprint import Fingerprint
from .ledger import Ledger
from .names import Names
from .policy import Escalate, decide
from .replies import Call, LocalReply, Tools, inspect, without_thinking

Format = Literal["messages", "events"]

# What most tokenizers come to in English and code; the exact count would need the model's own.
_CHARS_A_TOKEN = 4
# Starting other processes takes longer than playing so few.
_FEW_LINES = 300

_TOOL_NAME = re.compile(r'"function": ?\{"name": ?"([\w.-]+)"')
_SHELL = re.compile(r"(?:^|_)(?:bash|sh|shell|terminal|exec|command)(?:_|$)")


@dataclass(frozen=True, slots=True)
class Firing:
    """Where a recorded run would have been escalated.

    `at` counts the model's turns from 1 (`messages`), or is the index of an event from 0 (`events`). The tokens are
    what the rest of the recorded task would have taken, a call for each recorded turn and at least one.
    """

    at: int
    trigger: TriggerName
    reason: str
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one line of a file: a firing, none, or a fault that kept it from being read."""

    line: int
    name: str
    firing: Firing | None = None
    fault: str | None = None


def of_messages(
    messages: Sequence[Mapping[str, Any]],
    policy: Policy,
    *,
    tools: Sequence[str] = (),
    prompt_tokens: int | None = None,
) -> Iterator[Firing]:
    """Return where the tasks of a conversation would have been escalated, each at most once.

    `tools` are the names of those that were offered; `prompt_tokens` is what a call took on the mean, where that was
    recorded: else the length of the messages stands for it, which leaves out the system prompt and the tools.
    """
    recording = Recording(tools)
    taken_over = False
    for turn, exchange in enumerate(exchanges(messages), start=1):
        # The stronger model keeps the task to its end; the next one begins on the local model.
        taken_over = taken_over and not exchange.said
        if taken_over:
            continue
        for events in recording.events_of(exchange):
            escalation = recording.judge(events, policy)
            if escalation is None:
                continue
            tokens_in, tokens_out, calls = _rest(messages, exchange.at)
            tokens_in = tokens_in if prompt_tokens is None else prompt_tokens * calls
            yield Firing(turn, escalation.trigger, _reason(escalation), tokens_in, tokens_out)
            recording.take_over(escalation)
            taken_over = True
            break


def of_events(events: Sequence[Mapping[str, Any]], policy: Policy, *, judge_from: int = 0) -> Firing | None:
    """Return where a list of recorded events would first have been escalated, from the one number `judge_from` on."""
    recording = Recording()
    for at, _ in enumerate(events):
        escalation = recording.judge(_recorded_event(events, at, recording.names), policy)
        if escalation is not None and at >= judge_from:
            return Firing(at, escalation.trigger, _reason(escalation))
    return None


@dataclass(frozen=True, slots=True)
class Exchange:
    """One turn of the model: what users said before it, its message (number `at`), and the results of its calls."""

    at: int
    said: tuple[Mapping[str, Any], ...]
    message: Mapping[str, Any]
    results: tuple[Mapping[str, Any], ...]


def exchanges(messages: Sequence[Mapping[str, Any]]) -> Iterator[Exchange]:
    """Divide a conversation into the model's turns; calls of a simulated user are left out."""
    said: list[Mapping[str, Any]] = []
    at: int | None = None
    results: list[Mapping[str, Any]] = []
    for index, message in enumerate(messages):
        role = message.get("role")
        if role in {"user", "assistant"} and at is not None:
            yield Exchange(at, tuple(said), messages[at], tuple(results))
            at, said, results = None, [], []
        if role == "assistant":
            at = index
        elif role == "user" and message.get("content"):
            said.append(message)
        elif role == "tool" and message.get("requestor") != "user" and at is not None:
            results.append(message)
    if at is not None:
        yield Exchange(at, tuple(said), messages[at], tuple(results))


class Recording:
    """A recorded session, as far as it has been played."""

    def __init__(self, tools: Sequence[str] = ()) -> None:
        self.ledger = Ledger()
        self.names = Names()
        self._tools: dict[str, Mapping[str, object]] = {tool: {} for tool in tools}
        self._aided = False
        self._now = 0.0

    def judge(self, events: Sequence[Event], policy: Policy) -> Escalate | None:
        """Add events, and decide as before the next model call."""
        if any(isinstance(event, TurnStarted) for event in events):
            self.names = Names()
        self.ledger.append(*events)
        decision = decide(self.ledger.events(), policy, tiers=1, now=self._now)
        return decision if isinstance(decision, Escalate) else None

    def take_over(self, escalation: Escalate) -> None:
        """Let a stronger model have the task: what led to it is used up."""
        taken = Escalated(self._now, escalation.tier, "", escalation.trigger, escalation.evidence, 0)
        self.ledger.append(taken)

    def events_of(self, exchange: Exchange) -> Iterator[list[Event]]:
        """Return a turn's events: those of its reply first, then, if it goes on, those of its results."""
        message = exchange.message
        self._now = max(self._now, _seconds(message))
        opened = [event for said in exchange.said for event in self.turn_started(handoff.text_of(said.get("content")))]
        calls = [call for call in message.get("tool_calls") or () if call.get("requestor") != "user"]
        named = {str(call.get("id")): _call(call) for call in calls}
        self._tools.update({call.tool: {} for call in named.values()})
        reply = LocalReply(handoff.text_of(message.get("content")), tuple(named.values()))
        yield [*opened, *self._reply_events(reply)]
        if not exchange.results:
            return
        self._now = max(self._now, *map(_seconds, exchange.results))
        yield [event for result in exchange.results for event in self._result_events(result, named)]

    def turn_started(self, text: str) -> list[Event]:
        """Return the events of a user's message."""
        return [TurnEnded(self._now), TurnStarted(self._now, "", "", signs.of_message(text))]

    def _reply_events(self, reply: LocalReply) -> list[Event]:
        fault = inspect(reply, Tools(self._tools))
        if fault is not None:
            return [ReplyInvalid(self._now, fault.kind, fault.ends_turn)]
        unaided = bool(self._tools) and not self._aided
        found = signs.of_reply(without_thinking(reply.text), ends_turn=not reply.calls, unaided=unaided)
        return [ReplyAccepted(self._now, not reply.calls, found)]

    def _result_events(self, result: Mapping[str, Any], named: Mapping[str, Call]) -> list[Event]:
        self._aided = True
        call = named.get(str(result.get("tool_call_id")), Call(str(result.get("name") or ""), "{}"))
        text = fingerprint.without_notice(handoff.text_of(result.get("content")))
        failed = _is_error(result, text)
        printed = _known_fingerprint(result, text)
        if _SHELL.search(call.tool) and '"exit_code"' not in text:
            # What a shell reports as an error is a command's exit status, as Hermes writes it.
            text = json.dumps({"output": text, "exit_code": int(failed), "error": None}, ensure_ascii=False)
        event = host.tool_event(
            self._now,
            call.tool,
            _parsed(call.arguments),
            text,
            status="error" if failed else "ok",
            error=_error_of(text),
            names=self.names,
            printed=printed,
        )
        return [] if event is None else [event]


def of_file(path: Path, policy: Policy, *, form: Format) -> Iterator[Outcome]:
    """Return what becomes of each line of a file, in their order; long files are divided among the processors.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read, or not to its end.
    """
    tools = tools_named_in(path) if form == "messages" else ()
    play = partial(_outcome, stem=path.name.partition(".")[0], policy=policy, form=form, tools=tools)
    first = list(islice(read := lines(path), _FEW_LINES))
    if len(first) < _FEW_LINES:
        yield from map(play, first)
        return
    # Started anew, not forked: whoever calls this may have threads.
    with multiprocessing.get_context("spawn").Pool() as pool:
        yield from pool.imap(play, chain(first, read), chunksize=50)


def _outcome(numbered: tuple[int, str], *, stem: str, policy: Policy, form: Format, tools: Sequence[str]) -> Outcome:
    number, line = numbered
    name = f"{stem}:{number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Outcome(number, name, fault=f"line {number + 1}: not JSON: {error}")
    key = "messages" if form == "messages" else "events"
    steps = record.get(key) if isinstance(record, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        fault = f"line {number + 1}: no list of objects under `{key}`; give the file's form with --format"
        return Outcome(number, name, fault=fault)
    try:
        if form == "messages":
            return Outcome(number, name, next(of_messages(steps, policy, tools=tools), None))
        judge_from = record.get("eval_from") or 0
        return Outcome(number, str(record.get("id", name)), of_events(steps, policy, judge_from=judge_from))
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        # Records are others' files: whatever they hold, the next line is read.
        fault = f"line {number + 1}: not in the form `{form}`: {type(error).__name__}: {error}"
        return Outcome(number, name, fault=fault)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Return the lines of a file, packed by gzip or not, with their numbers from 0; blank ones are left out.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read, or not to its end.
    """
    open_it = gzip.open if path.suffix == ".gz" else open
    # Some editors begin a file with a mark of its encoding.
    with open_it(path, "rt", encoding="utf-8-sig", errors="replace") as file:
        yield from ((number, line) for number, line in enumerate(file) if line.strip())


def tools_named_in(path: Path) -> tuple[str, ...]:
    """Return the names of the tools that any run in a file calls.

    A live session knows its tools from the start, and recorded messages do not say which they were.
    """
    named = {name for _, line in lines(path) for name in _TOOL_NAME.findall(line)}
    return tuple(sorted(named))


def _seconds(message: Mapping[str, Any]) -> float:
    at = message.get("t")
    return float(at) if isinstance(at, int | float) else 0.0


def _call(call: Mapping[str, Any]) -> Call:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    return Call(
        str(function.get("name") or ""), arguments if isinstance(arguments, str) else json.dumps(arguments or {})
    )


def _parsed(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _is_error(result: Mapping[str, Any], text: str) -> bool:
    recorded = result.get("error")
    return bool(recorded) if recorded is not None else _error_of(text) is not None


def _error_of(text: str) -> str | None:
    """Return the error in a result of Hermes's tools, which is under `error` (0.19 model_tools.py)."""
    if '"error"' not in text[:400]:
        return None
    try:
        parsed = json.loads(text)
    except ValueError:
        return None
    error = parsed.get("error") if isinstance(parsed, dict) else None
    return str(error) if error else None


def _known_fingerprint(result: Mapping[str, Any], text: str) -> Fingerprint | None:
    """Return the recorded hash of a result that was recorded in part."""
    length = result.get("len")
    whole = result.get("sha") if isinstance(length, int) and length > len(text) else None
    return None if whole is None else fingerprint.digest(f"sha:{whole}")


def _rest(messages: Sequence[Mapping[str, Any]], at: int) -> tuple[int, int, int]:
    """Return about how many tokens the calls for the rest of the task after message `at` take, in, out, and calls."""
    length = sum(_length(message) for message in messages[: at + 1])
    tokens_in = tokens_out = calls = 0
    for message in messages[at + 1 :]:
        if message.get("role") == "user":
            break
        if message.get("role") == "assistant":
            tokens_in += length // _CHARS_A_TOKEN
            tokens_out += _length(message) // _CHARS_A_TOKEN
            calls += 1
        length += _length(message)
    if not calls:
        return length // _CHARS_A_TOKEN, _length(messages[at]) // _CHARS_A_TOKEN, 1
    return tokens_in, tokens_out, calls


def _length(message: Mapping[str, Any]) -> int:
    whole = message.get("len")
    return (whole if isinstance(whole, int) else len(handoff.text_of(message.get("content")))) + sum(
        len(str((call.get("function") or {}).get("arguments") or "")) for call in message.get("tool_calls") or ()
    )


def _reason(escalation: Escalate) -> str:
    return explain.reason(escalation.trigger, escalation.evidence)


def _recorded_event(events: Sequence[Mapping[str, Any]], at: int, names: Names) -> list[Event]:
    event = events[at]
    match event.get("type"):
        case "user":
            text = str(event.get("content") or "")
            return [TurnEnded(float(at)), TurnStarted(float(at), "", "", signs.of_message(text))]
        case "assistant" if not event.get("thought"):
            goes_on = at + 1 < len(events) and events[at + 1].get("type") == "tool_call"
            reply = LocalReply(str(event.get("content") or ""))
            fault = inspect(reply, Tools())
            if fault is not None and fault.kind != "empty":
                return [ReplyInvalid(float(at), fault.kind, fault.ends_turn)]
            return [ReplyAccepted(float(at), not goes_on)]
        case "tool_call":
            result = str(event.get("result") or "")
            made = host.tool_event(
                float(at),
                str(event.get("tool") or ""),
                event.get("args"),
                result,
                status=str(event.get("status") or "ok"),
                error=_error_of(result),
                names=names,
                # A result that was not recorded is not known to be the same as another.
                printed=fingerprint.digest(f"unknown:{at}") if event.get("no_result") else None,
            )
            return [] if made is None else [made]
        case _:
            return []
