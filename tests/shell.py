"""`hermes escalation …` in this process, for the many tests that ask for its words and not for Hermes's start.

The real command in a process of its own is run by test_plugin, test_screen, and what stands on a terminal.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hermes_fallback import cli
from tests import world  # first of all that imports Hermes: its home is to be a test's own


def escalation(home: Path, *arguments: str, **env: str) -> CompletedProcess[str]:
    """Run one of our commands in a Hermes home, without a terminal; no key is in what it says."""
    home.mkdir(exist_ok=True)
    parser = argparse.ArgumentParser(prog="hermes escalation")
    cli.set_up(parser)
    shown, said = io.StringIO(), io.StringIO()
    variables = {"HERMES_HOME": str(home), "HOME": str(home), "COLUMNS": "200", **env}
    with pytest.MonkeyPatch.context() as changed, redirect_stdout(shown), redirect_stderr(said):
        for name, value in variables.items():
            changed.setenv(name, value)
        changed.setattr(sys, "stdin", io.StringIO())
        time.tzset()
        try:
            cli.run(parser.parse_args(arguments))
        except SystemExit as end:
            status = end.code
        else:
            status = 0
    time.tzset()
    assert isinstance(status, int), status
    found = world.leaks((shown.getvalue(), said.getvalue()))
    assert not found, found
    return CompletedProcess([*arguments], status, shown.getvalue(), said.getvalue())
