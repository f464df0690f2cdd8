"""Transactions with time limits: for a delivery's locks, statements and API requests.

The server enforces the limits: each statement gets the remaining time as its
statement_timeout. So a backend stops waiting even if its client has left, and the limit
works behind a pooler, because the setting ends with the transaction.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import Connection, errors
from psycopg.pq import TransactionStatus

from pyapp._core.caller_connection import require_connection
from pyapp.errors import OpenTransactionError
from pyapp.stripe_sync import events

# Seconds within which a delivery is answered; Stripe gives up after about ten.
DELIVERY_TIMEOUT = 5.0
# Seconds of these that are reserved for recording the event as failed.
FAILURE_RESERVE = 1.0
# The statement waited for a lock or took too long; it may succeed later.
LOCK_ERRORS = (
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.DeadlockDetected,
    errors.SerializationFailure,
)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock."""

    moment: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return the deadline *seconds* from now."""
        return cls(time.monotonic() + seconds)

    def before(self, seconds: float) -> "Deadline":
        """Return the deadline *seconds* earlier."""
        return Deadline(self.moment - seconds)

    def left(self) -> float:
        """Return the seconds that are left: from 0 to DELIVERY_TIMEOUT."""
        return min(max(self.moment - time.monotonic(), 0.0), DELIVERY_TIMEOUT)


# Makes a rolled-back transaction check deferred constraints, as a commit does.
_CHECK_CONSTRAINTS = b"SET CONSTRAINTS ALL IMMEDIATE"
# Limits each statement to DELIVERY_TIMEOUT, and their sum not at all.
NO_DEADLINE = Deadline(math.inf)


@contextmanager
def own_transaction(conn: Connection[Any], *, is_kept: bool = True) -> Iterator[None]:
    """Open a READ COMMITTED transaction, regardless of the connection's default.

    If it is not kept, it is rolled back at its end, after all constraints are checked.

    Raises:
        OpenTransactionError: the connection is in a transaction, which the caller may
            roll back.
    """
    check_idle(conn)
    level = conn.isolation_level
    if level != psycopg.IsolationLevel.READ_COMMITTED:
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    try:
        with conn.transaction(force_rollback=not is_kept):
            yield
            if not is_kept:
                conn.execute(_CHECK_CONSTRAINTS)
    finally:
        if level != psycopg.IsolationLevel.READ_COMMITTED and not conn.closed:
            conn.isolation_level = level


def check_idle(conn: Connection[Any]) -> None:
    """Return if the connection is in no transaction.

    Raises:
        InvalidValueError: it is not a connection of psycopg.
        OpenTransactionError: it is in a transaction.
        psycopg.OperationalError: the connection is lost.
    """
    require_connection(conn)
    if conn.closed:
        raise psycopg.OperationalError("the connection was lost")
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise OpenTransactionError(
            "the connection is in a transaction; commit it, or give another connection"
        )


@contextmanager
def enforce_deadline(
    conn: Connection[Any], deadline: Deadline, lock_wait: float | None = None
) -> Iterator[None]:
    """Limit each statement of the open transaction to what is left of *deadline*.

    With *lock_wait*, a statement also waits at most that many seconds for each lock.
    """
    usual = conn.cursor_factory
    lock_milliseconds = None if lock_wait is None else milliseconds(lock_wait)

    class LimitedCursor(usual):  # type: ignore[misc,valid-type]
        def execute(self, *args: Any, **options: Any) -> Any:
            left = deadline.left()
            if not left:
                raise errors.QueryCanceled("the deadline of this delivery has passed")
            conn.cursor_factory = usual
            events.set_timeouts(
                conn,
                statement_milliseconds=milliseconds(left),
                lock_milliseconds=lock_milliseconds,
            )
            conn.cursor_factory = LimitedCursor
            return super().execute(*args, **options)

    conn.cursor_factory = LimitedCursor
    try:
        yield
    finally:
        conn.cursor_factory = usual


def limit_lock_waits(conn: Connection[Any]) -> None:
    """Wait at most DELIVERY_TIMEOUT for each lock, until the transaction ends."""
    events.set_timeouts(
        conn,
        statement_milliseconds=None,
        lock_milliseconds=milliseconds(DELIVERY_TIMEOUT),
    )


def milliseconds(seconds: float) -> int:
    """Return *seconds* as a server timeout, at least 1, because 0 means no limit."""
    return max(int(seconds * 1000), 1)
