"""The decision as tables of events: who answers the next call, why, and on what evidence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes_fallback import ledger as ledger_module
from hermes_fallback.config import DEFAULT_TRIGGERS, Policy
from hermes_fallback.events import (
    UNCHANGED,
    CallFailed,
    ConsentGiven,
    Escalated,
    EscalationFailed,
    EscalationRequested,
    Event,
    Index,
    ReplyAccepted,
    ReplyInvalid,
    SelfChecked,
    SwitchedAuto,
    SwitchedOff,
    TierReplied,
    ToolFailed,
    ToolSucceeded,
    TurnEnded,
    TurnStarted,
    TypeMatched,
    UserAnswered,
    index_of,
)
from hermes_fallback.fingerprint import Fingerprint, digest
from hermes_fallback.ledger import EARLIER_SECONDS, MAX_EARLIER, MAX_EVENTS, SPARE, Ledger
from hermes_fallback.policy import COOLDOWN_SECONDS, Decision, Escalate, Stay, decide, holding, is_off
from hermes_fallback.triggers import OF_ANSWERS, may_be_replaced

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
    result = digest(more.pop("result", f"error of {call}"))
    like = None if kind is None else digest(kind)
    return ToolFailed(at, tool, digest(call), result, "file not found", like, **more)


def command(call: str, result: str = "same") -> ToolFailed:
    """A command with a non-zero exit status."""
    return failed(call, None, tool="terminal", result=result, command=True)


def ok(call: str, result: str | Fingerprint = "same", *signs: Any, tool: str = "read") -> ToolSucceeded:
    """A call that gave a result."""
    return ToolSucceeded(0.0, tool, digest(call), digest(result) if isinstance(result, str) else result, signs)


def said(*signs: Any) -> ReplyAccepted:
    """The model's answer to the user."""
    return ReplyAccepted(0.0, ends_turn=True, signs=signs)


def asked_for(*signs: Any) -> TurnStarted:
    """A user's message."""
    return TurnStarted(0.0, "turn", "local", signs)


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
# What is told about one rule is told without `risk`, which adds its evidence up with others'.
RULES = Policy(trigger_on=tuple(name for name in DEFAULT_TRIGGERS if name != "risk"))
THREE_FAILURES = (failed("a"), failed("b"), failed("c"))


@dataclass(frozen=True)
class Case:
    """What happened, and what must follow from it."""

    id: str
    events: tuple[Event, ...]
    expected: Decision
    policy: Policy = RULES
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
SILENT: Final = "silent_failure"
RISK: Final = "risk"

