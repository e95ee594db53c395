"""Escalations and what they cost, on disk, across sessions and processes; the only record when Hermes logs nothing.

One SQLite file in Hermes's home, readable by its owner alone. No prompt, argument, result or key is ever written. Every
operation opens the file for itself, so that threads and processes share it without holding anything open; of a
process's threads, one at a time. It follows no link and opens nothing that is another user's. Money is reserved here
before it is spent, in one transaction with the look at what is spent already: however many processes ask at once,
together they get no more than the budget.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from .budget import Allowed, Exceeded, Spent, Usage, day_and_month

logger = logging.getLogger(__name__)

_VERSION = 2
_TABLES = """
CREATE TABLE escalations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never again that of a row that was deleted
    at TEXT NOT NULL,            -- UTC, ISO 8601
    session_id TEXT NOT NULL,    -- of the session that pays: a sub-agent's parent
    from_model TEXT NOT NULL,
    to_model TEXT NOT NULL,
    trigger TEXT NOT NULL,
    reason TEXT NOT NULL,        -- in words
    task_type TEXT NOT NULL,     -- '' for none
    type_reason TEXT NOT NULL,   -- why it is of that type, in words
    is_shadow INTEGER NOT NULL   -- nothing was paid: `enabled: shadow`
);
CREATE TABLE calls (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    escalation INTEGER NOT NULL REFERENCES escalations (id),
    turn_id TEXT NOT NULL,       -- an escalation held for the session spans turns
    task_id TEXT NOT NULL,       -- the turn that pays: a sub-agent's parent's
    at TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('started', 'answered', 'failed', 'interrupted', 'expired')),
    error TEXT,
    seconds REAL,
    input_tokens INTEGER,        -- NULL: unknown
    output_tokens INTEGER,
    reserved_usd REAL,           -- what it could cost at most; NULL: unknown
    expires_at TEXT,             -- when a call that is still `started` is taken for spent
    cost_usd REAL                -- NULL: unknown
);
CREATE TABLE tasks (
    turn_id TEXT PRIMARY KEY,
    task_id TEXT NOT NULL,
    at TEXT NOT NULL,
    session_id TEXT NOT NULL,
    task_type TEXT NOT NULL,
    type_reason TEXT NOT NULL,
    local_calls INTEGER NOT NULL,
    untold_calls INTEGER NOT NULL,  -- of these, the ones whose tokens the endpoint did not tell
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL
);
CREATE TABLE forgotten (
    at TEXT NOT NULL,            -- what was spent in rows that the user had deleted: a sum an hour, nothing else
    cost_usd REAL NOT NULL
);
CREATE TABLE switches (
    session_id TEXT PRIMARY KEY,
    is_off INTEGER NOT NULL      -- /escalate off, for when the session is resumed
);
CREATE INDEX escalations_by_session ON escalations (session_id);
CREATE INDEX calls_by_escalation ON calls (escalation);
CREATE INDEX calls_by_turn ON calls (turn_id);
CREATE INDEX calls_by_task ON calls (task_id);
CREATE INDEX calls_by_time ON calls (at, escalation, cost_usd, reserved_usd);
CREATE INDEX calls_in_flight ON calls (expires_at) WHERE state = 'started';
CREATE INDEX tasks_by_time ON tasks (at);
"""
_FROM_VERSION_1 = """
ALTER TABLE escalations RENAME TO old_escalations;
ALTER TABLE calls RENAME TO old_calls;
ALTER TABLE switches RENAME TO old_switches;
DROP INDEX escalations_by_session;
DROP INDEX calls_by_escalation;
DROP INDEX calls_by_turn;
{tables}
INSERT INTO escalations SELECT id, at, session_id, from_model, to_model, trigger, reason, '', '', 0
    FROM old_escalations;
INSERT INTO calls SELECT id, escalation, turn_id, turn_id, at, state, error, seconds, input_tokens, output_tokens,
    NULL, at, cost_usd FROM old_calls;
