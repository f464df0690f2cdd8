"""The price of a call to a model: USD by the published prices, and credits.

The prices come from genai-prices (the extra `pricing`), with the rules that providers
document and it does not hold. What has no price of its own, such as a tier before the
day on which its price is known, has no price here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import TYPE_CHECKING, Any, cast

from pyapp._core.validation import (
    check_amount,
    check_count,
    check_hour_writes,
    check_text,
    check_time,
)
from pyapp.errors import MissingExtraError, UnknownModelError
from pyapp.published_prices import rules
from pyapp.published_prices.hosts import Host, find_hosts, is_free_route, named_region
from pyapp.published_prices.providers import provider_id as provider_id  # public
from pyapp.published_prices.tariffs import (
    EXACT,
    NoPriceError,
    Tariff,
    UsualRates,
    find_tariff,
    usual_rates,
)
from pyapp.published_prices.units import (
    Counts,
    cost_of_tokens,
    cost_of_units,
    has_other_units,
    has_special_tokens,
)

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot

_ZERO = Decimal(0)
_MICRO = Decimal("0.000001")
_MAX_CACHED = 10_000
_MAX_NAME = 500  # no longer name is in the price data, nor kept in memory


class _Cache:
    """The hosts and tariffs found in one snapshot of the price data."""

    def __init__(self, snapshot: DataSnapshot | None) -> None:
        self.snapshot = snapshot
        self.hosts: dict[tuple[str, str | None], _Hosts] = {}
        self.tariffs: dict[tuple[Any, ...], Tariff | str] = {}
        self.usual: dict[tuple[Any, ...], UsualRates | None] = {}


@dataclass(frozen=True, slots=True)
class _Hosts:
    hosts: list[Host]
    has_hours: bool  # a price depends on the time of day
    is_free: bool


_NO_HOSTS = _Hosts([], has_hours=False, is_free=False)
_cache = _Cache(None)


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
    (`input_audio_tokens`) and separate units (`web_searches`); also the calls of the
    API (`requests`), and the passes of the model (`passes`) if the counts are their
    sums. *context* describes the call as its log does: `service_tier`, `speed`,
    `processing` (`batch`), `inference_geo`; Perplexity's `search_context_size`. Without
    *provider*, it is the one that the model's id names, else the model's maker.

    Raises: InvalidValueError.
    """
    usual = None if units else _usual_rates(model, provider, finished_at, context)
    if usual is not None:
        cost = usual.cost(
            input_tokens,
            cache_creation_input_tokens,
            cache_creation_1h_input_tokens,
            cache_read_input_tokens,
            output_tokens,
        )
        if cost is not None:
            return PublishedPrice(cost, _ZERO, usual.is_standard, None)
    counts = Counts(
        check_count("input_tokens", input_tokens),
        check_count("cache_creation_input_tokens", cache_creation_input_tokens),
        check_count("cache_creation_1h_input_tokens", cache_creation_1h_input_tokens),
        check_count("cache_read_input_tokens", cache_read_input_tokens),
        check_count("output_tokens", output_tokens),
    )
    check_hour_writes(counts.cache_write_1h, counts.cache_write)
    others = {}
    if units:
        others = {
            name: count for name, count in units.items() if check_count(name, count)
        }
    at = check_time("finished_at", finished_at)
    check_text("model", model)
    if "/locations/" in model and (region := named_region(model)):
        context = {"inference_geo": region, **(context or {})}
    terms = rules.special_terms(context or {})
    if provider is not None:
        check_text("provider", provider)
    try:
        cache = _current_cache()
    except MissingExtraError as exc:
        return _unpriced(str(exc), terms, others)
    found = _hosts(cache, model, provider)
    if not found.hosts:
        if found.is_free and not has_other_units(others):
            return PublishedPrice(_ZERO, _ZERO, rules.is_plain(terms), None)
        reason = f"no published price for model {_shown(model, provider)}"
        return _unpriced(reason, terms, others)
    tariffs = [_tariff(cache, found, host, terms, at) for host in found.hosts]
    named = (model, provider)
    price, *more = [_price(each, counts, others, terms, named) for each in tariffs]
    if any(other != price for other in more):
        return _unpriced(_differing(model, found.hosts), terms, others)
    if price.cost is not None and not units and finished_at.tzinfo is UTC:
        tariff = tariffs[0]
        if isinstance(tariff, Tariff) and not more and not found.has_hours:
            key = _usual_key(model, provider, finished_at, context)
            cache.usual[key] = usual_rates(tariff, is_standard=price.is_standard)
    return price


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
    _snapshot()  # published_price returns a missing extra as the reason
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
    cost: Decimal | None = _ZERO
    other_cost: Decimal | None = _ZERO
    is_standard = True
    reason = None
    with localcontext(EXACT):
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
    with localcontext(EXACT):
        return (cost * 100 * (1 + margin)).quantize(_MICRO, ROUND_HALF_UP)


