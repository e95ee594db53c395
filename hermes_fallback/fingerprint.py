"""Says when two tool calls, results or errors are the same, without keeping any of them.

Volatile fields (times, durations, process and object ids) are taken out before hashing, so that a result which only
carries a new timestamp counts as the same result.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

# Enough to see any error or page; the rest of a large result is hashed as it is, at the speed of the hash.
_NORMALISED_CHARS = 4096

_VOLATILE = re.compile(
    r"""
      \d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?   # 2026-11-23T15:19:09.123Z
    | \b\d\d?:\d\d:\d\d(?:[.,]\d+)?\b                                           # 15:19:09
    | \b\d+(?:\.\d+)?\s?(?:ms|s|sec|secs|seconds?|µs|us|ns|minutes?|min)\b       # 0.31s, 12 ms
    # "duration_seconds": 1.01, "pid": 1003, "sessionId": "sess-3", "startedAt": 1700000003, "execution_count": 7
    | (?<=")(?:\w*(?:[Dd]uration|[Ee]lapsed|[Tt]imestamp)\w*|pid|\w*[Ss]ession_?[Ii]d|started_?[Aa]t|run_?[Ii]d
        |execution_count)":\s*(?:"[^"\n]*"|-?[\d.]+)
    | (?<="cwd":\s)"/tmp/[^"\n]*"
    | \b(?:pid|session|sess|proc|job)["']?[\s:=#_-]+[\w-]*\d[\w-]*
    | \b0x[0-9a-fA-F]{6,}\b
    | \b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b
    | \b1[5-9]\d{8}(?:\.\d+|\d{3})?\b                                            # seconds or milliseconds since 1970
    """,
    re.VERBOSE,
)
# What Hermes appends to a result for the model, after our hook has seen it (0.19 agent/tool_guardrails.py).
_NOTICE = re.compile(r"\n\n\[Tool loop (?:warning|hard stop): [^\n]*\]\s*\Z")
_NAMES_AND_NUMBERS = re.compile(r"""'[^'\n]*'|"[^"\n]*"|`[^`\n]*`|(?:[\w.~-]*/)+[\w.*-]*|\b[\w-]+\.\w{1,5}\b|\d+""")

# A pattern is only tried on a text with one of its hints in it: to look for those costs next to nothing.
_ERROR_WORDS: tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...] = tuple(
    (tuple(hints.split("|")), re.compile(pattern, re.IGNORECASE), words)
    for hints, pattern, words in (
        (
            "no such file|file not found|not found: |does not exist|enoent",
            r"no such file|file not found|not found: .*/|does not exist|enoent",
            "file not found",
        ),
        (
            "permission denied|eacces|not permitted",
            r"permission denied|eacces|operation not permitted",
            "permission denied",
        ),
        ("a directory", r"is a directory|not a directory", "not the right kind of path"),
        ("command not found|not recognized as", r"command not found|not recognized as", "command not found"),
        ("timed out|time out|timeout|timedout|deadline exceeded", r"timed? ?out|deadline exceeded", "timed out"),
        (
            "connection |unreachable|name resolution|getaddrinfo",
            r"connection (?:refused|reset|aborted)|unreachable|name resolution|getaddrinfo",
            "could not connect",
        ),
        ("401|403|unauthori|forbidden", r"\b(?:401|403)\b|unauthori[sz]ed|forbidden", "access refused"),
        ("404", r"\b404\b", "not found (404)"),
        ("429|rate limit", r"\b429\b|rate limit", "rate limited"),
        (
            "old_string|could not find|no match",
            r"old_string.*not found|could not find (?:a )?match|no match",
            "text to replace not found",
        ),
        ("matches|not unique", r"multiple matches|found \d+ matches|not unique", "text to replace is not unique"),
        (
            (
                "missing |required |must precede|unexpected keyword|invalid|illegal|unrecognized|unknown|"
                "usage: |--help|malformed| requires|must specify|extra operand|may not specify"
            ),
            (
                r"missing (?:\d+ )?(?:required|operand|argument)|required (?:argument|parameter|property)|must precede"
                r"|unexpected keyword|(?:invalid|illegal|unrecognized|unknown)[\w ]* (?:option|argument|predicate|flag)"
                r"|usage: |--help|malformed|(?:option|flag) requires|you must specify|extra operand|may not specify"
            ),
            "wrong arguments",
        ),
        ("invalid json|jsondecode|expecting value", r"invalid json|jsondecode|expecting value", "invalid JSON"),
        (
            "syntaxerror|syntax error|unexpected ",
            r"syntaxerror|syntax error|unexpected (?:eof|end of file|token)",
            "syntax error",
        ),
        (
            "modulenotfounderror|no module named|cannot find module",
            r"modulenotfounderror|no module named|cannot find module",
            "module not found",
        ),
        ("already exists|file exists", r"already exists|file exists", "already exists"),
        ("out of memory|no space left", r"out of memory|no space left", "out of memory or space"),
        ("not found", r"\bnot found\b", "not found"),
    )
)


