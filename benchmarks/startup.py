"""What it costs to have the plugin: a start of the real `hermes` and plugin discovery, with and without it, in turn.

Run by `make bench`, which puts the table into RESULTS.md. Medians of fresh processes, the two sides alternating so
that the machine's moods hit both. `hermes --version` loads no plugin. In a bare process, and so with `hermes -z`, most
of the difference is Hermes's own `ctx.register_command`, which imports prompt_toolkit to look for a name that is taken;
where there are slash commands, that is loaded anyway. The rest of `hermes -z` is our adapter, loaded at its message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import escalating
import measuring  # both beside this file
import pexpect

HERMES = Path(sys.executable).with_name("hermes")
ROUNDS = 15
DISCOVERY = (
    "import time\n"
    "from hermes_cli.plugins import discover_plugins\n"
    "import tools.registry\n"
    "start = time.perf_counter()\n"
    "discover_plugins()\n"
    "print(time.perf_counter() - start)\n"
)
# What every surface with slash commands has loaded: `ctx.register_command` imports it, and prompt_toolkit with it.
WITH_COMMANDS = "import hermes_cli.commands\n"
MEMORY = WITH_COMMANDS + "from hermes_cli.plugins import discover_plugins\ndiscover_plugins()\n"
# A turn is one of Hermes's agent, which has loaded what it needs (the client, sqlite3) before a plugin does something.
TURN = (
    WITH_COMMANDS + "from run_agent import AIAgent\n"
    "AIAgent(base_url='http://127.0.0.1:1/v1', api_key='none', model='local', provider='custom', quiet_mode=True)\n"
    "from types import SimpleNamespace as N\n"
    "from hermes_cli.plugins import discover_plugins, invoke_hook\n"
    "from hermes_cli.middleware import run_llm_execution_middleware\n"
    "discover_plugins()\n"
    "known = {'session_id': 's', 'turn_id': 't', 'task_id': 't', 'model': 'local', 'platform': 'cli'}\n"
    "invoke_hook('pre_llm_call', user_message='Fix it.', conversation_history=[], **known)\n"
    "schema = {'type': 'object', 'properties': {'path': {'type': 'string'}}, 'required': ['path']}\n"
    "tools = [{'type': 'function', 'function': {'name': 'read_file', 'parameters': schema}}]\n"
    "request = {'model': 'local', 'messages': [{'role': 'user', 'content': 'Fix it.'}], 'tools': tools}\n"
    "calls = [N(id='c', type='function', function=N(name='read_file', arguments='{\"path\": \"a.py\"}'))]\n"
    "def answer(content, calls):\n"
    "    choice = N(index=0, message=N(role='assistant', content=content, tool_calls=calls), finish_reason='stop')\n"
    "    reply = N(choices=[choice], usage=None)\n"
    "    run_llm_execution_middleware(request, lambda _: reply, original_request=request, provider='custom',\n"
    "        base_url='http://127.0.0.1:1/v1', api_mode='chat_completions', api_call_count=1, **known)\n"
    "for n in range(20):\n"
    "    answer('', calls)\n"
    "    invoke_hook('post_tool_call', tool_name='read_file', args={'path': n}, result=f'{n} ' * 1000, status='ok',\n"
    "        **known)\n"
    "answer('Here it is.', None)\n"
    "invoke_hook('on_session_end', completed=True, interrupted=False, **known)\n"
)
RESIDENT = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')))\n"
BLOCK = "model_routing: {fallback: {provider: openai, model: gpt-5.4}}\n"


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder, escalating.endpoint() as url:
        local = f"model: {{provider: custom, default: local, base_url: {url}/0/v1, context_length: 65536}}\n"
        homes = {
            name: measuring.home(Path(folder) / name, BLOCK + local, enabled=name == "with")
            for name in ("without", "with")
        }
        print(f"{measuring.machine()}. Medians of {ROUNDS} fresh processes, ± half the interquartile range.\n")
        print("| what | without | with | difference |\n|---|---|---|---|")
        for name, unit, measure in (
            ("`hermes --version`", "ms", partial(_hermes, "--version")),
            ("`hermes`, to its prompt", "ms", _prompt),
            ("`hermes -z`, to the end of a turn with one call", "ms", partial(_hermes, "-z", "Hi")),
            ("plugin discovery on a surface with slash commands", "ms", _discovery_with_commands),
            ("plugin discovery in a bare process", "ms", _discovery),
            ("resident memory after discovery, with slash commands", "MB", partial(_memory, MEMORY)),
            ("resident memory after a turn of 21 calls without a failure", "MB", partial(_memory, TURN)),
        ):
            sides = {side: partial(measure, env=_environment(home)) for side, home in homes.items()}
            values = measuring.in_turn(sides, rounds=ROUNDS)
            row = " | ".join(f"{measuring.shown(values[side])} {unit}" for side in homes)
            print(f"| {name} | {row} | {measuring.difference(values, 'with', 'without'):+.1f} {unit} |", flush=True)


def _environment(home: Path) -> dict[str, str]:
    # Compiled once, as pip leaves a package, and not into this folder.
    compiled = {"PYTHONPYCACHEPREFIX": str(home.parent / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    return {**os.environ, **compiled, "HERMES_HOME": str(home), "HOME": str(home)}


def _hermes(*arguments: str, env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run([str(HERMES), *arguments], env=env, check=True, capture_output=True)
    return (time.perf_counter() - start) * 1000


def _prompt(env: dict[str, str]) -> float:
    start = time.perf_counter()
    shell = {"TERM": "xterm-256color"}
    child = pexpect.spawn(str(HERMES), cwd=env["HOME"], env={**env, **shell}, dimensions=(50, 110), encoding="utf-8")
    child.expect("❯", timeout=60)
    took = (time.perf_counter() - start) * 1000
    child.close(force=True)
    return took


def _discovery(env: dict[str, str]) -> float:
    return float(_python(DISCOVERY, env)) * 1000


def _discovery_with_commands(env: dict[str, str]) -> float:
    return float(_python(WITH_COMMANDS + DISCOVERY, env)) * 1000


def _memory(script: str, env: dict[str, str]) -> float:
    return float(_python(script + RESIDENT, env)) / 1024


def _python(code: str, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    main()
