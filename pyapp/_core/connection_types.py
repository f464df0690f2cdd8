"""The connections and pools that `pyapp.connect` and `pyapp.pool` return.

They differ from psycopg's in two points. If the server has rolled back a transaction,
commit(), a `with` block of the connection and a transaction() block raise an error
instead of ending without one. And a connection or a pool does not work in a process
forked from the one that opened it: both would read each other's rows from one socket.
"""

import contextlib
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import Transaction
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool

from pyapp.errors import ForkedConnectionError

RV = TypeVar("RV")

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

# The open connections of this process, sync and asyncio.
_open: "weakref.WeakSet[AnyConnection]" = weakref.WeakSet()


class Connection(psycopg.Connection[TupleRow]):
    """A psycopg connection that works in one process and reports a lost commit."""

    _is_interrupted = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opened_by = os.getpid()
        _open.add(self)

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Run a generator of psycopg; every statement calls this method."""
        _refuse_fork(self._opened_by)
        try:
            return super().wait(gen, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            # psycopg closes a connection if its wait for the result is interrupted.
            self._is_interrupted = self.broken
            raise

    def cancel(self) -> None:
        """Cancel the running statement."""
        _refuse_fork(self._opened_by)
        super().cancel()

    def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the running statement."""
        _refuse_fork(self._opened_by)
        super().cancel_safe(timeout=timeout)

    def commit(self) -> None:
        """Commit the transaction; raise an error if the server has rolled it back."""
        error = _lost_transaction(self)
        if error is not None:
            self.rollback()
            raise error
        super().commit()

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[Transaction]:
        """Start a transaction or a savepoint; raise an error if it is rolled back."""
        with super().transaction(savepoint_name, force_rollback) as block:
            yield block
            error = _lost_transaction(self)
            if error is not None and not force_rollback:
                self._is_interrupted = False
                raise error

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Commit, or roll back after an error, and close."""
        if exc_type is None and self._is_interrupted:
            raise psycopg.OperationalError(_LOST)
        super().__exit__(exc_type, exc_val, exc_tb)


class Pool(ConnectionPool[psycopg.Connection[TupleRow]]):
    """A pool that works only in the process that opened it.

    In a forked process, a request for a connection raises ForkedConnectionError.
    Returning a connection and closing the pool do nothing there, so that a `with` block
    copied by the fork ends without an error.
    """

    _opened_by: int | None = None

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool for this process."""
        self._opened_by = self._opened_by or os.getpid()
        _refuse_fork(self._opened_by)
        super().open(wait, timeout)

    def getconn(self, timeout: float | None = None) -> psycopg.Connection[TupleRow]:
        """Return a connection; return it to the pool by putconn()."""
        _refuse_fork(self._opened_by)
        return super().getconn(timeout)

    def putconn(self, conn: psycopg.Connection[TupleRow]) -> None:
        """Return a connection to the pool."""
        if not _is_forked(self._opened_by):
            super().putconn(conn)

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until the pool has min_size connections."""
        _refuse_fork(self._opened_by)
        super().wait(timeout)

    def check(self) -> None:
        """Replace broken connections."""
        _refuse_fork(self._opened_by)
        super().check()

    def drain(self) -> None:
        """Replace all connections."""
        _refuse_fork(self._opened_by)
        super().drain()

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the size of the pool."""
        _refuse_fork(self._opened_by)
        super().resize(min_size, max_size)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool and its connections."""
        if not _is_forked(self._opened_by):
            super().close(timeout)

    def __del__(self) -> None:
        """Stop the pool's threads; a forked process does not have them."""
        if not _is_forked(self._opened_by):
            super().__del__()


_LOST = "the connection was lost; its transaction is not committed"


def _lost_transaction(connection: AnyConnection) -> psycopg.Error | None:
    """Return the error if the transaction can no longer be committed."""
    if connection.broken:
        return psycopg.OperationalError(_LOST)
    if connection.pgconn.transaction_status == TransactionStatus.INERROR:
        return psycopg.errors.InFailedSqlTransaction(
            "the transaction is rolled back: an earlier call in it failed or was"
            " cancelled"
        )
    return None


def _is_forked(opened_by: int | None) -> bool:
    return opened_by is not None and opened_by != os.getpid()


def _refuse_fork(opened_by: int | None) -> None:
    if _is_forked(opened_by):
        raise ForkedConnectionError(
            f"process {opened_by} opened this connection or pool, and this process was"
            " forked from it: call pyapp.connect or pyapp.pool after the fork"
        )


def _replace_sockets() -> None:
    """Replace the sockets of the parent process by /dev/null.

    So no use of the copied connections, not even close(), reaches the server.
    """
    inherited = list(_open)
    if not inherited:
        return
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for conn in inherited:
        with contextlib.suppress(psycopg.Error, OSError):
            os.dup2(null, conn.pgconn.socket, inheritable=False)
    os.close(null)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_sockets)
