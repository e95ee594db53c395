"""One model call: the local model answers, and its reply is judged; or a stronger one answers in its place.

When a stronger one is to answer is decided in `policy.py`, and how it is asked stands in `escalation.py`.
"""

from __future__ import annotations

import logging
from typing import Any

from . import executor, host, lazy_litellm, self_check, shadow
from .escalation import HAND_OVER, Stopped, escalate, host_answered
from .events import Escalated, ReplyAccepted, ReplyInvalid, SelfChecked
from .executor import Interrupted
from .policy import Decision, Escalate, Stay, holding, is_off
from .provider_errors import ExecutionError
from .replies import LocalReply, inspect, offered
from .task import SIGN, Task
from .triggers import OF_ANSWERS, may_be_replaced
from .turn import LocalCall, Turn

logger = logging.getLogger(__name__)


def answer(turn: Turn, local: LocalCall, task: Task) -> Any:
    """Return what answers the call; None where Hermes is to go to its next provider.

    Raises:
        Exception: what the local endpoint raised, and nobody could answer for it.
    """
    try:
        response = _reply(turn, local, task)
    except Interrupted:
        # Hermes looks at its own flag as soon as the local call begins, and ends the turn as stopped.
        return local.reply()
    if isinstance(response, Stopped):
        return _words_of(response)
    if response is not HAND_OVER:
        return response
    turn.handed_over = holding(turn.ledger.events(), turn.config.policy, turn.config.names)
    # To Hermes, no answer is a failure of the provider: it goes to the next one at once (DESIGN.md, fact 5).
    return None


def _reply(turn: Turn, local: LocalCall, task: Task) -> Any:
    response = _escalate(task.decide(), task, local)
    if response is not None:
        return response
    cause: BaseException | None = None
    try:
        response = local.reply()
    except Exception as error:
        cause = error.__cause__ or error
        if error is not local.error or isinstance(cause, InterruptedError):
            raise  # a fault of ours, or the user's stop
    # Not while it is handled: its words, which are the endpoint's, would be in the traceback of a fault of ours.
    if cause is not None:
        turn.ledger.append(host.call_failed(task.clock(), cause, local.request))
        response = _escalate(task.decide(), task, local)
        return local.reply() if response is None else response
    used = host.usage_of(response)
    turn.local.add(used)
    if turn.config.policy.is_shadow:
        shadow.answered(task, used)
    decision = _judge(turn, local, task, response)
    if decision is None:
        return response
    replacement = _escalate(decision, task, local)
    if turn.config.policy.is_shadow and decision.held is None:
        # The better answer would have cost about what this one took.
        shadow.answered(task, used)
    if decision.trigger in OF_ANSWERS and (replacement is None or isinstance(replacement, Stopped)):
        # The answer is there, and can be used; on the screen, half of another may stand below it.
        if not turn.config.policy.is_shadow:
            turn.live.notice(f"{SIGN} {turn.model}: its answer stands")
        return response
    return response if replacement is None else replacement


def _escalate(decision: Decision, task: Task, local: LocalCall) -> Any | None:
    if not isinstance(decision, Escalate):
        return escalate(decision, task, local.request)
    task.note_asked()
    # Only now: to look at each message takes the longer the more there are.
    return escalate(decision, task, host.readable(local.request))


def _judge(turn: Turn, local: LocalCall, task: Task, response: Any) -> Escalate | None:
    """Return the decision to have the local model's reply replaced, or None when it is to be used."""
    reply = host.local_reply(response, local.request)
    tools = local.request.get("tools")
    # Hermes sends the same list all through a turn.
    if turn.offered[0] is not tools:
        turn.offered = (tools, offered(host.entries(tools)))
    fault = inspect(reply, turn.offered[1])
    if fault is not None:
        turn.ledger.append(ReplyInvalid(task.clock(), fault.kind, fault.ends_turn))
        lazy_litellm.warm(turn.config.ladder)
        decision = task.decide()
        return decision if isinstance(decision, Escalate) else None
    accepted = ReplyAccepted(task.clock(), not reply.calls, host.reply_signs(reply, local.request))
    turn.ledger.append(accepted)
    if reply.calls:
        # Judged before the next call, by what they bring.
        return None
    to_check = _is_to_check_itself(turn, reply)
    if not to_check and not may_be_replaced(accepted, turn.ledger.controls()):
        return None
    decision = task.decide()
    if isinstance(decision, Stay) and to_check:
        _check_itself(turn, local, task, reply.text)
        decision = task.decide()
    # The answer is there: only what it says itself, or the user, is a reason to have another.
    is_reason = isinstance(decision, Escalate) and decision.held is None and decision.trigger in OF_ANSWERS
    return decision if isinstance(decision, Escalate) and is_reason else None


def _is_to_check_itself(turn: Turn, reply: LocalReply) -> bool:
    if not turn.config.policy.self_check or is_off(turn.ledger.events()):
        return False
    return bool(reply.text.strip()) and self_check.is_local(turn.base_url)


def _check_itself(turn: Turn, local: LocalCall, task: Task, answer: str) -> None:
    """Ask the local model whether its answer is one; what it cannot say is no evidence."""
    tier = self_check.tier(turn.model, turn.base_url, local.live.api_key)
    asked = {"messages": self_check.question(host.entries(local.request.get("messages")), answer)}
    try:
        reply = executor.complete(tier, asked, is_interrupted=host.is_interrupted, on_text=lambda _: None)
    except ExecutionError as error:
        logger.warning("session=%s: the local model's self_check failed: %s", turn.session_id, error)
        return
    fulfilled = self_check.is_fulfilled(reply.response.choices[0].message.content or "")
    logger.debug("session=%s: the local model's self_check says %s", turn.session_id, fulfilled)
    if fulfilled is not None:
        turn.ledger.append(SelfChecked(task.clock(), fulfilled))


def ask_host(held: Escalated, task: Task, local: LocalCall, *, model: str, provider: str) -> Any:
    """Return what Hermes's own fallback provider answers, which has the task since `held`."""
    request = host.readable(local.request)
    response = host_answered(held, task, local.reply, request, model=model, provider=provider)
    return _words_of(response) if isinstance(response, Stopped) else response


def _words_of(stop: Stopped) -> object:
    return host.spoken_response(stop.text, model="hermes-fallback")
