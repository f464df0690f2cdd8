"""Import of a usage log, against a loop that parses the same lines and adds them up.

Compared is the CPU time of two processes; the import also waits for the server.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from bench.measures import Measure, at_most
from tests.usage_lines import SESSION, changed

LINES = 200_000
CPU = 4.0
MEGABYTES = 200.0
IMPORT = "from pyapp.cli import main; main()"


@dataclass(frozen=True)
class Ran:
    """CPU seconds and peak memory of one process."""

    seconds: float
    megabytes: float


def measure_import(url: str, lines: int) -> Iterator[Measure]:
    """Import a log of *lines* lines, then the same log again."""
    payer = f"--fingerprint={uuid4()}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "usage.jsonl")
        _write(log, lines)
        loop = _run(url, "-m", "bench.importing", str(log))
        for name in ("first", "again"):
            ran = _run(url, "-c", IMPORT, "import", "usage", str(log), payer)
            yield at_most(
                f"import of {lines:,} lines, {name}",
                f"{ran.seconds:.1f} s of CPU",
                f"loop {loop.seconds:.1f} s",
                ran.seconds / loop.seconds,
                CPU,
                {"imported": ran.seconds, "loop": loop.seconds},
            )
            yield at_most(
                f"its memory, {name}",
                f"{ran.megabytes:.0f} MB",
                f"{MEGABYTES:.0f} MB",
                ran.megabytes / MEGABYTES,
                1,
                {"megabytes": ran.megabytes},
            )


def add_up(log: Path) -> int:
    """Return the tokens of all lines: the least that reading them can cost."""
    total = 0
    with log.open("rb") as lines:
        for line in lines:
            value = json.loads(line)
            usage = value["message"].get("usage", {})
            total += usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
            total += usage.get("cache_read_input_tokens", 0)
    return total


def _write(log: Path, lines: int) -> None:
    """Write sessions of Claude Code, with texts as long as those of real ones.

    A response is written while it streams and when it has ended. Then come one or two
    results of its tools.
    """
    numbers = random.Random(1)
    written = 0
    with log.open("w") as file:
        while written < lines:
            for line in _call(written, numbers)[: lines - written]:
                file.write(json.dumps(line) + "\n")
                written += 1


def _call(number: int, numbers: random.Random) -> list[object]:
    text = "Some words of the model. " * numbers.randrange(10, 60)
    begun = changed(
        SESSION,
        requestId=f"req_{number:020}",
        message__id=f"msg_{number:024}",
        message__content=[{"type": "text", "text": text[:200]}],
    )
    ended = changed(
        begun,
        message__stop_reason="tool_use",
        message__content=[{"type": "text", "text": text}],
        message__usage__output_tokens=numbers.randrange(2, 4_000),
        message__usage__cache_read_input_tokens=numbers.randrange(150_000),
    )
    results = [
        {
            **SESSION,
            "type": "user",
            "message": {"role": "user", "content": [{"content": text}]},
            "toolUseResult": {"stdout": text * numbers.randrange(3), "stderr": ""},
        }
        for _ in range(numbers.randrange(1, 3))
    ]
    return [begun, ended, *results]


def _run(url: str, *arguments: str) -> Ran:
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, "DATABASE_URL": url},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, arguments
    return Ran(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


if __name__ == "__main__":
    print(add_up(Path(sys.argv[1])))
