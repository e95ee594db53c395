"""What each thread of the soak is at, in a file that all its processes map: it is there still when one was killed."""

from __future__ import annotations

import mmap
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_SLOT = struct.Struct("<QQQQ?dd64s")
"""done, its own turns with a whole agent, session, turn, off, when the turn began (0: none), the longest, its tag."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What one thread is at: `began` is 0 between turns; the longest turn, in seconds."""

    done: int = 0
    whole: int = 0
    session: int = 0
    turn: int = 0
    is_off: bool = False
    began: float = 0.0
    longest: float = 0.0
    tag: str = ""

    @property
    def seconds(self) -> float:
        """How long the turn takes already."""
        return time.time() - self.began if self.began else 0.0


class Pulse:
    """One `Beat` a thread; each thread writes its own alone."""

    def __init__(self, path: Path, threads: int) -> None:
        self.threads = threads
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(threads * _SLOT.size)
            self._map = mmap.mmap(file.fileno(), threads * _SLOT.size)

    def __getitem__(self, slot: int) -> Beat:
        done, whole, session, turn, is_off, began, longest, tag = _SLOT.unpack_from(self._map, slot * _SLOT.size)
        # It may have been killed in the middle of writing it.
        return Beat(done, whole, session, turn, is_off, began, longest, tag.rstrip(b"\0").decode(errors="replace"))

    def __setitem__(self, slot: int, beat: Beat) -> None:
        values = (beat.done, beat.whole, beat.session, beat.turn, beat.is_off, beat.began, beat.longest)
        _SLOT.pack_into(self._map, slot * _SLOT.size, *values, beat.tag.encode())

    def beats(self) -> list[Beat]:
        """Return what all threads are at."""
        return [self[slot] for slot in range(self.threads)]
