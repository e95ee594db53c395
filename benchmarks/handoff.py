"""How many input tokens trimming saves where the local model is stuck: recorded runs, cut where a trigger fires.

    .venv/bin/python benchmarks/handoff.py [FOLDER WITH *.jsonl.gz]

Each run is replayed as events, as `adapter.py` makes them, until a trigger of the default policy fires (by tools alone:
there are no clocks and no endpoints in a recording). The conversation up to there is built with and without trimming;
tokens are litellm's count for gpt-4o, without a system prompt, which no recording has. Redaction is off on both sides.

Three corrections. A result that is recorded as an error is worded as Hermes words one, `{"error": …}`. A long result is
recorded with its middle left out, so the hash of the whole is put behind it, and results that differ stay different.
Where the recording has a call's code in the assistant's words too, as no Hermes conversation has, the words go without
it on both sides.

The last column is the check that trimming does no harm: of the whole runs in which no result came twice, no call was
made twice, and no tool failed in one way three times, how many were changed. It must be none.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import statistics
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

from hermes_fallback import fingerprint, handoff  # noqa: E402  # found through the line above
from hermes_fallback.config import Handoff, Policy  # noqa: E402
from hermes_fallback.events import Event, ToolFailed, ToolSucceeded, TurnEnded, TurnStarted  # noqa: E402
from hermes_fallback.policy import Escalate, decide  # noqa: E402

DEFAULT_FOLDER = ROOT / ".." / "shared" / "data" / "trajectories"
SAMPLE = 300
"""Stuck runs measured per file; chosen with a fixed seed, so that two runs of this measure the same."""

WHOLE = Handoff(trim=False, redact="off")
TRIMMED = Handoff(trim=True, redact="off")

Message = dict[str, Any]
Count = Callable[[Sequence[Message]], int]


@dataclass(frozen=True)
class Measured:
    """One stuck run: the trigger, and the tokens of its handoff without and with trimming."""

    trigger: str
    whole: int
    trimmed: int

    @property
    def saved(self) -> float:
        """The share of the tokens that trimming saves."""
        return 1 - self.trimmed / self.whole


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DEFAULT_FOLDER)
    folder = parser.parse_args().folder
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        sys.exit(f"{folder}: no *.jsonl.gz there; name the folder with the recorded runs")
    count = token_counter()
    print("| source | runs | stuck | measured | tokens whole | trimmed | saved: median | quartiles | harmed |")
    print("|---|---|---|---|---|---|---|---|---|")
    all_measured: list[Measured] = []
    for file in files:
        all_measured += row(file, count)
    by_trigger: defaultdict[str, list[Measured]] = defaultdict(list)
    for one in all_measured:
        by_trigger[one.trigger].append(one)
    print(f"| **all** | | | {len(all_measured)} | {savings(all_measured)} | |")
    for trigger, measured in sorted(by_trigger.items()):
        print(f"| {trigger} | | | {len(measured)} | {savings(measured)} | |")


def row(file: Path, count: Count) -> list[Measured]:
    """Measure one file and print its row."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        runs = [list(conversation(json.loads(line)["messages"])) for line in lines]
    stuck = [found for run in runs if (found := cut_where_stuck(run)) is not None]
    sample = random.Random(23).sample(stuck, min(SAMPLE, len(stuck)))  # noqa: S311  # a sample, not a secret
    measured = [
        Measured(trigger, count(built(messages, WHOLE)), count(built(messages, TRIMMED)))
        for trigger, messages in sample
    ]
    new = [run for run in runs if not repeats(run)]
    harmed = sum(built(run, WHOLE) != built(run, TRIMMED) for run in new)
    name = file.name.removesuffix(".jsonl.gz")
    print(f"| {name} | {len(runs)} | {len(stuck)} | {len(measured)} | {savings(measured)} | {harmed} of {len(new)} |")
    return measured


def savings(measured: Sequence[Measured]) -> str:
    """Four cells: the medians of the tokens, the median saving, its quartiles."""
    if len(measured) < 2:
        return "– | – | – | –"
    low, middle, high = statistics.quantiles([one.saved for one in measured], n=4, method="inclusive")
    whole, trimmed = (
        statistics.median(tokens) for tokens in zip(*[(m.whole, m.trimmed) for m in measured], strict=True)
    )
    return f"{whole:,.0f} | {trimmed:,.0f} | {middle:.1%} | {low:.1%} to {high:.1%}"


