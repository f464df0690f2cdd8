"""Runs one statement on a sync or an async connection, and never commits it.

A guarded statement that a rule refuses leaves the caller's transaction as it was. Where
one is open, that takes a savepoint, which travels with the statement in one round trip.
Where the statement itself begins one, that one is rolled back. Under autocommit there
is nothing to undo.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pyapp.errors import RuleError, translate

# The values of the rows, and how many rows there were.
Outcome: TypeAlias = tuple[Sequence[tuple[Any, ...]], int]
Parameters: TypeAlias = Mapping[str, Any]

_SET = b"SAVEPOINT pyapp"
_RELEASE = b"RELEASE pyapp"
_BACK_TO_SAVEPOINT = (b"ROLLBACK TO pyapp", _RELEASE)
_BACK_TO_NOTHING = (b"ROLLBACK",)
_FAILURES = (psycopg.Error, RuleError)


def run(
    conn: Connection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; a refusal aborts the transaction."""
    cursor = conn.cursor(row_factory=tuple_row)
    try:
        cursor.execute(sql, parameters)
        _catch_up(conn)
        return cursor.fetchall() if has_rows else (), cursor.rowcount
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc


def run_guarded(
    conn: Connection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; a refusal leaves no trace."""
    _catch_up(conn)
    undo = _undo(conn)
    in_savepoint = undo is _BACK_TO_SAVEPOINT
    start = _run_in_savepoint if in_savepoint else run
    try:
        return start(conn, sql, parameters, has_rows=has_rows)
    except _FAILURES as exc:
        _check_connection(conn, exc)
        if _is_open(conn):
            for command in undo:
                conn.execute(command, prepare=False)
        raise


def _run_in_savepoint(
    conn: Connection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    cursor = conn.cursor(row_factory=tuple_row)
    frame = conn.cursor()
    failure: psycopg.Error | None = None
    try:
        with conn.pipeline():
            try:
                frame.execute(_SET, prepare=False)
                cursor.execute(sql, parameters)
                frame.execute(_RELEASE, prepare=False)
            except psycopg.Error as exc:
                # Kept back, for psycopg would log what else fails at the exit.
                failure = exc
    except psycopg.Error as exc:
        failure = failure or _first(exc)
    with _translated():
        if failure:
            raise failure
        return cursor.fetchall() if has_rows else (), cursor.rowcount


def copy(conn: Connection[Any], sql: str, rows: Iterable[Sequence[Any]]) -> int:
    """Send *rows* to a COPY ... FROM STDIN and return how many they were."""
    cursor = conn.cursor()
    with _translated():
        with cursor.copy(sql) as target:
            for row in rows:
                target.write_row(row)
        return cursor.rowcount


@contextmanager
def unit(conn: Connection[Any]) -> Iterator[None]:
    """Do all that is done inside, or nothing of it."""
    _catch_up(conn)
    if _undo(conn) is not _BACK_TO_NOTHING:
        with conn.transaction():
            yield
        return
    try:
        yield
    except BaseException:
        if _is_open(conn):
            conn.rollback()
        raise


def _catch_up(conn: Connection[Any]) -> None:
    """Let a caller's own pipeline answer, so that the connection knows its state."""
    if conn.pgconn.pipeline_status:
        with conn.pipeline():
            pass


async def run_async(
    conn: AsyncConnection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; a refusal aborts the transaction."""
    cursor = conn.cursor(row_factory=tuple_row)
    try:
        await cursor.execute(sql, parameters)
        await _catch_up_async(conn)
        return await cursor.fetchall() if has_rows else (), cursor.rowcount
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc


async def run_guarded_async(
    conn: AsyncConnection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; a refusal leaves no trace."""
    await _catch_up_async(conn)
    undo = _undo(conn)
    in_savepoint = undo is _BACK_TO_SAVEPOINT
    start = _run_in_savepoint_async if in_savepoint else run_async
    try:
        return await start(conn, sql, parameters, has_rows=has_rows)
    except _FAILURES as exc:
        _check_connection(conn, exc)
        if _is_open(conn):
            for command in undo:
                await conn.execute(command, prepare=False)
        raise


async def _run_in_savepoint_async(
    conn: AsyncConnection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    cursor = conn.cursor(row_factory=tuple_row)
    frame = conn.cursor()
    failure: psycopg.Error | None = None
    try:
        async with conn.pipeline():
            try:
                await frame.execute(_SET, prepare=False)
                await cursor.execute(sql, parameters)
                await frame.execute(_RELEASE, prepare=False)
            except psycopg.Error as exc:
                # Kept back, for psycopg would log what else fails at the exit.
                failure = exc
    except psycopg.Error as exc:
        failure = failure or _first(exc)
    with _translated():
        if failure:
            raise failure
        return await cursor.fetchall() if has_rows else (), cursor.rowcount


async def copy_async(
    conn: AsyncConnection[Any], sql: str, rows: Iterable[Sequence[Any]]
) -> int:
    """Send *rows* to a COPY ... FROM STDIN and return how many they were."""
    cursor = conn.cursor()
    with _translated():
        async with cursor.copy(sql) as target:
            for row in rows:
                await target.write_row(row)
        return cursor.rowcount


@asynccontextmanager
async def unit_async(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Do all that is done inside, or nothing of it."""
    await _catch_up_async(conn)
    if _undo(conn) is not _BACK_TO_NOTHING:
        async with conn.transaction():
            yield
        return
    try:
        yield
    except BaseException:
        if _is_open(conn):
            await conn.rollback()
        raise


async def _catch_up_async(conn: AsyncConnection[Any]) -> None:
    """Let a caller's own pipeline answer, so that the connection knows its state."""
    if conn.pgconn.pipeline_status:
        async with conn.pipeline():
            pass


def _undo(conn: Connection[Any] | AsyncConnection[Any]) -> tuple[bytes, ...]:
    """Return the commands that take the connection back to where it is now."""
    status = conn.pgconn.transaction_status
    if status == TransactionStatus.IDLE:
        if conn.autocommit:
            return ()
        if not conn.pgconn.pipeline_status:
            return _BACK_TO_NOTHING
    return () if status == TransactionStatus.INERROR else _BACK_TO_SAVEPOINT


def _is_open(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    status = conn.pgconn.transaction_status
    return status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def _check_connection(
    conn: Connection[Any] | AsyncConnection[Any], exc: Exception
) -> None:
    """Let no refusal hide that the connection was lost with it.

    Whoever took the refusal and went on would leave a transaction() block that says
    nothing, for psycopg commits no lost connection, and would think it committed.
    """
    if conn.closed and not isinstance(exc, psycopg.OperationalError):
        raise psycopg.OperationalError("the connection was lost") from exc


def _first(error: psycopg.Error) -> psycopg.Error:
    """Return what went wrong before the rest of a pipeline was skipped."""
    before = error.__context__
    skipped = isinstance(error, psycopg.errors.PipelineAborted)
    return _first(before) if skipped and isinstance(before, psycopg.Error) else error


@contextmanager
def _translated() -> Iterator[None]:
    """Turn a rule's violation into its domain error, and let all others through."""
    try:
        yield
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc
