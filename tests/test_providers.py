"""The four wire formats of the stronger model: the real litellm against servers as strict as the providers."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hermes_fallback import executor, handoff, prices
from hermes_fallback.config import Price, Tier
from hermes_fallback.executor import Reply
from hermes_fallback.provider_errors import ExecutionError
from tests import wire
from tests.endpoints import AZURE, CHAT, OPENROUTER, Answer, Endpoint, Wire, call, fail, in_order, say, streamed
from tests.test_handoff import messages_of_any_kind, tool_call
from tests.world import KEY


@dataclass(frozen=True)
class Provider:
    """A provider by its wire, with litellm's prices (1.105.3) of the model in dollars per million tokens."""

    id: str
    wire: Wire
    provider: str
    model: str
    input_price: float
    output_price: float
    cached_price: float


PROVIDERS = (
    Provider("openai chat", CHAT, "openai", "gpt-5.4", 2.5, 15, 0.25),
    Provider("openai responses", wire.RESPONSES, "openai", "responses/gpt-5.4", 2.5, 15, 0.25),
    Provider("anthropic", wire.ANTHROPIC, "anthropic", "claude-opus-4-6", 5, 25, 0.5),
    Provider("gemini", wire.GEMINI, "gemini", "gemini-3.1-pro-preview", 2, 12, 0.2),
)
AZURE_CHAT = replace(PROVIDERS[0], id="azure", wire=AZURE)
every_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.id)
CHAT_OF = {
    name: replace(PROVIDERS[0], id=name, provider=name, wire=OPENROUTER if name == "openrouter" else CHAT)
    for name in ("openai", "deepseek", "zai", "openrouter", "hosted_vllm")
}
"""Some that litellm reads by its own client, and OpenAI, which it reads by OpenAI's."""
one_of = {provider.id: provider for provider in PROVIDERS}

PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
TOOLS = [{"type": "function", "function": {"name": "read", "description": "Read.", "parameters": PARAMETERS}}]
ASKED = [{"role": "system", "content": "be good"}, {"role": "user", "content": "a-word-of-the-conversation"}]
TEXT = "Here is a text of some length."
LONG = Answer(text="Here is a text", calls=(("read", '{"path": "a/rather/long/path.toml"}'),))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key that all stand-ins take."""
    monkeypatch.setenv("TIER_KEY", KEY)


def ask(endpoint: Endpoint, provider: Provider, request: dict[str, Any], **options: Any) -> tuple[Reply, list[str]]:
    """Hand the request over to the provider; return its reply, and the text as it came."""
    pieces: list[str] = []
    names = {"provider": provider.provider, "model": provider.model, "base_url": endpoint.url}
    tier = Tier(**{**names, "api_key_env": "TIER_KEY", **options})
    built = handoff.build(request, note="NOTE")
    return executor.complete(tier, built, is_interrupted=lambda: False, on_text=pieces.append), pieces


def answered(provider: Provider, *answers: Answer, **options: Any) -> tuple[Reply, list[str], Endpoint]:
    """Ask a provider that gives these answers."""
    with Endpoint(in_order(answers), strict=True, key=KEY, wire=provider.wire) as endpoint:
        reply, pieces = ask(endpoint, provider, {"messages": ASKED, "tools": TOOLS}, **options)
    return reply, pieces, endpoint


@every_provider
def test_text(provider: Provider) -> None:
    """The text comes in pieces; tokens and price come with it."""
    reply, pieces, _ = answered(provider, say(TEXT))
    assert reply.response.choices[0].message.content == "".join(pieces) == TEXT
    assert len(pieces) > 1
    assert (reply.input_tokens, reply.output_tokens) == (100, 20)
    assert reply.cost_usd == pytest.approx((100 * provider.input_price + 20 * provider.output_price) / 1e6)


@every_provider
def test_what_is_read_from_the_cache_costs_less(provider: Provider) -> None:
    """Cached input is priced as the provider prices it."""
    reply, _, _ = answered(provider, say(TEXT, cached=80))
    assert reply.input_tokens == 100
    full, cached = 20 * provider.input_price, 80 * provider.cached_price
    assert reply.cost_usd == pytest.approx((full + cached + 20 * provider.output_price) / 1e6)


def test_what_claude_writes_into_its_cache_costs_more_by_ones_own_price_too() -> None:
    """A quarter more, which is reserved and paid, for it is this plugin that asks for the cache."""
    claude, price = one_of["anthropic"], Price(5, 25, 0.5)
    reply, _, _ = answered(claude, say(TEXT, cached=30, cache_written=60), price=price)
    assert reply.cost_usd == pytest.approx((10 * 5 + 60 * 6.25 + 30 * 0.5 + 20 * 25) / 1e6)
    asked = {"messages": [{"role": "user", "content": "word " * 1000}]}
    worst = [
        prices.worst_case(Tier(claude.provider, claude.model, price=own, extra=extra), asked)
        for own, extra in ((None, {}), (price, {}), (price, {"cache_control_injection_points": []}))
    ]
    by_litellm, by_own_price, without_cache = (one.input_usd if one else 0 for one in worst)
    assert by_own_price == pytest.approx(by_litellm)
    assert by_own_price == pytest.approx(1.25 * without_cache)


@every_provider
def test_a_reply_that_is_cut_before_its_first_word_is_not_asked_for_again(provider: Provider) -> None:
    """It was accepted, and what was read is paid for."""
    with Endpoint(in_order([say(TEXT, cut_after=0)] * 2), strict=True, key=KEY, wire=provider.wire) as endpoint:
        with pytest.raises(ExecutionError) as caught:
            ask(endpoint, provider, {"messages": ASKED, "tools": TOOLS})
        assert len(endpoint.requests) == 1
    assert (caught.value.used.input_tokens or 0) > 0


def test_a_stopped_claude_costs_what_it_has_told() -> None:
    """It says at the beginning what it read, and what of that it put into its cache."""
    claude = one_of["anthropic"]
    answer = say("word " * 100, usage=(40_000, 300), cached=1_000, cache_written=38_000, hold_seconds=0.02)
    pieces: list[str] = []
    with Endpoint(in_order([answer]), strict=True, key=KEY, wire=claude.wire) as endpoint:
        tier = Tier(claude.provider, claude.model, base_url=endpoint.url, api_key_env="TIER_KEY")
        built = handoff.build({"messages": ASKED, "tools": TOOLS}, note="NOTE")
        with pytest.raises(executor.Interrupted) as stop:
            executor.complete(tier, built, is_interrupted=lambda: len(pieces) > 2, on_text=pieces.append)
    used = stop.value.used
    assert used.input_tokens == 40_000
    assert used.output_tokens is not None
    reading = 1_000 * claude.input_price + 38_000 * 1.25 * claude.input_price + 1_000 * claude.cached_price
    assert used.cost_usd == pytest.approx((reading + used.output_tokens * claude.output_price) / 1e6)


def test_what_claude_keeps_for_an_hour_costs_twice_as_much() -> None:
    """Where the user asks for that, it is reserved and paid."""
    claude, price = one_of["anthropic"], Price(5, 25, 0.5)
    point = {"location": "message", "index": -1, "control": {"type": "ephemeral", "ttl": "1h"}}
    extra = {"cache_control_injection_points": [point]}
    reply, _, endpoint = answered(claude, say(TEXT, cached=30, cache_written=60), price=price, extra=extra)
    assert '"ttl": "1h"' in json.dumps(endpoint.requests[0])
    assert reply.cost_usd == pytest.approx((10 * 5 + 60 * 10 + 30 * 0.5 + 20 * 25) / 1e6)
    asked = {"messages": [{"role": "user", "content": "word " * 1000}]}
    worst = [
        prices.worst_case(Tier(claude.provider, claude.model, price=own, extra=extra), asked)
        for own, extra in ((None, extra), (price, extra), (price, {"cache_control_injection_points": []}))
    ]
    by_litellm, by_own_price, without_cache = (one.input_usd if one else 0 for one in worst)
    assert by_own_price == pytest.approx(by_litellm)
    assert by_own_price == pytest.approx(2 * without_cache)


@every_provider
def test_tool_call_and_its_result(provider: Provider) -> None:
    """A call comes back as Hermes knows calls, and its result is taken by the provider that made it."""
    two = Answer(text="I look.", calls=(("read", '{"path": "x"}'), ("read", '{"path": "y"}')))
    with Endpoint(in_order([two, say("done")]), strict=True, key=KEY, wire=provider.wire) as endpoint:
        first, _ = ask(endpoint, provider, {"messages": ASKED, "tools": TOOLS})
        message = first.response.choices[0].message.model_dump()
        ids = [made["id"] for made in message["tool_calls"]]
        assert max(map(len, ids)) <= 40, "more than OpenAI takes, if Hermes goes there next"
        assert [made["function"]["name"] for made in message["tool_calls"]] == ["read", "read"]
        arguments = [json.loads(made["function"]["arguments"]) for made in message["tool_calls"]]
        assert arguments == [{"path": "x"}, {"path": "y"}]
        assert first.response.choices[0].finish_reason == "tool_calls"
        results = [{"role": "tool", "tool_call_id": id_, "content": f"result {id_}"} for id_ in reversed(ids)]
        second, _ = ask(endpoint, provider, {"messages": [*ASKED, message, *results], "tools": TOOLS})
    assert second.response.choices[0].message.content == "done"
    assert endpoint.refusals == []
    # Gemini finds the call of a result by its place.
    sent = json.dumps(endpoint.requests[1])
    assert sent.index(f"result {ids[0]}") < sent.index(f"result {ids[1]}")


@dataclass(frozen=True)
class Failure:
    """What the provider does, and what is to be said of it."""

    id: str
    answer: Answer
    transient: bool
    words: str
    settings: tuple[tuple[str, Any], ...] = ()


FAILURES = (
    Failure("400", fail(400, "bad thing"), False, 'the request was refused; .*"bad thing"'),
    Failure("401", fail(401), False, r"put it into Hermes's \.env as TIER_KEY"),
    Failure("403", fail(403), False, "may not use this model"),
    Failure("404", fail(404), False, "does not know this model"),
    Failure("429", fail(429), True, "too many requests"),
    Failure("500", fail(500), True, "the provider had an error"),
    Failure("529", fail(529, "Overloaded"), True, "the provider had an error"),
    Failure("content quoted", fail(400, "bad: a-word-of-the-conversation"), False, r"\[BadRequestError, 400\]$"),
    Failure("no answer in time", say(TEXT, headers_after=1.5), True, "no end after 0.4 s|did not answer in time", (("timeout_seconds", 0.4),)),
    Failure("drips on", say(TEXT, hold_seconds=0.4), True, r"no end after 0\.6 s", (("timeout_seconds", 0.6),)),
    Failure("cut in the text", say(TEXT, cut_after=12), True, "cut off in the middle|before any terminal event"),
    Failure("cut in the arguments", Answer(text=LONG.text, calls=LONG.calls, cut_after=20), True, "cut off in the middle|before any terminal event"),
    Failure("cut at once", say(TEXT, cut_after=0), True, "no reply came|cut off in the middle|before any terminal event"),
    Failure("text garbled", say(TEXT, garbled_after=12), True, "cut off|piece missing"),
    Failure("arguments garbled", Answer(calls=LONG.calls, garbled_after=0), True, "no reply came|cut off|piece missing"),
    Failure("error in the middle", say(TEXT, error_after=12), True, "the provider had an error"),
    Failure("error at once", say(TEXT, error_after=0), True, "the provider had an error"),
    Failure("empty", say(""), True, "the reply was empty"),
    Failure("refused by a filter", say("Here", finish_reason="content_filter"), False, "the provider refused the content"),
)  # fmt: skip


@every_provider
@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.id)
def test_failure(provider: Provider, failure: Failure) -> None:
    """Each failure says what it is and whether to try again; half an answer is never taken for a whole one."""
    with pytest.raises(ExecutionError, match=failure.words) as caught:
        answered(provider, failure.answer, **dict(failure.settings))
    assert caught.value.transient is failure.transient
    assert "a-word-of-the-conversation" not in str(caught.value)


BROKEN_OFF = [
    (CHAT_OF["openai"], "insufficient_system_resource"),
    (CHAT_OF["deepseek"], "insufficient_system_resource"),
    (CHAT_OF["zai"], "network_error"),
    (CHAT_OF["openrouter"], "error"),
    (CHAT_OF["hosted_vllm"], "abort"),
    *(
        (one_of["gemini"], reason)
        for reason in ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS")
    ),
]


@pytest.mark.parametrize(("provider", "reason"), BROKEN_OFF, ids=lambda one: getattr(one, "id", one))
def test_a_reply_that_the_provider_broke_off_is_no_answer(provider: Provider, reason: str) -> None:
    """To litellm it stopped by itself; the turn would end with half a sentence."""
    with pytest.raises(ExecutionError, match=rf"the provider broke the reply off \({reason}\)") as caught:
        answered(provider, say(TEXT, finish_reason=reason))
    assert caught.value.transient
    assert reason not in caught.value.in_our_words
    assert caught.value.used.output_tokens == 20


def test_a_reply_that_outgrew_the_context_is_no_answer() -> None:
    """Claude 4.5 says so of itself, where others refuse the request."""
    with pytest.raises(ExecutionError, match="larger than the model's context") as caught:
        answered(one_of["anthropic"], say(TEXT, finish_reason="model_context_window_exceeded"))
    assert not caught.value.transient


@pytest.mark.parametrize("provider", CHAT_OF.values(), ids=lambda provider: provider.id)
def test_a_stream_that_ends_without_a_reason_is_no_answer(provider: Provider) -> None:
    """It was cut by something that says `[DONE]` all the same."""
    with pytest.raises(ExecutionError, match="cut off in the middle"):
        answered(provider, streamed({"role": "assistant", "content": TEXT}, finish_reason=None))


@pytest.mark.parametrize("provider", CHAT_OF.values(), ids=lambda provider: provider.id)
def test_a_refusal_is_said(provider: Provider) -> None:
    """OpenAI has a field of its own for it."""
    with pytest.raises(ExecutionError, match="the provider refused the content") as caught:
        answered(provider, streamed({"role": "assistant", "refusal": "I can't help with that."}))
    assert not caught.value.transient


@every_provider
def test_thoughts_alone_are_no_answer(provider: Provider) -> None:
    """Whatever they stand in; where they took all tokens, more of them are needed."""
    with pytest.raises(ExecutionError, match="empty") as caught:
        answered(provider, say("<think>hm, hm</think>"))
    assert caught.value.transient
    with pytest.raises(ExecutionError, match="it thought until its limit of tokens") as caught:
        answered(provider, say("", finish_reason="length"))
    assert not caught.value.transient


@pytest.mark.usefixtures("warmed")
@pytest.mark.parametrize("provider", [*PROVIDERS, AZURE_CHAT], ids=lambda provider: provider.id)
def test_what_was_thought_unseen_is_paid_for(provider: Provider) -> None:
    """Whatever came before the first word; where the provider tells what an empty reply took, that counts."""
    with pytest.raises(ExecutionError) as silent:
        answered(provider, say(TEXT, text_after=20), timeout_seconds=1.5)
    assert silent.value.used.output_tokens is not None
    assert silent.value.used.output_tokens >= 0.75 * 150  # the call is timed, not what comes before it
    with pytest.raises(ExecutionError, match="empty") as told:
        answered(provider, say("", headers_after=0.5))
    assert told.value.used.output_tokens == 20


def test_what_claude_thought_unseen_is_paid_for_when_its_reply_is_cut() -> None:
    """The token of output that it tells of at its beginning is not all that it wrote."""
    with pytest.raises(ExecutionError) as cut:
        answered(one_of["anthropic"], say(TEXT, headers_after=0.8, cut_after=0))
    assert (cut.value.used.output_tokens or 0) >= 0.7 * 150


@pytest.mark.parametrize("price", [None, Price(5, 25, 0.5)], ids=["by litellm", "by one's own price"])
def test_a_claude_that_told_nothing_is_paid_for_as_it_may_have_read(price: Price | None) -> None:
    """It makes more tokens than litellm counts, and writes them to its cache, where that is asked for."""

    def used(**extra: Any) -> tuple[int, float]:
        with pytest.raises(ExecutionError) as silent:
            answered(one_of["anthropic"], say(TEXT, headers_after=2), timeout_seconds=0.4, price=price, extra=extra)
        one = silent.value.used
        assert one.cost_usd is not None
        return one.input_tokens or 0, one.cost_usd - (one.output_tokens or 0) * 25e-6

    built = handoff.build({"messages": ASKED, "tools": TOOLS}, note="NOTE")
    counted = prices.count_tokens(Tier("anthropic", "claude-opus-4-6"), built["messages"], TOOLS)
    uncached: dict[str, Any] = {"cache_control_injection_points": []}
    for price_in, extra in ((6.25e-6, {}), (5e-6, uncached)):
        tokens, usd = used(**extra)
        assert tokens == int(1.6 * counted)
        assert usd == pytest.approx(tokens * price_in)


@every_provider
@pytest.mark.parametrize("answer", [say(TEXT), LONG, say(TEXT, cut_after=12), say(TEXT, garbled_after=3)])
def test_no_stream_is_left_to_the_garbage_collector(provider: Provider, answer: Answer) -> None:
    """Each connection is closed when the call is over.

    A stream that is closed while garbage is collected inside the connection pool makes all later calls hang.
    """
    gc.disable()
    try:
        with suppress(ExecutionError):
            answered(provider, answer)
        streams = [thing for thing in gc.get_objects() if type(thing).__name__ == "PoolByteStream"]
        assert [stream for stream in streams if not stream._closed] == []  # noqa: SLF001  # httpcore has no other sign
    finally:
        gc.enable()


@every_provider
def test_refused_key_is_named_not_shown(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused key is one, also where the provider says 400 (Gemini), and it is not in the message."""
    monkeypatch.setenv("TIER_KEY", "sk-canary-wrong-key")
    with pytest.raises(ExecutionError, match=r"put it into Hermes's \.env as TIER_KEY") as caught:
        answered(provider, say(TEXT))
    assert "canary" not in str(caught.value)
    assert not caught.value.transient


