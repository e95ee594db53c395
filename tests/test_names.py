"""Names for results and errors: as exact as taking the volatile fields out of each, and done only where it tells."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hermes_fallback import fingerprint
from hermes_fallback.fingerprint import error_kind, without_volatile
from hermes_fallback.names import Names

TEXTS = st.sampled_from(
    [
        *("ok", "ok at 10:00:01", "ok at 10:00:02", "took 3 ms", "took 4 ms", "took 5 ms", "took 4 apples"),
        *("took 5 apples", "", "no"),
        *('{"duration": 7, "left": 12}', '{"duration": 8, "left": 12}', '{"duration": 8, "left": 13}'),
        *("job 12: 4 left, 3s", "job 12: 4 left, 2s", "job 12: 5 left, 2s", "job 13: 5 left, 2s"),
        *("pid 12: 4 left", "pid 13: 4 left", "job a1b2c3 is done", "job a1b2c4 is done", "5 min left", "4 min left"),
    ]
)


@settings(max_examples=1000)
@given(st.lists(st.tuples(st.sampled_from([1, 2]), TEXTS), max_size=14))
# What is no volatile field any more though only digits differ; and where a letter takes two bytes.
@example([(1, "at 0x1234567"), (1, "at 0x1234568"), (1, "at 3x1234567")])
# Two numbers whose sum is the same, as far apart as the size of Python's hash of a number.
@example([(1, f"todo {9 - done}{'.' * 60}{done} done") for done in range(4)])
@example([(1, "at 1700000001"), (1, "at 1700000002"), (1, "at 2700000001")])
@example([(1, f'{{"left": {left}, "duration": "{took}µs"}}') for left, took in ((4, 1), (4, 2), (5, 2))])
def test_names_are_as_exact(calls: list[tuple[int, str]]) -> None:
    """Two results of one call have one name when and only when they are the same but for volatile fields."""
    names = Names()
    named = [(call, text, names.of_result(call, text)) for call, text in calls]
    for call, text, name in named:
        for other_call, other_text, other in named:
            if call == other_call:
                assert (name == other) == (without_volatile(text) == without_volatile(other_text))


@pytest.mark.parametrize(
    ("first", "second", "is_same"),
    [
        ("took 12 s", "took 13 s", True),
        ("20 minutes left", "19 minutes left", False),
        ("12s remaining", "11s remaining", False),
        ("pid 1234 waits", "pid 77 waits", True),
        ("session: a1b2c3d4", "session: b1b2c3d5", True),
        ("migrated session-17", "migrated session-18", False),
        ("job-17 is done", "job-18 is done", False),
        ("job 4031877 waits", "job 4031879 waits", True),
    ],
)
def test_what_is_volatile(first: str, second: str, *, is_same: bool) -> None:
    """Ids and times come anew with each run; the place in a row, and how long it is still, are what was done."""
    assert (without_volatile(first) == without_volatile(second)) == is_same


ERRORS = st.sampled_from(["no file a.py", "no file b.py", "denied: 3", "denied: 4", "gone", "'one key'", "'another'"])


@given(st.lists(ERRORS, max_size=12))
def test_errors_are_as_exact(messages: list[str]) -> None:
    """Two errors of one tool have one name when and only when they are of one kind; a mere name is of none."""
    names = Names()
    named = [(message, names.of_error("tool", message)) for message in messages]
    for message, name in named:
        for other_message, other in named:
            kind = error_kind(message)
            alike = message == other_message if kind is None else kind == error_kind(other_message)
            assert (name == other) == alike
    assert names.of_error("tool", "12") is None


def test_a_call_made_once_is_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow look at a text is taken when a call comes again with something else, and once for each text."""
    looked: list[str] = []

    class Watched:
        def sub(self, replacement: str, text: str) -> str:
            looked.append(text)
            return volatile.sub(replacement, text)

    volatile: re.Pattern[str] = fingerprint._NUMBERS  # noqa: SLF001
    monkeypatch.setattr(fingerprint, "_NUMBERS", Watched())
    names = Names()
    for number in range(50):
        names.of_result(number, f"10:00:0{number % 10}")
    names.of_result(49, "10:00:09")
    assert not looked
    found = {names.of_result(49, f"10:00:{number}") for number in range(10, 40)}
    assert found == {names.of_result(49, "10:00:08")}, "one kind, however often it comes"
    # The first and the second, then once more for which digits last; the others differ in nothing else.
    assert looked == ["10:00:09", "10:00:10", "10:00:10"]


@pytest.mark.parametrize("length", [1, 2000])
def test_what_is_kept_is_bounded(length: int) -> None:
    """However much is read and however often, a task keeps a few texts and names."""
    names = Names()
    for number in range(2000):
        names.of_result(number, f"{number} " * length)
        names.of_result(-1, f"result {number}")
        names.of_result(-2 - number, "one")
        names.of_result(-2 - number, "another")
        names.of_error(f"tool {number}", "an error " * length)
    for alike in (names._results, names._errors):  # noqa: SLF001
        assert sum(len(text) for _, text in alike._once.values()) <= 20_000  # noqa: SLF001
        assert len(alike._once) <= 16  # noqa: SLF001
        assert len(alike._names) <= 16  # noqa: SLF001
        assert all(len(known) <= 16 for known in alike._names.values())  # noqa: SLF001
