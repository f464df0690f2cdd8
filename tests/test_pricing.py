"""Prices equal those of genai-prices for each call, without rounding."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal, localcontext

import pytest
from genai_prices.data_snapshot import set_custom_snapshot
from hypothesis import given
from hypothesis import strategies as st

from pyapp import pricing
from pyapp.errors import InvalidValueError, MissingExtraError, UnknownModelError
from pyapp.pricing import credits_for_cost, price_usage
from tests.bad_input.values import NoOffset
from tests.published_calls import tokens

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def price(model="claude-sonnet-4-5", *, at=NOON, counts=(0, 0, 0, 0), **more):
    """Return the price of *counts*: input, cache writes, cache reads, output."""
    return price_usage(model=model, finished_at=at, **tokens(counts), **more)


def test_counts_are_disjoint():
    # $3, $3.75, $0.30 and $15 for a million.
    assert price(counts=(1_000, 0, 0, 0)) == Decimal("0.003")
    assert price(counts=(0, 1_000, 0, 0)) == Decimal("0.00375")
    assert price(counts=(0, 0, 1_000, 0)) == Decimal("0.0003")
    assert price(counts=(0, 0, 0, 1_000)) == Decimal("0.015")
    assert price(counts=(1_000, 1_000, 1_000, 1_000)) == Decimal("0.02205")


def test_cache_writes_for_an_hour_cost_more():
    an_hour = {"cache_creation_1h_input_tokens": 1_000}
    assert price(counts=(0, 1_000, 0, 0), **an_hour) == Decimal("0.006")
    assert price(counts=(0, 3_000, 0, 0), **an_hour) == Decimal("0.0135")


def test_web_searches_are_paid_for():
    assert price(units={"web_searches": 3}) == Decimal("0.03")


def test_audio_has_its_own_price():
    text = price("gpt-audio", counts=(1_000, 0, 0, 0))
    audio = price(
        "gpt-audio", counts=(1_000, 0, 0, 0), units={"input_audio_tokens": 1_000}
    )
    assert audio > 10 * text > 0


def test_tier_begins_above_its_start_and_prices_every_token():
    assert price(counts=(100_000, 0, 100_000, 0)) == Decimal("0.33")
    assert price(counts=(100_001, 0, 100_000, 0)) == Decimal("0.660006")


def test_price_is_the_one_in_force_at_the_time():
    day = datetime(2026, 3, 13, tzinfo=UTC)  # the day on which the tiers went
    counts = (300_000, 0, 0, 0)
    second = timedelta(seconds=1)
    assert price("claude-opus-4-6", at=day - second, counts=counts) == Decimal("3")
    assert price("claude-opus-4-6", at=day, counts=counts) == Decimal("1.5")
    west = timezone(timedelta(hours=-8))
    local = datetime(2026, 3, 12, 16, tzinfo=west)
    assert price("claude-opus-4-6", at=local, counts=counts) == Decimal("1.5")


def test_price_is_the_one_of_the_service_tier():
    use = {"at": datetime(2026, 11, 1, tzinfo=UTC), "counts": (1_000, 0, 0, 1_000)}
    default = price("gpt-5", context={"service_tier": "default"}, **use)
    flex = price("gpt-5", context={"service_tier": "flex"}, **use)
    assert default == price("gpt-5", **use)
    assert flex == default / 2


def test_new_price_data_replaces_the_cached_rates():
    before = price(counts=(1_000, 0, 0, 0))
    newer = pricing._snapshot().__class__(providers=[], from_auto_update=True)
    set_custom_snapshot(newer)
    try:
        with pytest.raises(UnknownModelError):
            price(counts=(1_000, 0, 0, 0))
    finally:
        set_custom_snapshot(None)
    assert price(counts=(1_000, 0, 0, 0)) == before


def test_second_call_has_the_price_of_the_first():
    use = {"counts": (1_000, 500, 100_000, 345), "context": {"speed": "standard"}}
    first = price(at=NOON + timedelta(days=1), **use)
    assert price(at=NOON + timedelta(days=1, hours=3), **use) == first
    assert price(at=NOON + timedelta(days=1), **{**use, "counts": (1, 0, 0, 0)}) < first
    for bad in ((1, 0, 0, -1), (1.0, 0, 0, 0), (True, 0, 0, 0), (2**31, 0, 0, 0)):
        with pytest.raises(InvalidValueError):
            price(at=NOON + timedelta(days=1), **{**use, "counts": bad})
    with pytest.raises(InvalidValueError, match="exceed"):
        price(at=NOON + timedelta(days=1), cache_creation_1h_input_tokens=501, **use)
    with pytest.raises(InvalidValueError, match="must be text"):
        price(at=NOON + timedelta(days=1), **{**use, "context": {"speed": ["fast"]}})


def test_unknown_model_is_an_error_and_never_free():
    with pytest.raises(UnknownModelError, match="'claude-nope'"):
        price("claude-nope", counts=(1, 0, 0, 0))
    with pytest.raises(UnknownModelError, match="of 'unknown'"):
        price(provider="unknown", counts=(1, 0, 0, 0))
    with pytest.raises(UnknownModelError):
        price("", counts=(1, 0, 0, 0))


def test_tokens_without_a_published_price_are_never_free():
    # Transcription is priced by the hour.
    with pytest.raises(UnknownModelError, match="no published price for input tokens"):
        price("whisper-large-v3", provider="groq", counts=(1, 0, 0, 0))


def test_error_for_any_model_name_is_one_short_line():
    with pytest.raises(UnknownModelError) as caught:
        price("\n\ud800\0" * 10_000, counts=(1, 0, 0, 0))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1_000


def test_long_names_are_not_kept_in_memory():
    for name in ("a" * 501, "b" * 10**6):
        with pytest.raises(UnknownModelError):
            price(name, counts=(1, 0, 0, 0))
        with pytest.raises(UnknownModelError):
            price(provider=name, counts=(1, 0, 0, 0))
        with pytest.raises(UnknownModelError, match="service_tier"):
            price(counts=(1, 0, 0, 0), context={"service_tier": name})
    kept = [*pricing._cache.hosts, *pricing._cache.tariffs, *pricing._cache.usual]
    assert all(len(repr(key)) < 1_000 for key in kept)


def test_cache_is_emptied_when_it_is_full(monkeypatch):
    monkeypatch.setattr(pricing, "_MAX_CACHED", 10)
    for number in range(100):
        with pytest.raises(UnknownModelError):
            price(f"nothing-{number}", counts=(1, 0, 0, 0))
        assert price(at=NOON + timedelta(days=number), counts=(1_000, 0, 0, 0)) > 0
        cache = pricing._cache
        assert len(cache.hosts) <= 12
        assert len(cache.tariffs) <= 12
        assert len(cache.usual) <= 12


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "genai_prices", None)
    with pytest.raises(MissingExtraError, match="pricing"):
        price(counts=(1, 0, 0, 0))


@pytest.mark.parametrize("count", [-1, 1.0, True, "1", None])
def test_count_must_be_a_whole_number_from_zero(count):
    with pytest.raises(InvalidValueError, match="output_tokens"):
        price(counts=(0, 0, 0, count))


def test_part_must_not_exceed_its_whole():
    with pytest.raises(InvalidValueError, match="exceed"):
        price(counts=(0, 5, 0, 0), cache_creation_1h_input_tokens=6)


def test_time_without_a_time_zone_is_refused():
    for at in (datetime(2026, 6, 1), datetime(2026, 6, 1, tzinfo=NoOffset())):  # noqa: DTZ001
        with pytest.raises(InvalidValueError, match="time zone"):
            price(at=at)


def test_time_outside_the_calendar_in_utc_is_refused():
    east = timezone(timedelta(hours=5))
    with pytest.raises(InvalidValueError, match="out of range"):
        price(at=datetime(1, 1, 1, tzinfo=east))


def test_callers_decimal_context_has_no_effect():
    with localcontext(prec=3):
        rough = price(counts=(123_457, 0, 0, 1))
        credit = credits_for_cost(Decimal("0.123456"), Decimal("0.2"))
    assert rough == Decimal("0.370386")
    assert credit == Decimal("14.814720")


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=40),
)
def test_many_small_calls_cost_as_much_as_one_large_call(parts):
    # One tier, so the price is a plain sum.
    one = price("claude-3-haiku", counts=(sum(parts), 0, 0, 0))
    with localcontext(prec=60):
        assert sum(price("claude-3-haiku", counts=(p, 0, 0, 0)) for p in parts) == one


@pytest.mark.parametrize(
    ("cost", "margin", "credit"),
    [
        ("0.01", "0.2", "1.200000"),
        ("0", "0.2", "0.000000"),
        ("0.000000003", "0", "0.000000"),
        ("0.000000015", "0", "0.000002"),  # a tie is rounded away from zero
        ("0.000000025", "0", "0.000003"),
        ("123456789.123456789", "0.2", "14814814694.814815"),
    ],
)
def test_credits_are_exact_to_six_decimals(cost, margin, credit):
    assert str(credits_for_cost(Decimal(cost), Decimal(margin))) == credit


@pytest.mark.parametrize("bad", ["NaN", "sNaN", "Infinity", "-Infinity", "-0.01"])
def test_credits_refuse_invalid_amounts(bad):
    with pytest.raises(InvalidValueError, match="cost"):
        credits_for_cost(Decimal(bad), Decimal("0.2"))
    with pytest.raises(InvalidValueError, match="margin"):
        credits_for_cost(Decimal(1), Decimal(bad))
