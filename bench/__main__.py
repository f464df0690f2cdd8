"""Measure the performance targets: `python -m bench --size 100000`.

Fills its own databases on disk, of that size and of a tenth and a hundredth of it, with
fsync on, runs all measurements, and prints one table. Ratios are valid within one run;
times are those of this machine.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench import (
    days,
    importing,
    overhead,
    reading,
    reconciling,
    report,
    retention,
    webhooks,
    writing,
)
from bench.engines import find_obstacle, open_engines
from bench.load import load
from bench.measures import Measure
from pyapp.devtools.checks.scratch_database import scratch_database
from tests.temp_server import temp_server

RESULTS = Path(__file__).parent / "results"
MIN_SIZE = 10_000
PARTS = (
    "quota",
    "days",
    "session",
    "reports",
    "functions",
    "inserts",
    "copy",
    "mixture",
    "retention",
    "webhooks",
    "reconciliation",
    "import",
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
    # For solid-state disks.
    "random_page_cost": "1.1",
    "max_connections": "100",
}


def main() -> int:
    """Run the benchmark; return 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", type=int, default=100_000, help="messages to load")
    parser.add_argument(
        "--json", type=Path, help="write the figures there; default: bench/results"
    )
    parser.add_argument("--url", help="an empty database; default: a new server")
    parser.add_argument(
        "--loaded", action="store_true", help="the database at --url is loaded already"
    )
    parser.add_argument(
        "--folder", type=Path, help="where the server keeps its data; default: /tmp"
    )
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="only these parts"
    )
    parser.add_argument(
        "--engines",
        action="store_true",
        help="compare webhooks with Stripe's sync engines; first: npm install --prefix"
        " bench/node",
    )
    options = parser.parse_args()
    if options.engines and (obstacle := find_obstacle()):
        parser.exit(2, f"the sync engines cannot be run: {obstacle}\n")
    path = options.json or RESULTS / f"{options.size}.json"
    with _databases(options.url, options.folder, options.size) as urls:
        for size, url in urls.items():
            if not options.loaded:
                say(f"{size:,} messages loaded in {load(url, size):.0f} s")
        settings = report.read_settings(urls[options.size])
        found = []
        for measure in _measure(urls, options.size, options.only, options.engines):
            found.append(measure)
            ratio = "" if measure.ratio is None else f" {measure.ratio:.2f}x"
            say(f"  {measure.name}:{ratio} {measure.value} ({measure.floor})")
            # An interrupted run keeps the results so far.
            report.write_json(path, found, options.size, settings)
    say("")
    say(report.render(found, options.size, settings))
    return 1 if any(measure.is_met is False for measure in found) else 0


def say(line: str) -> None:
    """Print and flush, because runs are long."""
    print(line, flush=True)


@contextlib.contextmanager
def _databases(
    url: str | None, parent: Path | None, size: int
) -> Iterator[dict[int, str]]:
    """Yield the database at *url*, or databases of a temporary durable server.

    The latter have this size, a tenth and a hundredth, so that one run shows growth.
    """
    if url is not None:
        yield {size: url}
        return
    folder = Path(tempfile.mkdtemp(prefix="pyapp-bench-", dir=parent))
    # As root, the server runs as another user.
    folder.chmod(0o755)
    try:
        with (
            temp_server(folder, DURABLE) as server,
            contextlib.ExitStack() as databases,
        ):
            yield {
                n: databases.enter_context(scratch_database(server.url))
                for n in (size // 100, size // 10)
                if n >= MIN_SIZE
            } | {size: server.url}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(
    urls: Mapping[int, str], size: int, parts: list[str], has_engines: bool
) -> Iterator[Measure]:
    """Run the parts in an order in which none affects the next."""
    url = urls[size]
    accounts = reading.rank_accounts(url)
    seconds = 4 if size >= 100_000 else 2
    rows = min(size, writing.COPIED)
    customers = size // 100
    runs = {
        "quota": lambda: reading.measure_quota(urls),
        "days": lambda: days.measure_days(url, size),
        "session": lambda: reading.measure_session(url),
        "reports": lambda: reading.measure_reports(url),
        "functions": lambda: overhead.measure_overhead(url, 75 * seconds),
        "inserts": lambda: writing.measure_inserts(url, accounts),
        "copy": lambda: writing.measure_copy(url, accounts, rows),
        "mixture": lambda: writing.measure_mixture(url, accounts, rows, 3 * seconds),
        "retention": lambda: retention.measure_retention(
            url, accounts, min(size, retention.PAYLOADS), 3 * seconds
        ),
        "webhooks": lambda: _measure_webhooks(url, 500 * seconds, has_engines),
        "reconciliation": lambda: reconciling.measure_reconciliation(url, customers),
        "import": lambda: importing.measure_import(url, min(size, importing.LINES)),
    }
    for name, run in runs.items():
        if name in parts:
            yield from run()


def _measure_webhooks(url: str, events: int, has_engines: bool) -> Iterator[Measure]:
    with open_engines(url) if has_engines else contextlib.nullcontext(()) as engines:
        yield from webhooks.measure_webhooks(url, events, engines)


if __name__ == "__main__":
    sys.exit(main())
