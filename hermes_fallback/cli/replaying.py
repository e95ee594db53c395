"""`hermes escalation replay`: its options, where recordings come from, and what is printed of them."""

from __future__ import annotations

import argparse
import json
import sqlite3
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from .. import config as configuration
from .. import explain, host, prices, replay
from ..config import Config, ConfigError, Policy, Primary, Tier
from ..replay import Firing, Format, Outcome
from . import period

HELP = "say where recorded conversations would have been escalated, why, and what that would have cost"

_GOOD, _FAULTS = 0, 1


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="FILE", help="JSONL, packed by gzip or not; none: your Hermes sessions")
    add("--format", choices=("messages", "events"), default="messages", help="what a line of a FILE holds (messages)")
    add("--since", type=period.hours, default=30 * 24, metavar="30d", help="how old sessions may be: 12h, 30d, 8w")
    add("--sensitivity", choices=("low", "normal", "high"), help="instead of the configured one")
    add("--config", type=Path, metavar="YAML", help="a file with a model_routing block, instead of Hermes's")
    add(
        "--tier",
        type=_tier,
        metavar="PROVIDER/MODEL",
        help="whose prices to reckon with, instead of the first configured one",
    )
    add("--json", action="store_true", help="one object a line, for scripts")


def run(args: argparse.Namespace) -> int:
    """Print what a replay finds; return the exit status: 1 when something could not be read."""
    try:
        policy, tier, primary = _configured(args)
    except (ConfigError, OSError, yaml.YAMLError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return _FAULTS
    except ModuleNotFoundError as error:
        message = f"no FILE is given, and your Hermes sessions cannot be read here ({error}); use Hermes's own Python"
        print(f"replay: {message}", file=sys.stderr)
        return _FAULTS
    form = cast("Format", args.format)
    show: Callable[[Outcome], None] = _Lines(form) if args.json else (table := _Table(tier))
    faults = 0
    with _progress(silent=args.json and sys.stdout.isatty()) as count:
        for outcome in _outcomes(args, policy, form, primary):
            count()
            if outcome.fault is None:
                show(outcome)
            else:
                faults += 1
                print(explain.plain(f"replay: {outcome.name}: {outcome.fault}; skipped"), file=sys.stderr)
    if not args.json:
        table.close()
    return _FAULTS if faults else _GOOD


def _tier(text: str) -> Tier:
    provider, _, model = text.partition("/")
    if not model:
        raise argparse.ArgumentTypeError(f"“{text}” names no model; write for example openai/gpt-5.4")
    return Tier(provider, model)


def _configured(args: argparse.Namespace) -> tuple[Policy, Tier | None, Primary | None]:
    """Return the policy to replay by, the tier whose prices count, and the model whose sessions do."""
    config: Config | None = None
    if args.config is not None:
        block = yaml.safe_load(args.config.read_text("utf-8"))
        inner = block.get("model_routing", block) if isinstance(block, dict) else block
        config = configuration.parse(inner, source=str(args.config))
    elif not args.files:
        block, host_has_chain = host.read_config()
        config = None if block is None else configuration.parse(block, host_has_chain=host_has_chain)
    policy = config.policy if config is not None else Policy()
    if args.sensitivity is not None:
        policy = replace(policy, sensitivity=args.sensitivity)
    if config is None:
        return policy, args.tier, None
    priced = next((tier for tier in config.ladder if tier.is_litellm), None)
    return policy, args.tier or priced, config.primary


def _outcomes(args: argparse.Namespace, policy: Policy, form: Format, primary: Primary | None) -> Iterator[Outcome]:
    if not args.files:
        try:
            yield from _of_sessions(args, policy, primary)
        except sqlite3.Error as error:
            yield Outcome(0, "your Hermes sessions", fault=f"state.db in Hermes's home cannot be read ({error})")
    for path in args.files:
        try:
            yield from replay.of_file(path, policy, form=form)
        except (OSError, EOFError, zlib.error) as error:
            yield Outcome(0, str(path), fault=getattr(error, "strerror", None) or str(error))


def _of_sessions(args: argparse.Namespace, policy: Policy, primary: Primary | None) -> Iterator[Outcome]:
    for session in host.recorded_sessions(hours=args.since):
        # What another model did says nothing of this one.
        if primary is not None and not primary.is_named(session.model):
            continue
        firings = replay.of_messages(session.messages, policy, prompt_tokens=session.prompt_tokens)
        first = next(firings, None)
        yield Outcome(0, session.id, first)
        # Each task of a session may be escalated for itself.
        yield from (Outcome(0, session.id, firing) for firing in firings)


class _Lines:
    """One JSON object a line."""

    def __init__(self, form: Format) -> None:
        self._form = form

    def __call__(self, outcome: Outcome) -> None:
        firing = outcome.firing
        at = None if firing is None else firing.at
        trigger = None if firing is None else firing.trigger
        if self._form == "events":
            print(json.dumps({"id": outcome.name, "fires_at": at, "trigger": trigger}))
            return
        shown: dict[str, Any] = {"run": outcome.name, "fired_turn": at, "trigger": trigger}
        shown["evidence"] = None if firing is None else firing.reason
        if firing is not None:
            shown |= {"input_tokens": firing.input_tokens, "output_tokens": firing.output_tokens}
        print(json.dumps(shown))


class _Table:
    """A line for each escalation, and the sums below."""

    def __init__(self, tier: Tier | None) -> None:
        self._tier = tier
        self._input = self._output = 0
        self._names: set[str] = set()
        self._escalated: set[str] = set()
        self._triggers: Counter[str] = Counter()

    def __call__(self, outcome: Outcome) -> None:
        self._names.add(outcome.name)
        firing = outcome.firing
        if firing is None:
            return
        self._escalated.add(outcome.name)
        self._triggers[firing.trigger] += 1
        self._input += firing.input_tokens
        self._output += firing.output_tokens
        told = f"{outcome.name}  turn {firing.at}  {firing.trigger}: {firing.reason}{self._cost_of(firing)}"
        print(explain.plain(told))

    def close(self) -> None:
        """Print the sums."""
        runs, fired = len(self._names), len(self._escalated)
        share = f" ({fired / runs:.0%})" if runs else ""
        noun = "conversation" if runs == 1 else "conversations"
        print(f"\n{runs:,} {noun}, {fired:,} would have been escalated{share}")
        for trigger, count in self._triggers.most_common():
            print(f"  {count:>6,}  {trigger}")
        if self._input:
            cost = self._price(self._input, self._output)
            print(f"about {explain.usage(self._input, self._output, cost)}{self._whose()}")

    def _cost_of(self, firing: Firing) -> str:
        if not firing.input_tokens:
            return ""
        cost = self._price(firing.input_tokens, firing.output_tokens)
        return f" (about {explain.usage(firing.input_tokens, firing.output_tokens, cost)})"

    def _price(self, input_tokens: int, output_tokens: int) -> float | None:
        tier = self._tier
        return None if tier is None else prices.price(tier.provider, tier.model, input_tokens, output_tokens)

    def _whose(self) -> str:
        if self._tier is None:
            return "; name a model for its price: --tier openai/gpt-5.4"
        return f" with {self._tier.name}"


def _progress(*, silent: bool) -> Any:
    """Return a context whose value is called once for each conversation; a bar where somebody watches."""
    if silent or not sys.stderr.isatty():
        return nullcontext(lambda: None)
    # Imported here: only this command needs it, and only on a terminal.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress, SpinnerColumn, TextColumn  # noqa: PLC0415

    class Bar(Progress):
        def __enter__(self) -> Any:
            super().__enter__()
            task = self.add_task("", total=None)
            return lambda: self.advance(task)

    columns = (SpinnerColumn(), TextColumn("{task.completed:,} conversations"))
    return Bar(*columns, console=Console(stderr=True), transient=True)
