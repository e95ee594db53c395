"""`hermes escalation init`: what it writes into config.yaml, what it leaves alone, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes_fallback.cli import wizard
from hermes_fallback.cli.wizard import block, servers, splice
from hermes_fallback.cli.wizard.block import Answers
from hermes_fallback.cli.wizard.servers import LocalModel, Server
from hermes_fallback.config import Primary, Tier
from hermes_fallback.host import Running
from tests.endpoints import Endpoint, in_order, say
from tests.shell import escalation
from tests.test_plugin import HERMES, ROOT, hermes
from tests.world import KEY, MODEL

INIT = [str(HERMES), "escalation", "init"]

LONG = """\
# My Hermes.  Do not touch the   spacing.
_config_version: 33

model:
    provider: 'custom'        # llama box
    default: "qwen3.6:9b"
    base_url: {url}
    context_length: 65536

agent: {{max_turns: 60, reasoning_effort: "medium"}}   # flow, on purpose
prompt: "a line that is so long that a writer of YAML would fold it somewhere, and that nobody wants to see folded at all, ever"
terminal:
  backend: local
  timeout: 0180   # octal-looking
  ratio: 0.50
  on_exit: off
  colours: [ red,green , 'blue' ]
custom_providers:
- name: box
  base_url: http://192.168.1.5:9000/v1
  # api_key: none
-   name: other
    models:
        - a

plugins:
  # those that I trust
  enabled: [notes, 'hermes-fallback']  # mine
  disabled: []

notes: |
  kept
    as it is

# ── Fallback Model ──
# fallback_model:
#   provider: openrouter
"""


def init(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a home of its own, without a terminal.

    It is there as well where Hermes does not load the plugin yet: no config.yaml, or a broken one.
    """
    return escalation(home, "init", *arguments, **env)


