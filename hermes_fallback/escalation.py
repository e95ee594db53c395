"""Carries out a decision: asks the tiers in turn until one answers, and keeps ledger, journal, log and screen true.

The only file in which money is spent. Nothing is asked before `spending` has allowed it, by a row in the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import executor, explain, handoff, host, prices, shadow, spending
from .budget import Usage, WorstCase, told_tokens
from .config import HERMES, PRIMARY, Tier
from .events import ConsentRefused, Escalated, EscalationFailed, Event, TierReplied, TurnStarted
from .executor import Interrupted, Reply
from .journal import JournalError, Reserved
from .never_send import never_send_match
from .policy import Decision, Escalate, holding, is_off
from .provider_errors import BudgetExceeded, ExecutionError, was_refused
from .redact import Masks
from .replies import Fault, LocalReply, begins_with_call, inspect, offered
from .spending import NotPermitted
from .task import SIGN, Task

logger = logging.getLogger(__name__)

HAND_OVER = object()
"""Instead of an answer: Hermes itself is to go to its fallback providers (DESIGN.md, fact 5)."""

_BROKEN = "left, for its tool call was cut off, or is no JSON, twice in a row; it may need more `max_tokens` or budget"

_LIMITS = ("max_tokens", "max_completion_tokens")
"""By what names Hermes says how long a reply may get: the new one for newer models of OpenAI's, and for Azure."""

_HOST_SECONDS = 1800.0
"""How long a call of Hermes's own provider may take: its timeouts are not ours to know."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Instead of an answer: the task ends with these words, for the budget is used up."""

    text: str


def escalate(decision: Decision, task: Task, request: Mapping[str, Any]) -> Any | None:
    """Return the first answer that a tier gives, HAND_OVER, Stopped, or None when the local model is to answer.

    Raises:
        Interrupted: the user said stop.
    """
    if task.config.policy.is_shadow:
        shadow.begin(decision, task)
        return None
    if not isinstance(decision, Escalate):
        return None
    over_budget = None
    # By one clock: a failure takes its tier out of all decisions of this call, however long the next one is waited for.
    now = task.clock()
    while isinstance(decision, Escalate):
        try:
            response = _ask(decision, task, request)
        except NotPermitted as refusal:
            _refused(task, decision, refusal)
            over_budget = str(refusal) if refusal.is_budget else over_budget
        else:
            if response is not None:
                return response
        decision = task.decide(now=now)
    if over_budget is not None and task.config.policy.budget.on_exceeded == "stop":
        return _stopped(task, over_budget)
    refused = isinstance(task.ledger.events()[-1], ConsentRefused)
    words = "" if refused else "no stronger model answered; "
    task.live.notice(f"{SIGN} {words}{task.local_model} goes on")
    logger.warning("session=%s: %s%s goes on", task.session_id, words, task.local_model)
    return None


def _matches(pattern: str) -> str:
    return f"the conversation matches `never_send` ({pattern})"


def _stopped(task: Task, refusal: NotPermitted | str) -> Stopped:
    is_wanted = task.config.policy.budget.on_exceeded == "stop"
    why = "`on_exceeded: stop`" if is_wanted else "Hermes cannot go back to the local model in it"
    return Stopped(f"{SIGN} The task stops here ({why}): {refusal}.")


