"""Turns the `model_routing` block of Hermes's config.yaml into a frozen `Config`, or names every fault in it at once.

`schema.json` says what is allowed (`faults.py` says what is not), the dataclasses here what is default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from .events import LimitName, TriggerName
from .faults import faults as faults_of
from .faults import short
from .redact import is_secret

DEFAULT_TRIGGERS: tuple[TriggerName, ...] = tuple(name for name in get_args(TriggerName) if name != "task_type")
"""All that watch the model; `task_type` fires by `start_on` alone."""
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
SHADOW = "shadow"
"""The value of `enabled` with which everything is decided and journaled, and nothing is paid."""


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


USUAL_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in dollars per million tokens; cached input costs as much as other input unless given."""

    input_per_million_usd: float
    output_per_million_usd: float
    cached_input_per_million_usd: float | None = None

    def of(
        self,
        input_tokens: int,
        output_tokens: int,
        *,
        cached_tokens: int = 0,
        written_tokens: int = 0,
        writing: float = 1.0,
    ) -> float:
        """Return dollars; of the input, `cached_tokens` were read from the cache, and `written_tokens` put there.

        One that is put there costs `writing` times as much as another.
        """
        cached = self.cached_input_per_million_usd
        cached = self.input_per_million_usd if cached is None else cached
        fresh = max(0, input_tokens - cached_tokens - written_tokens) + writing * written_tokens
        return (
            fresh * self.input_per_million_usd + cached_tokens * cached + output_tokens * self.output_per_million_usd
        ) / 1e6


@dataclass(frozen=True, slots=True)
class Tier:
    """One stronger model, in litellm's words for provider and model."""

    provider: str
    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    timeout_seconds: float = USUAL_TIMEOUT_SECONDS
    price: Price | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that people see: `openai/gpt-5.4`, or the bare model for one on the local endpoint."""
        return self.model if self.provider in {PRIMARY, HERMES} else self.litellm_name

    @property
    def litellm_name(self) -> str:
        """The model as litellm names it."""
        return f"{self.provider}/{self.model}"

    @property
    def is_litellm(self) -> bool:
        """Whether it is called through litellm, not through Hermes."""
        return self.provider not in {PRIMARY, HERMES}

    @property
    def thinking_tokens(self) -> int:
        """How many tokens `extra` has Claude think before it answers, which count as written."""
        return _thinking_tokens(self.provider, self.model, self.extra)


@dataclass(frozen=True, slots=True)
class Budget:
    """How many dollars may be spent, per task, session, local day and local month; None is no limit."""

    per_task_usd: float | None = None
    per_session_usd: float | None = None
    per_day_usd: float | None = None
    per_month_usd: float | None = None
    max_escalations_per_session: int | None = None
    on_exceeded: Literal["local", "ask", "stop"] = "local"
    unknown_price: Literal["block", "allow"] = "block"

    @property
    def limits_money(self) -> bool:
        """Whether any of the limits is in dollars."""
        limits = (self.per_task_usd, self.per_session_usd, self.per_day_usd, self.per_month_usd)
        return any(limit is not None for limit in limits)

    @property
    def needs_price(self) -> bool:
        """Whether a model without a known price may not be paid."""
        return self.limits_money and self.unknown_price == "block"

    def without(self, limit: LimitName) -> Budget:
        """Return the budget without one of its limits."""
        lifted: dict[str, Any] = {limit: "allow" if limit == "unknown_price" else None}
        return replace(self, **lifted)


@dataclass(frozen=True, slots=True)
class Policy:
    """When to escalate, for how long (`hold`: to the end of the task, of the session, or so many calls), and for whom.

    `allowed_users` are the chat users who may spend; None means all that Hermes listens to.
    """

    enabled: bool | Literal["shadow"] = True
    max_local_attempts: int = 3
    trigger_on: tuple[TriggerName, ...] = DEFAULT_TRIGGERS
    task_timeout_seconds: float = 900.0
    after: Mapping[TriggerName, int] = field(default_factory=dict)
    hold: Literal["task", "session"] | int = "task"
    sensitivity: Literal["low", "normal", "high"] = "normal"
    self_check: bool = False
    confirm: Literal["never", "first_in_session", "always"] = "never"
    allowed_users: tuple[str, ...] | None = None
    budget: Budget = field(default_factory=Budget)

    @property
    def is_shadow(self) -> bool:
        """Whether nothing is to be paid, only to be told what would have been."""
        return self.enabled == SHADOW


@dataclass(frozen=True, slots=True)
class Match:
    """What a task must be like to be of a type: all that is given must hold, and of a list one."""

    message: str | None = None
    platform: tuple[str, ...] = ()
    toolsets: tuple[str, ...] = ()
    cwd: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskType:
    """A kind of task and the configuration that holds for it."""

    name: str
    match: Match
    config: Config


@dataclass(frozen=True, slots=True)
class Handoff:
    """What of a conversation goes to a stronger model; `never_send` are patterns of paths, or words."""

    trim: bool = True
    redact: Literal["secrets", "off"] = "secrets"
    never_send: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """The whole block; `ladder` has at least one tier.

    For a task, the `config` of the first of `task_types` that matches stands in its place.
    """

    ladder: tuple[Tier, ...]
    primary: Primary | None = None
    policy: Policy = field(default_factory=Policy)
    handoff: Handoff = field(default_factory=Handoff)
    task_types: tuple[TaskType, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tiers."""
        return tuple([tier.name for tier in self.ladder])

    @property
    def is_idle(self) -> bool:
        """Whether there is no kind of task for which anything is to be done."""
        return not (self.policy.enabled or any(kind.config.policy.enabled for kind in self.task_types))


