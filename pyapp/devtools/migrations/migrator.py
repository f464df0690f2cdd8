"""Applies and rolls back migrations: yoyo as a library, on the tables of plain yoyo.

A migration and its mark are one transaction, so a killed run leaves both or neither. An
index built outside a transaction is continued where a killed run left it. An advisory
lock of the session lets one run work at a time. The checksum of each applied migration
is stored, to detect later edits.
"""

import contextlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psycopg

from pyapp._core.connection import connect
from pyapp._core.run import execute, fetch_all, fetch_one
from pyapp._core.tool_sessions import AdvisoryLock
from pyapp.devtools.migrations.files import (
    MigrationFile,
    index_work,
    read_migrations,
    without_create_schema,
)
from pyapp.devtools.migrations.history import find_schema, read_applied
from pyapp.devtools.migrations.session import (
    Backend,
    migration_session,
    record_checksum,
)
from pyapp.devtools.migrations.states import (
    MigrationStatus,
    find_renamed,
    read_states,
    refuse_out_of_order,
    rollback_order,
)
from pyapp.errors import MigrationError

log = logging.getLogger("pyapp.migrations")

# Errors of a migration whose objects exist already.
_ALREADY_EXISTS = (
    psycopg.errors.DuplicateColumn,
    psycopg.errors.DuplicateFunction,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateSchema,
    psycopg.errors.DuplicateTable,
)

Verb = Literal["applied", "rolled back"]


class Event(NamedTuple):
    """What a run does with a migration: it begins, has ended, or takes a new name.

    `earlier_name` is the name under which a renamed migration was applied.
    """

    kind: Literal["begins", "ended", "renamed"]
    file: MigrationFile
    earlier_name: str | None = None


Report = Callable[[Event], None]
OnWait = Callable[[AdvisoryLock], None]


class _Index(NamedTuple):
    is_valid: bool
    drop_statement: str


def list_migrations(url: str, folder: Path | None = None) -> list[MigrationStatus]:
    """Return the migrations of *folder* and those applied at *url*, by name.

    It only reads, and works on a database that yoyo has never used.
    """
    files = read_migrations(folder)
    with connect(url) as conn:
        applied, checksums = read_applied(conn)
    return read_states(files, applied, checksums)


def pending(url: str, folder: Path | None = None) -> list[str]:
    """Return the names of the migrations that can be applied, in order."""
    return [
        status.name
        for status in list_migrations(url, folder)
        if status.state in ("pending", "out_of_order")
    ]


def record_checksums(url: str, folder: Path | None = None) -> None:
    """Store the checksums of migrations that plain yoyo has applied."""
    files = read_migrations(folder)
    with connect(url) as conn:
        applied, checksums = read_applied(conn)
    if any(file.name in applied and file.name not in checksums for file in files):
        with migration_session(url, patience=0) as backend:
            _record_checksums(backend, files)


def migrate(
    url: str,
    folder: Path | None = None,
    *,
    count: int | None = None,
    names: Sequence[str] | None = None,
    is_out_of_order: bool = False,
    report: Report | None = None,
    on_wait: OnWait | None = None,
) -> list[str]:
    """Apply the pending migrations in order; return the names of those applied.

    At most *count*; or those in *names*, in their order. A migration whose file has
    been renamed since it was applied is marked under its new name. *is_out_of_order*:
    files that sort before an applied migration are applied too. *report* is called
    with each event, and *on_wait* if another run is at work.

    Raises:
        MigrationError: a migration failed, a file sorts before an applied migration, or
            the database has the earlier history.
    """
    files = read_migrations(folder)
    with migration_session(url, is_building=True, on_wait=on_wait) as backend:
        applied, checksums = _record_checksums(backend, files)
        applied = _rename_marks(backend, files, applied, checksums, report)
        todo = [file for file in files if file.name not in applied]
        if names is not None:
            pending = {file.name: file for file in todo}
            todo = [pending[name] for name in names if name in pending]
        elif not is_out_of_order:
            refuse_out_of_order(files, applied)
        schema = find_schema(backend.connection)
        if schema is not None and not schema.objects:
            todo = [without_create_schema(file) for file in todo]
        return _run(backend, todo[:count], "applied", report)


