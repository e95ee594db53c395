"""What all benchmarks share: rounds in turn, medians with their spread, and a Hermes home of their own."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path


def machine() -> str:
    """Return in one line what it was measured on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("hermes-agent", "litellm"))
    return f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.system()}, {versions}"


def in_turn(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Measure each side once a round, so that the machine's moods hit all of them; the first round fills caches."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 1):
        for name, measure in sides.items():
            value = measure()
            if round_ > 0:
                values[name].append(value)
    return values


def microseconds_each(
    action: Callable[[], object], *, times: int, before: Callable[[], object] = lambda: None
) -> float:
    """Return the mean of so many calls, without the garbage collector's pauses and what is done `before` each."""
    gc.collect()
    gc.disable()
    try:
        seconds = 0.0
        for _ in range(times):
            before()
            start = time.perf_counter()
            action()
            seconds += time.perf_counter() - start
        return 1e6 * seconds / times
    finally:
        gc.enable()


def shown(values: Sequence[float]) -> str:
    """Return the median ± half the interquartile range."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:,.1f} ± {(high - low) / 2:.1f}"


def difference(values: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Return how much more `one` takes than `other`: the median of the differences of the rounds."""
    return statistics.median(a - b for a, b in zip(values[one], values[other], strict=True))


def ratio(values: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Return how many times as long `one` takes as `other`: the median of the ratios of the rounds."""
    return statistics.median(a / b for a, b in zip(values[one], values[other], strict=True))


def home(folder: Path, block: str, *, enabled: bool = True) -> Path:
    """Make a Hermes home with the plugin enabled or not, and the `model_routing` block."""
    folder.mkdir(parents=True)
    configure(folder, block, enabled=enabled)
    return folder


def configure(home: Path, block: str, *, enabled: bool = True) -> None:
    """Write the configuration of a Hermes home, which is read at the next user message."""
    (home / "config.yaml").write_text(f"plugins: {{enabled: [{'hermes-fallback' if enabled else ''}]}}\n{block}")
