"""`hermes escalation init`: its options and questions, what it shows, and what is left to do for the user.

It never asks for a key. Where a name is wanted, what looks like a key is refused, and not repeated.
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

from ... import config as configuration
from ... import executor, host, lazy_litellm, redact
from ...config import ConfigError, Policy, Primary, Tier
from ...explain import plain
from ...faults import without_login
from ...host import Running
from ...self_check import is_local
from . import block, config_file, servers, splice
from .block import Answers
from .config_file import ConfigFile, ConfigFileError
from .servers import LocalModel
from .splice import SpliceError

HELP = "write the model_routing block into Hermes's config.yaml: finds the local model, asks for the rest"

_GOOD, _FAULTS, _USAGE = 0, 1, 2
_CONFIRM = ("never", "first_in_session", "always")
_PLUGIN = "hermes-fallback"
_EXAMPLE = "openai/gpt-5.4"
# Shorter than real keys are, for it may be one that was cut. A variable's name is in capitals.
_KEY = re.compile(r"(?<![A-Za-z0-9])(?:sk|pk|rk|gsk|xai)[-_]\w[\w-]{5,}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEY_CHARS = 20
_URL = re.compile(r"https?://[^\s/@]+(/\S*)?")

_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}

_T = TypeVar("_T")


class _Refused(Exception):  # noqa: N818  # it is the answer that is refused
    """It cannot go on; the message says why and what to write."""


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--yes", action="store_true", help="ask nothing and write, for scripts")
    add("--dry-run", action="store_true", help="show what would change, and write nothing")
    add("--primary", type=_model, metavar="MODEL", help="the local model")
    add("--primary-url", type=_url, metavar="URL", help="its endpoint, for example http://127.0.0.1:11434/v1")
    add("--fallback", type=_tier, metavar="PROVIDER/MODEL", help=f"the paid model, for example {_EXAMPLE}")
    add("--key-env", type=_variable, metavar="NAME", help="the name of the variable with its key, if it is another one")
    for limit in block.LIMITS:
        option = "--" + limit.removesuffix("_usd").replace("_", "-")
        meaning = f"dollars {limit.removesuffix('_usd').replace('_', ' ')} at most, or none"
        # Absent and none are not the same.
        add(option, type=_dollars, dest=limit, default=argparse.SUPPRESS, metavar="USD", help=meaning)
    add("--confirm", choices=_CONFIRM, help="whether you are asked before a paid call")
    add(
        "--shadow",
        action=argparse.BooleanOptionalAction,
        help="only note what would be escalated, and pay nothing (enabled: shadow)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the block; return the exit status: 1 when it was not written and should have been."""
    try:
        return _run(args)
    except (KeyboardInterrupt, EOFError):
        print("\nNothing was written.")
        return _FAULTS
    except ConfigError as error:
        message = "\n  ".join(["the block would not be usable, and nothing was written:", *error.faults])
    except (ConfigFileError, SpliceError, _Refused) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename or 'config.yaml'}: {error.strerror or error}; nothing was written"
    print("\n".join(map(plain, f"init: {message}".splitlines())), file=sys.stderr)
    return _FAULTS


def _run(args: argparse.Namespace) -> int:
    asks = not args.yes and sys.stdin.isatty()
    if not (asks or args.yes or args.dry_run):
        raise _Refused(f"there is no terminal to ask on; write what you want: --yes --fallback {_EXAMPLE}")
    if (system := host.managed_by()) is not None:
        raise _Refused(f"config.yaml belongs to {system} here; write the block where {system} takes it from")
    file = config_file.read(host.hermes_home() / "config.yaml")
    old = _expanded(_block_of(file.document))
    if not asks and args.fallback is None and not old.get("fallback"):
        print(f"init: --fallback is needed: the paid model, for example --fallback {_EXAMPLE}", file=sys.stderr)
        return _USAGE
    running = _running()
    answers = _answers(args, old, running, asks=asks)
    wanted = block.merged(file.document, answers, plugin=_PLUGIN if _is_installed() else None)
    _check(wanted["model_routing"])
    outcome = _bring_about(file, wanted, dry_run=args.dry_run, asks=asks)
    if outcome == _GOOD and not args.dry_run:
        _tell_next_steps(wanted["model_routing"], running, home=file.path.parent)
    return outcome


def _block_of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found = document.get("model_routing")
    return found if isinstance(found, dict) else {}


