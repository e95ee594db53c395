"""Says of a `model_routing` block what is wrong with it: where, what, and what to write instead.

`schema.json` says what is allowed; jsonschema finds what is not, and is imported only when there is something to find
(`fits.py`). The words are ours.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

from .fits import surely_fits

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_KEY_LIKE = re.compile(r"(?i)key|secret|token$|password|authorization")

# Far more than any block has: with anchors, a small file can hold more than any memory, or itself.
_MOST_LEVELS = 50
_MOST_VALUES = 10_000
# What the journal and a request have room for.
_MOST = 2**63 - 1
_SHOWN_CHARS = 60  # one line of a terminal
_NOT_BLANK = r"\S"

_ROOT = "$.model_routing"


def faults(block: object) -> Iterator[str]:
    """Return a sentence for each thing in the block that the schema does not allow."""
    schema = json.loads(files(__package__).joinpath("schema.json").read_text("utf-8"))
    reading = _Reading()
    readable = reading.of(_ROOT, block)
    if not reading.faults and surely_fits(readable, schema):
        return
    # Imported here, not above: see the module's docstring.
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.validators import extend  # noqa: PLC0415

    # To JSON Schema 3.0 is an integer; what it is used for takes none with a point.
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    checks = {"uniqueItems": _twice}
    validator = extend(Draft202012Validator, checks, type_checker=types)  # type: ignore[no-untyped-call]  # in its stubs
    errors = validator(schema).iter_errors(readable)
    said = [
        sentence
        for error in sorted(errors, key=lambda error: error.json_path)
        if (path := _ROOT + error.json_path.removeprefix("$")) not in reading.unread
        for sentence in _sentences(path, error, schema)
    ]
    # Two keys that are missing in one place are two errors, and both name both.
    yield from dict.fromkeys(said)
    yield from reading.faults


def _twice(_: object, __: object, items: object, ___: object) -> Iterator[ValidationError]:
    """Find what a list of names has twice; jsonschema compares each entry with each, which may take minutes."""
    from jsonschema.exceptions import ValidationError  # noqa: PLC0415

    names = [item for item in items if isinstance(item, str)] if isinstance(items, list) else []
    if len(set(names)) < len(names):
        yield ValidationError("")


class _Reading:
    """Reads a block as YAML gives it, and finds in it what has no form in JSON, or none of use, wherever it stands."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.unread: set[str] = set()
        self._left = _MOST_VALUES
        self._is_too_much = False

    def of(self, path: str, value: object, *, level: int = 0) -> object:
        """Return a copy with nothing in place of what cannot be read, and without keys that are none."""
        self._left -= 1
        words = _unreadable(value)
        if words is not None:
            self.faults.append(f"{path}: {words}")
        elif isinstance(value, dict | list) and (level > _MOST_LEVELS or self._left < 0):
            if not self._is_too_much:
                self.faults.append(
                    f"{path}: is too deep or too much, or holds itself; write it plainly, without anchors (& and *)"
                )
            self._is_too_much = True
        elif isinstance(value, dict):
            return {
                key: self.of(f"{path}.{short(key)}", inner, level=level + 1)
                for key, inner in value.items()
                if self._is_key(path, key)
            }
        elif isinstance(value, list):
            return [self.of(f"{path}[{place}]", inner, level=level + 1) for place, inner in enumerate(value)]
        else:
            return value
        self.unread.add(path)
        return None

    def _is_key(self, path: str, key: object) -> bool:
        if isinstance(key, str) and _is_writable(key):
            return True
        words = "is no text, as every key must be; write it in quotes, or leave it out"
        if isinstance(key, str):
            words = _unreadable(key) or words
        shown = short(str(key)) if isinstance(key, str | date) else _shown(key)
        self.faults.append(f"{path}.{shown}: {words}")
        return False


def _unreadable(value: object) -> str | None:
    """Say what is wrong with a value by itself."""
    match value:
        case str() if not _is_writable(value):
            return "has a NUL or half a character (an unpaired surrogate) in it; write it anew, without"
        case float() if not math.isfinite(value):
            return f"{value} is no number that can be reckoned with; write a number, or leave the key out"
        case int() | float() if abs(value) > _MOST:
            return "is too large a number to be reckoned with; write a smaller one, or leave the key out"
        case date():
            return f'is a date to YAML; write it in quotes: "{value}"'
        case None | bool() | int() | float() | str() | list() | dict():
            return None
        case _:
            return "is neither text nor a number, true, false, a list or a block of keys; write one of these"


