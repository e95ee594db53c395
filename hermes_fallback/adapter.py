"""Hermes's hooks and middleware → events; decisions → effects. The only file that knows Hermes, besides `live.py`.

Hermes swallows what a plugin raises (DESIGN.md, facts 2 and 3): after our middleware fails, the local model answers as
if nothing were there. So every entry point here goes through one boundary that logs our own faults at ERROR.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import config as configuration
from . import executor, explain, fingerprint, handoff
from .config import Config, ConfigError
from .escalation import SIGN, Task, escalate
from .events import (
    UNCHANGED,
    CallFailed,
    CallFailure,
    EscalationRequested,
    Event,
    ReplyAccepted,
    ReplyInvalid,
    TierReplied,
    ToolFailed,
    ToolSucceeded,
    TurnEnded,
    TurnStarted,
)
from .executor import Interrupted
from .journal import Journal, JournalError
from .ledger import Ledger, Ledgers
from .live import LiveAgent, cli_session_id, find_agent
from .replies import Call, LocalReply, inspect, offered

logger = logging.getLogger(__name__)

UNNAMED_SESSION = ""
"""Where a command goes that is given before the first message: the next session on the CLI takes it over."""

# Hermes reviews finished turns for memories and skills on a copy of the agent with the same session id; nobody waits
# for it and nobody asked, so it is never worth money (0.19 run_agent.py `_spawn_background_review`).
_REVIEW_THREAD = "bg-review"

# A turn that makes only these calls beside its text has given its answer (0.19 agent/conversation_loop.py).
_HOUSEKEEPING = frozenset({"memory", "todo", "skill_manage", "session_search"})

_CALL_FAILURES: Mapping[str, CallFailure] = {
    "context_overflow": "context_overflow",
    "payload_too_large": "context_overflow",
    "overloaded": "overloaded",
    "rate_limit": "overloaded",
    "upstream_rate_limit": "overloaded",
    "timeout": "timed_out",
    "server_error": "broken",
    "unknown": "broken",
}
"""Hermes's classes of failure (0.19 agent/error_classifier.py `FailoverReason`); the others are refusals."""


@dataclass(slots=True)
class Turn:
    """A running turn: which session it belongs to, and the configuration it started with."""

    session_id: str
    turn_id: str
    platform: str
    model: str
    config: Config
    ledger: Ledger
    live: LiveAgent = field(default_factory=lambda: LiveAgent(None))
    forged_steer: bool = False


@dataclass(slots=True)
class Settings:
    """The configuration in force; read anew at each user message, checked anew when the block changed."""

    read_block: Callable[[], object]
    _block: object = None
    config: Config | None = None
    faults: tuple[str, ...] = ()

    def refresh(self) -> Config | None:
        """Return the configuration, or None when there is no block or a faulty one (which is logged once)."""
        block = self.read_block()
        if block == self._block:
            return self.config
        self._block, self.config, self.faults = block, None, ()
        if block is None:
            return None
        try:
            self.config = configuration.parse(block)
        except ConfigError as error:
            self.faults = error.faults
            logger.error(  # noqa: TRY400  # the faults are the user's; a traceback would bury them
                "hermes-fallback is not active, for its configuration has faults:\n%s\nRun `hermes escalation check`.",
                error,
            )
        return self.config


