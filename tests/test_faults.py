"""What becomes of a turn when an endpoint fails: each fault over a real socket, at the paid endpoint and at the local one.

`docs/faults.md` is made of the tables here: `python -m tests.test_faults`.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from llmock.testing import LLMockServer

from hermes_fallback import executor
from tests.endpoints import call, fail, say, strict_fault
from tests.faulty import FAULTS, TEXT, Patient, patient
from tests.test_escalation import JOURNAL, rows
from tests.test_money import block, stuck_each_task
from tests.world import KEY, MODEL, Screen, World, log_of

# Whatever an endpoint does, a turn ends.
pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("warmed")]

DOCUMENT = Path(__file__).parents[1] / "docs" / "faults.md"
TIER = "openai/gpt-5.4"
PATIENCE_SECONDS = {"paid": 2.0, "local": 0.4}
"""How long a model that hangs may be silent here; a minute and more, outside of tests."""

Charge = Literal["nothing", "the input", "the input, and what came", "what the provider told"]
Answerer = Literal["local", "stronger", "both"]


@dataclass(frozen=True)
class Paid:
    """The local model is stuck, and the stronger one has the fault."""

    fault: str
    by: Answerer
    requests: int
    notice: str
    charged: Charge


@dataclass(frozen=True)
class Local:
    """The local model has the fault from its second reply on, in the middle of a task."""

    fault: str
    by: Answerer
    requests: int
    reason: str = ""


ERROR = "the provider had an error, or could not be reached"
LIMIT = "too many requests, or no credit left; see the provider's usage page"
CUT = "the reply was cut off in the middle"
UNREADABLE = "no reply came that can be read; if that happens again, check `base_url`"

PAID = [
    Paid("connection refused", "local", 0, "nothing answers at its address; check `base_url` and the network", "nothing"),
    Paid("DNS failure", "local", 0, "its host's name is not known; check `base_url` and the network", "nothing"),
    Paid("certificate error", "local", 0, "its certificate is not trusted; set SSL_CERT_FILE to a file with that of its authority", "nothing"),
    Paid("reset", "local", 1, "the connection broke off before the reply", "the input"),
    Paid("reset in mid-stream", "local", 1, CUT, "the input, and what came"),
    Paid("cut off in mid-stream", "local", 1, CUT, "the input, and what came"),
    Paid("end without a finish reason", "local", 1, CUT, "the input, and what came"),
    Paid("error event in mid-stream", "local", 1, f'{ERROR} [MidStreamFallbackError, 500, "The server had an error"]', "the input, and what came"),
    Paid("hang before headers", "local", 1, "nothing came for 2 s; if it needs longer before its first word, set timeout_seconds, to more than 300", "the input"),
    Paid("hang in mid-stream", "local", 1, "nothing came for 2 s", "the input, and what came"),
    Paid("slow drip", "stronger", 1, "", "what the provider told"),
    Paid("malformed SSE", "local", 1, UNREADABLE, "the input"),
    Paid("malformed SSE in mid-stream", "local", 1, CUT, "the input, and what came"),
    Paid("invalid JSON", "local", 1, UNREADABLE, "the input"),
    Paid("wrong content type", "local", 1, UNREADABLE, "the input"),
    Paid("10 MB reply", "stronger", 1, "", "what the provider told"),
    Paid("empty choices", "local", 1, UNREADABLE, "the input"),
    Paid("unknown finish reason", "stronger", 1, "", "what the provider told"),
    Paid("400 context overflow", "local", 1, 'larger than the model\'s context [ContextWindowExceededError, 400, "This model\'s maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."]', "nothing"),
    Paid("401", "local", 1, 'the key is missing or was refused; put it into Hermes\'s .env as OPENAI_API_KEY [AuthenticationError, 401, "Incorrect API key provided: ***."]', "nothing"),
    Paid("403", "local", 1, 'the key may not use this model [APIError, 403, "Forbidden."]', "nothing"),
    Paid("404", "local", 1, 'the provider does not know this model; check `model` and `base_url` [BadRequestError, 404, "Resource not found."]', "nothing"),
    Paid("408", "local", 1, 'the provider did not answer in time [Timeout, 408, "Request timeout."]', "the input"),
    Paid("429 with Retry-After: 1", "local", 2, f'{LIMIT} [RateLimitError, 429, "Rate limit exceeded."]', "nothing"),
    Paid("429 with Retry-After: 60", "local", 1, f'{LIMIT} [RateLimitError, 429, "Rate limit exceeded."]', "nothing"),
    Paid("429 without Retry-After", "local", 2, f'{LIMIT} [RateLimitError, 429, "Rate limit exceeded."]', "nothing"),
    Paid("500", "local", 2, f'{ERROR} [InternalServerError, 500, "Internal server error."]', "nothing"),
    Paid("502 with a page", "local", 2, f"{ERROR} [BadGatewayError, 502]", "nothing"),
    Paid("503", "local", 2, f'{ERROR} [ServiceUnavailableError, 503, "Service unavailable."]', "nothing"),
    Paid("529", "local", 2, f'{ERROR} [APIError, 529, "Service overloaded."]', "nothing"),
]  # fmt: skip

UNREACHED = "the local endpoint cannot be reached 3 times"
NO_ANSWER = "the local endpoint broke off or sent no usable answer 3 times"
HALF = "the local model gave a reply that was cut off 3 times"
OVERLOADED = "the local endpoint is overloaded 3 times"
LATE = "the local endpoint did not answer in time 3 times"
REFUSED = "the local endpoint refused the request"

LOCAL = [
    Local("connection refused", "stronger", 0, UNREACHED),
    Local("DNS failure", "stronger", 0, UNREACHED),
    Local("certificate error", "stronger", 0, UNREACHED),
    Local("reset", "stronger", 3, UNREACHED),
    Local("reset in mid-stream", "both", 3, HALF),
    Local("cut off in mid-stream", "both", 3, HALF),
    Local("end without a finish reason", "both", 3, HALF),
    Local("error event in mid-stream", "both", 3, HALF),
    Local("hang before headers", "stronger", 3, LATE),
    Local("hang in mid-stream", "both", 3, HALF),
    Local("slow drip", "local", 1),
    Local("malformed SSE", "stronger", 3, NO_ANSWER),
    Local("malformed SSE in mid-stream", "both", 3, HALF),
    Local("invalid JSON", "stronger", 9, NO_ANSWER),
    Local("wrong content type", "stronger", 9, NO_ANSWER),
    Local("10 MB reply", "local", 1),
    Local("empty choices", "stronger", 9, NO_ANSWER),
    Local("unknown finish reason", "local", 1),
    Local("400 context overflow", "stronger", 1, "the conversation is larger than the local model's context"),
    Local("401", "stronger", 1, REFUSED),
    Local("403", "stronger", 1, REFUSED),
    Local("404", "stronger", 3, NO_ANSWER),
    Local("408", "stronger", 3, LATE),
    Local("429 with Retry-After: 1", "stronger", 3, OVERLOADED),
    Local("429 with Retry-After: 60", "stronger", 3, OVERLOADED),
    Local("429 without Retry-After", "stronger", 3, OVERLOADED),
    Local("500", "stronger", 3, NO_ANSWER),
    Local("502 with a page", "stronger", 3, NO_ANSWER),
    Local("503", "stronger", 3, OVERLOADED),
    Local("529", "stronger", 3, OVERLOADED),
]


@pytest.fixture(scope="module")
def mock() -> Iterator[LLMockServer]:
    """One llmock for all cells: what one of them left hanging there does not hold up the next."""
    with LLMockServer() as server:
        yield server


Infect = Callable[[str], Patient]


@pytest.fixture
def infect(mock: LLMockServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Infect]:
    """Makes an endpoint that can get a fault, and that nobody waits for if it is one of those that hang."""
    with ExitStack() as stack:

        def infected(fault: str) -> Patient:
            if fault.startswith("hang"):
                monkeypatch.setattr(executor, "_IDLE_SECONDS", PATIENCE_SECONDS["paid"])
                monkeypatch.setenv("HERMES_STREAM_READ_TIMEOUT", str(PATIENCE_SECONDS["local"]))
            return patient(FAULTS[fault], mock, stack, monkeypatch)

        yield infected


@pytest.mark.parametrize("cell", PAID, ids=lambda cell: cell.fault)
def test_paid(world: World, infect: Infect, caplog: pytest.LogCaptureFixture, cell: Paid) -> None:
    """The turn ends in time with an answer; the screen says what happened, and what was used is charged."""
    paid = infect(cell.fault)
    tier = {"provider": "openai", "model": "gpt-5.4", "base_url": paid.url, "timeout_seconds": 60}
    world.configure(block({"budget": {"per_day_usd": 5}}, fallback=tier))
    world.local.script = stuck_each_task
    screen = Screen()
    agent = watched(world, screen)
    paid.fall_ill()

    result = world.ask(agent=agent)
    failed = cell.by == "local"
    assert result["final_response"] == ("local answer" if failed else text_of(cell.fault))
    assert len(paid.requests()) == cell.requests
    took_over, *others = notices(screen)
    assert took_over == f"⚡ {MODEL} → {TIER}: read_file failed 3 times: file not found"
    if failed:
        notice, goes_on, *cost = others
        assert (notice, goes_on) == (f"⚡ {TIER}: {cell.notice}", f"⚡ no stronger model answered; {MODEL} goes on")
        lines = [line for line in screen.text.splitlines() if line]
        assert lines[-1 - len(cost) :] == ["local answer", *cost]
        if cell.charged == "nothing":
            assert cost == []
        else:
            (row,) = rows()
            used = f"about {row['input_tokens']:,} tokens in, {row['output_tokens']} out, ${row['cost_usd']:.4f}"
            assert cost == [f"⚡ {TIER} did not help (1 call, {used})"]
    else:
        (line,) = others
        assert line.startswith(f"⚡ {TIER} helped, because read_file failed 3 times: file not found (1 call, ")
    check_charge(cell.charged)
    check_nothing_leaked(screen, caplog)

    world.local.script = lambda *_: say("local answer")
    answer = "local answer"
    if cell.fault != "10 MB reply":  # which the day's budget was not enough for
        world.command("")
        answer = "paid answer"
    check_next_turn(world, agent, result, paid, answer)


# One of each kind: what is sent, charged and said is the same as where it is asked for the first time.
HELD = [
    "connection refused",
    "reset",
    "cut off in mid-stream",
    "hang in mid-stream",
    "malformed SSE",
    "empty choices",
    "400 context overflow",
    "401",
    "404",
    "429 with Retry-After: 60",
    "503",
]


@pytest.mark.parametrize("cell", [cell for cell in PAID if cell.fault in HELD], ids=lambda cell: cell.fault)
def test_paid_while_it_has_the_task(world: World, infect: Infect, caplog: pytest.LogCaptureFixture, cell: Paid) -> None:
    """A stronger model that has helped and falls ill then leaves the rest of the task to the local one."""
    paid = infect(cell.fault)
    tier = {"provider": "openai", "model": "gpt-5.4", "base_url": paid.url, "timeout_seconds": 60}
    world.configure(block({"budget": {"per_day_usd": 5}}, fallback=tier))
    world.local.script = stuck_each_task
    paid.be_well(call("terminal", command="echo the paid one's"), say("not asked for"))
    screen = Screen()
    results: list[object] = []

    def completed(*_: object) -> None:
        results.append(_)
        if len(results) == 4:
            paid.fall_ill()

    agent = watched(world, screen, tool_complete_callback=completed)
    before = len(paid.requests())
    result = world.ask(agent=agent)
    assert result["final_response"] == "local answer"
    assert len(paid.requests()) - before == 1 + cell.requests
    took_over, notice, goes_on, cost = notices(screen)
    assert took_over == f"⚡ {MODEL} → {TIER}: read_file failed 3 times: file not found"
    assert (notice, goes_on) == (f"⚡ {TIER}: {cell.notice}", f"⚡ no stronger model answered; {MODEL} goes on")
    assert cost.startswith(f"⚡ {TIER} helped, because read_file failed 3 times: file not found (1 call and 1 failed, ")
    answered, failed = rows()
    assert (answered["state"], failed["state"]) == ("answered", "failed")
    assert answered["cost_usd"] > 0
    assert (failed["cost_usd"] > 0) == (cell.charged != "nothing")
    check_nothing_leaked(screen, caplog)
    world.local.script = lambda *_: say("local answer")
    world.command("")
    check_next_turn(world, agent, result, paid, "paid answer")


@pytest.mark.parametrize("cell", LOCAL, ids=lambda cell: cell.fault)
def test_local(
    world: World,
    infect: Infect,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    cell: Local,
) -> None:
    """With `provider_error` among the triggers, the stronger model ends the task that the local one cannot go on with."""
    if cell.fault == "429 with Retry-After: 60":
        hurry(monkeypatch)
    local = in_place_of_the_local_model(world, infect(cell.fault))
    world.configure(block({"trigger_on": ["invalid_output", "provider_error"], "budget": {"per_day_usd": 5}}))
    screen = Screen()
    agent = watched(world, screen, tool_complete_callback=lambda *_: local.fall_ill())

    result = world.ask(agent=agent)
    # One more came before it fell ill.
    assert len(local.requests()) == cell.requests + 1
    answer = result["final_response"]
    if cell.by == "local":
        assert answer == text_of(cell.fault)
        assert (rows(), notices(screen)) == ([], [])
    else:
        # Hermes asks a model that was cut off to go on, and joins what came.
        assert answer.endswith("paid answer")
        assert (answer == "paid answer") == (cell.by == "stronger")
        took_over, helped = notices(screen)
        assert took_over == f"⚡ {MODEL} → {TIER}: {cell.reason}"
        assert helped == f"⚡ {TIER} helped, because {cell.reason} (1 call, 100 tokens in, 20 out, $0.0006)"
        (row,) = rows()
        assert (row["state"], row["cost_usd"]) == ("answered", pytest.approx(0.00055))
    assert world.paid.refusals == []
    check_nothing_leaked(screen, caplog)

    check_next_turn(world, agent, result, local, "local answer")
    assert len(rows()) == (cell.by != "local")


# One of each kind: to Hermes, the others are the same as one of these, or take minutes.
COMPARED = [
    "connection refused",
    "cut off in mid-stream",
    "slow drip",
    "malformed SSE",
    "empty choices",
    "unknown finish reason",
    "400 context overflow",
    "401",
    "404",
    "429 without Retry-After",
    "503",
]


@pytest.mark.parametrize("fault", COMPARED)
def test_without_the_trigger(world: World, infect: Infect, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Where no trigger is for it, the turn ends as it would without the plugin, in every word that is seen."""
    hurry(monkeypatch)
    seen = []
    for config in (block({"trigger_on": ["user_request"]}), ""):
        local = in_place_of_the_local_model(world, infect(fault))
        world.configure(config)
        screen = Screen()
        result = world.ask(
            agent=watched(world, screen, tool_complete_callback=lambda *_, local=local: local.fall_ill())
        )
        said = re.sub(r"call_\w+", "call", json.dumps(history(result)))
        seen.append((result["final_response"], said, len(local.requests()), plain(screen, local)))
    with_plugin, without = seen
    assert with_plugin == without
    assert rows() == []


