"""One paid call: the real litellm against a server that answers, refuses, stalls, drips and breaks off."""

from __future__ import annotations

import gc
import importlib
import os
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hermes_fallback import executor, handoff, lazy_litellm, prices, stream
from hermes_fallback.budget import NOTHING_USED
from hermes_fallback.config import Price, Tier
from hermes_fallback.executor import Abilities, Interrupted, Reply
from hermes_fallback.provider_errors import ExecutionError
from tests.endpoints import Answer, Endpoint, call, fail, in_order, say, streamed
from tests.world import KEY

TOOLS = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object", "properties": {}}}}]
HANDOFF: dict[str, Any] = {"messages": [{"role": "user", "content": "a-word-of-the-conversation"}], "tools": TOOLS}


def ask(
    *answers: Answer, monkeypatch: pytest.MonkeyPatch, stop: Any = lambda: False, key: str = KEY, **options: Any
) -> tuple[Reply, list[str], Endpoint]:
    """Call a tier whose provider gives these answers; return its reply, the text as it came, and the provider."""
    monkeypatch.setenv("TIER_KEY", key)
    pieces: list[str] = []
    seen: list[Endpoint] = options.pop("seen", [])
    with Endpoint(in_order(answers), strict=True, key=KEY) as endpoint:
        seen.append(endpoint)
        settings = {"provider": "openai", "model": "gpt-5.4", "base_url": endpoint.url, "api_key_env": "TIER_KEY"}
        reply = executor.complete(Tier(**{**settings, **options}), HANDOFF, is_interrupted=stop, on_text=pieces.append)
    return reply, pieces, endpoint


def test_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text comes in pieces; tokens and price come with it."""
    reply, pieces, _ = ask(say("Here is a text of some length."), monkeypatch=monkeypatch)
    assert reply.response.choices[0].message.content == "".join(pieces) == "Here is a text of some length."
    assert len(pieces) > 1
    assert (reply.input_tokens, reply.output_tokens) == (100, 20)
    assert reply.cost_usd == pytest.approx(100 * 2.5e-6 + 20 * 15e-6)


def test_tool_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call with tools works with the installed litellm (1.106 fails here), and shows nothing as text."""
    reply, pieces, _ = ask(call("read", path="x"), monkeypatch=monkeypatch)
    (tool_call,) = reply.response.choices[0].message.tool_calls
    assert (tool_call.function.name, tool_call.function.arguments) == ("read", '{"path": "x"}')
    assert pieces == []


def piece(arguments: str, **more: Any) -> dict[str, Any]:
    """A piece of a call to `read`, as a chunk has it."""
    return {"type": "function", "function": {"name": "read", "arguments": arguments}, **more}


TWO_CALLS: dict[str, list[list[dict[str, Any]]]] = {
    # one list of pieces a chunk
    "all numbered 0": [[piece('{"path": "a"}', id="a", index=0)], [piece('{"path": "b"}', id="b", index=0)]],
    "not numbered": [[piece('{"path": "a"}', id="a")], [piece('{"path": "b"}', id="b")]],
    "not numbered, in one chunk": [[piece('{"path": "a"}', id="a"), piece('{"path": "b"}', id="b")]],
    "numbered 0, in pieces": [
        [piece("", id="a", index=0)],
        [piece('{"path": ', id="a", index=0)],
        [piece('"a"}', id="", index=0)],
        [piece('{"path": "b"}', id="b", index=0)],
    ],
    "numbered, pieces in turns": [
        [piece('{"path": ', id="a", index=0), piece('{"path": ', id="b", index=1)],
        [piece('"b"}', index=1), piece('"a"}', index=0)],
    ],
    "without ids": [[piece('{"path": "a"}', index=0)], [piece('{"path": "b"}', id="", index=1)]],
}


