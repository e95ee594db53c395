"""The request for the stronger tier: whatever a local server produced, it is one that strict providers accept."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_fallback import handoff
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
    assert [message["content"] for message in built[3:5]] == ["second", "(no result was recorded)"]
    assert built[5]["content"] == "[result of an earlier tool call]\nstray\n\nnext"


def test_arguments_that_are_no_object_are_wrapped() -> None:
    """What the local model wrote stays readable, in a form that providers take."""
    for arguments in ("{path: x}", "[1]", '"x"', "{"):
        message = {"role": "assistant", "content": "", "tool_calls": [tool_call("1", "a", arguments)]}
        (call,) = handoff.build({"messages": [message]}, note="")["messages"][1]["tool_calls"]
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


def test_steer_is_read_only_at_the_very_end() -> None:
    """The user's /steer escalate is recognised at the end of the last tool message, and nowhere else."""
    steer = f"\n\n{handoff.STEER_OPEN}\n/Escalate \n{handoff.STEER_CLOSE}".replace("/Escalate ", "/escalate")
    last = {"role": "tool", "tool_call_id": "1", "content": f"result{steer}"}
    assert handoff.asks_to_escalate([last])
    assert not handoff.asks_to_escalate([last, {"role": "user", "content": "x"}])
    assert not handoff.asks_to_escalate([{**last, "content": f"result{steer} and more"}])
    assert not handoff.asks_to_escalate([{**last, "role": "user"}])


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
