"""The two model endpoints of the soak, each in a process of its own: a bad local model, a paid one that keeps books.

`python -m benchmarks.soak.endpoints local|paid FOLDER SEED` prints its base URL, then serves until it is told to end.
The paid one writes down what each request cost by its own count of tokens, knowing nothing of our journal: also of
requests whose client has gone or was killed. It is as strict as OpenAI's chat API (tests/endpoints.py).
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import random
import re
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import tiktoken

from tests.endpoints import Answer, call, chunks, raw_call, say, strict_fault, whole_reply

KEY = "sk-of-the-soak-0123456789"
MODEL = "qwen3.6:9b"
"""The local model's name."""

USD_PER_INPUT_TOKEN, USD_PER_OUTPUT_TOKEN = 2e-6, 10e-6
TAG = re.compile(r"\[turn (\S+) (\w+)\]")
"""What a worker puts into a user's message: which turn it is, and how the local model is to take it."""

_MOST_TOOL_RESULTS = 6
_TOKENS_A_SECOND = 100  # of a model that thinks before it speaks
_LOCAL_FAULTS = {
    "none": 86,
    "500": 3,
    "503": 2,
    "reset": 2,
    "empty": 3,
    "half a JSON": 1,
    "slow": 2,
    "call as text": 1,
}
_PAID_FAULTS = {
    "none": 70,
    "429, retry at once": 4,
    "429": 3,
    "429, retry in a minute": 2,
    "500": 3,
    "reset before the reply": 2,
    "cut": 4,
    "half an event": 2,
    "error in the stream": 2,
    "slow drip": 3,
    "silence": 1,
    "thinks for long": 2,
    "tells no usage": 1,
    "empty": 1,
}


@dataclass(frozen=True)
class Bill:
    """One request that was paid for; `fault` is how its reply went."""

    at: float
    tag: str
    model: str
    fault: str
    input_tokens: int
    output_tokens: int
    usd: float


class Server(ABC):
    """HTTP/1.1 for what OpenAI's client sends, in so few lines that it takes no time of what is measured."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self.chance = random.Random(f"{name} {seed}")  # noqa: S311  # dice
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self._counts = folder / f"{name}.json"

    async def serve(self) -> None:
        """Serve on a free port until SIGTERM; print the base URL first."""
        done = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
        await done.wait()
        server.close()
        self.write_counts()

    def write_counts(self) -> None:
        """Write how many requests and faults there were."""
        self._counts.write_text(json.dumps({"requests": self.requests, "faults": self.faults}))

    def choose(self, weights: dict[str, int]) -> str:
        """Choose what goes wrong with this request, and count it."""
        (fault,) = self.chance.choices(list(weights), list(weights.values()))
        if fault != "none":
            self.faults[fault] += 1
        return fault

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = re.search(r"content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                if not body:
                    await send(writer, 200, {"object": "list", "data": [{"id": "any", "object": "model"}]})
                    continue
                self.requests += 1
                key = re.search(r"authorization: *(bearer \S+)", head)
                if not await self.answer(json.loads(body), key[1] if key else "", reader, writer):
                    break
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass  # the client has gone, or the soak is over
        finally:
            writer.close()

    @abstractmethod
    async def answer(
        self, body: dict[str, Any], key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; return whether the connection can be used again."""


