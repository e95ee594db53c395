"""Hints: no pattern is missed because none of its hints is in what it matches."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hermes_fallback import fingerprint, signs
from hermes_fallback.hinted import Hinted

PATTERNS = {
    **{name: value for name, value in vars(signs).items() if isinstance(value, Hinted)},
    **{words: hinted for hinted, words in fingerprint._ERROR_WORDS},  # noqa: SLF001
}


@pytest.mark.parametrize("name", PATTERNS)
def test_hints(name: str) -> None:
    """Whatever a pattern can match has one of its hints in it."""
    hinted = PATTERNS[name]

    @settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(hinted.pattern, alphabet=st.characters(codec="ascii") | st.sampled_from("’…")))
    def each(text: str) -> None:
        assume(hinted.pattern.search(text))
        assert hinted.search(text, text.lower())

    each()


def test_there_are_patterns() -> None:
    """Those of replies and those of errors."""
    assert len(PATTERNS) > 20