READ, WRITE, DONE = asked_for("wants_content"), asked_for("wants_change"), said("claims_done")
AGAIN, REFRAIN = asked_for("wants_reruns"), asked_for("wants_refrain")
REPETITION = ReplyInvalid(0.0, "repetition", ends_turn=True)

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
    case("command fails as often as the user wants it run", AGAIN, *[command("t")] * 5),
    case("call that the user wants again and again fails", AGAIN, *THREE_FAILURES, expected=Escalate(0, F, THREE_FAILURES)),
    case("same result as often as the user wants it", AGAIN, *[ok("t")] * 9, policy=Policy()),
    case("signs of trouble as often as the user wants them", AGAIN, *[command("t")] * 9, policy=Policy()),
    case("the same words", REPETITION, expected=Escalate(0, INVALID, (REPETITION,))),
    case("the same words as often as the user wants them", REFRAIN, REPETITION),
    case("the same words, though another thing is wanted again", AGAIN, REPETITION, expected=Escalate(0, INVALID, (REPETITION,))),
    case("command that fails more often than anybody wants", AGAIN, *[command("t")] * 24, expected=Escalate(0, F, (command("t"),) * 24)),
    case("same result more often than anybody wants", AGAIN, *[ok("t")] * 25, expected=Escalate(0, PROGRESS, (ok("t"),) * 4)),
    case("command fails another way each time", *(command("t", str(n)) for n in range(5))),
    case("edit between two tests", command("t"), ok("w", "1", "changes", tool="patch"),
         command("t"), ok("v", "2", "changes", tool="patch"), command("t")),
    case("look between two tests", command("t"), ok("w", "1", "reads"), command("t"), ok("v", "2", "reads"), command("t"),
         expected=Escalate(0, F, (command("t"),) * 3)),
    case("between two tests, what may have changed something", *[one for n in "abcde" for one in (command("t"), ok(n))]),
    case("between many tests, what may have changed something", *[one for n in "abcde" for one in (command("t"), ok(n))], command("t"),
         expected=Escalate(0, F, (command("t"),) * 6)),
    case("an edit takes the doubt with it", command("t"), ok("w"), ok("v", "2", "changes", tool="patch"), *[command("t")] * 3,
         expected=Escalate(0, F, (command("t"),) * 3)),
    case("a note between two tests", *[one for n in "abc" for one in (ok(n, tool="todo"), command("t"))],
         expected=Escalate(0, F, (command("t"),) * 3)),
    case("another tool that succeeds", *[one for n in "abc" for one in (*(ok(n + str(m), tool="w") for m in range(9)), failed(n))],
         expected=Escalate(0, F, THREE_FAILURES)),
    case("an edit after that", *[one for n in "abcde" for one in (command("t"), ok(n))], ok("v", "2", "changes", tool="patch"), command("t")),
    case("failures far apart", *[one for n in "abc" for one in (*(ok(n + str(m)) for m in range(8)), failed(n))]),
    case("failures not so far apart", *[one for n in "abc" for one in (*(ok(n + str(m)) for m in range(7)), failed(n))],
         expected=Escalate(0, F, THREE_FAILURES)),
    case("the same call, however far apart", *[one for n in "abc" for one in (*(ok(n + str(m)) for m in range(9)), failed("a"))],
         expected=Escalate(0, F, (failed("a"),) * 3)),
    case("different commands of a kind", *(failed(str(n), "1 failed", tool="terminal", command=True) for n in range(9))),
    case("found its way after three failures", *THREE_FAILURES, ACCEPTED, ok("d")),
    case("one of a batch is the third", failed("a"), failed("b"), ACCEPTED, failed("c"), ok("d", "1"), ok("e", "2"),
         expected=Escalate(0, F, THREE_FAILURES)),
    Case("failed in the task before", (START, *THREE_FAILURES[:2], START, failed("c")), Stay()),
    case("one attempt allowed", failed("a"), policy=replace(RULES, max_local_attempts=1), expected=Escalate(0, F, (failed("a"),))),
    case("own limit", *THREE_FAILURES, policy=replace(RULES, after={F: 4})),
    case("not asked for", *THREE_FAILURES, policy=Policy(trigger_on=(INVALID,))),
    case("disabled", *THREE_FAILURES, ASKED, policy=replace(RULES, enabled=False)),
    case("final garbage", invalid(ends_turn=True), expected=Escalate(0, INVALID, (invalid(ends_turn=True),))),
    case("one empty reply", invalid()),
    case("three empty replies", *[invalid()] * 3, expected=Escalate(0, INVALID, (invalid(),) * 3)),
    case("three with good ones between", *(ACCEPTED, invalid()) * 3, expected=Escalate(0, INVALID, (invalid(),) * 3)),
    case("good again after three", *(invalid(), ACCEPTED) * 3),
    case("before Hermes gives up", *[invalid()] * 3, policy=replace(RULES, max_local_attempts=9),
         expected=Escalate(0, INVALID, (invalid(),) * 3)),
    case("patience with good ones between", *(invalid(), ACCEPTED) * 3, policy=replace(RULES, max_local_attempts=9)),
    case("same result again three times", *[ok("a")] * 4, expected=Escalate(0, PROGRESS, (ok("a"),) * 4)),
    case("same result again twice", *[ok("a")] * 3),
    case("poll that has to wait", *[ok("a", "running", "polls")] * 24),
    case("poll of what never ends", *[ok("a", "running", "polls")] * 25, expected=Escalate(0, PROGRESS, (ok("a", "running", "polls"),) * 4)),
    case("poll that sees something else at times", *[*[ok("a", "running", "polls")] * 20, ok("a", "half", "polls")] * 3),
    case("new result each time", *(ok("a", str(n)) for n in range(9))),
    case("something new between", ok("a"), ok("b"), ok("a"), ok("c"), ok("a"), ok("d"), ok("a")),
    case("cycle of two", *(ok("a"), ok("b")) * 3, ok("a"), expected=Escalate(0, PROGRESS, (ok("a"),) * 4)),
    case("out of the cycle", *(ok("a"), ok("b")) * 3, ok("a"), ok("c")),
    case("unchanged says the same", ok("a", "1"), *[ok("a", UNCHANGED)] * 3,
         expected=Escalate(0, PROGRESS, (ok("a", "1"), *[ok("a", UNCHANGED)] * 3))),
    case("own limit of progress", *[ok("a")] * 4, policy=replace(RULES, after={PROGRESS: 4})),
    case("announced and not done", said("announces"), expected=Escalate(0, SILENT, (START, said("announces")))),
    case("announced, and asked for more", said("announces", "asks")),
    case("announced beside a call", ReplyAccepted(0.0, signs=("announces",))),
    Case("told a content that nobody saw", (READ, said("unaided")), Escalate(0, SILENT, (READ, said("unaided")))),
    Case("told a content that a tool showed", (READ, ok("a"), said()), Stay()),
    Case("chatted", (START, said("unaided")), Stay()),
    Case("asked which file", (READ, said("unaided", "asks")), Stay()),
    Case("done without a change", (WRITE, ok("a", "1", "reads"), DONE), Escalate(0, SILENT, (WRITE, DONE))),
    Case("done by what may have changed it", (WRITE, ok("a"), DONE), Stay()),
    Case("done by a command that failed later on", (WRITE, failed("a", command=True), DONE), Stay()),
    Case("announced after some work", (START, ok("a"), said("announces")), Stay()),
    Case("done with a change", (WRITE, ok("a", "1", "changes"), DONE), Stay()),
    Case("did not try", (READ, said("cannot", "unaided")), Escalate(0, SILENT, (READ, said("cannot", "unaided")))),
    case("the model says no to its own answer", said(), SelfChecked(0.0, fulfilled=False),
         expected=Escalate(0, SILENT, (SelfChecked(0.0, fulfilled=False),))),
    case("the model stands by its answer", said(), SelfChecked(0.0, fulfilled=True)),
    case("endpoint errors in a row", *[down()] * 3, expected=Escalate(0, ERROR, (down(),) * 3)),
    case("endpoint recovers", down(), down(), ACCEPTED, down()),
    case("endpoint gives up at once", down(ends_turn=True), expected=Escalate(0, ERROR, (down(ends_turn=True),))),
    case("time is over", now=900.0, expected=Escalate(0, TIME, (START,))),
    case("time is not over", now=899.9),
    case("time that the user took", UserAnswered(400.0, 300.0), now=1199.9),
    case("the machine slept while it waited", UserAnswered(600.0, 30_000.0), now=1499.9),
    case("time is over after it slept", UserAnswered(600.0, 30_000.0), now=1500.0, expected=Escalate(0, TIME, (START,))),
    case("the clock was set back while it waited", UserAnswered(60.0, -3600.0), now=899.9),
    case("time is over without what the user took", UserAnswered(400.0, 300.0), now=1200.0, expected=Escalate(0, TIME, (START,))),
    case("time is over, and here is the answer", said(), now=900.0),
    case("time begins anew on a tier", up(at=800.0), now=1000.0, tiers=2, expected=Escalate(0, ASK, (), up(at=800.0))),
    case("asked", ASKED, expected=Escalate(0, ASK, (ASKED,))),
    Case("asked while idle", (ASKED, START), Escalate(0, ASK, (ASKED,))),
    Case("asked for a task that is over", (ASKED, ENDED), Stay()),
    case("asked while off", OFF, ASKED, expected=Escalate(0, ASK, (ASKED,))),
    case("off after asking", ASKED, OFF),
    Case("off after asking while idle", (ASKED, OFF, START), Stay()),
    case("off", OFF, *THREE_FAILURES),
    case("auto again", OFF, AUTO, *THREE_FAILURES, expected=Escalate(0, F, THREE_FAILURES)),
    case("held to the end of the task", up(), REPLIED, ok("a"), REPLIED, expected=Escalate(0, ASK, (), up())),
    Case("not held in the next task", (up(), START), Stay()),
    Case("held for the session", (up(), START), Escalate(0, ASK, (), up()), replace(RULES, hold="session")),
    Case("taken for its task, before `hold: session`", (replace(up(), for_session=False), START), Stay(), replace(RULES, hold="session")),
    case("held for its task, whatever `hold` was", replace(up(), for_session=False), expected=Escalate(0, ASK, (), replace(up(), for_session=False))),
    case("held for two calls", up(), REPLIED, policy=replace(RULES, hold=2), expected=Escalate(0, ASK, (), up())),
    case("two calls are over", up(), REPLIED, REPLIED, policy=replace(RULES, hold=2)),
    case("old evidence is used up", *THREE_FAILURES, up(), REPLIED, failed("d"), policy=replace(RULES, hold=1)),
    case("off ends the hold", up(), REPLIED, OFF),
    case("stuck on a tier", up(), *THREE_FAILURES, tiers=2, expected=Escalate(1, F, THREE_FAILURES)),
    case("stuck on the last tier", up(), *THREE_FAILURES, expected=Escalate(0, ASK, (), up())),
    case("asked on a tier", up(), ASKED, tiers=2, expected=Escalate(1, ASK, (ASKED,))),
    case("first tier failed", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=False), tiers=2,
         expected=Escalate(1, F, THREE_FAILURES)),
    case("only tier failed for good", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=False), now=10_000.0,
         policy=replace(RULES, task_timeout_seconds=1e9)),
    case("only tier failed for a while", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=True)),
    case("while is over", *THREE_FAILURES, EscalationFailed(0.5, 0, "", transient=True), now=0.5 + COOLDOWN_SECONDS,
         expected=Escalate(0, F, THREE_FAILURES)),
    case("asked after a failure", EscalationFailed(0.5, 0, "", transient=False), ASKED,
         expected=Escalate(0, ASK, (ASKED,))),
    case("garbage stays garbage after a tier failed", invalid(ends_turn=True),
         EscalationFailed(0.5, 0, "", transient=False), tiers=2,
         expected=Escalate(1, INVALID, (invalid(ends_turn=True),))),
]  # fmt: skip


