"""hermes-fallback: carries a task that a local model is stuck in to a stronger model, and comes back.

`register` is all that Hermes calls, and the table of contents of what we plug into. Hermes calls it at every start, so
the rest of the package is imported when it is first needed: at the first message or command.
"""

from __future__ import annotations

import argparse
import functools
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hermes_cli.plugins import PluginContext

    from .adapter import Adapter

__all__ = ["register"]

HOOKS = (
    "pre_llm_call",
    "post_tool_call",
    "transform_llm_output",
    "on_session_end",
    "on_session_finalize",
    "on_session_reset",
    "pre_gateway_dispatch",
    "subagent_start",
    "subagent_stop",
)
MIDDLEWARE = ("llm_execution",)

# What is not called any more in a session in which we have given up. The others are: they let go of what is kept, say
# what was paid, know which chat a command is for, and hear `/escalate off`.
_GIVEN_UP = frozenset({"post_tool_call", "subagent_start"})


def register(ctx: PluginContext) -> None:
    """Plug into Hermes; called at its start, perhaps more than once."""
    # First, so that `hermes escalation check` is there whatever comes after. `hermes fallback` is Hermes's own.
    ctx.register_cli_command(
        name="escalation",
        help="Check hermes-fallback's configuration; see what was escalated",
        setup_fn=_set_up_cli,
        handler_fn=_run_cli,
        description="hermes-fallback: carries a task that the local model is stuck in to a stronger model.",
    )
    plugin = Plugin(getattr(ctx, "_manager", None))
    for name in HOOKS:
        ctx.register_hook(name, plugin.callback(name))
    for name in MIDDLEWARE:
        ctx.register_middleware(name, plugin.callback(name))
    ctx.register_command(
        "escalate",
        plugin.escalate,
        description="Let the stronger model take over, or see what it did",
        args_hint="[status|why|off|auto|help]",
    )


class Plugin:
    """What Hermes holds of us: callbacks that load the adapter when the first of them is called."""

    def __init__(self, manager: object) -> None:
        self._manager = manager
        self._adapter: Adapter | None = None
        self._lock = threading.Lock()

    @property
    def adapter(self) -> Adapter:
        """The one adapter of this plugin."""
        if self._adapter is None:
            with self._lock:
                if self._adapter is None:
                    from .adapter import Adapter  # noqa: PLC0415  # see the module's docstring
                    from .host import hermes_home, read_config  # noqa: PLC0415

                    self._adapter = Adapter(read_config=read_config, home=hermes_home, manager=self._manager)
        return self._adapter

    def callback(self, name: str) -> Callable[..., Any]:
        """Return the adapter's entry point of that name."""

        def hook(**kwargs: Any) -> Any:
            try:
                if name in _GIVEN_UP and self.adapter.has_given_up(kwargs):
                    return None
                return _called(getattr(self.adapter, name), kwargs)
            except Exception as error:  # noqa: BLE001  # whatever it is, it is a fault of ours, and Hermes goes on
                self._note(name, kwargs, error)
                return None

        def middleware(**kwargs: Any) -> Any:
            # It raises what the local endpoint raised, too; so it keeps its own faults to itself (`llm_execution`).
            return _called(getattr(self.adapter, name), kwargs)

        call = middleware if name in MIDDLEWARE else hook

        # Hermes names it in its log when something is wrong with it.
        call.__name__ = f"hermes_fallback.{name}"
        return call

    def _note(self, name: str, arguments: dict[str, Any], error: Exception) -> None:
        if self._adapter is None:
            # Not even loaded: a broken installation, for example.
            logging.getLogger(__name__).error("hermes-fallback cannot be loaded", exc_info=error)
            return
        self._adapter.failed(name, arguments, error)

    def escalate(self, raw_args: str) -> str:
        """Answer `/escalate`."""
        session: dict[str, Any] = {}
        try:
            from .commands import escalate  # noqa: PLC0415  # see the module's docstring

            session["session_id"] = self.adapter.command_session()
            return escalate(self.adapter, raw_args, **session)
        except Exception as error:  # noqa: BLE001  # as in a hook; Hermes would show the user its bare words
            self._note("/escalate", session, error)
            return "hermes-fallback itself has failed at this command; see Hermes's agent.log, and say it again."


_TEXT = {str}


def _called(entry_point: Any, arguments: dict[str, Any]) -> Any:
    """Call an entry point of the adapter, without what it reads as text and is none."""
    texts = _texts(getattr(entry_point, "__func__", entry_point))
    if {*map(type, map(arguments.get, texts))} == _TEXT:
        return entry_point(**arguments)
    odd = [name for name in texts if not isinstance(arguments.get(name, ""), str)]
    if odd:
        arguments = {name: value for name, value in arguments.items() if name not in odd}
    return entry_point(**arguments)


@functools.cache
def _texts(entry_point: Any) -> tuple[str, ...]:
    return tuple(name for name, usual in (entry_point.__kwdefaults__ or {}).items() if isinstance(usual, str))


def _set_up_cli(parser: argparse.ArgumentParser) -> None:
    from .cli import set_up  # noqa: PLC0415  # see the module's docstring

    set_up(parser)


def _run_cli(args: argparse.Namespace) -> None:
    from .cli import run  # noqa: PLC0415  # see the module's docstring

    run(args)