@every_provider
def test_a_reply_at_its_limit_says_so(provider: Provider) -> None:
    """What ends at `max_tokens` comes back as `length`, which Hermes continues."""
    reply, _, _ = answered(provider, say(TEXT, finish_reason="length"), max_tokens=64)
    assert reply.response.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("id_", "model"),
    [("gemini", "gemini-3-pro-preview"), ("openai responses", "responses/ours"), ("anthropic", "claude-ours")],
)
def test_unknown_price_is_unknown(id_: str, model: str) -> None:
    """A model without a price costs None, not nothing; litellm says 0 for one that it knows without a price."""
    reply, _, _ = answered(one_of[id_], say(TEXT), model=model)
    assert reply.cost_usd is None


def test_claude_is_told_to_cache_the_prefix() -> None:
    """The system prompt and the last message are marked, so the next call of the task reads what this one wrote."""
    with Endpoint(
        in_order([call("read", path="x"), say("done")]), strict=True, key=KEY, wire=wire.ANTHROPIC
    ) as endpoint:
        first, _ = ask(endpoint, one_of["anthropic"], {"messages": ASKED, "tools": TOOLS})
        message = first.response.choices[0].message.model_dump()
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "port = 1"}
        ask(endpoint, one_of["anthropic"], {"messages": [*ASKED, message, result], "tools": TOOLS})
    one, two = endpoint.requests
    marker = {"cache_control": {"type": "ephemeral"}}
    assert one["system"] == [{"type": "text", "text": "be good\n\nNOTE", **marker}]
    assert one["messages"][-1]["content"][-1].items() >= marker.items()
    assert two["messages"][-1]["content"][-1].items() >= marker.items()
    assert two["messages"][-1]["content"][-1]["type"] == "tool_result"
    # What comes before the marker is the same in both, or nothing is read from the cache.
    said = one["messages"][0]["content"][0]["text"]
    assert (two["system"], two["tools"], two["messages"][0]["content"][0]["text"]) == (
        one["system"],
        one["tools"],
        said,
    )


