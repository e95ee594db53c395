"""Says when two tool calls, results or errors are the same, without keeping any of them.

Pure. Volatile fields (times, durations, process and object ids) are taken out before hashing, so that a result which
only carries a new timestamp counts as the same result; `names.py` says when that is worth its time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

from .hinted import Hinted

Fingerprint = int
"""Of 60 bits: a session keeps hundreds of them, and Python needs half as much again for one bit more. It means nothing
in another process."""
_BITS = (1 << 60) - 1

_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_DIGITS_ONLY = bytes(0xFF if chr(byte) in "0123456789" else 0 for byte in range(256))
_LONG_NUMBER = b"0" * 10  # seconds since 1970 are known by how they begin

# Enough to see any page; the rest of a large result is hashed as it is, at the speed of the hash.
_NORMALISED_CHARS = 4096
_SAID_CHARS = 160

# What changes from one run to the next though the result is the same. Each pattern begins with what is looked for fast:
# a digit, a quotation mark, one of three letters.
_NUMBERS = re.compile(
    r"""
    [0-9](?:
        \d{3}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?  # 2026-11-23T15:19:09.123Z
      | (?<=\b[0-9])(?:
            \d?:\d\d:\d\d(?:[.,]\d+)?\b                                            # 15:19:09
          | \d*(?:\.\d+)?\s?(?:ms|s|sec|secs|seconds?|µs|us|ns|minutes?|min)\b        # 0.31s, 12 ms
              (?![ ](?:left|remaining|to[ ]go))                                    # how far it is, is new
          | (?<=0)x[0-9a-fA-F]{6,}\b
          | (?<=1)[5-9]\d{8}(?:\.\d+|\d{3})?\b                     # seconds or milliseconds since 1970
        )
    )""",
    re.VERBOSE,
)
# "duration_seconds": 1.01, "pid": 1003, "sessionId": "sess-3", "startedAt": 1700000003, "execution_count": 7
_FIELDS = Hinted(
    'uration|lapsed|imestamp|pid"|ession|started|run|execution_count|"cwd"',
    r"""
    "(?:
        (?:\w*(?:[Dd]uration|[Ee]lapsed|[Tt]imestamp)\w*|pid|\w*[Ss]ession_?[Ii]d|started_?[Aa]t|run_?[Ii]d
            |execution_count)":\s*(?:"[^"\n]*"|-?[\d.]+)
      | cwd":\s"/tmp/[^"\n]*"
    )""",
    re.VERBOSE,
)
_PROCESSES = Hinted(
    "pid|sess|proc|job",
    # A short number of a session or a job is its place in a row.
    r"[psj](?<=\b[psj])(?:(?<=p)(?:id|roc)|(?:(?<=s)ess(?:ion)?|(?<=j)ob)(?=[\"']?[\s:=#_-]+[\w-]{6}))"
    r"[\"']?[\s:=#_-]+[\w-]*\d[\w-]*",
    re.NOFLAG,
)
_OF_UUID = re.compile(r"-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-")
_UUID = re.compile(r"\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b")
# What Hermes appends to a result for the model, after our hook has seen it (0.19 agent/tool_guardrails.py).
_NOTICE = re.compile(r"\n\n\[Tool loop (?:warning|hard stop): [^\n]*\]\s*\Z")
_QUOTED = re.compile(r"""'[^'\n]*'|"[^"\n]*"|`[^`\n]*`""")
_FULL_STOPS = re.compile(r"\.+(?=\s|\Z)")
_PUNCTUATION = str.maketrans(dict.fromkeys("!(),:;<=>?[]{|}", " "))

