"""Fixtures; what they are made of is in `world.py`."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from hermes_fallback import lazy_litellm
from hermes_fallback.config import Tier
from tests.world import HOME, ROOT, World, files_below, leaks, opened


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """No test passes that prints or logs a key, or has one in the words of its failure."""
    report = yield
    return without_keys(report)


def without_keys(report: pytest.TestReport) -> pytest.TestReport:
    """The report, of a failure if a key stands in it."""
    said = [report.longreprtext, *(text for _, text in report.sections)]
    if found := leaks(said):
        report.outcome = "failed"
        report.sections = []
        report.longrepr = f"a key got out: {found}"
    return report


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end, no key is in any file of any test."""
    yield
    found = leaks((), files=(*files_below(ROOT), *files_below(tmp_path_factory.getbasetemp())))
    assert not found, found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """Hermes with the issue's configuration, between two endpoints; the working folder is empty."""
    shutil.rmtree(HOME / "hermes-fallback", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HERMES_CRON_SESSION", raising=False)  # left by cron jobs in this process
    caplog.set_level(logging.DEBUG, logger="hermes_fallback")
    # Hermes waits seconds between its own tries; a test need not.
    monkeypatch.setattr("agent.conversation_loop.jittered_backoff", lambda *_, **__: 0.0)
    with opened(monkeypatch, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def warmed() -> None:
    """Litellm is loaded, with what its first call loads, for tests in which an endpoint has a second or two to answer."""
    lazy_litellm._warm(Tier("openai", "gpt-5.4"))  # noqa: SLF001


@pytest.fixture
def raw_tool() -> Iterator[list[str]]:
    """A tool that gives what it is told to, and not as JSON, as those of plugins may."""
    from tools.registry import registry  # noqa: PLC0415

    gives: list[str] = []
    schema = {"name": "raw", "description": "Reads.", "parameters": {"type": "object", "properties": {}}}
    registry.register("raw", "raw", schema, lambda *_, **__: gives[0])
    yield gives
    registry.deregister("raw")


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine is in Berlin."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()
