"""Makes one call to a tier through litellm, streamed so that it can be stopped; the only importer of litellm.

Facts about litellm 1.90 to 1.105, each run (docs/facts.md): its import takes seconds, fetches a price map from the
network and prints, unless told not to; a stream that was cut off looks like a whole one except for
`received_finish_reason`; a stalled stream may ignore `timeout`, so this file keeps its own watch.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .config import Tier

_IDLE_SECONDS = 90.0  # without a byte; a reasoning model may think for a minute before its first token
_POLL_SECONDS = 0.05
_QUOTED_CHARS = 160
_OVERLAP_CHARS = 24
_RETRIES = 1  # the provider client's own, for 408, 409, 429, 5xx and connections; `num_retries` repeats a 401 as well

_KEY = re.compile(r"\b(?:sk|pk|gsk|xai|key|AIza)[-_]?[\w*-]{6,}|(?<=Bearer )\S+")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a tier answered: an OpenAI-shaped response object for the host, and what it took."""

    response: Any  # litellm.ModelResponse, whose module must not be imported for a type
    seconds: float
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


class ExecutionError(Exception):
    """A tier gave no usable reply; the message says what happened and how to mend it, without any content.

    `transient`: a later try may go better.
    """

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


class Interrupted(Exception):  # noqa: N818  # nothing went wrong: the user said stop
    """The user stopped the turn during the call."""


def warm() -> None:
    """Import litellm in the background, so that an escalation that may come need not wait for it."""
    if "litellm" not in sys.modules:
        threading.Thread(target=_import_quietly, name="hermes-fallback-warm", daemon=True).start()


def fault_of(tier: Tier) -> str | None:
    """Say what keeps a tier from being asked, as far as it can be told without asking: provider and key."""
    litellm = _import_quietly()
    try:
        litellm.get_llm_provider(f"{tier.provider}/{tier.model}", api_base=tier.base_url)
    except litellm.exceptions.BadRequestError:
        return f"litellm knows no provider “{tier.provider}”; see docs.litellm.ai/docs/providers for its names"
    if tier.api_key_env is not None:
        return None if os.environ.get(tier.api_key_env) else _missing(tier, tier.api_key_env)
    missing = litellm.validate_environment(f"{tier.provider}/{tier.model}")["missing_keys"]
    return _missing(tier, ", ".join(missing)) if missing else None


def complete(
    tier: Tier,
    handoff: Mapping[str, Any],
    *,
    is_interrupted: Callable[[], bool],
    on_text: Callable[[str], object],
) -> Reply:
    """Return the tier's reply to `handoff` (`messages`, `tools`); `on_text` gets the text as it comes.

    Both callables run on the caller's thread, at least every 50 ms.

    Raises:
        ExecutionError: no key, an error of the provider, a timeout, a broken or empty reply.
        Interrupted: `is_interrupted()` turned true.
    """
    started = time.monotonic()
    arguments = _arguments(tier, handoff)
    stream = _Stream(arguments)
    try:
        _drain(stream, started=started, tier=tier, is_interrupted=is_interrupted, on_text=on_text)
    finally:
        stream.close()
    return _reply(stream, tier, seconds=time.monotonic() - started)


