"""Many machines, one budget: the real litellm proxy on loopback, and what a machine sees of the budgets that it keeps."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes_fallback import config, executor
from hermes_fallback.config import Tier
from hermes_fallback.executor import Reply
from hermes_fallback.provider_errors import BudgetExceeded, ExecutionError
from tests.endpoints import Answer, Endpoint, call, fail, in_order, say
from tests.test_escalation import rows
from tests.world import MODEL, Screen, World, log_of

ROOT = Path(__file__).parents[1]
PROXY = ROOT / ".cache" / "litellm-proxy" / "bin" / "litellm"
START_SECONDS = 90  # 6 on a warm machine; the first start compiles litellm
UPSTREAM_KEY = "sk-of-the-provider-which-no-machine-has"
HANDOFF = {"messages": [{"role": "user", "content": "a-word-of-the-conversation"}]}
KEYS: dict[str, dict[str, Any]] = {
    "sk-machine-0001": {},
    "sk-machine-spent": {"key_alias": "laptop", "spend": 2.5, "max_budget": 2.0},
    "sk-machine-of-team": {"team_id": "builders", "team_spend": 30.5, "team_max_budget": 30.0},
    "sk-machine-by-model": {"model_max_budget": {"strong": {"budget_limit": 0.001, "time_period": "1d"}}},
    "sk-machine-once-a-minute": {"rpm_limit": 1},
}
"""What the proxy knows of each machine's key."""


@dataclass(frozen=True)
class Fleet:
    """A running proxy, and the provider behind it."""

    url: str
    upstream: Endpoint

    def tier(self, *, provider: str = "litellm_proxy", model: str = "strong", **options: Any) -> Tier:
        """The tier of a machine whose key is in FLEET_KEY."""
        url = self.url if provider == "litellm_proxy" else f"{self.url}/v1"
        return Tier(provider=provider, model=model, base_url=url, api_key_env="FLEET_KEY", **options)


def proxy_config(upstream_url: str) -> dict[str, Any]:
    """The proxy's config.yaml: one model, and two whose budgets its router keeps."""

    def deployment(name: str, model: str, **limits: Any) -> dict[str, Any]:
        return {
            "model_name": name,
            "litellm_params": {"model": model, "api_base": upstream_url, "api_key": UPSTREAM_KEY, **limits},
        }

    return {
        "model_list": [
            deployment("strong", "openai/gpt-5.4"),
            deployment("limited", "openai/gpt-5.4-mini", max_budget=0.0002, budget_duration="1d"),
            deployment("of-limited-provider", "deepseek/deepseek-chat"),
        ],
        "router_settings": {
            "provider_budget_config": {"deepseek": {"budget_limit": 0.00001, "time_period": "1d"}},
            # One refusal of the provider must not become the next test's.
            "disable_cooldowns": True,
            "num_retries": 0,
        },
        "general_settings": {"custom_auth": "fleet_auth.authenticate", "custom_auth_run_common_checks": True},
        "litellm_settings": {"enable_post_custom_auth_checks": True},
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The proxy, started once for this file."""
    if not PROXY.exists():
        pytest.skip("the litellm proxy is not installed; `make test-fleet` installs it")
    folder = tmp_path_factory.mktemp("proxy")
    shutil.copy(Path(__file__).with_name("fleet_auth.py"), folder)
    (folder / "keys.json").write_text(json.dumps(KEYS))
    with Endpoint(in_order([say("the strong answer")]), strict=True, key=UPSTREAM_KEY) as upstream:
        (folder / "config.yaml").write_text(json.dumps(proxy_config(upstream.url)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(PROXY), "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            # It does not start without one.
            "LITELLM_MASTER_KEY": "sk-of-the-administrator-of-this-test-alone",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "NO_DOCS": "True",
        }
        with (
            (folder / "log").open("w") as log,
            subprocess.Popen(
                [*command, "--telemetry", "False"], stdout=log, stderr=log, env=environment, cwd=folder
            ) as proxy,
        ):
            try:
                wait_for(f"http://127.0.0.1:{port}", proxy, folder / "log")
                yield Fleet(f"http://127.0.0.1:{port}", upstream)
            finally:
                proxy.terminate()


def wait_for(url: str, proxy: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the proxy answers; its log is the failure when it does not."""
    deadline = time.monotonic() + START_SECONDS
    while proxy.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):  # noqa: S310  # http on loopback
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the proxy did not start:\n{log.read_text()[-2000:]}")


@pytest.fixture
def fleet(running: Fleet) -> Fleet:
    """The proxy, before a provider that answers and has not been asked yet."""
    running.upstream.script = in_order([say("the strong answer")])
    running.upstream.requests.clear()
    return running


