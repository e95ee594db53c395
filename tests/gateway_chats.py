"""Hermes's real GatewayRunner in this process, with a chat platform of our own whose "network" is a Python list.

    with Gateway(config_text(endpoint.url), streaming=True) as gateway:
        ann = gateway.chat("A", user="ann")
        ann.say("hello")            # as the platform delivers it: BasePlatformAdapter.handle_message
        ann.wait_idle()
        assert ann.screen == ["local answer"]

Nothing of Hermes is replaced: the adapter subclasses BasePlatformAdapter and is registered as plugins register theirs.
The runner's event loop has a thread of its own, so tests stay synchronous. Only one Gateway at a time.

Its home is that of tests/world.py, which is imported first.
"""

from __future__ import annotations

# ruff: noqa: D102, SLF001  # the methods are those of Hermes's base class; its private parts are what is looked at
import asyncio
import concurrent.futures
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from gateway.config import Platform, PlatformConfig
from gateway.platform_registry import PlatformEntry, platform_registry
from gateway.platforms.base import BasePlatformAdapter, MessageEvent, MessageType, SendResult

from tests.world import HOME

PLATFORM = "loopback"
"""What hooks get as `platform`, and the name under `platforms:` in config.yaml."""

_ALLOWED, _ALLOW_ALL = "LOOPBACK_ALLOWED_USERS", "LOOPBACK_ALLOW_ALL_USERS"
_HOME_CHANNEL = "LOOPBACK_HOME_CHANNEL"
_GATEWAY_ENVIRONMENT: dict[str, str] = {}
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Delivery:
    """One thing the adapter was asked to do: `send`, `edit` or `delete` a message of a chat."""

    at: float
    kind: str
    chat_id: str
    message_id: str
    text: str = ""
    finalize: bool = False
    reply_to: str | None = None
    metadata: dict[str, Any] | None = None


class LoopbackAdapter(BasePlatformAdapter):  # type: ignore[misc]  # Hermes is untyped to mypy
    """A platform that can send, edit and delete, as Telegram can."""

    SUPPORTS_MESSAGE_EDITING = True

    def __init__(self, config: PlatformConfig) -> None:
        super().__init__(config, Platform(PLATFORM))
        self.deliveries: list[Delivery] = []
        self.changed = threading.Condition()

    async def connect(self, *, is_reconnect: bool = False) -> bool:
        del is_reconnect
        self._mark_connected()
        return True

    async def disconnect(self) -> None:
        self._mark_disconnected()

    async def send(
        self, chat_id: str, content: str, reply_to: str | None = None, metadata: dict[str, Any] | None = None
    ) -> SendResult:
        return self._note("send", chat_id, None, content, reply_to=reply_to, metadata=metadata)

    async def edit_message(
        self, chat_id: str, message_id: str, content: str, *, finalize: bool = False, **_: Any
    ) -> SendResult:
        return self._note("edit", chat_id, message_id, content, finalize=finalize)

    async def delete_message(self, chat_id: str, message_id: str) -> bool:
        return bool(self._note("delete", chat_id, message_id).success)

    async def send_typing(self, chat_id: str, metadata: Any = None) -> None:
        del chat_id, metadata

    async def get_chat_info(self, chat_id: str) -> dict[str, Any]:
        return {"name": chat_id, "type": "dm"}

    def _note(self, kind: str, chat_id: str, message_id: str | None, text: str = "", **more: Any) -> SendResult:
        with self.changed:
            message_id = message_id or f"m{1 + sum(one.kind == 'send' for one in self.deliveries)}"
            self.deliveries.append(Delivery(time.monotonic(), kind, chat_id, message_id, text, **more))
            self.changed.notify_all()
        return SendResult(success=True, message_id=message_id)


