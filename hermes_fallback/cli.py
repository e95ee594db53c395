"""`hermes escalation …`: what a user runs in a shell to see whether the plugin works and what it did."""

from __future__ import annotations

import argparse
import sys

from . import config as configuration
from . import executor, explain, replaying
from .config import Config, ConfigError
from .host import agent_class, hermes_home, read_config, running_model
from .journal import Journal, JournalError
from .live import streams_as_written

_GOOD, _FAULTS = 0, 1


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    commands = parser.add_subparsers(dest="escalation_command", metavar="COMMAND")
    commands.add_parser("check", help="check the model_routing block, and whether each tier has its key")
    explained = commands.add_parser("explain", help="show what was escalated, why, and what it cost")
    explained.add_argument("session", nargs="?", help="a session's id; all sessions when left out")
    explained.add_argument("--last", type=int, default=20, metavar="N", help="how many escalations (20)")
    replaying.set_up(commands.add_parser("replay", help=replaying.HELP, description=replaying.HELP))


def run(args: argparse.Namespace) -> None:
    """Run the command and end the process with its status: 0 when all is well, 1 when something is to be mended."""
    match args.escalation_command:
        case "explain":
            sys.exit(_explain(args.session, last=args.last))
        case "replay":
            sys.exit(replaying.run(args))
        case _:
            sys.exit(_check())


def _check() -> int:
    block, host_has_chain = read_config()
    if block is None:
        print("No `model_routing` block in Hermes's config.yaml: hermes-fallback is idle.")
        return _FAULTS
    try:
        config = configuration.parse(block, host_has_chain=host_has_chain)
    except ConfigError as error:
        print(f"hermes-fallback is not active; {len(error.faults)} to mend:")
        print("\n".join(f"  {fault}" for fault in error.faults))
        return _FAULTS
    print("The model_routing block is well-formed.")
    return _check_tiers(config)


def _check_tiers(config: Config) -> int:
    outcome = _GOOD
    for number, tier in enumerate(config.ladder, start=1):
        fault = executor.fault_of(tier) if tier.is_litellm else None
        print(f"  tier {number}, {tier.name}: {fault or 'ready'}")
        outcome = outcome if fault is None else _FAULTS
    if not config.policy.enabled:
        print("`fallback_policy.enabled` is false: nothing will be escalated.")
    if (reason := _stays_local_because(config)) is not None:
        print(f"Everything stays local, because {reason}.")
        return _FAULTS
    way = (
        "streamed as it is written" if streams_as_written(agent_class()) else "shown whole (this Hermes has no way in)"
    )
    print(f"The stronger model's answer is {way}.")
    return outcome


def _stays_local_because(config: Config) -> str | None:
    try:
        return running_model().stays_local_because(config)
    except Exception as error:  # noqa: BLE001  # Hermes says in many ways that it cannot run
        return f"Hermes cannot tell what it runs: {error}"


def _explain(session_id: str | None, *, last: int) -> int:
    # Imported here: only this command needs it.
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    try:
        entries = Journal(hermes_home() / "hermes-fallback").entries(session_id=session_id, last=last)
    except JournalError as error:
        print(f"The journal cannot be read: {error}")
        return _FAULTS
    if not entries:
        print("Nothing was escalated.")
        return _GOOD
    console = Console(highlight=False)
    for entry in reversed(entries):
        when = entry.at[:19].replace("T", " ")
        used = explain.usage(entry.input_tokens, entry.output_tokens, entry.cost_usd)
        # As Text: a model's name may look like markup.
        console.print(Text(f"{when} UTC  {entry.from_model} → {entry.to_model}  session {entry.session_id}", "bold"))
        console.print(Text(f"  because {entry.reason} [{entry.trigger}]"), soft_wrap=True)
        console.print(Text(f"  {explain.outcome(entry.calls, entry.failed)}, {used}"), soft_wrap=True)
        if entry.error is not None:
            console.print(Text(f"  failed: {entry.error}", "red"), soft_wrap=True)
    return _GOOD
