"""`hermes escalation explain`: what happened, in the order in which it did, in plain sentences."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .. import explain
from ..host import hermes_home
from ..journal import Entry, Journal, JournalError, LocalTask
from . import tables

HELP = "show what was escalated, why, and what it cost, as a timeline"

CHECK = "check"
"""What stands in the journal as the trigger of a call by `hermes escalation check --live`."""

_GOOD, _FAULTS = 0, 1
_MOST = 20


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("session", nargs="?", help="a session's id; all sessions when left out")
    parser.add_argument(
        "--last", type=_count, metavar="N", help=f"how many escalations (all of a session, else {_MOST})"
    )
    tables.add_forms(parser)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"“{text[:40]}” is no number of escalations; write 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Print the timeline; return 1 when the journal cannot be read."""
    journal = Journal.of(hermes_home())
    most = args.last if args.last is not None else -1 if args.session else _MOST
    try:
        newest = journal.entries(session_id=args.session, last=most + 1 if most >= 0 else most)
        # Of a single session, what the local model did by itself as well.
        tasks = journal.local_tasks(session_id=args.session) if args.session else ()
    except JournalError as error:
        print(f"The journal cannot be read: {error}")
        return _FAULTS
    entries = newest[:most] if most >= 0 else newest
    moments = sorted([*map(_escalated, entries), *map(_worked, tasks)], key=lambda one: one.at)
    rows = [one.row() for one in moments]
    if tables.for_scripts(args, rows, rows):
        return _GOOD
    if not moments:
        print("Nothing was escalated.")
        return _GOOD
    for session in dict.fromkeys(one.session for one in moments):
        mine = [one for one in moments if one.session == session]
        tables.for_people(f"session {session}", ("when", "what"), _lines(mine))
    if len(newest) > len(entries):
        print(f"These are the newest {len(entries)}; `--last N` shows more.")
    return _GOOD


@dataclass(frozen=True, slots=True)
class _Moment:
    at: str
    session: str
    sentences: tuple[str, ...]
    kind: str
    numbers: Mapping[str, object]

    def row(self) -> Mapping[str, object]:
        """Return what a script gets."""
        told = " ".join(self.sentences)
        return {"at": self.at, "session": self.session, "kind": self.kind, "told": told, **self.numbers}


def _lines(moments: Sequence[_Moment]) -> Iterator[tuple[str, str]]:
    for moment in moments:
        for place, sentence in enumerate(moment.sentences):
            yield ("" if place else explain.local_time(moment.at)), sentence


def headline(entry: Entry) -> str:
    """Say who took over from whom and why."""
    if entry.trigger == CHECK:
        return f"{entry.to_model} was tried, because {entry.reason}."
    verb = "would have taken over" if entry.is_shadow else "took over"
    kind = f" in a task of type {entry.task_type} ({entry.type_reason})" if entry.task_type else ""
    return f"{entry.from_model} → {entry.to_model}: {verb}{kind}, because {entry.reason} [{entry.trigger}]."


def _escalated(entry: Entry) -> _Moment:
    used = explain.usage(entry.input_tokens, entry.output_tokens, entry.cost_usd)
    sentences = [
        headline(entry),
        f"{explain.outcome(entry.calls, entry.failed)}, {used}.",
    ]
    if entry.error is not None:
        sentences.append(f"Failed: {entry.error}.")
    numbers = {
        "from_model": entry.from_model,
        "to_model": entry.to_model,
        "trigger": entry.trigger,
        "task_type": entry.task_type or None,
        "answered": entry.calls,
        "failed": entry.failed,
        "input_tokens": entry.input_tokens,
        "output_tokens": entry.output_tokens,
        "cost_usd": entry.cost_usd,
    }
    return _Moment(entry.at, entry.session_id, tuple(sentences), "shadow" if entry.is_shadow else "escalation", numbers)


def _worked(task: LocalTask) -> _Moment:
    what = "A sub-agent" if task.is_subagent else "A task"
    kind = f" of type {task.task_type} ({task.type_reason})" if task.task_type else ""
    told = f"{what}{kind} ended; the local model had {explain.calls(task.local_calls)} in it"
    if task.untold_calls < task.local_calls:
        told += f", {task.input_tokens:,} tokens in, {task.output_tokens:,} out"
    numbers: dict[str, object] = dict.fromkeys(("from_model", "to_model", "trigger"))
    numbers |= {"task_type": task.task_type or None, "answered": task.local_calls, "failed": None}
    numbers |= {"input_tokens": task.input_tokens, "output_tokens": task.output_tokens, "cost_usd": None}
    return _Moment(task.at, task.session_id, (f"{told}.",), "local", numbers)
