"""The journal: sums that tell unknown from nothing, several writers, old files, files that cannot be used."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hermes_fallback.budget import NOTHING_USED, Allowed, Exceeded, Spent, Usage, fit
from hermes_fallback.config import Budget
from hermes_fallback.journal import Deleted, Journal, JournalError, Opening, Reserved

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def opening(session_id: str = "s", **more: Any) -> Opening:
    """An escalation about to begin."""
    return Opening(session_id, "local", "strong", "no_progress", "why", **more)


def allow(reserved_usd: float | None = None) -> Callable[[Spent], Allowed]:
    """Let every call be made, for so much at most."""
    return lambda _: Allowed(None, reserved_usd)


def start(
    journal: Journal, escalation: int | Opening, *, turn: str = "t", usd: float | None = None, seconds: float = 10
) -> Reserved:
    """Reserve a call that fits."""
    reserved = journal.reserve(escalation, turn_id=turn, task_id=turn, account="s", seconds=seconds, fit=allow(usd))
    assert isinstance(reserved, Reserved)
    return reserved


def answered(
    journal: Journal, escalation: int | Opening, used: Usage, *, turn: str = "t", usd: float | None = None
) -> int:
    """Write a call that was answered; return its escalation."""
    reserved = start(journal, escalation, turn=turn, usd=usd)
    journal.end_call(reserved.call, "answered", turn_id=turn, seconds=2.0, used=used)
    return reserved.escalation


def add_task(journal: Journal, name: str) -> None:
    """Write a turn of a session of the same name."""
    journal.add_task(
        turn_id=name,
        task_id=name,
        session_id=name,
        task_type="",
        type_reason="",
        local_calls=1,
        untold_calls=0,
        input_tokens=1,
        output_tokens=1,
    )


def at_once(count: int, work: Callable[[], object]) -> None:
    """Have that many threads begin the same work at the same moment, and wait for them."""
    barrier = threading.Barrier(count)

    def begin() -> None:
        barrier.wait()
        work()

    threads = [threading.Thread(target=begin) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_processes(count: int, work: str, *arguments: object, environment: Mapping[str, str] | None = None) -> list[str]:
    """Run that many processes at once, each with a function of this module; return what they printed."""
    script = f"import sys; from tests import test_journal; test_journal.{work}(*sys.argv[1:])"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
        for _ in range(count)
    ]
    printed = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return printed


def rows(journal: Journal, query: str) -> list[tuple[Any, ...]]:
    """What a reader of the file sees."""
    with closing(sqlite3.connect(journal.path)) as connection:
        return connection.execute(query).fetchall()


def test_sums_of_an_escalation(tmp_path: Path) -> None:
    """Answered calls are summed up; failed ones are counted, keep their error, and cost what they used."""
    journal = Journal(tmp_path)
    id_ = answered(journal, opening(), Usage(10, 5, 0.25))
    answered(journal, id_, Usage(10, 5, 0.5))
    journal.end_call(start(journal, id_).call, "failed", turn_id="t", seconds=1.0, used=NOTHING_USED, error="no")
    journal.end_call(start(journal, id_).call, "interrupted", turn_id="t", seconds=1.0, used=Usage(4, 1, 0.125))
    (entry,) = journal.entries()
    assert (entry.calls, entry.failed, entry.error, entry.seconds) == (2, 1, "no", 6.0)
    assert (entry.input_tokens, entry.output_tokens, entry.cost_usd) == (24, 11, 0.875)


def test_one_unknown_cost_makes_the_sum_unknown(tmp_path: Path) -> None:
    """Unknown is never shown as nothing; a call whose price is known and its usage is not has cost its reservation."""
    journal = Journal(tmp_path)
    id_ = answered(journal, opening(), Usage(1, None, 0.5))
    answered(journal, id_, Usage(1))
    (entry,) = journal.entries()
    assert (entry.input_tokens, entry.output_tokens, entry.cost_usd) == (2, None, None)
    answered(journal, opening("other"), Usage(), usd=0.75)
    assert journal.entries(session_id="other")[0].cost_usd == 0.75


def test_entries_of_a_session_and_of_a_turn(tmp_path: Path) -> None:
    """An escalation that spans turns gives each turn its own calls."""
    journal = Journal(tmp_path)
    first = answered(journal, opening("one"), NOTHING_USED, turn="t1")
    answered(journal, first, NOTHING_USED, turn="t2")
    answered(journal, first, NOTHING_USED, turn="t2")
    answered(journal, opening("two"), NOTHING_USED, turn="t3")
    assert [entry.calls for entry in journal.entries(session_id="one")] == [3]
    assert [entry.calls for entry in journal.entries(turn_ids=["t2"])] == [2]
    assert [entry.session_id for entry in journal.entries()] == ["two", "one"]


def test_writers_at_once(tmp_path: Path) -> None:
    """Threads that start on an empty folder at the same moment all get their rows."""

    def write() -> None:
        journal = Journal(tmp_path)
        for _ in range(5):
            answered(journal, opening(), NOTHING_USED)

    at_once(16, write)
    assert len(Journal(tmp_path).entries(last=1000)) == 80


def test_one_thread_at_a_time_has_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they do, and even when they find it corrupt: SQLite loses locks when threads open and close at once."""
    is_open = 0
    seen: Counter[int] = Counter()

    class Watched(sqlite3.Connection):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            nonlocal is_open
            super().__init__(*arguments, **more)
            is_open += 1
            seen[is_open] += 1

        def close(self) -> None:
            nonlocal is_open
            super().close()
            is_open -= 1

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *path, **more: connect(*path, factory=Watched, **more))
    Journal(tmp_path).path.write_bytes(b"x" * 5000)

    def use() -> None:
        journal = Journal(tmp_path)
        for number in range(5):
            with suppress(JournalError):  # of who finds it corrupt
                journal.entries()
                journal.set_off(f"{number}", is_off=True)
                answered(journal, opening(), NOTHING_USED)

    at_once(16, use)
    assert set(seen) == {1}
    assert seen[1] > 100


