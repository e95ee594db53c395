"""Names for a task's results and errors: those that say the same have the same, and it costs little to find out.

To take the volatile fields out of a text costs a hundred times what hashing it does, and most calls are made once. So a
text is kept as it is, in memory and of the last few calls alone, until its call gives something else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from . import fingerprint
from .fingerprint import Fingerprint

_KEPT_CHARS = 8192
"""How much text is kept of calls that have given one thing so far: a loop of four pages of 2 KB shows in it."""
_KEPT_GROUPS, _KEPT_NAMES = 16, 16
_SHAPED_CHARS = 2560
"""Of a text this long it is kept which digits last, which takes as much memory as the text."""


class Names:
    """The names that one task's results and errors have. Safe to use from several threads."""

    def __init__(self) -> None:
        self._results = _Alike(_Kinds().of)
        self._errors = _Alike(fingerprint.error_kind)

    def of_result(self, call: Fingerprint, result: str) -> Fingerprint:
        """Name a result of a call (`call_fingerprint`): as the one before it if only volatile fields differ."""
        return self._results.name(call, fingerprint.excerpt(fingerprint.without_notice(result)))

    def of_error(self, tool: str, message: str) -> Fingerprint | None:
        """Name the kind of an error of a tool; None when it says nothing."""
        return self._errors.name(tool, message) if any(map(str.isalpha, message)) else None


class _Kinds:
    """Kinds of results: those without their volatile fields.

    A text that differs from the last one in nothing but digits has its volatile fields at the same places; so where
    its other digits are the same, it is of the same kind, and need not be looked through.
    """

    def __init__(self) -> None:
        self._shape: int | None = None
        self._lasting: int | None = None
        self._digits: int | None = None
        self._kind: Fingerprint = 0

    def of(self, text: str) -> Fingerprint:
        zeros = fingerprint.shape(text) if len(text) <= _SHAPED_CHARS else None
        shape = None if zeros is None else hash(zeros)
        if shape is None or shape != self._shape:
            self._shape, self._lasting, self._digits = shape, None, None
            return fingerprint.without_volatile(text)
        if self._lasting is None:
            self._lasting = fingerprint.lasting_digits(text)
        # Not the number's own hash: two digits that change by as much make up for each other in it, at some distances.
        digits = hash((int.from_bytes(text.encode()) & self._lasting).to_bytes(len(text)))
        if digits != self._digits:
            self._digits, self._kind = digits, fingerprint.without_volatile(text)
        return self._kind


class _Alike:
    """Texts in groups; within one, those that are the same after `normalise` have the name of the first of them.

    Where `normalise` says None, nothing is left to compare: such a text is the same as itself alone.
    """

    def __init__(self, normalise: Callable[[str], Fingerprint | None]) -> None:
        self._normalise = normalise
        self._lock = threading.Lock()
        self._once: dict[Fingerprint | str, tuple[Fingerprint, str]] = {}
        """Group → name and text of all that came so far; the newest group last."""
        self._chars = 0
        self._names: dict[Fingerprint | str, dict[Fingerprint, Fingerprint]] = {}
        """Group → what identifies a text, as it came or normalised → its name."""

    def name(self, group: Fingerprint | str, text: str) -> Fingerprint:
        own = fingerprint.digest(text)
        with self._lock:
            names = self._names.get(group)
            if names is not None:
                return self._named(names, own, text)
            first, kept = self._let_go(group) if group in self._once else (own, text)
            if first == own:
                self._keep(group, own, text)
                return own
            names = self._names[group] = {}
            _shrink(self._names, _KEPT_GROUPS)
            self._named(names, first, kept)
            return self._named(names, own, text)

    def _named(self, names: dict[Fingerprint, Fingerprint], own: Fingerprint, text: str) -> Fingerprint:
        if own not in names:
            kind = self._normalise(text)
            # The kind is the newest again: while it comes, it is not let go.
            names[own] = name = own if kind is None else names.pop(kind, own)
            if kind is not None:
                names[kind] = name
            _shrink(names, _KEPT_NAMES)
        return names[own]

    def _keep(self, group: Fingerprint | str, name: Fingerprint, text: str) -> None:
        self._once[group] = (name, text)
        self._chars += len(text)
        while len(self._once) > _KEPT_GROUPS or (self._chars > _KEPT_CHARS and len(self._once) > 1):
            self._let_go(next(iter(self._once)))

    def _let_go(self, group: Fingerprint | str) -> tuple[Fingerprint, str]:
        name, text = self._once.pop(group)
        self._chars -= len(text)
        return name, text


def _shrink(entries: dict[Any, Any], most: int) -> None:
    """Let the oldest go."""
    while len(entries) > most:
        del entries[next(iter(entries))]
