"""Trimming: what stands in the conversation already is cut and said; what does not is never touched."""

from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_fallback import handoff
from hermes_fallback.config import Handoff
from hermes_fallback.trim import trim

Message = dict[str, Any]

LONG = "\n".join(f"line {number} of a long result, which is worth cutting" for number in range(40))


def test_result_that_came_before_is_cut() -> None:
    """Another call with the same result stays, and its result says where it stands."""
    first, second, third = exchange("read", "a", LONG), exchange("read", "b", "short"), exchange("cat", "a", LONG)
    built = trimmed(first, second, third)
    assert built[:5] == [*first, *second, third[0]]
    assert contents(built[5:]) == [
        "[cut: same result as one above, which begins: line 0 of a long result, which is worth …]"
    ]


def test_result_of_the_call_before_is_cut_to_fewer_words() -> None:
    """What came right before needs no quotation, so that also an error of one line is worth cutting."""
    error = "Error executing query: Table 'world_1.cities' doesn't exist, as far as anybody can see in it"
    built = trimmed(exchange("sql", "a", error), exchange("sql", "b", error), exchange("sql", "c", "no such table"))
    assert contents(built) == [error, "[cut: same result as the call before]", "no such table"]


def test_loop_becomes_a_line() -> None:
    """The same call with the same result, again and again, is counted behind the first one."""
    look = exchange("read", "a.txt", "not found")
    assert trimmed(look, look, look, exchange("read", "b.txt", "found")) == [
        look[0],
        {
            **look[1],
            "content": "not found\n\n[cut: calls that were made above, made again with the same arguments and the same "
            "results: read (2 times)]",
        },
        *exchange("read", "b.txt", "found"),
    ]


def test_loop_of_two_calls() -> None:
    """A cycle is a loop too; both of its calls are counted."""
    a, b = exchange("read", "a", "none"), exchange("list", "b", "empty")
    built = trimmed(a, b, a, b, a)
    assert len(built) == 4
    assert contents(built)[1].endswith("the same results: read (2 times), list (once)]")


def test_words_said_in_a_loop_are_kept() -> None:
    """What the model said beside a repeated call is not lost, unless it said it before."""
    first, second, third = (exchange("read", "a", "none", said=words) for words in ("hm", "perhaps now?", "hm"))
    (result,) = contents(trimmed(first, second, third))
    assert "read (2 times)" in result
    assert result.endswith("[said meanwhile: perhaps now?]")


def test_new_result_or_new_argument_is_no_loop() -> None:
    """The same call with another result is news, and so is another call with the same result."""
    exchanges = [
        exchange("run", "a", "1"),
        exchange("run", "a", "2"),
        exchange("run", "b", "1"),
        exchange("go", "a", "1"),
    ]
    assert trimmed(*exchanges) == [message for messages in exchanges for message in messages]


def test_call_behind_the_users_words_stays() -> None:
    """A call that the user's new message led to is shown, with a short word for its result."""
    look = exchange("read", "a", LONG)
    built = trimmed(look, [{"role": "user", "content": "look again"}], look)
    assert [message["role"] for message in built] == ["assistant", "tool", "user", "assistant", "tool"]
    assert built[2]["content"] == "look again"
    assert contents(built)[1] == "[cut: same result as the call before]"


def test_lines_that_a_call_gave_before_are_cut() -> None:
    """A test that fails again is shown with what is new, whether its output is text or JSON."""
    again = LONG.replace("line 20 ", "LINE 20 ")
    for wrap in (str, lambda text: json.dumps({"output": text, "exit_code": 1})):
        first, second = contents(trimmed(exchange("run", "t", wrap(LONG)), exchange("run", "t", wrap(again))))
        assert first == wrap(LONG)
        assert "LINE 20 of a long result" in second
        assert second.count("[cut: ") == 2
        assert "19 lines that this call gave before, from: line 21 of a long result" in second
        assert len(second) < len(first) / 3


def test_lines_of_other_calls_are_not_cut() -> None:
    """Two files that have lines in common are both shown whole."""
    again = LONG.replace("line 20 ", "LINE 20 ")
    assert contents(trimmed(exchange("read", "a", LONG), exchange("read", "b", again))) == [LONG, again]


def test_json_result_stays_json_where_lines_are_cut_within() -> None:
    """A cut in the middle of a JSON string leaves it one."""
    texts = [f'head {n} "x" C:\\new\\table\n{LONG}\ntail {n} é\n' for n in (1, 2)]
    results = [json.dumps({"output": text, "exit_code": 1}) for text in texts]
    second = contents(trimmed(*(exchange("run", "t", result) for result in results)))[1]
    assert "[cut: " in second
    assert json.loads(second)["output"].startswith("head 2")


