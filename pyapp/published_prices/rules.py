"""What providers document about their prices and the price data does not hold.

Each rule names its source. Without a rule, what the price data lacks has no price.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import NamedTuple

from pyapp._core.validation import check_text

# Names of the plain price, as providers and logs write them.
_PLAIN = frozenset(
    (
        "",
        "auto",
        "default",
        "global",
        "none",
        "normal",
        "not_available",
        "null",
        "on_demand",
        "standard",
        "traffic_type_unspecified",
        "unspecified",
    )
)
_PREFIX = re.compile(r"^(on_demand_|service_tier_|traffic_type_)")

Terms = frozenset[tuple[str, str]]


def special_terms(context: Mapping[str, str | None]) -> Terms:
    """Return what a call's context says that is not the plain price.

    Raises: InvalidValueError when a value is not text.
    """
    terms = {}
    for key, value in context.items():
        if value is None or (type(value) is str and value in _PLAIN):
            continue
        name = check_text(key, value)[:100].strip().lower().replace("-", "_")
        name = _PREFIX.sub("", name)
        if name in _PLAIN:
            continue
        if key == "service_tier" and name == "batch":
            terms["processing"] = "batch"
        else:
            terms[key] = name
    return frozenset(terms.items())


def is_plain(terms: Terms) -> bool:
    """Return whether tokens have the plain price; a kind of search changes its fee."""
    return all(key in ("search_context_size", "search_type") for key, _ in terms)


class Announced(NamedTuple):
    """A price of all tokens that the data lacks for earlier days or some models.

    It is *factor* times the plain price. Without a factor, it holds only for the models
    that the data has a price for on a later day. *models* is a pattern of all models.
    """

    since: date
    factor: Decimal | None
    models: str = ""


_HALF = Decimal("0.5")
# OpenAI, Batch API guide: half of the synchronous price. Flex processing guide: tokens
# at the prices of the Batch API. Anthropic, Batch processing: half of all usage. Fast
# mode: six times the standard rates of Opus 4.6 and 4.7, caches included.
# Google, Gemini API optimization: Batch and Flex at half of the standard price.
# Microsoft, Azure OpenAI global batch: half of global standard.
ANNOUNCED: Mapping[tuple[str, str, str], Announced] = {
    ("openai", "processing", "batch"): Announced(date(2024, 4, 15), _HALF),
    ("openai", "service_tier", "flex"): Announced(date(2025, 4, 17), None),
    ("anthropic", "processing", "batch"): Announced(date(2024, 10, 8), _HALF),
    ("anthropic", "speed", "fast"): Announced(
        date(2026, 2, 5), Decimal(6), "claude-opus-4-[67]"
    ),
    ("google", "processing", "batch"): Announced(date(2025, 7, 7), _HALF),
    ("google", "service_tier", "flex"): Announced(date(2026, 4, 2), _HALF),
    ("azure", "processing", "batch"): Announced(date(2024, 8, 1), _HALF),
}

# Groq, Flex Processing: the prices are those of the on-demand tier.
SAME_PRICE = frozenset((("groq", "service_tier", "flex"),))

# Providers that bill cached tokens, or tokens written to the cache, as other input
# where they list no price for them.
# OpenAI, Prompt caching: no additional fees; the Batch API has no discount.
# Cerebras, Prompt caching: the standard input rate, cached or not.
# xAI and DeepSeek list no price for writes; their caching is automatic.
READS_AS_INPUT = frozenset(("openai", "cerebras"))
WRITES_AS_INPUT = READS_AS_INPUT | {"x-ai", "deepseek"}
# Anthropic, Batch processing and Fast mode: they apply to cache reads and writes too.
CACHE_FOLLOWS = frozenset(("anthropic",))
# Google, batch inference: the discount of cached tokens replaces that of the batch.
FULL_CACHE = frozenset(("google",))
# Fees for tool calls are listed once, for all tiers of the tokens. Anthropic, Web
# search tool: the same price in batches.
FEES_IN_ALL_TIERS = frozenset(("anthropic", "openai", "google"))


class PeakHours(NamedTuple):
    """Hours in which every price of some models is *factor* times the other hours'."""

    models: str
    since: datetime
    not_at_weekends_since: datetime
    hours: tuple[tuple[int, int], ...]
    factor: Decimal

    def factor_at(self, at: datetime) -> Decimal:
        """Return the factor on the prices of the other hours."""
        is_peak = at >= self.since and any(
            begin <= at.hour < end for begin, end in self.hours
        )
        if at >= self.not_at_weekends_since and at.weekday() >= 5:
            is_peak = False
        return self.factor if is_peak else Decimal(1)


# DeepSeek, Models & Pricing: twice the off-peak price in the peak hours, in UTC, from
# 16 August 2026 on, and on weekdays only from 10 September on. In the data, the peak
# prices of today hold for all history and every day.
_PEAK_HOURS: Mapping[str, PeakHours] = {
    "deepseek": PeakHours(
        models="deepseek-(v4-|flash)",
        since=datetime(2026, 8, 16, 16, tzinfo=UTC),
        not_at_weekends_since=datetime(2026, 9, 10, 4, tzinfo=UTC),
        hours=((1, 4), (6, 10)),
        factor=Decimal(2),
    )
}


