"""Compare the output of `make demo`, on stdin, with README.md."""

import difflib
import re
import sys
from pathlib import Path

# Differs by machine and day.
VARIES = (
    (r"(?<=Installing into \.venv with ).*", "PYTHON"),
    (r"(?<=^PostgreSQL )\d+\.\d+", "VERSION"),
    (r"(?<=@localhost:)\d+", "PORT"),
    (r"\d{4}-\d\d-\d\d( \d\d:\d\d)?", "TIME"),
    # A terminal shortens it; a file does not.
    (r"d0d0d0d0-0000-4000-8000\S+", "DEVICE"),
    (r"  +", "  "),
)


def normalize(text: str) -> list[str]:
    """Return the lines of *text* with varying parts replaced."""
    for pattern, word in VARIES:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    lines = text.splitlines()
    # The last table is ordered by the users' ids, which are random.
    table = next((n for n, line in enumerate(lines) if line.startswith("payer ")), 0)
    return lines[:table] + sorted(lines[table:])


def main() -> int:
    """Print the differences; return 1 if there are any."""
    readme = Path("README.md").read_text(encoding="utf-8")
    begin, end = "```console\n$ make demo\n", "```"
    shown = normalize(readme.partition(begin)[2].partition(end)[0])
    printed = normalize(sys.stdin.read())
    difference = list(
        difflib.unified_diff(shown, printed, "README.md", "make demo", lineterm="")
    )
    print("\n".join(difference) or "README.md shows the output of make demo")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
