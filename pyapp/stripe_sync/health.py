"""Whether the database answers, asked on a connection of its own."""

import selectors
import threading
import time
from typing import Any

import psycopg
from psycopg import Connection
from psycopg_pool import ConnectionPool

# Seconds that the database has to answer.
_PATIENCE = 2
# Seconds for which an answer is good, so that asking often opens no more connections.
_GOOD_FOR = 1.0


class Health:
    """Asks the database that *pool* is connected to, without its connections."""

    def __init__(self, pool: ConnectionPool[Connection[Any]]) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._asked_at = -_GOOD_FOR
        self._is_well = False

    @property
    def known(self) -> bool | None:
        """Return what was found within the last second; None if nothing was."""
        is_known = time.monotonic() - self._asked_at < _GOOD_FOR
        return self._is_well if is_known else None

    def ask(self) -> bool:
        """Return whether the database answers; one thread at a time asks it."""
        if not self._lock.acquire(timeout=_PATIENCE):
            return False
        try:
            if (known := self.known) is not None:
                return known
            try:
                self._ask()
            except psycopg.Error:
                self._is_well = False
            else:
                self._is_well = True
            self._asked_at = time.monotonic()
            return self._is_well
        finally:
            self._lock.release()

    def _ask(self) -> None:
        pool = self._pool
        if pool.closed:
            raise psycopg.OperationalError("the pool is closed")
        conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
        options = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
        options = {**(options or {}), "connect_timeout": _PATIENCE}
        with pool.connection_class.connect(conninfo or "", **options) as conn:
            _ping(conn)


def _ping(conn: Connection[Any]) -> None:
    """Send an empty statement; a pooler may have let in without a server behind it."""
    until = time.monotonic() + _PATIENCE
    conn.pgconn.send_query(b"")
    with selectors.DefaultSelector() as selector:
        selector.register(conn.fileno(), selectors.EVENT_READ)
        while conn.pgconn.is_busy():
            if not selector.select(until - time.monotonic()):
                conn.close()
                raise psycopg.OperationalError("the database does not answer")
            conn.pgconn.consume_input()
    while result := conn.pgconn.get_result():
        if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
            raise psycopg.OperationalError(result.get_error_message())