def ask(tier: Tier, key: str, monkeypatch: pytest.MonkeyPatch) -> Reply:
    """Ask a tier once, with one machine's key."""
    monkeypatch.setenv("FLEET_KEY", key)
    return executor.complete(tier, HANDOFF, is_interrupted=lambda: False, on_text=lambda _text: None)


def ask_until_refused(tier: Tier, key: str, monkeypatch: pytest.MonkeyPatch) -> ExecutionError:
    """Ask a tier until it refuses, which is to be soon; return the refusal."""
    # Not counted: the proxy books a call shortly after it has answered.
    for _ in range(50):
        try:
            ask(tier, key, monkeypatch)
        except ExecutionError as error:
            return error
    pytest.fail("the proxy answered 50 times")


@pytest.mark.parametrize("provider", ["litellm_proxy", "openai"])
def test_call_goes_through_the_proxy(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, provider: str) -> None:
    """A machine has its own key and the proxy's name of the model; the provider sees neither, and the price comes back."""
    reply = ask(fleet.tier(provider=provider), "sk-machine-0001", monkeypatch)
    assert reply.response.choices[0].message.content == "the strong answer"
    assert (reply.input_tokens, reply.output_tokens) == (100, 20)
    (request,) = fleet.upstream.requests
    assert request["model"] == "gpt-5.4"
    assert fleet.upstream.refusals == []
    # What the proxy books: 100 tokens at $2.50 and 20 at $15.00 a million.
    assert reply.response.usage.cost == pytest.approx(100 * 2.5e-6 + 20 * 15e-6)


@pytest.mark.parametrize("provider", ["litellm_proxy", "openai"])
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("sk-machine-spent", "the budget of this key is used up at the proxy (spent $2.50 of $2.00)"),
        ("sk-machine-of-team", "the budget of this team is used up at the proxy (spent $30.50 of $30.00)"),
    ],
)
def test_budget_that_is_used_up(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, provider: str, key: str, words: str
) -> None:
    """The proxy refuses before the provider is asked, and that is told as a budget, for good."""
    with pytest.raises(BudgetExceeded) as caught:
        ask(fleet.tier(provider=provider), key, monkeypatch)
    assert str(caught.value) == f"{provider}/strong: {words}; raise it there, or wait for its next period"
    assert not caught.value.transient
    assert fleet.upstream.requests == []


@pytest.mark.parametrize(
    ("key", "model", "whose"),
    [
        ("sk-machine-by-model", "strong", "key"),
        ("sk-machine-0001", "limited", "deployment"),
        ("sk-machine-0001", "of-limited-provider", "provider"),
    ],
)
def test_budget_is_used_up_by_the_calls_themselves(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, key: str, model: str, whose: str
) -> None:
    """The first calls pass and are paid for; when they have used the budget up, the proxy refuses."""
    refused = ask_until_refused(fleet.tier(model=model), key, monkeypatch)
    assert type(refused) is BudgetExceeded
    assert f"the budget of this {whose} is used up at the proxy" in str(refused)
    assert fleet.upstream.requests
    # The proxy names the key, and the deployment, by a hash.
    assert re.search(r"[0-9a-f]{40}", str(refused)) is None


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("sk-machine-once-a-minute", say("once")),
        ("sk-machine-0001", fail(429, "Rate limit reached for gpt-5.4", "rate_limit_exceeded")),
        ("sk-machine-0001", fail(429, "You exceeded your current quota", "insufficient_quota")),
    ],
    ids=["of the key", "of the provider", "no credit at the provider"],
)
def test_too_many_requests_are_no_budget(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, key: str, answer: Answer
) -> None:
    """What passes by itself, or is the provider's word, stays what it was."""
    fleet.upstream.script = in_order([answer])
    # The proxy says when to come again, up to a minute from now, and the client would wait for it.
    tier = fleet.tier()
    refused = ask_until_refused(tier, key, monkeypatch)
    assert type(refused) is ExecutionError
    assert "too many requests, or no credit left" in str(refused)
    assert refused.transient
    # The proxy names the key by its hash.
    assert re.search(r"[0-9a-f]{40}", str(refused)) is None


def refusal(status: int, message: str, kind: str | None = "budget_exceeded") -> Answer:
    """A refusal in a litellm proxy's shape."""
    return Answer(status=status, error={"message": message, "type": kind, "param": None, "code": str(status)})