SLOW_CLOSE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int close(int handle) {
    static const char name[] = "journal.sqlite3";
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length > (ssize_t)strlen(name) && !strncmp(path + length - strlen(name), name, strlen(name)))
        usleep(300 + rand() % 700);
    return ((int (*)(int))dlsym(RTLD_NEXT, "close"))(handle);
}
"""


def write_tasks(folder: str) -> None:
    """Write tasks from many threads, and print whose writing succeeded."""
    numbers = itertools.count()
    written: list[str] = []

    def write() -> None:
        for _ in range(10):
            turn = f"{os.getpid()}-{next(numbers)}"
            with suppress(JournalError):
                add_task(Journal(Path(folder)), turn)
                written.append(turn)

    at_once(16, write)
    print("\n".join(written))


@pytest.mark.skipif(sys.platform != "linux", reason="the slow close() is made for Linux")
@pytest.mark.skipif(shutil.which("cc") is None, reason="the slow close() needs a C compiler")
def test_a_slow_close_loses_no_lock(tmp_path: Path) -> None:
    """With the moment stretched in which SQLite can lose a process's locks, no row is lost and the file stays sound."""
    source, library = tmp_path / "slow.c", tmp_path / "slow.so"
    source.write_text(SLOW_CLOSE)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    printed = in_processes(2, "write_tasks", tmp_path, environment={"LD_PRELOAD": str(library)})
    written = {turn for text in printed for turn in text.split()}
    journal = Journal(tmp_path)
    assert len(written) > 100
    assert {task.turn_id for task in journal.local_tasks()} >= written
    assert rows(journal, "PRAGMA integrity_check") == [("ok",)]
    assert not list(tmp_path.glob("*.corrupt-*"))


