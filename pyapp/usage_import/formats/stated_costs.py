"""Costs that responses in OpenAI's form state, each by the documentation of its host.

| Host | Cost | Zero is |
|---|---|---|
| OpenRouter | `usage.cost`; with an own key, the upstream cost too | zero |
| Perplexity | `usage.cost.total_cost` | unknown |
| xAI | `usage.cost_in_usd_ticks`, of which 10,000,000,000 are 1 USD | unknown |
| DeepInfra | `usage.estimated_cost`, which it computes from its own prices | unknown |
| Vercel AI Gateway | `cost` of the provider metadata `gateway` | unknown |
| LiteLLM | `_hidden_params.response_cost`, as its library adds it | unknown |

xAI's messages have 0 where nothing was set. A gateway states 0 for a call with an own
key, and for a model that it has no price for. Estimates of other programs, such as the
`cost_estimate` of the gateway of Pydantic AI, are not what was paid.

Sources: OpenRouter, Usage accounting and Bring your own key; Perplexity, Sonar API;
xAI, Consumption and rate limits, and `usage.proto`; DeepInfra, Text generation; Vercel
AI Gateway, Usage; LiteLLM, Completion cost.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from pyapp._core.validation import shown
from pyapp.usage_import.fields import BadUsageError, Object, amount, inner, value_at


def find_cost(response: Object, usage: Object) -> Decimal | None:
    """Return the cost in USD that a response states, or None.

    Raises: BadUsageError if it is not an amount, or only a part of the cost.
    """
    if not _IN_USAGE.keys().isdisjoint(usage):
        for key, read in _IN_USAGE.items():
            if usage.get(key) is not None:
                return read(usage)
    if not _IN_RESPONSE.keys().isdisjoint(response):
        for first, path in _IN_RESPONSE.items():
            stated = value_at(response.get(first), path)
            if stated is not None:
                return amount(path[-1], stated) or None
    return None


def with_own_key(
    fee: Decimal, upstream: Decimal | None, is_own_key: bool | None
) -> Decimal:
    """Return what a call by OpenRouter costs: with the customer's own key, both.

    Some responses do not tell whether the key is an own one. Then it is if OpenRouter
    charges less than the provider.

    Raises: BadUsageError if the upstream cost is not stated.
    """
    if is_own_key is None:
        is_own_key = upstream is not None and fee < upstream
    if not is_own_key:
        return fee
    if upstream is None:
        raise BadUsageError(
            f"cost ({fee:f}) is the fee only: is_byok is true, and"
            " upstream_inference_cost is not stated"
        )
    return fee + upstream


def _openrouter(usage: Object) -> Decimal | None:
    stated = usage["cost"]
    if isinstance(stated, dict):
        currency = stated.get("currency", "USD")
        if currency != "USD":
            raise BadUsageError(f"cost in {shown(currency)}, not in USD")
        return amount("total_cost", stated.get("total_cost")) or None
    fee = amount("cost", stated)
    details = inner(usage, "cost_details")
    upstream = details.get("upstream_inference_cost")
    is_own_key = usage.get("is_byok")
    if fee is None or (fee == 0 and not details and is_own_key is None):
        return None
    return with_own_key(
        fee,
        amount("upstream_inference_cost", upstream),
        is_own_key if isinstance(is_own_key, bool) else None,
    )


def _ticks(usage: Object) -> Decimal | None:
    ticks = amount("cost_in_usd_ticks", usage["cost_in_usd_ticks"])
    return ticks.scaleb(-10) if ticks else None


def _estimate(usage: Object) -> Decimal | None:
    return amount("estimated_cost", usage["estimated_cost"]) or None


_IN_USAGE: dict[str, Callable[[Object], Decimal | None]] = {
    "cost": _openrouter,
    "cost_in_usd_ticks": _ticks,
    "estimated_cost": _estimate,
}
# Keys of a response, each with the path to the cost in it.
_IN_RESPONSE = {
    "providerMetadata": ("gateway", "cost"),
    "provider_metadata": ("gateway", "cost"),
    "_hidden_params": ("response_cost",),
}
