"""Makes one call to a tier through litellm, streamed so that it can be stopped; the only importer of litellm.

Facts about litellm 1.90 to 1.105.3, each run (docs/facts.md): its import takes seconds, fetches a price map from the
network and prints, unless told not to; a stream that was cut off looks like a whole one except for
`received_finish_reason`; a stalled stream may ignore `timeout`, so this file keeps its own watch.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import queue
import re
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import explain
from .budget import NOTHING_USED, Usage, WorstCase, told_tokens
from .config import USUAL_TIMEOUT_SECONDS, Tier
from .handoff import most_tokens, text_of

_IDLE_SECONDS = 90.0  # without a byte; a reasoning model may think for a minute before its first token
_POLL_SECONDS = 0.05
_SWITCH_SECONDS = 0.0005
_LAST_SECONDS = 1.0
_QUOTED_CHARS = 160
_OVERLAP_CHARS = 24
# litellm 1.105 counts every model's tokens with OpenAI's tokenizers. Claude's make up to 1.35 times as many since 4.7
# as before, when they made some more than OpenAI's already; and each provider frames tools in its own way.
_COUNT_MARGIN, _CLAUDE_MARGIN, _FRAME_TOKENS = 1.1, 1.6, 400
# What an image takes at most, whatever its size: Claude's largest, 3.75 megapixels, at 750 a token; OpenAI's 2,500
# patches, with `detail: original` 10,000, at 1.2 tokens each. litellm 1.105 says 85 where no `detail` is given, and
# looks into the image, even by fetching it, where one is. A usual one is Claude's 1.15 megapixels.
_IMAGE_TOKENS, _ORIGINAL_IMAGE_TOKENS, _USUAL_IMAGE_TOKENS = 5_000, 12_000, 1_600
_MOST_USD = 1e6  # nobody pays that for a call: an endpoint that says so is mistaken
_ADVICE_OF_SILENCE = (
    f"; if it needs longer before its first word, set timeout_seconds, to more than {USUAL_TIMEOUT_SECONDS:g}"
)
# Ours, for what the provider took no work up for. The client's own retries would go on behind our back after a call was
# stopped and settled (and litellm 1.105 heeds them for OpenAI's chat alone); litellm's would repeat a 401 as well.
_TRIES = 2
_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 20.0
# What a model that thinks before it speaks may have written unseen: fast ones write about so many tokens a second.
_UNSEEN_TOKENS_PER_SECOND = 150

# The long hexadecimal is how a litellm proxy names a key: by its hash.
_KEY = re.compile(r"\b(?:sk|pk|gsk|xai|key|AIza)[-_]?[\w*-]{6,}|(?<=Bearer )\S+|\b[0-9a-f]{40,}\b")

# What holds a key in the environment; a key need not have a form of its own.
_HOLDS_KEY = re.compile(r"(?i)(?:key|token|secret|password)$")
_KEY_CHARS = 8

# For every provider but OpenAI, litellm quotes the whole answer.
_MESSAGE = re.compile(r'"message": ?"((?:[^"\\]|\\.)+)"')

# Of the exceptions that litellm's were made of: the endpoint was not reached; it had the request, and then no answer
# came that can be read. litellm 1.105 makes status 500 of all of them.
_NOT_REACHED = frozenset({"ConnectError", "ConnectTimeout"})
_BROKEN_OFF = frozenset({"ReadError", "WriteError", "CloseError", "RemoteProtocolError", "JSONDecodeError"})

_CUT_OFF = "the reply was cut off in the middle"
_UNREADABLE = "no reply came that can be read; if that happens again, check `base_url`"

# What a litellm proxy says of a budget that is used up, whose it is, and how far (1.90 and 1.105, docs/fleet.md).
_OVER_BUDGET = re.compile(r"Budget has been exceeded!|ExceededBudget: |No deployments available - crossed budget")
_BUDGET_OF = re.compile(
    r"(?:exceeded! |ExceededBudget: |LiteLLM (?:Virtual )?|budget for )"
    r"(team ?member|key|team|end ?user|user|organization|project|tag|provider|deployment)",
    re.IGNORECASE,
)
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # of TeamMember
_SPENT_OF_BUDGET = re.compile(
    r"(?:Current cost: |Spend=\$?|provider [\w-]+: )(\d[\d.]*(?:e-?\d+)?)(?:, Estimated request cost: [^,]+)?"
    r"(?:, Max budget: |, Budget=|, Limit=\$| >= )(\d[\d.]*(?:e-?\d+)?)(?![\w.])"
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a tier answered: an OpenAI-shaped response object for the host, and what it took."""

    response: Any  # litellm.ModelResponse, whose module must not be imported for a type
    seconds: float
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