def find_peak_hours(provider: str, model: str) -> PeakHours | None:
    """Return the peak hours of a model whose hours in the data are not right."""
    rule = _PEAK_HOURS.get(provider)
    return rule if rule is not None and re.match(rule.models, model) else None


class LongContext(NamedTuple):
    """What a call costs with more input tokens than *start*; None if it is unknown."""

    model: re.Pattern[str]
    start: int
    input_factor: Decimal | None
    output_factor: Decimal | None


# Anthropic, Long context pricing: Sonnet 4 and 4.5 with more than 200,000 input tokens,
# also on Bedrock, whose prices in the data have no tiers. OpenAI bills long contexts of
# these models at other rates; what Bedrock charges is not in the data.
_SONNET_4 = re.compile(r"(^|\.)claude-sonnet-4-(0$|20250514|5-)")
_LONG_CONTEXTS: Mapping[str, tuple[LongContext, ...]] = {
    "anthropic": (LongContext(_SONNET_4, 200_000, Decimal(2), Decimal("1.5")),),
    "aws": (
        LongContext(_SONNET_4, 200_000, Decimal(2), Decimal("1.5")),
        LongContext(re.compile(r"^openai\.gpt-5\.[45]$"), 272_000, None, None),
    ),
}


def find_long_context(provider: str, model: str) -> LongContext | None:
    """Return the tier of a model that the price data lacks."""
    for rule in _LONG_CONTEXTS.get(provider, ()):
        if rule.model.search(model):
            return rule
    return None


# Parts of the input that are billed as its text where they have no price of their own.
# OpenAI, Images and vision: charged in tokens, as text inputs are.
# Google, Vertex AI pricing: one price for text, images and video; audio where listed.
# xAI, Consumption: text, audio and image tokens at the prompt token price.
AS_TEXT: Mapping[str, frozenset[str]] = {
    "openai": frozenset(("image",)),
    "azure": frozenset(("image",)),
    "google": frozenset(("image", "video", "document")),
    "x-ai": frozenset(("image", "audio")),
}
# Google, Gemini API and Vertex AI pricing: these models have one price for all input.
_GEMINI_ONE_INPUT = re.compile(
    r"gemini-([\d.]+-pro|1\.5-flash|2\.0-flash-lite|3\.[5-8]-flash|4-argon)"
    r"(?!.*(image|tts|audio|live))"
)
# Models with one kind of output, whose output price is that kind's.
_ONE_OUTPUT = (
    (re.compile(r"^(gpt-image-(1|1-mini|2|2\.5-\w+))$"), "image"),
    (re.compile(r"-tts(-|$)"), "audio"),
)
# Anthropic, Web fetch tool: no charges beyond the tokens.
FREE_UNITS: Mapping[str, frozenset[str]] = {"anthropic": frozenset(("web_fetches",))}
# Groq, Speech to text: at least ten seconds are billed.
LEAST_SECONDS: Mapping[str, int] = {"groq": 10}

# Perplexity, Pricing: USD for a thousand requests, by the size of the search context.
REQUEST_FEES: Mapping[str, Mapping[str, Decimal]] = {
    model: dict(zip(("low", "medium", "high"), map(Decimal, fees), strict=True))
    for model, fees in {
        "sonar": (5, 8, 12),
        "sonar-pro": (6, 10, 14),
        "sonar-reasoning": (5, 8, 12),
        "sonar-reasoning-pro": (6, 10, 14),
    }.items()
}

_CLAUDE = re.compile(r"claude-(?:[a-z]+-)?(\d+)(?:[-.](\d{1,2}))?(?!\d)")


def region_factor(provider: str, model: str, region: str) -> Decimal | None:
    """Return the factor on all token prices of a region, or None if none is published.

    Anthropic, Data residency: 1.1 for inference in the US, from Opus 4.6 on; it applies
    to every category of tokens and on top of other factors.
    Google, Vertex AI pricing: 1.1 for Claude at regional endpoints, from Sonnet 4.5 on.
    """
    claude = _CLAUDE.match(model)
    if claude is None:
        return None
    version = (int(claude[1]), int(claude[2] or 0))
    if provider == "anthropic" and region == "us" and version >= (4, 6):
        return Decimal("1.1")
    if provider == "google":
        return Decimal("1.1") if version >= (4, 5) else Decimal(1)
    return None


def is_billed_as_text(provider: str, model: str, direction: str, kind: str) -> bool:
    """Return whether tokens of a kind are billed at the price of the whole direction.

    Reasoning is output everywhere, and the results of tools are input.
    """
    if kind in ("text", "reasoning", "tool"):
        return True
    if direction == "output":
        return any(one.search(model) and kind == k for one, k in _ONE_OUTPUT)
    if kind == "audio" and provider == "google":
        return _GEMINI_ONE_INPUT.match(model) is not None
    return kind in AS_TEXT.get(provider, ())


def is_free(provider: str, model: str) -> bool:
    """Return whether a model without prices in the data is free of charge.

    OpenRouter, Free variant: models without cost. Gemini API pricing: Gemma is free.
    """
    if provider == "openrouter":
        return model.endswith(":free")
    return provider == "google" and model.startswith("gemma")
