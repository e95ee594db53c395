"""Chats: the real GatewayRunner with a platform of our own; every chat has its own session, and /escalate finds it."""

from __future__ import annotations

import json
import threading
import time
import uuid
from typing import Any

import pytest

from hermes_fallback import host
from tests.endpoints import Answer, Script, call, in_order, say
from tests.gateway_chats import Chat, Gateway
from tests.test_escalation import ALL_TRIGGERS, missing, rows
from tests.test_money import block, stuck_each_task
from tests.world import MODEL, World, config_text


def last_words(request: dict[str, Any]) -> str:
    """What the user said last."""
    return [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]


def tool_results(request: dict[str, Any]) -> int:
    """How many tool results there are since the user's last words."""
    roles = [message["role"] for message in request["messages"]]
    return roles[::-1][: roles[::-1].index("user")].count("tool")


def local_model(request: dict[str, Any], index: int) -> Answer:
    """Answers; gets stuck on "stuck", and gives up if nobody helps; works in slow steps on "slow"."""
    words = last_words(request)
    if "stuck" in words:
        stuck = tool_results(request) < 9
        return call("read_file", path=f"/nowhere/{index}") if stuck else say("the local model gave up")
    if "slow" in words:
        return call("terminal", command=f"sleep 0.5; echo {index}")
    return say("local answer")


def waiting(first: Answer, said: threading.Event) -> Script:
    """A local model whose first reply comes when the user has said something; then as ever."""

    def reply(request: dict[str, Any], index: int) -> Answer:
        if index:
            return local_model(request, index)
        assert said.wait(30)
        return first

    return reply


@pytest.fixture
def gateway(world: World, request: pytest.FixtureRequest) -> Any:
    """A running gateway; parametrised with True, answers are streamed to the chats."""
    world.local.script = local_model
    with Gateway(config_text(world.local.url), streaming=getattr(request, "param", False)) as running:
        yield running


def test_escalate_in_one_chat_leaves_the_other_alone(gateway: Gateway) -> None:
    """Two chats in turn: /escalate, off, status and why act on the chat they are typed in, before its first turn too."""
    ann, bob = gateway.chat("A", user="ann"), gateway.chat("B", user="bob")
    assert "takes over with your next message" in ann.ask("/escalate")[0]
    assert bob.ask("hello")[-1] == "local answer"
    assert "paid answer" in ann.ask("hello")[-1]
    assert ann.ask("hello again")[-1] == "local answer"
    assert bob.ask("/escalate off") == ["Off: the local model answers alone in this session, unless you say /escalate."]
    assert "openai/gpt-5.4 takes over" in ann.ask("/escalate status")[0]
    assert "escalation is off in this session" in bob.ask("/escalate status")[0]
    assert "you asked for it with /escalate [user_request]" in ann.ask("/escalate why")[0]
    assert bob.ask("/escalate why") == ["Nothing was escalated in this session."]
    assert [row["session_id"] for row in rows()] == [ann.session_id]


def test_no_reply_of_the_stronger_model_is_none(world: World) -> None:
    """What Hermes does not show in a chat, when it stands alone, is left alone; log and journal have what it cost."""
    world.local.script, world.paid.script = local_model, in_order([say("NO_REPLY")])
    with Gateway(config_text(world.local.url)) as running:
        chat = running.chat("A")
        chat.say("stuck")
        chat.wait_idle()
        assert not any("NO_REPLY" in shown or "helped" in shown for shown in chat.screen)
    assert [row["state"] for row in rows()] == ["answered"]


@pytest.mark.parametrize("gateway", [False, True], ids=["whole", "streamed"], indirect=True)
def test_notice_and_cost_in_the_chat(gateway: Gateway) -> None:
    """The chat sees the switch, the answer once, and who helped for how much under it, streamed or not."""
    chat = gateway.chat("A")
    chat.ask("stuck")
    notice, answer = chat.screen
    assert notice == f"⚡ {MODEL} → openai/gpt-5.4: read_file failed 3 times: file not found"
    assert answer.startswith(
        "paid answer\n\n⚡ openai/gpt-5.4 helped, because read_file failed 3 times: file not found (1 call"
    )


@pytest.mark.parametrize("gateway", [True], indirect=True)
def test_stronger_answer_is_streamed_into_the_chat(gateway: Gateway, world: World) -> None:
    """The text of the stronger model appears as it is written."""
    text = "A sentence of the stronger model that takes its time to be written down. " * 3
    world.paid.script = lambda *_: say(text, hold_seconds=0.1)
    chat = gateway.chat("A")
    chat.ask("stuck")
    edits = [one.text for one in chat.deliveries if one.text.lstrip().startswith("A sentence")]
    assert len(edits) > 3
    assert all(edits[-1].lstrip().startswith(edit.strip(" \n▉")) for edit in edits)


