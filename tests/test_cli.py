"""`hermes escalation check | status | explain | forget`, as a user and a script run them."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml

from hermes_fallback import journal
from hermes_fallback.budget import Usage
from hermes_fallback.journal import Journal, Opening
from tests import wire
from tests.endpoints import Answer, Endpoint, fail, in_order, say
from tests.shell import escalation
from tests.test_journal import add_task
from tests.test_money import OPENAI, block, stuck_each_task
from tests.test_plugin import hermes
from tests.world import KEY, MODEL, config_text


@dataclass
class Shell:
    """A Hermes home between two endpoints, and the command in it."""

    home: Path
    local: Endpoint
    paid: Endpoint

    def configure(self, text: str) -> None:
        """Write the config."""
        (self.home / "config.yaml").write_text(config_text(self.local.url, text))

    def run(self, *arguments: str, **env: str) -> CompletedProcess[str]:
        """Run hermes."""
        return hermes(self.home, *arguments, **self._env, **env)

    def escalation(self, *arguments: str, **env: str) -> CompletedProcess[str]:
        """Run one of our commands; no key ever comes out."""
        done = escalation(self.home, *arguments, **self._env, **env)
        assert KEY not in done.stdout + done.stderr
        return done

    @property
    def _env(self) -> dict[str, str]:
        return {"OPENAI_BASE_URL": self.paid.url, "OPENAI_API_KEY": KEY, "TZ": "UTC"}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A home with the plugin on."""
    home = tmp_path / "home"
    home.mkdir()
    script: Callable[..., Any] = in_order([say("The stronger answer.")])
    with Endpoint(stuck_each_task) as local, Endpoint(script, strict=True, key=KEY) as paid:
        made = Shell(home, local, paid)
        made.configure(block({"budget": {"per_day_usd": 2}}))
        yield made


def test_check_tells_what_is_known(shell: Shell) -> None:
    """All well: status 0, with price, window and tools of each tier, and whether the local endpoint answers."""
    done = shell.escalation("check")
    assert done.returncode == 0
    for words in (
        f"The local model, qwen3.6:9b, answers at {shell.local.url}.",
        "tier 1, openai/gpt-5.4: ready",
        "price: $2.50 in, $15.00 out, for a million tokens",
        "context: 1,050,000 tokens; tools: yes",
    ):
        assert words in done.stdout
    assert shell.paid.requests == []


def test_check_says_what_to_look_at(shell: Shell) -> None:
    """Status 2: it runs, but a price is not known, or the local endpoint does not answer now."""
    shell.configure(block({"budget": {"per_day_usd": 2}}, fallback={**OPENAI, "model": "gpt-of-tomorrow"}))
    done = shell.escalation("check")
    assert done.returncode == 2
    assert "?     price: not known to litellm; give the tier a `price`, or it will not be asked" in done.stdout
    text = config_text("http://127.0.0.1:9/v1", block())
    (shell.home / "config.yaml").write_text(text)
    done = shell.escalation("check")
    assert done.returncode == 2
    assert "? The local model, qwen3.6:9b, does not answer at http://127.0.0.1:9/v1: " in done.stdout


def test_check_says_what_to_mend(shell: Shell) -> None:
    """Status 1: no key for a tier of a task type, a fault in the block."""
    types = [{"name": "a", "fallback": {"provider": "anthropic", "model": "claude-opus-4-7"}}]
    shell.configure(block(task_types=types))
    done = shell.escalation("check")
    assert done.returncode == 1
    assert "! tier 1 of a, anthropic/claude-opus-4-7: ANTHROPIC_API_KEY is not set" in done.stdout
    shell.configure(block({"budget": {"per_dya_usd": 2}}))
    done = shell.escalation("check")
    assert done.returncode == 1
    assert "budget.per_dya_usd: unknown key; did you mean per_day_usd?" in done.stdout


