"""What the plugin adds to a tool's result and to a local model's call, in Hermes's own plugin manager and middleware.

Run by `make bench`. Each row measures its sides in turn, in one process: a callback that does nothing, ours, and
Hermes's own guard against loops, `ToolCallGuardrailController`, which looks at the same results for the same reason.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import measuring  # beside this file

from hermes_fallback import lazy_litellm

ROUNDS, TIMES = 15, 200
SESSIONS = 1000
NO_OTHER = (
    "No other routing plugin stands here, for none could be found that registers a hook or middleware with Hermes and\n"
    "installs from PyPI (November 2026: hermes-router 0.7.2, hermes-model-router 1.0.0, hermes-smart-router 0.2.2 and\n"
    "hermes-agent-kit 0.3.7 register none)."
)
BLOCK = "model_routing:\n  fallback: {provider: openai, model: gpt-5.4}\n"
QUIET_BLOCK = f"{BLOCK}  fallback_policy: {{trigger_on: [user_request]}}\n"
KILOBYTE = 1024
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name}: one of Hermes's tools",
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string", "description": f"the {key}"} for key in keys},
                "required": list(keys),
            },
        },
    }
    for name, keys in {
        "read_file": ("path",),
        "write_file": ("path", "content"),
        "terminal": ("command",),
        **{f"tool_{number}": ("query",) for number in range(25)},
    }.items()
]


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HERMES_HOME"] = str(measuring.home(Path(folder) / "hermes", BLOCK))
        os.environ["HOME"] = folder
        world = World()
        # An error has it loaded in the background, which would be measured along.
        lazy_litellm.load()
        print(f"{measuring.machine()}. Medians of {ROUNDS} rounds of {TIMES} events, ± half the interquartile range.\n")
        _results(world)
        _growth(world)
        _calls(world)
        _memory(world)


class World:
    """Hermes's plugin manager with our plugin loaded, and the callbacks that can stand in its place."""

    def __init__(self) -> None:
        from hermes_cli import plugins  # noqa: PLC0415, TID251  # the real Hermes is measured

        self.manager = plugins.get_plugin_manager()
        self.manager.discover_and_load(force=True)
        self.ours = {kind: list(self.manager._hooks[kind]) for kind in ("post_tool_call",)}  # noqa: SLF001
        self.middleware = list(self.manager._middleware["llm_execution"])  # noqa: SLF001
        assert self.ours["post_tool_call"]  # noqa: S101  # else it measures nothing
        assert self.middleware  # noqa: S101
        self._turns = itertools.count()

    def open_turn(self, session: str = "bench", *, message: str = "Please fix the tests.") -> str:
        """Begin a turn, as Hermes does."""
        turn = f"turn-{next(self._turns)}"
        self.manager.invoke_hook(
            "pre_llm_call",
            session_id=session,
            turn_id=turn,
            model="local",
            platform="cli",
            user_message=message,
            conversation_history=[],
        )
        return turn

    def hook(self, turn: str, tool: str, args: dict[str, Any], result: str, **more: Any) -> None:
        """Tell of a result, with all that Hermes tells (0.19 model_tools.py)."""
        self.manager.invoke_hook(
            "post_tool_call",
            **{
                "tool_name": tool,
                "args": args,
                "result": result,
                "task_id": "task",
                "session_id": "bench",
                "tool_call_id": "call_1",
                "turn_id": turn,
                "api_request_id": "request",
                "duration_ms": 12,
                "status": "ok",
                "error_type": None,
                "error_message": None,
                "middleware_trace": [],
                **more,
            },
        )

    def call(
        self,
        turn: str,
        request: dict[str, Any],
        next_call: Callable[[dict[str, Any]], Any],
        *,
        session_id: str = "bench",
    ) -> Any:
        """Make a model call, as the agent loop does (0.19 agent/conversation_loop.py)."""
        from hermes_cli.middleware import run_llm_execution_middleware  # noqa: PLC0415, TID251  # the real Hermes is measured

        return run_llm_execution_middleware(
            request,
            next_call,
            original_request=request,
            task_id="task",
            turn_id=turn,
            api_request_id="request",
            session_id=session_id,
            platform="cli",
            model="local",
            provider="custom",
            base_url="http://127.0.0.1:1/v1",
            api_mode="chat_completions",
            api_call_count=1,
            middleware_trace=[],
        )

    def with_hook(self, *callbacks: Callable[..., object]) -> None:
        """Have these called for a tool's result; ours when there are none."""
        self.manager._hooks["post_tool_call"] = list(callbacks) or self.ours["post_tool_call"]  # noqa: SLF001

    def with_middleware(self, *callbacks: Callable[..., object]) -> None:
        """Have these wrapped around a model call; ours when there are none."""
        self.manager._middleware["llm_execution"] = list(callbacks) or self.middleware  # noqa: SLF001