def _ask(decision: Escalate, task: Task, request: Mapping[str, Any]) -> Any | None:
    tier = task.config.ladder[decision.tier]
    kept_back = never_send_match(request.get("messages") or (), task.config.handoff.never_send)
    if kept_back is not None:
        _failed(task, decision, f"{tier.name}: not asked, for {_matches(kept_back)}", transient=False)
        return None
    reason = explain.reason(decision.trigger, decision.evidence)
    try:
        if tier.provider == PRIMARY and tier.max_tokens is None:
            # As much as Hermes asks the local model for.
            asked = next((request[name] for name in _LIMITS if request.get(name)), None)
            tier = replace(tier, max_tokens=asked if isinstance(asked, int) else None)
        if tier.provider == HERMES:
            return _hand_over(decision, task, tier, reason=reason)
        prepared = _prepare(tier, task, request, reason)
        reserved = spending.permit(decision, task, tier, reason=reason, worst=prepared.worst)
    except JournalError as error:
        words = f"{tier.name}: not asked, for the journal cannot be written"
        task.unjournaled(words, error)
        _keep_out(task, decision, f"{words}: {error}")
        return None
    if decision.held is None:
        task.live.notice(f"{SIGN} {task.local_model} → {tier.name}: {reason}")
    return _call(decision, task, tier, prepared, reserved, request=request, reason=reason)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A call that is ready to be made: what it costs at most, and how to make it with so many output tokens."""

    worst: WorstCase | None
    send: Callable[[int | None], Reply]


def _call(
    decision: Escalate,
    task: Task,
    tier: Tier,
    prepared: _Prepared,
    reserved: Reserved,
    *,
    request: Mapping[str, Any],
    reason: str,
) -> Any | None:
    started = task.clock()

    def close(state: str, used: Usage, error: str | None = None) -> None:
        seconds = task.clock() - started
        _close(task, reserved.call, state, seconds=seconds, error=error, used=used)

    try:
        reply = prepared.send(reserved.max_tokens)
        said = host.local_reply(reply.response, request)
        fault = inspect(said, offered(host.entries(request.get("tools"))))
    except Interrupted as stop:
        close("interrupted", stop.used)
        logger.info("session=%s: the user stopped %s", task.session_id, tier.name)
        raise
    except BudgetExceeded as error:
        close("failed", error.used, str(error))
        raise NotPermitted(str(error), is_budget=True) from error
    except ExecutionError as error:
        close("failed", error.used, error.in_our_words)
        _failed(task, decision, str(error), transient=error.transient)
        return None
    except BaseException as error:
        # A fault of ours must not leave the row as if the call still ran; what it used is not known.
        close("failed", Usage(), type(error).__name__)
        raise
    used = Usage(reply.input_tokens, reply.output_tokens, reply.cost_usd)
    if fault is not None and _is_useless(said, fault):
        words = f"{tier.name}: it gave {explain.FAULT_WORDS[fault.kind]}"
        close("failed", used, words)
        _failed(task, decision, words, transient=False)
        return None
    close("answered", used)
    was_broken = _last_was_broken(task.ledger.events())
    is_broken = _is_cut_off(said, fault, reply.response)
    _answered(decision, task, tier, reply, reason=reason, journal_id=reserved.escalation, is_broken=is_broken)
    if is_broken and was_broken and decision.held is not None:
        # Hermes would ask for it three times more, and then end the turn (0.19 agent/conversation_loop.py). It asks for
        # this one, too, in a call of its own: no two answers are paid in one.
        _failed(task, decision, f"{tier.name}: {_BROKEN}", transient=False)
    return reply.response


def _last_was_broken(events: Sequence[Event]) -> bool:
    last = next((event for event in reversed(events) if isinstance(event, TierReplied | TurnStarted)), None)
    return isinstance(last, TierReplied) and last.is_broken


def _is_useless(said: LocalReply, fault: Fault) -> bool:
    """Tell whether Hermes could do nothing with a stronger model's reply, but ask for it again or end the turn on it.

    What repeats itself may be what was asked for, unless it would have gone on; and who explains a call shows one.
    """
    if said.calls or fault.kind == "truncated":
        return False
    if fault.kind == "tool_call_as_text":
        return begins_with_call(said.text)
    return fault.kind != "repetition" or said.finish_reason == "length"


def _is_cut_off(said: LocalReply, fault: Fault | None, response: Any) -> bool:
    """Tell whether a reply asks for a call that cannot be made, and have one that was cut off say so.

    Some routers say `tool_calls` of it, and Hermes, which asks again for what was cut off, ends the turn on that (0.19
    agent/conversation_loop.py).
    """
    if not said.calls:
        return False
    if fault is None or fault.kind != "malformed_arguments":
        return said.finish_reason == "length"
    if fault.ends_turn:
        response.choices[0].finish_reason = "length"
    return True


def host_answered(
    held: Escalated, task: Task, ask: Callable[[], Any], request: Mapping[str, Any], *, model: str, provider: str
) -> Any:
    """Return what Hermes's own fallback provider answers to a request, and keep the journal as for any other tier.

    It is Stopped where the user said off, a limit in dollars is used up, the journal cannot be written, or `never_send`
    has something against it: Hermes has switched already, and cannot go back in the turn.

    Raises:
        Exception: what `ask` raises; Hermes goes to its next provider then.
    """
    events = task.ledger.events()
    # Its row may have been begun anew since Hermes went over.
    held = next((event for event in reversed(events) if isinstance(event, Escalated)), held)
    tier = task.config.ladder[held.tier]
    if is_off(events) and holding(events, task.config.policy, task.config.names) is None:
        logger.warning("session=%s: the task stops, for /escalate off", task.session_id)
        words = "you said /escalate off, and Hermes cannot go back to the local model in it"
        return Stopped(f"{SIGN} The task stops here: {words}.")
    kept_back = never_send_match(request.get("messages") or (), task.config.handoff.never_send)
    if kept_back is not None:
        logger.warning("session=%s: the task stops, for %s", task.session_id, _matches(kept_back))
        return _stopped(task, _matches(kept_back))
    try:
        spending.permit_host_call(task, tier)
        call, row = task.journal.start_call(
            held.journal_id,
            model=f"{provider}/{model}",
            turn_id=task.turn_id,
            task_id=task.task_id,
            seconds=_HOST_SECONDS,
            otherwise=task.opening(held, tier, explain.reason(held.trigger, held.evidence)),
        )
        if row != held.journal_id:
            task.ledger.append(replace(held, at=task.clock(), journal_id=row))
    except NotPermitted as refusal:
        logger.warning(
            "session=%s: %s/%s is not asked, and the task stops: %s", task.session_id, provider, model, refusal
        )
        return _stopped(task, refusal)
    except JournalError as error:
        task.unjournaled("a call of Hermes's fallback provider could not be written, and the task stops", error)
        return _stopped(task, f"the journal cannot be written: {error}")
    started = task.clock()
    failure: BaseException | None = None
    try:
        response = ask()
    except BaseException as error:  # noqa: BLE001  # it is raised below
        failure = error
    # Not while it is handled: its words, the provider's, would be in the traceback of what the journal raises.
    if failure is not None:
        said = f"{provider}/{model}: {type(failure).__name__}"
        _close(task, call, "failed", seconds=task.clock() - started, error=said, used=Usage())
        raise failure
    task.ledger.append(TierReplied(task.clock(), held.tier))
    used = _used_by_host(getattr(response, "usage", None), provider, model)
    _close(task, call, "answered", seconds=task.clock() - started, used=used)
    return response


def _used_by_host(usage: object, provider: str, model: str) -> Usage:
    # OpenAI's names, or those of Anthropic and the Responses API.
    tokens_in = told_tokens(usage, "prompt_tokens", "input_tokens")
    tokens_out = told_tokens(usage, "completion_tokens", "output_tokens")
    read = written = 0
    if tokens_in is not None and told_tokens(usage, "prompt_tokens") is None:
        # Anthropic's `input_tokens` leaves both out; by the other names they are a part of the number.
        read = told_tokens(usage, "cache_read_input_tokens") or 0
        written = told_tokens(usage, "cache_creation_input_tokens") or 0
        tokens_in += read + written
    # Where litellm's map does not know what is taken for writing, it may say 0: it is input at least.
    costs = (
        prices.price(provider, model, tokens_in, tokens_out, read_from_cache=read, written_to_cache=count)
        for count in sorted({0, written})
    )
    return Usage(tokens_in, tokens_out, max((usd for usd in costs if usd is not None), default=None))


def _hand_over(decision: Escalate, task: Task, tier: Tier, *, reason: str) -> object | None:
    if not task.live.can_fall_over():
        message = "Hermes has no fallback provider left to go to; add one with `hermes fallback add`"
        _failed(task, decision, message, transient=False)
        return None
    if decision.held is not None:
        spending.permit_host_call(task, tier)
    else:
        journal_id = spending.permit_host(decision, task, tier, reason=reason)
        task.live.notice(f"{SIGN} {task.local_model} → {tier.name}: {reason}")
        task.ledger.append(task.escalated(decision, tier, journal_id))
        logger.info(
            "escalated session=%s from=%s to=%s trigger=%s because: %s",
            task.session_id,
            task.local_model,
            tier.name,
            decision.trigger,
            reason,
        )
    return HAND_OVER


def _prepare(tier: Tier, task: Task, request: Mapping[str, Any], reason: str) -> _Prepared:
    if tier.provider == PRIMARY:
        worst = prices.worst_case(tier, request) if tier.price else None
        return _Prepared(worst, lambda most: _call_primary(replace(tier, max_tokens=most), task, request))
    abilities = executor.abilities(tier)
    masks = Masks(task.filled)
    prepared = handoff.build(
        request,
        note=handoff.note(reason, task.config.handoff),
        options=task.config.handoff,
        masks=masks,
        local_model=task.local_model,
        tier=tier,
        vision=abilities.vision,
        max_input_tokens=abilities.max_input_tokens,
        count_tokens=lambda messages: prices.count_tokens(tier, messages, request.get("tools")),
    )

    def is_interrupted() -> bool:
        # Asked all the time that it takes, and for so long Hermes would hear of nothing.
        task.live.touch(f"waiting for {tier.name}")
        return task.is_interrupted()

    def send(most: int | None) -> Reply:
        on_text = task.live.stream if task.live.begin_answer() else _nobody_watches
        limited = replace(tier, max_tokens=most)
        reply = executor.complete(limited, prepared, is_interrupted=is_interrupted, on_text=on_text)
        _put_back(reply.response, masks)
        return reply

    policy = task.config.policy
    # Where nobody looks at it before the call is over, a bound will do: to count takes as long as to hand over.
    is_looked_at = policy.budget.limits_money or policy.budget.on_exceeded == "ask" or policy.confirm != "never"
    at_most = None if is_looked_at else handoff.most_tokens(prepared)
    return _Prepared(prices.worst_case(tier, prepared, at_most=at_most), send)


def _put_back(response: Any, masks: Masks) -> None:
    """Have a reply's calls use what the masks in them stand for; its text, which is shown and kept, has the masks."""
    for call in response.choices[0].message.tool_calls or ():
        call.function.arguments = masks.put_back(call.function.arguments)


