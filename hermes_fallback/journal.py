"""Escalations and what they cost, on disk, across sessions and processes; the only record when Hermes logs nothing.

One SQLite file in Hermes's home, readable by its owner alone. No prompt, argument, result or key is ever written. Every
operation opens the file for itself, so that threads and processes share it without holding anything open.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_VERSION = 1
_TABLES = """
CREATE TABLE escalations (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,            -- UTC, ISO 8601
    session_id TEXT NOT NULL,
    from_model TEXT NOT NULL,
    to_model TEXT NOT NULL,
    trigger TEXT NOT NULL,
    reason TEXT NOT NULL         -- in words
);
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    escalation INTEGER NOT NULL REFERENCES escalations (id),
    turn_id TEXT NOT NULL,       -- an escalation held for the session spans turns
    at TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('started', 'answered', 'failed', 'interrupted')),
    error TEXT,
    seconds REAL,
    input_tokens INTEGER,        -- NULL: unknown
    output_tokens INTEGER,
    cost_usd REAL                -- NULL: unknown
);
CREATE TABLE switches (
    session_id TEXT PRIMARY KEY,
    is_off INTEGER NOT NULL      -- /escalate off, for when the session is resumed
);
CREATE INDEX escalations_by_session ON escalations (session_id);
CREATE INDEX calls_by_escalation ON calls (escalation);
CREATE INDEX calls_by_turn ON calls (turn_id);
"""
_BUSY_SECONDS = 5.0


class JournalError(Exception):
    """The journal cannot be written or read: no paid call may be made, for it would leave no record."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One escalation with the sums of its calls; unknown sums are None."""

    at: str
    session_id: str
    from_model: str
    to_model: str
    trigger: str
    reason: str
    calls: int
    failed: int
    error: str | None
    seconds: float
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


class Journal:
    """The journal in `folder`, made when the first escalation is written."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.sqlite3"

    def open_escalation(self, *, session_id: str, from_model: str, to_model: str, trigger: str, reason: str) -> int:
        """Write that a tier is about to be asked; return the escalation's id.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            cursor = connection.execute(
                "INSERT INTO escalations (at, session_id, from_model, to_model, trigger, reason)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (_now(), session_id, from_model, to_model, trigger, reason),
            )
            return int(cursor.lastrowid or 0)

    def start_call(self, escalation: int, *, turn_id: str) -> int:
        """Write that a paid call starts; return its id.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            cursor = connection.execute(
                "INSERT INTO calls (escalation, turn_id, at, state) VALUES (?, ?, ?, 'started')",
                (escalation, turn_id, _now()),
            )
            return int(cursor.lastrowid or 0)

    def end_call(
        self,
        call: int,
        state: str,
        *,
        seconds: float,
        error: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost_usd: float | None = None,
    ) -> None:
        """Write how a call ended.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            connection.execute(
                "UPDATE calls SET state = ?, error = ?, seconds = ?, input_tokens = ?, output_tokens = ?, cost_usd = ?"
                " WHERE id = ?",
                (state, error, seconds, input_tokens, output_tokens, cost_usd, call),
            )

    def set_model(self, escalation: int, model: str) -> None:
        """Write which model it was, where that was not known before it answered.

        Raises:
            JournalError: the file cannot be written.
        """
        with self._connection() as connection:
            connection.execute("UPDATE escalations SET to_model = ? WHERE id = ?", (model, escalation))

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
        if not self.path.exists():
            return False
        with self._connection() as connection:
            row = connection.execute("SELECT is_off FROM switches WHERE session_id = ?", (session_id,)).fetchone()
        return row is not None and bool(row[0])

    def rename_session(self, old_id: str, new_id: str) -> None:
        """Let a session's rows go by its new id.

        Raises:
            JournalError: the file cannot be written.
        """
        if not self.path.exists():
            return
        with self._connection() as connection:
            connection.execute("UPDATE escalations SET session_id = ? WHERE session_id = ?", (new_id, old_id))
            connection.execute("UPDATE OR REPLACE switches SET session_id = ? WHERE session_id = ?", (new_id, old_id))

    def entries(self, *, session_id: str | None = None, turn_id: str | None = None, last: int = 20) -> Sequence[Entry]:
        """Return the newest escalations, newest first: all, a session's, or those with calls in a turn.

        With `turn_id`, only the calls of that turn are summed up.

        Raises:
            JournalError: the file cannot be read.
        """
        if not self.path.exists():
            return ()
        with self._connection() as connection:
            rows = connection.execute(
                f"""
                SELECT e.at, e.session_id, e.from_model, e.to_model, e.trigger, e.reason,
                    sum(c.state = 'answered'), sum(c.state = 'failed'), max(c.error), total(c.seconds),
                    {_known_sum("c.input_tokens")}, {_known_sum("c.output_tokens")}, {_known_sum("c.cost_usd")}
                FROM escalations e JOIN calls c ON c.escalation = e.id
                WHERE (? IS NULL OR e.session_id = ?) AND (? IS NULL OR c.turn_id = ?)
                GROUP BY e.id ORDER BY e.id DESC LIMIT ?
                """,  # noqa: S608  # the inserted text is a constant below
                (session_id, session_id, turn_id, turn_id, last),
            ).fetchall()
        return tuple(Entry(*row) for row in rows)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.path.exists():
                # sqlite3 would make it readable for everybody.
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            with closing(sqlite3.connect(self.path, timeout=_BUSY_SECONDS)) as connection, connection:
                _migrate(connection)
                yield connection
        except (sqlite3.Error, OSError) as error:
            message = f"{self.path}: {error}; make it writable, or move the file away to start a new one"
            raise JournalError(message) from error


def _known_sum(column: str) -> str:
    # One unknown among the answered calls makes the sum unknown; a failed call has no usage.
    return f"CASE WHEN sum(c.state = 'answered' AND {column} IS NULL) THEN NULL ELSE sum({column}) END"


def _migrate(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        # Two processes may come here at once: the second waits, then finds the tables there.
        connection.execute("BEGIN IMMEDIATE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_VERSION}")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