def nothing(**_: object) -> None:
    """A hook that does nothing."""


def pass_through(*, request: dict[str, Any], next_call: Callable[[dict[str, Any]], Any], **_: object) -> Any:
    """A middleware that does nothing."""
    return next_call(request)


def text(size: int, number: int) -> str:
    """Source code of that size; no two numbers give the same."""
    lines = (
        f"    result_{line} = compute(values[{line}], scale={number + line})  # step {line}"
        for line in itertools.count()
    )
    return _cut(lines, size)


def log(size: int, number: int) -> str:
    """A log of that size, full of times, durations and process ids."""
    lines = (
        f"2026-11-25 10:{line % 60:02}:{number % 60:02},{line % 1000:03} INFO worker pid={1000 + number} took {line}ms"
        for line in itertools.count()
    )
    return _cut(lines, size)


def _anew(text: str) -> str:
    """Return the text as Hermes gives it, not as it was given before: Python keeps the hash of a text with it."""
    return text[:1] + text[1:]


def _cut(lines: Iterator[str], size: int) -> str:
    taken: list[str] = []
    while sum(map(len, taken)) + len(taken) < size:
        taken.append(next(lines))
    return "\n".join(taken)[:size]


Sample = Callable[[int], tuple[str, dict[str, Any], str, dict[str, Any]]]
"""Of a number: tool, arguments, result, and what else the hook is told."""

SAMPLES: dict[str, Sample] = {
    "source code, a new call": lambda n: ("read_file", {"path": f"src/{n}.py"}, text(2 * KILOBYTE, n), {}),
    "a log full of times, a new call": lambda n: ("read_file", {"path": f"log/{n}"}, log(2 * KILOBYTE, n), {}),
    "a command's output": lambda n: (
        "terminal",
        {"command": f"cd build && make target{n}"},
        json.dumps({"output": text(2 * KILOBYTE, n), "exit_code": 0, "error": None}),
        {},
    ),
    "the same call, the same result": lambda _: ("read_file", {"path": "a.py"}, text(2 * KILOBYTE, 0), {}),
    "the same call, only times differ": lambda n: ("read_file", {"path": "log"}, log(2 * KILOBYTE, n), {}),
    "an error": lambda n: (
        "read_file",
        {"path": f"src/{n}.py"},
        json.dumps({"error": f"File not found: src/{n}.py\n{text(2 * KILOBYTE, n)}"}),
        {"status": "error", "error_type": "tool_error", "error_message": f"File not found: src/{n}.py"},
    ),
    "an error of 2 KB": lambda n: (
        "browser",
        {"url": f"http://{n}"},
        json.dumps({"error": text(2 * KILOBYTE, n)}),
        {"status": "error", "error_type": "tool_error", "error_message": text(2 * KILOBYTE, n)},
    ),
    "a command that fails": lambda n: (
        "terminal",
        {"command": f"pytest test_{n}.py"},
        json.dumps({"output": text(2 * KILOBYTE, n), "exit_code": 1, "error": None}),
        {},
    ),
}