def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    """Reading a journal that is not there writes nothing."""
    journal = Journal(tmp_path / "none")
    assert [*journal.entries(), *journal.paid_calls(since=NOON), *journal.local_tasks()] == []
    assert journal.spent(task_id="t", account="s") == Spent()
    assert (journal.forget(), journal.calls_in_flight()) == (Deleted(), 0)
    assert not (tmp_path / "none").exists()


def test_refused_leaves_nothing(tmp_path: Path) -> None:
    """What does not fit is not written: no escalation without a call."""
    journal = Journal(tmp_path)
    refused = journal.reserve(
        opening(), turn_id="t", task_id="t", account="s", seconds=1, fit=lambda _: Exceeded("no", "per_day_usd")
    )
    assert refused == Exceeded("no", "per_day_usd")
    assert rows(journal, "SELECT * FROM escalations") == rows(journal, "SELECT * FROM calls") == []


def test_nobody_spends_while_it_is_looked_at_what_is_left(tmp_path: Path) -> None:
    """What is left is read and reserved in one transaction, which other processes wait for."""
    journal = Journal(tmp_path)
    looked: list[str] = []

    def fit(_: Spent) -> Allowed:
        other = sqlite3.connect(journal.path, timeout=0, isolation_level=None)
        with closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        looked.append("left")
        return Allowed(None, 1.0)

    journal.reserve(opening(), turn_id="t", task_id="t", account="s", seconds=1, fit=fit)
    assert looked == ["left"]


def test_spent_by_task_session_day_and_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days and months are those of the local time zone, through a change of the clocks; sub-agents pay as their parent."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time_zone_changed()
    moments = {
        datetime(2026, 9, 30, 21, 59, tzinfo=UTC): 1.0,  # 23:59 on September 30
        datetime(2026, 9, 30, 22, 1, tzinfo=UTC): 2.0,  # 00:01 on October 1
        datetime(2026, 10, 24, 21, 59, tzinfo=UTC): 4.0,  # 23:59 on October 24
        datetime(2026, 10, 24, 22, 1, tzinfo=UTC): 8.0,  # 00:01 on October 25, which has 25 hours
        datetime(2026, 10, 25, 22, 30, tzinfo=UTC): 16.0,  # 23:30 on October 25
    }
    for place, (moment, usd) in enumerate(moments.items()):
        journal = Journal(tmp_path, now=lambda moment=moment: moment)  # type: ignore[misc]
        answered(journal, opening("s" if place > 2 else "older"), Usage(1, 1, usd), turn=f"t{place}")
    journal = Journal(tmp_path, now=lambda: datetime(2026, 10, 25, 22, 45, tzinfo=UTC))
    spent = journal.spent(task_id="t4", account="s")
    assert (spent.task, spent.session, spent.day, spent.month) == (16.0, 24.0, 24.0, 30.0)
    assert spent.escalations == 2
    tomorrow = Journal(tmp_path, now=lambda: datetime(2026, 10, 25, 23, 1, tzinfo=UTC)).spent(task_id="t4", account="s")
    assert (tomorrow.task, tomorrow.day, tomorrow.month) == (16.0, 0.0, 30.0)
    november = Journal(tmp_path, now=lambda: datetime(2026, 10, 31, 23, 1, tzinfo=UTC)).spent(task_id="", account="")
    assert november.month == 0.0
    monkeypatch.undo()
    time_zone_changed()


def time_zone_changed() -> None:
    """Have the process look at TZ again."""
    time.tzset()


