"""The life of a session: sub-agents, compression in mid-turn, /resume; and Hermes's own providers as a tier."""

from __future__ import annotations

import json
import logging
import sqlite3
import sys
import time
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest

from hermes_fallback import host, journal, ledger
from hermes_fallback.journal import Opening
from hermes_fallback.policy import is_off
from tests.endpoints import Answer, Endpoint, call, fail, in_order, say
from tests.test_escalation import ALL_TRIGGERS, JOURNAL, TEXT_CALL, missing, rows
from tests.world import ISSUE_BLOCK, MODEL, Screen, World, log_of

HERMES_TIER = "model_routing: {fallback: hermes}\n"


def delegating(child: Any) -> Any:
    """A local model that hands the task to a sub-agent, which does what `child` says, and then sums up."""

    def script(request: dict[str, Any], index: int) -> Answer:
        words = [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]
        if "the child's goal" in words:
            return child(request, index)  # type: ignore[no-any-return]
        if request["messages"][-1]["role"] == "tool":
            return say("the parent sums up")
        return call("delegate_task", goal="the child's goal")

    return script


def delegating_agent(world: World, **options: Any) -> Any:
    """An agent that can have sub-agents."""
    return world.agent(enabled_toolsets=["file", "terminal", "delegation"], **options)


def ask_and_wait(world: World, message: str, agent: Any) -> Any:
    """Run a turn, and its sub-agents to their ends: Hermes 0.19 runs them in the background."""
    result = world.ask(message, agent=agent)
    end = time.monotonic() + 60
    while world.adapter._parents and time.monotonic() < end:  # noqa: SLF001
        time.sleep(0.05)
    assert world.adapter._parents == {}  # noqa: SLF001
    return result


def test_child_that_gets_stuck_is_escalated_alone(world: World) -> None:
    """A sub-agent's failures escalate the sub-agent; the parent stays local, and its session pays."""
    world.local.script = delegating(missing)
    parent = delegating_agent(world)
    result = ask_and_wait(world, "do it", parent)
    assert result["final_response"] == "the parent sums up"
    assert len(world.paid.requests) == 1
    assert "the child's goal" in json.dumps(world.paid.requests[0]["messages"])
    assert [row["session_id"] for row in rows()] == [parent.session_id]


@pytest.mark.parametrize("platform", ["cli", "tui"])
def test_what_a_sub_agent_cost_is_told_once(world: World, platform: str) -> None:
    """At the end of the user's turn, or of the next one where the sub-agent was still at work then."""

    def local(request: dict[str, Any], index: int) -> Answer:
        thanked = "thanks" in str(request["messages"][-1]["content"])
        return say("gladly") if thanked else delegating(missing)(request, index)

    world.local.script = local
    screen = Screen()
    parent = delegating_agent(world, screen=screen, platform=platform)
    answers = [ask_and_wait(world, "do it", parent)["final_response"]]
    answers += [world.ask(text, agent=parent)["final_response"] for text in ("thanks", "thanks again")]
    assert len(world.paid.requests) == 1
    shown = screen.text if platform == "cli" else "\n".join(answers)
    assert shown.count("⚡ openai/gpt-5.4 helped, because read_file failed 3 times: file not found (1 call,") == 1
    assert answers[2] == "gladly"


def test_command_finds_the_session_after_a_sub_agent_ran(world: World) -> None:
    """/escalate means the session that the user types in, not the sub-agent's that ran last (DESIGN.md, fact 13)."""
    world.local.script = delegating(in_order([say("the child is done")]))
    parent = delegating_agent(world)
    ask_and_wait(world, "do it", parent)
    assert world.adapter.command_session() == parent.session_id


def test_escalate_reaches_children_started_afterwards(world: World) -> None:
    """A parent that the user handed to the stronger model has its sub-agents answered by it too."""
    world.local.script = in_order([say("never asked")])
    world.paid.script = delegating(in_order([say("the child, by the stronger one")]))
    parent = delegating_agent(world)
    world.command("")
    result = ask_and_wait(world, "do it", parent)
    assert result["final_response"] == "the parent sums up"
    assert world.local.requests == []
    assert {row["session_id"] for row in rows()} == {parent.session_id}
    assert len(world.paid.requests) == 3


