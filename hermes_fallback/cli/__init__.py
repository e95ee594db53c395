"""`hermes escalation …`: what a user runs in a shell to set the plugin up, to see whether it works, and what it did."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime
from typing import Any

from ..explain import plain
from ..host import hermes_home
from ..journal import Deleted, Journal, JournalError
from . import checking, period, replaying, reporting, status, timeline, wizard

_COMMANDS: dict[str, Any] = {
    "init": wizard,
    "check": checking,
    "status": status,
    "explain": timeline,
    "report": reporting,
    "replay": replaying,
}
"""Each is a file with `HELP`, `set_up` and `run`."""

_FORGET = "delete what the journal knows; what was spent this month stays as bare sums, so that the budget holds"


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    commands = parser.add_subparsers(dest="escalation_command", metavar="COMMAND")
    for name, command in _COMMANDS.items():
        command.set_up(commands.add_parser(name, help=command.HELP, description=command.HELP))
    forget = commands.add_parser("forget", help=_FORGET, description=_FORGET)
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument("session", nargs="?", help="a session's id")
    which.add_argument(
        "--before", type=period.since, metavar="90d", help="what is older than that, or than a day: 2026-11-01"
    )
    which.add_argument("--all", action="store_true", help="everything")


def run(args: argparse.Namespace) -> None:
    """Run the command and end the process with its status: 0 when all is well."""
    if args.escalation_command == "forget":
        sys.exit(_forget(args))
    # `check` for whoever types no command: it says what to do next.
    command = _COMMANDS[args.escalation_command or "check"]
    if args.escalation_command is None:
        args.live = False
    sys.exit(status_of(command, args))


def status_of(command: Any, args: argparse.Namespace) -> int:
    """Run a command and return its status; its output may be no longer read, as by `head`."""
    try:
        status: int = command.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would say it again, when it writes what is left at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _forget(args: argparse.Namespace) -> int:
    before = args.before.before(datetime.now().astimezone()) if args.before else None
    journal = Journal.of(hermes_home())
    try:
        deleted = journal.forget(session_id=args.session, before=before)
        # What is being paid stays, and is something.
        is_kept = args.session is not None and bool(journal.entries(session_id=args.session, last=1))
    except JournalError as error:
        print(f"Nothing is deleted: {error}")
        return 1
    if args.session is not None and deleted == Deleted():
        why = "a call of it is being made" if is_kept else "there is nothing of it in the journal"
        print(plain(f"Nothing is deleted of the session {args.session}: {why}."))
        return 0
    settings = ", and what /escalate off or auto had set" if deleted.switches else ""
    escalations, tasks = _counted(deleted.escalations, "escalation"), _counted(deleted.tasks, "task")
    print(f"Deleted: {escalations}, {tasks}{settings}.")
    return 0


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
