"""Puts the answers of `hermes escalation init` into Hermes's configuration, and keeps what the user wrote besides.

Pure: documents are what PyYAML read; `splice` turns them back into text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...config import HERMES, PRIMARY, ConfigError, Primary, Tier
from .servers import CUSTOM, LocalModel

LIMITS = ("per_task_usd", "per_day_usd", "per_month_usd")
"""The limits that are asked for."""

# Of a paid endpoint, so wrong for another one: above all the key, which would go to a stranger.
_OF_THE_PROVIDER = ("base_url", "api_key_env", "extra")


@dataclass(frozen=True, slots=True)
class Answers:
    """What the user wants; None leaves what is there. Of `limits`, those that are named, where None lifts the limit."""

    primary: Primary | None = None
    tier: Tier | None = None
    enabled: bool | Literal["shadow"] | None = None
    confirm: str | None = None
    limits: Mapping[str, float | None] = field(default_factory=dict)


def merged(document: dict[str, Any], answers: Answers, *, plugin: str | None) -> dict[str, Any]:
    """Return the document with the answers in it, and `plugin` among the enabled ones.

    Raises:
        ConfigError: something else stands where a block or a list belongs.
    """
    wanted: dict[str, Any] = _copy(document)
    if plugin is not None:
        _enable(_part(wanted, "plugins", at="$"), plugin)
    block = _part(wanted, "model_routing", at="$")
    if answers.primary is not None:
        _set_primary(_part(block, "primary"), answers.primary)
    if answers.tier is not None:
        _set_tier(block, answers.tier)
    policy = _part(block, "fallback_policy")
    enabled = answers.enabled
    if enabled is None:
        # Who only watches so far has not said yes to paying.
        enabled = "shadow" if policy.get("enabled") == "shadow" else True
    policy["enabled"] = enabled
    if answers.confirm is not None:
        policy["confirm"] = answers.confirm
    _set_limits(policy, answers.limits)
    return wanted


def primary_of(block: Mapping[str, Any]) -> Primary | None:
    """Return the local model that is configured."""
    part = block.get("primary")
    if not isinstance(part, dict) or not isinstance(part.get("model"), str):
        return None
    return Primary(part["model"], *(_text(part.get(name)) for name in ("provider", "base_url")))


def primary_for(model: LocalModel, before: Primary | None, *, with_url: bool) -> Primary | None:
    """Return what `primary` must say for a model to be meant; None when it does already.

    Its URL is named where the kind of its server does not tell it from others, or where one is named already.
    """
    server = model.server
    if server is None:
        return None if before is not None and before.is_named(model.name) else Primary(model.name)
    names_url = before is not None and before.base_url is not None
    if before is not None and before.matches(model=model.name, provider=server.provider, base_url=server.url):
        return None if not with_url or names_url else Primary(model.name, server.provider, server.url)
    with_url = with_url or names_url or server.provider == CUSTOM
    return Primary(model.name, server.provider, server.url if with_url else None)


def paid_tier(block: Mapping[str, Any]) -> Tier | None:
    """Return the first entry of `fallback` that is a model behind litellm, as far as a look for its key needs it."""
    entry = _paid_entry(block)
    if entry is None or not isinstance(entry.get("provider"), str) or not isinstance(entry.get("model"), str):
        return None
    return Tier(entry["provider"], entry["model"], _text(entry.get("base_url")), _text(entry.get("api_key_env")))


def confirm_of(block: Mapping[str, Any]) -> str | None:
    """Return when the user is asked, if that is configured."""
    return _text(_policy_of(block).get("confirm"))


def limits_of(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the limits that are configured."""
    budget = _policy_of(block).get("budget")
    return budget if isinstance(budget, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _policy_of(block: Mapping[str, Any]) -> Mapping[str, Any]:
    policy = block.get("fallback_policy")
    return policy if isinstance(policy, dict) else {}


def _copy(value: Any) -> Any:
    """Return a copy in which nothing is shared: what stands behind two aliases of YAML is one object to PyYAML."""
    match value:
        case dict():
            return {key: _copy(inner) for key, inner in value.items()}
        case list():
            return [_copy(inner) for inner in value]
    return value


def _part(parent: dict[str, Any], key: str, *, at: str = "$.model_routing") -> dict[str, Any]:
    """Return the block under a key, made when there is none."""
    if parent.get(key) is None:
        parent[key] = {}
    if not isinstance(parent[key], dict):
        raise ConfigError([f"config.yaml: {at}.{key}: is not a block of keys; write its keys indented below `{key}:`"])
    part: dict[str, Any] = parent[key]
    return part


def _enable(plugins: dict[str, Any], plugin: str) -> None:
    enabled = plugins.get("enabled")
    if enabled is None:
        enabled = plugins["enabled"] = []
    if not isinstance(enabled, list):
        raise ConfigError([f"config.yaml: $.plugins.enabled: is not a list; write `enabled: [{plugin}]`"])
    if plugin not in enabled:
        enabled.append(plugin)


def _set_primary(part: dict[str, Any], primary: Primary) -> None:
    if primary.provider is not None:
        part["provider"] = primary.provider
    part["model"] = primary.model
    if primary.base_url is not None:
        part["base_url"] = primary.base_url


def _set_tier(block: dict[str, Any], tier: Tier) -> None:
    fallback = block.get("fallback")
    same = next((entry for entry in _entries(block) if _is(entry, tier)), None)
    entry = same or _paid_entry(block)
    if isinstance(entry, dict):
        _retarget(entry, tier)
    elif isinstance(fallback, list):
        fallback.append(_new(tier))
    else:
        block["fallback"] = _new(tier)


def _entries(block: Mapping[str, Any]) -> Iterator[Any]:
    fallback = block.get("fallback")
    yield from fallback if isinstance(fallback, list) else [fallback]


def _paid_entry(block: Mapping[str, Any]) -> dict[str, Any] | None:
    return next((entry for entry in _entries(block) if _is_paid(entry)), None)


def _is_paid(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("provider") not in {PRIMARY, HERMES}


def _is(entry: object, tier: Tier) -> bool:
    return isinstance(entry, dict) and (entry.get("provider"), entry.get("model")) == (tier.provider, tier.model)


def _retarget(entry: dict[str, Any], tier: Tier) -> None:
    if not _is(entry, tier):
        entry.pop("price", None)
    if entry.get("provider") != tier.provider:
        for key in _OF_THE_PROVIDER:
            entry.pop(key, None)
    entry.update(_new(tier))


def _new(tier: Tier) -> dict[str, Any]:
    named = {} if tier.api_key_env is None else {"api_key_env": tier.api_key_env}
    return {"provider": tier.provider, "model": tier.model, **named}


def _set_limits(policy: dict[str, Any], limits: Mapping[str, float | None]) -> None:
    if all(limit is None for limit in limits.values()) and policy.get("budget") is None:
        return
    budget = _part(policy, "budget", at="$.model_routing.fallback_policy")
    for name, limit in limits.items():
        if limit is None:
            budget.pop(name, None)
        else:
            budget[name] = limit
    if not budget:
        del policy["budget"]