def parse(block: object, *, source: str = "config.yaml", host_has_chain: bool = True) -> Config:
    """Return the block as a Config; `host_has_chain` says whether Hermes has `fallback_providers`.

    Raises:
        ConfigError: with every fault, each as `config.yaml: $.model_routing.…: what is wrong; what to write`.
    """
    faults = list(faults_of(block))
    checked = cast("dict[str, Any]", block)
    if not faults:
        faults = list(_contradictions(checked, host_has_chain=host_has_chain))
    if faults:
        raise ConfigError([f"{source}: {fault}" for fault in faults])
    types = [
        TaskType(entry["name"], _match(entry.get("match", {})), _config(_for_type(checked, entry)))
        for entry in checked.get("task_types", ())
    ]
    return replace(_config(checked), task_types=tuple(types))


_HERMES_TIER: dict[str, object] = {"provider": HERMES, "model": "Hermes's fallback_providers"}


def _contradictions(block: dict[str, Any], *, host_has_chain: bool) -> Iterator[str]:
    """Say what is wrong between keys that are well-formed each by itself."""
    root = "$.model_routing"
    yield from _contradictions_of_ladder(root, block, host_has_chain=host_has_chain)
    yield from _fault_of_url(f"{root}.primary", block.get("primary", {}))
    if _checks_in_vain(block):
        yield (
            f"{root}.fallback_policy.self_check: what it finds is evidence for `silent_failure`, which is not in "
            "`trigger_on`; add it there"
        )
    names: set[str] = set()
    for number, entry in enumerate(block.get("task_types", ())):
        path = f"{root}.task_types[{number}]"
        if entry["name"] in names:
            yield f"{path}.name: {short(entry['name'])} is there twice; give each task type a name of its own"
        names.add(entry["name"])
        yield from _contradictions_of_match(f"{path}.match", entry.get("match", {}))
        if "fallback" in entry:
            yield from _contradictions_of_ladder(path, entry, host_has_chain=host_has_chain)
        if "trigger_on" in entry and _checks_in_vain(_for_type(block, entry)):
            yield f"{path}.trigger_on: has no `silent_failure`, for which `self_check` finds evidence; add it here"


def _contradictions_of_match(path: str, match: dict[str, Any]) -> Iterator[str]:
    if "message" in match:
        import regex  # noqa: PLC0415  # only for who has such a pattern

        try:
            regex.compile(match["message"])
        except (regex.error, OverflowError, RecursionError) as error:
            why = short(str(error))
            yield f"{path}.message: is no regular expression ({why}); escape what is meant literally with a \\"
    for folder in _match(match).cwd:
        try:
            Path(folder).expanduser()
        except RuntimeError:
            yield f"{path}.cwd: {short(folder)}: there is no such user; write ~/… for your own home"


