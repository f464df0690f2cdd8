"""Applies and rolls back migrations: yoyo as a library, on the tables of plain yoyo.

A migration and its mark are one transaction, so a killed run leaves both or neither. An
index built outside a transaction is continued where a killed run left it. An advisory
lock of the session lets one run work at a time. The checksum of each applied migration
is stored, to detect later edits.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

import psycopg

from pyapp._core.connection import connect
from pyapp._core.run import execute, fetch_all
from pyapp.devtools.migrations.files import MigrationFile, index_work, read_migrations
from pyapp.devtools.migrations.history import (
    EARLIER_HISTORY,
    is_earlier,
    read_applied,
)
from pyapp.devtools.migrations.session import (
    Backend,
    migration_session,
    record_checksum,
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

State = Literal["earlier", "edited", "unknown", "pending", "applied"]
# What each state means and what to do, the most urgent first.
MEANINGS: dict[State, str] = {
    "earlier": "of an earlier history; run: pyapp db adopt",
    "edited": "its text has changed since it was applied; restore it, and write a new"
    " migration",
    "unknown": "applied without a file here; check out the version that has it",
    "pending": "pending; run: pyapp db migrate",
    "applied": "applied",
}
Report = Callable[[MigrationFile], None]


class MigrationStatus(NamedTuple):
    """One migration and its state; `applied_at` is in UTC, None if it is pending.

    edited: applied with another text. unknown: applied, without a file here. earlier:
    of the history before the squash.
    """

    name: str
    state: State
    applied_at: datetime | None = None


class _Index(NamedTuple):
    is_valid: bool
    drop_statement: str


def list_migrations(url: str, folder: Path | None = None) -> list[MigrationStatus]:
    """Return the migrations of *folder* and those applied at *url*, by name.

    It only reads, and works on a database that yoyo has never used. None is pending on
    a database of the earlier history, because none can be applied to it.
    """
    files = {file.name: file for file in read_migrations(folder)}
    with connect(url) as conn:
        applied, checksums = read_applied(conn)
    has_earlier = is_earlier(applied)
    statuses = [
        MigrationStatus(
            name,
            "earlier"
            if has_earlier and name in EARLIER_HISTORY
            else _state(files.get(name), checksums.get(name)),
            moment,
        )
        for name, moment in applied.items()
    ]
    if not has_earlier:
        statuses += [MigrationStatus(n, "pending") for n in files if n not in applied]
    return sorted(statuses, key=lambda status: status.name)


def pending(url: str, folder: Path | None = None) -> list[str]:
    """Return the names of the pending migrations, in order."""
    statuses = list_migrations(url, folder)
    return [status.name for status in statuses if status.state == "pending"]


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
    names: Collection[str] | None = None,
    report: Report | None = None,
) -> list[str]:
    """Apply the pending migrations in order; return the names of those applied.

    At most *count*, and only those in *names*. *report* is called with each before it
    is applied.

    Raises:
        MigrationError: a migration failed, or the database has the earlier history.
    """
    files = read_migrations(folder)
    with migration_session(url, is_building=True) as backend:
        applied = _record_checksums(backend, files)
        todo = [
            file
            for file in files
            if file.name not in applied and (names is None or file.name in names)
        ]
        return _run(backend, todo[:count], "applied", report)


def rollback(
    url: str,
    folder: Path | None = None,
    *,
    count: int | None = 1,
    report: Report | None = None,
) -> list[str]:
    """Roll back the last *count* migrations, all for None; return their names."""
    files = read_migrations(folder)
    with migration_session(url) as backend:
        applied = _record_checksums(backend, files)
        todo = _rollback_order(applied, files)[:count]
        return _run(backend, todo, "rolled back", report)


def list_rollbacks(
    url: str, folder: Path | None = None, *, count: int | None = 1
) -> list[MigrationFile]:
    """Return the migrations that `rollback` would roll back, the last first.

    Raises:
        MigrationError: an applied one has no file here; others may depend on it.
    """
    files = read_migrations(folder)
    with connect(url) as conn:
        applied, _ = read_applied(conn)
    return _rollback_order(applied, files)[:count]


def _rollback_order(
    applied: Collection[str], files: list[MigrationFile]
) -> list[MigrationFile]:
    known = {file.name: file for file in files}
    for name in applied:
        if name not in known:
            raise MigrationError(
                f"{name} is applied and has no file here: check out the version that"
                " has it, and roll that back first"
            )
    return [known[name] for name in sorted(applied, reverse=True)]


def _state(file: MigrationFile | None, checksum: str | None) -> State:
    if file is None:
        return "unknown"
    return "applied" if checksum in (file.checksum, None) else "edited"


def _record_checksums(backend: Backend, files: list[MigrationFile]) -> Collection[str]:
    """Store missing checksums; return the names of the applied migrations."""
    applied, checksums = read_applied(backend.connection)
    for file in files:
        if file.name in applied and file.name not in checksums:
            record_checksum(backend, file)
    return applied


def _run(
    backend: Backend,
    files: list[MigrationFile],
    verb: Literal["applied", "rolled back"],
    report: Report | None,
) -> list[str]:
    for file in files:
        if report is not None:
            report(file)
        began = time.monotonic()
        with _translated_errors(file, verb):
            _run_one(backend, file, "apply" if verb == "applied" else "rollback")
        backend.reset()
        seconds = round(time.monotonic() - began, 3)
        log.info(
            "migration %s", verb, extra={"migration": file.name, "seconds": seconds}
        )
    return [file.name for file in files]


def _run_one(
    backend: Backend, file: MigrationFile, operation: Literal["apply", "rollback"]
) -> None:
    is_applying = operation == "apply"
    text = file.text if is_applying else file.rollback_text
    if not file.is_transactional and _is_open(backend, text):
        file.step.process_steps(backend, operation)
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
def _translated_errors(file: MigrationFile, verb: str) -> Iterator[None]:
    """Turn an error of the server into one line that says what was kept."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as exc:
        raise MigrationError(
            f"{file.name} was not {verb}: it waited too long for a lock (nothing of it"
            " was kept); run it again at a quieter time"
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
        kept = "nothing of it was kept" if file.is_transactional else "run it again"
        if isinstance(exc, psycopg.errors.UniqueViolation):
            kept = "correct the rows as CHANGELOG.md says, then run it again"
        reason = " ".join(str(exc).partition("\nLINE ")[0].split())
        raise MigrationError(f"{file.name} was not {verb}: {reason} ({kept})") from exc
