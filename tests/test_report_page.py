"""The report's page: what it says, and that a real browser shows it, asks nobody for anything and runs nothing."""

from __future__ import annotations

import html
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from hermes_fallback import explain
from hermes_fallback.cli import figures
from hermes_fallback.cli.reporting import page, report
from hermes_fallback.cli.reporting.report import By
from hermes_fallback.journal import Journal
from tests.journals import EVIL, SINCE, TIER, UNTIL, Writer, busy, evil, made, opening, price

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium")
pytestmark = pytest.mark.usefixtures("berlin")

COLUMNS = ["Escalations", "Calls", "Paid", "Shadow, not paid", "Tasks", "Stayed local"]


def of(journal: Journal, by: By = "day", *, since: datetime = SINCE, until: datetime = UNTIL) -> str:
    """The page of a journal."""
    calls, tasks = journal.paid_calls(since=since - timedelta(days=7)), journal.local_tasks(since=since)
    make = partial(report.make, calls, tasks, since=since, until=until, price=price, tier=TIER)
    return page.page(make, by=by)


class Read(HTMLParser):
    """What stands in a page: its elements in order, and its tables by their captions."""

    VOID = frozenset({"meta", "rect", "line", "circle"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.captions: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")
            case "caption":
                self.captions.append("")
            case _:
                self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element that closes itself."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """See that elements are closed in their order."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note text where it stands."""
        if not self.open:
            return
        if self.open[-1] in {"td", "th"}:
            self.tables[-1][-1][-1] += data
        elif self.open[-1] == "caption":
            self.captions[-1] += data
        elif self.open[-1] in self.text:
            self.text[self.open[-1]][-1] += data

    def table(self, caption: str) -> list[list[str]]:
        """The rows of a table."""
        return self.tables[self.captions.index(caption)]


def test_the_tables_hold_the_numbers_of_the_charts(tmp_path: Path) -> None:
    """Each day's row and each trigger's is what the report says, which the tests of the report recompute."""
    journal = busy(tmp_path)
    read = Read(of(journal, "task-type"))
    days = made(journal, "day")
    table = read.table("Dollars and what they paid for, by day")
    assert table[0] == ["Day", *COLUMNS]
    assert table[1:-1] == [day_row(group.key, group.sums) for group in days.groups]
    assert table[-1] == ["All", *day_row("", days.totals, shadow="about $0.0500 + 1 call of unknown cost")[1:]]
    triggers = {row[0]: row[1:4] for row in read.table("Escalations, calls and dollars by trigger")[1:]}
    assert triggers == {group.key: day_row("", group.sums)[1:4] for group in made(journal, "trigger").groups}
    types = {row[0]: row[1:] for row in read.table("Escalations, calls, dollars and tasks by kind of task")[1:]}
    assert types == {
        group.key or "none given": [
            *day_row("", group.sums)[1:],
            figures.share(group.sums.paid.success) if group.sums.paid.calls else "–",
        ]
        for group in made(journal, "task-type").groups
    }
    assert read.table("Tasks by who answered them")[1:] == [
        ["stayed local", "4", "33%"],
        ["of these, escalated in shadow", "1", "8%"],
        ["had help that was paid", "8", "67%"],
        ["All", "12", ""],
    ]


def day_row(name: str, sums: report.Sums, *, shadow: str | None = None) -> list[str]:
    """A row as the page has it."""
    calls = sums.shadow
    cost = figures.money(calls.cost_usd, calls.unknown_costs)
    said = shadow or ("–" if not calls.calls else "cost unknown" if cost == "unknown" else f"about {cost}")
    local = [str(sums.local.tasks), str(sums.local.stayed)] if sums.local else []
    paid = figures.money(sums.paid.cost_usd, sums.paid.unknown_costs)
    return [name, str(sums.paid.escalations), str(sums.paid.calls), paid, said, *local]


def test_bars_are_as_high_as_the_dollars(tmp_path: Path) -> None:
    """One bar for each day with calls, in proportion, shadow's apart; a call of unknown cost is marked."""
    sums = made(busy(tmp_path), "day")
    spend = page._spend(sums)  # noqa: SLF001
    costs = [
        (cost or 0.0, is_shadow)
        for group in sums.groups
        for calls, is_shadow in ((group.sums.paid, False), (group.sums.shadow, True))
        for cost in ([calls.cost_usd] if calls.calls else [])
    ]
    assert [bar.is_shadow for bar in spend.bars] == [is_shadow for _, is_shadow in costs]
    top = spend.lines[-1]
    full = spend.lines[0].y - top.y
    dollars = float(top.text.removeprefix("$"))
    for bar, (cost, _) in zip(spend.bars, costs, strict=True):
        assert bar.height == pytest.approx(max(cost / dollars * full, 1.5 if cost else 0.0), abs=0.01)
    marked = [bar.title for bar in spend.bars if bar.is_short]
    assert [title.partition(": ")[0] for title in marked] == ["2026-10-26", "2026-10-28", "2026-11-03"]
    assert all("unknown" in title for title in marked)
    assert all(bar.x >= 0 and bar.x + bar.width <= 100 for bar in spend.bars)


@pytest.mark.parametrize("usd", [1e-5, 0.0421, 0.1, 0.5, 1.0, 3.0, 7.0, 99.0, 100.0, 12_345.0])
def test_the_scale_is_round(usd: float) -> None:
    """The scale reaches the dearest day, at most two and a half times as far, and its numbers are exact."""
    top = page._round_up(usd)  # noqa: SLF001
    assert usd <= top * (1 + 1e-9) <= usd * 2.5
    for line in (top, top / 2):
        assert float(page._tick(line).removeprefix("$").replace(",", "")) == pytest.approx(line)  # noqa: SLF001


def test_a_page_of_a_year_is_by_week() -> None:
    """More than 62 days are summed up by week, more weeks than that by month, and the page says so."""
    spans = {days: page._span(UNTIL - timedelta(days=days - 1), UNTIL) for days in (1, 62, 63, 365, 434, 435, 3660)}  # noqa: SLF001
    assert spans == {1: "day", 62: "day", 63: "week", 365: "week", 434: "week", 435: "month", 3660: "month"}


def test_marked_up_for_everybody(tmp_path: Path) -> None:
    """A language, a title, headings in order, charts with names and words, tables with captions and scopes."""
    read = Read(of(busy(tmp_path), "session"))
    assert ("html", {"lang": "en"}) in read.elements
    assert read.text["title"][0] == "Escalations, 2026-10-20 to 2026-11-03"
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attrs["id"] for _, attrs in read.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    named = [attrs for tag, attrs in read.elements if tag == "svg" and "aria-hidden" not in attrs]
    assert len(named) == 3
    for attrs in named:
        assert attrs["role"] == "img"
    for _, attrs in read.elements:
        assert set((attrs.get("aria-labelledby") or "").split()) <= set(ids)
    assert len(read.captions) == len(read.tables) == 4
    assert all(attrs.get("scope") in {"col", "row"} for tag, attrs in read.elements if tag == "th")
    assert {tag for tag, _ in read.elements}.isdisjoint({"script", "link", "img", "iframe", "object", "base", "form"})


def test_it_asks_for_nothing(tmp_path: Path) -> None:
    """No address stands in the page, and its policy forbids what it does not need."""
    text = of(busy(tmp_path))
    assert "default-src 'none'; style-src 'unsafe-inline'\"" in text
    assert re.findall(r"(?i)https?:|@import|src=|href=|url\((?!#)", text) == []


def test_names_are_text(tmp_path: Path) -> None:
    """A name that is made like markup is shown as it is, without control characters."""
    text = of(evil(tmp_path, UNTIL - timedelta(hours=1)), "session")
    assert "\x1b" not in text
    assert "\u202e" not in text
    read = Read(text)
    assert "script" not in read.text
    assert [row[0] for row in read.table("Escalations, calls, dollars and tasks by session")[1:]] == [
        EVIL["session"],
        "+1+1",
    ]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, by WCAG 2."""

    def light(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_contrast(tmp_path: Path) -> None:
    """Text and bars stand out from what is behind them, by light and by night."""
    schemes = re.findall(r"--ground: .*?}", of(busy(tmp_path)), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", scheme))
        for name in ("ink", "quiet", "paid", "shadow", "local"):
            for ground in ("ground", "panel"):
                assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def test_an_empty_period() -> None:
    """A page is made of nothing, and says so."""
    make = partial(report.make, (), (), since=SINCE, until=UNTIL, price=price)
    text = page.page(make, by="trigger")
    assert "Nothing is recorded in this period." in text
    assert "Nothing was escalated." in text
    assert "Nothing was paid in the 15 days." in text
    assert "no task is recorded" in text
    assert "no local call is recorded" in text


def chromium(folder: Path, *arguments: str) -> str:
    """Run Chromium; return what it prints."""
    assert CHROMIUM is not None
    options = [
        "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}",
    ]  # fmt: skip
    # Its sandbox does not work for root.
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run([CHROMIUM, *options, *arguments], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@contextmanager
def proxy() -> Iterator[tuple[int, list[str]]]:
    """A proxy that lets nothing through, with the first lines of what it was asked."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(4096).decode("latin-1").partition("\r\n")[0])
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)


@in_chromium
def test_a_browser_shows_it_and_asks_nobody(tmp_path: Path) -> None:
    """The page is all there, its script-like names are text, and no request goes out; one without our care makes some."""
    file = tmp_path / "report.html"
    file.write_text(of(evil(tmp_path, UNTIL - timedelta(hours=1)), "model"), "utf-8")
    with proxy() as (port, asked):
        shown = chromium(tmp_path, f"--proxy-server=127.0.0.1:{port}", "--dump-dom", file.as_uri())
        assert [line for line in asked if "example.invalid" in line] == []
        assert "Had every call gone to" in shown
        assert shown.count("<svg") == 3 + 4  # the charts, and the samples beside their words
        assert html.escape(explain.plain(EVIL["model"]), quote=False) in shown
        assert "<script" not in shown
        careless = tmp_path / "careless.html"
        careless.write_text(EVIL["trigger"])
        chromium(tmp_path, f"--proxy-server=127.0.0.1:{port}", "--dump-dom", careless.as_uri())
        assert [line for line in asked if "example.invalid" in line] != []


@in_chromium
def test_the_policy_holds_in_a_browser(tmp_path: Path) -> None:
    """Even if a name got through as markup, nothing would be fetched and nothing run."""
    file = tmp_path / "report.html"
    bad = f"<img src=http://example.invalid/x><script>document.title = 'ran'</script>{EVIL['trigger']}"
    file.write_text(of(busy(tmp_path)).replace("<main>", f"<main>{bad}"), "utf-8")
    with proxy() as (port, asked):
        shown = chromium(tmp_path, f"--proxy-server=127.0.0.1:{port}", "--dump-dom", file.as_uri())
        assert [line for line in asked if "example.invalid" in line] == []
    assert "<title>Escalations" in shown


@in_chromium
@pytest.mark.parametrize("by", ["day", "session"])
def test_it_fits_a_phone(tmp_path: Path, by: By) -> None:
    """At 320 pixels nothing stands out of the page, long names and a row for each of 62 days included."""
    to = Writer(tmp_path)
    name = "a-session-with-a-name-that-is-much-longer-than-any-phone-is-wide-" * 2
    for number in range(62):
        to.now = SINCE + timedelta(days=number)
        to.call(opening(name, name, name), "t", usd=12_345.678)
        to.shadow(opening(name, name, name, is_shadow=True), "t", None)
    until = SINCE + timedelta(days=61, hours=1)
    # A window of Chromium is never that narrow, a frame is; its policy would keep the script out.
    text = of(to.journal, by, until=until).replace("<details>", "<details open>")
    text = re.sub(r"<meta http-equiv=.Content-Security-Policy.*?>", "", text)
    measure = "f.parentNode.title = [f.contentWindow.innerWidth, f.contentDocument.documentElement.scrollWidth]"
    frame = f'<iframe id="f" width="320" height="900" style="border: 0" srcdoc="{html.escape(text)}"'
    file = tmp_path / "phone.html"
    file.write_text(f'<!DOCTYPE html><body><div>{frame} onload="{measure}"></iframe></div>', "utf-8")
    found = re.search(r'title="(\d+),(\d+)"', chromium(tmp_path, "--dump-dom", file.as_uri()))
    assert found is not None
    assert found.groups() == ("320", "320")


def lines_of(picture: Path) -> tuple[int, set[bytes]]:
    """A PNG's width, and its different lines as they are packed."""
    data, at, packed, width = picture.read_bytes(), 8, b"", 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height = struct.unpack(">II", chunk[:8])
        packed += chunk if kind == b"IDAT" else b""
        at += length + 12
    raw = zlib.decompress(packed)
    stride = len(raw) // height
    return width, {raw[start + 1 : start + stride] for start in range(0, len(raw), stride)}


@in_chromium
def test_a_picture_of_it_is_not_blank(tmp_path: Path) -> None:
    """What is drawn has many lines that differ; a blank page has hardly any."""
    file, picture = tmp_path / "report.html", tmp_path / "report.png"
    counts = []
    for text in (of(busy(tmp_path)), "<!DOCTYPE html><title>blank</title>"):
        file.write_text(text, "utf-8")
        chromium(tmp_path, "--window-size=1000,1300", f"--screenshot={picture}", file.as_uri())
        width, lines = lines_of(picture)
        assert width == 1000
        counts.append(len(lines))
    assert counts[0] > 200
    assert counts[1] < 5