def _usual_key(
    model: str,
    provider: str | None,
    finished_at: datetime,
    context: Mapping[str, str] | None,
) -> tuple[Any, ...]:
    terms = tuple(context.items()) if context else None
    return model, provider, finished_at.date(), terms


def _usual_rates(
    model: str,
    provider: str | None,
    finished_at: datetime,
    context: Mapping[str, str] | None,
) -> UsualRates | None:
    """Return the rates of earlier calls with the same arguments, before any check.

    An import of many lines would otherwise spend half of its time here.
    """
    try:
        if finished_at.tzinfo is not UTC or _cache.snapshot is not _snapshot():
            return None
        return _cache.usual.get(_usual_key(model, provider, finished_at, context))
    except (AttributeError, TypeError, MissingExtraError):
        return None  # the checks report it


def _current_cache() -> _Cache:
    global _cache
    snapshot = _snapshot()
    parts = (_cache.hosts, _cache.tariffs, _cache.usual)
    is_full = any(len(part) > _MAX_CACHED for part in parts)
    if is_full or _cache.snapshot is not snapshot:
        _cache = _Cache(snapshot)
    return _cache


def _snapshot() -> DataSnapshot:
    # An import statement takes a microsecond, also if the module is loaded.
    if sys.modules.get("genai_prices") is not None:
        loaded = sys.modules.get("genai_prices.data_snapshot")
        if loaded is not None:
            return cast("DataSnapshot", loaded.get_snapshot())
    try:
        from genai_prices import data_snapshot
    except ImportError as exc:
        raise MissingExtraError("pricing") from exc
    return data_snapshot.get_snapshot()


def _hosts(cache: _Cache, model: str, provider: str | None) -> _Hosts:
    if len(model) > _MAX_NAME or len(provider or "") > _MAX_NAME:
        return _NO_HOSTS
    key = (model, provider)
    if key not in cache.hosts:
        assert cache.snapshot is not None
        hosts = find_hosts(cache.snapshot.providers, model, provider)
        has_hours = any(
            hasattr(price.constraint, "start_time")
            for host in hosts
            for prices in (host.model.prices, host.model.price_variants)
            if isinstance(prices, list)
            for price in prices
        )
        is_free = is_free_route(cache.snapshot.providers, model, provider)
        cache.hosts[key] = _Hosts(hosts, has_hours, is_free)
    return cache.hosts[key]


def _tariff(
    cache: _Cache, found: _Hosts, host: Host, terms: rules.Terms, at: datetime
) -> Tariff | str:
    """Return the tariff of one host, or the name of what has no price there."""
    when = at.replace(second=0, microsecond=0) if found.has_hours else at.date()
    key = (host.provider.id, id(host.model), when, terms)
    tariff = cache.tariffs.get(key)
    if tariff is None:
        try:
            tariff = find_tariff(host, terms, at)
        except NoPriceError as exc:
            tariff = str(exc)
        cache.tariffs[key] = tariff
    return tariff


def _price(
    tariff: Tariff | str,
    counts: Counts,
    others: Mapping[str, int],
    terms: rules.Terms,
    named: tuple[str, str | None],
) -> PublishedPrice:
    """Return the price of a call at one host; *named* are its model and provider."""
    if isinstance(tariff, str):
        reason = f"no published price for {tariff} of model {_shown(*named)}"
        return _unpriced(reason, terms, others)
    other_cost = None
    try:
        other_cost = cost_of_units(tariff, others)
        cost, is_text = cost_of_tokens(tariff, counts, others)
    except NoPriceError as exc:
        return PublishedPrice(
            cost=None,
            other_cost=other_cost,
            is_standard=rules.is_plain(terms) and not has_special_tokens(others),
            reason=f"no published price for {exc} of model {_shown(*named)}",
        )
    return PublishedPrice(
        cost=EXACT.add(cost, other_cost) if other_cost else cost,
        other_cost=other_cost,
        is_standard=is_text and rules.is_plain(terms),
        reason=None,
    )


def _unpriced(
    reason: str, terms: rules.Terms, others: Mapping[str, int]
) -> PublishedPrice:
    """Return the price of a call whose model or context has none."""
    return PublishedPrice(
        cost=None,
        other_cost=None if has_other_units(others) else _ZERO,
        is_standard=rules.is_plain(terms) and not has_special_tokens(others),
        reason=reason,
    )


def _differing(model: str, hosts: list[Host]) -> str:
    names = [host.provider.id for host in hosts]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (
        f"the hosts of model {_shown(model, None)} differ in price"
        f" ({', '.join(names[:8])}{more}): name one with --provider"
    )


def _shown(model: str, provider: str | None) -> str:
    """Return the names for an error; a name may be any text, the error is one line."""
    return ascii(model[:100]) + (f" of {provider[:100]!a}" if provider else "")
