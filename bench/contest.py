"""Let statements compete by pgbench, in turn, on the same database."""

import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyapp.devtools.binaries import binaries

Variables = Mapping[str, str]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of single executions."""

    p50: float
    p99: float


def _pgbench(url: str, script: Path, variables: Variables, *options: str) -> str:
    defines = [f"--define={name}={value}" for name, value in variables.items()]
    command = [str(binaries() / "pgbench"), "-n", "-M", "prepared", "-f", str(script)]
    run = subprocess.run(
        [*command, *defines, *options, url], check=True, capture_output=True, text=True
    )
    return run.stdout


def measure_latency(
    url: str,
    contestants: Mapping[str, str],
    cases: Sequence[Variables],
    *,
    executions: Mapping[str, int],
    rounds: int = 3,
) -> dict[str, Latency]:
    """Run each contestant's statement for each case, in turn, for several rounds.

    *executions* is how often a contestant runs for one case in one round.
    """
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        scripts = {}
        for number, (name, text) in enumerate(contestants.items()):
            scripts[name] = Path(folder) / f"{number}.sql"
            scripts[name].write_text(text, encoding="utf-8")
        for _ in range(rounds):
            for case in cases:
                for name, script in scripts.items():
                    prefix = Path(folder) / "log"
                    _pgbench(
                        url,
                        script,
                        case,
                        f"--transactions={executions[name]}",
                        "--log",
                        f"--log-prefix={prefix}",
                    )
                    for log in Path(folder).glob("log.*"):
                        rows = log.read_text(encoding="ascii").splitlines()
                        # The first execution also plans.
                        rows = rows[1:] or rows
                        samples[name] += [int(row.split()[2]) / 1000 for row in rows]
                        log.unlink()
    return {name: _latency(values) for name, values in samples.items()}


def _latency(values: Sequence[float]) -> Latency:
    if len(values) < 2:
        return Latency(values[0], values[0])
    return Latency(statistics.median(values), statistics.quantiles(values, n=100)[98])


def measure_rate(
    url: str,
    contestants: Mapping[str, str],
    *,
    clients: int,
    seconds: int,
    rounds: int = 3,
) -> dict[str, float]:
    """Return each contestant's median rate per second with so many clients at once."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "script.sql"
        for _ in range(rounds):
            for name, text in contestants.items():
                script.write_text(text, encoding="utf-8")
                output = _pgbench(
                    url, script, {}, f"--client={clients}", "--jobs=2",
                    f"--time={seconds}",
                )  # fmt: skip
                line = next(x for x in output.splitlines() if x.startswith("tps = "))
                rates[name].append(float(line.split()[2]))
    return {name: statistics.median(values) for name, values in rates.items()}