def _results(world: World) -> None:
    from agent.tool_guardrails import ToolCallGuardrailController  # noqa: PLC0415, TID251  # the real Hermes is measured

    print("### A tool's result of 2 KB (`post_tool_call`), microseconds\n")
    print(f"{NO_OTHER}\n")
    print("| result | a hook that does nothing | ours | **added** | Hermes's ToolCallGuardrailController |")
    print("|---|---|---|---|---|")
    for name, sample in SAMPLES.items():
        fed: Iterator[Any] = itertools.cycle([sample(number) for number in range(ROUNDS * TIMES // 4)])

        def hooked(*callbacks: Callable[..., object], fed: Iterator[Any] = fed) -> float:
            world.with_hook(*callbacks)
            turn = world.open_turn()
            events = [
                (tool, args, _anew(result), {key: _anew(value) if value else value for key, value in more.items()})
                for tool, args, result, more in itertools.islice(fed, TIMES)
            ]
            each = iter(events)

            def tell() -> None:
                tool, args, result, more = next(each)
                world.hook(turn, tool, args, result, **more)

            return measuring.microseconds_each(tell, times=TIMES)

        def guarded(fed: Iterator[Any] = fed) -> float:
            controller = ToolCallGuardrailController()
            events = iter(list(itertools.islice(fed, TIMES)))

            def tell() -> None:
                tool, args, result, more = next(events)
                controller.before_call(tool, args)
                controller.after_call(tool, args, result, failed=more.get("status") == "error")

            return measuring.microseconds_each(tell, times=TIMES)

        values = measuring.in_turn({"nothing": lambda: hooked(nothing), "ours": hooked, "host": guarded}, rounds=ROUNDS)
        row = [measuring.shown(values[side]) for side in ("nothing", "ours", "host")]
        added = measuring.difference(values, "ours", "nothing")
        print(f"| {name} | {row[0]} | {row[1]} | **{added:+.1f}** | {row[2]} |", flush=True)


def _growth(world: World) -> None:
    print("\n### The same with larger results, microseconds\n")
    print("| size | added by our hook | blake2b of the result alone |\n|---|---|---|")
    for size in (2 * KILOBYTE, 20 * KILOBYTE, 200 * KILOBYTE, 2000 * KILOBYTE):
        times = max(8, min(TIMES, 4_000_000 // size))
        results = [text(size, number) for number in range(min(times, 8))]

        def hooked(*callbacks: Callable[..., object], results: list[str] = results, times: int = times) -> float:
            world.with_hook(*callbacks)
            turn, numbers, new = world.open_turn(), itertools.count(), [""]

            def read() -> None:
                new[0] = _anew(results[next(numbers) % len(results)])

            def tell() -> None:
                world.hook(turn, "read_file", {"path": f"{next(numbers)}"}, new[0])

            return measuring.microseconds_each(tell, times=times, before=read)

        def hashed(results: list[str] = results, times: int = times) -> float:
            each = itertools.cycle(results)
            return measuring.microseconds_each(
                lambda: hashlib.blake2b(next(each).encode("utf-8", "surrogatepass")).digest(), times=times
            )

        values = measuring.in_turn({"nothing": lambda: hooked(nothing), "ours": hooked, "hash": hashed}, rounds=ROUNDS)
        added = measuring.difference(values, "ours", "nothing")
        print(f"| {size // KILOBYTE:,} KB | {added:+,.1f} | {measuring.shown(values['hash'])} |", flush=True)


def _reply(*calls: tuple[str, dict[str, str]], words: str = "") -> SimpleNamespace:
    message = SimpleNamespace(
        role="assistant",
        content=words,
        tool_calls=[
            SimpleNamespace(
                id="call_1", type="function", function=SimpleNamespace(name=name, arguments=json.dumps(args))
            )
            for name, args in calls
        ]
        or None,
    )
    usage = SimpleNamespace(prompt_tokens=1000, completion_tokens=50, total_tokens=1050)
    return SimpleNamespace(
        choices=[SimpleNamespace(index=0, message=message, finish_reason="tool_calls" if calls else "stop")],
        usage=usage,
    )


def _calls(world: World) -> None:
    print("\n### A call of the local model (`llm_execution`), microseconds\n")
    print("Before each call comes a tool's result that is new, as it does in a task.\n")
    print("| the model answers | events in the session | pass-through | ours | **added** |\n|---|---|---|---|---|")
    results = [text(2 * KILOBYTE, number) for number in range(TIMES)]
    numbers = itertools.count()
    writing = {"path": "a.py", "content": text(2 * KILOBYTE, 1)}
    answers = {
        "with a tool call": _reply(("read_file", {"path": "a.py"}), words="Let me look at the file."),
        "with a file to write": _reply(("write_file", writing)),
        "with its final answer": _reply(words=f"The tests pass now.\n{text(500, 1)}"),
        "with a tool call, after 4 KB of thoughts": _reply(
            ("read_file", {"path": "a.py"}), words=f"<think>{text(4 * KILOBYTE, 1)}</think>"
        ),
        "with a final answer of 4 KB": _reply(words=f"The tests pass now.\n{text(4 * KILOBYTE, 1)}"),
    }
    world.with_hook()
    for name, answer in answers.items():
        for count in (10, 10_000):
            turn, request = _session(world, count)
            next_call = _as_host(answer)

            def call(
                *callbacks: Callable[..., object],
                turn: str = turn,
                request: dict[str, Any] = request,
                next_call: Callable[[dict[str, Any]], Any] = next_call,
            ) -> float:
                world.with_middleware(*callbacks)

                def result() -> None:
                    number = next(numbers)
                    world.hook(turn, "read_file", {"path": f"next/{number}.py"}, _anew(results[number % TIMES]))

                return measuring.microseconds_each(
                    lambda: world.call(turn, request, next_call), times=TIMES // 4, before=result
                )

            values = measuring.in_turn({"nothing": lambda: call(pass_through), "ours": call}, rounds=ROUNDS)
            added = measuring.difference(values, "ours", "nothing")
            row = " | ".join(measuring.shown(values[side]) for side in ("nothing", "ours"))
            print(f"| {name} | {count:,} | {row} | **{added:+.1f}** |", flush=True)


def _as_host(answer: object) -> Callable[[dict[str, Any]], Any]:
    from run_agent import AIAgent  # noqa: PLC0415

    agent = AIAgent(base_url="http://127.0.0.1:1/v1", api_key="none", model="local", provider="custom", quiet_mode=True)

    def next_call(_: dict[str, Any]) -> object:
        # The agent is among what the host's own call closes over, and is found there.
        return answer if agent else None

    return next_call


def _session(world: World, events: int) -> tuple[str, dict[str, Any]]:
    """Play a task of so many events (a reply, a result, …), and return its turn and next request."""
    world.with_middleware()
    turn = world.open_turn()
    request: dict[str, Any] = {
        "model": "local",
        "tools": TOOLS,
        "messages": [{"role": "system", "content": text(20 * KILOBYTE, 0)}, {"role": "user", "content": "Fix it."}],
    }
    for number in range(events // 2):
        answer = _reply(("read_file", {"path": f"{number}.py"}))
        world.call(turn, request, lambda _, answer=answer: answer)
        result = text(200, number)
        world.hook(turn, "read_file", {"path": f"{number}.py"}, result)
        request["messages"] += [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"id": f"c{number}", "type": "function", "function": {"name": "read_file", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": f"c{number}", "content": result},
        ]
    return turn, request


def _memory(world: World) -> None:
    print(f"\n### Memory of {SESSIONS:,} sessions at once\n")
    print("| events in each | all events | KB for each, files are read | commands fail |\n|---|---|---|---|")
    world.with_hook()
    world.with_middleware()
    tracemalloc.start()
    counts = (2, 20, 100, 200, 300)
    sides = [_kilobytes(world, SAMPLES[name], counts) for name in ("source code, a new call", "a command that fails")]
    for count, read, failing in zip(counts, *sides, strict=True):
        print(f"| {count} | {count * SESSIONS:,} | {read:.1f} | {failing:.1f} |", flush=True)
    tracemalloc.stop()


def _kilobytes(world: World, sample: Sample, counts: Sequence[int]) -> list[float]:
    """Return what a session takes after so many events, each second one a result like the sample."""
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    # Asked by nobody but the user: a paid call would be measured along.
    measuring.configure(Path(os.environ["HERMES_HOME"]), QUIET_BLOCK)
    request = {"model": "local", "tools": TOOLS, "messages": [{"role": "user", "content": "Fix it."}]}
    sessions = [f"memory-{before}-{number}" for number in range(SESSIONS)]
    turns = [world.open_turn(session) for session in sessions]
    done, found = 0, []
    for count in counts:
        for turn in turns:
            for number in range(done, count, 2):
                tool, args, result, more = sample(number)
                answer = _reply((tool, args), words="I cannot see it.")
                world.call(turn, request, lambda _, answer=answer: answer)
                world.hook(turn, tool, args, result, **more)
        done = count
        gc.collect()
        found.append((tracemalloc.get_traced_memory()[0] - before) / SESSIONS / KILOBYTE)
    for session in sessions:
        world.manager.invoke_hook("on_session_finalize", session_id=session)
    return found


if __name__ == "__main__":
    main()