@pytest.mark.parametrize("chunks", TWO_CALLS.values(), ids=TWO_CALLS)
@pytest.mark.parametrize(
    "names", [("openai", "gpt-5.4"), ("mistral", "mistral-large-latest")], ids=lambda names: names[0]
)
def test_calls_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, chunks: list[list[dict[str, Any]]], names: tuple[str, str]
) -> None:
    """Two calls are two, with an id each, however an endpoint numbers them."""
    answer = streamed(*({"tool_calls": pieces} for pieces in chunks), finish_reason="tool_calls")
    reply, _, _ = ask(answer, monkeypatch=monkeypatch, provider=names[0], model=names[1])
    calls = reply.response.choices[0].message.tool_calls
    assert [(one.function.name, one.function.arguments) for one in calls] == [
        ("read", '{"path": "a"}'),
        ("read", '{"path": "b"}'),
    ]
    assert len({one.id for one in calls} - {"", None}) == 2


def test_settings_of_the_tier_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    """`max_tokens` goes out under the name that the model wants, `extra` as it is."""
    _, _, endpoint = ask(
        say("x"), monkeypatch=monkeypatch, max_tokens=77, temperature=1, extra={"seed": 3, "parallel_tool_calls": False}
    )
    (request,) = endpoint.requests
    assert (request["max_completion_tokens"], request["temperature"], request["seed"]) == (77, 1, 3)
    assert request["parallel_tool_calls"] is False
    assert request["tools"] == TOOLS


THOUGHT = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 620}


@pytest.mark.parametrize(
    ("usage", "max_tokens", "written"),
    [
        (THOUGHT, None, 520),
        (THOUGHT, 16_384, 520),
        (THOUGHT, 300, 300),
        ({**THOUGHT, "completion_tokens_details": {"reasoning_tokens": 500}}, None, 520),
        ({**THOUGHT, "total_tokens": 2**64 - 5}, None, 20),
        ({**THOUGHT, "total_tokens": 0}, None, 20),
    ],
)
def test_thoughts_that_are_in_the_total_alone(
    monkeypatch: pytest.MonkeyPatch, usage: dict[str, Any], max_tokens: int | None, written: int
) -> None:
    """They are paid for like all that is written, as far as the total can be true."""
    reply, _, _ = ask(streamed({"content": "x"}, usage=usage), monkeypatch=monkeypatch, max_tokens=max_tokens)
    assert (reply.input_tokens, reply.output_tokens) == (100, written)
    assert reply.cost_usd == pytest.approx(100 * 2.5e-6 + written * 15e-6)
    assert reply.response.usage.completion_tokens == written


def test_zeros_beside_a_text_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read and written is counted then."""
    zeros = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    reply, _, _ = ask(streamed({"content": "word " * 50}, usage=zeros), monkeypatch=monkeypatch)
    read, written = reply.input_tokens or 0, reply.output_tokens or 0
    assert 30 < read < 100
    assert 50 < written < 70
    assert reply.cost_usd == pytest.approx(read * 2.5e-6 + written * 15e-6)


def test_what_is_read_is_counted_with_the_tools_where_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many local servers and gateways tell no usage; what litellm makes up for it leaves the tools out."""
    untold, _, _ = ask(say("word " * 50, tells_usage=False), monkeypatch=monkeypatch)
    tier = Tier("openai", "gpt-5.4")
    assert untold.input_tokens == prices.count_tokens(tier, HANDOFF["messages"], HANDOFF["tools"])
    assert untold.input_tokens > prices.count_tokens(tier, HANDOFF["messages"], None)
    assert 50 <= (untold.output_tokens or 0) < 70


