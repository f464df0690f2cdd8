"""Daily upkeep of the sums in usage_slots: spans cut at boundaries, rows folded.

Each day and each span is one statement, which is a transaction by itself: a run that is
killed leaves none of them half done, and the next run continues. Writers go on.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg

from pyapp._core.run import fetch_all, fetch_one
from pyapp._core.tool_sessions import connect_unlimited

log = logging.getLogger("pyapp.maintenance")

# Less than the usual deadlock_timeout: a deadlock ends the cut, not the writer.
LOCK_WAIT_MS = 500
# Attempts to cut a day whose rows are locked, and the seconds between them.
ATTEMPTS = 3
PAUSE = 0.5

_LOCKED = (
    psycopg.errors.LockNotAvailable,
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
)


class UncutDay(NamedTuple):
    """A payer's UTC day with sums across the start or end of the payer's period."""

    subject_id: UUID
    day: date


class UnfoldedSpan(NamedTuple):
    """A past span whose messages are summed in several rows."""

    subject_id: UUID
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What was done, and the number of days or spans that are left to the next run."""

    done: int
    left: int


def cut_usage_days(url: str) -> Upkeep:
    """Cut the sums that lie across boundaries of periods; return the number of days.

    An anchor that moves leaves sums of that day across the new boundary: exact, and
    slower to check. A day is left if other sessions kept its rows locked, or if its
    sums differ from its messages, which `pyapp db check --data` reports.
    """
    cut = 0
    with _connected(url) as conn:
        pending = _list_uncut(conn)
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE)
            left = {day for day in sorted(pending) if not _cut(conn, day)}
            cut += len(pending) - len(left)
            # Another session may have cut some of them.
            pending = left and left & _list_uncut(conn)
            if not pending:
                break
    log.info("usage days cut", extra={"count": cut, "left": len(pending)})
    return Upkeep(cut, len(pending))


def fold_usage_rows(url: str) -> Upkeep:
    """Fold the rows of each past span to one; return the number of rows removed.

    Concurrent writers of one payer use several rows of a span. It waits for no lock:
    rows that another session has locked are left to the next run, with their span.
    """
    folded = 0
    with _connected(url) as conn:
        for span in _list_unfolded(conn):
            folded += _fold(conn, span)
        left = len(_list_unfolded(conn))
    log.info("usage rows folded", extra={"count": folded, "left": left})
    return Upkeep(folded, left)


@contextmanager
def _connected(url: str) -> Iterator[psycopg.Connection[Any]]:
    with connect_unlimited(url) as conn:
        conn.autocommit = True
        yield conn


def _list_uncut(conn: psycopg.Connection[Any]) -> set[UncutDay]:
    return set(fetch_all(conn, UncutDay, "list_uncut_usage"))


def _cut(conn: psycopg.Connection[Any], day: UncutDay) -> bool:
    """Cut a day; return False if that was not necessary or not possible."""
    values = {**day._asdict(), "lock_milliseconds": LOCK_WAIT_MS}
    try:
        return fetch_one(conn, bool, "cut_usage_day", **values)
    except _LOCKED:
        return False


def _list_unfolded(conn: psycopg.Connection[Any]) -> list[UnfoldedSpan]:
    return fetch_all(conn, UnfoldedSpan, "list_unfolded_usage")


def _fold(conn: psycopg.Connection[Any], span: UnfoldedSpan) -> int:
    try:
        return fetch_one(conn, int, "fold_usage", **span._asdict())
    except _LOCKED:
        return 0