def test_a_call_that_never_ended_is_spent(tmp_path: Path) -> None:
    """It counts from its first moment on, and is taken for spent when its time is over; shadow calls never count."""
    now = NOON
    journal = Journal(tmp_path, now=lambda: now)
    start(journal, opening(), usd=0.5, seconds=100)
    shadow = opening(is_shadow=True)
    journal.add_shadow_call(
        journal.open_escalation(shadow), turn_id="t", task_id="t", used=Usage(1, 1, 9.0), otherwise=shadow
    )
    assert journal.spent(task_id="t", account="s") == Spent(0.5, 0.5, 0.5, 0.5, 1)
    assert journal.calls_in_flight() == 1
    now = NOON + timedelta(seconds=159)
    journal.settle_expired()
    assert journal.calls_in_flight() == 1
    now = NOON + timedelta(seconds=161)
    journal.settle_expired()
    assert journal.calls_in_flight() == 0
    assert journal.spent(task_id="t", account="s").day == 0.5
    assert rows(journal, "SELECT state, cost_usd FROM calls WHERE reserved_usd > 0") == [("expired", 0.5)]


def test_forget(tmp_path: Path) -> None:
    """What is deleted is gone from the file; what was spent goes on counting, without a session or a reason."""
    old = Journal(tmp_path, now=lambda: NOON - timedelta(days=60))
    answered(old, opening("canary-old"), Usage(1, 1, 4.0))
    journal = Journal(tmp_path, now=lambda: NOON)
    for session in ("canary-one", "canary-two"):
        answered(journal, opening(session), Usage(1, 1, 0.5))
        add_task(journal, session)
    journal.set_off("canary-one", is_off=True)
    assert journal.forget(session_id="canary-one") == Deleted(escalations=1, tasks=1, switches=1)
    assert b"canary-one" not in journal.path.read_bytes()
    assert [entry.session_id for entry in journal.entries()] == ["canary-two", "canary-old"]
    assert journal.spent(task_id="", account="").day == 1.0
    assert journal.forget(before=NOON - timedelta(days=30)) == Deleted(escalations=1)
    assert b"canary-old" not in journal.path.read_bytes()
    assert b"canary-two" in journal.path.read_bytes()
    assert journal.forget() == Deleted(escalations=1, tasks=1)
    assert b"canary" not in journal.path.read_bytes()
    spent = journal.spent(task_id="", account="")
    assert (spent.day, spent.month) == (1.0, 1.0)
    assert rows(journal, "SELECT cost_usd FROM forgotten ORDER BY cost_usd") == [(0.5,), (0.5,), (4.0,)]


# As the first release wrote it, with a row of each kind.
VERSION_1 = """
CREATE TABLE escalations (id INTEGER PRIMARY KEY, at TEXT NOT NULL, session_id TEXT NOT NULL, from_model TEXT NOT NULL,
    to_model TEXT NOT NULL, trigger TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE calls (id INTEGER PRIMARY KEY, escalation INTEGER NOT NULL REFERENCES escalations (id),
    turn_id TEXT NOT NULL, at TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('started', 'answered', 'failed', 'interrupted')),
    error TEXT, seconds REAL, input_tokens INTEGER, output_tokens INTEGER, cost_usd REAL);
CREATE TABLE switches (session_id TEXT PRIMARY KEY, is_off INTEGER NOT NULL);
CREATE INDEX escalations_by_session ON escalations (session_id);
CREATE INDEX calls_by_escalation ON calls (escalation);
CREATE INDEX calls_by_turn ON calls (turn_id);
INSERT INTO escalations VALUES (7, '2026-11-24T10:00:00+00:00', 's', 'local', 'strong', 'no_progress', 'why');
INSERT INTO calls VALUES (3, 7, 't', '2026-11-24T10:00:00+00:00', 'answered', NULL, 2.0, 10, 5, 0.25);
INSERT INTO calls VALUES (4, 7, 't', '2026-11-24T10:00:05+00:00', 'failed', 'no', 1.0, NULL, NULL, NULL);
INSERT INTO calls VALUES (5, 7, 'u', '2026-11-24T10:00:09+00:00', 'started', NULL, NULL, NULL, NULL, NULL);
INSERT INTO switches VALUES ('s', 1);
PRAGMA user_version = 1;
"""


