# ruff: noqa: TID251  # this one plays Hermes
"""One process of the soak: threads that talk to Hermes's plugin hooks as Hermes does, and to real endpoints.

`python -m benchmarks.soak.worker FOLDER FIRST LAST SEED`; HERMES_HOME and the endpoints are in the environment. A turn
is the real plugin manager, the real middleware runner, the real plugin, litellm and OpenAI's client; in one of
`_WHOLE_EVERY` it is Hermes's whole agent, which costs ten times as much. Meant to be killed at any moment.
"""

from __future__ import annotations

import contextvars
import faulthandler
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sized
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import run_agent  # Hermes's parts import each other, and this first
from hermes_cli.middleware import run_llm_execution_middleware
from hermes_cli.plugins import get_plugin_manager, invoke_hook
from openai import OpenAI
from tools.interrupt import is_interrupted, set_interrupt

from benchmarks.soak.endpoints import MODEL
from benchmarks.soak.pulse import Pulse

_WHOLE_EVERY = 100
_STATUS_SECONDS = 2.0
_MOST_CALLS = 10  # of a turn; Hermes's `max_iterations`
_TRIES = 3  # of a call; Hermes's `api_max_retries`
_KINDS = {"answers": 52, "works": 15, "stuck": 12, "loops": 5, "babbles": 5, "lies": 4, "delegates": 5}
_ASKS = {"lies": "Change the file config.toml so that the port is 8080.", "delegates": "Have this done by others."}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": "string", "description": f"The {argument}."}},
                "required": [argument],
            },
        },
    }
    for name, description, argument in (
        ("read_file", "Read a text file and return its content.", "path"),
        ("terminal", "Run a command in a shell and return what it prints.", "command"),
    )
]
_SYSTEM = "You are an assistant with tools. Work on the user's task until it is done. " * 4
_STEER = (
    "\n\n[OUT-OF-BAND USER MESSAGE — a direct message from the user, delivered mid-turn; not tool output]\nescalate\n"
    "[/OUT-OF-BAND USER MESSAGE]"
)

Message = dict[str, Any]


