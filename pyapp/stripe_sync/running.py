"""Reconciliation and replay runs: one of each kind at a time, resumed after a kill."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from psycopg import Connection

from pyapp.errors import ReconcileRunningError
from pyapp.stripe_sync import runs
from pyapp.stripe_sync.client import error_summary
from pyapp.stripe_sync.mirror import ObjectType
from pyapp.stripe_sync.runs import Kind
from pyapp.stripe_sync.transactions import limit_lock_waits, own_transaction

log = logging.getLogger("pyapp.stripe")

# The pages of an older run are out of date.
RESUMED_WITHIN = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a run: objects or events seen, and an estimate of their total."""

    object_type: ObjectType | Literal["events"]
    seen: int
    expected: int


@dataclass(slots=True)
class ActiveRun:
    """A run in progress: its cursor and its counts.

    A reconciliation counts seen objects by object type, differences by kind, repaired
    differences by "<kind> repaired", and "failed" objects. A replay counts "seen" and
    "expected" events, and outcomes by result.
    """

    conn: Connection[Any]
    id: int
    cursor: str | None
    counts: Counter[str]
    is_resumed: bool

    def restart(self) -> None:
        """Discard the cursor and the counts."""
        self.cursor, self.is_resumed = None, False
        self.counts.clear()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction; restore cursor and counts if it fails."""
        cursor, counts = self.cursor, self.counts.copy()
        try:
            with own_transaction(self.conn):
                limit_lock_waits(self.conn)
                yield
        except BaseException:
            self.cursor, self.counts = cursor, counts
            raise

    def save(self, cursor: str) -> None:
        """Store cursor and counts in their own transaction."""
        with self.transaction():
            self.write(cursor)

    def write(self, cursor: str) -> None:
        """Store cursor and counts in the open transaction."""
        self.cursor = cursor
        runs.update_run(self.conn, id=self.id, cursor=cursor, counts=self.counts)


@contextmanager
def start_run(
    conn: Connection[Any], kind: Kind, *, is_dry_run: bool = False
) -> Iterator[ActiveRun]:
    """Begin a run, or resume a killed one; a dry run always begins.

    Raises:
        ReconcileRunningError: another run of this kind is in progress.
        OpenTransactionError: the connection is in a transaction.
    """
    with own_transaction(conn):
        lock = runs.try_lock_runs(conn, kind=kind)
    if not lock.is_held:
        raise ReconcileRunningError(
            f"another {kind} is running: {lock.describe_holder()}"
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
                error = error_summary(exc)
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


def _open(conn: Connection[Any], kind: Kind, is_dry_run: bool) -> ActiveRun:
    with own_transaction(conn):
        since = datetime.now(UTC) - RESUMED_WITHIN
        resumable = None
        if not is_dry_run:
            resumable = runs.find_resumable_run(conn, kind=kind, started_after=since)
        run = resumable or runs.insert_run(conn, kind=kind, is_dry_run=is_dry_run)
        runs.mark_abandoned_runs(conn, kind=kind, id=run.id)
        active = ActiveRun(
            conn, run.id, run.cursor, Counter(run.counts), resumable is not None
        )
        runs.update_run(conn, id=run.id, cursor=run.cursor, counts=run.counts)
        return active


def _log_end(kind: Kind, run: ActiveRun, began: float, error: str | None) -> None:
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


def _end(conn: Connection[Any], run: ActiveRun, error: str | None) -> None:
    with own_transaction(conn):
        runs.update_run(
            conn,
            id=run.id,
            cursor=run.cursor,
            counts=run.counts,
            outcome="completed" if error is None else "failed",
            last_error=error,
        )