def test_thoughts_before_the_first_words_of_a_call_that_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was thought unseen is paid for, whether or not a few words came after it."""
    with pytest.raises(ExecutionError) as caught:
        ask(say("a few words", text_after=2.5, cut_after=4, tells_usage=False), monkeypatch=monkeypatch)
    assert 150 < (caught.value.used.output_tokens or 0) < 1000
    with pytest.raises(ExecutionError) as caught:
        ask(say("a few words", text_after=2.5, cut_after=4, tells_usage=False), monkeypatch=monkeypatch, max_tokens=9)
    assert caught.value.used.output_tokens == 9


@pytest.mark.usefixtures("warmed")
def test_to_wait_for_a_second_try_is_not_to_think(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider was not at work meanwhile."""
    later = fail(429, headers=(("Retry-After", "5"),))
    with pytest.raises(ExecutionError, match="cut off") as caught:
        ask(later, say("a few words", cut_after=4, tells_usage=False), monkeypatch=monkeypatch)
    assert 0 < (caught.value.used.output_tokens or 0) < 4 * 150


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{**piece('{"path": "\ud800"}', index=0)}]},
        {"tool_calls": "x"},
        {"content": "x", "reasoning_content": 7},
        {"content": "x", "audio": 5},
    ],
    ids=["half a character", "calls that are none", "thoughts that are none", "a sound that is none"],
)
def test_a_reply_of_no_known_form_is_a_failure_of_its_provider(
    monkeypatch: pytest.MonkeyPatch, delta: dict[str, Any]
) -> None:
    """It is no fault of ours, and costs about what it used, not what was reserved."""
    try:
        reply, _, _ = ask(streamed(delta), monkeypatch=monkeypatch)
        used: Any = reply
    except ExecutionError as error:
        used = error.used
    assert used.cost_usd is not None
    assert used.cost_usd < 0.01


def test_an_empty_reply_costs_what_its_endpoint_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy has booked it, though there is nothing to read, and though litellm knows no price."""
    with pytest.raises(ExecutionError, match="the reply was empty") as caught:
        ask(say("", cost=0.75), monkeypatch=monkeypatch, model="a-model-of-our-own")
    assert (caught.value.used.input_tokens, caught.value.used.cost_usd) == (100, 0.75)


OWN_KEY = {"is_byok": True, "cost_details": {"upstream_inference_cost": 0.5}}


@pytest.mark.parametrize(
    ("told", "cost_usd"),
    [
        ({"cost": 0.02, **OWN_KEY}, 0.52),
        ({"cost": 0, **OWN_KEY}, 0.5),
        # OpenRouter's own key, to which the upstream's bill is the cost itself.
        ({"cost": 0.5, **OWN_KEY, "is_byok": False}, 0.5),
        # Not told: by litellm's price.
        ({"cost": 0.02, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, 0.00055),
        ({"cost": 0.02, "is_byok": True, "cost_details": None}, 0.00055),
    ],
)
def test_what_openrouter_lets_the_users_own_key_pay_is_paid(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], cost_usd: float
) -> None:
    """The provider's bill counts beside OpenRouter's fee."""
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120, **told}
    reply, _, _ = ask(streamed({"content": "x"}, usage=usage), monkeypatch=monkeypatch)
    assert reply.cost_usd == pytest.approx(cost_usd)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("heroku", "claude-4-sonnet"),
        ("dashscope", "qwen3-30b-a3b"),
        ("volcengine", "kimi-k2-thinking-251104"),
        ("azure", "model-router"),  # none for the reply, which is that of the model that writes it
        ("perplexity", "sonar-small-online"),  # none for the input, but one for each request
    ],
)
def test_a_model_that_is_listed_without_a_price_has_none(provider: str, model: str) -> None:
    """For litellm it costs $0; no budget would hold."""
    litellm = lazy_litellm.load()
    assert litellm.get_model_info(model, custom_llm_provider=provider)
    assert prices.cost(Tier(provider, model), 10_000, 1_000) is None
    assert prices.worst_case(Tier(provider, model), HANDOFF) is None
    assert prices.cost(Tier(provider, model, price=Price(0, 0)), 10_000, 1_000) == 0
    assert prices.cost(Tier("openai", "gpt-5.4"), 0, 0) == 0


def test_more_is_reserved_for_numbers_where_each_digit_may_be_a_token() -> None:
    """Qwen, Mistral, Gemini and others take one token a digit, OpenAI up to three digits."""
    numbers = {"messages": [{"role": "user", "content": "port 8443 is open, " * 1000}]}
    price = Price(1, 0)
    theirs, other = (
        prices.worst_case(Tier("openai", model, price=price), numbers) for model in ("gpt-5.4", "Qwen/Qwen3-32B")
    )
    assert theirs is not None
    assert other is not None
    assert other.input_usd - theirs.input_usd == pytest.approx(4000 / 1e6, rel=0.01)


@pytest.mark.parametrize("model", ["Qwen/Qwen3-32B", "claude-of-tomorrow"])
def test_no_more_is_reserved_than_a_token_a_byte(model: str) -> None:
    """Of digits alone, too, which litellm counts by threes."""
    digits = {"messages": [{"role": "user", "content": "123456789" * 2000}]}
    worst = prices.worst_case(Tier("openai", model, price=Price(1, 0)), digits)
    assert worst is not None
    # What providers frame a conversation with is no part of it.
    assert 18_000 < worst.input_usd * 1e6 <= (handoff.most_tokens(digits) or 0) + 400


def test_unknown_price_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that litellm has no price for costs None, not nothing."""
    reply, _, _ = ask(say("x"), monkeypatch=monkeypatch, model="a-model-of-our-own")
    assert reply.cost_usd is None