class Adapter:
    """What one loaded plugin keeps: its settings, the ledgers of its sessions, the turns that are running."""

    def __init__(
        self,
        *,
        read_block: Callable[[], object],
        home: Callable[[], Path],
        manager: object = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = Settings(read_block)
        self.ledgers = Ledgers()
        self.clock = clock
        self._home = home
        self._manager = manager
        self._turns: dict[str, Turn] = {}
        self._children: set[str] = set()
        self._cli_session: str | None = None
        self._told: set[str] = set()
        self._lock = threading.Lock()

    @property
    def journal(self) -> Journal:
        """The journal in Hermes's home, which may change with the profile."""
        return Journal(self._home() / "hermes-fallback")

    def foreground_session(self) -> str:
        """Return the session that a command typed on the CLI is meant for (DESIGN.md, fact 13)."""
        return cli_session_id(self._manager) or self._cli_session or UNNAMED_SESSION

    def pre_llm_call(
        self, *, session_id: str = "", turn_id: str = "", model: str = "", platform: str = "", **_: object
    ) -> None:
        """A user turn starts: read the configuration and open the turn."""
        with _boundary("pre_llm_call"):
            if threading.current_thread().name == _REVIEW_THREAD:
                return
            config = self.settings.refresh()
            if platform == "cli" and session_id not in self._children:
                self._cli_session = session_id
                self.ledgers.rename(UNNAMED_SESSION, session_id)
            if config is None or not config.policy.enabled:
                return
            ledger = self.ledgers.of_session(session_id)
            with self._lock:
                # Hermes leaves some failed turns without a word (0.19 conversation_loop, early returns).
                unended = [id_ for id_, turn in self._turns.items() if turn.ledger is ledger]
                for id_ in unended:
                    del self._turns[id_]
                self._turns[turn_id] = Turn(session_id, turn_id, platform, model, config, ledger)
            now = self.clock()
            ledger.append(*[TurnEnded(now)] * len(unended), TurnStarted(now, turn_id, model))

    def post_tool_call(
        self,
        *,
        turn_id: str = "",
        tool_name: str = "",
        args: object = None,
        result: object = None,
        status: str = "",
        error_message: object = None,
        **_: object,
    ) -> None:
        """A tool gave its result."""
        with _boundary("post_tool_call"):
            turn = self._turns.get(turn_id)
            if turn is None:
                return
            text = result if isinstance(result, str) else json.dumps(result, default=str)
            if handoff.STEER_OPEN in text:
                # Hermes appends the user's words after this hook, so these are the tool's own: nobody said them.
                turn.forged_steer = True
            event = _tool_event(self.clock(), tool_name, args, text, status=status, error=error_message)
            if event is None:
                return
            turn.ledger.append(event)
            if isinstance(event, ToolFailed):
                _warm(turn)

    def transform_llm_output(self, *, response_text: str = "", session_id: str = "", **_: object) -> str | None:
        """The turn's answer is about to be shown: add who gave it, where no line on the screen says so."""
        with _boundary("transform_llm_output"):
            turn = self._turn_of_session(session_id)
            summary = self._summary(turn) if turn else None
            # On the CLI the line stands on the screen (`on_session_end`), and a script reads what `hermes -z` prints.
            if turn is None or summary is None or (turn.platform == "cli" and (turn.live.found or _is_silent())):
                return None
            return f"{response_text}\n\n{summary}"
        return None

    def on_session_end(self, *, turn_id: str = "", **_: object) -> None:
        """The turn is over (not the session: DESIGN.md, fact 7)."""
        with _boundary("on_session_end"):
            with self._lock:
                turn = self._turns.pop(turn_id, None)
            if turn is None:
                return
            summary = self._summary(turn)
            turn.ledger.append(TurnEnded(self.clock()))
            if summary is not None:
                logger.info("task finished session=%s: %s", turn.session_id, summary.removeprefix(f"{SIGN} "))
                if turn.platform == "cli" and not _is_silent():
                    turn.live.last_word(summary)

    def on_session_finalize(self, *, session_id: object = None, **_: object) -> None:
        """The session is over."""
        with _boundary("on_session_finalize"):
            self._forget(session_id)

    def on_session_reset(self, *, old_session_id: object = None, **_: object) -> None:
        """The session was cleared, and another one starts."""
        with _boundary("on_session_reset"):
            self._forget(old_session_id)

    def subagent_start(self, *, child_session_id: object = None, **_: object) -> None:
        """A session starts that nobody types into."""
        with _boundary("subagent_start"):
            if isinstance(child_session_id, str):
                self._children.add(child_session_id)

    def subagent_stop(self, *, child_session_id: object = None, **_: object) -> None:
        """A sub-agent's session is over."""
        with _boundary("subagent_stop"):
            self._forget(child_session_id)

    def llm_execution(
        self,
        *,
        request: Mapping[str, Any],
        next_call: Callable[..., Any],
        session_id: str = "",
        turn_id: str = "",
        model: str = "",
        provider: str = "",
        base_url: str = "",
        api_mode: str = "",
        **_: object,
    ) -> Any:
        """One model call of the agent loop: let the local model answer, or have a stronger one do it."""
        turn = self._turns.get(turn_id)
        if turn is None:
            return next_call(request)
        local = LocalCall(next_call, request)
        try:
            self._open(turn, session_id)
            if not self._is_ours(turn, model=model, provider=provider, base_url=base_url, api_mode=api_mode):
                return local.reply()
            turn.live = local.live
            return self._route(turn, local, base_url=base_url)
        except Exception as error:
            if error is local.error:
                raise
            # The one place where a bug of ours ends up: said loudly, and the local model answers.
            logger.exception("hermes-fallback failed; %s goes on without it", turn.model)
            return local.reply()

    def _route(self, turn: Turn, local: LocalCall, *, base_url: str) -> Any:
        task = Task(
            session_id=turn.session_id,
            turn_id=turn.turn_id,
            local_model=turn.model,
            base_url=base_url,
            config=turn.config,
            ledger=turn.ledger,
            journal=self.journal,
            live=local.live,
            clock=self.clock,
            is_interrupted=_is_interrupted,
            call_local_endpoint=local.send,
        )
        messages = local.request.get("messages") or ()
        if handoff.asks_to_escalate(messages) and not turn.forged_steer and not _asked_already(turn):
            turn.ledger.append(EscalationRequested(self.clock()))
        try:
            return self._answer(turn, local, task)
        except Interrupted:
            # Hermes looks at its own flag as soon as the local call begins, and ends the turn as stopped.
            return local.reply()

    def _answer(self, turn: Turn, local: LocalCall, task: Task) -> Any:
        response = escalate(task.decide(), task, local.request)
        if response is not None:
            return response
        try:
            response = local.reply()
        except Exception as error:
            cause = error.__cause__ or error
            if isinstance(cause, InterruptedError):
                raise
            turn.ledger.append(_call_failed(self.clock(), cause, local.request))
            response = escalate(task.decide(), task, local.request)
            if response is None:
                raise
            return response
        fault = inspect(_local_reply(response, local.request), offered(local.request.get("tools")))
        if fault is None:
            turn.ledger.append(ReplyAccepted(self.clock()))
            return response
        turn.ledger.append(ReplyInvalid(self.clock(), fault.kind, fault.ends_turn))
        _warm(turn)
        replacement = escalate(task.decide(), task, local.request)
        return response if replacement is None else replacement

    def _open(self, turn: Turn, session_id: str) -> None:
        if session_id and session_id != turn.session_id:
            # Hermes compressed the context and gave the session a new id; the task goes on (DESIGN.md, fact 7).
            self.ledgers.rename(turn.session_id, session_id)
            turn.session_id = session_id

    def _is_ours(self, turn: Turn, *, model: str, provider: str, base_url: str, api_mode: str) -> bool:
        if model != turn.model:
            # Hermes itself fell over to another model within the turn; that one is not the local model.
            return False
        primary = turn.config.primary
        if primary is not None and not primary.matches(model=model, provider=provider, base_url=base_url):
            self._tell_once(f"stays out: Hermes runs {model} ({provider}), and `primary` is {primary.model}")
            return False
        if api_mode != "chat_completions":
            self._tell_once(f"stays out: {model} is called by {api_mode}, and only chat_completions can be carried on")
            return False
        return True

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            logger.warning("hermes-fallback %s", message)

    def _turn_of_session(self, session_id: str) -> Turn | None:
        with self._lock:
            return next((turn for turn in self._turns.values() if turn.session_id == session_id), None)

    def _summary(self, turn: Turn) -> str | None:
        """Say who helped in this turn and what it cost, if anybody did."""
        if not _has_escalated(turn.ledger.events()):
            return None
        try:
            entries = self.journal.entries(turn_id=turn.turn_id)
        except JournalError:
            logger.exception("session=%s: what the turn cost cannot be read", turn.session_id)
            return f"{SIGN} a stronger model helped; what it cost cannot be read from the journal"
        parts = [
            f"{entry.to_model} helped, because {entry.reason} ({explain.calls(entry.calls)}, "
            f"{explain.usage(entry.input_tokens, entry.output_tokens, entry.cost_usd)})"
            for entry in reversed(entries)
            if entry.calls
        ]
        return f"{SIGN} {'; '.join(parts)}"

    def _forget(self, session_id: object) -> None:
        if not isinstance(session_id, str):
            return
        self.ledgers.forget(session_id)
        self._children.discard(session_id)
        if self._cli_session == session_id:
            self._cli_session = None
        with self._lock:
            for id_ in [id_ for id_, turn in self._turns.items() if turn.session_id == session_id]:
                del self._turns[id_]


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
        return self._next_call(dict(request))


def read_block() -> object:
    """Return the `model_routing` block of Hermes's config.yaml as it is now, or None."""
    from hermes_cli.config import load_config  # noqa: PLC0415  # only there when Hermes runs

    return load_config().get("model_routing")


def hermes_home() -> Path:
    """Return Hermes's home, which holds its configuration and our journal."""
    from hermes_constants import get_hermes_home  # noqa: PLC0415  # only there when Hermes runs

    return Path(get_hermes_home())


@contextmanager
def _boundary(name: str) -> Iterator[None]:
    """Keep a fault of ours from the host, which would swallow it, and say it loudly."""
    try:
        yield
    except Exception:
        logger.exception("hermes-fallback failed in %s", name)


def _tool_event(
    at: float, tool: str, args: object, result: str, *, status: str, error: object
) -> ToolFailed | ToolSucceeded | None:
    call = fingerprint.call_fingerprint(tool, args)
    if _is_unchanged(result, error):
        return ToolSucceeded(at, tool, call, UNCHANGED)
    if status == "error":
        message = str(error or result)
        kind = fingerprint.error_kind(message)
        words = fingerprint.error_words(message) or "an error"
        return ToolFailed(at, tool, call, fingerprint.result_fingerprint(message), words, kind)
    if status != "ok":
        return None  # blocked by a guard, denied by the user, cancelled: not the model's failure
    printed = fingerprint.result_fingerprint(result)
    exit_status, output = _command_outcome(result)
    if not exit_status:
        return ToolSucceeded(at, tool, call, printed)
    words = fingerprint.error_words(output) or f"exit status {exit_status}"
    return ToolFailed(at, tool, call, printed, words, fingerprint.error_kind(output), command=True)


def _is_unchanged(result: str, error: object) -> bool:
    # What read_file says instead of the same content again (0.19 tools/file_tools.py).
    return '"dedup": true' in result[-400:] or str(error or "").startswith("BLOCKED: You have ")


def _command_outcome(result: str) -> tuple[int | None, str]:
    if '"exit_code"' not in result:
        return None, ""
    try:
        parsed = json.loads(result)
    except ValueError:
        return None, ""
    if not isinstance(parsed, dict):
        return None, ""
    return fingerprint.exit_status(parsed), str(parsed.get("output") or "")


def _call_failed(at: float, error: BaseException, request: Mapping[str, Any]) -> CallFailed:
    # Hermes's own judgement, so that ours cannot differ from it.
    from agent.error_classifier import classify_api_error  # noqa: PLC0415  # only there when Hermes runs

    classified = classify_api_error(error, num_messages=len(request.get("messages") or ()))
    failure = _CALL_FAILURES.get(classified.reason.value, "refused")
    if failure == "timed_out" and "connect" in f"{type(error).__name__} {error}".lower():
        failure = "unreachable"
    # Hermes would compress the conversation and lose what the task knows, or give up where that does not help.
    ends_turn = failure == "context_overflow" or not classified.retryable
    return CallFailed(at, failure, ends_turn)


def _local_reply(response: Any, request: Mapping[str, Any]) -> LocalReply:
    choices = getattr(response, "choices", None) or ()
    if not choices:
        return LocalReply("")
    message = choices[0].message
    calls = tuple(
        Call(str(call.function.name or ""), _arguments(call.function.arguments))
        for call in getattr(message, "tool_calls", None) or ()
    )
    content = getattr(message, "content", None)
    return LocalReply(
        text=content if isinstance(content, str) else handoff.text_of(content),
        calls=calls,
        finish_reason=getattr(choices[0], "finish_reason", None),
        answered_before=_answered_before(request.get("messages") or ()),
    )


def _arguments(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments if arguments is not None else {})


def _answered_before(messages: Any) -> bool:
    last: Mapping[str, Any] = next((message for message in reversed(messages) if message.get("role") != "tool"), {})
    calls = last.get("tool_calls") or ()
    names = {call.get("function", {}).get("name") for call in calls}
    return bool(names) and names <= _HOUSEKEEPING and bool(handoff.text_of(last.get("content")).strip())


def _asked_already(turn: Turn) -> bool:
    """Tell whether this /steer was heeded: its tool message stays the last one while Hermes retries the call."""
    last: Event | None = None
    for event in turn.ledger.events():
        if isinstance(event, EscalationRequested | ToolSucceeded | ToolFailed):
            last = event
    return isinstance(last, EscalationRequested)


def _has_escalated(events: Sequence[Event]) -> bool:
    for event in reversed(events):
        if isinstance(event, TierReplied):
            return True
        if isinstance(event, TurnStarted):
            return False
    return False


def _warm(turn: Turn) -> None:
    if any(tier.provider != configuration.PRIMARY for tier in turn.config.ladder):
        executor.warm()


def _is_interrupted() -> bool:
    from tools.interrupt import is_interrupted  # noqa: PLC0415  # only there when Hermes runs

    return bool(is_interrupted())


def _is_silent() -> bool:
    # `hermes -z` prints the answer alone, for scripts, and switches all logging off (DESIGN.md, fact 18).
    return logging.root.manager.disable >= logging.CRITICAL
