"""Rows for people and for scripts: a table on a terminal, JSON, or CSV."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

from ..explain import plain

_WIDE = 400

# A spreadsheet takes a cell that begins so for a formula; some take the wide forms as well.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def add_forms(parser: argparse.ArgumentParser) -> None:
    """Declare `--json` and `--csv`."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for scripts")
    form.add_argument("--csv", action="store_true", help="for scripts")


def cell(value: object) -> str:
    """Return a value as it stands in a CSV file: numbers plain, unknown as nothing, no text that is a formula."""
    if value is None:
        return ""
    if isinstance(value, float):
        # As short as it goes without losing anything, and never 1e-05.
        return f"{Decimal(repr(value)):f}"
    if isinstance(value, int):
        return str(value)
    text = plain(str(value))
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def for_scripts(args: argparse.Namespace, data: object, rows: Sequence[Mapping[str, object]]) -> bool:
    """Print `data` as JSON or `rows` as CSV, if one of them was asked for; what is None is unknown."""
    if args.json:
        print(json.dumps(data, indent=2))
    elif args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(rows[0] if rows else ())
        writer.writerows([cell(value) for value in row.values()] for row in rows)
    return bool(args.json or args.csv)


def for_people(title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: int = 0) -> None:
    """Print a table whose last `numbers` columns are numbers."""
    # Imported here: only these commands need it.
    from rich import box  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(
        title=Text(plain(title), "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=any(headings),
    )
    for place, heading in enumerate(headings):
        is_number = place >= len(headings) - numbers
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        # As Text: a model's name may look like markup.
        table.add_row(*(Text(plain(str(value))) for value in row))
    # Where no terminal says how wide it is, lines are left whole for grep.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    with console.capture() as captured:
        console.print(table)
    # Without the blanks that fill each line up.
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
