"""Reconciliation and replay runs: one of each kind at a time, resumed after a kill."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple, TypeVar

from psycopg import Connection
from psycopg.types.json import Json

from pyapp._core.run import execute, fetch_one, fetch_optional
from pyapp._core.tool_sessions import AdvisoryLock, require_own_session
from pyapp.errors import ReconcileRunningError
from pyapp.stripe_sync.client import error_summary
from pyapp.stripe_sync.store import ObjectType
from pyapp.stripe_sync.transactions import (
    DELIVERY_TIMEOUT,
    check_idle,
    milliseconds,
    own_transaction,
)

log = logging.getLogger("pyapp.stripe")

C = TypeVar("C")

Kind = Literal["reconcile", "replay"]
# The pages of an older run are out of date.
RESUMED_WITHIN = timedelta(days=1)


class Run(NamedTuple):
    """A stored run; `counts` has the keys that `ActiveRun` names."""

    id: int
    cursor: str | None
    counts: Mapping[str, int]
    started_at: datetime


class RunLock(NamedTuple):
    """Whether this session held the lock."""

    is_held: bool


class RunSettings(NamedTuple):
    """The settings of a run's transaction, in the server's notation."""

    lock_timeout: str
    synchronous_commit: str


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
    differences by "<kind> repaired", "refused" objects, and these by "refused <kind>".
    A replay counts "seen" and "expected" events, and outcomes by result.
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

    def load_cursor(self, load: Callable[[str], C], start: C) -> C:
        """Return the saved cursor, *start* if there is none.

        If *load* cannot read it, as after a change of its format, the run restarts:
        otherwise each attempt to resume the run would fail.
        """
        if self.cursor is None:
            return start
        try:
            return load(self.cursor)
        except (TypeError, ValueError) as exc:
            log.warning(
                "saved cursor is unreadable; the run starts from the beginning",
                extra={"run_id": self.id, "error": error_summary(exc)},
            )
            self.restart()
            return start

    @contextmanager
    def transaction(self, *, is_kept: bool = True) -> Iterator[None]:
        """Open a transaction; restore cursor and counts if it fails.

        If it is not kept, it is rolled back at its end, and the counts stay. A crash of
        the server may lose it with the cursor: its commit does not wait for the disk.
        """
        cursor, counts = self.cursor, self.counts.copy()
        try:
            with own_transaction(self.conn, is_kept=is_kept):
                set_run_settings(
                    self.conn, lock_milliseconds=milliseconds(DELIVERY_TIMEOUT)
                )
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
        update_run(self.conn, id=self.id, cursor=cursor, counts=self.counts)


@contextmanager
def start_run(
    conn: Connection[Any], kind: Kind, *, is_dry_run: bool = False
) -> Iterator[ActiveRun]:
    """Begin a run, or resume a killed one; a dry run always begins.

    Raises:
        ReconcileRunningError: another run of this kind is in progress.
        OpenTransactionError: the connection is in a transaction.
        PooledSessionError: a pooler would keep the lock for other clients.
    """
    check_idle(conn)
    require_own_session(conn)
    with own_transaction(conn):
        lock = try_lock_runs(conn, kind=kind)
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
            error = "it was stopped by a signal"
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
                unlock_runs(conn, kind=kind)


def _open(conn: Connection[Any], kind: Kind, is_dry_run: bool) -> ActiveRun:
    with own_transaction(conn):
        since = datetime.now(UTC) - RESUMED_WITHIN
        resumable = None
        if not is_dry_run:
            resumable = find_resumable_run(conn, kind=kind, started_after=since)
        run = resumable or insert_run(conn, kind=kind, is_dry_run=is_dry_run)
        mark_abandoned_runs(conn, kind=kind, id=run.id)
        active = ActiveRun(
            conn, run.id, run.cursor, Counter(run.counts), resumable is not None
        )
        update_run(conn, id=run.id, cursor=run.cursor, counts=run.counts)
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
        update_run(
            conn,
            id=run.id,
            cursor=run.cursor,
            counts=run.counts,
            outcome="completed" if error is None else "failed",
            last_error=error,
        )


def try_lock_runs(conn: Connection[Any], *, kind: Kind) -> AdvisoryLock:
    """Lock *kind* for this session, or return the session that holds the lock."""
    return fetch_one(conn, AdvisoryLock, "try_lock_runs", kind=kind)


def unlock_runs(conn: Connection[Any], *, kind: Kind) -> RunLock:
    """Release the lock of *kind*."""
    return fetch_one(conn, RunLock, "unlock_runs", kind=kind)


def set_run_settings(conn: Connection[Any], *, lock_milliseconds: int) -> RunSettings:
    """Limit each lock wait, and commit without waiting for the disk; 0 means no limit.

    Both hold for the rest of the transaction, and are returned.
    """
    return fetch_one(
        conn, RunSettings, "set_run_settings", lock_milliseconds=lock_milliseconds
    )


def find_resumable_run(
    conn: Connection[Any], *, kind: Kind, started_after: datetime
) -> Run | None:
    """Return the newest run if it did not end and began after *started_after*."""
    return fetch_optional(
        conn, Run, "find_resumable_run", kind=kind, started_after=started_after
    )


def insert_run(conn: Connection[Any], *, kind: Kind, is_dry_run: bool) -> Run:
    """Insert a run and return it."""
    return fetch_one(conn, Run, "insert_run", kind=kind, is_dry_run=is_dry_run)


def update_run(
    conn: Connection[Any],
    *,
    id: int,
    cursor: str | None,
    counts: Mapping[str, int],
    outcome: Literal["completed", "failed"] | None = None,
    last_error: str | None = None,
) -> int:
    """Store the progress of a run, and its outcome if it ended; return 1."""
    return execute(
        conn,
        "update_run",
        id=id,
        cursor=cursor,
        counts=Json(dict(counts)),
        outcome=outcome,
        last_error=last_error,
    )


def mark_abandoned_runs(conn: Connection[Any], *, kind: Kind, id: int) -> int:
    """Mark all unended runs except *id* as failed; return their number.

    The caller holds the lock of *kind*, so these runs were killed.
    """
    return execute(conn, "mark_abandoned_runs", kind=kind, id=id)
