"""Says in our words what went wrong when a provider was asked, and whether it took up any work.

litellm's exceptions tell little by their kind: it makes status 500 of whatever breaks a connection, and quotes whole
answers, with what they quote of the conversation or the key (litellm 1.105.3, docs/facts.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import explain, keys, lazy_litellm
from .budget import NOTHING_USED
from .config import Tier

CUT_OFF = "the reply was cut off in the middle"
UNREADABLE = "no reply came that can be read; if that happens again, check `base_url`"

_QUOTED_CHARS = 160
_OVERLAP_CHARS = 24

# The long hexadecimal is how a litellm proxy names a key: by its hash.
_KEY = re.compile(r"\b(?:sk|pk|gsk|xai|key|AIza)[-_]?[\w*-]{6,}|(?<=Bearer )\S+|\b[0-9a-f]{40,}\b")

# What holds a key in the environment; a key need not have a form of its own.
_HOLDS_KEY = re.compile(r"(?i)(?:key|token|secret|password)$")
_KEY_CHARS = 8

# For every provider but OpenAI, litellm quotes the whole answer.
_MESSAGE = re.compile(r'"message": ?"((?:[^"\\]|\\.)+)"')

# Of the exceptions that litellm's were made of: the endpoint was not reached; it had the request, and then no answer
# came that can be read. litellm 1.105 makes status 500 of all of them.
_NOT_REACHED = frozenset({"ConnectError", "ConnectTimeout"})
_BROKEN_OFF = frozenset({"ReadError", "WriteError", "CloseError", "RemoteProtocolError", "JSONDecodeError"})

# Whose exceptions tell of an event of the provider's that says what is wrong.
_SAID_BY_PROVIDER = frozenset({"litellm", "openai"})

# What Claude up to 4.5 says where it is to think and another model called the last tool, without thoughts of its kind
# (platform.claude.com/docs/en/build-with-claude/extended-thinking).
_WANTS_THOUGHTS = "Expected `thinking` or `redacted_thinking`"
_THINKING_ADVICE = (
    "this Claude cannot think in a task that another model began; leave `reasoning_effort` and `thinking` out of "
    "`extra`, or name Claude 4.6 or a newer one"
)

# What a litellm proxy says of a budget that is used up, whose it is, and how far (1.90 and 1.105, docs/fleet.md).
_OVER_BUDGET = re.compile(r"Budget has been exceeded!|ExceededBudget: |No deployments available - crossed budget")
_BUDGET_OF = re.compile(
    r"(?:exceeded! |ExceededBudget: |LiteLLM (?:Virtual )?|budget for )"
    r"(team ?member|key|team|end ?user|user|organization|project|tag|provider|deployment)",
    re.IGNORECASE,
)
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # of TeamMember
_SPENT_OF_BUDGET = re.compile(
    r"(?:Current cost: |Spend=\$?|provider [\w-]+: )(\d[\d.]*(?:e-?\d+)?)(?:, Estimated request cost: [^,]+)?"
    r"(?:, Max budget: |, Budget=|, Limit=\$| >= )(\d[\d.]*(?:e-?\d+)?)(?![\w.])"
)


class ExecutionError(Exception):
    """A tier gave no usable reply; the message says what happened and how to mend it, without any content.

    `transient`: a later try may go better. `in_our_words` is the message without what the provider said: for the
    journal, which keeps no word that is not ours.
    """

    def __init__(self, message: str, *, transient: bool, in_our_words: str | None = None) -> None:
        super().__init__(message)
        self.transient = transient
        self.in_our_words = message if in_our_words is None else in_our_words
        self.used = NOTHING_USED


class BudgetExceeded(ExecutionError):  # noqa: N818  # the budget did what it is for
    """The provider's own budget for this key or team is used up (a litellm proxy says so): the model did not fail."""


def execution_error(
    tier: Tier, error: BaseException, messages: Sequence[Mapping[str, Any]], *, begun: bool
) -> ExecutionError:
    """Translate litellm's exception, most specific first."""
    said = _quotable(str(error), messages, tier)
    if _is_over_budget(error, said):
        return BudgetExceeded(f"{tier.name}: {_budget_words(str(error))}", transient=False)
    if (failure := _connection_error(tier, error, begun=begun)) is not None:
        return failure
    exceptions = lazy_litellm.load().exceptions
    status = getattr(error, "status_code", None)
    # By status where there is one: litellm makes a plain APIError of a 403, and a 500 of a refused connection (1.105).
    kinds = (
        (isinstance(error, exceptions.ContextWindowExceededError), "larger than the model's context", False),
        (isinstance(error, exceptions.ContentPolicyViolationError), "the provider refused the content", False),
        (status == 401, f"the key is missing or was refused; {_key_advice(tier)}", False),
        (status == 402, "no credit is left; see the provider's billing page", False),
        (status == 403, "the key may not use this model", False),
        (status == 404, "the provider does not know this model; check `model` and `base_url`", False),
        (status == 429, "too many requests, or no credit left; see the provider's usage page", True),
        (isinstance(error, exceptions.Timeout) or status == 408, "the provider did not answer in time", True),
        (status == 400 and _WANTS_THOUGHTS in str(error), _THINKING_ADVICE, False),
        (status in {400, 413, 422}, "the request was refused; check `provider`, `model` and `extra`", False),
        (isinstance(status, int) and status >= 500, "the provider had an error, or could not be reached", True),
        (True, "the call broke off", True),
    )
    words, transient = next((words, transient) for matches, words, transient in kinds if matches)
    plain = ", ".join(filter(None, [type(error).__name__, str(status or "")]))
    details = f'{plain}, "{said}"' if said else plain
    return ExecutionError(
        f"{tier.name}: {words} [{details}]", transient=transient, in_our_words=f"{tier.name}: {words} [{plain}]"
    )


