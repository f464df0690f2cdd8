"""Waiting until one connection waits for another, without guessing how long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql


def wait_for_lock(
    conn: psycopg.Connection, waiting: psycopg.Connection, seconds: float = 10
) -> None:
    """Return as soon as *waiting* is blocked by another session, seen from *conn*."""
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
    """Return the process of the first session that waits for *conn*."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        row = conn.execute(
            "SELECT l.pid FROM pg_locks AS l"
            " WHERE NOT l.granted AND pg_backend_pid() = ANY(pg_blocking_pids(l.pid))"
        ).fetchone()
        if row is not None:
            return int(row[0])
        time.sleep(0.01)
    raise AssertionError("nobody ever waited")


@contextmanager
def locked(conn: psycopg.Connection, table: str) -> Iterator[None]:
    """Keep everybody else out of a table of the schema."""
    statement = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE")
    with conn.transaction():
        conn.execute(statement.format(sql.Identifier("app", table)))
        yield
