"""Measure what is promised: `python -m bench --size 100000`.

Fills a database of its own on disk, with fsync on, runs everything, and prints one
table. Ratios hold within one run; the times beside them are this machine's.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg

from bench import overhead, reading, reconciling, report, retention, stripe, writing
from bench.load import load, query
from bench.measures import Measure
from pyapp.devtools.throwaway import throwaway_server

RESULTS = Path(__file__).parent / "results"
PARTS = (
    "quota",
    "session",
    "functions",
    "inserts",
    "copy",
    "mixture",
    "retention",
    "webhooks",
    "reconciliation",
)
DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "maintenance_work_mem": "512MB",
    "work_mem": "64MB",
    # Disks without a moving arm.
    "random_page_cost": "1.1",
    "max_connections": "100",
}


def main() -> int:
    """Run the benchmark; 1 when a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", type=int, default=100_000, help="messages to load")
    parser.add_argument("--json", type=Path, help="the figures; else in bench/results")
    parser.add_argument("--url", help="an empty database to use; else one of its own")
    parser.add_argument("--loaded", action="store_true", help="it has the load already")
    parser.add_argument("--folder", type=Path, help="for the server's data; else /tmp")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="some of the parts"
    )
    options = parser.parse_args()
    with _database(options.url, options.folder) as url:
        if not options.loaded:
            seconds = load(url, options.size)
            say(f"{options.size:,} messages loaded in {seconds:.0f} s")
        settings = report.read_settings(url)
        found = []
        for measure in _measure(url, options.size, options.only):
            found.append(measure)
            ratio = "" if measure.ratio is None else f" {measure.ratio:.2f}x"
            say(f"  {measure.name}:{ratio} {measure.value} ({measure.floor})")
    say("")
    say(report.render(found, options.size, settings))
    path = options.json or RESULTS / f"{options.size}.json"
    report.write_json(path, found, options.size, settings)
    return 1 if any(measure.is_met is False for measure in found) else 0


def say(line: str) -> None:
    """Print at once, for some runs are long."""
    print(line, flush=True)


@contextlib.contextmanager
def _database(url: str | None, parent: Path | None) -> Iterator[str]:
    """Give the database of *url*, else a durable server's that is deleted after."""
    if url is not None:
        yield url
        return
    folder = Path(tempfile.mkdtemp(prefix="pyapp-bench-", dir=parent))
    # The server has an account of its own where root runs this.
    folder.chmod(0o755)
    try:
        with throwaway_server(folder, DURABLE) as server:
            yield server.url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(url: str, size: int, parts: list[str]) -> Iterator[Measure]:
    """Run the parts in an order in which none disturbs the next."""
    accounts = _rank_accounts(url)
    seconds = 4 if size >= 100_000 else 2
    rows = min(size, writing.COPIED)
    customers = min(size // 10, 100_000)
    runs = {
        "quota": lambda: reading.measure_quota(url, accounts),
        "session": lambda: reading.measure_session(url),
        "functions": lambda: overhead.measure_overhead(url, 75 * seconds),
        "inserts": lambda: writing.measure_inserts(url, accounts, seconds),
        "copy": lambda: writing.measure_copy(url, accounts, rows),
        "mixture": lambda: writing.measure_mixture(url, accounts, rows, seconds),
        "retention": lambda: retention.measure_retention(url, accounts, 3 * seconds),
        "webhooks": lambda: stripe.measure_webhooks(url, 300 * seconds),
        "reconciliation": lambda: reconciling.measure_reconciliation(url, customers),
    }
    for name, run in runs.items():
        if name in parts:
            yield from run()


def _rank_accounts(url: str) -> list[UUID]:
    with psycopg.connect(url) as conn:
        rows = conn.execute(query("list_ranked_accounts").sql).fetchall()
    return [row[0] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
