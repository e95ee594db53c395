"""`hermes escalation check`: whether all is there that an escalation needs, before one is needed."""

from __future__ import annotations

import argparse
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from .. import budget, executor, explain, host, prices
from .. import config as configuration
from ..budget import LEAST_OUTPUT_TOKENS, Exceeded, Usage
from ..config import HERMES, PRIMARY, Config, ConfigError, Tier
from ..faults import without_login
from ..journal import Journal, JournalError, Opening
from ..live import streams_as_written
from ..provider_errors import ExecutionError
from .timeline import CHECK

HELP = "check the model_routing block, each tier, the local endpoint; exit status 0, 1 (to mend) or 2 (to look at)"

_GOOD, _TO_MEND, _TO_LOOK_AT = 0, 1, 2
_PING_SECONDS = 3.0
_LIVE_SECONDS = 60.0


def set_up(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--live", action="store_true", help="make one tiny paid call per tier, within the budget")


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence, and what it means for whether it works: `broken` must be mended, `doubtful` looked at."""

    text: str
    state: Literal["good", "doubtful", "broken"] = "good"


def run(args: argparse.Namespace) -> int:
    """Print what was found; return 0, 1 when something is to be mended, 2 when something is to be looked at."""
    states = set()
    for finding in _findings(live=args.live):
        mark = {"good": "  ", "doubtful": "? ", "broken": "! "}[finding.state]
        # Names and what providers and Hermes say are others' words.
        print(explain.plain(f"{mark}{finding.text}"), flush=True)
        states.add(finding.state)
    if "broken" in states:
        return _TO_MEND
    return _TO_LOOK_AT if "doubtful" in states else _GOOD


def _findings(*, live: bool) -> Iterator[Finding]:
    block, host_has_chain = host.read_config()
    if block is None:
        yield Finding("No `model_routing` block in Hermes's config.yaml: hermes-fallback is idle.", "broken")
        yield Finding("`hermes escalation init` writes one.")
        return
    try:
        config = configuration.parse(block, host_has_chain=host_has_chain)
    except ConfigError as error:
        yield Finding(f"hermes-fallback is not active; {len(error.faults)} to mend:", "broken")
        yield from (Finding(fault, "broken") for fault in error.faults)
        return
    yield Finding("The model_routing block is well-formed.")
    yield from _of_policy(config)
    yield from _of_local_model(config)
    ladders = {"": config, **{f" of {kind.name}": kind.config for kind in config.task_types}}
    seen: set[tuple[str, str | None]] = set()
    for whose, one in ladders.items():
        for number, tier in enumerate(one.ladder, start=1):
            if (tier.name, tier.base_url) not in seen:
                yield from _of_tier(f"tier {number}{whose}, {tier.name}", tier, one, live=live)
            seen.add((tier.name, tier.base_url))
    yield _of_journal()


def _of_policy(config: Config) -> Iterator[Finding]:
    if config.policy.is_shadow:
        yield Finding("`enabled: shadow`: everything is decided and nothing is paid.")
    elif config.is_idle:
        yield Finding("`fallback_policy.enabled` is false: nothing will be escalated.")
    if config.policy.confirm != "never" and not host.can_ask():
        text = f"`confirm: {config.policy.confirm}`: this Hermes cannot ask (from 0.18 on it can), so nothing is paid."
        yield Finding(text, "doubtful")
    way = (
        "streamed as it is written"
        if streams_as_written(host.agent_class())
        else "shown whole (this Hermes has no way in)"
    )
    yield Finding(f"The stronger model's answer is {way}.")


def _of_local_model(config: Config) -> Iterator[Finding]:
    try:
        running = host.running_model()
    except Exception as error:  # noqa: BLE001  # Hermes says in many ways that it cannot run
        yield Finding(f"Everything stays local, because Hermes cannot tell what it runs: {error}.", "broken")
        return
    reason = running.stays_local_because(config)
    if reason is not None:
        yield Finding(f"Everything stays local, because {reason}.", "broken")
    fault = _ping(running.base_url)
    where = without_login(running.base_url)
    if fault is None:
        yield Finding(f"The local model, {running.model}, answers at {where}.")
    else:
        yield Finding(f"The local model, {running.model}, does not answer at {where}: {fault}.", "doubtful")


def _ping(base_url: str) -> str | None:
    """Say why an endpoint does not answer, or None when it does, whatever it says."""
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models")  # noqa: S310  # what Hermes's configuration says
    try:
        with urllib.request.urlopen(request, timeout=_PING_SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError:
        return None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def _of_tier(name: str, tier: Tier, config: Config, *, live: bool) -> Iterator[Finding]:
    if tier.provider == HERMES:
        blocked = config.policy.budget.needs_price
        text = f"{name}: Hermes's own logins and prices"
        if blocked:
            text += "; a budget in dollars is set and its price is not known, so it will not be asked"
        yield Finding(f"{text}.", "doubtful" if blocked else "good")
        return
    fault = executor.fault_of(tier) if tier.is_litellm else None
    if fault is not None:
        yield Finding(f"{name}: {fault}", "broken")
        return
    yield Finding(f"{name}: ready")
    yield from _known(tier, config)
    if live and tier.provider != PRIMARY:
        yield _try(name, tier, config)


def _known(tier: Tier, config: Config) -> Iterator[Finding]:
    million = prices.cost(tier, 1_000_000, 0), prices.cost(tier, 0, 1_000_000)
    blocked = config.policy.budget.needs_price
    if None in million:
        text = "    price: not known to litellm; give the tier a `price`"
        yield Finding(text + (", or it will not be asked: a budget in dollars is set" if blocked else ""), "doubtful")
    else:
        # Of a small call: some models cost more above a number of tokens.
        small = [(prices.cost(tier, *tokens) or 0.0) * 1000 for tokens in ((1000, 0), (0, 1000))]
        yield Finding(f"    price: {explain.usd(small[0])} in, {explain.usd(small[1])} out, for a million tokens")
    if not tier.is_litellm:
        return
    able = executor.abilities(tier)
    window = "not known" if able.max_input_tokens is None else f"{able.max_input_tokens:,} tokens"
    yield Finding(f"    context: {window}; tools: {'yes' if able.tools else 'not known'}")


def _try(name: str, tier: Tier, config: Config) -> Finding:
    asked = {
        "messages": [{"role": "user", "content": "Answer with the word ok."}],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "nothing",
                    "description": "Does nothing.",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
    }
    least = LEAST_OUTPUT_TOKENS + tier.thinking_tokens
    small = replace(tier, max_tokens=min(tier.max_tokens or least, least))
    journal = Journal.of(host.hermes_home())
    fit = partial(
        budget.fit,
        config.policy.budget,
        worst=prices.worst_case(small, asked),
        max_tokens=small.max_tokens,
        least_tokens=least,
        is_new=False,
    )
    # A session of its own, so that no task and no session pays for it but the day and the month.
    session = f"check-{uuid.uuid4().hex[:8]}"
    opening = Opening(session, "", tier.name, CHECK, "you asked for it with `hermes escalation check --live`")
    try:
        reserved = journal.reserve(
            opening, turn_id=session, task_id=session, account=session, seconds=_LIVE_SECONDS, fit=fit
        )
    except JournalError as error:
        return Finding(f"{name}: not called, for the journal cannot be written: {error}", "broken")
    if isinstance(reserved, Exceeded):
        return Finding(f"{name}: not called: {reserved.why}", "doubtful")
    try:
        reply = executor.complete(
            replace(small, timeout_seconds=min(tier.timeout_seconds, _LIVE_SECONDS), max_tokens=reserved.max_tokens),
            asked,
            is_interrupted=lambda: False,
            on_text=lambda _: None,
        )
    except ExecutionError as error:
        end = partial(journal.end_call, reserved.call, "failed", turn_id=session, seconds=0.0, used=error.used)
        unwritten = _unwritten(partial(end, error=error.in_our_words))
        return Finding(f"{error}{unwritten}", "broken")
    used = Usage(reply.input_tokens, reply.output_tokens, reply.cost_usd)
    end = partial(journal.end_call, reserved.call, "answered", turn_id=session, seconds=reply.seconds, used=used)
    unwritten = _unwritten(end)
    said = explain.usage(reply.input_tokens, reply.output_tokens, reply.cost_usd)
    text = f"{name}: answered in {reply.seconds:.1f} s ({said}){unwritten}"
    return Finding(text, "doubtful" if unwritten else "good")


def _unwritten(end: Callable[[], None]) -> str:
    """Have the journal write how a call ended; return nothing, or what is to be added if it cannot."""
    try:
        end()
    except JournalError as error:
        return f"; what it cost could not be written: {error}"
    return ""


def _of_journal() -> Finding:
    journal = Journal.of(host.hermes_home())
    try:
        journal.prepare()
    except JournalError as error:
        return Finding(f"The journal cannot be used, so nothing will be paid: {error}", "broken")
    return Finding(f"The journal is {journal.path.name} in {journal.path.parent.name}, in Hermes's home.")
