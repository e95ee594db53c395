"""A stream of litellm's that can be left in the middle, and what its provider says in it that litellm does not pass on.

Facts about litellm 1.90 to 1.105.3, each run (docs/facts.md): a stream that was cut off looks like a whole one except
for `received_finish_reason`, and most that a provider broke off look as if they had come to their end.
"""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import lazy_litellm
from .provider_errors import was_refused

POLL_SECONDS = 0.05
_LAST_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Stream:
    """litellm's stream, read on a thread of its own, because nothing else can be left in the middle."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.chunks: list[Any] = []
        self.finish_reason_seen = True
        self.is_over = False
        """Whether it was read to its end."""
        self.begun = time.monotonic()
        self.silent_seconds = 0.0
        """How long nothing was written that could be seen."""
        self.error: Any = None
        self.said: Sequence[str] = ()
        self.reason = ""
        self.has_refused = False
        self.messages = arguments["messages"]
        self._arguments = arguments
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._source: Any = None
        self._watch: _Watch | None = None
        reader = threading.Thread(target=self._read, name="hermes-fallback-call", daemon=True)
        reader.start()
        _readers.add(reader)

    def next(self) -> tuple[str, Any] | None:
        """Return ("chunk", chunk), ("error", exception) or ("end", None); None when nothing came for 50 ms."""
        try:
            return self._queue.get(timeout=POLL_SECONDS)
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

    @property
    def told(self) -> Any:
        """The usage as the endpoint told it last: litellm sums it up anew, and leaves out what it does not know."""
        usages = (getattr(chunk, "usage", None) for chunk in reversed(tuple(getattr(self._source, "chunks", ()))))
        return next(filter(None, usages), None)

    @property
    def was_refused(self) -> bool:
        """Whether the provider took up no work for it, as far as its end tells."""
        return was_refused(self.error, accepted=self._watch is not None and self._watch.accepted)

    def _read(self) -> None:
        last: tuple[str, Any] = ("end", None)
        try:
            self._read_all()
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the caller, on the caller's thread
            last = ("error", error)
        try:
            _let_go(self._source)
        except Exception:
            logger.exception("a stream was not let go of; a later call may have to wait for it")
        self._queue.put(last)  # the caller waits for it

    def _read_all(self) -> None:
        litellm = lazy_litellm.load()
        self._source = litellm.completion(**self._arguments)
        self._watch = watch = _Watch(self._source, self._closed)
        for chunk in self._source:
            if self._closed.is_set():
                return
            self._queue.put(("chunk", chunk))
        # None means that no chunk carried a finish reason: the connection was cut. Absent means unknown.
        received = getattr(self._source, "received_finish_reason", "unknown") is not None
        self.finish_reason_seen = received if watch.ended is None else watch.ended
        self.said, self.reason, self.has_refused = watch.said, watch.reason, watch.has_refused
        self.is_over = True


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

    def __init__(self, iterator: Any, closed: threading.Event, look: Callable[[Any], None] | None) -> None:
        self._iterator = iterator
        self._closed = closed
        self._look = look

    def __iter__(self) -> _Leavable:
        iter(self._iterator)  # Gemini's begins to read then; litellm goes on with the iterator itself
        return self

    def __next__(self) -> Any:
        try:
            event = next(self._iterator)
        except Exception:
            if self._closed.is_set():
                raise _Left from None  # past every `except Exception`
            raise
        if self._look is not None:
            self._look(event)
        return event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


class _Watch:
    """Looks at the provider's own events for what litellm 1.105.3 does not pass on."""

    def __init__(self, source: Any, closed: threading.Event) -> None:
        self._closed = closed
        self.accepted = False
        """Whether the provider began to answer: its status was a good one."""
        self.ended: bool | None = None
        """Whether the provider gave a finish reason; None where its events have another form than those known here."""
        self.reason = ""
        """Why the reply ended, in the provider's own word: litellm says "stop" of most, of errors too."""
        self.has_refused = False
        """Whether the model said no in the field that OpenAI has for that, which litellm leaves out."""
        self.said: list[str] = []
        """Texts and arguments as the Responses API repeats each, whole, at its end."""
        if getattr(source, "completion_stream", None) is not None:
            source.completion_stream = self._attach(source.completion_stream)
        elif (make_call := getattr(source, "make_call", None)) is not None:
            # The request goes out only when the first chunk is asked for.
            source.make_call = lambda **options: self._attach(make_call(**options))

    def _attach(self, iterator: Any) -> Any:
        self.accepted = True
        parse = getattr(iterator, "chunk_parser", None)
        if parse is not None:

            def parsed(chunk: Any) -> Any:
                if isinstance(chunk, Mapping):
                    self._look(chunk)
                return parse(chunk)

            iterator.chunk_parser = parsed
        # The others are a whole reply. OpenAI's own client parses its events itself.
        look = self._look_at_choices if parse is None else None
        return _Leavable(iterator, self._closed, look) if hasattr(iterator, "__next__") else iterator

    def _look(self, event: Mapping[str, Any]) -> None:
        if "candidates" in event or "promptFeedback" in event:
            # litellm calls every piece finished, with reason "stop", and never sets `received_finish_reason`.
            # A prompt that is blocked has no candidates.
            self._end([_of(candidate, "finishReason") for candidate in event.get("candidates") or ()])
            self.ended = bool(self.ended or event.get("promptFeedback"))
        elif "choices" in event:
            self._look_at_choices(event)
        # litellm skips an event that is no JSON, so that a piece may be missing in the middle.
        match event.get("type"):
            case "message_delta":
                self.reason = str(_of(event.get("delta"), "stop_reason") or self.reason)
            case "response.output_text.done":
                self.said.append(str(event.get("text") or ""))
            case "response.function_call_arguments.done":
                self.said.append(str(event.get("arguments") or ""))

    def _look_at_choices(self, event: Any) -> None:
        choices = _of(event, "choices")
        if isinstance(choices, list):
            self._end([_of(choice, "finish_reason") for choice in choices])
            self.has_refused |= any(_of(_of(choice, "delta"), "refusal") for choice in choices)

    def _end(self, reasons: Sequence[Any]) -> None:
        self.reason = next((reason for reason in reasons if reason and isinstance(reason, str)), self.reason)
        self.ended = bool(self.reason)


def _of(value: Any, name: str) -> Any:
    """Return a field of an event: a JSON object, or what OpenAI's client made of one."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
