"""Whatever stands in the configuration, comes through Hermes's hooks or is said by a model: never a crash, never silence.

Hypothesis makes it up, the same each time. What it shall find in a configuration is a sentence that says where, what, and
what to write; in a hook, nothing that our guard would count; in a reply, what Hermes itself would do with it.

`FUZZ_TIMES=20 pytest tests/test_fuzz.py` looks for longer, at random.
"""

from __future__ import annotations

import copy
import datetime as dt
import inspect
import json
import os
import re
import socket
import string
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hermes_fallback import HOOKS, MIDDLEWARE, executor, faults, handoff, host, kinds, replies, signs
from hermes_fallback.adapter import Adapter
from hermes_fallback.config import Config, ConfigError, Handoff, parse
from hermes_fallback.events import (
    EscalationRequested,
    Event,
    FaultKind,
    ReplyInvalid,
    ToolFailed,
    ToolSucceeded,
    TurnStarted,
)
from hermes_fallback.fits import surely_fits
from hermes_fallback.journal import Journal, Opening
from hermes_fallback.names import Names
from hermes_fallback.never_send import never_send_match
from hermes_fallback.policy import decide
from hermes_fallback.replies import Call, Fault, LocalReply, Tools
from tests.world import MODEL, World

TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
# What would grow faster than its input takes minutes with what is tried here.
pytestmark = pytest.mark.timeout(90 * TIMES)


def made_up(examples: int) -> settings:
    """So many examples, the same each time; or more of them at random."""
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )


BLOCKS = [
    yaml.safe_load(text)
    for text in (
        "{fallback: {provider: openai, model: gpt-5.4}}",
        """
        primary: {provider: ollama, model: qwen3.6:9b, base_url: http://127.0.0.1:11434/v1}
        fallback:
          - {provider: primary, model: big, max_tokens: 5, price: {input_per_million_usd: 1, output_per_million_usd: 2}}
          - {provider: openai, model: m, base_url: http://127.0.0.1:1/v1, api_key_env: HOME, temperature: 0.5,
             timeout_seconds: 7, extra: {reasoning_effort: low, list: [1, {a: b}]}}
          - hermes
        fallback_policy:
          max_local_attempts: 3
          trigger_on: [repeated_tool_failure, silent_failure, risk, task_timeout]
          task_timeout_seconds: 900
          triggers: {no_progress: {after: 4}, invalid_output: {after: 2}}
          hold: 3
          sensitivity: low
          self_check: true
          confirm: always
          allowed_users: ['telegram:1', 2]
          budget: {per_task_usd: 0.5, per_day_usd: 5, max_escalations_per_session: 3, on_exceeded: ask}
        task_types:
          - {name: hard, match: {message: '(?i)hard|prove', platform: [cli, telegram], cwd: ~/code}, start_on: fallback}
          - {name: cheap, trigger_on: [risk, silent_failure], hold: task, enabled: shadow, budget: {per_day_usd: 1},
             fallback: {provider: anthropic, model: c}}
        handoff: {trim: false, redact: off, never_send: ['*.pem', '**/secrets/*']}
        """,
    )
]
PARTS = [
    {"provider": "a", "model": "b"},
    {"name": "x"},
    {"after": 1},
    "hermes",
    "primary",
    "shadow",
    "risk",
    "http://h/v1",
]
LIST_IN_ITSELF: list[Any] = []
LIST_IN_ITSELF.append(LIST_IN_ITSELF)
BLOCK_IN_ITSELF: dict[str, Any] = {"provider": "a", "model": "b"}
BLOCK_IN_ITSELF.update(fallback=BLOCK_IN_ITSELF, extra=BLOCK_IN_ITSELF)
# What an innocent file of 600 bytes with anchors holds: ten thousand million entries.
BOMB: list[Any] = ["lol"] * 10
for _ in range(9):
    BOMB = [BOMB] * 10