HASH = "8f" * 32
REFUSALS = [
    (refusal(429, "Budget has been exceeded! Current cost: 2.5, Max budget: 2.0"), "the budget is", "$2.50 of $2.00"),
    (refusal(422, f"Budget has been exceeded! Key={HASH} Current cost: 0.3, Estimated request cost: 0.1, Max budget: 0.2"), "this key", "$0.3000 of $0.2000"),
    (refusal(422, "ExceededBudget: User=anna over budget. Spend=3.0, Budget=1e-05"), "this user", "$3.00 of $0.0000"),
    (refusal(422, "ExceededBudget: Key over 1d budget. Spend=$1.2345, Limit=$1.00"), "this key", "$1.23 of $1.00"),
    (refusal(422, "Budget has been exceeded! TeamMember=a:b Current cost: 2.5, Max budget: 2.0"), "this team member", "$2.50 of $2.00"),
    (refusal(422, "Budget has been exceeded! Organization=o Current cost: 2.5, Max budget: 2.0"), "this organization", "$2.50 of $2.00"),
    (refusal(400, "Budget has been exceeded! Current cost: 2.5, Max budget: 2.0", None), "the budget is", "$2.50 of $2.00"),
    (refusal(422, f"LiteLLM Team: {HASH}, exceeded budget for model=strong"), "this team", None),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "whose", "numbers"), REFUSALS)
def test_refusal_that_this_proxy_does_not_give(
    monkeypatch: pytest.MonkeyPatch, answer: Answer, whose: str, numbers: str | None
) -> None:
    """Budgets that need a database, and older proxies (1.90 says 429), in the words of litellm's source."""
    with Endpoint(in_order([answer]), strict=True) as upstream:
        tier = Tier(provider="openai", model="strong", base_url=upstream.url, api_key_env="FLEET_KEY")
        with pytest.raises(BudgetExceeded, match=whose) as caught:
            ask(tier, "sk-machine-0001", monkeypatch)
    assert (f"(spent {numbers})" in str(caught.value)) if numbers else ("spent" not in str(caught.value))
    assert HASH not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        refusal(400, "Invalid 'messages[3]': Budget has been exceeded! Current cost: 2.5, Max budget: 2.0", None),
        refusal(400, "Budget has been exceeded! Current cost: 2.5, Max budget: 2.0", "invalid_request_error"),
        fail(402, "Insufficient credits"),
    ],
)
def test_words_alone_are_no_budget(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    """An answer that speaks of a budget, and is typed as something else or only quotes it, is what it says it is."""
    with Endpoint(in_order([answer]), strict=True) as upstream:
        tier = Tier(provider="openai", model="strong", base_url=upstream.url, api_key_env="FLEET_KEY")
        with pytest.raises(ExecutionError) as caught:
            ask(tier, "sk-machine-0001", monkeypatch)
    assert type(caught.value) is ExecutionError


def test_block_of_the_guide_is_accepted() -> None:
    """What docs/fleet.md has each machine write is a tier that asks the proxy with the machine's own key."""
    (block,) = re.findall(
        r"```yaml\n(model_routing:.*?)```", (ROOT / "docs" / "fleet.md").read_text("utf-8"), re.DOTALL
    )
    (tier,) = config.parse(yaml.safe_load(block)["model_routing"]).ladder
    assert (tier.name, tier.api_key_env) == ("litellm_proxy/strong", "FLEET_KEY")
    assert tier.base_url == "http://proxy.example:4000"


def test_stuck_machine_whose_budget_is_used_up(
    world: World, fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The local model goes on as if we were absent; screen, log and journal say that it was the budget."""
    monkeypatch.setenv("FLEET_KEY", "sk-machine-of-team")
    tier = f"provider: litellm_proxy, model: strong, base_url: '{fleet.url}', api_key_env: FLEET_KEY"
    world.configure(f"model_routing: {{fallback: {{{tier}}}}}\n")
    stuck = [call("read_file", path=f"/nowhere/{n}.txt") for n in range(3)]
    world.local.script = in_order([*stuck, say("the local answer after all")])
    screen = Screen()
    result = world.ask(agent=world.agent(screen=screen))
    assert result["final_response"] == "the local answer after all"
    assert len(world.local.requests) == 4
    assert fleet.upstream.requests == []
    words = "litellm_proxy/strong: the budget of this team is used up at the proxy (spent $30.50 of $30.00)"
    assert f"⚡ {words}" in screen.text
    warnings = log_of(caplog, logging.WARNING)
    assert any(words in line for line in warnings), warnings
    assert any(f"no stronger model answered; {MODEL} goes on" in line for line in warnings)
    (row,) = rows()
    assert (row["trigger"], row["state"]) == ("repeated_tool_failure", "failed")
    assert words in row["error"]
