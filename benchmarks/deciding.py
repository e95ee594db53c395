"""Measure what deciding costs before one model call, at 200 events in the ledger; prints a table row for each mix.

The events are those of recorded runs, played up to the first 200 of a task, or made up where no run is that long.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Iterator

from hermes_fallback.config import Policy
from hermes_fallback.events import Event, ReplyAccepted, ToolFailed, ToolSucceeded, TurnStarted
from hermes_fallback.fingerprint import digest
from hermes_fallback.ledger import MAX_EVENTS, Ledger
from hermes_fallback.policy import Stay, decide

_REPEAT, _NUMBER = 15, 400


def main() -> None:
    """Print the table."""
    print(f"{MAX_EVENTS} events, medians of {_REPEAT} rounds of {_NUMBER} decisions, ± half the interquartile range.\n")
    print("| what happened | microseconds for each decision |\n|---|---|")
    for name, events in MIXES.items():
        ledger = Ledger()
        ledger.append(*events)
        seen, index = ledger.past()
        decision = decide(seen, Policy(), tiers=1, now=1.0, index=index)
        assert isinstance(decision, Stay), (name, decision)  # noqa: S101  # else it measures something else
        rounds = timeit.repeat(
            lambda seen=seen, index=index: decide(seen, Policy(), tiers=1, now=1.0, index=index),
            repeat=_REPEAT,
            number=_NUMBER,
        )
        each = [1e6 * seconds / _NUMBER for seconds in rounds]
        quarters = statistics.quantiles(each, n=4)
        print(f"| {name} | {statistics.median(each):.1f} ± {(quarters[2] - quarters[0]) / 2:.1f} |")


def _session(results: Iterator[Event]) -> list[Event]:
    events: list[Event] = [TurnStarted(0.0, "turn", "local", ("wants_change",))]
    while len(events) < MAX_EVENTS - 1:
        events += [ReplyAccepted(0.0), next(results)]
    return events


def _ok(number: int, result: object = None) -> Event:
    return ToolSucceeded(
        0.0, "read_file", digest(f"call {number}"), digest(f"result {number if result is None else result}")
    )


def _failed(number: int) -> Event:
    call, result, kind = (digest(f"{what} {number}") for what in ("call", "error", "kind"))
    return ToolFailed(0.0, f"tool {number}", call, result, "file not found", kind)


def _all_new() -> Iterator[Event]:
    yield from (_ok(number) for number in range(MAX_EVENTS))


def _changing() -> Iterator[Event]:
    yield from (_ok(number % 5, number) for number in range(MAX_EVENTS))


def _some_fail() -> Iterator[Event]:
    yield from (_failed(number) if number % 8 == 2 else _ok(number) for number in range(MAX_EVENTS))


def _just_failed() -> Iterator[Event]:
    yield from (
        _failed(number) if number % 9 == 8 or number >= MAX_EVENTS // 2 - 2 else _ok(number)
        for number in range(MAX_EVENTS)
    )


MIXES = {
    "every call is new": _session(_all_new()),
    "five calls whose results change": _session(_changing()),
    "one call in eight fails": _session(_some_fail()),
    "the last call failed": _session(_just_failed()),
}


if __name__ == "__main__":
    main()
