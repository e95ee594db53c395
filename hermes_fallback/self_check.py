"""The question that the local model is asked about its own final answer, and what its reply means.

Pure; `adapter` asks it, at the local endpoint, where it costs nothing and the conversation stays.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from . import handoff
from .config import Tier
from .replies import without_thinking

# Small local models have small contexts, and are slow readers.
_REQUEST_CHARS = 2000
_RESULT_CHARS = 600
_RESULTS = 6
_ANSWER_CHARS = 2000
_TIMEOUT_SECONDS = 30.0
# For one word; a model that thinks first needs room for that.
_MAX_TOKENS = 400

_VERDICT = re.compile(r"\A\W*(yes|no)\b|\b(yes|no)\W*\Z", re.IGNORECASE)


def tier(model: str, base_url: str, api_key: str | None) -> Tier:
    """Return the local endpoint as something that `executor` can call; most local servers want no key."""
    return Tier(
        provider="openai",
        model=model,
        base_url=base_url,
        max_tokens=_MAX_TOKENS,
        temperature=0.0,
        timeout_seconds=_TIMEOUT_SECONDS,
        extra={"api_key": api_key or "none"},
    )


def question(messages: Sequence[Mapping[str, Any]], answer: str) -> list[dict[str, str]]:
    """Return the messages that ask whether `answer` fulfils the last request by what the tools showed."""
    asked_at = max((at for at, message in enumerate(messages) if message.get("role") == "user"), default=0)
    task = messages[asked_at:]
    request = handoff.text_of(task[0].get("content")) if task else ""
    results = [handoff.text_of(message.get("content")) for message in task if message.get("role") == "tool"]
    shown = "\n".join(f"- {_middle_out(result, _RESULT_CHARS)}" for result in results[-_RESULTS:])
    return [
        {
            "role": "system",
            "content": "You check an assistant's work, by what its tools showed. Reply with one word: yes or no.",
        },
        {
            "role": "user",
            "content": (
                f"The request:\n{_middle_out(request, _REQUEST_CHARS)}\n\n"
                f"What the tools showed:\n{shown or '(no tool was called)'}\n\n"
                f"The assistant's answer:\n{_middle_out(without_thinking(answer), _ANSWER_CHARS)}\n\n"
                "Is the request fulfilled, and does what the tools showed support the answer? yes or no:"
            ),
        },
    ]


def is_fulfilled(reply: str) -> bool | None:
    """Return what a reply to the question says at its beginning or end, or None when that is neither yes nor no."""
    found = _VERDICT.search(without_thinking(reply))
    return None if found is None else (found[1] or found[2]).lower() == "yes"


def is_local(base_url: str) -> bool:
    """Tell whether an endpoint is on this machine or in this network: elsewhere, asking costs money."""
    host = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        # No host at all would be the provider's own.
        return bool(host) and ("." not in host or host.endswith((".local", ".lan", ".internal", ".home.arpa")))


def _middle_out(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2]} […] {text[-length // 2 :]}"
