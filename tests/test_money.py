"""Money end to end: what the budget, a person or the price does not allow is not asked; what is asked is accounted for."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_fallback.journal import Journal
from tests.endpoints import Answer, Endpoint, call, fail, in_order, say
from tests.test_escalation import JOURNAL, missing, rows
from tests.test_sessions import ask_and_wait, delegating_agent
from tests.world import HOME, KEY, MODEL, Screen, World, config_text, log_of

OPENAI = {"provider": "openai", "model": "gpt-5.4"}


def block(policy: dict[str, Any] | None = None, *, fallback: Any = OPENAI, **more: Any) -> str:
    """A `model_routing` block with this policy."""
    return yaml.safe_dump({"model_routing": {"fallback": fallback, "fallback_policy": policy or {}, **more}})


def budget(**limits: Any) -> str:
    """A block with these limits."""
    return block({"budget": limits})


def stuck(_request: dict[str, Any], index: int) -> Answer:
    """Fails three times, then gives an answer of its own."""
    return missing({}, index) if index < 3 else say("local answer")


def stuck_each_task(request: dict[str, Any], _index: int) -> Answer:
    """Fails three times in each task, then gives an answer of its own."""
    said = request["messages"]
    asked = max(place for place, message in enumerate(said) if message["role"] == "user")
    return stuck({}, sum(message["role"] == "tool" for message in said[asked:]))


def tasks() -> list[tuple[Any, ...]]:
    """The journal's tasks."""
    with closing(sqlite3.connect(JOURNAL)) as connection:
        return connection.execute("SELECT task_type, local_calls, untold_calls, input_tokens FROM tasks").fetchall()


def test_a_reply_is_made_to_fit(world: World) -> None:
    """The worst case is reserved before the call, its reply limited to what is left; the real usage is settled after it."""
    world.configure(budget(per_task_usd=0.06))
    world.local.script = stuck
    assert world.ask()["final_response"] == "paid answer"
    (request,) = world.paid.requests
    (row,) = rows()
    assert 1024 <= request["max_completion_tokens"] < 4000
    assert 0.05 < row["reserved_usd"] <= 0.06
    assert row["cost_usd"] == pytest.approx(100 * 2.5e-6 + 20 * 15e-6)


def test_without_a_budget_a_reply_is_not_limited(world: World) -> None:
    """The worst case is reserved all the same; the tier's own `max_tokens` is kept."""
    world.configure(block())
    world.local.script = stuck
    world.ask()
    assert "max_completion_tokens" not in world.paid.requests[0]
    assert rows()[0]["reserved_usd"] > 16_384 * 15e-6
    world.configure(block(fallback={**OPENAI, "max_tokens": 300}))
    world.local.script = stuck_each_task
    world.ask()
    assert world.paid.requests[1]["max_completion_tokens"] == 300
    assert rows()[1]["reserved_usd"] < 0.06


LIMITS = [
    ({"per_task_usd": 0.01}, "$0.0100 of $0.01 for this task is left"),
    ({"per_session_usd": 0.01}, "$0.0100 of $0.01 for this session is left"),
    ({"per_day_usd": 0.01}, "$0.0100 of $0.01 today is left"),
    ({"per_month_usd": 0.01, "per_day_usd": 5}, "$0.0100 of $0.01 this month is left"),
    ({"max_escalations_per_session": 0}, "this session has had its 0 escalations"),
]


@pytest.mark.parametrize(("limits", "words"), LIMITS)
def test_what_does_not_fit_is_not_asked(
    world: World, caplog: pytest.LogCaptureFixture, limits: dict[str, Any], words: str
) -> None:
    """The local model goes on, once told and not asked again in the task; nothing stands in the journal but the task."""
    world.configure(budget(**limits))
    world.local.script = in_order([*(missing({}, n) for n in range(6)), say("local answer")])
    screen = Screen()
    assert world.ask(agent=world.agent(screen=screen))["final_response"] == "local answer"
    assert world.paid.requests == rows() == []
    assert tasks() == [("", 7, 0, 700)]
    warnings = log_of(caplog, logging.WARNING)
    assert len(warnings) == 2
    assert "trigger=repeated_tool_failure (budget): openai/gpt-5.4 is not asked: " in warnings[0]
    assert words in warnings[0]
    assert screen.text.count(words) == 1


