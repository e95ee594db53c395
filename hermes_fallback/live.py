"""The one room for Hermes's private parts: the agent that runs the turn, which no hook hands out.

Everything here is looked for, tried and done without (DESIGN.md, facts 9 to 11): when a part is not there, notices come
with the final answer instead of at once, and the stronger model's answer is shown whole instead of as it is written.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from .explain import plain

logger = logging.getLogger(__name__)

_CLOSURE_DEPTH = 4


class LiveAgent:
    """What can be done with the running agent; a method whose part is missing or fails says so, and does not raise."""

    def __init__(self, agent: object | None) -> None:
        self._agent = agent

    @property
    def found(self) -> bool:
        """Whether there is an agent at all."""
        return self._agent is not None

    @property
    def api_key(self) -> str | None:
        """The key that the agent shows to its endpoint, if known (0.17 to 0.19 run_agent.py `AIAgent.api_key`)."""
        key = getattr(self._agent, "api_key", None)
        return key if isinstance(key, str) and key else None

    @property
    def working_folder(self) -> str | None:
        """The folder of an editor's session (0.17 to 0.19 acp_adapter/session.py), which only its agent knows."""
        folder = getattr(self._agent, "session_cwd", None)
        return folder if isinstance(folder, str) and folder else None

    @property
    def streams(self) -> bool:
        """Whether somebody sees text as it is written."""
        return self._call("_has_stream_consumers") is True

    def notice(self, line: str) -> bool:
        """Show a line at once, on whatever surface the agent runs (0.19 run_agent.py `_emit_status`).

        What was streamed before is closed first. A provider's words may be in the line: a terminal obeys none of them.
        """
        self.close_stream()
        if getattr(self._agent, "platform", None) == "acp":
            # An editor has no place for it but among the thoughts (0.17 to 0.19 acp_adapter/server.py).
            return self._call("reasoning_callback", f"{plain(line)}\n") is not _ABSENT
        return self._call("_emit_status", plain(line)) is not _ABSENT

    def close_stream(self) -> None:
        """Close the box around what was streamed, as Hermes does before tools run.

        Else the next line stands in its middle, and the CLI takes the streamed text for the turn's answer.
        """
        if self.streams:
            self._call("stream_delta_callback", None)

    def last_word(self, line: str) -> None:
        """Show a line under the answer: in the box that is still open around a streamed one, else by itself.

        Only then: the CLI takes whatever was streamed for the answer, and would not show one that was not.
        """
        if not self.add_to_answer(line):
            self._call("_emit_status", plain(line))

    def add_to_answer(self, line: str) -> bool:
        """Show a line below the answer, if that was streamed; tell whether it was."""
        streamed = bool(getattr(self._agent, "_current_streamed_assistant_text", ""))
        return streamed and self.stream(f"\n\n{plain(line)}\n")

    def begin_answer(self) -> bool:
        """Make ready for text that replaces what was streamed before: stop the spinner, forget what was delivered."""
        self._call("thinking_callback", "")
        return self.streams and self._call("_reset_stream_delivery_tracking") is not _ABSENT

    def stream(self, text: str) -> bool:
        """Show a piece of the answer as it comes (0.19 run_agent.py `_fire_stream_delta`)."""
        return self._call("_fire_stream_delta", text) is not _ABSENT

    def touch(self, doing: str) -> None:
        """Say that the turn goes on, for cron and others end one that is idle (0.17 to 0.19 `_touch_activity`)."""
        self._call("_touch_activity", doing)

    def can_fall_over(self) -> bool:
        """Whether Hermes has a fallback provider left (0.17 to 0.19 `_has_pending_fallback`); yes if unknown."""
        return self._call("_has_pending_fallback") is not False

    def call_again(self, request: Mapping[str, Any]) -> object | None:
        """Send a second request to the local endpoint the way Hermes sends the first; None when that cannot be done.

        `next_call` can be used once only (DESIGN.md, fact 3), and a useless reply has used it up.
        """
        call = getattr(self._agent, "_interruptible_streaming_api_call", None)
        return call(dict(request)) if callable(call) else None

    def _call(self, name: str, *arguments: object) -> object:
        function = getattr(self._agent, name, None)
        if not callable(function):
            return _ABSENT
        try:
            return function(*arguments)
        except Exception:  # private code of another version may fail in any way; the turn goes on
            logger.debug("the live agent's %s failed", name, exc_info=True)
            return _ABSENT


_ABSENT = object()


def find_agent(next_call: Callable[..., object]) -> LiveAgent:
    """Find the agent among the closure cells of `next_call` (0.17 to 0.19: → `call_at` → the loop's own call)."""
    functions: list[object] = [next_call]
    for _ in range(_CLOSURE_DEPTH):
        found: list[object] = []
        for function in functions:
            if not isinstance(function, FunctionType):
                continue
            for cell in function.__closure__ or ():
                try:
                    value = cell.cell_contents
                except ValueError:  # an empty cell
                    continue
                if hasattr(value, "_emit_status"):
                    return LiveAgent(value)
                found.append(value)
        functions = found
    return LiveAgent(None)


