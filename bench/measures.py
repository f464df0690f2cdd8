"""One line of the report: a contestant, its floor, and the target."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.contest import Latency


@dataclass(frozen=True)
class Measure:
    """One result; `target` is the limit of the ratio."""

    name: str
    value: str
    floor: str
    ratio: float | None
    target: str
    is_met: bool | None
    details: dict[str, Any] = field(default_factory=dict)


def at_most(
    name: str,
    value: str,
    floor: str,
    ratio: float,
    limit: float,
    details: dict[str, Any],
) -> Measure:
    """Return a line whose ratio may not exceed *limit*."""
    return Measure(name, value, floor, ratio, f"<= {limit:g}x", ratio <= limit, details)


def at_least(
    name: str,
    value: str,
    floor: str,
    ratio: float,
    limit: float,
    details: dict[str, Any],
) -> Measure:
    """Return a line whose ratio may not fall below *limit*."""
    return Measure(name, value, floor, ratio, f">= {limit:g}x", ratio >= limit, details)


def reported(measure: Measure) -> Measure:
    """Return the line without a target."""
    return replace(measure, target="reported", is_met=None)


def brief(value: float) -> str:
    """Return *value* with three significant digits, at most three decimals."""
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(0, min(3, decimals))}f}"


def format_latency(latency: Latency) -> str:
    """Return the median and the 99th percentile as the table shows them."""
    return f"{brief(latency.p50)} ms, p99 {brief(latency.p99)}"


def compare_latency(
    name: str, contestant: Latency, floor: Latency, limit: float
) -> Measure:
    """Return a line that compares medians and shows the 99th percentile."""
    return at_most(
        name,
        format_latency(contestant),
        f"{brief(floor.p50)} ms",
        contestant.p50 / floor.p50,
        limit,
        {"contestant": asdict(contestant), "floor": asdict(floor)},
    )
