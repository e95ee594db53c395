"""The soak: many turns on many threads, bad endpoints on both sides, `kill -9` now and then, one journal with a budget.

`python -m benchmarks.soak --turns 100000 --threads 64`; `make soak` puts what it prints into SOAK.md. Two processes
have half of the threads each. One is killed again and again; the other lives from the beginning to the end, for a leak
shows only in what lives long. SIGINT, SIGTERM or `--minutes` end it early, with all checks on what was done until then.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from benchmarks.soak import checks
from benchmarks.soak.checks import Limits
from benchmarks.soak.endpoints import KEY, MODEL, USD_PER_INPUT_TOKEN, USD_PER_OUTPUT_TOKEN
from benchmarks.soak.pulse import Pulse

_LOOK_SECONDS = 0.25
_BOOKS_SECONDS = 10.0
_END_SECONDS = 120.0
_MOST_TOKENS = 600  # of a paid reply
_USD_A_TURN = 0.0008  # about what turns would spend if there were no limit
_LEAST_USD = 0.02  # what one call may cost, and a little
_REFUSALS = {
    "task": "for this task is left",
    "session": "for this session is left",
    "day": "today is left",
    "month": "this month is left",
    "number of escalations": "this session has had its",
}


@dataclass
class Options:
    """How large a soak is."""

    turns: int
    threads: int
    kills: int
    kill_seconds: tuple[float, float]
    minutes: float
    turn_seconds: float
    growth_mb: float
    seed: int


@dataclass
class Soak:
    """A running soak: its processes, and what was seen so far."""

    folder: Path
    options: Options
    processes: ExitStack
    limits: Limits = field(default_factory=lambda: Limits(0.015, 0.025, 0.0, 3))
    phase: int = -1
    kills: int = 0
    killed_sessions: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    journaled: Counter[str] = field(default_factory=Counter)
    """How often the books were looked at while they were within the limit, and while it was used up."""
    seconds: float = 0.0
    end: str = "all turns were made"

    def __post_init__(self) -> None:
        self.home = self.folder / "home"
        self.home.mkdir()
        self.journal = self.home / "hermes-fallback" / "journal.sqlite3"
        self.pulse = Pulse(self.folder / "pulse", self.options.threads)
        self._chance = random.Random(self.options.seed)  # noqa: S311  # dice
        self._stopped = False
        # The limit is raised so often, and used up before or not.
        self._phases = max(2, min(10, self.options.turns // 100))

    def _stop(self, number: int, _frame: object) -> None:
        self._stopped = True
        self.end = f"stopped by {signal.Signals(number).name}"

    @property
    def done(self) -> int:
        """How many turns have ended."""
        return sum(beat.done for beat in self.pulse.beats())

    def run(self) -> None:
        """Run until all turns are made, or something is wrong, or time is up; then look at everything."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self._stop)
        self.local = self._endpoint("local")
        self.paid = self._endpoint("paid")
        self._raise_limit()
        half = self.options.threads // 2
        victim, veteran = self._worker(0, half), self._worker(half, self.options.threads)
        began = time.monotonic()
        victim = self._watch(victim, half, veteran, began)
        self._let_end(victim, veteran)
        self.seconds = time.monotonic() - began
        for endpoint, _ in (self.local, self.paid):
            endpoint.terminate()
            endpoint.wait(60)
        self._check()

    def _watch(
        self, victim: subprocess.Popen[bytes], half: int, veteran: subprocess.Popen[bytes], began: float
    ) -> subprocess.Popen[bytes]:
        kill_at: float | None = None
        done_before = told = looked = 0.0
        while not self.violations:
            time.sleep(_LOOK_SECONDS)
            now, done = time.monotonic(), self.done
            by_victim = sum(self.pulse[slot].done for slot in range(half))
            is_over = done >= self.options.turns and self.kills >= self.options.kills
            if is_over and by_victim > done_before:
                break
            if self._stopped or now - began > 60 * self.options.minutes:
                if not self._stopped:
                    self.end = f"{self.options.minutes:g} minutes were over"
                break
            if self.phase + 1 < self._phases and done >= (self.phase + 1) * self.options.turns / self._phases:
                self._raise_limit()
            if now - looked > _BOOKS_SECONDS:
                looked = now
                self._look_into_books()
            self._look_for_stuck(victim, veteran)
            if kill_at is None and by_victim > done_before:
                kill_at = now + self._chance.uniform(*self.options.kill_seconds)
            elif kill_at is not None and now > kill_at and not is_over:
                self._kill(victim, half)
                victim, kill_at, done_before = self._worker(0, half), None, by_victim
            if now - told > 30:
                told = now
                print(f"{now - began:.0f} s: {done} turns, {self.kills} kills", file=sys.stderr, flush=True)
        return victim

    def _endpoint(self, name: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "benchmarks.soak.endpoints", name, str(self.folder), str(self.options.seed)]
        environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        process = self.processes.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        )
        self.processes.callback(process.kill)
        assert process.stdout is not None  # noqa: S101  # for mypy
        return process, process.stdout.readline().strip()

    def _worker(self, first: int, last: int) -> subprocess.Popen[bytes]:
        numbers = map(str, (first, last, self.options.threads, self.options.seed))
        command = [sys.executable, "-m", "benchmarks.soak.worker", str(self.folder), *numbers]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HERMES_", "OPENAI_"))}
        environment = {
            **kept,
            "HERMES_HOME": str(self.home),
            "HOME": str(self.folder),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": self.paid[1],
            "SOAK_LOCAL_URL": self.local[1],
            # Six in the morning: no day and no month ends within a soak.
            "TZ": f"SOAK{(datetime.now(UTC).hour - 6) % 24:+d}",
        }
        with (self.folder / "output.txt").open("ab") as output:
            process = self.processes.enter_context(
                subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=Path.cwd())
            )
        self.processes.callback(process.kill)
        return process

    def _raise_limit(self) -> None:
        """Begin the next phase: more may be spent today, or this month; too little, or more than is wanted."""
        self.phase += 1
        spent = sum(bill.usd for bill in checks.bills_in(self.folder / "bills.jsonl"))
        wanted = _USD_A_TURN * self.options.turns / self._phases
        more = max(_LEAST_USD, wanted * (1.3 if self.phase % 3 == 0 else 0.4))
        self.limits = replace(self.limits, total_usd=max(self.limits.total_usd, spent) + more)
        total = self.limits.total_usd
        by_day = self.phase % 2 == 0
        tier = {
            "provider": "openai",
            "max_tokens": _MOST_TOKENS,
            "timeout_seconds": 6,
            "price": {
                "input_per_million_usd": USD_PER_INPUT_TOKEN * 1e6,
                "output_per_million_usd": USD_PER_OUTPUT_TOKEN * 1e6,
            },
        }
        budget = {
            "per_task_usd": self.limits.task_usd,
            "per_session_usd": self.limits.session_usd,
            "per_day_usd": total if by_day else total + 1,
            "per_month_usd": total + 1 if by_day else total,
            "max_escalations_per_session": self.limits.escalations,
        }
        config = {
            "model": {"provider": "ollama", "default": MODEL, "base_url": self.local[1], "context_length": 65536},
            "plugins": {"enabled": ["hermes-fallback"]},
            "model_routing": {
                "fallback": [{**tier, "model": "gpt-5.4"}, {**tier, "model": "gpt-5.4-mini"}],
                "fallback_policy": {"budget": budget},
            },
        }
        # At once, as an editor saves it: no worker may read half of it.
        new = self.home / "config.yaml.new"
        new.write_text(yaml.safe_dump(config))
        new.replace(self.home / "config.yaml")

    def _look_into_books(self) -> None:
        """No more than the limit, at any moment, by both books; the limit is only ever raised."""
        bills = checks.bills_in(self.folder / "bills.jsonl")
        self.violations += checks.budget_by_bills(bills, self.limits)
        if self.journal.exists():
            calls = checks.calls_in(self.journal)
            self.violations += checks.budget_by_journal(calls, self.limits)
            left = self.limits.total_usd - sum(call.usd for call in calls)
            # What the smallest call may cost.
            self.journaled["used up" if left < _MOST_TOKENS * USD_PER_OUTPUT_TOKEN else "within"] += 1

    def _look_for_stuck(self, *workers: subprocess.Popen[bytes]) -> None:
        for slot, beat in enumerate(self.pulse.beats()):
            if beat.seconds > self.options.turn_seconds:
                self.violations.append(f"thread {slot} is at turn {beat.tag} for {beat.seconds:.0f} s; see stacks-*")
        for worker in workers:
            if worker.poll() is not None:
                self.violations.append(f"a worker ended by itself, with {worker.returncode}; see output.txt")
            elif self.violations:
                worker.send_signal(signal.SIGUSR1)

    def _kill(self, victim: subprocess.Popen[bytes], half: int) -> None:
        """`kill -9`, whatever it does; remember what it was at, and see that the journal has borne it."""
        victim.kill()
        victim.wait()
        self.kills += 1
        self.killed_sessions += [f"{slot}-{self.pulse[slot].session}" for slot in range(half)]
        if self.journal.exists():
            self.violations += checks.sound(self.journal)

    def _let_end(self, *workers: subprocess.Popen[bytes]) -> None:
        for worker in workers:
            worker.terminate()
        end = time.monotonic() + _END_SECONDS
        for worker, name in zip(workers, ("killed", "long-lived"), strict=True):
            try:
                code = worker.wait(max(1.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.send_signal(signal.SIGUSR1)
                time.sleep(1)
                worker.kill()
                self.violations.append(f"the {name} worker does not end within {_END_SECONDS:.0f} s; see stacks-*")
                continue
            if code == -signal.SIGTERM and name == "killed":
                self.killed_sessions += [
                    f"{slot}-{beat.session}"
                    for slot, beat in enumerate(self.pulse.beats()[: self.options.threads // 2])
                ]
            elif code != 0:
                self.violations.append(f"the {name} worker ended with {code}; see output.txt")

    def _check(self) -> None:
        bills, calls = checks.bills_in(self.folder / "bills.jsonl"), checks.calls_in(self.journal)
        done = [line for path in self.folder.glob("done-*") for line in path.read_text().splitlines()]
        found: dict[str, Iterator[str]] = {
            "budget, by the bills": checks.budget_by_bills(bills, self.limits),
            "budget, by the journal": checks.budget_by_journal(calls, self.limits),
            "escalations of a session": checks.escalations(self.journal, self.limits),
            "bills without a row": checks.bills_have_rows(bills, calls),
            "bills of no turn": checks.bills_are_of_turns(bills),
            "bills and journal differ": checks.sums_agree(bills, calls),
            "calls without an end": checks.rows_without_an_end(calls, self.killed_sessions),
            "escalations without a call": checks.references(self.journal),
            "the file": checks.sound(self.journal),
            "turns without a row": checks.turns_are_journaled(self.journal, done),
            "off, and paid": checks.nobody_off_paid(bills),
            "logs": checks.logs_are_clean(self.folder.glob("log-*.txt")),
            "leaks": checks.nothing_leaks(self.statuses(), growth_mb=self.options.growth_mb),
        }
        for name, violations in found.items():
            self.violations += [f"{name}: {violation}" for violation in violations]

    def statuses(self) -> list[dict[str, Any]]:
        """Return what the worker that is never killed told of itself."""
        path = self.folder / f"status-{self.options.threads // 2}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def result(self) -> dict[str, Any]:
        """Return what was measured."""
        bills, calls = checks.bills_in(self.folder / "bills.jsonl"), checks.calls_in(self.journal)
        beats = self.pulse.beats()
        servers = {name: json.loads((self.folder / f"{name}.json").read_text()) for name in ("local", "paid")}
        logs = "\n".join(path.read_text(errors="replace") for path in self.folder.glob("log-*.txt"))
        broken = {bill.tag for bill in bills if bill.fault != "none"}
        return {
            "end": self.end,
            "turns": self.done,
            "whole_agents": sum(beat.whole for beat in beats),
            "seconds": self.seconds,
            "cpu_seconds": sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]),
            "kills": self.kills,
            "longest_turn_seconds": max(beat.longest for beat in beats),
            "requests": {name: server["requests"] for name, server in servers.items()},
            "faults": {name: server["faults"] for name, server in servers.items()},
            "escalations": checks.rows(self.journal, "SELECT count(*) FROM escalations")[0][0],
            "triggers": dict(
                checks.rows(self.journal, "SELECT trigger, count(*) FROM escalations GROUP BY trigger ORDER BY 2 DESC")
            ),
            "calls": dict(Counter(call.state for call in calls)),
            "limit_usd": self.limits.total_usd,
            "billed_usd": sum(bill.usd for bill in bills),
            "journaled_usd": sum(call.usd for call in calls),
            "broken_off": {
                "billed_usd": sum(bill.usd for bill in bills if bill.tag in broken),
                "journaled_usd": sum(call.usd for call in calls if checks.tag_of(call.turn_id) in broken),
            },
            "looks": dict(self.journaled),
            "refused": {name: logs.count(words) for name, words in _REFUSALS.items()},
            "journal_mb": self.journal.stat().st_size / 2**20,
            "memory": [
                {name: status[name] for name in ("done", "rss_mb", "threads", "files")}
                | {"kept": sum(status["kept"].values())}
                for status in _at_shares(self.statuses(), (0.1, 0.5, 1.0))
            ],
            "violations": self.violations,
        }


def _at_shares(statuses: list[dict[str, Any]], shares: tuple[float, ...]) -> Iterator[dict[str, Any]]:
    """Yield what was told when these shares of all turns were made."""
    running = [status for status in statuses if not status["final"]]
    for share in shares if running else ():
        wanted = running[-1]["done"] * share
        yield next(status for status in running if status["done"] >= wanted)


def table(result: dict[str, Any], options: Options) -> Iterator[str]:
    """Yield the lines of the report."""
    yield (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, hermes-agent {version('hermes-agent')}, "
        f"litellm {version('litellm')}; {options.threads} threads in 2 processes, seed {options.seed}."
    )
    yield ""
    yield "| what | measured |\n|---|---|"
    memory = result["memory"]
    broken = result["broken_off"]
    lines = {
        "turns": f"{result['turns']:,} of {options.turns:,} ({result['end']})",
        "of these by Hermes's whole agent": f"{result['whole_agents']:,}",
        "seconds": f"{result['seconds']:,.0f}, {result['cpu_seconds']:,.0f} of the processors",
        "turns a second": f"{result['turns'] / max(1.0, result['seconds']):.1f}",
        "longest turn": f"{result['longest_turn_seconds']:.1f} s of {options.turn_seconds:g} allowed",
        "`kill -9`": f"{result['kills']}",
        "requests": _counts(result["requests"]),
        "faults of the local endpoint": _counts(result["faults"]["local"]),
        "faults of the paid endpoint": _counts(result["faults"]["paid"]),
        "escalations": f"{result['escalations']:,}: {_counts(result['triggers'])}",
        "paid calls": _counts(result["calls"]),
        "refused by the budget": _counts(result["refused"]),
        "looks at both books": _counts(result["looks"]),
        "limit of the day or month": f"${result['limit_usd']:.4f}",
        "billed by the paid endpoint": f"${result['billed_usd']:.4f}",
        "in the journal, reservations included": f"${result['journaled_usd']:.4f}",
        "turns with a broken reply": f"billed ${broken['billed_usd']:.4f}, journaled ${broken['journaled_usd']:.4f}",
        "the journal's file": f"{result['journal_mb']:.1f} MB",
        "at 10 %, 50 %, 100 %: memory": ", ".join(f"{one['rss_mb']:.0f} MB" for one in memory),
        "threads": ", ".join(str(one["threads"]) for one in memory),
        "open files": ", ".join(str(one["files"]) for one in memory),
        "entries kept for sessions": ", ".join(str(one["kept"]) for one in memory),
        "violations": str(len(result["violations"])),
    }
    yield from (f"| {name} | {value} |" for name, value in lines.items())
    if result["violations"]:
        yield ""
        yield from (f"- {violation}" for violation in result["violations"][:50])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"


def main() -> int:
    """Soak, and print what came of it."""
    parser = argparse.ArgumentParser(description="Soak hermes-fallback.")
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--kills", type=int, default=1, help="at least so many, even when all turns are made")
    parser.add_argument("--kill-seconds", type=float, nargs=2, default=(20, 60), help="of work, between two kills")
    parser.add_argument("--minutes", type=float, default=240, help="end after so many")
    parser.add_argument("--turn-seconds", type=float, default=120, help="a turn that takes longer is stuck")
    parser.add_argument("--growth-mb", type=float, default=30, help="what a warm process may still grow by")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write what was measured there, too")
    parser.add_argument("--folder", type=Path, help="work there, and leave everything")
    arguments = vars(parser.parse_args())
    written, kept = arguments.pop("json"), arguments.pop("folder")
    options = Options(**{**arguments, "kill_seconds": tuple(arguments["kill_seconds"])})
    folder = kept or Path(tempfile.mkdtemp(prefix="hermes-fallback-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as processes:
        soak = Soak(folder, options, processes)
        soak.run()
    result = soak.result()
    print("\n".join(table(result, options)))
    if written:
        written.write_text(json.dumps(result, indent=1))
    if result["violations"]:
        print(f"everything is left in {folder}", file=sys.stderr)
    elif not kept:
        shutil.rmtree(folder)
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
