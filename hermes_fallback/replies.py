"""Says what is wrong with a reply, if anything: only its form is judged, never whether it is true.

`ends_turn` follows Hermes 0.19 agent/conversation_loop.py, which asks again by itself after an empty or truncated
reply, unknown tools and malformed arguments, and takes any other text without tool calls as the task's final answer.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from .events import FaultKind
from .hinted import Hinted

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as the model wrote it; `arguments` is JSON text, valid or not."""

    tool: str
    arguments: str


@dataclass(frozen=True, slots=True)
class LocalReply:
    """What matters of a model's reply, whoever made it."""

    text: str
    calls: tuple[Call, ...] = ()
    finish_reason: str | None = None
    answered_before: bool = False
    """Whether the turn before gave the answer beside housekeeping calls: nothing more to say is then no fault."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that makes a reply useless; `ends_turn` when Hermes would end the turn on it."""

    kind: FaultKind
    ends_turn: bool


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that the request offers: name → JSON Schema of the parameters."""

    schemas: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def find(self, name: str) -> str | None:
        """Return the offered name that `name` means, as forgiving as Hermes's own repair (case, dashes, dots)."""
        if name in self.schemas:
            return name
        plain = _plain(name)
        # Of a name in other letters than Latin ones nothing is left, and that is no name.
        return next((known for known in self.schemas if plain and _plain(known) == plain), None)

    def repaired(self, name: str) -> str | None:
        """Return the offered name that Hermes takes a call's name for, if any: the one meant, or one that is near.

        (0.19 agent/agent_runtime_helpers.py `repair_tool_call`; a text that is no call is read by `find` alone.)
        """
        found = self.find(name)
        if found is not None:
            return found
        # Some servers leave the rest of a tag in the name, and some models say of each tool that it is one.
        name = _REST_OF_TAG.sub("", name)
        plain = _plain(name)
        meant = {plain, plain.removesuffix("tool"), plain.removesuffix("tool").removesuffix("tool")} - {""}
        found = next((known for known in self.schemas if _plain(known) in meant), None)
        near = difflib.get_close_matches(name.lower(), self.schemas, n=1, cutoff=0.7)
        return found or next(iter(near), None)


def inspect(reply: LocalReply, tools: Tools) -> Fault | None:
    """Return what makes the reply useless, or None when Hermes can go on with it."""
    if reply.calls:
        return _call_fault(reply, tools)
    text = without_thinking(reply.text)
    if is_repetition(reply.text, has_ended=reply.finish_reason == "stop"):
        return Fault("repetition", ends_turn=True)
    if not text:
        # With thinking alone and no tokens left, Hermes ends the turn; any other silence it meets with another try.
        out_of_tokens = reply.finish_reason == "length" and bool(reply.text.strip())
        return None if reply.answered_before else Fault("empty", ends_turn=out_of_tokens)
    if tools.schemas and is_tool_call_text(text, tools):
        return Fault("tool_call_as_text", ends_turn=True)
    if reply.finish_reason == "length":
        return Fault("truncated", ends_turn=False)
    return None


def without_thinking(text: str) -> str:
    """Return what is said in a text, without what was thought."""
    return _THINKING.sub("", text).strip() if "<" in text else text.strip()


def is_repetition(text: str, *, has_ended: bool = False) -> bool:
    """Tell whether a text ends in the same words over and over, as a model does that cannot stop.

    Rules, tables and rows of numbers repeat as well, and so does code: a repeated unit counts only with a word of three
    letters in it, and inside a code block, fenced or indented, only when it goes on and on. So do the rows of a text
    that `has_ended` by itself: a sheet to fill in, or values that are the same.
    """
    after_code = _after_code(text) if _has_fence(text) else text
    if after_code is not text and _repeats(text[-_TAIL_CHARS:], text, least=_ENDLESS_CHARS):
        return True
    return _repeats(after_code[-_TAIL_CHARS:], text, least=_MIN_REPEATED_CHARS, has_ended=has_ended)