def approval_callback() -> Callable[..., str] | None:
    """Return what the CLI asks a person with on this thread, without the answer "always": money is not given for good.

    None where there is none, or it cannot be found (0.19 tools/terminal_tool.py): Hermes looks for itself then. The
    callback of `hermes chat -q` waits for a screen that is not drawn (0.19 cli.py); so the terminal is asked.
    """
    ask = _approval_callback()
    if ask is None:
        return None
    if _cli_without_screen(ask) is not None:
        from tools.approval import prompt_dangerous_approval  # noqa: PLC0415  # only there when Hermes runs

        ask = prompt_dangerous_approval

    def asked(command: str, description: str, **options: Any) -> str:
        answer: str = ask(command, description, **{**options, "allow_permanent": False})
        return answer

    return asked


def is_unattended() -> bool:
    """Tell whether `hermes chat -q` works for a script: there is no terminal, or its answer alone is wanted (`-Q`)."""
    cli = _cli_without_screen(_approval_callback())
    if cli is None:
        return False
    return (
        sys.stdin is None
        or not sys.stdin.isatty()
        or bool(getattr(getattr(cli, "agent", None), "suppress_status_output", False))
    )


def _approval_callback() -> Callable[..., str] | None:
    try:
        from tools.terminal_tool import _get_approval_callback  # noqa: PLC0415  # only there when Hermes runs

        found: Callable[..., str] | None = _get_approval_callback()
    except Exception:  # private code of another version may fail in any way
        logger.debug("the CLI's approval callback cannot be found", exc_info=True)
        return None
    return found


def _cli_without_screen(ask: object) -> object | None:
    cli = getattr(ask, "__self__", None)
    return cli if getattr(cli, "_app", cli) is None else None


def streams_as_written(agent_class: object) -> bool:
    """Tell whether a stronger model's text can be shown as it is written; else the answer comes whole."""
    return all(
        callable(getattr(agent_class, name, None))
        for name in ("_fire_stream_delta", "_has_stream_consumers", "_reset_stream_delivery_tracking")
    )


def cli_session_id(manager: object) -> str | None:
    """Return the session that the interactive CLI shows now, if there is one (0.19 cli.py `HermesCLI.session_id`)."""
    session_id = getattr(getattr(manager, "_cli_ref", None), "session_id", None)
    return session_id if isinstance(session_id, str) else None


def tui_session_id() -> str | None:
    """Return the session of the TUI or the desktop that this thread works for, if it does.

    Of several, a command's handler is not told which one it was typed in; the function of the server that calls it
    knows (0.17 to 0.19 tui_gateway/server.py: `slash.exec`, `command.dispatch`, `prompt.background`).
    """
    module = sys.modules.get("tui_gateway.server")
    server = {} if module is None else vars(module)
    frame = None if module is None else inspect.currentframe()
    while frame is not None:
        if frame.f_globals is server:
            known, params = frame.f_locals.get("session"), frame.f_locals.get("params")
            if not isinstance(known, dict) and isinstance(params, dict):
                known = server.get("_sessions", {}).get(params.get("session_id"))
            # Of a compressed session, the agent has the new id first.
            session_id = isinstance(known, dict) and (
                getattr(known.get("agent"), "session_id", None) or known.get("session_key")
            )
            if isinstance(session_id, str):
                return session_id
        frame = frame.f_back
    return None


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat of a gateway, known by Hermes's key for it."""

    key: str
    _store: object
    platform: str = ""
    user: str = ""
    is_shared: bool = False
    """Whether others may write into the same session."""
    turns: list[str] = field(default_factory=list)
    """The turns that began with this message: more than one, where Hermes went on with what others had written."""

    def is_one_of(self, allowed: Sequence[str]) -> bool:
        """Tell whether who wrote the message is among them, each as `ID` or `platform:ID`."""
        # What is written while a chat is busy comes as a further turn, without a word of who wrote it.
        is_known = bool(self.user) and not (self.is_shared and len(self.turns) > 1)
        return is_known and bool({self.user, f"{self.platform}:{self.user}"}.intersection(allowed))

    @property
    def early_session(self) -> str:
        """Where a command goes that is given before the chat has a session; the chat's next session takes it over."""
        return f"chat:{self.key}"

    @property
    def session_id(self) -> str | None:
        """The session that the chat is in, if there is one yet (`SessionStore.peek_session_id`, not yet in 0.17)."""
        peek = getattr(self._store, "peek_session_id", None)
        if callable(peek):
            found = peek(self.key)
        else:
            found = getattr(getattr(self._store, "_entries", {}).get(self.key), "session_id", None)
        return found if isinstance(found, str) else None


def find_chat(gateway: object, event: object, store: object) -> Chat | None:
    """Return the chat that a gateway's message came from (0.17 to 0.19 gateway/run.py `_session_key_for_source`)."""
    key_of = getattr(gateway, "_session_key_for_source", None)
    source = getattr(event, "source", None)
    key = key_of(source) if callable(key_of) else None
    if not isinstance(key, str):
        return None
    platform = getattr(source, "platform", None)
    user = str(getattr(source, "user_id", None) or "")
    is_shared = getattr(source, "chat_type", None) != "dm" and user not in key.split(":")
    return Chat(key, store, str(getattr(platform, "value", platform)), user, is_shared)
