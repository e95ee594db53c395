"""Changes what YAML text says, and leaves every byte of it that need not change: comments, quotes, order, line ends.

Pure. PyYAML, with which Hermes reads, says where in the text a value stands. Text in which a value cannot be changed by
its place (behind an anchor, say) goes through ruamel.yaml, which keeps comments but may lay lines out anew. Either way
the result is read again: it must say what was wanted, and nothing else.
"""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

_Change = tuple[tuple[str | int, ...], Any]
"""Where, as keys and places in lists, and the new value."""
_Edit = tuple[int, int, str]
"""From where to where the text is replaced, and by what."""

_GONE = object()
"""Stands for the value of a key that is to be removed."""


class SpliceError(Exception):
    """The text cannot be changed without changing more than was asked for."""


def rewritten(text: str, wanted: dict[str, Any]) -> str:
    """Return the text, changed so that it means `wanted`.

    Raises:
        SpliceError: there is no safe way.
    """
    # ruamel.yaml comes with Hermes, and is imported for this command alone.
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    # What goes comes last: a block that is empty in between would be no block.
    changes = sorted(_changes(yaml.safe_load(text) or {}, wanted), key=lambda change: change[1] is _GONE)
    newline = "\r\n" if "\r\n" in text else "\n"
    for way in (_spliced, _round_tripped):
        try:
            candidate = way(text, changes, newline)
            if yaml.safe_load(candidate) == wanted:
                return candidate
        except (yaml.YAMLError, YAMLError, LookupError, TypeError, AttributeError):
            continue  # the text is not of the kind that this way can change
    raise SpliceError("its YAML cannot be changed safely, perhaps because of an anchor")


def as_block(value: dict[Any, Any]) -> str:
    """Return keys and values as YAML, one below the other."""
    return yaml.dump(value, Dumper=_Indented, sort_keys=False, allow_unicode=True, width=sys.maxsize)