def _contradictions_of_ladder(path: str, block: dict[str, Any], *, host_has_chain: bool) -> Iterator[str]:
    if HERMES in _entries(block) and not host_has_chain:
        yield f"{path}.fallback: hermes: Hermes has no `fallback_providers`; add one with `hermes fallback add`"
    for number, entry in enumerate(_entries(block)):
        if isinstance(entry, dict):
            place = f"[{number}]" if isinstance(block["fallback"], list) else ""
            yield from _contradictions_of_tier(f"{path}.fallback{place}", entry)


def _contradictions_of_tier(path: str, tier: dict[str, Any]) -> Iterator[str]:
    if tier["provider"] == HERMES:
        yield f"{path}.provider: hermes is not a provider; write `fallback: hermes` for Hermes's own fallback_providers"
    yield from _fault_of_url(path, tier)
    for place, value in _texts_of(tier, path):
        if is_secret(value):
            yield f"{place}: is a key, and has no place here; put it into Hermes's .env, and its name into api_key_env"
    extra = tier.get("extra", {})
    most, thoughts = tier.get("max_tokens"), _thinking_tokens(tier["provider"], tier["model"], extra)
    # Claude refuses it, unless its thoughts may go on between calls of tools (platform.claude.com, extended-thinking).
    if thoughts and most is not None and most <= thoughts and "interleaved" not in str(extra):
        yield f"{path}.max_tokens: {most} leaves no answer after {thoughts} tokens of thinking; write a larger number"
    # What is in `extra_body`, litellm puts into the request as it is, over what we say.
    for place, keys in (("extra", extra), ("extra.extra_body", extra.get("extra_body"))):
        for key in sorted(keys.keys() & _OURS.keys()) if isinstance(keys, dict) else ():
            yield f"{path}.{place}.{key}: is the plugin's to say; {_OURS[key]}"


