"""What an escalation needs to know of the turn that it is for, and may do with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import Config, Tier
from .events import Escalated
from .guard import Guard
from .journal import Journal, JournalError, Opening
from .ledger import Ledger
from .live import LiveAgent
from .policy import Decision, Escalate, decide
from .redact import Filled

SIGN = "⚡"
"""Begins every line that the user sees of us."""


@dataclass(frozen=True, slots=True)
class Consent:
    """What a person said when asked for money; `why` says what kept it from being a yes."""

    given: bool
    why: str = ""


@dataclass(slots=True)  # one is made for each call, and a frozen one would take thrice as long
class Task:
    """One turn of a session, at one call.

    `account` is the session that pays and `task_id` the turn that pays: those of a sub-agent's parent. `may_spend` is
    false for a chat user who is not in `allowed_users`; `ask` puts a question about money to a person; `note_asked` is
    told before a stronger model is asked.
    """

    session_id: str
    account: str
    turn_id: str
    task_id: str
    task_type: str
    type_reason: str
    may_spend: bool
    local_model: str
    config: Config
    ledger: Ledger
    journal: Journal
    live: LiveAgent
    clock: Callable[[], float]
    is_interrupted: Callable[[], bool]
    call_local_endpoint: Callable[[Mapping[str, Any]], Any]
    ask: Callable[[str], Consent]
    guard: Guard
    filled: Filled
    note_asked: Callable[[], None]

    def decide(self, *, now: float | None = None) -> Decision:
        """Return who answers next, by what is known; `now` is monotonic seconds, where it is not the clock's."""
        # In shadow, the local model has the task all along: what it does cannot lead to a second tier.
        names = self.config.names[:1] if self.config.policy.is_shadow else self.config.names
        events, index = self.ledger.past()
        now = self.clock() if now is None else now
        return decide(events, self.config.policy, tiers=len(names), names=names, now=now, index=index)

    def unjournaled(self, what: str, error: JournalError) -> None:
        """Say in the log, and count for `/escalate status`, that the journal could not be used."""
        self.guard.note_unjournaled(what, self.account, error)

    def opening(self, decision: Escalate | Escalated, tier: Tier, reason: str) -> Opening:
        """Return what the journal gets to know of an escalation that begins, or of one whose row is gone."""
        return Opening(
            session_id=self.account,
            from_model=self.local_model,
            to_model=tier.name,
            trigger=decision.trigger,
            reason=reason,
            task_type=self.task_type,
            type_reason=self.type_reason,
            is_shadow=self.config.policy.is_shadow,
        )

    def escalated(self, decision: Escalate, tier: Tier, journal_id: int) -> Escalated:
        """Return what the ledger gets to know when a tier has taken the task over, or in shadow would have."""
        return Escalated(
            at=self.clock(),
            tier=decision.tier,
            model=tier.name,
            trigger=decision.trigger,
            evidence=decision.evidence,
            journal_id=journal_id,
            is_shadow=self.config.policy.is_shadow,
            for_session=decision.held.for_session if decision.held else self.config.policy.hold == "session",
        )
