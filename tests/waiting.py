"""Waiting until one connection waits for another, without guessing how long."""

import time

import psycopg


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
