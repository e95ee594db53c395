"""The configuration: what the issue's block becomes, and the sentence for each thing that can be wrong."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from hermes_fallback import lazy_litellm
from hermes_fallback.config import Config, ConfigError, Handoff, Policy, Primary, Tier, parse
from tests.world import ISSUE_BLOCK


def block(text: str) -> object:
    """The `model_routing` block of a config.yaml."""
    return yaml.safe_load(text)["model_routing"]


def test_block_of_the_readme() -> None:
    """The block as users write it means what it says."""
    assert parse(block(ISSUE_BLOCK)) == Config(
        ladder=(Tier("openai", "gpt-5.4"),),
        primary=Primary("qwen3.6:9b", provider="ollama"),
        policy=Policy(
            enabled=True,
            max_local_attempts=3,
            trigger_on=("repeated_tool_failure", "invalid_output", "no_progress", "task_timeout", "user_request"),
        ),
    )


def test_provider_error_is_on_when_no_trigger_is_named() -> None:
    """Left out, `trigger_on` means all, `provider_error` too."""
    assert "provider_error" in parse({"fallback": {"provider": "openai", "model": "m"}}).policy.trigger_on


def test_ladder_with_everything() -> None:
    """A list is a ladder, and every key of a tier arrives."""
    tier: dict[str, Any] = {
        "provider": "openai",
        "model": "m",
        "base_url": "http://127.0.0.1:1/v1",
        "api_key_env": "MY_KEY",
        "max_tokens": 5,
        "temperature": 0.5,
        "timeout_seconds": 7,
        "extra": {"reasoning_effort": "low"},
    }
    config = parse({"fallback": [{"provider": "primary", "model": "big"}, tier]})
    assert config.ladder == (Tier("primary", "big"), Tier(**tier))


def test_handoff_block() -> None:
    """What goes along is trimmed and masked unless the block says otherwise; a bare `off` is YAML's false."""
    tier = {"provider": "openai", "model": "m"}
    assert parse({"fallback": tier}).handoff == Handoff(trim=True, redact="secrets", never_send=())
    for text in (
        "{trim: false, redact: off, never_send: ['*.pem']}",
        "{trim: no, redact: 'off', never_send: ['*.pem']}",
    ):
        parsed = parse({"fallback": tier, "handoff": yaml.safe_load(text)})
        assert parsed.handoff == Handoff(trim=False, redact="off", never_send=("*.pem",))