MIXED = (failed("a", "x"), failed("b", "y"), failed("c", "z"))
QUESTION = said("asks")
UNKNOWN = asked_for("cannot_say")
WRONG = ok("a", "1", "rejected")

ONLY_RISK = Policy(trigger_on=(RISK,))


def risk_case(id_: str, *events: Any, first: Event = START, **more: Any) -> Case:
    """A case in which nothing but `risk` is asked."""
    expected = more.pop("evidence", None)
    return Case(
        id_,
        (first, *events),
        Stay() if expected is None else Escalate(0, RISK, expected),
        replace(ONLY_RISK, **more),
    )


RISK_CASES = [
    risk_case("three different failures in a row", *MIXED, evidence=MIXED),
    risk_case("two failures", *MIXED[:2]),
    risk_case("two failures alike", *[MIXED[0]] * 2),
    risk_case("two failures alike, when sensitive", *[MIXED[0]] * 2, sensitivity="high", evidence=(MIXED[0],) * 2),
    risk_case("three failures, when not sensitive", *MIXED, sensitivity="low"),
    risk_case("a success in between", *MIXED[:2], ok("d"), MIXED[2]),
    risk_case(
        "tests that fail on purpose",
        *(failed(str(n), None, tool="terminal", command=True, on_purpose=True) for n in range(9)),
    ),
    risk_case("a process that is polled beside two failures", *MIXED[:2], *[ok("p", "running", "polls")] * 9),
    risk_case("a tool says that it is wrong", WRONG, evidence=(WRONG,)),
    risk_case("wrong, and then something else", WRONG, ACCEPTED, ok("b", "2")),
    risk_case("asked, not told, and failed", UNKNOWN, MIXED[0], first=QUESTION, evidence=(UNKNOWN, MIXED[0])),
    risk_case("a new message starts with the local model", UNKNOWN, first=QUESTION),
    risk_case("not asked", UNKNOWN, MIXED[0], first=said()),
    risk_case("a new task begins anew", *MIXED, said(), START, failed("d", "v")),
    risk_case("the answer to a question goes on", *MIXED[:2], QUESTION, START, MIXED[2], evidence=MIXED),
]