INSERT INTO switches SELECT session_id, is_off FROM old_switches;
DROP TABLE old_calls;
DROP TABLE old_escalations;
DROP TABLE old_switches;
"""
_BESIDE = ("-journal", "-wal", "-shm")
"""What SQLite keeps beside a file, and believes."""
_IS_A_LINK = "is a link, and links are not followed here; put there what it leads to, or remove it"
_BUSY_SECONDS = 5.0
# Two threads may not have the file open at once. SQLite looks whether anybody in the process holds a lock before it
# closes the file, for with close() a POSIX system drops all locks of the process; but (seen with 3.40.1) another thread
# can take its lock between the two. Then another process writes at the same time, and the file is corrupt. Besides,
# SQLite has whoever waits look again now and then, and who is late again and again gives up; a lock wakes one of them.
_one_at_a_time = threading.Lock()
_THREADS_SECONDS = 30.0  # the threads before this one are done soon, or give up after _BUSY_SECONDS each
_GRACE_SECONDS = 60.0  # beyond a call's own timeout, before its reservation is taken for spent; and to a first call
_CORRUPT = frozenset({"SQLITE_NOTADB", "SQLITE_CORRUPT"})

# A call that has no cost yet, or whose usage never came, counts with what was reserved for it.
_USD = "coalesce(c.cost_usd, c.reserved_usd)"


class JournalError(Exception):
    """The journal cannot be written or read: no paid call may be made, for it would leave no record."""


@dataclass(frozen=True, slots=True)
class Opening:
    """An escalation about to begin."""

    session_id: str
    from_model: str
    to_model: str
    trigger: str
    reason: str
    task_type: str = ""
    type_reason: str = ""
    is_shadow: bool = False


@dataclass(frozen=True, slots=True)
class Reserved:
    """A paid call that may be made: its row, its escalation's row, and how large its reply may get."""

    call: int
    escalation: int
    max_tokens: int | None
    usd: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One escalation with the sums of its calls; unknown sums are None."""

    at: str
    session_id: str
    from_model: str
    to_model: str
    trigger: str
    reason: str
    task_type: str
    type_reason: str
    is_shadow: bool
    calls: int
    failed: int
    error: str | None
    seconds: float
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class PaidCall:
    """One call with what is known of its escalation; a call not yet settled costs what is reserved for it."""

    at: str
    session_id: str
    task_id: str
    escalation: int
    to_model: str
    trigger: str
    task_type: str
    is_shadow: bool
    state: str
    seconds: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class LocalTask:
    """One turn as the local model had it; tokens are the sums of the calls whose endpoint told them."""

    at: str
    session_id: str
    turn_id: str
    task_id: str
    task_type: str
    type_reason: str
    local_calls: int
    untold_calls: int
    input_tokens: int
    output_tokens: int

    @property
    def is_subagent(self) -> bool:
        """Whether it is a part of another task."""
        return self.turn_id != self.task_id


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many rows were deleted; `switches` are what was set by /escalate off and auto, one a session."""

    escalations: int = 0
    tasks: int = 0
    switches: int = 0


