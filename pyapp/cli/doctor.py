"""`pyapp doctor`: checks of configuration, server and schema, with remedies."""

import textwrap

import typer

from pyapp._core.config import find_root
from pyapp.cli.console import line_width, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor() -> None:
    """Check configuration, server and schema; exit 1 on a problem."""
    # Imported here, so that pyapp --help is fast.
    from pyapp.devtools.checks.doctor import Level, examine

    problems = 0
    for finding in examine(find_root()):
        problems += finding.level is Level.PROBLEM
        head = f"{finding.level:8} {finding.name:18}"
        for line in _lines(finding.text, len(head) + 2):
            say(f"{head}  {line}")
            head = " " * len(head)
    if problems:
        raise typer.Exit(1)


def _lines(text: str, indent: int) -> list[str]:
    """Return *text* wrapped for lines that begin with *indent* columns."""
    width = max(line_width() - indent, 20)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
