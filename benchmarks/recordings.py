"""The recorded runs of ../shared/data, played through the plugin's own events, triggers and policy.

Scores are those of ../shared/tools/cascade_eval.py, which is loaded from there. That file reads labels and costs; what
decides (`Turn`) is made by `hermes_fallback.replay` from the messages alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hermes_fallback import replay, risk, triggers
from hermes_fallback.config import Policy
from hermes_fallback.events import TriggerName, TurnStarted
from hermes_fallback.policy import Escalate

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
RULES: tuple[TriggerName, ...] = tuple(name for name in Policy().trigger_on if name not in {"risk", "user_request"})


@dataclass(frozen=True, slots=True)
class Turn:
    """What is known after one turn of a recorded run: `counts` of `risk`, whether it may fire, which rules fire."""

    counts: tuple[int, ...]
    may_fire: bool
    rules: tuple[TriggerName, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """A recorded run, turn by turn; `failed` and `group` are for fitting alone."""

    key: str
    task: str
    group: tuple[str, ...]
    failed: bool
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Every turn after which an escalation is possible, in the pairs weak → strong; runs one after another.

    `gain` is what escalating there adds to success beyond a coin of the same cost, so that a detector's `vs_random` is
    the weighted sum over the rows where it fires first (cascade_eval.py, `Pair.eval`; checked in `detection.py`).
    """

    turns: list[Turn]
    pair: np.ndarray
    run: np.ndarray
    task: list[str]
    weight: np.ndarray
    gain: np.ndarray
    pairs: int

    def score(self, fires: np.ndarray) -> np.ndarray:
        """Return `vs_random` of each pair for a detector that fires on these rows."""
        _, first = np.unique(self.run[fires], return_index=True)
        rows = np.nonzero(fires)[0][first]
        return np.bincount(self.pair[rows], self.weight[rows] * self.gain[rows], self.pairs)

    def fired(self, fires: np.ndarray) -> np.ndarray:
        """Return the share of runs that it fires in, for each pair."""
        _, first = np.unique(self.run[fires], return_index=True)
        rows = np.nonzero(fires)[0][first]
        return np.bincount(self.pair[rows], self.weight[rows], self.pairs)


@dataclass(slots=True)
class Recordings:
    """All runs, and the pairs that the scorer makes of them."""

    runs: dict[str, Run]
    scorer: ModuleType
    pairs: list[Any] = field(default_factory=list)

    def rows(self, keep: Callable[[str], bool] = bool) -> Rows:
        """Return the rows of the pairs on the tasks that `keep` accepts, each pair weighted and priced anew."""
        turns: list[Turn] = []
        columns: list[tuple[int, int, float, float]] = []
        tasks: list[str] = []
        number = 0
        pairs = [pair for pair in (part_of(pair, keep) for pair in self.pairs) if len(pair.W)]
        for at, pair in enumerate(pairs):
            base = pair.base()
            price = (base["ss"] - base["sw"]) / (base["cs"] - base["cw"]) if base["cs"] != base["cw"] else 0.0
            for index, weak in enumerate(pair.W):
                number += 1
                for turn in range(weak.T if weak.abn else weak.T - 1):
                    gain = (pair.so[index] - pair.ok[index]) - price * (
                        weak.cum[turn] + pair.sc[index] - pair.wc[index]
                    )
                    turns.append(self.runs[weak.key].turns[turn])
                    columns.append((at, number, pair.w[index], gain))
                    tasks.append(weak.task)
        table = np.array(columns)
        return Rows(
            turns, table[:, 0].astype(int), table[:, 1].astype(int), tasks, table[:, 2], table[:, 3], len(pairs)
        )


def part_of(pair: Any, keep: Callable[[str], bool]) -> Any:
    """Return a pair of the scorer's on some of its tasks."""
    kept = [index for index, run in enumerate(pair.W) if keep(run.task)]
    part = object.__new__(type(pair))
    part.__dict__.update(pair.__dict__)
    part.W = [pair.W[index] for index in kept]
    for name in ("so", "sc", "ok", "wc"):
        setattr(part, name, getattr(pair, name)[kept])
    tasks = sorted({run.task for run in part.W})
    number = {task: at for at, task in enumerate(tasks)}
    part.g, part.nt = np.array([number[run.task] for run in part.W], int), len(tasks)
    part.w = 1.0 / np.bincount(part.g, minlength=part.nt)[part.g] / max(part.nt, 1)
    return part


def load(policy: Policy | None = None) -> Recordings:
    """Play all recorded runs and pair them; `policy` says which rules are asked."""
    scorer = _scorer()
    paths = sorted((SHARED / "data" / "trajectories").glob("*.jsonl.gz"))
    asked = replace(policy or Policy(), trigger_on=RULES)
    jobs = [(path, line, number, asked) for path in paths for number, line in replay.lines(path)]
    tools = {path: replay.tools_named_in(path) for path in paths}
    with multiprocessing.Pool() as pool:
        played = pool.imap(_play, ((job, tools[job[0]]) for job in jobs), chunksize=50)
        runs = {run.key: run for run in played if run is not None}
    data = {
        name: [run for path in paths if path.name.startswith(name) for run in scorer.load(str(path))]
        for name in ("tau2", "mint", "intercode", "swe")
    }
    pairs = [scorer.Pair(name, weak, strong) for name, weak, strong in scorer.PAIRS(data) if weak and strong]
    return Recordings(runs, scorer, pairs)


def part(task: str, parts: int, salt: str = "") -> int:
    """Return which of so many parts a task belongs to: by a hash of its name, so that it never changes."""
    return int(hashlib.md5(f"{salt}{task}".encode()).hexdigest(), 16) % parts  # noqa: S324  # no secret


def _play(job: tuple[tuple[Path, str, int, Policy], Sequence[str]]) -> Run | None:
    (path, line, number, policy), tools = job
    record = json.loads(line)
    if record.get("infra_error"):
        return None
    group = (
        record["source"],
        record["model"],
        *([record["domain"]] if record["source"] in {"tau2", "intercode"} else []),
    )
    turns = tuple(_turns(record["messages"], policy, tools))
    return Run(f"{path.name.split('.')[0]}:{number}", record["task_id"], group, not record["success"], turns)


def _turns(messages: Sequence[Mapping[str, Any]], policy: Policy, tools: Sequence[str]) -> Iterator[Turn]:
    recording = replay.Recording(tools)
    for exchange in replay.exchanges(messages):
        fired: list[TriggerName] = []
        for events in recording.events_of(exchange):
            decision = recording.judge(events, policy)
            if isinstance(decision, Escalate):
                fired.append(decision.trigger)
        events = recording.ledger.events()
        task = max((at for at, event in enumerate(events) if isinstance(event, TurnStarted)), default=0)
        yield Turn(risk.counts(events), triggers.may_add_up(events[task:]), tuple(fired))


def _scorer() -> ModuleType:
    path = SHARED / "tools" / "cascade_eval.py"
    if not path.exists():
        sys.exit(f"{path} is not there: the recorded runs and their scorer are not part of this repository")
    spec = importlib.util.spec_from_file_location("cascade_eval", path)
    assert spec is not None  # noqa: S101  # for mypy
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