def _texts_of(value: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield all texts in a tier, with where they stand and what they are called."""
    match value:
        case str():
            # As it would stand in a header or an address.
            yield path, f"{path.rpartition('.')[2]}: {value}"
        case dict():
            for key, item in value.items():
                yield from _texts_of(item, f"{path}.{key}")
        case list():
            for number, item in enumerate(value):
                yield from _texts_of(item, f"{path}[{number}]")
        case _:
            pass


_EFFORT_TOKENS = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
"""What litellm makes of a `reasoning_effort` (1.105.3 constants.py, DEFAULT_REASONING_EFFORT_…_THINKING_BUDGET)."""
_WITH_EFFORT_TOKENS = frozenset({"anthropic", "azure_ai", "bedrock", "databricks", "vertex_ai"})
"""The providers to whose Claude it sends that as `thinking.budget_tokens`."""
# Later ones choose by themselves how long they think (1.105.3 model_prices_and_context_window_backup.json, the rule
# claude-adaptive-thinking, which is not for Databricks, and `supports_adaptive_thinking`).
_CLAUDE_WITH_BUDGET = re.compile(
    r"claude-3-7-sonnet|claude-[a-z]+-4(?!\d|[-._](?:[6-9]|[1-9]\d)(?!\d))"
    r"|databricks-claude-[a-z]+-4-6|anthropic\.claude-mythos-preview"
)


def _thinking_tokens(provider: str, model: str, extra: Mapping[str, object]) -> int:
    thinking = extra.get("thinking")
    if thinking is not None:  # litellm lets it go before an effort
        tokens = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
        return max(0, tokens) if isinstance(tokens, int) else 0
    if provider not in _WITH_EFFORT_TOKENS or not _CLAUDE_WITH_BUDGET.search(model):
        return 0
    effort = extra.get("reasoning_effort")
    effort = effort.get("effort") if isinstance(effort, Mapping) else effort
    return _EFFORT_TOKENS.get(effort, 0) if isinstance(effort, str) else 0


def _fault_of_url(path: str, block: dict[str, Any]) -> Iterator[str]:
    try:
        # Says no to what a pattern lets through: a bracket without its end, a port of 99999.
        _ = urlsplit(block.get("base_url", "")).port
    except ValueError as error:
        yield f"{path}.base_url: is no URL ({short(str(error))}); write one like http://127.0.0.1:11434/v1"


def _checks_in_vain(block: dict[str, Any]) -> bool:
    policy = _policy(block.get("fallback_policy", {}))
    return policy.self_check and "silent_failure" not in policy.trigger_on


_USE_MAX_TOKENS = "write the tier's `max_tokens`"
_OURS = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens"), _USE_MAX_TOKENS),
    "model": "write the tier's `model`",
    "base_url": "write the tier's `base_url`",
    "api_base": "write the tier's `base_url`",
    "timeout": "write the tier's `timeout_seconds`",
    **dict.fromkeys(("n", "stream", "stream_options", "messages", "tools"), "leave it out"),
    **dict.fromkeys(("fallbacks", "context_window_fallback_dict", "model_list"), "write a list of tiers"),
    **dict.fromkeys(("mock_response", "mock_tool_calls"), "leave it out; with it no model is asked"),
    **dict.fromkeys(("max_retries", "num_retries"), "leave it out; a call is tried again once"),
}
"""Keys of a tier's `extra` that would change what is paid, or who answers, behind the budget's back."""


def _for_type(block: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """Return the block as it reads for a task type: what the type says replaces, limits and numbers one by one."""
    policy = dict(block.get("fallback_policy", {}))
    overrides = {key: value for key, value in entry.items() if key not in {"name", "match", "fallback"}}
    for key in ("budget", "triggers"):
        if key in overrides:
            overrides[key] = {**policy.get(key, {}), **overrides[key]}
    fallback = entry.get("fallback", block["fallback"])
    return {**block, "fallback": fallback, "fallback_policy": {**policy, **overrides}}


def _entries(block: dict[str, Any]) -> list[dict[str, Any] | str]:
    fallback = block["fallback"]
    return fallback if isinstance(fallback, list) else [fallback]


def _config(block: dict[str, Any]) -> Config:
    primary = block.get("primary")
    return Config(
        ladder=tuple(_tier(_HERMES_TIER if isinstance(entry, str) else entry) for entry in _entries(block)),
        primary=Primary(**primary) if primary else None,
        policy=_policy(block.get("fallback_policy", {})),
        handoff=_handoff(block.get("handoff", {})),
    )


def _tier(entry: Mapping[str, Any]) -> Tier:
    price = {"price": Price(**entry["price"])} if "price" in entry else {}
    return Tier(**{**entry, **price})


def _match(entry: dict[str, Any]) -> Match:
    def listed(key: str) -> tuple[str, ...]:
        value = entry.get(key, ())
        return (value,) if isinstance(value, str) else tuple(value)

    return Match(entry.get("message"), listed("platform"), listed("toolsets"), listed("cwd"))


def _model_name(model: str) -> str:
    return model.strip().lower().removesuffix(":latest")


def _plain_url(url: str) -> str:
    plain = url.strip().lower().rstrip("/").removesuffix("/v1")
    return plain.replace("//localhost", "//127.0.0.1")


def _provider_name(provider: str) -> str:
    name = provider.strip().lower().partition(":")[0]
    return "custom" if name in _LOCAL_SERVERS else name


def _policy(entry: dict[str, Any]) -> Policy:
    values = dict(entry)
    overrides = cast("dict[TriggerName, dict[str, int]]", values.pop("triggers", {}))
    if "trigger_on" in values:
        values["trigger_on"] = tuple(values["trigger_on"])
    if "allowed_users" in values:
        values["allowed_users"] = tuple(map(str, values["allowed_users"]))
    if values.pop("start_on", "primary") == "fallback":
        values["trigger_on"] = ("task_type", *values.get("trigger_on", DEFAULT_TRIGGERS))
    if "budget" in values:
        values["budget"] = Budget(**values["budget"])
    return Policy(after={name: override["after"] for name, override in overrides.items()}, **values)


def _handoff(entry: dict[str, Any]) -> Handoff:
    values = dict(entry)
    if values.get("redact") is False:
        values["redact"] = "off"  # YAML reads a bare `off` as false
    if "never_send" in values:
        values["never_send"] = tuple(values["never_send"])
    return Handoff(**values)