def _repeats(tail: str, text: str, *, least: int, has_ended: bool = False) -> bool:
    # What repeats six times ends in words that stood there before; to look for them costs nothing.
    if len(tail) < least or tail.rfind(tail[-_ENDING_CHARS:], 0, -1) < 0:
        return False
    if len(zlib.compress(tail.encode("utf-8", "replace"), 1)) > len(tail) * 0.35:
        return False
    period, covered = _period_at_end(tail)
    unit = tail[-period:]
    if covered < least or covered // period < _MIN_REPEATS or not _WORD.search(unit):
        return False
    # An indented block is code as well (a log's lines, for example).
    is_code = not _NOT_INDENTED.search(unit + unit[:4])
    is_row = has_ended and _ROW.search(unit)
    if "\n" in unit and (is_code or is_row) and covered < _ENDLESS_CHARS:
        return False
    return period <= _MAX_UNIT_CHARS or text.count(unit) >= _MANY


def is_tool_call_text(text: str, tools: Tools) -> bool:
    """Tell whether a text is a tool call that the server did not recognise as one (hermes-agent #107125, #104412).

    A text that shows a call to a reader (in the middle of prose, or of a tool that is not offered) is not one.
    """
    unfenced = _FENCE.sub(" ", text) if _has_fence(text) else text
    markers = _MARKERS.pattern.finditer(unfenced) if _MARKERS.may_match(unfenced) else ()
    for marker in itertools.islice(markers, _MAX_MARKERS):
        if any(_names_a_tool(unfenced[at : at + _TAIL_CHARS], tools) for at in (marker.end(), marker.start())):
            return True
    if "{" in text and any(_ends_with(text, shown) and _is_call(value, tools) for shown, value in _json_objects(text)):
        return True
    called = _FUNCTION_CALL.match(text.strip("`\n "))
    return called is not None and tools.find(called["name"]) is not None


def begins_with_call(text: str) -> bool:
    """Tell whether a text that is a tool call says nothing before it, not even that it shows one."""
    said = without_thinking(text)
    return said.startswith(("{", "[")) or any(p.match(said) for p in (_MARKERS.pattern, _FUNCTION_CALL))


def _has_fence(text: str) -> bool:
    return "`" in text and "```" in text  # most have neither, and for one character it is looked at memory's speed


def _after_code(text: str) -> str:
    """Return what stands behind the last code fence of a text that has one; nothing when it ends in code."""
    fences = [match.end() for match in _FENCE_MARK.finditer(text)]
    return "" if len(fences) % 2 else text[fences[-1] :]


_TAIL_CHARS = 4000
_MIN_REPEATED_CHARS = 240
_ENDING_CHARS = 64
_MIN_REPEATS = 6
_ENDLESS_CHARS = 2000
_MAX_UNIT_CHARS = 500  # whole paragraphs that come again are a text with a refrain, unless they come many times
_MANY = 12
_MAX_PROSE_CHARS = 240  # "I will now read the file for you:" and the like may stand around the call
_MAX_OBJECTS = 8
_MAX_MARKERS = 64  # each costs as much as the tail behind it
_MAX_LEVELS = 8  # twice the deepest shape of a call, a list of {"tool_calls": [{"function": {…}}]}