@pytest.mark.parametrize(
    ("answer", "words", "transient"),
    [
        (fail(400, "Unknown parameter: 'x'"), r"was refused; check .*\"Unknown parameter: 'x'\"", False),
        (fail(400, "bad: a-word-of-the-conversation"), r"was refused; .* \[BadRequestError, 400\]$", False),
        (fail(403, "no"), "may not use this model", False),
        (fail(404, "no"), "does not know this model", False),
        (fail(429, "no"), "too many requests, or no credit left", True),
        (fail(500, "no"), "had an error", True),
        (fail(503, "no"), "had an error", True),
        (say("half an answer, and then", cut_after=12), "cut off in the middle", True),
        (Answer(text="a text", calls=(("read", "{}"),), cut_after=6), "cut off", True),
        (say(""), "the reply was empty", True),
    ],
)
def test_failure(monkeypatch: pytest.MonkeyPatch, answer: Answer, words: str, transient: bool) -> None:  # noqa: FBT001
    """Each failure says what it is and whether to try again, and quotes nothing of the conversation."""
    with pytest.raises(ExecutionError, match=words) as caught:
        ask(answer, monkeypatch=monkeypatch)
    assert caught.value.transient is transient
    assert "a-word-of-the-conversation" not in str(caught.value)


def test_refused_key_is_named_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 401 names the variable; the key is not in the message."""
    with pytest.raises(ExecutionError, match=r"put it into Hermes's \.env as TIER_KEY") as caught:
        ask(say("x"), monkeypatch=monkeypatch, key="sk-canary-wrong-key")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        ("ollama", "write `provider: ollama_chat`, or `provider: openai` with `base_url: http://…:11434/v1`"),
        *((provider, "write `provider: openai` with the `base_url`") for provider in ("perplexity", "sambanova")),
    ],
)
def test_a_provider_that_would_get_no_tools_is_not_asked(
    monkeypatch: pytest.MonkeyPatch, provider: str, words: str
) -> None:
    """Without them it would answer as if it had none; `check` says it as well, and what to write instead."""
    endpoints: list[Endpoint] = []
    with pytest.raises(ExecutionError, match=words) as caught:
        ask(say("x"), monkeypatch=monkeypatch, provider=provider, model="a-model", seen=endpoints)
    assert (endpoints[0].requests, endpoints[0].refusals, endpoints[0].asides) == ([], [], [])
    assert (caught.value.transient, caught.value.used) == (False, NOTHING_USED)
    assert words in (executor.fault_of(Tier(provider, "a-model")) or "")


@pytest.mark.parametrize("provider", ["ollama", "ollama_chat"])
def test_an_ollama_server_is_not_asked_about_its_model(monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """It may hang, and what a model can and costs is asked where no stop is heard: its price is the tier's own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        monkeypatch.setenv("OLLAMA_API_BASE", f"http://127.0.0.1:{server.getsockname()[1]}")
        tier = Tier(provider, "a-model")
        assert executor.abilities(tier) == Abilities(
            vision=None, max_input_tokens=None, max_output_tokens=None, tools=None
        )
        assert prices.worst_case(tier, HANDOFF) is None
        with pytest.raises(BlockingIOError):  # nobody waits for it
            server.accept()
    assert prices.cost(Tier(provider, "a-model", price=Price(1, 1)), 500_000, 500_000) == 1


