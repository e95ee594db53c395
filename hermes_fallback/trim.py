"""Leaves out of a conversation what stands in it already, so that nobody pays to have it read twice.

Pure. Four things are cut, each to a line that says what it was: attempts that failed as a later one did, with the same
tool, for the same task (the later one stays, and names them), of commands only the same one with the same result; calls
that were made before and gave the same results again, right behind other calls (a loop); a result that came before,
word for word; and, in the result of a call that was made before, the lines that its earlier results had. What a call
asks for is never rewritten, for a model imitates the calls that it sees, and neither are words of the user.

But for two things, what becomes of a message depends only on what stands before it, so that the request for the next
call begins as the one before did, and the provider's prompt cache holds. Calls of a loop are counted at the end of the
result before them, and that line changes while the loop goes on; and the stronger model's own failures of one kind
replace each other.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import fingerprint
from .explain import times
from .fingerprint import Fingerprint

Message = dict[str, Any]

# As many lines in a row, and as many characters: two closing brackets are the same by chance, and a line of ours that
# stands for less is longer than what it saves.
_SAME_LINES = 3
_SAME_CHARS = 200
# As many as make a task stuck by default; of fewer, each may be a step on the way.
_SAME_FAILURES = 3
_QUOTED_CHARS = 40
_BRIEF_CHARS = 60

# Where a line ends: most results are JSON, in which a line break is a backslash and an n.
_LINE = re.compile(r".*?(?:\\n|\n|\Z)", re.DOTALL)
# What would end a JSON string, or be half of an escape.
_NOT_QUOTABLE = re.compile(r"""\\u[0-9a-fA-F]{0,4}|\\.?|["\x00-\x1f]""")

_Call = tuple[str, str, str]
"""Name, arguments and result of a call."""


def trim(messages: Sequence[Message], *, untouchable: str) -> list[Message]:
    """Return the messages without repetitions; results with images, or `untouchable` in them, stay as they are.

    Each call must have its one result behind it, under an id that no other call has.
    """
    kept: list[Message] = []
    seen = _Seen()
    loop: list[tuple[str, str]] = []
    for said, results in _without_superseded(list(exchanges(messages)), untouchable):
        calls = _calls(said, results)
        is_free = _is_free(results, untouchable)
        if calls in seen.exchanges and kept[-1]["role"] == "tool" and is_free:
            loop.append((", ".join(name for name, _, _ in calls), seen.news(said["content"])))
            continue
        if loop:
            _close(loop, kept)
            seen.last_result = None
        kept.append(said)
        if said["role"] == "assistant":
            seen.words.add(said["content"] or "")
        for result, call in zip(results, calls, strict=True):
            kept.append(seen.shorter(result, call) if is_free else result)
        if calls:
            seen.exchanges.add(calls)
    if loop:
        _close(loop, kept)
    return kept


def _is_free(results: Sequence[Message], untouchable: str) -> bool:
    return not any(untouchable in result["content"] or result.get("images") for result in results)


_Exchange = tuple[Message, list[Message]]
_Failure = tuple[str, str, Fingerprint]
"""Tool and kind of error; of a command, the arguments as well, and its result."""


def _without_superseded(exchanges: Sequence[_Exchange], untouchable: str) -> Iterator[_Exchange]:
    """Leave out attempts that failed as later ones did, if that was often, and name them at the last one."""
    kinds = [_failure(said, results) if _is_free(results, untouchable) else None for said, results in exchanges]
    ends = _ends(exchanges, kinds)
    briefs: dict[int, list[str]] = {}
    for at, (said, answers) in enumerate(exchanges):
        end = ends[at]
        if end is not None and end != at:
            briefs.setdefault(end, []).append(_brief(said))
            continue
        if at not in briefs:
            yield said, answers
            continue
        line = f"[cut: {len(briefs[at])} attempts before it that failed alike: {'; '.join(briefs[at])}]"
        yield said, [{**answers[0], "content": f"{answers[0]['content']}\n\n{line}"}]


def _ends(exchanges: Sequence[_Exchange], kinds: Sequence[_Failure | None]) -> list[int | None]:
    """Return for each failed attempt where the last of its kind in its task stands, if there were enough of them."""
    tasks = itertools.accumulate(said["role"] == "user" for said, _ in exchanges)
    groups: dict[tuple[int, _Failure], list[int]] = {}
    for at, (task, kind) in enumerate(zip(tasks, kinds, strict=True)):
        if kind is not None:
            groups.setdefault((task, kind), []).append(at)
    ends: list[int | None] = [None] * len(kinds)
    for places in groups.values():
        if len(places) >= _SAME_FAILURES:
            for at in places:
                ends[at] = places[-1]
    return ends


def _failure(said: Message, results: Sequence[Message]) -> _Failure | None:
    """Return how an attempt failed, by the form of Hermes's results; None for any other."""
    calls = said.get("tool_calls", ())
    if len(calls) != 1 or len(results) != 1:
        return None
    try:
        # Behind the result may stand a warning of Hermes's (0.19 agent/tool_guardrails.py).
        result, _ = json.JSONDecoder().raw_decode(results[0]["content"])
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict):
        return None
    function = calls[0]["function"]
    status = fingerprint.exit_status(result)
    if status is not None:
        # What two commands found may read alike and be two things; the same result of the same one is nothing more.
        found = fingerprint.without_volatile(fingerprint.without_notice(results[0]["content"]))
        return (function["name"], _canonical(function["arguments"]), found) if status else None
    message = result.get("error")
    kind = fingerprint.error_kind(message) if isinstance(message, str) else None
    return None if kind is None else (function["name"], "", kind)


