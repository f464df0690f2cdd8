"""Compare statements in turn on the same database: times by libpq, rates by pgbench."""

import contextlib
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn

from pyapp._core.queries import Query
from pyapp.devtools.server.binaries import binaries

Variables = Mapping[str, str]
IDLE_LOOP = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""


@dataclass(frozen=True)
class Latency:
    """Milliseconds per execution."""

    p50: float
    p99: float
    worst: float


@dataclass(frozen=True)
class Contestant:
    """A script of pgbench, and a function to call before it runs."""

    text: str
    prepare: Callable[[], object] | None = None


def latency_of(values: Sequence[float]) -> Latency:
    """Return the median, the 99th percentile and the maximum."""
    if len(values) < 2:
        return Latency(values[0], values[0], values[0])
    return Latency(
        statistics.median(values),
        statistics.quantiles(values, n=100)[98],
        max(values),
    )


def measure_latency(
    places: Mapping[str, Sequence[Variables]],
    contestants: Mapping[str, Query],
    *,
    executions: int = 300,
    rounds: int = 6,
    warm_up: int = 25,
) -> dict[str, dict[str, Latency]]:
    """Run all contestants in each place: a database URL with the cases to run there.

    The contestants share one connection and are chosen at random for each execution,
    and the places take turns, so that other load on the machine affects all equally.
    Statements are prepared; the first executions, which plan them, are left out. The
    client and its session have a processor each, as if the client were on another
    machine: where both share one, no processor has to be woken for an answer.
    """
    samples: dict[str, dict[str, list[float]]] = {
        url: {name: [] for name in contestants} for url in places
    }
    chance = random.Random(1)
    turns = [(url, case) for url, cases in places.items() for case in cases]
    with _processors_awake(), _on_first_processor() as others:
        for url, case in turns * rounds:
            with psycopg.connect(url, autocommit=True) as conn:
                _move_session(conn.info.backend_pid, others)
                runs = {
                    name: _prepare(conn.pgconn, name, contestant, case)
                    for name, contestant in contestants.items()
                }
                for run in runs.values():
                    for _ in range(warm_up):
                        run()
                order = [*runs] * executions
                chance.shuffle(order)
                for name in order:
                    samples[url][name].append(runs[name]())
    return {
        url: {name: latency_of(values) for name, values in found.items()}
        for url, found in samples.items()
    }


def _prepare(
    connection: PGconn, name: str, query: Query, variables: Variables
) -> Callable[[], float]:
    """Prepare *query*; return a function that runs it and returns milliseconds.

    It calls libpq: pgbench reports 0 for an answer that it receives at its first poll,
    and psycopg takes as long for a query and its row as a fast server.
    """
    numbers = {key: f"${n}" for n, key in enumerate(query.parameters, start=1)}
    sql = re.sub(r"%\((\w+)\)s", lambda found: numbers[found[1]], query.sql)
    statement = name.encode()
    values = [variables[key].encode() for key in query.parameters]
    prepared = connection.prepare(statement, sql.replace("%%", "%").encode())
    if prepared.status != ExecStatus.COMMAND_OK:
        raise RuntimeError(prepared.error_message.decode())

    def run() -> float:
        began = time.perf_counter()
        result = connection.exec_prepared(statement, values)
        took = time.perf_counter() - began
        if result.status != ExecStatus.TUPLES_OK:
            raise RuntimeError(result.error_message.decode())
        return took * 1000

    return run


@contextlib.contextmanager
def _on_first_processor() -> Iterator[set[int]]:
    """Keep this process on one processor; yield the others."""
    allowed = os.sched_getaffinity(0)
    first = min(allowed)
    os.sched_setaffinity(0, {first})
    try:
        yield allowed - {first}
    finally:
        os.sched_setaffinity(0, allowed)


def _move_session(process: int, processors: set[int]) -> None:
    """Move a server process to these processors, unless it is on another machine."""
    command = Path(f"/proc/{process}/cmdline")
    if processors and command.exists() and command.read_bytes().startswith(b"postgres"):
        os.sched_setaffinity(process, processors)


@contextlib.contextmanager
def _processors_awake() -> Iterator[None]:
    """Keep each processor from sleeping by an idle-priority loop.

    Waking a processor takes longer than a query.
    """
    loops = [
        subprocess.Popen([sys.executable, "-c", IDLE_LOOP])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure_rate(
    url: str,
    contestants: Mapping[str, Contestant],
    variables: Mapping[str, Variables],
    *,
    clients: int,
    seconds: int = 2,
    rounds: int = 3,
) -> dict[str, list[float]]:
    """Return each contestant's rate per second in each round.

    The first second of a run is left out: new sessions plan their statements in it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "script.sql"

        def run(name: str) -> float:
            contestant = contestants[name]
            script.write_text(contestant.text, encoding="utf-8")
            if contestant.prepare:
                contestant.prepare()
            output = run_pgbench(
                url, variables[name], f"--file={script}", f"--client={clients}",
                "--jobs=2", f"--time={1 + seconds}", "--progress=1",
            )  # fmt: skip
            rates = [float(r) for r in re.findall(r"progress: .*?([\d.]+) tps", output)]
            # A stalled machine may print one line only.
            return statistics.mean(rates[1:] or rates)

        return in_turn(run, *contestants, rounds=rounds)


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Return the median of the ratios of each round.

    It is steadier than the ratio of the medians: what runs on the machine at the same
    time affects the contestants of one round alike.
    """
    return statistics.median(
        value / other for value, other in zip(values, others, strict=True)
    )


def in_turn(
    function: Callable[[str], float], *names: str, rounds: int = 3
) -> dict[str, list[float]]:
    """Return what *function* returns for each name in each round.

    Each round begins with another name.
    """
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(function(name))
    return found


def pgbench_command(url: str, variables: Variables, *options: str) -> list[str]:
    """Return the command; statements are prepared, as drivers do."""
    defines = [f"--define={name}={value}" for name, value in variables.items()]
    return [
        str(binaries() / "pgbench"),
        "-n",
        "-M",
        "prepared",
        *defines,
        *options,
        url,
    ]


def run_pgbench(url: str, variables: Variables, *options: str) -> str:
    """Run pgbench and return its output.

    Raises:
        RuntimeError: pgbench failed.
    """
    command = pgbench_command(url, variables, *options)
    run = subprocess.run(
        command,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode:
        raise RuntimeError(run.stdout)
    return run.stdout


def read_logs(folder: Path) -> list[float]:
    """Return the milliseconds of each log line; delete the logs."""
    found = []
    for log in sorted(folder.glob("log.*")):
        for line in log.read_text(encoding="ascii").splitlines():
            row = line.split()
            # pgbench logs 0 if the response had arrived before its first poll.
            if row[2] != "0":
                found.append(int(row[2]) / 1000)
        log.unlink()
    return found
