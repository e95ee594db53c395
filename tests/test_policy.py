"""The decision as tables of events: who answers the next call, why, and on what evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import pytest

from hermes_fallback.config import Policy
from hermes_fallback.events import (
    UNCHANGED,
    CallFailed,
    Escalated,
    EscalationFailed,
    EscalationRequested,
    Event,
    ReplyAccepted,
    ReplyInvalid,
    SwitchedAuto,
    SwitchedOff,
    TierReplied,
    ToolFailed,
    ToolSucceeded,
    TurnEnded,
    TurnStarted,
)
from hermes_fallback.ledger import MAX_EVENTS, Ledger
from hermes_fallback.policy import COOLDOWN_SECONDS, Decision, Escalate, Stay, decide

START = TurnStarted(0.0, "turn", "local")
ENDED = TurnEnded(0.0)
ASKED = EscalationRequested(0.0)
OFF = SwitchedOff(0.0)
AUTO = SwitchedAuto(0.0)
ACCEPTED = ReplyAccepted(0.0)


def failed(
    call: str, kind: str | None = "not found", *, tool: str = "read", at: float = 0.0, **more: Any
) -> ToolFailed:
    """A failed call; `kind` is what its error is like."""
    return ToolFailed(at, tool, call, more.pop("result", f"error of {call}"), "file not found", kind, **more)


def command(call: str, result: str = "same") -> ToolFailed:
    """A command with a non-zero exit status."""
    return failed(call, None, tool="terminal", result=result, command=True)


def ok(call: str, result: str = "same", *, tool: str = "read") -> ToolSucceeded:
    """A call that gave a result."""
    return ToolSucceeded(0.0, tool, call, result)


def invalid(*, ends_turn: bool = False) -> ReplyInvalid:
    """A useless reply."""
    return ReplyInvalid(0.0, "tool_call_as_text" if ends_turn else "empty", ends_turn)


def down(*, ends_turn: bool = False) -> CallFailed:
    """The local endpoint's error."""
    return CallFailed(0.0, "context_overflow" if ends_turn else "overloaded", ends_turn)


def up(tier: int = 0, trigger: Any = "user_request", evidence: tuple[Event, ...] = (), at: float = 0.0) -> Escalated:
    """A tier took over."""
    return Escalated(at, tier, f"tier {tier}", trigger, evidence, 1)


REPLIED = TierReplied(0.0, 0)
THREE_FAILURES = (failed("a"), failed("b"), failed("c"))


@dataclass(frozen=True)
class Case:
    """What happened, and what must follow from it."""

    id: str
    events: tuple[Event, ...]
    expected: Decision
    policy: Policy = Policy()
    tiers: int = 1
    now: float = 1.0


def case(id_: str, *events: Any, expected: Decision | None = None, **more: Any) -> Case:
    """A case of a running turn; without `expected`, the local model answers."""
    return Case(id_, (START, *events), expected or Stay(), **more)


F: Final = "repeated_tool_failure"
INVALID: Final = "invalid_output"
PROGRESS: Final = "no_progress"
ERROR: Final = "provider_error"
ASK: Final = "user_request"
TIME: Final = "task_timeout"

