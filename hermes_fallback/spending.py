"""Whether a call may be paid: who asks for it, whether a person said yes, and whether it fits the budget.

What is allowed leaves here as a reservation in the journal; there is no other way to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from . import budget, executor, explain
from .budget import Allowed, Exceeded, Spent, WorstCase
from .config import Budget, Tier
from .events import BudgetLifted, ConsentGiven, ConsentRefused, Event, LimitName, TurnStarted
from .journal import Reserved
from .policy import Escalate
from .task import Task

_Fits = TypeVar("_Fits", Reserved, Allowed, int)


class NotPermitted(Exception):  # noqa: N818  # nothing went wrong: the user's rules say no
    """No money may be spent on this call; the message says why, in words for people.

    `is_budget`: the budget says so, and not a person.
    """

    def __init__(self, message: str, *, is_budget: bool) -> None:
        super().__init__(message)
        self.is_budget = is_budget


def permit(decision: Escalate, task: Task, tier: Tier, *, reason: str, worst: WorstCase | None) -> Reserved:
    """Return the reservation for a call that costs `worst` at most, as soon as all that the user set allows it.

    Raises:
        NotPermitted: by a person, by `allowed_users`, or by the budget.
        JournalError: what is spent cannot be read, or the reservation not be written.
    """
    _check_user(task)
    exceeded = _confirm(task, tier, reason=reason, worst=worst) if decision.held is None else None
    reserve = partial(_reserve, decision, task, tier, reason=reason, worst=worst)
    return _lifting(exceeded, reserve, task, tier, worst=worst)


def permit_host(decision: Escalate, task: Task, tier: Tier, *, reason: str) -> int:
    """Return the journal's row of a new escalation, as soon as Hermes may go to its own fallback providers for it.

    Their price is not known before they answer.

    Raises:
        NotPermitted: by a person, by `allowed_users`, or by the budget.
        JournalError: what is spent cannot be read, or the row not be written.
    """
    _check_user(task)
    exceeded = _confirm(task, tier, reason=reason, worst=None)

    def begin() -> int | Exceeded:
        opening = task.opening(decision, tier, reason)
        fit = _fit(task, tier, None, is_new=True)
        return task.journal.begin_escalation(opening, task_id=task.task_id, fit=fit)

    return _lifting(exceeded, begin, task, tier, worst=None)


def permit_host_call(task: Task, tier: Tier) -> None:
    """Return if Hermes may make a further call of its own fallback providers.

    Raises:
        NotPermitted: by a person, by `allowed_users`, or by the budget.
        JournalError: what is spent cannot be read.
    """
    _check_user(task)

    def look() -> Allowed | Exceeded:
        spent = task.journal.spent(task_id=task.task_id, account=task.account)
        return _fit(task, tier, None, is_new=False)(spent)

    _lifting(None, look, task, tier, worst=None)


def _check_user(task: Task) -> None:
    # At each call: a tier that holds the session answers whoever writes into it.
    if not task.may_spend:
        task.ledger.append(ConsentRefused(task.clock()))
        raise NotPermitted("who wrote the message is not in `allowed_users`", is_budget=False)


def _confirm(task: Task, tier: Tier, *, reason: str, worst: WorstCase | None) -> Exceeded | None:
    """Have a person say yes, where one is to be asked; a no holds for the rest of the task, whatever the tier.

    What cannot be paid for anyway is not asked for, but returned.
    """
    confirm = task.config.policy.confirm
    events = task.ledger.events()
    if confirm == "never" or (confirm == "first_in_session" and any(isinstance(one, ConsentGiven) for one in events)):
        return None
    spent = task.journal.spent(task_id=task.task_id, account=task.account)
    allowed = _fit(task, tier, worst, is_new=True)(spent)
    if isinstance(allowed, Exceeded):
        return allowed
    consent = task.ask(" ".join(_question(task, tier, reason=reason, worst=worst, allowed=allowed, spent=spent)))
    if not consent.given:
        task.ledger.append(ConsentRefused(task.clock()))
        raise NotPermitted(consent.why, is_budget=False)
    task.ledger.append(ConsentGiven(task.clock()))
    return None


def _lifting(
    exceeded: Exceeded | None,
    look: Callable[[], _Fits | Exceeded],
    task: Task,
    tier: Tier,
    *,
    worst: WorstCase | None,
) -> _Fits:
    """Return what fits the budget, once a person has lifted each limit that is in its way, where one is to be asked."""
    answer = exceeded or look()
    while isinstance(answer, Exceeded):
        if task.config.policy.budget.on_exceeded != "ask":
            raise NotPermitted(answer.why, is_budget=True)
        consent = task.ask(
            f"{tier.name} would go over the budget: {answer.why}. {_at_most(worst, _usual_tokens(tier))} "
            "Let it do so, for this task?"
        )
        if not consent.given:
            task.ledger.append(ConsentRefused(task.clock()))
            raise NotPermitted(f"{answer.why} ({consent.why})", is_budget=True)
        task.ledger.append(BudgetLifted(task.clock(), answer.limit))
        answer = look()
    return answer


def _question(
    task: Task, tier: Tier, *, reason: str, worst: WorstCase | None, allowed: Allowed, spent: Spent
) -> Iterator[str]:
    yield f"Let {tier.name} take over from {task.local_model}, because {reason}?"
    yield _at_most(worst, allowed.max_tokens or _usual_tokens(tier))
    nearest = budget.left(_limits(task), spent)
    yield "No budget is set." if nearest is None else f"Of the budget, {nearest}."


def _at_most(worst: WorstCase | None, tokens_out: int) -> str:
    if worst is None:
        return "What it costs is not known."
    return (
        f"A call has about {explain.tokens(worst.input_tokens)} in and up to {explain.tokens(tokens_out)} out: "
        f"{explain.usd(worst.usd(tokens_out))} at most, and a task takes several."
    )


def _max_tokens(task: Task, tier: Tier, worst: WorstCase | None) -> int | None:
    """Return how long a reply may get before it is looked at what is left; None: as long as the model likes."""
    # Whoever said yes was told what a call costs at most.
    is_told = task.config.policy.confirm != "never" or any(_lifted(task.ledger.events()))
    is_limited = is_told or _limits(task).limits_money
    return _usual_tokens(tier) if is_limited and worst is not None else tier.max_tokens


def _usual_tokens(tier: Tier) -> int:
    if tier.max_tokens is not None:
        return tier.max_tokens
    usual = tier.thinking_tokens + budget.USUAL_OUTPUT_TOKENS
    # A limit beyond what a model can write is refused: DeepSeek's chat stops at 8,192.
    return min(usual, executor.abilities(tier).max_output_tokens or usual)


def _least_tokens(tier: Tier) -> int:
    # Claude refuses a limit into which what it is to think does not fit.
    return max(budget.LEAST_OUTPUT_TOKENS, tier.thinking_tokens + 1)


def _reserve(
    decision: Escalate, task: Task, tier: Tier, *, reason: str, worst: WorstCase | None
) -> Reserved | Exceeded:
    opening = task.opening(decision, tier, reason)
    return task.journal.reserve(
        decision.held.journal_id if decision.held else opening,
        turn_id=task.turn_id,
        task_id=task.task_id,
        account=task.account,
        seconds=tier.timeout_seconds,
        fit=_fit(task, tier, worst, is_new=decision.held is None),
        otherwise=opening,
    )


def _fit(task: Task, tier: Tier, worst: WorstCase | None, *, is_new: bool) -> Callable[[Spent], Allowed | Exceeded]:
    return partial(
        budget.fit,
        _limits(task),
        worst=worst,
        max_tokens=_max_tokens(task, tier, worst),
        least_tokens=_least_tokens(tier),
        is_new=is_new,
    )


def _limits(task: Task) -> Budget:
    limits = task.config.policy.budget
    for name in _lifted(task.ledger.events()):
        limits = limits.without(name)
    return limits


def _lifted(events: tuple[Event, ...]) -> Iterator[LimitName]:
    """Return the limits that a person has lifted for this task."""
    for event in reversed(events):
        if isinstance(event, TurnStarted):
            return
        if isinstance(event, BudgetLifted):
            yield event.limit
