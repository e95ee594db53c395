"""Write benchmarks/detection.md and its plots: how well the triggers tell failing runs, and what that is worth.

Needs numpy, scipy, matplotlib and ../shared. Every number comes from playing the recordings through the plugin; the
scores are the scorer's own (../shared/tools/cascade_eval.py).
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib as mpl
import numpy as np
from fit import checking, fit, fitting
from recordings import ROOT, RULES, SHARED, Recordings, Rows, load, part

from hermes_fallback import replay, risk
from hermes_fallback.config import Policy
from hermes_fallback.events import TriggerName

mpl.use("Agg")
import matplotlib.pyplot as plt  # after the choice of what it draws with

HERE = Path(__file__).parent
REPORT = HERE / "detection.md"
PLOTS = HERE / "detection"
SENSITIVITIES = ("low", "normal", "high")
_BOOT = 1000
_FOLDS = 3
_REPEATS = 4
_COLUMNS = 4

Fires = np.ndarray


def main() -> None:
    """Measure, and write the report."""
    recordings = load()
    PLOTS.mkdir(exist_ok=True)
    _plot_frontiers(recordings)
    REPORT.write_text("\n".join(_report(recordings)) + "\n", "utf-8")
    print(f"{REPORT.relative_to(ROOT)} written")


def shipped(rows: Rows, sensitivity: str = "normal") -> Fires:
    """Return on which rows the plugin escalates at this sensitivity, rules and `risk` together."""
    model = risk.model()
    chance = np.array([risk.chance(turn.counts) for turn in rows.turns])
    adds_up = np.array([turn.may_fire for turn in rows.turns]) & (chance >= model.thresholds[sensitivity])
    return adds_up | by_rules(rows)


def by_rules(rows: Rows, names: Sequence[TriggerName] = RULES) -> Fires:
    """Return on which rows one of the rules fires."""
    return np.array([not set(names).isdisjoint(turn.rules) for turn in rows.turns])


def evaluated(pair: Any, turns: dict[str, int], *, boot: int = 0) -> dict[str, Any]:
    """Return the scorer's own judgement of a pair, for the turns after which each run is escalated."""
    fired = np.array([min(turns.get(run.key, 0), run.T) for run in pair.W])
    fired = np.array([at if at and (at < run.T or run.abn) else 0 for run, at in zip(pair.W, fired, strict=True)])
    pair.hull()
    result: dict[str, Any] = pair.eval(fired, boot)
    return result


def first_turns(recordings: Recordings, fires: Callable[[str, Any], bool]) -> dict[str, int]:
    """Return for each run the first turn (from 1) that `fires` accepts; runs that it never fires in are left out."""
    found = {}
    for run in recordings.runs.values():
        at = next((number for number, turn in enumerate(run.turns, 1) if fires(run.key, turn)), None)
        if at is not None:
            found[run.key] = at
    return found


def _ours(recordings: Recordings, sensitivity: str = "normal") -> dict[str, int]:
    threshold = risk.model().thresholds[sensitivity]
    return first_turns(
        recordings, lambda _, turn: bool(turn.rules) or (turn.may_fire and risk.chance(turn.counts) >= threshold)
    )


def _report(recordings: Recordings) -> Iterator[str]:
    rows = recordings.rows()
    yield "# Detection, measured"
    yield ""
    yield from _words()
    yield "## Cascade: what escalating is worth"
    yield ""
    yield from _pair_table(recordings)
    yield "## Fitting and checking"
    yield ""
    yield from _split_table(recordings)
    yield "## What `sensitivity` means"
    yield ""
    yield from _sensitivity_table(recordings)
    yield "## Trigger by trigger"
    yield ""
    yield from _trigger_table(recordings, rows)
    yield "## The model"
    yield ""
    yield from _model_table(recordings)
    yield "## The corpus of stuck scenarios"
    yield ""
    yield from _corpus_table()
    yield "## Speed"
    yield ""
    yield from _speed()
    yield "## A hint before paying"
    yield ""
    yield from _hint()
    yield "## Where it loses"
    yield ""
    yield from _losses(recordings, rows)


def _words() -> Iterator[str]:
    yield (
        "Written by `make bench-detection`; nothing here is typed in but the words. The runs were recorded by others "
        "(../shared/data): weak and strong models on the same tasks. Each weak run is played through the plugin's own "
        "events, triggers and policy, as `hermes escalation replay` does; where it would first escalate, the run is "
        "charged up to there, then the strong model's whole cost, and gets the strong model's outcome. `vs coin` is "
        "success minus that of choosing the strong model up front by a coin at the same cost; the intervals are "
        f"95 % of {_BOOT:,} bootstraps over tasks. The *fixed rule* escalates at three errors in a row or three "
        "identical calls."
    )
    yield ""
    yield f"Python {platform.python_version()}, {_cores()} cores."
    yield ""


