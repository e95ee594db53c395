"""What an escalation adds: from the decision to the wire, to the first token, at a stop; and what warming costs.

Run by `make bench`. The paid endpoint is a process of its own that streams a reply of 20 tokens after the time that
stands in its URL; it notes when each request came, on the clock that all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import events
import measuring  # both beside this file

ROUNDS = 15
COLD_ROUNDS = 5
THINKING_MS = (0, 100, 300, 1000)
TURN_CALLS, LLAMA_CALLS = 24, 5
LLAMA = Path(__file__).parents[1] / "demo" / "local_model.py"
MODEL = {"provider": "openai", "model": "gpt-5.4"}
KEY = "sk-of-the-benchmark"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def main() -> None:
    """Print the tables."""
    with endpoint() as url, tempfile.TemporaryDirectory() as folder:
        print(f"{measuring.machine()}. Medians of {ROUNDS} rounds, ± half the interquartile range.\n")
        _cold(url, Path(folder))
        _warming(url, Path(folder))
        world = _world(Path(folder) / "hermes", url)
        _to_the_wire(world, url)
        _to_the_first_token(world, url)
        _until_stopped(world)


def _block(url: str, **policy: object) -> str:
    def tier(thinking: int) -> dict[str, object]:
        return {**MODEL, "base_url": f"{url}/{thinking}/v1", "max_tokens": 1000}

    kinds = [
        {"name": f"think-{ms}", "match": {"message": f"think {ms} ms"}, "fallback": tier(ms)} for ms in THINKING_MS
    ]
    block = {"fallback": tier(0), "task_types": kinds, "fallback_policy": policy}
    return json.dumps({"model_routing": block})[1:-1]


def _world(home: Path, url: str) -> events.World:
    os.environ.update(
        {
            "HERMES_HOME": str(measuring.home(home, _block(url))),
            "HOME": str(home),
            "OPENAI_API_KEY": KEY,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        }
    )
    return events.World()


class Stuck:
    """A session whose local model has just failed three times, so that its next call is the stronger model's."""

    _numbers = itertools.count()

    def __init__(self, world: events.World, thinking_ms: int) -> None:
        self.world = world
        self.session = f"stuck-{next(self._numbers)}"
        self.first: float = 0.0
        self.request: dict[str, Any] = {
            "model": "local",
            "tools": events.TOOLS,
            "messages": [
                {"role": "system", "content": events.text(20 * events.KILOBYTE, 0)},
                {"role": "user", "content": f"think {thinking_ms} ms and fix it"},
            ],
        }
        self.turn = world.open_turn(self.session, message=f"think {thinking_ms} ms and fix it")
        for number in range(20):
            self._result(number, events.text(events.KILOBYTE, number))
        for number in range(20, 23):
            self._result(number, json.dumps({"error": f"File not found: {number}.py"}), failed=True)

    def _result(self, number: int, result: str, *, failed: bool = False) -> None:
        path = {"path": f"{number}.py"}
        call = {"id": f"c{number}", "type": "function"}
        function = {"name": "read_file", "arguments": json.dumps(path)}
        self.request["messages"] += [
            {"role": "assistant", "content": "", "tool_calls": [{**call, "function": function}]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": result},
        ]
        status = {"status": "error", "error_message": json.loads(result)["error"]} if failed else {}
        self.world.hook(self.turn, "read_file", path, result, session_id=self.session, **status)

    def ask(self, agent: Any, *, at_first: Callable[[], object] = lambda: None, is_stopped: bool = False) -> Any:
        """Make the next call; `first` is when its first token was shown, and Hermes is asked only if it is stopped."""

        def show(delta: str | None) -> None:
            if delta and not self.first:
                self.first = time.monotonic()
                at_first()

        agent.stream_delta_callback = show

        def next_call(_: dict[str, Any]) -> object:
            # The agent is among what the host's own call closes over, and is found there.
            assert is_stopped, f"the local model was asked, by {agent}"  # noqa: S101
            return None

        return self.world.call(self.turn, self.request, next_call, session_id=self.session)


def _agent() -> Any:
    from run_agent import AIAgent  # noqa: PLC0415

    agent = AIAgent(base_url="http://127.0.0.1:1/v1", api_key="none", model="local", provider="custom", quiet_mode=True)
    agent._print_fn = lambda *_, **__: None  # noqa: SLF001  # the notices are not for this table
    return agent


def _arrival(url: str) -> float:
    with urlopen(f"{url}/last") as reply:  # noqa: S310  # the address is our own
        return float(reply.read())


def _to_the_wire(world: events.World, url: str) -> None:
    agent = _agent()

    def took(**budget: float) -> float:
        measuring.configure(Path(os.environ["HERMES_HOME"]), _block(url, budget=budget))
        stuck = Stuck(world, 0)
        began = time.monotonic()
        stuck.ask(agent)
        return 1000 * (_arrival(url) - began)

    # The first round makes the client.
    values = measuring.in_turn({"no": took, "dollars": lambda: took(per_day_usd=1000)}, rounds=ROUNDS)
    print("### From the decision to the request on the wire, litellm warmed\n")
    print("The call begins with the decision; 43 messages of 41 KB and 28 tools are handed over. Where a budget is in")
    print("dollars, their tokens are counted before.\n")
    print("| decision → request at the endpoint | ms |\n|---|---|")
    print(f"| no budget | {measuring.shown(values['no'])} |")
    print(f"| a budget in dollars | {measuring.shown(values['dollars'])} |", flush=True)


def _to_the_first_token(world: events.World, url: str) -> None:
    from openai import OpenAI  # noqa: PLC0415

    from hermes_fallback import lazy_litellm  # noqa: PLC0415  # after the environment is set

    agent = _agent()
    measuring.configure(Path(os.environ["HERMES_HOME"]), _block(url))
    print("\n### To the first token that is shown, litellm warmed\n")
    columns = (
        "the model thinks",
        "the plain OpenAI client, ms",
        "litellm alone, ms",
        "the whole escalation, ms",
        "**ratio**",
    )
    print(f"| {' | '.join(columns)} |\n|---|---|---|---|---|")
    for thinking in THINKING_MS:
        base_url = f"{url}/{thinking}/v1"
        client = OpenAI(base_url=base_url, api_key=KEY, max_retries=0)
        litellm = partial(lazy_litellm.load().completion, base_url=base_url, api_key=KEY, max_retries=0)

        def streamed(ask: Callable[..., Any], model: str, thinking: int = thinking) -> float:
            request = {**Stuck(world, thinking).request, "model": model, "stream": True}
            began = time.monotonic()
            first = None
            for chunk in ask(**request):
                if first is None and chunk.choices and chunk.choices[0].delta.content:
                    first = 1000 * (time.monotonic() - began)
            # litellm leaves the last of a stream to the collector, which may come in the midst of the next call, inside
            # httpcore's pool, and then waits for itself for ever (`stream._let_go`; this benchmark hung once).
            gc.collect()
            assert first is not None  # noqa: S101  # for mypy
            return first

        def plain(ask: Callable[..., Any] = client.chat.completions.create) -> float:
            return streamed(ask, "gpt-5.4")

        def alone(ask: Callable[..., Any] = litellm) -> float:
            return streamed(ask, f"{MODEL['provider']}/{MODEL['model']}")

        def ours(thinking: int = thinking) -> float:
            stuck = Stuck(world, thinking)
            began = time.monotonic()
            stuck.ask(agent)
            return 1000 * (stuck.first - began)

        values = measuring.in_turn({"plain": plain, "litellm": alone, "ours": ours}, rounds=ROUNDS)
        ratio = measuring.ratio(values, "ours", "plain")
        row = " | ".join(measuring.shown(values[side]) for side in ("plain", "litellm", "ours"))
        print(f"| {thinking:,} ms | {row} | **{ratio:.2f}** |", flush=True)


def _until_stopped(world: events.World) -> None:
    from tools.interrupt import set_interrupt  # noqa: PLC0415, TID251  # the real Hermes is measured

    agent, thread = _agent(), threading.get_ident()

    def took(thinking: int, seconds: float | None) -> float:
        stopped: list[float] = []

        def stop() -> None:
            stopped.append(time.monotonic())
            set_interrupt(True, thread)

        timer = threading.Timer(seconds, stop) if seconds is not None else None
        if timer is not None:
            timer.start()
        try:
            Stuck(world, thinking).ask(agent, at_first=lambda: None if timer else stop(), is_stopped=True)
            return 1000 * (time.monotonic() - stopped[0])
        finally:
            set_interrupt(False, thread)

    sides = {"while the model thinks": lambda: took(1000, 0.3), "while its answer is streamed": lambda: took(0, None)}
    values = measuring.in_turn(sides, rounds=ROUNDS)
    print("\n### From the user's stop until Hermes has its turn back, what was used counted and journaled\n")
    print("| stopped | ms |\n|---|---|")
    for side in sides:
        print(f"| {side} | {measuring.shown(values[side])} |", flush=True)


def _cold(url: str, folder: Path) -> None:
    homes = (folder / f"cold-{number}" for number in itertools.count())
    runs = {name: lambda name=name: _alone(name, next(homes), url) for name in ("cold", "warmed")}  # type: ignore[misc]
    values = measuring.in_turn(runs, rounds=COLD_ROUNDS)
    print(f"### The first escalation of a process, milliseconds ({COLD_ROUNDS} processes each)\n")
    print("| litellm | decision → request at the endpoint |\n|---|---|")
    print(f"| not loaded | {measuring.shown(values['cold'])} |")
    print(f"| loaded in the background before | {measuring.shown(values['warmed'])} |\n", flush=True)


def _warming(url: str, folder: Path) -> None:
    print("### A turn of the local model while litellm is loaded, seconds\n")
    print("| the local model | nothing is loaded | litellm is loaded in the background | **ratio** |")
    print("|---|---|---|---|")
    _warming_row(f"elsewhere, or on a graphics card; {TURN_CALLS} calls", "local", f"{url}/200/v1", folder)
    for threads in sorted({1, os.cpu_count() or 1}):
        with _served([sys.executable, str(LLAMA), "2048", str(threads)]) as llama:
            words = f"SmolLM2 by llama.cpp on {threads} of these cores; {LLAMA_CALLS} calls"
            _warming_row(words, "llama", llama, folder / str(threads))
    print()


def _warming_row(words: str, what: str, url: str, folder: Path) -> None:
    homes = (folder / f"{what}-{number}" for number in itertools.count())
    runs = {name: lambda name=name: _alone(name, next(homes), url) for name in (what, f"{what}-warming")}  # type: ignore[misc]
    values = measuring.in_turn(runs, rounds=COLD_ROUNDS)
    ratio = measuring.ratio(values, f"{what}-warming", what)
    sides = f"{measuring.shown(values[what])} | {measuring.shown(values[f'{what}-warming'])}"
    print(f"| {words} | {sides} | **{ratio:.3f}** |", flush=True)


def _alone(what: str, home: Path, url: str) -> float:
    command = [sys.executable, __file__, what, str(home), url]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def first_escalation(home: Path, url: str, *, warmed: bool) -> float:
    """In a process of its own: return how long the first escalation takes to the wire, in milliseconds.

    Before it Hermes has asked its local model, with the client that it has for that.
    """
    from openai import OpenAI  # noqa: PLC0415

    from hermes_fallback import config, lazy_litellm  # noqa: PLC0415  # after the environment is set

    world, agent = _world(home, url), _agent()
    _say_hi(OpenAI(base_url=f"{url}/0/v1", api_key=KEY))
    if warmed:
        lazy_litellm.warm(config.parse({"fallback": MODEL}, host_has_chain=False).ladder)
        for thread in threading.enumerate():
            if thread.name == "hermes-fallback-warm":
                thread.join()
    assert warmed == ("litellm" in sys.modules)  # noqa: S101  # else it measures something else
    stuck = Stuck(world, 0)
    began = time.monotonic()
    stuck.ask(agent)
    return 1000 * (_arrival(url) - began)


def local_turn(home: Path, url: str, *, calls: int, warming: bool) -> float:
    """In a process of its own: return how long a turn of the local model takes, in seconds.

    The client is the one that Hermes has for it. Elsewhere, a call thinks 200 ms, and its tokens come 5 ms apart.
    """
    from openai import OpenAI  # noqa: PLC0415

    from hermes_fallback import config, lazy_litellm, turn  # noqa: PLC0415  # after the environment is set

    _world(home, url)
    client = OpenAI(base_url=url, api_key=KEY)
    _say_hi(client)
    began = time.monotonic()
    if warming:
        lazy_litellm.warm(config.parse({"fallback": MODEL}, host_has_chain=False).ladder)
    for _ in range(calls):
        # As the adapter makes it.
        turn.LocalCall(lambda _: _say_hi(client), {}).reply()
    return time.monotonic() - began


def _say_hi(client: Any) -> None:
    asked = [{"role": "user", "content": "Tell me a story."}]
    # The same of a real model each time.
    limits = {"max_tokens": 100, "temperature": 0.0}
    for _ in client.chat.completions.create(model="local", messages=asked, stream=True, **limits):
        pass


@contextmanager
def endpoint() -> Iterator[str]:
    """A paid endpoint in a process of its own."""
    with _served([sys.executable, __file__, "serve"]) as url:
        yield url


@contextmanager
def _served(command: list[str]) -> Iterator[str]:
    """Have a server run that prints its URL first; gives that."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None  # noqa: S101  # for mypy
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def serve() -> None:
    """Serve until the end of the process."""
    last = [0.0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # who has the first token goes away
            await answered(reader, writer)
        writer.close()

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        came = time.monotonic()
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n%r" % last[0])
        else:
            last[0] = came
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            await asyncio.sleep(int(head.split(b"/")[1]) / 1000)
            await _stream(writer)
        await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def _stream(writer: asyncio.StreamWriter) -> None:
    writer.write(_HEAD)
    choice: dict[str, Any]
    for number in range(20):
        choice = {"index": 0, "delta": {"role": "assistant", "content": f"word {number} "}, "finish_reason": None}
        writer.write(_event([choice]))
        await writer.drain()
        await asyncio.sleep(0.005)
    writer.write(_event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    usage = {"prompt_tokens": 10000, "completion_tokens": 60, "total_tokens": 10060}
    writer.write(_event([], usage=usage) + b"data: [DONE]\n\n")


def _event(choices: list[dict[str, Any]], **more: object) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-5.4"}
    return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n".encode()


ALONE: dict[str, Callable[[Path, str], float]] = {
    "cold": partial(first_escalation, warmed=False),
    "warmed": partial(first_escalation, warmed=True),
    "local": partial(local_turn, calls=TURN_CALLS, warming=False),
    "local-warming": partial(local_turn, calls=TURN_CALLS, warming=True),
    "llama": partial(local_turn, calls=LLAMA_CALLS, warming=False),
    "llama-warming": partial(local_turn, calls=LLAMA_CALLS, warming=True),
}

if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    elif sys.argv[1:]:
        print(ALONE[sys.argv[1]](Path(sys.argv[2]), sys.argv[3]))
    else:
        main()