def test_who_knows_better_may_send_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """By litellm's own key for that."""
    extra = {"allowed_openai_params": ["tools"]}
    _, _, endpoint = ask(say("x"), monkeypatch=monkeypatch, provider="sambanova", model="a-model", extra=extra)
    assert endpoint.requests[0]["tools"] == TOOLS


def test_passing_error_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One 500 is not yet a failure, nor a 429 whose wait is short."""
    for answer in (fail(500), fail(429, headers=(("Retry-After", "1"),))):
        reply, _, endpoint = ask(answer, say("second"), monkeypatch=monkeypatch)
        assert reply.response.choices[0].message.content == "second"
        assert len(endpoint.requests) == 2


@pytest.mark.parametrize(
    "answer",
    [fail(401), fail(400), fail(429, headers=(("Retry-After", "60"),)), say("half an answer", cut_after=5)],
)
def test_what_is_not_tried_again(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    """A refusal would be one again, a long wait is not ours to wait, and what was begun would be paid for twice."""
    endpoints: list[Endpoint] = []
    with pytest.raises(ExecutionError):
        ask(answer, say("second"), monkeypatch=monkeypatch, seen=endpoints)
    assert len(endpoints[0].requests) == 1


def test_it_is_waited_for_as_long_as_the_provider_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Retry-After` is heeded; half a second without it."""
    waited: list[float] = []
    monkeypatch.setattr(executor, "_wait", lambda seconds, _: waited.append(seconds))
    ask(fail(500), say("second"), monkeypatch=monkeypatch)
    ask(fail(429, headers=(("Retry-After", "3"),)), say("second"), monkeypatch=monkeypatch)
    assert waited == [0.5, 3.0]


def test_stop_ends_a_stalled_call_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop is heeded the first time that it is there to be seen, which is looked for while nothing comes."""
    looked: list[bool] = []

    def stop() -> bool:
        looked.append(len(looked) == 3)
        return looked[-1]

    with pytest.raises(Interrupted):
        ask(say("x", headers_after=20), monkeypatch=monkeypatch, stop=stop)
    assert looked == [False, False, False, True]


@pytest.mark.parametrize("answer", [say("x", headers_after=3), say("drip " * 100, hold_seconds=0.2)])
def test_total_timeout(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    """A call that hangs, or drips on, ends at `timeout_seconds`."""
    with pytest.raises(ExecutionError, match=r"no end after 0\.6 s|did not answer in time"):
        ask(answer, monkeypatch=monkeypatch, timeout_seconds=0.6)


def test_idle_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that stalls is given up, though the total time is not over."""
    monkeypatch.setattr(executor, "_IDLE_SECONDS", 0.5)
    with pytest.raises(ExecutionError, match="nothing came for"):
        ask(say("a text that stalls", hold_seconds=3), monkeypatch=monkeypatch)