def rollback(
    url: str,
    folder: Path | None = None,
    *,
    count: int | None = 1,
    report: Report | None = None,
    on_wait: OnWait | None = None,
) -> list[str]:
    """Roll back the *count* migrations applied last, all for None; return their names.

    *report* is called with each event, and *on_wait* if another run is at work.
    """
    files = read_migrations(folder)
    with migration_session(url, on_wait=on_wait) as backend:
        applied, checksums = _record_checksums(backend, files)
        conn = backend.connection
        todo = _rollback_order(conn, files, applied, checksums, count)
        return _run(backend, todo, "rolled back", report)


def list_rollbacks(
    url: str, folder: Path | None = None, *, count: int | None = 1
) -> list[MigrationFile]:
    """Return the migrations that `rollback` would roll back, the last first.

    Raises:
        MigrationError: one of them has no file here.
    """
    files = read_migrations(folder)
    with connect(url) as conn:
        applied, checksums = read_applied(conn)
        return _rollback_order(conn, files, applied, checksums, count)


def has_grants(url: str) -> bool:
    """Tell whether a role other than an owner has privileges on views or functions.

    A migration that drops and creates them again loses these.
    """
    with connect(url) as conn:
        return fetch_one(conn, bool, "has_grants")


def _rollback_order(
    conn: psycopg.Connection[Any],
    files: Sequence[MigrationFile],
    applied: dict[str, datetime],
    checksums: dict[str, str],
    count: int | None,
) -> list[MigrationFile]:
    """Return the migrations to roll back; refuse to drop what others depend on.

    Each is a transaction of its own, so the refusal comes before the first one.
    """
    todo = rollback_order(files, applied, checksums, count)
    if todo and len(todo) == len(applied):
        names = fetch_all(conn, str, "list_dependants")
        if names:
            more = f" and {len(names) - 3} more" if names[3:] else ""
            raise MigrationError(
                "nothing was rolled back, because objects of other schemas depend on"
                f" schema app: {', '.join(names[:3])}{more}; drop them first"
            )
    return todo


def _record_checksums(
    backend: Backend, files: Sequence[MigrationFile]
) -> tuple[dict[str, datetime], dict[str, str]]:
    """Store missing checksums; return what `read_applied` has found before."""
    applied, checksums = read_applied(backend.connection)
    for file in files:
        if file.name in applied and file.name not in checksums:
            record_checksum(backend, file)
    return applied, checksums


def _rename_marks(
    backend: Backend,
    files: Sequence[MigrationFile],
    applied: dict[str, datetime],
    checksums: dict[str, str],
    report: Report | None,
) -> dict[str, datetime]:
    """Mark renamed migrations under their new names, and return all applied ones."""
    known = {file.name: file for file in files}
    renamed = find_renamed(files, applied, checksums)
    if not renamed:
        return applied
    with backend.turn():
        for old, new in renamed.items():
            file = known[new]
            names = {"name": old, "new_name": new, "new_hash": file.step.hash}
            execute(backend.connection, "rename_mark", **names)
            # Plain yoyo leaves the checksum of a migration that it rolls back.
            execute(backend.connection, "delete_checksum", name=new)
            execute(backend.connection, "rename_checksum", name=old, new_name=new)
            backend.log_migration(file.step, "mark")
    for old, new in renamed.items():
        log.info("migration renamed", extra={"migration": new, "earlier_name": old})
        if report is not None:
            report(Event("renamed", known[new], old))
    return {renamed.get(name, name): moment for name, moment in applied.items()}


def _run(
    backend: Backend,
    files: list[MigrationFile],
    verb: Verb,
    report: Report | None,
) -> list[str]:
    for file in files:
        if report is not None:
            report(Event("begins", file))
        began = time.monotonic()
        with _translated_errors(backend, file, verb):
            _run_one(backend, file, "apply" if verb == "applied" else "rollback")
        backend.reset()
        seconds = round(time.monotonic() - began, 3)
        log.info(
            "migration %s", verb, extra={"migration": file.name, "seconds": seconds}
        )
        if report is not None:
            report(Event("ended", file))
    return [file.name for file in files]


