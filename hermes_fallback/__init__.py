"""hermes-fallback: carries a task that a local model is stuck in to a stronger model, and comes back.

`register` is all that Hermes calls, and the table of contents of what we plug into.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .adapter import Adapter, hermes_home, read_block
from .cli import register_cli
from .commands import ESCALATE_HELP, escalate_command

if TYPE_CHECKING:
    from hermes_cli.plugins import PluginContext

__all__ = ["register"]


def register(ctx: PluginContext) -> None:
    """Plug into Hermes; called at its start, perhaps more than once."""
    # First, so that `hermes escalation check` is there whatever comes after.
    register_cli(ctx)
    adapter = Adapter(read_block=read_block, home=hermes_home, manager=getattr(ctx, "_manager", None))
    ctx.register_hook("pre_llm_call", adapter.pre_llm_call)
    ctx.register_hook("post_tool_call", adapter.post_tool_call)
    ctx.register_hook("transform_llm_output", adapter.transform_llm_output)
    ctx.register_hook("on_session_end", adapter.on_session_end)
    ctx.register_hook("on_session_finalize", adapter.on_session_finalize)
    ctx.register_hook("on_session_reset", adapter.on_session_reset)
    ctx.register_hook("subagent_start", adapter.subagent_start)
    ctx.register_hook("subagent_stop", adapter.subagent_stop)
    ctx.register_middleware("llm_execution", adapter.llm_execution)
    ctx.register_command(
        "escalate",
        escalate_command(adapter),
        description="Let the stronger model take over, or see what it did",
        args_hint=ESCALATE_HELP,
    )
