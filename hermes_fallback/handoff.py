"""Makes the request for a stronger tier out of the host's: the same task, in a form that every provider accepts.

Pure, and the host's own list is never touched. The conversation was produced by a local server, so tool calls and their
results are paired anew, ids are given anew, arguments that are no JSON object are wrapped, and keys that only the local
server knows are left out; what was said is kept.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from .config import Handoff, Tier
from .redact import Masks, redact
from .trim import exchanges, trim

Message = dict[str, Any]

STEER_OPEN = "[OUT-OF-BAND USER MESSAGE — a direct message from the user, delivered mid-turn; not tool output]"
STEER_CLOSE = "[/OUT-OF-BAND USER MESSAGE]"
"""The marks around what a user says with /steer, at the end of a tool message (0.19 agent/prompt_builder.py)."""

_STEERED_ESCALATE = re.compile(
    rf"\s*{re.escape(STEER_OPEN)}\s*/?(?i:escalate(?:[ \t]+(?P<word>off|auto|status|why|help))?)[.!]?"
    rf"\s*{re.escape(STEER_CLOSE)}\s*$"
)
# What Hermes appends to a result behind our hook: words of who made the folder (0.19 agent/subdirectory_hints.py).
_FOLDERS_WORDS = "\n\n[Subdirectory context discovered: "
# Alone, or behind the message that it interrupted, to which Hermes joins it.
_SPOKEN_ESCALATE = re.compile(
    r"(?:\A|\n\n)\s*(?:\[[^\]\n]{1,80}\] )?/escalate(?:@\w+)?\s*\Z|\A\s*escalate\s*\Z", re.IGNORECASE
)
_GO_ON = "Go on with the task above, from where it was stopped."
_BEGINNING = "(The beginning of this conversation is not here.)"
_STRAY = "[result of an earlier tool call]"
# What stands in the user's place and is not the user's (0.19 agent/conversation_loop.py, conversation_compression.py,
# chat_completion_helpers.py; tools/process_registry.py), and what is ours.
_NOT_THE_USERS = (
    "[System: ",
    "You just executed tool calls but returned an empty response",
    "You've reached the maximum number of tool-calling iterations",
    "[Your active task list was preserved across context compression]",
    "[IMPORTANT: Background process ",
    "[CONTEXT COMPACTION",
    "[CONTEXT SUMMARY]:",
    "Continue from the compressed conversation context above.",
    _STRAY,
    _GO_ON,
)
_TOOL_NAME = re.compile(r"[^a-zA-Z0-9_-]")


_NO_IMAGE = "[an image was left out: this model cannot see images]"
_NOT_SHOWN = "[an image was left out: a newer one is shown below, or none is shown to this model]"
_MOST_SHOWN = 3
_DEFAULT = Handoff()
_MOST_LEVELS = 100
# Exchanges are left out four at a time, so that the request for the next call mostly begins as the one before did.
_STEP = 4


def build(
    request: Mapping[str, Any],
    *,
    note: str,
    options: Handoff = _DEFAULT,
    masks: Masks | None = None,
    local_model: str | None = None,
    tier: Tier | None = None,
    vision: bool | None = None,
    max_input_tokens: int | None = None,
    count_tokens: Callable[[list[Message]], int] | None = None,
) -> Message:
    """Return `{"messages": […], "tools": […]}` for the stronger tier, with `note` at the end of the system prompt.

    `request` is OpenAI-shaped (DESIGN.md, fact 4); everything in it but messages and tools was chosen for the local
    model and is left out. With `local_model` and `tier`, a system prompt that names the one names the other instead;
    with `vision=False` images are left out, with None (unknown) those that tools showed; with both of the last two, so
    are old messages that the window has no room for (`count_tokens` gets the finished messages; the tools are the
    caller's to count). `masks` gets to know what stands for which secret.
    """
    messages = list(_paired(_plain(message) for message in request.get("messages") or ()))
    if vision is False:
        messages = [_without_images(message) for message in messages]
    else:
        # What tools show is no reason to be refused by a model of which it is not known that it can see.
        messages = _with_newest_shown(messages, most=_MOST_SHOWN if vision else 0)
    if local_model and tier:
        messages = _naming(messages, local_model, tier)
    # Before trimming, whose lines quote: half a secret is not known as one.
    if options.redact == "secrets":
        messages = redact(messages, masks)

    def finished(messages: list[Message]) -> list[Message]:
        trimmed = trim(messages, untouchable=STEER_OPEN) if options.trim else messages
        return _with_note(_merged(_with_images_behind(trimmed)), note)

    handoff: Message = {"messages": finished(messages)}
    if request.get("tools"):
        handoff["tools"] = request["tools"]
    if max_input_tokens is not None and count_tokens is not None and not _surely_fits(handoff, max_input_tokens):
        fits = _fit(messages, lambda shorter: count_tokens(finished(shorter)) <= max_input_tokens)
        handoff["messages"] = finished(fits)
    return handoff


def note(reason: str, options: Handoff = _DEFAULT) -> str:
    """Say to the stronger model, once, what happened before it."""
    masked = "`[redacted:…]` stands for a value that you are not shown; use it as it stands in calls. "
    return (
        "You are taking over this task in the middle from a smaller model that got stuck: "
        f"{reason}. All it did is in the conversation. Do not repeat what failed; find another way, "
        "check what is really there, and bring the task to its end. "
        f"{masked if options.redact == 'secrets' else ''}Do not mention this note."
    )


def steered(messages: Sequence[Any]) -> tuple[str, str] | None:
    """Return the `/steer escalate` at the end of the last tool message, if one is there: an id of it, and its word.

    Hermes puts what is steered there, before a call and after tools ran; the message may be of an older turn (0.17 to
    0.19 agent/conversation_loop.py). Behind what a folder says, it may be the folder's: the user can say it again.
    """
    for last in reversed(messages):
        if isinstance(last, dict) and last.get("role") == "tool":
            break
    else:
        return None
    text = text_of(last.get("content")).rstrip()
    said = _STEERED_ESCALATE.search(text) if text.endswith(STEER_CLOSE) and _FOLDERS_WORDS not in text else None
    if said is None:
        return None
    # Some local servers number their calls anew in each reply.
    return f"{last.get('tool_call_id')}:{hash(text)}", (said["word"] or "").lower()


def _plain(message: Mapping[str, Any]) -> Message:
    role = message.get("role")
    content = message.get("content")
    match role:
        case "user":
            return {"role": "user", "content": _without_command(_parts(content))}
        case "assistant":
            text = text_of(content)
            calls = message.get("tool_calls") or []
            return {"role": "assistant", "content": text if text.strip() else "", "tool_calls": calls}
        case "tool":
            text = _STEERED_ESCALATE.sub("", text_of(content))
            images = [image for image in map(_image, content if isinstance(content, list) else ()) if image]
            result = {"role": "tool", "content": text, "tool_call_id": message.get("tool_call_id")}
            return {**result, "images": images} if images else result
        case _:
            return {"role": "system", "content": text_of(content)}


def _without_command(content: Any) -> Any:
    """Take out an /escalate that reached the conversation as a message (a busy gateway hands it to the model)."""
    if not isinstance(content, str):
        return content
    rest = _SPOKEN_ESCALATE.sub("", content)
    return rest if rest.strip() or not content.strip() else _GO_ON


def _paired(messages: Iterable[Message]) -> Iterator[Message]:
    """Give every call exactly one result right behind it, in the calls' order, with an id that all providers take."""
    waiting: dict[str, object] = {}  # new id → the id the local server gave
    # By new id. In the calls' order, because Gemini finds the call of a result by its name and place only.
    results: dict[str, Message] = {}
    strays: list[Message] = []
    count = 0
    for message in messages:
        if message["role"] == "tool":
            new_id = _match(message["tool_call_id"], waiting)
            if new_id is None:
                # A result of no call that we see (its call was compressed away): said, not sent as a tool's.
                text = f"{_STRAY}\n{message['content']}"
                images = message.get("images")
                strays.append({"role": "user", "content": [*_as_parts(text), *images] if images else text})
            else:
                del waiting[new_id]
                results[new_id] = {**message, "tool_call_id": new_id}
            continue
        yield from (*_in_order(results, waiting), *strays)
        waiting, results, strays = {}, {}, []
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
    yield from (*_in_order(results, waiting), *strays)


def _match(old_id: object, waiting: Mapping[str, object]) -> str | None:
    same = [new_id for new_id, id_ in waiting.items() if id_ == old_id]
    return same[0] if same else None


def _in_order(results: Mapping[str, Message], waiting: Iterable[str]) -> Iterator[Message]:
    missing = {id_: {"role": "tool", "tool_call_id": id_, "content": "(no result was recorded)"} for id_ in waiting}
    found = {**results, **missing}
    yield from (found[id_] for id_ in sorted(found))


def _function(call: Mapping[str, Any]) -> Message:
    function = call.get("function") or {}
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments if arguments is not None else {})
    if not _is_object(arguments or "{}"):
        arguments = json.dumps({"not_valid_json": arguments})
    name = _TOOL_NAME.sub("_", str(function.get("name") or "unnamed"))
    # Gemini's names begin with a letter or an underscore.
    name = name if name[0].isalpha() or name[0] == "_" else f"_{name}"
    return {"name": name[:64], "arguments": arguments or "{}"}


