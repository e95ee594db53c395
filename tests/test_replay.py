"""`hermes escalation replay` and `python -m hermes_fallback replay`: recorded conversations, judged as live ones are."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hermes_fallback import replay
from hermes_fallback.config import Policy
from tests.endpoints import Endpoint, call, in_order, say
from tests.shell import escalation
from tests.test_plugin import hermes, missing
from tests.world import ISSUE_BLOCK, config_text

USER = {"role": "user", "content": "find the port"}


def made(number: int, tool: str, **arguments: Any) -> dict[str, Any]:
    """An assistant's message with one call."""
    function = {"name": tool, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": f"c{number}", "function": function}]}


def gave(number: int, content: str, **more: Any) -> dict[str, Any]:
    """A tool's message."""
    return {"role": "tool", "tool_call_id": f"c{number}", "content": content, **more}


def failing(times: int) -> list[dict[str, Any]]:
    """A conversation in which the same tool fails the same way."""
    turns = [
        (made(n, "read_file", path=f"/nowhere/{n}"), gave(n, f"File not found: /nowhere/{n}", error=True))
        for n in range(times)
    ]
    return [USER, *(message for turn in turns for message in turn), {"role": "assistant", "content": "It is 8443."}]


FINE = [USER, made(0, "read_file", path="a"), gave(0, "port = 8443"), {"role": "assistant", "content": "It is 8443."}]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the module's command."""
    command = [sys.executable, "-m", "hermes_fallback", "replay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def written(path: Path, *records: object) -> Path:
    """Write records, a line each; text is written as it is."""
    text = "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_messages_as_json(tmp_path: Path) -> None:
    """One object a line: the run by file and line, the turn after which it would have been escalated, and why."""
    file = written(tmp_path / "runs.jsonl.gz", {"messages": failing(5)}, {"messages": FINE})
    done = run(str(file), "--json")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["run"], first["fired_turn"], first["trigger"]) == ("runs:0", 3, "repeated_tool_failure")
    assert first["evidence"] == "read_file failed 3 times: file not found"
    assert first["input_tokens"] > first["output_tokens"] > 0
    assert second == {"run": "runs:1", "fired_turn": None, "trigger": None, "evidence": None}


def test_events_as_json(tmp_path: Path) -> None:
    """Lists of events are judged from the event on that they name, and say at which one."""
    same = {"type": "tool_call", "tool": "read", "args": {"path": "a"}, "result": "x", "status": "ok"}
    user = {"type": "user", "content": "next"}
    file = written(
        tmp_path / "events.jsonl",
        {"id": "loop", "events": [same] * 4},
        {"id": "no loop", "events": [same] * 3},
        {"id": "loop before the message", "events": [*[same] * 4, user, same], "eval_from": 4},
    )
    done = run(str(file), "--format", "events", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"id": "loop", "fires_at": 3, "trigger": "no_progress"},
        {"id": "no loop", "fires_at": None, "trigger": None},
        {"id": "loop before the message", "fires_at": None, "trigger": None},
    ]


def test_broken_lines_are_named_and_skipped(tmp_path: Path) -> None:
    """A line that cannot be read is told by its number; the others are judged, and the exit status says that it was."""
    file = written(
        tmp_path / "runs.jsonl", {"messages": FINE}, "{not json", {"message": []}, "[]", {"messages": [1]},
        {"messages": [{"role": "assistant", "tool_calls": [7]}]}, {"messages": failing(3)},
    )  # fmt: skip
    done = run(str(file), "--json")
    assert done.returncode == 1
    assert [json.loads(line)["run"] for line in done.stdout.splitlines()] == ["runs:0", "runs:6"]
    told = done.stderr.splitlines()
    assert [line.split(": ")[2] for line in told] == [f"line {number}" for number in range(2, 7)]
    assert all(line.endswith("skipped") for line in told)
    assert "not JSON" in told[0]
    assert "no list of objects under `messages`; give the file's form with --format" in told[1]
    missing_file = run(str(tmp_path / "none.jsonl"))
    assert missing_file.returncode == 1
    assert "none.jsonl: No such file or directory" in missing_file.stderr
    whole = written(tmp_path / "whole.jsonl.gz", *[{"messages": failing(3)}] * 9).read_bytes()
    (tmp_path / "half.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    half = run(str(tmp_path / "half.jsonl.gz"))
    assert half.returncode == 1
    assert "half.jsonl.gz: " in half.stderr
    assert "Traceback" not in half.stderr


def test_a_mark_of_the_encoding_is_no_line(tmp_path: Path) -> None:
    """Some editors begin a file with it."""
    file = written(tmp_path / "runs.jsonl", {"messages": failing(3)})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    done = run(str(file), "--json")
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)


