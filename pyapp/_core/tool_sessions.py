"""Sessions of the tools: without time limits, and one at a time by advisory locks."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from psycopg import Connection

from pyapp._core.connection import connect
from pyapp._core.pooled_sessions import explain_sharing
from pyapp._core.run import execute, fetch_one
from pyapp.errors import PooledSessionError

# Seconds of a wait that are not reported.
SILENT_WAIT = 1.0


class AdvisoryLock(NamedTuple):
    """Whether this session holds the lock, otherwise the session that does.

    The holder's columns are None if its session has ended, or if this session's role
    may not see them: `holder_since`, when it connected, is shown to the same role and
    to members of pg_read_all_stats.
    """

    is_held: bool
    holder_pid: int | None
    holder_role: str | None
    holder_application: str | None
    holder_since: datetime | None

    def describe_holder(self) -> str:
        """Return the holder and how to end its session, as the end of a sentence."""
        if self.holder_pid is None:
            return "wait for it"
        parts = [f"process {self.holder_pid}"]
        if self.holder_role:
            parts.append(f"role {self.holder_role}")
        if self.holder_application:
            # Clients choose the name.
            application = ascii(self.holder_application)[1:-1]
            parts.append(f"application {application}")
        if self.holder_since is not None:
            since = self.holder_since.astimezone(UTC).isoformat(" ", "seconds")
            parts.append(f"connected since {since}")
        return (
            f"{', '.join(parts)}; wait for it, or end that session:"
            f" SELECT pg_terminate_backend({self.holder_pid})"
        )


def connect_unlimited(url: str) -> Connection[Any]:
    """Return a connection without the time limits of the role and the database.

    A session behind a pooler that refuses options keeps its limits.

    Raises:
        PooledSessionError: a pooler would keep locks and settings for other clients.
    """
    conn = connect(url)
    try:
        require_own_session(conn)
    except BaseException:
        conn.close()
        raise
    if conn.prepare_threshold is not None:
        conn.autocommit = True
        execute(conn, "clear_timeouts")
        conn.autocommit = False
    return conn


def require_own_session(conn: Connection[Any]) -> None:
    """Refuse a connection whose session is shared.

    Raises:
        PooledSessionError: a pooler runs each transaction in another session.
    """
    if reason := explain_sharing(conn):
        raise PooledSessionError(reason)


def take_lock(
    conn: Connection[Any],
    purpose: str,
    timeout_seconds: float,
    on_wait: Callable[[AdvisoryLock], None] | None = None,
) -> AdvisoryLock:
    """Try to take the lock of *purpose* for the session; return whether it is held.

    The lock of a session that has just ended is released a moment later. *on_wait* is
    called once, after a second, with the session that holds the lock.
    """
    began = time.monotonic()
    while True:
        lock = fetch_one(conn, AdvisoryLock, "try_tool_lock", purpose=purpose)
        waited = time.monotonic() - began
        if lock.is_held or waited > timeout_seconds:
            return lock
        if on_wait is not None and waited > SILENT_WAIT:
            on_wait(lock)
            on_wait = None
        time.sleep(0.1)
