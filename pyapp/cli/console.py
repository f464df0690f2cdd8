"""What every command prints with: plain text when it is not a terminal."""

import typer
from rich.console import Console

from pyapp.cli.text import printable

# Paths and addresses may hold brackets and colons; here they are text, not markup.
console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
# What is not the answer: progress, and what could not be read.
stderr = Console(
    markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True
)


def say(line: str) -> None:
    """Print one line of the command's answer."""
    console.print(printable(line))


def warn(line: str) -> None:
    """Print one line about the answer, where it is not taken for one."""
    stderr.print(printable(line))


def confirmed(question: str) -> bool:
    """Ask; where nobody can answer, the answer is no."""
    try:
        return typer.confirm(question)
    except typer.Abort:  # no terminal
        say("")
        return False