def old_journal(folder: Path) -> Journal:
    """A journal that the first release left."""
    with closing(sqlite3.connect(folder / "journal.sqlite3")) as connection:
        connection.executescript(VERSION_1)
    return Journal(folder, now=lambda: NOON)


def test_old_rows_are_kept(tmp_path: Path) -> None:
    """A journal of the first release goes on with all its rows; new ones fit in."""
    journal = old_journal(tmp_path)
    (entry,) = journal.entries()
    assert (entry.session_id, entry.calls, entry.failed, entry.error, entry.task_type) == ("s", 1, 1, "no", "")
    assert journal.is_off("s")
    assert journal.spent(task_id="t", account="s") == Spent(0.25, 0.25, 0.25, 0.25, 1)
    answered(journal, 7, Usage(1, 1, 0.5), turn="v")
    assert rows(journal, "SELECT id, state FROM calls") == [
        (3, "answered"),
        (4, "failed"),
        (5, "expired"),
        (6, "answered"),
    ]
    assert rows(journal, "PRAGMA user_version") == [(2,)]
    assert rows(journal, "PRAGMA foreign_key_check") == []


def test_many_migrate_at_once(tmp_path: Path) -> None:
    """Processes that find an old journal at the same moment all find its rows afterwards."""
    old_journal(tmp_path)
    assert in_processes(4, "print_count", tmp_path) == ["1\n" * 4] * 4


def print_count(folder: str) -> None:
    """Print how many escalations threads find that look at the same moment."""
    at_once(4, lambda: sys.stdout.write(f"{len(Journal(Path(folder)).entries())}\n"))


def test_a_later_releases_file_is_left_alone(tmp_path: Path) -> None:
    """A file whose schema is not known is neither used nor changed."""
    journal = Journal(tmp_path)
    answered(journal, opening(), NOTHING_USED)
    with closing(sqlite3.connect(journal.path)) as connection:
        connection.execute("PRAGMA user_version = 9")
    before = journal.path.read_bytes()
    with pytest.raises(JournalError, match=r"a later hermes-fallback wrote it \(schema 9; this one knows 2\); update"):
        start(journal, opening())
    assert journal.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at as one" * 100, None])
def test_a_corrupt_file_is_set_aside(tmp_path: Path, content: bytes | None) -> None:
    """The call that finds it is refused and says why; the file is kept, and the next call begins a new one."""
    journal = Journal(tmp_path, now=lambda: NOON)
    answered(journal, opening("old"), NOTHING_USED)
    if content is None:
        whole = journal.path.read_bytes()
        content = whole[:4096] + os.urandom(len(whole) - 4096)
    journal.path.write_bytes(content)
    with pytest.raises(JournalError, match=r"kept as journal\.sqlite3\.corrupt-20261124-120000"):
        start(journal, opening())
    (kept,) = tmp_path.glob("*.corrupt-*")
    assert kept.read_bytes() == content
    answered(journal, opening("new"), NOTHING_USED)
    assert [entry.session_id for entry in journal.entries()] == ["new"]


def test_calls_in_flight_when_the_file_is_set_aside(tmp_path: Path) -> None:
    """The new file gives the same numbers again: the end of a call is not taken for that of another, and both count."""
    journal = Journal(tmp_path)
    first = start(journal, opening("a"), turn="a", usd=0.5)
    journal.path.write_bytes(b"x" * 5000)
    with pytest.raises(JournalError):
        start(journal, opening("b"), turn="b", usd=0.5)
    second = start(journal, opening("b"), turn="b", usd=0.5)
    assert first.call == second.call
    journal.end_call(first.call, "failed", turn_id="a", seconds=1.0, used=Usage(1, 1, 0.375))
    assert [row[0] for row in rows(journal, "SELECT state FROM calls")] == ["started"]
    journal.end_call(second.call, "answered", turn_id="b", seconds=1.0, used=Usage(1, 1, 0.25))
    assert journal.spent(task_id="b", account="b") == Spent(0.25, 0.25, 0.625, 0.625, 1)


