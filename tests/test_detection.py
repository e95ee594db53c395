"""What the local model does badly without an error: silent failures, weak signs together, and its own check.

The real Hermes between two endpoints; the corpus and the recorded runs are read from ../shared where they are.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hermes_fallback import host, replay, self_check, signs
from hermes_fallback.config import Policy
from hermes_fallback.replies import LocalReply
from tests.endpoints import Answer, Script, call, fail, in_order, say
from tests.test_escalation import ALL_TRIGGERS, rows
from tests.world import ISSUE_BLOCK, MODEL, World, log_of

DATA = Path(__file__).parents[2] / "shared" / "data"
SELF_CHECK = ALL_TRIGGERS.replace("}}", "}, fallback_policy: {self_check: true}}")


def different_errors(_request: dict[str, Any], index: int) -> Answer:
    """A model that fails in another way each time."""
    return (
        call("read_file", path="/nowhere/x"),
        call("patch", mode="replace", path="a.txt", old_string="zz", new_string="y"),
        call("terminal", command="no-such-command"),
    )[index % 3]


@dataclass(frozen=True)
class Case:
    """What the user asks, what the local model does, and the trigger that must fire after so many local calls."""

    id: str
    message: str
    local: Script
    trigger: str | None
    local_calls: int = 1
    block: str = ALL_TRIGGERS


CASES = [
    Case("told what nobody read", "Read app.toml and tell me the port.", in_order([say("The port is 8080.")]),
         "silent_failure"),
    Case("told what was read", "Read a.txt and tell me the first word.",
         in_order([call("read_file", path="a.txt"), say("It is alpha.")]), None, 2),
    Case("asked back", "Read app.toml and tell me the port.", in_order([say("Which folder is it in?")]), None),
    Case("chatted about a file format", "What is package.json?", in_order([say("It describes a Node.js package.")]), None),
    Case("announced and not done", "tidy up here", in_order([say("Let me look at the files first.")]), "silent_failure"),
    Case("announced and done", "tidy up here",
         in_order([call("terminal", command="echo tidy"), say("All tidy.")]), None, 2),
    Case("done without a change", "Fix the typo in a.txt",
         in_order([call("read_file", path="a.txt"), say("I have fixed the typo in a.txt.")]), "silent_failure", 2),
    Case("done with a change", "Fix the typo in a.txt",
         in_order([call("write_file", path="a.txt", content="alpha\n"), say("I have fixed the typo.")]), None, 2),
    Case("changed by a command", "Delete b.txt",
         in_order([call("terminal", command="touch b.txt; rm b.txt"), say("I have deleted b.txt.")]), None, 2),
    Case("cannot, and did not try", "Read app.toml and tell me the port.",
         in_order([say("Unfortunately I cannot access files on your machine.")]), "silent_failure"),
    Case("three different errors in a row", "do it", different_errors, "risk", 3),
    Case("not with the triggers of the issue", "do it",
         lambda request, index: different_errors(request, index) if index < 3 else say("gave up"), None, 4, ISSUE_BLOCK),
    Case("not so soon when it is not sensitive", "do it",
         lambda request, index: different_errors(request, index) if index < 3 else say("gave up"), None, 4,
         ALL_TRIGGERS.replace("}}", "}, fallback_policy: {sensitivity: low}}")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_trigger(world: World, case: Case) -> None:
    """The stronger model takes over where the local one fails without an error, and does not where it only looks so."""
    world.configure(case.block)
    (world.folder / "a.txt").write_text("alpha\nbeta\n")
    world.local.script = case.local
    result = world.ask(case.message)
    assert world.paid.refusals == []
    assert [row["trigger"] for row in rows()] == ([case.trigger] if case.trigger else [])
    assert len(world.local.requests) == case.local_calls
    # Hermes adds a word of its own when an edit failed in the turn.
    assert result["final_response"].startswith("paid answer") == (case.trigger is not None)


def test_reason_is_in_plain_words(world: World) -> None:
    """What weak signs together were is said to the user, and to the stronger model."""
    world.configure(ALL_TRIGGERS)
    world.local.script = different_errors
    world.ask()
    assert [row["reason"] for row in rows()] == ["signs of trouble together: 3 failed calls"]
    assert "signs of trouble together: 3 failed calls" in world.paid.requests[0]["messages"][0]["content"]


def look_and_answer(request: dict[str, Any], _index: int) -> Answer:
    """A local model that looks, and answers what it did not see."""
    if request["messages"][-1]["role"] == "tool":
        return say("It says gamma.")
    return call("read_file", path=request["messages"][-1]["content"].split()[-1].rstrip("?"))


def questions(world: World) -> list[dict[str, Any]]:
    """The self-checks that the local endpoint was asked for; Hermes asks things of its own beside the task."""
    return [asked for asked in world.local.asides if asked["messages"][0]["content"].startswith("You check")]


@pytest.mark.parametrize(
    ("verdict", "escalates"),
    [
        (say("No."), True),
        (say("<think>is no file there?</think>yes"), False),
        (say("perhaps"), False),
        (fail(500), False),
    ],
    ids=["no", "yes after thinking", "neither", "no answer"],
)
def test_self_check(world: World, caplog: pytest.LogCaptureFixture, verdict: Answer, *, escalates: bool) -> None:
    """With `self_check` the local model is asked once about its answer; a clear no is evidence, all else is not."""
    world.configure(SELF_CHECK)
    (file := world.folder / "a.txt").write_text("alpha\nbeta\n")
    world.local.script = look_and_answer
    world.local.aside = lambda _request, _index: verdict
    result = world.ask(f"What is the third word in {file}?")
    assert result["final_response"] == ("paid answer" if escalates else "It says gamma.")
    assert [row["trigger"] for row in rows()] == (["silent_failure"] if escalates else [])
    # One short question, with what the tools showed, and nothing of the prompt, the tools or the history.
    assert len(questions(world)) == (2 if verdict.status == 500 else 1)  # the client tries an error 500 once more
    asked = questions(world)[0]
    assert asked["model"] == MODEL
    assert asked["max_tokens"] <= 400
    assert "What is the third word in" in asked["messages"][1]["content"]
    assert "alpha" in asked["messages"][1]["content"]
    assert "It says gamma." in asked["messages"][1]["content"]
    assert bool([line for line in log_of(caplog) if "self_check failed" in line]) == (verdict.status == 500)


def test_no_self_check_unless_asked_for(world: World) -> None:
    """Without `self_check` the local model is asked nothing more."""
    world.configure(ALL_TRIGGERS)
    (file := world.folder / "a.txt").write_text("alpha\n")
    world.local.script = look_and_answer
    assert world.ask(f"What is the third word in {file}?")["final_response"] == "It says gamma."
    assert questions(world) == []


WANTS = {
    "read the config.toml and tell me the port": ("wants_content",),
    "what does src/main.py do?": ("wants_content",),
    "is foo in ./src/a.py": ("wants_content",),
    "list the files in /var/log/nginx": ("wants_content",),
    "which version is in `package.json`": ("wants_content",),
    "rename foo.txt to bar.txt": ("wants_change",),
    "create notes.txt with hello": ("wants_change",),
    "what is Node.js?": (),
    "what is package.json?": (),
    "How do I list the scripts in package.json?": (),
    "compare 3.11 with 3.12": (),
    "visit https://example.com/a/b.html": (),
    "write a poem about autumn": (),
    "Fix this:\n```\nopen('a.py')\n```": (),
    "Write a Python function to read config.json and return a dict": ("wants_change",),
    "Draft a mail to Anna: please read contract.pdf before Monday": (),
    "Translate to German: Please open the file settings.json": (),
    "Which command shows me the last line of app.log?": (),
    "Give me a one-liner to count the lines of access.log": (),
    "Write a bash script that will print data.csv sorted": ("wants_change",),
    "Write a regular expression to find dates in notes.txt": ("wants_change",),
    "Give me an SQL query to list all users in /var/lib/app.db": (),
    "What is in a Dockerfile vs in docker-compose.yml?": (),
    "Which settings are in nginx.conf on a fresh Debian?": (),
    "Is it okay to keep secrets in config.py?": (),
    "Read the script in build.sh and tell me what it does": ("wants_content",),
    "show me the command in deploy.sh": ("wants_content",),
    "please write the summary to out.md": ("wants_change",),
    "I don't know, and I can't look": ("cannot_say",),
    "it can't find the module": (),
    "Please run ./bench.sh five times and tell me the mean": ("wants_reruns",),
    "ping 10.0.0.1 every 5 seconds": ("wants_reruns",),
    "Write 'I will not talk in class.' 20 times.": ("wants_refrain",),
    "Start it, and keep checking the status": ("wants_reruns",),
    "Fix the failing test and keep trying until it passes": (),
    "Try again, you have failed this three times already": (),
    "Check why the worker was restarted three times today and fix it": (),
    "Write a script that polls the API every 30 seconds": (),
    "Run the migration; it failed a few times with a lock error, find out why": (),
    "Run the tests that failed three times": (),
    "Read notes.txt and draft an email from it": ("wants_content",),
    "Please read prices.csv and tell me whether it is okay": ("wants_content",),
    "Open server.log and tell me which query is slow": ("wants_content",),
    "The client retries five times. Fix that.": (),
    "I have to run it several times until it works, why?": (),
    "How many times does the word occur?": (),
}


@pytest.mark.parametrize(("message", "expected"), WANTS.items())
def test_signs_of_a_message(message: str, expected: tuple[str, ...]) -> None:
    """A content or a change of a file is asked for only where a file is named and something is to be done with it."""
    assert signs.of_message(message) == expected


ANSWERS = {
    "Let me check the file config.yaml.": ("announces",),
    "I'll read the config now:": ("announces",),
    "The port is 8080. Let me read app.toml to be sure.": ("announces",),
    "Now let me look at the tests\n\n```": ("announces",),
    "Sure! I'll write short answers in English now.": (),
    "I'll write the file now.": ("announces",),
    "Let me look at the survey answers first.": ("announces",),
    "Let me read the API responses now.": ("announces",),
    "Once I have your order number, I'll check it.": (),
    "Let me know if you need anything.": (),
    "Shall I go on with b.txt?": ("asks",),
    "I'll help you with that. Please provide the path.": ("asks",),
    "Here is the summary. I'll be here if you need me.": (),
    "I have updated config.toml.": ("claims_done",),
    "The file has been created.": ("claims_done",),
    "The file was created in 2019.": (),
    "Unfortunately there is no such file.": ("cannot",),
}


@pytest.mark.parametrize(("answer", "expected"), ANSWERS.items())
def test_signs_of_an_answer(answer: str, expected: tuple[str, ...]) -> None:
    """An answer announces, asks or claims only where it says so itself."""
    assert signs.of_reply(answer, ends_turn=True, unaided=False) == expected


RESULTS: list[tuple[str, dict[str, Any], str, tuple[str, ...]]] = [
    ("propose", {"solution": "1"}, "Your answer is wrong.", ("rejected",)),
    ("grade", {}, "Incorrect.", ("rejected",)),
    ("note", {"about": "x"}, "src/a.py:12: # TODO: output is wrong on Windows", ()),
    ("note", {"about": "x"}, "An invalid password was entered.", ()),
    ("query", {"about": "x"}, "[]", ("reads", "empty")),
    ("terminal", {"command": "ls -la | grep x"}, '{"output": "", "exit_code": 0}', ("reads",)),
    ("terminal", {"command": "npx tsc --noEmit"}, '{"output": "", "exit_code": 0}', ()),
    ("terminal", {"command": "sed -n 1,9p a.py"}, '{"output": "", "exit_code": 0}', ("reads",)),
    ("terminal", {"command": "cat a 2>/dev/null | awk '{print $1}'"}, '{"output": "", "exit_code": 0}', ()),
    (
        "terminal",
        {"command": "cat a 2>/dev/null; python3 --version 2>&1"},
        '{"output": "", "exit_code": 0}',
        ("reads",),
    ),
    ("terminal", {"command": "grep -rn 'mock.patch(' tests"}, '{"output": "", "exit_code": 0}', ("reads",)),
    ("terminal", {"command": "python3 -c 'import mock; mock.patch(1)'"}, '{"output": "", "exit_code": 0}', ()),
    ("execute_code", {"code": "from hermes_tools import patch\npatch('a', 'b', 'c')"}, '{"output": ""}', ("changes",)),
    ("execute_code", {"code": "from hermes_tools import terminal\nwith mock.patch('a'): pass"}, '{"output": "x"}', ()),
    ("terminal", {"command": "mkdir a"}, '{"output": "", "exit_code": 0}', ("changes",)),
    ("terminal", {"command": "sed -i s/a/b/ x"}, '{"output": "", "exit_code": 0}', ("changes",)),
    ("terminal", {"command": "grep a x > /dev/null"}, '{"output": "", "exit_code": 0}', ()),
    ("terminal", {"command": "echo a > x"}, '{"output": "", "exit_code": 0}', ("changes",)),
    ("terminal", {"command": "test 3 -gt 2 && echo yes"}, '{"output": "yes", "exit_code": 0}', ()),
    ("write_file", {"path": "a"}, '{"bytes_written": 1}', ("changes",)),
    ("process", {"action": "poll", "session_id": "1"}, "running", ("polls",)),
    ("terminal", {"command": "sleep 30; kubectl get pods"}, '{"output": "", "exit_code": 0}', ("polls",)),
    ("terminal", {"command": "until curl -s x; do sleep 1; done"}, '{"output": "", "exit_code": 0}', ("polls",)),
    ("terminal", {"command": "docker compose up -d && sleep 9 && curl -f x"}, '{"output": "", "exit_code": 0}', ()),
    ("terminal", {"command": "cat log; sleep 9; cat log"}, '{"output": "", "exit_code": 0}', ("polls",)),
    ("terminal", {"command": "grep sleep x"}, '{"output": "", "exit_code": 0}', ("reads",)),
    ("browser_scroll", {"direction": "down"}, '{"success": true}', ("polls",)),
]


@pytest.mark.parametrize(("tool", "arguments", "result", "expected"), RESULTS)
def test_signs_of_a_result(tool: str, arguments: dict[str, Any], result: str, expected: tuple[str, ...]) -> None:
    """A result says no, nothing, or that something was changed, in so many words."""
    assert signs.of_result(tool, arguments, result, command="exit_code" in result) == expected


def conversation(*turns: str | tuple[str, dict[str, Any], str]) -> list[dict[str, Any]]:
    """Messages: texts of user and model in turn, and calls (tool, arguments, result) between them."""
    messages: list[dict[str, Any]] = []
    speaker = "user"
    for number, turn in enumerate(turns):
        if isinstance(turn, str):
            messages.append({"role": speaker, "content": turn})
            speaker = "assistant" if speaker == "user" else "user"
            continue
        tool, arguments, result = turn
        function = {"name": tool, "arguments": json.dumps(arguments)}
        messages.append({"role": "assistant", "tool_calls": [{"id": f"c{number}", "function": function}]})
        messages.append({"role": "tool", "tool_call_id": f"c{number}", "content": result})
    return messages


def ran(command: str, output: str = "", status: int = 0) -> tuple[str, dict[str, Any], str]:
    """A command, as Hermes's terminal gives its result."""
    return "terminal", {"command": command}, json.dumps({"output": output, "exit_code": status, "error": None})