def _brief(said: Message) -> str:
    arguments: str = said["tool_calls"][0]["function"]["arguments"]
    return arguments if len(arguments) <= _BRIEF_CHARS else f"{arguments[:_BRIEF_CHARS]}…"


@dataclass(slots=True)
class _Seen:
    """What stands in the conversation so far."""

    exchanges: set[tuple[_Call, ...]] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    results: set[str] = field(default_factory=set)
    last_result: str | None = None
    lines: dict[tuple[str, str], _Lines] = field(default_factory=dict)

    def news(self, words: str | None) -> str:
        """Return what was said beside calls, if it was not said before."""
        if not words or words in self.words:
            return ""
        self.words.add(words)
        return words

    def shorter(self, result: Message, call: _Call) -> Message:
        """Return a result without what earlier ones showed."""
        name, arguments, text = call
        if text in self.results:
            content = self._same(text)
        else:
            lines = self.lines.setdefault((name, arguments), _Lines())
            content = lines.without_known(text)
            lines.learn(text)
            self.results.add(text)
        self.last_result = text
        return {**result, "content": content}

    def _same(self, text: str) -> str:
        line = "[cut: same result as the call before]"
        if text != self.last_result:
            line = f"[cut: same result as one above, which begins: {_quoted(text)}]"
        return line if 2 * len(line) <= len(text) else text


@dataclass(slots=True)
class _Lines:
    """The lines that the results of one call have shown."""

    # Where each few lines stood last: in which result, and at which line.
    starts: dict[tuple[str, ...], tuple[list[str], int]] = field(default_factory=dict)
    # Most calls are made once, and nobody asks for the lines of their result.
    not_yet: list[str] = field(default_factory=list)

    def learn(self, text: str) -> None:
        self.not_yet.append(text)

    def without_known(self, text: str) -> str:
        if not self.starts and not self.not_yet:
            return text
        for earlier in self.not_yet:
            self._learn(_lines(earlier))
        self.not_yet.clear()
        lines = _lines(text)
        shown: list[str] = []
        at = 0
        while at < len(lines):
            block = lines[at : at + self._known_from(lines, at)]
            if sum(map(len, block)) < _SAME_CHARS:
                shown.append(lines[at])
                at += 1
                continue
            span = f"from: {_quoted(block[0])}, to: {_quoted(block[-1])}"
            end = next((end for end in ("\\n", "\n") if block[-1].endswith(end)), "")
            shown.append(f"[cut: {len(block)} lines that this call gave before, {span}]{end}")
            at += len(block)
        return "".join(shown)

    def _learn(self, lines: list[str]) -> None:
        # From the end, so that of lines that are all the same the first ones are found.
        for at in reversed(range(len(lines) - _SAME_LINES + 1)):
            self.starts[tuple(lines[at : at + _SAME_LINES])] = lines, at

    def _known_from(self, lines: Sequence[str], at: int) -> int:
        """Count the lines from `at` on that stand, in this order, in one earlier result."""
        earlier, start = self.starts.get(tuple(lines[at : at + _SAME_LINES]), ((), 0))
        most = min(len(lines) - at, len(earlier) - start)
        return next((count for count in range(most) if lines[at + count] != earlier[start + count]), most)


def exchanges(messages: Sequence[Message]) -> Iterator[tuple[Message, list[Message]]]:
    """Yield each message that is no result, with the results behind it."""
    said: Message | None = None
    results: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(message)
            continue
        if said is not None:
            yield said, results
        said, results = message, []
    if said is not None:
        yield said, results


def _calls(said: Message, results: Sequence[Message]) -> tuple[_Call, ...]:
    functions = {call["id"]: call["function"] for call in said.get("tool_calls", ())}
    return tuple(
        (functions[id_]["name"], _canonical(functions[id_]["arguments"]), result["content"])
        for result in results
        for id_ in (result["tool_call_id"],)
    )


def _canonical(arguments: str) -> str:
    return json.dumps(json.loads(arguments), sort_keys=True)


def _close(loop: list[tuple[str, str]], kept: list[Message]) -> None:
    """Say at the end of the last result which calls came behind it that are left out, and forget them."""
    names = [name for name, _ in loop]
    counts = ", ".join(f"{name} ({times(names.count(name))})" for name in dict.fromkeys(names))
    line = f"[cut: calls that were made above, made again with the same arguments and the same results: {counts}]"
    words = [f"[said meanwhile: {said}]" for _, said in loop if said]
    kept[-1] = {**kept[-1], "content": "\n".join([f"{kept[-1]['content']}\n", line, *words])}
    loop.clear()


def _quoted(text: str) -> str:
    words = " ".join(_NOT_QUOTABLE.sub(" ", text[: 2 * _QUOTED_CHARS]).split())
    return words if len(words) <= _QUOTED_CHARS else f"{words[:_QUOTED_CHARS]}…"


def _lines(text: str) -> list[str]:
    return [line for line in _LINE.findall(text) if line]