def test_an_escalation_counts_before_its_first_call(tmp_path: Path) -> None:
    """Hermes makes the first call a moment later: till then another may not begin; one that never comes does not count."""
    now = NOON
    journal = Journal(tmp_path, now=lambda: now)
    one = partial(fit, Budget(max_escalations_per_session=1), worst=None, max_tokens=None, is_new=True)
    begin = partial(journal.begin_escalation, opening(), task_id="t", fit=one)
    assert begin() == 1
    assert isinstance(begin(), Exceeded)
    assert len(rows(journal, "SELECT id FROM escalations")) == 1
    now += timedelta(minutes=2)
    assert begin() == 2


def write_after_corruption(folder: str) -> None:
    """Have threads write one row each into a file that is corrupt at first, and print what else was said."""

    def write() -> None:
        for _ in range(20):
            try:
                answered(Journal(Path(folder)), opening(), NOTHING_USED)
            except JournalError as error:
                if "not a database" not in str(error):
                    print(error)
                continue
            return

    at_once(8, write)


def test_many_find_the_same_corrupt_file(tmp_path: Path) -> None:
    """Only the corrupt file is set aside, untouched, however many find it: the new one of the first stays."""
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        Journal(folder).path.write_bytes(b"x" * 5000)
        assert in_processes(3, "write_after_corruption", folder) == [""] * 3
        (kept,) = folder.glob("*.corrupt-*")
        assert kept.read_bytes() == b"x" * 5000
        assert len(Journal(folder).entries(last=100)) == 3 * 8
        assert rows(Journal(folder), "PRAGMA integrity_check") == [("ok",)]


