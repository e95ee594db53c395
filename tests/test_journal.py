"""The journal: sums that tell unknown from nothing, several writers, files that cannot be used."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from hermes_fallback.journal import Journal, JournalError


def escalation(journal: Journal, session_id: str = "s") -> int:
    """Write one escalation."""
    return journal.open_escalation(
        session_id=session_id, from_model="local", to_model="strong", trigger="no_progress", reason="why"
    )


def test_sums_of_an_escalation(tmp_path: Path) -> None:
    """Answered calls are summed up; failed ones are counted and keep their error."""
    journal = Journal(tmp_path)
    id_ = escalation(journal)
    for cost in (0.25, 0.5):
        call = journal.start_call(id_, turn_id="t")
        journal.end_call(call, "answered", seconds=2.0, input_tokens=10, output_tokens=5, cost_usd=cost)
    journal.end_call(journal.start_call(id_, turn_id="t"), "failed", seconds=1.0, error="no")
    (entry,) = journal.entries()
    assert (entry.calls, entry.failed, entry.error, entry.seconds) == (2, 1, "no", 5.0)
    assert (entry.input_tokens, entry.output_tokens, entry.cost_usd) == (20, 10, 0.75)


def test_one_unknown_cost_makes_the_sum_unknown(tmp_path: Path) -> None:
    """Unknown is never shown as nothing."""
    journal = Journal(tmp_path)
    id_ = escalation(journal)
    journal.end_call(journal.start_call(id_, turn_id="t"), "answered", seconds=1.0, input_tokens=1, cost_usd=0.5)
    journal.end_call(journal.start_call(id_, turn_id="t"), "answered", seconds=1.0, input_tokens=1)
    (entry,) = journal.entries()
    assert (entry.input_tokens, entry.output_tokens, entry.cost_usd) == (2, None, None)


def test_entries_of_a_session_and_of_a_turn(tmp_path: Path) -> None:
    """An escalation that spans turns gives each turn its own calls."""
    journal = Journal(tmp_path)
    first, second = escalation(journal, "one"), escalation(journal, "two")
    for id_, turn in ((first, "t1"), (first, "t2"), (first, "t2"), (second, "t3")):
        journal.end_call(journal.start_call(id_, turn_id=turn), "answered", seconds=1.0)
    assert [entry.calls for entry in journal.entries(session_id="one")] == [3]
    assert [entry.calls for entry in journal.entries(turn_id="t2")] == [2]
    assert [entry.session_id for entry in journal.entries()] == ["two", "one"]


def test_writers_at_once(tmp_path: Path) -> None:
    """Threads that start on an empty folder at the same moment all get their rows."""
    barrier = threading.Barrier(16)

    def write() -> None:
        barrier.wait()
        journal = Journal(tmp_path / "new")
        journal.end_call(journal.start_call(escalation(journal), turn_id="t"), "answered", seconds=1.0)

    threads = [threading.Thread(target=write) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Journal(tmp_path / "new").entries(last=100)) == 16


def test_nothing_is_made_before_the_first_escalation(tmp_path: Path) -> None:
    """Reading an empty journal writes nothing."""
    assert Journal(tmp_path / "none").entries() == ()
    assert not (tmp_path / "none").exists()


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """The error names the file and what to do."""
    (tmp_path / "journal.sqlite3").write_text("this is not a database, it is a text")
    with pytest.raises(JournalError, match=r"journal\.sqlite3: file is not a database; make it writable, or move"):
        escalation(Journal(tmp_path))


def test_columns_hold_no_content(tmp_path: Path) -> None:
    """There is no column in which a prompt, an argument or a result could stand."""
    journal = Journal(tmp_path)
    escalation(journal)
    with sqlite3.connect(journal.path) as connection:
        columns = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in ("escalations", "calls")
        }
    connection.close()
    assert columns == {
        "escalations": ["id", "at", "session_id", "from_model", "to_model", "trigger", "reason"],
        "calls": [
            *("id", "escalation", "turn_id", "at", "state", "error"),
            *("seconds", "input_tokens", "output_tokens", "cost_usd"),
        ],
    }
