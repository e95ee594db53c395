"""A running turn, and the host's call of the local model in it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .budget import Usage
from .config import Config
from .events import Escalated
from .journal import Journal
from .ledger import Ledger
from .live import LiveAgent, find_agent
from .names import Names
from .pauses import local_calls
from .replies import Tools


@dataclass(slots=True)
class Tally:
    """What the local model did in a turn; tokens are those of the calls whose endpoint told them."""

    calls: int = 0
    untold: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, used: Usage) -> None:
        """Count one more call."""
        self.calls += 1
        if used.input_tokens is None or used.output_tokens is None:
            self.untold += 1
            return
        self.input_tokens += used.input_tokens
        self.output_tokens += used.output_tokens


@dataclass(slots=True)
class Turn:
    """A running turn: which session it belongs to, and the configuration that holds for it.

    `account` and `task_id` are the session and the turn that pay: those of a sub-agent's parent.
    """

    session_id: str
    turn_id: str
    platform: str
    model: str
    config: Config
    ledger: Ledger
    journal: Journal
    account: str
    task_id: str
    message: str
    may_spend: bool
    steers: set[tuple[str, str] | None]
    """The `/steer escalate` that were seen."""
    began: float
    names: Names = field(default_factory=Names)
    task_type: str = ""
    type_reason: str = ""
    is_typed: bool = False
    """Whether its type was looked for: at its first call, when its tools are known."""
    local: Tally = field(default_factory=Tally)
    base_url: str = ""
    """Where the local model answers; known from the turn's first call on."""
    live: LiveAgent = field(default_factory=lambda: LiveAgent(None))
    offered: tuple[object, Tools] = (None, Tools())
    """The tools of the last request, and what was read out of them."""
    deaf: bool = False
    """Whether a `/steer escalate` in it is not heeded: who said it may not, or nobody did."""
    spoken: str | None = None
    """What a command that arrived as a message is answered with, in the model's place."""
    has_asked: bool = False
    """Whether a stronger model was to be asked in it: only then is there a sum to be told."""
    handed_over: Escalated | None = None
    """The escalation by which Hermes's own fallback providers have this turn."""


class LocalCall:
    """The host's one call of the local model: made at most once, its outcome kept for whoever asks again."""

    def __init__(self, next_call: Callable[..., Any], request: Mapping[str, Any]) -> None:
        self.request = request
        self.error: Exception | None = None
        self._next_call = next_call
        self._used = False
        self._replied = False
        self._response: Any = None

    @functools.cached_property
    def live(self) -> LiveAgent:
        """The agent that makes this call, as far as it can be found."""
        return find_agent(self._next_call)

    def reply(self) -> Any:
        """Return what the local model says, or raise what the host's call raised."""
        if self.error is not None:
            raise self.error
        if not self._replied:
            try:
                self._response = self.send(self.request)
            except Exception as error:
                self.error = error
                raise
            self._replied = True
        return self._response

    def send(self, request: Mapping[str, Any]) -> Any:
        """Send a request to the local endpoint: through the host's `next_call` while that can be used."""
        if self._used:
            return self.live.call_again(request)
        self._used = True
        local_calls.add(self)
        try:
            return self._next_call(dict(request))
        finally:
            local_calls.discard(self)
