"""Says when two tool calls, results or errors are the same, without keeping any of them.

Volatile fields (times, durations, process and object ids) are taken out before hashing, so that a result which only
carries a new timestamp counts as the same result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

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

_ERROR_WORDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), words)
    for pattern, words in (
        (r"no such file|file not found|not found: .*/|does not exist|enoent", "file not found"),
        (r"permission denied|eacces|operation not permitted", "permission denied"),
        (r"is a directory|not a directory", "not the right kind of path"),
        (r"command not found|not recognized as", "command not found"),
        (r"timed? ?out|deadline exceeded", "timed out"),
        (r"connection (?:refused|reset|aborted)|unreachable|name resolution|getaddrinfo", "could not connect"),
        (r"\b(?:401|403)\b|unauthori[sz]ed|forbidden", "access refused"),
        (r"\b404\b", "not found (404)"),
        (r"\b429\b|rate limit", "rate limited"),
        (r"old_string.*not found|could not find (?:a )?match|no match", "text to replace not found"),
        (r"multiple matches|found \d+ matches|not unique", "text to replace is not unique"),
        (
            (
                r"missing (?:\d+ )?(?:required|operand|argument)|required (?:argument|parameter|property)|must precede"
                r"|unexpected keyword|(?:invalid|illegal|unrecognized|unknown)[\w ]* (?:option|argument|predicate|flag)"
                r"|usage: |--help|malformed|(?:option|flag) requires|you must specify|extra operand|may not specify"
            ),
            "wrong arguments",
        ),
        (r"invalid json|jsondecode|expecting value", "invalid JSON"),
        (r"syntaxerror|syntax error|unexpected (?:eof|end of file|token)", "syntax error"),
        (r"modulenotfounderror|no module named|cannot find module", "module not found"),
        (r"already exists|file exists", "already exists"),
        (r"out of memory|no space left", "out of memory or space"),
        (r"\bnot found\b", "not found"),
    )
)


def call_fingerprint(tool: str, arguments: object) -> str:
    """Identify a call by its tool and canonical arguments (key order does not matter)."""
    canonical = json.dumps(arguments, sort_keys=True, separators=(",", ":"), default=str)
    return _digest(f"{tool}\0{canonical}")


def result_fingerprint(result: str) -> str:
    """Identify a result with its volatile fields taken out, and what Hermes wrote below it."""
    result = without_notice(result)
    if len(result) <= 2 * _NORMALISED_CHARS:
        return _digest(_VOLATILE.sub("#", result))
    head, middle, tail = (
        result[:_NORMALISED_CHARS],
        result[_NORMALISED_CHARS:-_NORMALISED_CHARS],
        result[-_NORMALISED_CHARS:],
    )
    return _digest(f"{_VOLATILE.sub('#', head)}\0{middle}\0{_VOLATILE.sub('#', tail)}")


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
    return next((words for pattern, words in _ERROR_WORDS if pattern.search(tail)), None)


def exit_status(result: Mapping[str, object]) -> int | None:
    """Read a command's exit status from a tool result (`exit_code`; 0.19 tools/terminal_tool.py), if it has one."""
    status = result.get("exit_code")
    return status if isinstance(status, int) and not isinstance(status, bool) else None


def _digest(text: str) -> str:
    # Models and terminals produce unpaired surrogates, which strict UTF-8 refuses; only equality matters here.
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
