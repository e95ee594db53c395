"""The plugin as Hermes finds it: installed, or as a folder; what it costs to have it; the real `hermes` command."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_fallback import HOOKS, MIDDLEWARE, config
from hermes_fallback.settings import Settings
from tests.endpoints import Answer, Endpoint, call, in_order, say
from tests.world import ISSUE_BLOCK, KEY, World, config_text

ROOT = Path(__file__).parents[1]
HERMES = Path(sys.executable).with_name("hermes")


def missing(_request: dict[str, Any], index: int) -> Answer:
    """A local model that looks for files that are not there."""
    return call("read_file", path=f"/nowhere/{index}.txt")


def hermes(home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the real command in a home of its own."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [str(HERMES), *arguments],
        cwd=home,
        env={**os.environ, "HERMES_HOME": str(home), "HOME": str(home), "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=100,
    )


@pytest.mark.skipif(
    version("hermes-agent").startswith("0.17"), reason="`hermes plugins enable` knows installed packages from 0.18 on"
)
def test_newcomer_enables_it(tmp_path: Path) -> None:
    """`hermes plugins enable hermes-fallback` works, and `hermes plugins list` shows it enabled."""
    home = tmp_path / "home"
    home.mkdir()
    assert hermes(home, "plugins", "enable", "hermes-fallback").returncode == 0
    listed = hermes(home, "plugins", "list").stdout
    (row,) = [line for line in listed.splitlines() if "hermes-fallback" in line]
    assert "enabled" in row
    assert "not enabled" not in row


@pytest.mark.parametrize("installed_as", ["entry point", "folder"])
def test_the_block_of_the_issue_works_as_it_stands(tmp_path: Path, installed_as: str) -> None:
    """`hermes chat -q` with the issue's YAML: switch, log line, cost and answer, loaded either way."""
    home = tmp_path / "home"
    home.mkdir()
    # An entry point wins over a folder of its name, so the folder has another one, and only that one is enabled.
    name = "a-clone-of-it" if installed_as == "folder" else "hermes-fallback"
    if installed_as == "folder":
        shutil.copytree(ROOT / "hermes_fallback", home / "plugins" / name / "hermes_fallback")
        for file in ("__init__.py", "plugin.yaml"):
            shutil.copy(ROOT / file, home / "plugins" / name)
        manifest = home / "plugins" / name / "plugin.yaml"
        manifest.write_text(manifest.read_text().replace("name: hermes-fallback", f"name: {name}"))
    with Endpoint(missing) as local, Endpoint(in_order([say("The stronger answer.")]), strict=True, key=KEY) as paid:
        text = config_text(local.url, ISSUE_BLOCK).replace("[hermes-fallback]", f"[{name}]")
        (home / "config.yaml").write_text(text)
        done = hermes(home, "chat", "-q", "read it", OPENAI_BASE_URL=paid.url, OPENAI_API_KEY=KEY)
        assert paid.refusals == []
    log = (home / "logs" / "agent.log").read_text()
    assert "The stronger answer." in done.stdout
    assert "⚡ qwen3.6:9b → openai/gpt-5.4: read_file failed 3 times: file not found" in done.stdout
    assert "⚡ openai/gpt-5.4 helped, because read_file failed 3 times: file not found (1 call," in done.stdout
    assert "hermes_fallback.escalation: escalated session=" in log
    assert "raised" not in log
    assert ("hermes_plugins.a_clone_of_it.hermes_fallback" in log) == (installed_as == "folder")
    assert KEY not in log + done.stdout + done.stderr

    explained = hermes(home, "escalation", "explain")
    assert "because read_file failed 3 times: file not found [repeated_tool_failure]" in explained.stdout
    assert "1 call, 100 tokens in, 20 out, $0.0006" in explained.stdout


def test_script_output_is_the_answer_alone(tmp_path: Path) -> None:
    """`hermes -z` prints the answer and nothing of ours; it logs nothing, and the journal has the row."""
    home = tmp_path / "home"
    home.mkdir()
    with Endpoint(missing) as local, Endpoint(in_order([say("The stronger answer.")]), strict=True, key=KEY) as paid:
        (home / "config.yaml").write_text(config_text(local.url))
        done = hermes(home, "-z", "read it", OPENAI_BASE_URL=paid.url, OPENAI_API_KEY=KEY)
    assert done.stdout.strip() == "The stronger answer."
    assert "qwen3.6:9b → openai/gpt-5.4" in hermes(home, "escalation", "explain").stdout


