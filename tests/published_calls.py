"""Published prices of calls, for tests."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pyapp.pricing import PublishedPrice, published_price

MAY = datetime(2026, 5, 4, tzinfo=UTC)
NOVEMBER = datetime(2026, 11, 20, tzinfo=UTC)
BATCH = {"processing": "batch"}
FREE = PublishedPrice(Decimal(0), Decimal(0), True, None)


def tokens(counts: tuple[int, int, int, int]) -> dict[str, Any]:
    """Return the arguments for counts of input, cache writes, cache reads, output."""
    names = ("input", "cache_creation_input", "cache_read_input", "output")
    return {f"{n}_tokens": c for n, c in zip(names, counts, strict=True)}


def call(model: str, *, at=NOVEMBER, counts=(0, 0, 0, 0), **more):
    """Return the price of *counts*, in the order of `tokens`."""
    return published_price(model=model, finished_at=at, **tokens(counts), **more)


def cost(model: str, **more):
    result = call(model, **more)
    assert result.cost is not None, result.reason
    return result.cost