@dataclass
class Chat:
    """One user in one chat."""

    gateway: Gateway
    chat_id: str
    user: str
    chat_type: str = "dm"
    thread_id: str | None = None

    @property
    def source(self) -> Any:
        """Where its messages come from, as Hermes says it (SessionSource)."""
        return self.gateway.adapter.build_source(
            chat_id=self.chat_id,
            chat_type=self.chat_type,
            user_id=self.user,
            user_name=self.user.title(),
            thread_id=self.thread_id,
        )

    @property
    def key(self) -> str:
        """Hermes's session key."""
        return str(self.gateway.runner._session_key_for_source(self.source))

    @property
    def session_id(self) -> Any:
        """The session that the chat is in now, if there is one yet."""
        store = self.gateway.runner.session_store
        if hasattr(store, "peek_session_id"):
            return store.peek_session_id(self.key)
        entry = store._entries.get(self.key)  # 0.17
        return entry.session_id if entry else None

    @property
    def agent(self) -> Any:
        """The agent that is running for this chat now, or None (a bare object() while it is being set up)."""
        return self.gateway.runner._running_agents.get(self.key)

    @property
    def is_busy(self) -> bool:
        """Whether Hermes works for this chat, or keeps a message of it."""
        adapter = self.gateway.adapter
        return self.key in adapter._active_sessions or self.key in adapter._pending_messages

    @property
    def deliveries(self) -> list[Delivery]:
        """All that was sent, edited and deleted in this chat, in order."""
        return [one for one in list(self.gateway.adapter.deliveries) if one.chat_id == self.chat_id]

    @property
    def screen(self) -> list[str]:
        """What stands in the chat now (the bot's side): edited messages in their last form, deleted ones gone."""
        shown: dict[str, str] = {}
        for one in self.deliveries:
            if one.kind == "delete":
                shown.pop(one.message_id, None)
            else:
                shown[one.message_id] = one.text
        return list(shown.values())

    def say(self, text: str, *, timeout: float = 10.0) -> None:
        """Deliver a message as the platform does; returns when handle_message has (a turn then runs by itself)."""
        event = MessageEvent(
            text=text,
            message_type=MessageType.TEXT,
            source=self.source,
            message_id=f"in{self.gateway.count()}",
        )
        # A new task a message, as most platform libraries do; so nothing a hook sets leaks into the next one.
        self.gateway.run(self.gateway.adapter.handle_message(event), timeout)

    def ask(self, text: str, *, timeout: float = 30.0) -> list[str]:
        """Say something and wait until Hermes is done with it; return what was sent or edited since, in order."""
        before = len(self.deliveries)
        self.say(text, timeout=timeout)
        self.wait_idle(timeout)
        return [one.text for one in self.deliveries[before:]]

    def wait_idle(self, timeout: float = 30.0) -> None:
        """Wait until Hermes has nothing to do for this chat."""
        self.gateway.wait(lambda: not self.is_busy, timeout, f"chat {self.chat_id} to be idle")
        self.gateway.run(asyncio.sleep(0))  # what other threads have scheduled on the loop before

    def wait_running(self, timeout: float = 10.0) -> Any:
        """Wait until the chat's agent runs and can be interrupted or steered; return it."""
        self.gateway.wait(lambda: hasattr(self.agent, "steer"), timeout, f"chat {self.chat_id} to run")
        return self.agent

    def wait_for(self, text: str, timeout: float = 30.0) -> Delivery:
        """Wait until something with this text in it was sent or edited here."""
        found: list[Delivery] = []

        def look() -> bool:
            found[:] = [one for one in self.deliveries if text in one.text]
            return bool(found)

        self.gateway.wait(look, timeout, f"“{text}” in chat {self.chat_id}")
        return found[0]


