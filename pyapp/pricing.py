"""What a call to a model costs: USD by its published prices, and credits.

The prices come from genai-prices (the extra `pricing`). One of its calculations
costs about 350 microseconds, so its rates are learnt by asking it once for each set
of prices and tier, and applied here. Which prices hold at which moment, and in which
context, is left to genai-prices every time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from typing import TYPE_CHECKING, Any

from pyapp._core.validation import check_time
from pyapp.errors import InvalidValueError, MissingExtraError, UnknownModelError

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, ModelPrice, Provider

# Far more digits than any product here has: sums of prices are never rounded.
_EXACT = Context(prec=200, rounding=ROUND_HALF_EVEN)
_MICRO = Decimal("0.000001")

# The units whose rates are learnt; the parts come after the whole that holds them.
_WHOLE = {
    "cache_write_tokens": "input_tokens",
    "cache_write_1h_tokens": "cache_write_tokens",
    "cache_read_tokens": "input_tokens",
    "output_tokens": None,
    "web_searches": None,
}


@dataclass(frozen=True, slots=True)
class _Rates:
    """USD: a fixed part for each call, and a rate for one more of each unit."""

    fixed: Decimal
    each: Mapping[str, Decimal]


# Rates by the prices they were learnt from, for the price data now in use.
_learnt: tuple[DataSnapshot | None, dict[tuple[Any, ...], _Rates | None]] = (None, {})


def price_usage(
    *,
    model: str,
    input_tokens: int,
    cache_creation_input_tokens: int,
    cache_read_input_tokens: int,
    output_tokens: int,
    finished_at: datetime,
    provider: str | None = None,
    details: Mapping[str, int] | None = None,
    context: Mapping[str, str] | None = None,
) -> Decimal:
    """Return the exact price in USD of one call, at the prices of *finished_at*.

    The four counts are disjoint. *details* are counts that are priced apart, by
    genai-prices' names: parts of the four (`cache_write_1h_tokens`,
    `input_audio_tokens`, `output_audio_tokens`) and more units (`web_searches`).
    *context* says how the call was made, such as `{"service_tier": "flex"}`.
    Without *provider*, the model's name decides it.

    Raises: UnknownModelError when the model, or a unit it used, has no published
    price; InvalidValueError; MissingExtraError.
    """
    units = {
        "input_tokens": input_tokens,
        "cache_write_tokens": cache_creation_input_tokens,
        "cache_read_tokens": cache_read_input_tokens,
        "output_tokens": output_tokens,
    }
    if details:
        units.update(details)
    _check(units)
    at = check_time("finished_at", finished_at)
    # There, the input holds what was written to the cache and read from it.
    units["input_tokens"] += cache_creation_input_tokens + cache_read_input_tokens
    snapshot = _snapshot()
    # Whatever was taken for a name, the message is one line that prints.
    shown = ascii(model[:100]) + (f" of {provider[:100]!a}" if provider else "")
    try:
        found, info = snapshot.find_provider_model(model, None, provider, None)
    except LookupError as exc:
        raise UnknownModelError(f"no published price for model {shown}") from exc
    with localcontext(_EXACT):
        return _price(snapshot, found, info, units, at, context, shown)


def credits_for_cost(cost: Decimal, margin: Decimal) -> Decimal:
    """Return credits = cost x 100 x (1 + margin), exact to six decimals.

    *cost* is in USD; a margin of 0.2 adds a fifth. A tie goes to the even digit.

    Raises: InvalidValueError when either is negative, NaN or infinite.
    """
    for name, value in (("cost", cost), ("margin", margin)):
        if not value.is_finite() or value < 0:
            raise InvalidValueError(f"{name} must be a number from 0 up, not {value}")
    with localcontext(_EXACT):
        return (cost * 100 * (1 + margin)).quantize(_MICRO)


def _check(units: Mapping[str, int]) -> None:
    for name, count in units.items():
        if type(count) is not int or count < 0:
            raise InvalidValueError(f"{name} must be a count from 0 up, not {count!a}")
    hour = units.get("cache_write_1h_tokens", 0)
    if hour > units["cache_write_tokens"]:
        raise InvalidValueError(f"cache_write_1h_tokens ({hour}) exceed all written")


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
    # As genai-prices has it: a context means nothing for another provider's model.
    own = context and any(info is model for model in provider.models)
    prices = info.get_prices(at, context if own else None)
    for unit, price in (("input", "input_mtok"), ("output", "output_mtok")):
        if units[f"{unit}_tokens"] and getattr(prices, price) is None:
            raise UnknownModelError(f"no published {unit} price for model {shown}")
    rates = None
    if all(unit in _WHOLE or unit == "input_tokens" for unit in units):
        rates = _rates(snapshot, prices, units["input_tokens"])
    if rates is None:
        return _ask(prices, units)
    return sum(
        (rates.each[unit] * count for unit, count in units.items() if count),
        start=rates.fixed,
    )


def _rates(snapshot: DataSnapshot, prices: ModelPrice, total: int) -> _Rates | None:
    """Return the rates of *prices* in the tier of *total* input tokens."""
    global _learnt
    if _learnt[0] is not snapshot:
        _learnt = (snapshot, {})
    known = _learnt[1]
    values = vars(prices)
    # A tier begins above its start, and holds for every token of the call.
    starts = sorted({t.start for v in values.values() for t in getattr(v, "tiers", ())})
    tier = bisect_left(starts, total)
    # The snapshot keeps the values alive, so their identities stay their own.
    key = (tier, *values, *map(id, values.values()))
    if key not in known:
        low = starts[tier - 1] + 1 if tier else 1
        high = starts[tier] if tier < len(starts) else low + 1
        known[key] = _learn(prices, low) if low < high else None
    return known[key]


def _learn(prices: ModelPrice, inputs: int) -> _Rates:
    """Ask for the price of *inputs* tokens, and of one more of each unit."""
    base = _ask(prices, {"input_tokens": inputs})
    each = {"input_tokens": _ask(prices, {"input_tokens": inputs + 1}) - base}
    for unit, whole in _WHOLE.items():
        without = {"input_tokens": inputs}
        while whole is not None and whole != "input_tokens":
            without[whole] = 1
            whole = _WHOLE[whole]
        each[unit] = _ask(prices, {**without, unit: 1}) - _ask(prices, without)
    return _Rates(fixed=base - inputs * each["input_tokens"], each=each)


def _ask(prices: ModelPrice, units: Mapping[str, int]) -> Decimal:
    from genai_prices import Usage

    try:
        return prices.calc_price(Usage(**units))["total_price"]
    except ValueError as exc:
        raise InvalidValueError(str(exc)) from exc