@pytest.mark.parametrize("case", [*CASES, *RISK_CASES], ids=lambda case: case.id)
def test_decision(case: Case) -> None:
    """The decision, with trigger and evidence, follows from the events alone; the points of `risk` are risk.json's."""
    assert decide(case.events, case.policy, tiers=case.tiers, now=case.now) == case.expected


def test_ledger_keeps_what_the_next_task_needs() -> None:
    """A new turn lets go of the last one, but not of the user's words nor of who had the task."""
    ledger = Ledger()
    ledger.append(START, failed("a"), up(at=1.0), REPLIED, replace(AUTO, at=2.0), ENDED, replace(ASKED, at=3.0), START)
    assert ledger.events() == (up(at=1.0), replace(AUTO, at=2.0), replace(ASKED, at=3.0), START)


def test_request_of_a_finished_task_is_not_carried_over() -> None:
    """An /escalate that could not be done in its task does not spend money in the next one."""
    ledger = Ledger()
    ledger.append(START, ASKED, ENDED, START)
    assert ledger.events() == (START,)


def test_a_held_session_does_not_come_back_when_it_is_switched_on_again() -> None:
    """`/escalate off` ends what holds for the session; `/escalate auto`, any number of messages later, begins anew."""
    ledger = Ledger()
    ledger.append(up(), START, OFF, START, AUTO, START)
    assert holding(ledger.events(), replace(RULES, hold="session")) is None
    assert not is_off(ledger.events())


