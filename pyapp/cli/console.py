"""What every command prints with: plain text when it is not a terminal."""

from rich.console import Console

# Paths and addresses may hold brackets; they are text here, not markup.
console = Console(markup=False, highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Print one line of the command's answer."""
    console.print(line)
