"""Output of the commands: lines, questions, JSON, tables and progress bars."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
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
# The width of a table of names that is not printed to a terminal.
WIDTH = 80
PAGE = 500
_GAP = "  "

# Paths and URLs can contain brackets and colons, which rich would read as markup.
console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
# Progress and warnings, so that stdout contains the answer only.
stderr = Console(
    markup=False, emoji=False, highlight=False, soft_wrap=True, stderr=True
)


def say(line: str) -> None:
    """Print one line of the command's answer."""
    console.print(printable(line))


def warn(line: str) -> None:
    """Print one line to stderr."""
    stderr.print(printable(line))


def confirmed(question: str) -> bool:
    """Ask; without a terminal the answer is no."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        say("")
        return False


def print_json(
    values: Mapping[str, Any], *, decimal: Callable[[Decimal], Any] = "{:f}".format
) -> None:
    """Print one JSON object on one line; *decimal* converts decimal numbers."""

    def convert(value: Any) -> Any:
        if isinstance(value, Decimal):
            return decimal(value)
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
    column and narrows none. The column *fitted* is cut to the width that a terminal has
    left. Cells beyond the columns are notes: each is a line of its own below the row.
    """
    count = len(header)
    remaining = ([printable(cell) for cell in row] for row in rows)
    widths = [0] * count
    page: list[Row] = [header, *islice(remaining, PAGE)]
    while page:
        columns = [row[:count] for row in page]
        widths = [
            max(width, *map(cell_len, column))
            for width, *column in zip(widths, *columns, strict=True)
        ]
        printed = _fit(widths, header, fitted)
        for row in page:
            cells, notes = row[:count], row[count:]
            line = _align(cells, header, printed, numbers)
            console.print(line, style="bold" if row is header else style(cells))
            for note in notes:
                console.print(_GAP + note)
        page = list(islice(remaining, PAGE))


def fit_names(header: Row, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield *rows* with their names, the first column, cut to the width of a screen.

    The whole name is then in lines below the row, before its notes.
    """
    count = len(header)
    _, *columns = zip(header, *(row[:count] for row in rows), strict=True)
    width = console.width if console.is_terminal else WIDTH
    others = sum(len(_GAP) + max(map(cell_len, column)) for column in columns)
    room = max(width - others, cell_len(header[0]))
    for row in rows:
        name = printable(row[0])
        if cell_len(name) <= room:
            yield row
        else:
            lines = chop_cells(name, WIDTH - len(_GAP))
            yield (_cut(name, room), *row[1:count], *lines, *row[count:])


def _fit(widths: list[int], header: Row, fitted: str | None) -> list[int]:
    if fitted is None or not console.is_terminal:
        return widths
    place = header.index(fitted)
    others = sum(len(_GAP) + width for width in widths) - widths[place] - len(_GAP)
    room = max(console.width - others, cell_len(fitted))
    return [*widths[:place], min(widths[place], room), *widths[place + 1 :]]


def _align(row: Row, header: Row, widths: list[int], numbers: Collection[str]) -> str:
    cells = [
        cell.rjust(width) if title in numbers else _cut(cell, width)
        for title, cell, width in zip(header, row, widths, strict=True)
    ]
    return _GAP.join(cells).rstrip()


def _cut(cell: str, width: int) -> str:
    if cell_len(cell) > width:
        return set_cell_size(cell, width - 1) + "\N{HORIZONTAL ELLIPSIS}"
    return set_cell_size(cell, width)


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
