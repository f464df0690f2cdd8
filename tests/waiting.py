"""Races and waits for locks, without guessed pauses."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg import sql

from pyapp._core.connection import connect

Pair: TypeAlias = tuple[psycopg.Connection, psycopg.Connection]
T = TypeVar("T")


def race(url: str, attempts: Iterable[Callable[[psycopg.Connection], T]]) -> list[T]:
    """Run all *attempts* at the same moment, each on a connection of its own.

    Each is committed. Return the results in the order of the attempts.
    """
    attempts = list(attempts)
    start = threading.Barrier(len(attempts), timeout=60)

    def run(attempt: Callable[[psycopg.Connection], T]) -> T:
        with connect(url) as conn:
            start.wait()
            return attempt(conn)

    with ThreadPoolExecutor(len(attempts)) as threads:
        return list(threads.map(run, attempts))


def run_blocked(
    holder: psycopg.Connection,
    waiting: psycopg.Connection,
    call: Callable[..., T],
    *,
    release: Callable[[], object] | None = None,
    **arguments: Any,
) -> T:
    """Run *call* on *waiting*, which must wait for the locks of *holder*.

    When it waits, *release* ends the wait (by default `holder.commit`). Commit
    *waiting* and return the result of the call.
    """
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(call, waiting, **arguments)
        try:
            wait_for_lock(holder, waiting)
            (release or holder.commit)()
            result = future.result()
        except BaseException:
            holder.rollback()
            raise
    waiting.commit()
    return result


def wait_for_lock(
    conn: psycopg.Connection, waiting: psycopg.Connection, seconds: float = 10
) -> None:
    """Return as soon as another session blocks *waiting*, seen from *conn*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        blockers = conn.execute(
            "SELECT pg_blocking_pids(%s)", [waiting.info.backend_pid]
        ).fetchone()
        if blockers != ([],):
            return
        time.sleep(0.002)
    raise AssertionError("the other connection never waited")


def wait_for_waiter(conn: psycopg.Connection, seconds: float = 20) -> int:
    """Return the process id of the first session that waits for *conn*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        row = conn.execute(
            "SELECT l.pid FROM pg_locks AS l"
            " WHERE NOT l.granted AND pg_backend_pid() = ANY(pg_blocking_pids(l.pid))"
        ).fetchone()
        if row is not None:
            return int(row[0])
        time.sleep(0.01)
    raise AssertionError("no session ever waited")


@contextmanager
def locked(conn: psycopg.Connection, table: str) -> Iterator[None]:
    """Lock a table of the schema against all other sessions."""
    statement = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
    with conn.transaction():
        conn.execute(statement.format(sql.Identifier("app", table)))
        yield
