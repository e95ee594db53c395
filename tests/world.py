"""The real Hermes in this process, between two model endpoints on loopback.

Hermes reads its home once at import, so all tests of a run share one, made here; each test writes its own config.yaml and
starts with an empty journal. Nothing of the machine's own Hermes or keys is seen.

Every key is a canary: `leaks` looks for it, after each test (conftest.py), in all that was written, shown and logged.
"""

from __future__ import annotations

import atexit
import base64
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.endpoints import Endpoint, Script, in_order, say

ROOT = Path(tempfile.mkdtemp(prefix="hermes-fallback-tests-"))
# Leave nothing behind: after what Hermes does at the end, which makes a folder there, for it is imported later.
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
HOME = ROOT / "hermes"
HOME.mkdir()
KEY = "sk-canary-0123456789abcdef"

for name in list(os.environ):
    if name.endswith(("_API_KEY", "_BASE_URL", "_API_BASE")) or name.startswith("HERMES_"):
        del os.environ[name]
os.environ["HERMES_HOME"] = str(HOME)
os.environ["HOME"] = str(ROOT)
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
# Hermes reads all the world's authorities six times for each agent, a third of a second; here is nobody to trust.
for name in ("CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
    os.environ.pop(name, None)
os.environ["HERMES_SKIP_SSL_GUARD"] = "1"
os.environ["SSL_CERT_FILE"] = str(ROOT / "authority.pem")
trustme.CA().cert_pem.write_to_path(os.environ["SSL_CERT_FILE"])

# Hermes reads its home when these are imported; the first one first, for its parts import each other.
import run_agent  # noqa: E402  # isort: skip
import hermes_state  # noqa: E402, F401  # isort: skip

MODEL = "qwen3.6:9b"
ISSUE_BLOCK = """\
model_routing:
  primary:
    provider: ollama
    model: qwen3.6:9b
  fallback:
    provider: openai
    model: gpt-5.4
  fallback_policy:
    enabled: true
    max_local_attempts: 3
    trigger_on:
      - repeated_tool_failure
      - invalid_output
      - no_progress
      - task_timeout
      - user_request
"""


def config_text(local_url: str, block: str = ISSUE_BLOCK, *, provider: str = "ollama", more: str = "") -> str:
    """A Hermes config.yaml with the plugin enabled and the local model at `local_url`."""
    return (
        f"model:\n  provider: {provider}\n  default: {MODEL}\n  base_url: {local_url}\n  context_length: 65536\n"
        # The other one hashes a password whenever plugins are loaded, as they are for each test.
        f"plugins:\n  enabled: [hermes-fallback]\n  disabled: [dashboard_auth/basic]\n{more}{block}"
    )


@dataclass
class Screen:
    """What the user sees and when: lines of notice, pieces of streamed text (None closes a box)."""

    shown: list[str | None] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it, one line each."""
        return "\n".join(piece if piece is not None else "--- box closed" for piece in self.shown)


class World:
    """A local model, a paid one, and Hermes between them."""

    def __init__(self, stack: ExitStack, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._stack = stack
        self._monkeypatch = monkeypatch
        self.folder = folder
        self._screens: list[Screen] = []
        self._answers: list[str] = []
        self.local = stack.enter_context(Endpoint(in_order([say("local answer")])))
        self.paid = stack.enter_context(Endpoint(in_order([say("paid answer")]), strict=True, key=KEY))
        monkeypatch.setenv("OPENAI_BASE_URL", self.paid.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        self.configure()

    def configure(self, block: str = ISSUE_BLOCK, **more: str) -> None:
        """Write the config; Hermes notices at its next look."""
        (HOME / "config.yaml").write_text(config_text(self.local.url, block, **more))

    def endpoint(self, script: Script, **options: Any) -> Endpoint:
        """One more paid endpoint, as strict as the first."""
        return self._stack.enter_context(Endpoint(script, strict=True, **options))

    @property
    def manager(self) -> Any:
        """Hermes's plugin manager, with our plugin loaded by its entry point."""
        from hermes_cli.plugins import get_plugin_manager  # noqa: PLC0415  # after HERMES_HOME is set

        return get_plugin_manager()

    @property
    def adapter(self) -> Any:
        """Our side of the running plugin."""
        return self.plugin.adapter

    @property
    def plugin(self) -> Any:
        """What Hermes holds of us."""
        return self.manager._plugin_commands["escalate"]["handler"].__self__  # noqa: SLF001

    def load(self) -> None:
        """Have Hermes discover and load its plugins anew."""
        self.manager.discover_and_load(force=True)

    def command(self, text: str) -> str:
        """Give a slash command as Hermes does: the handler gets what stands behind the name."""
        handler: Callable[[str], str] = self.manager._plugin_commands["escalate"]["handler"]  # noqa: SLF001
        answer = handler(text)
        self._answers.append(answer)
        return answer

    def agent(self, *, session_id: str | None = None, screen: Screen | None = None, **options: Any) -> Any:
        """A Hermes agent on the local model; with a `screen`, somebody watches it stream."""
        agent = run_agent.AIAgent(
            base_url=self.local.url,
            api_key="none",
            model=MODEL,
            provider="custom",
            session_id=session_id or f"session-{uuid.uuid4().hex[:8]}",
            **{
                "platform": "cli",
                "enabled_toolsets": ["file", "terminal"],
                "quiet_mode": True,
                "skip_memory": True,
                **options,
            },
        )
        if screen is not None:
            self._screens.append(screen)
            agent.stream_delta_callback = screen.shown.append
            # As the CLI has one; else a spinner, which nobody sees, holds up each tool call for half a second.
            agent.tool_progress_callback = lambda *_, **__: None
            agent._print_fn = lambda *parts, **_: screen.shown.append(" ".join(map(str, parts)))  # noqa: SLF001
        return agent

    def ask(self, message: str = "do it", *, agent: Any = None, history: Any = None) -> Any:
        """Run one user turn; return Hermes's result."""
        result = (agent or self.agent()).run_conversation(message, conversation_history=history)
        self._answers.append(str(result["final_response"]))
        return result

    @property
    def told(self) -> Iterator[str]:
        """All that the user saw and was answered."""
        yield from self._answers
        yield from (screen.text for screen in self._screens)


@contextmanager
def opened(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[World]:
    """A world with the plugin loaded; when it closes, no key is in what was written into Hermes's home or shown."""
    # A second earlier, for clocks of file systems are coarse.
    began = time.time() - 1
    with ExitStack() as stack:
        world = World(stack, monkeypatch, folder)
        world.load()
        yield world
    found = leaks(world.told, files=files_below(ROOT, since=began))
    assert not found, found


def log_of(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """The plugin's log lines of at least that level."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("hermes_fallback") and record.levelno >= level
    ]


# Where a key is put on purpose.
_PLACES_OF_KEYS = frozenset({"config.yaml", ".env"})
# So much of a key is a leak: what is shown of one to tell it from others, as Hermes does in its log, is less.
_KEY_CHARS = 16


def keys_in_use() -> frozenset[str]:
    """The canary, and each key that the environment has now."""
    ends = ("_KEY", "_TOKEN", "_PASSWORD", "_SECRET")
    # HERMES_SESSION_KEY is the name of a chat, which Hermes 0.17 puts there and into its log.
    named = (value for name, value in os.environ.items() if name.endswith(ends) and not name.startswith("HERMES_"))
    return frozenset({KEY, *(value for value in named if len(value) >= 8)})


def leaks(texts: Iterable[str], *, files: Iterable[Path] = (), keys: Iterable[str] = ()) -> list[str]:
    """Say where a key stands that stands nowhere: as it is, as base64, as hexadecimal digits, or as the hash of it."""
    forms = re.compile(b"|".join(re.escape(form) for key in {*keys, *keys_in_use()} for form in _forms(key)))
    told = filter(None, (forms.search(text.encode("utf-8", "surrogatepass")) for text in texts))
    written = ((path, forms.search(_content(path))) for path in files if path.name not in _PLACES_OF_KEYS)
    # What stands before a key says whose words it is in.
    return [
        *(f"behind {at.string[max(at.start() - 60, 0) : at.start()]!r}" for at in told),
        *(f"in {path}, at byte {at.start()}" for path, at in written if at),
    ]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # a temporary one
        return b""


def _forms(key: str) -> Iterator[bytes]:
    part = key.encode()[:_KEY_CHARS]
    yield part
    yield part.hex().encode()
    yield hashlib.sha256(key.encode()).hexdigest()[:_KEY_CHARS].encode()
    for before in range(3):
        # Wherever the key begins in a group of three; the digits at both ends depend on what is beside it.
        coded = base64.b64encode(b"\0" * before + part)
        yield coded[-(-before * 8 // 6) : (before + len(part)) * 8 // 6]


def files_below(folder: Path, *, since: float = 0.0) -> Iterator[Path]:
    """The files below a folder that were written since then."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a temporary one
            found = path.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_mtime >= since:
                yield path
