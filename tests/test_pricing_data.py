"""Every price in the data is applied as genai-prices applies it, or not at all."""

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal, localcontext

import pytest
from genai_prices import Usage
from genai_prices.data_snapshot import get_snapshot
from genai_prices.data_units import unit_data
from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    Provider,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)

from pyapp.published_prices import rules
from pyapp.published_prices.hosts import Host
from pyapp.published_prices.tariffs import (
    NoPriceError,
    Tariff,
    find_tariff,
    usual_rates,
)
from pyapp.published_prices.units import Counts, cost_of_tokens, cost_of_units

PROVIDERS = get_snapshot().providers
SECOND = timedelta(seconds=1)
NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
TOKENS = "_mtok"

# The counts of a call by the unit of its price; the input contains the others.
KEYS = {
    "cache_write_mtok": "cache_write_tokens",
    "cache_write_1h_mtok": "cache_write_1h_tokens",
    "cache_read_mtok": "cache_read_tokens",
    "output_mtok": "output_tokens",
}


def times(model: ModelInfo) -> Iterator[datetime]:
    """Yield the start of each price and the second before it."""
    parts: list[ConditionalPrice | PriceVariant] = [*(model.price_variants or ())]
    if isinstance(model.prices, list):
        parts += model.prices
    yield NOON
    for part in parts:
        limit = part.constraint
        if isinstance(limit, TimeOfDateConstraint):
            for clock in (limit.start_time, limit.end_time):
                moment = datetime.combine(NOON.date(), clock.replace(tzinfo=UTC))
                yield from (moment - SECOND, moment)
        elif limit is not None:
            moment = datetime.combine(limit.start_date, time(), UTC)
            yield from (moment - SECOND, moment)


def contexts(model: ModelInfo) -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{}]
    for variant in model.price_variants or ():
        if variant.when not in found and "default" not in variant.when.values():
            found.append(variant.when)
    return found


def totals(prices: ModelPrice) -> list[int]:
    """Return numbers of input tokens in each tier and on both sides of its start."""
    starts = {t.start for p in vars(prices).values() for t in getattr(p, "tiers", ())}
    around = {start + step for start in starts for step in (-1, 0, 1, 2)}
    return sorted({0, 1, 7, 1_000_000, *around})


def tokens_of(prices: ModelPrice, total: int) -> Iterator[dict[str, int]]:
    """Yield calls with *total* input tokens: of each kind that has a price, and all."""
    priced = [key for key in KEYS if getattr(prices, key) is not None]
    for keys in ([], *([key] for key in priced), priced):
        used = {KEYS[key]: 1 + total // 5 for key in keys if total >= 5}
        hour = used.get("cache_write_1h_tokens", 0)
        if hour:
            used["cache_write_tokens"] = used.get("cache_write_tokens", 0) or hour
            used["cache_write_1h_tokens"] = hour // 2 or hour
        yield {"input_tokens": total, **used}


def counts_of(used: dict[str, int]) -> Counts:
    written, read = (used.get(f"cache_{way}_tokens", 0) for way in ("write", "read"))
    return Counts(
        used["input_tokens"] - written - read,
        written,
        used.get("cache_write_1h_tokens", 0),
        read,
        used.get("output_tokens", 0),
    )


def tariff_of(
    provider: Provider, model: ModelInfo, at: datetime, context: dict[str, str]
) -> Tariff | None:
    try:
        return find_tariff(Host(provider, model), rules.special_terms(context), at)
    except NoPriceError:
        return None


def tariffs_of(
    provider: Provider,
) -> Iterator[tuple[ModelInfo, datetime, dict[str, str], Tariff]]:
    """Yield each tariff that the data states, with its model, time and context."""
    for model in provider.models:
        for at in times(model):
            for context in contexts(model):
                tariff = tariff_of(provider, model, at, context)
                if tariff is not None and not is_by_rule(model, at, context):
                    yield model, at, context, tariff


def variants_of(
    model: ModelInfo, at: datetime, context: dict[str, str]
) -> list[PriceVariant]:
    """Return the variants in force that the data states for just this context."""
    return [
        variant
        for variant in model.price_variants or ()
        if variant.when == context
        and (variant.constraint is None or variant.constraint.active(at))
    ]


def expected(prices: ModelPrice, used: dict[str, int]) -> Decimal:
    tokens = {k: p for k, p in vars(prices).items() if k.endswith(TOKENS)}
    with localcontext(prec=60):
        return ModelPrice(**tokens).calc_price(Usage(**used))["total_price"]


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.id)
def test_every_token_price_equals_that_of_genai_prices(provider):
    for model, at, context, tariff in tariffs_of(provider):
        prices = model.get_prices(at, context)
        where = (model.id, at, context)
        stated = stated_keys(model, at, context)
        assert stated <= vars(tariff.prices).keys(), where
        # Compared by what has a price in this context.
        own = ModelPrice(
            **{k: p for k, p in vars(prices).items() if k in vars(tariff.prices)}
        )
        long = rules.find_long_context(provider.id, model.id)
        for total in totals(prices):
            if own.input_mtok is None or (long and total > long.start):
                continue
            if tariff.rates_for(total).input is None:
                assert_tier_is_not_stated(model, at, context, total)
                continue
            for used in tokens_of(own, total):
                counts = counts_of(used)
                got, _ = cost_of_tokens(tariff, counts, {})
                assert got == expected(own, used), (*where, used)
                if usual := usual_rates(tariff, is_standard=True):
                    assert usual.cost(*counts) == got, (*where, used)
        assert_unpriced_tokens_are_refused(tariff, own, provider, where)