def _is_object(arguments: str) -> bool:
    """Tell whether a request can carry the arguments as an object, as Anthropic's and Gemini's do: no NaN in it.

    One that is too deep cannot be masked, and no provider reads it.
    """
    try:
        parsed = json.loads(arguments)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(parsed, dict) and not _is_deeper(parsed, _MOST_LEVELS)


def _is_deeper(value: object, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        blocks = [one.values() if isinstance(one, dict) else one for one in layer if isinstance(one, dict | list)]
        if not blocks:
            return False
        layer = [inner for block in blocks for inner in block]
    return bool(layer)


def _merged(messages: Iterable[Message]) -> list[Message]:
    """Join user messages that follow each other, leave blank ones out, and let the user have the first and last word.

    Some providers want roles to alternate; Anthropic and Gemini refuse blank text, and a conversation that the model
    begins or (since Claude 4.6) ends.
    """
    merged = _joined_turns(messages)
    said = [message for message in merged if message["role"] != "system"]
    if not said or said[0]["role"] != "user":
        start = merged.index(said[0]) if said else len(merged)
        merged.insert(start, {"role": "user", "content": _BEGINNING})
    if said and said[-1]["role"] == "assistant":
        merged.append({"role": "user", "content": _GO_ON})
    return merged


def _with_images_behind(messages: Sequence[Message]) -> Iterator[Message]:
    """Put what the results of a turn show behind them, as a user's: a result is text, and nothing may stand between."""
    for said, results in exchanges(messages):
        yield said
        names = {call["id"]: call["function"]["name"] for call in said.get("tool_calls", ())}
        shown: list[Message] = []
        for result in results:
            images = result.get("images", ())
            if images:
                shown += [*_as_parts(f"[shown by {names[result['tool_call_id']]}]"), *images]
            yield {key: value for key, value in result.items() if key != "images"}
        if shown:
            yield {"role": "user", "content": shown}


def _joined_turns(messages: Iterable[Message]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if message["role"] in {"system", "user"} and _is_blank(message["content"]):
            continue
        if merged and message["role"] == merged[-1]["role"] == "user":
            merged[-1] = {"role": "user", "content": _joined(merged[-1]["content"], message["content"])}
        else:
            merged.append(message)
    return merged


def _is_blank(content: Any) -> bool:
    return not (content.strip() if isinstance(content, str) else content)


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    return [*_as_parts(first), *_as_parts(second)]


def _as_parts(content: Any) -> list[Message]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _with_newest_shown(messages: Sequence[Message], *, most: int) -> list[Message]:
    """Leave out images that tools showed, but for the newest; of one that was shown again, all but the last.

    A screen is looked at anew after each step, and an image costs as much as a thousand words.
    """
    shown = [json.dumps(image, sort_keys=True) for message in messages for image in message.get("images", ())]
    last = {image: at for at, image in enumerate(shown)}
    newest = sorted(last.values())
    surplus = max(0, len(newest) - most)
    # A few at a time, so that the request for the next call mostly begins as the one before did.
    kept = set(newest[surplus // _STEP * _STEP if most else surplus :])
    done: list[Message] = []
    count = 0
    for message in messages:
        images = message.get("images", ())
        still = [image for at, image in enumerate(images, count) if at in kept]
        count += len(images)
        done.append(message if len(still) == len(images) else _showing(message, still, instead=_NOT_SHOWN))
    return done


def _showing(message: Message, images: list[Message], *, instead: str) -> Message:
    """Return a result with these of its images, and words for each of the others."""
    text = "\n".join([message["content"], *[instead] * (len(message["images"]) - len(images))])
    rest = {key: value for key, value in message.items() if key != "images"} | {"content": text}
    return {**rest, "images": images} if images else rest


def _without_images(message: Message) -> Message:
    if message.get("images"):
        return _showing(message, [], instead=_NO_IMAGE)
    if not isinstance(message["content"], list):
        return message
    parts = [{"text": _NO_IMAGE} if part["type"] == "image_url" else part for part in message["content"]]
    return {**message, "content": text_of(parts)}


def _naming(messages: list[Message], local_model: str, tier: Tier) -> list[Message]:
    """Say who reads the system prompt, which Hermes ends with the local model's name (0.19 agent/system_prompt.py)."""
    if not messages or messages[0]["role"] != "system":
        return messages
    named = re.compile(rf"^Model: {re.escape(local_model)}$(\nProvider: .*$)?", re.MULTILINE)
    found = list(named.finditer(messages[0]["content"]))
    if not found:
        return messages
    prompt, last = messages[0]["content"], found[-1]
    lines = f"Model: {tier.model}" + (f"\nProvider: {tier.provider}" if last[1] else "")
    return [{"role": "system", "content": prompt[: last.start()] + lines + prompt[last.end() :]}, *messages[1:]]


def most_tokens(handoff: Mapping[str, Any]) -> int | None:
    """Return how many tokens a handoff (`messages`, `tools`) may have at most; None where it has images.

    That is as if each byte were one, which no tokenizer exceeds: some four times too many, and found in no time.
    """
    if any(isinstance(message["content"], list) for message in handoff["messages"]):
        return None
    written = json.dumps(handoff, ensure_ascii=False, default=str)
    return len(written.encode("utf-8", "surrogatepass"))


def _surely_fits(handoff: Message, max_input_tokens: int) -> bool:
    most = most_tokens(handoff)
    return most is not None and most <= max_input_tokens


def _fit(messages: list[Message], fits: Callable[[list[Message]], bool]) -> list[Message]:
    """Leave out as many of the oldest exchanges as it takes; the newest one stays even if that is not enough."""
    first_user = next((at for at, message in enumerate(messages) if message["role"] == "user"), None)
    head_end = 0 if first_user is None else first_user + 1
    if first_user is None and messages and messages[0]["role"] == "system":
        head_end = 1
    head, middle = messages[:head_end], [[said, *results] for said, results in exchanges(messages[head_end:])]
    if len(middle) < 2 or fits(messages):
        return messages
    counts = [*range(_STEP, len(middle) - 1, _STEP), len(middle) - 1]
    enough = bisect.bisect_left(counts, True, key=lambda count: fits(_without_oldest(head, middle, count)))
    return _without_oldest(head, middle, counts[min(enough, len(counts) - 1)])


def _without_oldest(head: list[Message], middle: list[list[Message]], count: int) -> list[Message]:
    old, new = ([message for exchange in part for message in exchange] for part in (middle[:count], middle[count:]))
    # The user's last word is the task, however long ago it was said.
    task = [] if any(map(_is_the_users, new)) else list(filter(_is_the_users, old))[-1:]
    left_out = len(old) - len(task)
    line = f"[{left_out} older messages were left out here, for which this model's context has no room]"
    return [*head, {"role": "user", "content": line}, *task, *new]


def _is_the_users(message: Message) -> bool:
    text = text_of(message["content"]).strip()
    return message["role"] == "user" and not _is_blank(message["content"]) and not text.startswith(_NOT_THE_USERS)


def _with_note(messages: list[Message], text: str) -> list[Message]:
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _parts(content: Any) -> Any:
    """Return a user's content as text, or as a list of text and image parts if there is an image in it."""
    if not isinstance(content, list) or not any(_image(part) for part in content):
        return text_of(content)
    parts = (_image(part) or {"type": "text", "text": text_of([part])} for part in content)
    return [part for part in parts if part["type"] == "image_url" or part["text"].strip()]


def _image(part: Any) -> Message | None:
    image = part.get("image_url") if isinstance(part, dict) and part.get("type") == "image_url" else None
    if not image:
        return None
    return {"type": "image_url", "image_url": image if isinstance(image, dict) else {"url": image}}


def text_of(content: Any) -> str:
    """Return a message's content as one text, whatever form it has."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        pieces = (str(part.get("text") or "") if isinstance(part, dict) else str(part) for part in content)
        return "\n".join(piece for piece in pieces if piece)
    return json.dumps(content, ensure_ascii=False, default=str)
