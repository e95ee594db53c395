"""Hints: no pattern is missed because none of its hints is in what it matches."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hermes_fallback import fingerprint, replies, secret_forms, signs
from hermes_fallback.hinted import Hinted

PATTERNS = {
    **{name: value for name, value in (vars(signs) | vars(replies)).items() if isinstance(value, Hinted)},
    **{f"_CLAIMS_DONE, {pattern.hints[0]}": pattern for pattern in signs._CLAIMS_DONE},  # noqa: SLF001
    **{words: hinted for hinted, words in fingerprint._ERROR_WORDS},  # noqa: SLF001
    **{f"IN_PLACE, {n}: {pattern.hints[0]}": pattern for n, pattern in enumerate(secret_forms.IN_PLACE)},
    **{f"NAMED, {n}: {pattern.hints[0]}": pattern for n, pattern in enumerate(secret_forms.NAMED)},
    "COOKIES": secret_forms.COOKIES,
}
OWN_CASE = frozenset({"_MARKERS"})
"""Those that are looked for in a text as it is."""


def form_of(hinted: Hinted) -> re.Pattern[str]:
    """Return a pattern without its looks back, which Hypothesis cannot make up; what does not fit them is left out."""
    return re.compile(re.sub(r"\(\?<=[^)]*\)", "", hinted.pattern.pattern), hinted.pattern.flags)


@pytest.mark.parametrize("name", PATTERNS)
def test_hints(name: str) -> None:
    """Whatever a pattern can match has one of its hints in it."""
    hinted = PATTERNS[name]

    @settings(max_examples=30, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(form_of(hinted), alphabet=st.characters(codec="ascii") | st.sampled_from("’…")))
    def each(text: str) -> None:
        assume(hinted.pattern.search(text))
        assert hinted.search(text, text if name in OWN_CASE else text.lower())

    each()


def test_roots_of_hints() -> None:
    """Where none of the roots of an error's words is in a text, none of its hints is."""
    for hinted, _ in fingerprint._ERROR_WORDS:  # noqa: SLF001
        assert [hint for hint in hinted.hints if not any(root in hint for root in fingerprint._ROOTS)] == []  # noqa: SLF001


@pytest.mark.parametrize("name", ["_FIELDS", "_PROCESSES"])
def test_hints_of_volatile_fields(name: str) -> None:
    """The same of what changes from one run to the next; their hints are in the letters' own case, too."""
    hinted: Hinted = getattr(fingerprint, name)

    @settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(form_of(hinted), alphabet=st.characters(codec="ascii"), fullmatch=True))
    def each(text: str) -> None:
        assume(hinted.pattern.fullmatch(text))
        assert hinted.may_match(text)
        assert fingerprint.without_volatile(f"a {text}") == fingerprint.without_volatile("a #")

    each()


@pytest.mark.parametrize("form", secret_forms.FORMS)
def test_hints_of_secrets(form: str) -> None:
    """The same of the secrets with a form of their own, each by itself; their hints are in the letters' own case."""

    @settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.from_regex(form, alphabet=st.characters(codec="ascii"), fullmatch=True))
    def each(secret: str) -> None:
        assert secret_forms.FORM.may_match(secret)

    each()


def test_there_are_patterns() -> None:
    """Those of replies, of errors and of secrets."""
    assert len(PATTERNS) > 30
