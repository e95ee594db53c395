"""Task types and shadow, end to end: what a type overrides holds for its tasks alone; in shadow, nothing is paid."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from hermes_fallback.config import Config, Match, Policy, TaskType, Tier, parse
from hermes_fallback.kinds import Facts, kind_of
from tests.endpoints import Answer, call, in_order, say
from tests.gateway_chats import Gateway
from tests.test_escalation import LOOP, missing, rows
from tests.test_money import OPENAI, block, stuck, stuck_each_task, tasks
from tests.world import Screen, World, config_text, log_of

FACTS = Facts("Please fix the bug in main.py", "cli", frozenset({"file", "terminal"}), "/home/ann/code/app")

MATCHES = [
    (Match(), "it matches every task"),
    (Match(message=r"(?i)\bBUG\b"), "the message matches"),
    (Match(message=r"\bBUG\b"), None),
    (Match(platform=("cron", "cli")), "the platform is cli"),
    (Match(platform=("telegram",)), None),
    (Match(toolsets=("browser", "file")), "it has the toolset file"),
    (Match(toolsets=("browser",)), None),
    (Match(cwd=("/home/ann/code",)), "the folder is in /home/ann/code"),
    (Match(cwd=("/home/*/code/**",)), "the folder is in /home/*/code/**"),
    (Match(cwd=("~/code",)), "the folder is in ~/code"),
    (Match(cwd=("/home/ann/co",)), None),
    (Match(cwd=("/",)), "the folder is in /"),
    (Match(cwd=("/**",)), "the folder is in /**"),
    (Match(cwd=("/srv", "/home/ann/code/app")), "the folder is in /home/ann/code/app"),
    (Match(message="bug", platform=("cli",)), "the message matches and the platform is cli"),
    (Match(message="bug", platform=("cron",)), None),
]


@pytest.mark.parametrize(("match", "because"), MATCHES)
def test_match(monkeypatch: pytest.MonkeyPatch, match: Match, because: str | None) -> None:
    """All conditions must hold, of a list one; folders count with what is below them."""
    monkeypatch.setenv("HOME", "/home/ann")
    kind = TaskType("a", match, Config((Tier("a", "b"),)))
    config = Config((Tier("a", "b"),), task_types=(kind,))
    assert kind_of(config, FACTS) == (None if because is None else (kind, because))


def test_a_pattern_without_end_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """A pattern that would be looked for until tomorrow does not match, and the log says which; others are not kept waiting."""
    given = {
        "fallback": {"provider": "openai", "model": "gpt-5.4"},
        "task_types": [{"name": "slow", "match": {"message": "(a|aa)+$"}}, {"name": "next", "match": {"message": "b"}}],
    }
    found = kind_of(parse(given), Facts("a" * 5000 + "b", "cli", frozenset(), "/"))
    assert found is not None
    assert found[0].name == "next"
    assert "'(a|aa)+$' in `task_types` is given up" in caplog.text


def test_first_match_wins_and_overrides() -> None:
    """The first type that matches counts; what it leaves out is the block's, its limits replace one by one."""
    config = parse(
        {
            "fallback": OPENAI,
            "fallback_policy": {"max_local_attempts": 5, "budget": {"per_task_usd": 1, "per_day_usd": 9}, "triggers": {"no_progress": {"after": 7}}},
            "task_types": [
                {"name": "never", "match": {"platform": "cron"}, "enabled": False},
                {"name": "bugs", "match": {"message": "bug"}, "start_on": "fallback", "hold": "session",
                 "budget": {"per_task_usd": 2}, "triggers": {"invalid_output": {"after": 2}},
                 "fallback": {"provider": "anthropic", "model": "claude"}},
                {"name": "rest", "confirm": "always"},
            ],
        }
    )  # fmt: skip
    found = kind_of(config, FACTS)
    assert found is not None
    kind, _ = found
    policy = kind.config.policy
    assert kind.name == "bugs"
    assert (policy.max_local_attempts, policy.hold) == (5, "session")
    assert (policy.budget.per_task_usd, policy.budget.per_day_usd) == (2, 9)
    assert policy.after == {"no_progress": 7, "invalid_output": 2}
    assert policy.trigger_on == ("task_type", *Policy().trigger_on)
    assert kind.config.ladder == (Tier("anthropic", "claude"),)
    assert "task_type" not in config.policy.trigger_on
    assert config.task_types[2].config.policy.confirm == "always"