def test_whoever_reads_the_output_may_stop(tmp_path: Path) -> None:
    """`… --json | head` ends without a traceback."""
    file = written(tmp_path / "runs.jsonl", *[{"messages": failing(3)}] * 3000)
    command = [sys.executable, "-m", "hermes_fallback", "replay", "--json", str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


def test_words_and_sums(tmp_path: Path) -> None:
    """Without --json, a line for each escalation, then how many of how many, by trigger, and what it would have cost."""
    file = written(tmp_path / "runs.jsonl", {"messages": failing(5)}, {"messages": failing(3)}, {"messages": FINE})
    done = run(str(file), "--tier", "openai/gpt-5.4")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "runs:0  turn 3  repeated_tool_failure: read_file failed 3 times: file not found (about "
    )
    assert "$0.00" in lines[0]
    assert "3 conversations, 2 would have been escalated (67%)" in lines
    assert "       2  repeated_tool_failure" in lines
    assert lines[-1].endswith(" with openai/gpt-5.4")
    assert "cost unknown; name a model for its price" in run(str(file)).stdout


def test_configuration_and_sensitivity(tmp_path: Path) -> None:
    """--config takes a block from a file, --sensitivity goes before it; faults of either are said."""
    file = written(tmp_path / "runs.jsonl", {"messages": failing(3)})
    config = tmp_path / "config.yaml"
    config.write_text(ISSUE_BLOCK.replace("max_local_attempts: 3", "max_local_attempts: 5"))
    assert "0 would have been escalated" in run(str(file), "--config", str(config)).stdout
    config.write_text(ISSUE_BLOCK.replace("max_local_attempts: 3", "max_local_attempts: 0"))
    wrong = run(str(file), "--config", str(config))
    assert wrong.returncode == 1
    assert "$.model_routing.fallback_policy.max_local_attempts: 0 is less than the minimum of 1" in wrong.stderr
    assert run(str(file), "--sensitivity", "low").returncode == 0
    assert "write for example 12h, 30d or 8w" in run("--since", "yesterday").stderr
    assert "write for example openai/gpt-5.4" in run(str(file), "--tier", "gpt-5.4").stderr


def test_many_lines_are_divided_and_stay_in_order(tmp_path: Path) -> None:
    """A long file gives the same as many short ones, in the order of its lines."""
    count = replay._FEW_LINES + 60  # noqa: SLF001  # where more than one process begins
    records = [{"messages": failing(3) if number % 7 == 0 else FINE} for number in range(count)]
    outcomes = list(replay.of_file(written(tmp_path / "runs.jsonl", *records), Policy(), form="messages"))
    assert [outcome.line for outcome in outcomes] == list(range(count))
    assert [outcome.firing is not None for outcome in outcomes] == [number % 7 == 0 for number in range(count)]


def test_calls_written_as_text_are_known_by_the_tools_of_the_file(tmp_path: Path) -> None:
    """A recording does not say which tools there were: those that any run of the file calls."""
    written_call = {"role": "assistant", "content": '{"name": "read_file", "arguments": {"path": "a"}}'}
    file = written(tmp_path / "runs.jsonl", {"messages": [USER, written_call, USER]}, {"messages": FINE})
    first, _ = replay.of_file(file, Policy(), form="messages")
    assert first.firing is not None
    assert (first.firing.at, first.firing.trigger) == (1, "invalid_output")