class ExecutionError(Exception):
    """A tier gave no usable reply; the message says what happened and how to mend it, without any content.

    `transient`: a later try may go better. `in_our_words` is the message without what the provider said: for the
    journal, which keeps no word that is not ours.
    """

    def __init__(self, message: str, *, transient: bool, in_our_words: str | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.in_our_words = message if in_our_words is None else in_our_words
        self.used = NOTHING_USED


class BudgetExceeded(ExecutionError):  # noqa: N818  # the budget did what it is for
    """The provider's own budget for this key or team is used up (a litellm proxy says so): the model did not fail."""


class Interrupted(Exception):  # noqa: N818  # nothing went wrong: the user said stop
    """The user stopped the turn during the call."""

    used = NOTHING_USED


def warm(ladder: Sequence[Tier]) -> None:
    """Load litellm in the background, if a tier needs it: an escalation that may come need not wait for it."""
    tier = next((tier for tier in ladder if tier.is_litellm), None)
    if tier is not None and "litellm" not in sys.modules:
        # No daemon: a process that ends while compiled modules are imported on one aborts ("exception not rethrown"),
        # so it waits for the import instead, 3 s at most.
        threading.Thread(target=_warm, args=(tier,), name="hermes-fallback-warm").start()


def _warm(tier: Tier) -> None:
    try:
        # Loads litellm's tokenizer too. It holds up every thread for a tenth of a second, and would when the user stops
        # a call: Hermes then forgets what was typed meanwhile (`_recover_terminal_after_interrupt` of 0.19.0).
        _import_quietly().token_counter(model=_full_name(tier), text="")
    except Exception:  # whoever needs it imports it again and says so; at the end of the process nobody does
        logger.debug("litellm was not imported in the background", exc_info=True)


def fault_of(tier: Tier) -> str | None:
    """Say what keeps a tier from being asked, as far as it can be told without asking: provider and key."""
    litellm = _import_quietly()
    try:
        litellm.get_llm_provider(_full_name(tier), api_base=tier.base_url)
    except litellm.exceptions.BadRequestError:
        return f"litellm knows no provider “{tier.provider}”; see docs.litellm.ai/docs/providers for its names"
    if tier.api_key_env is not None:
        return None if os.environ.get(tier.api_key_env) else _missing(tier, tier.api_key_env)
    missing = litellm.validate_environment(_full_name(tier))["missing_keys"]
    return _missing(tier, ", ".join(missing)) if missing else None


@dataclass(frozen=True, slots=True)
class Abilities:
    """What litellm knows of a model; None is unknown."""

    vision: bool | None
    max_input_tokens: int | None
    tools: bool | None


def abilities(tier: Tier) -> Abilities:
    """Return what the tier's model can take."""
    try:
        info = _import_quietly().get_model_info(tier.model, custom_llm_provider=tier.provider)
    except Exception:  # noqa: BLE001  # litellm raises a plain Exception for a model that its map lacks
        return Abilities(vision=None, max_input_tokens=None, tools=None)
    # The map says `supports_…` only where it is so; of tools, it does not say it of all that can.
    return Abilities(
        vision=bool(info.get("supports_vision")),
        max_input_tokens=info.get("max_input_tokens"),
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
        ExecutionError: no key, an error of the provider, a timeout, a broken or empty reply.
        Interrupted: `is_interrupted()` turned true.
    """
    started = time.monotonic()
    arguments = _arguments(tier, handoff)
    for left in reversed(range(_TRIES)):
        stream = _Stream(arguments)
        try:
            _drain(stream, started=started, tier=tier, is_interrupted=is_interrupted, on_text=on_text)
            return _reply(stream, tier, seconds=time.monotonic() - started)
        except (ExecutionError, Interrupted) as error:
            error.used = _used(stream, tier, handoff.get("tools"), seconds=time.monotonic() - started)
            pause = _pause(stream, error)
            if not left or pause is None:
                raise
        finally:
            stream.close()
        _wait(pause, is_interrupted)
    raise AssertionError  # the last try returns or raises


def _pause(stream: _Stream, error: ExecutionError | Interrupted) -> float | None:
    """Return how long to wait before the call is made again; None where that would not help, or cost twice."""
    passing = isinstance(error, ExecutionError) and error.transient and not stream.chunks
    if not passing or not was_refused(stream.error):
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
        time.sleep(_POLL_SECONDS)


def _arguments(tier: Tier, handoff: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        **_cache_markers(tier),
        **tier.extra,
        "model": _full_name(tier),
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
    if tier.api_key_env is not None:
        key = os.environ.get(tier.api_key_env)
        if not key:
            raise ExecutionError(f"{tier.name}: {_missing(tier, tier.api_key_env)}", transient=False)
        arguments["api_key"] = key
    return arguments


def _cache_markers(tier: Tier) -> dict[str, Any]:
    """Ask for the prompt to be cached where that must be asked for, so that a task does not pay its prefix each call.

    Claude reads up to a marker what an earlier call wrote there, at a tenth of the price; writing costs a quarter more.
    OpenAI and Gemini cache by themselves (docs.litellm.ai/docs/tutorials/prompt_caching).
    """
    hosted = tier.provider in {"bedrock", "vertex_ai"} and "claude" in tier.model.lower()
    if tier.provider != "anthropic" and not hosted:
        return {}
    points = [{"location": "message", "role": "system"}, {"location": "message", "index": -1}]
    return {"cache_control_injection_points": points}


class _Stream:
    """litellm's stream, read on a thread of its own, because nothing else can be left in the middle."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.chunks: list[Any] = []
        self.finish_reason_seen = True
        self.error: Any = None
        self.said: Sequence[str] = ()
        self.messages = arguments["messages"]
        self._arguments = arguments
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._source: Any = None
        reader = threading.Thread(target=self._read, name="hermes-fallback-call", daemon=True)
        reader.start()
        _readers.add(reader)

    def next(self) -> tuple[str, Any] | None:
        """Return ("chunk", chunk), ("error", exception) or ("end", None); None when nothing came for 50 ms."""
        try:
            return self._queue.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Let go of the connection; the reading thread ends by itself."""
        self._closed.set()
        source = getattr(self._source, "completion_stream", None)
        for close in (getattr(source, "close", None), getattr(getattr(source, "response", None), "close", None)):
            if callable(close):
                try:
                    close()
                except Exception:  # closing under a reader may fail in any way; it is closed then
                    logger.debug("closing a stream failed", exc_info=True)
                return

    def _read(self) -> None:
        last: tuple[str, Any] = ("end", None)
        try:
            litellm = _import_quietly()
            self._source = litellm.completion(**self._arguments)
            watch = _Watch(self._source, self._closed)
            for chunk in self._source:
                if self._closed.is_set():
                    break
                self._queue.put(("chunk", chunk))
            # None means that no chunk carried a finish reason: the connection was cut. Absent means unknown.
            received = getattr(self._source, "received_finish_reason", "unknown") is not None
            self.finish_reason_seen = received if watch.ended is None else watch.ended
            self.said = watch.said
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the caller, on the caller's thread
            last = ("error", error)
        _let_go(self._source)
        self._queue.put(last)


_readers: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _wait_for_readers() -> None:
    """Let the calls that were just stopped come to their end before the process does.

    litellm imports modules while it gives up a stream. A thread that ends with its process in the midst of that keeps
    the lock of all imports, and what litellm cleans up last waits for it for ever (Python 3.11, litellm 1.105.3; seen).
    """
    end = time.monotonic() + _LAST_SECONDS
    for reader in tuple(_readers):
        reader.join(max(0.0, end - time.monotonic()))


def _let_go(source: Any) -> None:
    """Close all that litellm reads a stream through, down to the connection.

    litellm stops reading before the end, and leaves the rest to the garbage collector. That closes it at any moment, in
    any thread: inside httpcore's connection pool too, whose lock it then waits for, and every later call with it
    (httpcore 1.0.9, `PoolByteStream.close`; seen with Anthropic's streams).
    """
    held = [getattr(source, "completion_stream", None)]
    for name in ("streaming_response", "stream_iterator", "response"):
        held += [getattr(holder, name, None) for holder in tuple(held)]
    for holder in reversed(held):
        close = getattr(holder, "close", None)
        if callable(close):
            try:
                close()
            except Exception:  # it may be closed already, in any way
                logger.debug("closing a stream failed", exc_info=True)


class _Left(BaseException):
    """A stream was closed under its reader."""


class _Leavable:
    """An iterator that litellm reads, which ends without litellm's explaining why once the call was closed.

    litellm 1.105.3 imports fastapi to explain an exception: 0.3 s that hold up every thread.
    """

    def __init__(self, iterator: Any, closed: threading.Event) -> None:
        self._iterator = iterator
        self._closed = closed

    def __iter__(self) -> _Leavable:
        iter(self._iterator)  # Gemini's begins to read then; litellm goes on with the iterator itself
        return self

    def __next__(self) -> Any:
        try:
            return next(self._iterator)
        except Exception:
            if self._closed.is_set():
                raise _Left from None  # past every `except Exception`
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


class _Watch:
    """Looks at the provider's own events for what litellm 1.105.3 does not pass on."""

    def __init__(self, source: Any, closed: threading.Event) -> None:
        self._closed = closed
        self.ended: bool | None = None
        """Whether Gemini gave a finish reason; None for other providers."""
        self.said: list[str] = []
        """Texts and arguments as the Responses API repeats each, whole, at its end."""
        if getattr(source, "completion_stream", None) is not None:
            source.completion_stream = self._attach(source.completion_stream)
        elif (make_call := getattr(source, "make_call", None)) is not None:
            # The request goes out only when the first chunk is asked for.
            source.make_call = lambda **options: self._attach(make_call(**options))

    def _attach(self, iterator: Any) -> Any:
        parse = getattr(iterator, "chunk_parser", None)
        if parse is not None:

            def parsed(chunk: Any) -> Any:
                if isinstance(chunk, Mapping):
                    self._look(chunk)
                return parse(chunk)

            iterator.chunk_parser = parsed
        # The others are a whole reply.
        return _Leavable(iterator, self._closed) if hasattr(iterator, "__next__") else iterator

    def _look(self, event: Mapping[str, Any]) -> None:
        if "candidates" in event or "promptFeedback" in event:
            # litellm calls every piece finished, with reason "stop", and never sets `received_finish_reason`.
            # A prompt that is blocked has no candidates.
            reasons = (candidate.get("finishReason") for candidate in event.get("candidates") or ())
            self.ended = bool(self.ended or event.get("promptFeedback") or any(reasons))
        # litellm skips an event that is no JSON, so that a piece may be missing in the middle.
        match event.get("type"):
            case "response.output_text.done":
                self.said.append(str(event.get("text") or ""))
            case "response.function_call_arguments.done":
                self.said.append(str(event.get("arguments") or ""))


def _drain(
    stream: _Stream,
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
                    silent, patience = False, _IDLE_SECONDS
                delta = chunk.choices[0].delta if chunk.choices else None
                # As Hermes does it: text beside a tool call is shown until the call begins.
                speaking = speaking and not getattr(delta, "tool_calls", None)
                if speaking and (text := getattr(delta, "content", None)):
                    on_text(text)
            case "error", error:
                stream.error = error
                # Without its cause, whose words are the provider's: a traceback of a later fault would log them.
                raise _execution_error(tier, error, stream) from None
            case _:
                return


def _reply(stream: _Stream, tier: Tier, *, seconds: float) -> Reply:
    litellm = _import_quietly()
    response = litellm.stream_chunk_builder(stream.chunks, messages=stream.messages)
    if response is None or not response.choices:
        raise ExecutionError(f"{tier.name}: the reply was empty", transient=True)
    message = response.choices[0].message
    if not stream.finish_reason_seen:
        # A login page, for one, is to litellm a stream without an event.
        said = message.content or message.tool_calls
        words = _CUT_OFF if said else _UNREADABLE
        raise ExecutionError(f"{tier.name}: {words}", transient=True)
    if response.choices[0].finish_reason == "content_filter":
        raise ExecutionError(f"{tier.name}: the provider refused the content", transient=False)
    heard = [message.content or "", *(call.function.arguments for call in message.tool_calls or ())]
    if not all(any(said in words for words in heard) for said in stream.said):
        raise ExecutionError(f"{tier.name}: the reply came with a piece missing", transient=True)
    if not (message.content or "").strip() and not message.tool_calls:
        raise ExecutionError(f"{tier.name}: the reply was empty", transient=True)
    usage = getattr(response, "usage", None)
    return Reply(
        response=response,
        seconds=seconds,
        input_tokens=told_tokens(usage, "prompt_tokens"),
        output_tokens=told_tokens(usage, "completion_tokens"),
        cost_usd=_cost(litellm, response, tier),
    )


def _used(stream: _Stream, tier: Tier, tools: Sequence[Any] | None, *, seconds: float) -> Usage:
    """Return what a call used that was refused, broken off or stopped: what came is paid for, and what was read.

    Where nothing came in all these seconds, the model may have been thinking, which is paid for as well.
    """
    if not stream.chunks and was_refused(stream.error):
        return NOTHING_USED
    litellm = _import_quietly()
    try:
        usages = (chunk.usage for chunk in reversed(stream.chunks) if getattr(chunk, "usage", None))
        # At the end of a stream that was cut, litellm makes one up.
        told = next(usages, None) if stream.finish_reason_seen else None
        tokens_in = told_tokens(told, "prompt_tokens") or count_tokens(tier, stream.messages, tools)
        came = "".join(piece for chunk in stream.chunks for piece in _pieces(chunk))
        counted = litellm.token_counter(model=_full_name(tier), text=came, count_response_tokens=True)
        tokens_out = max(told_tokens(told, "completion_tokens") or 0, counted)
        if not stream.chunks:
            unseen = int(seconds * _UNSEEN_TOKENS_PER_SECOND)
            tokens_out = unseen if tier.max_tokens is None else min(unseen, tier.max_tokens)
    except Exception:
        logger.exception("%s: what an unfinished call used cannot be told", tier.name)
        return Usage()
    return Usage(tokens_in, tokens_out, cost(tier, tokens_in, tokens_out))


def _pieces(chunk: Any) -> Iterator[str]:
    """Yield all that the model wrote in a chunk: thoughts, text, names and arguments of tool calls."""
    for choice in chunk.choices:
        yield getattr(choice.delta, "reasoning_content", None) or ""
        yield choice.delta.content or ""
        for call in choice.delta.tool_calls or ():
            yield f"{call.function.name or ''}{call.function.arguments or ''}"


def was_refused(error: Any) -> bool:
    """Tell whether an endpoint took up no work: it said no, or was not reached (litellm makes a 500 of that)."""
    if error is None:
        return False  # stopped, or waited for in vain: it may have been at work
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or status < 400:
        return False
    timed_out = isinstance(error, _import_quietly().exceptions.Timeout) or status == 408
    return not timed_out and not _connection_causes(error) & _BROKEN_OFF


def count_tokens(tier: Tier, messages: Sequence[Any], tools: Sequence[Any] | None) -> int:
    """Return about the input tokens of a request: text as litellm counts it for the tier's model, images as usual."""
    return _text_tokens(tier, messages, tools) + _USUAL_IMAGE_TOKENS * len(_images(messages))


def _text_tokens(tier: Tier, messages: Sequence[Any], tools: Sequence[Any] | None) -> int:
    texts = [{**message, "content": text_of(message.get("content"))} for message in messages]
    count, model = _import_quietly().token_counter, _full_name(tier)
    try:
        # As they are written: litellm's own count of tools leaves out what stands under `anyOf`, and fails on a
        # property of the type `array` that does not say of what, which is valid (1.105.3).
        written = json.dumps(tools, ensure_ascii=False, separators=(",", ":"), default=str) if tools else ""
        return int(count(model=model, messages=texts)) + int(count(model=model, text=written))
    except Exception as error:  # noqa: BLE001  # of any kind; what it says may quote the conversation
        words = "%s: tokens cannot be counted, and a byte is taken for one [%s]"
        logger.warning(words, tier.name, type(error).__name__)
        return most_tokens({"messages": texts, "tools": tools or []}) or 0


def _images(messages: Sequence[Any]) -> list[Any]:
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image_url"] for part in parts if isinstance(part, dict) and part.get("image_url")]


def _most_image_tokens(messages: Sequence[Any]) -> int:
    details = [image.get("detail") if isinstance(image, dict) else None for image in _images(messages)]
    return sum(_ORIGINAL_IMAGE_TOKENS if detail == "original" else _IMAGE_TOKENS for detail in details)


def worst_case(tier: Tier, handoff: Mapping[str, Any], *, at_most: int | None = None) -> WorstCase | None:
    """Return what a call with this handoff (`messages`, `tools`) costs at most; None when the price is not known.

    With `at_most` tokens, which what is sent does not exceed, none are counted.
    """
    if at_most is None:
        messages = handoff["messages"]
        texts, images = _text_tokens(tier, messages, handoff.get("tools")), _most_image_tokens(messages)
        at_most = int(texts * (_CLAUDE_MARGIN if "claude" in tier.model.lower() else _COUNT_MARGIN)) + images
        counted = texts + images
    else:
        counted = at_most
    tokens = at_most + _FRAME_TOKENS
    # A thousand, for litellm to answer with a number that rounding leaves alone.
    whole, read = cost(tier, tokens, 1000, written_to_cache=tokens), cost(tier, tokens, 0, written_to_cache=tokens)
    if whole is None or read is None:
        return None
    return WorstCase(counted, read, (whole - read) / 1000)


def cost(tier: Tier, input_tokens: int, output_tokens: int, *, written_to_cache: int = 0) -> float | None:
    """Return dollars for so many tokens, by the tier's own `price` or litellm's; None when neither is known.

    `written_to_cache` is how much of the input Claude may put into its prompt cache, which costs a quarter more.
    """
    if tier.price is not None:
        return tier.price.of(input_tokens, output_tokens)
    if not tier.is_litellm:
        return None
    of_tokens = partial(price, tier.provider, tier.model, input_tokens, output_tokens)
    plain = of_tokens()
    if plain is None:
        return None
    writing = of_tokens(written_to_cache=written_to_cache) if written_to_cache else None
    # Asked for, and not always served: OpenAI's `priority` costs twice as much, `flex` half.
    serving = of_tokens(service_tier=str(tier.extra["service_tier"])) if "service_tier" in tier.extra else None
    return max(plain, writing or 0.0, serving or 0.0)


def price(
    provider: str,
    model: str,
    input_tokens: int | None,
    output_tokens: int | None,
    *,
    written_to_cache: int = 0,
    service_tier: str | None = None,
) -> float | None:
    """Return what a call costs by litellm's prices, in dollars; None when that is not known."""
    if input_tokens is None or output_tokens is None:
        return None
    litellm = _import_quietly()
    try:
        costs = litellm.cost_per_token(
            model=model,
            custom_llm_provider=provider,
            prompt_tokens=input_tokens,
            completion_tokens=output_tokens,
            cache_creation_input_tokens=written_to_cache,
            service_tier=service_tier,
        )
        return _known(litellm, float(sum(costs)), provider, model)
    except Exception:  # noqa: BLE001  # litellm raises a plain Exception for a model that its price map lacks
        return None


def _cost(litellm: Any, response: Any, tier: Tier) -> float | None:
    usage = getattr(response, "usage", None)
    tokens_in, tokens_out = told_tokens(usage, "prompt_tokens"), told_tokens(usage, "completion_tokens")
    if tokens_in is None or tokens_out is None:
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    told = [(details, "cached_tokens"), (usage, "cache_read_input_tokens"), (usage, "cache_creation_input_tokens")]
    cached = [count for count in (getattr(holder, name, None) for holder, name in told) if isinstance(count, int)]
    if not all(0 <= count <= tokens_in for count in cached):
        return cost(tier, tokens_in, tokens_out)  # nobody reads more from a cache than there is
    if tier.price is not None:
        return tier.price.of(tokens_in, tokens_out, cached_tokens=told_tokens(details, "cached_tokens") or 0)
    # What a litellm proxy booked, or OpenRouter, under whatever name the model goes there.
    booked = getattr(usage, "cost", None)
    if isinstance(booked, int | float) and not isinstance(booked, bool) and 0 < booked < _MOST_USD:
        return float(booked)
    try:
        usd = litellm.completion_cost(completion_response=response, model=tier.model, custom_llm_provider=tier.provider)
        return _known(litellm, float(usd), tier.provider, tier.model)
    except Exception:  # noqa: BLE001  # litellm raises a plain Exception for a model that its price map lacks
        return None


def _known(litellm: Any, cost: float, provider: str, model: str) -> float | None:
    """Return the cost, or None when it is 0 because litellm knows the model but no price for it (1.105.3)."""
    if cost:
        return cost
    known = litellm.get_model_info(model.removeprefix("responses/"), custom_llm_provider=provider)["key"]
    return cost if known in litellm.model_cost else None


def _execution_error(tier: Tier, error: BaseException, stream: _Stream) -> ExecutionError:
    """Translate litellm's exception, most specific first."""
    said = _quotable(str(error), stream.messages, tier)
    if _is_over_budget(error, said):
        return BudgetExceeded(f"{tier.name}: {_budget_words(str(error))}", transient=False)
    if (failure := _connection_error(tier, error, begun=bool(stream.chunks))) is not None:
        return failure
    exceptions = _import_quietly().exceptions
    status = getattr(error, "status_code", None)
    # By status where there is one: litellm makes a plain APIError of a 403, and a 500 of a refused connection (1.105).
    kinds = (
        (isinstance(error, exceptions.ContextWindowExceededError), "larger than the model's context", False),
        (isinstance(error, exceptions.ContentPolicyViolationError), "the provider refused the content", False),
        (status == 401, f"the key is missing or was refused; {_key_advice(tier)}", False),
        (status == 402, "no credit is left; see the provider's billing page", False),
        (status == 403, "the key may not use this model", False),
        (status == 404, "the provider does not know this model; check `model` and `base_url`", False),
        (status == 429, "too many requests, or no credit left; see the provider's usage page", True),
        (isinstance(error, exceptions.Timeout) or status == 408, "the provider did not answer in time", True),
        (status in {400, 413, 422}, "the request was refused; check `provider`, `model` and `extra`", False),
        (isinstance(status, int) and status >= 500, "the provider had an error, or could not be reached", True),
        (True, "the call broke off", True),
    )
    words, transient = next((words, transient) for matches, words, transient in kinds if matches)
    plain = ", ".join(filter(None, [type(error).__name__, str(status or "")]))
    details = f'{plain}, "{said}"' if said else plain
    return ExecutionError(
        f"{tier.name}: {words} [{details}]", transient=transient, in_our_words=f"{tier.name}: {words} [{plain}]"
    )


def _connection_error(tier: Tier, error: BaseException, *, begun: bool) -> ExecutionError | None:
    """Say what litellm makes a 500 of: no answer, or half of one. None when the provider said what is wrong."""
    kinds = _connection_causes(error)
    cases = (
        (
            "SSLCertVerificationError" in kinds,
            "its certificate is not trusted; set SSL_CERT_FILE to a file with that of its authority",
            False,
        ),
        ("gaierror" in kinds, "its host's name is not known; check `base_url` and the network", True),
        (kinds & _NOT_REACHED, "nothing answers at its address; check `base_url` and the network", True),
        (begun and kinds & _BROKEN_OFF, _CUT_OFF, True),
        ("JSONDecodeError" in kinds, _UNREADABLE, True),
        (kinds & _BROKEN_OFF, "the connection broke off before the reply", True),
    )
    words, transient = next(((words, transient) for matches, words, transient in cases if matches), (None, True))
    return None if words is None else ExecutionError(f"{tier.name}: {words}", transient=transient)


def _connection_causes(error: BaseException | None) -> frozenset[str]:
    """Return the kinds of the exceptions that litellm's was made of; none when the provider answered by a status."""
    kinds: list[str] = []
    while error is not None:
        kinds.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return frozenset() if "HTTPStatusError" in kinds else frozenset(kinds)


def _is_over_budget(error: BaseException, said: str) -> bool:
    """Tell whether a litellm proxy refused because a budget is used up; its status does not say: 422, in 1.90 429."""
    body = getattr(error, "body", None)
    kind = body.get("type") if isinstance(body, Mapping) else None
    if kind == "budget_exceeded":
        return True
    # The budgets of a provider or a deployment are kept by the proxy's router, which says so in words only (1.105.7).
    return kind in {None, "internal_server_error"} and _OVER_BUDGET.match(said) is not None


def _budget_words(message: str) -> str:
    """Say whose budget is used up and how far, and nothing else of the message, which may name the key by its hash."""
    whose = _BUDGET_OF.search(message)
    of = f" of this {_CAPITAL.sub(' ', whose[1]).lower()}" if whose else ""
    spent = _SPENT_OF_BUDGET.search(message)
    numbers = f" (spent {explain.usd(float(spent[1]))} of {explain.usd(float(spent[2]))})" if spent else ""
    return f"the budget{of} is used up at the proxy{numbers}; raise it there, or wait for its next period"


def _quotable(message: str, messages: Sequence[Mapping[str, Any]], tier: Tier) -> str:
    """Return the start of what the provider said, if that is a sentence and does not quote the conversation.

    Keys are masked, and what would steer a terminal is left out.
    """
    words = _MESSAGE.findall(message)
    said = words[-1] if words else message.rpartition("Exception - ")[2].strip().partition("\n")[0]
    said = explain.plain(said)
    if said.startswith("<"):
        return ""  # the page of a proxy before it
    # Before it is cut: of half a key, nobody knows that it is one.
    said = _without_keys(said, tier)[:_QUOTED_CHARS]
    conversation = str(messages)
    if any(said[start : start + _OVERLAP_CHARS] in conversation for start in range(len(said) - _OVERLAP_CHARS + 1)):
        return ""
    return said


def _without_keys(said: str, tier: Tier) -> str:
    """Mask what looks like a key, and what is one by the name that it goes by in the environment."""
    named = (value for name, value in os.environ.items() if name == tier.api_key_env or _HOLDS_KEY.search(name))
    for key in sorted(named, key=len, reverse=True):
        if len(key) >= _KEY_CHARS:
            said = said.replace(key, "***")
    return _KEY.sub("***", said)


def _full_name(tier: Tier) -> str:
    """The model as litellm names it."""
    return f"{tier.provider}/{tier.model}"


def _missing(tier: Tier, variable: str) -> str:
    return f"{variable} is not set; put the key of {tier.provider} into Hermes's .env under that name"


def _key_advice(tier: Tier) -> str:
    name = tier.api_key_env or f"{tier.provider.upper().replace('-', '_')}_API_KEY"
    return f"put it into Hermes's .env as {name}"


def _import_quietly() -> Any:
    # Without this, the import fetches a price map from the network (litellm/__init__.py).
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # What pydantic says about its types, and at each call of its bridge to the Responses API (1.105.3).
    for message in ("Pydantic serializer warnings", r"Items? .* using the `ReadOnly` qualifier"):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    # Imported here: it takes 2 s and 170 MB, which only an escalation is worth.
    litellm: Any = _import_undisturbed("litellm")
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.telemetry = False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its handlers write to the terminal; Hermes's log gets what is left.
        its_logger = logging.getLogger(name)
        its_logger.handlers.clear()
        if its_logger.level != logging.ERROR:  # for setting it empties the caches of all loggers
            its_logger.setLevel(logging.ERROR)
    return litellm


_loading = threading.Lock()
"""What is set while litellm is imported is the whole process's: two threads would restore each other's settings."""


def _import_undisturbed(name: str) -> Any:
    """Import a large module in less time, and without others noticing.

    A quarter of the time is the garbage collector's, which finds nothing and lets no thread run meanwhile; and who
    waits for the interpreter gets it after half a millisecond, not after five (benchmarks/RESULTS.md).
    """
    if name in sys.modules:
        return importlib.import_module(name)  # waits, where another thread is still at it
    with _loading:
        collects, interval = gc.isenabled(), sys.getswitchinterval()
        gc.disable()
        sys.setswitchinterval(min(interval, _SWITCH_SECONDS))
        try:
            return importlib.import_module(name)
        finally:
            sys.setswitchinterval(interval)
            if collects:
                gc.enable()