FAULTS = [
    ("[]", "$.model_routing: this list is not a block of keys; write `model_routing:` with its keys indented below it"),
    ("{}", "$.model_routing.fallback: is missing; write the stronger model, for example "
           "`fallback: {provider: openai, model: gpt-5.4}`"),
    ("{fallback: {provider: openai, model: 4}}", '$.model_routing.fallback.model: 4 is not text; write it in quotes: model: "4"'),
    ("{fallback: {provider: openai}}",
     "$.model_routing.fallback.model: is missing; write the model's name, for example `model: gpt-5.4`"),
    ("{fallback: []}", "$.model_routing.fallback: is empty; write the stronger model, for example "
                       "`fallback: {provider: openai, model: gpt-5.4}`"),
    ("{fallback: [{provider: openai, model: m, modell: m}]}", "$.model_routing.fallback[0].modell: unknown key; did you mean model?"),
    ("{fallbak: {}, fallback: {provider: a, model: b}}", "$.model_routing.fallbak: unknown key; did you mean fallback?"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {max_local_attempts: 0}}",
     "$.model_routing.fallback_policy.max_local_attempts: 0 is less than the minimum of 1; use 1 or more"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {max_local_attempts: '3'}}",
     '$.model_routing.fallback_policy.max_local_attempts: "3" is not a whole number; '
     "write a number, for example `max_local_attempts: 3`"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {enabled: maybe}}",
     '$.model_routing.fallback_policy.enabled: "maybe" is not true or false; '
     "write `enabled: true`, `enabled: false` or `enabled: shadow`"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {trigger_on: [no_progres]}}",
     '$.model_routing.fallback_policy.trigger_on[0]: "no_progres" is not known; did you mean no_progress?'),
    ("{fallback: {provider: a, model: b}, fallback_policy: {trigger_on: no_progress}}",
     '$.model_routing.fallback_policy.trigger_on: "no_progress" is not a list; write it as a list: '
     '`trigger_on: ["no_progress"]`'),
    ("{fallback: {provider: a, model: b}, fallback_policy: {hold: forever}}",
     '$.model_routing.fallback_policy.hold: "forever" is not known; use one of session, task'),
    ("{fallback: {provider: a, model: b}, fallback_policy: {task_timeout_seconds: 0}}",
     "$.model_routing.fallback_policy.task_timeout_seconds: 0 is not more than 0; use a number above 0"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {triggers: {no_progress: {}}}}",
     "$.model_routing.fallback_policy.triggers.no_progress.after: is missing; "
     "write how many times, for example `after: 4`"),
    ("{fallback: {provider: a, model: b, base_url: localhost}}",
     "$.model_routing.fallback.base_url: localhost is not a plain URL; write one like http://127.0.0.1:11434/v1"),
    ("{fallback: {provider: primary, model: b, base_url: 'http://x'}}",
     "$.model_routing.fallback.base_url: does not go with `provider: primary`, which has the local endpoint; "
     "remove this line"),
    ("{fallback: {provider: a, model: b}, handoff: {redact: all}}",
     '$.model_routing.handoff.redact: "all" is not known; use one of off, secrets'),
    ("{fallback: {provider: a, model: b}, handoff: {redact: on}}",
     "$.model_routing.handoff.redact: true is not known; use one of off, secrets"),
    ("{fallback: {provider: a, model: b}, handoff: {trim: maybe}}",
     '$.model_routing.handoff.trim: "maybe" is not true or false; write `trim: true` or `trim: false`'),
    ("{fallback: {provider: a, model: b}, handoff: {never_send: '*.pem'}}",
     '$.model_routing.handoff.never_send: "*.pem" is not a list; write it as a list: `never_send: ["*.pem"]`'),
    ("{fallback: {provider: a, model: b}, handoff: {never_send: ['']}}",
     "$.model_routing.handoff.never_send[0]: is empty; write a pattern of paths or a text, for example "
     "`never_send: ['*.pem']`"),
    ("{fallback: {provider: a, model: b}, handoff: {never_sent: []}}",
     "$.model_routing.handoff.never_sent: unknown key; did you mean never_send?"),
    ("{fallback: {provider: hermes, model: b}}",
     "$.model_routing.fallback.provider: hermes is not a provider; write `fallback: hermes` for Hermes's own fallback_providers"),
    ("{fallback: {provider: a, model: b, max_tokens: 2000, extra: {thinking: {type: enabled, budget_tokens: 2000}}}}",
     "$.model_routing.fallback.max_tokens: 2000 leaves no answer after 2000 tokens of thinking; write a larger number"),
    ("{fallback: {provider: anthropic, model: claude-sonnet-4-5, max_tokens: 4096, extra: {reasoning_effort: high}}}",
     "$.model_routing.fallback.max_tokens: 4096 leaves no answer after 4096 tokens of thinking; write a larger number"),
    ("{fallback: {provider: a, model: b, extra: {max_completion_tokens: 9}}}",
     "$.model_routing.fallback.extra.max_completion_tokens: is the plugin's to say; write the tier's `max_tokens`"),
    ("{fallback: {provider: a, model: b, price: {input_per_million_usd: 1}}}",
     "$.model_routing.fallback.price.output_per_million_usd: is missing; write `output_per_million_usd: …` here"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {budget: {per_day_usd: -1}}}",
     "$.model_routing.fallback_policy.budget.per_day_usd: -1 is less than the minimum of 0; use 0 or more"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {budget: {per_day_usd: .nan}}}",
     "$.model_routing.fallback_policy.budget.per_day_usd: nan is no number that can be reckoned with; write a number, "
     "or leave the key out"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {budget: {on_exceeded: halt}}}",
     '$.model_routing.fallback_policy.budget.on_exceeded: "halt" is not known; use one of ask, local, stop'),
    ("{fallback: {provider: a, model: b}, fallback_policy: {confirm: first}}",
     '$.model_routing.fallback_policy.confirm: "first" is not known; use one of always, first_in_session, never'),
    ("{fallback: {provider: a, model: b}, fallback_policy: {hold: 500}}",
     "$.model_routing.fallback_policy.hold: 500 is more than the maximum of 100; use 100 or less"),
    ("{fallback: {provider: a, model: b}, task_types: [{match: {}}]}",
     "$.model_routing.task_types[0].name: is missing; write a name of your own, for example `name: coding`"),
    ("{fallback: {provider: a, model: b}, task_types: [{name: x}, {name: x}]}",
     "$.model_routing.task_types[1].name: x is there twice; give each task type a name of its own"),
    ("{fallback: {provider: a, model: b}, task_types: [{name: x, match: {message: '['}}]}",
     "$.model_routing.task_types[0].match.message: is no regular expression (unterminated character set at position 1); "
     "escape what is meant literally with a \\"),
    ("{fallback: {provider: a, model: b}, task_types: [{name: x, match: {cwd: '~nobody-of-that-name'}}]}",
     "$.model_routing.task_types[0].match.cwd: ~nobody-of-that-name: there is no such user; write ~/… for your own home"),
    ("{fallback: {provider: a, model: b}, task_types: [{name: x, start_on: fallbak}]}",
     '$.model_routing.task_types[0].start_on: "fallbak" is not known; did you mean fallback?'),
    *((f"{{fallback: {{provider: a, model: b}}, task_types: [{{name: x}}, {{name: y, {key}: 5}}]}}",
       f"$.model_routing.task_types[1].{key}: {advice}")
      for key, advice in (
          ("task_timeout_seconds", "holds for all tasks; write it under `fallback_policy`"),
          ("self_check", "holds for all tasks; write it under `fallback_policy`"),
          ("allowed_users", "holds for all tasks; write it under `fallback_policy`"),
          ("triggerz", "unknown key; did you mean triggers?"),
      )),
    ("{fallback: [{provider: a, model: b}, {provider: a, model: b, extra: {n: 2}}]}",
     "$.model_routing.fallback[1].extra.n: is the plugin's to say; leave it out"),
    *((f"{{fallback: {{provider: a, model: b, extra: {extra}}}}}",
       f"$.model_routing.fallback.extra.{place}: is the plugin's to say; {advice}")
      for extra, place, advice in (
          ("{extra_body: {top_k: 5, n: 4}}", "extra_body.n", "leave it out"),
          ("{extra_body: {max_completion_tokens: 100000}}", "extra_body.max_completion_tokens", "write the tier's `max_tokens`"),
          ("{context_window_fallback_dict: {b: c}}", "context_window_fallback_dict", "write a list of tiers"),
          ("{model_list: [{model_name: c}]}", "model_list", "write a list of tiers"),
          ("{mock_response: hi}", "mock_response", "leave it out; with it no model is asked"),
          ("{mock_tool_calls: []}", "mock_tool_calls", "leave it out; with it no model is asked"),
      )),
    *((f"{{fallback: {{provider: a, model: b, {entry}}}}}",
       f"$.model_routing.fallback.{place}: is a key, and has no place here; put it into Hermes's .env, and its name into "
       "api_key_env")
      for entry, place in (
          ("api_key_env: gsk_0123456789abcdefghijABCDEFGHIJ0123456789", "api_key_env"),
          ("base_url: 'http://host/v1?api_key=abcdef0123456789'", "base_url"),
          ("extra: {extra_headers: {X-Trace: 'Bearer abcdef0123456789abcdef'}}", "extra.extra_headers.X-Trace"),
          ("extra: {metadata: [{x-api-key: abcdef0123456789}]}", "extra.metadata[0].x-api-key"),
      )),
    ("{fallback: {provider: ' ', model: b}}",
     "$.model_routing.fallback.provider: is empty; write litellm's name of the provider, for example `provider: openai`"),
    ("{fallback: {provider: a, model: b}, task_types: [{name: x, match: {message: 'a{99999999999999999999}'}}]}",
     "$.model_routing.task_types[0].match.message: is no regular expression (repeat count too big at position 2); "
     "escape what is meant literally with a \\"),
    ('{fallback: {provider: a, model: b}, task_types: [{name: x, match: {cwd: "~\\0"}}]}',
     "$.model_routing.task_types[0].match.cwd: has a NUL or half a character (an unpaired surrogate) in it; write it anew, without"),
    ('{fallback: {provider: a, model: "b\\ud800"}}',
     "$.model_routing.fallback.model: has a NUL or half a character (an unpaired surrogate) in it; write it anew, without"),
    ("{fallback: {provider: a, model: b, base_url: 'http://[::1'}}",
     "$.model_routing.fallback.base_url: is no URL (Invalid IPv6 URL); write one like http://127.0.0.1:11434/v1"),
    ("{fallback: {provider: a, model: b}, primary: {model: b, base_url: 'http://host:99999'}}",
     "$.model_routing.primary.base_url: is no URL (Port out of range 0-65535); write one like http://127.0.0.1:11434/v1"),
    ('{fallback: {provider: a, model: b, base_url: "http://host\\n"}}',
     "$.model_routing.fallback.base_url: http://host\\n is not a plain URL; write one like http://127.0.0.1:11434/v1"),
    ("{fallback: {provider: a, model: b, timeout_seconds: 100000000000}}",
     "$.model_routing.fallback.timeout_seconds: 100000000000 is more than the maximum of 86400; use 86400 or less"),
    ("{fallback: {provider: a, model: b, max_tokens: 5.0}}",
     "$.model_routing.fallback.max_tokens: 5.0 is not a whole number; write it without a point: 5"),
    (f"{{fallback: {{provider: a, model: b}}, fallback_policy: {{allowed_users: [{'9' * 4000}]}}}}",
     "$.model_routing.fallback_policy.allowed_users[0]: is too large a number to be reckoned with; write a smaller one, or leave "
     "the key out"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {allowed_users: [yes]}}",
     '$.model_routing.fallback_policy.allowed_users[0]: true is not text; write it in quotes: "true"'),
    ("{fallback: {provider: a, model: b, extra: {since: 2026-01-01}}}",
     '$.model_routing.fallback.extra.since: is a date to YAML; write it in quotes: "2026-01-01"'),
    ("{fallback: {provider: a, model: b, extra: {stop: !!set {x}}}}",
     "$.model_routing.fallback.extra.stop: is neither text nor a number, true, false, a list or a block of keys; write one of these"),
    ("{fallback: {provider: a, model: b, extra: {1: x}}}",
     "$.model_routing.fallback.extra.1: is no text, as every key must be; write it in quotes, or leave it out"),
    ("{fallback: {provider: a, model: b}, 2026-01-01: x}",
     "$.model_routing.2026-01-01: is no text, as every key must be; write it in quotes, or leave it out"),
    ("{fallback: {provider: a, model: b, extra: &a {x: {y: *a}}}}",
     f"$.model_routing.fallback.extra{'.x.y' * 24}.x: is too deep or too much, or holds itself; write it plainly, without anchors "
     "(& and *)"),
    ("{fallback: [[x]]}",
     "$.model_routing.fallback[0]: this list is not a block of keys; write the stronger model, for example "
     "`fallback: {provider: openai, model: gpt-5.4}`"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {self_check: true, trigger_on: [risk]}}",
     "$.model_routing.fallback_policy.self_check: what it finds is evidence for `silent_failure`, which is not in `trigger_on`; "
     "add it there"),
    ("{fallback: {provider: a, model: b}, fallback_policy: {self_check: true}, task_types: [{name: x, trigger_on: [risk]}]}",
     "$.model_routing.task_types[0].trigger_on: has no `silent_failure`, for which `self_check` finds evidence; add it here"),
    ("{fallback: {provider: a, model: b, extra: {n: 2}}, task_types: [{name: x, trigger_on: [risk]}]}",
     "$.model_routing.fallback.extra.n: is the plugin's to say; leave it out"),
    ("{fallback: {provider: a, model: b}, handoff: off}",
     "$.model_routing.handoff: false is not a block of keys; write `handoff:` with its keys indented below it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentence"), FAULTS)