_DECODER = json.JSONDecoder(strict=False)
_WORD = re.compile(r"[^\W\d_]{3}")
_ROW = re.compile(r"[|\t]|___|\[[ x]\]|\S,\S")
_NOT_INDENTED = re.compile(r"\n(?! {4}|\t)")
# What is no "<" is passed over at once: thoughts are long.
_THINKING = re.compile(r"<(think|thinking|reasoning|thought)\b[^<>]*>[^<]*(?:<(?!/\1>)[^<]*)*(?:</\1>)?", re.IGNORECASE)
_REST_OF_TAG = re.compile(r"(?<=.)[\"'<>].*", re.DOTALL)
_CLOSING_TAG = re.compile(r"</?[\w|:-]+>|<\|[\w|]+>|\[/?[A-Z_]+\]")
_FENCE_MARK = re.compile(r"```")
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_MARKERS = Hinted(
    "<|[TOOL",
    r"<tool_call>|<\|tool_call(?:s_section)?(?:_begin)?\|?>|<\|python_tag\|>|<function[=_ ]|<invoke\s"
    r"|<function_calls?>|<\|channel\|>commentary to=|<start_function_call>|<｜tool▁calls?▁begin｜>"
    r"|(?-i:\[TOOL_CALLS?\]|\[TOOL_REQUEST\])",
)
_FUNCTION_CALL = re.compile(
    r"(?:functions\.|tool_code\s+|print\()?(?P<name>\w+)\s*\((?:\s*\w+\s*=|\s*\{|\s*\)).*\)\s*$", re.DOTALL
)
_NAME_AFTER_MARKER = re.compile(
    r"""\s*(?:\{\s*)?(?:"(?:name|function|tool|tool_name)"\s*:\s*(?:\{\s*"name"\s*:\s*)?"|<function=|<function\s+name="
    |<invoke\s+name="|<\|channel\|>commentary\ to=|<function_call>|call:|function[\s<>｜a-z▁]*?sep[|｜]?>)?
    (?:functions\.)?(?P<name>[\w.-]+)""",
    re.VERBOSE | re.IGNORECASE,
)


def _call_fault(reply: LocalReply, tools: Tools) -> Fault | None:
    # As Hermes goes about it: the names of all calls, then the form of all arguments.
    known = [
        (name, call.arguments.strip() or "{}")
        for call in reply.calls
        if (name := tools.repaired(call.tool)) is not None
    ]
    if not known:
        return Fault("unknown_tool", ends_turn=False)
    read = [(name, _read(arguments)) for name, arguments in known]
    malformed = {name for name, arguments in read if arguments is _MALFORMED}
    if malformed:
        cut_off = any(not text.endswith(("}", "]")) for name, text in known if name in malformed)
        # Hermes retries what the server calls cut off, and ends the turn on what only looks it.
        return Fault("malformed_arguments", ends_turn=cut_off and reply.finish_reason != "length")
    if not all(_fits(arguments, tools.schemas[name]) for name, arguments in read):
        return Fault("schema_violation", ends_turn=False)
    return None


_MALFORMED = object()


