"""`hermes escalation status`: what holds now, and what is left of the budget."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from .. import budget, explain
from .. import config as configuration
from ..budget import Spent
from ..config import Budget, Config, ConfigError
from ..host import hermes_home, read_config
from ..journal import Journal, JournalError
from . import tables, timeline

HELP = "show what holds now: the models, who is asked, what is spent and left"

_GOOD, _FAULTS = 0, 1
_SCOPES = {
    "per_task_usd": ("each task", None),
    "per_session_usd": ("each session", None),
    "per_day_usd": ("today", "day"),
    "per_month_usd": ("this month", "month"),
    "max_escalations_per_session": ("escalations in each session", None),
}


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    tables.add_forms(parser)


def run(args: argparse.Namespace) -> int:
    """Print the status; return 1 when the plugin is not active or the journal cannot be read."""
    block, host_has_chain = read_config()
    config = None
    try:
        config = None if block is None else configuration.parse(block, host_has_chain=host_has_chain)
        state = _state(config)
    except ConfigError as error:
        state = f"not active: {len(error.faults)} to mend in the configuration; run `hermes escalation check`"
    try:
        spent, in_flight, last = _journaled(Journal.of(hermes_home()))
    except JournalError as error:
        print(f"The journal cannot be read, so nothing is paid: {error}")
        return _FAULTS
    facts: dict[str, object] = {"state": state, **_configured(config)}
    facts |= {"calls_in_flight": in_flight, "last_escalation": last}
    limits = list(_limits(config.policy.budget if config else Budget(), spent))
    rows: list[dict[str, object]] = [{"name": name, "value": _joined(value)} for name, value in facts.items()]
    rows += [{"name": f"{one['name']}_{key}", "value": one[key]} for one in limits for key in ("limit", "spent")]
    if not tables.for_scripts(args, {"version": 1, **facts, "budget": limits}, rows):
        shown = [(name.replace("_", " "), _joined(value) or "–") for name, value in facts.items()]
        tables.for_people("hermes-fallback", ("", ""), shown)
        zone = datetime.now().astimezone().strftime("%Z, UTC%z")
        tables.for_people(
            f"Budget; days and months in {zone}", ("", "limit", "spent", "left"), map(_shown, limits), numbers=3
        )
    return _GOOD if config is not None else _FAULTS


def _state(config: Config | None) -> str:
    if config is None:
        return "idle: there is no `model_routing` block in Hermes's config.yaml"
    if config.policy.is_shadow:
        return "shadow: everything is decided and nothing is paid"
    if not config.policy.enabled:
        return "off" if config.is_idle else "off, except for some task types"
    return "on"


def _configured(config: Config | None) -> Mapping[str, object]:
    if config is None:
        return {}
    policy = config.policy
    questions = {
        "never": "nobody is asked",
        "first_in_session": "a person is asked once in each session",
        "always": "a person is asked for each escalation",
    }
    return {
        "ladder": [tier.name for tier in config.ladder],
        "consent": questions[policy.confirm],
        "allowed_users": None if policy.allowed_users is None else list(policy.allowed_users),
        "task_types": [kind.name for kind in config.task_types],
        "on_exceeded": policy.budget.on_exceeded,
    }


def _joined(value: object) -> str | None:
    if isinstance(value, list):
        return ", ".join(value)
    return None if value is None else str(value)


def _journaled(journal: Journal) -> tuple[Spent, int, str | None]:
    journal.settle_expired()
    entries = journal.entries(last=1)
    last = f"{explain.local_time(entries[0].at)}: {timeline.headline(entries[0])}" if entries else None
    return journal.spent(task_id="", account=""), journal.calls_in_flight(), last


def _limits(limits: Budget, spent: Spent) -> Iterator[Mapping[str, object]]:
    """Return each limit with what is spent of it; what a task or a session spent is known in it alone."""
    for key, (words, scope) in _SCOPES.items():
        used = None if scope is None else getattr(spent, scope)
        yield {"name": key, "words": words, "limit": getattr(limits, key), "spent": used}


def _shown(one: Mapping[str, Any]) -> tuple[str, str, str, str]:
    limit, used, say = one["limit"], one["spent"], budget.amount if one["name"].endswith("_usd") else str
    left = "–" if limit is None or used is None else f"${max(0.0, limit - used):.4f}"
    return one["words"], "none" if limit is None else say(limit), "–" if used is None else f"${used:.4f}", left
