"""`hermes escalation report`: what a terminal and a script get, and what is said when something is wrong."""

from __future__ import annotations

import argparse
import csv
import json
import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hermes_fallback import explain, prices
from hermes_fallback.cli import figures, period, reporting
from hermes_fallback.cli.reporting import export
from hermes_fallback.cli.reporting.report import By
from hermes_fallback.config import Tier
from tests.journals import BERLIN, EVIL, TIER, Writer, busy, evil, made, opening
from tests.shell import escalation
from tests.test_report import Recomputed, near
from tests.world import ISSUE_BLOCK, config_text

pytestmark = pytest.mark.usefixtures("berlin")


NOW = datetime(2026, 10, 26, 12, 30, 15, 500, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("1d", "2026-10-26T00:00:00+01:00"),
        ("2d", "2026-10-25T00:00:00+02:00"),
        ("1w", "2026-10-20T00:00:00+02:00"),
        ("48h", "2026-10-24T13:30:15+02:00"),
        ("2026-03-29", "2026-03-29T00:00:00+01:00"),
    ],
)
def test_since(text: str, begins: str) -> None:
    """Days and weeks are whole local days, today among them, whatever the clocks do; hours are hours."""
    assert period.since(text).before(NOW).isoformat() == begins


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("yesterday", "“yesterday” is no time; write for example 12h, 30d, 8w or 2026-11-01"),
        ("", "is no time"),
        ("-3d", "is no time"),
        ("٣d", "is no time"),
        ("0d", "is no time at all"),
        ("2026-02-30", "is no day of the calendar"),
        ("9999-01-01", "is in the future"),
        ("0001-01-01", "is too long ago"),
        ("999999w", "is too long ago; ten years is the most"),
    ],
)
def test_since_that_cannot_be(text: str, words: str) -> None:
    """What cannot be understood is said, with what can."""
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(words)):
        period.since(text)


def test_csv_cells(tmp_path: Path) -> None:
    """Control characters hide no formula, small numbers have no exponent, and what a division lacks is empty."""
    to = Writer(tmp_path)
    for trigger in ("\t=1", "@x", "-x", "＝x", "\u202e+x", "fine"):
        to.call(opening(trigger=trigger), "t", usd=1e-7)
    header, *rows = export.as_rows(made(to.journal, "trigger"))
    assert sorted(row[0] for row in rows) == ["' +x", "' =1", "'-x", "'@x", "'＝x", "fine"]
    assert {row[header.index("cost_usd")] for row in rows} == {"0.0000001"}
    assert {row[header.index("local_tasks")] for row in rows} == {""}
    assert {len(row) for row in rows} == {len(header)} == {len(set(header))}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hermes home with such a journal, of a minute ago."""
    home = tmp_path_factory.mktemp("report")
    (home / "config.yaml").write_text(config_text("http://127.0.0.1:9/v1", ISSUE_BLOCK))
    evil(home / "hermes-fallback", datetime.now(UTC) - timedelta(minutes=1))
    return home


def test_on_a_terminal(home: Path) -> None:
    """The numbers, what shadow would have done, what they mean; names are shown as they are and obeyed by nothing."""
    done = escalation(home, "report", "--by", "model", "--since", "2h")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "Paid $0.5000" in lines
    assert "Escalations 1 (1 call: 1 answered)" in lines
    assert "Success of the paid calls 100% (1 of 1)" in lines
    assert "Tasks that stayed local 50% (1 of 2)" in lines
    # Four calls of a million tokens each.
    usd = 4 * (prices.cost(Tier("openai", "gpt-5.4"), 1_000_000, 0) or 0.0) + 0.5
    assert usd > 1
    assert f"Had every call gone to {TIER} about ${usd:.2f} (without 1 local call of unknown tokens)" in lines
    model = explain.plain(EVIL["model"])
    assert f"Would have escalated once to {model} because of risk: 1 call, about $0.1250." in lines
    assert f"{model} 1 1 100% 1,000 100 $0.5000 1 $0.1250" in lines
    assert any(line.startswith("Success: the calls that answered, of those") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("by", ["day", "model", "session"])
def test_no_number_is_cut_in_two(
    tmp_path: Path, by: By, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A narrow terminal gets fewer columns, and is told which; each row stays on its line."""
    monkeypatch.setenv("COLUMNS", str(width))
    report_ = made(busy(tmp_path), by)
    reporting._show(report_)  # noqa: SLF001
    shown = capsys.readouterr().out
    paid = {group.key: group.sums.paid for group in report_.groups if group.sums.paid.calls}
    for key, sums in paid.items():
        (line,) = [line for line in shown.splitlines() if line.startswith(f"{key} ")]
        assert f" {figures.money(sums.cost_usd)} " in f"{line} "
        assert line.split()[1] == str(sums.escalations)
    assert ("Not enough room for: tokens out" in shown) == (width < 200)
    assert "+ ?: calls of which that is unknown are not in it." in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= width