ODD_TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "a\nb",
    "\x1b[2J",
    "[",
    "(" * 2000,
    "a{99999999999999999999}",
    "[[:alpha:]]",
    "(?P<n>",
    "x" * 9999,
]
ODD_TEXTS += [
    "~\0",
    "~nobody-of-that-name",
    "http://[::1",
    "http://h:99999/v1",
    "http://u:p@h",
    "http://h\n",
    "HOME\n",
    "\u202e",
    "*" * 50,
]
ODD = [
    *(None, True, False, 0, 1, -1, 3.0, 2.5, 10**9, 2**63 - 1, 2**63, -(10**5000), 10**400, 1e300, -1e300),
    *(float("nan"), float("inf"), float("-inf")),
    *(dt.date(2026, 1, 1), dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC), b"\xff", {1, "a"}, (1, 2)),
    *(
        LIST_IN_ITSELF,
        BLOCK_IN_ITSELF,
        BOMB,
        [],
        {},
        [[]],
        [None],
        {"": None},
        ["a"] * 300,
        [{"provider": "a", "model": "b"}] * 300,
    ),
    *ODD_TEXTS,
    *PARTS,
]
KEYS = [
    None,
    1,
    True,
    10**5000,
    float("nan"),
    dt.date(2026, 1, 1),
    b"k",
    (1, 2),
    "",
    "\0",
    "\ud800",
    "n",
    "k" * 9999,
]
KEYS += [
    "api_key",
    "max_tokens",
    "fallback",
    "match",
    "self_check",
    "trigger_on",
    "price",
    "extra",
    "base_url",
    "a b",
    "\n",
]


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """A valid block in which some values, entries and keys are others, gone or new."""
    block = copy.deepcopy(draw(st.sampled_from(BLOCKS)))
    odd = st.sampled_from(ODD) | st.text(max_size=8) | st.integers() | st.floats()
    for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
        inside = list(containers(block))
        if not inside or draw(st.integers(0, 40)) == 0:
            return draw(odd)
        place = draw(st.sampled_from(inside))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        match draw(st.sampled_from(["replace", "replace", "insert", "delete", "move"])):
            case "insert" if isinstance(place, dict):
                place[draw(st.sampled_from(KEYS))] = draw(odd)
            case "insert":
                place.append(draw(odd))
            case "delete" if keys:
                del place[draw(st.sampled_from(keys))]
            case "move" if keys:
                place[draw(st.sampled_from(keys))] = copy.deepcopy(draw(st.sampled_from(inside)))
            case _ if keys:
                key = draw(st.sampled_from(keys))
                place[key] = draw(odd if draw(st.integers(0, 2)) == 0 else of_the_kind(place[key]))
            case _:
                pass
    return block


def of_the_kind(value: object) -> st.SearchStrategy[Any]:
    """Other values that may well stand in a value's place."""
    match value:
        case bool():
            return st.booleans()
        case int() | float():
            return st.integers(1, 100) | st.floats(0, 10**6)
        case str():
            return st.text(min_size=1, max_size=20) | st.text(string.printable, min_size=1)
        case _:
            return st.sampled_from([{}, [], *PARTS])


def containers(value: Any) -> Iterator[Any]:
    """The blocks and lists of a document that can be changed."""
    if isinstance(value, dict | list) and not any(value is odd for odd in ODD):
        yield value
        for inner in list(value.values() if isinstance(value, dict) else value)[:20]:
            yield from containers(inner)


def places(value: Any, path: str = "$.model_routing", *, above: tuple[int, ...] = ()) -> Iterator[str]:
    """The places in a document that a sentence may be about; what holds itself is looked into once."""
    yield path
    if id(value) in above or value is BOMB:
        return
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        where = f"{path}[{key}]" if isinstance(value, list) else f"{path}.{key}" if isinstance(key, str) else path
        yield from places(one, where, above=(*above, id(value)))


def test_no_configuration_crashes_or_is_silent(tmp_path: Path) -> None:
    """A block is a configuration that can be used, or sentences that say where something is wrong, what, and what to write."""
    seen: Counter[str] = Counter()

    @given(documents())
    @made_up(400)
    def each(block: Any) -> None:
        try:
            config = parse(block)
        except ConfigError as error:
            faults = error.faults
        else:
            can_be_used(config, tmp_path)
            seen["accepted"] += 1
            return
        assert faults
        known = set(places(block))
        for fault in faults:
            is_a_sentence(fault, known)
        seen["refused"] += 1

    each()
    # There were good and bad ones.
    assert seen["accepted"] > 20
    assert seen["refused"] > 150


