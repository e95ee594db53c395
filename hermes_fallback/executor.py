"""Makes one call to a tier through litellm, streamed so that it can be stopped (`stream.py`).

A stalled stream may ignore litellm's `timeout` (1.90 to 1.105.3, docs/facts.md), so this file keeps its own watch.
"""

from __future__ import annotations

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import host, keys, lazy_litellm, prices
from .budget import NOTHING_USED, Usage, told_tokens
from .config import USUAL_TIMEOUT_SECONDS, Tier
from .provider_errors import CUT_OFF, UNREADABLE, ExecutionError, execution_error, missing_key
from .replies import without_thinking
from .stream import POLL_SECONDS, Stream

_IDLE_SECONDS = 90.0  # without a byte; a reasoning model may think for a minute before its first token
_ADVICE_OF_SILENCE = (
    f"; if it needs longer before its first word, set timeout_seconds, to more than {USUAL_TIMEOUT_SECONDS:g}"
)
# Ours, for what the provider took no work up for. The client's own retries would go on behind our back after a call was
# stopped and settled (and litellm 1.105 heeds them for OpenAI's chat alone); litellm's would repeat a 401 as well.
_TRIES = 2
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 20.0
# What a model that thinks before it speaks may have written unseen: fast ones write about so many tokens a second.
_UNSEEN_TOKENS_PER_SECOND = 150
# So long it takes one that does not think, too.
_FIRST_WORD_SECONDS = 1.0
_THOUGHT_ONLY = "it thought until its limit of tokens, and said nothing; it may need more `max_tokens` or budget"

# How providers say that what came is not all: Gemini (ai.google.dev/api/generate-content, FinishReason), DeepSeek
# (`insufficient_system_resource`), Z.ai (`network_error`), OpenRouter (`error`), vLLM (`abort`).
_BROKE_OFF = re.compile(
    r"(?i)[a-z_]{0,20}(?:error|insufficient|abort|cancel|malformed|unexpected|too_many|missing)[a-z_]{0,30}"
)
_OVERFLOW = "context_window"  # Claude 4.5 and newer: `model_context_window_exceeded`

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a tier answered: an OpenAI-shaped response object for the host, and what it took."""

    response: Any  # litellm.ModelResponse, whose module must not be imported for a type
    seconds: float
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


class Interrupted(Exception):  # noqa: N818  # nothing went wrong: the user said stop
    """The user stopped the turn during the call."""

    used = NOTHING_USED


def fault_of(tier: Tier) -> str | None:
    """Say what keeps a tier from being asked, as far as it can be told without asking: provider and key."""
    litellm = lazy_litellm.load()
    try:
        litellm.get_llm_provider(tier.litellm_name, api_base=tier.base_url)
    except litellm.exceptions.BadRequestError:
        return f"litellm knows no provider “{tier.provider}”; see docs.litellm.ai/docs/providers for its names"
    if (without_tools := _without_tools(tier)) is not None:
        return without_tools
    if tier.api_key_env is not None:
        return None if keys.at_hand().get(tier.api_key_env) else missing_key(tier, tier.api_key_env)
    missing = litellm.validate_environment(tier.litellm_name)["missing_keys"]
    return missing_key(tier, ", ".join(missing)) if missing else None


def _without_tools(tier: Tier) -> str | None:
    """Say that litellm would send a request to the tier without its tools, and what to write instead; None if not.

    `drop_params` drops them without a word (1.105.3: `ollama`, `perplexity`, `sambanova`…), and `ollama` has the model
    write a call as JSON, which comes back as text.
    """
    names = {"model": tier.model, "custom_llm_provider": tier.provider}
    known = lazy_litellm.load().get_supported_openai_params(**names)
    allowed = tier.extra.get("allowed_openai_params")
    if known is None or "tools" in known or (isinstance(allowed, list) and "tools" in allowed):
        return None
    if tier.provider == "ollama":
        advice = "write `provider: ollama_chat`, or `provider: openai` with `base_url: http://…:11434/v1`"
    else:
        advice = "name another model, or write `provider: openai` with the `base_url` of its OpenAI-compatible API"
    return f"litellm gives no tools to “{tier.provider}”, and a task needs them; {advice}"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What litellm knows of a model; None is unknown."""

    vision: bool | None
    max_input_tokens: int | None
    max_output_tokens: int | None
    tools: bool | None


