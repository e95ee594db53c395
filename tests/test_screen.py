"""What a person sees who types into the real interactive `hermes`, on a terminal of 110 × 50 characters."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pexpect
import pyte
import pytest

from hermes_fallback import host
from tests.endpoints import Answer, Endpoint, call, in_order, say
from tests.world import ISSUE_BLOCK, KEY, config_text

HERMES = Path(sys.executable).with_name("hermes")
TEXT_CALL = 'I will read it.\n<tool_call>\n{"name": "read_file", "arguments": {"path": "/etc/hostname"}}\n</tool_call>'


class Terminal:
    """The real hermes in a pseudo-terminal, and the screen it draws."""

    def __init__(self, home: Path, env: dict[str, str], *arguments: str) -> None:
        self._screen = pyte.HistoryScreen(110, 50, history=2000)
        self._stream = pyte.ByteStream(self._screen)
        self._child: pexpect.spawn[bytes] = pexpect.spawn(
            str(HERMES),
            list(arguments),
            cwd=str(home),
            env={**os.environ, **env, "TERM": "xterm-256color"},
            dimensions=(50, 110),
        )

    def shows(self, text: str, *, within: float = 40.0) -> str:
        """Wait until the text stands on the screen or above it; return all that does."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            self._read()
            seen = self.seen()
            if text in seen:
                return seen
        pytest.fail(f"{text!r} did not appear; the screen:\n{self.seen()}")

    def seen(self) -> str:
        """Everything on the screen and above it, with lines that were wrapped joined by the reader."""
        above = ["".join(line[x].data for x in range(110)).rstrip() for line in self._screen.history.top]
        return "\n".join([*above, *(line.rstrip() for line in self._screen.display)])

    def type(self, text: str) -> None:
        """Type a line and press Enter."""
        self._child.send(text)
        time.sleep(0.3)
        self._child.send("\r")

    def choose(self, number: int) -> None:
        """Choose an entry of the list that Hermes asks with."""
        for _ in range(number - 1):
            self._child.send("\x1b[B")
            time.sleep(0.3)
        self._child.send("\r")

    def press(self, key: str) -> None:
        """Press one control key."""
        self._child.sendcontrol(key)

    def close(self) -> None:
        """Leave hermes."""
        self._child.close(force=True)

    def _read(self) -> None:
        try:
            # pyte leaves out whatever is written behind a variation selector.
            self._stream.feed(self._child.read_nonblocking(65536, timeout=0.2).replace(b"\xef\xb8\x8f", b""))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            pytest.fail(f"hermes ended; the screen:\n{self.seen()}")


def local_model(request: dict[str, Any], index: int) -> Answer:
    """Answers a greeting, prints tool calls as text, or works in slow steps, as the user's last words say."""
    asked = [str(message["content"]) for message in request["messages"] if message["role"] == "user"][-1]
    if "as text" in asked:
        return say(TEXT_CALL)
    if "slow" in asked:
        return call("terminal", command=f"sleep 1; echo step {index}")
    return say("Greetings from the local model.")


def paid_model(request: dict[str, Any], _index: int) -> Answer:
    """Answers at once, or at length when asked to."""
    long = "at length" in str(request["messages"][-1])
    return say("The stronger model speaks slowly.\n" * 60, hold_seconds=0.1) if long else say("The stronger answer.")


@contextmanager
def running(home: Path, block: str, *arguments: str) -> Iterator[Terminal]:
    """The interactive hermes between two endpoints."""
    home.mkdir()
    with Endpoint(local_model) as local, Endpoint(paid_model, strict=True, key=KEY) as paid:
        (home / "config.yaml").write_text(config_text(local.url, block))
        env = {"HERMES_HOME": str(home), "HOME": str(home), "OPENAI_BASE_URL": paid.url, "OPENAI_API_KEY": KEY}
        made = Terminal(home, env, *arguments)
        try:
            made.shows("❯")
            yield made
        finally:
            made.close()


@pytest.mark.skipif(not host.can_ask(), reason="this Hermes cannot ask")
@pytest.mark.parametrize(("answer", "arguments"), [("o", ()), ("d", ()), (None, ("-Q",))])
def test_a_single_query_asks_for_money(tmp_path: Path, answer: str | None, arguments: tuple[str, ...]) -> None:
    """`hermes chat -q` on a terminal puts the question there, and waits for no screen; `-Q` is for scripts."""
    home = tmp_path / "home"
    home.mkdir()
    block = "model_routing: {fallback: {provider: openai, model: gpt-5.4}, fallback_policy: {confirm: always}}\n"

    def stuck(request: dict[str, Any], _index: int) -> Answer:
        done = sum(message["role"] == "tool" for message in request["messages"])
        return call("read_file", path=f"/nowhere/{done}") if done < 3 else say("The local model gave up.")

    with Endpoint(stuck) as local, Endpoint(paid_model, strict=True, key=KEY) as paid:
        (home / "config.yaml").write_text(config_text(local.url, block))
        env = {"HERMES_HOME": str(home), "HOME": str(home), "OPENAI_BASE_URL": paid.url, "OPENAI_API_KEY": KEY}
        terminal = Terminal(home, env, "chat", "-q", "get stuck", *arguments)
        try:
            began = time.monotonic()
            if answer is not None:
                terminal.shows("Let openai/gpt-5.4 take over from qwen3.6:9b, because read_file failed 3 times")
                terminal.shows("Choice")
                terminal.type(answer)
            terminal.shows("The stronger answer." if answer == "o" else "The local model gave up.")
            assert time.monotonic() - began < 50, "a minute is how long Hermes waits for an answer"
        finally:
            terminal.close()
        assert len(paid.requests) == (answer == "o")


