"""Patterns that are tried only on a text with one of their hints in it: to look for those costs next to nothing."""

from __future__ import annotations

import re


class Hinted:
    """A pattern, whatever the case of the letters, and in small letters the hints, one of which is in all it matches.

    A hint written a|b|c is several.
    """

    def __init__(self, hints: str, pattern: str, flags: int = 0) -> None:
        self.hints = tuple(hints.split("|"))
        self.pattern = re.compile(pattern, re.IGNORECASE | flags)

    def search(self, text: str, lower: str) -> bool:
        """Tell whether it is in the text; `lower` is the text in small letters."""
        for hint in self.hints:
            if hint in lower:
                return self.pattern.search(text) is not None
        return False