def _call_primary(tier: Tier, task: Task, request: Mapping[str, Any]) -> Reply:
    """Ask another model on the local model's own endpoint, the way that Hermes asks: it streams and stops natively."""
    started = task.clock()
    # An endpoint that knows both names heeds the new one.
    limits = dict.fromkeys([name for name in _LIMITS if name in request] or _LIMITS[:1], tier.max_tokens)
    overrides = {**limits, "temperature": tier.temperature, "timeout": tier.timeout_seconds}
    given = {name: value for name, value in overrides.items() if value is not None}
    task.live.begin_answer()
    try:
        response = task.call_local_endpoint({**request, **given, "model": tier.model})
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, InterruptedError):
            stop = Interrupted()
            stop.used = Usage()
            raise stop from error
        message = f"{tier.name}: the local endpoint did not answer for it [{type(cause).__name__}]; check `model`"
        failure = ExecutionError(message, transient=False)
        if not was_refused(cause):
            failure.used = Usage()  # Hermes has tried again by itself, nobody knows how often
        raise failure from None  # its words are the endpoint's, and a traceback of a later fault would log them
    if response is None:
        raise ExecutionError(f"{tier.name}: this Hermes gives no way to ask the local endpoint again", transient=False)
    usage = getattr(response, "usage", None)
    tokens_in, tokens_out = told_tokens(usage, "prompt_tokens"), told_tokens(usage, "completion_tokens")
    # Not nothing, even on this machine, unless the user says so: a litellm proxy there may lead anywhere.
    known = tokens_in is not None and tokens_out is not None
    usd = prices.cost(tier, tokens_in or 0, tokens_out or 0) if known else None
    return Reply(response, task.clock() - started, tokens_in, tokens_out, usd)


