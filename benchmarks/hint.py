"""Measure whether a one-line hint brings a weak local model back on its way: SmolLM2-135M in the real llama.cpp server.

Each task needs one tool call. Asked once; if no call came, asked again, once to go on and once with a hint.
The only model at hand that is small enough for any machine is far weaker than those that people run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

HINT = "You have not called a tool yet. Call read_file with the path now, and answer from what it returns."
PLAIN = "Please go on."
FILES = ("notes.txt", "config.toml", "README.md", "src/app.py", "data/prices.csv", "todo.md", "log.txt", "main.c")
QUESTIONS = ("Read {} and tell me what it says.", "What is on the first line of {}?", "Summarize {} in one sentence.")
TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Read a text file and return its content.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}


def main() -> None:
    """Print the table."""
    command = [sys.executable, str(Path(__file__).parents[1] / "demo" / "local_model.py"), "4096"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None  # noqa: S101  # for mypy
        url = server.stdout.readline().strip()
        asked = [question.format(file) for question in QUESTIONS for file in FILES]
        called = {"at once": 0, "asked again": 0, "with the hint": 0}
        missed = 0
        for text in asked:
            messages: list[dict[str, Any]] = [{"role": "user", "content": text}]
            first = _ask(url, messages)
            if first.get("tool_calls"):
                called["at once"] += 1
                continue
            missed += 1
            messages.append({"role": "assistant", "content": first.get("content") or ""})
            for name, line in (("asked again", PLAIN), ("with the hint", HINT)):
                called[name] += bool(_ask(url, [*messages, {"role": "user", "content": line}]).get("tool_calls"))
        server.terminate()
    print("| tool called | of | times |\n|---|---|---|")
    print(f"| at once | {len(asked)} | {called['at once']} |")
    for name in ("asked again", "with the hint"):
        print(f"| {name} | {missed} | {called[name]} |")


def _ask(url: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
    body = {"messages": messages, "tools": [TOOL], "max_tokens": 120, "temperature": 0.0}
    request = urllib.request.Request(  # noqa: S310  # loopback
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        message: dict[str, Any] = json.load(response)["choices"][0]["message"]
        return message


if __name__ == "__main__":
    main()
