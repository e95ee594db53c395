"""What it costs to have the plugin: `hermes --version` and plugin discovery, with and without it, in turn.

Run by `make bench`, which puts the table into RESULTS.md. Medians of fresh processes, the two sides alternating so
that the machine's moods hit both. In a bare process, most of the difference is Hermes's own `ctx.register_command`,
which imports prompt_toolkit to look for a name that is taken; where there are slash commands, that is loaded anyway.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

HERMES = Path(sys.executable).with_name("hermes")
ROUNDS = 15
DISCOVERY = (
    "import time\n"
    "from hermes_cli.plugins import discover_plugins\n"
    "import tools.registry\n"
    "start = time.perf_counter()\n"
    "discover_plugins()\n"
    "print(time.perf_counter() - start)\n"
)
# What every surface with slash commands has loaded: `ctx.register_command` imports it, and prompt_toolkit with it.
WITH_COMMANDS = "import hermes_cli.commands\n"
MEMORY = (
    WITH_COMMANDS + "from hermes_cli.plugins import discover_plugins\n"
    "discover_plugins()\n"
    "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))\n"
)
BLOCK = "model_routing: {fallback: {provider: openai, model: gpt-5.4}}\n"


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        homes = {enabled: _home(Path(folder), enabled=enabled) for enabled in (False, True)}
        print(
            f"Python {platform.python_version()}, {os.cpu_count()} cores, hermes-agent {version('hermes-agent')}, ",
            end="",
        )
        print(f"medians of {ROUNDS} fresh processes, ± half the interquartile range.\n")
        print("| what | without | with | difference |\n|---|---|---|---|")
        for name, unit, measure in (
            ("`hermes --version`", "ms", _version),
            ("plugin discovery on a surface with slash commands", "ms", _discovery_with_commands),
            ("plugin discovery in a bare process", "ms", _discovery),
            ("resident memory after discovery, with slash commands", "MB", _memory),
        ):
            _row(name, unit, measure, homes)


def _home(folder: Path, *, enabled: bool) -> Path:
    home = folder / str(enabled)
    home.mkdir()
    (home / "config.yaml").write_text(f"plugins: {{enabled: [{'hermes-fallback' if enabled else ''}]}}\n{BLOCK}")
    return home


def _row(name: str, unit: str, measure: Callable[[dict[str, str]], float], homes: dict[bool, Path]) -> None:
    values: dict[bool, list[float]] = {False: [], True: []}
    for round_ in range(ROUNDS + 1):
        for enabled, home in homes.items():
            value = measure({**os.environ, "HERMES_HOME": str(home), "HOME": str(home)})
            if round_ > 0:  # the first one fills caches
                values[enabled].append(value)
    without, with_ = (statistics.median(values[enabled]) for enabled in (False, True))
    shown = [f"{statistics.median(found):.1f} ± {_half_range(found):.1f} {unit}" for found in values.values()]
    print(f"| {name} | {shown[0]} | {shown[1]} | {with_ - without:+.1f} {unit} |", flush=True)


def _half_range(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2


def _version(env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([str(HERMES), "--version"], env=env, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1000


def _discovery(env: dict[str, str]) -> float:
    return float(_python(DISCOVERY, env)) * 1000


def _discovery_with_commands(env: dict[str, str]) -> float:
    return float(_python(WITH_COMMANDS + DISCOVERY, env)) * 1000


def _memory(env: dict[str, str]) -> float:
    return float(_python(MEMORY, env)) / 1024


def _python(code: str, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
