"""What the user wants never to leave this machine (`handoff.never_send`), found in a conversation.

Pure. Of what tools showed it reads the escapes, too: what is looked for may be written in any of them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

# How programs write letters that are not ASCII: JSON an ä as \u00e4, git as \303\244, Python as \xe4 or its bytes as
# \xc3\xa4, an address as %C3%A4. In JSON, each backslash is two. Of thousands in a row none is looked at twice.
_BACKSLASHES = r"(?<!\\)\\++"
_ESCAPED = re.compile(
    rf"(?P<utf16>(?:{_BACKSLASHES}u[0-9a-fA-F]{{4}})+)|(?P<utf32>{_BACKSLASHES}U[0-9a-fA-F]{{8}})"
    rf"|(?P<octal>(?:{_BACKSLASHES}[0-3][0-7]{{2}})+)|(?P<hex>(?:(?:{_BACKSLASHES}x|%)[0-9a-fA-F]{{2}})+)"
)
_PATH_CHARS = 4096
"""No system has longer paths (Linux's PATH_MAX); to look for a pattern in a longer piece could take for ever."""
_PATH_SPLIT = re.compile(r"""(?<!\\)\\[nrt"]|[\s"'`<>|,;:()\[\]{}=]+""")


def never_send_match(messages: Sequence[Mapping[str, Any]], patterns: Sequence[str]) -> str | None:
    """Return the first pattern that something in the conversation matches, or None.

    A pattern with `*`, `?` or `/` in it stands for paths: `*` for anything within a folder or file name, `**` for any
    folders. It matches wherever in a path it fits, and all below a folder that it matches. Any other is text that must
    not occur. Upper and lower case are the same.
    """
    if not patterns:
        return None
    texts = [form for message in messages for text in _texts(message) for form in _forms(text)]
    paths = {path for text in texts for path in _paths(text)}
    return next((pattern for pattern in patterns if _matches(_folded(pattern), texts, paths)), None)


def _forms(text: str) -> Iterator[str]:
    """Yield a text as it is compared; and once more with the letters that it writes in escapes."""
    yield _folded(text)
    if _ESCAPED.search(text):
        yield _folded(_ESCAPED.sub(_unescaped, text))


def _unescaped(match: re.Match[str]) -> str:
    if match["utf16"]:
        return bytes.fromhex("".join(re.findall(r"u(.{4})", match[0]))).decode("utf-16-be", "replace")
    if match["utf32"]:
        return bytes.fromhex(match[0][-8:]).decode("utf-32-be", "replace")
    numbers = re.findall(r"[0-3][0-7]{2}", match[0]) if match["octal"] else re.findall(r"[0-9a-fA-F]{2}", match[0])
    written = bytes(int(number, 8 if match["octal"] else 16) for number in numbers)
    try:
        return written.decode()
    except UnicodeDecodeError:
        return written.decode("latin-1")  # Python writes the letters up to ÿ so


def _folded(text: str) -> str:
    # macOS has the names of files decomposed: an ä is an a and two dots.
    return unicodedata.normalize("NFC", text).casefold()


def _matches(pattern: str, texts: Sequence[str], paths: Iterable[str]) -> bool:
    if not re.search(r"[*?/]", pattern):
        return any(pattern in text for text in texts)
    glob = re.compile(rf"(?:.*/)?{_glob(pattern)}(?:/.*)?")
    return any(glob.fullmatch(path) for path in paths)


def _glob(pattern: str) -> str:
    names = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    # It fits behind any folder anyhow; two places for any folders would be tried in all pairs.
    pattern = re.sub(r"\A(?:\*\*/)+", "", pattern.removeprefix("~").strip("/"))
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    return "".join(names.get(piece) or re.escape(piece) for piece in pieces)


def _texts(message: Mapping[str, Any]) -> Iterator[str]:
    """Yield all that a message says and asks for."""
    yield from _strings(message.get("content"))
    for call in message.get("tool_calls") or ():
        arguments = (call.get("function") or {}).get("arguments")
        try:
            yield from _strings(json.loads(arguments) if isinstance(arguments, str) else arguments)
        except (ValueError, RecursionError):
            yield str(arguments)


def _strings(value: Any) -> Iterator[str]:
    match value:
        case str() if not value.startswith("data:"):
            yield value
        case list():
            for item in value:
                yield from _strings(item)
        case dict():
            for key, item in value.items():
                yield str(key)
                yield from _strings(item)
        case _:
            pass


def _paths(text: str) -> Iterator[str]:
    """Yield all that could be a path: words, and whole lines, for paths may have spaces in them."""
    for piece in (*_PATH_SPLIT.split(text), *re.split(r"(?<!\\)\\n|\n", text)):
        if len(piece) > _PATH_CHARS:
            continue
        yield re.sub(r"\\+", "/", piece.strip()).rstrip("/.")