def test_a_corrupt_file_stays_while_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process that has it open would undo what is written into the new one: it is moved when that is over."""
    monkeypatch.setattr("hermes_fallback.journal._BUSY_SECONDS", 0.2)
    journal = Journal(tmp_path)
    journal.path.write_bytes(b"x" * 5000)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    with pytest.raises(JournalError, match="make it writable, or move the file away"):
        start(journal, opening())
    os.close(handle)
    with pytest.raises(JournalError, match="kept as"):
        start(journal, opening())
    answered(journal, opening(), NOTHING_USED)


def test_a_new_file_gives_the_old_ids_again(tmp_path: Path) -> None:
    """What is held in one session is not written down for another that has its number in a new file."""
    journal = Journal(tmp_path)
    held = answered(journal, opening("one"), NOTHING_USED)
    journal.path.unlink()
    assert answered(journal, opening("two"), Usage(1, 1, 0.25)) == held

    def go_on() -> Reserved:
        account = {"turn_id": "t", "task_id": "t", "account": "one"}
        reserved = journal.reserve(held, **account, seconds=1, fit=allow(1.0), otherwise=opening("one"))
        assert isinstance(reserved, Reserved)
        return reserved

    assert go_on().escalation != held
    assert journal.spent(task_id="", account="two").session == 0.25
    assert journal.spent(task_id="", account="one").session == 1.0


def test_a_shadow_in_a_new_file_is_nobodys_money(tmp_path: Path) -> None:
    """Nor is what a session would have paid taken for what another one pays, where the number is the same."""
    journal = Journal(tmp_path)
    shadow = opening("one", is_shadow=True)
    held = journal.open_escalation(shadow)
    journal.path.unlink()
    assert answered(journal, opening("two"), Usage(1, 1, 0.25)) == held
    used = Usage(1, 1, 9.0)
    row = journal.add_shadow_call(held, turn_id="t", task_id="t", used=used, otherwise=shadow)
    assert row != held
    assert journal.add_shadow_call(row, turn_id="t", task_id="t", used=used, otherwise=shadow) == row
    assert journal.spent(task_id="t", account="two").day == 0.25


def test_a_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that another program holds for too long: no call, and the message says what to do."""
    monkeypatch.setattr("hermes_fallback.journal._BUSY_SECONDS", 0.2)
    journal = Journal(tmp_path)
    answered(journal, opening(), NOTHING_USED)
    with closing(sqlite3.connect(journal.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalError, match=r"locked for more than .* close the program that holds it"):
            start(journal, opening())


def test_a_full_disk(tmp_path: Path) -> None:
    """A file that cannot grow: no call, the rows before it stay, and the file is sound."""
    journal = Journal(tmp_path)
    answered(journal, opening(), NOTHING_USED)
    script = (
        "import resource, sys; from pathlib import Path; from tests.test_journal import *\n"
        "size = Path(sys.argv[1], 'journal.sqlite3').stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n"
        "try:\n    [start(Journal(Path(sys.argv[1])), opening('x' * 4000)) for _ in range(50)]\n"
        "except JournalError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "journal.sqlite3: " in done.stdout
    assert rows(journal, "PRAGMA integrity_check") == [("ok",)]
    assert journal.entries()[-1].session_id == "s"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where the folder should be, as a read-only home would be for who is not root: no call."""
    (tmp_path / "hermes-fallback").write_text("in the way")
    with pytest.raises(JournalError, match="make it writable, or move the file away"):
        start(Journal(tmp_path / "hermes-fallback"), opening())


def test_half_a_character(tmp_path: Path) -> None:
    """What SQLite cannot keep is said to be our fault, and nothing is half written."""
    journal = Journal(tmp_path)
    with pytest.raises(JournalError, match="that is a fault of hermes-fallback: please report it"):
        journal.set_off("half a \ud83d", is_off=True)
    journal.set_off("whole", is_off=True)
    assert journal.is_off("whole")


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    """Mode 0600 from the first moment, and again where somebody loosened it."""
    journal = Journal(tmp_path / "new")
    answered(journal, opening(), NOTHING_USED)
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    journal.path.chmod(0o644)
    journal.entries()
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


def test_columns_hold_no_content(tmp_path: Path) -> None:
    """There is no column in which a prompt, an argument or a result could stand."""
    journal = Journal(tmp_path)
    answered(journal, opening(), NOTHING_USED)
    tables = [name for (name,) in rows(journal, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    tables.remove("sqlite_sequence")  # SQLite's own
    columns = {table: [row[1] for row in rows(journal, f"PRAGMA table_info({table})")] for table in tables}
    assert columns == {
        "escalations": [
            *("id", "at", "session_id", "from_model", "to_model", "trigger", "reason"),
            *("task_type", "type_reason", "is_shadow"),
        ],
        "calls": [
            *("id", "escalation", "turn_id", "task_id", "at", "state", "error", "seconds"),
            *("input_tokens", "output_tokens", "reserved_usd", "expires_at", "cost_usd"),
        ],
        "tasks": [
            *("turn_id", "task_id", "at", "session_id", "task_type", "type_reason"),
            *("local_calls", "untold_calls", "input_tokens", "output_tokens"),
        ],
        "forgotten": ["at", "cost_usd"],
        "switches": ["session_id", "is_off"],
    }


@pytest.mark.parametrize("is_off", [True, False])
def test_the_switch_that_was_thrown_last_stands(tmp_path: Path, is_off: bool) -> None:  # noqa: FBT001
    """Of a session that had several ids, one after the other, the newest says whether it is off."""
    journal = Journal(tmp_path)
    journal.set_off("newest", is_off=is_off)
    journal.set_off("oldest", is_off=not is_off)
    journal.rename_session(["newest", "middle", "oldest"], "now")
    assert journal.is_off("now") == is_off
    assert not journal.is_off("newest")
    assert not journal.is_off("oldest")