_ERROR_WORDS = tuple(
    (Hinted(hints, pattern), words)
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
# Each hint has one of these in it, and most texts have few of them: to look for all the hints takes twice as long.
_ROOTS = (
    *("not ", "no ", "exist", "permission denied", "eacces", "a directory", "time", "deadline", "connection "),
    *("unreachable", "name resolution", "getaddrinfo", "unauthori", "forbidden", "40", "429", "rate limit"),
    *("old_string", "matches", "missing ", "require", "must ", "unexpected ", "invalid", "illegal", "unrecognized"),
    *("unknown", "usage: ", "--help", "malformed", "extra operand", "jsondecode", "expecting value", "syntax"),
    *("module", "out of memory", "enoent"),
)
_ROOTS_OF = [
    frozenset(root for root in _ROOTS if any(root in hint for hint in hinted.hints)) for hinted, _ in _ERROR_WORDS
]


def call_fingerprint(tool: str, arguments: object) -> Fingerprint:
    """Identify a call by its tool and canonical arguments (key order does not matter)."""
    return digest(f"{tool}\0{_canonical(arguments)}")


def excerpt(result: str) -> str:
    """Return beginning and end of a long result, with the hash of what is between them."""
    if len(result) <= 2 * _NORMALISED_CHARS:
        return result
    middle = digest(result[_NORMALISED_CHARS:-_NORMALISED_CHARS])
    return f"{result[:_NORMALISED_CHARS]}\0{middle}\0{result[-_NORMALISED_CHARS:]}"


def without_volatile(text: str) -> Fingerprint:
    """Identify a text with its volatile fields taken out."""
    return digest(_instead_of_volatile(text, "#"))


def _instead_of_volatile(text: str, replacement: str | Callable[[re.Match[str]], str]) -> str:
    if '":' in text and _FIELDS.may_match(text):
        text = _FIELDS.pattern.sub(replacement, text)
    if _PROCESSES.may_match(text):
        text = _PROCESSES.pattern.sub(replacement, text)
    if _OF_UUID.search(text):
        text = _UUID.sub(replacement, text)
    return _NUMBERS.sub(replacement, text)


def shape(text: str) -> bytes | None:
    """Return an ASCII text with each digit as 0; None where the volatile fields depend on which digits there are."""
    if not text.isascii():
        return None
    zeros = text.encode().translate(_TO_ZERO)
    return None if b"0x" in zeros or _LONG_NUMBER in zeros else zeros


def lasting_digits(text: str) -> int:
    """Return the places of an ASCII text's digits outside of its volatile fields, as a number of set bytes.

    Texts of one shape have them at the same places: what they say there, `&` gives of the text as a number.
    """
    lasting = _instead_of_volatile(text, lambda match: "#" * len(match[0]))
    return int.from_bytes(lasting.encode().translate(_DIGITS_ONLY))


def without_notice(result: str) -> str:
    """Return a result without Hermes's own warning of a loop at its end."""
    return _NOTICE.sub("", result) if result.endswith("]") else result


def error_kind(message: str) -> Fingerprint | None:
    """Identify the kind of an error: its text without names, paths, quotations and numbers; None if nothing is left."""
    said = _FULL_STOPS.sub("", _QUOTED.sub(" ", _ends(message)).translate(_PUNCTUATION))
    # A word with anything else in it than letters is a path, a name or a number.
    kind = " ".join(filter(str.isalpha, said.lower().split()))
    return digest(kind) if kind else None


def error_words(message: str) -> str | None:
    """Say in words of our own what an error is, or None when it is none that we know: its text is never quoted."""
    message = _ends(message)
    lower = message.lower()
    found = [root for root in _ROOTS if root in lower]
    if not found:
        return None
    for roots, (hinted, words) in zip(_ROOTS_OF, _ERROR_WORDS, strict=True):
        if not roots.isdisjoint(found) and hinted.search(message, lower):
            return words
    return None


def _ends(message: str) -> str:
    """Return where a message says what it is: a tool at its beginning, a program at its end."""
    return message if len(message) <= 2 * _SAID_CHARS else f"{message[:_SAID_CHARS]}\n{message[-_SAID_CHARS:]}"


def exit_status(result: Mapping[str, object]) -> int | None:
    """Read a command's exit status from a tool result (`exit_code`; 0.19 tools/terminal_tool.py), if it has one."""
    status = result.get("exit_code")
    return status if isinstance(status, int) and not isinstance(status, bool) else None


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str).encode


def digest(text: str) -> Fingerprint:
    """Identify a text as it is, within this process."""
    # Python's own hash: 64 bits, keyed anew for each process, and four times as fast as the fastest of hashlib.
    return hash(text) & _BITS
