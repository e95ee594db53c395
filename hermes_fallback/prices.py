"""What a call to a tier costs, at most and in fact: its tokens, and dollars by the tier's `price` or litellm's map."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from . import lazy_litellm
from .budget import WorstCase, told_tokens
from .config import Tier
from .handoff import most_tokens, text_of

# litellm 1.105 counts every model's tokens with OpenAI's tokenizers. Claude's make up to 1.35 times as many since 4.7
# as before, when they made some more than OpenAI's already; and each provider frames tools in its own way.
_COUNT_MARGIN, _CLAUDE_MARGIN, _FRAME_TOKENS = 1.1, 1.6, 400
# Theirs take up to three digits for one token; of most other models, each digit is one.
_OPENAIS = ("gpt-", "chatgpt-", "o1", "o3", "o4")
# What an image takes at most, whatever its size: Claude's largest, 3.75 megapixels, at 750 a token; OpenAI's 2,500
# patches, with `detail: original` 10,000, at 1.2 tokens each. litellm 1.105 says 85 where no `detail` is given, and
# looks into the image, even by fetching it, where one is. A usual one is Claude's 1.15 megapixels.
_IMAGE_TOKENS, _ORIGINAL_IMAGE_TOKENS, _USUAL_IMAGE_TOKENS = 5_000, 12_000, 1_600
# Of whose models litellm 1.105 asks the server (`/api/show`), on the turn's own thread, where no stop is heard.
_ASKS_THE_SERVER = frozenset({"ollama", "ollama_chat"})
_FOR_MINUTES, _FOR_AN_HOUR = 1.25, 2.0
_MOST_USD = 1e6  # nobody pays that for a call: an endpoint that says so is mistaken

logger = logging.getLogger(__name__)


def is_in_map(provider: str) -> bool:
    """Tell whether litellm looks the provider's models up in its own map, and nowhere else."""
    return provider not in _ASKS_THE_SERVER


def asks_for_cache(tier: Tier) -> bool:
    """Tell whether the prompt is to be cached, as Claude's is only where that is asked for."""
    hosted = tier.provider in {"bedrock", "vertex_ai"} and "claude" in tier.model.lower()
    return (tier.provider == "anthropic" or hosted) and bool(tier.extra.get("cache_control_injection_points", True))


def _writing(tier: Tier) -> float:
    """Return how many times as much as other input Claude takes for what is put into its cache.

    For five minutes that is a quarter more, and twice as much for an hour (platform.claude.com, prompt-caching).
    """
    points = tier.extra.get("cache_control_injection_points")
    controls = [point.get("control") for point in points if isinstance(point, dict)] if isinstance(points, list) else []
    is_hour = any(isinstance(control, dict) and control.get("ttl") == "1h" for control in controls)
    return _FOR_AN_HOUR if is_hour else _FOR_MINUTES


def count_tokens(tier: Tier, messages: Sequence[Any], tools: Sequence[Any] | None) -> int:
    """Return about the input tokens of a request: text as litellm counts it for the tier's model, images as usual."""
    return _text_tokens(tier, messages, tools) + _usual_image_tokens(messages)


def count_read(tier: Tier, messages: Sequence[Any], tools: Sequence[Any] | None) -> int:
    """Return the input tokens that are paid for of a request of which no endpoint told how many it had."""
    texts = _text_tokens(tier, messages, tools)
    return int(texts * (_CLAUDE_MARGIN if _is_claude(tier) else 1)) + _usual_image_tokens(messages)


def _is_claude(tier: Tier) -> bool:
    return "claude" in tier.model.lower()


def _without_images(messages: Sequence[Any]) -> list[Any]:
    return [{**message, "content": text_of(message.get("content"))} for message in messages]


def _most_text_tokens(tier: Tier, counted: int, messages: Sequence[Any], tools: Sequence[Any] | None) -> int:
    """Return how many tokens a model may read of what OpenAI's tokenizers make so many of; none exceeds one a byte."""
    most = int(counted * (_CLAUDE_MARGIN if _is_claude(tier) else _COUNT_MARGIN))
    if tier.model.rpartition("/")[2].lower().startswith(_OPENAIS):
        return most
    written = json.dumps([_without_images(messages), tools], ensure_ascii=False, default=str)
    bare = written.encode("utf-8", "surrogatepass")
    digits = len(bare) - len(bare.translate(None, b"0123456789"))
    return min(most + digits, len(bare))