def test_users_words_in_a_result_are_never_cut() -> None:
    """What the user said with /steer stands at the end of a result, which is then kept whole."""
    steered = f"{LONG}\n\n{handoff.STEER_OPEN}\nleave it\n{handoff.STEER_CLOSE}"
    look = exchange("read", "a", steered)
    assert trimmed(look, look) == [*look, *look]


def test_several_calls_at_once() -> None:
    """Calls made in one message go together: one new result, and the exchange stays."""
    both = exchange("read", "a", "1") + exchange("read", "b", LONG)[1:]
    both[0] = {**both[0], "tool_calls": [call("x", "read", "a"), call("y", "read", "b")]}
    both[1:] = [{**both[1], "tool_call_id": "x"}, {**both[2], "tool_call_id": "y"}]
    news = [*both[:2], {**both[2], "content": "other"}]
    built = trim([*both, *both, *news], untouchable="\0")
    assert [message["role"] for message in built] == ["assistant", "tool", "tool"] * 2
    assert "read, read (once)" in built[2]["content"]
    assert contents(built[4:]) == ["1", "other"]


def test_trim_off_sends_everything() -> None:
    """`trim: false` cuts nothing."""
    look = exchange("read", "a", LONG)
    messages = [{"role": "user", "content": "go"}, *look, *look]
    whole = handoff.build({"messages": messages}, note="", options=Handoff(trim=False))["messages"]
    assert contents(whole) == [LONG, LONG]
    assert len(contents(handoff.build({"messages": messages}, note="")["messages"])) == 1


def failed(argument: str, error: str = "File not found: {}", *, tool: str = "read") -> list[Message]:
    """An attempt that failed, as Hermes words it."""
    return exchange(tool, argument, json.dumps({"error": error.format(argument)}), said=f"I try {argument}")


def test_attempts_that_failed_alike_are_named_at_the_last_one() -> None:
    """Of three attempts that failed in the same way the last one stays, and says what the others asked for."""
    last = failed("/c/z.txt")
    built = trimmed(failed("/a/x.txt"), failed("/b/y.txt"), last)
    assert built[0] == last[0]
    (content,) = contents(built)
    assert content == (
        f"{last[1]['content']}\n\n[cut: 2 attempts before it that failed alike: "
        '{"argument": "/a/x.txt"}; {"argument": "/b/y.txt"}]'
    )


def test_what_is_between_failed_attempts_stays() -> None:
    """Only the attempts go; what worked between them is shown."""
    found = exchange("list", "/", "a b c")
    built = trimmed(failed("/a"), found, failed("/b"), failed("/c"))
    assert built[:2] == found
    assert len(built) == 4


def test_failures_that_are_few_or_different_or_of_another_task_stay() -> None:
    """Two failures may be steps on the way; other errors, other tools and other tasks are no repetition."""
    for conversation in (
        [failed("/a"), failed("/b")],
        [failed("/a"), failed("/b", "Permission denied: {}"), failed("/c", "Is a directory: {}")],
        [failed("/a"), failed("/b", tool="stat"), failed("/c", tool="open")],
        [failed("/a"), failed("/b"), [{"role": "user", "content": "and now?"}], failed("/c")],
    ):
        assert trimmed(*conversation) == [message for messages in conversation for message in messages]


def test_commands_that_failed_alike() -> None:
    """The same command that failed in the same way is an attempt that failed alike, whatever Hermes says behind it."""
    result = json.dumps({"output": "no rule to make target, after 0.3s", "exit_code": 2})
    runs = [exchange("terminal", "make", f"{result}\n\n[Tool loop warning: count={n}]") for n in range(3)]
    assert len(trimmed(*runs)) == 2
    timed = [exchange("terminal", "make", result.replace("0.3s", f"0.{n}s")) for n in range(3)]
    assert len(trimmed(*timed)) == 2


def test_commands_that_only_look_alike_stay() -> None:
    """What each of several commands found is shown, and what one found each time."""
    error = "{}: error: Incompatible types in assignment\nFound 1 error in 1 file"
    results = [json.dumps({"output": error.format(name), "exit_code": 1}) for name in ("a.py:3", "b.py:71", "c.py:512")]
    for commands in ("abc", "aaa"):
        runs = [exchange("terminal", f"mypy {name}", result) for name, result in zip(commands, results, strict=True)]
        assert contents(trimmed(*runs)) == results