def test_check_live_makes_one_small_call_a_tier(shell: Shell) -> None:
    """The call is journaled, fits the budget, and tells what is wrong with a key before a task needs it."""
    done = shell.escalation("check", "--live")
    assert done.returncode == 0
    assert "tier 1, openai/gpt-5.4: answered in " in done.stdout
    (request,) = shell.paid.requests
    assert request["max_completion_tokens"] == 1024
    assert len(request["tools"]) == 1
    (entry,) = Journal(shell.home / "hermes-fallback").entries()
    assert (entry.trigger, entry.calls) == ("check", 1)
    assert entry.cost_usd == pytest.approx(0.00055)
    shell.paid.script = lambda *_: fail(401, "no such key")
    done = shell.escalation("check", "--live")
    assert done.returncode == 1
    assert "! openai/gpt-5.4: the key is missing or was refused" in done.stdout
    shell.configure(block({"budget": {"per_day_usd": 0.001}}))
    before = len(shell.paid.requests)
    done = shell.escalation("check", "--live")
    assert done.returncode == 2
    assert "not called: it may cost $0.0" in done.stdout
    assert len(shell.paid.requests) == before


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (say("ok"), "? tier 1, openai/gpt-5.4: answered in "),
        (fail(401, "no such key"), "! openai/gpt-5.4: the key is missing or was refused"),
    ],
)
def test_check_live_while_another_program_holds_the_journal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, answer: Answer, told: str
) -> None:
    """The call was made, so what came of it is told, and that its cost could not be written."""
    monkeypatch.setattr(journal, "_BUSY_SECONDS", 0.1)
    held: list[sqlite3.Connection] = []

    def paid(_request: dict[str, Any], _index: int) -> Answer:
        path = shell.home / "hermes-fallback" / "journal.sqlite3"
        held.append(sqlite3.connect(path, check_same_thread=False, isolation_level=None))
        held[0].execute("BEGIN EXCLUSIVE")
        return answer

    shell.paid.script = paid
    try:
        done = shell.escalation("check", "--live")
    finally:
        held[0].close()
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(told)]
    assert "; what it cost could not be written: " in line
    assert "database is locked" in line
    # The last line of all, on the journal, finds it locked as well.
    assert "! The journal cannot be used" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("model", "thinks", "tokens"),
    [
        ("claude-opus-4-6", {"thinking": {"type": "enabled", "budget_tokens": 2000}}, 3024),
        ("claude-sonnet-4-5", {"reasoning_effort": "high"}, 5120),
    ],
)
def test_check_live_leaves_claude_room_to_think(shell: Shell, model: str, thinks: dict[str, Any], tokens: int) -> None:
    """A tier that is to think is not said to be broken because the small call has no room for it."""
    with Endpoint(in_order([say("ok")]), strict=True, key=KEY, wire=wire.ANTHROPIC) as claude:
        named = {"provider": "anthropic", "model": model, "api_key_env": "OPENAI_API_KEY"}
        shell.configure(block(fallback={**named, "base_url": claude.url, "extra": thinks}))
        done = shell.escalation("check", "--live")
    assert f"tier 1, anthropic/{model}: answered in " in done.stdout
    assert claude.requests[0]["max_tokens"] == tokens


def test_status(shell: Shell) -> None:
    """What holds, what is spent and left, for people and for scripts."""
    shell.configure(
        block({"budget": {"per_day_usd": 2, "per_task_usd": 0.5}, "confirm": "never", "allowed_users": [7]})
    )
    shell.run("chat", "-q", "read it")
    shown = shell.escalation("status").stdout
    for words in ("state", "on", "nobody is asked", "openai/gpt-5.4", "UTC", "$2", "each task", "$0.50", "$1.9"):
        assert words in shown
    told = json.loads(shell.escalation("status", "--json").stdout)
    assert (told["state"], told["ladder"], told["allowed_users"]) == ("on", ["openai/gpt-5.4"], ["7"])
    limits = {one["name"]: (one["limit"], one["spent"]) for one in told["budget"]}
    assert limits["per_day_usd"] == (2, pytest.approx(0.00055))
    assert limits["per_task_usd"] == (0.5, None)
    assert "qwen3.6:9b → openai/gpt-5.4: took over" in told["last_escalation"]
    rows = dict(list(csv.reader(io.StringIO(shell.escalation("status", "--csv").stdout)))[1:])
    assert (rows["state"], rows["per_day_usd_limit"], rows["per_day_usd_spent"]) == ("on", "2", "0.00055")


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        ({"enabled": "shadow"}, "shadow: everything is decided and nothing is paid"),
        ({"enabled": False}, "off"),
        ({"enabled": 3}, "not active: 1 to mend in the configuration; run `hermes escalation check`"),
    ],
)
def test_status_of_what_does_not_run(shell: Shell, policy: dict[str, Any], state: str) -> None:
    """Status 1 only where the plugin is not active."""
    shell.configure(block(policy))
    done = shell.escalation("status", "--json")
    assert json.loads(done.stdout)["state"] == state
    assert done.returncode == int("not active" in state)


def test_explain_says_that_there_is_more(shell: Shell) -> None:
    """All of a session; of all sessions together the newest, which is said."""
    journal = Journal(shell.home / "hermes-fallback")
    for number in range(22):
        opening = Opening("often", MODEL, "openai/gpt-5.4", "no_progress", f"reason {number}")
        row = journal.open_escalation(opening)
        journal.start_call(row, model="m", turn_id="t", task_id="t", seconds=1.0, otherwise=opening)
    said = "These are the newest 20; `--last N` shows more."
    for arguments, count in (((), 20), (("often",), 22), (("--last", "22"), 22), (("--last", "21"), 21)):
        told = shell.escalation("explain", *arguments).stdout
        assert told.count("took over, because reason ") == count
        assert (said.replace("20", str(count)) in told) == (count < 22)