CASES = [
    case("nothing happened"),
    case("third failure of a kind", *THREE_FAILURES, expected=Escalate(0, F, THREE_FAILURES)),
    case("two failures of a kind", *THREE_FAILURES[:2]),
    case("three failures of three kinds", failed("a", "x"), failed("b", "y"), failed("c", "z")),
    case("same kind, different tools", failed("a", tool="x"), failed("b", tool="y"), failed("c", tool="z")),
    case(
        "same call, different errors",
        *(same := (failed("a", "x"), failed("a", "y"), failed("a", "z"))),
        expected=Escalate(0, F, same),
    ),
    case("unknown kinds are not alike", failed("a", None), failed("b", None), failed("c", None)),
    case(
        "failures need not be in a row",
        failed("a"), ok("x", "1"), failed("b"), ok("y", "2"), failed("c"),
        expected=Escalate(0, F, THREE_FAILURES),
    ),
    case("command fails the same way", *[command("t")] * 3, expected=Escalate(0, F, (command("t"),) * 3)),
    case("command fails another way each time", *(command("t", str(n)) for n in range(5))),
    case("edit between two tests", command("t"), ok("w", "1", tool="patch"),
         command("t"), ok("v", "2", tool="patch"), command("t")),
    case("one attempt allowed", failed("a"), policy=Policy(max_local_attempts=1), expected=Escalate(0, F, (failed("a"),))),
    case("own limit", *THREE_FAILURES, policy=Policy(after={F: 4})),
    case("not asked for", *THREE_FAILURES, policy=Policy(trigger_on=(INVALID,))),
    case("disabled", *THREE_FAILURES, ASKED, policy=Policy(enabled=False)),
    case("final garbage", invalid(ends_turn=True), expected=Escalate(0, INVALID, (invalid(ends_turn=True),))),
    case("one empty reply", invalid()),
    case("three empty replies", *[invalid()] * 3, expected=Escalate(0, INVALID, (invalid(),) * 3)),
    case("three with good ones between", *(invalid(), ACCEPTED) * 3, expected=Escalate(0, INVALID, (invalid(),) * 3)),
    case("before Hermes gives up", *[invalid()] * 3, policy=Policy(max_local_attempts=9),
         expected=Escalate(0, INVALID, (invalid(),) * 3)),
    case("patience with good ones between", *(invalid(), ACCEPTED) * 3, policy=Policy(max_local_attempts=9)),
    case("same result three times", *[ok("a")] * 3, expected=Escalate(0, PROGRESS, (ok("a"),) * 3)),
    case("new result each time", *(ok("a", str(n)) for n in range(9))),
    case("something new between", ok("a"), ok("b"), ok("a"), ok("c"), ok("a"), ok("d"), ok("a")),
    case("cycle of two", *(ok("a"), ok("b")) * 2, ok("a"), expected=Escalate(0, PROGRESS, (ok("a"),) * 3)),
    case("unchanged says the same", ok("a", "1"), ok("a", UNCHANGED), ok("a", UNCHANGED),
         expected=Escalate(0, PROGRESS, (ok("a", "1"), ok("a", UNCHANGED), ok("a", UNCHANGED)))),
    case("own limit of progress", *[ok("a")] * 3, policy=Policy(after={PROGRESS: 4})),
    case("endpoint errors in a row", *[down()] * 3, expected=Escalate(0, ERROR, (down(),) * 3)),
    case("endpoint recovers", down(), down(), ACCEPTED, down()),
    case("endpoint gives up at once", down(ends_turn=True), expected=Escalate(0, ERROR, (down(ends_turn=True),))),
    case("time is over", now=900.0, expected=Escalate(0, TIME, (START,))),
    case("time is not over", now=899.9),
    case("time begins anew on a tier", up(at=800.0), now=1000.0, tiers=2, expected=Escalate(0, ASK, (), up(at=800.0))),
    case("asked", ASKED, expected=Escalate(0, ASK, (ASKED,))),
    Case("asked while idle", (ASKED, START), Escalate(0, ASK, (ASKED,))),
    Case("asked for a task that is over", (ASKED, ENDED), Stay()),
    case("asked while off", OFF, ASKED, expected=Escalate(0, ASK, (ASKED,))),
    case("off", OFF, *THREE_FAILURES),
    case("auto again", OFF, AUTO, *THREE_FAILURES, expected=Escalate(0, F, THREE_FAILURES)),
    case("held to the end of the task", up(), REPLIED, ok("a"), REPLIED, expected=Escalate(0, ASK, (), up())),
    Case("not held in the next task", (up(), START), Stay()),
    Case("held for the session", (up(), START), Escalate(0, ASK, (), up()), Policy(hold="session")),
    case("held for two calls", up(), REPLIED, policy=Policy(hold=2), expected=Escalate(0, ASK, (), up())),
    case("two calls are over", up(), REPLIED, REPLIED, policy=Policy(hold=2)),
    case("old evidence is used up", *THREE_FAILURES, up(), REPLIED, failed("d"), policy=Policy(hold=1)),
    case("off ends the hold", up(), REPLIED, OFF),
    case("stuck on a tier", up(), *THREE_FAILURES, tiers=2, expected=Escalate(1, F, THREE_FAILURES)),
    case("stuck on the last tier", up(), *THREE_FAILURES, expected=Escalate(0, ASK, (), up())),
    case("asked on a tier", up(), ASKED, tiers=2, expected=Escalate(1, ASK, (ASKED,))),
    case("first tier failed", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=False), tiers=2,
         expected=Escalate(1, F, THREE_FAILURES)),
    case("only tier failed for good", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=False), now=10_000.0,
         policy=Policy(task_timeout_seconds=1e9)),
    case("only tier failed for a while", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=True)),
    case("while is over", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=True), now=0.5 + COOLDOWN_SECONDS,
         expected=Escalate(0, F, THREE_FAILURES)),
    case("asked after a failure", EscalationFailed(0.5, 0, "", transient=False), ASKED,
         expected=Escalate(0, ASK, (ASKED,))),
    case("garbage stays garbage after a tier failed", invalid(ends_turn=True),
         EscalationFailed(0.5, 0, "", transient=False), tiers=2,
         expected=Escalate(1, INVALID, (invalid(ends_turn=True),))),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_decision(case: Case) -> None:
    """The decision, with trigger and evidence, follows from the events alone."""
    assert decide(case.events, case.policy, tiers=case.tiers, now=case.now) == case.expected


def test_ledger_keeps_what_the_next_task_needs() -> None:
    """A new turn lets go of the last one, but not of the user's words nor of who had the task."""
    ledger = Ledger()
    ledger.append(START, failed("a"), up(at=1.0), REPLIED, replace(OFF, at=2.0), ENDED, replace(ASKED, at=3.0), START)
    assert ledger.events() == (up(at=1.0), replace(OFF, at=2.0), replace(ASKED, at=3.0), START)


def test_request_of_a_finished_task_is_not_carried_over() -> None:
    """An /escalate that could not be done in its task does not spend money in the next one."""
    ledger = Ledger()
    ledger.append(START, ASKED, ENDED, START)
    assert ledger.events() == (START,)


def test_ledger_is_bounded_and_keeps_landmarks() -> None:
    """However long a task gets, memory stays the same and the landmarks are there."""
    ledger = Ledger()
    ledger.append(START, ASKED)
    for number in range(100_000):
        ledger.append(ok("a", str(number)))
    events = ledger.events()
    assert events[:2] == (START, ASKED)
    assert len(events) <= MAX_EVENTS + 2
    assert events[-1] == ok("a", "99999")
    assert len(ledger._events) <= 2 * MAX_EVENTS  # noqa: SLF001
