"""The command `pyapp`."""

import sys
from typing import TYPE_CHECKING

import psycopg

from pyapp.errors import MissingExtraError, PyappError

if TYPE_CHECKING:
    import typer


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; what a user can act on ends it with one line, status 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _app(arguments)(arguments)
    except PyappError as exc:
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


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)