def _cores() -> int:
    import os  # noqa: PLC0415  # here alone

    return os.cpu_count() or 1


def _pair_table(recordings: Recordings) -> Iterator[str]:
    ours = _ours(recordings)
    fixed = _fixed_rule(recordings.scorer)
    yield "| weak → strong | runs | fail | escalated | precision | recall | turn | vs coin | fixed rule | oracle |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    judged, rule = [], []
    for pair in recordings.pairs:
        result = evaluated(pair, ours, boot=_BOOT)
        other = pair.eval(pair.fire(fixed), _BOOT)
        judged.append(result)
        rule.append(other)
        oracle = pair.oracle()
        best = oracle["success"] - pair.line(oracle["cost_full_waste"], pair.base())
        low, high = result.get("vs_random_ci95", [0.0, 0.0])
        yield (
            f"| {pair.name} | {len(pair.W)} | {1 - pair.base()['sw']:.2f} | {result['fired']:.2f} "
            f"| {_known(result['precision'])} | {_known(result['recall'])} | {_known(result['med_turn'], 0)} "
            f"| {result['vs_random']:+.3f} [{low:+.3f}, {high:+.3f}] | {other['vs_random']:+.3f} | {best:+.3f} |"
        )
    pooled, interval = _pooled(judged)
    other_pooled, other_interval = _pooled(rule)
    below = [r for r in judged if r.get("vs_random_ci95", [0, 0])[1] < 0]
    yield (
        f"| **mean of {len(judged)} pairs** | | | {np.mean([r['fired'] for r in judged]):.2f} | | | "
        f"| **{pooled:+.4f}** [{interval[0]:+.4f}, {interval[1]:+.4f}] "
        f"| {other_pooled:+.4f} [{other_interval[0]:+.4f}, {other_interval[1]:+.4f}] | |"
    )
    yield ""
    yield f"{pooled / other_pooled:.2f} times the fixed rule. Pairs significantly below the coin: {len(below)}."
    yield ""
    yield "![Success and cost of each pair](detection/frontier.png)"
    yield ""
    yield "![What the plugin gains over the coin, by the risk at which it escalates](detection/thresholds.png)"
    yield ""
    rows = recordings.rows()
    difference = float(np.abs(rows.score(shipped(rows)) - [r["vs_random"] for r in judged]).max())
    assert difference < 1e-9, difference  # noqa: S101  # what `fit.py` maximizes is what the scorer scores


def _pooled(results: Sequence[dict[str, Any]]) -> tuple[float, tuple[float, float]]:
    draws = np.mean([result["draws"] for result in results], axis=0)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(np.mean([result["vs_random"] for result in results])), (float(low), float(high))


def _split_table(recordings: Recordings) -> Iterator[str]:
    yield (
        "risk.json was fitted to two thirds of the tasks, chosen by a hash of their names; the last third was not "
        "used for it. Which signs to count, and the rules, were chosen with all tasks in view, so the last two rows "
        "are the fairest: the whole fit done anew on two thirds, judged on the third, for every third and "
        f"{_REPEATS} ways to divide."
    )
    yield ""
    yield "| tasks | vs coin | escalated |"
    yield "|---|---|---|"
    for name, keep in (("fitting part", fitting), ("checking part", checking), ("all", bool)):
        rows = recordings.rows(keep)
        fires = shipped(rows)
        yield f"| {name} | {rows.score(fires).mean():+.4f} | {rows.fired(fires).mean():.2f} |"
    crossed, escalated = _cross_validated(recordings)
    yield (
        f"| fitted anew, {_FOLDS}-fold, mean of {_REPEATS} | {np.mean(crossed):+.4f} "
        f"({min(crossed):+.4f} to {max(crossed):+.4f}) | {escalated:.2f} |"
    )
    rows = recordings.rows()
    rules = by_rules(rows)
    yield f"| the rules alone, nothing fitted | {rows.score(rules).mean():+.4f} | {rows.fired(rules).mean():.2f} |"
    yield ""