def test_users_words_keep_a_failed_attempt() -> None:
    """An attempt with the user's /steer behind it stays whole."""
    steered = failed("/a")
    steered[1]["content"] += f"\n\n{handoff.STEER_OPEN}\nleave it\n{handoff.STEER_CLOSE}"
    built = trimmed(steered, failed("/b"), failed("/c"), failed("/d"))
    assert built[:2] == steered
    assert len(built) == 4


words = st.text(alphabet='ab \n\\"', max_size=20)
small = st.sampled_from("abc")
conversations = st.lists(
    st.one_of(
        st.builds(lambda text: [{"role": "user", "content": text}], words),
        st.builds(lambda text: [{"role": "assistant", "content": text}], words),
        st.builds(
            lambda tool, argument, n, times, said: exchange(tool, argument, (f"{n}\n" + LONG[: n * 300]) * times, said=said),
            small,
            small,
            st.integers(0, 3),
            st.integers(1, 2),
            st.sampled_from(["", "hm"]),
        ),
    ),
    max_size=10,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(conversations)
def test_prefix_stays_from_call_to_call(parts: list[list[Message]]) -> None:
    """The request for the next call begins like the one before, all but the message that counts a loop."""
    messages = numbered(parts)
    ends = [end for end in range(len(messages) + 1) if end == len(messages) or messages[end]["role"] != "tool"]
    for shorter, longer in itertools.pairwise(ends):
        before, after = (trim(messages[:end], untouchable="\0") for end in (shorter, longer))
        if before:
            assert after[: len(before) - 1] == before[:-1]
            assert str(after[len(before) - 1]["content"]).startswith(
                str(before[-1]["content"]).partition("\n\n[cut: ")[0]
            )


@settings(max_examples=300, deadline=None)
@given(conversations)
def test_nothing_is_added_and_calls_keep_their_results(parts: list[list[Message]]) -> None:
    """Every call that is left has its result behind it, nobody's words are gone, and it is never longer by much."""
    messages = numbered(parts)
    built = trim(messages, untouchable="\0")
    calls = [call["id"] for message in built for call in message.get("tool_calls", ())]
    assert calls == [message["tool_call_id"] for message in built if message["role"] == "tool"]
    said = [message["content"] for message in messages if message["role"] == "user"]
    assert [message["content"] for message in built if message["role"] == "user"] == said
    assert set(calls) <= {call["id"] for message in messages for call in message.get("tool_calls", ())}


@settings(max_examples=300, deadline=None)
@given(conversations)
def test_conversation_without_repetition_is_untouched(parts: list[list[Message]]) -> None:
    """Where no call is made twice and no result comes twice, nothing is cut."""
    messages = numbered(parts)
    for at, message in enumerate(messages):
        for made in message.get("tool_calls", ()):
            made["function"] = {"name": "run", "arguments": json.dumps({"at": at})}
        if message["role"] == "tool":
            message["content"] = f"{at}: {message['content']}"
    assert trim(messages, untouchable="\0") == messages


def exchange(tool: str, argument: str, result: str, *, said: str = "") -> list[Message]:
    """One call and its result."""
    made = call(f"{tool}-{argument}", tool, argument)
    return [
        {"role": "assistant", "content": said or None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": made["id"], "content": result},
    ]


def call(id_: str, tool: str, argument: str) -> Message:
    """A call as the handoff has it."""
    return {"id": id_, "type": "function", "function": {"name": tool, "arguments": json.dumps({"argument": argument})}}


def numbered(parts: list[list[Message]]) -> list[Message]:
    """The parts one after the other, with an id of its own for each call."""
    messages: list[Message] = []
    for at, part in enumerate(parts):
        for message in part:
            match message:
                case {"tool_calls": [made]}:
                    messages.append({**message, "tool_calls": [{**made, "id": f"call{at}"}]})
                case {"tool_call_id": _}:
                    messages.append({**message, "tool_call_id": f"call{at}"})
                case _:
                    messages.append(message)
    return messages


def trimmed(*exchanges: list[Message]) -> list[Message]:
    """The exchanges, trimmed; each call's id is its own."""
    return trim([message for messages in exchanges for message in messages], untouchable=handoff.STEER_OPEN)


def contents(messages: list[Message]) -> list[str]:
    """What the tools said."""
    return [message["content"] for message in messages if message["role"] == "tool"]
