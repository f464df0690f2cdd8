"""Run one command line, and turn each failure into a line and an exit status."""

import errno
import io
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors

from pyapp.cli import stopped
from pyapp.cli.logs import is_logging_json, printable, start_logging
from pyapp.errors import MigrationError, PyappError

if TYPE_CHECKING:
    import typer

# Longer messages are cut: they can quote an argument of any length.
_MAX_LENGTH = 580
# The errors of a disk that is full or fails; with these, no file is named.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

# Errors of a schema that is missing, old, or of another program.
_OF_SCHEMA = (
    errors.InsufficientPrivilege,
    errors.InvalidSchemaName,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
    errors.UndefinedTable,
)
_MIGRATE = "{reason}; run: pyapp db migrate"
_CONFLICT = "a concurrent transaction changed the same rows ({reason}): run it again"
_ENDED = "the database ended the session ({reason}): run it again"
_MEANINGS: dict[type, str] = {
    errors.InsufficientPrivilege: (
        "the role of DATABASE_URL lacks a privilege: {reason}"
    ),
    errors.InvalidSchemaName: _MIGRATE,
    errors.UndefinedColumn: _MIGRATE,
    errors.UndefinedFunction: _MIGRATE,
    errors.UndefinedTable: _MIGRATE,
    errors.RaiseException: "a trigger of the database refused this: {reason}",
    errors.DiskFull: (
        "the database's disk is full ({reason}): free some space and run it again"
    ),
    errors.LockNotAvailable: (
        "another session holds a lock that this needs ({reason}): run it again"
    ),
    errors.QueryCanceled: (
        "the database canceled this ({reason}): run it again at a quieter time"
    ),
    errors.DeadlockDetected: _CONFLICT,
    errors.SerializationFailure: _CONFLICT,
    errors.ReadOnlySqlTransaction: (
        "the database is read-only ({reason}): is it a standby?"
    ),
    errors.IdleInTransactionSessionTimeout: _ENDED,
    errors.TransactionTimeout: _ENDED,
    errors.ProtocolViolation: (
        "the server or the pooler refused this ({reason}): a pooler must be in"
        " transaction or session mode"
    ),
    psycopg.OperationalError: "the database connection was lost: {reason}",
}


def run(arguments: list[str]) -> None:
    """Run the command line; only bugs end it with a traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed by the caller
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Escape characters that its encoding lacks, as stderr does by default.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        start_logging()
        _load_app(arguments)(arguments, prog_name="pyapp")
    except KeyboardInterrupt:
        _fail(*stopped())
    except SystemExit as exc:
        # typer turns KeyboardInterrupt into SystemExit and prints nothing.
        if isinstance(getattr(exc.__context__, "__cause__", None), KeyboardInterrupt):
            _fail(*stopped())
        raise
    except PyappError as exc:
        for note in getattr(exc, "__notes__", ()):
            print(note, file=sys.stderr)
        _fail(str(exc), getattr(exc, "exit_code", 1))
    except ImportError as exc:
        # Imported here: only this error needs to read how pyapp was installed.
        from pyapp._core.extras import explain_import

        meaning = explain_import(exc)
        if meaning is None:
            raise
        _fail(meaning)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        if exc.filename:
            _fail(f"{reason}: {exc.filename}")
        _fail(f"cannot write the output: {reason}" if exc.errno in _DISK else reason)
    except psycopg.Error as exc:
        meaning = _explain_schema(exc) or explain(exc)
        if meaning is None:
            raise
        _fail(meaning + _find_grant(exc, arguments))


def _find_grant(error: psycopg.Error, arguments: list[str]) -> str:
    """Return which statement grants the privilege that a command lacks, if one does."""
    if not isinstance(error, errors.InsufficientPrivilege):
        return ""
    # Imported here: only this error needs it.
    from pyapp.cli.privileges import find_grant

    grant = find_grant(arguments)
    return f"; {grant}" if grant else ""


def _explain_schema(error: psycopg.Error) -> str | None:
    """Return why *error* is not solved by a migration, None if it may be.

    The schema is another program's, or that of the earlier history.
    """
    if not isinstance(error, _OF_SCHEMA):
        return None
    # Imported here: only these errors need it.
    from pyapp._core.connection import connect
    from pyapp.devtools.migrations.history import refuse_earlier

    try:
        with connect() as conn:
            refuse_earlier(conn)
    except MigrationError as exc:
        return str(exc)
    except (PyappError, psycopg.Error):
        pass
    return None


def explain(error: psycopg.Error) -> str | None:
    """Return a line that says what to do about *error*, or None for a bug in pyapp.

    The line quotes the first line of the server's message, which contains no row.
    """
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    for error_class in type(error).__mro__:
        if error_class in _MEANINGS:
            reason = lines[0] if lines else type(error).__name__
            return _MEANINGS[error_class].format(reason=reason)
    return None


def _load_app(arguments: list[str]) -> "typer.Typer":
    from pyapp.cli.app import make_app

    return make_app(next(iter(arguments), "--help"))


def _fail(message: str, status: int = 1) -> None:
    message = printable(" ".join(message.splitlines()))
    if len(message) > _MAX_LENGTH:
        message = f"{message[:_MAX_LENGTH]}..."
    if is_logging_json():
        logging.getLogger("pyapp.cli").error("failed", extra={"error": message})
    elif sys.stderr.isatty():
        # Imported here: only a terminal needs folded lines.
        from pyapp.cli.console import warn

        warn(f"error: {message}")
    else:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
