"""The price of a call to a model: USD by the published prices, and credits.

The prices come from genai-prices (the extra `pricing`), which selects those in force at
a time and in a context. Within one tier its price is linear: a rate for each unit, and
the tier is chosen by the input tokens alone. So the rates of a tier are computed once
by genai-prices and applied here, because an import of many lines would otherwise spend
most of its time in calculations of 95 microseconds each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Context, Decimal, localcontext
from typing import TYPE_CHECKING, Any

from pyapp._core.validation import check_amount, check_count, check_time
from pyapp.errors import InvalidValueError, MissingExtraError, UnknownModelError

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider

# Far more digits than any product here needs: sums of prices are never rounded.
_EXACT = Context(prec=200, rounding=ROUND_HALF_EVEN)
_MICRO = Decimal("0.000001")

# Units with a rate, each with the unit that includes it, which comes before it.
_INCLUDED_IN = {
    "cache_write_tokens": "input_tokens",
    "cache_write_1h_tokens": "cache_write_tokens",
    "cache_read_tokens": "input_tokens",
    "output_tokens": None,
    "web_searches": None,
}


@dataclass(frozen=True, slots=True)
class _Rates:
    """USD: a fixed price for each call, and a rate for one more of each unit."""

    fixed: Decimal
    each: Mapping[str, Decimal]


# The price data in use, and the rates of the prices in it.
_cache: tuple[DataSnapshot | None, dict[tuple[Any, ...], _Rates | None]] = (None, {})


@dataclass(frozen=True, slots=True)
class PublishedPrice:
    """The price of one call, or the reason why it has none.

    `cost` is in USD; it is None if anything that was used has no price of its own, and
    then `reason` names it. `other_cost` is the part of the cost that is not for the
    four token counts, such as searches: 0 without them, None if one of them has no
    price. `is_standard` is False if the tier, speed, region or modality of the call
    differs from text tokens at the plain price.
    """

    cost: Decimal | None
    other_cost: Decimal | None
    is_standard: bool
    reason: str | None


def published_price(
    *,
    model: str,
    input_tokens: int,
    cache_creation_input_tokens: int,
    cache_read_input_tokens: int,
    output_tokens: int,
    finished_at: datetime,
    provider: str | None = None,
    cache_creation_1h_input_tokens: int = 0,
    units: Mapping[str, int] | None = None,
    context: Mapping[str, str] | None = None,
) -> PublishedPrice:
    """Return the published price of one call at the time *finished_at*.

    The four counts are disjoint; the cache writes for one hour are part of all cache
    writes. *units* are other counts, by the names of genai-prices: parts of the four
    (`input_audio_tokens`) and separate units (`web_searches`). *context* describes the
    call as its log does: `service_tier`, `speed`, `processing` (`batch`) and
    `inference_geo`. Without *provider*, the model's name determines it.

    Raises: InvalidValueError.
    """
    shown = ascii(model[:100]) + (f" of {provider[:100]!a}" if provider else "")
    counts = {
        "input_tokens": input_tokens,
        "cache_write_tokens": cache_creation_input_tokens,
        "cache_read_tokens": cache_read_input_tokens,
        "output_tokens": output_tokens,
        **(units or {}),
    }
    if cache_creation_1h_input_tokens:
        counts["cache_write_1h_tokens"] = cache_creation_1h_input_tokens
    for name, value in counts.items():
        check_count(name, value)
    hour = cache_creation_1h_input_tokens
    if hour > cache_creation_input_tokens:
        raise InvalidValueError(f"cache_write_1h_tokens ({hour}) exceed all written")
    at = check_time("finished_at", finished_at)
    # In genai-prices, the input includes cache writes and cache reads.
    counts["input_tokens"] += cache_creation_input_tokens + cache_read_input_tokens
    try:
        snapshot = _snapshot()
        found, info = snapshot.find_provider_model(model, None, provider, None)
        with localcontext(_EXACT):
            cost = _price(snapshot, found, info, counts, at, context, shown)
    except LookupError:
        reason = f"no published price for model {shown}"
    except (MissingExtraError, UnknownModelError) as exc:
        reason = str(exc)
    else:
        return PublishedPrice(cost, Decimal(0), True, None)
    return PublishedPrice(None, None, True, reason)


def price_usage(
    *,
    model: str,
    input_tokens: int,
    cache_creation_input_tokens: int,
    cache_read_input_tokens: int,
    output_tokens: int,
    finished_at: datetime,
    provider: str | None = None,
    cache_creation_1h_input_tokens: int = 0,
    units: Mapping[str, int] | None = None,
    context: Mapping[str, str] | None = None,
) -> Decimal:
    """Return the exact published price of one call in USD, as published_price does.

    Raises: UnknownModelError when the model, or a unit it used, has no published
    price; InvalidValueError; MissingExtraError.
    """
    _snapshot()
    price = published_price(
        model=model,
        input_tokens=input_tokens,
        cache_creation_input_tokens=cache_creation_input_tokens,
        cache_read_input_tokens=cache_read_input_tokens,
        output_tokens=output_tokens,
        finished_at=finished_at,
        provider=provider,
        cache_creation_1h_input_tokens=cache_creation_1h_input_tokens,
        units=units,
        context=context,
    )
    if price.cost is None:
        raise UnknownModelError(price.reason)
    return price.cost


def add_prices(prices: Iterable[PublishedPrice]) -> PublishedPrice:
    """Return the price of several passes of one call: the sums, and the first reason.

    The call is standard if all its passes are.
    """
    cost: Decimal | None = Decimal(0)
    other_cost: Decimal | None = Decimal(0)
    is_standard = True
    reason = None
    with localcontext(_EXACT):
        for price in prices:
            cost = _sum(cost, price.cost)
            other_cost = _sum(other_cost, price.other_cost)
            is_standard = is_standard and price.is_standard
            reason = reason or price.reason
    return PublishedPrice(cost, other_cost, is_standard, reason)


def _sum(left: Decimal | None, right: Decimal | None) -> Decimal | None:
    return None if left is None or right is None else left + right


def credits_for_cost(cost: Decimal, margin: Decimal) -> Decimal:
    """Return credits = cost x 100 x (1 + margin), exact to six decimals.

    *cost* is in USD; a margin of 0.2 adds a fifth. A tie is rounded away from
    zero, as by PostgreSQL's round().

    Raises: InvalidValueError when either is not an amount.
    """
    cost, margin = check_amount("cost", cost), check_amount("margin", margin)
    with localcontext(_EXACT):
        return (cost * 100 * (1 + margin)).quantize(_MICRO, ROUND_HALF_UP)


def _snapshot() -> DataSnapshot:
    try:
        from genai_prices import data_snapshot
    except ImportError as exc:
        raise MissingExtraError("pricing") from exc
    return data_snapshot.get_snapshot()


def _price(
    snapshot: DataSnapshot,
    provider: Provider,
    info: ModelInfo,
    units: Mapping[str, int],
    at: datetime,
    context: Mapping[str, str] | None,
    shown: str,
) -> Decimal:
    # As in genai-prices, a context does not apply to another provider's model.
    own = context and any(info is model for model in provider.models)
    prices = info.get_prices(at, context if own else None)
    for unit, price in (("input", "input_mtok"), ("output", "output_mtok")):
        if units[f"{unit}_tokens"] and getattr(prices, price) is None:
            raise UnknownModelError(f"no published {unit} price for model {shown}")
    rates = None
    if all(unit in _INCLUDED_IN or unit == "input_tokens" for unit in units):
        rates = _rates(snapshot, prices, units["input_tokens"])
    if rates is None:
        return _price_of(prices, units)
    return sum(
        (rates.each[unit] * count for unit, count in units.items() if count),
        start=rates.fixed,
    )


def _rates(snapshot: DataSnapshot, prices: ModelPrice, total: int) -> _Rates | None:
    """Return the rates of *prices* in the tier of *total* input tokens."""
    global _cache
    if _cache[0] is not snapshot:
        _cache = (snapshot, {})
    known = _cache[1]
    values = vars(prices)
    # A tier begins above its start, and its rates apply to every token of the call.
    starts = sorted({t.start for v in values.values() for t in getattr(v, "tiers", ())})
    tier = bisect_left(starts, total)
    # Prices are not hashable. The snapshot keeps them alive, so ids are not reused.
    key = (tier, *values, *map(id, values.values()))
    if key not in known:
        low = starts[tier - 1] + 1 if tier else 1
        high = starts[tier] if tier < len(starts) else low + 1
        known[key] = _find_rates(prices, low) if low < high else None
    return known[key]


def _find_rates(prices: ModelPrice, inputs: int) -> _Rates:
    """Calculate the price of *inputs* tokens, and of one more of each unit."""
    base = _price_of(prices, {"input_tokens": inputs})
    each = {"input_tokens": _price_of(prices, {"input_tokens": inputs + 1}) - base}
    for unit, whole in _INCLUDED_IN.items():
        without = {"input_tokens": inputs}
        while whole is not None and whole != "input_tokens":
            without[whole] = 1
            whole = _INCLUDED_IN[whole]
        each[unit] = _price_of(prices, {**without, unit: 1}) - _price_of(
            prices, without
        )
    return _Rates(fixed=base - inputs * each["input_tokens"], each=each)


def _price_of(prices: ModelPrice, units: Mapping[str, int]) -> Decimal:
    from genai_prices import Usage

    try:
        return prices.calc_price(Usage(**units))["total_price"]
    except ValueError as exc:
        raise InvalidValueError(str(exc)) from exc