def abilities(tier: Tier) -> Abilities:
    """Return what the tier's model can take."""
    unknown = Abilities(vision=None, max_input_tokens=None, max_output_tokens=None, tools=None)
    if not tier.is_litellm or not prices.is_in_map(tier.provider):
        return unknown
    try:
        info = lazy_litellm.load().get_model_info(tier.model, custom_llm_provider=tier.provider)
    except Exception:  # noqa: BLE001  # litellm raises a plain Exception for a model that its map lacks
        return unknown
    # The map says `supports_…` only where it is so; of tools, it does not say it of all that can.
    return Abilities(
        vision=bool(info.get("supports_vision")),
        max_input_tokens=info.get("max_input_tokens"),
        max_output_tokens=info.get("max_output_tokens"),
        tools=info.get("supports_function_calling") or None,
    )


def complete(
    tier: Tier,
    handoff: Mapping[str, Any],
    *,
    is_interrupted: Callable[[], bool],
    on_text: Callable[[str], object],
) -> Reply:
    """Return the tier's reply to `handoff` (`messages`, `tools`); `on_text` gets the text as it comes.

    Both callables run on the caller's thread, at least every 50 ms.

    Raises:
        ExecutionError: no key, no tools for it, an error of the provider, a timeout, a broken or empty reply.
        Interrupted: `is_interrupted()` turned true.
    """
    if handoff.get("tools") and (without_tools := _without_tools(tier)) is not None:
        raise ExecutionError(f"{tier.name}: {without_tools}", transient=False)
    arguments = _arguments(tier, handoff)
    started = time.monotonic()
    for left in reversed(range(_TRIES)):
        stream = Stream(arguments)
        try:
            _drain(stream, started=started, tier=tier, is_interrupted=is_interrupted, on_text=on_text)
            return _reply(stream, tier, handoff.get("tools"), seconds=time.monotonic() - started)
        except (ExecutionError, Interrupted) as error:
            error.used = _used(stream, tier, handoff.get("tools"))
            pause = _pause(stream, error)
            if not left or pause is None:
                raise
        finally:
            stream.close()
        _wait(pause, is_interrupted)
    raise AssertionError  # the last try returns or raises


def _pause(stream: Stream, error: ExecutionError | Interrupted) -> float | None:
    """Return how long to wait before the call is made again; None where that would not help, or cost twice."""
    passing = isinstance(error, ExecutionError) and error.transient and not stream.chunks
    if not passing or not stream.was_refused:
        return None
    # Where litellm 1.105 keeps the provider's; those of its `response` are made up.
    headers = getattr(stream.error, "litellm_response_headers", None) or {}
    try:
        wished = float(headers.get("retry-after") or _PAUSE_SECONDS)
    except ValueError:  # a date
        return None
    return max(_PAUSE_SECONDS, wished) if wished <= _LONGEST_PAUSE_SECONDS else None