class Journal:
    """The journal in `folder`, made when something is first written; `now` gives aware datetimes."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = folder / "journal.sqlite3"
        self._now = now

    @classmethod
    def of(cls, home: Path) -> Self:
        """Return the journal in a Hermes home."""
        return cls(home / "hermes-fallback")

    def is_begun(self) -> bool:
        """Tell whether there is a file, or what is refused when it is opened.

        Raises:
            JournalError: its folder cannot be looked into.
        """
        try:
            if not self.path.parent.is_symlink():
                self.path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise JournalError(self._advice(error)) from error
        return True

    def reserve(
        self,
        escalation: int | Opening,
        *,
        turn_id: str,
        task_id: str,
        account: str,
        seconds: float,
        fit: Callable[[Spent], Allowed | Exceeded],
        otherwise: Opening | None = None,
    ) -> Reserved | Exceeded:
        """Write that a paid call starts, if `fit` allows it by what is spent; an `Opening` gets its row with it.

        `account` is the session that pays, `seconds` how long the call may take. Nothing is written when the call does
        not fit. All in one transaction: no other process can spend in between. `otherwise` is opened in the place of an
        escalation whose row is gone: forgotten, or in a file that was set aside.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._settle_expired(connection)
            answer = fit(self._spent(connection, task_id=task_id, account=account))
            if isinstance(answer, Exceeded):
                return answer
            if isinstance(escalation, int) and otherwise is not None:
                row = self._row(connection, escalation, otherwise)
            else:
                row = escalation if isinstance(escalation, int) else self._open(connection, escalation)
            call = self._start(
                connection, row, turn_id=turn_id, task_id=task_id, seconds=seconds, reserved_usd=answer.reserved_usd
            )
            return Reserved(call, row, answer.max_tokens, answer.reserved_usd)

    def start_call(
        self, escalation: int, *, model: str, turn_id: str, task_id: str, seconds: float, otherwise: Opening
    ) -> tuple[int, int]:
        """Write that a call starts whose price is known after it alone; return its id and its escalation's.

        `model` is whose call it is, which was not known when the escalation began, and may be another's than the last
        one was; `otherwise` as in `reserve`.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            row = self._row(connection, escalation, otherwise, of_any_model=True)
            connection.execute("UPDATE escalations SET to_model = ? WHERE id = ?", (model, row))
            return self._start(connection, row, turn_id=turn_id, task_id=task_id, seconds=seconds), row

    def begin_escalation(
        self, opening: Opening, *, task_id: str, fit: Callable[[Spent], Allowed | Exceeded]
    ) -> int | Exceeded:
        """Write an escalation whose first call Hermes is about to make, if `fit` allows it; return its id.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            answer = fit(self._spent(connection, task_id=task_id, account=opening.session_id))
            return answer if isinstance(answer, Exceeded) else self._open(connection, opening)

    def open_escalation(self, opening: Opening) -> int:
        """Write an escalation that has no paid call of ours yet; return its id.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            return self._open(connection, opening)

    def end_call(
        self,
        call: int,
        state: str,
        *,
        turn_id: str,
        seconds: float,
        used: Usage,
        error: str | None = None,
    ) -> None:
        """Write how a turn's call ended; one whose cost is not known has cost what was reserved for it.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            written = connection.execute(
                "UPDATE calls SET state = ?, error = ?, seconds = ?, input_tokens = ?, output_tokens = ?,"
                # A new file gives the numbers of the old one again, and a turn has one call at a time.
                " cost_usd = coalesce(?, reserved_usd) WHERE id = ? AND turn_id = ?",
                (state, error, seconds, used.input_tokens, used.output_tokens, used.cost_usd, call, turn_id),
            )
            if not written.rowcount:
                # Its row is in a file that was set aside; the money counts all the same.
                connection.execute("INSERT INTO forgotten VALUES (?, ?)", (self._stamp(), used.cost_usd or 0.0))

    def add_shadow_call(self, escalation: int, *, turn_id: str, task_id: str, used: Usage, otherwise: Opening) -> int:
        """Write a call that the local model answered and a tier would have been paid for; return its escalation's id.

        `otherwise` is as in `reserve`.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            row = self._row(connection, escalation, otherwise)
            connection.execute(
                "INSERT INTO calls (escalation, turn_id, task_id, at, state, input_tokens, output_tokens, cost_usd)"
                " VALUES (?, ?, ?, ?, 'answered', ?, ?, ?)",
                (
                    *(row, turn_id, task_id, self._stamp()),
                    *(used.input_tokens, used.output_tokens, used.cost_usd),
                ),
            )
            return row

    def add_task(
        self,
        *,
        turn_id: str,
        task_id: str,
        session_id: str,
        task_type: str,
        type_reason: str,
        local_calls: int,
        untold_calls: int,
        input_tokens: int,
        output_tokens: int,
    ) -> None:
        """Write what the local model did in a turn.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(turn_id, task_id, self._stamp(), session_id, task_type, type_reason),
                    *(local_calls, untold_calls, input_tokens, output_tokens),
                ),
            )

    def spent(self, *, task_id: str, account: str) -> Spent:
        """Return what is spent and reserved now.

        Raises:
            JournalError: the file cannot be read.
        """
        if not self.is_begun():
            return Spent()
        with self._connection() as connection:
            return self._spent(connection, task_id=task_id, account=account)

    def set_off(self, session_id: str, *, is_off: bool) -> None:
        """Keep what the user said with /escalate off or auto.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            connection.execute("INSERT OR REPLACE INTO switches VALUES (?, ?)", (session_id, is_off))

    def is_off(self, session_id: str) -> bool:
        """Tell whether the session was left with /escalate off.

        Raises:
            JournalError: the file cannot be read.
        """
        if not self.is_begun():
            return False
        with self._connection() as connection:
            row = connection.execute("SELECT is_off FROM switches WHERE session_id = ?", (session_id,)).fetchone()
        return row is not None and bool(row[0])

    def rename_session(self, old_ids: Sequence[str], new_id: str) -> None:
        """Let the rows that a session has under earlier ids, of which the newest is first, go by its new id.

        Raises:
            JournalError: the file cannot be written.
        """
        if not self.is_begun():
            return
        # The oldest first, so that the switch that was thrown last stands.
        names = [(new_id, old_id) for old_id in reversed(old_ids)]
        with self._connection() as connection:
            for table in ("escalations", "tasks", "switches"):
                connection.executemany(
                    f"UPDATE OR REPLACE {table} SET session_id = ? WHERE session_id = ?",  # noqa: S608  # one of the three
                    names,
                )

    def entries(
        self, *, session_id: str | None = None, turn_ids: Sequence[str] | None = None, last: int = 20
    ) -> Sequence[Entry]:
        """Return the newest escalations, newest first: all, a session's, or those with calls in these turns.

        With `turn_ids`, only the calls of these turns are summed up.

        Raises:
            JournalError: the file cannot be read.
        """
        # Only what is asked for is named, for by `? IS NULL OR …` SQLite would look at every row.
        wanted = {"e.session_id": None if session_id is None else [session_id], "c.turn_id": turn_ids}
        given = {column: values for column, values in wanted.items() if values is not None}
        which = " AND ".join(f"{column} IN ({', '.join('?' * len(values))})" for column, values in given.items()) or "1"
        query = f"""
            SELECT e.at, e.session_id, e.from_model, e.to_model, e.trigger, e.reason, e.task_type, e.type_reason,
                e.is_shadow, sum(c.state = 'answered'), sum(c.state IN ('failed', 'expired')), max(c.error),
                total(c.seconds), {_known_sum("c.input_tokens")}, {_known_sum("c.output_tokens")},
                {_known_sum(_USD)}
            FROM escalations e JOIN calls c ON c.escalation = e.id
            WHERE {which} GROUP BY e.id ORDER BY e.id DESC LIMIT ?
            """  # noqa: S608  # the inserted texts are constants
        return tuple(Entry(*row) for row in self._rows(query, (*itertools.chain(*given.values()), last)))

    def paid_calls(self, *, since: datetime, session_id: str | None = None) -> Sequence[PaidCall]:
        """Return the calls that began at `since` (aware) or later, oldest first, shadow calls among them.

        Raises:
            JournalError: the file cannot be read.
        """
        query = f"""
            SELECT c.at, e.session_id, c.task_id, e.id, e.to_model, e.trigger, e.task_type, e.is_shadow, c.state,
                c.seconds, c.input_tokens, c.output_tokens, {_USD}
            FROM calls c JOIN escalations e ON e.id = c.escalation
            WHERE c.at >= ? AND (? IS NULL OR e.session_id = ?) ORDER BY c.id
            """  # noqa: S608  # the inserted text is a constant above
        rows = self._rows(query, (_utc(since), session_id, session_id))
        return tuple(PaidCall(*row) for row in rows)

    def calls_in_flight(self) -> int:
        """Return how many paid calls have begun and not ended.

        Raises:
            JournalError: the file cannot be read.
        """
        rows = self._rows("SELECT count(*) FROM calls WHERE state = 'started'", ())
        return int(rows[0][0]) if rows else 0

    def local_tasks(self, *, since: datetime | None = None, session_id: str | None = None) -> Sequence[LocalTask]:
        """Return the turns that ended at `since` (aware) or later, oldest first.

        Raises:
            JournalError: the file cannot be read.
        """
        query = (
            "SELECT at, session_id, turn_id, task_id, task_type, type_reason, local_calls, untold_calls, input_tokens,"
            " output_tokens FROM tasks WHERE at >= ? AND (? IS NULL OR session_id = ?) ORDER BY at, rowid"
        )
        return tuple(
            LocalTask(*row) for row in self._rows(query, (_utc(since) if since else "", session_id, session_id))
        )

    def forgotten(self, *, since: datetime) -> float:
        """Return what was paid since then (aware) in rows that the user had deleted.

        Raises:
            JournalError: the file cannot be read.
        """
        rows = self._rows("SELECT total(cost_usd) FROM forgotten WHERE at >= ?", (_utc(since),))
        return float(rows[0][0]) if rows else 0.0

    def forget(self, *, session_id: str | None = None, before: datetime | None = None) -> Deleted:
        """Delete all rows, a session's, or those older than `before` (aware); return how many.

        What was spent stays as bare sums by the hour: no day's and no month's budget begins anew by forgetting. Calls
        that are being made stay.

        Raises:
            JournalError: the file cannot be written.
        """
        if not self.is_begun():
            return Deleted()
        before_text = _utc(before) if before else None
        values = {"session": session_id, "before": before_text}
        old = "(:session IS NULL OR session_id = :session) AND (:before IS NULL OR at < :before)"
        # A call that is being made needs its row.
        done = f"{old} AND id NOT IN (SELECT escalation FROM calls WHERE state = 'started')"  # noqa: S608
        with self._connection() as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            self._settle_expired(connection)
            chosen = f"SELECT id FROM escalations WHERE {done}"  # noqa: S608  # the inserted text is a constant above
            connection.execute(
                f"INSERT INTO forgotten SELECT max(c.at), sum({_USD}) FROM calls c"  # noqa: S608
                f" JOIN escalations e ON e.id = c.escalation WHERE e.id IN ({chosen}) AND NOT e.is_shadow"
                f" AND {_USD} > 0 GROUP BY substr(c.at, 1, 13)",
                values,
            )
            connection.execute(f"DELETE FROM calls WHERE escalation IN ({chosen})", values)  # noqa: S608
            switches = ":before IS NULL AND (:session IS NULL OR session_id = :session)"
            return Deleted(
                *(
                    connection.execute(f"DELETE FROM {table} WHERE {which}", values).rowcount  # noqa: S608
                    for table, which in (("escalations", done), ("tasks", old), ("switches", switches))
                )
            )

    def prepare(self) -> None:
        """Make the file if it is not there, and see that it can be written.

        Raises:
            JournalError: it cannot.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")

    def settle_expired(self) -> None:
        """Take calls that began long ago and never ended for spent.

        Raises:
            JournalError: the file cannot be written.
        """
        if self.is_begun():
            with self._connection() as connection:
                self._settle_expired(connection)

    def _rows(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        if not self.is_begun():
            return []
        with self._connection() as connection:
            return connection.execute(query, values).fetchall()

    def _open(self, connection: sqlite3.Connection, opening: Opening) -> int:
        cursor = connection.execute(
            "INSERT INTO escalations (at, session_id, from_model, to_model, trigger, reason, task_type, type_reason,"
            " is_shadow) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(self._stamp(), opening.session_id, opening.from_model, opening.to_model),
                *(opening.trigger, opening.reason, opening.task_type),
                *(opening.type_reason, opening.is_shadow),
            ),
        )
        return int(cursor.lastrowid or 0)

    def _row(
        self, connection: sqlite3.Connection, escalation: int, otherwise: Opening, *, of_any_model: bool = False
    ) -> int:
        """Return an escalation that began as `otherwise`, where it is there; else begin `otherwise`.

        A new file gives the ids of the old one again: to another session, or another model.
        """
        found = connection.execute(
            "SELECT 1 FROM escalations WHERE id = ? AND session_id = ? AND is_shadow = ? AND (? OR to_model = ?)",
            (escalation, otherwise.session_id, otherwise.is_shadow, of_any_model, otherwise.to_model),
        )
        return escalation if found.fetchone() is not None else self._open(connection, otherwise)

    def _start(
        self,
        connection: sqlite3.Connection,
        escalation: int,
        *,
        turn_id: str,
        task_id: str,
        seconds: float,
        reserved_usd: float | None = None,
    ) -> int:
        expires = self._now() + timedelta(seconds=seconds + _GRACE_SECONDS)
        cursor = connection.execute(
            "INSERT INTO calls (escalation, turn_id, task_id, at, state, reserved_usd, expires_at)"
            " VALUES (?, ?, ?, ?, 'started', ?, ?)",
            (escalation, turn_id, task_id, self._stamp(), reserved_usd, _utc(expires)),
        )
        return int(cursor.lastrowid or 0)

    def _settle_expired(self, connection: sqlite3.Connection) -> None:
        connection.execute(
            "UPDATE calls SET state = 'expired', cost_usd = coalesce(cost_usd, reserved_usd),"
            " error = 'its end was never written: the process ended in the middle of it'"
            " WHERE state = 'started' AND expires_at < ?",
            (self._stamp(),),
        )

    def _spent(self, connection: sqlite3.Connection, *, task_id: str, account: str) -> Spent:
        day, month = (_utc(start) for start in day_and_month(self._now()))
        # What was begun just now has no call yet, where Hermes is about to make the first.
        recent = self._now() - timedelta(seconds=_GRACE_SECONDS)
        paid = f"SELECT total({_USD}) FROM calls c JOIN escalations e ON e.id = c.escalation WHERE NOT e.is_shadow"  # noqa: S608
        one = connection.execute(
            f"""
            SELECT ({paid} AND c.task_id = :task), ({paid} AND e.session_id = :account),
                of_day + (SELECT total(cost_usd) FROM forgotten WHERE at >= :day),
                of_month + (SELECT total(cost_usd) FROM forgotten WHERE at >= :month),
                (SELECT count(*) FROM escalations e WHERE session_id = :account AND NOT is_shadow
                    AND (EXISTS (SELECT 1 FROM calls c WHERE c.escalation = e.id AND c.state <> 'failed')
                        OR (at >= :recent AND NOT EXISTS (SELECT 1 FROM calls c WHERE c.escalation = e.id))))
            FROM (
                SELECT total(CASE WHEN c.at >= :day THEN {_USD} END) AS of_day, total({_USD}) AS of_month
                FROM calls c JOIN escalations e ON e.id = c.escalation WHERE NOT e.is_shadow AND c.at >= :month
            )
            """,  # noqa: S608  # the inserted text is a constant above
            {"task": task_id, "account": account, "day": day, "month": month, "recent": _utc(recent)},
        ).fetchone()
        return Spent(*one)

    def _stamp(self) -> str:
        return _utc(self._now())

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        if not _one_at_a_time.acquire(timeout=_THREADS_SECONDS):
            raise JournalError(f"{self.path}: other chats have been using it for more than {_THREADS_SECONDS:g} s")
        try:
            _make_private(self.path)
            with (
                _folder_lock(self.path.parent, exclusive=False),
                closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as connection,
                connection,
            ):
                _migrate(connection)
                yield connection
        except (sqlite3.Error, OSError, OverflowError, UnicodeEncodeError) as error:
            raise JournalError(self._advice(error)) from error
        finally:
            _one_at_a_time.release()

    def _advice(self, error: Exception) -> str:
        if getattr(error, "sqlite_errorname", None) in _CORRUPT:
            kept = _set_aside(self.path, self._now())
            if kept is not None:
                return f"{self.path}: {error}; it is kept as {kept.name}, and the next call begins a new one"
        advice = _ADVICE.get(getattr(error, "sqlite_errorname", None) or type(error).__name__, _USUAL_ADVICE)
        return f"{self.path}: {error}{advice}"