def test_ledger_is_bounded_and_keeps_landmarks() -> None:
    """However long a task gets, memory stays the same and the landmarks are there."""
    ledger = Ledger()
    ledger.append(START, ASKED)
    for number in range(100_000):
        ledger.append(ok("a", str(number)))
    events = ledger.events()
    assert events[:2] == (START, ASKED)
    assert len(events) <= MAX_EVENTS + 2 + SPARE
    assert events[-1] == ok("a", "99999")
    assert len(ledger._events) <= MAX_EVENTS + 2 + SPARE  # noqa: SLF001


def test_a_long_escalated_task_keeps_what_was_said() -> None:
    """A thousand replies of the tier that has the task displace neither who has it, nor /escalate off and the user's yes."""
    ledger = Ledger()
    ledger.append(OFF, START, ASKED, ConsentGiven(0.0), up())
    for number in range(1000):
        ledger.append(ok("a", str(number)), REPLIED)
    events = ledger.events()
    assert is_off(events)
    assert holding(events, RULES) == up()
    assert ConsentGiven(0.0) in events
    assert len(events) <= 2 * MAX_EVENTS + 5 + SPARE


def test_pruning_stays_rare_with_many_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier that holds a long task leaves a landmark each call: the ledger is still not gone through at each event."""
    pruned: list[int] = []
    newest = ledger_module._newest  # noqa: SLF001

    def watched(events: list[Event], index: Index) -> tuple[list[Event], Index]:
        pruned.append(len(events))
        kept: tuple[list[Event], Index] = newest(events, index)
        return kept

    monkeypatch.setattr(ledger_module, "_newest", watched)
    ledger = Ledger()
    ledger.append(START)
    for number in range(1000):
        ledger.append(TierReplied(float(number), 0))
    assert len(pruned) <= 1000 / SPARE
    # With the message that began the task, which the replies do not displace.
    assert max(pruned) <= 2 * MAX_EVENTS + SPARE + 2


@given(
    st.lists(st.sampled_from([START, ENDED, ASKED, TierReplied(0.0, 0), ok("a"), ok("b"), failed("c")]), max_size=40)
)
def test_ledger_knows_where_things_are(some: list[Event]) -> None:
    """What the ledger keeps beside its events is what a look at all of them finds, and decides the same."""
    ledger = Ledger()
    for event in some * 10:
        ledger.append(event)
        events, index = ledger.past()
        assert index == index_of(events)
    events, index = ledger.past()
    assert decide(events, Policy(), tiers=2, now=1.0, index=index) == decide(events, Policy(), tiers=2, now=1.0)


@given(
    st.lists(
        st.sampled_from(
            [START, UNKNOWN, ENDED, ASKED, OFF, AUTO, up(), REPLIED, ok("a"), WRONG, failed("c"), QUESTION]
        ),
        max_size=20,
    ),
    st.sampled_from([(), ("cannot",), ("announces",), ("asks",)]),
)
def test_an_answer_that_nothing_speaks_against_is_used(some: list[Event], signs: tuple[Any, ...]) -> None:
    """Where the quick look says that an answer will not be replaced, the decision says so, too."""
    ledger = Ledger()
    answer = said(*signs)
    ledger.append(*some, answer)
    decision = decide(ledger.events(), Policy(sensitivity="high"), tiers=3, now=1.0)
    replaces = isinstance(decision, Escalate) and decision.held is None and decision.trigger in OF_ANSWERS
    assert may_be_replaced(answer, ledger.controls()) or not replaces


def test_ledger_keeps_the_task_that_a_question_goes_on_with() -> None:
    """The answer to the model's question belongs to the task before; another message does not, nor one much later."""
    for reply, message, kept in (
        (QUESTION, START, (*MIXED[:2], QUESTION)),
        (said(), START, ()),
        (QUESTION, replace(START, at=EARLIER_SECONDS + 1), ()),
    ):
        ledger = Ledger()
        ledger.append(first := replace(START, turn_id="first"), *MIXED[:2], reply, ENDED, message)
        assert ledger.events() == (*([first] if kept else []), *kept, message)


