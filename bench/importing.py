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
from tests.usage_lines import CHAT, RESPONSE, SESSION, changed

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
    """Import a log of *lines* different responses, then the same log again."""
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
            usage = (value.get("message") or value)["usage"]
            total += usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
            total += usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
    return total


def _write(log: Path, lines: int) -> None:
    """Write responses of three formats, each with a text of about a kilobyte."""
    numbers = random.Random(1)
    with log.open("w") as file:
        for n in range(lines):
            output = numbers.randrange(100, 4_000)
            text = "Some words of the model. " * numbers.randrange(20, 60)
            if n % 10 < 6:
                line = changed(
                    SESSION,
                    message__id=f"msg_{n:024}",
                    message__stop_reason="end_turn",
                    message__usage__output_tokens=output,
                    message__content=[{"type": "text", "text": text}],
                )
            elif n % 10 < 8:
                line = changed(
                    CHAT,
                    id=f"chatcmpl-{n}",
                    choices=[{"message": {"role": "assistant", "content": text}}],
                    usage__completion_tokens=output,
                    usage__total_tokens=1_000 + output,
                )
            else:
                line = changed(
                    RESPONSE,
                    id=f"resp_{n}",
                    output=[{"type": "message", "content": [{"text": text}]}],
                    usage__output_tokens=output,
                    usage__total_tokens=500 + output,
                )
            file.write(json.dumps(line) + "\n")


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
