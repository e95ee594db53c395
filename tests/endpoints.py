"""Model endpoints on loopback: a lenient local server, and a paid one as strict as OpenAI's chat API.

An `Endpoint` answers its wire's path with what its script says, one reply a request, and keeps every request. The wire
here is OpenAI's `/v1/chat/completions`; `tests/wire.py` has the other providers'. The strict rules follow OpenAI's public API reference (chat/create) and its documented 400 and 401 errors.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_TOP_LEVEL_KEYS = {"model", "messages", "tools", "tool_choice", "max_completion_tokens", "stream", "stream_options"} | {
    "temperature",
    "top_p",
    "reasoning_effort",
    "parallel_tool_calls",
    "seed",
    "user",
    "stop",
    "response_format",
    "metadata",
}
_MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio"}


@dataclass(frozen=True)
class Answer:
    """One scripted reply.

    `cut_after` closes the connection after so many characters of text and arguments; `garbled_after` sends the event
    that comes then as half of its JSON; `error_after` sends the provider's own error event then, and ends.
    `hold_seconds` waits between two pieces of text; `headers_after` waits before the status line,
    `text_after` before the first of them.
    `raw` goes out as it is instead of all that, and `reset` then ends the connection with a TCP reset.
    `usage` counts all input and output tokens; `cached` is how much of the input was read from the prompt cache,
    and `cache_written`, with Anthropic, how much was written there;
    without `tells_usage`, a stream ends without either, as those of some local servers do. `cost` is what a
    proxy says that it booked.
    """

    text: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    finish_reason: str | None = None
    status: int = 200
    error: dict[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cut_after: int | None = None
    garbled_after: int | None = None
    error_after: int | None = None
    hold_seconds: float = 0.0
    headers_after: float = 0.0
    text_after: float = 0.0
    raw: bytes | None = None
    reset: bool = False
    usage: tuple[int, int] = (100, 20)
    tells_usage: bool = True
    cost: float | None = None
    cached: int = 0
    cache_written: int = 0
    reasoning: str | None = None


def say(text: str, **more: Any) -> Answer:
    """A plain text reply."""
    return Answer(text=text, **more)


def call(tool: str, /, **arguments: Any) -> Answer:
    """A reply with one well-formed tool call."""
    return Answer(calls=((tool, json.dumps(arguments)),))


def raw_call(tool: str, arguments: str, **more: Any) -> Answer:
    """A reply with one tool call whose arguments are taken as they are, valid or not."""
    return Answer(calls=((tool, arguments),), **more)


def streamed(
    *deltas: dict[str, Any], finish_reason: str | None = "stop", usage: dict[str, Any] | None = None
) -> Answer:
    """A reply in OpenAI's chunks, of these deltas and this usage as they are."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "any"}
    reasons = [*[None] * len(deltas), finish_reason]
    sent = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        for delta, reason in zip([*deltas, {}], reasons, strict=True)
    ]
    end = [{**head, "choices": [], "usage": usage}] if usage else []
    data = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*sent, *end])
    start = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return Answer(raw=f"{start}{data}data: [DONE]\n\n".encode())


def fail(status: int, message: str = "no", code: str | None = None, **more: Any) -> Answer:
    """An error in OpenAI's shape."""
    return Answer(status=status, error={"message": message, "type": "error", "param": None, "code": code}, **more)


Script = Callable[[dict[str, Any], int], Answer]


def in_order(answers: Sequence[Answer]) -> Script:
    """The answers one after the other, the last one again and again."""
    return lambda _request, index: answers[min(index, len(answers) - 1)]


Request = dict[str, Any]
Fault = tuple[int, str]
"""What a strict provider refuses: status and message."""


@dataclass(frozen=True)
class Event:
    """One server-sent event: its bytes, and the piece of text or arguments in it."""

    data: dict[str, Any]
    piece: str = ""
    name: str | None = None

    def encoded(self, *, garbled: bool = False) -> bytes:
        """The event as it goes over the wire; garbled is the first half of its JSON."""
        data = json.dumps(self.data)
        head = f"event: {self.name}\n" if self.name else ""
        return f"{head}data: {data[: len(data) // 2] if garbled else data}\n\n".encode()


@dataclass(frozen=True)
class Wire:
    """A provider's wire format: where it listens, what it refuses, and how it answers.

    `base` is what a client wants at the end of the base URL; `serves` tells whether a path is the model's.
    """

    base: str
    serves: Callable[[str], bool]
    fault: Callable[[Request, str, Mapping[str, str], str | None], Fault | None]
    error: Callable[[int, dict[str, Any]], dict[str, Any]]
    streams: Callable[[Request, str], bool]
    whole: Callable[[Request, Answer], dict[str, Any]]
    events: Callable[[Request, Answer], Iterator[Event]]
    error_event: Event
    end: bytes = b""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that breaks off, or refuses our certificate, is no fault of the test's.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _chat() -> Wire:
    return CHAT