def _read(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _MALFORMED


def _fits(arguments: object, schema: Mapping[str, object]) -> bool:
    try:
        if isinstance(arguments, dict) and _surely_fits(arguments, schema):
            return True
        errors = list(_validator(json.dumps(schema, sort_keys=True)).iter_errors(arguments))
    except Exception:  # noqa: BLE001  # a tool's own broken schema ($ref to nowhere…) is no fault of the model's
        return True
    return not any(_is_real(error) for error in errors)


_BLOCKS = (dict, list)
# What is wrong by these is either looked at below, or nothing that `_is_real` counts.
_PLAIN_KEYS = (
    frozenset({"type", "properties", "required", "items", "additionalProperties"})
    | {"title", "description", "default", "examples", "enum", "pattern", "format"}
    | {"minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}
)


def _surely_fits(value: object, schema: object, *, is_inner: bool = False) -> bool:
    """Tell whether nothing that `_is_real` counts can be wrong, without the validator, which is slow to load.

    Where a schema says more than which kind and which keys, the answer is no, and the validator is asked.
    """
    if not isinstance(value, _BLOCKS):
        # Whatever is wrong with a plain value, Hermes mends or the tool says.
        return True
    if not isinstance(schema, Mapping) or not schema.keys() <= _PLAIN_KEYS:
        return False
    kind = schema.get("type")
    if isinstance(value, list):
        return kind == "array" and all(_surely_fits(one, schema.get("items", {}), is_inner=True) for one in value)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if kind != "object" or not isinstance(properties, Mapping) or not isinstance(required, list):
        return False
    for name in required:
        if not is_inner and str(name) not in value:
            return False
    # No recursion for what fits anyway: this is asked of every call.
    blocks = [name for name, one in value.items() if isinstance(one, _BLOCKS)]
    return all(_surely_fits(value[name], properties.get(name), is_inner=True) for name in blocks)


@lru_cache(maxsize=256)
def _validator(schema: str) -> Draft202012Validator:
    # Imported here: hermes_fallback must cost nothing until a tool call is checked.
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.validators import extend  # noqa: PLC0415

    # It compares each item with each, which may take minutes, and nothing comes of it (`_is_real`).
    checks = {"uniqueItems": lambda *_: ()}
    validator: Draft202012Validator = extend(  # type: ignore[no-untyped-call]  # in its stubs
        Draft202012Validator, checks
    )(json.loads(schema))
    return validator


def _is_real(error: ValidationError) -> bool:
    # Hermes turns "42" into 42 and so on before it runs a tool (0.19 model_tools.coerce_tool_args), and most tools
    # overlook arguments they do not know.
    if error.validator == "type":
        return isinstance(error.instance, dict | list) or (error.validator_value == "object" and not error.path)
    # What is missing further down, in an entry of a list for example, tools fill in (0.19 tools/todo_tool.py).
    return error.validator == "required" and not error.path


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.rpartition(".")[2].lower())


def _names_a_tool(text: str, tools: Tools) -> bool:
    named = _NAME_AFTER_MARKER.match(text[:400])
    if named and tools.find(named["name"]):
        return True
    return any(_is_call(value, tools) for _, value in _json_objects(text))


def _json_objects(text: str) -> Iterator[tuple[str, object]]:
    position = 0
    for _ in range(_MAX_OBJECTS):
        starts = [start for start in (text.find("{", position), text.find("[{", position)) if start >= 0]
        if not starts:
            return
        start = min(starts)
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            position = start + 1
            continue
        yield text[start:end], value
        position = end


def _is_call(value: object, tools: Tools, *, level: int = 0) -> bool:
    if level > _MAX_LEVELS:
        return False
    if isinstance(value, list):
        return bool(value) and _is_call(value[0], tools, level=level + 1)
    if not isinstance(value, dict):
        return False
    inner = value.get("tool_calls") or value.get("function_call") or value.get("function")
    if isinstance(inner, dict | list):
        return _is_call(inner, tools, level=level + 1)
    name = next((value[key] for key in ("name", "tool", "tool_name", "function", "action") if key in value), None)
    has_arguments = any(key in value for key in ("arguments", "parameters", "args", "input", "action_input"))
    return isinstance(name, str) and has_arguments and tools.find(name) is not None


def _ends_with(text: str, shown: str) -> bool:
    before, _, after = text.partition(shown)
    return len(before) <= _MAX_PROSE_CHARS and not _WORD.search(_CLOSING_TAG.sub("", after))


def _period_at_end(text: str) -> tuple[int, int]:
    """Return the (period, length) of the longest stretch at the text's end that repeats one unit (Morris-Pratt)."""
    backwards = text[::-1]
    border = [0] * len(backwards)
    best = (len(backwards), 0)
    for index in range(1, len(backwards)):
        length = border[index - 1]
        while length and backwards[index] != backwards[length]:
            length = border[length - 1]
        border[index] = length + (backwards[index] == backwards[length])
        period = index + 1 - border[index]
        if border[index] and (index + 1) // period >= _MIN_REPEATS:
            best = (period, index + 1)
    return best


def offered(tools: Sequence[Mapping[str, object]] | None) -> Tools:
    """Read the tools out of a chat request (`[{"type": "function", "function": {"name": …, "parameters": …}}]`)."""
    schemas: dict[str, Mapping[str, object]] = {}
    for tool in tools or ():
        function = tool.get("function")
        if isinstance(function, Mapping) and isinstance(name := function.get("name"), str):
            parameters = function.get("parameters")
            schemas[name] = parameters if isinstance(parameters, Mapping) else {}
    return Tools(schemas)