def _cross_validated(recordings: Recordings) -> tuple[list[float], float]:
    """Return `vs coin` on held-out tasks for each way to divide them, and the share escalated."""
    means, shares = [], []
    for repeat in range(_REPEATS):
        scores = []
        for fold in range(_FOLDS):
            held_out = partial(_is_in, fold, f"#{repeat}")
            fitted = fit(recordings, lambda task, held_out=held_out: not held_out(task))
            rows = recordings.rows(held_out)
            scores.append(rows.score(fitted.fires(rows)).mean())
            shares.append(rows.fired(fitted.fires(rows)).mean())
        means.append(float(np.mean(scores)))
    return means, float(np.mean(shares))


def _is_in(fold: int, salt: str, task: str) -> bool:
    return part(task, _FOLDS, salt) == fold


def _sensitivity_table(recordings: Recordings) -> Iterator[str]:
    yield (
        "`risk` escalates when the calibrated chance of failing reaches the number in the second column; the rules "
        "stay as they are. Precision is the share of escalated runs that failed (it would be the share in brackets, "
        "were they drawn by chance), all pairs counting alike. Tokens are what the rest of the recorded task would "
        "take, for each escalated run, at four characters a token."
    )
    yield ""
    yield "| sensitivity | risk at least | escalated | precision | success | vs coin | tokens, median |"
    yield "|---|---|---|---|---|---|---|"
    rows = recordings.rows()
    for name in SENSITIVITIES:
        turns = _ours(recordings, name)
        results = [evaluated(pair, turns) for pair in recordings.pairs]
        chance = np.mean([1 - pair.base()["sw"] for pair in recordings.pairs])
        precision = np.mean([r["precision"] for r in results if r["precision"] is not None])
        yield (
            f"| `{name}` | {risk.model().thresholds[name]:.2f} | {np.mean([r['fired'] for r in results]):.0%} "
            f"| {precision:.0%} ({chance:.0%}) | {np.mean([r['success'] for r in results]):.3f} "
            f"| {rows.score(shipped(rows, name)).mean():+.4f} | {_tokens(name):,} |"
        )
    base = [pair.base() for pair in recordings.pairs]
    yield f"| local model alone | | 0% | | {np.mean([b['sw'] for b in base]):.3f} | +0.0000 | 0 |"
    yield f"| stronger model alone | | 100% | | {np.mean([b['ss'] for b in base]):.3f} | +0.0000 | |"
    yield ""


def _tokens(sensitivity: str) -> int:
    policy = replace(Policy(), sensitivity=sensitivity)  # type: ignore[arg-type]  # one of three
    taken = [
        outcome.firing.input_tokens + outcome.firing.output_tokens
        for path in sorted((SHARED / "data" / "trajectories").glob("*.jsonl.gz"))
        for outcome in replay.of_file(path, policy, form="messages")
        if outcome.firing is not None
    ]
    return int(np.median(taken))


def _trigger_table(recordings: Recordings, rows: Rows) -> Iterator[str]:
    yield "Each alone, at default settings; escalated is the mean share of runs over the pairs."
    yield ""
    yield "| trigger | escalated | precision | vs coin |"
    yield "|---|---|---|---|"
    threshold = risk.model().thresholds["normal"]
    ours: list[tuple[str, Callable[[str, Any], bool]]] = [
        (name, lambda _, turn, name=name: name in turn.rules) for name in RULES
    ]
    ours.append(("risk", lambda _, turn: turn.may_fire and risk.chance(turn.counts) >= threshold))
    for name, fires in ours:
        turns = first_turns(recordings, fires)
        results = [evaluated(pair, turns) for pair in recordings.pairs]
        precisions = [r["precision"] for r in results if r["precision"] is not None]
        precision = f"{np.mean(precisions):.0%}" if precisions else "–"
        yield (
            f"| `{name}` | {np.mean([r['fired'] for r in results]):.1%} | {precision} "
            f"| {np.mean([r['vs_random'] for r in results]):+.4f} |"
        )
    together = shipped(rows)
    yield f"| all | {rows.fired(together).mean():.1%} | | {rows.score(together).mean():+.4f} |"
    yield ""
    yield (
        "`provider_error` and `user_request` cannot fire on recordings; `task_timeout` only where times were recorded, "
        "and no such run takes 15 minutes."
    )
    yield ""


def _model_table(recordings: Recordings) -> Iterator[str]:
    model = risk.model()
    yield (
        f"Points add up; the chance of failing is 1 / (1 + exp(−({model.intercept} + {model.slope} × points))). "
        "Without one of the signs, fitted anew and judged like the last but one row above:"
    )
    yield ""
    yield "| sign | points for 1, 2, 3… | vs coin without it |"
    yield "|---|---|---|"
    whole, _ = _cross_validated(recordings)
    for name, points in zip(risk.COUNTS, model.points, strict=True):
        crossed = _without(recordings, name)
        shown = ", ".join(f"{value:g}" for value in points[1:])
        yield f"| `{name}` | {shown} | {crossed:+.4f} |"
    yield f"| (with all) | | {np.mean(whole):+.4f} |"
    yield ""