@pytest.mark.parametrize("count", ["0", "-1", "two", "²", "9" * 20])
def test_explain_of_no_number(shell: Shell, count: str) -> None:
    """Nothing was escalated, or all, would be wrong answers to it."""
    done = shell.escalation("explain", f"--last={count}")
    assert done.returncode == 2
    assert f"“{count}” is no number of escalations; write 1 or more" in done.stderr


def test_explain_and_forget(shell: Shell) -> None:
    """A session's timeline in sentences, with its type and why; then all of it is gone, and the money still counts."""
    shell.configure(
        block({"budget": {"per_day_usd": 2}}, task_types=[{"name": "coding", "match": {"message": "(?i)READ"}}])
    )
    shell.run("chat", "-q", "read it")
    journal = Journal(shell.home / "hermes-fallback")
    session = journal.entries()[0].session_id
    told = shell.escalation("explain", session).stdout
    lines = [
        "qwen3.6:9b → openai/gpt-5.4: took over in a task of type coding (the message matches), because read_file failed 3 "
        "times: file not found [repeated_tool_failure].",
        "1 call, 100 tokens in, 20 out, $0.0006.",
        "A task of type coding (the message matches) ended; the local model had 3 calls in it, 300 tokens in, 60 out.",
    ]
    places = [told.index(line) for line in lines]
    assert places == sorted(places)
    kinds = [row["kind"] for row in json.loads(shell.escalation("explain", session, "--json").stdout)]
    assert kinds == ["escalation", "local"]
    (row,) = csv.DictReader(io.StringIO(shell.escalation("explain", "--csv").stdout))
    assert (row["session"], row["cost_usd"], row["task_type"]) == (session, "0.00055", "coding")
    assert shell.escalation("forget").returncode == 2
    assert shell.escalation("forget", session).stdout == "Deleted: 1 escalation, 1 task.\n"
    assert "Nothing was escalated." in shell.escalation("explain").stdout
    assert session.encode() not in journal.path.read_bytes()
    assert journal.spent(task_id="", account="").day == pytest.approx(0.00055)
    report = json.loads(shell.escalation("report", "--json").stdout)
    assert (report["forgotten_usd"], report["totals"]["paid"]["cost_usd"]) == (pytest.approx(0.00055), 0)
    assert "Forgotten: $0.0006 more was paid in rows that were deleted since." in shell.escalation("report").stdout


def test_forget_says_what_was_there(shell: Shell) -> None:
    """Tasks that stayed local and escalations are two things; of a session that is not there, nothing is deleted."""
    none = "Nothing is deleted of the session a: there is nothing of it in the journal.\n"
    assert shell.escalation("forget", "a").stdout == none
    kept = Journal(shell.home / "hermes-fallback")
    add_task(kept, "a")
    assert shell.escalation("forget", "a").stdout == "Deleted: 0 escalations, 1 task.\n"
    assert shell.escalation("forget", "a").stdout == none
    kept.set_off("a", is_off=True)
    said = "Deleted: 0 escalations, 0 tasks, and what /escalate off or auto had set.\n"
    assert shell.escalation("forget", "a").stdout == said
    called = Opening("a", MODEL, "openai/gpt-5.4", "no_progress", "reason")
    row = kept.open_escalation(called)
    call, _ = kept.start_call(row, model="m", turn_id="t", task_id="t", seconds=60.0, otherwise=called)
    said = "Nothing is deleted of the session a: a call of it is being made.\n"
    assert shell.escalation("forget", "a").stdout == said
    kept.end_call(call, "answered", turn_id="t", seconds=1.0, used=Usage(1, 1, 0.5))
    assert shell.escalation("forget", "--all").stdout == "Deleted: 1 escalation, 0 tasks.\n"


def test_a_journal_that_cannot_be_read(shell: Shell) -> None:
    """Each command says so, in a sentence, with status 1."""
    folder = shell.home / "hermes-fallback"
    folder.write_text("in the way")
    done = shell.escalation("check")
    assert done.returncode == 1
    assert "! The journal cannot be used, so nothing will be paid: " in done.stdout
    folder.unlink()
    assert shell.escalation("check").returncode == 0
    with closing(sqlite3.connect(folder / "journal.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 9")
    for command in ("status", "explain", "report", "check"):
        done = shell.escalation(command)
        assert done.returncode == 1, command
        assert "he journal cannot be" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_names_of_models_are_only_text(shell: Shell) -> None:
    """What a model's name looks like is neither obeyed by the terminal nor taken for markup."""
    name = "\x1b[31m[red]evil\x07"
    text = yaml.safe_dump({"model_routing": {"fallback": {"provider": "openai", "model": name}}})
    shell.configure(text)
    shell.run("chat", "-q", "read it")
    for command in ("explain", "status"):
        shown = shell.escalation(command).stdout
        assert "[red]evil" in shown
        assert "\x1b[31m[" not in shown
        assert "\x07" not in shown
