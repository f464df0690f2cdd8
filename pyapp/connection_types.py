"""The connections that `pyapp.connect` and the pools of `pyapp.pool` open.

They differ from psycopg's in one point. A transaction that the server has rolled back
never ends as if it were committed: commit(), a `with` block of the connection and a
transaction() block raise an error.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncTransaction, Transaction
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

RV = TypeVar("RV")


class Connection(psycopg.Connection[TupleRow]):
    """A psycopg connection that reports a lost commit."""

    _is_interrupted = False

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Run a generator of psycopg's; every statement goes through here."""
        try:
            return super().wait(gen, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            # psycopg closes a connection whose answer was interrupted.
            self._is_interrupted = self.broken
            raise

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
        """Start a transaction or a savepoint; raise an error if it is not kept."""
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


class AsyncConnection(psycopg.AsyncConnection[TupleRow]):
    """The same for asyncio."""

    _is_interrupted = False

    async def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        """Run a generator of psycopg's; every statement goes through here."""
        try:
            return await super().wait(gen, *args, **kwargs)
        except Exception:
            raise
        except BaseException:
            # psycopg closes a connection whose answer was interrupted.
            self._is_interrupted = self.broken
            raise

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
        """Start a transaction or a savepoint; raise an error if it is not kept."""
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


_LOST = "the connection was lost, and what its transaction did with it"


def _lost_transaction(
    conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> psycopg.Error | None:
    """Return the error for a transaction that can no longer be committed."""
    if conn.broken:
        return psycopg.OperationalError(_LOST)
    if conn.pgconn.transaction_status == TransactionStatus.INERROR:
        return psycopg.errors.InFailedSqlTransaction(
            "the transaction is rolled back: an earlier call in it failed or was"
            " cancelled"
        )
    return None