def test_fault(text: str, sentence: str) -> None:
    """Each fault says where it is, what stands there, and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_load(text))
    assert caught.value.faults == (f"config.yaml: {sentence}",)


def test_all_faults_at_once() -> None:
    """One look at the log is enough to mend everything."""
    with pytest.raises(ConfigError) as caught:
        parse({"fallback": {"model": "m"}, "primry": {}, "fallback_policy": {"hold": 0, "enabled": "no"}})
    assert [fault.split(": ")[1] for fault in caught.value.faults] == [
        "$.model_routing.primry",
        "$.model_routing.fallback.provider",
        "$.model_routing.fallback_policy.enabled",
        "$.model_routing.fallback_policy.hold",
    ]


def test_two_missing_keys_are_named_once_each() -> None:
    """Jsonschema finds two errors, and each sentence stands there once."""
    with pytest.raises(ConfigError) as caught:
        parse({"fallback": {"provider": "a", "model": "b", "price": {}}})
    assert [fault.rpartition(": is")[0].rpartition(".")[2] for fault in caught.value.faults] == [
        "input_per_million_usd",
        "output_per_million_usd",
    ]


@pytest.mark.parametrize(
    "tier",
    [
        {"api_key": "sk-canary-1"},
        {"key": "sk-canary-1"},
        {"api_key_env": "sk-canary-1"},
        {"extra": {"api_key": "sk-canary-1"}},
        {"extra": {"extra_headers": "x", "Authorization": "sk-canary-1"}},
        {"base_url": "https://user:sk-canary-1@host/v1"},
    ],
)
def test_key_in_the_file_is_refused_and_not_repeated(tier: dict[str, object]) -> None:
    """A key in the file is a fault that says where keys belong; the key itself is in no message."""
    with pytest.raises(ConfigError) as caught:
        parse({"fallback": {"provider": "openai", "model": "m", **tier}})
    assert "canary" not in str(caught.value)
    assert "base_url" in tier or "api_key_env: OPENAI_API_KEY" in str(caught.value)


def test_an_effort_makes_claude_think_as_long_as_litellm_says() -> None:
    """For each Claude in litellm's map, and each effort, we reckon with the `budget_tokens` that litellm sends."""
    litellm = lazy_litellm.load()
    known = {
        (str(entry.get("litellm_provider")), name) for name, entry in litellm.model_cost.items() if "claude" in name
    }
    # Older ones, which are no longer in the map, and others that Claude is had from.
    known |= {
        ("anthropic", name) for name in ("claude-3-7-sonnet-20250219", "claude-sonnet-4-20250514", "claude-opus-4-1")
    }
    known |= {("vertex_ai", "claude-sonnet-4@20250514"), ("openrouter", "anthropic/claude-sonnet-4.5")}
    names = {"bedrock_converse": "bedrock", "vertex_ai-anthropic_models": "vertex_ai"}
    compared = set()
    # Of GitHub's it looks for a login first.
    for listed_as, name in sorted(entry for entry in known if entry[0] != "github_copilot"):
        provider = names.get(listed_as, listed_as)
        model = name.removeprefix(f"{provider}/")
        for effort in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
            tier = Tier(provider, model, extra={"reasoning_effort": effort})
            try:
                made = litellm.get_optional_params(
                    model=model, custom_llm_provider=provider, max_tokens=20_000, **tier.extra
                )
            except (litellm.UnsupportedParamsError, litellm.BadRequestError):
                continue  # nothing is sent
            sent = (made.get("thinking") or {}).get("budget_tokens", 0)
            assert tier.thinking_tokens == sent, (provider, model, effort)
            compared.add((provider, sent))
    assert {sent for provider, sent in compared if provider == "anthropic"} == {0, 1024, 2048, 4096, 8192, 16384}
    assert {provider for provider, sent in compared if sent} == {
        *("anthropic", "azure_ai", "bedrock", "databricks", "vertex_ai"),
    }


