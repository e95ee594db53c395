"""`enabled: shadow`: everything is decided and journaled as if, and the local model keeps the task.

The budget and the question before spending are left out: the point is to see what it would have cost without them.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from . import explain, prices
from .budget import Usage
from .events import Escalated, EscalationFailed, Event, TierReplied
from .journal import JournalError
from .policy import Decision, Escalate, holding
from .task import Task

logger = logging.getLogger(__name__)


def begin(decision: Decision, task: Task) -> None:
    """Note that a tier would have taken the task over, unless it would have it already."""
    if not isinstance(decision, Escalate) or decision.held is not None:
        return
    tier = task.config.ladder[decision.tier]
    try:
        row = task.journal.open_escalation(
            task.opening(decision, tier, explain.reason(decision.trigger, decision.evidence))
        )
    except JournalError as error:
        task.ledger.append(EscalationFailed(task.clock(), decision.tier, str(error), transient=False))
        task.unjournaled("a shadow escalation could not be written", error)
        return
    task.ledger.append(task.escalated(decision, tier, row))


def answered(task: Task, used: Usage) -> None:
    """Note a call of the local model that a tier would have been paid for, if it would have the task."""
    events = task.ledger.events()
    holder = holding(events, task.config.policy, task.config.names)
    if holder is None:
        return
    tier, reason = task.config.ladder[holder.tier], explain.reason(holder.trigger, holder.evidence)
    usd = None
    if used.input_tokens is not None and used.output_tokens is not None:
        usd = prices.cost(tier, used.input_tokens, used.output_tokens)
    try:
        row = task.journal.add_shadow_call(
            holder.journal_id,
            turn_id=task.turn_id,
            task_id=task.task_id,
            used=replace(used, cost_usd=usd),
            otherwise=task.opening(holder, tier, reason),
        )
        if row != holder.journal_id:
            task.ledger.append(replace(holder, at=task.clock(), journal_id=row))
    except JournalError as error:
        task.unjournaled("a shadow call could not be written", error)
    if _is_first(events):
        logger.info(
            "shadow: would have escalated session=%s from=%s to=%s trigger=%s because: %s, about %s for this call",
            task.session_id,
            task.local_model,
            tier.name,
            holder.trigger,
            reason,
            explain.usd(usd),
        )
    task.ledger.append(TierReplied(task.clock(), holder.tier))


def _is_first(events: tuple[Event, ...]) -> bool:
    last = next(event for event in reversed(events) if isinstance(event, Escalated | TierReplied))
    return isinstance(last, Escalated)
