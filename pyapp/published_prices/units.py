"""The cost of what a call used: tokens of all kinds, and other units.

Other units are counts by the names of genai-prices. Those that end in `_tokens` are
parts of the four token counts; all others, such as web searches, are billed separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import NamedTuple

from pyapp.errors import InvalidValueError
from pyapp.published_prices import rules
from pyapp.published_prices.tariffs import EXACT, NoPriceError, Rates, Tariff

_ZERO = Decimal(0)
_TOKENS = "_tokens"
# Names of other units that mean a unit of genai-prices.
_ALIASES = {"file_searches": "storage_searches"}
# Numbers that are not billed themselves: calls of the API, and passes of the model in
# one call, if the token counts are their sums.
_NOT_BILLED = ("requests", "passes")
# Units that include others: with both, the rest has the whole's price.
_WHOLES = {
    "input_audio_seconds": "audio_seconds",
    "output_audio_seconds": "audio_seconds",
    "input_annotated_document_pages": "input_document_pages",
}
# Passes, and tools after which Claude's server makes another.
_PASSES = frozenset(("passes", "web_searches", "web_fetches", "code_executions"))
_KINDS = ("audio", "image", "video", "document")
# An hour's price has no exact price of a second.
_FINEST = Decimal("1e-18")


class Counts(NamedTuple):
    """Disjoint token counts; the cache writes for one hour are part of all writes."""

    input: int
    cache_write: int
    cache_write_1h: int
    cache_read: int
    output: int

    @property
    def all_input(self) -> int:
        """All input tokens, cached ones included."""
        return self.input + self.cache_write + self.cache_read


def has_other_units(units: Mapping[str, int]) -> bool:
    """Return whether something other than tokens and requests was used."""
    return any(not name.endswith(_TOKENS) and name not in _NOT_BILLED for name in units)


def has_special_tokens(units: Mapping[str, int]) -> bool:
    """Return whether some tokens are not text."""
    return any(name.endswith(_TOKENS) and _kind(name) in _KINDS for name in units)


def cost_of_tokens(
    tariff: Tariff, counts: Counts, units: Mapping[str, int]
) -> tuple[Decimal, bool]:
    """Return the cost of the tokens, and whether all were billed as text.

    Raises: NoPriceError; InvalidValueError when a part exceeds its whole.
    """
    if tariff.starts and counts.all_input > tariff.starts[0]:
        _refuse_several_passes(tariff, units)
    rates = tariff.rates_for(counts.all_input)
    parts = _priced_apart(tariff, counts, units) if units else None
    if parts:
        return _cost_of_parts(tariff, rates, counts, parts), False
    return _cost_of_text(rates, counts), True


def cost_of_units(tariff: Tariff, units: Mapping[str, int]) -> Decimal:
    """Return the cost of what is not tokens: the request, searches, audio by time.

    Raises: NoPriceError.
    """
    requests = units.get("requests", 1)
    if tariff.request_fee is None:
        raise NoPriceError("requests without search_context_size")
    total = EXACT.multiply(tariff.request_fee, Decimal(requests))
    if not units:
        return total
    used = {
        _ALIASES.get(name, name): count
        for name, count in units.items()
        if not name.endswith(_TOKENS) and name not in _NOT_BILLED
    }
    for name, count in used.items():
        parts = sum(used.get(part, 0) for part in _parts_of(name))
        if parts > count:
            raise InvalidValueError(f"parts of {name} ({parts}) exceed it ({count})")
        total = EXACT.add(total, _fee(tariff, name, count - parts))
    return total


def _refuse_several_passes(tariff: Tariff, units: Mapping[str, int]) -> None:
    """Refuse a sum of passes whose tiers are not known.

    After each of its server's tools, Claude reads the whole context again, and the
    usage has the sum. A pass may have fewer tokens than the tier of the sum.
    """
    if "claude" in tariff.host.model.id and _PASSES & units.keys():
        raise NoPriceError(
            f"more than {tariff.starts[0]} input tokens of several passes"
        )


def _fee(tariff: Tariff, name: str, count: int) -> Decimal:
    provider = tariff.host.provider.id
    if name in rules.FREE_UNITS.get(provider, ()):
        return _ZERO
    fee = tariff.fees.get(name) or tariff.fees.get(_WHOLES.get(name, ""))
    if fee is None:
        raise _unpriced(name)
    price, per = fee
    if name.endswith("_seconds") and count:
        count = max(count, rules.LEAST_SECONDS.get(provider, 0))
    cost = EXACT.divide(EXACT.multiply(price, Decimal(count)), Decimal(per))
    return cost.quantize(_FINEST, context=EXACT) if per == 3600 else cost


def _unpriced(name: str) -> NoPriceError:
    """Return the error for a unit, whose name may be any text."""
    return NoPriceError(name[:60] if name.isprintable() else ascii(name[:60]))


def _parts_of(name: str) -> list[str]:
    return [part for part, whole in _WHOLES.items() if whole == name]


def _cost_of_text(rates: Rates, counts: Counts) -> Decimal:
    total = _ZERO
    hour = counts.cache_write_1h
    for count, rate, name in (
        (counts.input, rates.input, "input tokens"),
        (counts.cache_write - hour, rates.cache_write, "cache writes"),
        (hour, rates.cache_write_1h, "cache writes for one hour"),
        (counts.cache_read, rates.cache_read, "cache reads"),
        (counts.output, rates.output, "output tokens"),
    ):
        if count:
            if rate is None:
                raise NoPriceError(name)
            total = EXACT.fma(count, rate, total)
    return total


def _priced_apart(
    tariff: Tariff, counts: Counts, units: Mapping[str, int]
) -> dict[str, int]:
    """Return the parts of the token counts that have prices of their own."""
    apart = {}
    for name, count in units.items():
        if not name.endswith(_TOKENS):
            continue
        direction = "output" if name.startswith("output") else "input"
        whole = counts.output if direction == "output" else counts.all_input
        if count > whole:
            raise InvalidValueError(
                f"{name} ({count}) exceed the {direction} tokens ({whole})"
            )
        if getattr(tariff.prices, _price_key(name), None) is not None:
            apart[name] = count
        elif not rules.is_billed_as_text(
            tariff.host.provider.id, tariff.host.model.id, direction, _kind(name)
        ):
            raise _unpriced(name)
    return apart


def _cost_of_parts(
    tariff: Tariff, rates: Rates, counts: Counts, parts: Mapping[str, int]
) -> Decimal:
    """Return the cost of a call with parts at prices of their own, by genai-prices."""
    from genai_prices import Usage

    # Refuse what genai-prices would bill at another unit's price.
    _cost_of_text(rates, counts)
    used = {
        "input_tokens": counts.all_input,
        "cache_write_tokens": counts.cache_write,
        "cache_write_1h_tokens": counts.cache_write_1h,
        "cache_read_tokens": counts.cache_read,
        "output_tokens": counts.output,
        **parts,
    }
    for kind in _KINDS:
        count = parts.get(f"input_{kind}_tokens", 0)
        for cached, direction in (
            (counts.cache_read, "read"),
            (counts.cache_write, "write"),
        ):
            name = f"cache_{kind}_{direction}_tokens"
            if not count or not cached or name in parts:
                continue
            least = max(0, count + cached - counts.all_input)
            if least != min(count, cached):
                raise NoPriceError(f"cached {kind} tokens whose number is not stated")
            if least and getattr(tariff.prices, _price_key(name), None) is None:
                raise NoPriceError(name)
            used[name] = least
    try:
        with localcontext(EXACT):
            return tariff.prices.calc_price(Usage(**used))["total_price"]
    except ValueError as exc:
        raise InvalidValueError(str(exc)) from exc


def _kind(name: str) -> str:
    """Return the kind of tokens that a unit's name states."""
    words = name.split("_")
    for kind in (*_KINDS, "text", "reasoning", "tool", "citation"):
        if kind in words:
            return kind
    return name


def _price_key(name: str) -> str:
    return name.removesuffix(_TOKENS) + "_mtok"
