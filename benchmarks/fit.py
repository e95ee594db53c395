"""Fit the points of `risk` to the fitting part of the recorded runs, and write hermes_fallback/risk.json.

A logistic regression with an intercept for each model and source gives the first points: how much more likely a run is
to fail with a sign than without, among runs of its own kind. They are then moved, one at a time, to what gains most
over a coin of the same cost, together with the rules. All points are positive and grow with the count, so that more
trouble is never less risk. Needs numpy, scipy and ../shared.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recordings import Recordings, Rows, load, part
from scipy.optimize import minimize

from hermes_fallback.risk import COUNTS

RISK = Path(__file__).parents[1] / "hermes_fallback" / "risk.json"

# From which count on a sign has how many more points. Few, for each is a number to be fitted: one failure is nothing
# and totals of a long task are nothing (strong coders have many), what comes again in a row is something.
LEVELS: Mapping[str, tuple[int, ...]] = {
    "failures_in_a_row": (2, 3, 4),
    "same_results": (1, 2, 3),
    "rejected": (1,),
    "empty": (2, 4),
    "cannot": (2, 3),
    "cannot_say": (1,),
}
# What must not escalate by itself, whatever the recordings say: twice is no loop yet (the tests of all other agents
# agree on that: ../shared/data/stuck_corpus.jsonl).
INNOCENT: Sequence[Mapping[str, int]] = (
    {"failures_in_a_row": 2, "same_results": 1},
    {"empty": 3, "same_results": 2},
    {"cannot": 2, "same_results": 1},
)
STEPS = [(COUNTS.index(name), level) for name, levels in LEVELS.items() for level in levels]
PARTS = 3  # the last one is for checking
_VALUES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5)
_THRESHOLDS = np.arange(0.8, 2.6, 0.05)
_ROUNDS = 2
_PENALTY = 0.0003
_MARGIN = 0.1
_RIDGE, _LASSO = 3.0, 4.0
_MIN_GROUP = 15
# What the two other operating points ask for, as a part of what the normal one does.
_LOW, _HIGH = 1.5, 0.6


@dataclass(frozen=True)
class Fit:
    """The points of each of STEPS, and the sum at which to escalate."""

    points: np.ndarray
    threshold: float

    def fires(self, rows: Rows, factor: float = 1.0) -> np.ndarray:
        """Return on which rows the rules or the sum of points fire."""
        return _by_rules(rows) | (_may(rows) & (design(rows) @ self.points >= self.threshold * factor))


def design(rows: Rows) -> np.ndarray:
    """Return a row's steps: 1 where the count has reached the level."""
    counts = np.array([turn.counts for turn in rows.turns])
    return np.stack([counts[:, index] >= level for index, level in STEPS], axis=1).astype(float)


def fit(recordings: Recordings, keep: Callable[[str], bool]) -> Fit:
    """Fit to the tasks that `keep` accepts."""
    rows = recordings.rows(keep)
    steps, may, rules = design(rows), _may(rows), _by_rules(rows)
    first = _logistic(recordings, keep)

    def gain(sums: np.ndarray, threshold: float) -> float:
        return float(rows.score(((sums >= threshold) & may) | rules).mean())

    innocent = np.array(
        [[case.get(COUNTS[index], 0) >= level for index, level in STEPS] for case in INNOCENT], dtype=float
    )
    threshold = max(_THRESHOLDS, key=lambda value: gain(steps @ first, value))
    # Scaled down at first, so that the climb begins on the right side.
    first *= min(1.0, (threshold - _MARGIN) / (innocent @ first).max())

    def worth(points: np.ndarray, sums: np.ndarray) -> float:
        if (innocent @ points).max() > threshold - _MARGIN:
            return -np.inf
        return gain(sums, threshold) - _PENALTY * points.sum()

    return Fit(_climb(steps, first, worth).round(2), threshold)