@dataclass
class Endpoint:
    """A model server on a free loopback port, OpenAI's chat API unless `wire` says otherwise; a context manager.

    Requests whose messages lack a system prompt with tools and that Hermes sends beside the task (titles and the like)
    go to no script: `aside` answers them, and they are kept apart, as `asides`. `port` is one that must be free; with
    `tls`, it speaks TLS by that.
    """

    script: Script
    strict: bool = False
    key: str | None = None
    wire: Wire = field(default_factory=_chat)
    port: int = 0
    tls: ssl.SSLContext | None = None
    aside: Script = field(default=lambda _request, _index: say("aside"))
    asides: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    aborted: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                models = {"object": "list", "data": [{"id": "any", "object": "model"}]}
                endpoint._json(self, 200, models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                endpoint._post(self, body)

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        if self.tls is not None:
            # The handshake is the client's thread's affair: one that never comes would hold up all others.
            self._server.socket = self.tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def url(self) -> str:
        """The base URL that a client wants; for an OpenAI client it ends in /v1."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}{self.wire.base}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more; a second time does nothing."""
        self._server.shutdown()
        self._server.server_close()

    def _post(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if not self.wire.serves(handler.path):
            self._json(handler, 404, self.wire.error(404, {"message": f"not found: {handler.path}", "code": None}))
            return
        if self.strict and (fault := self.wire.fault(body, handler.path, headers_of(handler), self.key)):
            status, message = fault
            self.refusals.append(message)
            error = {"message": message, "type": "invalid_request_error", "code": None}
            self._json(handler, status, self.wire.error(status, error))
            return
        if not self.strict and not body.get("tools"):
            # Hermes's own side calls (titles, compression) carry no tools; they are not part of a script.
            with self._lock:
                index = len(self.asides)
                self.asides.append(body)
            self._send(handler, body, self.aside(body, index))
            return
        with self._lock:
            index = len(self.requests)
            self.requests.append(body)
        self._send(handler, body, self.script(body, index))

    def _send(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], answer: Answer) -> None:
        time.sleep(answer.headers_after)
        try:
            if answer.raw is not None:
                self._raw(handler, answer)
            elif answer.status != 200:
                self._json(handler, answer.status, self.wire.error(answer.status, answer.error or {}), answer.headers)
            elif self.wire.streams(body, handler.path):
                self._stream(handler, body, answer)
            else:
                self._json(handler, 200, self.wire.whole(body, answer))
        except OSError:
            self.aborted += 1

    @staticmethod
    def _raw(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
        handler.close_connection = True
        handler.connection.sendall(answer.raw or b"")
        if answer.reset:
            # Without lingering, closing sends a reset instead of the usual end.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()

    def _stream(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], answer: Answer) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        sent = 0
        garbled_after = answer.garbled_after
        for event in self.wire.events(body, answer):
            garbled = garbled_after is not None and sent >= garbled_after and bool(event.piece)
            if garbled:
                garbled_after = None
            if event.piece and not sent:
                time.sleep(answer.text_after)
            handler.wfile.write(event.encoded(garbled=garbled))
            handler.wfile.flush()
            sent += len(event.piece)
            if answer.cut_after is not None and sent >= answer.cut_after:
                handler.connection.close()
                return
            if answer.error_after is not None and sent >= answer.error_after:
                handler.wfile.write(self.wire.error_event.encoded())
                handler.close_connection = True
                return
            if event.piece and answer.hold_seconds:
                time.sleep(answer.hold_seconds)
        handler.wfile.write(self.wire.end)
        handler.close_connection = True

    @staticmethod
    def _json(
        handler: BaseHTTPRequestHandler, status: int, payload: object, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        data = json.dumps(payload).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)


def headers_of(handler: BaseHTTPRequestHandler) -> dict[str, str]:
    """The request's headers, their names in lower case."""
    return {name.lower(): value for name, value in handler.headers.items()}


def whole_reply(body: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """The answer as one chat.completion object."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = _tool_calls(answer)
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": _finish_reason(answer)}],
        "usage": _usage(answer),
    }


def chunks(body: dict[str, Any], answer: Answer) -> Iterator[dict[str, Any]]:
    """The answer as chat.completion.chunk objects: text in pieces of about 12 characters, then calls, then the end."""

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return {**head, "choices": [choice]}

    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
    yield chunk({"role": "assistant"})
    if answer.reasoning:
        yield chunk({"reasoning_content": answer.reasoning})
    text = answer.text or ""
    for start in range(0, len(text), 12):
        yield chunk({"content": text[start : start + 12]})
    for index, tool_call in enumerate(_tool_calls(answer)):
        yield chunk({"tool_calls": [{"index": index, **tool_call}]})
    yield chunk({}, _finish_reason(answer))
    if (body.get("stream_options") or {}).get("include_usage") and answer.tells_usage:
        yield {**head, "choices": [], "usage": _usage(answer)}


def _events(body: dict[str, Any], answer: Answer) -> Iterator[Event]:
    for chunk in chunks(body, answer):
        delta = chunk["choices"][0]["delta"] if chunk["choices"] else {}
        arguments = (tool_call["function"]["arguments"] for tool_call in delta.get("tool_calls", ()))
        yield Event(chunk, delta.get("content") or "".join(arguments))


def _tool_calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{abs(hash((name, arguments, index))) % 10**8}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }
        for index, (name, arguments) in enumerate(answer.calls)
    ]


def _finish_reason(answer: Answer) -> str:
    return answer.finish_reason or ("tool_calls" if answer.calls else "stop")


def _usage(answer: Answer) -> dict[str, Any]:
    prompt, completion = answer.usage
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }
    if answer.cost is not None:
        usage["cost"] = answer.cost
    return {**usage, "prompt_tokens_details": {"cached_tokens": answer.cached}} if answer.cached else usage


def strict_fault(body: dict[str, Any], authorization: str | None, key: str | None) -> tuple[int, str] | None:
    """What OpenAI would refuse in this request, as (status, message), or None."""
    if key is not None and authorization != f"Bearer {key}":
        return 401, "Incorrect API key provided"
    if unknown := sorted(body.keys() - _TOP_LEVEL_KEYS):
        return 400, f"Unrecognized request argument supplied: {', '.join(unknown)}"
    if body.get("temperature", 1) != 1:
        return 400, "Unsupported value: 'temperature' does not support this value with this model."
    return _message_fault(body.get("messages"))


def _message_fault(messages: Any) -> tuple[int, str] | None:  # noqa: C901, PLR0912  # one case a rule
    if not isinstance(messages, list) or not messages:
        return 400, "messages must be a non-empty array"
    awaited: set[str] = set()
    for index, message in enumerate(messages):
        where = f"messages.[{index}]"
        if unknown := sorted(message.keys() - _MESSAGE_KEYS):
            return 400, f"Unknown parameter: '{where}.{unknown[0]}'"
        role = message.get("role")
        if role not in {"system", "developer", "user", "assistant", "tool"}:
            return 400, f"Invalid value for '{where}.role'"
        if awaited and role != "tool":
            return 400, f"An assistant message with 'tool_calls' must be followed by tool messages: {sorted(awaited)}"
        if role == "tool":
            if message.get("tool_call_id") not in awaited:
                return 400, "messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
            awaited.discard(message["tool_call_id"])
        if message.get("content") is None and not message.get("tool_calls"):
            return 400, f"Invalid value for '{where}.content': expected a string, got null"
        calls = message.get("tool_calls")
        if calls is not None:
            if not calls:
                return 400, f"'{where}.tool_calls' is too short"
            awaited = {tool_call["id"] for tool_call in calls}
            if len(awaited) != len(calls) or not all(awaited):
                return 400, f"'{where}.tool_calls' have empty or duplicate ids"
            for tool_call in calls:
                if set(tool_call) - {"id", "type", "function"} or tool_call.get("type") != "function":
                    return 400, f"Unknown parameter in '{where}.tool_calls'"
                try:
                    json.loads(tool_call["function"]["arguments"])
                except (ValueError, TypeError):
                    return 400, f"Invalid '{where}.tool_calls' arguments: not JSON"
    if awaited:
        return 400, "An assistant message with 'tool_calls' must be followed by tool messages"
    return None


CHAT = Wire(
    base="/v1",
    serves=lambda path: path.endswith("/chat/completions"),
    fault=lambda body, _path, headers, key: strict_fault(body, headers.get("authorization"), key),
    error=lambda _status, error: {"error": error},
    streams=lambda body, _path: bool(body.get("stream")),
    whole=whole_reply,
    events=_events,
    error_event=Event({"error": {"message": "The server had an error", "type": "server_error", "code": None}}),
    end=b"data: [DONE]\n\n",
)
"""OpenAI's /v1/chat/completions."""


def _azure_events(body: dict[str, Any], answer: Answer) -> Iterator[Event]:
    filtered = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
    yield Event({"id": "", "object": "", "created": 0, "model": "", "choices": [], **filtered})
    yield from _events(body, answer)


AZURE = replace(CHAT, events=_azure_events)
"""OpenAI's chat API as Azure has it, which says first what its filter thinks of the prompt."""


def _openrouter_fault(body: dict[str, Any], _path: str, headers: Any, key: str | None) -> Any:
    return strict_fault(
        {name: value for name, value in body.items() if name != "usage"}, headers.get("authorization"), key
    )


OPENROUTER = replace(CHAT, fault=_openrouter_fault)
"""The same, but for a field of its own: whether the usage is to be told (openrouter.ai/docs/use-cases/usage-accounting)."""