@given(documents())
@made_up(200)
def test_a_block_without_a_fault_needs_no_jsonschema(block: Any) -> None:
    """What is passed without it is just what it passes."""
    told: list[bool] = []

    def asked(value: object, schema: dict[str, Any]) -> bool:
        told.append(surely_fits(value, schema))
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "surely_fits", asked)
        said = list(faults.faults(block))
    # Only what is no JSON is found before.
    assert told == [not said] if told else said


def is_a_sentence(fault: str, known: set[str]) -> None:
    """One line says where, in this document or just below it for what is missing; what; and what to write."""
    assert len(fault) < 1000
    assert fault.isprintable()
    parts = re.fullmatch(r"config\.yaml: (\$\.model_routing.*?): (?:.+); (?:.+)", fault)
    assert parts, fault
    where = parts[1]
    # What holds itself is no place in a finite list of places.
    assert where in known or where.rpartition(".")[0] in known or "holds itself" in fault or "…" in where, fault


def can_be_used(config: Config, folder: Path) -> None:
    """Every later step can do with the configuration what it is for."""
    for one in (config, *(kind.config for kind in config.task_types)):
        failed = ToolFailed(0.0, "t", 1, 2, "an error", 3)
        for events in ([], [failed] * 4, [ReplyInvalid(0.0, "empty", ends_turn=True)] * 4, [EscalationRequested(0.0)]):
            happened: list[Event] = [TurnStarted(0.0, "turn", "model"), *events]
            decide(happened, one.policy, tiers=len(one.ladder), names=one.names, now=1000.0)
        for tier in one.ladder:
            assert tier.name
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HOME", str(folder))
                arguments = executor._arguments(tier, {"messages": []})  # noqa: SLF001  # as it would be sent
            json.dumps(arguments, allow_nan=False).encode()
            with socket.socket() as connection:
                connection.settimeout(tier.timeout_seconds)
            if tier.price is not None:
                assert tier.price.of(10, 10) >= 0
            opening = Opening(
                session_id="s",
                from_model="m",
                to_model=tier.name,
                trigger="risk",
                reason="r",
                task_type="",
                type_reason="",
            )
            journal = Journal(folder / "fuzzed")
            row, seconds = journal.open_escalation(opening), tier.timeout_seconds
            journal.start_call(row, model="m", turn_id="t", task_id="t", seconds=seconds, otherwise=opening)
        messages = [{"role": "user", "content": "look at key.pem"}]
        handoff.build({"messages": messages}, note="n", options=one.handoff)
        never_send_match(messages, one.handoff.never_send)
        if one.primary is not None:
            one.primary.matches(model="m", provider="p", base_url="http://127.0.0.1")
    kinds.kind_of(config, kinds.Facts("a hard one", "cli", frozenset({"file"}), str(folder)))


GROWING: dict[str, Callable[[int], Any]] = {
    "triggers": lambda n: {
        "fallback": PARTS[0],
        "fallback_policy": {"trigger_on": [{"a": number} for number in range(n)]},
    },
    "the same trigger": lambda n: {"fallback": PARTS[0], "fallback_policy": {"trigger_on": ["risk"] * n}},
    "unknown keys": lambda n: {f"key{number}": 1 for number in range(n)},
    "tiers": lambda n: {"fallback": [{"provider": "a"}] * n},
    "users": lambda n: {"fallback": PARTS[0], "fallback_policy": {"allowed_users": list(range(n))}},
    "types": lambda n: {"fallback": PARTS[0], "task_types": [{"name": f"type {number}"} for number in range(n)]},
    "texts": lambda n: {"fallback": PARTS[0], "handoff": {"never_send": ["x"] * n}},
    "extra": lambda n: {"fallback": {**PARTS[0], "extra": {"x": [[number] for number in range(n)]}}},  # type: ignore[dict-item]
}


def faults_of(block: Any) -> tuple[str, ...]:
    """What is wrong with a block, if anything."""
    try:
        parse(block)
    except ConfigError as error:
        return error.faults
    return ()


@pytest.mark.parametrize("name", GROWING)
def test_a_long_list_costs_as_much_as_it_is_long(name: str) -> None:
    """Ten times as many entries are ten times the work."""
    faults_of(GROWING[name](1))  # what is done once
    few, many = (work(lambda: faults_of(GROWING[name](length))) for length in (100, 1000))  # noqa: B023
    assert many < 15 * few