@pytest.mark.parametrize(
    "extra", [{"reasoning_effort": "high"}, {"thinking": {"type": "enabled", "budget_tokens": 2000}}]
)
def test_older_claude_that_is_to_think_cannot_take_a_task_over(extra: dict[str, object]) -> None:
    """Up to 4.5 it wants the thoughts of whoever called the last tool: what to leave out is said."""
    called = {"role": "assistant", "content": None, "tool_calls": [tool_call("1", "read", '{"path": "x"}')]}
    found = {"role": "tool", "tool_call_id": "1", "content": "not found"}
    request = {"messages": [*ASKED, called, found], "tools": TOOLS}
    with Endpoint(in_order([say(TEXT)]), strict=True, key=KEY, wire=wire.ANTHROPIC) as endpoint:
        with pytest.raises(ExecutionError, match="leave `reasoning_effort` and `thinking` out of `extra`") as caught:
            ask(endpoint, one_of["anthropic"], request, model="claude-sonnet-4-5", extra=extra)
        assert not caught.value.transient
        reply, _ = ask(endpoint, one_of["anthropic"], request, model="claude-sonnet-4-5")
    assert reply.response.choices[0].message.content == TEXT


@pytest.mark.parametrize("provider", ["openai chat", "openai responses", "gemini"])
def test_others_cache_by_themselves(provider: str) -> None:
    """No marker goes to a provider that caches without being asked, or refuses the key."""
    _, _, endpoint = answered(one_of[provider], say(TEXT))
    assert "cache" not in json.dumps(endpoint.requests)


