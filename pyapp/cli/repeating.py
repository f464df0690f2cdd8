"""Commands that repeat their work with --every."""

from collections.abc import Callable
from time import sleep
from typing import Annotated, TypeVar

import psycopg
import typer

from pyapp.cli.arguments import parse_duration
from pyapp.cli.console import warn
from pyapp.cli.run import explain
from pyapp.errors import PyappError

T = TypeVar("T")
Every = Annotated[
    str | None, typer.Option(metavar="TIME", help="Repeat, such as every 1h.")
]


def repeat(run: Callable[[], T], every: str | None) -> T:
    """Call *run*, once or at that interval; return what it returns.

    An error of a later run is reported, and the next one begins at its time.
    """
    pause = None if every is None else parse_duration(every).total_seconds()
    if pause == 0:
        raise typer.BadParameter("--every must be greater than zero, such as 1h")
    result = run()
    while pause is not None:
        sleep(pause)
        try:
            run()
        except (PyappError, psycopg.OperationalError) as exc:
            reason = explain(exc) if isinstance(exc, psycopg.Error) else exc
            warn(f"error: {reason}; next attempt in {every}")
    return result
