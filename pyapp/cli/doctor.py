"""`pyapp doctor`: checks of configuration, server and schema, with remedies."""

import typer

from pyapp._core.config import find_root
from pyapp._core.connection import connect
from pyapp.cli.arguments import AsJson, Scratch
from pyapp.cli.console import print_json, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(scratch: Scratch = None, as_json: AsJson = False) -> None:
    """Check configuration, server and schema; exit 1 on a problem."""
    # Imported here, so that pyapp --help is fast.
    from pyapp.devtools.checks.doctor import Finding, Level, examine

    if scratch is not None:
        connect(scratch).close()  # reports an invalid value before any finding
    found: list[Finding] = []
    for finding in examine(find_root(), scratch_url=scratch):
        found.append(finding)
        if not as_json:
            head = f"{finding.level:8} {finding.name:18}"
            say(f"{head}  {finding.text}", hanging=len(head) + 2)
    problems = sum(finding.level is Level.PROBLEM for finding in found)
    if as_json:
        print_json({"problems": problems, "findings": [one._asdict() for one in found]})
    if problems:
        raise typer.Exit(1)