def _is_installed() -> bool:
    # As a folder among Hermes's plugins it has another package name, and is enabled by the name of that folder.
    return (__package__ or "").partition(".")[0] == "hermes_fallback"


def _check(wanted: Mapping[str, Any]) -> None:
    _, host_has_chain = host.read_config()
    configuration.parse(_expanded(wanted), host_has_chain=host_has_chain)


def _expanded(value: Any) -> Any:
    """Return the value with each `${NAME}` replaced, as Hermes reads it."""
    match value:
        case str():
            return os.path.expandvars(value)
        case dict():
            return {key: _expanded(inner) for key, inner in value.items()}
        case list():
            return [_expanded(inner) for inner in value]
    return value


def _running() -> Running | None:
    try:
        return host.running_model()
    except Exception:  # noqa: BLE001  # Hermes says in many ways that it cannot run
        return None


def _answers(args: argparse.Namespace, old: Mapping[str, Any], running: Running | None, *, asks: bool) -> Answers:
    """Return what the options say; where they say nothing, what somebody answers, if there is somebody."""
    if asks:
        # It takes seconds, while somebody reads and types.
        lazy_litellm.warm((Tier("openai", "any"),))
        _say("This writes the model_routing block of Hermes's config.yaml.")
        _say("Enter takes what is in parentheses, Ctrl+C writes nothing.")
        print()
    return Answers(
        primary=_primary(args, old, running, asks=asks),
        tier=_paid(args, old, asks=asks),
        limits=_limits(args, old, asks=asks),
        confirm=_confirm(args, old, asks=asks),
        enabled=None if args.shadow is None else "shadow" if args.shadow else True,
    )


def _primary(
    args: argparse.Namespace, old: Mapping[str, Any], running: Running | None, *, asks: bool
) -> Primary | None:
    """Return the local model; None leaves the one that is configured."""
    before = block.primary_of(old)
    if before is not None and not (asks or args.primary or args.primary_url):
        return None
    local = _local(running) if args.primary_url is None else None
    found = _found(args, local)
    if args.primary is not None:
        model = _named(args.primary, found, args.primary_url)
    elif asks:
        _tell_what_there_is(found, running, local)
        proposal = local.name if local else before.model if before else "1" if found else None
        model = _ask_model(found, proposal, args.primary_url)
    else:
        model = _only(found)
    return block.primary_for(model, before, with_url=args.primary_url is not None)


def _local(running: Running | None) -> LocalModel | None:
    """Return what Hermes runs, if that is on this machine or in this network."""
    if running is None or not running.model or not running.base_url or not is_local(running.base_url):
        return None
    return LocalModel(running.model, servers.server_at(running.base_url))


def _found(args: argparse.Namespace, local: LocalModel | None) -> tuple[LocalModel, ...]:
    if args.primary_url is not None:
        return servers.models((servers.server_at(args.primary_url),))
    if local is not None and (args.primary is None or Primary(args.primary).is_named(local.name)):
        return (local,)
    return servers.models(servers.WELL_KNOWN)


def _named(name: str, found: Sequence[LocalModel], url: str | None) -> LocalModel:
    elsewhere = LocalModel(name, None if url is None else servers.server_at(url))
    return next((model for model in found if Primary(name).is_named(model.name)), elsewhere)


def _only(found: Sequence[LocalModel]) -> LocalModel:
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(model.name for model in found)
        raise _Refused(f"there are several local models, so name one with --primary: {names}")
    raise _Refused("no local model was found; start its server, or name it with --primary MODEL --primary-url URL")


def _paid(args: argparse.Namespace, old: Mapping[str, Any], *, asks: bool) -> Tier | None:
    """Return the paid model; None leaves the one that is configured."""
    before = block.paid_tier(old)
    tier: Tier | None = args.fallback
    if tier is None and asks:
        _say(
            "\nThe paid model, by litellm's names (docs.litellm.ai/docs/providers), for example "
            f"{_EXAMPLE}, anthropic/claude-sonnet-4-5 or openrouter/qwen/qwen3-coder."
        )
        tier = _ask("Paid model, PROVIDER/MODEL", None if before is None else before.name, _tier)
    if before is not None and (tier is None or tier.name == before.name):
        tier = before
    if args.key_env is not None:
        if tier is None:
            raise _Refused(f"--key-env is the key of a paid model; name that too, for example --fallback {_EXAMPLE}")
        tier = replace(tier, api_key_env=args.key_env)
    if asks and tier is not None and (fault := executor.fault_of(tier)) is not None:
        _say(f"Note: {fault}.", indent="  ")
    return None if tier == before else tier


