"""Generations of OpenRouter and of Vercel AI Gateway: what a call was and what it cost.

OpenRouter's id is that of the body, so both are one message. The native counts are of
the provider's tokenizer, and are billed; reasoning is part of the completion. A call
with the customer's own key costs its fee and what the provider charges.

Sources: OpenRouter, Get a generation; Bring your own key. Vercel, AI Gateway Generation
Lookup.
"""

from __future__ import annotations

from pyapp.usage_import.fields import BadUsageError, Object, amount, count, text
from pyapp.usage_import.formats import openai
from pyapp.usage_import.formats.kinds import Body, Lines
from pyapp.usage_import.formats.stated_costs import with_own_key
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
)

_COSTS = ("total_cost", "usage")  # the same, where both are stated
# What the provider charges for a call with an own key; the second in the log
# of OpenRouter's pages.
_UPSTREAM = ("upstream_inference_cost", "byok_usage_inference")
_COUNTS = ("native_tokens_prompt", "native_tokens_completion")


def _has_usage(response: Object) -> bool:
    return any(key in response for key in _COSTS) and any(
        key in response for key in _COUNTS
    )


def _read(chain: Chain) -> ModelResponse:
    generation = chain[-1]
    name = text(generation.get("generation_id")) or text(generation.get("id"))
    if name is None:
        raise BadUsageError("a generation without an id")
    prompt, output = (count(generation, key) for key in _COUNTS)
    # Bounded, because the cost is stated and the counts are not what it is made of.
    read = min(count(generation, "native_tokens_cached"), prompt)
    stated = [amount(key, generation.get(key)) for key in _COSTS]
    total = next((each for each in stated if each is not None), None)
    upstream = [amount(key, generation.get(key)) for key in _UPSTREAM]
    is_own_key = generation.get("is_byok")
    if not isinstance(is_own_key, bool):
        is_own_key = bool(upstream[-1]) if _UPSTREAM[-1] in generation else None
    latency = generation.get("generation_time")
    return describe(
        chain,
        openai.make_response_id(name, None),
        [Pass(prompt - read, 0, read, output)],
        provider="vercel" if name.startswith("gen_") else "openrouter",
        cost=None
        if total is None
        else with_own_key(
            total,
            next((each for each in upstream if each is not None), None),
            is_own_key,
        ),
        latency_ms=latency if isinstance(latency, int) and latency >= 0 else None,
    )


class Generations(Lines):
    """Generations, also as the API returns them."""

    KEYS = frozenset(_COUNTS)
    PLACES = ("data",)
    BODY = Body(has_usage=_has_usage, read=_read)
