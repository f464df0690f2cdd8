"""One run of a command line, from its words to its status."""

import io
import logging
import sys
from typing import TYPE_CHECKING

import psycopg

from pyapp.cli import STOPPED, STOPPED_STATUS
from pyapp.cli.failures import explain
from pyapp.cli.logs import is_logging_json, start_logging
from pyapp.cli.text import printable
from pyapp.errors import MissingExtraError, PyappError

if TYPE_CHECKING:
    import typer

# Characters of an error; what was typed may be of any length.
_MOST = 500


def run(arguments: list[str]) -> None:
    """Run the command line; what a user can act on ends it with one line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does it with what its encoding has not.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        start_logging()
        _app(arguments)(arguments, prog_name="pyapp")
    except KeyboardInterrupt:
        _end_interrupted()
    except SystemExit as exc:
        # typer makes it of a Ctrl-C, and says nothing.
        if isinstance(getattr(exc.__context__, "__cause__", None), KeyboardInterrupt):
            _end_interrupted()
        raise
    except PyappError as exc:
        for note in getattr(exc, "__notes__", ()):
            print(note, file=sys.stderr)
        _fail(str(exc), getattr(exc, "exit_code", 1))
    except OSError as exc:
        _fail(f"{exc.strerror or exc}: {exc.filename}" if exc.filename else str(exc))
    except psycopg.Error as exc:
        meaning = explain(exc)
        if meaning is None:
            raise
        _fail(meaning)


def _app(arguments: list[str]) -> "typer.Typer":
    try:
        from pyapp.cli.app import make_app

        return make_app(next(iter(arguments), "--help"))
    except ModuleNotFoundError as exc:
        if exc.name in {"typer", "rich"}:
            raise MissingExtraError("cli") from exc
        raise


def _end_interrupted() -> None:
    _fail(STOPPED, STOPPED_STATUS)


def _fail(message: str, code: int = 1) -> None:
    message = printable(" ".join(message.splitlines()))
    if len(message) > _MOST:
        message = f"{message[:_MOST]}..."
    if is_logging_json():
        logging.getLogger("pyapp.cli").error("failed", extra={"error": message})
    else:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
