"""Adds many weak signs of trouble up to the probability that the task will fail.

Pure. The model is a sum of points, put through a logistic curve: `risk.json` holds the points for each count of each
sign, and was made by `benchmarks/fit.py` from recorded runs (benchmarks/detection.md says how well it does).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from .events import Event, ReplyAccepted, ToolFailed, ToolSucceeded, TurnStarted
from .fingerprint import Fingerprint

COUNTS = (
    "failures_in_a_row",
    "same_results",
    "rejected",
    "empty",
    "cannot",
    "cannot_say",
)
"""What is counted, in the order of `counts`."""


_SHOWN = 20
_WINDOW = 100
"""How many events count, newest last: about fifty turns. What was before that in a long task is over."""


@dataclass(frozen=True, slots=True)
class Model:
    """The fitted numbers: `points[i][n]` for `n` of the i-th of COUNTS, the last one for more than that."""

    points: tuple[tuple[float, ...], ...]
    intercept: float
    slope: float
    thresholds: Mapping[str, float]


@cache
def model() -> Model:
    """Return the model of `risk.json`."""
    data = json.loads(files(__package__).joinpath("risk.json").read_text("utf-8"))
    points = tuple(tuple(float(value) for value in data["points"][name]) for name in COUNTS)
    return Model(points, data["calibration"]["intercept"], data["calibration"]["slope"], data["sensitivity"])


def probability(events: Sequence[Event]) -> float:
    """Return how likely a task is to fail in which this has happened so far; events oldest first."""
    return chance(counts(events))


def chance(counted: Sequence[int]) -> float:
    """Return how likely a task is to fail with these counts, in the order of COUNTS."""
    fitted = model()
    score = sum(steps[min(count, len(steps) - 1)] for steps, count in zip(fitted.points, counted, strict=True))
    return 1.0 / (1.0 + math.exp(-(fitted.intercept + fitted.slope * score)))


def counts(events: Sequence[Event]) -> tuple[int, ...]:  # noqa: C901  # one pass, for it is asked at every call
    """Count the signs of trouble in a task; what a user answers to the model's question goes on with it."""
    events = events[-_WINDOW:]
    in_a_row = same_results = rejected = empty = cannot = cannot_say = 0
    asked = False
    results: set[tuple[Fingerprint, Fingerprint]] = set()
    for event in events:
        if isinstance(event, ReplyAccepted):
            asked = False
            if event.signs:
                asked = "asks" in event.signs
                cannot += "cannot" in event.signs
        elif isinstance(event, ToolSucceeded):
            in_a_row = 0
            signs = event.signs
            if "changes" in signs:
                # After a change the same question is a new one.
                results.clear()
            elif "empty" in signs:
                empty += 1
            elif "polls" not in signs:
                rejected += "rejected" in signs
                result = (event.call, event.result)
                same_results += result in results
                results.add(result)
        elif isinstance(event, ToolFailed):
            in_a_row += not event.on_purpose
            result = (event.call, event.result)
            same_results += result in results
            results.add(result)
        elif isinstance(event, TurnStarted):
            if asked:
                cannot_say += "cannot_say" in event.signs
            else:
                in_a_row = same_results = rejected = empty = cannot = cannot_say = 0
            asked = False
            results.clear()
    return in_a_row, same_results, rejected, empty, cannot, cannot_say


def telling(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return the events that were counted: those by which one of the counts grew, since they last began anew."""
    found: list[Event] = []
    before: tuple[int, ...] = counts(())
    for number, event in enumerate(events, start=1):
        now = counts(events[:number])
        if isinstance(event, TurnStarted) and not any(now):
            found.clear()
        elif any(new > old for new, old in zip(now, before, strict=True)):
            found.append(event)
        before = now
    return tuple(found[-_SHOWN:])
