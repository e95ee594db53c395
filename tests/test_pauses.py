"""While litellm is loaded for later, a local model that needs all cores has them; nobody else waits for that."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from hermes_fallback import lazy_litellm
from hermes_fallback.pauses import Pauses, local_calls
from tests.world import World

CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")

BEGINNING = """\
import faulthandler, gc, os, sys, threading, time
faulthandler.dump_traceback_later(50, exit=True)  # where it hangs
from hermes_fallback import lazy_litellm, pauses
from hermes_fallback.config import Tier

looks = []
pauses.Pauses._looks_full = lambda self: looks.append(1) or {is_full}
interval = sys.getswitchinterval()
pauses.local_calls.add("a call")
lazy_litellm.warm([Tier("openai", "gpt-5.4")])

def is_loaded():
    return hasattr(sys.modules.get("litellm"), "completion")

def wait_for(condition):
    while not condition():
        time.sleep(0.02)

wait_for(lambda: looks)
"""

IN_A_PAUSE = """\
time.sleep(1.0)
print(is_loaded(), gc.isenabled(), sys.getswitchinterval() == interval, os.environ.get("LITELLM_MODE"))
"""

ENDS = {
    "the call ends": "pauses.local_calls.clear()\nwait_for(lambda: threading.active_count() == 1)\n",
    "an escalation needs it": "lazy_litellm.load()\n",
    "another program imports it": "import litellm\nlitellm.completion\n",
    "the process ends": "print(True, gc.isenabled())\nsys.exit()\n",
}


def run(code: str, *, is_full: bool) -> list[str]:
    """Run a program that loads litellm in the background while a local model is being called; return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "LITELLM_MODE"}
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING.format(is_full=is_full) + code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("end", ENDS)
def test_a_pause(end: str) -> None:
    """Nothing is loaded while the call is being made, all is as before; and it ends when somebody waits for it."""
    paused, after = run(f"{IN_A_PAUSE}{ENDS[end]}print(is_loaded(), gc.isenabled())\n", is_full=True)
    assert paused == "False True True None"
    assert after == "True True"


def test_no_pause_where_a_core_is_free() -> None:
    """One look, and then it is loaded while calls are being made."""
    assert run("wait_for(is_loaded)\nprint(len(looks))\n", is_full=False) == ["1"]


def test_other_threads_import_as_ever() -> None:
    """What somebody else imports, of whatever package, is found as if there were no pauses."""
    pauses = Pauses("json", until=threading.Event(), outside=lazy_litellm._as_before)  # noqa: SLF001
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(pauses.find_spec("json.tool", json.__path__)))
    thread.start()
    thread.join()
    assert found == [None]
    assert pauses.find_spec("csv", None) is None
    assert pauses.find_spec("json.tool", json.__path__) is not None


@pytest.mark.skipif(
    CPU_LIMIT.exists() and not CPU_LIMIT.read_text().startswith("max"),
    reason="in this container the cores are never busy",
)
def test_a_full_machine_is_recognised() -> None:
    """With a busy program for each core, it is."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        time.sleep(0.5)
        pauses = Pauses("litellm", until=threading.Event(), outside=lazy_litellm._as_before)  # noqa: SLF001
        assert pauses._looks_full()  # noqa: SLF001
    finally:
        for one in busy:
            one.kill()
            one.wait()


def test_a_machine_with_a_free_core_is_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is that cores idle, and for how long: a tenth of the time of all of them."""
    idle = iter([100.0, 100.0 + 0.2 * 0.15 * (os.cpu_count() or 1)])
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(idle=next(idle)))
    monkeypatch.setattr("hermes_fallback.pauses.time.monotonic", iter([0.0, 0.15]).__next__)
    assert not Pauses("litellm", until=threading.Event(), outside=lazy_litellm._as_before)._looks_full()  # noqa: SLF001


def test_a_fault_of_the_pauses_leaves_nothing_half_loaded() -> None:
    """Where pausing fails, in whatever version of Python, litellm is loaded without."""
    fails = "def fails():\n    raise AttributeError('not in this Python')\npauses._is_somebody_waiting = fails\n"
    waits = "wait_for(lambda: threading.active_count() == 1)\nprint(is_loaded(), gc.isenabled())\n"
    assert run(fails + waits, is_full=True) == ["True True"]


def test_calls_of_the_local_model_are_known(world: World) -> None:
    """While one is being made, and not after it, however it ends."""
    seen: list[int] = []

    def answers(_request: object, _index: int) -> object:
        seen.append(len(local_calls))
        message = "the endpoint breaks off"
        raise ConnectionResetError(message)

    before = len(local_calls)
    world.local.script = answers  # type: ignore[assignment]
    world.configure("model_routing: {fallback: {provider: openai, model: gpt-5.4}}\n")
    world.ask()
    assert set(seen) == {before + 1}
    assert len(local_calls) == before


def test_no_pause_is_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call whose end we were not told of does not keep litellm out."""
    monkeypatch.setattr("hermes_fallback.pauses._LONGEST_SECONDS", 0.1)
    monkeypatch.setattr(Pauses, "_looks_full", lambda _: True)
    never = threading.Event()
    pauses = Pauses("json", until=never, outside=lazy_litellm._as_before)  # noqa: SLF001
    thread = threading.Thread(target=pauses.may_come, daemon=True)
    local_calls.add(never)
    try:
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
    finally:
        local_calls.remove(never)
        never.set()


def test_the_end_of_the_pauses_disturbs_no_import() -> None:
    """A thread that looks for a module at that moment finds it: in an escalation, litellm's own."""
    looking, go_on = threading.Event(), threading.Event()

    class Slow(MetaPathFinder):
        def find_spec(self, fullname: str, *_: object) -> None:
            if fullname == "this":
                looking.set()
                go_on.wait(20)

    found: list[object] = []
    pauses, slow = Pauses("json", until=threading.Event(), outside=lazy_litellm._as_before), Slow()  # noqa: SLF001
    sys.modules.pop("this", None)
    thread = threading.Thread(target=lambda: found.append(importlib.util.find_spec("this")))
    try:
        with pauses.hooked_in():
            sys.meta_path.insert(sys.meta_path.index(PathFinder), slow)
            thread.start()
            assert looking.wait(20)
        go_on.set()
        thread.join()
    finally:
        sys.meta_path = [finder for finder in sys.meta_path if finder not in (slow, pauses)]
    assert found[0] is not None