class Local(Server):
    """A local model that does what the turn's kind says, where nothing worse comes in between."""

    async def answer(
        self, body: dict[str, Any], _key: str, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request."""
        if not body.get("tools"):
            return await self._say(writer, body, say("aside"))  # Hermes's own side calls: titles and the like
        fault = self.choose(_LOCAL_FAULTS)
        answer = _reply_of_kind(body, self.chance)
        match fault:
            case "500" | "503":
                return await send(writer, int(fault), {"error": {"message": "the model runner crashed"}})
            case "reset":
                writer.transport.abort()
                return False
            case "half a JSON":
                await send(writer, 200, {**whole_reply(body, answer)}, half=True)
                return False
            case "slow":
                await asyncio.sleep(self.chance.uniform(0.5, 3))
            case "empty":
                answer = say("")
            case "call as text":
                answer = say('{"name": "read_file", "arguments": {"path": "a.txt"}}')
        return await self._say(writer, body, answer)

    async def _say(self, writer: asyncio.StreamWriter, body: dict[str, Any], answer: Answer) -> bool:
        if not body.get("stream"):
            return await send(writer, 200, whole_reply(body, answer))
        writer.write(_STREAM_HEAD)
        for chunk in chunks(body, answer):
            writer.write(_event(chunk))
        writer.write(_STREAM_END)
        await writer.drain()
        return False


class Paid(Server):
    """A strict, fast, paid model; `bills` is its own ledger."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        super().__init__(folder, name, seed)
        self._bills: TextIO = (folder / "bills.jsonl").open("w")

    async def answer(
        self, body: dict[str, Any], key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request, and write down what it cost."""
        refusal = strict_fault(body, key.replace("bearer", "Bearer"), KEY)
        if refusal is not None:
            self.faults[f"refused: {refusal[1]}"] += 1
            return await send(writer, refusal[0], {"error": {"message": refusal[1], "type": "invalid_request_error"}})
        fault = self.choose(_PAID_FAULTS)
        match fault:
            case "429" | "429, retry at once" | "429, retry in a minute":
                wait = {"429, retry at once": "0", "429, retry in a minute": "60"}.get(fault)
                error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
                return await send(writer, 429, {"error": error}, *([("Retry-After", wait)] if wait else []))
            case "500":
                return await send(
                    writer, 500, {"error": {"message": "The server had an error", "type": "server_error"}}
                )
            case "reset before the reply":
                writer.transport.abort()
                return False
        work = _Work(body, _tier_reply(body, self.chance), fault, self.chance)
        try:
            await work.stream(reader, writer)
        finally:
            tag, _ = tag_of(body)
            usd = work.input_tokens * USD_PER_INPUT_TOKEN + work.output_tokens * USD_PER_OUTPUT_TOKEN
            bill = Bill(time.time(), tag, body["model"], fault, work.input_tokens, work.output_tokens, usd)
            self._bills.write(json.dumps(asdict(bill)) + "\n")
            self._bills.flush()
        return False


class _Work:
    """One paid reply as it is generated: what it has cost so far, whatever becomes of it."""

    def __init__(self, body: dict[str, Any], answer: Answer, fault: str, chance: random.Random) -> None:
        self.input_tokens = input_tokens(body)
        self.output_tokens = 0
        self._body, self._fault, self._chance = body, fault, chance
        self._answer = answer
        self._most = int(body.get("max_completion_tokens") or 10**6)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send the reply, as far as the fault lets it come and the client listens."""
        writer.write(_STREAM_HEAD)
        await writer.drain()
        if self._fault == "silence":
            await self._think(reader, 60)
            return
        if self._fault == "thinks for long":
            await self._think(reader, self._chance.uniform(1, 4))
        pieces = list(self._pieces())
        # Something was said, and something is missing.
        break_at = self._chance.randint(1, max(1, len(pieces) - 1))
        writer.write(_event(self._chunk({"role": "assistant"})))
        for number, (delta, tokens) in enumerate(pieces):
            if reader.at_eof():
                return
            if number == break_at and self._fault in _BREAKS:
                self._break(writer)
                return
            self.output_tokens += tokens
            writer.write(_event(self._chunk(delta)))
            await writer.drain()
            if self._fault == "slow drip":
                await asyncio.sleep(self._chance.uniform(0.1, 1.5))
        writer.write(_event(self._chunk({}, self._finish_reason)))
        if self._fault != "tells no usage":
            usage = {"prompt_tokens": self.input_tokens, "completion_tokens": self.output_tokens}
            usage["total_tokens"] = sum(usage.values())
            writer.write(_event({**self._chunk({}), "choices": [], "usage": usage}))
        writer.write(_STREAM_END)
        await writer.drain()

    async def _think(self, reader: asyncio.StreamReader, seconds: float) -> None:
        """Think unseen, which is paid for, until it is done or the client has gone."""
        before = time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(), seconds)
        self.output_tokens = min(self._most, int((time.monotonic() - before) * _TOKENS_A_SECOND))

    def _break(self, writer: asyncio.StreamWriter) -> None:
        match self._fault:
            case "half an event":
                writer.write(_event(self._chunk({"content": "lost"}))[:40] + b"\n\n" + _STREAM_END)
            case "error in the stream":
                writer.write(_event({"error": {"message": "The server had an error", "type": "server_error"}}))
            case _:
                writer.transport.abort()

    def _pieces(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield what is said, some tokens at a time, up to the limit."""
        left = max(0, self._most - self.output_tokens)
        self._finish_reason = "tool_calls" if self._answer.calls else "stop"
        if self._fault == "empty":
            return
        tokens = _encoding().encode(self._answer.text or "")
        if len(tokens) > left:
            self._finish_reason, tokens = "length", tokens[:left]
        size = max(1, len(tokens) // 5)
        for start in range(0, len(tokens), size):
            piece = tokens[start : start + size]
            yield {"content": _encoding().decode(piece)}, len(piece)
        for index, (name, arguments) in enumerate(self._answer.calls):
            function = {"name": name, "arguments": arguments}
            called = {"index": index, "id": f"call_{self._chance.randrange(10**8)}", "type": "function"}
            yield {"tool_calls": [{**called, "function": function}]}, _length(name) + _length(arguments) + 4

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": self._body["model"]}
        return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


_BREAKS = frozenset({"cut", "half an event", "error in the stream"})
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
_STREAM_END = b"data: [DONE]\n\n"
_WORDS = ("it", "was", "found", "that", "the", "second", "file", "holds", "what", "the", "first", "one", "asks", "for")


@functools.cache
def _encoding() -> tiktoken.Encoding:
    # litellm has brought the tokenizer's file; tiktoken by itself would fetch it from the network.
    (litellm,) = getattr(importlib.util.find_spec("litellm"), "submodule_search_locations", None) or ("",)
    os.environ.setdefault("TIKTOKEN_CACHE_DIR", str(Path(litellm, "litellm_core_utils", "tokenizers")))
    return tiktoken.get_encoding("cl100k_base")


def tag_of(body: dict[str, Any]) -> tuple[str, str]:
    """Return which turn a request is of, and of which kind; both empty for a request that is of none."""
    for message in reversed(body["messages"]):
        found = TAG.findall(json.dumps(message.get("content"))) if message["role"] == "user" else None
        if found:
            tag, kind = found[-1]
            return tag, kind
    return "", ""


def _reply_of_kind(body: dict[str, Any], chance: random.Random) -> Answer:
    """Return what the local model does in a turn of this kind."""
    said = body["messages"]
    _, kind = tag_of(body)
    asked = max((place for place, message in enumerate(said) if message["role"] == "user"), default=0)
    results = sum(message["role"] == "tool" for message in said[asked:])
    if results >= _MOST_TOOL_RESULTS:
        return say("I could not do more than this.")
    match kind:
        case "works" if results < 2:
            return call("read_file", path=f"found-{results}-{chance.randrange(1000)}.txt")
        case "stuck":
            return call("read_file", path="missing.txt")
        case "loops":
            return call("read_file", path="found-same.txt")
        case "babbles":
            return chance.choice([raw_call("read_file", '{"path": '), call("no_such_tool", x=1), say("")])
        case "lies":
            return say("I have changed the file config.toml as you asked, and it is done.")
        case _:
            return say(f"The answer is {chance.randrange(1000)}.")


def _tier_reply(body: dict[str, Any], chance: random.Random) -> Answer:
    """Return what the paid model does: a step, now and then one that fails, or the answer."""
    steps = sum(message["role"] == "tool" for message in body["messages"])
    words = " ".join(chance.choice(_WORDS) for _ in range(chance.choice([10, 30, 60, 400])))
    if steps < _MOST_TOOL_RESULTS + 3 and chance.random() < 0.4:
        path = "missing.txt" if chance.random() < 0.5 else f"found-{chance.randrange(1000)}.txt"
        return raw_call("read_file", json.dumps({"path": path}), text=f"I will look at {path}: {words[:60]}")
    return say(f"Done: {words}.")


def input_tokens(body: dict[str, Any]) -> int:
    """Count a request's tokens as a provider does, in its own way: what is said, and what frames it."""
    total = 3
    for message in body["messages"]:
        content = message.get("content")
        total += 3 + _length(content if isinstance(content, str) else json.dumps(content))
        for called in message.get("tool_calls") or ():
            total += 4 + _length(called["function"]["name"]) + _length(called["function"]["arguments"])
    for tool in body.get("tools") or ():
        function = tool["function"]
        total += 8 + _length(function["name"]) + _length(function.get("description", ""))
        for name, schema in function.get("parameters", {}).get("properties", {}).items():
            total += 3 + _length(name) + _length(schema.get("description", "")) + _length(str(schema.get("type")))
    return total


@functools.lru_cache(maxsize=20_000)
def _length(text: str) -> int:
    return len(_encoding().encode(text))


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


async def send(
    writer: asyncio.StreamWriter, status: int, payload: object, *headers: tuple[str, str], half: bool = False
) -> bool:
    """Send a whole reply, or the first half of one; return whether the connection can be used again."""
    data = json.dumps(payload).encode()
    lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json"]
    data = data[: len(data) // 2] if half else data
    lines += [f"Content-Length: {len(data)}", *(f"{name}: {value}" for name, value in headers)]
    writer.write("\r\n".join([*lines, "", ""]).encode() + data)
    await writer.drain()
    return True


def main() -> None:
    """Serve."""
    name, folder, seed = sys.argv[1:]
    server = {"local": Local, "paid": Paid}[name](Path(folder), name, int(seed))
    asyncio.run(server.serve())


if __name__ == "__main__":
    main()