def absent(path: str) -> tuple[str, dict[str, Any], str]:
    """A file that is not there."""
    return "read_file", {"path": path}, json.dumps({"content": "", "error": f"File not found: {path}"})


CHECKED = [
    step for number in range(5) for step in (("patch", {"n": number}, '{"success": true}'), ran("npx tsc --noEmit"))
]
EVERYDAY: dict[str, tuple[Any, ...]] = {
    "not sure": ("I'm not sure which phone to buy", "The Pixel is good. Unfortunately it is expensive."),
    "not well": ("I don't feel well today", "I'm sorry. I can't diagnose, but rest helps."),
    "what belongs in a file": ("What goes in tsconfig.json?", "Compiler options."),
    "an example": ("Show me an example tsconfig.json for a library", "Here is one: {}"),
    "asked what was done": ("Did you rename config.py?", "Yes, I renamed it to settings.py."),
    "why it was done": ("Why did you move utils.py?", "I moved it, because it was in the way."),
    "already so": ("Add a part to README.md if it is missing", "It has one already, so nothing was changed. All set!"),
    "attached": ("[Content of notes.txt]:\nbuy milk\n\nWhat is in notes.txt?", "Buy milk."),
    "translated": ("Translate: Ich werde morgen nachsehen.", "I will check tomorrow."),
    "a plan": ("Make a plan for the docs, don't implement yet", "1. I'll read them.\n2. I'll update the index."),
    "a promise": ("Call me Max", ("memory", {"action": "add"}, "{}"), "Got it! I'll use Max from now on."),
    "in the background": ("Start the server", ran("npm run dev &"), "It runs. I'll review its log as it grows."),
    "formatted": ("Fix the formatting in app.py", ran("black app.py"), "I've fixed the formatting in app.py."),
    "downloaded": ("Save it as data.csv", ran("curl -sLo data.csv http://127.0.0.1/x"), "I've saved it as data.csv."),
    "by a script": ("Update app.py to v2", ran("python migrate.py", "ok"), "I've updated app.py."),
    "by a sub-agent": ("Update config.py", ("delegate_task", {"goal": "x"}, "done"), "I've updated config.py."),
    "with a failing test": (
        "Change the port in app.py",
        ran("sed -i 's/8000/9000/' app.py && pytest -q", "1 failed", 1),
        "I changed the port in app.py; one unrelated test still fails.",
    ),
    "waited": ("Wait for it", *[ran("sleep 9; kubectl get po", "Progressing")] * 5, "It is there."),
    "waited for a check": ("Wait for it", *[ran("sleep 9; curl -f x", "not yet", 22)] * 5, "It is there."),
    "scrolled": ("Go down", *[("browser_scroll", {"direction": "down"}, '{"success": true}')] * 5, "The end."),
    "a log that says wrong": ("Look at the history", ran("git log --oneline", "a1 Fix wrong result"), "One fix."),
    "a search that finds wrong": ("Find it", ("search_files", {"q": "x"}, "# wrong output for negative n"), "Found."),
    "clean checks between edits": ("Type the module", *CHECKED, "All typed."),
    "another task after two failures": (
        "Where is the logging set up?",
        absent("log.py"),
        absent("logger.py"),
        "Nowhere that I see. Let me know if you need anything else!",
        "Great. Now bump the version to 1.2",
        absent("setup.py"),
        ran("sed -i s/1.1/1.2/ pyproject.toml"),
        "Bumped.",
    ),
    "the symptom that was asked about": (
        "Hi",
        "Hi! How can I help?",
        "I can't get docker to start, please look",
        ran("docker ps", "Cannot connect to the Docker daemon", 1),
        "The daemon is not running.",
    ),
    "does not like it": (
        "Draft it",
        "Here it is. Would you like changes?",
        "I don't like the second paragraph",
        absent("draft.md"),
        "Which file is it in?",
    ),
}


