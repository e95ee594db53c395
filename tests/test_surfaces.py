"""Wherever Hermes runs: the TUI's gateway and ACP over their pipes, the API server, cron. Nothing waits for a person."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hermes_fallback import host
from tests.endpoints import Answer, Endpoint, call, say
from tests.gateway_chats import Gateway
from tests.test_escalation import missing, rows
from tests.world import ISSUE_BLOCK, KEY, World, config_text


class Pipe:
    """A program that speaks JSON-RPC, a message a line, on its standard input and output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.heard: list[dict[str, Any]] = []
        self._count = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, method: str, **params: Any) -> Any:
        """Call a method; return its result. A session that is still busy (TUI, 4009) is asked again."""
        for _ in range(50):
            answer = self._ask(method, params)
            if answer.get("error", {}).get("code") != 4009:
                break
            time.sleep(0.1)
        assert "error" not in answer, answer
        return answer["result"]

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        self.send(id=self._count, method=method, params=params)
        return self.hear(lambda one: one.get("id") == self._count and "method" not in one)

    def send(self, **message: Any) -> None:
        """Send what nobody answers: a notification, or the answer to a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self._process.stdin.flush()

    def hear(self, wanted: Any, within: float = 60.0) -> dict[str, Any]:
        """Wait for a message."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            try:
                message = self._lines.get(timeout=0.5)
            except queue.Empty:
                assert self._process.poll() is None, "the program ended"
                continue
            self.heard.append(message)
            if wanted(message):
                return message
        shown = "\n".join(json.dumps(one)[:300] for one in self.heard[-20:])
        msg = f"not heard within {within} s; last heard:\n{shown}"
        raise AssertionError(msg)

    def end(self) -> None:
        """End the program; its pipe may be closed then, for nobody reads it."""
        self._process.kill()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a line that is not meant for us
            self._lines.put(message)


@contextmanager
def program(module: str, home: Path, *, local: Endpoint, paid: Endpoint, block: str = ISSUE_BLOCK) -> Iterator[Pipe]:
    """Run a module of Hermes between two endpoints."""
    home.mkdir()
    (home / "config.yaml").write_text(config_text(local.url, block))
    env = {
        **os.environ,
        "HERMES_HOME": str(home),
        "HOME": str(home),
        "OPENAI_BASE_URL": paid.url,
        "OPENAI_API_KEY": KEY,
    }
    with subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=home,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        pipe = Pipe(process)
        try:
            yield pipe
        finally:
            pipe.end()


def stuck_or_not(request: dict[str, Any], index: int) -> Answer:
    """Gets stuck when the user says so."""
    words = [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]
    return call("read_file", path=f"/nowhere/{index}") if "stuck" in words else say("local answer")


def test_tui(tmp_path: Path) -> None:
    """The TUI shows the switch, the streamed answer and the cost; /escalate typed there finds the session."""
    with (
        Endpoint(stuck_or_not) as local,
        Endpoint(lambda *_: say("paid answer"), strict=True, key=KEY) as paid,
        program("tui_gateway.entry", tmp_path / "home", local=local, paid=paid) as tui,
    ):
        session = tui.ask("session.create", cols=100)["session_id"]
        tui.ask("prompt.submit", session_id=session, text="get stuck")
        tui.hear(lambda one: one.get("params", {}).get("type") == "message.complete")
        shown = json.dumps(tui.heard, ensure_ascii=False)
        assert "⚡ qwen3.6:9b → openai/gpt-5.4: read_file failed 3 times: file not found" in shown
        assert "paid answer" in shown
        assert "⚡ openai/gpt-5.4 helped, because read_file failed 3 times" in shown
        status = tui.ask("slash.exec", session_id=session, command="/escalate status")
        assert "openai/gpt-5.4: 1 call, 100 tokens in" in status["output"]
        tui.ask("slash.exec", session_id=session, command="/escalate")
        before = len(paid.requests)
        tui.heard.clear()
        tui.ask("prompt.submit", session_id=session, text="hello")
        tui.hear(lambda one: one.get("params", {}).get("type") == "message.complete")
        assert len(paid.requests) == before + 1