def test_ten_thousand_entries() -> None:
    """A list of 10,000 is read, whatever is in it, and of one of 10,000 million there is one sentence."""
    assert not faults_of(GROWING["users"](10_000))
    assert len(faults_of(GROWING["tiers"](2500))) == 2500
    assert len(faults_of({"fallback": PARTS[0], "handoff": {"never_send": BOMB}})) <= 100


def work(do: Callable[[], object]) -> int:
    """How many calls of functions something takes, of Python's own too."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(before)
    return calls


PATH = {"type": "string"}
TOOLS = Tools(
    {
        "read_file": {
            "type": "object",
            "properties": {"path": PATH, "limit": {"type": "integer"}},
            "required": ["path"],
        },
        "write-file": {
            "type": "object",
            "properties": {
                "edits": {"type": "array", "uniqueItems": True, "items": {"type": "object", "required": ["old"]}}
            },
            "required": ["edits"],
        },
        "search": {
            "properties": {"query": {"anyOf": [PATH, {"type": "array", "items": {"$ref": "#/properties/query"}}]}}
        },
        "terminal": {"$ref": "#/nowhere"},
        "搜索": {},
    }
)
NAMES = [
    "read_file",
    "ReadFile_tool",
    "read_fil",
    "functions.search",
    'terminal" parameter="command',
    "tool",
    "fly",
    "",
    "天气",
    "\0",
]
WORDS = [
    "<think>",
    "</think>",
    "<THINKING a='<'",
    "</reasoning>",
    "```",
    "```json\n",
    "<tool_call>",
    "[TOOL_CALLS]",
    "<function=",
]
WORDS += [
    "<|channel|>commentary to=",
    "<｜tool▁calls▁begin｜>",
    '{"name": "read_file", "arguments": {}}',
    '{"function": ',
    "[{",
    "{",
    "}",
]
WORDS += [
    '{"tool_calls": [',
    '"',
    "read_file(",
    ")",
    "path=",
    "I will read it. ",
    "\n",
    " ",
    "\0",
    "\ud800",
    "\ud83d\ude00",
    "-",
    "1",
    '{"a":',
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["\0", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["path", "edits", "old", "query", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
TEXTS = st.lists(
    st.builds(str.__mul__, st.sampled_from(WORDS) | st.text(max_size=10), st.sampled_from([1, 1, 1, 2, 60])), max_size=6
).map("".join)
TEXTS |= st.builds(
    str.__add__,
    st.sampled_from(["", "So: ", "<tool_call>"]),
    st.sampled_from(['{"name": "read_file", "arguments": {}}', "read_file(path=1)"]),
)
ARGUMENTS = JSON.map(json.dumps)
CALLS = st.builds(
    Call,
    st.sampled_from(NAMES) | st.text(max_size=12) | st.sampled_from(list(TOOLS.schemas)),
    ARGUMENTS | st.builds(lambda text, length: text[:length], ARGUMENTS, st.integers(0, 60)) | TEXTS,
)
REPLIES = st.builds(
    LocalReply,
    TEXTS,
    st.just(()) | st.lists(CALLS, max_size=3).map(tuple),
    st.sampled_from([None, "stop", "length", "tool_calls", "\0"]),
    answered_before=st.booleans(),
)


def test_no_reply_crashes_and_no_fault_is_made_up() -> None:
    """Whatever a model says, there is a fault or none, the same each time, and no fault where Hermes finds nothing wrong."""
    seen: Counter[str] = Counter()

    @given(REPLIES, st.sampled_from([TOOLS, TOOLS, TOOLS, Tools()]))
    @made_up(1000)
    def each(reply: LocalReply, tools: Tools) -> None:
        fault = replies.inspect(reply, tools)
        assert replies.inspect(reply, tools) == fault
        seen[fault.kind if fault else "fine"] += 1
        if fault is not None:
            hermes_agrees(reply, tools, fault)

    each()
    # There was every fault there is, and none.
    assert seen.keys() == {*get_args(FaultKind), "fine"}
    assert min(seen.values()) > 2


def hermes_agrees(reply: LocalReply, tools: Tools, fault: Fault) -> None:
    """What Hermes 0.19 does with the reply is what the fault says, as far as its own functions tell."""
    from agent.agent_runtime_helpers import repair_tool_call, strip_think_blocks  # noqa: PLC0415  # after HERMES_HOME is set

    hermes = SimpleNamespace(valid_tool_names=set(tools.schemas))
    repaired = [
        (tool if tool in tools.schemas else repair_tool_call(hermes, tool), text)
        for tool, text in map(astuple, reply.calls)
    ]
    match fault.kind:
        case "unknown_tool":
            assert [name for name, _ in repaired if name] == []
        case "malformed_arguments":
            # agent/conversation_loop.py: what is empty is `{}`, and what does not end as JSON does was cut off.
            named = [(name, text.strip() or "{}") for name, text in repaired if name]
            wrong = {name for name, text in named if not is_json(text)}
            # With a name that we forgive and Hermes does not, the other calls are what it looks at.
            if wrong and [name for name, _ in repaired] == [tools.repaired(call.tool) for call in reply.calls]:
                cut_off = any(not text.endswith(("}", "]")) for name, text in named if name in wrong)
                assert fault.ends_turn == (cut_off and reply.finish_reason != "length")
        case "schema_violation":
            assert all(is_json(text.strip() or "{}") for name, text in repaired if name)
        case "empty":
            assert not strip_think_blocks(None, reply.text).strip()
            assert not reply.answered_before
        case "truncated":
            assert reply.finish_reason == "length"
        case "tool_call_as_text":
            assert any(plain(name) in plain(reply.text) for name in tools.schemas)
        case "repetition":
            # Its last unit stands there six times over.
            lengths = range(1, len(reply.text) // 6 + 1)
            assert any(reply.text.endswith(reply.text[-length:] * 6) for length in lengths)


def is_json(text: str) -> bool:
    """Whether Python reads it."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def plain(text: str) -> str:
    """A text without case and marks."""
    return re.sub(r"\W|_", "", text).lower()