def busy_chat(gateway: Gateway, world: World, message: str) -> Chat:
    """A chat whose agent is at work on a message."""
    chat = gateway.chat("A")
    chat.say(message)
    chat.wait_running()
    gateway.wait(lambda: len(world.local.requests) >= 1)
    return chat


def test_escalate_while_the_chat_is_busy(gateway: Gateway, world: World) -> None:
    """Hermes stops the turn and hands "/escalate" to the model: the stronger one goes on with the task that was stopped."""
    chat = busy_chat(gateway, world, "slow work")
    chat.say("/escalate")
    chat.wait_for("paid answer")
    chat.wait_idle()
    (request,) = world.paid.requests
    sent = json.dumps(request["messages"])
    assert "slow work" in sent
    assert "/escalate" not in request["messages"][-1]["content"]
    assert [row["trigger"] for row in rows()] == ["user_request"]
    assert chat.ask("hello")[-1] == "local answer"


def test_off_and_status_while_the_chat_is_busy(gateway: Gateway, world: World) -> None:
    """Other words of /escalate that reach the model as a message are answered by us, and nothing is asked or paid."""
    chat = busy_chat(gateway, world, "slow work")
    chat.say("/escalate off")
    chat.wait_for("Off: the local model answers alone")
    chat.wait_idle()
    chat.ask("/escalate status")
    assert "escalation is off" in chat.screen[-1]
    assert world.paid.requests == []


def test_steer_escalate_in_a_chat(gateway: Gateway, world: World) -> None:
    """`/steer escalate` takes over without stopping the turn; the task is finished once."""
    chat = busy_chat(gateway, world, "slow work")
    chat.say("/steer escalate")
    chat.wait_for("paid answer")
    chat.wait_idle()
    assert [row["trigger"] for row in rows()] == ["user_request"]
    assert "OUT-OF-BAND" not in json.dumps(world.paid.requests[0]["messages"][1:], ensure_ascii=False)


def test_off_in_mid_turn(world: World) -> None:
    """Where Hermes steers what is typed into a running turn (`busy_input_mode: steer`), off is heard and answered."""
    said = threading.Event()
    world.local.script = waiting(call("terminal", command="echo done"), said)
    with Gateway(config_text(world.local.url), busy="steer") as gateway:
        chat = busy_chat(gateway, world, "get stuck")
        chat.say("/escalate off")
        said.set()
        chat.wait_idle(60)
        assert any("Off: the local model answers alone in this session" in line for line in chat.screen)
        assert "off in this session" in chat.ask("/escalate status")[0]
        assert chat.screen.count("the local model gave up") == 1
    assert world.paid.requests == []


@pytest.mark.parametrize("then", ["off", "new"])
@pytest.mark.parametrize("first", ["hello", None])
def test_off_reaches_what_runs_beside_the_chat(world: World, first: str | None, then: str) -> None:
    """Whatever began before the chat had a session, or goes on after it: /escalate off holds for it."""
    began, goes_on = threading.Event(), threading.Event()

    def local(request: dict[str, Any], index: int) -> Answer:
        if "behind" not in last_words(request):
            return local_model(request, index)
        began.set()
        goes_on.wait(20)
        done = tool_results(request)
        return call("read_file", path=f"/nowhere/{done}") if done < 6 else say("it gave up behind")

    world.local.script = local
    with Gateway(config_text(world.local.url)) as gateway:
        chat = gateway.chat("A")
        if first is not None:
            chat.ask(first)
        chat.say("/background behind the scenes")
        assert began.wait(20)
        chat.ask("hello")
        assert chat.ask("/escalate off")[0].startswith("Off")
        if then == "new":
            chat.ask("/new")
        goes_on.set()
        chat.wait_for("it gave up behind")
    assert world.paid.requests == []


def test_what_runs_beside_the_chat_is_paid_by_it(world: World) -> None:
    """Also where it began first; what it cost stands below its answer, and not once more below the next one."""
    world.local.script = local_model
    with Gateway(config_text(world.local.url)) as gateway:
        chat = gateway.chat("A")
        chat.say("/background get stuck")
        chat.wait_for("⚡ openai/gpt-5.4 helped, because read_file failed 3 times")
        assert chat.ask("hello")[-1] == "local answer"
        assert "openai/gpt-5.4: 1 call" in chat.ask("/escalate status")[0]
        assert [row["session_id"] for row in rows()] == [chat.session_id]