@pytest.mark.parametrize("turns", EVERYDAY.values(), ids=EVERYDAY)
def test_everyday_turns_stay_local(turns: tuple[Any, ...]) -> None:
    """What goes well, or only looks as if it did not, is not paid for."""
    tools = ("read_file", "terminal", "write_file")
    assert list(replay.of_messages(conversation(*turns), Policy(), tools=tools)) == []


OFFERED = {"tools": [{"type": "function", "function": {"name": "read_file", "parameters": {}}}]}
SYSTEM = {"role": "system", "content": "# Project Context\n## AGENTS.md\nRun the tests with make check."}
ASKED = {"role": "user", "content": "What does AGENTS.md say about tests? And what is in notes.txt?"}
UNAIDED = {
    "nothing was shown": ([ASKED], OFFERED, True),
    "no tools at hand": ([ASKED], {}, False),
    "a tool has shown something": ([ASKED, {"role": "tool", "content": "x"}], OFFERED, False),
    "it stands in the system prompt": ([SYSTEM, ASKED], OFFERED, False),
    "it was shown and summed up": ([{"role": "user", "content": "[CONTEXT COMPACTION — x"}, ASKED], OFFERED, False),
}


@pytest.mark.parametrize(("messages", "offered", "expected"), UNAIDED.values(), ids=UNAIDED)
def test_what_the_model_could_know(messages: list[Any], offered: dict[str, Any], *, expected: bool) -> None:
    """An answer is made up only where there were tools, none was used, and Hermes itself has not told it."""
    found = host.reply_signs(LocalReply("It says so."), {"messages": messages, **offered})
    assert ("unaided" in found) == expected


