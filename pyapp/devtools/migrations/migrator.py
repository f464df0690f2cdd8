"""Migrations: yoyo as a library, on the very tables that plain `yoyo apply` uses.

What yoyo leaves open is closed here. A migration and its "applied" mark are one
transaction, so a kill leaves both or neither. An index that is built outside one is
taken up where a killed run left it. One run at a time: the lock is the session's, and
ends with it. The text of what is applied is kept as a checksum, to find later edits.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psycopg

from pyapp._core.connection import connect
from pyapp._core.run import execute, fetch_all, fetch_one
from pyapp.devtools.migrations.files import MigrationFile, index_work, read_migrations
from pyapp.devtools.migrations.session import Backend, Bookkeeping, migration_session
from pyapp.errors import MigrationError

log = logging.getLogger("pyapp.migrations")

# What a migration gets to hear whose work is done.
_THERE_ALREADY = (
    psycopg.errors.DuplicateColumn,
    psycopg.errors.DuplicateFunction,
    psycopg.errors.DuplicateObject,
    psycopg.errors.DuplicateSchema,
    psycopg.errors.DuplicateTable,
)

State = Literal["applied", "edited", "pending", "unknown"]
Report = Callable[[MigrationFile], None]


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """One migration: edited is applied with another text, unknown applied without file.

    `applied_at` is in UTC, None for a pending one.
    """

    name: str
    state: State
    applied_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Applied:
    name: str
    applied_at: datetime


@dataclass(frozen=True, slots=True)
class _Checksum:
    name: str
    checksum: str


@dataclass(frozen=True, slots=True)
class _Index:
    is_valid: bool
    drop_statement: str


def list_migrations(url: str, folder: Path | None = None) -> list[MigrationStatus]:
    """Return the migrations of *folder* and those applied at *url*, by name.

    It only reads, and needs no yoyo to have been here before.
    """
    files = {file.name: file for file in read_migrations(folder)}
    with connect(url) as conn:
        applied, checksums = _read_state(conn)
    statuses = [
        MigrationStatus(name, _state(files.get(name), checksums.get(name)), moment)
        for name, moment in applied.items()
    ]
    statuses += [MigrationStatus(n, "pending") for n in files if n not in applied]
    return sorted(statuses, key=lambda status: status.name)


def pending(url: str, folder: Path | None = None) -> list[str]:
    """Return the names of the migrations that wait to be applied, in order."""
    statuses = list_migrations(url, folder)
    return [status.name for status in statuses if status.state == "pending"]


def record_checksums(url: str, folder: Path | None = None) -> None:
    """Keep the text of migrations that plain yoyo has applied, when seen first."""
    files = read_migrations(folder)
    with connect(url) as conn:
        applied, checksums = _read_state(conn)
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
    """Apply what is pending, in order; return the names of what was applied.

    *count* stops after so many; *names* leaves out all others. *report* is called
    with each before it is applied.
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
    """Return what `rollback` would undo, the last first.

    Raises:
        MigrationError: an applied one has no file, and others may rest on it.
    """
    files = read_migrations(folder)
    with connect(url) as conn:
        applied, _ = _read_state(conn)
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


def _read_state(
    conn: psycopg.Connection[Any],
) -> tuple[dict[str, datetime], dict[str, str]]:
    """Return when each migration was applied, and the checksums known."""
    tables = fetch_one(conn, Bookkeeping, "get_bookkeeping")
    if not tables.has_migrations:
        return {}, {}
    applied = fetch_all(conn, _Applied, "list_applied_migrations")
    kept = fetch_all(conn, _Checksum, "list_checksums") if tables.has_checksums else []
    return (
        {row.name: row.applied_at for row in applied},
        {row.name: row.checksum for row in kept},
    )


def _state(file: MigrationFile | None, checksum: str | None) -> State:
    if file is None:
        return "unknown"
    return "applied" if checksum in (file.checksum, None) else "edited"


def _record_checksums(backend: Backend, files: list[MigrationFile]) -> Collection[str]:
    """Keep the checksums that are missing; return the names of what is applied."""
    applied, checksums = _read_state(backend.connection)
    for file in files:
        if file.name in applied and file.name not in checksums:
            _record_checksum(backend, file)
    return applied


def _record_checksum(backend: Backend, file: MigrationFile) -> None:
    conn, checksum = backend.connection, file.checksum
    execute(conn, "upsert_checksum", name=file.name, checksum=checksum)


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
        with _explained(file, verb):
            if verb == "applied":
                _apply(backend, file)
            else:
                _roll_back(backend, file)
        backend.reset()
        seconds = round(time.monotonic() - began, 3)
        log.info(
            "migration %s", verb, extra={"migration": file.name, "seconds": seconds}
        )
    return [file.name for file in files]


def _apply(backend: Backend, file: MigrationFile) -> None:
    if not file.is_transactional and _is_open(backend, file.text):
        file.step.process_steps(backend, "apply")
    with backend.turn():
        if backend.is_applied(file.step):  # plain yoyo was here meanwhile
            return
        backend.mark_one(file.step, log=False)
        backend.log_migration(file.step, "apply")
        _record_checksum(backend, file)
        if file.is_transactional:
            file.step.process_steps(backend, "apply")


def _roll_back(backend: Backend, file: MigrationFile) -> None:
    if not file.is_transactional and _is_open(backend, file.rollback_text):
        file.step.process_steps(backend, "rollback")
    with backend.turn():
        if not backend.is_applied(file.step):
            return
        backend.unmark_one(file.step, log=False)
        backend.log_migration(file.step, "rollback")
        execute(backend.connection, "delete_checksum", name=file.name)
        if file.is_transactional:
            file.step.process_steps(backend, "rollback")


def _is_open(backend: Backend, text: str) -> bool:
    """Say whether what *text* does outside a transaction is still to be done.

    A killed run may have done it without the mark, or left an index half built: that
    is removed here. Whether a finished one is right, `pyapp db check` proves.
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
def _explained(file: MigrationFile, verb: str) -> Iterator[None]:
    """Turn the server's error into one line that says what was left behind."""
    try:
        yield
    except psycopg.errors.LockNotAvailable as exc:
        raise MigrationError(
            f"{file.name} was not {verb}: it waited too long for a lock, and nothing"
            " of it was kept; run it again at a quieter moment"
        ) from exc
    except _THERE_ALREADY as exc:
        # Plain yoyo applies and marks in two transactions.
        raise MigrationError(
            f"{file.name} was not {verb}: {exc.diag.message_primary} (nothing of it was"
            " kept); if a plain yoyo was killed before it marked it, and pyapp db check"
            f" shows all of it there: yoyo mark -m {file.name}"
        ) from exc
    except psycopg.Error as exc:
        kept = "nothing of it was kept" if file.is_transactional else "run it again"
        if isinstance(exc, psycopg.errors.UniqueViolation):
            kept = "correct the rows as CHANGELOG.md says, then run it again"
        reason = " ".join(str(exc).partition("\nLINE ")[0].split())
        raise MigrationError(f"{file.name} was not {verb}: {reason} ({kept})") from exc
