"""Runs named queries on the caller's connection, and never commits.

    with atomic(conn):
        user = fetch_one(conn, User, "set_user_email", user_id=id, email=email)

The name is that of a statement in `sql/queries` or `sql/devtools`, and the keyword
arguments are its parameters. A row is made of the columns in their order: by `_make` of
a NamedTuple, otherwise by a call. `run_async` has the same functions for asyncio.

Ctrl-C may interrupt a call at any moment, also while a savepoint is being released or
rolled back to. No effect of an interrupted call can be committed: where the call cannot
be undone alone, the transaction is aborted.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, TypeVar

import psycopg
from psycopg import (
    AsyncConnection,
    AsyncTransaction,
    Connection,
    Cursor,
    ServerCursor,
    Transaction,
)
from psycopg.pq import TransactionStatus
from psycopg.rows import RowMaker

from pyapp._core.caller_connection import require_connection, use_own_loaders
from pyapp._core.queries import QUERIES, TOOL_QUERIES
from pyapp.errors import translate

R = TypeVar("R")

# No such savepoint exists: the error that this causes aborts the transaction.
ABORT = b"ROLLBACK TO pyapp_aborts_an_interrupted_transaction"
# Ends the plans of PL/pgSQL functions, also if its transaction is rolled back.
DISCARD_PLANS = b"DISCARD PLANS"
HAS_STALE_PLANS: "weakref.WeakSet[Connection[Any] | AsyncConnection[Any]]" = (
    weakref.WeakSet()
)
# The functions of the server that raise an error for a plan made before a migration
# changed a type. The text of the error depends on the server's language.
_STALE_PLAN = {
    "RevalidateCachedQuery": psycopg.errors.FeatureNotSupported,
    "CheckVarSlotCompatibility": psycopg.errors.DatatypeMismatch,
    "plpgsql_param_eval_recfield": psycopg.errors.DatatypeMismatch,
    "plpgsql_param_eval_generic": psycopg.errors.DatatypeMismatch,
    "plpgsql_param_eval_generic_ro": psycopg.errors.DatatypeMismatch,
}

# Rows that stream_rows reads at once; a row may hold a large payload.
BATCH = 100
# Several cursors can be open on one connection.
CURSORS = count(1)


def fetch_one(
    conn: Connection[Any],
    row: Callable[..., R],
    query: str,
    /,
    *,
    missing: Exception | None = None,
    **parameters: Any,
) -> R:
    """Return the only row; raise *missing* if there is none."""
    return only(_run(conn, row, query, parameters)[0], missing)


def fetch_optional(
    conn: Connection[Any], row: Callable[..., R], query: str, /, **parameters: Any
) -> R | None:
    """Return the only row, or None."""
    rows = _run(conn, row, query, parameters)[0]
    return rows[0] if rows else None


def fetch_all(
    conn: Connection[Any], row: Callable[..., R], query: str, /, **parameters: Any
) -> list[R]:
    """Return all rows in the query's order."""
    return _run(conn, row, query, parameters)[0]


def stream_rows(
    conn: Connection[Any],
    row: Callable[..., R],
    query: str,
    /,
    *,
    missing: Exception | None = None,
    **parameters: Any,
) -> Iterator[R]:
    """Return an iterator over the rows in the query's order; raise *missing* if none.

    The server keeps the rows, which are of one snapshot, and the iterator reads a batch
    at a time. It ends with the transaction. Under autocommit, the server stores all
    rows at once, and the iterator ends with the session.
    """
    require_connection(conn)
    is_held = conn.autocommit and status(conn) == TransactionStatus.IDLE
    make = row_maker(row)
    cursor = conn.cursor(
        f"pyapp_{query}_{next(CURSORS)}",
        row_factory=lambda _: make,
        withhold=is_held,
    )
    use_own_loaders(cursor)
    try:
        cursor.execute(statement(query), parameters)
        first = cursor.fetchmany(BATCH)
        if not first and missing is not None:
            raise missing
    except BaseException:
        _close(cursor)
        raise
    return _read_batches(cursor, first)


def execute(conn: Connection[Any], query: str, /, **parameters: Any) -> int:
    """Run a query whose rows are not needed; return how many rows it affected."""
    return _run(conn, None, query, parameters)[1]


def copy_rows(
    conn: Connection[Any], query: str, rows: Iterable[Sequence[Any]], /
) -> int:
    """Send *rows* to a COPY ... FROM STDIN; return how many it stored."""
    require_connection(conn)
    cursor = conn.cursor()
    try:
        with translated(), cursor.copy(statement(query)) as copy:
            for row in rows:
                copy.write_row(row)
        return cursor.rowcount
    finally:
        # psycopg leaves the COPY open if it is interrupted at its beginning.
        if status(conn) == TransactionStatus.ACTIVE:
            conn.pgconn.finish()


@contextmanager
def atomic(conn: Connection[Any], *, is_needed: bool = True) -> Iterator[None]:
    """Keep all changes of the block or, after an error, none.

    After an error the caller's transaction can go on: the block is a savepoint of it,
    and a block that begins the transaction rolls it back. Under autocommit, the block
    is a transaction. *is_needed* is False where one statement cannot be refused.
    """
    if not is_needed:
        yield
        return
    require_connection(conn)
    _sync_pipeline(conn)
    is_first = status(conn) == TransactionStatus.IDLE
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
        elif block and is_unsettled(block, exc):
            _try(conn, *undo(block))
        check_connection(conn, exc)
        raise


