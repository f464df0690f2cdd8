"""Maintenance of message payloads: partitions ahead of time, retiring old months."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import psycopg

from pyapp._core.retry import retry
from pyapp._core.run import execute, fetch_all, fetch_one
from pyapp._core.tool_sessions import connect_unlimited, take_lock
from pyapp.errors import ArchiveError, MaintenanceError
from pyapp.payload_archives import Archive, draft_archive

log = logging.getLogger("pyapp.maintenance")

P = ParamSpec("P")
T = TypeVar("T")
ATTEMPTS = 20
# Seconds to wait for another run of maintenance to end.
LOCK_WAIT = 5.0
# A pending lock request blocks writers, so most waits are short. An autovacuum only
# cancels itself for a session that has waited for deadlock_timeout, one second, so the
# last waits are longer.
SHORT_WAIT_MS = 50
LONG_WAIT_MS = 1500
LONG_WAITS = 3
# The number of payloads that move at once while writers are blocked, and otherwise.
MOST_UNDER_LOCK = 200
BATCH = 500
# Past months whose payloads lack a partition get one: this number of months back, or as
# many as are kept, but no more than the SQL function allows.
MONTHS_BACK = 24
MOST_MONTHS_BACK = 120
# Maximum number of payloads of the default partition that go to one archive.
RETIRED_AT_ONCE = 100_000
# An archive is copied again if a user was erased while it was copied.
COPIES_WITHOUT_LOCK = 2

_LOCKED = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)


@dataclass(frozen=True, slots=True)
class _Month:
    first_day: date


@dataclass(frozen=True, slots=True)
class _Partition:
    name: str | None


@dataclass(frozen=True, slots=True)
class _Counts:
    payloads: int
    erased: int


def create_payload_partitions(
    url: str, *, months: int = 3, keep_months: int | None = None
) -> int:
    """Create partitions for this and the following *months*; return how many are new.

    Past months whose payloads are in the default partition get one too: the last
    *keep_months*, by default two years. Their payloads move to it; older ones stay.
    Each partition is one transaction, so that no lock is held for long. If the default
    partition has many payloads, it is first detached as a whole, and they move in
    batches while writers continue; until its batch, such a payload is not found. The
    next run completes an interrupted one.

    Raises:
        MaintenanceError: another maintenance runs, or other sessions kept the table
            locked; the partitions created so far stay.
    """
    months_back = MONTHS_BACK if keep_months is None else keep_months
    window = {"months": months, "months_back": min(months_back, MOST_MONTHS_BACK)}
    created = 0
    with _maintaining(url) as conn:
        missing = fetch_all(conn, _Month, "list_missing_months", **window)
        has_waiting = fetch_one(conn, bool, "find_waiting_table")
        if missing and not has_waiting:
            has_waiting = fetch_one(
                conn, bool, "has_many_waiting", most=MOST_UNDER_LOCK
            )
            if has_waiting:
                created += _retry_locked(conn, _detach_default)
                missing = fetch_all(conn, _Month, "list_missing_months", **window)
        if has_waiting:
            missing += fetch_all(conn, _Month, "list_waiting_months", **window)
        for month in missing:
            created += _retry_locked(conn, _create, month.first_day)
            log.info("month prepared", extra={"month": f"{month.first_day:%Y-%m}"})
        if has_waiting:
            _move_waiting(conn)
    return created


def retire_payloads(
    url: str, *, keep_months: int, archive_folder: Path | None = None
) -> list[str]:
    """Drop the payloads of months before the last *keep_months*; return their names.

    With *archive_folder*, each month is first written there, to a file that is complete
    or absent, and that has no payload of a user anonymized before the file appeared. A
    month that an earlier run detached and did not drop is first. Payloads of the
    default partition are last, several months to a file.

    Raises:
        MaintenanceError: another maintenance runs, or other sessions kept a table
            locked; the months before are dropped.
        ArchiveError: an archive cannot be written; its month is not dropped.
    """
    retired: list[str] = []
    with _maintaining(url) as conn:
        if fetch_one(conn, bool, "find_retired_table"):
            retired.append(_drop(conn, archive_folder))
        while name := _retry_locked(conn, _detach_expired, keep_months):
            _drop(conn, archive_folder, name)
            retired.append(name)
        has_more = _has_expired(conn, keep_months)
        # Expired payloads that writers add during this run are left to the next.
        while has_more:
            _retry_locked(conn, execute, "create_retired_table")
            with _reporting_what_is_left("a part of the default partition"):
                has_more = _move_expired(conn, keep_months)
            retired.append(_drop(conn, archive_folder))
    return retired


@contextmanager
def _maintaining(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Yield an autocommit connection that holds the lock of maintenance."""
    with connect_unlimited(url) as conn:
        conn.autocommit = True
        lock = take_lock(conn, "pyapp maintenance", LOCK_WAIT)
        if not lock.is_held:
            raise MaintenanceError(
                f"another maintenance runs: {lock.describe_holder()}"
            )
        yield conn