def test_hermes_own_notices_do_not_make_a_result_new() -> None:
    """What Hermes writes below a repeated result in its history is not part of the result."""
    notice = "\n\n[Tool loop warning: idempotent_no_progress_warning; count={}; read_file returned the same result.]"
    turns = [(made(n, "read_file", path="a"), gave(n, "x = 1" + (notice.format(n) if n else ""))) for n in range(4)]
    (firing,) = replay.of_messages([USER, *(message for turn in turns for message in turn)], Policy())
    assert (firing.at, firing.trigger) == (4, "no_progress")


def test_each_task_is_escalated_for_itself() -> None:
    """The stronger model keeps a task to its end, and the next message begins on the local model again."""
    firings = list(replay.of_messages([*failing(5), *failing(2), *failing(4)], Policy()))
    assert [firing.at for firing in firings] == [3, 12]


def test_sessions_of_hermes(tmp_path: Path) -> None:
    """`hermes escalation replay` judges what the user's own Hermes did, by the configuration that is in force now."""
    home = tmp_path / "home"
    home.mkdir()
    lost = [missing({}, 0), missing({}, 1), missing({}, 2), say("nowhere", usage=(5000, 20))]
    with Endpoint(in_order(lost)) as local:
        # Without a block: the local model fails alone.
        (home / "config.yaml").write_text(config_text(local.url, ""))
        assert "nowhere" in hermes(home, "chat", "-q", "read it").stdout
    with Endpoint(in_order([call("terminal", command="echo hi"), say("hi")])) as local:
        (home / "config.yaml").write_text(config_text(local.url, ISSUE_BLOCK))
        assert "hi" in hermes(home, "chat", "-q", "greet me").stdout
    done = escalation(home, "replay")
    assert done.returncode == 0, done.stderr
    # A call of that session took (3 × 100 + 5000) / 4 tokens on the mean, by what Hermes recorded.
    assert (
        "turn 3  repeated_tool_failure: read_file failed 3 times: file not found (about 1,325 tokens in" in done.stdout
    )
    assert "2 conversations, 1 would have been escalated (50%)" in done.stdout
    assert " with openai/gpt-5.4" in done.stdout
    rows = [json.loads(line) for line in escalation(home, "replay", "--json").stdout.splitlines()]
    assert sorted(row["fired_turn"] or 0 for row in rows) == [0, 3]
    other = ISSUE_BLOCK.replace("model: qwen3.6:9b", "model: llama4")
    (home / "config.yaml").write_text(config_text(local.url, other))
    assert "0 conversations" in escalation(home, "replay").stdout
    assert "0 conversations" in escalation(home, "replay", "--since", "0h").stdout


def test_a_record_of_sessions_that_is_none(tmp_path: Path) -> None:
    """Hermes makes the file for other things as well: then there are no sessions, as without a file."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text(config_text("http://127.0.0.1:9/v1", ISSUE_BLOCK))
    with closing(sqlite3.connect(home / "state.db")) as database:
        database.execute("CREATE TABLE other (x)")
    done = escalation(home, "replay")
    assert (done.returncode, done.stderr) == (0, "")
    assert "0 conversations" in done.stdout


def test_a_record_of_sessions_that_cannot_be_read(tmp_path: Path) -> None:
    """Locked, or no database: one sentence that says so, and status 1."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text(config_text("http://127.0.0.1:9/v1", ISSUE_BLOCK))
    said = "replay: your Hermes sessions: state.db in Hermes's home cannot be read ({}); skipped\n"
    with closing(sqlite3.connect(home / "state.db")) as database:
        database.execute("CREATE TABLE sessions (x)")
        database.execute("BEGIN EXCLUSIVE")
        done = escalation(home, "replay")
    assert (done.returncode, done.stderr) == (1, said.format("database is locked"))
    (home / "state.db").write_text("no database " * 100)
    done = escalation(home, "replay", "--json")
    assert (done.returncode, done.stderr, done.stdout) == (1, said.format("file is not a database"), "")


@pytest.mark.parametrize("surface", ["hermes", "module"])
def test_help_names_the_options(tmp_path: Path, surface: str) -> None:
    """Both ways to call it have the same options."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.yaml").write_text(config_text("http://127.0.0.1:9/v1"))
    done = hermes(home, "escalation", "replay", "--help") if surface == "hermes" else run("--help")
    for option in ("--format", "--since", "--sensitivity", "--config", "--tier", "--json"):
        assert option in done.stdout