def test_a_type_starts_on_the_stronger_model(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """`start_on: fallback`: the first call goes up, said and journaled; other tasks start on the local model."""
    types = [{"name": "hard", "match": {"message": "(?i)theorem"}, "start_on": "fallback"}]
    world.configure(block(task_types=types))
    world.paid.script = in_order([call("terminal", command="echo hi"), say("paid answer")])
    screen = Screen()
    agent = world.agent(screen=screen)
    assert world.ask("prove the Theorem", agent=agent)["final_response"] == "paid answer"
    assert world.local.requests == []
    assert "openai/gpt-5.4: tasks of the type “hard” start there" in screen.text
    assert {(row["trigger"], row["task_type"], row["type_reason"]) for row in rows()} == {
        ("task_type", "hard", "the message matches")
    }
    assert "The task is of type hard, for the message matches." in world.command("status")
    assert any("a task of type hard, for the message matches" in line for line in log_of(caplog))
    assert world.ask("and now something else", agent=agent)["final_response"] == "local answer"
    assert "The task is of type" not in world.command("status")
    world.command("off")
    assert world.ask("another theorem", agent=agent)["final_response"] == "local answer"


def test_a_type_in_its_folder_and_with_its_tools(world: World) -> None:
    """Folder and toolsets are those of the running agent; the type's own attempts count."""
    inside = {"cwd": str(world.folder.parent), "toolsets": ["terminal"]}
    world.configure(block(task_types=[{"name": "here", "match": inside, "max_local_attempts": 1}]))
    world.local.script = stuck
    world.ask()
    assert len(world.local.requests) == 1
    assert rows()[0]["type_reason"] == f"it has the toolset terminal and the folder is in {world.folder.parent}"
    world.local.requests.clear()
    world.ask(agent=world.agent(enabled_toolsets=["file"]))
    assert len(world.local.requests) == 3
    assert [task[0] for task in tasks()] == ["here", ""]


def test_only_some_types_are_on(world: World) -> None:
    """With `enabled: false` and a type that says true, only tasks of that type are escalated."""
    types = [{"name": "chat", "match": {"platform": ["loopback"]}, "enabled": True, "max_local_attempts": 2}]
    text = block({"enabled": False}, task_types=types)
    world.configure(text)
    world.local.script = stuck_each_task
    assert world.ask()["final_response"] == "local answer"
    assert world.paid.requests == []
    with Gateway(config_text(world.local.url, text)) as running:
        chat = running.chat("A")
        chat.ask("get stuck")
        assert "paid answer" in chat.screen[-1]
    assert [row["task_type"] for row in rows()] == ["chat"]


SHADOW = block({"enabled": "shadow", "confirm": "always", "budget": {"per_day_usd": 0.01}})


def test_shadow(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is paid or asked: the log says where it would have gone and for how much, the journal keeps it apart."""
    world.configure(SHADOW)
    world.local.script = in_order([*(missing({}, n) for n in range(5)), say("local answer")])
    screen = Screen()
    agent = world.agent(screen=screen)
    assert world.ask(agent=agent)["final_response"] == "local answer"
    assert world.paid.requests == []
    assert "⚡" not in screen.text
    found = rows()
    assert [row["is_shadow"] for row in found] == [1, 1, 1]
    assert {row["trigger"] for row in found} == {"repeated_tool_failure"}
    # The three calls that came after the third failure, at the local model's own count of tokens.
    assert sum(row["cost_usd"] for row in found) == pytest.approx(3 * (100 * 2.5e-6 + 20 * 15e-6))
    (line,) = [line for line in log_of(caplog) if line.startswith("shadow: would have escalated")]
    assert "to=openai/gpt-5.4 trigger=repeated_tool_failure because: read_file failed 3 times" in line
    assert "about $0.0006 for this call" in line
    assert any("the stronger model would have cost about $0.0016 in this task" in line for line in log_of(caplog))
    status = world.command("status")
    assert "would take over, if it were not for `enabled: shadow`" in status
    assert "shadow: openai/gpt-5.4: 3 calls" in status
    assert world.adapter.journal.spent(task_id="", account="").day == 0
    assert world.ask("hello", agent=agent)["final_response"] == "local answer"
    assert len(rows()) == 3


def test_shadow_of_an_answer(world: World) -> None:
    """A useless final answer would have been replaced by one call; it is shown as it is."""
    world.configure(SHADOW)
    world.local.script = in_order([say(LOOP * 20)])
    assert LOOP.strip() in world.ask()["final_response"]
    (row,) = rows()
    assert (row["trigger"], row["is_shadow"], row["input_tokens"]) == ("invalid_output", 1, 100)


def test_shadow_of_an_answer_that_would_be_replaced(world: World) -> None:
    """On the screen stands what the local model said, and no word of ours."""
    world.configure(SHADOW)
    world.local.script = in_order([say("config.json holds nothing special.")])
    screen = Screen()
    world.ask("what is in config.json?", agent=world.agent(screen=screen))
    assert [(row["trigger"], row["is_shadow"]) for row in rows()] == [("silent_failure", 1)]
    assert "⚡" not in screen.text


def test_escalate_in_shadow_pays_nothing(world: World) -> None:
    """/escalate says so, and the task stays local."""
    world.configure(SHADOW)
    agent = world.agent()
    world.ask("hello", agent=agent)
    assert "pays for nothing" in world.command("")
    assert world.ask("go on", agent=agent)["final_response"] == "local answer"
    assert world.paid.requests == []
    assert [row["trigger"] for row in rows()] == ["user_request"]


def test_shadow_without_a_journal(world: World, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A journal that cannot be written changes nothing for the local model; the log says so once a task."""
    world.configure(SHADOW)
    world.local.script = in_order([*(missing({}, n) for n in range(6)), say("local answer")])
    (tmp_path / "hermes-fallback").write_text("in the way")
    world.adapter._home = lambda: tmp_path  # noqa: SLF001
    assert world.ask()["final_response"] == "local answer"
    assert sum("a shadow escalation could not be written" in line for line in log_of(caplog, logging.WARNING)) == 1


def test_tasks_are_counted(world: World) -> None:
    """Each turn of the local model leaves its calls and tokens; what an endpoint does not tell is counted as untold."""

    def silent(request: dict[str, Any], index: int) -> Answer:
        return say("local answer", tells_usage=False) if "quiet" in json.dumps(request) else stuck(request, index)

    world.configure(block({"trigger_on": ["user_request"]}))
    world.local.script = silent
    world.ask("hello")
    world.ask("be quiet")
    assert tasks() == [("", 4, 0, 400), ("", 1, 1, 0)]
