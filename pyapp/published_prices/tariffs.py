"""The rates of a model at a time, in a context, ready to be applied to a call.

A price in genai-prices is a rate for each unit; a rate may have tiers, and the tier is
chosen by the input tokens of the call and applies to all of them. A tariff holds the
rates of each tier, computed once, because a calculation by genai-prices takes about a
hundred microseconds. Each rate is a price of its own, or a documented rule's: where
genai-prices would use the price of another unit or of the plain tier, the rate is None.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from pyapp._core.validation import MAX_INTEGER
from pyapp.published_prices import rules
from pyapp.published_prices.hosts import Host

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice

# Far more digits than any product here needs: sums of prices are never rounded.
EXACT = Context(prec=200, rounding=ROUND_HALF_EVEN)
_TOKENS = "_mtok"
# A tier whose price is not known.
_UNKNOWN = Decimal("NaN")
_CACHES = ("cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok")


class NoPriceError(Exception):
    """The call used something without a published price; the message names it."""


class Rates(NamedTuple):
    """USD for one token of each kind in one tier; None if it has no price."""

    input: Decimal | None
    cache_write: Decimal | None
    cache_write_1h: Decimal | None
    cache_read: Decimal | None
    output: Decimal | None


@dataclass(frozen=True, slots=True)
class Tariff:
    """The rates of one model in one context; `starts` are the limits of its tiers.

    `fees` are USD, and for how many, of each unit that is not a token; `request_fee` is
    USD for each request, None if it is charged and not known. `prices` has the prices
    of tokens.
    """

    host: Host
    starts: tuple[int, ...]
    rates: tuple[Rates, ...]
    fees: Mapping[str, tuple[Decimal, int]]
    request_fee: Decimal | None
    prices: ModelPrice

    def rates_for(self, input_tokens: int) -> Rates:
        """Return the rates of a call with so many input tokens, cached ones included.

        A tier begins above its start.
        """
        return self.rates[bisect_left(self.starts, input_tokens)]


@dataclass(frozen=True, slots=True)
class UsualRates:
    """The rates of calls without other units, as whole numbers of a unit of USD.

    The price of such a call is their sum times that unit, `10 ** -digits`.
    """

    starts: tuple[int, ...]
    rates: tuple[tuple[int | None, ...], ...]
    digits: int
    is_standard: bool

    def cost(
        self, fresh: int, written: int, hour: int, read: int, output: int
    ) -> Decimal | None:
        """Return the cost, or None if a count is not valid or has no rate."""
        most = MAX_INTEGER
        if not (
            type(fresh) is int
            and type(written) is int
            and type(hour) is int
            and type(read) is int
            and type(output) is int
            and 0 <= fresh <= most
            and 0 <= hour <= written <= most
            and 0 <= read <= most
            and 0 <= output <= most
        ):
            return None
        tier = bisect_left(self.starts, fresh + written + read) if self.starts else 0
        of_input, of_write, of_hour, of_read, of_output = self.rates[tier]
        total = 0
        for count, rate in (
            (fresh, of_input),
            (written - hour, of_write),
            (hour, of_hour),
            (read, of_read),
            (output, of_output),
        ):
            if count:
                if rate is None:
                    return None
                total += count * rate
        return Decimal(total).scaleb(-self.digits, EXACT)


def usual_rates(tariff: Tariff, *, is_standard: bool) -> UsualRates | None:
    """Return the rates of *tariff* for calls without other units, if it has no fee."""
    if tariff.request_fee != 0:
        return None
    digits = max(
        (
            -int(rate.as_tuple().exponent)
            for rates in tariff.rates
            for rate in rates
            if rate is not None
        ),
        default=0,
    )
    digits = max(digits, 0)
    return UsualRates(
        starts=tariff.starts,
        rates=tuple(
            tuple(None if rate is None else int(rate.scaleb(digits)) for rate in rates)
            for rates in tariff.rates
        ),
        digits=digits,
        is_standard=is_standard,
    )


def find_tariff(host: Host, terms: rules.Terms, at: datetime) -> Tariff:
    """Return the tariff of a model at a time, in a context.

    Raises: NoPriceError when a term has no published price at that time.
    """
    provider, model = host
    left = dict(terms)
    factor: Decimal | None = None
    region = left.pop("inference_geo", None)
    if region is not None:
        factor = rules.region_factor(provider.id, model.id, region)
        if factor is None:
            raise NoPriceError(f"inference_geo {region[:40]!a}")
    size = left.pop("search_context_size", None) if _has_sizes(host) else None
    for key, value in terms:
        if (provider.id, key, value) in rules.SAME_PRICE:
            del left[key]
    prices = _plain_prices(host, at)
    if left:
        prices = _prices_in(host, left, at, prices)
    if factor is not None:
        prices = {
            key: _scaled(price, factor) if key.endswith(_TOKENS) else price
            for key, price in prices.items()
        }
    return _tariff(host, prices, size)


def _plain_prices(host: Host, at: datetime) -> dict[str, Any]:
    """Return the prices that hold without a context."""
    provider, model = host
    peak = rules.find_peak_hours(provider.id, model.id)
    if peak is None or not isinstance(model.prices, list):
        return _given(model.get_prices(at))
    in_force = [
        each.prices
        for each in model.prices
        if each.constraint is None
        or (hasattr(each.constraint, "start_date") and each.constraint.active(at))
    ]
    factor = peak.factor_at(at)
    return {key: _scaled(price, factor) for key, price in _given(in_force[-1]).items()}


def _given(prices: ModelPrice) -> dict[str, Any]:
    return {key: price for key, price in vars(prices).items() if price is not None}


def _is_own(host: Host) -> bool:
    """Return whether the provider lists the model, not the provider that makes it."""
    return any(host.model is other for other in host.provider.models)


def _prices_in(
    host: Host, terms: Mapping[str, str], at: datetime, standard: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the prices in a context that is not the plain one."""
    provider, model = host
    # As in genai-prices, another provider's variants do not apply.
    variants = [
        variant
        for variant in (_is_own(host) and model.price_variants) or ()
        if variant.when == terms
    ]
    in_force = [
        variant
        for variant in variants
        if variant.constraint is None or variant.constraint.active(at)
    ]
    if not in_force:
        return _announced_prices(host, terms, at, standard, variants)
    stated: dict[str, Any] = {}
    for variant in in_force:
        stated = {**_given(variant.prices), **stated}
    return _complete(provider.id, terms, standard, stated)