DEEP = {
    "blocks": '{"a":' * 100_000,
    "lists": "[{" * 100_000,
    "calls": '{"tool_calls": [' * 50_000,
    "closed blocks": '{"function":' * 20_000 + "1" + "}" * 20_000,
    **{
        f"calls, {depth} deep": '{"function":' * depth + '{"name":"read_file","arguments":{}}' + "}" * depth
        for depth in (50, 400, *range(600, 1000, 20))
    },
    "digits": '{"a": ' + "1" * 5000 + "}",
}


@pytest.mark.parametrize("text", DEEP.values(), ids=DEEP.keys())
def test_depth(text: str) -> None:
    """JSON deeper than Python can read is no call, and no arguments."""
    assert replies.inspect(LocalReply(text), TOOLS) in {None, Fault("repetition", ends_turn=True)}
    fault = replies.inspect(LocalReply("", (Call("read_file", text),)), TOOLS)
    assert fault is not None
    assert fault.kind in {"malformed_arguments", "schema_violation"}


@pytest.mark.parametrize("name", ["blocks", "lists", "closed blocks"])
def test_depth_elsewhere(name: str) -> None:
    """What is too deep to be read is text: in a result, in what goes to a stronger model, and where a word is looked for."""
    deep = DEEP[name] + "needle"
    result = f'{{"exit_code": 1, "output": {deep}}}'
    event = host.tool_event(0.0, "terminal", {}, result, status="ok", error=None, names=Names())
    assert isinstance(event, ToolSucceeded)
    call = {"id": "1", "function": {"name": "terminal", "arguments": deep}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "do it"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": result},
    ]
    assert "needle" in json.dumps(handoff.build({"messages": messages}, note="n"))
    assert never_send_match(messages[:2], ["needle"]) == "needle"


def test_depth_within_a_deep_schema() -> None:
    """Arguments and a schema that are both deep are no fault of the model's, and no crash."""
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(980):
        schema = {"type": "object", "properties": {"a": schema}}
    assert replies.inspect(LocalReply("", (Call("t", '{"a":' * 900 + "{}" + "}" * 900),)), Tools({"t": schema})) is None


