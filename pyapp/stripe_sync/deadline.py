"""The time that a delivery has: for its locks, its statements and Stripe's API.

The server keeps it: each statement is given what is left as its statement_timeout. That
ends a wait even where the client has left, and it holds behind a pooler, because the
setting ends with the transaction.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import Connection, errors

from pyapp.stripe_sync import events

# Seconds in which a delivery is answered; Stripe gives up after about ten.
PATIENCE = 5.0
# Of these, what is left for keeping the event as failed.
RESERVE = 1.0
# Another transaction holds what the statement needs, or it took too long: the same
# statement may succeed later.
BUSY = (
    errors.LockNotAvailable,
    errors.QueryCanceled,
    errors.DeadlockDetected,
    errors.SerializationFailure,
)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock, and the time that one statement may take."""

    moment: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return the deadline that passes in *seconds*."""
        return cls(time.monotonic() + seconds)

    def before(self, seconds: float) -> "Deadline":
        """Return the deadline that passes *seconds* earlier."""
        return Deadline(self.moment - seconds)

    def left(self) -> float:
        """Return the seconds that are left: from 0 to PATIENCE."""
        return min(max(self.moment - time.monotonic(), 0.0), PATIENCE)


# Each statement has its time, all of them together have no limit.
NEVER = Deadline(math.inf)


@contextmanager
def limited(
    conn: Connection[Any], deadline: Deadline, lock_wait: float | None = None
) -> Iterator[None]:
    """Give each statement of the transaction that is open what is left of *deadline*.

    With *lock_wait*, it also waits so many seconds at most for each lock.
    """
    usual = conn.cursor_factory
    lock_milliseconds = None if lock_wait is None else milliseconds(lock_wait)

    class Limited(usual):  # type: ignore[misc,valid-type]
        def execute(self, *args: Any, **options: Any) -> Any:
            left = deadline.left()
            if not left:
                raise errors.QueryCanceled("the time for this delivery is over")
            conn.cursor_factory = usual
            events.limit_statements(
                conn,
                statement_milliseconds=milliseconds(left),
                lock_milliseconds=lock_milliseconds,
            )
            conn.cursor_factory = Limited
            return super().execute(*args, **options)

    conn.cursor_factory = Limited
    try:
        yield
    finally:
        conn.cursor_factory = usual


def milliseconds(seconds: float) -> int:
    """Return *seconds* as a timeout of the server's, for which 0 would be no limit."""
    return max(int(seconds * 1000), 1)