def _is_writable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _sentences(path: str, error: ValidationError, schema: Mapping[str, Any]) -> Iterator[str]:  # noqa: C901, PLR0912  # one case a keyword
    name = path.rpartition(".")[2]
    value, rule = cast("Any", error.instance), cast("Any", error.validator_value)
    match error.validator:
        case "additionalProperties":
            known = cast("Any", error.schema)["properties"]
            is_type = known is schema["properties"]["task_types"]["items"]["properties"]
            for_all_tasks = schema["properties"]["fallback_policy"]["properties"] if is_type else {}
            for key in sorted(value.keys() - known.keys()):
                yield f"{path}.{short(key)}: {_unknown_key(key, known, for_all_tasks)}"
        case "required":
            for key in sorted(set(rule) - value.keys()):
                yield f"{path}.{key}: is missing; {_EXAMPLES.get(key, f'write `{key}: …` here')}"
        case "type":
            yield f"{path}: {_shown(value)} is not {_TYPES[str(rule)]}; {_correction(name, value, str(rule))}"
        case "minimum":
            yield f"{path}: {value} is less than the minimum of {rule}; use {rule} or more"
        case "maximum":
            yield f"{path}: {value} is more than the maximum of {rule}; use {rule} or less"
        case "exclusiveMinimum":
            yield f"{path}: {value} is not more than {rule}; use a number above {rule}"
        case "enum":
            yield f"{path}: {_shown(value)} is not known; {_choice(value if isinstance(value, str) else '', rule)}"
        case "minItems":
            yield f"{path}: is empty; {_EXAMPLES.get(name, 'write at least one entry, or leave the key out')}"
        case "minLength" | "pattern" if rule in {1, _NOT_BLANK}:
            yield f"{path}: is empty; {_EXAMPLES.get(name.partition('[')[0], 'write a name')}"
        case "uniqueItems":
            yield f"{path}: names one entry twice; write each once"
        case "pattern" if name == "api_key_env":
            # What stands there may be the key itself, so it is not repeated.
            yield f"{path}: is not the name of an environment variable; {_KEY_ADVICE}"
        case "pattern":
            yield f"{path}: {short(without_login(value))} is not a plain URL; write one like http://127.0.0.1:11434/v1"
        case "not" if not rule:
            yield f"{path}: does not go with `provider: primary`, which has the local endpoint; remove this line"
        case "not":
            yield f"{path}.{short(value)}: holds a secret; {_KEY_ADVICE}"
        case _:
            yield f"{path}: {error.message}"


_KEY_ADVICE = (
    "keep keys out of this file: put the key into Hermes's .env (or the environment), for example as OPENAI_API_KEY, "
    "and write the variable's name here as `api_key_env: OPENAI_API_KEY`"
)
_EXAMPLES = {
    "fallback": "write the stronger model, for example `fallback: {provider: openai, model: gpt-5.4}`",
    "provider": "write litellm's name of the provider, for example `provider: openai`",
    "model": "write the model's name, for example `model: gpt-5.4`",
    "after": "write how many times, for example `after: 4`",
    "never_send": "write a pattern of paths or a text, for example `never_send: ['*.pem']`",
    "name": "write a name of your own, for example `name: coding`",
    "allowed_users": "write the user's ID in the chat, for example `allowed_users: ['telegram:12345678']`",
    "trigger_on": "name at least one trigger, leave the key out for all, or write `enabled: false`",
}
_TYPES = {
    "object": "a block of keys",
    "array": "a list",
    "string": "text",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}


def _unknown_key(key: str, known: Mapping[str, object], for_all_tasks: Mapping[str, object]) -> str:
    if key in for_all_tasks:
        return "holds for all tasks; write it under `fallback_policy`"
    near = difflib.get_close_matches(key[:_SHOWN_CHARS], ["api_key_env"], cutoff=0.85)
    if _KEY_LIKE.search(key) and key not in known and not near:
        return f"a key must not stand in this file; {_KEY_ADVICE}"
    return f"unknown key; {_choice(key, list(known))}"


def _choice(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:_SHOWN_CHARS], known, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"


def _correction(name: str, value: object, rule: str) -> str:
    if rule == "string" and isinstance(value, int | float):
        where = "" if name.endswith("]") else f"{name}: "
        return f'write it in quotes: {where}"{_shown(value)}"'
    if rule == "integer" and isinstance(value, float) and value.is_integer():
        return f"write it without a point: {value:.0f}"
    if name == "enabled":
        return "write `enabled: true`, `enabled: false` or `enabled: shadow`"
    if rule == "boolean":
        return f"write `{name}: true` or `{name}: false`"
    if rule in {"integer", "number"}:
        return f"write a number, for example `{name}: 3`"
    if rule == "array":
        return f"write it as a list: `{name}: [{_shown(value)}]`" if isinstance(value, str) else "write a list"
    listed, _, rest = name.partition("[")
    return _EXAMPLES.get(listed, "write its keys" if rest else f"write `{name}:` with its keys indented below it")


def _shown(value: object) -> str:
    # Whole blocks are not repeated: they may hold what does not belong into a log.
    if isinstance(value, dict | list):
        return "this block" if isinstance(value, dict) else "this list"
    if value is None or isinstance(value, bool | float | str) or (isinstance(value, int) and abs(value) <= _MOST):
        return short(json.dumps(value, ensure_ascii=not str(value).isprintable()))
    return "this"


def short(text: str) -> str:
    """Return a text as it may stand in a line."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}…"


def without_login(url: str) -> str:
    """Return a URL as it may be shown: without a user and password in it."""
    return re.sub(r"//[^/@\s]*@", "//…@", url)
