"""A unit has its own price, or none; it is never billed at another unit's."""

from decimal import Decimal

import pytest

from pyapp.errors import InvalidValueError, UnknownModelError
from pyapp.pricing import PublishedPrice, add_prices, price_usage
from tests.published_calls import BATCH, FREE, NOVEMBER, call, cost


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
