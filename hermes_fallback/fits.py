"""Tells without jsonschema whether a value fits a schema: its import takes longer, and more memory, than all of ours.

It knows the keywords that `schema.json` is written in, and says only yes or no. What is wrong jsonschema finds, which
is also asked where a schema has any other keyword.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]


def surely_fits(value: object, schema: Schema) -> bool:
    """Tell whether a value, as JSON has it, fits the schema; no means that it does not, or cannot be told here."""
    try:
        return _fits(value, schema, schema)
    except _UnknownKeywordError:
        return False


class _UnknownKeywordError(Exception):
    pass


def _fits(value: Any, schema: Schema, whole: Schema) -> bool:
    return all(_CHECKS.get(keyword, _unknown)(value, rule, schema, whole) for keyword, rule in schema.items())


def _unknown(*_: object) -> bool:
    raise _UnknownKeywordError


def _number(value: object) -> bool:
    return type(value) in {int, float}


_TYPES: Mapping[str, Callable[[object], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    # To JSON Schema 3.0 is one; what it is used for takes none with a point.
    "integer": lambda value: type(value) is int,
    "number": _number,
}


def _type(value: object, rule: str, *_: object) -> bool:
    return _TYPES.get(rule, _unknown)(value)


def _equal(value: object, rule: object, *_: object) -> bool:
    # False is not 0, and no block is compared.
    return type(value) is type(rule) and value == rule


def _ref(value: object, rule: str, _: Schema, whole: Schema) -> bool:
    target: Any = whole
    for name in rule.removeprefix("#/").split("/"):
        target = target[name]
    return _fits(value, target, whole)


def _properties(value: Any, rule: Mapping[str, Schema], _: Schema, whole: Schema) -> bool:
    if not isinstance(value, dict):
        return True
    return all(_fits(value[name], schema, whole) for name, schema in rule.items() if name in value)


def _additional(value: Any, rule: object, schema: Schema, _: Schema) -> bool:
    if rule is not False:
        raise _UnknownKeywordError
    return not isinstance(value, dict) or value.keys() <= schema.get("properties", {}).keys()


def _items(value: Any, rule: Schema, _: Schema, whole: Schema) -> bool:
    return not isinstance(value, list) or all(_fits(one, rule, whole) for one in value)


def _unique(value: Any, *_: object) -> bool:
    names = [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
    return len(set(names)) == len(names)


def _names(value: Any, rule: Schema, _: Schema, whole: Schema) -> bool:
    return not isinstance(value, dict) or all(_fits(name, rule, whole) for name in value)


def _if(value: object, rule: Schema, schema: Schema, whole: Schema) -> bool:
    return _fits(value, schema.get("then" if _fits(value, rule, whole) else "else", {}), whole)


def _nothing(*_: object) -> bool:
    return True


_CHECKS: Mapping[str, Callable[..., bool]] = {
    **dict.fromkeys(("$schema", "$defs", "title", "description"), _nothing),
    **dict.fromkeys(("then", "else"), _nothing),  # `_if` looks at them
    "$ref": _ref,
    "type": _type,
    "const": _equal,
    "enum": lambda value, rule, *_: any(_equal(value, one) for one in rule),
    "if": _if,
    "not": lambda value, rule, _, whole: not _fits(value, rule, whole),
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": _names,
    "required": lambda value, rule, *_: not isinstance(value, dict) or value.keys() >= set(rule),
    "items": _items,
    "minItems": lambda value, rule, *_: not isinstance(value, list) or len(value) >= rule,
    "uniqueItems": _unique,
    "minLength": lambda value, rule, *_: not isinstance(value, str) or len(value) >= rule,
    "pattern": lambda value, rule, *_: not isinstance(value, str) or re.search(rule, value) is not None,
    "minimum": lambda value, rule, *_: not _number(value) or value >= rule,
    "exclusiveMinimum": lambda value, rule, *_: not _number(value) or value > rule,
    "maximum": lambda value, rule, *_: not _number(value) or value <= rule,
}
