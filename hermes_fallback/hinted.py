"""Patterns that are tried only on a text with one of their hints in it: to look for those costs next to nothing."""

from __future__ import annotations

import re


class Hinted:
    """A pattern and its hints, one of which is in all that it matches; `a|b|c` are three of them."""

    def __init__(self, hints: str, pattern: str, flags: int = re.IGNORECASE) -> None:
        self.hints = tuple(hints.split("|"))
        self.pattern = re.compile(pattern, flags)

    def may_match(self, text: str) -> bool:
        """Tell whether a hint is in the text, which is in small letters where the hints are."""
        for hint in self.hints:  # noqa: SIM110  # `any` takes thrice as long, and this is asked of all texts
            if hint in text:
                return True
        return False

    def search(self, text: str, lower: str) -> bool:
        """Tell whether the pattern is in the text; `lower` is the text in small letters."""
        return self.may_match(lower) and self.pattern.search(text) is not None