def _without(recordings: Recordings, sign: str) -> float:
    import fit as fitting_module  # noqa: PLC0415  # its steps are what changes

    steps = fitting_module.STEPS
    fitting_module.STEPS = [step for step in steps if step[0] != risk.COUNTS.index(sign)]
    try:
        return float(np.mean(_cross_validated(recordings)[0]))
    finally:
        fitting_module.STEPS = steps


def _corpus_table() -> Iterator[str]:
    yield (
        "110 scenarios from the test suites of other agents. The first three rows must be right; `text` is degenerate "
        "text; `policy` rows depend on taste (a loop after three calls or after ten?) or on their own configuration, "
        "and are only reported."
    )
    yield ""
    lines = (SHARED / "data" / "stuck_corpus.jsonl").read_text("utf-8").splitlines()
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    wrong: list[str] = []
    for record in map(json.loads, lines):
        firing = replay.of_events(record["events"], Policy(), judge_from=record.get("eval_from", 0))
        is_right = (firing is not None) == (record["expected"] == "stuck")
        tier = record["tier"] + (" (contested)" if record["contested"] else "")
        total[tier] += 1
        right[tier] += is_right
        if not is_right:
            wrong.append(f"{record['id']} ({record['expected'].replace('_', ' ')}, {tier})")
    yield "| tier | right | of |"
    yield "|---|---|---|"
    for tier in sorted(total, key=lambda name: (name == "policy", name)):
        yield f"| `{tier}` | {right[tier]} | {total[tier]} |"
    yield ""
    yield f"Otherwise than its source: {', '.join(wrong)}."
    yield ""


def _speed() -> Iterator[str]:
    started = time.monotonic()
    count = sum(
        1
        for path in sorted((SHARED / "data" / "trajectories").glob("*.jsonl.gz"))
        for _ in replay.of_file(path, Policy(), form="messages")
    )
    yield f"Replaying {count:,} recorded runs took {time.monotonic() - started:.1f} s on {_cores()} cores."
    yield ""
    yield _printed_by("deciding.py")
    yield ""


def _hint() -> Iterator[str]:
    yield (
        "A line to the local model before the stronger one is asked would be free. Recordings cannot tell what it "
        "would have done. Hermes 0.19 gives such hints already, at the second and third failure or "
        "repetition (`tool_loop_guardrails`), so what is escalated has mostly been told. The one local model that "
        "runs on any machine, in the real llama.cpp server, when it did not call the tool that it needed:"
    )
    yield ""
    yield _printed_by("hint.py")
    yield ""
    yield "So there is no hint of ours."
    yield ""


