"""Overhead of all query functions: the median one and the slowest."""

import statistics
from collections.abc import Iterator
from dataclasses import asdict

from bench.functions import Figures, measure_functions
from bench.measures import Measure, at_most, brief


def measure_overhead(url: str, rounds: int) -> Iterator[Measure]:
    """Yield two lines; functions are ranked by their mean ratio."""
    found = sorted(measure_functions(url, rounds), key=_ratio)
    details = {"functions": [asdict(figures) for figures in found]}
    for label, figures, limit in (
        (f"{len(found)} query functions, median", found[len(found) // 2], 1.1),
        (f"the slowest, {found[-1].name}", found[-1], 1.2),
    ):
        floor = _floor(figures)
        yield at_most(
            label,
            f"{brief(figures.inside / 1000)} ms",
            f"bare {brief(floor / 1000)} ms",
            _ratio(figures),
            limit,
            details if figures is found[-1] else {},
        )


def _floor(figures: Figures) -> float:
    """Return the time of bare psycopg inside a transaction."""
    return figures.in_savepoint if figures.has_savepoint else figures.bare_inside


def _ratio(figures: Figures) -> float:
    """Return the mean of the ratios inside a transaction and at its start."""
    return statistics.mean(
        [figures.first / figures.bare_first, figures.inside / _floor(figures)]
    )