def _arguments(tier: Tier, handoff: Mapping[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": f"{tier.provider}/{tier.model}",
        **handoff,
        "stream": True,
        "stream_options": {"include_usage": True},
        "timeout": tier.timeout_seconds,
        "max_retries": _RETRIES,
        "drop_params": True,
        **tier.extra,
    }
    optional = {"base_url": tier.base_url, "max_tokens": tier.max_tokens, "temperature": tier.temperature}
    arguments.update({name: value for name, value in optional.items() if value is not None})
    if tier.api_key_env is not None:
        key = os.environ.get(tier.api_key_env)
        if not key:
            raise ExecutionError(f"{tier.name}: {_missing(tier, tier.api_key_env)}", transient=False)
        arguments["api_key"] = key
    return arguments


class _Stream:
    """litellm's stream, read on a thread of its own, because nothing else can be left in the middle."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.chunks: list[Any] = []
        self.finish_reason_seen = True
        self.messages = arguments["messages"]
        self._arguments = arguments
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._source: Any = None
        threading.Thread(target=self._read, name="hermes-fallback-call", daemon=True).start()

    def next(self) -> tuple[str, Any] | None:
        """Return ("chunk", chunk), ("error", exception) or ("end", None); None when nothing came for 50 ms."""
        try:
            return self._queue.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Let go of the connection; the reading thread ends by itself."""
        self._closed.set()
        source = getattr(self._source, "completion_stream", None)
        for close in (getattr(source, "close", None), getattr(getattr(source, "response", None), "close", None)):
            if callable(close):
                try:
                    close()
                except Exception:  # closing under a reader may fail in any way; it is closed then
                    logger.debug("closing a stream failed", exc_info=True)
                return

    def _read(self) -> None:
        try:
            litellm = _import_quietly()
            self._source = litellm.completion(**self._arguments)
            for chunk in self._source:
                if self._closed.is_set():
                    return
                self._queue.put(("chunk", chunk))
            # None means that no chunk carried a finish reason: the connection was cut. Absent means unknown.
            self.finish_reason_seen = getattr(self._source, "received_finish_reason", "unknown") is not None
            self._queue.put(("end", None))
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to the caller, on the caller's thread
            self._queue.put(("error", error))


def _drain(
    stream: _Stream,
    *,
    started: float,
    tier: Tier,
    is_interrupted: Callable[[], bool],
    on_text: Callable[[str], object],
) -> None:
    heard = time.monotonic()
    speaking = True
    while True:
        item = stream.next()
        if is_interrupted():
            raise Interrupted
        now = time.monotonic()
        if now - started > tier.timeout_seconds:
            message = f"{tier.name}: no end after {tier.timeout_seconds:g} s; raise timeout_seconds if it needs more"
            raise ExecutionError(message, transient=True)
        if item is None:
            if now - heard > _IDLE_SECONDS:
                message = f"{tier.name}: nothing came for {_IDLE_SECONDS:g} s"
                raise ExecutionError(message, transient=True)
            continue
        heard = now
        match item:
            case "chunk", chunk:
                stream.chunks.append(chunk)
                delta = chunk.choices[0].delta if chunk.choices else None
                # As Hermes does it: text beside a tool call is shown until the call begins.
                speaking = speaking and not getattr(delta, "tool_calls", None)
                if speaking and (text := getattr(delta, "content", None)):
                    on_text(text)
            case "error", error:
                raise _execution_error(tier, error, stream.messages) from error
            case _:
                return


def _reply(stream: _Stream, tier: Tier, *, seconds: float) -> Reply:
    litellm = _import_quietly()
    response = litellm.stream_chunk_builder(stream.chunks, messages=stream.messages)
    if response is None or not response.choices:
        raise ExecutionError(f"{tier.name}: the reply was empty", transient=True)
    message = response.choices[0].message
    if not stream.finish_reason_seen:
        raise ExecutionError(f"{tier.name}: the reply was cut off in the middle", transient=True)
    if not (message.content or "").strip() and not message.tool_calls:
        raise ExecutionError(f"{tier.name}: the reply was empty", transient=True)
    usage = getattr(response, "usage", None)
    return Reply(
        response=response,
        seconds=seconds,
        input_tokens=getattr(usage, "prompt_tokens", None),
        output_tokens=getattr(usage, "completion_tokens", None),
        cost_usd=_cost(litellm, response, tier),
    )


def _cost(litellm: Any, response: object, tier: Tier) -> float | None:
    try:
        cost = litellm.completion_cost(
            completion_response=response, model=tier.model, custom_llm_provider=tier.provider
        )
    except Exception:  # noqa: BLE001  # litellm raises a plain Exception for a model that its price map lacks
        return None
    return float(cost)


def _execution_error(tier: Tier, error: BaseException, messages: Sequence[Mapping[str, Any]]) -> ExecutionError:
    """Translate litellm's exception, most specific first."""
    exceptions = _import_quietly().exceptions
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
        (status in {400, 413, 422}, "the request was refused; check `provider`, `model` and `extra`", False),
        (isinstance(status, int) and status >= 500, "the provider had an error, or could not be reached", True),
        (True, "the call broke off", True),
    )
    words, transient = next((words, transient) for matches, words, transient in kinds if matches)
    said = _quotable(str(error), messages)
    details = ", ".join(filter(None, [type(error).__name__, str(status or ""), said and f'"{said}"']))
    return ExecutionError(f"{tier.name}: {words} [{details}]", transient=transient)


def _quotable(message: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the start of what the provider said, unless it quotes the conversation; keys are masked."""
    said = message.rpartition("Exception - ")[2].strip().partition("\n")[0][:_QUOTED_CHARS]
    conversation = str(messages)
    if any(said[start : start + _OVERLAP_CHARS] in conversation for start in range(len(said) - _OVERLAP_CHARS + 1)):
        return ""
    return _KEY.sub("***", said)


def _missing(tier: Tier, variable: str) -> str:
    return f"{variable} is not set; put the key of {tier.provider} into Hermes's .env under that name"


def _key_advice(tier: Tier) -> str:
    name = tier.api_key_env or f"{tier.provider.upper().replace('-', '_')}_API_KEY"
    return f"put it into Hermes's .env as {name}"


def _import_quietly() -> Any:
    # Without this, the import fetches a price map from the network (litellm/__init__.py).
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # Imported here: it takes 3 to 5 s and 170 MB, which only an escalation is worth.
    litellm: Any = importlib.import_module("litellm")

    # Its bridge to OpenAI's Responses API makes pydantic warn on the terminal at each call (1.105.3).
    warnings.filterwarnings("ignore", message="Pydantic serializer warnings", category=UserWarning)
    litellm.suppress_debug_info = True
    litellm.disable_hf_tokenizer_download = True
    litellm.telemetry = False
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # Its handlers write to the terminal; Hermes's log gets what is left.
        its_logger = logging.getLogger(name)
        its_logger.handlers.clear()
        its_logger.setLevel(logging.ERROR)
    return litellm