def test_tui_with_two_sessions(tmp_path: Path) -> None:
    """What is typed in one session of the TUI is meant for it, whichever spoke last; so is what runs beside it."""
    with (
        Endpoint(stuck_or_not) as local,
        Endpoint(lambda *_: say("paid answer"), strict=True, key=KEY) as paid,
        program("tui_gateway.entry", tmp_path / "home", local=local, paid=paid) as tui,
    ):

        def ask(session: str, text: str) -> int:
            before = len(paid.requests)
            tui.ask("prompt.submit", session_id=session, text=text)
            tui.hear(lambda one: one.get("params", {}).get("type") == "message.complete")
            return len(paid.requests) - before

        def beside(session: str, text: str) -> tuple[int, str]:
            before = len(paid.requests)
            tui.ask("prompt.background", session_id=session, text=text)
            done = tui.hear(lambda one: one.get("params", {}).get("type") == "background.complete")
            return len(paid.requests) - before, done["params"]["payload"]["text"]

        first, second = (tui.ask("session.create", cols=100)["session_id"] for _ in range(2))
        # Before its first message as well, and by either way in which the TUI hands a command on.
        assert tui.ask("slash.exec", session_id=first, command="/escalate off")["output"].startswith("Off")
        assert (ask(first, "hello"), ask(second, "hello")) == (0, 0)
        assert (ask(first, "get stuck"), ask(second, "get stuck")) == (0, 1)
        assert beside(first, "get stuck")[0] == 0
        cost, answer = beside(second, "get stuck")
        assert cost == 1
        assert "⚡ openai/gpt-5.4 helped, because read_file failed 3 times" in answer
        status = tui.ask("slash.exec", session_id=second, command="/escalate status")["output"]
        assert status.count("openai/gpt-5.4: 1 call") == 2, "what ran beside it, too"
        tui.ask("command.dispatch", session_id=first, name="escalate", arg="auto")
        tui.ask("command.dispatch", session_id=second, name="escalate", arg="off")
        assert (ask(second, "get stuck"), ask(first, "get stuck")) == (0, 1)


def test_acp(tmp_path: Path) -> None:
    """An editor that drives Hermes by ACP gets the stronger model's answer, and who gave it."""
    with (
        Endpoint(stuck_or_not) as local,
        Endpoint(lambda *_: say("paid answer"), strict=True, key=KEY) as paid,
        program("acp_adapter", tmp_path / "home", local=local, paid=paid) as editor,
    ):
        editor.ask("initialize", protocolVersion=1, clientCapabilities={})
        session = editor.ask("session/new", cwd=str(tmp_path), mcpServers=[])["sessionId"]
        editor.ask("session/prompt", sessionId=session, prompt=[{"type": "text", "text": "get stuck"}])
        updates = [one["params"]["update"] for one in editor.heard if one.get("method") == "session/update"]

        def said(kind: str) -> str:
            return "".join(one["content"]["text"] for one in updates if one["sessionUpdate"] == kind)

        assert "⚡ qwen3.6:9b → openai/gpt-5.4: read_file failed 3 times: file not found" in said("agent_thought_chunk")
        answer = said("agent_message_chunk")
        assert answer.count("paid answer") == 1
        assert answer.count("⚡ openai/gpt-5.4 helped, because read_file failed 3 times: file not found") == 1


def test_acp_knows_the_folder(tmp_path: Path) -> None:
    """A type of task by folder goes by that of the editor's session, not by the one that Hermes was started in."""
    code, other = tmp_path / "code", tmp_path / "other"
    code.mkdir()
    other.mkdir()
    kinds = [{"name": "coding", "match": {"cwd": [str(code)]}, "start_on": "fallback"}]
    routing = {"fallback": {"provider": "openai", "model": "gpt-5.4"}, "task_types": kinds}
    with (
        Endpoint(stuck_or_not) as local,
        Endpoint(lambda *_: say("paid answer"), strict=True, key=KEY) as paid,
        program(
            "acp_adapter", tmp_path / "home", local=local, paid=paid, block=json.dumps({"model_routing": routing})[1:-1]
        ) as editor,
    ):
        editor.ask("initialize", protocolVersion=1, clientCapabilities={})
        for folder, cost in ((other, 0), (code, 1)):
            before = len(paid.requests)
            session = editor.ask("session/new", cwd=str(folder), mcpServers=[])["sessionId"]
            editor.ask("session/prompt", sessionId=session, prompt=[{"type": "text", "text": "hello"}])
            assert len(paid.requests) - before == cost


ASKING = "model_routing: {fallback: {provider: openai, model: gpt-5.4}, fallback_policy: {confirm: first_in_session}}\n"
QUESTION = "Let openai/gpt-5.4 take over from qwen3.6:9b, because read_file failed 3 times: file not found?"


def stuck_then_not(request: dict[str, Any], _index: int) -> Answer:
    """Fails three times, then answers."""
    done = sum(message["role"] == "tool" for message in request["messages"])
    return call("read_file", path=f"/nowhere/{done}") if done < 3 else say("local answer")