def test_a_tier_may_be_silent_for_as_long_as_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a longer timeout than the usual may take it before its first word, and no longer between two."""
    monkeypatch.setattr(executor, "_IDLE_SECONDS", 0.5)
    slow = say("a text " * 3, headers_after=1.5)
    with pytest.raises(ExecutionError, match=r"nothing came for 0\.5 s; if it needs longer before its first word, set"):
        ask(slow, monkeypatch=monkeypatch, timeout_seconds=300)
    # Some begin with a word on who speaks, and think then.
    slow_after_its_role = say("a text " * 3, text_after=1.5)
    for answer in (slow, slow_after_its_role):
        _, texts, _ = ask(answer, monkeypatch=monkeypatch, timeout_seconds=301)
        assert "".join(texts) == "a text " * 3
    with pytest.raises(ExecutionError, match=r"nothing came for 0\.5 s$"):
        ask(say("a text that stalls", hold_seconds=3), monkeypatch=monkeypatch, timeout_seconds=301)


def test_import_prints_nothing_and_asks_no_network() -> None:
    """Litellm comes in without a word on the terminal, and with its price map from the package."""
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse\n"
        "from hermes_fallback import lazy_litellm\n"
        "lazy_litellm.load()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("mode", [None, "DEV"])
def test_import_reads_no_env_file(mode: str | None, tmp_path: Path) -> None:
    """A `.env` above litellm's folder, of Hermes's default profile or of a project, does not come into the process.

    Whose key is in it would pay, and Hermes's terminal tool would hand it on.
    """
    litellm = find_spec("litellm")
    assert litellm is not None
    installed = Path(str(litellm.origin)).parents[1]
    (tmp_path / "site-packages").symlink_to(installed)
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-of-somebody-else\n")
    # A file, as `hermes` is: without one, the search begins in the working directory.
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "from hermes_fallback import lazy_litellm\n"
        "lazy_litellm.load()\n"
        "print(sys.modules['litellm'].__file__)\n"
        "print(sorted(set(os.environ.items()) ^ set(before.items())))\n"
    )
    root = Path(executor.__file__).parents[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LITELLM_", "OPENAI_"))}
    env["PYTHONPATH"] = f"{tmp_path / 'site-packages'}:{root}"
    if mode is not None:
        env["LITELLM_MODE"] = mode
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, env=env)
    origin, changed = done.stdout.splitlines()
    assert Path(origin).is_relative_to(tmp_path)
    assert changed == "[('LITELLM_LOCAL_MODEL_COST_MAP', 'True')]"


@pytest.mark.parametrize("collects", [True, False])
def test_import_leaves_the_process_as_it_was(collects: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: FBT001
    """What is switched off during the import is as it was after it, also if the import fails, in whatever thread."""
    seen: list[tuple[bool, bool]] = []

    def imported(name: str) -> None:
        seen.append((gc.isenabled(), sys.getswitchinterval() < interval))
        time.sleep(0.01)
        raise ImportError(name)

    def fails() -> None:
        with pytest.raises(ImportError):
            lazy_litellm._import_undisturbed("not.there")  # noqa: SLF001

    interval = sys.getswitchinterval()
    monkeypatch.setattr(importlib, "import_module", imported)
    if not collects:
        gc.disable()
    try:
        threads = [threading.Thread(target=fails) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert seen == [(False, True)] * 4
    assert sys.getswitchinterval() == interval


@pytest.mark.parametrize("text", ["word " * 500, "日本語のテキスト" * 100, "🙂\ud800\0" * 100, '{"a": [1, 2]}' * 100])
@pytest.mark.parametrize("tier", [Tier("openai", "gpt-5.4"), Tier("anthropic", "claude-sonnet-4-5")])
def test_a_bound_is_no_less_than_what_is_counted(tier: Tier, text: str) -> None:
    """What a call may cost at most is at least as much where no tokens are counted, and not many times that."""
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    asked = {"messages": [{"role": "user", "content": text}], "tools": tools}
    counted = prices.worst_case(tier, asked)
    bound = prices.worst_case(tier, asked, at_most=handoff.most_tokens(asked))
    assert counted is not None
    assert bound is not None
    assert counted.input_tokens <= bound.input_tokens
    assert counted.usd_per_output_token == pytest.approx(bound.usd_per_output_token)
    assert bound.usd(16_384) < 2 * counted.usd(16_384)


def test_installed_litellm_is_in_the_range_that_works() -> None:
    """1.82.7 and 1.82.8 were malicious, 1.105.4 ousts Hermes's certifi, 1.106 fails with tools: all are shut out."""
    from importlib.metadata import requires, version  # noqa: PLC0415

    from packaging.requirements import Requirement  # noqa: PLC0415

    requirements = [Requirement(text) for text in requires("hermes-fallback") or ()]
    (litellm,) = [requirement for requirement in requirements if requirement.name == "litellm"]
    assert litellm.specifier.contains(version("litellm"))
    assert not any(litellm.specifier.contains(bad) for bad in ("1.82.7", "1.82.8", "1.105.4", "1.106.0", "1.109.1"))