def test_what_a_stopped_turn_cost_is_told_below_the_next(world: World) -> None:
    """A chat shows no answer of a turn that was stopped, and so no line below it."""
    world.local.script = lambda request, index: (
        say("local answer") if "hello" in last_words(request) else local_model(request, index)
    )
    world.paid.script = lambda *_: call("terminal", command="sleep 5")
    with Gateway(config_text(world.local.url)) as gateway:
        chat = gateway.chat("A")
        chat.say("stuck")
        gateway.wait(lambda: [row["state"] for row in rows()] == ["answered"], 20, "the stronger model")
        chat.ask("/stop")
        answer = chat.ask("hello")[-1]
        assert answer.startswith("local answer\n\n⚡ openai/gpt-5.4 helped, because read_file failed 3 times")
        assert chat.ask("hello")[-1] == "local answer"


def test_late_off_is_heard(gateway: Gateway, world: World) -> None:
    """A `/steer escalate off` that no tool result can carry becomes a message, and is heard as one."""
    said = threading.Event()
    world.local.script = waiting(say("a last answer"), said)
    chat = busy_chat(gateway, world, "hello")
    chat.say("/steer escalate off")
    said.set()
    chat.wait_for("Off: the local model answers alone")
    chat.wait_idle()
    assert chat.ask("stuck") == ["the local model gave up"]
    assert world.paid.requests == []


def test_late_steer_is_heeded_too(gateway: Gateway, world: World) -> None:
    """A steer that no tool result can carry becomes a message of its own: the stronger model gets the task."""
    said = threading.Event()
    world.local.script = waiting(say("a last answer"), said)
    chat = busy_chat(gateway, world, "hello")
    chat.say("/steer escalate")
    said.set()
    chat.wait_for("paid answer")
    chat.wait_idle()
    assert [row["trigger"] for row in rows()] == ["user_request"]


def test_new_session_starts_afresh(gateway: Gateway, world: World) -> None:
    """/new ends what was said in the old session: off is forgotten with it, and its memory is freed."""
    chat = gateway.chat("A")
    chat.ask("hello")
    chat.ask("/escalate off")
    old = chat.session_id
    chat.ask("/new")
    assert chat.session_id != old
    assert not world.adapter.ledgers.known(str(old))
    chat.ask("stuck")
    assert "paid answer" in chat.screen[-1]