def test_a_cheaper_tier_may_fit(world: World) -> None:
    """A tier that is too dear is passed over, and the next one asked."""
    world.configure(block({"budget": {"per_task_usd": 0.01}}, fallback=[OPENAI, {**OPENAI, "model": "gpt-5-nano"}]))
    world.local.script = stuck
    assert world.ask()["final_response"] == "paid answer"
    assert [request["model"] for request in world.paid.requests] == ["gpt-5-nano"]


def test_budget_ends_in_the_middle_of_a_task(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The first call is paid, the second would not fit: the local model finishes the task with what there is."""
    world.configure(budget(per_task_usd=0.05))
    world.local.script = stuck
    # 2,000 output tokens are $0.03.
    world.paid.script = lambda *_: Answer(calls=(("terminal", '{"command": "echo hi"}'),), usage=(100, 2000))
    result = world.ask()
    assert result["final_response"] == "local answer"
    assert len(world.paid.requests) == 1
    assert rows()[0]["cost_usd"] == pytest.approx(0.03025)
    assert any("(budget)" in line for line in log_of(caplog))
    assert [message["role"] for message in result["messages"]][-3:] == ["assistant", "tool", "assistant"]


def test_session_budget_counts_its_tasks(world: World) -> None:
    """What one task spent is missing in the next one of the session, and in no other session."""
    world.configure(budget(max_escalations_per_session=1))
    world.local.script = stuck_each_task
    agent = world.agent()
    assert world.ask(agent=agent)["final_response"] == "paid answer"
    assert world.ask("once more", agent=agent)["final_response"] == "local answer"
    assert world.ask()["final_response"] == "paid answer"


def test_sub_agents_pay_from_their_parents_budget(world: World) -> None:
    """What a sub-agent spends is spent by the parent's task and session: nothing is left for the parent itself."""
    world.configure(budget(max_escalations_per_session=1, per_task_usd=1))

    def script(request: dict[str, Any], index: int) -> Answer:
        words = [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]
        done = any(message["role"] == "tool" for message in request["messages"])
        if "delegate" in words:
            return say("it is at work") if done else call("delegate_task", goal="the goal")
        return stuck_each_task(request, index)

    world.local.script = script
    agent = delegating_agent(world)
    ask_and_wait(world, "delegate it", agent)
    (row,) = rows()
    assert row["session_id"] == agent.session_id
    assert row["turn_id"] != row["task_id"]
    spent = world.adapter.journal.spent(task_id=row["task_id"], account=agent.session_id)
    assert spent.task == spent.session == pytest.approx(0.00055)
    assert world.ask("do it yourself", agent=agent)["final_response"] == "local answer"
    assert len(world.paid.requests) == 1


def test_stop(world: World) -> None:
    """`on_exceeded: stop` ends the task with the reason; the next message starts on the local model."""
    world.configure(budget(per_day_usd=0.01, on_exceeded="stop"))
    world.local.script = stuck_each_task
    agent = world.agent()
    answer = world.ask(agent=agent)["final_response"]
    assert answer.startswith("⚡ The task stops here (`on_exceeded: stop`): it may cost $")
    assert "of $0.01 today is left" in answer
    world.local.script = lambda *_: say("local answer")
    assert world.ask("hello", agent=agent)["final_response"] == "local answer"


def test_unknown_price(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A model without a price is not asked while a budget in dollars is set, unless it is given one or let go."""
    unknown = {**OPENAI, "model": "gpt-of-tomorrow"}
    world.local.script = stuck_each_task
    world.configure(block({"budget": {"per_day_usd": 5}}, fallback=unknown))
    assert world.ask()["final_response"] == "local answer"
    assert any("its price is not known, and a budget in dollars is set" in line for line in log_of(caplog))
    world.configure(block({"budget": {"per_day_usd": 5, "unknown_price": "allow"}}, fallback=unknown))
    assert world.ask()["final_response"] == "paid answer"
    assert rows()[0]["cost_usd"] is None
    price = {"input_per_million_usd": 10, "output_per_million_usd": 100, "cached_input_per_million_usd": 1}
    world.configure(block({"budget": {"per_day_usd": 5}}, fallback={**unknown, "price": price}))
    world.paid.script = lambda *_: say("paid answer", usage=(1000, 10), cached=400)
    assert world.ask()["final_response"] == "paid answer"
    assert rows()[1]["cost_usd"] == pytest.approx((600 * 10 + 400 * 1 + 10 * 100) / 1e6)


def test_another_model_on_the_local_endpoint(world: World) -> None:
    """`provider: primary` has no price that anybody knows: it needs one under a budget, and 0 is one."""
    primary = {"provider": "primary", "model": "big"}
    world.local.script = lambda request, index: (
        say("big answer") if request["model"] == "big" else stuck(request, index)
    )
    world.configure(block({"budget": {"per_day_usd": 5}}, fallback=primary))
    assert world.ask()["final_response"] == "local answer"
    price = {"input_per_million_usd": 0, "output_per_million_usd": 0}
    world.local.requests.clear()
    world.configure(block({"budget": {"per_day_usd": 0}}, fallback={**primary, "price": price}))
    assert world.ask()["final_response"] == "big answer"
    assert [(row["cost_usd"], row["reserved_usd"]) for row in rows()] == [(0.0, 0.0)]


USED = [
    # the paid model's reply → state, and what is charged of a call with 100 tokens in (as far as the provider says it)
    (fail(500, "no"), "failed", (0, 0)),
    (fail(401, "no"), "failed", (0, 0)),
    (fail(429, "no"), "failed", (0, 0)),
    (say("word " * 50, cut_after=100), "failed", (3000, 15)),
    (say("word " * 50, cut_after=0), "failed", (3000, 0)),
]


@pytest.mark.parametrize(("answer", "state", "least"), USED, ids=["500", "401", "429", "cut", "cut at once"])
def test_unfinished_calls_cost_what_they_used(world: World, answer: Answer, state: str, least: tuple[int, int]) -> None:
    """Refused: nothing. Broken off: the input, counted, and what had come; never more than was reserved."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    world.paid.script = lambda *_: answer
    assert world.ask()["final_response"] == "local answer"
    (row,) = rows()
    assert row["state"] == state
    assert row["input_tokens"] >= least[0]
    assert row["output_tokens"] >= least[1]
    assert row["cost_usd"] == pytest.approx(row["input_tokens"] * 2.5e-6 + row["output_tokens"] * 15e-6)
    assert row["cost_usd"] < row["reserved_usd"]
    assert (row["cost_usd"] > 0) == (least[0] > 0)


def test_a_stopped_call_costs_what_it_used(world: World) -> None:
    """The user stops the stronger model in the middle: what it had written is charged."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    world.paid.script = lambda *_: say("word " * 500, hold_seconds=0.05)
    agent = world.agent()

    def show(piece: str | None) -> None:
        if piece and "word" in piece:
            agent.interrupt()

    agent.stream_delta_callback = show
    world.ask(agent=agent)
    (row,) = rows()
    assert row["state"] == "interrupted"
    assert 0 < row["output_tokens"] < 400
    assert 0.005 < row["cost_usd"] < row["reserved_usd"]


def test_a_corrupt_journal_ends_in_no_paid_call(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The turn goes on locally, the log says why; the file is kept, and the next task is escalated again."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck_each_task
    world.load()
    JOURNAL.parent.mkdir(exist_ok=True)
    agent = world.agent()
    world.ask(agent=agent)
    JOURNAL.write_bytes(b"x" * 5000)
    assert world.ask("again", agent=agent)["final_response"] == "local answer"
    assert any("journal cannot be written" in line and "it is kept as" in line for line in log_of(caplog))
    assert len(world.paid.requests) == 1
    assert world.ask("and again", agent=agent)["final_response"] == "paid answer"
    assert len(list(JOURNAL.parent.glob("*.corrupt-*"))) == 1


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A person at Hermes's real approval gate: the first entries are the answers, then come the questions."""
    from tools import approval, terminal_tool  # noqa: PLC0415

    if not hasattr(approval, "request_tool_approval"):
        pytest.skip("this Hermes cannot ask")
    monkeypatch.setenv("HERMES_INTERACTIVE", "1")
    heard: list[Any] = []

    def asked(_command: str, description: str, *, allow_permanent: bool = True) -> str:
        assert not allow_permanent
        answer = str(heard.pop(0))
        heard.append(description)
        return answer

    terminal_tool.set_approval_callback(asked)
    yield heard
    terminal_tool.set_approval_callback(None)
    approval.clear_session(approval.get_current_session_key())


def test_asked_first_in_session(world: World, person: list[Any]) -> None:
    """A yes holds for the session, is asked with model, reason, tokens, dollars and what is left, and not asked again."""
    world.configure(block({"confirm": "first_in_session", "budget": {"per_day_usd": 2}}))
    world.local.script = stuck_each_task
    person[:] = ["once"]
    agent = world.agent()
    assert world.ask(agent=agent)["final_response"] == "paid answer"
    assert world.ask("more", agent=agent)["final_response"] == "paid answer"
    (question,) = person
    assert question.startswith(
        f"Let openai/gpt-5.4 take over from {MODEL}, because read_file failed 3 times: file not found? A call has about "
    )
    assert "tokens in and up to 16,384 tokens out: $0." in question
    assert question.endswith("Of the budget, $2.0000 of $2 today is left.")
    person[:] = ["deny"]
    assert world.ask()["final_response"] == "local answer"
    assert len(person) == 1


def test_a_no_holds_for_the_task(world: World, person: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Denied: the local model goes on, no other tier and no later trigger asks in this task; the next task does."""
    world.configure(block({"confirm": "always"}, fallback=[OPENAI, {**OPENAI, "model": "gpt-5-nano"}]))
    world.local.script = in_order([*(missing({}, n) for n in range(6)), say("local answer")])
    person[:] = ["deny"]
    agent = world.agent()
    assert world.ask(agent=agent)["final_response"] == "local answer"
    assert len(person) == 1
    assert "No budget is set." in person[0]
    assert world.paid.requests == rows() == []
    assert any("(consent): openai/gpt-5.4 is not asked: not allowed" in line for line in log_of(caplog))
    world.local.script = stuck_each_task
    person[:] = ["session"]
    assert world.ask("again", agent=agent)["final_response"] == "paid answer"
    person[:] = ["deny"]
    assert world.ask("and again", agent=agent)["final_response"] == "local answer"
    assert len(person) == 1


def test_escalate_asks_again_after_a_no(world: World, person: list[Any]) -> None:
    """/escalate is asked about like anything that costs, and may be said again."""
    world.configure(block({"confirm": "always"}))
    person[:] = ["deny"]
    agent = world.agent()
    world.ask(agent=agent)
    world.command("")
    assert world.ask("do it", agent=agent)["final_response"] == "local answer"
    assert "you asked for it with /escalate" in person[0]
    world.command("")
    person[:] = ["once"]
    assert world.ask("do it", agent=agent)["final_response"] == "paid answer"


def test_asked_to_go_over_the_budget(world: World, person: list[Any]) -> None:
    """`on_exceeded: ask`: a yes lets the task cost more than the budget, a no keeps it local; one question a task."""
    world.configure(budget(per_day_usd=0.01, on_exceeded="ask"))
    world.local.script = stuck_each_task
    world.paid.script = in_order([call("terminal", command="echo hi"), say("paid answer")])
    person[:] = ["once"]
    assert world.ask()["final_response"] == "paid answer"
    assert len(person) == 1
    assert "would go over the budget: it may cost $0." in person[0]
    assert len(rows()) == 2
    person[:] = ["deny"]
    assert world.ask()["final_response"] == "local answer"
    assert len(rows()) == 2


NOBODY = [
    ("no terminal", "nobody is there to be asked"),
    ("yolo", "yolo does not answer for money"),
    ("cron", "nobody is there to be asked"),
]


@pytest.mark.parametrize(("how", "words"), NOBODY)
def test_no_human_no_money(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    """Nobody is there, or Hermes would say yes by itself: the local model goes on, and the log says why."""
    from tools import approval  # noqa: PLC0415

    if not hasattr(approval, "request_tool_approval"):
        words = "this Hermes cannot ask"
    world.configure(block({"confirm": "first_in_session"}), more="approvals: {cron_mode: approve}\n")
    world.local.script = stuck_each_task
    if how == "cron":
        from cron.scheduler import run_job  # noqa: PLC0415

        assert run_job({"id": "job1", "name": "a job", "prompt": "get stuck", "schedule": {}})[2] == "local answer"
    else:
        if how == "yolo":
            # What `--yolo` does when hermes starts; `hermes --yolo` itself is typed in test_screen.
            monkeypatch.setattr(approval, "_YOLO_MODE_FROZEN", True)
        assert world.ask()["final_response"] == "local answer"
    assert world.paid.requests == rows() == []
    assert any(words in line for line in log_of(caplog))


def test_a_sub_agent_lives_on_its_parents_yes(world: World, person: list[Any]) -> None:
    """Sub-agents cannot ask on the CLI: what the parent was allowed holds for them."""
    world.configure(block({"confirm": "first_in_session"}))

    def script(request: dict[str, Any], index: int) -> Answer:
        words = [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]
        if "goal" in words:
            return stuck_each_task(request, index)
        done = sum(message["role"] == "tool" for message in request["messages"])
        return (
            call("delegate_task", goal="the goal") if "delegate" in words and not done else stuck_each_task(request, 0)
        )

    world.local.script = script
    agent = delegating_agent(world)
    person[:] = ["once"]
    assert world.ask("get stuck", agent=agent)["final_response"] == "paid answer"
    before = len(world.paid.requests)
    ask_and_wait(world, "delegate it", agent)
    assert len(world.paid.requests) > before
    assert len(person) == 1


def test_killed_hermes_leaves_a_reservation(tmp_path: Path) -> None:
    """`kill -9` of the real hermes while the paid model is at work: the money counts, now and when the row expires."""
    home = tmp_path / "home"
    home.mkdir()
    with Endpoint(stuck) as local, Endpoint(lambda *_: say("late", headers_after=60), strict=True, key=KEY) as paid:
        (home / "config.yaml").write_text(config_text(local.url, budget(per_day_usd=1)))
        env = {"HERMES_HOME": str(home), "HOME": str(home), "OPENAI_BASE_URL": paid.url, "OPENAI_API_KEY": KEY}
        command = [str(Path(sys.executable).with_name("hermes")), "chat", "-q", "read it"]
        with subprocess.Popen(command, env={**os.environ, **env}, stdout=subprocess.DEVNULL, cwd=home) as process:
            end = time.monotonic() + 60
            while not paid.requests and time.monotonic() < end:
                time.sleep(0.05)
            os.kill(process.pid, signal.SIGKILL)
    journal = Journal(home / "hermes-fallback")
    (entry,) = journal.entries()
    reserved = journal.spent(task_id="", account="").day
    assert 0.2 < reserved < 0.4
    later = Journal(home / "hermes-fallback", now=lambda: datetime.now(UTC) + timedelta(seconds=361))
    later.settle_expired()
    (entry,) = journal.entries()
    assert (entry.cost_usd, entry.failed) == (reserved, 1)
    assert later.calls_in_flight() == 0


def test_no_key_no_content(world: World) -> None:
    """Whatever was said and read, nothing of it and no key is in the journal."""
    world.configure(block({"budget": {"per_day_usd": 5}}, task_types=[{"name": "all", "match": {"message": "canary"}}]))
    (world.folder / "canary-file.txt").write_text("canary content")
    world.local.script = in_order([call("read_file", path="canary-file.txt"), *(missing({}, n) for n in range(3))])
    world.paid.script = in_order([fail(400, f"canary {KEY}"), say("paid answer")])
    world.ask("canary question")
    content = JOURNAL.read_bytes()
    assert b"canary" not in content
    assert KEY.encode() not in content
    assert JOURNAL.stat().st_mode & 0o077 == 0
    assert not [path for path in (HOME / "hermes-fallback").iterdir() if path != JOURNAL]