def test_off_reaches_children(world: World) -> None:
    """/escalate off on the parent holds for its sub-agents."""
    parent = delegating_agent(world)
    world.ask("hello", agent=parent)
    world.command("off")
    world.local.script = delegating(lambda _r, index: missing(_r, index) if index < 8 else say("the child gave up"))
    ask_and_wait(world, "again", parent)
    assert world.paid.requests == []


@pytest.fixture
def deep_world(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world in which sub-agents may have sub-agents."""
    deep = {"max_spawn_depth": 2, "orchestrator_enabled": True}
    world.configure(ISSUE_BLOCK, more=f"delegation: {json.dumps(deep)}\n")
    if (cli := sys.modules.get("cli")) is not None:
        # Hermes 0.17 takes what it read there when another test began.
        monkeypatch.setitem(cli.CLI_CONFIG, "delegation", deep)
    return world


def goal_of(request: dict[str, Any]) -> str:
    """What an agent is to do."""
    return [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]


def deep_script(request: dict[str, Any], index: int) -> Answer:
    """A model that has its sub-agent give the task to another one, which gets stuck."""
    goal = goal_of(request)
    if "the leaf's goal" in goal:
        return missing(request, index) if index < 12 else say("the leaf gave up")
    if any(message["role"] == "tool" for message in request["messages"]):
        return say("summed up")
    deeper = {"goal": "the leaf's goal"} if "the middle" in goal else {"goal": "the middle", "role": "orchestrator"}
    return call("delegate_task", **deeper)


def test_auto_reaches_the_children_of_children_at_work(deep_world: World) -> None:
    """Their parents began when it was off, and wait."""
    world = deep_world
    told: list[str] = []

    def local(request: dict[str, Any], index: int) -> Answer:
        if "the leaf's goal" in goal_of(request) and not told:
            told.append(world.command("auto"))
        return deep_script(request, index)

    agent = delegating_agent(world)
    world.local.script = in_order([say("hello")])
    world.ask("hello", agent=agent)
    world.command("off")
    world.local.script = local
    ask_and_wait(world, "do it", agent)
    assert told
    assert [row["trigger"] for row in rows()][:1] == ["repeated_tool_failure"]


def test_off_reaches_a_child_whose_parent_has_not_heard_of_it_yet(deep_world: World) -> None:
    """A sub-agent that goes up with its parent has one of its own begin: what the user said since is said to that one."""
    world = deep_world

    def paid(request: dict[str, Any], index: int) -> Answer:
        if "the middle" in goal_of(request):
            world.command("off")
            world.command("auto")
        return deep_script(request, index)

    agent = delegating_agent(world)
    world.local.script = in_order([say("hello")])
    world.ask("hello", agent=agent)
    world.command("")
    world.local.script = lambda request, index: (
        say("the leaf's answer") if "the leaf's goal" in goal_of(request) else deep_script(request, index)
    )
    world.paid.script = paid
    ask_and_wait(world, "do it", agent)
    goals = [goal_of(request) for request in world.paid.requests]
    assert any("the middle" in goal for goal in goals)
    assert not any("the leaf's goal" in goal for goal in goals)


def test_off_reaches_the_children_of_children_at_work(deep_world: World) -> None:
    """Said while a sub-agent's sub-agent is at work, to which its parent, who waits for it, can pass nothing on."""
    world = deep_world

    def paid(_request: dict[str, Any], index: int) -> Answer:
        world.command("off")
        return call("terminal", command=f"echo {index}")

    world.local.script, world.paid.script = deep_script, paid
    ask_and_wait(world, "do it", delegating_agent(world))
    assert len(world.paid.requests) == 1


def test_a_model_cannot_say_escalate_to_its_child(world: World) -> None:
    """`/escalate` as a sub-agent's goal comes from a model, and no model may spend."""

    def script(request: dict[str, Any], _index: int) -> Answer:
        if request["messages"][-1]["role"] == "tool":
            return say("done")
        words = str(request["messages"][-1]["content"])
        return call("delegate_task", goal="/escalate") if words.startswith("do it") else say("the child answers")

    world.local.script = script
    ask_and_wait(world, "do it", delegating_agent(world))
    assert world.paid.requests == []


@pytest.mark.parametrize("in_place", [False, True], ids=["new id", "same id"])
def test_task_stays_escalated_across_compression(world: World, in_place: bool) -> None:  # noqa: FBT001
    """Hermes compresses in mid-turn, and may change the session's id: the stronger model keeps the task, the sum is one."""
    from hermes_state import SessionDB  # noqa: PLC0415  # its ids are changed in it alone

    world.configure(more=f"compression: {{enabled: true, in_place: {str(in_place).lower()}}}\n")
    agent = world.agent(session_db=SessionDB())
    first = agent.session_id

    def paid(_request: dict[str, Any], index: int) -> Answer:
        # The thirteenth reply says that the context is full.
        usage = (64_000, 20) if index == 12 else (100, 20)
        step = json.dumps({"command": f"echo {index} {'x' * 200}"})
        return Answer(calls=(("terminal", step),), usage=usage) if index < 14 else say("done by the stronger one")

    world.local.script = missing
    world.paid.script = paid
    assert world.ask(agent=agent)["final_response"] == "done by the stronger one"
    sizes = [len(request["messages"]) for request in world.paid.requests]
    assert sizes[13] < sizes[12]  # it was compressed
    # 0.17 gives a new id always.
    assert agent.session_id != first or in_place
    assert len(world.local.requests) == 3
    assert {row["session_id"] for row in rows()} == {agent.session_id}
    assert world.adapter.ledgers.known(first) == (agent.session_id == first)
    assert "openai/gpt-5.4: 15 calls" in world.command("status")


def test_nothing_is_left_of_the_old_id_of_a_compressed_session(world: World) -> None:
    """All that is known of the session goes by its new id, and ends with it."""
    kinds = "task_types: [{name: all, match: {message: '.*'}}]"
    world.configure(f"model_routing: {{fallback: {{provider: openai, model: gpt-5.4}}, {kinds}}}\n")
    agent = world.agent()
    first = agent.session_id

    def local(_request: dict[str, Any], index: int) -> Answer:
        if index == 1:
            agent.session_id = "compressed"
        return missing({}, index) if index < 2 else say("local answer")

    def kept(session_id: str) -> set[str]:
        books = {name: book for name, book in vars(world.adapter).items() if isinstance(book, dict | set)}
        return {name for name, book in books.items() if session_id in book}

    world.local.script = local
    assert world.ask(agent=agent)["final_response"] == "local answer"
    assert "The task is of type all" in world.command("status")
    assert kept("compressed")
    assert kept(first) == set()
    world.manager.invoke_hook("on_session_finalize", session_id="compressed", platform="cli")
    assert kept("compressed") == set()


@pytest.mark.parametrize("is_new_process", [False, True])
def test_off_and_budget_stay_when_the_context_is_compressed_between_turns(
    world: World,
    is_new_process: bool,  # noqa: FBT001
) -> None:
    """What `/compress` does gives a new id, and no hook tells of it: who said off does not pay, nor twice the budget."""
    from hermes_state import SessionDB  # noqa: PLC0415  # its ids are changed in it alone

    world.configure(
        f"{ISSUE_BLOCK}    budget: {{per_session_usd: 2}}\n", more="compression: {enabled: true, in_place: false}\n"
    )
    agent = world.agent(session_db=SessionDB())
    first = agent.session_id
    world.local.script = missing
    history = world.ask(agent=agent)["messages"]
    spent = len(rows())
    world.local.script = in_order([say("fine")])
    for number in range(3):
        history = world.ask(f"and {number} {'x' * 200}", agent=agent, history=history)["messages"]
    world.command("off")
    for _ in range(2):
        history, _prompt = agent._compress_context(history, None, approx_tokens=40_000, force=True)  # noqa: SLF001
        history = [*history, *history]
    assert agent.session_id != first
    if is_new_process:
        world.load()
    asked = len(world.local.requests)
    world.local.script = lambda _, index: missing({}, index) if index < asked + 5 else say("local answer")
    assert world.ask("and now?", agent=agent, history=history)["final_response"] == "local answer"
    assert len(rows()) == spent == 1
    assert {row["session_id"] for row in rows()} == {agent.session_id}
    assert "escalation is off" in world.command("status")
    assert "openai/gpt-5.4: 1 call" in world.command("status")
    assert not world.adapter.ledgers.known(first)


def test_the_budget_goes_with_a_session_that_is_compressed_while_the_journal_is_locked(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is renamed in the journal later, and pays nothing until then."""
    monkeypatch.setattr(journal, "_BUSY_SECONDS", 0.01)
    world.configure(f"{ISSUE_BLOCK}    budget: {{max_escalations_per_session: 1}}\n")
    world.local.script = missing
    agent = world.agent(max_iterations=12)
    world.ask(agent=agent)
    assert len(world.paid.requests) == 1
    before = len(world.local.requests)

    def local(_request: dict[str, Any], index: int) -> Answer:
        match index - before:
            case 0:
                holder.execute("BEGIN EXCLUSIVE")
                agent.session_id = "compressed"
            case 4:
                holder.rollback()
        return missing({}, index) if index - before < 8 else say("local answer")

    world.local.script = local
    with closing(sqlite3.connect(JOURNAL, isolation_level=None, check_same_thread=False)) as holder:
        assert world.ask(agent=agent)["final_response"] == "local answer"
    assert len(world.paid.requests) == 1
    assert {row["session_id"] for row in rows()} == {"compressed"}


@pytest.mark.usefixtures("world")
def test_a_branch_is_a_session_of_its_own() -> None:
    """It has a parent, too, even one that was compressed later; but what was said and spent there stays there."""
    from hermes_state import SessionDB  # noqa: PLC0415  # only here

    database = SessionDB()
    database.create_session("trunk", "cli", model=MODEL)
    database.create_session("old branch", "cli", model=MODEL, parent_session_id="trunk")
    database.end_session("trunk", "compression")
    for name, marks in (
        ("branch", {"_branched_from": "trunk"}),
        ("child", {"_delegate_from": "trunk"}),
        ("next", None),
    ):
        database.create_session(name, "cli", model=MODEL, parent_session_id="trunk", model_config=marks)
    database.end_session("next", "compression")
    database.create_session("last", "cli", model=MODEL, parent_session_id="next")
    assert host.compressed_from("next") == ["trunk"]
    assert host.compressed_from("last") == ["next", "trunk"]
    for name in ("old branch", "branch", "child", "unheard of"):
        assert host.compressed_from(name) == []


def test_off_stays_though_it_could_not_be_read_what_was_before(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user says while another program holds the journal is newer than what stands in it."""
    monkeypatch.setattr(journal, "_BUSY_SECONDS", 0.01)
    world.adapter.journal.set_off("another", is_off=False)  # so that there is one
    world.local.script = missing
    agent = world.agent()
    with closing(sqlite3.connect(JOURNAL, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        assert "Only until Hermes ends" in world.ask("/escalate off", agent=agent)["final_response"]
    world.ask("get stuck", agent=agent)
    assert world.paid.requests == []


def test_off_stays_when_hermes_cannot_say_what_a_session_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its record is held by another program, nothing is paid until it can be read; then all is as it was."""

    def held(_: str) -> list[str]:
        message = "database is locked"
        raise sqlite3.OperationalError(message)

    for name in ("left off", "left on"):
        world.adapter.journal.set_off(f"{name} before", is_off=name == "left off")
        monkeypatch.setattr(host, "compressed_from", held)
        assert is_off(world.adapter.ledger(name).events())
        monkeypatch.setattr(host, "compressed_from", lambda asked: [f"{asked} before"])
        world.ask(agent=world.agent(session_id=name))
        assert is_off(world.adapter.ledger(name).events()) == (name == "left off")


def test_faults_go_with_the_session(world: World) -> None:
    """Five of them stay five under a new id, and /escalate knows it at once."""
    world.local.script = in_order([say("fine")])
    agent = world.agent()
    world.ask(agent=agent)
    for _ in range(5):
        world.adapter.guard.note("llm_execution", agent.session_id, ValueError("a bug"))
    assert world.adapter.guard.is_news(agent.session_id)
    world.adapter._rename([agent.session_id], "another")  # noqa: SLF001
    assert world.adapter.guard.has_given_up("another")
    assert not world.adapter.guard.is_news("another")
    assert world.command("").startswith("Not done.")


def test_nothing_of_an_ended_session_is_counted(world: World) -> None:
    """Its id may come again: what went wrong under it before is over."""
    guard = world.adapter.guard
    guard.note("llm_execution", "ended", ValueError("a bug"))
    guard.note_unjournaled("a row could not be written", "ended", OSError("full"))
    assert (guard.count("ended"), guard.unjournaled("ended")) == (1, 1)
    world.manager.invoke_hook("on_session_finalize", session_id="ended", reason="session_boundary")
    assert (guard.count("ended"), guard.unjournaled("ended")) == (0, 0)


@pytest.mark.parametrize("platform", ["cron", "api_server", "webhook", "subagent"])
def test_a_command_is_not_meant_for_a_session_that_nobody_types_into(world: World, platform: str) -> None:
    """A job that ran in between does not get what is typed on the CLI."""
    world.local.script = in_order([say("fine")])
    agent = world.agent()
    world.ask(agent=agent)
    about = {"session_id": f"{platform}-1", "platform": platform, "model": MODEL, "user_message": "do it"}
    world.manager.invoke_hook("pre_llm_call", turn_id="job", conversation_history=[], **about)
    assert world.adapter.command_session() == agent.session_id


def test_escalate_is_for_the_next_message_alone(world: World) -> None:
    """One that came while the plugin was switched off in the configuration is that message, too."""
    world.local.script = in_order([say("local answer")])
    agent = world.agent()
    world.ask(agent=agent)
    world.command("")
    world.configure(ISSUE_BLOCK.replace("enabled: true", "enabled: false"))
    world.ask(agent=agent)
    world.configure(ISSUE_BLOCK)
    assert world.ask(agent=agent)["final_response"] == "local answer"
    assert rows() == []


def test_resumed_session_is_off_and_knows_what_it_spent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hermes --resume` in a new process: /escalate off holds, and the session's cost is there."""
    agent = world.agent(session_id="resumed-one")
    world.local.script = missing
    first = world.ask(agent=agent)
    world.command("off")
    world.load()  # a new process knows nothing but what is on disk
    monkeypatch.setattr(type(world.adapter), "command_session", lambda _: "resumed-one")
    assert "escalation is off" in world.command("status")  # asked before the first message
    world.local.script = in_order([*(missing({}, n) for n in range(4)), say("local to the end")])
    before = len(world.paid.requests)
    again = world.agent(session_id="resumed-one")
    assert world.ask("more", agent=again, history=first["messages"])["final_response"] == "local to the end"
    assert len(world.paid.requests) == before
    assert "escalation is off" in world.command("status")
    assert "openai/gpt-5.4: 1 call, 100 tokens in" in world.command("status")
    world.command("auto")
    world.load()
    world.local.script = missing
    world.ask("more", agent=world.agent(session_id="resumed-one"))
    assert len(world.paid.requests) == before + 1


def test_off_before_the_first_message_is_kept(world: World) -> None:
    """What is said before a session has its id is kept under that id."""
    world.command("off")
    world.ask(agent=world.agent(session_id="early"))
    assert world.adapter.journal.is_off("early")


def test_sessions_that_nobody_ends_are_forgotten_in_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those of cron, Hermes does not say that they are over; what the user said to one of long ago is on disk."""
    monkeypatch.setattr(ledger, "MAX_SESSIONS", 3)
    monkeypatch.setattr("hermes_fallback.adapter._LONGEST_TURN_SECONDS", 0.0)
    agent = world.agent()
    world.ask(agent=agent)
    world.command("off")
    # Hermes does not say of a turn that failed that it is over, either.
    world.local.script = in_order([fail(401)])
    for _ in range(5):
        world.ask(agent=world.agent(platform="cron"))
    adapter = world.adapter
    kept = [adapter.ledgers._by_session, adapter._stays_local, adapter._last_types, adapter._turns]  # noqa: SLF001
    assert all(len(one) <= 4 for one in kept), kept
    assert not adapter.ledgers.known(agent.session_id)
    asked = len(world.local.requests)
    world.local.script = lambda _, index: missing({}, index) if index < asked + 5 else say("local answer")
    assert world.ask(agent=agent)["final_response"] == "local answer"
    assert adapter.ledgers.known(agent.session_id)


def test_a_session_at_work_is_not_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions begin while its turn runs: it goes on being counted, and is carried on when it is stuck."""
    monkeypatch.setattr(ledger, "MAX_SESSIONS", 3)
    agent = world.agent(session_id="at-work")

    def script(request: dict[str, Any], _index: int) -> Answer:
        said = request["messages"]
        if said[-1]["content"] == "something else":
            return say("done")
        failures = sum(message["role"] == "tool" for message in said)
        if failures == 2:
            for _ in range(5):
                world.ask("something else", agent=world.agent(platform="cron"))
        return missing({}, failures)

    world.local.script = script
    assert world.ask(agent=agent)["final_response"] == "paid answer"
    assert len(world.adapter.ledgers._by_session) <= 5  # noqa: SLF001


def test_idle_session_keeps_next_to_nothing(world: World) -> None:
    """After a turn only landmarks stay in memory; at the session's end nothing does."""
    agent = world.agent()
    world.local.script = in_order([*(call("terminal", command=f"echo {n}") for n in range(20)), say("done")])
    world.ask(agent=agent)
    assert len(world.adapter.ledgers.of_session(agent.session_id).events()) <= 4
    world.adapter.on_session_finalize(session_id=agent.session_id)
    assert not world.adapter.ledgers.known(agent.session_id)
    assert world.adapter._turns == {}  # noqa: SLF001


@pytest.mark.parametrize("beside", ["bg_0123ab", "bg_093000_0123ab", "preview_0123ab"])
def test_an_escalate_is_not_for_what_runs_beside(world: World, monkeypatch: pytest.MonkeyPatch, beside: str) -> None:
    """It is for the next message of the session in which it was typed; what gets stuck beside it is paid by it, too."""
    agent = world.agent(session_id="the user's")
    monkeypatch.setattr(world.manager, "_cli_ref", SimpleNamespace(session_id="the user's"))
    world.ask(agent=agent)
    world.command("")
    assert world.ask("hello", agent=world.agent(session_id=beside))["final_response"] == "local answer"
    assert world.paid.requests == []
    assert world.ask("hello", agent=agent)["final_response"] == "paid answer"
    world.local.script = missing
    told = world.ask("get stuck", agent=world.agent(session_id=f"{beside}0"))["final_response"]
    assert told.startswith("paid answer\n\n⚡ openai/gpt-5.4 helped, because read_file failed 3 times")
    assert [row["session_id"] for row in rows()] == ["the user's"] * 2


def test_what_was_not_told_goes_with_the_session(world: World) -> None:
    """A stopped turn's cost is told under the new id of a session that Hermes compresses meanwhile."""
    agent = world.agent(session_id="before", platform="telegram")

    def stopped(_request: dict[str, Any], _index: int) -> Answer:
        agent.interrupt()
        return say("never seen " * 50, hold_seconds=0.2)

    world.local.script, world.paid.script = missing, stopped
    assert world.ask(agent=agent)["interrupted"]
    asked = len(world.local.requests)

    def compressed(_request: dict[str, Any], index: int) -> Answer:
        agent.session_id = "after"
        return call("terminal", command="echo on") if index == asked else say("fine")

    world.local.script = compressed
    answer = world.ask("go on", agent=agent)["final_response"]
    assert answer.startswith("fine\n\n⚡ openai/gpt-5.4 was asked (about ")


def test_off_ends_a_task_that_hermes_fallback_has(world: World) -> None:
    """Hermes cannot go back to the local model within it, and off means that nothing more is paid."""
    world.local.script = missing
    agents: list[Any] = []

    def works(_request: dict[str, Any], index: int) -> Answer:
        if index == 1:
            agents[0].steer("escalate off")
        return call("terminal", command=f"echo {index}")

    with Endpoint(works) as other:
        with_chain(world, other)
        agents.append(chained_agent(world, other))
        result = world.ask(agent=agents[0])
        assert len(other.requests) == 2
    assert "The task stops here: you said /escalate off" in result["final_response"]
    assert "escalation is off" in world.command("status")


def with_chain(world: World, *endpoints: Endpoint, block: str = HERMES_TIER) -> None:
    """Configure Hermes's own fallback providers, and `fallback: hermes`."""
    entries = "".join(
        f"  - {{provider: custom, model: chain-model, base_url: '{endpoint.url}', api_key: sk-chain}}\n"
        for endpoint in endpoints
    )
    world.configure(block, more=f"fallback_providers:\n{entries}" if entries else "")


def chained_agent(world: World, *endpoints: Endpoint, **options: Any) -> Any:
    """An agent that has the chain, as Hermes gives it from the configuration."""
    chain = [
        {"provider": "custom", "model": "chain-model", "base_url": endpoint.url, "api_key": "sk-chain"}
        for endpoint in endpoints
    ]
    return world.agent(fallback_model=chain, **options)


@pytest.mark.parametrize(
    "stuck", [missing, in_order([say(TEXT_CALL)])], ids=["before the call", "after a useless reply"]
)
def test_hermes_own_chain_as_a_tier(world: World, caplog: pytest.LogCaptureFixture, stuck: Any) -> None:
    """`fallback: hermes` has Hermes itself go to its next provider in mid-turn; we decide, journal, price and show."""
    chain = world.endpoint(in_order([call("terminal", command="echo from the chain"), say("by Hermes's own provider")]))
    chain.strict = False
    with_chain(world, chain)
    screen = Screen()
    agent = chained_agent(world, chain, screen=screen)
    world.local.script = stuck
    first = world.ask(agent=agent)
    assert first["final_response"] == "by Hermes's own provider"
    assert f"⚡ {MODEL} → Hermes's fallback_providers: " in screen.text
    assert [(row["to_model"], row["state"]) for row in rows()] == [("custom/chain-model", "answered")] * 2
    assert rows()[0]["input_tokens"] == 100
    assert any(line.startswith("escalated session=") for line in log_of(caplog))
    assert any("custom/chain-model helped" in line and "(2 calls" in line for line in log_of(caplog))

    world.local.script = in_order([say("local again")])
    assert world.ask("next", agent=agent, history=first["messages"])["final_response"] == "local again"


def test_never_send_stops_the_chain(world: World) -> None:
    """What its provider looked at may match only then; Hermes cannot go back to the local model in the turn."""
    (secret := world.folder / "plan.txt").write_text("the plan\n")
    chain = world.endpoint(in_order([call("read_file", path=str(secret)), say("by Hermes's own provider")]))
    chain.strict = False
    with_chain(world, chain, block="model_routing: {fallback: hermes, handoff: {never_send: ['**/plan.txt']}}\n")
    world.local.script = missing
    answer = world.ask(agent=chained_agent(world, chain))["final_response"]
    assert "The task stops here" in answer
    assert "never_send" in answer
    assert len(chain.requests) == 1


def test_the_chain_stops_where_nothing_can_be_journaled(world: World) -> None:
    """What cannot be journaled is not asked."""

    def paid(_request: dict[str, Any], index: int) -> Answer:
        JOURNAL.unlink(missing_ok=True)
        JOURNAL.mkdir(exist_ok=True)
        return call("terminal", command=f"echo {index}") if index < 3 else say("by Hermes's own provider")

    chain = world.endpoint(paid)
    chain.strict = False
    with_chain(world, chain)
    world.local.script = missing
    answer = world.ask(agent=chained_agent(world, chain))["final_response"]
    assert "the journal cannot be written" in answer
    assert len(chain.requests) == 1


def another_sessions_escalation(world: World) -> None:
    """Have the numbers of a new file be other ones than those of the old one."""
    world.adapter.journal.open_escalation(Opening("another", "local", "strong", "risk", "why"))


def test_shadow_goes_on_in_a_new_journal(world: World) -> None:
    """It is one escalation there, too, however many calls it would have taken."""
    world.configure(
        "model_routing:\n  fallback: {provider: openai, model: gpt-5.4}\n  fallback_policy: {enabled: shadow}\n"
    )
    another_sessions_escalation(world)

    def local(request: dict[str, Any], index: int) -> Answer:
        if index == 4:
            JOURNAL.unlink()
        return missing(request, index) if index < 7 else say("local answer")

    world.local.script = local
    agent = world.agent()
    assert world.ask(agent=agent)["final_response"] == "local answer"
    (entry,) = world.adapter.journal.entries(session_id=agent.session_id)
    assert (entry.is_shadow, entry.calls) == (True, 4)


def test_the_chain_goes_on_in_a_new_journal(world: World) -> None:
    """Whoever moves the journal away in the midst of a task: what the chain costs from there on is in the new one."""

    def paid(_request: dict[str, Any], index: int) -> Answer:
        if index == 0:
            return call("terminal", command="echo from the chain")
        if index == 1:
            JOURNAL.unlink()
        return call("terminal", command=f"echo {index}") if index < 3 else say("by Hermes's own provider")

    chain = world.endpoint(paid)
    chain.strict = False
    with_chain(world, chain)
    another_sessions_escalation(world)
    world.local.script = missing
    agent = chained_agent(world, chain)
    assert world.ask(agent=agent)["final_response"] == "by Hermes's own provider"
    assert [(row["session_id"], row["state"]) for row in rows()] == [(agent.session_id, "answered")] * 2
    assert len(world.adapter.journal.entries(session_id=agent.session_id)) == 1


def test_hold_beyond_the_task_hands_over_again(world: World) -> None:
    """Hermes goes back to its primary at the next turn; with `hold: session` it is sent to the chain once more."""
    chain = world.endpoint(in_order([say("from the chain")]))
    chain.strict = False
    with_chain(world, chain, block="model_routing: {fallback: hermes, fallback_policy: {hold: session}}\n")
    agent = chained_agent(world, chain)
    world.local.script = missing
    first = world.ask(agent=agent)
    before = len(world.local.requests)
    second = world.ask("next", agent=agent, history=first["messages"])
    assert second["final_response"] == "from the chain"
    assert len(world.local.requests) == before


def test_chain_that_fails_leads_to_the_next_tier(world: World) -> None:
    """In a ladder, an exhausted chain is a failed tier: the next one answers."""
    world.configure(
        "model_routing: {fallback: [hermes, {provider: openai, model: gpt-5.4}]}\n",
        more="fallback_providers:\n  - {provider: custom, model: x, base_url: 'http://127.0.0.1:9/v1', api_key: none}\n",
    )
    world.local.script = missing
    assert world.ask(agent=world.agent(fallback_model=[]))["final_response"] == "paid answer"


def test_empty_chain_is_a_fault(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """`fallback: hermes` without `fallback_providers` is named by log and check, and Hermes runs as if we were absent."""
    world.configure(HERMES_TIER)
    world.local.script = in_order([*(missing({}, n) for n in range(4)), say("local")])
    assert world.ask()["final_response"] == "local"
    (error,) = log_of(caplog, logging.ERROR)
    assert "Hermes has no `fallback_providers`; add one with `hermes fallback add`" in error


def test_hermes_that_fell_over_by_itself_is_left_alone(world: World) -> None:
    """When Hermes went to its own provider because the local endpoint failed, that model's replies are not ours to judge."""
    garbage = "I will look at it again. " * 30
    chain = world.endpoint(in_order([say(garbage)]))
    chain.strict = False
    world.configure(
        "model_routing: {fallback: {provider: openai, model: gpt-5.4}, fallback_policy: {trigger_on: [invalid_output]}}\n"
    )
    world.local.script = in_order([fail(401, "no")])
    result = world.ask(agent=chained_agent(world, chain))
    assert result["final_response"] == garbage.strip()
    assert rows() == []


def test_all_triggers_block_is_the_shortest_one(world: World) -> None:
    """One line of configuration is enough."""
    world.configure(ALL_TRIGGERS)
    world.local.script = missing
    assert world.ask()["final_response"] == "paid answer"


def test_what_goes_on_after_its_session_leaves_nothing_behind(world: World) -> None:
    """A sub-agent that works on when its parent's session is over is paid for, and nobody is left to be told of it."""
    parent = world.agent()
    world.local.script = in_order([say("fine")])
    world.ask(agent=parent)
    world.manager.invoke_hook("subagent_start", parent_session_id=parent.session_id, child_session_id="child")
    world.manager.invoke_hook("on_session_finalize", session_id=parent.session_id, platform="cli")
    world.local.script = missing
    child = world.agent(session_id="child", platform="subagent")
    assert world.ask("work on", agent=child)["final_response"].startswith("paid answer")
    world.manager.invoke_hook("subagent_stop", child_session_id="child")
    books = {name: book for name, book in vars(world.adapter).items() if isinstance(book, dict | set)}
    assert {name for name, book in books.items() if book} == set()
