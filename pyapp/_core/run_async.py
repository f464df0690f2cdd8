"""Runs named queries on the caller's AsyncConnection; the functions are those of `run`.

A task may be cancelled at any moment. No effect of a cancelled call can be committed:
where the call cannot be undone alone, the transaction is aborted.
"""

import asyncio
import time
import weakref
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg import (
    AsyncConnection,
    AsyncCursor,
    AsyncServerCursor,
    AsyncTransaction,
)
from psycopg.pq import TransactionStatus

from pyapp._core.caller_connection import require_connection, use_own_loaders
from pyapp._core.run import (
    ABORT,
    BATCH,
    CURSORS,
    DISCARD_PLANS,
    HAS_STALE_PLANS,
    can_repeat,
    check_connection,
    is_failed,
    is_open,
    is_stale_plan,
    is_unsettled,
    only,
    row_maker,
    statement,
    status,
    translated,
    undo,
)
from pyapp.errors import translate

R = TypeVar("R")
T = TypeVar("T")

# Seconds that a cancelled call gives the server to answer.
_CANCEL_TIMEOUT = 5.0
# The connections that are in an atomic block.
_in_block: "weakref.WeakSet[AsyncConnection[Any]]" = weakref.WeakSet()


async def fetch_one(
    conn: AsyncConnection[Any],
    row: Callable[..., R],
    query: str,
    /,
    *,
    missing: Exception | None = None,
    **parameters: Any,
) -> R:
    """Return the only row; raise *missing* if there is none."""
    return only((await _run(conn, row, query, parameters))[0], missing)


async def fetch_optional(
    conn: AsyncConnection[Any], row: Callable[..., R], query: str, /, **parameters: Any
) -> R | None:
    """Return the only row, or None."""
    rows = (await _run(conn, row, query, parameters))[0]
    return rows[0] if rows else None


async def fetch_all(
    conn: AsyncConnection[Any], row: Callable[..., R], query: str, /, **parameters: Any
) -> list[R]:
    """Return all rows in the query's order."""
    return (await _run(conn, row, query, parameters))[0]


async def stream_rows(
    conn: AsyncConnection[Any],
    row: Callable[..., R],
    query: str,
    /,
    *,
    missing: Exception | None = None,
    **parameters: Any,
) -> AsyncIterator[R]:
    """Return an iterator over the rows in the query's order; see `run.stream_rows`."""
    require_connection(conn, is_async=True)
    is_held = conn.autocommit and status(conn) == TransactionStatus.IDLE
    make = row_maker(row)
    cursor = conn.cursor(
        f"pyapp_{query}_{next(CURSORS)}",
        row_factory=lambda _: make,
        withhold=is_held,
    )
    use_own_loaders(cursor)
    try:
        await cursor.execute(statement(query), parameters)
        first = await cursor.fetchmany(BATCH)
        if not first and missing is not None:
            raise missing
    except BaseException:
        await _close(cursor)
        raise
    return _read_batches(cursor, first)


async def execute(conn: AsyncConnection[Any], query: str, /, **parameters: Any) -> int:
    """Run a query whose rows are not needed; return how many rows it affected."""
    return (await _run(conn, None, query, parameters))[1]


async def copy_rows(
    conn: AsyncConnection[Any], query: str, rows: Iterable[Sequence[Any]], /
) -> int:
    """Send *rows* to a COPY ... FROM STDIN; return how many it stored."""
    require_connection(conn, is_async=True)
    caller = asyncio.current_task()
    assert caller is not None
    cancellations = caller.cancelling()

    async def send() -> int:
        cursor = conn.cursor()
        with translated():
            async with cursor.copy(statement(query)) as copy:
                for row in rows:
                    if caller.cancelling() > cancellations:
                        raise asyncio.CancelledError
                    await copy.write_row(row)
            return cursor.rowcount

    # psycopg leaves the COPY open if it is cancelled at its beginning.
    return await _finish(conn, send(), stops=True)


@asynccontextmanager
async def atomic(
    conn: AsyncConnection[Any], *, is_needed: bool = True
) -> AsyncIterator[None]:
    """Keep all changes of the block or, after an error, none; see `run.atomic`."""
    if not is_needed:
        yield
        return
    require_connection(conn, is_async=True)
    await _sync_pipeline(conn)
    is_first = status(conn) == TransactionStatus.IDLE
    is_nested, block = conn in _in_block, None
    _in_block.add(conn)
    try:
        if is_first and not conn.autocommit:
            yield
        else:
            async with _uninterrupted(conn) as block:
                yield
    except BaseException as exc:
        if is_first:
            await _finish(conn, _roll_back(conn))
        elif block and is_unsettled(block, exc):
            await _finish(conn, _try(conn, *undo(block)))
        check_connection(conn, exc)
        raise
    finally:
        if not is_nested:
            _in_block.discard(conn)