@dataclass
class Gateway:
    """A running gateway; use it as a context manager.

    `config` is a config.yaml; platform, streaming and the like are merged into it. `users` limits who may talk (None:
    everybody). `streaming` shows answers as they are written; `chatter` shows tool progress and interim texts, too.
    """

    config: str
    streaming: bool = False
    chatter: bool = False
    users: tuple[str, ...] | None = None
    busy: str = "interrupt"
    reload_plugins: bool = True
    runner: Any = None
    number: int = field(default_factory=_NUMBERS.__next__)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gateway-loop", daemon=True)
        self._messages = 0
        self._environment = dict(os.environ)

    def __enter__(self) -> Self:
        self._environment = dict(os.environ)
        # Must be known before the config is read: an unknown platform name is skipped there.
        platform_registry.register(
            PlatformEntry(
                name=PLATFORM,
                label="Loopback",
                adapter_factory=LoopbackAdapter,
                check_fn=lambda: True,
                validate_config=lambda _: True,
                allowed_users_env=_ALLOWED,
                allow_all_env=_ALLOW_ALL,
            )
        )
        (HOME / "config.yaml").write_text(yaml.safe_dump(_merge(self._defaults(), yaml.safe_load(self.config) or {})))
        self._set_environment()
        if self.reload_plugins:
            self.manager.discover_and_load(force=True)
        self._thread.start()
        try:
            self.run(self._start(), 60.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    async def _start(self) -> None:
        from gateway.run import GatewayRunner  # noqa: PLC0415

        self.runner = GatewayRunner()  # on its loop, as start_gateway does
        # What ran at the end of an earlier Gateway is not taken up in this one.
        (HOME / ".clean_shutdown").touch()
        for session in self.runner.session_store.list_sessions():
            self.runner.session_store.clear_resume_pending(session.session_key)
        await self.runner.start()
        assert Platform(PLATFORM) in self.runner.adapters, "the loopback platform did not connect"

    def __exit__(self, *_: object) -> None:
        try:
            if self.runner is not None:
                self.run(self.runner.stop(), 60.0)
        finally:
            self.run(self._cancel_rest(), 10.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10.0)
            self._loop.close()
            os.environ.clear()
            os.environ.update(self._environment)
            platform_registry.unregister(PLATFORM)

    @staticmethod
    async def _cancel_rest() -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_default_executor()

    def _set_environment(self) -> None:
        # gateway/run.py turns parts of the config into environment variables, but once only, when it is imported; and
        # it changes how tools run in this process. So what it sets is set for each Gateway, and undone after it.
        if "gateway.run" not in sys.modules:
            import gateway.run  # noqa: F401, PLC0415  # its import changes the environment

            changed = {name for name, value in os.environ.items() if self._environment.get(name) != value}
            _GATEWAY_ENVIRONMENT.update({name: os.environ[name] for name in changed})
        os.environ.update(_GATEWAY_ENVIRONMENT)
        # A cron job that ran in this process has left it, and Hermes would take no chat for one to ask in.
        os.environ.pop("HERMES_CRON_SESSION", None)
        os.environ.update(
            {
                _ALLOW_ALL: str(self.users is None).lower(),
                _ALLOWED: ",".join(self.users or ()),
                _HOME_CHANNEL: "home",  # else the first answer of each chat comes with a line about /sethome
                "HERMES_GATEWAY_BUSY_INPUT_MODE": self.busy,
                "HERMES_GATEWAY_BUSY_TEXT_MODE": "",
                "TERMINAL_CWD": str(Path.cwd()),  # else tools run in $HOME
            }
        )

    def _defaults(self) -> dict[str, Any]:
        return {
            "platforms": {PLATFORM: {"enabled": True}},
            "platform_toolsets": {PLATFORM: ["file", "terminal", "todo"]},
            "streaming": {
                "enabled": self.streaming,
                "transport": "edit",
                "edit_interval": 0.05,
                "buffer_threshold": 1,
                "cursor": "▉",
            },
            "display": {
                "busy_input_mode": self.busy,
                "platforms": {
                    PLATFORM: {
                        "tool_progress": "all" if self.chatter else "off",
                        "interim_assistant_messages": self.chatter,
                    }
                },
            },
            "approvals": {"destructive_slash_confirm": False},  # else an idle /new asks back
            "onboarding": {"profile_build": "off", "seen": {"busy_input_prompt": True}},
            "kanban": {"dispatch_in_gateway": False},
            "agent": {"restart_drain_timeout": 5},
        }

    @property
    def adapter(self) -> Any:
        """Our end of the platform."""
        return self.runner.adapters[Platform(PLATFORM)]

    @property
    def manager(self) -> Any:
        """Hermes's plugin manager."""
        from hermes_cli.plugins import get_plugin_manager  # noqa: PLC0415

        return get_plugin_manager()

    def chat(self, chat_id: str, *, user: str = "ann", **more: Any) -> Chat:
        """A user in a chat: a private one, or `chat_type="group"`, perhaps with a `thread_id`.

        Sessions outlive a Gateway (they are in the home's state.db), so each Gateway has chats of its own.
        """
        return Chat(self, f"{chat_id}{self.number}", user, **more)

    def count(self) -> int:
        """Return a fresh number for an incoming message."""
        self._messages += 1
        return self._messages

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 10.0) -> Any:
        """Run something on the gateway's loop and wait for it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise

    def wait(self, condition: Callable[[], bool], timeout: float = 30.0, what: str = "the condition") -> None:
        """Wait until the condition holds."""
        end = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > end:
                shown = "\n".join(f"  {one.kind} {one.chat_id}: {one.text!r}" for one in self.adapter.deliveries)
                message = f"waited {timeout} s for {what}; delivered so far:\n{shown}"
                raise TimeoutError(message)
            with self.adapter.changed:
                self.adapter.changed.wait(0.02)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merge(base[key], value) if both else value
    return merged