def _limits(args: argparse.Namespace, old: Mapping[str, Any], *, asks: bool) -> dict[str, float | None]:
    limits: dict[str, float | None] = {name: limit for name, limit in vars(args).items() if name in block.LIMITS}
    if not asks or len(limits) == len(block.LIMITS):
        return limits
    _say("\nIn dollars, what may be spent at most; what would cost more stays local.")
    for name in block.LIMITS:
        if name not in limits:
            before = block.limits_of(old).get(name)
            period = name.removeprefix("per_").removesuffix("_usd")
            limits[name] = _ask(f"Limit for a {period}", "none" if before is None else str(before), _dollars)
    return limits


def _confirm(args: argparse.Namespace, old: Mapping[str, Any], *, asks: bool) -> str | None:
    if args.confirm is not None or not asks:
        return cast("str | None", args.confirm)
    _say("\nAre you asked before a paid call: never, first_in_session, or always?")
    return _ask("When", block.confirm_of(old) or Policy().confirm, _consent)


def _tell_what_there_is(found: Sequence[LocalModel], running: Running | None, local: LocalModel | None) -> None:
    if local is not None:
        print(_what_runs(running))
    elif found:
        _say(f"{_what_runs(running)} These models are there:")
        for number, model in enumerate(found, start=1):
            print(plain(f"  {number}  {model.name}  ({model.server})"))
    else:
        ports = "; ".join(str(server) for server in servers.WELL_KNOWN)
        _say(f"{_what_runs(running)} No local server answers ({ports}).")


def _ask_model(found: Sequence[LocalModel], proposal: str | None, url: str | None) -> LocalModel:
    def accept(text: str) -> LocalModel:
        if text.isdecimal() and 1 <= int(text) <= len(found):
            return found[int(text) - 1]
        return _named(_model(text), found, url)

    return _ask("Local model" + (", by number or name" if len(found) > 1 else ""), proposal, accept)


def _what_runs(running: Running | None) -> str:
    if running is None:
        return "Hermes has no model to run yet."
    # Neither a login in the address nor what a terminal would obey in a name.
    where = f"{running.model or 'no model'} at {without_login(running.base_url) or running.provider}"
    return plain(f"Hermes runs {where}{'.' if _local(running) else ', which is not local.'}")


def _ask(question: str, default: str | None, accept: Callable[[str], _T]) -> _T:
    """Ask until the answer is accepted."""
    while True:
        text = input(f"{question}{'' if default is None else f' ({default})'}: ").strip() or default
        if text is None:
            print("  It is needed.")
            continue
        try:
            return accept(text)
        except argparse.ArgumentTypeError as fault:
            _say(str(fault), indent="  ")


def _bring_about(file: ConfigFile, wanted: dict[str, Any], *, dry_run: bool, asks: bool) -> int:
    """Show what changes, and write it if that is what the user wants."""
    try:
        text = splice.rewritten(file.text, wanted)
    except SpliceError as error:
        lines = splice.as_block({"model_routing": wanted["model_routing"]})
        raise _Refused(f"config.yaml: {error}; write this into it yourself:\n\n{lines}") from error
    if text == file.text:
        print(f"{file.path} is as you want it; nothing to change.")
        return _GOOD
    _show_diff(file.text, text)
    if dry_run:
        print("Nothing was written (--dry-run).")
        return _GOOD
    if asks and not _ask(f"\nWrite it into {file.path}?", "yes", _yes_or_no):
        print("Nothing was written.")
        return _FAULTS
    kept = config_file.write(file, text)
    print(f"Written: {file.path}" + ("" if kept is None else f"; the old one is {kept.name}"))
    return _GOOD


def _show_diff(old: str, new: str) -> None:
    # Imported here: only this command needs it.
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    styles = {"+": "green", "-": "red", "@": "cyan"}
    console = Console(highlight=False)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), "config.yaml", "config.yaml, new", lineterm="")
    print()
    # The lines around ours may hold anything, and a script's output is kept.
    for line in _masked("\n".join(lines)).splitlines():
        style = "bold" if line.startswith(("+++", "---")) else styles.get(line[:1], "")
        console.print(Text(plain(line), style), soft_wrap=True)