@pytest.mark.parametrize(
    ("extra", "tokens"),
    [
        ({"reasoning_effort": {"effort": "high"}}, 4096),
        ({"reasoning_effort": "high", "thinking": {"type": "enabled", "budget_tokens": 2000}}, 2000),
        ({"reasoning_effort": "high", "thinking": {"type": "disabled"}}, 0),
        ({"reasoning_effort": 3}, 0),
        ({}, 0),
    ],
)
def test_thinking_goes_before_effort(extra: dict[str, object], tokens: int) -> None:
    """As in litellm, which takes an effort in two shapes."""
    assert Tier("anthropic", "claude-sonnet-4-5", extra=extra).thinking_tokens == tokens


@pytest.mark.parametrize(
    ("primary", "runs", "matches"),
    [
        (Primary("qwen3.6:9b", "ollama"), ("qwen3.6:9b", "custom", "http://127.0.0.1:11434/v1"), True),
        (Primary("Qwen3.6", "ollama"), ("qwen3.6:latest", "custom", "http://127.0.0.1:11434/v1"), True),
        (Primary("qwen3.6:9b", "ollama"), ("qwen3.6:9b", "custom:my-box", "http://box:11434/v1"), True),
        (Primary("qwen3.6:9b", "lmstudio"), ("qwen3.6:9b", "lmstudio", "http://127.0.0.1:1234/v1"), True),
        (Primary("qwen3.6:9b"), ("qwen3.6:9b", "openrouter", "https://openrouter.ai/api/v1"), True),
        (Primary("qwen3.6:9b", "ollama"), ("qwen3.6:9b", "openrouter", "https://openrouter.ai/api/v1"), False),
        (Primary("qwen3.6:9b", "ollama"), ("gpt-5.4", "custom", "http://127.0.0.1:11434/v1"), False),
        (
            Primary("m", "ollama", "http://localhost:11434"),
            ("m", "custom", "http://127.0.0.1:11434/v1/"),
            True,
        ),
        (Primary("m", "ollama", "http://localhost:11434"), ("m", "custom", "http://127.0.0.1:8080/v1"), False),
    ],
)
def test_primary_is_matched_by_name_and_url(primary: Primary, runs: tuple[str, str, str], matches: bool) -> None:  # noqa: FBT001
    """Hermes calls an Ollama endpoint `custom`; its own label decides nothing but local or hosted."""
    model, provider, base_url = runs
    assert primary.matches(model=model, provider=provider, base_url=base_url) is matches
