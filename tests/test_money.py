"""Money end to end: what the budget, a person or the price does not allow is not asked; what is asked is accounted for."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_fallback import host, journal, prices
from hermes_fallback.budget import Spent
from hermes_fallback.config import Tier
from hermes_fallback.events import ConsentRefused, SwitchedOff
from hermes_fallback.journal import Journal
from tests import wire
from tests.endpoints import Answer, Endpoint, Script, call, fail, in_order, raw_call, say
from tests.test_escalation import JOURNAL, LOOP, missing, rows
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


def delegating(request: dict[str, Any], index: int) -> Answer:
    """Gives "delegate it" to a sub-agent, and gets stuck with all else."""
    words = [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]
    done = any(message["role"] == "tool" for message in request["messages"])
    if "delegate" in words:
        return say("it is at work") if done else call("delegate_task", goal="the goal")
    return stuck_each_task(request, index)


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
    assert 0.05 < row["reserved_usd"] <= 0.06 + 1e-9  # floats: a thousandth of a millionth is let pass (budget.py)
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


TAGS: dict[str, Any] = {
    "array of anything": {"type": "array"},
    "array of true": {"type": "array", "items": True},
    "two kinds in a row": {"type": "array", "items": [{"type": "string"}, {"type": "number"}]},
    "anything": True,
}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_a_tool_that_litellm_cannot_count(world: World, caplog: pytest.LogCaptureFixture, tags: object) -> None:
    """A schema need not say of what an array is; under a budget in dollars, its tool is counted as it is written."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    agent = world.agent()
    parameters = {"type": "object", "properties": {"tags": tags}}
    agent.tools = [*agent.tools, {"type": "function", "function": {"name": "tag_issue", "parameters": parameters}}]
    assert world.ask(agent=agent)["final_response"] == "paid answer"
    assert not log_of(caplog, logging.WARNING)


def test_all_of_a_tool_is_counted() -> None:
    """What stands under `anyOf` is sent, so it is reserved for."""

    def reserved(words: str) -> int:
        either = {"anyOf": [{"type": "string", "description": words}, {"type": "number"}]}
        parameters = {"type": "object", "properties": {"either": either}}
        tools = [{"type": "function", "function": {"name": "tag", "parameters": parameters}}]
        worst = prices.worst_case(Tier("openai", "gpt-5.4"), {"messages": [], "tools": tools})
        assert worst is not None
        return worst.input_tokens

    assert reserved("word " * 1000) > reserved("") + 1000


@pytest.mark.parametrize("detail", [None, "low", "high", "original", "unheard of"])
@pytest.mark.parametrize("url", ["data:image/png;base64,AAAA", "https://host.invalid/a.png"])
def test_images_are_reserved_for_by_the_most_that_one_takes(url: str, detail: str | None) -> None:
    """Claude's may take 5,000 tokens, and OpenAI's 3,000, or 12,000 as they are; nothing is fetched to count them."""
    image = {"url": url} if detail is None else {"url": url, "detail": detail}
    content = [{"type": "text", "text": "what is that?"}, *[{"type": "image_url", "image_url": image}] * 20]
    asked = {"messages": [{"role": "user", "content": content}]}
    worst = prices.worst_case(Tier("anthropic", "claude-sonnet-4-5"), asked)
    each = 12_000 if detail == "original" else 5_000
    assert worst is not None
    assert 20 * each < worst.input_tokens < 20 * each + 100
    # Whether they fit into the model's window is another question.
    usual = prices.count_tokens(Tier("anthropic", "claude-sonnet-4-5"), asked["messages"], None)
    assert 20 * 1_600 < usual < 20 * 1_600 + 100


