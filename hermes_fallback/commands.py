"""`/escalate` and its words: each returns what the user reads."""

from __future__ import annotations

from collections.abc import Callable

from . import executor, explain
from .adapter import Adapter
from .config import Config
from .events import EscalationRequested, SwitchedAuto, SwitchedOff, TurnEnded, TurnStarted
from .journal import JournalError
from .ledger import Ledger
from .policy import holding, is_off

HELP = """\
/escalate          let the stronger model take over: now, for the rest of the task, or for your next message
/escalate status   who answers now, and what this session has cost
/escalate why      why the stronger model was asked in this session
/escalate off      never ask it in this session, unless you say /escalate
/escalate auto     ask it again when the local model gets stuck (this is how a session starts)
/escalate help     this text
While a turn is running, type `/steer escalate`: Hermes keeps any other command until the turn is over."""


def escalate(adapter: Adapter, raw_args: str) -> str:
    """Answer /escalate; `raw_args` is what the user typed behind it."""
    word = raw_args.strip().lower()
    if word == "help":
        return HELP
    if word not in _WORDS:
        return f"/escalate does not know “{word[:40]}”.\n{HELP}"
    config = adapter.settings.refresh()
    if adapter.settings.faults:
        return "hermes-fallback is not active: its configuration has faults. Run `hermes escalation check`."
    if config is None:
        return "hermes-fallback is idle: there is no `model_routing` block in Hermes's config.yaml."
    if not config.policy.enabled:
        return "hermes-fallback is switched off: `fallback_policy.enabled` is false in Hermes's config.yaml."
    session_id = adapter.foreground_session()
    return _WORDS[word](adapter, config, adapter.ledgers.of_session(session_id), session_id)


def _now(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    del session_id
    if "user_request" not in config.policy.trigger_on:
        return "Not done: `user_request` is not in `fallback_policy.trigger_on`."
    ledger.append(EscalationRequested(adapter.clock()))
    executor.warm()
    when = "from its next step on" if _is_running(ledger) else "with your next message"
    return f"{config.ladder[0].name} takes over {when}, until that task is done."


def _status(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    events = ledger.events()
    holder = holding(events, config.policy)
    if holder is not None and _is_running(ledger):
        now = f"{holder.model} has the task, because {explain.reason(holder.trigger, holder.evidence)}."
    elif is_off(events):
        now = "The local model answers; escalation is off in this session (/escalate auto switches it on)."
    else:
        ladder = ", then ".join(tier.name for tier in config.ladder)
        now = f"The local model answers; when it gets stuck, {ladder} takes over."
    return f"{now}\n{_spent(adapter, session_id)}"


def _why(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    del config, ledger
    try:
        entries = adapter.journal.entries(session_id=session_id)
    except JournalError as error:
        return f"The journal cannot be read: {error}"
    if not entries:
        return "Nothing was escalated in this session."
    return "\n".join(
        f"{entry.at[11:19]} UTC  {entry.from_model} → {entry.to_model}: {entry.reason} [{entry.trigger}] "
        f"({explain.outcome(entry.calls, entry.failed)}, "
        f"{explain.usage(entry.input_tokens, entry.output_tokens, entry.cost_usd)})"
        for entry in reversed(entries)
    )


def _off(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    del config, session_id
    ledger.append(SwitchedOff(adapter.clock()))
    return "Off: the local model answers alone in this session, unless you say /escalate."


def _auto(adapter: Adapter, config: Config, ledger: Ledger, session_id: str) -> str:
    del config, session_id
    ledger.append(SwitchedAuto(adapter.clock()))
    return "Auto: the stronger model takes over when the local one gets stuck."


_WORDS: dict[str, Callable[[Adapter, Config, Ledger, str], str]] = {
    "": _now,
    "status": _status,
    "why": _why,
    "off": _off,
    "auto": _auto,
}


def _spent(adapter: Adapter, session_id: str) -> str:
    try:
        entries = adapter.journal.entries(session_id=session_id, last=-1)
    except JournalError as error:
        return f"What it has cost is unknown: {error}"
    if not entries:
        return "This session has cost nothing so far."
    return "\n".join(
        f"{entry.to_model}: {explain.outcome(entry.calls, entry.failed)}, "
        f"{explain.usage(entry.input_tokens, entry.output_tokens, entry.cost_usd)}"
        for entry in reversed(entries)
    )


def _is_running(ledger: Ledger) -> bool:
    for event in reversed(ledger.events()):
        if isinstance(event, TurnStarted | TurnEnded):
            return isinstance(event, TurnStarted)
    return False
