"""What must never leave the machine is found, however it is written."""

from __future__ import annotations

import json
import unicodedata
from typing import Any

import pytest

from hermes_fallback.never_send import never_send_match
from tests.test_redact import call, picture, said

MATCHES = [
    ("*.pem", {"path": "/home/me/key.pem"}, "", True),
    ("*.pem", {"path": "key.PEM"}, "", True),
    ("*.pem", {"path": "my keys/a key.pem"}, "", True),
    ("*.pem", {"command": "cat 'deploy/key.pem' | head"}, "", True),
    ("*.pem", {"path": "key.pem.txt"}, "", False),
    ("*.pem", {}, '{"files": ["a.txt", "b/c.pem"]}', True),
    ("*.pem", {}, json.dumps({"output": "total 2\nkey.pem\nb.txt"}), True),
    ("**/secrets/*", {"path": "secrets/a"}, "", True),
    ("**/secrets/*", {"path": "/srv/app/secrets/a/b.txt"}, "", True),
    ("**/secrets/*", {"path": "C:\\app\\secrets\\a.txt"}, "", True),
    ("**/secrets/*", {"path": "src/secrets.py"}, "", False),
    ("secrets/", {"path": "secrets/a"}, "", True),
    ("~/private/*", {"path": "/home/me/private/x"}, "", True),
    (".env*", {"path": "app/.env.local"}, "", True),
    (".env*", {"path": "app/env.py"}, "", False),
    ("Project Falcon", {}, "notes on project falcon", True),
    ("Project Falcon", {}, "notes on project eagle", False),
    ("Verträge", {"path": "Verträge/a.pdf"}, "", True),
    ("Verträge", {}, unicodedata.normalize("NFD", "Verträge/a.pdf"), True),
    (unicodedata.normalize("NFD", "Verträge"), {}, "VERTRÄGE", True),
    ("Verträge", {}, json.dumps({"output": json.dumps(["Verträge"])}), True),
    ("Verträge", {}, json.dumps({"output": '?? "Vertr\\303\\244ge/a.pdf"'}), True),
    ("**/Verträge", {}, '?? "my/Vertr\\303\\244ge/a.pdf"', True),
    ("**/Verträge", {}, repr("my/Verträge/a.pdf".encode()), True),
    ("**/Verträge", {}, "https://host/Vertr%c3%a4ge/a.pdf", True),
    ("geheim 🙂", {}, json.dumps("geheim 🙂"), True),
    ("geheim 🙂", {}, ascii("geheim 🙂"), True),
    ("**/Verträge", {}, ascii("my/Verträge/a.pdf"), True),
    ("Verträge", {}, "C:\\Vertr\\users\\303\\x9 \\ud800 100%aber", False),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "arguments", "result", "matches"), MATCHES)
def test_never_send(pattern: str, arguments: dict[str, str], result: str, *, matches: bool) -> None:
    """A path or a text that must not leave the machine is found in what was asked for and in what came back."""
    messages = [
        said("please"),
        {"role": "assistant", "content": None, "tool_calls": [call(json.dumps(arguments))]},
        {"role": "tool", "tool_call_id": "1", "content": result},
    ]
    assert never_send_match(messages, ["nothing", pattern]) == (pattern if matches else None)


@pytest.mark.parametrize("run", ["\\", "\\u", "%", "\\x", "\\3"])
def test_never_send_takes_no_longer_for_a_run_of_backslashes(run: str) -> None:
    """A model that cannot stop may write them without end: each is looked at once (one at a time took minutes)."""
    assert never_send_match([said(run * 100_000)], ["falcon", "**/falcon"]) is None


def test_never_send_looks_at_messages_of_any_shape() -> None:
    """Words of the user and arguments that are no JSON count too; without patterns nothing does."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [picture(), {"type": "text", "text": "look at Falcon"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{cat a.key"}}, {}]},
    ]
    assert never_send_match(messages, ["falcon"]) == "falcon"
    assert never_send_match(messages, ["*.key"]) == "*.key"
    assert never_send_match(messages, []) is None
