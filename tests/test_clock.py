"""A message is at most 24 hours ahead of the database's clock: no later one counts."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg import Connection
from psycopg.pq import TransactionStatus

from pyapp._core.connection import connect
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import list_migrations, migrate, rollback
from pyapp.errors import InvalidValueError, MigrationError, UserNotFoundError
from pyapp.messages import list_messages, record_message, record_messages
from tests.metering import add_user, new_message, usage_differences
from tests.support import run_cli
from tests.usage_import import ADA, write_log
from tests.usage_lines import CHAT, SESSION, changed

DAY = timedelta(hours=24)
MICROSECOND = timedelta(microseconds=1)
AHEAD = "more than 24 hours ahead of the database's clock"
FIRST = "0014_refuse_times_ahead"
CHECK = "0018_validate_messages_finished_at_not_ahead_check"
NOBODY = UUID(int=404)


@pytest.fixture
def user_id(conn: Connection) -> UUID:
    return add_user(conn)


def read_clock(conn: Connection) -> datetime:
    """Return the start of the transaction, which recorded_at is."""
    row = conn.execute("SELECT now()").fetchone()
    assert row is not None
    moment: datetime = row[0].astimezone(UTC)
    return moment


def record(conn: Connection, user_id: UUID, finished_at: datetime) -> UUID:
    return record_message(
        conn, user_id=user_id, model="m", cost=Decimal(1), finished_at=finished_at
    ).id


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kathmandu"])
def test_one_message_is_refused_from_24_hours_ahead_on(
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


def test_impossible_time_is_reported_before_an_unknown_payer(conn: Connection):
    latest = read_clock(conn) + DAY
    with pytest.raises(InvalidValueError, match=AHEAD):
        record(conn, NOBODY, latest + MICROSECOND)
    with pytest.raises(UserNotFoundError):
        record(conn, NOBODY, latest)


def test_many_messages_name_the_first_and_record_none(conn: Connection, user_id: UUID):
    latest = read_clock(conn) + DAY
    fine, ahead = (
        new_message(user_id=user_id, finished_at=moment)
        for moment in (latest, latest + MICROSECOND)
    )

    with pytest.raises(InvalidValueError, match=f"^message 2: finished_at is {AHEAD}"):
        record_messages(conn, [fine, ahead, ahead])

    assert conn.info.transaction_status == TransactionStatus.INTRANS
    assert list_messages(conn, subject_id=user_id) == []
    assert record_messages(conn, [fine]).recorded == 1
    assert usage_differences(conn) == []


# The clocks of New York are put forward on 8 March 2026, and back on 1 November.
@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
@pytest.mark.parametrize("start", ["2026-03-07T12:00:00Z", "2026-10-31T12:00:00Z"])
@pytest.mark.parametrize("offset", [0, 1])
def test_check_counts_hours_whatever_the_time_zone(
    conn: Connection, user_id: UUID, zone: str, start: str, offset: int
):
    conn.execute(f"SET LOCAL TimeZone = '{zone}'".encode())
    moment = datetime.fromisoformat(start)

    expected = "messages_finished_at_not_ahead_check" if offset else None
    finished_at = moment + DAY + offset * MICROSECOND
    assert refused_by(conn, user_id, finished_at, moment) == expected


@pytest.mark.parametrize(
    ("finished_at", "constraint"),
    [
        ("infinity", "messages_finished_at_is_finite_check"),
        ("-infinity", "messages_finished_at_is_finite_check"),
        ("294276-12-31 23:00:00+00", "messages_finished_at_not_ahead_check"),
        ("4713-01-02 00:00:00+00 BC", None),
    ],
)
def test_check_itself_fails_for_no_time(
    conn: Connection, user_id: UUID, finished_at: str, constraint: str | None
):
    refused = refused_by(conn, user_id, finished_at, datetime.now(UTC))

    assert refused == constraint


def refused_by(
    conn: Connection,
    user_id: UUID,
    finished_at: datetime | str,
    recorded_at: datetime,
) -> str | None:
    """Return the check that refuses such a message."""
    try:
        with conn.transaction():
            insert(conn, user_id, finished_at, recorded_at)
    except psycopg.errors.CheckViolation as exc:
        return exc.diag.constraint_name
    return None


def insert(
    conn: Connection,
    user_id: UUID,
    finished_at: datetime | str,
    recorded_at: datetime,
) -> None:
    conn.execute(
        """
        INSERT INTO app.messages (
            subject_id, id, user_id, finished_at, recorded_at, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens,
            model, cost, credits
        )
        VALUES (%s, gen_random_uuid(), %s, %s, %s, 1, 0, 0, 1, 'm', 0.5, 60)
        """,
        [user_id, user_id, finished_at, recorded_at],
    )


def test_import_reports_such_a_line_and_goes_on(committing: Connection, tmp_path: Path):
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


def test_messages_that_are_ahead_already_are_named_and_can_be_corrected(
    empty_database: str,
):
    migrate(empty_database)
    rollback(empty_database, count=sum(f.name >= FIRST for f in read_migrations()))
    now = datetime.now(UTC)
    with connect(empty_database) as conn:
        user_id = add_user(conn)
        insert(conn, user_id, now + timedelta(days=40), now)
        insert(conn, user_id, now + timedelta(days=40), now)
        insert(conn, user_id, now - timedelta(days=3), now)
        conn.execute(
            "INSERT INTO app.message_payloads (subject_id, message_id, finished_at,"
            " request) SELECT subject_id, id, finished_at, '[1]' FROM app.messages"
        )

    with pytest.raises(MigrationError, match="Messages dated ahead"):
        migrate(empty_database)

    page = Path(__file__).parents[1] / "docs" / "messages.md"
    text = page.read_text("utf-8").partition("## Messages dated ahead")[2]
    found = re.search(r"```sql\n(BEGIN;.*?)```", text, re.DOTALL)
    assert found is not None
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(found[1].encode())
    migrate(empty_database)
    with connect(empty_database) as conn:
        messages = list_messages(conn, subject_id=user_id)
        assert [m.finished_at for m in messages[:2]] == [
            m.recorded_at for m in messages[:2]
        ]
        assert messages[2].finished_at == now - timedelta(days=3)
        assert usage_differences(conn) == []
        unlike = conn.execute(
            "SELECT count(*) FROM app.messages AS m"
            " INNER JOIN app.message_payloads AS p USING (subject_id, finished_at)"
            " WHERE p.message_id = m.id"
        ).fetchone()
        assert unlike == (3,)
        with pytest.raises(psycopg.errors.RestrictViolation), conn.transaction():
            conn.execute("UPDATE app.messages SET cost = 0")
    states = {status.name: status.state for status in list_migrations(empty_database)}
    assert states[CHECK] == "applied"
