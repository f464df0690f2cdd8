"""What the database needs now and then: partitions ahead, and old payloads retired."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from pyapp.connection import connect
from pyapp.devtools.archives import archive
from pyapp.devtools.tool_queries import execute, fetch, fetch_one
from pyapp.errors import MaintenanceError

log = logging.getLogger("pyapp.maintenance")

T = TypeVar("T")
ATTEMPTS = 20
# Writers wait behind whoever waits for a lock, so that is kept short. An autovacuum
# gives way only to one who has waited for deadlock_timeout, a second: towards the end.
SHORT_WAIT_MS = 50
LONG_WAIT_MS = 1500
LONG_WAITS = 3
# So many payloads move at once: while writers are locked out, and while they are not.
MOST_UNDER_LOCK = 200
BATCH = 500


@dataclass(frozen=True, slots=True)
class _Month:
    first_day: date


@dataclass(frozen=True, slots=True)
class _Created:
    created: int


@dataclass(frozen=True, slots=True)
class _Partition:
    name: str | None


@dataclass(frozen=True, slots=True)
class _Found:
    is_there: bool


@dataclass(frozen=True, slots=True)
class _Setting:
    setting: str


def create_payload_partitions(url: str, *, months: int = 3) -> int:
    """Make the partitions of this month and those after it; return how many are new.

    Also those of the months that wait in the default partition, which move there. Each
    is a transaction of its own, so that no lock is held for long. Where many wait, the
    default partition is first put aside whole, and they move in batches, during which
    writers go on; until its batch, such a payload is not found. A run that is ended
    meanwhile is finished by the next.

    Raises:
        MaintenanceError: others kept the table locked; earlier months are made.
    """
    created = 0
    with connect(url) as conn:
        conn.autocommit = True
        is_aside = fetch_one(conn, "find_waiting_table", _Found).is_there
        if not is_aside:
            many = fetch_one(conn, "has_many_waiting", _Found, most=MOST_UNDER_LOCK)
            if is_aside := many.is_there:
                created += _patiently(conn, partial(_put_aside, conn))
        missing = fetch(conn, "list_missing_months", _Month, months=months)
        if is_aside:
            missing += fetch(conn, "list_waiting_months", _Month)
        for month in missing:
            created += _patiently(conn, partial(_create, conn, month.first_day))
            log.info("month prepared", extra={"month": f"{month.first_day:%Y-%m}"})
        if is_aside:
            _move_waiting(conn)
    return created


def retire_payloads(
    url: str, *, keep_months: int, archive_folder: Path | None = None
) -> list[str]:
    """Drop the payloads of months before the last *keep_months*; return what went.

    With *archive_folder*, each month is first written there, to a file that is whole
    or absent. What an earlier run had detached and not yet dropped goes first.

    Raises:
        MaintenanceError: others kept the table locked; earlier months are gone.
        ArchiveError: an archive cannot be written; its month is not dropped.
    """
    retired: list[str] = []
    with connect(url) as conn:
        conn.autocommit = True
        if fetch_one(conn, "find_retired_table", _Found).is_there:
            name = fetch_one(conn, "find_retired_month", _Partition).name
            retired.append(name or "retired_payloads")
            _drop(conn, name, archive_folder)
        while name := _patiently(conn, partial(_detach, conn, keep_months)):
            _drop(conn, name, archive_folder)
            retired.append(name)
    return retired


def _create(conn: psycopg.Connection[Any], first_day: date) -> int:
    return fetch_one(
        conn, "create_payload_partition", _Created, first_day=first_day
    ).created


def _put_aside(conn: psycopg.Connection[Any]) -> int:
    """Take the default partition out as waiting_payloads; put an empty one there.

    This month has its partition from the same moment on, lest it fill up again.
    """
    execute(conn, "put_default_aside")
    return _create(conn, datetime.now(UTC).date())


def _move_waiting(conn: psycopg.Connection[Any]) -> None:
    """Move what was put aside to its months, and drop the empty table."""
    while _move_batch(conn):
        pass
    _patiently(conn, partial(execute, conn, "lock_users"))
    execute(conn, "delete_anonymous_payloads")
    _patiently(conn, partial(execute, conn, "drop_waiting_payloads"))


def _move_batch(conn: psycopg.Connection[Any]) -> int:
    return execute(conn, "move_waiting_payloads", rows=BATCH)


def _detach(conn: psycopg.Connection[Any], keep_months: int) -> str | None:
    return fetch_one(
        conn, "retire_payload_partition", _Partition, months=keep_months
    ).name


def _drop(
    conn: psycopg.Connection[Any], name: str | None, archive_folder: Path | None
) -> None:
    """Drop what was detached, which held the month *name*, archived if so wished."""
    if archive_folder is not None and name is not None:
        archive(conn, archive_folder, name)
    _patiently(conn, partial(execute, conn, "drop_retired_payloads"))
    fields = {"partition": name, "is_archived": archive_folder is not None}
    log.info("month retired", extra=fields)


def _patiently(conn: psycopg.Connection[Any], work: Callable[[], T]) -> T:
    """Run *work* in a transaction that waits for no lock for long, until it gets it."""
    for attempt in range(1, ATTEMPTS + 1):
        wait = LONG_WAIT_MS if attempt > ATTEMPTS - LONG_WAITS else SHORT_WAIT_MS
        try:
            with conn.transaction():
                fetch_one(conn, "limit_lock_wait", _Setting, milliseconds=wait)
                return work()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            time.sleep(min(0.05 * 2**attempt, 2))
    raise MaintenanceError(
        "message_payloads stayed locked by others: look for long transactions, and run"
        " it again"
    )
