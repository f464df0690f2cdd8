"""Measure what is promised: `python -m bench --size 100000`.

Fills databases of its own on disk, of that size and of a tenth and a hundredth of it,
with fsync on, runs everything, and prints one table. Ratios hold within one run; the
times beside them are this machine's.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import overhead, reading, reconciling, report, retention, stripe, writing
from bench.load import load
from bench.measures import Measure
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.server.temp_server import temp_server

RESULTS = Path(__file__).parent / "results"
LEAST_SIZE = 10_000
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
    path = options.json or RESULTS / f"{options.size}.json"
    with _databases(options.url, options.folder, options.size) as urls:
        for size, url in urls.items():
            if not options.loaded:
                say(f"{size:,} messages loaded in {load(url, size):.0f} s")
        settings = report.read_settings(urls[options.size])
        found = []
        for measure in _measure(urls, options.size, options.only):
            found.append(measure)
            ratio = "" if measure.ratio is None else f" {measure.ratio:.2f}x"
            say(f"  {measure.name}:{ratio} {measure.value} ({measure.floor})")
            # A run that is ended leaves what it has found.
            report.write_json(path, found, options.size, settings)
    say("")
    say(report.render(found, options.size, settings))
    return 1 if any(measure.is_met is False for measure in found) else 0


def say(line: str) -> None:
    """Print at once, for some runs are long."""
    print(line, flush=True)


@contextlib.contextmanager
def _databases(
    url: str | None, parent: Path | None, size: int
) -> Iterator[dict[int, str]]:
    """Give the database of *url*, else those of a durable server that is deleted after.

    The latter are of this size and of some tenths of it, so that one run shows growth.
    """
    if url is not None:
        yield {size: url}
        return
    folder = Path(tempfile.mkdtemp(prefix="pyapp-bench-", dir=parent))
    # The server has an account of its own where root runs this.
    folder.chmod(0o755)
    try:
        with (
            temp_server(folder, DURABLE) as server,
            contextlib.ExitStack() as databases,
        ):
            yield {
                n: databases.enter_context(scratch_database(server.url))
                for n in (size // 100, size // 10)
                if n >= LEAST_SIZE
            } | {size: server.url}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(urls: Mapping[int, str], size: int, parts: list[str]) -> Iterator[Measure]:
    """Run the parts in an order in which none disturbs the next."""
    url = urls[size]
    accounts = reading.rank_accounts(url)
    seconds = 4 if size >= 100_000 else 2
    rows = min(size, writing.COPIED)
    customers = size // 100
    runs = {
        "quota": lambda: reading.measure_quota(urls),
        "session": lambda: reading.measure_session(url),
        "functions": lambda: overhead.measure_overhead(url, 75 * seconds),
        "inserts": lambda: writing.measure_inserts(url, accounts, seconds),
        "copy": lambda: writing.measure_copy(url, accounts, rows),
        "mixture": lambda: writing.measure_mixture(url, accounts, rows, seconds),
        "retention": lambda: retention.measure_retention(
            url, accounts, min(size, retention.PAYLOADS), 3 * seconds
        ),
        "webhooks": lambda: stripe.measure_webhooks(url, 300 * seconds),
        "reconciliation": lambda: reconciling.measure_reconciliation(url, customers),
    }
    for name, run in runs.items():
        if name in parts:
            yield from run()


if __name__ == "__main__":
    sys.exit(main())
