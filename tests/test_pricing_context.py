"""A tier, speed or region has its own price at that time, or none."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.data_units import unit_data
from hypothesis import given, settings
from hypothesis import strategies as st

from pyapp.errors import InvalidValueError
from tests.published_calls import BATCH, MAY, NOVEMBER, call, cost


@pytest.mark.parametrize(
    "key", ["service_tier", "speed", "processing", "inference_geo"]
)
@pytest.mark.parametrize(
    "value",
    [
        *("standard", "default", "auto", "not_available", "on_demand", "global", ""),
        *("STANDARD", "ON_DEMAND", "on-demand", "SERVICE_TIER_STANDARD"),
        *("TRAFFIC_TYPE_UNSPECIFIED", None),
    ],
)
def test_names_of_the_plain_price_change_nothing(key, value):
    counts = (1_000, 1_000, 1_000, 1_000)
    plain = call("claude-sonnet-4-5", counts=counts)
    assert plain.is_standard
    assert call("claude-sonnet-4-5", counts=counts, context={key: value}) == plain


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("service_tier", "priority"),
        ("service_tier", "scale"),
        ("service_tier", "provisioned_throughput"),
        ("service_tier", "flex"),
        ("speed", "fast"),
        ("speed", "optimized"),
        ("inference_geo", "eu"),
        ("route", "mistral/eu"),
        ("something", "else"),
    ],
)
def test_term_without_a_published_price_is_named(key, value):
    result = call("claude-haiku-4-5", counts=(1, 0, 0, 1), context={key: value})
    assert (result.cost, result.other_cost) == (None, 0)
    assert not result.is_standard
    assert value in result.reason
    assert "'claude-haiku-4-5'" in result.reason


def test_tier_before_its_price_is_known_is_named_with_the_day():
    priority = {"service_tier": "priority"}
    result = call("gpt-5", at=MAY, counts=(1, 0, 0, 1), context=priority)
    assert result.cost is None
    assert "'priority' on 2026-05-04" in result.reason
    later = cost("gpt-5", counts=(1_000_000, 0, 0, 0), context=priority)
    assert later == Decimal("2.5")


def test_context_may_be_written_in_any_case():
    use = {"counts": (1_000, 0, 0, 1_000)}
    flex = cost("gpt-5", context={"service_tier": "flex"}, **use)
    assert cost("gpt-5", context={"service_tier": "FLEX"}, **use) == flex
    assert cost("gpt-5", context={"service_tier": "ON_DEMAND_FLEX"}, **use) == flex


def test_two_terms_together_have_no_price_of_their_own():
    both = {**BATCH, "service_tier": "flex"}
    assert call("gpt-5", counts=(1, 0, 0, 1), context=both).cost is None


def test_batch_as_a_service_tier_is_batch_processing():
    for context in ({"service_tier": "batch"}, {"service_tier": "batch", **BATCH}):
        assert call("claude-haiku-4-5", counts=(9, 9, 9, 9), context=context) == call(
            "claude-haiku-4-5", counts=(9, 9, 9, 9), context=BATCH
        )


@pytest.mark.parametrize(
    ("model", "counts", "half"),
    [
        # The data knows these prices from October 2026 on.
        ("gpt-4o-mini", (1_000_000, 0, 0, 100_000), "0.105"),
        ("claude-sonnet-4-6", (1_000, 1_000, 1_000, 1_000), "0.011025"),
        ("gemini-2.5-flash", (1_000_000, 0, 0, 100_000), "0.275"),
        # It has no batch price of these models.
        ("claude-opus-4-1", (1_000, 1_000, 1_000, 1_000), "0.055125"),
        ("o1-mini", (1_000_000, 0, 0, 0), "0.55"),
    ],
)
def test_batches_were_half_price_before_the_data_knew_it(model, counts, half):
    result = call(model, at=MAY, counts=counts, context=BATCH)
    assert result.cost == Decimal(half)
    assert not result.is_standard


def test_batch_before_batches_existed_has_no_price():
    early = datetime(2024, 4, 14, tzinfo=UTC)
    assert call("gpt-4o", at=early, counts=(1, 0, 0, 0), context=BATCH).cost is None


def test_model_whose_batch_price_is_the_plain_one_is_not_halved():
    # OpenAI lists the plain price of this model for batches.
    use = {"counts": (1_000_000, 0, 0, 0), "context": BATCH}
    for at in (MAY, NOVEMBER):
        assert cost("gpt-3.5-turbo-1106", at=at, **use) == 1


def test_flex_was_half_price_before_the_data_knew_it():
    flex = {"service_tier": "flex"}
    use = {"at": MAY, "counts": (1_000, 0, 1_000, 1_000)}
    assert cost("gpt-5", context=flex, **use) == cost("gpt-5", **use) / 2
    # A model that has never had the tier.
    assert call("gpt-4o", context=flex, **use).cost is None


def test_cached_tokens_of_a_batch_have_the_price_that_the_provider_documents():
    million = {"counts": (0, 0, 1_000_000, 0), "context": BATCH}
    # OpenAI: no discount for cached input without a price in the table of batches.
    assert cost("gpt-4.1", **million) == 1
    # Google: the discount of the cache, not also that of the batch.
    assert cost("gemini-2.5-flash", **million) == Decimal("0.03")
    assert cost("gemini-3.1-flash-lite", **million) == Decimal("0.0125")
    # Anthropic: both.
    assert cost("claude-haiku-4-5", **million) == Decimal("0.05")


def test_flex_of_groq_has_the_plain_price():
    use = {"provider": "groq", "counts": (1_000_000, 0, 0, 0)}
    result = call("llama-3.3-70b-versatile", context={"service_tier": "flex"}, **use)
    assert result.cost == Decimal("0.59")
    assert not result.is_standard


def test_speed_multiplies_every_token():
    use = {
        "counts": (1_000, 1_000, 1_000, 1_000),
        "cache_creation_1h_input_tokens": 500,
    }
    fast = cost("claude-opus-5", context={"speed": "fast"}, **use)
    assert fast == 2 * cost("claude-opus-5", **use)


def test_fast_mode_of_older_models_has_the_announced_price():
    fast = {"context": {"speed": "fast"}, "at": MAY}
    use = {"counts": (1_000, 1_000, 1_000, 1_000), "at": MAY}
    for model in ("claude-opus-4-6", "claude-opus-4-7"):
        assert cost(model, **{**use, **fast}) == 6 * cost(model, **use)
    # Long contexts had a tier of their own until March 2026.
    march = datetime(2026, 3, 1, tzinfo=UTC)
    long = {"counts": (200_001, 0, 0, 1_000), "at": march}
    # 200,001 x 60 + 1,000 x 225, per million.
    assert cost("claude-opus-4-6", context=fast["context"], **long) == Decimal(
        "12.22506"
    )
    for model in ("claude-sonnet-4-6", "claude-opus-4-5"):
        assert call(model, counts=(1, 0, 0, 0), **fast).cost is None


def test_inference_in_the_us_costs_a_tenth_more():
    us = {"inference_geo": "us"}
    use = {"counts": (100_000, 10_000, 10_000, 10_000)}
    for model in ("claude-opus-4-6", "claude-sonnet-4-6", "claude-sonnet-5"):
        assert cost(model, context=us, **use) == cost(model, **use) * Decimal("1.1")
    # It is charged on top of other factors, and not on searches.
    batch = cost("claude-opus-4-8", context=BATCH, **use)
    both = call("claude-opus-4-8", context={**BATCH, **us}, **use)
    assert both.cost == batch * Decimal("1.1")
    searched = call("claude-opus-4-8", context=us, units={"web_searches": 1}, **use)
    assert searched.other_cost == Decimal("0.01")
    assert not searched.is_standard


@pytest.mark.parametrize(
    ("model", "provider"),
    [("claude-opus-4-5", None), ("gpt-5", None), ("claude-opus-4-6", "vertex")],
)
def test_region_without_a_published_price_is_named(model, provider):
    use = {"counts": (1, 0, 0, 1), "provider": provider}
    result = call(model, context={"inference_geo": "us"}, **use)
    if provider == "vertex":
        # Vertex AI charges a tenth more outside its global endpoint.
        assert result.cost is not None
    else:
        assert "inference_geo 'us'" in result.reason


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("claude-sonnet-4-20250514", None),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", None),
        ("global.anthropic.claude-sonnet-4-5-20250929-v1:0", None),
    ],
)
def test_long_contexts_have_a_tier_that_the_data_lacks(model, provider):
    short = cost(model, counts=(100_000, 0, 100_000, 1_000), provider=provider)
    long = cost(model, counts=(100_001, 0, 100_000, 1_000), provider=provider)
    assert short == Decimal("0.345")  # 0.3 + 0.03 + 0.015
    # 100,001 x 6 + 100,000 x 0.6 + 1,000 x 22.5, per million.
    assert long == Decimal("0.682506")


def test_long_context_of_unknown_price_is_named():
    use = {"provider": "bedrock", "counts": (272_001, 0, 0, 0)}
    assert "input tokens" in call("openai.gpt-5.4", **use).reason
    assert call("openai.gpt-5.4", provider="bedrock", counts=(272_000, 0, 0, 0)).cost


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-06-10T09:00Z", "0.14"),  # before there were peak hours
        ("2026-08-18T00:59Z", "0.22"),
        ("2026-08-18T01:00Z", "0.44"),
        ("2026-08-22T09:59Z", "0.44"),  # a Saturday
        ("2026-11-20T03:59Z", "0.30"),
        ("2026-11-20T04:00Z", "0.15"),
        ("2026-11-21T03:00Z", "0.15"),  # a Saturday
    ],
)
def test_peak_hours_hold_since_they_began_and_on_weekdays(time, expected):
    at = datetime.fromisoformat(time)
    got = cost("deepseek-v4-flash", at=at, counts=(1_000_000, 0, 0, 0))
    assert got == Decimal(expected)


def test_long_context_of_a_tier_without_its_price_is_named():
    use = {"counts": (272_001, 0, 0, 1), "context": BATCH}
    assert cost("gpt-5.5", **use) == Decimal("1.3600275")  # 272,001 x 5 + 22.5
    assert "input tokens" in call("gpt-5.5-pro", **use).reason
    assert cost("gpt-5.5-pro", counts=(272_000, 0, 0, 0), context=BATCH) == Decimal(
        "4.08"
    )


@pytest.mark.parametrize("value", [1, True, b"flex", ["flex"]])
def test_context_must_be_text(value):
    with pytest.raises(InvalidValueError, match="service_tier must be text"):
        call("gpt-5", context={"service_tier": value})


MODELS = [model.id for p in get_snapshot().providers for model in p.models[:20]]
UNITS = [*unit_data, "passes", "file_searches", "web_fetches", "teleports"]
TERMS = ["batch", "flex", "priority", "fast", "us", "low", "default", "", "x"]


@settings(max_examples=300, deadline=None)
@given(
    model=st.sampled_from(MODELS) | st.text(max_size=20),
    provider=st.none() | st.sampled_from([p.id for p in get_snapshot().providers]),
    counts=st.tuples(*(st.integers(0, 400_000) for _ in range(4))),
    units=st.dictionaries(st.sampled_from(UNITS), st.integers(0, 1_000), max_size=3),
    context=st.dictionaries(
        st.sampled_from(["service_tier", "processing", "speed", "inference_geo"]),
        st.sampled_from(TERMS),
        max_size=2,
    ),
    at=st.datetimes(datetime(2023, 1, 1), datetime(2027, 6, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_any_call_has_a_cost_or_a_reason(model, provider, counts, units, context, at):
    use = {"provider": provider, "counts": counts, "units": units, "context": context}
    try:
        first = call(model, at=at, **use)
    except InvalidValueError:
        return  # a part exceeds its whole
    assert (first.cost is None) == (first.reason is not None)
    if first.reason is not None:
        assert first.reason.isprintable()
        assert len(first.reason) < 500
    else:
        assert first.other_cost is not None
        assert 0 <= first.other_cost <= first.cost < 10**6
    if context and not all(value in ("default", "") for value in context.values()):
        assert not first.is_standard
    assert call(model, at=at, **use) == first