def main() -> None:
    """Fit to the fitting part, calibrate, and write the file."""
    recordings = load()
    fitted = fit(recordings, fitting)
    rows = recordings.rows(fitting)
    intercept, slope = _calibration(recordings, fitted)
    points: dict[str, list[float]] = {name: [0.0] for name in COUNTS}
    for name, levels in LEVELS.items():
        for count in range(1, max(levels) + 1):
            reached = [
                p
                for p, step in zip(fitted.points, STEPS, strict=True)
                if step[0] == COUNTS.index(name) and step[1] <= count
            ]
            points[name].append(round(float(sum(reached)), 2))
    thresholds = {
        name: round(1 / (1 + np.exp(-(intercept + slope * fitted.threshold * factor))), 4)
        for name, factor in (("low", _LOW), ("normal", 1.0), ("high", _HIGH))
    }
    data = {
        "about": "Made by benchmarks/fit.py. What it means: hermes_fallback/risk.py; how good: benchmarks/detection.md",
        "points": points,
        "calibration": {"intercept": round(intercept, 4), "slope": round(slope, 4)},
        "sensitivity": thresholds,
    }
    RISK.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    print(f"{RISK.name}: {rows.score(fitted.fires(rows)).mean():+.4f} over the coin on the fitting part")


def fitting(task: str) -> bool:
    """Tell whether a task belongs to the fitting part."""
    return part(task, PARTS) < PARTS - 1


def checking(task: str) -> bool:
    """Tell whether a task belongs to the checking part."""
    return not fitting(task)


def _may(rows: Rows) -> np.ndarray:
    return np.array([turn.may_fire for turn in rows.turns])


def _by_rules(rows: Rows) -> np.ndarray:
    return np.array([bool(turn.rules) for turn in rows.turns])


def _states(
    recordings: Recordings, keep: Callable[[str], bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return steps, failure, weight and group of every different state that a run was in before its last turn."""
    runs = [run for run in recordings.runs.values() if keep(run.task)]
    sizes = Counter(run.group for run in runs)
    groups = {
        group: at for at, group in enumerate(sorted(group for group, size in sizes.items() if size >= _MIN_GROUP))
    }
    steps: list[tuple[bool, ...]] = []
    others: list[tuple[bool, float, int]] = []
    for run in runs:
        if run.group not in groups or len(run.turns) < 2:
            continue
        # A long run stays in most states for many turns; each is judged once.
        states = list(
            dict.fromkeys(tuple(turn.counts[index] >= level for index, level in STEPS) for turn in run.turns[:-1])
        )
        steps += states
        others += [(run.failed, 1 / sizes[run.group] / len(states), groups[run.group])] * len(states)
    table = np.array(others, float)
    return np.array(steps, float), table[:, 0], table[:, 1], table[:, 2].astype(int)


def _logistic(recordings: Recordings, keep: Callable[[str], bool]) -> np.ndarray:
    steps, failed, weight, group = _states(recordings, keep)
    size, groups = steps.shape[1], int(group.max()) + 1
    scale = steps.std(axis=0) + 1e-6
    scaled, weight = steps / scale, weight / weight.sum() * 1000

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        points, intercepts = values[:size], values[size:]
        odds = scaled @ points + intercepts[group]
        wrong = weight * (1 / (1 + np.exp(-odds)) - failed)
        total = (weight * (np.logaddexp(0, odds) - failed * odds)).sum()
        total += 0.5 * _RIDGE * (points**2).sum() + _LASSO * points.sum()
        return total, np.r_[scaled.T @ wrong + _RIDGE * points + _LASSO, np.bincount(group, wrong, groups)]

    bounds = [(0, None)] * size + [(None, None)] * groups
    start = np.r_[np.full(size, 0.01), np.zeros(groups)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 200})
    return found.x[:size] / scale


def _climb(steps: np.ndarray, points: np.ndarray, worth: Callable[[np.ndarray, np.ndarray], float]) -> np.ndarray:
    """Move one step's points at a time to whatever is worth most, in an order drawn once, and then once more."""
    points, order = points.copy(), np.random.default_rng(0)
    for _ in range(_ROUNDS):
        for at in order.permutation(len(points)):
            tried = {}
            for value in (points[at], *_VALUES):
                moved = points.copy()
                moved[at] = value
                tried[value] = worth(moved, steps @ moved)
            best = max(tried, key=lambda value: tried[value])
            if tried[best] > tried[points[at]] + 1e-6:
                points[at] = best
    return points


def _calibration(recordings: Recordings, fitted: Fit) -> tuple[float, float]:
    """Return the curve from points to the share of runs that fail, over all groups alike."""
    steps, failed, weight, _ = _states(recordings, fitting)
    sums, weight = steps @ fitted.points, weight / weight.sum()

    def loss(values: np.ndarray) -> float:
        odds = values[0] + values[1] * sums
        return float((weight * (np.logaddexp(0, odds) - failed * odds)).sum())

    intercept, slope = minimize(loss, np.zeros(2), method="BFGS").x
    return float(intercept), float(slope)


if __name__ == "__main__":
    main()