def test_a_providers_words_steer_no_terminal(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a provider says of its fault is quoted without control characters, which could rewrite what the user sees."""
    world.local.script = stuck_each_task
    world.paid.script = lambda *_: fail(400, "no \x1b[2J\x1b]0;title\x07 \u202eway\x9b31m\r\nsecond line")
    screen = Screen()
    world.ask(agent=watched(world, screen))
    seen = "\n".join([screen.text, *log_of(caplog)])
    assert '[BadRequestError, 400, "no  [2J ]0;title   way 31m "]' in seen
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", seen)


def test_document_says_what_is_tested() -> None:
    """Each fault has its cell at either endpoint, and the document its row."""
    assert [cell.fault for cell in PAID] == list(FAULTS)
    assert [cell.fault for cell in LOCAL] == list(FAULTS)
    assert DOCUMENT.read_text("utf-8") == document()


def watched(world: World, screen: Screen, **options: Any) -> Any:
    """An agent that somebody watches; tools are shown as the CLI shows them, without Hermes's own spinner."""
    return world.agent(screen=screen, tool_progress_callback=lambda *_, **__: None, **options)


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the time for which Hermes waits before it tries again go by at once: it may be minutes."""
    slept = 0.0

    def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    clock = SimpleNamespace(**{**vars(time), "sleep": sleep, "time": lambda: time.time() + slept})
    for module in ("agent.agent_runtime_helpers", "agent.conversation_loop"):
        monkeypatch.setattr(f"{module}.time", clock)


def in_place_of_the_local_model(world: World, local: Patient) -> Patient:
    """Have an endpoint be the local model's, and well for now."""
    local.be_well(call("terminal", command="echo one"), say("local answer"))
    world.local = local  # type: ignore[assignment]  # its URL is all that is asked of it
    return local


def plain(screen: Screen, local: Patient) -> str:
    """What stands on the screen, without what is different each time: port and seconds."""
    return re.sub(r"\d+\.\d+s", "…s", screen.text.replace(local.url, "URL"))


def text_of(fault: str) -> str:
    """What a fault that can be lived with says."""
    ills = FAULTS[fault]
    replies = [one.text for one in ills if hasattr(one, "text")] if isinstance(ills, tuple) else []
    return str(replies[0] if replies else TEXT)


def notices(screen: Screen) -> list[str]:
    """Our lines on the screen."""
    return [line for line in screen.text.splitlines() if line.startswith("⚡")]


def check_charge(charged: Charge) -> None:
    """The journal has one settled call, for which this was charged."""
    (row,) = rows()
    tokens_in, tokens_out = row["input_tokens"], row["output_tokens"]
    assert row["cost_usd"] == pytest.approx(tokens_in * 2.5e-6 + tokens_out * 15e-6, rel=0.01)
    assert row["state"] == ("answered" if charged == "what the provider told" else "failed")
    match charged:
        case "nothing":
            assert (tokens_in, tokens_out) == (0, 0)
        case "the input":
            # As litellm counts it; and what a model could have thought unseen in that time.
            assert tokens_in > 3000
            assert tokens_out <= 150 * row["seconds"] + 1
            assert row["cost_usd"] < row["reserved_usd"]
        case "the input, and what came":
            assert tokens_in > 3000
            # More than some words where the first of them took so long that something was thought before.
            assert 0 < tokens_out < 12 + 150 * row["seconds"]
            assert row["cost_usd"] < row["reserved_usd"]
        case "what the provider told":
            # llmock takes four characters for a token.
            assert 1000 < tokens_in < 3000
            assert tokens_out > 10


def check_nothing_leaked(screen: Screen, caplog: pytest.LogCaptureFixture) -> None:
    """A provider's fault is none of ours, its words are not kept, and the key is nowhere."""
    assert log_of(caplog, logging.ERROR) == []
    assert not any('"' in (row["error"] or "") for row in rows())
    kept = JOURNAL.read_bytes() if JOURNAL.exists() else b""
    assert KEY not in screen.text + "\n".join(log_of(caplog, logging.DEBUG)) + kept.decode("latin-1")
    assert "<html" not in screen.text.lower()


def check_next_turn(world: World, agent: Any, result: Any, was_ill: Patient, answer: str) -> None:
    """The conversation is one that OpenAI would take, and the next turn is answered by whoever was ill."""
    assert fault_of(history(result)) is None
    was_ill.be_well(say(answer))
    now = world.adapter.clock
    world.adapter.clock = lambda: now() + 100  # a tier that failed is left alone for a minute
    second = world.ask("again", agent=agent, history=result["messages"])
    assert second["final_response"] == answer
    assert fault_of(history(second)) is None
    last = was_ill.requests()[-1]
    assert last is None or fault_of(last["messages"]) is None


def history(result: Any) -> list[dict[str, Any]]:
    """The conversation as Hermes sends it: its own marks (times, call ids) are taken off."""
    return [_sent(message) for message in result["messages"]]


def _sent(message: dict[str, Any]) -> dict[str, Any]:
    sent = {key: value for key, value in message.items() if key in {"role", "content", "tool_calls", "tool_call_id"}}
    if sent.get("tool_calls"):
        sent["tool_calls"] = [{key: one[key] for key in ("id", "type", "function")} for one in sent["tool_calls"]]
    return sent


def fault_of(messages: Sequence[dict[str, Any]]) -> tuple[int, str] | None:
    """What OpenAI would refuse in these messages."""
    return strict_fault({"messages": list(messages)}, None, None)


ANSWERERS: dict[Answerer, str] = {
    "local": "the local model",
    "stronger": "the stronger model",
    "both": "the stronger model, after what the local one had said",
}
CHARGES: dict[Charge, str] = {
    "nothing": "nothing",
    "the input": "the input, and what could be thought in that time",
    "the input, and what came": "the input, and what came",
    "what the provider told": "what the provider told",
}


def document() -> str:
    """Return docs/faults.md."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield f"""\
# When an endpoint fails

Written by `python -m tests.test_faults` from the tables that `tests/test_faults.py` runs: each row is a turn of the real
Hermes, with the real litellm, that meets the fault over a real socket. Faults marked * come from
[llmock](https://pypi.org/project/llmock/), the others from a server of ours. In each of them

- the turn ends, and in time;
- the conversation stays one that OpenAI's strict rules take, and the next turn, with the endpoint well again, is
  answered by it;
- nothing is logged as a fault of the plugin's, the key is nowhere, and of the provider's words the journal has none.

## The paid endpoint fails

The local model is stuck, and the user has read `⚡ {MODEL} → {TIER}: read_file failed 3 times: file not found`.
Where the stronger model does not answer, a second line says why, a third that the local model goes on, and if anything
is charged, a last one about how much. A call that was refused is made once more if that may help and the wait is 20 s at
most; one that may have been begun is not, for it would be paid for twice.

| fault | requests | the user sees | the task is ended by | charged |
|---|---|---|---|---|"""
    for paid in PAID:
        seen = f"{TIER}: {paid.notice}" if paid.notice else f"{TIER} helped, because read_file failed 3 times: …"
        cells = (_name(paid.fault), str(paid.requests), f"⚡ {seen}", ANSWERERS[paid.by], CHARGES[paid.charged])
        yield f"| {' | '.join(cells)} |"
    yield """
## The local endpoint fails

In the middle of a task, with `provider_error` and `invalid_output` in `trigger_on`. Hermes tries again by itself; the
requests are counted up to the moment when the stronger model takes over. What that costs is charged as always.

| fault | requests | the user sees | the task is ended by |
|---|---|---|---|"""
    for local in LOCAL:
        seen = f"⚡ {MODEL} → {TIER}: {local.reason}" if local.reason else "the answer"
        yield f"| {_name(local.fault)} | {local.requests} | {seen} | {ANSWERERS[local.by]} |"
    yield """
After a 429 with `Retry-After`, Hermes waits for as long as it is told before each of its tries: the plugin takes over
after the third.

A stronger model that has the task already and fails then is left in the same way: the local model goes on, and what both
calls took is charged. That is tested for one fault of each kind.

Where no trigger is for it, the turn is the same as without the plugin, in every word and every request. That is tested
for one fault of each kind."""


def _name(fault: str) -> str:
    return f"{fault} *" if isinstance(FAULTS[fault], tuple) else fault


if __name__ == "__main__":
    DOCUMENT.write_text(document(), "utf-8")