def _run_one(
    backend: Backend, file: MigrationFile, operation: Literal["apply", "rollback"]
) -> None:
    is_applying = operation == "apply"
    text = file.text if is_applying else file.rollback_text
    if not file.is_transactional and _is_open(backend, text):
        _process(backend, file, operation)
    with backend.turn():
        # Plain yoyo may have done it after the list was read.
        if backend.is_applied(file.step) == is_applying:
            return
        if is_applying:
            backend.mark_one(file.step, log=False)
            record_checksum(backend, file)
        else:
            backend.unmark_one(file.step, log=False)
            execute(backend.connection, "delete_checksum", name=file.name)
        backend.log_migration(file.step, operation)
        if file.is_transactional:
            _process(backend, file, operation)


def _process(
    backend: Backend, file: MigrationFile, operation: Literal["apply", "rollback"]
) -> None:
    # yoyo prints the rows that a statement returns.
    with contextlib.redirect_stdout(io.StringIO()):
        file.step.process_steps(backend, operation)


def _is_open(backend: Backend, text: str) -> bool:
    """Tell whether the statement of *text* outside a transaction has yet to run.

    A killed run may have run it without marking the migration, or left an invalid
    index, which is dropped here. `pyapp db check` proves that a finished one is right.
    """
    work = index_work(text)
    if work is None:
        return True
    conn = backend.connection
    found = fetch_all(conn, _Index, "find_index", schema=work.schema, name=work.name)
    if not work.is_build:
        return bool(found)
    if found and not found[0].is_valid:
        conn.execute(found[0].drop_statement.encode())
    return not (found and found[0].is_valid)


@contextlib.contextmanager
def _translated_errors(
    backend: Backend, file: MigrationFile, verb: Verb
) -> Iterator[None]:
    """Turn an error of the server into one line that says what was kept."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as exc:
        raise MigrationError(
            f"{file.name} was not {verb}: it waited too long for a lock (nothing of it"
            " was kept); run it again at a quieter time"
        ) from exc
    except psycopg.errors.DependentObjectsStillExist as exc:
        found = (exc.diag.message_detail or str(exc)).splitlines()
        raise MigrationError(
            f"{file.name} was not {verb}: {'; '.join(found[:3])} (nothing of it was"
            " kept); drop what depends on it first"
        ) from exc
    except _ALREADY_EXISTS as exc:
        is_schema = isinstance(exc, psycopg.errors.DuplicateSchema)
        adopt = "if psql built it from the SQL files, run pyapp db adopt; "
        # Plain yoyo applies and marks in two transactions.
        raise MigrationError(
            f"{file.name} was not {verb}: {exc.diag.message_primary} (nothing of it was"
            f" kept); {adopt if is_schema else ''}if a plain yoyo was killed before it"
            f" marked it, and pyapp db check shows all of it there: yoyo mark -m"
            f" {file.name}"
        ) from exc
    except psycopg.Error as exc:
        if backend.connection.closed:
            # At the commit, either result is possible.
            raise MigrationError(
                f"the connection was lost before {file.name} was known to be {verb}:"
                f" {_one_line(_first_error(exc))}; run it again, which continues there"
            ) from exc
        kept = "nothing of it was kept" if file.is_transactional else "run it again"
        if isinstance(exc, psycopg.errors.UniqueViolation):
            kept = "correct the rows as CHANGELOG.md says, then run it again"
        raise MigrationError(
            f"{file.name} was not {verb}: {_one_line(exc)} ({kept})"
        ) from exc


def _first_error(exc: BaseException) -> BaseException:
    """Return the error that came first: a failed ROLLBACK hides it."""
    while isinstance(exc.__context__, psycopg.Error):
        exc = exc.__context__
    return exc


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).partition("\nLINE ")[0].split())
