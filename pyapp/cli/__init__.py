"""The command `pyapp`."""

import logging
import sys
from typing import TYPE_CHECKING

import psycopg

from pyapp.cli.logs import is_logging_json, start_logging
from pyapp.errors import MissingExtraError, PyappError

if TYPE_CHECKING:
    import typer


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a user can act on ends it with one line, status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        start_logging()
        _app(arguments)(arguments)
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
        _fail(str(exc))
    except psycopg.errors.InsufficientPrivilege as exc:
        _fail(f"the user of DATABASE_URL may not do this: {exc.diag.message_primary}")
    except (
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.UndefinedColumn,
        psycopg.errors.UndefinedFunction,
        psycopg.errors.UndefinedTable,
    ) as exc:
        _fail(f"{exc.diag.message_primary}; bring the schema up by: pyapp db migrate")
    except psycopg.OperationalError as exc:
        _fail(f"the database stopped answering: {str(exc).strip().splitlines()[0]}")


def _app(arguments: list[str]) -> "typer.Typer":
    try:
        from pyapp.cli.app import make_app

        return make_app(next(iter(arguments), "--help"))
    except ModuleNotFoundError as exc:
        if exc.name in {"typer", "rich"}:
            raise MissingExtraError("cli") from exc
        raise


def _end_interrupted() -> None:
    _fail("stopped by Ctrl-C; what was reported as done stays", 130)


def _fail(message: str, code: int = 1) -> None:
    if is_logging_json():
        logging.getLogger("pyapp.cli").error("failed", extra={"error": message})
    else:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(code)
