"""Runs statements on a sync or an async connection, and never commits a transaction.

A guarded statement that is refused or interrupted leaves the caller's transaction as it
was. Where a transaction is open, that takes a savepoint. Where the statement itself
begins the transaction, it is rolled back. Under autocommit there is nothing to undo.

An interruption is a KeyboardInterrupt, or under asyncio the cancellation of a task. It
may arrive at any moment: also while the savepoint is being released or rolled back to.
Its rule is that no effect of an interrupted call can be committed: what cannot be
undone alone aborts the transaction.
"""

import asyncio
import time
from collections.abc import (
    AsyncIterator,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncTransaction, Connection, Transaction
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from pyapp.errors import translate

T = TypeVar("T")

# The values of the rows, and how many rows there were.
Outcome: TypeAlias = tuple[Sequence[tuple[Any, ...]], int]
Parameters: TypeAlias = Mapping[str, Any]

# No such savepoint exists: the error that this causes aborts the transaction.
_ABORT = b"ROLLBACK TO pyapp_aborts_an_interrupted_transaction"
# Seconds that an interrupted call gives the server to answer.
_PATIENCE = 5.0


def run(
    conn: Connection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; an error aborts the transaction."""
    cursor = conn.cursor(row_factory=tuple_row)
    try:
        cursor.execute(sql, parameters)
        _catch_up(conn)
        return cursor.fetchall() if has_rows else (), cursor.rowcount
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc
    except Exception:
        raise
    except BaseException:
        # The statement may have completed all the same.
        if _status(conn) == TransactionStatus.INTRANS:
            _try(conn, _ABORT)
        raise


def run_guarded(
    conn: Connection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; an error leaves no trace."""
    _catch_up(conn)
    if _needs_no_undo(conn):
        return run(conn, sql, parameters, has_rows=has_rows)
    with unit(conn):
        return run(conn, sql, parameters, has_rows=has_rows)


def copy(conn: Connection[Any], sql: str, rows: Iterable[Sequence[Any]]) -> int:
    """Send *rows* to a COPY ... FROM STDIN and return how many they were."""
    cursor = conn.cursor()
    try:
        with _translated():
            with cursor.copy(sql) as target:
                for row in rows:
                    target.write_row(row)
            return cursor.rowcount
    finally:
        # psycopg leaves a connection in its COPY if it is interrupted at the beginning.
        if _status(conn) == TransactionStatus.ACTIVE:
            conn.pgconn.finish()


@contextmanager
def unit(conn: Connection[Any]) -> Iterator[None]:
    """Do everything inside, or nothing of it."""
    _catch_up(conn)
    is_first = _status(conn) == TransactionStatus.IDLE
    block = None
    try:
        if is_first and not conn.autocommit:
            yield
        else:
            with conn.transaction() as block:
                yield
    except BaseException as exc:
        if is_first:
            _roll_back(conn)
        elif block and _is_unsettled(block, exc):
            _try(conn, *_undo(block))
        _check_connection(conn, exc)
        raise


def _roll_back(conn: Connection[Any]) -> None:
    """Roll back, once more if the first attempt was interrupted."""
    for _ in range(2):
        if not _is_open(conn):
            return
        with suppress(psycopg.Error):
            conn.rollback()


def _try(conn: Connection[Any], *commands: bytes) -> None:
    with suppress(psycopg.Error):
        for command in commands:
            conn.execute(command, prepare=False)
            _catch_up(conn)


def _catch_up(conn: Connection[Any]) -> None:
    """Let a caller's own pipeline answer, so that the connection knows its state."""
    if conn.pgconn.pipeline_status:
        with conn.pipeline():
            pass


async def run_async(
    conn: AsyncConnection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; an error aborts the transaction."""
    cursor = conn.cursor(row_factory=tuple_row)
    try:
        await cursor.execute(sql, parameters)
        await _catch_up_async(conn)
        return await cursor.fetchall() if has_rows else (), cursor.rowcount
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc
    except Exception:
        raise
    except BaseException:
        # The statement may have completed all the same.
        if _status(conn) == TransactionStatus.INTRANS:
            await _finish(conn, _try_async(conn, _ABORT))
        raise


async def run_guarded_async(
    conn: AsyncConnection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Return what the statement gives; an error leaves no trace."""
    await _catch_up_async(conn)
    if _needs_no_undo(conn):
        return await run_async(conn, sql, parameters, has_rows=has_rows)
    async with unit_async(conn):
        return await run_step_async(conn, sql, parameters, has_rows=has_rows)


async def run_step_async(
    conn: AsyncConnection[Any], sql: str, parameters: Parameters, *, has_rows: bool
) -> Outcome:
    """Do as run_async within a unit; a cancellation waits for the server's answer.

    psycopg closes the connection if the statement fails at the moment at which it is
    cancelled, and a transaction() block ends a closed connection without an error.
    """
    work = run_async(conn, sql, parameters, has_rows=has_rows)
    return await _finish(conn, work, stops=True)


async def copy_async(
    conn: AsyncConnection[Any], sql: str, rows: Iterable[Sequence[Any]]
) -> int:
    """Send *rows* to a COPY ... FROM STDIN and return how many they were."""
    caller = asyncio.current_task()
    assert caller is not None
    cancellations = caller.cancelling()

    async def send() -> int:
        cursor = conn.cursor()
        with _translated():
            async with cursor.copy(sql) as target:
                for row in rows:
                    if caller.cancelling() > cancellations:
                        raise asyncio.CancelledError
                    await target.write_row(row)
            return cursor.rowcount

    # psycopg leaves a connection in its COPY if it is cancelled at the beginning.
    return await _finish(conn, send(), stops=True)


@asynccontextmanager
async def unit_async(conn: AsyncConnection[Any]) -> AsyncIterator[None]:
    """Do everything inside, or nothing of it."""
    await _catch_up_async(conn)
    is_first = _status(conn) == TransactionStatus.IDLE
    block = None
    try:
        if is_first and not conn.autocommit:
            yield
        else:
            async with _finished(conn) as block:
                yield
    except BaseException as exc:
        if is_first:
            await _finish(conn, _roll_back_async(conn))
        elif block and _is_unsettled(block, exc):
            await _finish(conn, _try_async(conn, *_undo(block)))
        _check_connection(conn, exc)
        raise


async def _roll_back_async(conn: AsyncConnection[Any]) -> None:
    """Roll back, once more if the first attempt was interrupted."""
    for _ in range(2):
        if not _is_open(conn):
            return
        with suppress(psycopg.Error):
            await conn.rollback()


async def _try_async(conn: AsyncConnection[Any], *commands: bytes) -> None:
    with suppress(psycopg.Error):
        for command in commands:
            await conn.execute(command, prepare=False)
            await _catch_up_async(conn)


async def _catch_up_async(conn: AsyncConnection[Any]) -> None:
    """Let a caller's own pipeline answer, so that the connection knows its state."""
    if conn.pgconn.pipeline_status:
        async with conn.pipeline():
            pass


@asynccontextmanager
async def _finished(conn: AsyncConnection[Any]) -> AsyncIterator[AsyncTransaction]:
    """Do as conn.transaction(); no cancellation stops its beginning or end half way."""
    manager = conn.transaction()
    block: AsyncTransaction | None = None

    async def enter() -> AsyncTransaction:
        nonlocal block
        block = await manager.__aenter__()
        return block

    try:
        yield await _finish(conn, enter())
    except BaseException as exc:
        if block is not None:
            await _finish(conn, manager.__aexit__(type(exc), exc, exc.__traceback__))
        raise
    await _finish(conn, manager.__aexit__(None, None, None))


async def _finish(
    conn: AsyncConnection[Any], work: Coroutine[Any, Any, T], *, stops: bool = False
) -> T:
    """Return what *work* gives, or raise a cancellation once *work* has ended.

    *stops* says that the server is asked to give the work up. A server that does not
    answer for some seconds loses the connection.
    """
    task = asyncio.ensure_future(work)
    pending: set[asyncio.Future[Any]] = {task}
    cancelled: asyncio.CancelledError | None = None
    until: float | None = None
    # A cancel scope of anyio cancels again at each turn of the loop: what is done by
    # then is not waited for, and no cancellation extends the time.
    while pending := {future for future in pending if not future.done()}:
        left = None if until is None else max(until - time.monotonic(), 0)
        if left == 0:
            task.cancel()
            until = left = None
        try:
            await asyncio.wait(pending, timeout=left)
        except asyncio.CancelledError as exc:
            if cancelled is None:
                until = time.monotonic() + _PATIENCE
                if stops and not task.done():
                    cancel = conn.cancel_safe(timeout=_PATIENCE)
                    pending.add(asyncio.ensure_future(cancel))
            cancelled = exc
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()
    raise cancelled


def _status(conn: Connection[Any] | AsyncConnection[Any]) -> TransactionStatus:
    return TransactionStatus(conn.pgconn.transaction_status)


def _is_open(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    return _status(conn) in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def _needs_no_undo(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Say whether one statement is undone by its error alone, or cannot succeed."""
    status = _status(conn)
    is_alone = status == TransactionStatus.IDLE and conn.autocommit
    return is_alone or status == TransactionStatus.INERROR


def _is_unsettled(block: Transaction | AsyncTransaction, exc: BaseException) -> bool:
    """Say whether the savepoint of *block* was neither released nor rolled back to.

    After an interruption, a release may have been sent: that is to be undone.
    """
    if _status(block.connection) == TransactionStatus.INERROR:
        return True
    is_interruption = not isinstance(exc, Exception)
    return is_interruption and block.status == block.Status.COMMITTED


def _undo(block: Transaction | AsyncTransaction) -> list[bytes]:
    """Return the commands that restore the savepoint, or abort if it is released."""
    name = f'"{block.savepoint_name}"'.encode()
    return [b"ROLLBACK TO " + name, b"RELEASE " + name]


def _check_connection(
    conn: Connection[Any] | AsyncConnection[Any], exc: BaseException
) -> None:
    """Let no refusal hide that the connection was lost with it.

    A caller that handled the refusal and went on would leave a transaction() block
    without an error, because psycopg does not commit a lost connection.
    """
    is_told = isinstance(exc, psycopg.OperationalError)
    if conn.closed and isinstance(exc, Exception) and not is_told:
        raise psycopg.OperationalError("the connection was lost") from exc


@contextmanager
def _translated() -> Iterator[None]:
    """Turn a rule's violation into its domain error, and let all others through."""
    try:
        yield
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc
