"""`hermes escalation report`: its options, where its numbers come from, and how they are shown."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ... import config as configuration
from ... import host, prices
from ...config import ConfigError, Tier
from ...journal import Journal, JournalError, LocalTask, PaidCall
from .. import figures, period
from ..figures import count, money, share
from . import export, report, summary
from .report import By, Group, Report, Sums

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HELP = "show what was escalated, what it cost and what it did, and what stayed local"

_GOOD, _FAULTS = 0, 1
_LONGEST_TASK = timedelta(days=7)
_DEFAULT_SINCE = "30d"
_WIDE = 240
_NOTHING = "–"
_MARK = "+ ?"
# Without these a row still says what was escalated and paid; what shadow did is told below the table in words.
_DISPENSABLE = ("tokens out", "tokens in", "success", "calls", "all paid", "stayed local", "in shadow", "would cost")


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--since",
        type=period.since,
        default=_DEFAULT_SINCE,
        metavar="30d",
        help="12h; 30d or 8w, whole days, today among them; or the first day: 2026-11-01 (30d)",
    )
    parser.add_argument(
        "--by",
        choices=("day", "trigger", "model", "task-type", "session"),
        default="day",
        help="what a row stands for (day)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one object, for scripts")
    form.add_argument("--csv", action="store_true", help="a row for each day, trigger, …, for scripts")
    form.add_argument("--html", type=_file, metavar="FILE", help="write a page with charts; it needs no network")


def run(args: argparse.Namespace) -> int:
    """Print or write the report; return the exit status: 1 when something could not be read or written."""
    journal = Journal.of(host.hermes_home())
    until = datetime.now().astimezone()
    since: datetime = args.since.before(until)
    try:
        is_recorded = journal.is_begun()
        # A task may have been helped before the period in which it ended.
        paid = journal.paid_calls(since=since - _LONGEST_TASK)
        tasks = journal.local_tasks(since=since)
        forgotten = journal.forgotten(since=since)
    except JournalError as error:
        print(f"report: the journal cannot be read: {error}", file=sys.stderr)
        return _FAULTS
    make = _maker(paid, tasks, since=since, until=until, forgotten_usd=forgotten)
    if not is_recorded:
        print("Nothing is recorded yet.", file=sys.stderr if args.json or args.csv else sys.stdout)
    if args.html is not None:
        return _write_page(args.html, make, args.by)
    made = make(by=args.by)
    if args.json:
        print(json.dumps(export.as_object(made), indent=2))
    elif args.csv:
        csv.writer(sys.stdout, lineterminator="\n").writerows(export.as_rows(made))
    elif is_recorded:
        _show(made)
    return _GOOD


def _file(text: str) -> Path:
    if text == "-":
        raise argparse.ArgumentTypeError("a page is written to a file; name one, for example report.html")
    return Path(text)


def _maker(
    paid: Sequence[PaidCall], tasks: Sequence[LocalTask], *, since: datetime, until: datetime, forgotten_usd: float
) -> partial[Report]:
    tier = _priced_tier()
    name = None if tier is None else tier.name

    def price(input_tokens: int, output_tokens: int) -> float | None:
        return None if tier is None else prices.cost(tier, input_tokens, output_tokens)

    return partial(
        report.make, paid, tasks, since=since, until=until, price=price, tier=name, forgotten_usd=forgotten_usd
    )


def _priced_tier() -> Tier | None:
    """Return the first configured tier that has prices; a faulty block is for `hermes escalation check` to name."""
    block, host_has_chain = host.read_config()
    if block is None:
        return None
    try:
        ladder = configuration.parse(block, host_has_chain=host_has_chain).ladder
    except ConfigError:
        return None
    return next((tier for tier in ladder if tier.is_litellm or tier.price is not None), None)


def _show(made: Report) -> None:
    # Imported here: only this command needs it.
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    # Where no screen says how wide it is, wide enough for every column.
    is_bounded = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(highlight=False, width=None if is_bounded else _WIDE)
    # All of it as Text: a model's name may look like markup.
    console.print(Text(f"Escalations, {summary.period(made)}", "bold"))
    console.print()
    facts = summary.facts(made)
    width = max(len(fact.name) for fact in facts)
    for fact in facts:
        console.print(Text.assemble((fact.name.ljust(width + 2), "dim"), str(fact)))
    console.print()
    table, left_out = _fitting_table(made, console)
    console.print(table)
    if any(_MARK in cell for column in table.columns for cell in map(str, column.cells)):
        console.print(Text(f"{_MARK}: calls of which that is unknown are not in it.", "dim"))
    if others := len(made.groups) - len(_shown(made)):
        noun = "session that stayed local has no row" if others == 1 else "sessions that stayed local have no row"
        console.print(Text(f"{others:,} {noun}; --csv has all.", "dim"))
    if left_out:
        console.print(Text(f"Not enough room for: {', '.join(left_out)}; --csv has them.", "dim"))
    console.print()
    if made.would:
        console.print(Text("Shadow", "bold"))
        for sentence in summary.shadow(made):
            console.print(Text(f"  {sentence}"))
        console.print()
    for note in summary.notes(made):
        console.print(Text(f"{note.name}: {note.value}", "dim"))


def _fitting_table(made: Report, console: Console) -> tuple[Table, list[str]]:
    """Return the table without the columns that there is no room for, rather than with numbers cut in two."""
    columns = _columns(made)
    left_out: list[str] = []
    table = _table(made, columns)
    boundless = console.options.update(max_width=10 * _WIDE)
    for name in _DISPENSABLE:
        if console.measure(table, options=boundless).maximum <= console.width:
            break
        if columns.pop(name, None) is not None:
            left_out.append(name)
            table = _table(made, columns)
    return table, left_out


def _table(made: Report, columns: Mapping[str, Callable[[Sums], str]]) -> Table:
    from rich import box  # noqa: PLC0415  # see _show
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, show_footer=True)
    table.add_column(summary.HEADINGS[made.by], "all", overflow="fold")
    for name, cell in columns.items():
        table.add_column(name, cell(made.totals), justify="right", overflow="fold")
    for group in _shown(made):
        table.add_row(Text(summary.label(group)), *(cell(group.sums) for cell in columns.values()))
    return table


def _shown(made: Report) -> tuple[Group, ...]:
    """Return the groups that get a row: of sessions, which may be hundreds, those that stayed local do not."""
    if made.by != "session":
        return made.groups
    return tuple(group for group in made.groups if group.sums.paid.calls or group.sums.shadow.calls)


def _columns(made: Report) -> dict[str, Callable[[Sums], str]]:
    """Return the columns behind the first one; those that nothing stands in are left out."""
    columns: dict[str, Callable[[Sums], str]] = {
        "escalations": lambda sums: count(sums.paid.escalations),
        "calls": lambda sums: count(sums.paid.calls),
        "success": lambda sums: share(sums.paid.success) if sums.paid.calls else _NOTHING,
        "tokens in": lambda sums: _marked(count(sums.paid.input_tokens), sums.paid.unknown_input),
        "tokens out": lambda sums: _marked(count(sums.paid.output_tokens), sums.paid.unknown_output),
        "paid": lambda sums: _marked(money(sums.paid.cost_usd), sums.paid.unknown_costs),
    }
    if made.would:
        columns["in shadow"] = lambda sums: count(sums.shadow.escalations)
        columns["would cost"] = _shadow_cost
    if made.totals.local is not None and made.groups and made.groups[0].sums.local is not None:
        columns["stayed local"] = _stayed
        columns["all paid"] = lambda sums: _marked(money(sums.all_paid_usd), int(sums.is_at_least))
    return columns


def _stayed(sums: Sums) -> str:
    local = sums.local
    if local is None or not local.tasks:
        return _NOTHING
    return f"{local.stayed:,} of {local.tasks:,}"


def _shadow_cost(sums: Sums) -> str:
    return _marked(money(sums.shadow.cost_usd), sums.shadow.unknown_costs) if sums.shadow.calls else _NOTHING


def _marked(text: str, unknown: int) -> str:
    return f"{text} {_MARK}" if unknown and text != figures.UNKNOWN else text


def _write_page(path: Path, make: partial[Report], by: By) -> int:
    from . import page  # noqa: PLC0415  # brings in jinja2

    try:
        _write(path, page.page(make, by=by))
    except OSError as error:
        print(f"report: {path}: {error.strerror or error}; name a file that can be written", file=sys.stderr)
        return _FAULTS
    print(f"The report is in {path}.")
    return _GOOD


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all, for its owner alone: it names sessions and models.

    Raises:
        OSError: it cannot be written.
    """
    if path.is_symlink():
        # In a folder that all may write, it may lead anywhere, by the will of another.
        if hasattr(os, "geteuid") and path.lstat().st_uid != os.geteuid():
            raise OSError("it is a link that another user made")
        path = path.resolve()
    if path.exists() and not path.is_file():
        raise OSError("it is there and is no plain file")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
