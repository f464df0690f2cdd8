"""Output of the commands: lines, questions, JSON, tables and progress bars.

Lines and tables are at most as wide as the terminal, or 80 columns without one.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len, chop_cells, set_cell_size
from rich.console import Console

from pyapp.cli.logs import printable

if TYPE_CHECKING:
    from pyapp.stripe_sync import Progress

Row = Sequence[str]
# The width of output that does not go to a terminal.
WIDTH = 80
PAGE = 500
_GAP = "  "
# A narrower column could show nothing but an ellipsis.
_NARROWEST = 5
# The fitted column is narrowed to this width before any other column.
_ENOUGH = 24
_INDENT = re.compile(r" *(-- )?")

# Paths and URLs can contain brackets and colons, which rich would read as markup.
console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
# Progress and warnings, so that stdout contains the answer only.
stderr = Console(
    markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True
)


def say(line: str, *, style: str | None = None, hanging: int = 0) -> None:
    """Print one line of the command's answer, folded between words.

    The lines that follow have its indentation and *hanging* more columns.
    """
    console.print("\n".join(fold(_shown(line), line_width(), hanging)), style=style)


def warn(line: str) -> None:
    """Print one line to stderr, folded in a terminal only: logs count lines."""
    line = printable(line)
    lines = fold(line, max(stderr.width, 20)) if stderr.is_terminal else [line]
    # One call, because a progress bar is drawn again after each.
    stderr.print("\n".join(lines))


def fold(text: str, width: int, hanging: int = 0) -> list[str]:
    """Return *text* in lines of at most *width* columns, broken between words.

    A word that is longer than a line is broken. Each line after the first begins with
    the indentation and the SQL comment sign of *text*, and *hanging* spaces.
    """
    found = _INDENT.match(text)
    indent = found.group() if found else ""
    prefix = indent + " " * hanging
    if width - cell_len(prefix) < _NARROWEST:
        prefix = ""
    text = text.rstrip(" ")
    lines: list[str] = []
    place, start, first = 0, "", len(indent)
    while True:
        # A part of the text, so that the time for a long one is linear.
        size = place + 4 * width
        part = start + text[place:size]
        if size >= len(text) and cell_len(part) <= width:
            return [*lines, part]
        # It is empty for characters without a width.
        head = (chop_cells(part, width) or [part])[0]
        # The space may be the character that follows the line.
        end = part.rfind(" ", first + 1, len(head) + 1)
        if end < 0:
            end = len(head)
        lines.append(part[:end].rstrip(" "))
        place += end - len(start)
        while text[place : place + 1] == " ":
            place += 1
        start, first = prefix, len(prefix)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return the number and the noun: 1 user, 2 users."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_amount(amount: Decimal) -> str:
    """Return the exact amount in groups of three digits, without trailing zeros."""
    text = f"{amount:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def require_consent(question: str, declined: str) -> None:
    """Ask; unless the answer is yes, print *declined* and end with status 1.

    Without a terminal the answer is no.
    """
    answers = " [y/N]: "
    *lines, last = fold(_shown(question), line_width() - len(answers))
    for line in lines:
        console.print(line)
    try:
        is_given = typer.confirm(last)
    except typer.Abort:
        say("")
        is_given = False
    if not is_given:
        say(declined)
        raise typer.Exit(1)


def print_json(
    values: Mapping[str, Any], *, decimal: Callable[[Decimal], Any] = "{:f}".format
) -> None:
    """Print one JSON object on one line; *decimal* converts decimal numbers."""

    def convert(value: Any) -> Any:
        if isinstance(value, Decimal):
            return decimal(value)
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = value.astimezone(UTC)
        return value.isoformat() if isinstance(value, date) else str(value)

    typer.echo(json.dumps(values, default=convert))


def print_table(
    header: Row,
    rows: Iterable[Row],
    *,
    numbers: Collection[str] = (),
    style: Callable[[Row], str | None] = lambda _: None,
    fitted: str | None = None,
) -> None:
    """Print *rows* in columns; those named in *numbers* are aligned to the right.

    Rows are printed in pages, so that memory stays flat; a later page can widen a
    column and narrows none. Where the columns are too wide together, *fitted* is
    narrowed, by default the first, then the widest of the others, the numbers last. The
    whole value of a cell that is cut is below the row. Cells beyond the columns are
    notes: each is a line of its own below the row.
    """
    count = len(header)
    remaining = ([_shown(cell) for cell in row] for row in rows)
    widths = [0] * count
    page: list[Row] = [header, *islice(remaining, PAGE)]
    while page:
        columns = [row[:count] for row in page]
        widths = [
            max(width, *map(cell_len, column))
            for width, *column in zip(widths, *columns, strict=True)
        ]
        printed = _fit(widths, header, fitted or header[0], numbers)
        for row in page:
            cells, notes = row[:count], row[count:]
            line = _align(cells, header, printed, numbers)
            console.print(line, style="bold" if row is header else style(cells))
            for note in (*_cut_values(cells, header, printed), *notes):
                for part in fold(note, line_width() - len(_GAP)):
                    console.print(_GAP + part)
        page = list(islice(remaining, PAGE))


def _fit(
    widths: list[int], header: Row, fitted: str, numbers: Collection[str]
) -> list[int]:
    """Return the widths with some narrowed, so that a row fits the line."""
    excess = sum(widths) + len(_GAP) * (len(header) - 1) - line_width()
    result, place = list(widths), header.index(fitted)
    while excess > 0:
        if result[place] > _ENOUGH:
            narrower = _ENOUGH
        else:
            wide = [n for n, title in enumerate(header) if result[n] > _floor(title)]
            if not wide:
                break
            texts = [n for n in wide if header[n] not in numbers]
            place = max(texts or wide, key=result.__getitem__)
            # As wide as the next one: two wide columns share what is left.
            others = (width for width in result if width < result[place])
            narrower = max(max(others, default=0), _floor(header[place]))
        narrower = max(narrower, result[place] - excess)
        excess -= result[place] - narrower
        result[place] = narrower
    return result


def _floor(title: str) -> int:
    return max(cell_len(title), _NARROWEST)


def _align(row: Row, header: Row, widths: list[int], numbers: Collection[str]) -> str:
    cells = [
        _cut(cell.rjust(width) if title in numbers else cell, width)
        for title, cell, width in zip(header, row, widths, strict=True)
    ]
    return _GAP.join(cells).rstrip()


def _cut_values(row: Row, header: Row, widths: list[int]) -> Iterator[str]:
    """Yield the whole values of the cells that do not fit their columns."""
    for title, cell, width in zip(header, row, widths, strict=True):
        if cell_len(cell) > width:
            yield cell if title == header[0] else f"{title}: {cell}"


def _cut(cell: str, width: int) -> str:
    if cell_len(cell) <= width:
        return set_cell_size(cell, width)
    ellipsis = "\N{HORIZONTAL ELLIPSIS}"
    ellipsis = ellipsis if _shown(ellipsis) == ellipsis else "..."
    return set_cell_size(cell, width - len(ellipsis)) + ellipsis


def line_width() -> int:
    """Return the columns of a terminal, at least 20, else 80."""
    return max(console.width, 20) if console.is_terminal else WIDTH


def _shown(text: str) -> str:
    """Return *text* as it is printed: each character that cannot be is escaped."""
    encoding = getattr(console.file, "encoding", None) or "utf-8"
    return printable(text).encode(encoding, "backslashreplace").decode(encoding)


@contextmanager
def show_bytes(total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that advances a bar up to *total*, None if it is not known.

    Without a terminal there is no bar.
    """
    if not stderr.is_terminal:
        yield lambda _: None
        return
    from rich import progress as bars

    columns = (
        bars.BarColumn(bar_width=40),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=stderr, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def show_objects() -> Iterator[Callable[["Progress"], None] | None]:
    """Yield a function that shows how many Stripe objects a run has read.

    Without a terminal it is None.
    """
    if not stderr.is_terminal:
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=30),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=stderr, transient=True) as bar:
        tasks: dict[str, bars.TaskID] = {}

        def show(progress: "Progress") -> None:
            kind = progress.object_type
            if kind not in tasks:
                tasks[kind] = bar.add_task(kind, rate="")
            speed = bar.tasks[tasks[kind]].speed
            bar.update(
                tasks[kind],
                completed=progress.seen,
                total=progress.expected,
                rate=f"{speed:,.0f}/s" if speed else "",
            )

        yield show