async def _run(
    conn: AsyncConnection[Any],
    row: Callable[..., R] | None,
    query: str,
    parameters: Mapping[str, Any],
) -> tuple[list[R], int]:
    """Return the rows and their number; without *row*, only the number.

    In an atomic block, a cancellation waits for the server's answer: psycopg closes the
    connection if the statement fails at the moment at which it is cancelled, and a
    transaction() block ends a closed connection without an error.
    """
    require_connection(conn, is_async=True)
    work = _send_again(conn, row, query, parameters)
    return await (_finish(conn, work, stops=True) if conn in _in_block else work)


async def _send_again(
    conn: AsyncConnection[Any],
    row: Callable[..., R] | None,
    query: str,
    parameters: Mapping[str, Any],
) -> tuple[list[R], int]:
    """Send the statement; see `run._run` for plans from before a migration."""
    if HAS_STALE_PLANS and conn in HAS_STALE_PLANS and not is_failed(conn):
        await conn.execute(DISCARD_PLANS, prepare=False)
        HAS_STALE_PLANS.discard(conn)
    is_first = can_repeat(conn)
    try:
        return await _send(conn, row, query, parameters)
    except psycopg.Error as exc:
        if not is_stale_plan(exc):
            raise
        if not is_first:
            HAS_STALE_PLANS.add(conn)
            raise
    await _roll_back(conn)
    async with conn.transaction(force_rollback=True):
        await conn.execute(DISCARD_PLANS, prepare=False)
    return await _send(conn, row, query, parameters)


async def _send(
    conn: AsyncConnection[Any],
    row: Callable[..., R] | None,
    query: str,
    parameters: Mapping[str, Any],
) -> tuple[list[R], int]:
    make = row_maker(row) if row else None
    cursor: Any = conn.cursor(row_factory=lambda _: make or tuple)
    use_own_loaders(cursor)
    try:
        await cursor.execute(statement(query), parameters)
        await _sync_pipeline(conn)
        return await cursor.fetchall() if make else [], cursor.rowcount
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc
    except Exception:
        raise
    except BaseException:
        # The statement may have completed before the cancellation.
        if status(conn) == TransactionStatus.INTRANS:
            await _finish(conn, _try(conn, ABORT))
        raise


async def _read_batches(
    cursor: AsyncServerCursor[R], rows: list[R]
) -> AsyncIterator[R]:
    try:
        while rows:
            for row in rows:
                yield row
            rows = await cursor.fetchmany(BATCH)
        await cursor.close()
    finally:
        await _close(cursor)


async def _close(cursor: AsyncServerCursor[Any]) -> None:
    """Close the cursor; in a transaction, leave it open on the server."""
    if cursor.withhold:
        await cursor.close()
    else:
        await AsyncCursor.close(cursor)


async def _roll_back(conn: AsyncConnection[Any]) -> None:
    """Roll back, and try a second time if the first was interrupted."""
    for _ in range(2):
        if not is_open(conn):
            return
        with suppress(psycopg.Error):
            await conn.rollback()


async def _try(conn: AsyncConnection[Any], *commands: bytes) -> None:
    with suppress(psycopg.Error):
        for command in commands:
            await conn.execute(command, prepare=False)
            await _sync_pipeline(conn)


async def _sync_pipeline(conn: AsyncConnection[Any]) -> None:
    """Sync the caller's pipeline, so that the connection knows its state."""
    if conn.pgconn.pipeline_status:
        async with conn.pipeline():
            pass


@asynccontextmanager
async def _uninterrupted(
    conn: AsyncConnection[Any],
) -> AsyncIterator[AsyncTransaction]:
    """Do as conn.transaction(), but always complete its beginning and its end."""
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
    """Return the result of *work*, or raise a cancellation once *work* has ended.

    With *stops*, the server is asked to cancel the statement. If it does not answer
    within some seconds, the connection is given up.
    """
    task = asyncio.ensure_future(work)
    pending: set[asyncio.Future[Any]] = {task}
    cancelled: asyncio.CancelledError | None = None
    until: float | None = None
    # A cancel scope of anyio cancels again at each turn of the loop: futures that are
    # done are not waited for, and no cancellation extends the time.
    while pending := {future for future in pending if not future.done()}:
        left = None if until is None else max(until - time.monotonic(), 0)
        if left == 0:
            task.cancel()
            until = left = None
        try:
            await asyncio.wait(pending, timeout=left)
        except asyncio.CancelledError as exc:
            if cancelled is None:
                until = time.monotonic() + _CANCEL_TIMEOUT
                if stops and not task.done():
                    cancel = conn.cancel_safe(timeout=_CANCEL_TIMEOUT)
                    pending.add(asyncio.ensure_future(cancel))
            cancelled = exc
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()
    raise cancelled
