"""Hermes's hooks and middleware → events: whose session it is, what was said in it, and what is told of it.

What is read of Hermes itself stands in `host.py` and `live.py`; who answers a model call, in `routing.py`.

Hermes swallows what a plugin raises (DESIGN.md, facts 2 and 3): after our middleware fails, the local model answers as
if nothing were there. So `guard.py` says our own faults loudly, and counts them, for whatever Hermes calls.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from . import commands, explain, handoff, host, kinds, lazy_litellm, routing, self_check, signs
from .config import Config
from .events import (
    ConsentGiven,
    ConsentRefused,
    EscalationRequested,
    Event,
    SwitchedAuto,
    SwitchedOff,
    TurnEnded,
    TurnStarted,
    TypeMatched,
    UserAnswered,
    is_telling,
)
from .guard import MOST, Guard
from .journal import Journal, JournalError
from .ledger import Ledger, Ledgers
from .live import Chat, cli_session_id, find_chat, tui_session_id
from .policy import holding, is_off, is_refused
from .redact import Filled
from .settings import Settings
from .task import SIGN, Consent, Task
from .turn import LocalCall, Turn

logger = logging.getLogger(__name__)

_chat: ContextVar[Chat | None] = ContextVar("hermes_fallback_chat", default=None)
"""The chat whose message this task (of the event loop, or the agent's thread that it starts) works for."""

_LOST = Chat("", None)
"""The chat of a message at which we failed: it is nobody's, so nothing that comes of it commands or spends."""

UNNAMED_SESSION = ""
"""Where a command goes that is given before the first message: the next session on the CLI takes it over."""

# Hermes reviews finished turns for memories and skills on a copy of the agent with the same session id; nobody waits
# for it and nobody asked, so it is never worth money (0.19 run_agent.py `_spawn_background_review`).
_REVIEW_THREAD = "bg-review"

_ASKS_THE_USER = "clarify"
"""The tool by which a model asks in mid-turn (0.17 to 0.19 tools/clarify_tool.py); it may wait for an hour."""

_SUBAGENT = "subagent"
"""What Hermes calls the surface of sub-agents (0.17 to 0.19 tools/delegate_tool.py)."""

# The sessions of /background and of the desktop's preview, beside the user's own; Hermes does not say whose
# they are (0.17 to 0.19 tui_gateway/server.py, gateway/slash_commands.py, hermes_cli/cli_commands_mixin.py).
_BESIDE = re.compile(r"(?:bg|preview)_[0-9a-f_]+")

# Surfaces on which no command is typed; on the others, without a chat, a command is meant for the session used last.
_NOBODY_TYPES = frozenset({"api_server", "cron", _SUBAGENT, "webhook"})

_MOST_UNTOLD = 100
"""How many turns whose cost was not told are kept of a session: where nothing is ever shown, nobody waits for it."""

_LONGEST_TURN_SECONDS = 43_200.0
"""A turn that began longer ago, and of whose end Hermes has said nothing, has most likely failed."""

# Surfaces that belong to the owner of the machine, or of its API key; on any other, someone in a chat has written.
_OWNERS = frozenset({"", "acp", "api_server", "cli", "cron", "desktop", "tui"})


class Adapter:
    """What one loaded plugin keeps: its settings, the ledgers of its sessions, the turns that are running."""

    def __init__(
        self,
        *,
        read_config: Callable[[], tuple[object, bool]],
        home: Callable[[], Path],
        manager: object = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = Settings(read_config)
        self.ledgers = Ledgers()
        self.guard = Guard()
        self.filled = Filled()
        self.clock = clock
        self._home = home
        self._manager = manager
        self._turns: dict[str, Turn] = {}
        self._parents: dict[str, str] = {}
        self._parent_turns: dict[str, Turn] = {}
        self._beside: set[str] = set()
        self._typed_session: str | None = None
        self._last_types: dict[str, tuple[str, str]] = {}
        self._told: set[str] = set()
        self._unread: set[str] = set()
        self._untold: dict[str, list[str]] = {}
        self._unrenamed: dict[str, list[str]] = {}
        self._stays_local: dict[str, str | None] = {}
        self._lock = threading.Lock()

    @property
    def journal(self) -> Journal:
        """The journal in Hermes's home, which may change with the profile."""
        return Journal.of(self._home())

    def command_session(self) -> str:
        """Return the session that a command is meant for: its chat's, the TUI's, or the CLI's (DESIGN.md, fact 13).

        Raises:
            LookupError: we failed at finding the chat.
        """
        chat = _chat.get()
        if chat is _LOST:
            message = "the chat that this command came from was not found"
            raise LookupError(message)
        if chat is not None:
            return chat.session_id or chat.early_session
        return tui_session_id() or cli_session_id(self._manager) or self._typed_session or UNNAMED_SESSION

    def stays_local_because(self, session_id: str) -> str | None:
        """Say why the session's model calls are not ours to answer, if they were not at the last one."""
        return self._stays_local.get(session_id)

    def failed(self, name: str, arguments: Mapping[str, object], error: Exception) -> None:
        """Note a fault of an entry point, and leave nothing of it half done that could let money be spent."""
        turn_id = str(arguments.get("turn_id"))
        self.guard.note(name, self.session_of(arguments), error)
        if name == "pre_llm_call":
            # What its message forbids may not have been heard: `/escalate off`, for example.
            with self._lock:
                self._turns.pop(turn_id, None)
        elif name == "post_tool_call" and turn_id in self._turns:
            # Who steers by this result was not looked at.
            self._turns[turn_id].deaf = True
        elif name == "pre_gateway_dispatch":
            _chat.set(_LOST)
            with self._lock:
                for turn in self._turns.values():
                    turn.deaf = True

    def session_of(self, arguments: Mapping[str, object]) -> str:
        """Return the session that a hook's arguments are about, as far as they say it."""
        turn = self._turns.get(str(arguments.get("turn_id")))
        if turn is not None:
            return turn.session_id
        return str(arguments.get("session_id") or arguments.get("parent_session_id") or UNNAMED_SESSION)

    def has_given_up(self, arguments: Mapping[str, object]) -> bool:
        """Tell whether we are off in the session that a hook's arguments are about, after faults of our own."""
        return self.guard.has_given_up(self.session_of(arguments))

    def is_running(self, session_id: str) -> bool:
        """Tell whether a turn of the session is running."""
        return self._turn_of_session(session_id) is not None

    def pre_gateway_dispatch(
        self, *, event: object = None, gateway: object = None, session_store: object = None, **_: object
    ) -> None:
        """A message came from a chat: what this task does from now on, it does for that chat."""
        chat = find_chat(gateway, event, session_store)
        _chat.set(chat)
        turn = self._turn_of_session(chat.session_id or "") if chat else None
        if turn is not None and not self.may_spend(turn.config):
            # What this user steers goes into the turn of another, who may.
            text = str(getattr(event, "text", ""))
            turn.deaf = turn.deaf or "escalate" in text.lower()
            if (commands.spoken(text.strip().removeprefix("/steer ")) or "").lower() == "off":
                # To forbid is everybody's right.
                commands.escalate(self, "off", session_id=turn.session_id)

    def pre_llm_call(
        self,
        *,
        session_id: str = "",
        turn_id: str = "",
        model: str = "",
        platform: str = "",
        user_message: object = None,
        conversation_history: object = (),
        **_: object,
    ) -> None:
        """A user turn starts: read the configuration and open the turn."""
        if self.guard.has_given_up(session_id):
            self._hear_off(session_id, platform, user_message)
            return
        is_review = threading.current_thread().name == _REVIEW_THREAD
        if is_review or _chat.get() is _LOST or self._is_orphan(session_id, platform):
            return
        config = self.settings.refresh()
        self._find_user_of(session_id)
        ledger = self._ledger_of(session_id, platform)
        self._read_again(session_id, ledger)
        if config is None or config.is_idle:
            # The message that an /escalate was meant for has gone by.
            ledger.append(TurnEnded(self.clock()))
            return
        chat = _chat.get()
        if chat is not None:
            chat.turns.append(turn_id)
        parent = self._parent_turns.get(session_id)
        text = handoff.text_of(user_message)
        turn = Turn(
            session_id,
            turn_id,
            platform,
            model,
            parent.config if parent else config,
            ledger,
            self.journal,
            account=self._account_of(session_id),
            task_id=parent.task_id if parent else turn_id,
            message=text,
            may_spend=parent.may_spend if parent else self.may_spend(config, platform),
            steers={handoff.steered(host.listed(conversation_history))},
            began=self.clock(),
        )
        if parent is not None:
            # What its parent's type allows and forbids holds for what is done for it.
            turn.task_type, turn.type_reason, turn.is_typed = parent.task_type, parent.type_reason, True
        with self._lock:
            # Hermes leaves some failed turns without a word (0.19 conversation_loop, early returns).
            unended = [id_ for id_, other in self._turns.items() if other.ledger is ledger]
            for id_ in unended:
                del self._turns[id_]
            self._turns[turn_id] = turn
        now = self.clock()
        self._forget_old_sessions(now)
        said = signs.of_message(text)
        ledger.append(*[TurnEnded(now)] * len(unended), TurnStarted(now, turn_id, model, said))
        if config.policy.self_check:
            # It is asked through litellm, at the end of every task.
            lazy_litellm.warm([self_check.tier(model, "", None)])
        # Not a sub-agent's: what it is told comes from a model, and no model may spend.
        if session_id not in self._parents:
            self._hear(turn, user_message)

    def _forget_old_sessions(self, now: float) -> None:
        surplus = self.ledgers.surplus()
        if not surplus:
            return
        with self._lock:
            # Of turns that failed, Hermes may not say that they are over.
            at_work = {turn.session_id for turn in self._turns.values() if now - turn.began < _LONGEST_TURN_SECONDS}
        for session_id in surplus:
            if session_id not in at_work:
                self._forget(session_id)

    def may_spend(self, config: Config, platform: str = "") -> bool:
        """Tell whether who wrote the message that is worked on may spend: in a chat, the `allowed_users`."""
        chat, allowed = _chat.get(), config.policy.allowed_users
        if allowed is None:
            return True
        # Hermes writes messages to chats itself, for example to go on after a restart: nobody's word.
        return platform in _OWNERS if chat is None else chat.is_one_of(allowed)

    def task_id(self, session_id: str) -> str | None:
        """Return the task that the session works on, if it does."""
        turn = self._turn_of_session(session_id)
        return None if turn is None else turn.task_id

    def last_type(self, session_id: str) -> tuple[str, str]:
        """Return the type of the session's last task, and why it was of that one; both empty for none."""
        return self._last_types.get(session_id, ("", ""))

    def ledger(self, session_id: str) -> Ledger:
        """Return the session's ledger; one that is new here begins with what the user left the session with."""
        if self.ledgers.known(session_id):
            return self.ledgers.of_session(session_id)
        begins = [SwitchedOff(self.clock())] if self._was_left_off(session_id) else []
        return self.ledgers.of_session(session_id, *begins)

    def _read_again(self, session_id: str, ledger: Ledger) -> None:
        """Look again at what the user left the session with, where that could not be read before."""
        if session_id in self._unread:
            self._unread.discard(session_id)
            if not self._was_left_off(session_id):
                ledger.append(SwitchedAuto(self.clock()))

    def was_said(self, session_id: str) -> None:
        """Take the user's word, off or auto, for what holds: it is newer than what the session was left with."""
        self._unread.discard(session_id)

    def _ledger_of(self, session_id: str, platform: str) -> Ledger:
        ledger = self.ledger(session_id)
        if session_id in self._parents:
            return ledger
        chat = _chat.get()
        if chat is not None:
            self._adopt(session_id, chat.early_session)
        elif platform not in _NOBODY_TYPES:
            self._typed_session = session_id
            self._adopt(session_id, UNNAMED_SESSION)
        return ledger

    def _find_user_of(self, session_id: str) -> None:
        """Have a session that runs beside the user's own spend for that one, and heed what was said in it."""
        if session_id in self._parents or not _BESIDE.fullmatch(session_id):
            return
        user_session = self.command_session()
        if user_session not in {session_id, UNNAMED_SESSION}:
            # It has a task of its own: an /escalate is meant for the next message there.
            self._beside.add(session_id)
            self._join(session_id, user_session, is_for_its_task=False)

    def _is_orphan(self, session_id: str, platform: str) -> bool:
        """Tell whether the session is a sub-agent's whose parent is not known, after a fault of ours for example."""
        if platform != _SUBAGENT:
            return False
        # First, for it may find the parent under the id before a compression.
        ledger = self.ledger(session_id)
        if session_id in self._parents:
            return False
        # Nobody knows what the parent's user has forbidden, nor who pays, and a model wrote its message.
        if not is_off(ledger.events()):
            # Sub-agents of its own take it over.
            ledger.append(SwitchedOff(self.clock()))
            logger.warning("session=%s: a sub-agent whose parent is not known stays local", session_id)
        return True

    def _adopt(self, session_id: str, early_id: str) -> None:
        if self.ledgers.known(early_id):
            self.ledgers.adopt(session_id, from_session=early_id)
            if early_id != UNNAMED_SESSION:
                # What runs beside it began before it.
                self._rename([early_id], session_id)
            self._rename_in_journal(early_id, session_id)

    def _join(self, session_id: str, parent_id: str, *, is_for_its_task: bool) -> None:
        """Have a session spend for another one, and heed what its user says."""
        parent, turn = self.ledger(parent_id), self._turn_of_session(parent_id)
        self._heed_parents(parent_id, parent)
        self.ledgers.of_session(session_id).append(*self._inherited(parent, turn, is_for_its_task=is_for_its_task))
        if turn is not None and is_for_its_task:
            self._parent_turns[session_id] = turn
        # Last: a session that has its parent has all that it needs of it, whatever fails here.
        self._parents[session_id] = parent_id

    def _inherited(self, parent: Ledger, turn: Turn | None, *, is_for_its_task: bool) -> Iterator[Event]:
        """Say to a session what the user said to its parent: off, or that the stronger model is to do this task."""
        events = parent.events()
        if is_off(events):
            yield SwitchedOff(self.clock())
        yield from (event for event in events if isinstance(event, ConsentGiven))
        if not is_for_its_task:
            return
        config = self.settings.config if turn is None else turn.config
        holder = holding(events, config.policy, config.names) if config is not None else None
        if isinstance(events[-1] if events else None, EscalationRequested) or (
            holder is not None and holder.trigger == "user_request"
        ):
            yield EscalationRequested(self.clock())

    def _account_of(self, session_id: str) -> str:
        return [session_id, *self._above(session_id)][-1]

    def _above(self, session_id: str) -> list[str]:
        """Return the sessions that a sub-agent works for: its parent first, the user's own last."""
        above: list[str] = []
        # A session cannot be its own parent's parent, but what a hook is told may say so.
        while (session_id := self._parents.get(session_id, "")) and session_id not in above:
            above.append(session_id)
        return above

    def _was_left_off(self, session_id: str) -> bool:
        """Tell whether a session was left off; what it had under its ids before a compression it has from now on."""
        try:
            if earlier := host.compressed_from(session_id):
                self._rename(earlier, session_id)
                self.journal.rename_session(earlier, session_id)
            return self.journal.is_off(session_id)
        except (JournalError, sqlite3.Error) as error:
            self.guard.note_unjournaled("whether it was left with /escalate off cannot be read", session_id, error)
            # What the user may have forbidden is not paid for, until it can be read.
            self._unread.add(session_id)
            return True

    def _hear(self, turn: Turn, message: object) -> None:
        """Heed a command that came as a message: a gateway that is busy hands it to the model (DESIGN.md, fact 14)."""
        word = commands.spoken(message)
        if word is None:
            return
        answer = commands.escalate(self, word, session_id=turn.session_id)
        if not isinstance(turn.ledger.events()[-1], EscalationRequested):
            turn.spoken = answer

    def _hear_off(self, session_id: str, platform: str, message: object) -> None:
        """Keep what the user forbids in a session in which we have given up, for it holds in the next process, too."""
        if platform in _NOBODY_TYPES:
            return
        if _chat.get() is None:
            self._typed_session = session_id
        if (commands.spoken(message) or "").lower() == "off":
            # No turn is opened to say the answer in: the local model answers.
            commands.escalate(self, "off", session_id=session_id)

    def post_tool_call(
        self,
        *,
        turn_id: str = "",
        tool_name: str = "",
        args: object = None,
        result: object = None,
        status: str = "",
        error_message: object = None,
        duration_ms: int = 0,
        **_: object,
    ) -> None:
        """A tool gave its result."""
        turn = self._turns.get(turn_id)
        if turn is None:
            return
        if tool_name == _ASKS_THE_USER:
            turn.ledger.append(UserAnswered(self.clock(), (duration_ms or 0) / 1000))
        # With its letters as they are, for Hermes's marks are looked for in it.
        text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        if handoff.STEER_OPEN in text:
            # Hermes appends the user's words after this hook, so these are the tool's own: nobody said them.
            turn.deaf = True
        event = host.tool_event(
            self.clock(), tool_name, args, text, status=status, error=error_message, names=turn.names
        )
        if event is None:
            return
        turn.ledger.append(event)
        if is_telling(event):
            lazy_litellm.warm(turn.config.ladder)

    def transform_llm_output(self, *, response_text: str = "", session_id: str = "", **_: object) -> str | None:
        """The turn's answer is about to be shown: add who gave it, where no line on the screen says so."""
        turn = self._turn_of_session(session_id)
        # What a sub-agent answers is read by a model; what `hermes -z` prints, by a script.
        if turn is None or turn.platform == _SUBAGENT or self._has_a_screen(turn) or host.is_silent():
            return None
        if host.is_no_reply(response_text):
            return None
        answer: list[str] = []

        def add(summary: str) -> None:
            # An editor would get a streamed answer once more, if it were another one now (0.19 acp_adapter/server.py).
            if not (turn.platform == "acp" and turn.live.add_to_answer(summary)):
                answer.append(f"{response_text}\n\n{summary}")

        self._tell(turn, add)
        return answer[0] if answer else None

    def _has_a_screen(self, turn: Turn) -> bool:
        """Tell whether a line can be shown below the answer: on the CLI, but for what runs beside its session."""
        return turn.platform == "cli" and turn.live.found and turn.session_id == turn.account

    def _tell(self, turn: Turn, show: Callable[[str], None]) -> None:
        """Show what was paid and is not told yet: in this turn and, if it is the user's own, in others."""
        untold = self._untold.get(turn.account, [])
        is_own = turn.session_id == turn.account
        turn_ids = [id_ for id_ in untold if id_ == turn.turn_id or (is_own and id_ not in self._turns)]
        if not turn_ids:
            return
        summary = self._summary(turn, turn_ids)
        if summary is not None:
            show(summary)
        left = [id_ for id_ in self._untold.pop(turn.account, ()) if id_ not in turn_ids]
        if left:
            self._untold[turn.account] = left

    def on_session_end(self, *, turn_id: str = "", **_: object) -> None:
        """The turn is over (not the session: DESIGN.md, fact 7)."""
        with self._lock:
            turn = self._turns.pop(turn_id, None)
        if turn is None:
            return
        summary = self._summary(turn, [turn_id] if turn.has_asked else [])
        turn.ledger.append(TurnEnded(self.clock()))
        self._journal_task(turn)
        if summary is not None:
            logger.info("task finished session=%s: %s", turn.session_id, summary.removeprefix(f"{SIGN} "))
        if self._has_a_screen(turn) and not host.is_silent():
            self._tell(turn, turn.live.last_word)

    def on_session_finalize(self, *, session_id: object = None, **_: object) -> None:
        """The session is over."""
        self._forget(session_id)

    def on_session_reset(self, *, old_session_id: object = None, **_: object) -> None:
        """The session was cleared, and another one starts."""
        self._forget(old_session_id)

    def subagent_start(self, *, parent_session_id: object = None, child_session_id: object = None, **_: object) -> None:
        """A session starts that nobody types into."""
        if isinstance(child_session_id, str) and isinstance(parent_session_id, str):
            # Now, for the child may run in the background, after its parent's turn (0.19 tools/delegate_tool.py).
            self._join(child_session_id, parent_session_id, is_for_its_task=True)

    def subagent_stop(self, *, child_session_id: object = None, **_: object) -> None:
        """A sub-agent's session is over."""
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
        local: LocalCall | None = None
        turn: Turn | None = None
        try:
            local = LocalCall(next_call, request)
            turn = self._turns.get(turn_id)
            if turn is None or self.guard.has_given_up(turn.session_id):
                # Five faults of our hooks open no turn any more.
                self._say_if_off(session_id if turn is None else turn.session_id, local)
                return local.reply()
            self._follow(turn, session_id)
            if turn.spoken is not None:
                return host.spoken_response(turn.spoken, model="hermes-fallback")
            # The same agent makes all calls of a turn.
            turn.live = turn.live if turn.live.found else local.live
            self._heed_parents(turn.session_id, turn.ledger)
            self._hear_steered(turn, request)
            self._find_type(turn, request)
            task = self._task(turn, local)
            turn.base_url = turn.base_url or base_url
            # Hermes itself may go to another provider within the turn, even to a model of the same name.
            is_elsewhere = (model, base_url) != (turn.model, turn.base_url)
            if turn.handed_over is not None and is_elsewhere:
                return routing.ask_host(turn.handed_over, task, local, model=model, provider=provider)
            running = host.Running(model, provider, base_url, api_mode)
            if is_elsewhere or not turn.config.policy.enabled or not self._is_ours(turn, running):
                return local.reply()
            if not self._is_booked(turn.account):
                # It could spend its budget once more.
                return local.reply()
            return routing.answer(turn, local, task)
        except Exception as error:
            if local is not None and error is local.error:
                raise
            # Here a bug of ours ends up: said loudly, and the local model answers.
            session_id = session_id if turn is None else turn.session_id
            self.guard.note("llm_execution", session_id, error)
            if local is not None:
                self._say_if_off(session_id, local)
            return next_call(dict(request)) if local is None else local.reply()

    def _say_if_off(self, session_id: str, local: LocalCall) -> None:
        if self.guard.is_news(session_id):
            words = f"{SIGN} hermes-fallback has failed {MOST} times and is off in this session; see agent.log"
            local.live.notice(words)

    def _task(self, turn: Turn, local: LocalCall) -> Task:
        return Task(
            session_id=turn.session_id,
            account=turn.account,
            turn_id=turn.turn_id,
            task_id=turn.task_id,
            task_type=turn.task_type,
            type_reason=turn.type_reason,
            may_spend=turn.may_spend,
            local_model=turn.model,
            config=turn.config,
            ledger=turn.ledger,
            journal=turn.journal,
            live=turn.live,
            clock=self.clock,
            is_interrupted=host.is_interrupted,
            call_local_endpoint=local.send,
            ask=functools.partial(self._ask_person, turn),
            guard=self.guard,
            filled=self.filled,
            note_asked=functools.partial(self._note_asked, turn),
        )

    def _note_asked(self, turn: Turn) -> None:
        if turn.has_asked:
            return
        turn.has_asked = True
        # Of a session that is over, nobody is left to be told.
        if not turn.config.policy.is_shadow and self.ledgers.known(turn.account):
            # However the turn ends, there is a cost to be told.
            self._untold[turn.account] = [*self._untold.get(turn.account, ())[-_MOST_UNTOLD:], turn.turn_id]

    def _ask_person(self, turn: Turn, question: str) -> Consent:
        question = explain.plain(question)
        chat = _chat.get()
        if chat is not None and chat.is_shared and turn.config.policy.allowed_users is not None:
            # Hermes takes a yes from whoever is in the chat, by a word, a command or a button, and does not say whose.
            why = "others in this chat could answer; give each a session of their own, or write `confirm: never`"
            return Consent(given=False, why=why)
        turn.live.close_stream()
        # A key of its own for each question: what Hermes remembers must not answer another one.
        key = f"hermes-fallback:{uuid.uuid4()}"
        return host.ask_person(question, key=key, platform=turn.platform)

    def _heed_parents(self, session_id: str, ledger: Ledger) -> None:
        """Let what was said since a sub-agent started hold for it: off, auto, or no money for this task.

        It was said to any of those above it: its parent waits for it, and hears of it with it.
        """
        above = [one for one in reversed(self._above(session_id)) if self.ledgers.known(one)]
        ledgers = [*((one, self.ledgers.of_session(one)) for one in above), (session_id, ledger)]
        for (_, upper), (lower_id, lower) in itertools.pairwise(ledgers):
            said, heard = upper.controls(), lower.controls()
            began = max(
                (one.at for one in heard if isinstance(one, SwitchedOff | SwitchedAuto | TurnStarted)), default=0
            )
            news: list[Event] = [
                type(one)(self.clock())
                for one in said
                if isinstance(one, SwitchedOff | SwitchedAuto) and one.at > began
            ]
            # Said while it began.
            if is_off(said) and not is_off([*heard, *news]):
                news.append(SwitchedOff(self.clock()))
            if is_refused(said) and not is_refused(heard) and lower_id not in self._beside:
                news.append(ConsentRefused(self.clock()))
            lower.append(*news)

    def _find_type(self, turn: Turn, request: Mapping[str, Any]) -> None:
        """Find the task's type at its first call; what the type says holds from there on."""
        if turn.is_typed:
            return
        if not turn.config.task_types:
            turn.is_typed = True
            return
        facts = kinds.Facts(
            message=turn.message,
            platform=turn.platform,
            toolsets=host.toolsets_of(request.get("tools")),
            cwd=turn.live.working_folder or host.working_folder(),
        )
        found = kinds.kind_of(turn.config, facts)
        # From here on; where the type cannot be found, each call stays local.
        turn.is_typed = True
        if found is not None:
            kind, turn.type_reason = found
            turn.task_type, turn.config = kind.name, kind.config
            turn.ledger.append(TypeMatched(self.clock(), kind.name))
            logger.info("session=%s: a task of type %s, for %s", turn.session_id, kind.name, turn.type_reason)
        self._last_types[turn.session_id] = (turn.task_type, turn.type_reason)

    def _hear_steered(self, turn: Turn, request: Mapping[str, Any]) -> None:
        """Heed a command that Hermes put behind a tool's result, once: it stands there in the next requests, too."""
        steer = handoff.steered(host.listed(request.get("messages")))
        if steer is not None and steer not in turn.steers and not turn.deaf:
            _, word = steer
            if word:
                turn.live.notice(f"{SIGN} {commands.escalate(self, word, session_id=turn.session_id)}")
            else:
                turn.ledger.append(EscalationRequested(self.clock()))
        turn.steers.add(steer)

    def _journal_task(self, turn: Turn) -> None:
        """Write what the local model did in the turn, for `hermes escalation report`."""
        if not turn.local.calls:
            return
        try:
            self.journal.add_task(
                turn_id=turn.turn_id,
                task_id=turn.task_id,
                session_id=turn.account,
                task_type=turn.task_type,
                type_reason=turn.type_reason,
                local_calls=turn.local.calls,
                untold_calls=turn.local.untold,
                input_tokens=turn.local.input_tokens,
                output_tokens=turn.local.output_tokens,
            )
        except JournalError as error:
            self.guard.note_unjournaled("what the local model did is missing in the report", turn.account, error)

    def _follow(self, turn: Turn, session_id: str) -> None:
        """Hermes compressed the context and gave the session a new id: the task goes on (DESIGN.md, fact 7)."""
        old_id = turn.session_id
        if not session_id or session_id == old_id:
            return
        turn.session_id = session_id
        self._rename([old_id], session_id)
        self._rename_in_journal(old_id, session_id)

    def _rename(self, old_ids: Sequence[str], new_id: str) -> None:
        """Let what a session has in memory, under earlier ids of which the newest is first, go by its new id."""
        with self._lock:
            for turn in self._turns.values():
                turn.account = new_id if turn.account in old_ids else turn.account
        for old_id in old_ids:
            self.ledgers.rename(old_id, new_id)
            self.guard.rename(old_id, new_id)
            for noted in (self._unread, self._beside):
                if old_id in noted:
                    noted.remove(old_id)
                    noted.add(new_id)
            one_of_each: tuple[dict[str, Any], ...] = (
                self._parents,
                self._parent_turns,
                self._last_types,
                self._stays_local,
            )
            for kept in one_of_each:
                if old_id in kept:
                    kept.setdefault(new_id, kept.pop(old_id))
            if untold := self._untold.pop(old_id, None):
                self._untold[new_id] = [*untold, *self._untold.get(new_id, ())]
        self._typed_session = new_id if self._typed_session in old_ids else self._typed_session
        children = [child for child, parent in list(self._parents.items()) if parent in old_ids]
        self._parents.update(dict.fromkeys(children, new_id))

    def _rename_in_journal(self, old_id: str, new_id: str) -> None:
        # The newest first.
        self._unrenamed[new_id] = [old_id, *self._unrenamed.pop(old_id, ()), *self._unrenamed.pop(new_id, ())]
        self._is_booked(new_id)

    def _is_booked(self, session_id: str) -> bool:
        """Tell whether what the session spent under earlier ids counts under this one; see to it where it does not."""
        if session_id not in self._unrenamed:
            return True
        try:
            self.journal.rename_session(self._unrenamed[session_id], session_id)
        except JournalError as error:
            self.guard.note_unjournaled("what it spent stays under its old id for now", session_id, error)
            return False
        del self._unrenamed[session_id]
        return True

    def _is_ours(self, turn: Turn, running: host.Running) -> bool:
        reason = running.stays_local_because(turn.config)
        self._stays_local[turn.session_id] = reason
        if reason is not None and reason not in self._told:
            self._told.add(reason)
            logger.warning("hermes-fallback stays out: %s", reason)
        return reason is None

    def _turn_of_session(self, session_id: str) -> Turn | None:
        with self._lock:
            return next((turn for turn in self._turns.values() if turn.session_id == session_id), None)

    def _summary(self, turn: Turn, turn_ids: Sequence[str]) -> str | None:
        """Say who was asked in these turns and what it cost, if anything did."""
        if not turn_ids:
            return None
        try:
            entries = self.journal.entries(turn_ids=turn_ids, last=-1)
        except JournalError as error:
            self.guard.note_unjournaled("what the turn cost cannot be read", turn.account, error)
            return f"{SIGN} what the stronger model cost cannot be read from the journal"
        if not entries:
            return None
        if turn.config.policy.is_shadow:
            usd = [entry.cost_usd for entry in entries]
            total = sum(one or 0.0 for one in usd) if None not in usd else None
            return f"shadow: the stronger model would have cost about {explain.usd(total)} in this task"
        # A call that was refused cost nothing, and the user has read of it.
        parts = [explain.helped(entry) for entry in reversed(entries) if entry.calls or entry.cost_usd != 0]
        return f"{SIGN} {'; '.join(parts)}" if parts else None

    def _forget(self, session_id: object) -> None:
        if not isinstance(session_id, str):
            return
        for child in [child for child, parent in list(self._parents.items()) if parent == session_id]:
            # What goes on after it, by /new for example, has heard all that was said in it.
            if self.ledgers.known(child):
                self._heed_parents(child, self.ledgers.of_session(child))
        self.ledgers.forget(session_id)
        self.guard.forget(session_id)
        self._parents.pop(session_id, None)
        self._beside.discard(session_id)
        self._parent_turns.pop(session_id, None)
        self._last_types.pop(session_id, None)
        self._unread.discard(session_id)
        self._untold.pop(session_id, None)
        self._unrenamed.pop(session_id, None)
        self._stays_local.pop(session_id, None)
        if self._typed_session == session_id:
            self._typed_session = None
        with self._lock:
            for id_ in [id_ for id_, turn in self._turns.items() if turn.session_id == session_id]:
                del self._turns[id_]
