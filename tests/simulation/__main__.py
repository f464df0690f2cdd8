"""python -m tests.simulation --seeds 50: one line per seed, until one fails."""

import argparse
import logging
import sys

from pyapp._core.connection import connect
from pyapp._core.queries import schema_text
from pyapp.devtools.checks.scratch_database import scratch_database
from tests.simulation.run import Report, SimulationError, simulate
from tests.temp_server import temp_server

HEAD = (
    "seed  events  applied  stale  duplicate  ignored  failed  runs  refused  replayed"
    "  seconds"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=50, help="number of seeds")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--customers", type=int, default=300)
    parser.add_argument("--changes", type=int, default=2000)
    options = parser.parse_args()
    # Workers and runs are killed on purpose.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    schema = schema_text()
    print(HEAD, flush=True)
    with temp_server() as server:
        for seed in range(options.first, options.first + options.seeds):
            with scratch_database(server.url) as url:
                with connect(url) as conn:
                    conn.execute(schema.encode())
                try:
                    report = simulate(url, seed, options.customers, options.changes)
                except Exception as exc:
                    print(exc if isinstance(exc, SimulationError) else repr(exc))
                    print(f"repeat it with: make simulate SEEDS=1 FIRST={seed}")
                    return 1
            print(format_row(seed, report), flush=True)
    print(f"{options.seeds} seeds passed")
    return 0


def format_row(seed: int, report: Report) -> str:
    """Return the line of a seed under HEAD."""
    kinds = ("applied", "stale", "duplicate", "ignored", "failed")
    counts = [seed, report.events, *(report.outcomes[kind] for kind in kinds)]
    words = HEAD.split()
    counts += [report.runs, report.refused, report.replayed]
    cells = [*map(str, counts), f"{report.seconds:.1f}"]
    widths = [len(words[0]), *(len(word) + 2 for word in words[1:])]
    return "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


if __name__ == "__main__":
    sys.exit(main())
