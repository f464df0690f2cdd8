"""What the database needs now and then: partitions ahead, and old payloads retired."""

import time
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeVar

import psycopg

from pyapp.connection import connect
from pyapp.devtools.tool_queries import fetch, fetch_one
from pyapp.errors import MaintenanceError

R = TypeVar("R")
ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class _Created:
    created: int


@dataclass(frozen=True, slots=True)
class _Month:
    ends_on: date


@dataclass(frozen=True, slots=True)
class _Partition:
    name: str


@dataclass(frozen=True, slots=True)
class _Setting:
    setting: str


def create_payload_partitions(url: str, *, months: int = 3) -> int:
    """Make the partitions of this month and those after it; return how many are new.

    Raises:
        MaintenanceError: others kept the table locked; nothing was done.
    """
    with connect(url) as conn:
        rows = _patiently(conn, "create_payload_partitions", _Created, months=months)
    return rows[0].created


def retire_payloads(url: str, *, keep_months: int) -> list[str]:
    """Drop the payloads of months before the last *keep_months*; return what went.

    Each month is a transaction of its own, so that no lock is held for long.

    Raises:
        MaintenanceError: others kept the table locked; earlier months are gone.
    """
    retired: list[_Partition] = []
    with connect(url) as conn:
        conn.autocommit = True
        for month in fetch(conn, "list_retired_months", _Month, months=keep_months):
            retired += _patiently(
                conn, "retire_payload_partitions", _Partition, keep_from=month.ends_on
            )
    return [partition.name for partition in retired]


def _patiently(
    conn: psycopg.Connection[Any], name: str, row: type[R], **parameters: Any
) -> list[R]:
    """Run a query that waits for no lock for long, again until it gets it."""
    for attempt in range(ATTEMPTS):
        try:
            with conn.transaction():
                fetch_one(conn, "limit_lock_wait", _Setting)
                return fetch(conn, name, row, **parameters)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            time.sleep(min(0.05 * 2**attempt, 2))
    raise MaintenanceError(
        "message_payloads stayed locked by others: look for long transactions, and run"
        " it again"
    )
