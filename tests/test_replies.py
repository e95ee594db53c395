"""What is wrong with a reply: tables of texts and calls that are useless, and of their near misses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_fallback import replies
from hermes_fallback.replies import Call, Fault, LocalReply, Tools, inspect, offered

TOOLS = offered(
    [
        {
            "type": "function",
            "function": {
                "name": "read_file",
                "parameters": {
                    "type": "object",
                    "properties": {"path": {"type": "string"}, "limit": {"type": "integer"}},
                    "required": ["path"],
                },
            },
        },
        {"type": "function", "function": {"name": "terminal", "parameters": {"$ref": "#/nowhere"}}},
        {"type": "function", "function": {"name": "搜索"}},
    ]
)
AS_TEXT = Fault("tool_call_as_text", ends_turn=True)
REPETITION = Fault("repetition", ends_turn=True)

WRITTEN_AS_TEXT = {
    "hermes": '<tool_call>\n{"name": "read_file", "arguments": {"path": "x"}}\n</tool_call>',
    "fenced json": 'I will read it.\n```json\n{"name":"read_file","arguments":{"path":"x"}}\n```',
    "bare json": '{"name":"read_file","parameters":{"path":"x"}}',
    "list": '[{"name":"read_file","arguments":{"path":"x"}}]',
    "openai shape": '{"tool_calls":[{"function":{"name":"read_file","arguments":"{}"}}]}',
    "python": 'read_file(path="x")',
    "harmony function": 'functions.read_file({"path":"x"})',
    "harmony channel": '<|channel|>commentary to=functions.read_file <|constrain|>json<|message|>{"path":"x"}',
    "qwen coder": "<function=read_file>\n<parameter=path>x</parameter>\n</function>",
    "mistral": '[TOOL_CALLS][{"name":"read_file","arguments":{}}]',
    "mistral new": '[TOOL_CALLS]read_file[ARGS]{"path":"a"}',
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>functions.read_file:0<|tool_call_argument_begin|>{}",
    "llama": '<|python_tag|>{"name":"read_file","parameters":{"path":"x"}}',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>read_file\n```json\n{}",
    "glm": "<tool_call>read_file<arg_key>path</arg_key><arg_value>x</arg_value></tool_call>",
    "anthropic": '<invoke name="read_file"><parameter name="path">x</parameter></invoke>',
    "after thinking": '<think>I need the file</think>{"name":"read_file","arguments":{"path":"x"}}',
}
FINE = {
    "answer": "The answer is 42.",
    "code in prose": "Use `read_file(path)` to read.",
    "format explained": 'Qwen writes\n```\n<tool_call>{"name":"read_file","arguments":{}}</tool_call>\n```\nas text.',
    "json in prose": 'Send {"name":"read_file","arguments":{"path":"x"}} to the server and wait for its reply.',
    "some other json": '{"name":"Bob","age":3}',
    "call of no tool here": '{"name":"fly","arguments":{}}',
    "a token named": "<tool_call> is a token that Qwen uses.",
    "rule": "-" * 500,
    "table": "| a | b |\n|---|---|\n" * 30,
    "numbers": "0, " * 300,
    "list": "\n".join(f"- item number {n} is about {n * 7 % 13}" for n in range(60)),
    "rows of code": "The table:\n```python\n" + "rows.append(None)\n" * 40 + "```\nThat is all.",
    "a log that is quoted by indenting it": "It says:\n\n" + "    ERROR connection refused\n" * 12,
    "refrain": "La la la, sing with me. " * 5,
}


@pytest.mark.parametrize("text", WRITTEN_AS_TEXT.values(), ids=WRITTEN_AS_TEXT.keys())
def test_tool_call_as_text(text: str) -> None:
    """Each family's way of printing a tool call is seen for what it is."""
    assert inspect(LocalReply(text), TOOLS) == AS_TEXT


@pytest.mark.parametrize("text", WRITTEN_AS_TEXT.values(), ids=WRITTEN_AS_TEXT.keys())
def test_without_tools_there_are_no_tool_calls(text: str) -> None:
    """Where no tool is offered, such a text is an answer."""
    assert inspect(LocalReply(text), Tools()) is None