def built(messages: Sequence[Message], options: Handoff) -> list[Message]:
    """Return the messages of the handoff, which is asked for as `escalation.py` does."""
    built: list[Message] = handoff.build({"messages": messages}, note=handoff.note("it is stuck"), options=options)[
        "messages"
    ]
    return built


def conversation(recorded: Sequence[Mapping[str, Any]]) -> Iterator[Message]:
    """Yield a recording's messages as Hermes keeps them; the tools of tau2's simulated user are not ours to see."""
    for message in recorded:
        if message.get("requestor") == "user" or (message["role"] == "user" and message.get("tool_calls")):
            continue
        if message["role"] == "assistant" and message.get("tool_calls"):
            yield {**message, "content": without_code(message.get("content") or "", message["tool_calls"])}
        elif message["role"] == "tool":
            text = message["content"]
            if message["len"] > len(text):
                text = f"{text}\n({message['sha']})"
            # As Hermes words it.
            yield {**message, "content": json.dumps({"error": text}) if message["error"] else text}
        else:
            yield dict(message)


def without_code(words: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """Take what the calls ask for out of the words beside them."""
    for call in calls:
        for value in json_object(call["function"]["arguments"]).values():
            if isinstance(value, str) and value.strip():
                words = words.replace(value.strip(), "")
    return re.sub(r"```\w*\s*```|<execute>\s*</execute>|<solution>\s*</solution>", "", words).strip()


def json_object(text: str) -> Mapping[str, Any]:
    """Read arguments; what is no object has nothing in it."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def cut_where_stuck(messages: Sequence[Message]) -> tuple[str, list[Message]] | None:
    """Return the trigger that fires first, and the conversation up to there; None when none does."""
    events: list[Event] = []
    calls: dict[str, tuple[str, str]] = {}
    for at, message in enumerate(messages):
        match message["role"]:
            case "user":
                events += [*([TurnEnded(0.0)] if events else []), TurnStarted(0.0, str(at), "local")]
            case "tool":
                events.append(event_of(message, *calls.get(message["tool_call_id"], (message["name"], ""))))
            case "assistant":
                calls |= {
                    call["id"]: (call["function"]["name"], call["function"]["arguments"])
                    for call in message.get("tool_calls") or ()
                }
        has_more_results = at + 1 < len(messages) and messages[at + 1]["role"] == "tool"
        if message["role"] == "tool" and not has_more_results:
            decision = decide(events, Policy(), tiers=1, now=0.0)
            if isinstance(decision, Escalate):
                return decision.trigger, list(messages[: at + 1])
    return None


def event_of(message: Message, tool: str, arguments: str) -> Event:
    """Make the event that the adapter makes of a tool's result."""
    call = fingerprint.call_fingerprint(tool, json_object(arguments) or arguments)
    result = fingerprint.digest(message["sha"])
    if not message["error"]:
        return ToolSucceeded(0.0, tool, call, result)
    text = json.loads(message["content"])["error"]
    is_command = tool in {"bash", "execute", "execute_bash", "execute_sql"}
    return ToolFailed(0.0, tool, call, result, "an error", fingerprint.error_kind(text), command=is_command)


def repeats(messages: Sequence[Message]) -> bool:
    """Tell whether any result came twice, any call was made twice, or any tool failed in one way three times."""
    failures = Counter(
        (message["name"], fingerprint.error_kind(json.loads(message["content"])["error"]))
        for message in messages
        if message["role"] == "tool" and message["error"]
    )
    if any(count >= Policy().max_local_attempts for (_, kind), count in failures.items() if kind is not None):
        return True
    results = [message["sha"] for message in messages if message["role"] == "tool"]
    calls = [
        (call["function"]["name"], call["function"]["arguments"])
        for message in messages
        for call in message.get("tool_calls") or ()
    ]
    return len(set(results)) < len(results) or len(set(calls)) < len(calls)


def token_counter() -> Count:
    """Return litellm's counter for gpt-4o, whose vocabulary litellm brings along."""
    warnings.simplefilter("ignore")
    import litellm  # noqa: PLC0415, TID251  # after its price map was told to stay on this machine

    return lambda messages: int(litellm.token_counter(model="gpt-4o", messages=list(messages)))


if __name__ == "__main__":
    main()