class _Indented(yaml.SafeDumper):
    """Sets lists in from their key, as Hermes's own writer does (0.19 utils.py)."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        super().increase_indent(flow, indentless=False)


def _changes(old: Any, new: Any, path: tuple[str | int, ...] = ()) -> Iterator[_Change]:
    match old, new:
        case dict(), dict():
            for key in [*old, *(key for key in new if key not in old)]:
                if key in old and key in new:
                    yield from _changes(old[key], new[key], (*path, key))
                else:
                    yield (*path, key), new.get(key, _GONE)
        case list(), list() if len(old) <= len(new):
            for at, item in enumerate(new):
                if at < len(old):
                    yield from _changes(old[at], item, (*path, at))
                else:
                    yield (*path, at), item
        # 1 equals True, and is something else in YAML.
        case _ if old != new or isinstance(old, bool) != isinstance(new, bool):
            yield path, new


def _spliced(text: str, changes: Sequence[_Change], newline: str) -> str:
    for path, value in changes:
        # Read anew each time: every change moves what stands behind it.
        start, end, new = _edit(text, yaml.compose(text, Loader=yaml.SafeLoader), path, value)
        text = text[:start] + new.replace("\n", newline) + text[end:]
    return text


def _edit(text: str, root: yaml.Node | None, path: tuple[str | int, ...], value: Any) -> _Edit:
    *way, key = path
    if root is None:
        return _at_the_end(text, as_block({key: value}))
    parent = _collection(root)
    for step in way:
        parent = _collection(_entries(parent)[step][1])
    if key in _entries(parent):
        return _removed(text, parent, key) if value is _GONE else _replaced(text, parent, key, value)
    if parent is root and not parent.flow_style:
        # Not behind the last value: the comments at the end of a file are about what is above them.
        return _at_the_end(text, as_block({key: value}))
    return _added(text, parent, key, value)


def _collection(node: yaml.Node) -> yaml.CollectionNode:
    if not isinstance(node, yaml.CollectionNode):
        raise TypeError("nothing can stand in a single value")
    return node


def _entries(node: yaml.CollectionNode) -> dict[str | int, tuple[yaml.Node, yaml.Node]]:
    """Return what is in a mapping or list: where each entry begins, and its value."""
    if isinstance(node, yaml.MappingNode):
        return {key.value: (key, value) for key, value in node.value}
    return {at: (item, item) for at, item in enumerate(node.value)}


def _at_the_end(text: str, block: str) -> _Edit:
    blank = "" if not text.strip("\ufeff\r\n ") else "\n" if text.endswith("\n") else "\n\n"
    return len(text), len(text), blank + block


def _added(text: str, parent: yaml.CollectionNode, key: str | int, value: Any) -> _Edit:
    if parent.flow_style:
        before = text[: parent.end_mark.index - 1].rstrip()
        comma = "" if before[-1] in "{[" else " " if before[-1] == "," else ", "
        return len(before), len(before), comma + _inline(parent, key, value)
    first = next(iter(_entries(parent).values()))[0]
    block, column = as_block({key: value}), first.start_mark.column
    if isinstance(parent, yaml.SequenceNode):
        block, column = as_block({"x": [value]}).partition("\n")[2], parent.start_mark.column
        block = textwrap.dedent(block)
    end = _line_end(text, _end(text, parent))
    return end, end, "\n" + textwrap.indent(block, " " * column).rstrip()


def _removed(text: str, parent: yaml.CollectionNode, key: str | int) -> _Edit:
    names = list(_entries(parent))
    at = names.index(key)
    start, value = _entries(parent)[key]
    begin, end = start.start_mark.index, _end(text, value)
    if not parent.flow_style:
        return text.rfind("\n", 0, begin) + 1, min(len(text), _line_end(text, end, with_break=True)), ""
    if at > 0:
        return _end(text, _entries(parent)[names[at - 1]][1]), end, ""
    following = _entries(parent)[names[1]][0].start_mark.index if len(names) > 1 else end
    return begin, following, ""


def _replaced(text: str, parent: yaml.CollectionNode, key: str | int, value: Any) -> _Edit:
    old = _entries(parent)[key][1]
    start, end = old.start_mark.index, _end(text, old)
    if isinstance(value, dict | list) and not parent.flow_style and isinstance(parent, yaml.MappingNode):
        column = _entries(parent)[key][0].start_mark.column
        block = textwrap.indent(as_block({"x": value}).partition("\n")[2], " " * column).rstrip()
        if start == end:
            start = end = _line_end(text, end)
        return len(text[:start].rstrip(" ")), end, "\n" + block
    # A key without a value ends in its colon.
    return start, end, (" " if start == end else "") + _inline_value(value)


def _inline(parent: yaml.CollectionNode, key: str | int, value: Any) -> str:
    return _inline_value(value) if isinstance(parent, yaml.SequenceNode) else f"{key}: {_inline_value(value)}"


def _inline_value(value: Any) -> str:
    in_list = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    return in_list.strip()[1:-1]


def _end(text: str, node: yaml.Node) -> int:
    """Return where a value ends; of a block, where its last value does, for comments behind it are not part of it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return _end(text, list(_entries(node).values())[-1][1])
    return max(node.start_mark.index, len(text[: node.end_mark.index].rstrip()))


def _line_end(text: str, at: int, *, with_break: bool = False) -> int:
    end = text.find("\n", at)
    if end < 0:
        return len(text)
    if with_break:
        return end + 1
    return end - 1 if text[end - 1] == "\r" else end


def _round_tripped(text: str, changes: Sequence[_Change], newline: str) -> str:
    from ruamel.yaml import YAML  # noqa: PLC0415  # as above
    from ruamel.yaml.util import load_yaml_guess_indent  # noqa: PLC0415

    plain = text.replace("\r\n", "\n")
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = sys.maxsize
    _, step, offset = load_yaml_guess_indent(plain)
    editor.indent(mapping=2, sequence=step or 4, offset=2 if offset is None else offset)
    document = editor.load(plain)
    for (*way, key), value in changes:
        parent = document
        for step_in in way:
            parent = parent[step_in]
        if value is _GONE:
            del parent[key]
        elif isinstance(parent, list) and key == len(parent):
            parent.append(value)
        else:
            parent[key] = value
    written = io.StringIO()
    editor.dump(document, written)
    return written.getvalue().replace("\n", newline)
