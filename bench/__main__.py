"""Measure what DESIGN promises: `python -m bench --size 100000`.

Fills a database of its own on disk, with fsync on, runs everything, and prints one
table. Ratios hold within one run; the times beside them are this machine's.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

import psycopg
from rich.console import Console
from rich.table import Table

from bench import measures
from bench.load import load, query
from bench.measures import Measure
from pyapp.devtools.throwaway import throwaway_server

DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "maintenance_work_mem": "512MB",
    "work_mem": "64MB",
}


def main() -> int:
    """Run the benchmark; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", type=int, default=100_000, help="messages to load")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    options = parser.parse_args()
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="pyapp-bench-"))
    try:
        with throwaway_server(folder, DURABLE) as server:
            seconds = load(server.url, options.size)
            console.print(f"{options.size:,} messages loaded in {seconds:.0f} s")
            with psycopg.connect(server.url) as conn:
                settings = {
                    name: conn.execute(f"SHOW {name}").fetchone()[0]  # type: ignore[index]
                    for name in ("server_version", *DURABLE)
                }
            found = []
            for measure in _measure(server.url, options.size):
                found.append(measure)
                console.print(f"  {measure.name.strip()}: {measure.ratio:.2f}x")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(_table(found))
    console.print(", ".join(f"{name} {value}" for name, value in settings.items()))
    if options.json:
        report = {
            "size": options.size,
            "settings": settings,
            "measures": [asdict(measure) for measure in found],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if all(measure.is_met for measure in found) else 1


def _measure(url: str, size: int) -> Iterator[Measure]:
    accounts = _rank_accounts(url)
    yield from measures.measure_quota(url, accounts)
    yield from measures.measure_session(url, accounts)
    yield from measures.measure_inserts(url, accounts)
    yield from measures.measure_copy(url, accounts)
    yield from measures.measure_retirement(url, size)


def _rank_accounts(url: str) -> list[UUID]:
    with psycopg.connect(url) as conn:
        rows = conn.execute(query("list_ranked_accounts").sql).fetchall()
    return [row[0] for row in rows]


def _table(found: list[Measure]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("measure", "here", "against", "ratio", "target", "met"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for measure in found:
        table.add_row(
            measure.name,
            measure.value,
            measure.floor,
            f"{measure.ratio:.2f}x",
            measure.target,
            "yes" if measure.is_met else "NO",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
