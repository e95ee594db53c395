"""`/escalate` and its words: each returns what the user reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from . import budget, explain, lazy_litellm
from .budget import Left
from .config import Config
from .events import Escalated, EscalationRequested, SwitchedAuto, SwitchedOff
from .explain import plain
from .journal import JournalError
from .ledger import Ledger
from .policy import holding, is_off

if TYPE_CHECKING:  # the adapter answers commands that came as messages
    from .adapter import Adapter

HELP = """\
/escalate          let the stronger model take over: now, for the rest of the task, or for your next message
/escalate status   who answers now, and what this session has cost
/escalate why      why the stronger model was asked in this session
/escalate off      never ask it in this session, unless you say /escalate
/escalate auto     ask it again when the local model gets stuck (this is how a session starts)
/escalate help     this text
While a turn runs, type `/steer escalate`; in a chat, /escalate stops the turn and the stronger model goes on."""

_MOST_SHOWN = 20
"""How many escalations a chat is told of: messages have an end."""

# In a session that several share, Hermes puts the name of who wrote a message before it. Without its slash, it is what
# is left of a `/steer escalate` that came too late for the turn.
_SPOKEN = re.compile(
    r"\s*(?:\[[^\]\n]{1,80}\] )?"
    r"(?:/escalate(?:@\w+)?(?:[ \t]+(?P<word>\w+))?|escalate(?:[ \t]+(?P<late>off|auto|status|why|help))?)\s*",
    re.IGNORECASE,
)


def spoken(message: object) -> str | None:
    """Return what stands behind /escalate in a user's message that is nothing but that command, or None."""
    said = _SPOKEN.fullmatch(message) if isinstance(message, str) else None
    return None if said is None else said["word"] or said["late"] or ""


def escalate(adapter: Adapter, raw_args: str, *, session_id: str) -> str:
    """Answer /escalate; `raw_args` is what the user typed behind it."""
    word = raw_args.strip().lower()
    if word == "help":
        return HELP
    if word not in _WORDS and word not in _SWITCHES:
        return f"/escalate does not know “{word[:40]}”.\n{HELP}"
    config = adapter.settings.refresh()
    if word in {"", "auto"} and adapter.guard.has_given_up(session_id):
        return f"Not done.{_faults(adapter, session_id)}"
    why = _why_inactive(adapter, config)
    if word in _SWITCHES:
        # The turn that runs does so by the configuration that it began with.
        said = _SWITCHES[word](adapter, session_id)
        return said if why is None else f"{said} ({why})"
    if config is None or why is not None:
        return str(why)
    return _WORDS[word](adapter, config, adapter.ledger(session_id), session_id)


def _why_inactive(adapter: Adapter, config: Config | None) -> str | None:
    if adapter.settings.faults:
        return "hermes-fallback is not active: its configuration has faults. Run `hermes escalation check`."
    if config is None:
        return "hermes-fallback is idle: there is no `model_routing` block in Hermes's config.yaml."
    if config.is_idle:
        return "hermes-fallback is switched off: `fallback_policy.enabled` is false in Hermes's config.yaml."
    return None


