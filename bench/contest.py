"""Compare statements by pgbench, in turn, on the same database."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    contestants: Mapping[str, Contestant],
    *,
    executions: int = 300,
    rounds: int = 6,
    warm_up: int = 50,
) -> dict[str, dict[str, Latency]]:
    """Run all contestants in each place: a database URL with the cases to run there.

    The contestants share one connection and are chosen at random for each execution,
    and the places take turns, so that other load on the machine affects all equally.
    """
    names = list(contestants)
    samples: dict[str, dict[str, list[float]]] = {
        url: {name: [] for name in names} for url in places
    }
    with tempfile.TemporaryDirectory() as temporary, _processors_awake():
        folder = Path(temporary)
        options = []
        for number, contestant in enumerate(contestants.values()):
            script = folder / f"{number}.sql"
            script.write_text(contestant.text, encoding="utf-8")
            options.append(f"--file={script}")
        turns = [(url, case) for url, cases in places.items() for case in cases]
        for url, case in turns * rounds:
            run_pgbench(
                url, case, *options, f"--transactions={executions * len(names)}",
                "--log", f"--log-prefix={folder / 'log'}",
            )  # fmt: skip
            for number, milliseconds in read_logs(folder)[warm_up:]:
                samples[url][names[number]].append(milliseconds)
    return {
        url: {name: latency_of(values) for name, values in found.items()}
        for url, found in samples.items()
    }


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
    seconds: int = 4,
    rounds: int = 3,
) -> dict[str, float]:
    """Return each contestant's median rate per second with *clients* connections."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as temporary:
        script = Path(temporary) / "script.sql"
        for _ in range(rounds):
            for name, contestant in contestants.items():
                script.write_text(contestant.text, encoding="utf-8")
                if contestant.prepare:
                    contestant.prepare()
                output = run_pgbench(
                    url, variables[name], f"--file={script}", f"--client={clients}",
                    "--jobs=2", f"--time={seconds}",
                )  # fmt: skip
                line = next(x for x in output.splitlines() if x.startswith("tps = "))
                rates[name].append(float(line.split()[2]))
    return {name: statistics.median(values) for name, values in rates.items()}


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
    """Run pgbench and return its report.

    Raises:
        RuntimeError: pgbench failed.
    """
    command = pgbench_command(url, variables, *options)
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return run.stdout


def read_logs(folder: Path) -> list[tuple[int, float]]:
    """Return script number and milliseconds of each log line; delete the logs."""
    found = []
    for log in sorted(folder.glob("log.*")):
        for line in log.read_text(encoding="ascii").splitlines():
            row = line.split()
            # pgbench logs 0 if the response had arrived before its first poll.
            if row[2] != "0":
                found.append((int(row[3]), int(row[2]) / 1000))
        log.unlink()
    return found
