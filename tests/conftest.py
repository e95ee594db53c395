"""Fixtures; what they are made of is in `world.py`."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.world import HOME, ROOT, World


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(ROOT, ignore_errors=True)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """Hermes with the issue's configuration, between two endpoints; the working folder is empty."""
    shutil.rmtree(HOME / "hermes-fallback", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HERMES_CRON_SESSION", raising=False)  # left by cron jobs in this process
    caplog.set_level(logging.INFO, logger="hermes_fallback")
    # Hermes waits seconds between its own tries; a test need not.
    monkeypatch.setattr("agent.conversation_loop.jittered_backoff", lambda *_, **__: 0.0)
    with ExitStack() as stack:
        made = World(stack, monkeypatch, tmp_path)
        made.load()
        yield made


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine is in Berlin."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()