def _wait(seconds: float, is_interrupted: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_interrupted():
            raise Interrupted
        time.sleep(POLL_SECONDS)


def _arguments(tier: Tier, handoff: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        **_cache_markers(tier),
        **tier.extra,
        "model": tier.litellm_name,
        **handoff,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timeout": tier.timeout_seconds,
        "max_retries": 0,
        "drop_params": True,
    }
    # OpenAI's own models take the new name only, or both; litellm knows that of those alone that are in its map.
    most = "max_completion_tokens" if tier.provider == "openai" and tier.base_url is None else "max_tokens"
    optional = {"base_url": tier.base_url, most: tier.max_tokens, "temperature": tier.temperature}
    arguments.update({name: value for name, value in optional.items() if value is not None})
    return {**arguments, **_key(tier)}


def _key(tier: Tier) -> dict[str, str]:
    """Return the key and the address that litellm is not to look for in the environment.

    Raises:
        ExecutionError: the key is not set, or the address is another profile's.
    """
    of_profile = host.profile_secrets()
    if tier.api_key_env is None and (of_profile is None or "api_key" in tier.extra):
        return {}
    name = tier.api_key_env or keys.usual_name(tier)
    key = keys.at_hand().get(name)
    if not key:
        raise ExecutionError(f"{tier.name}: {missing_key(tier, name)}", transient=False)
    found = {"api_key": key}
    if of_profile is None or tier.base_url is not None:
        return found
    for name in keys.usual_addresses(tier):
        if of_profile.get(name):
            return {**found, "base_url": of_profile[name]}
        if os.environ.get(name):
            message = f"{tier.name}: not asked, for {name} is that of another profile; write `base_url` beside `model`"
            raise ExecutionError(message, transient=False)
    return found


def _cache_markers(tier: Tier) -> dict[str, Any]:
    """Ask for the prompt to be cached where that must be asked for, so that a task does not pay its prefix each call.

    Claude reads up to a marker what an earlier call wrote there, at a tenth of the price; writing costs a quarter more.
    OpenAI and Gemini cache by themselves (docs.litellm.ai/docs/tutorials/prompt_caching).
    """
    if not prices.asks_for_cache(tier):
        return {}
    points = [{"location": "message", "role": "system"}, {"location": "message", "index": -1}]
    return {"cache_control_injection_points": points}


def _drain(
    stream: Stream,
    *,
    started: float,
    tier: Tier,
    is_interrupted: Callable[[], bool],
    on_text: Callable[[str], object],
) -> None:
    heard = time.monotonic()
    # Who has it set longer knows a model that is silent for that long: one that reads slowly, or thinks unseen.
    patience = tier.timeout_seconds if tier.timeout_seconds > USUAL_TIMEOUT_SECONDS else _IDLE_SECONDS
    silent = speaking = True
    while True:
        item = stream.next()
        if is_interrupted():
            raise Interrupted
        now = time.monotonic()
        if now - started > tier.timeout_seconds:
            message = f"{tier.name}: no end after {tier.timeout_seconds:g} s; raise timeout_seconds if it needs more"
            raise ExecutionError(message, transient=True)
        if item is None:
            if now - heard > patience:
                advice = _ADVICE_OF_SILENCE if silent else ""
                raise ExecutionError(f"{tier.name}: nothing came for {patience:g} s{advice}", transient=True)
            continue
        heard = now
        match item:
            case "chunk", chunk:
                stream.chunks.append(chunk)
                if silent and any(_pieces(chunk)):
                    silent, patience, stream.silent_seconds = False, _IDLE_SECONDS, now - stream.begun
                delta = chunk.choices[0].delta if chunk.choices else None
                # As Hermes does it: text beside a tool call is shown until the call begins.
                speaking = speaking and not getattr(delta, "tool_calls", None)
                if speaking and (text := getattr(delta, "content", None)):
                    on_text(text)
            case "error", error:
                stream.error = error
                # Without its cause, whose words are the provider's: a traceback of a later fault would log them.
                raise execution_error(tier, error, stream.messages, begun=bool(stream.chunks)) from None
            case _:
                return


def _reply(stream: Stream, tier: Tier, tools: Sequence[Any] | None, *, seconds: float) -> Reply:
    _tell_calls_apart(stream.chunks)
    response = _put_together(stream, tier)
    if response is None or not response.choices:
        raise ExecutionError(f"{tier.name}: the reply was empty", transient=True)
    message = response.choices[0].message
    if not stream.finish_reason_seen:
        # A login page, for one, is to litellm a stream without an event.
        said = message.content or message.tool_calls
        words = CUT_OFF if said else UNREADABLE
        raise ExecutionError(f"{tier.name}: {words}", transient=True)
    if response.choices[0].finish_reason == "content_filter" or stream.has_refused:
        raise ExecutionError(f"{tier.name}: the provider refused the content", transient=False)
    if _OVERFLOW in stream.reason:
        raise ExecutionError(f"{tier.name}: larger than the model's context", transient=False)
    if _BROKE_OFF.fullmatch(stream.reason):
        words = f"{tier.name}: the provider broke the reply off"
        raise ExecutionError(f"{words} ({stream.reason})", transient=True, in_our_words=words)
    heard = [message.content or "", *(call.function.arguments for call in message.tool_calls or ())]
    if not all(any(said in words for words in heard) for said in stream.said):
        raise ExecutionError(f"{tier.name}: the reply came with a piece missing", transient=True)
    if not without_thinking(message.content or "") and not message.tool_calls:
        if response.choices[0].finish_reason == "length":
            raise ExecutionError(f"{tier.name}: {_THOUGHT_ONLY}", transient=False)
        raise ExecutionError(f"{tier.name}: the reply was empty", transient=True)
    usage = getattr(response, "usage", None)
    if usage is not None:
        _set_right(usage, stream, tier, tools)
    return Reply(
        response=response,
        seconds=seconds,
        input_tokens=told_tokens(usage, "prompt_tokens"),
        output_tokens=told_tokens(usage, "completion_tokens"),
        cost_usd=prices.cost_of_reply(tier, response),
    )


def _put_together(stream: Stream, tier: Tier) -> Any:
    litellm = lazy_litellm.load()
    try:
        return litellm.stream_chunk_builder(stream.chunks, messages=stream.messages)
    except Exception as error:  # noqa: BLE001  # of any kind, for a provider may send what is none of what it should be
        logger.warning("%s: a reply of no known form [%s]", tier.name, type(error).__name__)
        raise ExecutionError(f"{tier.name}: {UNREADABLE}", transient=True) from None


def _set_right(usage: Any, stream: Stream, tier: Tier, tools: Sequence[Any] | None) -> None:
    """Have the usage of a reply say what is paid for.

    Some endpoints tell nothing, or zeros beside a text, which is counted then: litellm would leave out the tools.
    Gateways to Gemini leave its thoughts out of `completion_tokens`, and have them in `total_tokens` alone.
    """
    tokens_in, tokens_out = told_tokens(usage, "prompt_tokens"), told_tokens(usage, "completion_tokens")
    told = stream.told
    if told is None:
        tokens_in = tokens_out = 0
    total = told_tokens(told, "total_tokens")
    if tokens_in is not None and tokens_out is not None:
        read = tokens_in or prices.count_read(tier, stream.messages, tools)
        written = tokens_out or prices.count_tokens(tier, [{"role": "assistant", "content": _written(stream)}], None)
        if total is not None:
            # No more than was asked for, which bounds the thoughts as well.
            written = max(written, min(total - read, total if tier.max_tokens is None else tier.max_tokens))
        if (read, written) != (tokens_in, tokens_out):
            usage.prompt_tokens, usage.completion_tokens, usage.total_tokens = read, written, read + written
            usage.completion_tokens_details = None  # of the old number
    for name in ("cost", "is_byok", "cost_details"):
        setattr(usage, name, getattr(told, name, None))  # litellm has a cost of its own there


def _tell_calls_apart(chunks: Sequence[Any]) -> None:
    """Give each tool call in a reply's chunks a number and an id of its own.

    Some endpoints number all calls of a reply 0 (Ollama 0.20, ollama#15457), or none (Google's OpenAI-compatible one):
    `stream_chunk_builder` makes one call of them, and leaves out a call without an id (litellm 1.105.3). As in Hermes
    (0.19 `agent/chat_completion_helpers.py`), another id under the same number begins another call.
    """
    places: dict[int, int] = {}
    """By the endpoint's number, where the call stands that has it now."""
    ids: dict[int, str] = {}
    count = 0
    for piece in (piece for chunk in chunks for choice in chunk.choices for piece in _calls_of(choice.delta)):
        # Gemini's has the signature of its thoughts in it, which may be long, and which nobody needs from there: a
        # handoff has ids of its own (1.105.3 litellm_core_utils/prompt_templates/factory.py).
        number, id_ = piece.index, piece.id and piece.id.partition("__thought__")[0]
        piece.id = id_
        if number not in places or (id_ and id_ != ids.get(number, id_)):
            places[number], count = count, count + 1
            piece.id = id_ or f"call_{uuid.uuid4().hex}"
        if id_:
            ids[number] = id_
        piece.index = places[number]


def _used(stream: Stream, tier: Tier, tools: Sequence[Any] | None) -> Usage:
    """Return what a call used that was refused, broken off or stopped: what came is paid for, and what was read.

    What it read, Claude's tells in the beginning.
    """
    if not stream.chunks and stream.was_refused:
        return NOTHING_USED
    litellm = lazy_litellm.load()
    try:
        told = stream.told
        tokens_out = _written_tokens(stream, tier, told)
        if tokens_in := told_tokens(told, "prompt_tokens"):
            made = told.model_copy(update={"completion_tokens": tokens_out, "completion_tokens_details": None})
            made.total_tokens = tokens_in + tokens_out
            usd = prices.cost_of_reply(tier, litellm.ModelResponse(usage=made))
        else:
            tokens_in = prices.count_read(tier, stream.messages, tools)
            written_to_cache = tokens_in if prices.asks_for_cache(tier) else 0
            usd = prices.cost(tier, tokens_in, tokens_out, written_to_cache=written_to_cache)
    except Exception:
        logger.exception("%s: what an unfinished call used cannot be told", tier.name)
        return Usage()
    return Usage(tokens_in, tokens_out, usd)


def _written_tokens(stream: Stream, tier: Tier, told: Any) -> int:
    """Return how many tokens an unfinished call wrote.

    Before the first word, or all the time where none came, the model may have been thinking, which is paid for as well;
    what that took, an endpoint tells at the end.
    """
    came = _written(stream)
    model, count = tier.litellm_name, lazy_litellm.load().token_counter
    counted = int(count(model=model, text=came, count_response_tokens=True))
    written = max(told_tokens(told, "completion_tokens") or 0, counted)
    # One that was cut is over as well, and what it told then was told at its beginning.
    if told and stream.is_over and stream.finish_reason_seen:
        return written
    # A chunk may come in which nothing is written: Azure begins with what its filter says of the prompt.
    of_thinker = max(0.0, stream.silent_seconds - _FIRST_WORD_SECONDS)
    silent = of_thinker if came else time.monotonic() - stream.begun
    written += int(silent * _UNSEEN_TOKENS_PER_SECOND)
    return written if tier.max_tokens is None else min(written, tier.max_tokens)


def _written(stream: Stream) -> str:
    return "".join(piece for chunk in stream.chunks for piece in _pieces(chunk))


def _calls_of(delta: Any) -> Sequence[Any]:
    # A provider may send what is no list.
    return delta.tool_calls if isinstance(delta.tool_calls, list) else ()


def _pieces(chunk: Any) -> Iterator[str]:
    """Yield all that the model wrote in a chunk: thoughts, text, names and arguments of tool calls."""
    for choice in chunk.choices:
        delta = choice.delta
        functions = [getattr(call, "function", None) for call in _calls_of(delta)]
        said = [getattr(delta, "reasoning_content", None), delta.content]
        said += [getattr(function, name, None) for function in functions for name in ("name", "arguments")]
        # A provider may send what is none.
        yield from (piece for piece in said if isinstance(piece, str))
