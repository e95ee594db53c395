"""The request for the stronger tier: whatever a local server produced, it is one that strict providers accept."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_fallback import handoff
from hermes_fallback.config import Handoff, Tier
from hermes_fallback.prices import count_tokens
from tests.endpoints import strict_fault


def test_ids_that_are_empty_or_repeated_are_given_anew() -> None:
    """Calls and results find each other, in order, under ids of nine letters and digits."""
    messages = [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "go"},
        {"role": "assistant", "content": "", "tool_calls": [tool_call("", "a"), tool_call("", "b")]},
        {"role": "tool", "name": "a", "tool_call_id": "", "content": "one"},
        {"role": "tool", "name": "b", "tool_call_id": "", "content": "two"},
        {"role": "assistant", "content": None, "tool_calls": [tool_call("", "c")]},
        {"role": "tool", "tool_call_id": "", "content": "three"},
    ]
    built = handoff.build({"messages": messages}, note="NOTE")["messages"]
    assert [message.get("tool_call_id") for message in built] == [
        None,
        None,
        None,
        "call00000",
        "call00001",
        None,
        "call00002",
    ]
    assert [message["content"] for message in built if message["role"] == "tool"] == ["one", "two", "three"]
    assert built[0]["content"] == "be good\n\nNOTE"


def test_calls_without_results_and_results_without_calls() -> None:
    """A call that was stopped gets a result that says so; a result whose call is gone is said, not lost."""
    messages = [
        {"role": "user", "content": "go"},
        {"role": "tool", "tool_call_id": "gone", "content": "left over"},
        {"role": "assistant", "content": "", "tool_calls": [tool_call("x", "a"), tool_call("y", "b")]},
        {"role": "tool", "tool_call_id": "zzz", "content": "stray"},
        {"role": "tool", "tool_call_id": "y", "content": "second"},
        {"role": "user", "content": "next"},
    ]
    built = handoff.build({"messages": messages}, note="NOTE")["messages"]
    assert [message["role"] for message in built] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert "left over" in built[1]["content"]
    assert [message["content"] for message in built[3:5]] == ["(no result was recorded)", "second"]
    assert built[5]["content"] == "[result of an earlier tool call]\nstray\n\nnext"


def test_arguments_that_are_no_object_are_wrapped() -> None:
    """What the local model wrote stays readable, in a form that providers take."""
    for arguments in ("{path: x}", "[1]", '"x"', "{"):
        message = {"role": "assistant", "content": "", "tool_calls": [tool_call("1", "a", arguments)]}
        (call,) = handoff.build({"messages": [message]}, note="")["messages"][2]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"not_valid_json": arguments}


def test_thoughts_and_foreign_keys_stay_behind() -> None:
    """Keys that only the local server knows are not sent, nor turns that held nothing but thoughts."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}], "_mark": 1},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "reasoning_details": [], "codex_items": []},
        {"role": "user", "content": "three"},
    ]
    request = {"messages": messages, "extra_body": {"num_ctx": 1}, "max_tokens": 65536, "timeout": 1800, "model": "q"}
    built = handoff.build(request, note="NOTE")
    assert built == {
        "messages": [{"role": "system", "content": "NOTE"}, {"role": "user", "content": "one\ntwo\n\nthree"}]
    }


def test_images_are_kept_as_parts() -> None:
    """A picture in the conversation goes along."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, picture]},
        {"role": "user", "content": "?"},
    ]
    built = handoff.build({"messages": messages}, note="")["messages"]
    assert built[1]["content"] == [{"type": "text", "text": "see"}, picture, {"type": "text", "text": "?"}]


def test_the_note_says_what_a_mask_is() -> None:
    """Where there are masks."""
    said = "`[redacted:…]` stands for a value that you are not shown; use it as it stands in calls."
    assert said in handoff.note("it failed")
    assert "redacted" not in handoff.note("it failed", Handoff(redact="off"))


def test_images_that_tools_showed_stand_behind_the_results() -> None:
    """In a user message, for a result is text; each says whose it is, and the same text with another image stays."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "look"}]
    for at in range(2):
        shot = [{"type": "text", "text": "screenshot taken " * 20}, picture(f"A{at}")]
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [tool_call("1", "shot"), tool_call("2", "list")]},
            {"role": "tool", "tool_call_id": "1", "content": shot},
            {"role": "tool", "tool_call_id": "2", "content": "a b"},
        ]
    messages.append({"role": "user", "content": "and now?"})
    built = handoff.build({"messages": messages}, note="NOTE", vision=True)["messages"]
    assert [message["role"] for message in built] == ["system", "user", *["assistant", "tool", "tool", "user"] * 2]
    said = {"type": "text", "text": "[shown by shot]"}
    assert built[5]["content"] == [said, picture("A0")]
    assert built[9]["content"] == [said, picture("A1"), {"type": "text", "text": "and now?"}]
    assert strict_fault({"model": "m", "messages": built}, None, None) is None
    blind = handoff.build({"messages": messages}, note="NOTE", vision=False)["messages"]
    # To a blind one, the second time is a loop.
    assert [message["role"] for message in blind] == ["system", "user", "assistant", "tool", "tool", "user"]
    assert blind[3]["content"].endswith("\n[an image was left out: this model cannot see images]")


