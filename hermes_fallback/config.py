"""Turns the `model_routing` block of Hermes's config.yaml into a frozen `Config`, or names every fault in it at once.

`schema.json` says what is allowed, the dataclasses here what is default. Shapes are checked by jsonschema, which is
imported only when there is a block to check (its import costs more than all of ours).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from .events import TriggerName

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

DEFAULT_TRIGGERS: tuple[TriggerName, ...] = get_args(TriggerName)
PRIMARY = "primary"
"""The provider name of a tier that is another model on the local model's own endpoint."""
HERMES = "hermes"
"""The tier that is Hermes's own `fallback_providers`, with its logins, caching and accounting."""

_LOCAL_SERVERS = {"custom", "local", "ollama", "lmstudio", "lm-studio", "lm_studio", "vllm", "sglang"} | {
    "llamacpp",
    "llama.cpp",
    "llama-cpp",
    "llama_cpp",
}
_KEY_LIKE = re.compile(r"(?i)key|secret|token$|password|authorization")


class ConfigError(Exception):
    """The block cannot be used; `faults` has one sentence for each thing that is wrong: where, what, what to write."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Primary:
    """The local model as the user names it; None means that any will do."""

    model: str
    provider: str | None = None
    base_url: str | None = None

    def matches(self, *, model: str, provider: str, base_url: str) -> bool:
        """Tell whether what Hermes runs is this model: by its name and, when given, its URL.

        The provider's name decides only between a local server and a hosted one: Hermes calls an Ollama, llama.cpp or
        vLLM endpoint `custom` (0.19 hermes_cli/auth.py, aliases).
        """
        if not self.is_named(model):
            return False
        if self.base_url is not None:
            return _plain_url(self.base_url) == _plain_url(base_url)
        return self.provider is None or _provider_name(self.provider) == _provider_name(provider)

    def is_named(self, model: str) -> bool:
        """Tell whether a model has this one's name."""
        return _model_name(self.model) == _model_name(model)


@dataclass(frozen=True, slots=True)
class Tier:
    """One stronger model, in litellm's words for provider and model."""

    provider: str
    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    timeout_seconds: float = 300.0
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that people see: `openai/gpt-5.4`, or the bare model for one on the local endpoint."""
        return self.model if self.provider in {PRIMARY, HERMES} else f"{self.provider}/{self.model}"

    @property
    def is_litellm(self) -> bool:
        """Whether it is called through litellm, not through Hermes."""
        return self.provider not in {PRIMARY, HERMES}


@dataclass(frozen=True, slots=True)
class Policy:
    """When to escalate, and for how long (`hold`: to the end of the task, of the session, or so many calls)."""

    enabled: bool = True
    max_local_attempts: int = 3
    trigger_on: tuple[TriggerName, ...] = DEFAULT_TRIGGERS
    task_timeout_seconds: float = 900.0
    after: Mapping[TriggerName, int] = field(default_factory=dict)
    hold: Literal["task", "session"] | int = "task"
    sensitivity: Literal["low", "normal", "high"] = "normal"
    self_check: bool = False


@dataclass(frozen=True, slots=True)
class Handoff:
    """What of a conversation goes to a stronger model; `never_send` are patterns of paths, or words."""

    trim: bool = True
    redact: Literal["secrets", "off"] = "secrets"
    never_send: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """The whole block; `ladder` has at least one tier."""

    ladder: tuple[Tier, ...]
    primary: Primary | None = None
    policy: Policy = field(default_factory=Policy)
    handoff: Handoff = field(default_factory=Handoff)


def parse(block: object, *, source: str = "config.yaml", host_has_chain: bool = True) -> Config:
    """Return the block as a Config; `host_has_chain` says whether Hermes has `fallback_providers`.

    Raises:
        ConfigError: with every fault, each as `config.yaml: $.model_routing.…: what is wrong; what to write`.
    """
    faults = [f"{source}: {fault}" for fault in _faults(block)]
    if faults:
        raise ConfigError(faults)
    checked = cast("dict[str, object]", block)
    fallback = checked["fallback"]
    entries = cast("list[dict[str, object] | str]", fallback if isinstance(fallback, list) else [fallback])
    if HERMES in entries and not host_has_chain:
        fault = (
            "$.model_routing.fallback: hermes: Hermes has no `fallback_providers`; add one with `hermes fallback add`"
        )
        raise ConfigError([f"{source}: {fault}"])
    tiers = [_HERMES_TIER if isinstance(entry, str) else entry for entry in entries]
    primary = cast("dict[str, str] | None", checked.get("primary"))
    policy = _policy(cast("dict[str, object]", checked.get("fallback_policy", {})))
    if policy.self_check and "silent_failure" not in policy.trigger_on:
        fault = (
            "$.model_routing.fallback_policy.self_check: what it finds is evidence for `silent_failure`, which is not "
            "in `trigger_on`; add it there"
        )
        raise ConfigError([f"{source}: {fault}"])
    return Config(
        ladder=tuple(Tier(**tier) for tier in tiers),  # type: ignore[arg-type]  # checked against the schema above
        primary=Primary(**primary) if primary else None,
        policy=policy,
        handoff=_handoff(cast("dict[str, object]", checked.get("handoff", {}))),
    )


_HERMES_TIER: dict[str, object] = {"provider": HERMES, "model": "Hermes's fallback_providers"}


def _model_name(model: str) -> str:
    return model.strip().lower().removesuffix(":latest")


def _plain_url(url: str) -> str:
    plain = url.strip().lower().rstrip("/").removesuffix("/v1")
    return plain.replace("//localhost", "//127.0.0.1")


def _provider_name(provider: str) -> str:
    name = provider.strip().lower().partition(":")[0]
    return "custom" if name in _LOCAL_SERVERS else name


def _policy(checked: dict[str, object]) -> Policy:
    values = dict(checked)
    overrides = cast("dict[TriggerName, dict[str, int]]", values.pop("triggers", {}))
    if "trigger_on" in values:
        values["trigger_on"] = tuple(cast("list[TriggerName]", values["trigger_on"]))
    after = {name: override["after"] for name, override in overrides.items()}
    return Policy(after=after, **values)  # type: ignore[arg-type]  # checked against the schema above


def _handoff(checked: dict[str, object]) -> Handoff:
    values = dict(checked)
    if values.get("redact") is False:
        values["redact"] = "off"  # YAML reads a bare `off` as false
    if "never_send" in values:
        values["never_send"] = tuple(cast("list[str]", values["never_send"]))
    return Handoff(**values)  # type: ignore[arg-type]  # checked against the schema above


def _faults(block: object) -> Iterator[str]:
    # Imported here, not above: see the module's docstring.
    from jsonschema import Draft202012Validator  # noqa: PLC0415

    schema = json.loads(files(__package__).joinpath("schema.json").read_text("utf-8"))
    errors = sorted(Draft202012Validator(schema).iter_errors(block), key=lambda error: error.json_path)
    for error in errors:
        path = "$.model_routing" + error.json_path.removeprefix("$")
        yield from _sentences(path, error)


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
            yield f"{path}: {_without_login(str(value))} is not a plain URL; write one like http://127.0.0.1:11434/v1"
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


def _without_login(url: str) -> str:
    return re.sub(r"//[^/@\s]*@", "//…@", url)