def _complete(
    provider: str,
    terms: Mapping[str, str],
    standard: Mapping[str, Any],
    stated: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the *stated* prices of a variant with those that it leaves unchanged.

    A variant without prices says that the plain prices apply. A route or a kind of
    search changes what it states; a tier changes the price of every token, and long
    contexts that it states no price for have none.
    """
    if not stated or not terms.keys() & {"processing", "service_tier", "speed"}:
        return {**standard, **stated}
    kept = {}
    for key, price in standard.items():
        if key.endswith(_TOKENS):
            keeps = provider in rules.FULL_CACHE and "cache" in key
            keeps = keeps and terms.get("processing") == "batch"
        else:
            keeps = key.endswith("_kcount") and provider in rules.FEES_IN_ALL_TIERS
        if keeps:
            kept[key] = price
    limited = {
        key: _without_tiers(price, getattr(standard.get(key), "tiers", ()))
        for key, price in stated.items()
    }
    return {**kept, **limited}


def _without_tiers(price: Any, tiers: Sequence[Any]) -> Any:
    """Return a price that is not known in the *tiers* of the plain price."""
    if not tiers or not isinstance(price, Decimal):
        return price
    from genai_prices.types import Tier, TieredPrices

    unknown = [Tier(tier.start, _UNKNOWN) for tier in tiers]
    return TieredPrices(base=price, tiers=unknown)


def _announced_prices(
    host: Host,
    terms: Mapping[str, str],
    at: datetime,
    standard: Mapping[str, Any],
    variants: list[Any],
) -> dict[str, Any]:
    """Return the prices that a provider announced and the data lacks.

    They are the prices of the first entry if the plain prices were the same then.
    """
    provider, model = host
    named = ", ".join(f"{k} {v[:40]!a}" for k, v in sorted(terms.items()))
    rule = None
    if len(terms) == 1:
        ((key, value),) = terms.items()
        rule = rules.ANNOUNCED.get((provider.id, key, value))
    if rule is None or at.date() < rule.since or not re.match(rule.models, model.id):
        raise NoPriceError(f"{named} on {at:%Y-%m-%d}")
    dated = [v for v in variants if getattr(v.constraint, "start_date", None)]
    if dated:
        first = min(dated, key=lambda v: v.constraint.start_date)
        begin = datetime.combine(first.constraint.start_date, time(), UTC)
        if _plain_prices(host, begin) == standard:
            return _complete(provider.id, terms, standard, _given(first.prices))
    if rule.factor is None:
        raise NoPriceError(f"{named} on {at:%Y-%m-%d}")
    scaled = ["input_mtok", "output_mtok"]
    if provider.id in rules.CACHE_FOLLOWS:
        scaled += _CACHES
    stated = {
        key: _scaled(standard[key], rule.factor) for key in scaled if key in standard
    }
    return _complete(provider.id, terms, standard, stated)


def _tariff(host: Host, prices: Mapping[str, Any], size: str | None) -> Tariff:
    from genai_prices.types import ModelPrice

    tokens = {key: price for key, price in prices.items() if key.endswith(_TOKENS)}
    long = rules.find_long_context(host.provider.id, host.model.id)
    if long is not None:
        tokens = {key: _with_tier(key, price, long) for key, price in tokens.items()}
    starts = sorted({t.start for p in tokens.values() for t in getattr(p, "tiers", ())})
    rates = [_rates(host, tokens, total) for total in (0, *(s + 1 for s in starts))]
    return Tariff(
        host=host,
        starts=tuple(starts),
        rates=tuple(rates),
        # The fees of another provider's tools are not this one's.
        fees=_fees(prices) if _is_own(host) else {},
        request_fee=_request_fee(host, prices, size),
        prices=ModelPrice(**{key: _known(price) for key, price in tokens.items()}),
    )


def _known(price: Any) -> Any:
    """Return *price* as genai-prices takes it; a rate of None guards unknown tiers."""
    tiers = getattr(price, "tiers", ())
    return price.base if any(tier.price.is_nan() for tier in tiers) else price


def _rates(host: Host, prices: Mapping[str, Any], total: int) -> Rates:
    """Return the rates of a call with *total* input tokens."""
    provider, model = host
    free = Decimal(0)
    if not prices and rules.is_free(provider.id, model.id.lower()):
        return Rates(free, free, free, free, free)
    rate = {key: _of_one(price, total) for key, price in prices.items()}
    tokens = rate.get("input_mtok")
    # A fine-tuned model's cached tokens have a price, which the data lacks.
    is_tuned = model.id.startswith("ft:") or ".ft-" in model.id
    reads = provider.id in rules.READS_AS_INPUT and not is_tuned
    writes = provider.id in rules.WRITES_AS_INPUT and not is_tuned
    return Rates(
        input=tokens,
        cache_write=rate.get("cache_write_mtok", tokens if writes else None),
        cache_write_1h=rate.get("cache_write_1h_mtok"),
        cache_read=rate.get("cache_read_mtok", tokens if reads else None),
        output=rate.get("output_mtok"),
    )


def _with_tier(key: str, price: Any, long: rules.LongContext) -> Any:
    """Return *price* with the tier of long contexts, unless it has tiers."""
    from genai_prices.types import Tier, TieredPrices

    factor = long.output_factor if key.startswith("output") else long.input_factor
    if not isinstance(price, Decimal):
        return price
    above = _UNKNOWN if factor is None else EXACT.multiply(price, factor)
    return TieredPrices(base=price, tiers=[Tier(long.start, above)])


def _of_one(price: Any, total: int) -> Decimal | None:
    """Return the price of one token in a call with *total* input tokens."""
    tiers = getattr(price, "tiers", None)
    if tiers is not None:
        in_force = [tier.price for tier in tiers if total > tier.start]
        price = in_force[-1] if in_force else price.base
    if price.is_nan():
        return None
    return EXACT.scaleb(price, -6)


def _fees(prices: Mapping[str, Any]) -> dict[str, tuple[Decimal, int]]:
    from genai_prices.data_units import unit_data

    return {
        unit: (price, entry["per"])
        for unit, entry in unit_data.items()
        if unit != "requests"
        and not entry["price_key"].endswith(_TOKENS)
        and isinstance(price := prices.get(entry["price_key"]), Decimal)
    }


def _has_sizes(host: Host) -> bool:
    return host.provider.id == "perplexity" and host.model.id in rules.REQUEST_FEES


def _request_fee(
    host: Host, prices: Mapping[str, Any], size: str | None
) -> Decimal | None:
    fee = prices.get("requests_kcount")
    if fee is None:
        return Decimal(0)
    if _has_sizes(host):
        # The price data has the fee of the largest size only.
        fee = rules.REQUEST_FEES[host.model.id].get(size or "")
    return None if fee is None else EXACT.scaleb(fee, -3)


def _scaled(price: Any, factor: Decimal) -> Any:
    if isinstance(price, Decimal):
        return EXACT.multiply(price, factor)
    from genai_prices.types import Tier, TieredPrices

    return TieredPrices(
        base=EXACT.multiply(price.base, factor),
        tiers=[Tier(t.start, EXACT.multiply(t.price, factor)) for t in price.tiers],
    )
