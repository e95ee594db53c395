"""Keeps faults of ours from Hermes, which would swallow them: says them loudly, counts them, and gives up on too many.

Hermes goes on as if nothing were there when a plugin raises (DESIGN.md, facts 2 and 3), so a fault of ours would look
like "nothing happened".
"""

from __future__ import annotations

import logging
import threading
from collections import Counter

logger = logging.getLogger(__name__)

MOST = 5
"""With so many faults in a session, we are of no use there, and switch ourselves off."""


class Guard:
    """The faults of one plugin, by session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._unjournaled: Counter[str] = Counter()
        self._told: set[tuple[object, ...]] = set()
        self._gone: set[str] = set()

    def note(self, place: str, session_id: str, error: Exception) -> None:
        """Log a fault, with its traceback the first time, and count it."""
        count, trace = self._counted(self._counts, place, session_id, error)
        words = "session=%s: hermes-fallback failed in %s (fault %d of this session), and goes on without: %r"
        logger.error(words, session_id, place, count, error, exc_info=trace)
        if count == MOST and self.has_given_up(session_id):
            logger.error(
                "session=%s: hermes-fallback has failed %d times and is off in it from now on", session_id, count
            )

    def note_unjournaled(self, what: str, session_id: str, error: Exception) -> None:
        """Log that the journal could not be used, with the traceback the first time, and count it by itself.

        It is no fault of ours, and never switches us off: most often the disk is full or the file is locked, which
        passes. Nothing is spent meanwhile, for what cannot be journaled is not asked.
        """
        count, trace = self._counted(self._unjournaled, what, session_id, error)
        logger.error("session=%s: %s (%d of this session): %s", session_id, what, count, error, exc_info=trace)

    def _counted(
        self, counts: Counter[str], place: str, session_id: str, error: Exception
    ) -> tuple[int, Exception | None]:
        """Count an error; return how many there are, and the error if its traceback was not told yet."""
        with self._lock:
            counts[session_id] += 1
            kind = (place, type(error), _line(error))
            is_new = kind not in self._told
            self._told.add(kind)
            return counts[session_id], error if is_new else None

    def unjournaled(self, session_id: str) -> int:
        """Return how often the journal could not be used for the session."""
        return self._unjournaled[session_id]

    def count(self, session_id: str) -> int:
        """Return how many faults the session had."""
        return self._counts[session_id]

    def has_given_up(self, session_id: str) -> bool:
        """Tell whether we have switched ourselves off in the session; never where nobody knows which one it is."""
        return session_id != "" and self._counts[session_id] >= MOST

    def is_news(self, session_id: str) -> bool:
        """Tell, once, that we have switched ourselves off in the session."""
        with self._lock:
            is_news = self.has_given_up(session_id) and session_id not in self._gone
            if is_news:
                self._gone.add(session_id)
            return is_news

    def rename(self, old_id: str, new_id: str) -> None:
        """Let a session's faults go by its new id."""
        with self._lock:
            for counts in (self._counts, self._unjournaled):
                if old_id in counts:
                    counts[new_id] += counts.pop(old_id)
            if old_id in self._gone:
                self._gone.remove(old_id)
                self._gone.add(new_id)

    def forget(self, session_id: str) -> None:
        """Drop a session that ended."""
        with self._lock:
            self._counts.pop(session_id, None)
            self._unjournaled.pop(session_id, None)
            self._gone.discard(session_id)


def _line(error: BaseException) -> object:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace is None else (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