def test_cache_markers_can_be_set_in_extra() -> None:
    """What the user writes in `extra` wins."""
    _, _, endpoint = answered(one_of["anthropic"], say(TEXT), extra={"cache_control_injection_points": []})
    assert "cache_control" not in json.dumps(endpoint.requests)


@dataclass(frozen=True)
class Conversation:
    """One that a provider may refuse; in brackets who refused it before the handoff was mended."""

    id: str
    messages: tuple[dict[str, Any], ...]


CONVERSATIONS = (
    Conversation("nothing but a system prompt (Anthropic)", ({"role": "system", "content": "x"},)),
    Conversation("begun and ended by the model (Anthropic, Gemini)", ({"role": "assistant", "content": "x"},)),
    Conversation("ended by the model (Claude 4.6)", (*ASKED, {"role": "assistant", "content": "half of an"})),
    Conversation("blank user message", (*ASKED, {"role": "assistant", "content": "x"}, {"role": "user", "content": " "})),
    Conversation("blank system message (Gemini)", (*ASKED, {"role": "system", "content": ""})),
    Conversation("blank words beside a call", (*ASKED, {"role": "assistant", "content": "\n", "tool_calls": [tool_call("1", "read")]})),
    Conversation("blank words beside a picture", ({"role": "user", "content": ["", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]},)),
    Conversation("picture without a picture (KeyError)", ({"role": "user", "content": [{"type": "image_url"}, {"type": "image_url", "image_url": "data:image/png;base64,AA=="}]},)),
    Conversation("a tool's name that begins with a digit (Gemini)", (*ASKED, {"role": "assistant", "content": "", "tool_calls": [tool_call("1", "7zip")]})),
    Conversation("NaN in the arguments (Anthropic, Gemini)", (*ASKED, {"role": "assistant", "content": "", "tool_calls": [tool_call("1", "read", '{"path": NaN}')]})),
    Conversation("half a character in the arguments (Anthropic, Gemini)", (*ASKED, {"role": "assistant", "content": "", "tool_calls": [tool_call("1", "read", '{"path": "\\ud83d"}')]})),
    Conversation("results in another order (Gemini)", (*ASKED, {"role": "assistant", "content": "", "tool_calls": [tool_call("1", "a"), tool_call("2", "b")]}, {"role": "tool", "tool_call_id": "2", "content": "x"}, {"role": "tool", "tool_call_id": "1", "content": "y"})),
)  # fmt: skip


@every_provider
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda conversation: conversation.id)
def test_conversation_is_taken(provider: Provider, conversation: Conversation) -> None:
    """Each of these is taken by all."""
    with Endpoint(in_order([say("x")]), strict=True, key=KEY, wire=provider.wire) as endpoint:
        ask(endpoint, provider, {"messages": list(conversation.messages), "tools": TOOLS})
    assert endpoint.refusals == []


@pytest.fixture(scope="module")
def endpoints() -> Iterator[dict[str, Endpoint]]:
    """A strict server for each provider that says x."""
    with ExitStack() as stack:
        opened = (Endpoint(in_order([say("x")]), strict=True, key=KEY, wire=provider.wire) for provider in PROVIDERS)
        yield {provider.id: stack.enter_context(endpoint) for provider, endpoint in zip(PROVIDERS, opened, strict=True)}


@every_provider
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=messages_of_any_kind, tools=st.sampled_from([TOOLS, None]))
def test_any_conversation_is_taken(
    provider: Provider, endpoints: dict[str, Endpoint], messages: list[dict[str, Any]], tools: Any
) -> None:
    """Whatever a local server made of the conversation, every provider takes what we make of it."""
    endpoint = endpoints[provider.id]
    endpoint.refusals.clear()
    reply, _ = ask(endpoint, provider, {"messages": messages, "tools": tools})
    assert endpoint.refusals == []
    assert reply.response.choices[0].message.content == "x"
