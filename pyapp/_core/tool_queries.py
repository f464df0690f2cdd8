"""The SQL of the tools: `sql/devtools/*.sql`, named like the product's own queries."""

import time
from typing import Any, TypeVar

import psycopg
from psycopg.rows import class_row

from pyapp._core.advisory_locks import AdvisoryLock
from pyapp._core.paths import sql_dir
from pyapp._core.queries import load_queries

R = TypeVar("R")
TOOL_QUERIES = load_queries(sql_dir() / "devtools")


def fetch(
    conn: psycopg.Connection[Any], name: str, row: type[R], /, **parameters: Any
) -> list[R]:
    """Return the rows of the query *name*."""
    with conn.cursor(row_factory=class_row(row)) as cursor:
        return cursor.execute(TOOL_QUERIES[name].sql, parameters).fetchall()


def fetch_one(
    conn: psycopg.Connection[Any], name: str, row: type[R], /, **parameters: Any
) -> R:
    """Return the one row of the query *name*."""
    (result,) = fetch(conn, name, row, **parameters)
    return result


def execute(conn: psycopg.Connection[Any], name: str, /, **parameters: Any) -> int:
    """Run the query *name*; return how many rows it changed."""
    return conn.execute(TOOL_QUERIES[name].sql, parameters or None).rowcount


def take_lock(
    conn: psycopg.Connection[Any], purpose: str, patience: float
) -> AdvisoryLock:
    """Try for *patience* seconds to take the lock of *purpose* for the session.

    The lock of a session that has just ended is released a moment later.
    """
    deadline = time.monotonic() + patience
    while True:
        lock = fetch_one(conn, "try_tool_lock", AdvisoryLock, purpose=purpose)
        if lock.is_held or time.monotonic() > deadline:
            return lock
        time.sleep(0.1)