@pytest.mark.skipif(not host.can_ask(), reason="this Hermes cannot ask")
@pytest.mark.parametrize("stdin", ["</dev/null", "<&-"])
def test_a_script_is_not_asked(tmp_path: Path, stdin: str) -> None:
    """Where there is no terminal, `hermes chat -q` takes nobody's answer for no, at once."""
    home = tmp_path / "home"
    home.mkdir()
    block = "model_routing: {fallback: {provider: openai, model: gpt-5.4}, fallback_policy: {confirm: always}}\n"
    script = in_order([*(call("read_file", path=f"/nowhere/{number}") for number in range(3)), say("It gave up.")])
    with Endpoint(script) as local, Endpoint(paid_model, strict=True, key=KEY) as paid:
        (home / "config.yaml").write_text(config_text(local.url, block))
        env = {"HERMES_HOME": str(home), "HOME": str(home), "OPENAI_BASE_URL": paid.url, "OPENAI_API_KEY": KEY}
        command = f"exec {HERMES} chat -q 'get stuck' {stdin}"
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=home,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
        )
        assert paid.requests == []
    assert "It gave up." in done.stdout
    assert "nobody is there to be asked" in (home / "logs" / "agent.log").read_text()
    assert "ERROR" not in (home / "logs" / "agent.log").read_text()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """The interactive hermes with the configuration of the README."""
    with running(tmp_path / "home", ISSUE_BLOCK) as made:
        yield made


def test_escalate_typed_into_hermes(terminal: Terminal) -> None:
    """/escalate before the first message: that message goes to the stronger model, the one after it does not."""
    terminal.type("/escalate")
    terminal.shows("openai/gpt-5.4 takes over with your next message, until that task is done.")
    terminal.type("hello")
    seen = terminal.shows("helped, because you asked for it with /escalate (1 call, 100 tokens in, 20 out")
    assert "⚡ qwen3.6:9b → openai/gpt-5.4: you asked for it with /escalate" in seen
    assert seen.count("The stronger answer.") == 1
    terminal.type("hello again")
    terminal.shows("Greetings from the local model.")
    terminal.type("/escalate status")
    terminal.shows("The local model answers; when it gets stuck, openai/gpt-5.4 takes over.")
    terminal.type("/escalate why")
    terminal.shows("you asked for it with /escalate [user_request]")
    terminal.type("/escalate off")
    terminal.shows("Off: the local model answers alone in this session")
    terminal.type("/escalate nonsense")
    terminal.shows("/escalate does not know “nonsense”.")


def test_garbage_is_followed_by_the_answer(terminal: Terminal) -> None:
    """The tool call that was printed as text is closed off; why, the better answer and its cost stand below it, once."""
    terminal.type("call it as text")
    seen = terminal.shows("helped, because the local model gave a tool call written as text")
    order = [
        "</tool_call>",
        "⚡ qwen3.6:9b → openai/gpt-5.4: the local model gave",
        "The stronger answer.",
        "⚡ openai/",
    ]
    places = [seen.index(text) for text in order]
    assert places == sorted(places)
    assert seen.count("The stronger answer.") == seen.count("</tool_call>") == 1


def test_steer_escalate_and_stop(terminal: Terminal) -> None:
    """`/steer escalate` takes over in mid-turn; Ctrl+C stops the stronger model, and the next message is local."""
    terminal.type("go in slow steps")
    terminal.shows("sleep 1")
    terminal.type("/steer escalate")
    terminal.shows("⚡ openai/gpt-5.4 helped, because you asked for it with /escalate")
    terminal.type("/escalate")
    terminal.shows("takes over with your next message")
    terminal.type("answer at length")
    terminal.shows("speaks slowly")
    terminal.press("c")
    terminal.shows("nterrupted", within=5.0)
    terminal.type("hello")
    terminal.shows("Greetings from the local model.")


ASKING = """\
model_routing:
  fallback: {provider: openai, model: gpt-5.4}
  fallback_policy: {confirm: always, budget: {per_day_usd: 2}}
"""


@pytest.mark.skipif(not host.can_ask(), reason="this Hermes cannot ask")
def test_a_person_is_asked_for_money(tmp_path: Path) -> None:
    """Hermes's own question names model, reason, tokens, dollars and what is left; a yes is paid, a no stays local."""
    with running(tmp_path / "home", ASKING) as terminal:
        terminal.type("call it as text")
        seen = terminal.shows("Let openai/gpt-5.4 take over from qwen3.6:9b")
        for words in ("tool call written as text?", "tokens in and up to 16,384", "$2.0000 of $2 today is left"):
            assert words in " ".join(seen.replace("│", " ").split())
        assert "Always" not in seen
        terminal.choose(1)
        seen = terminal.shows("⚡ openai/gpt-5.4 helped, because the local model gave a tool call written as text")
        assert seen.count("The stronger answer.") == 1
        # The question stands below what was streamed, not in its middle.
        assert seen.index("</tool_call>") < seen.index("→ allowed once")
        terminal.type("call it as text once more")
        terminal.shows("to select, Enter to confirm")
        terminal.choose(3)
        terminal.shows("⚡ openai/gpt-5.4 is not asked: not allowed")
        terminal.shows("⚡ qwen3.6:9b goes on")
        terminal.type("/escalate status")
        terminal.shows("Of the budget, $1.99")


@pytest.mark.skipif(not host.can_ask(), reason="this Hermes cannot ask")
def test_yolo_does_not_answer_for_money(tmp_path: Path) -> None:
    """`hermes --yolo` runs commands without asking, and pays for nothing."""
    with running(tmp_path / "home", ASKING, "--yolo") as terminal:
        terminal.type("call it as text")
        seen = terminal.shows("⚡ openai/gpt-5.4 is not asked: yolo does not answer for money")
        assert "The stronger answer." not in seen