class _NewerVersionError(sqlite3.Error):
    """The file was written by a later release."""


class _UnsafeError(OSError):
    """What stands in the journal's place is not the journal, or may be another user's."""


_USUAL_ADVICE = "; make it writable, or move the file away to start a new one"
_ADVICE: dict[str, str] = {
    "_NewerVersionError": "",
    **dict.fromkeys(("OverflowError", "UnicodeEncodeError"), "; that is a fault of hermes-fallback: please report it"),
    "BlockingIOError": f": another program has had its folder locked for more than {_BUSY_SECONDS:g} s; close it",
    "_UnsafeError": "",
    "SQLITE_BUSY": f" for more than {_BUSY_SECONDS:g} s; close the program that holds it",
    "SQLITE_FULL": "; make room on the disk",
}


def _known_sum(column: str) -> str:
    # One unknown among the calls that used something makes the sum unknown; a failed call may have used nothing.
    return f"CASE WHEN sum(c.state <> 'failed' AND {column} IS NULL) THEN NULL ELSE sum({column}) END"


def _make_private(path: Path) -> None:
    """Make folder and file where there are none, and refuse what leads elsewhere or another user could have put there.

    Hermes's home itself may be a link: who can change that can change what Hermes runs.
    """
    folder = path.parent
    if folder.is_symlink():
        raise _UnsafeError(f"its folder {_IS_A_LINK}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = folder.parent.stat()
    _close_to_others(folder, "its folder", home, is_right_kind=stat.S_ISDIR)
    for ending in ("", *_BESIDE):
        file = path.with_name(path.name + ending)
        with suppress(FileNotFoundError):
            _close_to_others(file, file.name if ending else "it", home, is_right_kind=stat.S_ISREG)
    if not path.exists():
        # sqlite3 would make it readable for everybody; and no link, should one have come in between.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600))


def _close_to_others(path: Path, name: str, home: os.stat_result, *, is_right_kind: Callable[[int], bool]) -> None:
    """See that it is ours and the only way to what it holds; then only its owner can read or write it.

    Raises:
        FileNotFoundError: it is not there.
    """
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise _UnsafeError(f"{name} {_IS_A_LINK}")
    if not is_right_kind(found.st_mode):
        raise _UnsafeError(f"{name} is no plain file; move away what is there")
    # The owner of Hermes's home says what Hermes runs, so this one may hold the journal too (root, in a container).
    if hasattr(os, "geteuid") and found.st_uid not in {os.geteuid(), home.st_uid}:
        raise _UnsafeError(f"{name} belongs to another user (ID {found.st_uid}); give it to yours, or run as that user")
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        raise _UnsafeError(f"{name} has a second name, a hard link; copy it, and move the copy into its place")
    if found.st_mode & 0o077:
        with suppress(OSError):  # on a file system that only reads, reading still goes
            path.chmod(found.st_mode & 0o700)


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == _VERSION:
        return
    # Several processes may come here at once: the others wait, then find the work done.
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _VERSION:
        message = f"a later hermes-fallback wrote it (schema {version}; this one knows {_VERSION}); update this one"
        raise _NewerVersionError(message)
    if version < _VERSION:
        statements = _TABLES if version == 0 else _FROM_VERSION_1.format(tables=_TABLES)
        for statement in statements.split(";\n"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.commit()


def _set_aside(path: Path, now: datetime) -> Path | None:
    """Move a corrupt file away and keep it; None when it is gone or sound again, or cannot be moved."""
    kept = path.with_name(f"{path.name}.corrupt-{now:%Y%m%d-%H%M%S-%f}")
    try:
        with _folder_lock(path.parent, exclusive=True):
            if not _is_corrupt(path):
                return None  # another process was quicker, and this is the new one
            path.rename(kept)
    except OSError:
        return None
    logger.error("the journal was corrupt; it is kept as %s, and a new one is started", kept)
    return kept


def _is_corrupt(path: Path) -> bool:
    try:
        # As a URI, for a path may have a ? or # in it.
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",))
    except sqlite3.Error as error:
        return error.sqlite_errorname in _CORRUPT


@contextmanager
def _folder_lock(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold a lock that ends with the process: shared while the file is open, exclusive to move it away.

    Who has a file open that was moved would undo the new one's transactions: SQLite finds them by the file's name.

    Raises:
        OSError: another process holds it for too long; or the system has no such locks, and it is to be exclusive.
    """
    try:
        import fcntl  # noqa: PLC0415  # not on Windows, where a file that is open cannot be moved
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        wanted = fcntl.LOCK_NB | (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                fcntl.flock(handle, wanted)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
            except OSError:
                if exclusive:
                    raise
                break  # a file system of a network, perhaps
            else:
                break
        yield
    finally:
        os.close(handle)


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")