VERDICTS = {
    "Yes.": True,
    "no": False,
    "**No**, it is not.": False,
    "I think so. Yes": True,
    "perhaps": None,
    "The request is fulfilled and has no issues.": None,
    "There is no doubt: yes": True,
    "<think>no</think> yes": True,
}


@pytest.mark.parametrize(("reply", "expected"), VERDICTS.items())
def test_verdict(reply: str, *, expected: bool | None) -> None:
    """A verdict stands at the beginning or the end; a no in passing is none."""
    assert self_check.is_fulfilled(reply) is expected


ENDPOINTS = {
    "http://127.0.0.1:11434/v1": True,
    "http://localhost:8080": True,
    "http://192.168.1.7/v1": True,
    "http://box.lan:1234": True,
    "https://openrouter.ai/api/v1": False,
    "https://8.8.8.8/v1": False,
}


@pytest.mark.parametrize(("url", "expected"), ENDPOINTS.items())
def test_only_local_endpoints_check_themselves(url: str, *, expected: bool) -> None:
    """What is asked elsewhere may cost money."""
    assert self_check.is_local(url) is expected


@pytest.mark.skipif(
    not DATA.exists(), reason="the corpus of stuck scenarios (../shared/data) is not part of this project"
)
def test_corpus() -> None:
    """Every clear loop is found, and nothing that is clearly fine or only looks like a loop, at default settings."""
    lines = (DATA / "stuck_corpus.jsonl").read_text("utf-8").splitlines()
    right: Counter[tuple[str, bool]] = Counter()
    for record in map(json.loads, lines):
        firing = replay.of_events(record["events"], Policy(), judge_from=record.get("eval_from", 0))
        if not record["contested"]:
            right[record["tier"], (firing is not None) == (record["expected"] == "stuck")] += 1
    assert {tier: right[tier, False] for tier in ("clear_stuck", "clear_ok", "hard_negative", "text")} == {
        "clear_stuck": 0, "clear_ok": 0, "hard_negative": 0, "text": 0,
    }  # fmt: skip
    assert right["clear_stuck", True] >= 10


@pytest.mark.skipif(not DATA.exists(), reason="the recorded runs (../shared/data) are not part of this project")
def test_labels_are_not_looked_at(tmp_path: Path) -> None:
    """A run is judged by its messages alone: without label, model, task, cost and the scorer's own flags it is the same."""
    kept = {"role", "content", "tool_calls", "tool_call_id", "name", "error", "sha", "len", "t", "requestor"}
    whole, bare = tmp_path / "mint.jsonl", tmp_path / "bare" / "mint.jsonl"
    bare.parent.mkdir()
    with gzip.open(DATA / "trajectories" / "mint.jsonl.gz", "rt") as file:
        lines = [line for _, line in zip(range(200), file, strict=False)]
    whole.write_text("".join(lines))
    stripped = (
        {
            "messages": [
                {key: message[key] for key in message if key in kept} for message in json.loads(line)["messages"]
            ]
        }
        for line in lines
    )
    bare.write_text("".join(json.dumps(record) + "\n" for record in stripped))
    found = [list(replay.of_file(path, Policy(), form="messages")) for path in (whole, bare)]
    assert found[0] == found[1]
    assert sum(outcome.firing is not None for outcome in found[0]) > 50
