"""The table and the JSON file of the results."""

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from bench.load import query
from bench.measures import Measure

SETTINGS = (
    "server_version",
    "shared_buffers",
    "fsync",
    "full_page_writes",
    "synchronous_commit",
    "max_wal_size",
    "random_page_cost",
)
WIDTH = 100


def read_settings(url: str) -> dict[str, str]:
    """Return the machine and the server's settings."""
    with psycopg.connect(url) as conn:
        settings = {}
        for name in SETTINGS:
            row = conn.execute(query("read_setting").sql, {"name": name}).fetchone()
            assert row is not None
            settings[name] = row[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{os.cpu_count()} CPUs, {memory:.0f} GB, {platform.machine()}",
        **settings,
    }


def render(found: list[Measure], size: int, settings: dict[str, str]) -> str:
    """Return the table; no line is longer than WIDTH."""
    rows = [("measure", "here", "against", "ratio", "target", "met")]
    for measure in found:
        rows.append(
            (
                measure.name,
                measure.value,
                measure.floor,
                _format_ratio(measure),
                measure.target,
                {True: "yes", False: "NO", None: ""}[measure.is_met],
            )
        )
    widths = [max(len(row[n]) for row in rows) for n in range(6)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if n == 3 else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * min(WIDTH, max(len(line) for line in lines)))
    parts = [f"{size:,} messages", *(f"{k} {v}" for k, v in settings.items())]
    lines.append("")
    line = ""
    for part in parts:
        if len(line) + len(part) + 2 > WIDTH:
            lines.append(line)
            line = ""
        line += ("; " if line else "") + part
    return "\n".join([*lines, line])


def _format_ratio(measure: Measure) -> str:
    """Return the ratio with two decimals, or three if it misses its target by less."""
    ratio = measure.ratio
    if ratio is None:
        return ""
    if ratio >= 100:
        return f"{ratio:,.0f}x"
    text = f"{ratio:.2f}x"
    if measure.is_met is False and measure.target.endswith(f" {text}"):
        return f"{ratio:.3f}x"
    return text


def write_json(
    path: Path, found: list[Measure], size: int, settings: dict[str, str]
) -> None:
    """Write the figures, which bench.plot reads."""
    report = {
        "size": size,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
        "measures": [asdict(measure) for measure in found],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