def _create(conn: psycopg.Connection[Any], first_day: date) -> int:
    return fetch_one(conn, int, "create_payload_partition", first_day=first_day)


def _detach_default(conn: psycopg.Connection[Any]) -> int:
    """Detach the default partition as waiting_payloads and attach an empty one.

    The same transaction creates this month's partition, so that the new default
    partition does not fill up.
    """
    execute(conn, "put_default_aside")
    return _create(conn, datetime.now(UTC).date())


def _move_waiting(conn: psycopg.Connection[Any]) -> None:
    """Move the detached payloads to their months, and drop the empty table."""
    while _retry_locked(conn, _move_batch):
        pass
    _retry_locked(conn, execute, "drop_waiting_payloads")


def _move_batch(conn: psycopg.Connection[Any]) -> int:
    return execute(conn, "move_waiting_payloads", rows=BATCH)


def _detach_expired(conn: psycopg.Connection[Any], keep_months: int) -> str | None:
    return fetch_one(
        conn, _Partition, "retire_payload_partition", months=keep_months
    ).name


def _has_expired(conn: psycopg.Connection[Any], keep_months: int) -> bool:
    return fetch_one(conn, bool, "has_expired_payloads", months=keep_months)


def _move_expired(conn: psycopg.Connection[Any], keep_months: int) -> bool:
    """Move expired payloads to retired_payloads; return whether more are left."""
    limits = {"months": keep_months, "rows": BATCH}
    return all(
        _retry_locked(conn, execute, "move_expired_payloads", **limits) == BATCH
        for _ in range(0, RETIRED_AT_ONCE, BATCH)
    )


def _drop(
    conn: psycopg.Connection[Any], archive_folder: Path | None, name: str | None = None
) -> str:
    """Drop retired_payloads, archived first if *archive_folder* is given.

    Returns *name*, else a name with its months.
    """
    with _reporting_what_is_left(name or "the detached month"):
        _retry_locked(conn, execute, "delete_erased_payloads")
        months = fetch_one(conn, _Partition, "find_retired_months").name
        name = name or months or "retired_payloads"
        # An empty table makes no file.
        if archive_folder is None or months is None:
            _retry_locked(conn, execute, "drop_retired_payloads")
        else:
            _archive(conn, archive_folder, name)
    fields = {"partition": name, "is_archived": archive_folder is not None}
    log.info("month retired", extra=fields)
    return name


@contextmanager
def _reporting_what_is_left(what: str) -> Iterator[None]:
    try:
        yield
    except (ArchiveError, MaintenanceError) as exc:
        raise type(exc)(
            f"{exc}; {what} is left in app.retired_payloads; the next run of"
            " pyapp db maintain --keep-months begins with it"
        ) from exc


def _archive(conn: psycopg.Connection[Any], folder: Path, name: str) -> None:
    """Write the archive and drop the table.

    The file gets its name under a lock that blocks erasures, and only if none was
    committed since the copy began. So no file with a user's payloads appears after the
    user's erasure is committed. If erasures invalidate each copy, the last copy is made
    under the lock.
    """
    for _ in range(COPIES_WITHOUT_LOCK):
        with draft_archive(conn, folder, name) as archive:
            if _retry_locked(conn, _publish, archive):
                return
        log.info("archive copied again after an erasure", extra={"partition": name})
    _retry_locked(conn, _archive_under_lock, folder, name)


def _publish(conn: psycopg.Connection[Any], archive: Archive) -> bool:
    """Name the file and drop the table, unless a user was erased since the copy."""
    execute(conn, "lock_retired_payloads")
    counts = fetch_one(conn, _Counts, "count_retired_payloads")
    if counts.erased or counts.payloads != archive.payloads:
        return False
    with archive.published():
        execute(conn, "drop_retired_payloads")
    return True


def _archive_under_lock(conn: psycopg.Connection[Any], folder: Path, name: str) -> None:
    execute(conn, "lock_retired_payloads")
    execute(conn, "delete_erased_payloads")
    with draft_archive(conn, folder, name) as archive, archive.published():
        execute(conn, "drop_retired_payloads")


def _retry_locked(
    conn: psycopg.Connection[Any],
    work: Callable[Concatenate[psycopg.Connection[Any], P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Run *work* in a transaction of short waits for locks; retry if they time out."""

    def run(attempt: int) -> T:
        is_late = attempt >= ATTEMPTS - LONG_WAITS
        with conn.transaction():
            wait = LONG_WAIT_MS if is_late else SHORT_WAIT_MS
            execute(conn, "set_lock_timeout", milliseconds=wait)
            return work(conn, *args, **kwargs)

    try:
        return retry(
            run,
            attempts=ATTEMPTS,
            pause=lambda _, attempt: min(0.1 * 2**attempt, 2),
            on=_LOCKED,
        )
    except _LOCKED as exc:
        raise MaintenanceError(
            "other sessions kept message_payloads locked: look for long transactions,"
            " then run it again"
        ) from exc
