"""Endpoints that fall ill, each over a real socket: through PyPI's `llmock` where it has the fault, else by our own.

llmock (0.2.2) ends a stream early, stalls, slows or garbles it, and answers with any status in OpenAI's shape. It does
not close its port, reset a connection, speak TLS, send a body that is no stream, leave `choices` empty, or leave
Retry-After out of a 429.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import trustme
from llmock.chaos import StreamChaos
from llmock.scenarios import Behavior, Delay, Fail, Match, Reply, StreamFault, ToolCall
from llmock.testing import LLMockServer

from tests.endpoints import Answer, Endpoint, fail, in_order, say

TEXT = "A sentence that is long enough to come in several pieces, one after the other."
HANG_SECONDS = 5.0
"""Longer than anybody here waits."""

_HOST = "model.invalid"  # never anybody's name (RFC 6761)

_TASKS = Match(tools=True)  # Hermes asks for titles and the like without tools, and not in any order


@dataclass(frozen=True)
class Patient:
    """An endpoint that can be well, and ill.

    `url` is the base URL that a client is given. `requests` returns the bodies of what has come to be answered, None for
    one that was not kept. `be_well` has it give some answers from now on, the last one again and again.
    """

    url: str
    requests: Callable[[], Sequence[dict[str, Any] | None]]
    be_well: Callable[..., None]
    fall_ill: Callable[[], None]


def mocked(server: LLMockServer, ills: Sequence[Behavior | StreamChaos]) -> Patient:
    """PyPI's llmock, whose streams have the fault, or whose answers are it."""
    state = server.state
    state.reset()

    def behave(*behaviors: Behavior | StreamChaos) -> None:
        state.scenarios.clear()
        state.stream_chaos = next((one for one in behaviors if isinstance(one, StreamChaos)), StreamChaos())
        state.scenarios.add(*(one for one in behaviors if not isinstance(one, StreamChaos)))

    def be_well(*answers: Answer) -> None:
        *first, last = answers
        behave(*(_reply(answer, times=1) for answer in first), _reply(last, times=None))

    def requests() -> Sequence[dict[str, Any] | None]:
        # Those that hang are not among the records; all others are, at the latest by then.
        records = [one for one in state.journal.records(wait=0.3) if one.path.endswith("/chat/completions")]
        kept = [one.body for one in records if one.body is None or one.body.get("tools")]
        return [*kept, *[None] * state.journal.in_flight]

    # The first of a kind counts: a reply that is the fault itself comes before the one that others befall.
    fall_ill = partial(behave, *ills, _reply(say(TEXT), times=None))
    return Patient(server.base_url("openai"), requests, be_well, fall_ill)


def _reply(answer: Answer, *, times: int | None) -> Reply:
    calls = tuple(ToolCall(tool, json.loads(arguments)) for tool, arguments in answer.calls)
    return Reply(answer.text, calls, times=times, match=_TASKS)


def answering(answer: Answer, stack: ExitStack) -> Patient:
    """Our own server, which gives this answer to all when it is ill."""
    endpoint = stack.enter_context(Endpoint(in_order([answer])))
    return Patient(
        endpoint.url, lambda: endpoint.requests, partial(_answer, endpoint), partial(_answer, endpoint, answer)
    )


def closed(stack: ExitStack, _: pytest.MonkeyPatch) -> Patient:
    """Nothing listens at its port while it is ill."""
    first = stack.enter_context(Endpoint(in_order([say(TEXT)])))
    listening = [first]

    def be_well(*answers: Answer) -> None:
        fall_ill()
        again = Endpoint(in_order([say(TEXT)]), port=first.port, requests=first.requests)
        _answer(again, *answers)
        listening.append(stack.enter_context(again))

    def fall_ill() -> None:
        listening[-1].close()

    return Patient(first.url, lambda: first.requests, be_well, fall_ill)