def _tell_next_steps(written: Mapping[str, Any], running: Running | None, *, home: Path) -> None:
    steps = [
        *_to_run_locally(written, running),
        *_to_have_keys(written, home),
        *_to_pay(written),
        "run `hermes escalation check`, to see whether all is there",
    ]
    print("\nNext:")
    for number, step in enumerate(steps, start=1):
        _say(f"{number}. {step}", indent="  ")


def _to_run_locally(written: Mapping[str, Any], running: Running | None) -> Iterator[str]:
    primary = block.primary_of(_expanded(written))
    if primary is None or (_local(running) is not None and _matches(primary, running)):
        return
    usual = next((server.url for server in servers.WELL_KNOWN if server.provider == primary.provider), None)
    url = primary.base_url or usual
    yield (
        f"run `hermes model` and choose {primary.model}{f' at {url}' if url else ''}. {_what_runs(running)} "
        "Only tasks of the model that Hermes itself runs are escalated."
    )


def _matches(primary: Primary, running: Running | None) -> bool:
    return running is not None and primary.matches(
        model=running.model, provider=running.provider, base_url=running.base_url
    )


def _to_have_keys(written: Mapping[str, Any], home: Path) -> Iterator[str]:
    tier = block.paid_tier(_expanded(written))
    fault = None if tier is None else executor.fault_of(tier)
    if fault is not None:
        yield fault.replace("Hermes's .env", str(home / ".env"))


def _to_pay(written: Mapping[str, Any]) -> Iterator[str]:
    if written["fallback_policy"]["enabled"] == "shadow":
        yield "nothing is paid while `enabled` is shadow; to pay, run `hermes escalation init --no-shadow`"


def _say(text: str, *, indent: str = "") -> None:
    """Print a sentence, and where somebody reads along, break it between words."""
    blank = "\n" * (len(text) - len(text.lstrip("\n")))
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        text = textwrap.fill(text.strip(), width, initial_indent=indent, subsequent_indent=indent, **_WORDS)
        print(f"{blank}{text}")
    else:
        print(f"{blank}{indent}{text.strip()}")


def _masked(text: str) -> str:
    return str(redact.redact([{"role": "user", "content": text}])[0]["content"])


def _refuse_key(text: str) -> None:
    if _KEY.search(text) or _masked(text) != text:
        raise argparse.ArgumentTypeError(
            "this looks like a key, and keys do not belong into config.yaml; put it into Hermes's .env, and write the "
            "name of the variable as --key-env"
        )


def _model(text: str) -> str:
    _refuse_key(text)
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; write the model's name, for example qwen3.6:9b")
    return text


def _url(text: str) -> str:
    # What is refused may have a password in it.
    if not _URL.fullmatch(text):
        raise argparse.ArgumentTypeError("is not a plain URL; write one like http://127.0.0.1:11434/v1")
    _refuse_key(text)
    return text


def _tier(text: str) -> Tier:
    _refuse_key(text)
    provider, _, model = text.partition("/")
    if not (provider and model):
        raise argparse.ArgumentTypeError(f"“{text}” names no provider or no model; write for example {_EXAMPLE}")
    return Tier(provider, model)


def _variable(text: str) -> str:
    _refuse_key(text)
    random = len(text) >= _KEY_CHARS and "_" not in text and bool(re.search(r"\d", text))
    if random or not _VARIABLE.fullmatch(text):
        raise argparse.ArgumentTypeError("is not the name of a variable; write for example OPENAI_API_KEY, not the key")
    return text


def _dollars(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        usd = float(text.removeprefix("$"))
    except ValueError:
        usd = -1.0
    if not math.isfinite(usd) or usd < 0:
        raise argparse.ArgumentTypeError(f"“{text}” is no amount of dollars; write for example 0.50, or none")
    return int(usd) if usd.is_integer() else usd


def _consent(text: str) -> str:
    if text not in _CONFIRM:
        raise argparse.ArgumentTypeError(f"“{text}” is none of {', '.join(_CONFIRM)}")
    return text


def _yes_or_no(text: str) -> bool:
    if text.lower() not in {"y", "yes", "n", "no"}:
        raise argparse.ArgumentTypeError("write yes or no")
    return text.lower().startswith("y")