def test_all_that_a_model_wrote_is_counted() -> None:
    """Of an unfinished call, thoughts and what it asks a tool for are paid for like text."""
    from litellm.types.utils import Delta, ModelResponseStream, StreamingChoices  # noqa: PLC0415

    asked = {"index": 0, "id": "c1", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    deltas = [Delta(reasoning_content="thought "), Delta(content="said "), Delta(tool_calls=[asked]), Delta()]
    chunk = ModelResponseStream(choices=[StreamingChoices(delta=delta) for delta in deltas])
    assert "".join(executor._pieces(chunk)) == "thought said read{}"  # noqa: SLF001


def test_a_stream_that_is_not_let_go_of_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer is there all the same, at once, and the log says why a later call may wait."""

    def fails(_source: object) -> None:
        raise KeyError("a fault")

    monkeypatch.setattr(stream, "_let_go", fails)
    reply, _, _ = ask(say("an answer"), monkeypatch=monkeypatch)
    assert reply.response.choices[0].message.content == "an answer"
    assert "a stream was not let go of" in caplog.text
    assert "KeyError: 'a fault'" in caplog.text


STOPPED = """\
import faulthandler, os, sys, time
faulthandler.dump_traceback_later(50, exit=True)  # where it hangs
from hermes_fallback import executor, lazy_litellm, stream
from hermes_fallback.config import Tier

tier, seen, modules = Tier("openai", "gpt-5.4"), [], set()
lazy_litellm._warm(tier)
import tiktoken.registry
tokenizers = dict(tiktoken.registry.ENCODINGS)

def show(text):
    seen.append(text)
    global modules
    modules = set(sys.modules)

def tell(line):
    os.write(1, f"{line}\\n".encode())  # at once, for two threads do

def let_go(source, let_go=stream._let_go):
    tell(f"new: {set(sys.modules) - modules}")
    time.sleep(0.3)
    let_go(source)
    tell("let go of")

stream._let_go = let_go
asked = {"messages": [{"role": "user", "content": "hello"}]}
try:
    executor.complete(tier, asked, is_interrupted=lambda: len(seen) > 1, on_text=show)
except executor.Interrupted as stop:
    tell(f"{stop.used.output_tokens > 0} {len(tokenizers)} {tiktoken.registry.ENCODINGS == tokenizers}")
"""


def test_a_stopped_call_needs_nothing_new_and_ends_before_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts its tokens is there already, for loading that holds up the terminal; its thread is waited for."""
    with Endpoint(in_order([say("word " * 500, hold_seconds=0.05)]), strict=True, key=KEY) as endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        done = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, check=False, timeout=60)
    lines = sorted(done.stdout.splitlines())
    assert (done.returncode, lines, done.stderr) == (0, ["True 1 True", "let go of", "new: set()"], "")


FIRST_CALL = """\
import sys
from hermes_fallback import executor, lazy_litellm
from hermes_fallback.config import Tier

tier = Tier("openai", "gpt-5.4")
lazy_litellm.{warmed_by}
before = set(sys.modules)
asked = {{"messages": [{{"role": "user", "content": "hello"}}]}}
executor.complete(tier, asked, is_interrupted=lambda: False, on_text=lambda text: None)
print(sum(name.startswith("litellm.") for name in set(sys.modules) - before))
"""


def test_warming_asks_nobody_and_leaves_less_for_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call loads is loaded by one that litellm answers itself: the provider gets the first real one alone."""
    loaded = {}
    for warmed_by in ("load()", "_warm(tier)"):
        with Endpoint(in_order([say("an answer")]), strict=True, key=KEY) as endpoint:
            monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
            code = FIRST_CALL.format(warmed_by=warmed_by)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")
            assert len(endpoint.requests) == 1
        loaded[warmed_by] = int(done.stdout)
    assert loaded["_warm(tier)"] <= loaded["load()"] // 2


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.7, 1.2])
def test_ending_in_the_middle_of_the_warm_up(seconds: float) -> None:
    """A process that ends while litellm is imported in the background ends as it would have."""
    code = (
        "import sys, time; from hermes_fallback import lazy_litellm; from hermes_fallback.config import Tier\n"
        f"lazy_litellm.warm([Tier('openai', 'any')]); time.sleep({seconds}); sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (7, "")