def test_fifty_sessions_at_once_never_mix(world: World) -> None:
    """50 sessions from as many threads: those that get stuck are escalated, each with its own evidence; the rest are not."""
    world.configure(ALL_TRIGGERS)
    world.local.script = local_model
    results: dict[str, str] = {}

    def talk(number: int) -> None:
        message = "stuck" if number % 2 else "hello"
        agent = world.agent(session_id=f"many-{number}-{run}", platform="telegram")
        results[f"{number}"] = world.ask(message, agent=agent)["final_response"]

    run = uuid.uuid4().hex[:6]
    threads = [threading.Thread(target=talk, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert all(("paid answer" in results[f"{n}"]) == bool(n % 2) for n in range(50)), results
    assert sorted(row["session_id"] for row in rows()) == sorted(f"many-{n}-{run}" for n in range(50) if n % 2)


CONFIRMED = block({"confirm": "first_in_session", "budget": {"per_day_usd": 2}})
QUESTION = f"Let openai/gpt-5.4 take over from {MODEL}, because read_file failed 3 times: file not found?"


@pytest.fixture
def asking(world: World) -> Any:
    """A gateway whose Hermes asks before it pays."""
    if not host.can_ask():
        pytest.skip("this Hermes cannot ask")
    world.local.script = stuck_each_task
    with Gateway(config_text(world.local.url, CONFIRMED)) as running:
        yield running


def test_a_person_in_the_chat_says_yes(asking: Gateway, world: World) -> None:
    """The question stands in the chat with its dollars; /approve lets the stronger model take over, for the session."""
    chat = asking.chat("A")
    chat.say("get stuck")
    question = chat.wait_for(QUESTION).text
    assert "of $2 today is left" in question
    assert world.paid.requests == []
    chat.say("/approve")
    chat.wait_for("paid answer")
    chat.wait_idle()
    chat.ask("get stuck again")
    assert "paid answer" in chat.screen[-1]
    assert sum(QUESTION in text for text in chat.screen) == 1
    other = asking.chat("B", user="bob")
    other.say("get stuck")
    other.wait_for(QUESTION)
    other.say("/deny")
    other.wait_for("local answer")
    other.wait_idle()
    assert len(rows()) == 2


def test_nobody_answers_in_the_chat(world: World) -> None:
    """The question times out: the local model goes on, and the task does not ask again."""
    if not host.can_ask():
        pytest.skip("this Hermes cannot ask")
    world.local.script = lambda request, index: missing(request, index) if index < 6 else say("local answer")
    with Gateway(
        config_text(world.local.url, CONFIRMED, more="approvals: {timeout: 1, gateway_timeout: 1}\n")
    ) as running:
        chat = running.chat("A")
        chat.say("get stuck")
        chat.wait_for("local answer")
        chat.wait_idle()
        assert sum(QUESTION in text for text in chat.screen) == 1
        assert any("is not asked: not allowed" in text for text in chat.screen)
    assert world.paid.requests == []


def test_only_some_may_spend(world: World) -> None:
    """In a group, who is not in `allowed_users` gets no paid call: not by being stuck, not by /escalate, not by /steer."""
    world.local.script = local_model
    allowed = block({"allowed_users": ["loopback:ann", 12345]})
    with Gateway(config_text(world.local.url, allowed)) as running:
        ann, bob = running.chat("G", user="ann", chat_type="group"), running.chat("G", user="bob", chat_type="group")
        assert ann.key != bob.key
        world.local.script = stuck_each_task
        bob.ask("get stuck")
        assert "local answer" in bob.screen[-1]
        assert any("who wrote the message is not in `allowed_users`" in text for text in bob.screen)
        assert "you are not in `fallback_policy.allowed_users`" in bob.ask("/escalate")[0]
        assert world.paid.requests == []
        ann.ask("get stuck")
        assert "paid answer" in ann.screen[-1]
        ann.ask("/escalate")
        assert len(world.paid.requests) == 1
        ann.ask("hello")
        assert len(world.paid.requests) == 2


@pytest.mark.parametrize("word", ["", " off"])
def test_nobody_steers_with_the_money_of_another(world: World, word: str) -> None:
    """In a shared session, the turn is ann's: bob's `/steer escalate` in it is not heeded, though his off is."""
    shared = "group_sessions_per_user: false\n"
    with Gateway(config_text(world.local.url, block({"allowed_users": ["ann"]}), more=shared)) as running:
        world.local.script = local_model
        ann, bob = running.chat("G", user="ann", chat_type="group"), running.chat("G", user="bob", chat_type="group")
        assert ann.key == bob.key
        world.local.script = lambda _request, index: (
            call("terminal", command=f"sleep 0.3; echo {index}") if index < 8 else say("local answer")
        )
        ann.say("slow work")
        ann.wait_running()
        running.wait(lambda: len(world.local.requests) >= 1)
        bob.say(f"/steer escalate{word}")
        ann.wait_for("local answer")
        ann.wait_idle()
        assert world.paid.requests == []
        assert ("escalation is off" in ann.ask("/escalate status")[0]) == bool(word)


def test_nobody_escalates_with_the_money_of_another(world: World) -> None:
    """Bob's /escalate while the shared chat works for ann becomes a turn of its own, and pays for nothing."""
    shared = "group_sessions_per_user: false\n"
    world.local.script = local_model
    with Gateway(config_text(world.local.url, block({"allowed_users": ["ann"]}), more=shared)) as running:
        ann, bob = running.chat("G", user="ann", chat_type="group"), running.chat("G", user="bob", chat_type="group")
        ann.say("slow work")
        ann.wait_running()
        running.wait(lambda: len(world.local.requests) >= 1)
        bob.say("/escalate")
        ann.wait_for("you are not in `fallback_policy.allowed_users`")
        ann.wait_idle()
        assert world.paid.requests == []
        ann.ask("/escalate")
        ann.ask("hello")
        assert len(world.paid.requests) == 1


def test_nobody_answers_for_another(world: World) -> None:
    """In a session that several share, anybody's yes is a yes to Hermes: where only some may spend, it is not asked for."""
    shared = "group_sessions_per_user: false\n"
    world.local.script = stuck_each_task
    text = block({"allowed_users": ["ann"], "confirm": "always"})
    with Gateway(config_text(world.local.url, text, more=shared)) as running:
        ann = running.chat("G", user="ann", chat_type="group")
        ann.ask("get stuck")
        assert any("is not asked: others in this chat could answer" in text for text in ann.screen)
        assert not any(QUESTION in text for text in ann.screen)
    assert world.paid.requests == []
