"""Model endpoints on loopback: a lenient local server, and a paid one as strict as OpenAI's chat API.

A `Endpoint` answers `/v1/chat/completions` with what its script says, one reply a request, and keeps every request.
The strict rules follow OpenAI's public API reference (chat/create) and its documented 400 and 401 errors.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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

    `cut_after` closes the connection after so many characters; `hold_seconds` waits between two pieces of text;
    `headers_after` waits before the status line.
    """

    text: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    finish_reason: str | None = None
    status: int = 200
    error: dict[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cut_after: int | None = None
    hold_seconds: float = 0.0
    headers_after: float = 0.0
    usage: tuple[int, int] = (100, 20)
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


def fail(status: int, message: str = "no", code: str | None = None, **more: Any) -> Answer:
    """An error in OpenAI's shape."""
    return Answer(status=status, error={"message": message, "type": "error", "param": None, "code": code}, **more)


Script = Callable[[dict[str, Any], int], Answer]


def in_order(answers: Sequence[Answer]) -> Script:
    """The answers one after the other, the last one again and again."""
    return lambda _request, index: answers[min(index, len(answers) - 1)]


@dataclass
class Endpoint:
    """An OpenAI-compatible server on a free loopback port; use it as a context manager.

    Requests whose messages lack a system prompt with tools and that Hermes sends beside the task (titles and the like)
    go to no script: `aside` answers them and they are not counted.
    """

    script: Script
    strict: bool = False
    key: str | None = None
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

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """The base URL an OpenAI client wants, ending in /v1."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _post(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if not handler.path.endswith("/chat/completions"):
            self._json(handler, 404, {"error": {"message": "not found", "type": "error", "code": None}})
            return
        if self.strict and (fault := strict_fault(body, handler.headers.get("Authorization"), self.key)):
            status, message = fault
            self.refusals.append(message)
            self._json(handler, status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})
            return
        if not self.strict and not body.get("tools"):
            # Hermes's own side calls (titles, compression) carry no tools; they are not part of a script.
            self._send(handler, body, say("aside"))
            return
        with self._lock:
            index = len(self.requests)
            self.requests.append(body)
        self._send(handler, body, self.script(body, index))

    def _send(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], answer: Answer) -> None:
        time.sleep(answer.headers_after)
        try:
            if answer.status != 200:
                self._json(handler, answer.status, {"error": answer.error}, answer.headers)
            elif body.get("stream"):
                self._stream(handler, body, answer)
            else:
                self._json(handler, 200, whole_reply(body, answer))
        except OSError:
            self.aborted += 1

    def _stream(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], answer: Answer) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        sent = 0
        for chunk in chunks(body, answer):
            piece = chunk["choices"][0]["delta"].get("content") if chunk["choices"] else None
            handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            handler.wfile.flush()
            sent += len(piece or "")
            if answer.cut_after is not None and sent >= answer.cut_after:
                handler.connection.close()
                return
            if piece and answer.hold_seconds:
                time.sleep(answer.hold_seconds)
        handler.wfile.write(b"data: [DONE]\n\n")
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
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {**head, "choices": [], "usage": _usage(answer)}


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


def _usage(answer: Answer) -> dict[str, int]:
    prompt, completion = answer.usage
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


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