def _printed_by(script: str) -> str:
    done = subprocess.run([sys.executable, str(HERE / script)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _losses(recordings: Recordings, rows: Rows) -> Iterator[str]:
    scores = rows.score(shipped(rows))
    names = [pair.name for pair in recordings.pairs]
    negative = [f"{name} ({score:+.3f})" for name, score in zip(names, scores, strict=True) if score < 0]
    yield f"- Worth less than the coin, though not more than chance explains: {'; '.join(negative) or 'no pair'}."
    fixed = _fixed_rule(recordings.scorer)
    worse = [
        f"{pair.name} ({score:+.3f}, {pair.eval(pair.fire(fixed))['vs_random']:+.3f})"
        for pair, score in zip(recordings.pairs, scores, strict=True)
        if pair.eval(pair.fire(fixed))["vs_random"] > score
    ]
    yield f"- The fixed rule is better (ours, its): {'; '.join(worse) or 'in no pair'}."
    kinds = Counter(
        "with a sign" if any(sum(turn.counts) or turn.rules for turn in run.turns) else "without any"
        for pair in recordings.pairs
        for weak in pair.W
        if (run := recordings.runs[weak.key]).failed
    )
    share = kinds["without any"] / sum(kinds.values())
    yield f"- {share:.0%} of the failing runs show no sign that we count, to the end; nothing here can find them."
    mint = [at for at, name in enumerate(names) if name.startswith("mint")]
    without = rows.score(_without_verdicts(rows))
    yield (
        f"- The four MINT pairs gain {scores[mint].mean():+.3f} on the mean, most of it because that environment says "
        f"“Your answer is wrong.”, which a live session has only where something checks. Were that sign not counted, "
        f"they would gain {without[mint].mean():+.3f}, and all pairs {without.mean():+.4f}."
    )
    chats = [at for at, name in enumerate(names) if name.startswith(("retail", "airline"))]
    yield (
        f"- The eight customer-service pairs gain {scores[chats].mean():+.3f} on the mean, with few runs each (28 to "
        "169) and wide intervals. Much of it rests on the user not knowing what the model asks for; how that carries "
        "over to other chats is not known."
    )
    yield (
        "- `silent_failure` says next to nothing of these recordings, in which no user names a file: what it finds and "
        "what it leaves alone is told by tables of examples (tests/test_detection.py) and one real model "
        "(tests/test_local_model.py), not by numbers."
    )
    yield (
        "- Long coding tasks are one pair of ten runs here: too few to say anything. The model was made not to count "
        "failures over a whole task, since strong coders have many."
    )
    yield (
        "- A restart from nothing is scored. The plugin carries the conversation on, which may be better (work is "
        "kept) or worse (so are wrong turns); these recordings cannot say."
    )


def _without_verdicts(rows: Rows) -> Fires:
    at = risk.COUNTS.index("rejected")
    threshold = risk.model().thresholds["normal"]
    chance = np.array([risk.chance([0 if i == at else n for i, n in enumerate(turn.counts)]) for turn in rows.turns])
    return by_rules(rows) | (np.array([turn.may_fire for turn in rows.turns]) & (chance >= threshold))


def _known(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _plot_frontiers(recordings: Recordings) -> None:
    pairs = recordings.pairs
    height = -(-len(pairs) // _COLUMNS)
    figure, axes = plt.subplots(height, _COLUMNS, figsize=(4.2 * _COLUMNS, 3.4 * height), squeeze=False)
    ours = {name: _ours(recordings, name) for name in SENSITIVITIES}
    for axis, pair in zip(axes.flat, pairs, strict=False):
        _plot_pair(axis, pair, ours)
    for axis in axes.flat[len(pairs) :]:
        axis.axis("off")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", fontsize=11)
    figure.supxlabel("cost of a task, $")
    figure.supylabel("success")
    figure.tight_layout()
    figure.savefig(PLOTS / "frontier.png", dpi=70)
    plt.close(figure)

    rows = recordings.rows()
    thresholds = np.arange(0.5, 0.96, 0.01)
    chance = np.array([risk.chance(turn.counts) for turn in rows.turns])
    may, rules = np.array([turn.may_fire for turn in rows.turns]), by_rules(rows)
    figure, axis = plt.subplots(figsize=(7, 3.6))
    axis.plot(thresholds, [rows.score((may & (chance >= value)) | rules).mean() for value in thresholds])
    for name in SENSITIVITIES:
        at = risk.model().thresholds[name]
        axis.axvline(at, color="grey", linestyle=":")
        axis.text(at, axis.get_ylim()[0], f" {name}", rotation=90, va="bottom")
    axis.set_xlabel("risk at which it escalates")
    axis.set_ylabel("vs coin, mean of the pairs")
    figure.tight_layout()
    figure.savefig(PLOTS / "thresholds.png", dpi=80)
    plt.close(figure)


def _plot_pair(axis: Any, pair: Any, ours: dict[str, dict[str, int]]) -> None:
    base, oracle = pair.base(), pair.oracle()
    axis.plot([base["cw"], base["cs"]], [base["sw"], base["ss"]], "k--", lw=1, label="coin, from weak to strong")
    limits = [evaluated(pair, {run.key: turn for run in pair.W if turn < run.T}) for turn in range(1, 40)]
    axis.plot([r["cost"] for r in limits], [r["success"] for r in limits], ".", color="silver", label="turn limits")
    axis.plot(oracle["cost_full_waste"], oracle["success"], "g*", ms=11, label="oracle")
    fixed = _fixed_rule(sys.modules[type(pair).__module__])
    rule = pair.eval(pair.fire(fixed))
    axis.plot(rule["cost"], rule["success"], "s", color="tab:orange", label="fixed rule")
    points = [evaluated(pair, ours[name]) for name in SENSITIVITIES]
    axis.plot([r["cost"] for r in points], [r["success"] for r in points], "o-", color="tab:blue", ms=5, label="plugin")
    axis.plot(points[1]["cost"], points[1]["success"], "o", color="tab:blue", ms=9, label="plugin, normal")
    axis.set_title(pair.name, fontsize=9)


def _fixed_rule(scorer: ModuleType) -> Any:
    return next(rule for name, rule in scorer.rules() if name == "consec_err>=3 or same_call>=3")


if __name__ == "__main__":
    main()
