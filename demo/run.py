"""`make demo`: a real local model that cannot go on, a stand-in for the paid one, and the real `hermes` between them.

The local model is SmolLM2-135M in the real llama.cpp server with a context of 2,048 tokens. It answers a small question.
Then it gets a log that is longer than its context: Hermes alone gives up on that, with or without `fallback_providers`.
Only the paid model is a stand-in; it works from the conversation it is handed, and its key never leaves this machine.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.endpoints import Answer, Endpoint, call, say

HERMES = Path(sys.executable).with_name("hermes")
CONTEXT_TOKENS = 2048
KEY = "sk-only-for-the-stand-in"
QUESTION = "Here is last night's backup log. Which disk failed? Write its name into finding.txt.\n\n"


def main() -> int:
    """Run the two questions; return 0 when the second one was escalated and finished."""
    folder = Path(tempfile.mkdtemp(prefix="hermes-fallback-demo-"))
    try:
        return _run(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path) -> int:
    command = [sys.executable, str(Path(__file__).with_name("local_model.py")), str(CONTEXT_TOKENS)]
    server_log = (folder / "llama.log").open("w")
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=server_log, text=True) as local,
        Endpoint(_stronger_model, strict=True, key=KEY) as paid,
    ):
        assert local.stdout is not None
        url = local.stdout.readline().strip()
        if not url:
            print((folder / "llama.log").read_text(), file=sys.stderr)
            return 1
        env = _environment(folder, local_url=url, paid_url=paid.url)
        _say("1. A small question: the local model answers, and nothing is paid.")
        _hermes(folder, env, "chat", "-t", "file", "-q", "What is the capital of France?")
        _say(f"2. A log that is longer than the local model's {CONTEXT_TOKENS} tokens: the stronger model takes over.")
        _hermes(folder, env, "chat", "-t", "file", "-q", QUESTION + _backup_log(), shown='"… Which disk failed? …"')
        local.terminate()
    _say("What it wrote (finding.txt):")
    finding = folder / "work" / "finding.txt"
    print(finding.read_text() if finding.exists() else "nothing")
    _say("Hermes's agent.log says:")
    log = (folder / "hermes" / "logs" / "agent.log").read_text()
    lines = [line for line in log.splitlines() if "hermes_fallback" in line]
    print("\n".join(lines))
    _say("The journal's row:")
    rows = _journal(folder / "hermes" / "hermes-fallback" / "journal.sqlite3")
    for row in rows:
        print("\n".join(f"  {name}: {value}" for name, value in row.items()))
    _say("hermes escalation explain")
    _hermes(folder, env, "escalation", "explain")
    finished = any("task finished" in line and "2 calls" in line for line in lines)
    done = finished and finding.exists() and "sdc" in finding.read_text() and len(rows) == 1
    print("\nThe local model got stuck, and the stronger one finished the task." if done else "\nSOMETHING WENT WRONG.")
    return 0 if done else 1


def _environment(folder: Path, *, local_url: str, paid_url: str) -> dict[str, str]:
    home = folder / "hermes"
    home.mkdir()
    (folder / "work").mkdir()
    (home / "config.yaml").write_text(f"""\
model:
  provider: ollama
  default: smollm2:135m
  base_url: {local_url}
  context_length: 65536
plugins:
  enabled: [hermes-fallback]
model_routing:
  primary:
    provider: ollama
    model: smollm2:135m
  fallback:
    provider: openai
    model: gpt-5.4
  fallback_policy:
    enabled: true
    max_local_attempts: 3
""")
    _say("The configuration, in a temporary Hermes home:")
    print((home / "config.yaml").read_text())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HERMES_")}
    return {
        **kept,
        "HOME": str(folder),
        "HERMES_HOME": str(home),
        "OPENAI_BASE_URL": paid_url,
        "OPENAI_API_KEY": KEY,
        "PYTHONWARNINGS": "ignore",
    }


def _hermes(folder: Path, env: dict[str, str], *arguments: str, shown: str | None = None) -> None:
    print(f"$ hermes {' '.join([*arguments[:-1], shown or arguments[-1]])}", flush=True)
    subprocess.run([str(HERMES), *arguments], cwd=folder / "work", env=env, check=False, timeout=300)


def _backup_log() -> str:
    lines = [
        f"02:{n // 60:02}:{n % 60:02} disk sd{'abcdef'[n % 6]}: block {n * 811} copied, checksum good"
        for n in range(60)
    ]
    lines[38] = "02:00:38 disk sdc: block 30818 read error, checksum bad, disk given up"
    return "\n".join(lines)


def _stronger_model(request: dict[str, Any], _index: int) -> Answer:
    """Stand in for the paid model: find the bad line in what it was handed, write the disk's name, and say so."""
    conversation = "\n".join(str(message.get("content")) for message in request["messages"])
    found = re.search(r"disk (sd\w): block (\d+) read error", conversation)
    disk, block = found.groups() if found else ("unknown", "unknown")
    if request["messages"][-1]["role"] != "tool":
        return call("write_file", path="finding.txt", content=f"{disk}\n")
    return say(f"Disk {disk} failed, at block {block}. Its name is in finding.txt.", usage=(6200, 24))


def _journal(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as connection:
        connection.row_factory = sqlite3.Row
        query = (
            "SELECT e.*, count(*) AS calls, sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens,"
            " round(sum(cost_usd), 6) AS cost_usd FROM escalations e JOIN calls c ON c.escalation = e.id GROUP BY e.id"
        )
        return [dict(row) for row in connection.execute(query)]


def _say(text: str) -> None:
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
