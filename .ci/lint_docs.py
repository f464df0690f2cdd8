"""Check the Markdown pages: line lengths, and the types of the Python scripts.

Tables, the targets of links and blocks of output may be wider than MAX_WIDTH.
docs/schema.md is generated.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAX_WIDTH = 92
WIDE_BLOCKS = {"console", "ini", "text"}
SCRIPT = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^ *```(\w*)$")
LINK_TARGET = re.compile(r"\]\([^)]*\)")


def long_lines(text: str) -> Iterator[tuple[int, int]]:
    """Yield the numbers and widths of the lines that are too long."""
    block = None
    for number, line in enumerate(text.splitlines(), start=1):
        if fence := FENCE.match(line):
            block = fence[1] if block is None else None
        elif not line.startswith("|") and block not in WIDE_BLOCKS:
            width = len(LINK_TARGET.sub("]", line))
            if width > MAX_WIDTH:
                yield number, width


def check_widths(pages: list[Path]) -> bool:
    """Report lines that are too long; return whether there are none."""
    is_valid = True
    for page in pages:
        for number, width in long_lines(page.read_text(encoding="utf-8")):
            print(f"{page}:{number}: {width} characters; the limit is {MAX_WIDTH}")
            is_valid = False
    return is_valid


def check_scripts(pages: list[Path]) -> bool:
    """Run mypy on the pages' scripts; return whether it finds no error."""
    with tempfile.TemporaryDirectory() as folder:
        for page in pages:
            text = page.read_text(encoding="utf-8")
            for number, found in enumerate(SCRIPT.finditer(text), start=1):
                # mypy then reports the line numbers of the page.
                script = "\n" * text.count("\n", 0, found.start(1)) + found[1]
                Path(folder, f"{page.stem}_{number}.py").write_text(script, "utf-8")
        command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
        return not subprocess.run(
            [*command, *sorted(Path(folder).iterdir())]
        ).returncode


if __name__ == "__main__":
    docs = [page for page in Path("docs").glob("*.md") if page.name != "schema.md"]
    pages = [*Path().glob("*.md"), *docs, *Path("migrations").glob("*.md")]
    results = [check_widths(sorted(pages)), check_scripts([Path("README.md"), *docs])]
    sys.exit(0 if all(results) else 1)
