"""A run from its beginning, or from where a killed one left it, to its end."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

from pyapp.errors import ReconcileRunningError
from pyapp.stripe_sync import runs
from pyapp.stripe_sync.client import describe
from pyapp.stripe_sync.deadline import PATIENCE, milliseconds
from pyapp.stripe_sync.events import limit_statements
from pyapp.stripe_sync.inbox import own_transaction
from pyapp.stripe_sync.runs import Kind

log = logging.getLogger("pyapp.stripe")

# What an older run has seen may have changed since.
RESUMED_WITHIN = timedelta(days=1)


@dataclass(slots=True)
class Started:
    """A run under way: how far it is, and what it has counted."""

    conn: Connection[Any]
    id: int
    cursor: str | None
    counts: Counter[str]
    is_resumed: bool

    def forget(self) -> None:
        """Begin anew, whatever was found before."""
        self.cursor, self.is_resumed = None, False
        self.counts.clear()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open one that takes with it, if it fails, how far the run says it is."""
        cursor, counts = self.cursor, self.counts.copy()
        try:
            with own_transaction(self.conn):
                wait_briefly(self.conn)
                yield
        except BaseException:
            self.cursor, self.counts = cursor, counts
            raise

    def save(self, cursor: str) -> None:
        """Remember how far the run is, in a transaction of its own."""
        with self.transaction():
            self.write(cursor)

    def write(self, cursor: str) -> None:
        """Remember how far the run is, in the transaction that is open."""
        self.cursor = cursor
        runs.update_run(self.conn, id=self.id, cursor=cursor, counts=self.counts)


def wait_briefly(conn: Connection[Any]) -> None:
    """Wait PATIENCE seconds at most for each lock, until the transaction ends."""
    limit_statements(
        conn,
        statement_milliseconds=None,
        lock_milliseconds=milliseconds(PATIENCE),
    )


@contextmanager
def start_run(
    conn: Connection[Any], kind: Kind, *, is_dry_run: bool = False
) -> Iterator[Started]:
    """Begin a run, or go on with the one that broke off; a dry run begins anew.

    Raises:
        ReconcileRunningError: another one is under way.
        OpenTransactionError: the connection is in a transaction.
    """
    with own_transaction(conn):
        lock = runs.try_lock_runs(conn, kind=kind)
    if not lock.is_held:
        raise ReconcileRunningError(
            f"another {kind} is under way: {lock.describe_holder()}"
        )
    try:
        run = _open(conn, kind, is_dry_run)
        log.info("run started", extra={"kind": kind, "run_id": run.id})
        began = time.monotonic()
        try:
            yield run
        except (Exception, KeyboardInterrupt) as exc:
            error = "it was stopped by Ctrl-C"
            if not isinstance(exc, KeyboardInterrupt):
                error = describe(exc)
            if not conn.closed:
                _end(conn, run, error)
            _log_end(kind, run, began, error)
            raise
        _end(conn, run, None)
        _log_end(kind, run, began, None)
    finally:
        if not conn.closed:
            with own_transaction(conn):
                runs.unlock_runs(conn, kind=kind)


def _open(conn: Connection[Any], kind: Kind, is_dry_run: bool) -> Started:
    with own_transaction(conn):
        since = datetime.now(UTC) - RESUMED_WITHIN
        left = None
        if not is_dry_run:
            left = runs.find_resumable_run(conn, kind=kind, started_after=since)
        run = left or runs.insert_run(conn, kind=kind, is_dry_run=is_dry_run)
        runs.mark_abandoned_runs(conn, kind=kind, id=run.id)
        started = Started(
            conn, run.id, run.cursor, Counter(run.counts), left is not None
        )
        runs.update_run(conn, id=run.id, cursor=run.cursor, counts=run.counts)
        return started


def _log_end(kind: Kind, run: Started, began: float, error: str | None) -> None:
    fields = {
        "kind": kind,
        "run_id": run.id,
        "seconds": round(time.monotonic() - began, 3),
        "is_resumed": run.is_resumed,
        "counts": dict(run.counts),
    }
    if error is None:
        log.info("run completed", extra=fields)
    else:
        log.error("run failed", extra={**fields, "error": error})


def _end(conn: Connection[Any], run: Started, error: str | None) -> None:
    with own_transaction(conn):
        runs.update_run(
            conn,
            id=run.id,
            cursor=run.cursor,
            counts=run.counts,
            outcome="completed" if error is None else "failed",
            last_error=error,
        )
