"""A tier, speed, region or unit has its own price at that time, or none."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.data_units import unit_data
from hypothesis import given, settings
from hypothesis import strategies as st

from pyapp.errors import InvalidValueError, UnknownModelError
from pyapp.pricing import PublishedPrice, add_prices, price_usage, published_price

MAY = datetime(2026, 5, 4, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 20, tzinfo=UTC)
BATCH = {"processing": "batch"}
FREE = PublishedPrice(Decimal(0), Decimal(0), True, None)


def call(model: str, *, at=NOVEMBER, counts=(0, 0, 0, 0), **more):
    """Return the price of *counts*: input, cache writes, cache reads, output."""
    names = ("input", "cache_creation_input", "cache_read_input", "output")
    tokens = {f"{n}_tokens": c for n, c in zip(names, counts, strict=True)}
    return published_price(model=model, finished_at=at, **tokens, **more)


def cost(model: str, **more):
    result = call(model, **more)
    assert result.cost is not None, result.reason
    return result.cost


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


def test_sum_of_passes_above_a_tier_is_named():
    use = {"counts": (200_001, 0, 0, 0), "units": {"web_searches": 1}}
    assert "of several passes" in call("claude-sonnet-4-5", **use).reason
    passes = {**use, "units": {"passes": 2}}
    assert "of several passes" in call("claude-sonnet-4-5", **passes).reason
    assert call("claude-sonnet-4-5", counts=(9, 0, 0, 0), units={"passes": 2}).cost
    assert call("claude-sonnet-5", **use).cost  # has no tiers
    assert call("gpt-5.4", counts=(272_001, 0, 0, 0), units={"web_searches": 1}).cost
    one = {"counts": (200_000, 0, 0, 0), "units": {"web_searches": 1}}
    assert call("claude-sonnet-4-5", **one).cost == Decimal("0.61")


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


def test_searches_are_a_cost_of_their_own():
    use = {"counts": (1_000, 0, 0, 0), "units": {"web_searches": 3}}
    result = call("claude-sonnet-4-5", **use)
    assert result == PublishedPrice(Decimal("0.033"), Decimal("0.03"), True, None)
    # Searches have one price, in batches too.
    batch = call("claude-sonnet-4-5", context=BATCH, **use)
    assert (batch.cost, batch.other_cost) == (Decimal("0.0315"), Decimal("0.03"))


def test_fee_of_the_makers_tool_is_not_the_hosts():
    use = {"counts": (1_000, 0, 0, 0), "units": {"web_searches": 1}}
    assert call("gpt-4.1", **use).cost == Decimal("0.012")
    assert "web_searches" in call("gpt-4.1", provider="azure", **use).reason


def test_file_searches_have_the_price_of_storage_searches():
    assert call("gpt-5", units={"file_searches": 4}).other_cost == Decimal("0.01")


def test_unit_that_costs_nothing_is_free():
    assert call("claude-sonnet-4-5", units={"web_fetches": 9}) == FREE
    assert call("gpt-5", units={"requests": 1, "passes": 3}) == FREE


@pytest.mark.parametrize(
    ("model", "unit"),
    [
        ("claude-haiku-4-5", "code_executions"),
        ("gpt-5", "code_executions"),
        ("gpt-5", "web_fetches"),
        ("gpt-5", "teleports"),
        ("gpt-5", "input_audio_tokens"),
        ("gpt-4o-audio-preview", "input_audio_tokens"),
        ("gpt-5", "output_image_tokens"),
        ("claude-haiku-4-5", "input_image_tokens"),
        ("gemini-2.5-flash", "output_audio_tokens"),
        ("gpt-5", "\n\x00"),
    ],
)
def test_unit_without_a_price_of_its_own_is_named(model, unit):
    result = call(model, counts=(100, 0, 0, 100), units={unit: 7})
    assert result.cost is None
    assert (unit if unit.isprintable() else repr(unit)) in result.reason
    assert result.reason.isprintable()
    is_part = unit.endswith("_tokens")
    assert result.other_cost == (0 if is_part else None)
    assert result.is_standard is not is_part


def test_count_of_zero_is_no_use():
    units = {"web_searches": 0, "teleports": 0, "input_audio_tokens": 0}
    assert call("gpt-5", units=units) == FREE


def test_audio_has_its_own_price():
    result = call(
        "gpt-audio",
        counts=(1_000, 0, 0, 500),
        units={"input_audio_tokens": 400, "output_audio_tokens": 100},
    )
    # 600 x 2.5 + 400 x 32 + 400 x 10 + 100 x 64, per million.
    assert result == PublishedPrice(Decimal("0.0247"), Decimal(0), False, None)


def test_cached_audio_is_found_where_only_one_number_is_possible():
    audio = {"input_audio_tokens": 500}
    use = {"units": audio, "provider": "google"}
    # All input is audio, so the cached tokens are.
    all_audio = cost("gemini-2.5-flash", counts=(300, 0, 200, 0), **use)
    assert all_audio == Decimal("0.00032")  # 300 x 1 + 200 x 0.1, per million
    some = call("gemini-2.5-flash", counts=(600, 0, 200, 0), **use)
    assert "cached audio tokens" in some.reason
    stated = {**audio, "cache_audio_read_tokens": 50}
    known = cost("gemini-2.5-flash", counts=(600, 0, 200, 0), units=stated)
    # 150 x 0.3 + 450 x 1 + 150 x 0.03 + 50 x 0.1, per million.
    assert known == Decimal("0.0005045")


@pytest.mark.parametrize(
    ("model", "unit"),
    [
        ("gpt-5", "input_image_tokens"),
        ("gpt-5", "output_reasoning_tokens"),
        ("gpt-5", "input_text_tokens"),
        ("grok-4", "input_image_tokens"),
        ("gemini-2.5-flash", "input_image_tokens"),
        ("gemini-2.5-flash", "input_video_tokens"),
        ("gemini-2.5-flash", "input_document_tokens"),
        ("gemini-2.5-flash", "input_tool_tokens"),
        ("gemini-2.5-pro", "input_audio_tokens"),
        ("gpt-image-1", "output_image_tokens"),
        ("gemini-2.5-flash-tts", "output_audio_tokens"),
    ],
)
def test_tokens_that_are_billed_as_text_change_nothing(model, unit):
    counts = (100, 0, 0, 100)
    assert call(model, counts=counts, units={unit: 50}) == call(model, counts=counts)


def test_reasoning_with_a_price_of_its_own_has_it():
    result = call(
        "sonar-deep-research",
        counts=(0, 0, 0, 1_000),
        units={"output_reasoning_tokens": 800},
    )
    assert result.cost == Decimal("0.004")  # 200 x 8 + 800 x 3, per million


def test_audio_by_time():
    heard = call("whisper-1", units={"audio_seconds": 100})
    assert heard.cost == Decimal("0.01")
    assert heard.is_standard
    # Groq bills ten seconds at least.
    groq = {"provider": "groq"}
    least = cost("whisper-large-v3", units={"audio_seconds": 3}, **groq)
    assert least == cost("whisper-large-v3", units={"audio_seconds": 10}, **groq)
    # A price for an hour, to eighteen decimals of a dollar.
    assert str(least) == "0.000308333333333333"


def test_part_of_a_unit_is_counted_once():
    pages = {"input_document_pages": 10}
    both = {**pages, "input_annotated_document_pages": 4}
    assert cost("mistral-ocr-2512", units=pages) == Decimal("0.02")
    assert cost("mistral-ocr-2512", units=both) == Decimal("0.024")
    with pytest.raises(InvalidValueError, match="exceed"):
        call("mistral-ocr-2512", units={**pages, "input_annotated_document_pages": 11})


@pytest.mark.parametrize(
    "unit", ["input_audio_tokens", "output_image_tokens", "input_text_tokens"]
)
def test_part_must_not_exceed_its_whole(unit):
    with pytest.raises(InvalidValueError, match=f"{unit} .* exceed"):
        call("gpt-5", counts=(5, 0, 0, 5), units={unit: 6})


def test_request_fee_depends_on_the_size_of_the_search():
    use = {"counts": (1_000, 0, 0, 0)}
    for size, fee in (("low", "0.006"), ("medium", "0.010"), ("high", "0.014")):
        result = call("sonar-pro", context={"search_context_size": size}, **use)
        assert result.other_cost == Decimal(fee)
        assert result.cost == Decimal(fee) + Decimal("0.003")
        assert result.is_standard
    unknown = call("sonar-pro", **use)
    assert (unknown.cost, unknown.other_cost) == (None, None)
    assert "search_context_size" in unknown.reason


def test_cached_tokens_without_a_price_are_never_billed_as_other_input():
    for counts in ((0, 1, 0, 0), (0, 0, 1, 0)):
        assert call("gemini-2.0-flash-lite", counts=counts).cost is None
    hour = {"counts": (0, 1, 0, 0), "cache_creation_1h_input_tokens": 1}
    result = call("gpt-6-sol", **hour)
    assert "cache writes for one hour" in result.reason


def test_cached_tokens_are_input_where_the_provider_says_so():
    cached = {"counts": (0, 0, 1_000_000, 0)}
    assert cost("gpt-5-pro", **cached) == 15
    assert cost("llama-3.3-70b", provider="cerebras", **cached) == cost(
        "llama-3.3-70b", provider="cerebras", counts=(1_000_000, 0, 0, 0)
    )
    # A fine-tuned model has a price for them, which the data lacks.
    assert call("ft:gpt-4o-2024-08-06:acme::a1", **cached).cost is None


def test_prices_of_passes_are_added():
    first = call("claude-sonnet-4-5", counts=(1_000, 0, 0, 0))
    second = call("claude-sonnet-4-5", units={"web_searches": 1})
    assert add_prices([]) == FREE
    assert add_prices([first, second]) == PublishedPrice(
        Decimal("0.013"), Decimal("0.01"), True, None
    )
    fast = call("claude-opus-5", counts=(1, 0, 0, 0), context={"speed": "fast"})
    assert not add_prices([first, fast]).is_standard
    unknown = call("nothing-5", counts=(1, 0, 0, 0))
    total = add_prices([second, unknown, call("nothing-6")])
    assert total == PublishedPrice(None, Decimal("0.01"), True, unknown.reason)


def test_price_of_an_unknown_model_says_what_an_own_price_needs():
    plain = call("nothing-5", counts=(1, 1, 1, 1))
    assert (plain.cost, plain.other_cost, plain.is_standard) == (None, 0, True)
    searched = call("nothing-5", units={"web_searches": 1})
    assert (searched.other_cost, searched.is_standard) == (None, True)
    heard = call("nothing-5", counts=(9, 0, 0, 0), units={"input_audio_tokens": 5})
    assert (heard.other_cost, heard.is_standard) == (0, False)
    fast = call("nothing-5", context={"speed": "fast"})
    assert (fast.other_cost, fast.is_standard) == (0, False)


def test_price_without_the_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "genai_prices", None)
    result = call("gpt-5", counts=(1, 0, 0, 0))
    assert (result.cost, result.other_cost, result.is_standard) == (None, 0, True)
    assert "pricing" in result.reason
    searched = call("gpt-5", units={"web_searches": 1}, context={"speed": "fast"})
    assert (searched.other_cost, searched.is_standard) == (None, False)


def test_price_usage_raises_the_reason():
    with pytest.raises(UnknownModelError, match="code_executions"):
        price_usage(
            model="gpt-5",
            input_tokens=1,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=0,
            output_tokens=1,
            finished_at=NOVEMBER,
            units={"code_executions": 1},
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