def backups(home: Path) -> list[Path]:
    """The copies that were kept."""
    return sorted(home.glob("config.yaml.bak-*"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A Hermes home."""
    made = tmp_path / "home"
    made.mkdir()
    return made


@pytest.fixture
def local() -> Iterator[Endpoint]:
    """A local server."""
    with Endpoint(in_order([say("hello")])) as endpoint:
        yield endpoint


def config(home: Path, text: str) -> Path:
    """Write a config.yaml, byte by byte."""
    path = home / "config.yaml"
    path.write_bytes(text.encode())
    path.chmod(0o640)
    return path


BLOCK = """
model_routing:
  primary:
    provider: custom
    model: qwen3.6:9b
    base_url: {url}
  fallback:
    provider: openai
    model: gpt-5.4
  fallback_policy:
    enabled: true
    confirm: first_in_session
    budget:
      per_task_usd: 0.5
      per_day_usd: 5
"""
FLAGS = (
    "--yes",
    "--fallback",
    "openai/gpt-5.4",
    "--confirm",
    "first_in_session",
    "--per-task",
    "0.50",
    "--per-day",
    "5",
)


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_other_byte_stays(home: Path, local: Endpoint, line_end: str) -> None:
    """A long file gets our block at its end and is otherwise the same; the old one is kept."""
    before = LONG.format(url=local.url).replace("\n", line_end)
    path = config(home, before)
    done = init(home, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes().decode() == before + BLOCK.format(url=local.url).replace("\n", line_end)
    (kept,) = backups(home)
    assert kept.read_bytes().decode() == before
    assert path.stat().st_mode & 0o777 == kept.stat().st_mode & 0o777 == 0o640
    assert "+model_routing:" in done.stdout
    assert "OPENAI_API_KEY is not set" in done.stdout
    assert str(home / ".env") in done.stdout
    assert "hermes model" not in done.stdout  # Hermes runs the local model already


def test_second_run_changes_nothing(home: Path, local: Endpoint) -> None:
    """What was written is found to be as it should be, and no copy is made of it."""
    path = config(home, LONG.format(url=local.url) + BLOCK.format(url=local.url))
    done = init(home, *FLAGS)
    assert done.returncode == 0, done.stderr
    assert "nothing to change" in done.stdout
    assert (path.read_text(), backups(home)) == (LONG.format(url=local.url) + BLOCK.format(url=local.url), [])


def test_check_accepts_it(home: Path, local: Endpoint) -> None:
    """`hermes escalation check` has nothing to mend in what is written."""
    config(home, LONG.format(url=local.url) + BLOCK.format(url=local.url))
    checked = hermes(home, "escalation", "check", OPENAI_API_KEY=KEY)
    assert checked.returncode == 0, checked.stdout
    assert "tier 1, openai/gpt-5.4: ready" in checked.stdout


def test_new_file(home: Path) -> None:
    """Without a config.yaml, one is made that only its owner may read, and Hermes is to be set up as well."""
    done = init(home, *FLAGS, "--primary", MODEL, "--shadow")
    assert done.returncode == 0, done.stderr
    written = (home / "config.yaml").read_text()
    assert (home / "config.yaml").stat().st_mode & 0o777 == 0o600
    assert written.startswith("plugins:\n  enabled:\n    - hermes-fallback\n\nmodel_routing:\n")
    assert yaml.safe_load(written)["model_routing"]["fallback_policy"]["enabled"] == "shadow"
    assert backups(home) == []
    assert "hermes model" in done.stdout


def test_dry_run(home: Path, local: Endpoint) -> None:
    """The difference is shown and nothing written; secrets in the lines around it are masked."""
    secret = "sk-ant-" + "a1b2c3d4" * 4
    path = config(home, f"plugins: {{enabled: [hermes-fallback]}}\nx: {{api_key: {secret}}}\n")
    before = path.read_bytes()
    done = init(home, *FLAGS, "--primary-url", local.url, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "+    model: any" in done.stdout  # what the server lists
    assert f"+    base_url: {local.url}" in done.stdout
    assert secret not in done.stdout
    assert (path.read_bytes(), backups(home)) == (before, [])


def test_link_stays(home: Path, tmp_path: Path, local: Endpoint) -> None:
    """What a link points to is rewritten, the link stays, and the copy is kept beside the link."""
    real = tmp_path / "dotfiles.yaml"
    config(home, LONG.format(url=local.url)).rename(real)
    (home / "config.yaml").symlink_to(real)
    assert init(home, *FLAGS).returncode == 0
    assert (home / "config.yaml").is_symlink()
    assert "model_routing:" in real.read_text()
    assert len(backups(home)) == 1


def test_broken_yaml(home: Path) -> None:
    """The line is named, and nothing is written."""
    path = config(home, "model: x\nplugins:\n  enabled: [hermes-fallback\nmore: y\n")
    before = path.read_bytes()
    done = init(home, *FLAGS)
    assert done.returncode == 1
    assert "config.yaml: line 4: is not valid YAML" in done.stderr
    assert (path.read_bytes(), backups(home)) == (before, [])


ENABLED = "plugins: {enabled: [hermes-fallback]}\n"


@pytest.mark.parametrize(
    ("text", "arguments", "status", "words"),
    [
        (ENABLED, ["--yes"], 2, "--fallback is needed"),
        (ENABLED, [], 1, "there is no terminal to ask on"),
        (ENABLED, ["--yes", "--fallback", "gpt-5.4"], 2, "names no provider or no model"),
        (ENABLED, ["--yes", "--fallback", KEY], 2, "this looks like a key"),
        (ENABLED, ["--yes", "--fallback", f"openai/{KEY}"], 2, "this looks like a key"),
        (ENABLED, [*FLAGS, "--primary", KEY], 2, "this looks like a key"),
        (ENABLED, ["--yes", "--fallback", "openai/x", "--key-env", KEY], 2, "this looks like a key"),
        (ENABLED, ["--yes", "--fallback", "openai/x", "--key-env", "a1b2c3d4e5f60718293a4b5c6d7e8f90"], 2, "is not the name of a variable"),
        (ENABLED, ["--yes", "--fallback", "openai/x", "--primary-url", "http://me:pass@box/v1"], 2, "is not a plain URL"),
        (ENABLED, ["--yes", "--fallback", "openai/x", "--per-day", "lots"], 2, "is no amount of dollars"),
        (ENABLED, ["--yes", "--fallback", "openai/x", "--primary-url", "http://127.0.0.1:9/v1"], 1, "no local model was found"),
        (ENABLED + "model_routing: []\n", [*FLAGS, "--primary", "m"], 1, "$.model_routing: is not a block of keys"),
        (ENABLED + "model_routing: {fallbak: 1}\n", [*FLAGS, "--primary", "m"], 1, "did you mean fallback?"),
        (ENABLED + "a: &a {fallback: {provider: openai, model: b}}\nmodel_routing: *a\n", [*FLAGS, "--primary", "m"], 1, "write this into it yourself"),
    ],
    ids=lambda value: value if isinstance(value, str) and "\n" not in value else "",
)  # fmt: skip
def test_refused(home: Path, text: str, arguments: list[str], status: int, words: str) -> None:
    """It says what is wrong and what to write, repeats no key, and leaves the file alone."""
    path = config(home, text)
    done = init(home, *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert words in done.stderr
    for secret in (KEY, "a1b2c3d4e5f60718293a4b5c6d7e8f90", "pass@"):
        assert secret not in done.stdout + done.stderr
    assert (path.read_text(), backups(home)) == (text, [])


def test_a_login_in_the_address_is_not_printed(home: Path) -> None:
    """The address of Hermes's model is shown without it."""
    config(home, f"model: {{provider: custom, default: m, base_url: 'http://user:hunter2@127.0.0.1:9/v1'}}\n{ENABLED}")
    done = init(home, *FLAGS, "--primary", "other")
    assert "Hermes runs m at http://" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr


def test_what_hermes_runs_is_said_in_plain_words() -> None:
    """The name of a model has nothing in it that a terminal obeys."""
    running = Running("evil\x1b]52;c;aGk=\x07\u202e", "custom", "http://127.0.0.1:9/v1", "chat_completions")
    assert wizard._what_runs(running).isprintable()  # noqa: SLF001


def test_hermes_runs_another_model(home: Path, local: Endpoint) -> None:
    """That only tasks of the model that Hermes runs are escalated is said plainly, and `model:` is left alone."""
    path = config(home, f"model: {{provider: openrouter, default: big}}\n{ENABLED}")
    done = init(home, *FLAGS, "--primary-url", local.url, "--shadow")
    assert done.returncode == 0, done.stderr
    assert f"run `hermes model` and choose any at {local.url}. Hermes runs big at https://" in done.stdout
    assert "which is not local. Only tasks of the model that Hermes itself runs are escalated." in done.stdout
    assert "hermes escalation init --no-shadow" in done.stdout
    written = yaml.safe_load(path.read_text())
    assert written["model"] == {"provider": "openrouter", "default": "big"}
    assert written["model_routing"]["fallback_policy"]["enabled"] == "shadow"


def test_what_is_configured_stays(home: Path, local: Endpoint) -> None:
    """With one option, one line changes: a model and a reference to the environment are left as they are written."""
    written = (
        BLOCK.format(url=local.url).replace(local.url, "${BOX}").replace("gpt-5.4", "gpt-5.4\n    max_tokens: 900")
    )
    path = config(home, LONG.format(url=local.url) + written)
    done = init(home, "--yes", "--per-day", "7", "--key-env", "XAI_API_KEY", BOX=local.url)
    assert done.returncode == 0, done.stderr
    after = written.replace("per_day_usd: 5", "per_day_usd: 7").replace("900", "900\n    api_key_env: XAI_API_KEY")
    assert path.read_text() == LONG.format(url=local.url) + after


def test_managed_installation_is_left_alone(home: Path) -> None:
    """Where NixOS writes config.yaml, nothing is written."""
    config(home, ENABLED)
    done = init(home, *FLAGS, HERMES_MANAGED="nixos")
    assert done.returncode == 1
    assert "config.yaml belongs to NixOS here" in done.stderr
    assert backups(home) == []


def test_changed_in_the_meantime(home: Path) -> None:
    """What somebody else wrote while the questions were asked is not lost."""
    from hermes_fallback.cli.wizard import config_file  # noqa: PLC0415

    file = config_file.read(config(home, "a: 1\n"))
    config(home, "a: 2\n")
    with pytest.raises(config_file.ConfigFileError, match="somebody else"):
        config_file.write(file, "a: 3\n")
    assert ((home / "config.yaml").read_text(), backups(home)) == ("a: 2\n", [])


def _heed_ctrl_c() -> None:
    # A script that runs the tests in its background has them ignore it, and all that they start.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def terminal(home: Path, *arguments: str) -> Iterator[Any]:
    """The command on a terminal."""
    env = {**os.environ, "HERMES_HOME": str(home), "HOME": str(home), "TERM": "xterm-256color"}
    child = pexpect.spawn(
        *(INIT[0], [*INIT[1:], *arguments]),
        cwd=str(ROOT),
        env=env,
        dimensions=(50, 100),
        encoding="utf-8",
        timeout=60,
        preexec_fn=_heed_ctrl_c,
    )
    try:
        yield child
    finally:
        child.close(force=True)


def test_questions(home: Path, local: Endpoint) -> None:
    """Each answer gets its place; Enter takes what is proposed; a bad answer is asked for again."""
    path = config(home, LONG.format(url=local.url))
    with terminal(home) as child:
        child.expect_exact(f"Hermes runs {MODEL} at {local.url}.")
        child.expect_exact(f"Local model ({MODEL}): ")
        child.sendline("")
        child.expect_exact("Paid model, PROVIDER/MODEL: ")
        child.sendline("gpt-5.4")
        child.expect_exact("names no provider or no model")
        child.expect_exact("Paid model, PROVIDER/MODEL: ")
        child.sendline("openai/gpt-5.4")
        child.expect_exact("OPENAI_API_KEY is not set")
        for limit, answer in (("task", "$0.50"), ("day", "5"), ("month", "")):
            child.expect_exact(f"Limit for a {limit} (none): ")
            child.sendline(answer)
        child.expect_exact("When (never): ")
        child.sendline("first_in_session")
        child.expect_exact("\x1b[32m+model_routing:")
        child.expect_exact("(yes): ")
        child.sendline("y")
        child.expect_exact("hermes escalation check")
        child.expect(pexpect.EOF)
        assert child.wait() == 0
    assert path.read_text() == LONG.format(url=local.url) + BLOCK.format(url=local.url)


@pytest.mark.parametrize("leave", ["ctrl+c", "ctrl+d", "no"])
def test_leaving_writes_nothing(home: Path, local: Endpoint, leave: str) -> None:
    """Ctrl+C, the end of the input, or no: the file is as it was, and the status says so."""
    path = config(home, LONG.format(url=local.url))
    options = [
        "--fallback",
        "openai/gpt-5.4",
        "--per-task",
        "1",
        "--per-day",
        "none",
        "--per-month",
        "9",
        "--confirm",
        "never",
    ]
    with terminal(home, *options) as child:
        child.expect_exact("Local model (")
        if leave == "no":
            child.sendline("")
            child.expect_exact("(yes): ")
            child.sendline("no")
        elif leave == "ctrl+c":
            # A signal that comes between the prompt and the waiting is seen at the next key only (CPython's readline).
            time.sleep(0.5)
            child.kill(signal.SIGINT)
        else:
            child.sendcontrol("d")
        child.expect_exact("Nothing was written.")
        child.expect(pexpect.EOF)
        assert child.wait() == 1, child.signalstatus
    assert (path.read_text(), backups(home)) == (LONG.format(url=local.url), [])


@contextmanager
def listing(body: bytes, *, port: int = 0) -> Iterator[str]:
    """A server whose every answer is that; the value is its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def models(*names: str) -> bytes:
    """A list of models as OpenAI's API gives it."""
    return json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()


def test_models_of_servers() -> None:
    """The models of all that answer, in the servers' order, without those that cannot chat; others are passed over."""
    with (
        listing(models("a", "nomic-embed-text", "b")) as one,
        listing(b"<html>") as page,
        listing(b'{"data": 1}') as odd,
    ):
        asked = [Server("x", one), Server("y", page), Server("z", odd), Server("v", "http://127.0.0.1:9/v1")]
        assert servers.models(asked) == (LocalModel("a", asked[0]), LocalModel("b", asked[0]))


def test_well_known_port(home: Path) -> None:
    """A server on its usual port is found; where there are several models, a script must name one."""
    if servers.models(servers.WELL_KNOWN):
        pytest.skip("a local model server runs on this machine")
    config(home, ENABLED)
    try:
        with listing(models("qwen3", "gemma3"), port=11434):
            done = init(home, *FLAGS)
            assert done.returncode == 1
            assert "name one with --primary: qwen3, gemma3" in done.stderr
            assert init(home, *FLAGS, "--primary", "gemma3").returncode == 0
    except OSError:
        pytest.skip("something else listens there")
    written = yaml.safe_load((home / "config.yaml").read_text())["model_routing"]
    assert written["primary"] == {"provider": "ollama", "model": "gemma3"}


ANSWERS = Answers(
    primary=Primary("qwen3", "ollama"),
    tier=Tier("anthropic", "claude", api_key_env="MINE"),
    confirm="always",
    limits={"per_task_usd": 0.5, "per_day_usd": None},
)
PRIMARY = "model_routing:\n  primary: {provider: ollama, model: qwen3}\n"
POLICY = "  fallback_policy: {enabled: true, confirm: always, budget: {per_task_usd: 0.5}}\n"
TIER = "  fallback: {provider: anthropic, model: claude, api_key_env: MINE}\n"
REST = PRIMARY + TIER + POLICY


@dataclass(frozen=True)
class Case:
    """A text, and what becomes of it."""

    name: str
    before: str
    after: str


CASES = [
    Case(
        "a list in one line",
        REST + "plugins: {enabled: [ a, 'b' ]}  # mine\n",
        REST + "plugins: {enabled: [ a, 'b', hermes-fallback ]}  # mine\n",
    ),
    Case(
        "a list below its key",
        REST + "plugins:\n  enabled:\n  - a\n  # more\n  - b # b\n\n  # those not\n  disabled: []\n",
        REST + "plugins:\n  enabled:\n  - a\n  # more\n  - b # b\n  - hermes-fallback\n\n  # those not\n  disabled: []\n",
    ),
    Case(
        "no list yet",
        "plugins: # none\n" + REST,
        "plugins: # none\n  enabled:\n    - hermes-fallback\n" + REST,
    ),
    Case(
        "no plugins, and no line end",
        REST + "# the end",
        REST + "# the end\n\nplugins:\n  enabled:\n    - hermes-fallback\n",
    ),
    Case(
        "another provider: its URL and key go, the rest stays",
        "model_routing:\n    primary:\n        model: 'old'   # local\n\n    # the paid ones\n    fallback:\n"
        "    # cheap\n    - provider: openai   # p\n      model: gpt   # m\n      base_url: https://example.com/v1\n"
        "      api_key_env: OLD\n      max_tokens: 900\n    - {provider: xai, model: grok}\n    fallback_policy:\n"
        "        enabled: false # off\n        # which\n        trigger_on: [risk]\n    handoff: {redact: off}\n"
        "plugins: {enabled: [hermes-fallback]}\n",
        "model_routing:\n    primary:\n        model: qwen3   # local\n        provider: ollama\n\n    # the paid ones\n    fallback:\n"
        "    # cheap\n    - provider: anthropic   # p\n      model: claude   # m\n"
        "      api_key_env: MINE\n      max_tokens: 900\n    - {provider: xai, model: grok}\n    fallback_policy:\n"
        "        enabled: true # off\n        # which\n        trigger_on: [risk]\n"
        "        confirm: always\n        budget:\n          per_task_usd: 0.5\n    handoff: {redact: off}\n"
        "plugins: {enabled: [hermes-fallback]}\n",
    ),
    Case(
        "already on the ladder, watching so far, one limit lifted",
        PRIMARY + "  fallback: [hermes, {provider: anthropic, model: claude, base_url: 'http://127.0.0.1:1/v1'}]\n"
        "  fallback_policy:\n    enabled: shadow\n    budget:\n      per_day_usd: 3 # three\n      per_task_usd: 0.50\n"
        "    confirm: always\nplugins: {enabled: [hermes-fallback]}\n",
        PRIMARY + "  fallback: [hermes, {provider: anthropic, model: claude, base_url: 'http://127.0.0.1:1/v1', api_key_env: MINE}]\n"
        "  fallback_policy:\n    enabled: shadow\n    budget:\n      per_task_usd: 0.50\n"
        "    confirm: always\nplugins: {enabled: [hermes-fallback]}\n",
    ),
    Case(
        "nothing paid on the ladder yet",
        PRIMARY + "  fallback:\n    - hermes\n    - provider: primary\n      model: big\n\n" + POLICY + ENABLED,
        PRIMARY + "  fallback:\n    - hermes\n    - provider: primary\n      model: big\n    - provider: anthropic\n"
        "      model: claude\n      api_key_env: MINE\n\n" + POLICY + ENABLED,
    ),
    Case(
        "Hermes's own chain gives way",
        PRIMARY + "  fallback: hermes\n" + POLICY + ENABLED,
        PRIMARY + "  fallback:\n    provider: anthropic\n    model: claude\n    api_key_env: MINE\n" + POLICY + ENABLED,
    ),
    Case(
        "all in one line",
        "{plugins: {enabled: []}, model: 'x'}\n",
        "{plugins: {enabled: [hermes-fallback]}, model: 'x', model_routing: {primary: {provider: ollama, model: qwen3}, "
        "fallback: {provider: anthropic, model: claude, api_key_env: MINE}, "
        "fallback_policy: {enabled: true, confirm: always, budget: {per_task_usd: 0.5}}}}\n",
    ),
    Case(
        "a value over several lines",
        PRIMARY + "  fallback:\n    provider: anthropic\n    model: >-\n      old\n      one\n\n" + POLICY + ENABLED,
        PRIMARY + "  fallback:\n    provider: anthropic\n    model: claude\n    api_key_env: MINE\n\n" + POLICY + ENABLED,
    ),
    Case(
        "a text at the end that keeps its empty lines, by ruamel.yaml",
        "a:   {b: 1}  # kept\n" + REST + "text: |+\n  b\n\n",
        "a: {b: 1}    # kept\n" + REST + "text: |+\n  b\n\nplugins:\n  enabled:\n    - hermes-fallback\n",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_existing_text(case: Case, line_end: str) -> None:
    """What the answers do not concern stays as it is written; asked once more, nothing changes."""
    before, after = case.before.replace("\n", line_end), case.after.replace("\n", line_end)
    wanted = block.merged(yaml.safe_load(before), ANSWERS, plugin="hermes-fallback")
    assert splice.rewritten(before, wanted) == after
    again = block.merged(yaml.safe_load(after), ANSWERS, plugin="hermes-fallback")
    assert splice.rewritten(after, again) == after


def test_what_aliases_share_is_not_changed_twice() -> None:
    """A list that another key has too, by an alias, is not changed for that key."""
    text = "plugins: {enabled: &names [a]}\nother: *names\n"
    wanted = block.merged(yaml.safe_load(text), ANSWERS, plugin="hermes-fallback")
    assert wanted["other"] == ["a"]
    with pytest.raises(splice.SpliceError):
        splice.rewritten(text, wanted)


words = st.sampled_from(["a", "b: c", "yes", "# no", "007", "1e3", "x\ny", "", "ä😀", "-", "null", "'", '"'])
values = st.recursive(
    words | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=100)
@given(
    others=st.dictionaries(words, values, max_size=4),
    plugins=st.none() | st.fixed_dictionaries({"enabled": st.lists(st.sampled_from(["a", "b"]), max_size=3)}),
    style=st.sampled_from([True, False, None]),
    model=words.filter(bool),
)
def test_any_file_of_pyyaml(others: dict[str, Any], plugins: Any, model: str, *, style: bool | None) -> None:
    """Whatever PyYAML writes can be changed, and means what it meant besides; a block of ours can be changed again."""
    text = yaml.safe_dump({**others, "plugins": plugins}, default_flow_style=style, sort_keys=False, allow_unicode=True)
    wanted = block.merged(yaml.safe_load(text), ANSWERS, plugin="hermes-fallback")
    written = splice.rewritten(text, wanted)
    assert {key: value for key, value in yaml.safe_load(written).items() if key in others} == others
    other = Answers(primary=Primary(model), tier=Tier(model, model), limits={"per_task_usd": None, "per_day_usd": 2})
    again = block.merged(yaml.safe_load(written), other, plugin="hermes-fallback")
    assert yaml.safe_load(splice.rewritten(written, again)) == again
