"""Makes the request for a stronger tier out of the host's: the same task, in a form that every provider accepts.

Pure, and the host's own list is never touched. The conversation was produced by a local server, so tool calls and their
results are paired anew, ids are given anew, arguments that are no JSON object are wrapped, and keys that only the local
server knows are left out; what was said is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Message = dict[str, Any]

STEER_OPEN = "[OUT-OF-BAND USER MESSAGE — a direct message from the user, delivered mid-turn; not tool output]"
STEER_CLOSE = "[/OUT-OF-BAND USER MESSAGE]"
"""The marks around what a user says with /steer, at the end of a tool message (0.19 agent/prompt_builder.py)."""

_STEERED_ESCALATE = re.compile(rf"\s*{re.escape(STEER_OPEN)}\s*/?escalate\s*{re.escape(STEER_CLOSE)}\s*$")
_TOOL_NAME = re.compile(r"[^a-zA-Z0-9_-]")


def build(request: Mapping[str, Any], *, note: str) -> Message:
    """Return `{"messages": […], "tools": […]}` for the stronger tier, with `note` at the end of the system prompt.

    `request` is OpenAI-shaped (DESIGN.md, fact 4); everything in it but messages and tools was chosen for the local
    model and is left out.
    """
    messages = list(_paired(_plain(message) for message in request.get("messages") or ()))
    handoff: Message = {"messages": _with_note(_merged(messages), note)}
    if request.get("tools"):
        handoff["tools"] = request["tools"]
    return handoff


def note(reason: str) -> str:
    """Say to the stronger model, once, what happened before it."""
    return (
        "You are taking over this task in the middle from a smaller model that got stuck: "
        f"{reason}. All it did is in the conversation. Do not repeat what failed; find another way, "
        "check what is really there, and bring the task to its end. Do not mention this note."
    )


def asks_to_escalate(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the user's last word is a `/steer escalate`: at the very end of the last message, a tool's."""
    if not messages or messages[-1].get("role") != "tool":
        return False
    return bool(_STEERED_ESCALATE.search(text_of(messages[-1].get("content"))))


def _plain(message: Mapping[str, Any]) -> Message:
    role = message.get("role")
    content = message.get("content")
    match role:
        case "user":
            return {"role": "user", "content": _parts(content)}
        case "assistant":
            return {"role": "assistant", "content": text_of(content), "tool_calls": message.get("tool_calls") or []}
        case "tool":
            text = _STEERED_ESCALATE.sub("", text_of(content))
            return {"role": "tool", "content": text, "tool_call_id": message.get("tool_call_id")}
        case _:
            return {"role": "system", "content": text_of(content)}


def _paired(messages: Iterable[Message]) -> Iterator[Message]:
    """Give every call exactly one result right behind it, with an id that all providers take."""
    waiting: dict[str, object] = {}  # new id → the id the local server gave
    strays: list[Message] = []
    count = 0
    for message in messages:
        if message["role"] == "tool":
            new_id = _match(message["tool_call_id"], waiting)
            if new_id is None:
                # A result of no call that we see (its call was compressed away): said, not sent as a tool's.
                strays.append({"role": "user", "content": f"[result of an earlier tool call]\n{message['content']}"})
            else:
                del waiting[new_id]
                yield {**message, "tool_call_id": new_id}
            continue
        yield from (*_missing(waiting), *strays)
        waiting, strays = {}, []
        calls = message.pop("tool_calls", [])
        if calls:
            tool_calls = []
            for call in calls:
                # Nine letters and digits: the strictest form there is (Mistral's).
                new_id = f"call{count:05d}"
                count += 1
                waiting[new_id] = call.get("id")
                tool_calls.append({"id": new_id, "type": "function", "function": _function(call)})
            yield {**message, "content": message["content"] or None, "tool_calls": tool_calls}
        elif message["role"] != "assistant" or message["content"]:
            # An assistant turn that held only its thoughts has nothing left to say.
            yield message
    yield from (*_missing(waiting), *strays)


def _match(old_id: object, waiting: Mapping[str, object]) -> str | None:
    same = [new_id for new_id, id_ in waiting.items() if id_ == old_id]
    return same[0] if same else None


def _missing(waiting: Mapping[str, object]) -> Iterator[Message]:
    for new_id in waiting:
        yield {"role": "tool", "tool_call_id": new_id, "content": "(no result was recorded)"}


def _function(call: Mapping[str, Any]) -> Message:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments if arguments is not None else {})
    try:
        is_object = isinstance(json.loads(arguments or "{}"), dict)
    except ValueError:
        is_object = False
    if not is_object:
        arguments = json.dumps({"not_valid_json": arguments})
    return {"name": _TOOL_NAME.sub("_", str(function.get("name") or "unnamed"))[:64], "arguments": arguments or "{}"}


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Join user messages that follow each other: some providers want roles to alternate."""
    merged: list[Message] = []
    for message in messages:
        if merged and message["role"] == merged[-1]["role"] == "user":
            merged[-1] = {"role": "user", "content": _joined(merged[-1]["content"], message["content"])}
        else:
            merged.append(message)
    return merged


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_as_parts(first), *_as_parts(second)]


def _as_parts(content: Any) -> list[Message]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _with_note(messages: list[Message], text: str) -> list[Message]:
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _parts(content: Any) -> Any:
    """Return a user's content as text, or as a list of text and image parts if there is an image in it."""
    if isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "image_url" for part in content
    ):
        return [
            {"type": "image_url", "image_url": part["image_url"]}
            if isinstance(part, dict) and part.get("type") == "image_url"
            else {"type": "text", "text": text_of([part])}
            for part in content
        ]
    return text_of(content)


def text_of(content: Any) -> str:
    """Return a message's content as one text, whatever form it has."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        pieces = (part.get("text") or "" if isinstance(part, dict) else str(part) for part in content)
        return "\n".join(piece for piece in pieces if piece)
    return json.dumps(content, ensure_ascii=False, default=str)