# What would be quadratic in the first ones takes minutes in a text as long as they are.
LONG = dict.fromkeys((*WORDS, "a", "a b", "\\", "(", "read_file(a=", "| a "), 300_000)
LONG |= dict.fromkeys(("<think ", "<think", "<tool_call>", "<"), 2_000_000)
MEGABYTES = {word: word * (length // len(word)) for word, length in LONG.items()}
MEGABYTES |= {"one line": "x" * 2_000_000, "blanks": "read_file(" + " " * 2_000_000}


@pytest.mark.parametrize("text", MEGABYTES.values(), ids=map(repr, MEGABYTES))
def test_megabytes_take_no_time(text: str) -> None:
    """A model that cannot stop is seen through at once: what would grow faster than the text takes minutes with this one."""
    for reply in (
        LocalReply(text),
        LocalReply(f"So: {text} x"),
        LocalReply("", (Call("read_file", text),)),
        LocalReply("", (Call(text, "{}"),)),
    ):
        replies.inspect(reply, TOOLS)


def test_markers_without_a_call_are_looked_at_for_a_while() -> None:
    """Each mark of a call costs a look at what is behind it; a text of nothing but marks costs no more than some."""
    marks = '<tool_call>{"a": {"b": {"c": 1}}} and so on, and {"d": 1} too. '
    some, many = (work(lambda: replies.is_tool_call_text(marks * count, TOOLS)) for count in (100, 1000))  # noqa: B023
    assert many < 1.1 * some


def test_many_items_are_not_compared_with_each_other() -> None:
    """A list that must have no entry twice, with thousands of entries, costs as much as it is long."""

    def look(length: int) -> None:
        text = json.dumps({"edits": [{"old": number, "n": {}} for number in range(length)]})
        assert replies.inspect(LocalReply("", (Call("write-file", text),)), TOOLS) is None

    look(1)
    few, many = work(lambda: look(100)), work(lambda: look(1000))
    assert many < 15 * few


COMMANDS = [
    "cat a | ",
    "cat a && ",
    "(",
    "|",
    "a(",
    "open(",
    "&key=",
    "|-",
    "print(",
    "curl ",
    "curl -a",
    "sed -n ",
    "> ",
    "cd a;",
    "git log ; ",
    "'\"w",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_long_commands_take_no_time(command: str) -> None:
    """What a command does is told, or not, in no time: what tries all ways to read this one never ends."""
    for text in (command * 40 + '"', command * (200_000 // len(command)), command * 2000 + "x"):
        assert set(signs.of_call("terminal", {"command": text})) <= {"reads", "changes"}


# Everything is watched, and nothing so often that a stronger model would be asked: one for which litellm need not be loaded.
WATCHING = """
model_routing:
  primary: {provider: ollama, model: qwen3.6:9b}
  fallback: {provider: primary, model: big}
  fallback_policy: {max_local_attempts: 1000000, sensitivity: low, task_timeout_seconds: 1000000, trigger_on: [repeated_tool_failure,
    invalid_output, no_progress, task_timeout, user_request, provider_error], allowed_users: ['telegram:1']}
  task_types: [{name: hard, match: {message: hard, toolsets: [file]}, hold: session}]
"""
ARGUMENTS_OF = {
    name: [
        one.name
        for one in inspect.signature(getattr(Adapter, name)).parameters.values()
        if one.kind is one.KEYWORD_ONLY
    ]
    for name in (*HOOKS, *MIDDLEWARE)
}
ANY_JSON = JSON | st.sampled_from(
    [
        "session",
        "turn",
        "session",
        "turn",
        "ok",
        "error",
        "cli",
        MODEL,
        "chat_completions",
        "/escalate off",
        "x" * 100_000,
    ]
)
MESSAGES = st.lists(
    ANY_JSON
    | st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool", "system"]) | ANY_JSON,
            "content": ANY_JSON,
            "tool_calls": st.lists(
                st.fixed_dictionaries({}, optional={"id": ANY_JSON, "function": ANY_JSON}) | ANY_JSON, max_size=2
            )
            | ANY_JSON,
        },
    ),
    max_size=3,
)


def arguments_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the arguments that a hook reads, each of any type."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(ARGUMENTS_OF[name], ANY_JSON | MESSAGES))


CALLED = st.lists(
    st.sampled_from(HOOKS).flatmap(lambda name: st.tuples(st.just(name), arguments_of(name))), min_size=1, max_size=6
)


def born(child: str, parent: str) -> tuple[str, dict[str, Any]]:
    """What Hermes says of a sub-agent's session."""
    return "subagent_start", {"child_session_id": child, "parent_session_id": parent}


@given(CALLED)
@example([born("a", "b"), born("b", "a"), ("pre_llm_call", {"session_id": "a"})])
@example([born("a", "a"), ("pre_llm_call", {"session_id": "a"})])
@made_up(300)
def test_hooks_take_anything(
    world: World, caplog: pytest.LogCaptureFixture, called: list[tuple[str, dict[str, Any]]]
) -> None:
    """Whatever Hermes calls our hooks with, in whatever order, is no fault of ours."""
    world.configure(WATCHING)
    begin(world, caplog)
    world.manager.invoke_hook(
        "pre_llm_call", session_id="session", turn_id="turn", model=MODEL, platform="cli", user_message="hi"
    )
    for name, arguments in called:
        world.manager.invoke_hook(name, **arguments)
    nothing_went_wrong(world, caplog)


RESPONSES = st.recursive(
    ANY_JSON,
    lambda inner: st.builds(
        lambda fields: SimpleNamespace(**fields),
        st.fixed_dictionaries(
            {},
            optional={
                "choices": st.lists(inner, max_size=2) | inner,
                "message": inner,
                "content": inner,
                "tool_calls": st.lists(inner, max_size=2) | inner,
                "function": inner,
                "name": inner,
                "arguments": inner,
                "finish_reason": inner,
                "usage": inner,
                "prompt_tokens": inner,
            },
        ),
    ),
    max_leaves=12,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={"messages": MESSAGES | ANY_JSON, "tools": MESSAGES | ANY_JSON, "max_tokens": ANY_JSON, "model": ANY_JSON},
)


@given(REQUESTS, arguments_of("llm_execution"), RESPONSES)
@made_up(300)
def test_the_middleware_takes_anything(
    world: World,
    caplog: pytest.LogCaptureFixture,
    request_: dict[str, Any],
    arguments: dict[str, Any],
    response: Any,
) -> None:
    """Whatever Hermes asks its model, and whatever comes back, goes through untouched, and is no fault of ours."""
    from hermes_cli.middleware import run_llm_execution_middleware  # noqa: PLC0415  # after HERMES_HOME is set

    world.configure(WATCHING)
    begin(world, caplog)
    world.manager.invoke_hook(
        "pre_llm_call", session_id="session", turn_id="turn", model=MODEL, platform="cli", user_message="a hard one"
    )
    usual = {
        "session_id": "session",
        "turn_id": "turn",
        "model": MODEL,
        "provider": "custom",
        "base_url": "u",
        "api_mode": "chat_completions",
    }
    others = {name: value for name, value in arguments.items() if name not in {"request", "next_call"}}
    asked: list[Any] = []

    def local(request: Any) -> Any:
        asked.append(request)
        return response

    for said in (usual, {**usual, **others}):
        assert (
            run_llm_execution_middleware(request_, local, original_request=request_, middleware_trace=[], **said)
            is response
        )
    assert asked == [request_, request_]
    nothing_went_wrong(world, caplog)


@given(REQUESTS)
@made_up(150)
def test_any_conversation_can_be_handed_over(request_: dict[str, Any]) -> None:
    """What can be read of a request makes a handoff that can be sent, and is searched for what must not be."""
    request = host.readable(request_)
    for options in (Handoff(), Handoff(trim=False, redact="off")):
        json.dumps(handoff.build(request, note="n", options=options, vision=False))
    never_send_match(request.get("messages") or (), ["*.pem", "a text"])


def begin(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Forget what went before."""
    caplog.clear()
    world.adapter.guard._counts.clear()  # noqa: SLF001
    world.adapter.guard._told.clear()  # noqa: SLF001  # what was told once is told without its traceback
    world.adapter._turns.clear()  # noqa: SLF001
    world.adapter.ledgers.forget("session")


def nothing_went_wrong(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing was raised, neither to Hermes nor to our guard, and nothing was paid."""
    raised = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert raised == []
    assert [record.getMessage() for record in caplog.records if "raised" in record.getMessage()] == []
    assert not +world.adapter.guard._counts  # noqa: SLF001
    assert not [*world.paid.requests, *world.local.requests]
