"""Says of a `model_routing` block what is wrong with it: where, what, and what to write instead.

`schema.json` says what is allowed; jsonschema finds what is not, and is imported only when there is a block to check
(its import costs more than all of ours). The words are ours.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_KEY_LIKE = re.compile(r"(?i)key|secret|token$|password|authorization")


def faults(block: object) -> Iterator[str]:
    """Return a sentence for each thing in the block that the schema does not allow."""
    # Imported here, not above: see the module's docstring.
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    schema = json.loads(files(__package__).joinpath("schema.json").read_text("utf-8"))
    errors = sorted(Draft202012Validator(schema).iter_errors(block), key=lambda error: error.json_path)
    said = [
        sentence
        for error in errors
        for sentence in _sentences("$.model_routing" + error.json_path.removeprefix("$"), error)
    ]
    # Two keys that are missing in one place are two errors, and both name both.
    yield from dict.fromkeys(said)
    yield from _endless("$.model_routing", block)


def _endless(path: str, value: object) -> Iterator[str]:
    """Find what YAML reads as a number and is none that can be compared."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{path}: {value} is no number that can be reckoned with; write a number, or leave the key out"
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _endless(f"{path}.{key}", inner)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _endless(f"{path}[{place}]", inner)


def _sentences(path: str, error: ValidationError) -> Iterator[str]:  # noqa: C901, PLR0912  # one case a keyword
    name = path.rpartition(".")[2]
    value, rule = cast("Any", error.instance), cast("Any", error.validator_value)
    match error.validator:
        case "additionalProperties":
            known = cast("Any", error.schema)["properties"]
            for key in sorted(map(str, value.keys() - known.keys())):
                yield f"{path}.{key}: {_unknown_key(key, known)}"
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
            yield f"{path}: {_shown(value)} is not known; {_choice(str(value), rule)}"
        case "minItems":
            yield f"{path}: is empty; {_EXAMPLES.get(name, 'write at least one entry, or leave the key out')}"
        case "minLength":
            yield f"{path}: is empty; {_EXAMPLES.get(name.partition('[')[0], 'write a name')}"
        case "uniqueItems":
            yield f"{path}: names one entry twice; write each once"
        case "pattern" if name == "api_key_env":
            # What stands there may be the key itself, so it is not repeated.
            yield f"{path}: is not the name of an environment variable; {_KEY_ADVICE}"
        case "pattern":
            yield f"{path}: {without_login(str(value))} is not a plain URL; write one like http://127.0.0.1:11434/v1"
        case "not" if not rule:
            yield f"{path}: does not go with `provider: primary`, which has the local endpoint; remove this line"
        case "not":
            yield f"{path}.{value}: holds a secret; {_KEY_ADVICE}"
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


def _unknown_key(key: str, known: Mapping[str, object]) -> str:
    if _KEY_LIKE.search(key) and key not in known and not difflib.get_close_matches(key, ["api_key_env"], cutoff=0.85):
        return f"a key must not stand in this file; {_KEY_ADVICE}"
    return f"unknown key; {_choice(key, list(known))}"


def _choice(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}"


def _correction(name: str, value: object, rule: str) -> str:
    if rule == "string" and isinstance(value, int | float):
        return f'write it in quotes: {name}: "{value}"'
    if name == "enabled":
        return "write `enabled: true`, `enabled: false` or `enabled: shadow`"
    if rule == "boolean":
        return f"write `{name}: true` or `{name}: false`"
    if rule in {"integer", "number"}:
        return f"write a number, for example `{name}: 3`"
    if rule == "array":
        return f"write it as a list: `{name}: [{_shown(value)}]`" if isinstance(value, str) else "write a list"
    return _EXAMPLES.get(name, f"write `{name}:` with its keys indented below it")


def _shown(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=str)
    # Whole blocks are not repeated: they may hold what does not belong into a log.
    if isinstance(value, dict | list):
        return "this block" if isinstance(value, dict) else "this list"
    return shown if len(shown) <= 60 else f"{shown[:57]}…"  # one line of a terminal


def without_login(url: str) -> str:
    """Return a URL as it may be shown: without a user and password in it."""
    return re.sub(r"//[^/@\s]*@", "//…@", url)