@pytest.mark.parametrize(
    ("block", "status", "words"),
    [
        (ISSUE_BLOCK, 0, "tier 1, openai/gpt-5.4: ready"),
        (ISSUE_BLOCK, 0, "The stronger model's answer is streamed as it is written."),
        (
            ISSUE_BLOCK.replace("model: qwen3.6:9b", "model: llama4"),
            1,
            "Everything stays local, because Hermes runs qwen3.6:9b (custom), and `primary` is llama4.",
        ),
        ("model_routing: {fallback: hermes}\n", 1, "Hermes has no `fallback_providers`"),
        ("", 1, "No `model_routing` block"),
        (
            ISSUE_BLOCK.replace("max_local_attempts: 3", "max_local_attempts: 0").replace("model: gpt-5.4", "modl: x"),
            1,
            "3 to mend",
        ),
        (ISSUE_BLOCK.replace("provider: openai", "provider: opnai"), 1, "litellm knows no provider “opnai”"),
        (
            ISSUE_BLOCK.replace("provider: openai", "provider: anthropic"),
            1,
            "ANTHROPIC_API_KEY is not set; put the key of anthropic into Hermes's .env",
        ),
    ],
)
def test_check(tmp_path: Path, block: str, status: int, words: str) -> None:
    """`hermes escalation check` says what is wrong, and its exit status does too."""
    home = tmp_path / "home"
    home.mkdir()
    with Endpoint(missing) as local:
        (home / "config.yaml").write_text(config_text(local.url, block))
        done = hermes(home, "escalation", "check", OPENAI_API_KEY=KEY)
    assert words in done.stdout, done.stdout + done.stderr
    assert done.returncode == status


def test_import_is_light() -> None:
    """Importing and registering the plugin brings in no litellm, rich or jsonschema, and no Hermes of its own."""
    code = (
        "import sys, hermes_fallback\n"
        "class Context:\n"
        "    def __getattr__(self, name): return lambda *a, **k: None\n"
        "hermes_fallback.register(Context())\n"
        "print([name for name in ('litellm', 'rich', 'jsonschema', 'openai', 'hermes_cli', 'yaml') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plain_block_is_read_without_jsonschema() -> None:
    """Nothing heavy is loaded for a configuration in which nothing is wrong; for another one, it is."""
    code = (
        "import sys\n"
        "from hermes_fallback.config import ConfigError, parse\n"
        "parse({'fallback': {'provider': 'openai', 'model': 'gpt-5.4'}, 'fallback_policy': {'hold': 'session'}})\n"
        "print('jsonschema' in sys.modules)\n"
        "try:\n"
        "    parse({'fallback': {'provider': 'openai'}})\n"
        "except ConfigError:\n"
        "    print('jsonschema' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_hooks_exist_and_are_those_of_plugin_yaml(world: World) -> None:
    """Everything we register is a hook or middleware of this Hermes, and plugin.yaml lists just that."""
    from hermes_cli.middleware import VALID_MIDDLEWARE  # noqa: PLC0415
    from hermes_cli.plugins import VALID_HOOKS  # noqa: PLC0415

    manifest = yaml.safe_load((ROOT / "plugin.yaml").read_text())
    loaded = world.manager._plugins["hermes-fallback"]  # noqa: SLF001
    assert loaded.error is None
    assert set(loaded.hooks_registered) == set(manifest["provides_hooks"]) <= VALID_HOOKS
    assert set(loaded.middleware_registered) == set(manifest["provides_middleware"]) <= VALID_MIDDLEWARE


def test_version_is_the_same_everywhere() -> None:
    """pyproject.toml, plugin.yaml and CHANGELOG.md agree."""
    import tomllib  # noqa: PLC0415

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "plugin.yaml").read_text())["version"] == version
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_arguments_that_we_read_are_sent(world: World) -> None:
    """Each keyword that an entry point of ours names is one that this Hermes sends."""
    sent: dict[str, set[str]] = {}

    class Spy:
        def __init__(self, adapter: Any) -> None:
            self._adapter = adapter

        def __getattr__(self, name: str) -> Any:
            entry = getattr(self._adapter, name)
            if name not in (*HOOKS, *MIDDLEWARE):
                return entry

            def call(**kwargs: Any) -> Any:
                sent.setdefault(name, set()).update(kwargs)
                return entry(**kwargs)

            return call

    adapter = world.adapter
    world.plugin._adapter = Spy(adapter)  # noqa: SLF001
    world.local.script = in_order([call("read_file", path="/nowhere"), say("done")])
    world.ask()
    for name in ("pre_llm_call", "post_tool_call", "transform_llm_output", "on_session_end", "llm_execution"):
        parameters = inspect.signature(getattr(adapter, name)).parameters.values()
        read = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
        assert read <= sent[name], name


def test_startup_counts() -> None:
    """Having the plugin adds no import of a slow library to `hermes --version`; the time is in benchmarks/RESULTS.md."""
    code = "import json, sys\nimport hermes_fallback\nprint(json.dumps(sorted(sys.modules)))"
    plain = subprocess.run(
        [sys.executable, "-c", code.replace("import hermes_fallback\n", "")], capture_output=True, text=True, check=True
    )
    ours = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    added = set(json.loads(ours.stdout)) - set(json.loads(plain.stdout))
    assert not [name for name in added if name.split(".")[0] in {"asyncio", "httpx", "pydantic", "requests", "yaml"}]


def test_two_chats_that_start_at_once_have_one_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one turn checks a new configuration, another waits for it, instead of going without."""
    checking, others_turn = threading.Event(), threading.Event()
    check = config.parse

    def slow(block: object, **options: Any) -> Any:
        checking.set()
        others_turn.wait(0.3)
        return check(block, **options)

    monkeypatch.setattr(config, "parse", slow)
    settings = Settings(lambda: ({"fallback": {"provider": "openai", "model": "gpt-5.4"}}, False))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(settings.refresh)
        assert checking.wait(10)
        second = pool.submit(settings.refresh)
        assert first.result() is not None
        assert second.result() is first.result()
