"""`make sweep`: a fault of ours at each line of ours that a turn with an escalation runs, one at a time; some minutes.

Wherever it is: the turn is answered, what Hermes keeps of it is valid for the next, nobody waits, what was paid for is in
the journal and was asked for once, and somebody hears of the fault. `test_guard.py` has what CI runs of it.
"""

from __future__ import annotations

import linecache
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import hermes_fallback
from tests.test_escalation import rows
from tests.test_faults import fault_of, history
from tests.test_guard import failing_at, traced
from tests.test_money import stuck_each_task
from tests.world import ISSUE_BLOCK, Screen, World

OURS = str(Path(hermes_fallback.__file__).parent)
BLOCKS = {
    "without a limit": ISSUE_BLOCK,
    "with a budget": f"{ISSUE_BLOCK}    budget: {{per_task_usd: 5, per_session_usd: 5, per_day_usd: 500}}\n",
    "with types and a secret": f"{ISSUE_BLOCK}  task_types: [{{name: any, match: {{message: stuck}}}}]\n"
    "  handoff: {never_send: [top-secret]}\n",
}
PATIENCE_SECONDS = 5.0

# Where a fault cannot be made good: a lock that was just taken, or is about to be given back; how a thread begins, and
# how it says that it ends.
_OUT_OF_REACH = frozenset(
    {"try:", "_one_at_a_time.release()", 'last: tuple[str, Any] = ("end", None)', "self._queue.put(last)"}
)

# What litellm cannot tell, it says by any exception, and so do a tool's broken schema and a stream that is closed: these
# take a fault for that.
_TAKE_ANYTHING = frozenset({"lazy_litellm.py", "prices.py", "replies.py"})
_TAKE_ANYTHING_THERE = frozenset({"abilities", "_call", "_put_together"})


@contextmanager
def lines_run() -> Iterator[list[tuple[CodeType, int]]]:
    """Yield the functions and lines of ours that run meanwhile, in whatever thread, in the order of their first time."""
    found: dict[tuple[CodeType, int], None] = {}

    def in_function(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        if event == "line":
            found.setdefault((frame.f_code, frame.f_lineno))
        return in_function

    def trace(frame: FrameType, _event: str, _: Any) -> Callable[..., Any] | None:
        return in_function if frame.f_code.co_filename.startswith(OURS) else None

    lines: list[tuple[CodeType, int]] = []
    with traced(trace):
        yield lines
    lines += [one for one in found if _source(*one) not in _OUT_OF_REACH]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_a_fault_at_every_line(world: World, caplog: pytest.LogCaptureFixture, block: str) -> None:
    """See the file's docstring."""
    world.configure(block)
    world.local.script = stuck_each_task
    world.ask("get stuck")
    with lines_run() as lines:
        assert world.ask("get stuck")["final_response"] == "paid answer"
    wrong = [f"{_place(*line)}: {what}" for line in lines for what in _wrong_after(world, caplog, *line)]
    print(f"{len(lines)} lines, {len(wrong)} of them wrong", *wrong, sep="\n")
    assert len(lines) > 1000
    assert wrong == []
    assert world.ask("get stuck")["final_response"] == "paid answer"


def _wrong_after(world: World, caplog: pytest.LogCaptureFixture, code: CodeType, line: int) -> Iterator[str]:
    """Say what is wrong with a turn in which this line fails the first time that it runs."""
    caplog.clear()
    world.local.requests.clear()
    world.paid.requests.clear()
    agent, before, began = world.agent(screen=Screen()), len(rows()), time.monotonic()
    with failing_at(code, line, most=1) as times:
        result = world.ask("get stuck", agent=agent)
    if time.monotonic() - began > PATIENCE_SECONDS:
        yield f"{time.monotonic() - began:.0f} s"
    if result["final_response"] not in {"local answer", "paid answer"}:
        yield f"the answer is {result['final_response']!r}"
    if (fault := fault_of(history(result))) is not None:
        yield f"the conversation is broken: {fault}"
    if len(world.paid.requests) > 1:
        yield f"asked {len(world.paid.requests)} times"
    if len(world.paid.requests) > len(rows()) - before:
        yield "a paid call is not in the journal"
    may_be_taken = Path(code.co_filename).name in _TAKE_ANYTHING or code.co_name in _TAKE_ANYTHING_THERE
    may_be_taken = may_be_taken or _source(code, line) == "close()"
    if times and not may_be_taken and not any(map(_is_heard, caplog.records)):
        yield "nobody hears of it"


def _is_heard(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING and "injected at line" in logging.Formatter().format(record)


def _source(code: CodeType, line: int) -> str:
    return linecache.getline(code.co_filename, line).partition("  #")[0].strip()


def _place(code: CodeType, line: int) -> str:
    return f"{Path(code.co_filename).name}:{line} {code.co_name}"