def shots(*pictures: str) -> list[dict[str, Any]]:
    """A conversation in which a tool shows these pictures, one after the other."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": "look"}, picture("own")]}]
    for at, data in enumerate(pictures):
        shown = [{"type": "text", "text": f"screenshot {at}"}, picture(data)]
        messages += [
            {"role": "assistant", "content": f"step {at}", "tool_calls": [tool_call("1", "shot")]},
            {"role": "tool", "tool_call_id": "1", "content": shown},
        ]
    return messages


def pictures_in(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The pictures that are handed over."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part["image_url"]["url"].rpartition(",")[2] for part in parts if part["type"] == "image_url"]


def test_the_newest_images_of_tools_are_handed_over() -> None:
    """One that was shown again, once; of many, the newest three to six; to a model that may be blind, none of tools."""

    def handed_over(*pictures: str, vision: bool | None = True) -> list[str]:
        built = handoff.build({"messages": shots(*pictures)}, note="NOTE", vision=vision)["messages"]
        assert strict_fault({"model": "m", "messages": built}, None, None) is None
        own, *shown = pictures_in(built)
        assert own == "own"
        return shown

    assert handed_over("A", "B", "A", "A") == ["B", "A"]
    assert handed_over(*"ABCDEF") == list("ABCDEF")
    assert handed_over(*"ABCDEFG") == list("EFG")
    assert handed_over(*"ABCDEFGHIJ") == list("EFGHIJ")
    assert handed_over("A", "B", vision=None) == []


def test_an_image_whose_call_is_gone_is_shown() -> None:
    """It stands with the text of its result, where the user's words are."""
    messages = [{"role": "tool", "tool_call_id": "gone", "content": [{"type": "text", "text": "left"}, picture("AA")]}]
    built = handoff.build({"messages": messages}, note="NOTE")["messages"]
    assert built[1]["content"] == [{"type": "text", "text": "[result of an earlier tool call]\nleft"}, picture("AA")]
    blind = handoff.build({"messages": messages}, note="NOTE", vision=False)["messages"]
    assert blind[1]["content"].endswith("left\n[an image was left out: this model cannot see images]")


def picture(data: str) -> dict[str, Any]:
    """An image part."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def test_steer_is_heeded_only_at_the_very_end_of_a_tool_message() -> None:
    """The user's /steer escalate is recognised at the end of a tool message, and nowhere else."""
    steer = f"\n\n{handoff.STEER_OPEN}\n/escalate\n{handoff.STEER_CLOSE}"
    last = {"role": "tool", "tool_call_id": "1", "content": f"result{steer}"}
    assert handoff.steered([last, {"role": "user", "content": "x"}])
    for said in ("Escalate", "/ESCALATE", "escalate!", "/escalate."):
        assert handoff.steered([{**last, "content": f"result{steer}".replace("/escalate", said)}])
    for word in ("off", "auto", "status", "why", "help"):
        found = handoff.steered([{**last, "content": f"result{steer}".replace("/escalate", f"/escalate {word}")}])
        assert found is not None
        assert found[1] == word
    assert not handoff.steered([{**last, "content": f"result{steer}".replace("/escalate", "/escalate the matter")}])
    assert not handoff.steered([{**last, "content": f"result{steer} and more"}])
    assert not handoff.steered([{**last, "content": f"result{steer}".replace("escalate", "go left")}])
    assert not handoff.steered([{**last, "role": "user"}])


def test_a_command_that_came_as_a_message_is_taken_out() -> None:
    """The stronger model is told to go on, not "/escalate"; words of the user stay."""

    def built(text: str) -> str:
        return str(handoff.build({"messages": [{"role": "user", "content": text}]}, note="")["messages"][1]["content"])

    assert (
        built("/escalate")
        == built("escalate")
        == built(" /Escalate@bot ")
        == "Go on with the task above, from where it was stopped."
    )
    assert built("do the work\n\n/escalate") == "do the work"
    assert built("please escalate this to my boss") == "please escalate this to my boss"


