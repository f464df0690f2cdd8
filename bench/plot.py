"""Plot time by size: `python -m bench.plot bench/results/N.json -o plot.svg`."""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH, HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 60
# Prefix of the measure's name, the figure to plot, colour and dashes.
LINES = (
    ("join and SUM, hottest user", "contestant", "#b2182b", ""),
    ("join and SUM, median user", "contestant", "#ef8a62", ""),
    ("quota check, hottest user", "contestant", "#2166ac", ""),
    ("quota check, median user", "contestant", "#67a9cf", ""),
    ("quota check, median user", "floor", "#777777", "5 4"),
)


def main() -> None:
    """Plot one run."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    run = json.loads(options.file.read_text(encoding="utf-8"))
    options.output.write_text(draw(run), encoding="utf-8")


def draw(run: Mapping[str, Any]) -> str:
    """Return an SVG of median milliseconds by messages, both axes logarithmic."""
    lines = []
    for name, part, colour, dashes in LINES:
        points = sorted(
            (_size_of(measure["name"], run["size"]), measure["details"][part]["p50"])
            for measure in run["measures"]
            if measure["name"].startswith(name)
        )
        if points:
            label = (
                "one row by its key" if part == "floor" else name.removesuffix(" user")
            )
            lines.append((label, colour, dashes, points))
    if not lines:
        raise SystemExit("error: the file contains no quota check")
    every = [point for *_, points in lines for point in points]
    x = _Axis([size for size, _ in every], LEFT, WIDTH - RIGHT)
    y = _Axis([cost for _, cost in every], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, "Median time of one answer, by messages stored", size=15),
    ]
    for power in x.powers:
        at = x.place(10.0**power)
        parts.append(_stroke([(at, TOP), (at, HEIGHT - BOTTOM)], "#dddddd"))
        parts.append(_text(at, HEIGHT - BOTTOM + 18, f"{10**power:,}", "middle"))
    for power in y.powers:
        at = y.place(10.0**power)
        parts.append(_stroke([(LEFT, at), (WIDTH - RIGHT, at)], "#dddddd"))
        parts.append(_text(LEFT - 8, at + 4, f"{10.0**power:g} ms", "end"))
    parts.append(
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 18, "messages in all", "middle")
    )
    lowest = HEIGHT - BOTTOM + 16.0
    for label, colour, dashes, points in sorted(lines, key=lambda line: line[3][-1][1]):
        drawn = [(x.place(size), y.place(cost)) for size, cost in points]
        parts.append(_stroke(drawn, colour, 2, dashes))
        parts += [
            f'<circle cx="{at:.1f}" cy="{height:.1f}" r="3" fill="{colour}"/>'
            for at, height in drawn
        ]
        # Labels are next to the ends of their lines, without overlaps.
        lowest = min(drawn[-1][1], lowest - 16)
        parts.append(_text(WIDTH - RIGHT + 10, lowest + 4, label, fill=colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _size_of(name: str, largest: int) -> int:
    """Return the size at the end of *name*; names of the largest size have none."""
    found = re.search(r", ([\d,]+)$", name)
    return int(found[1].replace(",", "")) if found else largest


class _Axis:
    """A logarithmic axis over whole powers of ten."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        first = math.floor(math.log10(min(values)))
        last = max(math.ceil(math.log10(max(values))), first + 1)
        self.powers = range(first, last + 1)
        self._first, self._last = first, last
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        share = (math.log10(value) - self._first) / (self._last - self._first)
        return self._start + share * (self._end - self._start)


def _text(
    x: float,
    y: float,
    text: str,
    anchor: str = "start",
    *,
    size: int = 12,
    fill: str = "#222222",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
        f' fill="{fill}">{text}</text>'
    )


def _stroke(
    points: Sequence[tuple[float, float]],
    colour: str,
    width: float = 1,
    dashes: str = "",
) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}"'
        f' stroke-width="{width:g}" stroke-dasharray="{dashes}"/>'
    )


if __name__ == "__main__":
    main()