def _text_tokens(tier: Tier, messages: Sequence[Any], tools: Sequence[Any] | None) -> int:
    texts = _without_images(messages)
    count, model = lazy_litellm.load().token_counter, tier.litellm_name
    try:
        # As they are written: litellm's own count of tools leaves out what stands under `anyOf`, and fails on a
        # property of the type `array` that does not say of what, which is valid (1.105.3).
        written = json.dumps(tools, ensure_ascii=False, separators=(",", ":"), default=str) if tools else ""
        return int(count(model=model, messages=texts)) + int(count(model=model, text=written))
    except Exception as error:  # noqa: BLE001  # of any kind; what it says may quote the conversation
        words = "%s: tokens cannot be counted, and a byte is taken for one [%s]"
        logger.warning(words, tier.name, type(error).__name__)
        return most_tokens({"messages": texts, "tools": tools or []}) or 0


def _images(messages: Sequence[Any]) -> list[Any]:
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image_url"] for part in parts if isinstance(part, dict) and part.get("image_url")]


def _usual_image_tokens(messages: Sequence[Any]) -> int:
    return _USUAL_IMAGE_TOKENS * len(_images(messages))


def _most_image_tokens(messages: Sequence[Any]) -> int:
    details = [image.get("detail") if isinstance(image, dict) else None for image in _images(messages)]
    return sum(_ORIGINAL_IMAGE_TOKENS if detail == "original" else _IMAGE_TOKENS for detail in details)


def worst_case(tier: Tier, handoff: Mapping[str, Any], *, at_most: int | None = None) -> WorstCase | None:
    """Return what a call with this handoff (`messages`, `tools`) costs at most; None when the price is not known.

    With `at_most` tokens, which what is sent does not exceed, none are counted.
    """
    if at_most is None:
        messages, tools = handoff["messages"], handoff.get("tools")
        texts, images = _text_tokens(tier, messages, tools), _most_image_tokens(messages)
        at_most = _most_text_tokens(tier, texts, messages, tools) + images
        counted = texts + images
    else:
        counted = at_most
    tokens = at_most + _FRAME_TOKENS
    # A thousand, for litellm to answer with a number that rounding leaves alone.
    whole, read = cost(tier, tokens, 1000, written_to_cache=tokens), cost(tier, tokens, 0, written_to_cache=tokens)
    if whole is None or read is None:
        return None
    return WorstCase(counted, read, (whole - read) / 1000)


def cost(tier: Tier, input_tokens: int, output_tokens: int, *, written_to_cache: int = 0) -> float | None:
    """Return dollars for so many tokens, by the tier's own `price` or litellm's; None when neither is known.

    `written_to_cache` is how much of the input Claude may put into its prompt cache, which costs more.
    """
    if tier.price is not None:
        written = written_to_cache if asks_for_cache(tier) else 0
        return tier.price.of(input_tokens, output_tokens, written_tokens=written, writing=_writing(tier))
    if not tier.is_litellm:
        return None
    of_tokens = partial(price, tier.provider, tier.model, input_tokens, output_tokens)
    plain = of_tokens()
    if plain is None:
        return None
    writing = of_tokens(written_to_cache=written_to_cache) if written_to_cache else None
    if writing is not None and _writing(tier) > _FOR_MINUTES:
        # Of those for an hour, litellm 1.105 hears in a reply alone.
        of_input = price(tier.provider, tier.model, written_to_cache, 0) or 0.0
        writing += (_writing(tier) - _FOR_MINUTES) * of_input
    # Asked for, and not always served: OpenAI's `priority` costs twice as much, `flex` half.
    serving = of_tokens(service_tier=str(tier.extra["service_tier"])) if "service_tier" in tier.extra else None
    return max(plain, writing or 0.0, serving or 0.0) * _surcharge(tier)


