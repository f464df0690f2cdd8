# Generated from pyapp/_core/connection_types.py by .ci/generate_aio.py; do not edit.
"""The connections and pools that `pyapp.connect` and `pyapp.pool` return.

They differ from psycopg's in two points. If the server has rolled back a transaction,
commit(), a `with` block of the connection and a transaction() block raise an error
instead of ending without one. And a connection or a pool does not work in a process
forked from the one that opened it: both would read each other's rows from one socket.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import psycopg
from psycopg import AsyncTransaction
from psycopg.abc import PQGen
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from pyapp._core.connection_types import (
    _LOST,
    RV,
    _is_forked,
    _lost_transaction,
    _open,
    _refuse_fork,
)


class AsyncConnection(psycopg.AsyncConnection[TupleRow]):
    """A psycopg connection that works in one process and reports a lost commit."""

    _is_interrupted = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._opened_by = os.getpid()
        _open.add(self)

    async def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Run a generator of psycopg; every statement calls this method."""
        _refuse_fork(self._opened_by)
        try:
            return await super().wait(gen, *args, **kwargs)
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

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:
        """Cancel the running statement."""
        _refuse_fork(self._opened_by)
        await super().cancel_safe(timeout=timeout)

    async def commit(self) -> None:
        """Commit the transaction; raise an error if the server has rolled it back."""
        error = _lost_transaction(self)
        if error is not None:
            await self.rollback()
            raise error
        await super().commit()

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[AsyncTransaction]:
        """Start a transaction or a savepoint; raise an error if it is rolled back."""
        async with super().transaction(savepoint_name, force_rollback) as block:
            yield block
            error = _lost_transaction(self)
            if error is not None and not force_rollback:
                self._is_interrupted = False
                raise error

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        """Commit, or roll back after an error, and close."""
        if exc_type is None and self._is_interrupted:
            raise psycopg.OperationalError(_LOST)
        await super().__aexit__(exc_type, exc_val, exc_tb)


class AsyncPool(AsyncConnectionPool[psycopg.AsyncConnection[TupleRow]]):
    """A pool that works only in the process that opened it.

    In a forked process, a request for a connection raises ForkedConnectionError.
    Returning a connection and closing the pool do nothing there, so that a `with` block
    copied by the fork ends without an error.
    """

    _opened_by: int | None = None

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Open the pool for this process."""
        self._opened_by = self._opened_by or os.getpid()
        _refuse_fork(self._opened_by)
        await super().open(wait, timeout)

    async def getconn(
        self, timeout: float | None = None
    ) -> psycopg.AsyncConnection[TupleRow]:
        """Return a connection; return it to the pool by putconn()."""
        _refuse_fork(self._opened_by)
        return await super().getconn(timeout)

    async def putconn(self, conn: psycopg.AsyncConnection[TupleRow]) -> None:
        """Return a connection to the pool."""
        if not _is_forked(self._opened_by):
            await super().putconn(conn)

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until the pool has min_size connections."""
        _refuse_fork(self._opened_by)
        await super().wait(timeout)

    async def check(self) -> None:
        """Replace broken connections."""
        _refuse_fork(self._opened_by)
        await super().check()

    async def drain(self) -> None:
        """Replace all connections."""
        _refuse_fork(self._opened_by)
        await super().drain()

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the size of the pool."""
        _refuse_fork(self._opened_by)
        await super().resize(min_size, max_size)

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool and its connections."""
        if not _is_forked(self._opened_by):
            await super().close(timeout)