def tool_call(id_: str | None, name: str, arguments: Any = "{}") -> dict[str, Any]:
    """A call as servers write it."""
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}, "extra_content": None}


texts = st.text(max_size=8)
contents = st.one_of(
    st.none(),
    texts,
    st.lists(
        st.one_of(
            texts,
            st.builds(lambda text: {"type": "text", "text": text}, texts),
            st.just({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}),
        ),
        max_size=3,
    ),
)
ids = st.sampled_from([None, "", "1", "call_1", "x y!"])
calls = st.builds(
    tool_call, ids, st.sampled_from(["read", "", "a.b", "ü" * 80]), st.sampled_from(["{}", "", "{x", "[]", None, {}])
)
messages_of_any_kind = st.lists(
    st.one_of(
        st.builds(lambda c: {"role": "user", "content": c}, contents),
        st.builds(lambda c: {"role": "system", "content": c}, contents),
        st.builds(
            lambda c, tc: {"role": "assistant", "content": c, "tool_calls": tc, "reasoning_content": "r"},
            contents,
            st.lists(calls, max_size=3),
        ),
        st.builds(lambda c, i: {"role": "tool", "content": c, "tool_call_id": i, "name": "n"}, contents, ids),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(messages_of_any_kind)
def test_any_conversation_becomes_one_that_openai_takes(messages: list[dict[str, Any]]) -> None:
    """Whatever goes in, the request keeps OpenAI's rules, and what went in is as it was."""
    before = copy.deepcopy(messages)
    built = handoff.build({"messages": messages}, note="NOTE")
    assert messages == before
    assert strict_fault({"model": "m", **built}, None, None) is None


@settings(max_examples=100, deadline=None)
@given(messages_of_any_kind, st.integers(0, 40))
def test_any_conversation_fits_and_keeps_the_rules(messages: list[dict[str, Any]], limit: int) -> None:
    """With images and old messages left out, the request keeps OpenAI's rules too."""
    built = handoff.build(
        {"messages": messages},
        note="NOTE",
        local_model="local",
        tier=Tier("openai", "gpt-5.4"),
        vision=False,
        max_input_tokens=limit,
        count_tokens=lambda finished: len(str(finished)) // 40,
    )
    assert strict_fault({"model": "m", **built}, None, None) is None
    assert "image_url" not in str(built)


def test_system_prompt_names_who_reads_it() -> None:
    """The stronger model is not told that it is the local one; what else names that model stays."""
    prompt = (
        "You are Hermes.\n\nModel: qwen3.6:9b\nin a quotation\n\nStarted: today\nModel: qwen3.6:9b\nProvider: custom"
    )
    tier = Tier("openai", "gpt-5.4")

    def system(text: str, **options: Any) -> str:
        messages = [{"role": "system", "content": text}, {"role": "user", "content": "Model: qwen3.6:9b"}]
        built = handoff.build({"messages": messages}, note="NOTE", **options)["messages"]
        assert built[1]["content"] == "Model: qwen3.6:9b"
        return str(built[0]["content"])

    assert system(prompt) == f"{prompt}\n\nNOTE"
    assert system(prompt, local_model="qwen3.6:9b", tier=tier) == (
        "You are Hermes.\n\nModel: qwen3.6:9b\nin a quotation\n\nStarted: today\nModel: gpt-5.4\nProvider: openai\n\nNOTE"
    )
    assert system("Model: other", local_model="qwen3.6:9b", tier=tier) == "Model: other\n\nNOTE"


def test_images_are_left_out_for_a_model_that_is_blind() -> None:
    """Where a picture was, a line says so; a model that can see, or of which that is not known, gets it."""
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    request = {"messages": [{"role": "user", "content": [{"type": "text", "text": "see"}, picture]}]}
    blind = handoff.build(request, note="", vision=False)["messages"][1]["content"]
    assert blind == "see\n[an image was left out: this model cannot see images]"
    for vision in (True, None):
        assert picture in handoff.build(request, note="", vision=vision)["messages"][1]["content"]


def test_old_messages_are_left_out_of_a_conversation_that_is_too_long() -> None:
    """System prompt, first message, task and the newest messages stay; a line says how many do not."""
    messages = conversation_of(30)
    built = fitted(messages, 2000)
    assert built[0]["content"] == "be good\n\nNOTE"
    assert built[1]["content"].startswith("first\n\n[")
    assert built[1]["content"].endswith(
        " older messages were left out here, for which this model's context has no room]\n\nthe task"
    )
    assert built[-1]["content"] == "result 29 of some length"
    assert len(str(built)) <= 2000
    left_out = int(built[1]["content"].partition("[")[2].partition(" ")[0])
    assert left_out + len(built) - 2 == len(messages) - 3
    assert fitted(messages, 10**6) == handoff.build({"messages": messages}, note="NOTE")["messages"]


@pytest.mark.parametrize(
    "line",
    [
        "[System: Your previous response was truncated by the output length limit. Continue exactly where you left off.]",
        "[System: Continue now. Execute the required tool calls.]",
        "You just executed tool calls but returned an empty response. Please process the tool results above and continue.",
        "[Your active task list was preserved across context compression]\n- [>] 1. look (in_progress)",
        "[IMPORTANT: Background process proc_1 completed (exit code 0).]",
        "/escalate",
        "",
    ],
)
def test_the_users_task_stays_though_a_line_of_hermes_stands_last(line: str) -> None:
    """What Hermes says in the user's place is not what the user wants done."""
    messages = [*conversation_of(30), {"role": "assistant", "content": "so far"}, {"role": "user", "content": line}]
    first = fitted(messages, 2000)[1]["content"]
    assert first.startswith("first\n\n[")
    assert first.endswith(" has no room]\n\nthe task")


def test_what_is_left_out_stays_the_same_for_some_calls() -> None:
    """The cut moves by several exchanges at once, so that most requests begin as the one before did."""
    heads = [fitted(conversation_of(count), 4000)[1]["content"] for count in range(40, 60)]
    assert len(set(heads)) < 8


@pytest.mark.parametrize(
    "text", ["plain words", "0123456789", "🙂🏳️‍🌈", "Z̸̡͝a̴l̷g̵o̴", "\x00\x01\ufffe", "…“”", "\t\n\r " * 9, "日本語"]
)
def test_no_byte_is_more_than_a_token(text: str) -> None:
    """So that a conversation need not be counted that has fewer bytes than the window has tokens."""
    messages = [{"role": "user", "content": text * repeats} for repeats in (1, 3, 50)]
    messages += [{"role": "tool", "content": "", "tool_call_id": "c"}] * 5
    tools = [{"type": "function", "function": {"name": "a", "parameters": {"type": "object", "properties": {}}}}] * 3
    tier = Tier("openai", "gpt-5.4")
    written = json.dumps({"messages": messages, "tools": tools}, ensure_ascii=False).encode()
    assert count_tokens(tier, messages, tools) <= len(written)


@pytest.mark.parametrize(("depth", "stays"), [(50, True), (150, False), (900, False), (5000, False)])
def test_deep_arguments(depth: int, stays: bool) -> None:  # noqa: FBT001  # a case
    """Arguments deeper than anybody means go out as text: they can be neither masked nor read."""
    deep = '{"a":' * depth + "1" + "}" * depth
    calls = [{"id": "c", "type": "function", "function": {"name": "write", "arguments": deep}}]
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    messages.append({"role": "tool", "content": "done", "tool_call_id": "c"})
    sent = handoff.build({"messages": messages}, note="NOTE")["messages"]
    (function,) = [call["function"] for message in sent for call in message.get("tool_calls") or ()]
    assert function["arguments"] == (deep if stays else json.dumps({"not_valid_json": deep}))


def test_newest_exchange_stays_even_if_it_does_not_fit() -> None:
    """What is too long in itself is for the provider to refuse: it is not cut to pieces."""
    built = fitted(conversation_of(9), 10)
    assert [message["role"] for message in built] == ["system", "user", "assistant", "tool"]
    assert fitted([{"role": "user", "content": "x" * 50}], 10)[1]["content"] == "x" * 50


def conversation_of(count: int) -> list[dict[str, Any]]:
    """A long turn, the second of its session."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "be good"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "the task"},
    ]
    for at in range(count):
        messages.append(
            {"role": "assistant", "content": "", "tool_calls": [tool_call(f"{at}", "a", f'{{"at": {at}}}')]}
        )
        messages.append({"role": "tool", "tool_call_id": f"{at}", "content": f"result {at} of some length"})
    return messages


def fitted(messages: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The messages for a window of so many characters."""
    built: list[dict[str, Any]] = handoff.build(
        {"messages": messages}, note="NOTE", max_input_tokens=limit, count_tokens=lambda finished: len(str(finished))
    )["messages"]
    return built