def call_fingerprint(tool: str, arguments: object) -> str:
    """Identify a call by its tool and canonical arguments (key order does not matter)."""
    return _digest(f"{tool}\0{_canonical(arguments)}")


def result_fingerprint(result: str) -> str:
    """Identify a result with its volatile fields taken out, and what Hermes wrote below it."""
    return _without_volatile(_excerpt(without_notice(result)))


class Names:
    """Gives the results of one call one name as long as only volatile fields differ, and so the errors of one tool.

    Taking those fields out costs a hundred times what hashing does, and most calls are made once: so it is done when a
    call is made again and gives something else. Until then the text itself is kept, of the last few calls.
    """

    def __init__(self) -> None:
        self._results = _Alike(_without_volatile)
        self._errors = _Alike(error_kind)

    def of_result(self, call: str, result: str) -> str:
        """Name a result of a call (`call_fingerprint`)."""
        return self._results.name(call, _excerpt(without_notice(result)))

    def of_error(self, tool: str, message: str) -> str | None:
        """Name the kind of an error of a tool; None when it says nothing."""
        message = message[-_NORMALISED_CHARS:]
        return self._errors.name(tool, message) if any(map(str.isalpha, message)) else None


_KEPT_CHARS = 2 * _NORMALISED_CHARS
"""How much text is kept of the calls that were made once: a loop of four pages of 2 KB shows in it."""
_KEPT_GROUPS, _KEPT_NAMES = 16, 8


class _Alike:
    """Texts in groups; within one, those that are the same after `normalise` have the name of the first of them."""

    def __init__(self, normalise: Callable[[str], str | None]) -> None:
        self._normalise = normalise
        self._lock = threading.Lock()
        self._once: dict[str, tuple[str, str]] = {}
        """Group → name and text of the only one that came so far."""
        self._kept = 0
        self._names: dict[str, dict[str | None, str]] = {}
        """Group → hash of a text, as it came and normalised → name."""

    def name(self, group: str, text: str) -> str:
        own = _digest(text)
        with self._lock:
            names = self._names.get(group)
            if names is None:
                first, kept = self._once.get(group, (own, None))
                if kept is None:
                    self._keep(group, own, text)
                if first == own:
                    return own
                del self._once[group]
                self._kept -= len(kept or "")
                names = self._names[group] = {first: first, self._normalise(kept or ""): first}
                _shrink(self._names, _KEPT_GROUPS)
            if own in names:
                return names[own]
            name = names.setdefault(self._normalise(text), own)
            names[own] = name
            _shrink(names, 2 * _KEPT_NAMES)
            return name

    def _keep(self, group: str, name: str, text: str) -> None:
        self._once[group] = (name, text)
        self._kept += len(text)
        while self._kept > _KEPT_CHARS and len(self._once) > 1:
            oldest = next(iter(self._once))
            self._kept -= len(self._once.pop(oldest)[1])


def _shrink(entries: dict[Any, Any], most: int) -> None:
    while len(entries) > most:
        del entries[next(iter(entries))]


def without_notice(result: str) -> str:
    """Return a result without Hermes's own warning of a loop at its end."""
    return _NOTICE.sub("", result) if result.endswith("]") else result


def error_kind(message: str) -> str | None:
    """Identify the kind of an error: its text without names, paths, quotations and numbers; None if nothing is left."""
    kind = " ".join(_NAMES_AND_NUMBERS.sub(" ", message[-_NORMALISED_CHARS:]).split()).lower()
    return _digest(kind) if any(letter.isalpha() for letter in kind) else None


def error_words(message: str) -> str | None:
    """Say in words of our own what an error is, or None when it is none that we know: its text is never quoted."""
    tail = message[-_NORMALISED_CHARS:]
    lower = tail.lower()
    return next(
        (
            words
            for hints, pattern, words in _ERROR_WORDS
            if any(hint in lower for hint in hints) and pattern.search(tail)
        ),
        None,
    )


def exit_status(result: Mapping[str, object]) -> int | None:
    """Read a command's exit status from a tool result (`exit_code`; 0.19 tools/terminal_tool.py), if it has one."""
    status = result.get("exit_code")
    return status if isinstance(status, int) and not isinstance(status, bool) else None


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode


def _excerpt(result: str) -> str:
    """Return beginning and end of a long result, with the hash of what is between them."""
    if len(result) <= 2 * _NORMALISED_CHARS:
        return result
    middle = _digest(result[_NORMALISED_CHARS:-_NORMALISED_CHARS])
    return f"{result[:_NORMALISED_CHARS]}\0{middle}\0{result[-_NORMALISED_CHARS:]}"


def _without_volatile(text: str) -> str:
    return _digest(_VOLATILE.sub("#", text))


def _digest(text: str) -> str:
    # Models and terminals produce unpaired surrogates, which strict UTF-8 refuses; only equality matters here.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
