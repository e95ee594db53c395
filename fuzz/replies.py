"""Throws replies at the inspector that are made to reach as much of it as can be reached: `make fuzz`.

Whatever a model writes, the answer is a fault or none, the same one if asked again, and nothing is raised; libFuzzer
takes what lasts longer than `-timeout` for a hang. Pieces come again many times, so that a few bytes are a long reply.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["hermes_fallback.replies"]):
    from hermes_fallback import replies
    from hermes_fallback.replies import Call, Fault, LocalReply, Tools

_PIECES = (
    *(
        "<think>",
        "</think>",
        "<THINKING a",
        "</reasoning>",
        "<",
        ">",
        "```",
        "```json\n",
        "`",
        "\n",
        " ",
        "\0",
        "\ud800",
        "é",
    ),
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<function=",
        "<invoke name=",
        "<|python_tag|>",
        "<|channel|>commentary to=",
    ),
    *("read_file", "edit", "functions.", "(", ")", "path=", '{"path": "x"}', '{"name": "read_file", "arguments": {}}'),
    *(
        '{"name": ',
        '{"tool_calls": [',
        '{"function": ',
        '"arguments": {',
        "{",
        "}",
        "[{",
        "[",
        "]",
        '"',
        ":",
        ",",
        "\\u",
    ),
    *("I will now read the file. ", "the ", "1", "-", "| a ", "NaN", "1e999", "null", '{"a":'),
)
_NAMES = ("read_file", "ReadFile", "functions.edit", "search", "any", "broken", "fly", "")
_KEYS = ("path", "limit", "edits", "old", "query", "x")
_PATH = {"type": "string"}
_TOOLS = Tools(
    {
        "read_file": {
            "type": "object",
            "properties": {"path": _PATH, "limit": {"type": "integer"}},
            "required": ["path"],
        },
        "edit": {
            "type": "object",
            "properties": {
                "path": _PATH,
                "edits": {
                    "type": "array",
                    "uniqueItems": True,
                    "items": {"type": "object", "properties": {"old": _PATH}, "required": ["old"]},
                },
            },
            "required": ["path", "edits"],
        },
        "search": {"type": "object", "properties": {"query": {"anyOf": [_PATH, {"type": "array", "items": _PATH}]}}},
        "any": {},
        "broken": {"$ref": "#/nowhere"},
    }
)


def test_one_input(data: bytes) -> None:
    """Make a reply out of the bytes and look at it twice."""
    source = atheris.FuzzedDataProvider(data)
    calls = tuple(_call(source) for _ in range(source.ConsumeIntInRange(0, 3)))
    reply = LocalReply(
        _text(source),
        calls,
        source.PickValueInList([None, "stop", "length", "tool_calls"]),
        answered_before=source.ConsumeBool(),
    )
    tools = _TOOLS if source.ConsumeBool() else Tools()
    fault = replies.inspect(reply, tools)
    if not (fault is None or isinstance(fault, Fault)):
        raise TypeError(fault)
    if replies.inspect(reply, tools) != fault:
        raise ValueError(fault)


def _text(source: Any) -> str:
    pieces: list[str] = []
    for _ in range(source.ConsumeIntInRange(0, 8)):
        is_known = source.ConsumeBool()
        piece = (
            source.PickValueInList(list(_PIECES))
            if is_known
            else source.ConsumeUnicode(source.ConsumeIntInRange(0, 40))
        )
        pieces.append(piece * (source.ConsumeIntInRange(2, 3000) if source.ConsumeProbability() > 0.9 else 1))
    return "".join(pieces)


def _call(source: Any) -> Call:
    name = source.PickValueInList(list(_NAMES)) if source.ConsumeBool() else source.ConsumeUnicode(20)
    if source.ConsumeBool():
        return Call(name, _text(source))
    arguments = json.dumps(_value(source, level=0))
    return Call(name, arguments[: source.ConsumeIntInRange(0, len(arguments))] if source.ConsumeBool() else arguments)


def _value(source: Any, *, level: int) -> object:
    kind = source.ConsumeIntInRange(0, 7 if level < 6 else 5)
    if kind == 6:
        return [_value(source, level=level + 1) for _ in range(source.ConsumeIntInRange(0, 4))]
    if kind == 7:
        chosen = [source.PickValueInList(list(_KEYS)) for _ in range(source.ConsumeIntInRange(0, 4))]
        return {key: _value(source, level=level + 1) for key in chosen}
    plain = (None, source.ConsumeBool(), source.ConsumeInt(8), source.ConsumeFloat(), source.ConsumeUnicode(20), "x")
    return plain[kind]


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