def _surcharge(tier: Tier) -> float:
    """Return how many times as much Claude costs at the `speed` and in the `inference_geo` that are asked for."""
    asked = [str(tier.extra[name]).lower() for name in ("speed", "inference_geo") if name in tier.extra]
    if tier.provider != "anthropic" or not asked:
        return 1.0
    info = lazy_litellm.load().get_model_info(tier.model, custom_llm_provider=tier.provider)
    factors = info.get("provider_specific_entry") or {}
    return math.prod(float(factors.get(one, 1.0)) for one in asked)


def price(
    provider: str,
    model: str,
    input_tokens: int | None,
    output_tokens: int | None,
    *,
    read_from_cache: int = 0,
    written_to_cache: int = 0,
    service_tier: str | None = None,
) -> float | None:
    """Return what a call costs by litellm's prices, in dollars; None when that is not known."""
    if input_tokens is None or output_tokens is None or not is_in_map(provider):
        return None
    litellm = lazy_litellm.load()
    try:
        costs = litellm.cost_per_token(
            model=model,
            custom_llm_provider=provider,
            prompt_tokens=input_tokens,
            completion_tokens=output_tokens,
            cache_creation_input_tokens=written_to_cache,
            cache_read_input_tokens=read_from_cache,
            service_tier=service_tier,
        )
    except Exception:  # noqa: BLE001  # litellm raises a plain Exception for a model that its price map lacks
        return None
    # 0 is no price: litellm has models in its map without one, or without one for what is read or written (1.105.3).
    unpriced = (tokens and not usd for tokens, usd in zip((input_tokens, output_tokens), costs, strict=True))
    return None if any(unpriced) else float(sum(costs))


def cost_of_reply(tier: Tier, response: Any) -> float | None:
    """Return dollars for a reply by its tokens, or what a proxy says that it booked; None when neither is known."""
    usage = getattr(response, "usage", None)
    tokens_in, tokens_out = told_tokens(usage, "prompt_tokens"), told_tokens(usage, "completion_tokens")
    if tokens_in is None or tokens_out is None:
        return None
    details = getattr(usage, "prompt_tokens_details", None)
    told = [(details, "cached_tokens"), (usage, "cache_read_input_tokens"), (usage, "cache_creation_input_tokens")]
    cached = [count for count in (getattr(holder, name, None) for holder, name in told) if isinstance(count, int)]
    if not all(0 <= count <= tokens_in for count in cached):
        return cost(tier, tokens_in, tokens_out)  # nobody reads more from a cache than there is
    if tier.price is not None:
        written = told_tokens(usage, "cache_creation_input_tokens") if asks_for_cache(tier) else None
        read = told_tokens(details, "cached_tokens")
        counts = {"cached_tokens": read or 0, "written_tokens": written or 0}
        return tier.price.of(tokens_in, tokens_out, **counts, writing=_writing(tier))
    if (booked := _booked(usage)) is not None:
        return booked
    if not is_in_map(tier.provider):
        return None
    try:
        usd = lazy_litellm.load().completion_cost(
            completion_response=response, model=tier.model, custom_llm_provider=tier.provider
        )
        return float(usd) or None
    except Exception:  # noqa: BLE001  # litellm raises a plain Exception for a model that its price map lacks
        return None


def _booked(usage: object) -> float | None:
    """Return what a litellm proxy booked, or OpenRouter, under whatever name the model goes there; None if untold."""
    fee = _amount(getattr(usage, "cost", None))
    if getattr(usage, "is_byok", None) is not True:
        return fee
    # By the user's own key: the model's provider bills for it, and OpenRouter a share of that, or nothing.
    details = getattr(usage, "cost_details", None)
    upstream = _amount(details.get("upstream_inference_cost")) if isinstance(details, Mapping) else None
    return None if upstream is None else (fee or 0.0) + upstream


def _amount(told: object) -> float | None:
    if isinstance(told, bool) or not isinstance(told, int | float):
        return None
    return float(told) if 0 < told < _MOST_USD else None
