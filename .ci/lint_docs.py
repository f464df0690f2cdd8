"""Check the types of the Python scripts in README.md and docs/."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

with tempfile.TemporaryDirectory() as folder:
    for page in (Path("README.md"), *sorted(Path("docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for number, found in enumerate(SCRIPT.finditer(text), start=1):
            # mypy then reports the line numbers of the page.
            script = "\n" * text.count("\n", 0, found.start(1)) + found[1]
            Path(folder, f"{page.stem}_{number}.py").write_text(script, "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    sys.exit(subprocess.run([*command, *sorted(Path(folder).iterdir())]).returncode)