def _run(
    conn: Connection[Any],
    row: Callable[..., R] | None,
    query: str,
    parameters: Mapping[str, Any],
) -> tuple[list[R], int]:
    """Return the rows and their number; without *row*, only the number.

    A statement that begins a transaction, and fails because of a plan from before a
    migration, is sent again without the old plans. In a transaction it fails, and the
    next call ends the plans.
    """
    require_connection(conn)
    if HAS_STALE_PLANS and conn in HAS_STALE_PLANS and not is_failed(conn):
        conn.execute(DISCARD_PLANS, prepare=False)
        HAS_STALE_PLANS.discard(conn)
    is_first = can_repeat(conn)
    try:
        return _send(conn, row, query, parameters)
    except psycopg.Error as exc:
        if not is_stale_plan(exc):
            raise
        if not is_first:
            HAS_STALE_PLANS.add(conn)
            raise
    _roll_back(conn)
    # psycopg ends its prepared statements when a transaction is rolled back.
    with conn.transaction(force_rollback=True):
        conn.execute(DISCARD_PLANS, prepare=False)
    return _send(conn, row, query, parameters)


def _send(
    conn: Connection[Any],
    row: Callable[..., R] | None,
    query: str,
    parameters: Mapping[str, Any],
) -> tuple[list[R], int]:
    make = row_maker(row) if row else None
    cursor: Any = conn.cursor(row_factory=lambda _: make or tuple)
    use_own_loaders(cursor)
    try:
        cursor.execute(statement(query), parameters)
        _sync_pipeline(conn)
        return cursor.fetchall() if make else [], cursor.rowcount
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc
    except Exception:
        raise
    except BaseException:
        # The statement may have completed before the interruption.
        if status(conn) == TransactionStatus.INTRANS:
            _try(conn, ABORT)
        raise


def _read_batches(cursor: ServerCursor[R], rows: list[R]) -> Iterator[R]:
    try:
        while rows:
            yield from rows
            rows = cursor.fetchmany(BATCH)
        cursor.close()
    finally:
        _close(cursor)


def _close(cursor: ServerCursor[Any]) -> None:
    """Close the cursor; in a transaction, leave it open on the server.

    It ends with the transaction. It may have ended with a savepoint, so that closing it
    would abort the transaction.
    """
    if cursor.withhold:
        cursor.close()
    else:
        Cursor.close(cursor)


def _roll_back(conn: Connection[Any]) -> None:
    """Roll back, and try a second time if the first was interrupted."""
    for _ in range(2):
        if not is_open(conn):
            return
        with suppress(psycopg.Error):
            conn.rollback()


def _try(conn: Connection[Any], *commands: bytes) -> None:
    with suppress(psycopg.Error):
        for command in commands:
            conn.execute(command, prepare=False)
            _sync_pipeline(conn)


def _sync_pipeline(conn: Connection[Any]) -> None:
    """Sync the caller's pipeline, so that the connection knows its state."""
    if conn.pgconn.pipeline_status:
        with conn.pipeline():
            pass


# Shared with run_async.


def statement(query: str) -> str:
    """Return the SQL of the query of this name."""
    return (QUERIES.get(query) or TOOL_QUERIES[query]).sql


def row_maker(row: Callable[..., R]) -> RowMaker[R]:
    """Return the function that makes a row of a sequence of values."""
    make: RowMaker[R] | None = getattr(row, "_make", None)
    return make or (lambda values: row(*values))


def only(rows: Sequence[R], missing: Exception | None) -> R:
    """Return the only one of *rows*; raise *missing* if there is none."""
    if not rows and missing is not None:
        raise missing
    (row,) = rows
    return row


def status(conn: Connection[Any] | AsyncConnection[Any]) -> TransactionStatus:
    """Return the state of the transaction."""
    return TransactionStatus(conn.pgconn.transaction_status)


def is_open(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Return whether the connection is in a transaction, aborted or not."""
    return status(conn) in (TransactionStatus.INTRANS, TransactionStatus.INERROR)


def is_unsettled(block: Transaction | AsyncTransaction, exc: BaseException) -> bool:
    """Return whether the savepoint of *block* was neither released nor rolled back to.

    An interrupted RELEASE may have been sent: it has to be undone.
    """
    if status(block.connection) == TransactionStatus.INERROR:
        return True
    is_interruption = not isinstance(exc, Exception)
    return is_interruption and block.status == block.Status.COMMITTED


def undo(block: Transaction | AsyncTransaction) -> list[bytes]:
    """Return commands that restore the savepoint, or abort if it is released."""
    name = f'"{block.savepoint_name}"'.encode()
    return [b"ROLLBACK TO " + name, b"RELEASE " + name]


def is_failed(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Return whether the transaction is aborted."""
    return status(conn) == TransactionStatus.INERROR


def can_repeat(conn: Connection[Any] | AsyncConnection[Any]) -> bool:
    """Return whether a failed statement can be repeated: nothing is before it."""
    pipeline = conn.pgconn.pipeline_status
    return status(conn) == TransactionStatus.IDLE and not pipeline


def is_stale_plan(exc: psycopg.Error) -> bool:
    """Return whether a plan from before a migration is the reason of the error."""
    expected = _STALE_PLAN.get(exc.diag.source_function or "")
    return expected is not None and isinstance(exc, expected)


def check_connection(
    conn: Connection[Any] | AsyncConnection[Any], exc: BaseException
) -> None:
    """Raise OperationalError if the connection was lost during a refused call.

    A caller that handles the refusal would leave a transaction() block without an
    error, because psycopg does not commit a lost connection.
    """
    is_reported = isinstance(exc, psycopg.OperationalError)
    if conn.closed and isinstance(exc, Exception) and not is_reported:
        raise psycopg.OperationalError("the connection was lost") from exc


@contextmanager
def translated() -> Iterator[None]:
    """Raise the domain error for a violated rule; all other errors propagate."""
    try:
        yield
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc
