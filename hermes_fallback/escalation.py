"""Carries out a decision: asks the tiers in turn until one answers, and keeps ledger, journal, log and screen true.

The only file in which money is spent. Nothing is asked before the journal has a row for it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import executor, explain, handoff
from .config import HERMES, PRIMARY, Config, Tier
from .events import Escalated, EscalationFailed, TierReplied
from .executor import ExecutionError, Interrupted, Reply
from .journal import Journal, JournalError
from .ledger import Ledger
from .live import LiveAgent
from .policy import Decision, Escalate, Stay, decide
from .redact import never_send_match

logger = logging.getLogger(__name__)

SIGN = "⚡"
"""Begins every line that the user sees of us."""


HAND_OVER = object()
"""Instead of an answer: Hermes itself is to go to its fallback providers (DESIGN.md, fact 5)."""


@dataclass(frozen=True, slots=True)
class Task:
    """What an escalation needs to know of its turn; `account` is the session that pays (a sub-agent's parent)."""

    session_id: str
    account: str
    turn_id: str
    local_model: str
    config: Config
    ledger: Ledger
    journal: Journal
    live: LiveAgent
    clock: Callable[[], float]
    is_interrupted: Callable[[], bool]
    call_local_endpoint: Callable[[Mapping[str, Any]], Any]

    def decide(self) -> Decision:
        """Return who answers next, by what is known now."""
        return decide(self.ledger.events(), self.config.policy, tiers=len(self.config.ladder), now=self.clock())


def escalate(decision: Decision, task: Task, request: Mapping[str, Any]) -> Any | None:
    """Return the first answer that a tier gives, HAND_OVER, or None when the local model is to answer.

    Raises:
        Interrupted: the user said stop.
    """
    # Each failure takes a tier out of the next decision, so this ends.
    while isinstance(decision, Escalate):
        response = _ask(decision, task, request)
        if response is not None:
            return response
        decision = task.decide()
        if isinstance(decision, Stay):
            task.live.notice(f"{SIGN} no stronger model answered; {task.local_model} goes on")
            logger.warning("session=%s: no stronger model answered; %s goes on", task.session_id, task.local_model)
    return None


def _ask(decision: Escalate, task: Task, request: Mapping[str, Any]) -> Any | None:
    tier = task.config.ladder[decision.tier]
    kept_back = never_send_match(request.get("messages") or (), task.config.handoff.never_send)
    if kept_back is not None:
        message = f"{tier.name}: not asked, for the conversation matches `never_send` ({kept_back})"
        _failed(task, decision, message, transient=False)
        return None
    reason = explain.reason(decision.trigger, decision.evidence)
    try:
        journal_id = decision.held.journal_id if decision.held else _open(task, tier, decision, reason)
        if tier.provider == HERMES:
            return _hand_over(decision, task, tier, journal_id=journal_id, reason=reason)
        call = task.journal.start_call(journal_id, turn_id=task.turn_id)
    except JournalError as error:
        _failed(task, decision, f"{tier.name}: not asked, for the journal cannot be written: {error}")
        return None
    if decision.held is None:
        task.live.notice(f"{SIGN} {task.local_model} → {tier.name}: {reason}")
    started = task.clock()
    try:
        reply = _call(tier, task, request, reason)
    except Interrupted:
        _close(task, call, "interrupted", seconds=task.clock() - started)
        logger.info("session=%s: the user stopped %s", task.session_id, tier.name)
        raise
    except ExecutionError as error:
        _close(task, call, "failed", seconds=task.clock() - started, error=str(error))
        _failed(task, decision, str(error), transient=error.transient)
        return None
    _answered(decision, task, tier, reply, reason=reason, journal_id=journal_id)
    _close(
        task,
        call,
        "answered",
        seconds=reply.seconds,
        input_tokens=reply.input_tokens,
        output_tokens=reply.output_tokens,
        cost_usd=reply.cost_usd,
    )
    return reply.response


def host_answered(task: Task, ask: Callable[[], Any], *, tier: int, journal_id: int, model: str, provider: str) -> Any:
    """Return what Hermes's own fallback provider answers, and keep the journal as for any other tier.

    Raises:
        Exception: what `ask` raises; Hermes goes to its next provider then.
    """
    try:
        call = task.journal.start_call(journal_id, turn_id=task.turn_id)
        task.journal.set_model(journal_id, f"{provider}/{model}")
    except JournalError:
        # Hermes has switched already; the answer cannot be prevented here, only the missing row be said.
        logger.exception("session=%s: a call of Hermes's fallback provider could not be written", task.session_id)
        return ask()
    started = task.clock()
    try:
        response = ask()
    except BaseException as error:
        _close(
            task, call, "failed", seconds=task.clock() - started, error=f"{provider}/{model}: {type(error).__name__}"
        )
        raise
    usage = getattr(response, "usage", None)
    # OpenAI's names, or those of Anthropic and the Responses API.
    tokens_in = _first(usage, "prompt_tokens", "input_tokens")
    tokens_out = _first(usage, "completion_tokens", "output_tokens")
    task.ledger.append(TierReplied(task.clock(), tier))
    _close(
        task,
        call,
        "answered",
        seconds=task.clock() - started,
        input_tokens=tokens_in,
        output_tokens=tokens_out,
        cost_usd=executor.price(provider, model, tokens_in, tokens_out),
    )
    return response


def _first(usage: object, *names: str) -> int | None:
    found = (getattr(usage, name, None) for name in names)
    return next((number for number in found if isinstance(number, int)), None)


def _hand_over(decision: Escalate, task: Task, tier: Tier, *, journal_id: int, reason: str) -> object | None:
    if not task.live.can_fall_over():
        message = "Hermes has no fallback provider left to go to; add one with `hermes fallback add`"
        _failed(task, decision, message, transient=False)
        return None
    if decision.held is None:
        task.live.notice(f"{SIGN} {task.local_model} → {tier.name}: {reason}")
        task.ledger.append(
            Escalated(task.clock(), decision.tier, tier.name, decision.trigger, decision.evidence, journal_id)
        )
        logger.info(
            "escalated session=%s from=%s to=%s trigger=%s because: %s",
            task.session_id,
            task.local_model,
            tier.name,
            decision.trigger,
            reason,
        )
    return HAND_OVER


def _open(task: Task, tier: Tier, decision: Escalate, reason: str) -> int:
    return task.journal.open_escalation(
        session_id=task.account,
        from_model=task.local_model,
        to_model=tier.name,
        trigger=decision.trigger,
        reason=reason,
    )


def _call(tier: Tier, task: Task, request: Mapping[str, Any], reason: str) -> Reply:
    if tier.provider == PRIMARY:
        return _call_primary(tier, task, request)
    abilities = executor.abilities(tier)
    prepared = handoff.build(
        request,
        note=handoff.note(reason),
        options=task.config.handoff,
        local_model=task.local_model,
        tier=tier,
        vision=abilities.vision,
        max_input_tokens=abilities.max_input_tokens,
        count_tokens=executor.token_counter(tier, request.get("tools")),
    )
    on_text = task.live.stream if task.live.begin_answer() else _nobody_watches
    return executor.complete(tier, prepared, is_interrupted=task.is_interrupted, on_text=on_text)


def _call_primary(tier: Tier, task: Task, request: Mapping[str, Any]) -> Reply:
    """Ask another model on the local model's own endpoint, the way that Hermes asks: it streams and stops natively."""
    started = task.clock()
    overrides = {"max_tokens": tier.max_tokens, "temperature": tier.temperature, "timeout": tier.timeout_seconds}
    given = {name: value for name, value in overrides.items() if value is not None}
    task.live.begin_answer()
    try:
        response = task.call_local_endpoint({**request, **given, "model": tier.model})
    except InterruptedError as error:
        raise Interrupted from error
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, InterruptedError):
            raise Interrupted from error
        message = f"{tier.name}: the local endpoint did not answer for it [{type(cause).__name__}]; check `model`"
        raise ExecutionError(message, transient=False) from error
    usage = getattr(response, "usage", None)
    return Reply(
        response=response,
        seconds=task.clock() - started,
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
        # Not nothing, even on this machine: a litellm proxy there may lead anywhere.
        cost_usd=None,
    )


def _answered(decision: Escalate, task: Task, tier: Tier, reply: Reply, *, reason: str, journal_id: int) -> None:
    now = task.clock()
    if decision.held is None:
        escalated = Escalated(now, decision.tier, tier.name, decision.trigger, decision.evidence, journal_id)
        task.ledger.append(escalated)
    task.ledger.append(TierReplied(now, decision.tier))
    logger.log(
        logging.DEBUG if decision.held else logging.INFO,
        "escalated session=%s from=%s to=%s trigger=%s because: %s (%.1f s, %s)",
        task.session_id,
        task.local_model,
        tier.name,
        decision.trigger,
        reason,
        reply.seconds,
        explain.usage(reply.input_tokens, reply.output_tokens, reply.cost_usd),
    )


def _failed(task: Task, decision: Escalate, error: str, *, transient: bool = True) -> None:
    task.ledger.append(EscalationFailed(task.clock(), decision.tier, error, transient))
    task.live.notice(f"{SIGN} {error}")
    logger.warning("escalation failed session=%s trigger=%s: %s", task.session_id, decision.trigger, error)


def _close(task: Task, call: int, state: str, **outcome: Any) -> None:
    try:
        task.journal.end_call(call, state, **outcome)
    except JournalError:
        # The answer is there and paid for; the row stays `started`, which says that its end is not known.
        logger.exception("session=%s: the end of a paid call could not be written", task.session_id)


def _nobody_watches(text: str) -> None:
    del text