@pytest.mark.parametrize("text", FINE.values(), ids=FINE.keys())
def test_fine(text: str) -> None:
    """An answer that only looks a little like it is left alone."""
    assert inspect(LocalReply(text), TOOLS) is None


@pytest.mark.parametrize(
    "text",
    [
        "I will try again. " * 40,
        "a good start, and then " + "the the the the " * 40,
        "line one\nline two\n" * 30,
        "Here it is:\n```python\n" + "import os\nprint('hello')\n" * 200,
        "Here is the code:\n```python\nprint('hi')\n```\n" * 150,
        "Here it is:\n\n" + "    import os\n    print('hello')\n" * 200,
        "Use ``` to open a block. " + "I will now check the file. " * 200,
        "".join(f"In part {n} of this paragraph all is said. " for n in range(15)) * 30,
    ],
    ids=[
        "sentence",
        "words",
        "lines",
        "code without end",
        "block after block",
        "indented code without end",
        "a fence in prose",
        "paragraph",
    ],
)
def test_repetition(text: str) -> None:
    """A text that ends in a loop of words is one."""
    assert inspect(LocalReply(text, finish_reason="length"), TOOLS) == REPETITION


@pytest.mark.parametrize(
    "line",
    [
        "| Name: ______________ | Phone: ____________ | Email: ____________ |\n",
        "unnamed,pending,nobody\n",
        "- [ ] Item: ________ Packed: yes / no\n",
    ],
)
def test_rows_that_are_alike_are_no_repetition(line: str) -> None:
    """A sheet to fill in ends by itself; where it does not, or goes on for a page or two, the model cannot stop."""
    assert inspect(LocalReply("I will now read the file.\n" * 20, finish_reason="stop"), TOOLS) == REPETITION
    some, many = "Here it is:\n\n" + line * 20, "Here it is:\n\n" + line * (2000 // len(line) + 2)
    assert inspect(LocalReply(some, finish_reason="stop"), TOOLS) is None
    assert inspect(LocalReply(some, finish_reason="length"), TOOLS) == REPETITION
    assert inspect(LocalReply(many, finish_reason="stop"), TOOLS) == REPETITION


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (LocalReply(""), Fault("empty", ends_turn=False)),
        (LocalReply("  \n"), Fault("empty", ends_turn=False)),
        (LocalReply("<think>hm</think>"), Fault("empty", ends_turn=False)),
        (LocalReply("<think>hm, and so on", finish_reason="length"), Fault("empty", ends_turn=True)),
        (LocalReply("", answered_before=True), None),
        (LocalReply("An answer that", finish_reason="length"), Fault("truncated", ends_turn=False)),
    ],
)
def test_text(reply: LocalReply, fault: Fault | None) -> None:
    """Silence and cut-off texts are faults, except where everything was said before."""
    assert inspect(reply, TOOLS) == fault


@pytest.mark.parametrize(
    ("name", "arguments", "fault"),
    [
        ("read_file", '{"path":"x"}', None),
        ("ReadFile", '{"path":"x"}', None),
        ("functions.read_file", '{"path":"x"}', None),
        ("read_fil", '{"path":"x"}', None),
        ("ReadFile_tool", '{"path":"x"}', None),
        ('read_file" parameter="path', '{"path":"x"}', None),
        ("天气", "{}", Fault("unknown_tool", ends_turn=False)),
        ("fly", "{}", Fault("unknown_tool", ends_turn=False)),
        ("", "{}", Fault("unknown_tool", ends_turn=False)),
        ("read_file", '{"path": "x', Fault("malformed_arguments", ends_turn=True)),
        ("read_file", "{path: x}", Fault("malformed_arguments", ends_turn=False)),
        ("read_file", "", Fault("schema_violation", ends_turn=False)),
        ("read_file", "{}", Fault("schema_violation", ends_turn=False)),
        ("read_file", "[1]", Fault("schema_violation", ends_turn=False)),
        ("read_file", '{"path":["x"]}', Fault("schema_violation", ends_turn=False)),
        ("read_file", '{"path":"x","limit":"5","more":1}', None),
        ("terminal", '{"anything":1}', None),
    ],
)
def test_call(name: str, arguments: str, fault: Fault | None) -> None:
    """A call is a fault when Hermes could not run it, and only then: it repairs names and coerces simple values."""
    assert inspect(LocalReply("", (Call(name, arguments),)), TOOLS) == fault