def was_refused(error: Any, *, accepted: bool = False) -> bool:
    """Tell whether an endpoint took up no work: it said no, or was not reached (litellm makes a 500 of that).

    `accepted`: its status was a good one, so that only what it says itself is a refusal, and nothing that reading met.
    """
    if error is None:
        return False  # stopped, or waited for in vain: it may have been at work
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or status < 400:
        return False
    litellm, cause = lazy_litellm.load(), _first_cause(error)
    if accepted and type(cause).__module__.partition(".")[0] not in _SAID_BY_PROVIDER:
        return False
    # Of a stream that ended too early litellm says so itself (1.105.3, responses/streaming_iterator.py).
    if accepted and isinstance(cause, litellm.exceptions.APIConnectionError):
        return False
    timed_out = isinstance(error, litellm.exceptions.Timeout) or status == 408
    return not timed_out and not _connection_causes(error) & _BROKEN_OFF


def missing_key(tier: Tier, variable: str) -> str:
    """Say that the tier's key is not set, and where it belongs."""
    return f"{variable} is not set; put the key of {tier.provider} into Hermes's .env under that name"


def _connection_error(tier: Tier, error: BaseException, *, begun: bool) -> ExecutionError | None:
    """Say what litellm makes a 500 of: no answer, or half of one. None when the provider said what is wrong."""
    kinds = _connection_causes(error)
    cases = (
        (
            "SSLCertVerificationError" in kinds,
            "its certificate is not trusted; set SSL_CERT_FILE to a file with that of its authority",
            False,
        ),
        ("gaierror" in kinds, "its host's name is not known; check `base_url` and the network", True),
        (kinds & _NOT_REACHED, "nothing answers at its address; check `base_url` and the network", True),
        (begun and kinds & _BROKEN_OFF, CUT_OFF, True),
        ("JSONDecodeError" in kinds, UNREADABLE, True),
        (kinds & _BROKEN_OFF, "the connection broke off before the reply", True),
    )
    words, transient = next(((words, transient) for matches, words, transient in cases if matches), (None, True))
    return None if words is None else ExecutionError(f"{tier.name}: {words}", transient=transient)


def _first_cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _connection_causes(error: BaseException | None) -> frozenset[str]:
    """Return the kinds of the exceptions that litellm's was made of; none when the provider answered by a status."""
    kinds: list[str] = []
    while error is not None:
        kinds.append(type(error).__name__)
        error = error.__cause__ or error.__context__
    return frozenset() if "HTTPStatusError" in kinds else frozenset(kinds)


def _is_over_budget(error: BaseException, said: str) -> bool:
    """Tell whether a litellm proxy refused because a budget is used up; its status does not say: 422, in 1.90 429."""
    body = getattr(error, "body", None)
    kind = body.get("type") if isinstance(body, Mapping) else None
    if kind == "budget_exceeded":
        return True
    # The budgets of a provider or a deployment are kept by the proxy's router, which says so in words only (1.105.7).
    return kind in {None, "internal_server_error"} and _OVER_BUDGET.match(said) is not None


def _budget_words(message: str) -> str:
    """Say whose budget is used up and how far, and nothing else of the message, which may name the key by its hash."""
    whose = _BUDGET_OF.search(message)
    of = f" of this {_CAPITAL.sub(' ', whose[1]).lower()}" if whose else ""
    spent = _SPENT_OF_BUDGET.search(message)
    numbers = f" (spent {explain.usd(float(spent[1]))} of {explain.usd(float(spent[2]))})" if spent else ""
    return f"the budget{of} is used up at the proxy{numbers}; raise it there, or wait for its next period"


def _quotable(message: str, messages: Sequence[Mapping[str, Any]], tier: Tier) -> str:
    """Return the start of what the provider said, if that is a sentence and does not quote the conversation.

    Keys are masked, and what would steer a terminal is left out.
    """
    words = _MESSAGE.findall(message)
    said = words[-1] if words else message.rpartition("Exception - ")[2].strip().partition("\n")[0]
    said = explain.plain(said)
    if said.startswith("<"):
        return ""  # the page of a proxy before it
    # Before it is cut: of half a key, nobody knows that it is one.
    said = _without_keys(said, tier)[:_QUOTED_CHARS]
    conversation = str(messages)
    if any(said[start : start + _OVERLAP_CHARS] in conversation for start in range(len(said) - _OVERLAP_CHARS + 1)):
        return ""
    return said


def _without_keys(said: str, tier: Tier) -> str:
    """Mask what looks like a key, and what is one by the name that it goes by in the environment."""
    variables = [*os.environ.items(), *keys.at_hand().items()]
    named = (value for name, value in variables if name == tier.api_key_env or _HOLDS_KEY.search(name))
    for key in sorted(named, key=len, reverse=True):
        if len(key) >= _KEY_CHARS:
            said = said.replace(key, "***")
    return _KEY.sub("***", said)


def _key_advice(tier: Tier) -> str:
    return f"put it into Hermes's .env as {tier.api_key_env or keys.usual_name(tier)}"