class Worker:
    """What the threads of one process share."""

    def __init__(self, folder: Path, slots: range, threads: int, seed: int) -> None:
        self.folder, self.slots, self.seed = folder, slots, seed
        self.pulse = Pulse(folder / "pulse", threads)
        self.stopping = threading.Event()
        self.local_url = os.environ["SOAK_LOCAL_URL"]
        self.client = OpenAI(base_url=self.local_url, api_key="none", max_retries=0, timeout=30)
        self.manager = get_plugin_manager()
        self.manager.discover_and_load()
        self.plugin = self.manager._plugin_commands["escalate"]["handler"].__self__  # noqa: SLF001
        self._done = os.open(folder / f"done-{os.getpid()}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        self._status = (folder / f"status-{slots[0]}.jsonl").open("a")

    def command(self, text: str) -> str:
        """Give a slash command as Hermes does."""
        answer: str = self.plugin.escalate(text)
        if "cannot be written" in answer or "cannot be read" in answer:
            logging.getLogger("soak").error("told to a user: %s", answer)
        return answer

    def note_done(self, tag: str, replies: int) -> None:
        """Write that a turn ended, with so many replies of the local model; at once, for we may be killed."""
        os.write(self._done, f"{tag} {replies}\n".encode())

    def run(self) -> None:
        """Run all threads until SIGTERM; then everything is let go, and looked at once more."""
        threads = [threading.Thread(target=Person(self, slot).live, name=f"person-{slot}") for slot in self.slots]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            self.write_status()
            self.stopping.wait(_STATUS_SECONDS) if not self.stopping.is_set() else time.sleep(0.2)
        self.client.close()
        # What reads a stream that was left ends with it.
        end = time.monotonic() + 15
        while threading.active_count() > 1 and time.monotonic() < end:
            time.sleep(0.1)
        self.write_status(final=True)

    def write_status(self, *, final: bool = False) -> None:
        """Write how much of everything there is."""
        adapter = self.plugin.adapter
        holders = {"adapter": adapter, "ledgers": adapter.ledgers, "guard": adapter.guard}
        status = {
            "at": time.time(),
            "pid": os.getpid(),
            "done": sum(beat.done for beat in self.pulse.beats()),
            "final": final,
            "rss_mb": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
            "threads": threading.active_count(),
            "names": Counter(thread.name.rstrip("-0123456789_() ") for thread in threading.enumerate()),
            "files": len(list(Path("/proc/self/fd").iterdir())),
            "kept": {
                f"{owner}.{name.lstrip('_')}": len(value)
                for owner, holder in holders.items()
                for name, value in vars(holder).items()
                if isinstance(value, Sized) and not isinstance(value, str)
            },
        }
        self._status.write(json.dumps(status) + "\n")
        self._status.flush()


@dataclass
class Session:
    """A conversation of one person."""

    id: str
    history: list[Message] = field(default_factory=list)
    background: list[threading.Thread] = field(default_factory=list)


class Person:
    """Somebody in a chat of his own, who asks one thing after the other."""

    def __init__(self, worker: Worker, slot: int) -> None:
        self._worker, self._slot = worker, slot
        beat = worker.pulse[slot]
        self._chance = random.Random(f"{worker.seed} {slot} {beat.session} {beat.turn}")  # noqa: S311  # dice
        self._session: Session | None = None
        self._chat = SimpleNamespace(platform="telegram", user_id=f"user-{slot}", chat_type="dm", key=f"dm:user-{slot}")

    def live(self) -> None:
        """Have sessions of some turns each, until told to stop; the first goes on where a killed process left it."""
        pulse = self._worker.pulse
        pulse[self._slot] = replace(pulse[self._slot], began=0.0)
        while not self._worker.stopping.is_set():
            beat = pulse[self._slot]
            self._session = Session(f"{self._slot}-{beat.session}")
            for _ in range(self._chance.randint(1, 6)):
                if self._worker.stopping.is_set():
                    break
                # A context of its own, as each message of a gateway has.
                contextvars.copy_context().run(self._message)
            self._finish(self._session)
            pulse[self._slot] = replace(pulse[self._slot], session=beat.session + 1, turn=0, is_off=False, tag="")

    def _message(self) -> None:
        session, pulse = self._session, self._worker.pulse
        assert session is not None  # noqa: S101  # for mypy
        invoke_hook("pre_gateway_dispatch", event=self._event("hi"), gateway=self._gateway(), session_store=self)
        self._command()
        beat = pulse[self._slot]
        tag = f"{session.id}.{beat.turn}{'!' if beat.is_off else ''}"
        beat = replace(beat, turn=beat.turn + 1, tag=tag, began=time.time())
        pulse[self._slot] = beat
        whole = self._chance.randrange(_WHOLE_EVERY) == 0 and not beat.is_off
        try:
            if whole:
                contextvars.Context().run(self._whole_turn, tag)  # on the command line, where there is no chat
            else:
                self._turn(session, tag, self._choose_kind())
        finally:
            longest = max(beat.longest, beat.seconds)
            pulse[self._slot] = replace(beat, done=beat.done + 1, whole=beat.whole + whole, began=0.0, longest=longest)

    def peek_session_id(self, key: str) -> str | None:
        """Return the chat's session, as the gateway's store does."""
        return self._session.id if self._session is not None and key == self._chat.key else None

    def _event(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(text=text, source=self._chat)

    @staticmethod
    def _gateway() -> SimpleNamespace:
        return SimpleNamespace(_session_key_for_source=lambda source: source.key)

    def _choose_kind(self) -> str:
        return self._chance.choices(list(_KINDS), list(_KINDS.values()))[0]

    def _command(self) -> None:
        beat, pulse, worker = self._worker.pulse[self._slot], self._worker.pulse, self._worker
        match self._chance.randrange(100):
            case 0 | 1:
                answer = worker.command("off")
                if answer.startswith("Off:"):
                    pulse[self._slot] = replace(beat, is_off=True)
            # A sub-agent that began while the session was off, and is at work still, would hear it, and may pay then.
            case 2 | 3 | 4 if not (beat.is_off and self._has_background()):
                pulse[self._slot] = replace(beat, is_off=False)
                worker.command("auto")
            case 5:
                worker.command("status")
            case 6:
                worker.command("why")
            case 7 | 8 | 9 | 10 if not beat.is_off:
                worker.command("")

    def _has_background(self) -> bool:
        return self._session is not None and any(thread.is_alive() for thread in self._session.background)

    def _whole_turn(self, tag: str) -> None:
        """Have Hermes's whole agent do it, in a session of its own."""
        kind = self._chance.choice(["answers", "stuck", "stuck", "loops"])
        agent = run_agent.AIAgent(
            base_url=self._worker.local_url,
            api_key="none",
            model=MODEL,
            provider="custom",
            session_id=tag.replace(".", "w"),
            platform="cli",
            enabled_toolsets=["file"],
            quiet_mode=True,
            skip_memory=True,
        )
        session_id = agent.session_id
        try:
            agent.run_conversation(f"[turn {session_id}.0 {kind}] Do it.")
        finally:
            agent.close()
            invoke_hook("on_session_finalize", session_id=session_id, platform="cli")

    def _turn(self, session: Session, tag: str, kind: str, *, platform: str = "telegram") -> None:
        ask = f"[turn {tag} {kind}] {_ASKS.get(kind, 'Tell me what the file says.')}"
        heard = ask
        if self._chance.randrange(100) == 0 and "!" not in tag and platform == "telegram":
            # What a busy gateway makes of /escalate (DESIGN.md, fact 14).
            ask, heard = f"{ask}\n\n/escalate", "/escalate"
        turn = Turn(self._worker, session.id, tag, platform, [*session.history, {"role": "user", "content": ask}])
        stop = None
        if self._chance.randrange(50) == 0:
            ident = threading.get_ident()
            stop = threading.Timer(self._chance.uniform(0.02, 2), set_interrupt, (True, ident))
            stop.start()
        turn.steer_at = self._chance.randint(1, 3) if self._chance.randrange(60) == 0 and "!" not in tag else 0
        try:
            turn.begin(heard)
            if kind == "delegates":
                self._delegate(session, tag)
            if turn.talk() or self._chance.random() < 0.5:  # Hermes leaves some failed turns without a word
                turn.end()
        finally:
            if stop is not None:
                stop.cancel()
                stop.join()
            set_interrupt(False)
        session.history = turn.messages[-6:] if turn.messages[-1]["role"] == "assistant" else []
        while session.history and session.history[0]["role"] != "user":
            session.history.pop(0)

    def _delegate(self, session: Session, tag: str) -> None:
        """Give the work to sub-agents: to one, to two at once, or to one that goes on after the session's end."""
        way = self._chance.choice(["one", "two", "later"])
        children = [self._child(session.id, f"{tag}+{number}") for number in range(2 if way == "two" else 1)]
        context = contextvars.copy_context
        threads = [threading.Thread(target=context().run, args=(child,)) for child in children]
        for thread in threads:
            thread.start()
        if way == "later":
            session.background += threads
            return
        for thread in threads:
            thread.join()

    def _child(self, parent_id: str, tag: str) -> Callable[[], None]:
        kind = self._chance.choice(["answers", "stuck", "stuck", "loops", "works"])
        child = Session(tag)
        invoke_hook("subagent_start", parent_session_id=parent_id, child_session_id=child.id)

        def run() -> None:
            turn = Turn(
                self._worker, child.id, tag, "subagent", [{"role": "user", "content": f"[turn {tag} {kind}] Do it."}]
            )
            try:
                turn.begin(turn.messages[-1]["content"])
                turn.talk()
                turn.end()
            finally:
                invoke_hook("subagent_stop", parent_session_id=parent_id, child_session_id=child.id)

        return run

    def _finish(self, session: Session) -> None:
        if self._chance.random() < 0.2:
            invoke_hook("on_session_reset", session_id=f"{session.id}x", old_session_id=session.id)
        else:
            invoke_hook("on_session_finalize", session_id=session.id, platform="telegram")
        for thread in session.background:
            thread.join()


class Turn:
    """One turn of the agent loop, as far as a plugin sees it (0.19 agent/conversation_loop.py)."""

    def __init__(self, worker: Worker, session_id: str, tag: str, platform: str, messages: list[Message]) -> None:
        self.messages = messages
        self.steer_at = 0
        self._worker = worker
        self._known = {"session_id": session_id, "turn_id": tag, "task_id": tag, "platform": platform, "model": MODEL}
        self._replies = 0

    def begin(self, heard: str) -> None:
        """Tell that the user has said something."""
        invoke_hook("pre_llm_call", user_message=heard, conversation_history=self.messages[:-1], **self._known)

    def talk(self) -> bool:
        """Call the model, do what it wants, and so on; return whether it came to an answer."""
        for number in range(_MOST_CALLS):
            message = self._call(number)
            if message is None:
                return False
            calls = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": call.function.arguments},
                }
                for call in message.tool_calls or ()
            ]
            said: Message = {"role": "assistant", "content": message.content or ""}
            self.messages.append({**said, "tool_calls": calls} if calls else said)
            if not calls:
                break
            for call in calls:
                self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": self._use(call)})
            if number + 1 == self.steer_at:
                self.messages[-1]["content"] += _STEER
        self._hook("transform_llm_output", response_text=self.messages[-1].get("content") or "(none)")
        return True

    def end(self) -> None:
        """Tell that the turn is over."""
        self._hook("on_session_end", completed=True, interrupted=False)
        self._worker.note_done(str(self._known["turn_id"]), self._replies)

    def _call(self, number: int) -> Any:
        request = {
            "model": MODEL,
            "messages": [{"role": "system", "content": _SYSTEM}, *self.messages],
            "tools": _TOOLS,
        }
        for _ in range(_TRIES):
            try:
                response = run_llm_execution_middleware(
                    request,
                    self._ask,
                    original_request=request,
                    provider="custom",
                    base_url=self._worker.local_url,
                    api_mode="chat_completions",
                    api_call_count=number,
                    api_request_id=f"{self._known['turn_id']}/{number}",
                    **self._known,
                )
            except InterruptedError:
                return None
            except Exception:  # noqa: BLE001, S112  # whatever the endpoint did, Hermes tries again
                continue
            message = response.choices[0].message
            # As Hermes: an empty answer is no answer.
            if message.content or message.tool_calls:
                return message
        return None

    def _ask(self, request: dict[str, Any]) -> Any:
        if is_interrupted():
            raise InterruptedError
        response = self._worker.client.chat.completions.create(**request)
        self._replies += 1
        return response

    def _use(self, call: dict[str, Any]) -> str:
        """Do what the model wants, and tell what came of it; return the result."""
        name = call["function"]["name"]
        try:
            path = json.loads(call["function"]["arguments"])["path"]
        except (ValueError, KeyError, TypeError):
            return json.dumps({"error": f"no such tool, or no such arguments: {name}"})  # the loop's; no hook fires
        found = path.startswith("found")
        content = "the same as ever" if "same" in path else f"what {path} says, at {time.time_ns()}"
        result = json.dumps({"content": content} if found else {"error": f"File not found: {path}"})
        status = {"status": "ok"} if found else {"status": "error", "error_message": f"File not found: {path}"}
        self._hook("post_tool_call", tool_name=name, args={"path": path}, result=result, **status)
        return result

    def _hook(self, name: str, **arguments: Any) -> None:
        invoke_hook(name, **self._known, **arguments)


def main() -> None:
    """Work until SIGTERM."""
    folder, first, last, threads, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
    handler = logging.FileHandler(folder / f"log-{os.getpid()}.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(threadName)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("hermes_fallback").setLevel(logging.INFO)
    faulthandler.register(signal.SIGUSR1, file=(folder / f"stacks-{os.getpid()}.txt").open("w"), all_threads=True)
    import agent.conversation_loop as loop  # noqa: PLC0415  # after run_agent

    # Hermes waits seconds between its own tries; a soak need not.
    loop.jittered_backoff = lambda *_, **__: 0.0
    worker = Worker(folder, range(first, last), threads, seed)
    signal.signal(signal.SIGTERM, lambda *_: worker.stopping.set())
    worker.run()


if __name__ == "__main__":
    main()