def assert_tier_is_not_stated(model, at, context, total) -> None:
    """Assert that a context states one price where the plain price has tiers."""
    assert context
    (price,) = [
        price
        for variant in variants_of(model, at, context)
        if (price := variant.prices.input_mtok) is not None
    ]
    assert isinstance(price, Decimal)
    plain = model.get_prices(at).input_mtok
    assert isinstance(plain, TieredPrices)
    assert total > plain.tiers[0].start


def stated_keys(model, at, context) -> set[str]:
    """Return the prices of tokens that the data states for just this context."""
    prices = [model.get_prices(at)]
    if context:
        prices = [variant.prices for variant in variants_of(model, at, context)]
    return {
        key
        for each in prices
        for key, price in vars(each).items()
        if price is not None and key.endswith(TOKENS)
    }


def is_by_rule(model, at, context) -> bool:
    """Return whether a documented rule gives the price, not the data."""
    return bool(context) and not variants_of(model, at, context)


def assert_unpriced_tokens_are_refused(tariff, own, provider, where) -> None:
    as_input = {
        "cache_read_mtok": rules.READS_AS_INPUT,
        "cache_write_mtok": rules.WRITES_AS_INPUT,
    }
    for key, unit in KEYS.items():
        if getattr(own, key) is not None:
            continue
        if provider.id in as_input.get(key, ()) and own.input_mtok is not None:
            continue
        if rules.is_free(provider.id, where[0]) and not vars(own):
            continue
        used = {"input_tokens": 10, unit: 10}
        if unit == "cache_write_1h_tokens":
            used["cache_write_tokens"] = 10
        with pytest.raises(NoPriceError):
            cost_of_tokens(tariff, counts_of(used), {})


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.id)
def test_every_part_with_its_own_price_equals_that_of_genai_prices(provider):
    for model, at, context, tariff in tariffs_of(provider):
        prices = tariff.prices
        parts = [
            key
            for key in vars(prices)
            if key not in KEYS and key != "input_mtok" and not is_cached(key)
        ]
        for key in parts:
            part = key.removesuffix(TOKENS) + "_tokens"
            whole = f"{part.partition('_')[0]}_tokens"
            used = {"input_tokens": 900}
            if prices.output_mtok is not None:
                used["output_tokens"] = 700
            got, is_text = cost_of_tokens(tariff, counts_of(used), {part: 300})
            assert not is_text
            full = {**used, part: 300}
            assert got == expected(prices, full), (model.id, at, context, part)
            base, _ = cost_of_tokens(tariff, counts_of(used), {})
            rate = (got - base) / 300
            own = getattr(prices, key) - getattr(
                prices, whole.replace("_tokens", TOKENS)
            )
            assert rate * 10**6 == own


def is_cached(key: str) -> bool:
    return key.startswith("cache_")


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda p: p.id)
def test_every_fee_equals_that_of_genai_prices(provider):
    for model in provider.models:
        for at in times(model):
            tariff = tariff_of(provider, model, at, {})
            assert tariff is not None
            prices = model.get_prices(at)
            for unit, entry in unit_data.items():
                price = getattr(prices, entry["price_key"])
                if entry["price_key"].endswith(TOKENS) or price is None:
                    continue
                if unit == "requests":
                    assert_requests(tariff, price)
                    continue
                fee = cost_of_units(tariff, {unit: 3_600, "requests": 0})
                assert fee == price * 3_600 / entry["per"], (model.id, at, unit)


def assert_requests(tariff: Tariff, price: Decimal) -> None:
    if tariff.request_fee is None:
        sizes = rules.REQUEST_FEES[tariff.host.model.id]
        assert max(sizes.values()) == price
    else:
        assert tariff.request_fee * 1_000 == price


def test_price_keys_of_the_data_are_known():
    keys = {
        key
        for provider in PROVIDERS
        for model in provider.models
        for at in times(model)
        for key in vars(model.get_prices(at))
    }
    known = {entry["price_key"] for entry in unit_data.values()}
    assert keys <= known


def test_variants_name_terms_that_a_context_can_have():
    for provider in PROVIDERS:
        for model in provider.models:
            for when in contexts(model):
                terms = dict(rules.special_terms(when))
                assert terms == when, (provider.id, model.id)


def test_announced_discounts_begin_before_the_data_knows_them():
    for (provider, key, value), rule in rules.ANNOUNCED.items():
        starts = [
            variant.constraint.start_date
            for p in PROVIDERS
            if p.id == provider
            for model in p.models
            for variant in model.price_variants or ()
            if variant.when == {key: value}
            and isinstance(variant.constraint, StartDateConstraint)
        ]
        assert all(rule.since < start for start in starts)
