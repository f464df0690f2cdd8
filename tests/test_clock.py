"""A message finishes at most 24 hours after the database's clock."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.pq import TransactionStatus

from pyapp.errors import InvalidValueError, UserNotFoundError
from pyapp.messages import list_messages, record_message, record_messages
from tests.metering import (
    MICROSECOND,
    add_user,
    insert_messages,
    new_message,
    usage_differences,
)
from tests.support import run_cli
from tests.usage_import import ADA, write_log
from tests.usage_lines import CHAT, SESSION, changed

DAY = timedelta(hours=24)
AHEAD = "more than 24 hours ahead of the database's clock"
MISSING = UUID(int=404)


def read_clock(conn: Connection) -> datetime:
    """Return the start of the transaction, which is the default of recorded_at."""
    row = conn.execute("SELECT now()").fetchone()
    assert row is not None
    moment: datetime = row[0].astimezone(UTC)
    return moment


def record(conn: Connection, user_id: UUID, finished_at: datetime) -> UUID:
    return record_message(
        conn, user_id=user_id, model="m", cost=Decimal(1), finished_at=finished_at
    ).id


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_message_is_refused_after_24_hours_ahead(
    conn: Connection, user_id: UUID, zone: str
):
    conn.execute(f"SET LOCAL TimeZone = '{zone}'".encode())
    latest = read_clock(conn) + DAY

    with pytest.raises(InvalidValueError, match=AHEAD):
        record(conn, user_id, latest + MICROSECOND)
    assert conn.info.transaction_status == TransactionStatus.INTRANS
    recorded = record(conn, user_id, latest)

    assert [m.id for m in list_messages(conn, subject_id=user_id)] == [recorded]
    assert usage_differences(conn) == []


def test_invalid_time_is_reported_before_an_unknown_payer(conn: Connection):
    latest = read_clock(conn) + DAY
    with pytest.raises(InvalidValueError, match=AHEAD):
        record(conn, MISSING, latest + MICROSECOND)
    with pytest.raises(UserNotFoundError):
        record(conn, MISSING, latest)


def test_bulk_names_its_first_invalid_time_and_records_none(
    conn: Connection, user_id: UUID
):
    latest = read_clock(conn) + DAY
    valid, ahead = (
        new_message(user_id=user_id, finished_at=moment)
        for moment in (latest, latest + MICROSECOND)
    )

    with pytest.raises(InvalidValueError, match=f"^message 2: finished_at is {AHEAD}"):
        record_messages(conn, [valid, ahead, ahead])

    assert conn.info.transaction_status == TransactionStatus.INTRANS
    assert list_messages(conn, subject_id=user_id) == []
    assert record_messages(conn, [valid]).recorded == 1
    assert usage_differences(conn) == []


def broken_check(conn: Connection, recorded_at: datetime, **message: Any) -> str | None:
    """Return the check that refuses such a message by plain SQL."""
    try:
        with conn.transaction():
            insert_messages(conn, [new_message(**message)], recorded_at=recorded_at)
    except psycopg.errors.CheckViolation as exc:
        return exc.diag.constraint_name
    return None


# New York's clocks go forward on 8 March 2026, and back on 1 November.
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize("start", ["2026-03-07T12:00:00Z", "2026-10-31T12:00:00Z"])
@pytest.mark.parametrize("offset", [0, 1])
def test_check_counts_hours_in_every_time_zone(
    conn: Connection, user_id: UUID, zone: str, start: str, offset: int
):
    conn.execute(f"SET LOCAL TimeZone = '{zone}'".encode())
    moment = datetime.fromisoformat(start)
    finished_at = moment + DAY + offset * MICROSECOND

    broken = broken_check(conn, moment, user_id=user_id, finished_at=finished_at)

    assert broken == ("messages_finished_at_not_ahead_check" if offset else None)


@pytest.mark.parametrize(
    ("finished_at", "constraint"),
    [
        ("infinity", "messages_finished_at_is_finite_check"),
        ("-infinity", "messages_finished_at_is_finite_check"),
        ("294276-12-31 23:00:00+00", "messages_finished_at_not_ahead_check"),
        ("4713-01-02 00:00:00+00 BC", None),
    ],
)
def test_check_handles_every_time_of_the_type(
    conn: Connection, user_id: UUID, finished_at: str, constraint: str | None
):
    now = datetime.now(UTC)

    broken = broken_check(conn, now, user_id=user_id, finished_at=finished_at)

    assert broken == constraint


def test_import_reports_a_line_dated_ahead_and_goes_on(
    committing: Connection, tmp_path: Path
):
    user_id = add_user(committing, email=ADA)
    ahead = datetime.now(UTC) + timedelta(days=40)
    late = changed(CHAT, id="late", created=int(ahead.timestamp()))
    file = write_log(tmp_path / "usage.jsonl", SESSION, late, CHAT)

    code, out, err = run_cli("import", "usage", file, "--user", ADA)

    assert code == 1
    assert err.splitlines() == [
        f"{file}:2: finished at {ahead:%Y-%m-%d %H:%M:%S} UTC, {AHEAD}"
    ]
    assert out.endswith("; lines: 0 repeated, 0 without usage, 1 broken\n")
    assert len(list_messages(committing, subject_id=user_id)) == 2