CUT_OFF = '{"path": "x'
TWO_CALLS = [
    (("{path: x}", CUT_OFF), True),
    (("{path: x}", "{path: x}"), False),
    (('{"path": "x"}', CUT_OFF), True),
    (("{}", "{path: x}"), False),
]


@pytest.mark.parametrize(("arguments", "ends_turn"), TWO_CALLS)
def test_calls_are_looked_at_together(arguments: tuple[str, str], *, ends_turn: bool) -> None:
    """One call that was cut off ends the turn, whatever the others are (0.19 conversation_loop, `_truncated`)."""
    reply = LocalReply("", tuple(Call("read_file", one) for one in arguments), finish_reason="tool_calls")
    assert inspect(reply, TOOLS) == Fault("malformed_arguments", ends_turn=ends_turn)


def test_one_good_call_among_bad_ones_is_enough() -> None:
    """Hermes runs the good calls of a batch and gives errors to the others (0.19 conversation_loop, mixed batch)."""
    assert inspect(LocalReply("", (Call("fly", "{}"), Call("read_file", '{"path":"x"}'))), TOOLS) is None


EDITS = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "edits": {"type": "array", "items": {"type": "object", "properties": {}, "required": ["old"]}},
    },
    "required": ["path"],
}
SCHEMAS: list[Any] = [
    EDITS,
    {**EDITS, "required": None},
    {**EDITS, "required": [["path"]]},
    {**EDITS, "properties": {"path": {"$ref": "#/nowhere"}, "edits": {"type": ["array", "null"]}}},
    {**EDITS, "additionalProperties": {"type": "object", "required": ["x"]}},
    {"properties": EDITS["properties"]},
    {},
]
ARGUMENTS = st.dictionaries(
    st.sampled_from(["path", "edits", "old", "x"]),
    st.recursive(
        st.sampled_from(["a", 3, None, True]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["old", "x"]), inner, max_size=2),
        max_leaves=4,
    ),
)


@given(ARGUMENTS, st.sampled_from(SCHEMAS))
def test_what_surely_fits_the_validator_passes_too(arguments: dict[str, Any], schema: dict[str, Any]) -> None:
    """What is passed without jsonschema would have been passed by it."""
    if not replies._surely_fits(arguments, schema):  # noqa: SLF001
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replies, "_surely_fits", lambda *_: False)
        assert replies._fits(arguments, schema)  # noqa: SLF001


def test_what_an_entry_lacks_is_no_fault_by_the_validator_either() -> None:
    """Where a schema says more than the quick look understands, a key that is missing further down is none, too."""
    tools = Tools({"edit": {**EDITS, "minProperties": 1}})
    assert inspect(LocalReply("", (Call("edit", '{"path": "a", "edits": [{}]}'),)), tools) is None


def test_plain_calls_do_not_load_the_validator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has what it needs is passed without jsonschema; for one that lacks something, it is asked."""
    asked: list[str] = []
    validator = replies._validator  # noqa: SLF001

    def watched(schema: str) -> object:
        asked.append(schema)
        return validator(schema)

    monkeypatch.setattr(replies, "_validator", watched)
    tools = Tools({"edit": EDITS})

    def fault(**arguments: Any) -> Fault | None:
        return inspect(LocalReply("", (Call("edit", json.dumps(arguments)),)), tools)

    assert fault(path="a") is None
    assert fault(path=3, edits=[{"old": "x"}]) is None
    # What an entry lacks, the tool fills in, as Hermes's `todo` does.
    assert fault(path="a", edits=[{}]) is None
    assert not asked
    wrong: tuple[dict[str, Any], ...] = (
        {},
        {"path": {"a": 1}},
        {"path": "a", "edits": {"old": 1}},
    )
    assert [fault(**arguments) for arguments in wrong] == [Fault("schema_violation", ends_turn=False)] * len(wrong)
    assert len(asked) == len(wrong)