@pytest.mark.skipif(not host.can_ask(), reason="this Hermes cannot ask")
@pytest.mark.parametrize(("choice", "answer"), [("once", "paid answer"), ("deny", "local answer")])
def test_tui_asks_for_money(tmp_path: Path, choice: str, answer: str) -> None:
    """The TUI shows the question; what the person chooses is what happens."""
    with (
        Endpoint(stuck_then_not) as local,
        Endpoint(lambda *_: say("paid answer"), strict=True, key=KEY) as paid,
        program("tui_gateway.entry", tmp_path / "home", local=local, paid=paid, block=ASKING) as tui,
    ):
        session = tui.ask("session.create", cols=100)["session_id"]
        tui.ask("prompt.submit", session_id=session, text="get stuck")
        asked = tui.hear(lambda one: one.get("params", {}).get("type") == "approval.request")
        assert QUESTION in json.dumps(asked, ensure_ascii=False)
        assert paid.requests == []
        tui.ask("approval.respond", session_id=session, choice=choice)
        tui.hear(lambda one: one.get("params", {}).get("type") == "message.complete")
        assert answer in json.dumps(tui.heard, ensure_ascii=False)
        assert len(paid.requests) == (choice == "once")


@pytest.mark.skipif(not host.can_ask(), reason="this Hermes cannot ask")
def test_acp_asks_for_money(tmp_path: Path) -> None:
    """An editor gets the question as a request for permission."""
    with (
        Endpoint(stuck_then_not) as local,
        Endpoint(lambda *_: say("paid answer"), strict=True, key=KEY) as paid,
        program("acp_adapter", tmp_path / "home", local=local, paid=paid, block=ASKING) as editor,
    ):
        editor.ask("initialize", protocolVersion=1, clientCapabilities={})
        session = editor.ask("session/new", cwd=str(tmp_path), mcpServers=[])["sessionId"]
        prompt = [{"type": "text", "text": "get stuck"}]
        editor.send(id=99, method="session/prompt", params={"sessionId": session, "prompt": prompt})
        asked = editor.hear(lambda one: one.get("method") == "session/request_permission")
        assert QUESTION in json.dumps(asked, ensure_ascii=False)
        (option,) = [one["optionId"] for one in asked["params"]["options"] if one["kind"] == "allow_once"]
        editor.send(id=asked["id"], result={"outcome": {"outcome": "selected", "optionId": option}})
        editor.hear(lambda one: one.get("id") == 99 and "method" not in one)
        assert "paid answer" in json.dumps(editor.heard, ensure_ascii=False)


def test_api_server(world: World) -> None:
    """A program that asks Hermes by HTTP gets the stronger model's answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world.local.script = stuck_or_not
    platform = f"platforms: {{api_server: {{enabled: true, extra: {{host: 127.0.0.1, port: {port}, key: secret-0123456789}}}}}}\n"
    with Gateway(config_text(world.local.url, more=platform)):
        request = urllib.request.Request(  # loopback
            f"http://127.0.0.1:{port}/v1/chat/completions",
            data=json.dumps({"model": "hermes", "messages": [{"role": "user", "content": "get stuck"}]}).encode(),
            headers={"Content-Type": "application/json", "Authorization": "Bearer secret-0123456789"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            answer = json.load(response)["choices"][0]["message"]["content"]
    assert answer.startswith("paid answer")
    assert "⚡ openai/gpt-5.4 helped, because read_file failed 3 times: file not found (1 call" in answer
    assert [row["trigger"] for row in rows()] == ["repeated_tool_failure"]


def test_a_turn_that_waits_is_not_idle(world: World) -> None:
    """Cron, and a parent of sub-agents, ends a turn of which Hermes has heard nothing for long."""
    agent = world.agent()
    heard: list[tuple[str, bool]] = []

    def slow(_request: dict[str, Any], _index: int) -> Answer:
        came, waited, activity = time.monotonic(), 0.0, agent.get_activity_summary()
        # Hermes rounds to a tenth of a second.
        while waited < 20 and activity["seconds_since_activity"] + 0.2 > waited:
            time.sleep(0.05)
            activity, waited = agent.get_activity_summary(), time.monotonic() - came
        heard.append((activity["last_activity_desc"], waited < 20))
        return say("paid answer")

    world.local.script, world.paid.script = missing, slow
    assert world.ask(agent=agent)["final_response"].startswith("paid answer")
    assert heard == [("waiting for openai/gpt-5.4", True)]


def test_cron(world: World) -> None:
    """A job that runs with nobody there is escalated like any other task, and waits for nobody."""
    from cron.scheduler import run_job  # noqa: PLC0415

    world.local.script = missing
    succeeded, _, answer, error = run_job({"id": "job1", "name": "a job", "prompt": "get stuck", "schedule": {}})
    assert (succeeded, error) == (True, None)
    assert answer.startswith("paid answer")
    assert "⚡ openai/gpt-5.4 helped" in answer
    assert [row["trigger"] for row in rows()] == ["repeated_tool_failure"]