def test_ledger_of_many_questions_is_bounded() -> None:
    """A conversation in which the model always asks takes no more room than a short one."""
    ledger = Ledger()
    for _ in range(1000):
        ledger.append(START, *MIXED, QUESTION, ENDED)
    assert len(ledger.events()) <= MAX_EARLIER + 1


@pytest.mark.parametrize(("calls", "results"), [(100, 1), (60, 4), (25, 10)])
def test_a_long_hold_ends(calls: int, results: int) -> None:
    """A tier keeps a task for as many calls as `hold` says, however much happens in between."""
    ledger = Ledger()
    ledger.append(START, ASKED, up())
    policy = replace(Policy(), hold=calls)
    held = 0
    while holding(ledger.events(), policy) is not None and held <= calls:
        held += 1
        ledger.append(TierReplied(0.0, 0), *(ok("a", f"{held}-{n}") for n in range(results)))
    assert held == calls


def test_a_type_that_starts_high_does_not_climb() -> None:
    """`start_on: fallback` is no reason to leave a tier that holds the session."""
    policy = Policy(hold="session", trigger_on=("task_type",))
    events: list[Event] = [START, TypeMatched(0.0, "x"), up(), TierReplied(0.0, 0), START, TypeMatched(0.0, "x")]
    decision = decide(events, policy, tiers=3, now=1.0)
    assert isinstance(decision, Escalate)
    assert (decision.tier, decision.held) == (0, events[2])