def _now(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    if "user_request" not in config.policy.trigger_on:
        return "Not done: `user_request` is not in `fallback_policy.trigger_on`."
    reason, is_running = adapter.stays_local_because(session_id), adapter.is_running(session_id)
    if reason is not None and is_running:
        return f"Not done: this session stays local, because {plain(reason)}."
    if not adapter.may_spend(config):
        return "Not done: you are not in `fallback_policy.allowed_users`, and the stronger model costs money."
    ledger.append(EscalationRequested(adapter.clock()))
    if config.policy.is_shadow:
        return f"Noted, but `enabled: shadow` pays for nothing: the local model goes on.{_unless(config)}"
    lazy_litellm.warm(config.ladder)
    # Another model may run by then.
    but = "" if reason is None else f" (If that one can be escalated: the last one could not, because {plain(reason)}.)"
    return f"{_takes_over(config, is_running=is_running)}, until that task is done.{but}{_unless(config)}"


def _takes_over(config: Config, *, is_running: bool) -> str:
    when = "from its next step on" if is_running else "with your next message"
    return f"{plain(config.ladder[0].name)} takes over {when}"


def _unless(config: Config) -> str:
    # Of which type the next message is, nobody knows before it is there.
    return " (Unless the type of the task says otherwise.)" if config.task_types else ""


_THEN = {
    "local": "the local model answers your next message",
    "ask": "you are asked whether it may answer your next message",
    "stop": "your next message is not answered",
}


def _held(holder: Escalated, config: Config, lefts: Sequence[Left], *, is_running: bool) -> str:
    model, because = plain(holder.model), explain.reason(holder.trigger, holder.evidence)
    if is_running:
        return f"{model} has the task, because {because}."
    price = config.ladder[holder.tier].price
    is_paid = bool(lefts) and (price is None or price.of(1, 1) > 0)
    if is_paid and any(left.usd <= 0 for left in lefts):
        then = _THEN[config.policy.budget.on_exceeded]
        return f"{model} has this session (`hold: session`), but the budget is used up: {then}."
    # What that will cost at most, nobody knows yet.
    if_paid = " if the budget pays for it" if is_paid else ""
    return f"{model} answers your next message{if_paid} (`hold: session`), because {because}."


def _status(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    events = ledger.events()
    holder, lefts = holding(events, config.policy, config.names), _lefts(adapter, config, session_id)
    if adapter.guard.has_given_up(session_id):
        now = "The local model answers."
    elif events and isinstance(events[-1], EscalationRequested) and not config.policy.is_shadow:
        now = f"{_takes_over(config, is_running=adapter.is_running(session_id))}, for you asked for it with /escalate."
    elif holder is not None and not config.policy.is_shadow:
        now = _held(holder, config, lefts, is_running=adapter.is_running(session_id))
    elif is_off(events):
        now = "The local model answers; escalation is off in this session (/escalate auto switches it on)."
    else:
        verb = "would take over, if it were not for `enabled: shadow`" if config.policy.is_shadow else "takes over"
        ladder = ", then ".join(plain(tier.name) for tier in config.ladder)
        now = f"The local model answers; when it gets stuck, {ladder} {verb}."
    kind, because = adapter.last_type(session_id)
    typed = f"\nThe task is of type {plain(kind)}, for {plain(because)}." if kind else ""
    return (
        f"{now}{typed}\n{_spent(adapter, session_id)}{_left(lefts)}"
        f"{_unjournaled(adapter, session_id)}{_faults(adapter, session_id)}"
    )


def _why(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    del config, ledger
    try:
        newest = adapter.journal.entries(session_id=session_id, last=_MOST_SHOWN + 1)
    except JournalError as error:
        return f"The journal cannot be read: {error}"
    if not newest:
        return "Nothing was escalated in this session."
    entries = newest[:_MOST_SHOWN]
    more = f"The newest {_MOST_SHOWN} (`hermes escalation explain` shows all):\n" if len(newest) > _MOST_SHOWN else ""
    return more + "\n".join(
        plain(
            f"{entry.at[11:19]} UTC  {entry.from_model} → {entry.to_model}: {entry.reason} [{entry.trigger}] "
            f"({explain.outcome(entry.calls, entry.failed)}, "
            f"{explain.usage(entry.input_tokens, entry.output_tokens, entry.cost_usd)})"
        )
        for entry in reversed(entries)
    )


def _off(adapter: Adapter, session_id: str) -> str:
    adapter.ledger(session_id).append(SwitchedOff(adapter.clock()))
    return f"Off: the local model answers alone in this session, unless you say /escalate.{_kept(adapter, session_id)}"


def _auto(adapter: Adapter, session_id: str) -> str:
    adapter.ledger(session_id).append(SwitchedAuto(adapter.clock()))
    return f"Auto: the stronger model takes over when the local one gets stuck.{_kept(adapter, session_id)}"


def _kept(adapter: Adapter, session_id: str) -> str:
    """Keep the switch for when the session is resumed; say so where that fails."""
    adapter.was_said(session_id)
    try:
        adapter.journal.set_off(session_id, is_off=is_off(adapter.ledger(session_id).events()))
    except JournalError as error:
        adapter.guard.note_unjournaled("a switch could not be written down", session_id, error)
        return f" (Only until Hermes ends, for it cannot be written down: {error})"
    return ""


_WORDS: dict[str, Callable[[Adapter, Config, Ledger, str], str]] = {
    "": _now,
    "status": _status,
    "why": _why,
}
_SWITCHES: dict[str, Callable[[Adapter, str], str]] = {"off": _off, "auto": _auto}


def _spent(adapter: Adapter, session_id: str) -> str:
    try:
        entries = adapter.journal.entries(session_id=session_id, last=-1)
    except JournalError as error:
        return f"What it has cost is unknown: {error}"
    if not entries:
        return "This session has cost nothing so far."
    return "\n".join(
        f"{'shadow: ' if entry.is_shadow else ''}{plain(entry.to_model)}: "
        f"{explain.outcome(entry.calls, entry.failed)}, "
        f"{explain.usage(entry.input_tokens, entry.output_tokens, entry.cost_usd)}"
        for entry in reversed(entries)
    )


def _left(lefts: Sequence[Left]) -> str:
    return f"\nOf the budget, {', '.join(map(str, lefts))}." if lefts else ""


def _lefts(adapter: Adapter, config: Config, session_id: str) -> Sequence[Left]:
    task_id = adapter.task_id(session_id)
    limits = config.policy.budget if task_id else replace(config.policy.budget, per_task_usd=None)
    try:
        spent = adapter.journal.spent(task_id=task_id or "", account=session_id)
    except JournalError:
        return ()  # said where what was spent is said
    return budget.lefts(limits, spent)


def _unjournaled(adapter: Adapter, session_id: str) -> str:
    count = adapter.guard.unjournaled(session_id)
    if not count:
        return ""
    return f"\nThe journal could not be used {explain.times(count)} in this session; see Hermes's agent.log."


def _faults(adapter: Adapter, session_id: str) -> str:
    count = adapter.guard.count(session_id)
    if not count:
        return ""
    off = " and is off in it" if adapter.guard.has_given_up(session_id) else ""
    return f"\nhermes-fallback itself has failed {explain.times(count)} in this session{off}; see Hermes's agent.log."