def _answered(
    decision: Escalate, task: Task, tier: Tier, reply: Reply, *, reason: str, journal_id: int, is_broken: bool
) -> None:
    # Anew, too, where the row of the one that holds was gone.
    if decision.held is None or decision.held.journal_id != journal_id:
        task.ledger.append(task.escalated(decision, tier, journal_id))
    task.ledger.append(TierReplied(task.clock(), decision.tier, is_broken))
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


def _failed(task: Task, decision: Escalate, error: str, *, transient: bool) -> None:
    _keep_out(task, decision, error, transient=transient)
    logger.warning("escalation failed session=%s trigger=%s: %s", task.session_id, decision.trigger, error)


def _keep_out(task: Task, decision: Escalate, error: str, *, transient: bool = True) -> None:
    """Keep a tier that could not be asked from being asked for a while, and say why on the screen."""
    task.ledger.append(EscalationFailed(task.clock(), decision.tier, error, transient))
    task.live.notice(f"{SIGN} {error}")


def _refused(task: Task, decision: Escalate, refusal: NotPermitted) -> None:
    """Keep what the user's rules do not allow from being asked again in this task, and say so."""
    tier = task.config.ladder[decision.tier]
    words = str(refusal) if str(refusal).startswith(tier.name) else f"{tier.name} is not asked: {refusal}"
    if not isinstance(task.ledger.events()[-1], ConsentRefused):
        task.ledger.append(EscalationFailed(task.clock(), decision.tier, words, transient=False))
    task.live.notice(f"{SIGN} {words}")
    kind = "budget" if refusal.is_budget else "consent"
    logger.warning("not escalated session=%s trigger=%s (%s): %s", task.session_id, decision.trigger, kind, words)


def _close(task: Task, call: int, state: str, *, seconds: float, used: Usage, error: str | None = None) -> None:
    try:
        task.journal.end_call(call, state, turn_id=task.turn_id, seconds=seconds, error=error, used=used)
    except JournalError as unwritten:
        # The answer is there and paid for; the reservation goes on counting, and is taken for spent when it expires.
        task.unjournaled("the end of a paid call could not be written", unwritten)


def _nobody_watches(text: str) -> None:
    del text