def test_as_json(home: Path) -> None:
    """One object, whose numbers are those of the file; nothing that a terminal would obey."""
    done = escalation(home, "report", "--json", "--by", "session", "--since", "2d")
    assert "\x1b" not in done.stdout
    told = json.loads(done.stdout)
    assert list(told) == [
        "version",
        "by",
        "since",
        "until",
        "time_zone",
        "estimate_by_prices_of",
        "totals",
        "forgotten_usd",
        "groups",
        "shadow_escalations",
    ]
    assert (told["version"], told["by"], told["estimate_by_prices_of"]) == (1, "session", TIER)
    assert [group["key"] for group in told["groups"]] == [EVIL["session"], "+1+1"]
    since, until = datetime.fromisoformat(told["since"]), datetime.fromisoformat(told["until"])
    with closing((sql := Recomputed(home / "hermes-fallback" / "journal.sqlite3", since, until)).database):
        assert told["totals"]["paid"] == near(sql.sums(None)[""]["paid"])
    assert [(one["model"], one["cost_usd"]) for one in told["shadow_escalations"]] == [(EVIL["model"], 0.125)]


def test_as_csv(home: Path) -> None:
    """A header and a row a group, plain numbers, nothing for unknown; no name is taken for a formula."""
    done = escalation(home, "report", "--csv", "--by", "session")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [row["session"] for row in rows] == ["'" + EVIL["session"], "'+1+1"]
    assert (rows[0]["cost_usd"], rows[0]["shadow_calls"], rows[0]["local_tasks"], rows[0]["local_share_stayed"]) == (
        "0.5",
        "0",
        "1",
        "0.0",
    )
    assert (rows[1]["success"], rows[1]["local_input_tokens"], rows[1]["estimate_all_paid_usd"]) == ("", "", "")


def test_as_a_page(home: Path) -> None:
    """The file is written whole, for its owner alone, over what was there."""
    file = home / "out" / "report.html"
    file.parent.mkdir()
    file.write_text("old")
    done = escalation(home, "report", "--html", str(file), "--by", "session")
    assert (done.returncode, done.stdout.strip()) == (0, f"The report is in {file}.")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert list(file.parent.iterdir()) == [file]
    for wrong in (file.parent, home / "none" / "report.html"):
        done = escalation(home, "report", "--html", str(wrong))
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"report: {wrong}: ")
        assert "Traceback" not in done.stderr


def test_nothing_recorded(tmp_path: Path) -> None:
    """Without a journal, a sentence, and none is made; a script gets an empty report."""
    (tmp_path / "config.yaml").write_text(config_text("http://127.0.0.1:9/v1", ""))
    done = escalation(tmp_path, "report")
    assert (done.returncode, done.stdout.strip()) == (0, "Nothing is recorded yet.")
    done = escalation(tmp_path, "report", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["totals"]["paid"]["calls"], len(told["groups"])) == (0, 0, 30)
    assert told["estimate_by_prices_of"] is None
    assert not (tmp_path / "hermes-fallback").exists()


def test_a_journal_that_cannot_be_read(tmp_path: Path) -> None:
    """A sentence with the file's name, and status 1."""
    (tmp_path / "config.yaml").write_text(config_text("http://127.0.0.1:9/v1", ""))
    (tmp_path / "hermes-fallback").mkdir()
    (tmp_path / "hermes-fallback" / "journal.sqlite3").write_text("this is not a database, it is a text")
    done = escalation(tmp_path, "report", "--csv")
    assert (done.returncode, done.stdout) == (1, "")
    assert "report: the journal cannot be read: " in done.stderr
    assert "journal.sqlite3: file is not a database" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "--csv"], "not allowed with argument"),
        (["--csv", "--html", "x"], "not allowed with argument"),
        (["--html", "-"], "a page is written to a file; name one, for example report.html"),
        (["--by", "week"], "invalid choice"),
    ],
)
def test_arguments_that_cannot_be(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What excludes itself or makes no sense is refused in words."""
    parser = argparse.ArgumentParser()
    reporting.set_up(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert words in capsys.readouterr().err
