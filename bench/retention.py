"""Retiring a month of payloads: its speed, and the delay of writers."""

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg

from bench.contest import Latency, latency_of, pgbench_command, read_logs
from bench.load import query
from bench.measures import Measure, at_least, brief
from pyapp.payloads import create_payload_partitions, retire_payloads

LONGEST_WAIT_MS = 200
# Half a month of ten million messages, over a gigabyte.
PAYLOADS = 400_000
# Payloads moved while others write; more do not change the result.
MOVED = 40_000


def measure_retention(
    url: str, accounts: list[UUID], payloads: int, seconds: int
) -> Iterator[Measure]:
    """Retire a month and DELETE another; then measure the delay of 8 writers.

    The two months hold this number of synthetic *payloads*; a DELETE of few would be as
    fast as dropping a table.
    """
    this_month = datetime.now(UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    retired, deleted, last, late = (_months_before(this_month, n) for n in (5, 4, 3, 7))
    create_payload_partitions(url)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(query("defer_commits").sql)
        for month in (deleted, retired, last):
            conn.execute(
                query("create_payload_partitions").sql, {"first_month": month.date()}
            )
        # Without checking the foreign key: synthetic rows are removed again.
        conn.execute(query("trust_rows").sql)
        for month in (deleted, retired):
            values = {"month": month, "rows": payloads}
            conn.execute(query("insert_made_up_payloads").sql, values)
        values = {"month": last, "rows": MOVED}
        conn.execute(query("insert_payloads").sql, values)
        conn.execute(query("distrust_rows").sql)
        conn.execute(query("reset_commits").sql)
        conn.execute(query("vacuum").sql)
        conn.execute("CHECKPOINT")
        began = time.perf_counter()
        rows = conn.execute(query("delete_payloads").sql, {"month": deleted}).rowcount
        delete_seconds = time.perf_counter() - began
    began = time.perf_counter()
    retire_payloads(url, keep_months=4)
    retire_seconds = time.perf_counter() - began
    yield at_least(
        f"retiring {rows:,} payloads",
        f"{retire_seconds:.3f} s",
        f"DELETE {delete_seconds:.3f} s",
        delete_seconds / retire_seconds,
        10,
        {"rows": rows, "deleted": delete_seconds, "retired": retire_seconds},
    )

    def retire() -> None:
        create_payload_partitions(url, months=6)
        assert retire_payloads(url, keep_months=2)

    def move() -> None:
        assert create_payload_partitions(url, months=6)

    write = partial(_write, url, len(accounts), seconds)
    quiet = write(None)
    yield _waited("wait while a month is retired", write(retire), quiet)
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(query("trust_rows").sql)
        values = {"month": late, "rows": MOVED}
        rows = conn.execute(query("insert_payloads").sql, values).rowcount
    yield _waited(f"wait while {rows:,} late ones move", write(move), quiet)


def _waited(name: str, busy: Latency, quiet: Latency) -> Measure:
    """Return the waits of 8 writers during an operation and without it."""
    return Measure(
        name,
        f"{busy.worst:.0f} ms, p99 {brief(busy.p99)}",
        f"quiet {quiet.worst:.0f} ms",
        None,
        f"<= {LONGEST_WAIT_MS} ms",
        busy.worst <= LONGEST_WAIT_MS,
        {"contestant": asdict(busy), "floor": asdict(quiet)},
    )


def _write(
    url: str, accounts: int, seconds: int, action: Callable[[], None] | None
) -> Latency:
    """Let 8 clients write for *seconds*, and run *action* concurrently."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        script = folder / "script.sql"
        choice = rf"\set n random(1, {accounts})"
        text = query("insert_message_and_payload").source
        script.write_text(f"{choice}\n{text}", encoding="utf-8")
        command = pgbench_command(
            url, {"model": "rollup"}, f"--file={script}", "--client=8", "--jobs=2",
            f"--time={seconds}", "--log", f"--log-prefix={folder / 'log'}",
        )  # fmt: skip
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as run:
            time.sleep(seconds / 3)
            if action is not None:
                action()
            run.communicate()
        if run.returncode:
            raise RuntimeError("a writer failed")
        return latency_of(read_logs(folder))


def _months_before(moment: datetime, months: int) -> datetime:
    index = moment.year * 12 + moment.month - 1 - months
    return moment.replace(year=index // 12, month=index % 12 + 1)
