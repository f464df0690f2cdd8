"""`pyapp doctor`: what is wrong, and what to do about it."""

import typer

from pyapp.cli.console import say
from pyapp.config import find_root


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor() -> None:
    """Check every link from the files to the schema; exit 1 on a problem."""
    # Not at the top: the list of all commands is there sooner without it.
    from pyapp.devtools.doctor import Level, examine

    problems = 0
    for finding in examine(find_root()):
        problems += finding.level is Level.PROBLEM
        say(f"{finding.level:8} {finding.link:18}  {finding.text}")
    if problems:
        raise typer.Exit(1)