def untrusted(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Patient:
    """Its certificate is good, but one that nobody has vouched for while it is ill."""
    authority = trustme.CA()
    good, bad = authority.issue_cert("127.0.0.1"), trustme.CA().issue_cert("127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", stack.enter_context(authority.cert_pem.tempfile()))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    endpoint = stack.enter_context(Endpoint(in_order([say(TEXT)]), tls=tls))

    def be_well(*answers: Answer) -> None:
        good.configure_cert(tls)
        _answer(endpoint, *answers)

    return Patient(endpoint.url, lambda: endpoint.requests, be_well, lambda: bad.configure_cert(tls))


def unknown(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Patient:
    """Its host has a name that this process can resolve while it is well; while it is ill, the machine is asked."""
    endpoint = stack.enter_context(Endpoint(in_order([say(TEXT)])))
    resolve = socket.getaddrinfo
    known: dict[object, str] = {}

    def resolved(host: Any, *args: Any, **options: Any) -> Any:
        return resolve(known.get(host, host), *args, **options)

    def be_well(*answers: Answer) -> None:
        known.update({_HOST: "127.0.0.1", _HOST.encode(): "127.0.0.1"})
        _answer(endpoint, *answers)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return Patient(endpoint.url.replace("127.0.0.1", _HOST), lambda: endpoint.requests, be_well, known.clear)


def _answer(endpoint: Endpoint, *answers: Answer) -> None:
    script, before = in_order(answers), len(endpoint.requests)
    endpoint.script = lambda request, index: script(request, index - before)


Illness = Answer | tuple[Behavior | StreamChaos, ...] | Callable[[ExitStack, pytest.MonkeyPatch], Patient]
"""What our own server answers, how llmock behaves, or an endpoint of its own kind."""


def patient(ills: Illness, mock: LLMockServer, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Patient:
    """Return an endpoint that can get this; it lives as long as the stack."""
    if isinstance(ills, tuple):
        return mocked(mock, ills)
    return answering(ills, stack) if isinstance(ills, Answer) else ills(stack, monkeypatch)


def _answered(content_type: str, body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {content_type}\r\n\r\n".encode() + body


def _chunk(*choices: dict[str, Any]) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "any"}
    return f"data: {json.dumps({**head, 'choices': choices})}\n\n".encode()


def _streaming(kind: Any, after_chunks: int) -> tuple[Behavior, ...]:
    match = Match(stream=True, tools=True)
    return (StreamFault(kind, after_chunks=after_chunks, stall_seconds=HANG_SECONDS, times=None, match=match),)


def _failing(status: int, **more: Any) -> tuple[Behavior, ...]:
    return (Fail(status, times=None, match=_TASKS, **more),)


def _long_text() -> str:
    """Return 10 MB that no two lines of are alike, in words of 64 kB: llmock sends a word at a time."""
    letters = random.Random(1).choices  # noqa: S311  # any will do, and always the same
    return " ".join("".join(letters("abcdefghijklmnop", k=1000)) * 64 for _ in range(160))


_HALF = {"index": 0, "delta": {"role": "assistant", "content": "Half of an answer"}, "finish_reason": None}
_TOO_LONG = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens."
_LOGIN_PAGE = b"<!DOCTYPE html><html><body><h1>Please log in to this network</h1></body></html>"
_GATEWAY_PAGE = b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>nginx</body>\r\n</html>"

FAULTS: dict[str, Illness] = {
    "connection refused": closed,
    "DNS failure": unknown,
    "certificate error": untrusted,
    "reset": Answer(raw=b"", reset=True),
    "reset in mid-stream": Answer(raw=_answered("text/event-stream", _chunk(_HALF)), reset=True),
    "cut off in mid-stream": _streaming("disconnect", 4),
    "end without a finish reason": _streaming("truncate", 4),
    "error event in mid-stream": say(TEXT, error_after=40),
    "hang before headers": (Delay(HANG_SECONDS, times=None, match=_TASKS),),
    "hang in mid-stream": _streaming("stall", 4),
    "slow drip": (StreamChaos(chunk_delay_ms=30),),
    "malformed SSE": _streaming("malformed", 0),
    "malformed SSE in mid-stream": _streaming("malformed", 4),
    "invalid JSON": Answer(raw=_answered("application/json", b'{"id": "chatcmpl-1", "choices": [{"index"')),
    "wrong content type": Answer(raw=_answered("text/html", _LOGIN_PAGE)),
    "10 MB reply": (Reply(_long_text(), times=None, match=_TASKS),),
    "empty choices": Answer(raw=_answered("text/event-stream", _chunk() + b"data: [DONE]\n\n")),
    "unknown finish reason": (Reply(TEXT, finish_reason="sabbatical", times=None, match=_TASKS),),
    "400 context overflow": _failing(400, code="context_length_exceeded", message=_TOO_LONG),
    "401": _failing(401, message="Incorrect API key provided: sk-wrong-0123456789abcdef."),
    "403": _failing(403),
    "404": _failing(404),
    "408": _failing(408),
    "429 with Retry-After: 1": _failing(429, retry_after=1),
    "429 with Retry-After: 60": _failing(429, retry_after=60),
    "429 without Retry-After": fail(429, "Rate limit exceeded.", "rate_limit_exceeded"),
    "500": _failing(500),
    "502 with a page": Answer(
        raw=b"HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Type: text/html\r\n\r\n" + _GATEWAY_PAGE
    ),
    "503": _failing(503),
    "529": _failing(529),
}