def test_what_cannot_be_counted_is_a_token_a_byte(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of litellm's counter neither lets a call go unreserved nor keeps it from being made."""
    import litellm  # noqa: PLC0415  # it takes seconds

    def fails(**_: object) -> int:
        raise KeyError("items")

    monkeypatch.setattr(litellm, "token_counter", fails)
    text = "what is that? " * 10
    assert len(text) < prices.count_tokens(Tier("openai", "gpt-5.4"), [{"role": "user", "content": text}], None)
    assert "tokens cannot be counted" in caplog.text


def test_a_service_that_costs_more_is_reserved_for() -> None:
    """`service_tier: priority` has a price of its own; of a cheaper one nobody knows whether it will be served."""

    def worst(**extra: object) -> float:
        tier = Tier("openai", "gpt-5.4", extra=extra)
        found = prices.worst_case(tier, {"messages": [{"role": "user", "content": "hello " * 1000}]})
        assert found is not None
        return found.usd(1000)

    assert worst(service_tier="priority") == pytest.approx(2 * worst())
    assert worst(service_tier="flex") == worst()


@pytest.mark.parametrize(
    ("extra", "times"),
    [
        ({"speed": "fast"}, 2),
        ({"inference_geo": "us"}, 1.1),
        ({"speed": "fast", "inference_geo": "us"}, 2.2),
        ({"speed": "standard", "inference_geo": "global"}, 1),
    ],
)
def test_claude_that_is_faster_or_in_one_country_is_reserved_for(extra: dict[str, object], times: float) -> None:
    """Its `speed` and `inference_geo` make all that is read and written dearer."""
    asked = {"messages": [{"role": "user", "content": "hello " * 1000}]}
    usual = prices.worst_case(Tier("anthropic", "claude-opus-4-8"), asked)
    worst = prices.worst_case(Tier("anthropic", "claude-opus-4-8", extra=extra), asked)
    assert usual is not None
    assert worst is not None
    assert worst.usd(1000) == pytest.approx(times * usual.usd(1000))


@pytest.mark.parametrize("count", [10**19, 2**64 - 5, -7])
def test_a_count_that_cannot_be_true_is_unknown(world: World, caplog: pytest.LogCaptureFixture, count: int) -> None:
    """An endpoint whose counter fell below nothing: the answer is kept and paid as reserved, and nothing fails."""
    world.configure(budget(per_day_usd=5))
    world.local.script = in_order([*(missing({}, n, usage=(count, 20)) for n in range(3)), say("local answer")])
    world.paid.script = in_order([say("paid answer", usage=(count, 20))])
    assert world.ask()["final_response"] == "paid answer"
    (row,) = rows()
    assert (row["state"], row["input_tokens"]) == ("answered", None)
    assert row["cost_usd"] == row["reserved_usd"] > 0
    assert tasks() == [("", 3, 3, 0)]
    assert not log_of(caplog, logging.WARNING)


def test_an_answer_whose_cost_could_not_be_written(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program holds the journal when the answer comes: the user reads what is reserved for it."""
    monkeypatch.setattr(journal, "_BUSY_SECONDS", 0.1)
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    held: list[sqlite3.Connection] = []

    def paid(_request: dict[str, Any], _index: int) -> Answer:
        held.append(sqlite3.connect(JOURNAL, check_same_thread=False, isolation_level=None))
        held[0].execute("BEGIN EXCLUSIVE")
        return say("paid answer")

    world.paid.script = paid
    screen = Screen()
    agent = world.agent(screen=screen)
    # Its summary is read when the journal is free again.
    summary = world.adapter._summary  # noqa: SLF001

    def later(*asked: object) -> object:
        held[0].close()
        return summary(*asked)

    monkeypatch.setattr(world.adapter, "_summary", later)
    assert world.ask(agent=agent)["final_response"] == "paid answer"
    (row,) = rows()
    assert row["state"] == "started"
    assert f"was asked (about unknown tokens in, unknown out, ${row['reserved_usd']:.4f})" in screen.text


def test_what_a_stopped_call_used_is_said(world: World) -> None:
    """Who says stop reads at the end of the turn about how much it was."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    world.paid.script = in_order([say("word " * 200, hold_seconds=0.05)])
    screen = Screen()
    agent = world.agent(screen=screen)
    threading.Thread(target=interrupt_when_it_speaks, args=(agent, screen)).start()
    assert world.ask(agent=agent)["interrupted"]
    (row,) = rows()
    assert row["state"] == "interrupted"
    assert f"⚡ openai/gpt-5.4 was asked (about {row['input_tokens']:,} tokens in, " in screen.text


def interrupt_when_it_speaks(agent: Any, screen: Screen) -> None:
    """Say stop as soon as a word was shown."""
    while "word" not in screen.text:
        time.sleep(0.01)
    agent.interrupt()


@pytest.mark.parametrize(
    ("cached", "price"),
    [(2**64 - 5, None), (-3, None), (101, {"input_per_million_usd": 2.5, "output_per_million_usd": 15})],
)
def test_cached_tokens_that_cannot_be_true_cost_nothing(world: World, cached: int, price: object) -> None:
    """More of the input cannot have been read from the cache than there was: it costs what it does without one."""
    world.configure(block({"budget": {"per_day_usd": 5}}, fallback={**OPENAI, **({"price": price} if price else {})}))
    world.local.script = stuck
    world.paid.script = in_order([say("paid answer", cached=cached)])
    assert world.ask()["final_response"] == "paid answer"
    assert rows()[0]["cost_usd"] == pytest.approx(100 * 2.5e-6 + 20 * 15e-6)


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
    world.local.script = delegating
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


@pytest.mark.parametrize(("usd", "least", "most"), [(20, 36_384, 36_384), (0.8, 20_001, 36_383), (0.5, None, None)])
def test_claude_that_thinks_has_room_for_its_answer(
    world: World, monkeypatch: pytest.MonkeyPatch, usd: float, least: int | None, most: int | None
) -> None:
    """Claude refuses a limit that its `budget_tokens` do not fit into: they come on top, or it is not asked."""
    paid = world.endpoint(in_order([say("paid answer")]), wire=wire.ANTHROPIC, key=KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    thinks = {"thinking": {"type": "enabled", "budget_tokens": 20_000}}
    claude = {"provider": "anthropic", "model": "claude-opus-4-6", "base_url": paid.url, "extra": thinks}
    world.configure(block({"budget": {"per_day_usd": usd}}, fallback=claude))
    world.local.script = stuck
    screen = Screen()
    answer = world.ask(agent=world.agent(screen=screen))["final_response"]
    assert answer == ("local answer" if least is None else "paid answer")
    assert all(least <= request["max_tokens"] <= most for request in paid.requests if least and most)
    assert len(paid.requests) == (least is not None)
    assert ("is not asked: it may cost $0.5" in screen.text) == (least is None)


def test_no_more_is_asked_for_than_a_model_can_write(world: World) -> None:
    """A limit beyond that is refused, and so would be each call under a budget."""
    world.configure(block({"budget": {"per_day_usd": 5}}, fallback={"provider": "openai", "model": "gpt-4-turbo"}))
    world.local.script = stuck
    assert world.ask()["final_response"] == "paid answer"
    assert [request["max_completion_tokens"] for request in world.paid.requests] == [4096]


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


def test_the_local_endpoint_hears_the_limit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`provider: primary` where Hermes says `max_completion_tokens`: the budget's limit goes out by that name, and no other."""
    monkeypatch.setattr("tests.world.MODEL", "gpt-5-nano")  # at a proxy, say
    price = {"input_per_million_usd": 5, "output_per_million_usd": 25}
    big = {"provider": "primary", "model": "big", "price": price}
    world.configure(block({"budget": {"per_task_usd": 0.20}}, fallback=big))
    heard: list[dict[str, Any]] = []

    def script(request: dict[str, Any], index: int) -> Answer:
        if request["model"] != "big":
            return stuck(request, index)
        heard.append(request)
        return say("big answer")

    world.local.script = script
    assert world.ask(agent=world.agent(max_tokens=32_000))["final_response"] == "big answer"
    assert 1024 < heard[0]["max_completion_tokens"] < 8_000
    assert "max_tokens" not in heard[0]


NOT_ZIPPED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n"
    b"data: this is not zipped\n\n"
)
USED = [
    # the paid model's reply → state, and what is charged of a call with 100 tokens in (as far as the provider says it)
    (fail(500, "no"), "failed", (0, 0)),
    (fail(401, "no"), "failed", (0, 0)),
    (fail(429, "no"), "failed", (0, 0)),
    (say("word " * 50, cut_after=100), "failed", (3000, 15)),
    (say("word " * 50, cut_after=0), "failed", (3000, 0)),
    (Answer(raw=NOT_ZIPPED), "failed", (3000, 0)),
]


@pytest.mark.parametrize(
    ("answer", "state", "least"), USED, ids=["500", "401", "429", "cut", "cut at once", "not zipped"]
)
def test_unfinished_calls_cost_what_they_used(world: World, answer: Answer, state: str, least: tuple[int, int]) -> None:
    """Refused: nothing. Broken off: the input, counted, and what had come; never more than was reserved."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    world.paid.script = lambda *_: answer
    assert world.ask()["final_response"] == "local answer"
    (row,) = rows()
    # What may have been worked for is not asked for twice.
    assert len(world.paid.requests) == 1 or not least[0]
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

    if not host.can_ask():
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


def test_what_was_said_to_be_the_most_is_the_most(world: World, person: list[Any]) -> None:
    """Who said yes to “$0.26 at most” pays no more than that for a call: without a budget, too, it is limited."""
    world.configure(block({"confirm": "first_in_session"}))
    world.local.script = stuck_each_task
    world.paid.script = in_order([call("terminal", command="echo hi"), say("paid answer")])
    person[:] = ["once"]
    agent = world.agent()
    assert world.ask(agent=agent)["final_response"] == "paid answer"
    assert world.ask("more", agent=agent)["final_response"] == "paid answer"
    assert "up to 16,384 tokens out: " in person[0]
    assert [request["max_completion_tokens"] for request in world.paid.requests] == [16_384] * 3
    assert f"${rows()[0]['reserved_usd']:.4f} at most" in person[0]


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


def test_a_question_has_nothing_that_a_terminal_obeys(world: World, person: list[Any]) -> None:
    """The name of a model is asked about as plain text."""
    price = {"input_per_million_usd": 1, "output_per_million_usd": 1}
    hostile = {"provider": "openai", "model": "evil\x1b]52;c;aGk=\x07\u202e", "price": price}
    world.configure(block({"confirm": "always"}, fallback=hostile))
    world.local.script = stuck_each_task
    person[:] = ["deny"]
    world.ask()
    assert "Let openai/evil ]52;c;aGk=" in person[0]
    assert person[0].isprintable()


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
    assert [request["max_completion_tokens"] for request in world.paid.requests] == [16_384] * 2
    assert f"up to 16,384 tokens out: ${rows()[0]['reserved_usd']:.4f} at most" in person[0]
    person[:] = ["deny"]
    assert world.ask()["final_response"] == "local answer"
    assert len(rows()) == 2


def test_a_yes_lifts_no_other_limit(world: World, person: list[Any]) -> None:
    """“This task may cost more” is not “today may cost more”: that is asked for when it comes to it."""
    world.configure(budget(per_task_usd=0.01, per_day_usd=0.5, on_exceeded="ask"))
    world.local.script = stuck
    world.paid.script = lambda request, index: raw_call(
        "terminal", f'{{"command": "echo {index}"}}', usage=(1000, request["max_completion_tokens"])
    )
    person[:] = ["once", "deny"]
    assert world.ask()["final_response"] == "local answer"
    assert ["for this task is left" in person[0], "today is left" in person[1]] == [True, True]
    assert 0.25 < day(world) <= 0.5


EACH = [
    ({"max_escalations_per_session": 0, "per_task_usd": 0.01}, ["its 0 escalations", "for this task is left"]),
    ({"per_task_usd": 0.01, "per_month_usd": 0.015}, ["for this task is left", "this month is left"]),
    ({"per_session_usd": 0, "per_day_usd": 0.001}, ["for this session is left", "today is left"]),
    ({"per_day_usd": 0}, ["its price is not known, and a budget", "$0 today is left"]),
]


@pytest.mark.parametrize(("limits", "questions"), EACH)
def test_each_limit_is_asked_about(
    world: World, person: list[Any], limits: dict[str, Any], questions: list[str]
) -> None:
    """Two limits in the way of a call are two questions, and one no is enough."""
    is_unknown = "price" in questions[0]
    tier = {**OPENAI, "model": "gpt-of-tomorrow"} if is_unknown else OPENAI
    world.configure(block({"budget": {**limits, "on_exceeded": "ask"}}, fallback=tier))
    world.local.script = stuck_each_task
    person[:] = ["once", "deny"]
    assert world.ask()["final_response"] == "local answer"
    assert world.paid.requests == rows() == []
    person[:] = ["once", "once"]
    assert world.ask()["final_response"] == "paid answer"
    assert [words in asked for words, asked in zip(questions, person, strict=True)] == [True, True]


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

    if not host.can_ask():
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


CLAUDE = {"provider": "anthropic", "model": "claude-opus-4-6", "api_key": KEY}


def claude_chain(world: World, monkeypatch: pytest.MonkeyPatch, script: Script, policy: dict[str, Any]) -> Any:
    """An agent whose own fallback provider is Claude, and `fallback: hermes` with this policy."""
    from agent import anthropic_adapter  # noqa: PLC0415  # Hermes's, after HERMES_HOME is set

    chain = world.endpoint(script, wire=wire.ANTHROPIC)
    chain.strict = False
    client = anthropic_adapter.build_anthropic_client
    # The address is Hermes's own for this provider.
    monkeypatch.setattr(
        anthropic_adapter, "build_anthropic_client", lambda key, _=None, **more: client(key, chain.url, **more)
    )
    world.configure(block(policy, fallback="hermes"), more=yaml.safe_dump({"fallback_providers": [CLAUDE]}))
    return world.agent(fallback_model=[CLAUDE])


CACHES = [
    # tokens in, read from the cache, written there → dollars for the input, at $5 a million
    (100_000, 0, 0, 0.5),
    (100_000, 0, 99_900, 100 * 5e-6 + 99_900 * 6.25e-6),
    (100_000, 60_000, 30_000, 10_000 * 5e-6 + 60_000 * 0.5e-6 + 30_000 * 6.25e-6),
]


@pytest.mark.parametrize("case", CACHES)
def test_what_claude_caches_in_hermes_own_chain_is_paid(
    world: World, monkeypatch: pytest.MonkeyPatch, case: tuple[int, int, int, float]
) -> None:
    """`fallback: hermes`: Claude's own `input_tokens` leaves out what it read from its cache and put there."""
    tokens, cached, written, usd = case
    script = in_order([say("from the chain", usage=(tokens, 20), cached=cached, cache_written=written)])
    agent = claude_chain(world, monkeypatch, script, {"budget": {"per_day_usd": 5, "unknown_price": "allow"}})
    world.local.script = stuck
    assert world.ask(agent=agent)["final_response"] == "from the chain"
    (row,) = rows()
    assert (row["to_model"], row["input_tokens"]) == ("anthropic/claude-opus-4-6", tokens)
    assert row["cost_usd"] == pytest.approx(usd + 20 * 25e-6)


def deepseek_chain(world: World, monkeypatch: pytest.MonkeyPatch, script: Script, policy: dict[str, Any]) -> Any:
    """An agent whose own fallback provider speaks OpenAI's chat, and `fallback: hermes` with this policy."""
    chain = world.endpoint(script)
    chain.strict = False
    monkeypatch.setenv("DEEPSEEK_BASE_URL", chain.url)
    deepseek = {"provider": "deepseek", "model": "deepseek-chat", "api_key": KEY}
    world.configure(block(policy, fallback="hermes"), more=yaml.safe_dump({"fallback_providers": [deepseek]}))
    return world.agent(fallback_model=[deepseek])


def dear(_request: dict[str, Any], index: int) -> Answer:
    """Works on and on, for cents a call."""
    return raw_call("terminal", f'{{"command": "echo {index}"}}', usage=(20_000, 20_000))


@pytest.mark.parametrize("chain", [claude_chain, deepseek_chain])
@pytest.mark.parametrize(("on_exceeded", "why"), [("local", "Hermes cannot go back"), ("stop", "`on_exceeded: stop`")])
def test_hermes_own_chain_stops_with_the_budget(
    world: World, monkeypatch: pytest.MonkeyPatch, chain: Any, on_exceeded: str, why: str
) -> None:
    """What a call of Hermes's costs is known after it: one may go beyond a limit in dollars, and ends the task."""
    limits = {"per_task_usd": 0.01, "unknown_price": "allow", "on_exceeded": on_exceeded}
    agent = chain(world, monkeypatch, dear, {"budget": limits})
    world.local.script = stuck_each_task
    answer = world.ask(agent=agent)["final_response"]
    assert answer.startswith(f"⚡ The task stops here ({why}")
    assert "$0.0000 of $0.01 for this task is left" in answer
    assert len(rows()) == 1
    world.local.script = in_order([say("local answer")])
    assert world.ask("hello", agent=agent)["final_response"] == "local answer"


def test_a_person_lets_hermes_own_chain_go_over(
    world: World, monkeypatch: pytest.MonkeyPatch, person: list[Any]
) -> None:
    """`on_exceeded: ask` asks before Hermes goes to its chain, and when a limit is used up there; a no ends the task."""
    limits = {"per_task_usd": 0.01, "per_day_usd": 0.02, "max_escalations_per_session": 0, "unknown_price": "allow"}
    agent = deepseek_chain(world, monkeypatch, dear, {"budget": {**limits, "on_exceeded": "ask"}})
    world.local.script = stuck_each_task
    person[:] = ["deny"]
    assert world.ask(agent=agent)["final_response"] == "local answer"
    assert rows() == []
    person[:] = ["once", "once", "deny"]
    assert "(Hermes cannot go back to the local model in it)" in world.ask("again", agent=agent)["final_response"]
    named = ["this session has had its 0 escalations", "for this task is left", "today is left"]
    assert [words in asked for words, asked in zip(named, person, strict=True)] == [True] * 3
    assert len(rows()) == 2


@pytest.mark.parametrize("mode", ["chat_completions", "anthropic_messages", "codex_responses"])
def test_our_own_words_are_an_answer_however_hermes_calls(mode: str) -> None:
    """A fallback provider of Hermes's may speak another language than the local model's endpoint."""
    transports = pytest.importorskip("agent.transports")
    transport, response = transports.get_transport(mode), host.spoken_response("it stops here", model="hermes-fallback")
    assert transport.validate_response(response)
    read = transport.normalize_response(response)
    assert (read.content, read.tool_calls or None, read.finish_reason) == ("it stops here", None, "stop")


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


HELD = {"hold": "session"}


def day(world: World) -> float:
    """What is spent today."""
    spent: float = world.adapter.journal.spent(task_id="", account="").day
    return spent


def test_a_held_session_knows_shadow_from_money(world: World) -> None:
    """What would have been in shadow holds nothing when money is on; a paid holder is not charged for shadow calls."""
    world.local.script = stuck_each_task
    agent = world.agent()
    world.configure(block({**HELD, "enabled": "shadow"}))
    world.ask(agent=agent)
    world.configure(block({**HELD, "budget": {"max_escalations_per_session": 0}}))
    assert world.ask("hello", agent=agent)["final_response"] == "local answer"
    assert world.paid.requests == []
    world.configure(block(HELD, task_types=[{"name": "s", "match": {"message": "shade"}, "enabled": "shadow"}]))
    assert world.ask("get stuck", agent=agent)["final_response"] == "paid answer"
    spent = day(world)
    assert world.ask("shade", agent=agent)["final_response"] == "local answer"
    assert day(world) == spent > 0
    assert len(world.paid.requests) == 1


def test_a_held_tier_is_not_another_ladders(world: World, person: list[Any]) -> None:
    """A task type with a dearer ladder is not entered by what holds the session: it is asked for like any other."""
    dear = {"name": "dear", "match": {"message": "dear"}, "fallback": OPENAI, "confirm": "always"}
    world.configure(block(HELD, fallback={**OPENAI, "model": "gpt-5-nano"}, task_types=[dear]))
    world.local.script = stuck_each_task
    agent = world.agent()
    world.ask(agent=agent)
    person[:] = ["deny"]
    assert world.ask("dear", agent=agent)["final_response"] == "local answer"
    assert "Let openai/gpt-5.4 take over" in person[0]
    assert [request["model"] for request in world.paid.requests] == ["gpt-5-nano"]


@pytest.mark.parametrize("how", ["forgotten", "corrupt"])
def test_a_held_session_whose_row_is_gone(world: World, how: str) -> None:
    """Each further call has a row and counts, though the escalation's own was forgotten, or is in a file set aside."""
    world.configure(block({**HELD, "budget": {"per_day_usd": 0.6}}))
    world.local.script = stuck_each_task
    # 15,000 tokens are $0.225, if it may write so many.
    world.paid.script = lambda request, _: say(
        "paid answer", usage=(100, min(15_000, request["max_completion_tokens"]))
    )
    agent = world.agent()
    world.ask(agent=agent)
    if how == "forgotten":
        world.adapter.journal.forget()
    else:
        JOURNAL.write_bytes(b"x" * 5000)
    for _ in range(6):
        world.ask("hello", agent=agent)
    calls = len(world.paid.requests) - (how == "corrupt")
    assert 0.45 < day(world) <= 0.6
    assert calls == 3


def test_a_call_that_runs_is_not_forgotten(world: World) -> None:
    """What is forgotten during a call is not the call: its row is there when it ends, and no other gets its number."""
    world.configure(block())
    world.local.script = stuck_each_task

    def paid(_request: dict[str, Any], index: int) -> Answer:
        if index == 0:
            world.adapter.journal.forget()
        return say("paid answer")

    world.paid.script = paid
    world.ask()
    assert [row["state"] for row in rows()] == ["answered"]
    world.adapter.journal.forget()
    world.ask()
    assert rows()[0]["escalation"] == 2


def test_an_answer_counts_for_its_question_alone(world: World, person: list[Any]) -> None:
    """“For this session”, said to one question, answers no other: neither the budget's, nor the next task's."""
    world.configure(block({"confirm": "first_in_session", "budget": {"per_day_usd": 0.3, "on_exceeded": "ask"}}))
    world.local.script = stuck_each_task
    world.paid.script = lambda *_: say("paid answer", usage=(100, 19_000))
    agent = world.agent()
    questions = []
    for answer in ("session", "session", "deny"):
        person[:] = [answer]
        world.ask("get stuck", agent=agent)
        questions += person
    assert [("take over" in one, "over the budget" in one) for one in questions] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert len(world.paid.requests) == 2


def test_asked_even_when_the_budget_frees_itself(
    world: World, person: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What did not fit when it would have been asked for is not paid a moment later without being asked for."""
    world.configure(block({"confirm": "always", "budget": {"per_day_usd": 1}}))
    world.local.script = stuck
    seen: list[Spent] = []

    def full_at_first(_: Journal, **__: Any) -> Spent:
        seen.append(Spent(day=1.0))
        return seen[-1]

    monkeypatch.setattr(Journal, "spent", full_at_first)
    assert world.ask()["final_response"] == "local answer"
    assert (len(seen), person, world.paid.requests) == (1, [], [])


def test_known_costs_end_an_unknown_price(world: World) -> None:
    """`unknown_price: allow` lets a model be asked whose price nobody knows, until what it told has used the budget up."""
    unknown = {**OPENAI, "model": "gpt-of-tomorrow"}
    world.configure(block({"budget": {"per_day_usd": 0.1, "unknown_price": "allow"}}, fallback=unknown))
    world.local.script = stuck_each_task
    world.paid.script = lambda *_: say("paid answer", cost=0.06)
    answers = [world.ask()["final_response"] for _ in range(3)]
    assert answers == ["paid answer", "paid answer", "local answer"]
    assert day(world) == pytest.approx(0.12)


@pytest.mark.parametrize("told", [-5.0, 0.0])
def test_no_provider_gives_money_back(world: World, told: float) -> None:
    """A cost that is nothing or less is not believed: the price is known."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    world.paid.script = lambda *_: say("paid answer", cost=told)
    world.ask()
    assert day(world) == pytest.approx(0.00055)


def test_a_sub_agent_is_bound_by_its_parents_type(world: World) -> None:
    """A type that forbids escalation forbids it for what the task has done by sub-agents."""
    world.configure(block(task_types=[{"name": "no", "match": {"message": "delegate"}, "enabled": False}]))
    world.local.script = delegating
    ask_and_wait(world, "delegate it", delegating_agent(world))
    assert world.paid.requests == []


@pytest.mark.parametrize("how", ["cron", "auto-approve"])
def test_machines_do_not_consent(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Neither cron's `cron_mode: approve` nor Hermes's rule for sub-agents is a person who allows a sub-agent to spend."""
    more = "approvals: {cron_mode: approve}\n" if how == "cron" else "delegation: {subagent_auto_approve: true}\n"
    world.configure(block({"confirm": "always"}), more=more)
    world.local.script = delegating
    monkeypatch.setenv("HERMES_CRON_SESSION" if how == "cron" else "HERMES_INTERACTIVE", "1")
    platform = "cron" if how == "cron" else "cli"
    ask_and_wait(world, "delegate it", delegating_agent(world, platform=platform))
    words = "nobody is there to be asked" if host.can_ask() else "this Hermes cannot ask"
    assert any(words in line for line in log_of(caplog))
    assert world.paid.requests == []


@pytest.mark.parametrize("said", [SwitchedOff, ConsentRefused], ids=["off", "no"])
def test_what_is_forbidden_reaches_a_sub_agent_at_work(world: World, said: type[SwitchedOff | ConsentRefused]) -> None:
    """/escalate off, or a person's no to money, said while a sub-agent is at work, holds from its next call on."""

    def paid(_request: dict[str, Any], index: int) -> Answer:
        if index == 0:
            world.adapter.ledger(agent.session_id).append(said(world.adapter.clock()))
        return call("terminal", command=f"echo {index}")

    world.configure(block())
    world.local.script = delegating
    world.paid.script = paid
    agent = delegating_agent(world)
    ask_and_wait(world, "delegate it", agent)
    assert len(world.paid.requests) == 1


@pytest.mark.parametrize("spoken", [["off"], ["off", "auto"]], ids=["off", "off, then auto"])
def test_a_second_off_reaches_a_sub_agent_that_was_to_escalate_despite_the_first(
    world: World, spoken: Sequence[str]
) -> None:
    """`/escalate off`, then `/escalate` for one task, whose sub-agent goes up with it, and then `off` again.

    It ends what holds, also where `auto` is said before the sub-agent's next call.
    """

    def paid(request: dict[str, Any], index: int) -> Answer:
        words = [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]
        if "delegate" in words:
            return call("delegate_task", goal="the goal") if index == 0 else say("it is at work")
        asked.append(index)
        if len(asked) == 2:
            for word in spoken:
                world.command(word)
        return call("terminal", command=f"echo {index}") if len(asked) < 4 else say("done")

    asked: list[int] = []
    world.configure(block())
    agent = delegating_agent(world)
    world.local.script, world.paid.script = in_order([say("hello")]), paid
    world.ask("hello", agent=agent)
    world.command("off")
    world.command("")
    world.local.script = delegating
    ask_and_wait(world, "delegate it", agent)
    assert len(asked) == 2


def test_nothing_goes_out_after_a_stop(world: World) -> None:
    """A provider that says 500 after the user's stop is not asked again behind the settled row."""
    world.configure(budget(per_day_usd=5))
    world.local.script = stuck
    world.paid.script = lambda *_: fail(500, "no", headers_after=1.0)
    agent = world.agent()

    def stop_when_asked() -> None:
        while not world.paid.requests:
            time.sleep(0.02)
        agent.interrupt()

    threading.Thread(target=stop_when_asked, daemon=True).start()
    before = set(threading.enumerate())
    world.ask(agent=agent)
    for thread in set(threading.enumerate()) - before:
        if thread.name == "hermes-fallback-call":
            thread.join(20)
            assert not thread.is_alive()
    assert len(world.paid.requests) == 1
    assert [row["state"] for row in rows()] == ["interrupted"]


def test_a_broken_call_of_the_local_endpoint_costs_its_reservation(world: World) -> None:
    """Hermes tries again by itself, nobody knows how often: what was reserved is taken for spent."""
    price = {"input_per_million_usd": 1, "output_per_million_usd": 10}
    world.configure(
        block({"budget": {"per_day_usd": 5}}, fallback={"provider": "primary", "model": "big", "price": price})
    )

    def script(request: dict[str, Any], index: int) -> Answer:
        return say("x" * 100, cut_after=0) if request["model"] == "big" else stuck_each_task(request, index)

    world.local.script = script
    assert world.ask()["final_response"] == "local answer"
    (row,) = rows()
    assert (row["state"], row["cost_usd"]) == ("failed", row["reserved_usd"])
    assert row["cost_usd"] > 0


def test_no_way_to_ask_the_local_endpoint_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Hermes gives no second call, a bigger model on the same endpoint is a failed tier, and the turn ends."""
    world.configure(block(fallback={"provider": "primary", "model": "big"}))
    monkeypatch.setattr("hermes_fallback.live.LiveAgent.call_again", lambda *_: None)
    world.local.script = in_order([say(LOOP * 20)])
    assert LOOP.strip() in world.ask()["final_response"]
    assert [row["state"] for row in rows()] == ["failed"]


def test_a_good_answer_is_not_stopped(world: World) -> None:
    """`on_exceeded: stop` does not take away an answer that is there, though another would have been better."""
    world.configure(block({"trigger_on": ["silent_failure"], "budget": {"per_day_usd": 0, "on_exceeded": "stop"}}))
    world.local.script = in_order([say("I have updated the file main.py and all tests pass.")])
    assert world.ask("change main.py")["final_response"].startswith("I have updated")


def test_failed_escalations_do_not_count(world: World) -> None:
    """A key that was refused has used up none of the session's escalations."""
    world.configure(budget(max_escalations_per_session=1))
    world.local.script = stuck_each_task
    world.paid.script = in_order([fail(401, "no"), say("paid answer")])
    agent = world.agent()
    answers = [world.ask(agent=agent)["final_response"] for _ in range(3)]
    assert answers == ["local answer", "paid answer", "local answer"]
