"""What every command prints with: plain text when it is not a terminal."""

import typer
from rich.console import Console

# Paths and addresses may hold brackets; they are text here, not markup.
console = Console(markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print one line of the command's answer."""
    console.print(line)


def confirmed(question: str) -> bool:
    """Ask; where nobody can answer, the answer is no."""
    try:
        return typer.confirm(question)
    except typer.Abort:  # no terminal
        say("")
        return False
