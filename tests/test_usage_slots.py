"""Rows of usage_slots: each message is in one row, with any concurrent writers.

Sums under load are in test_recording_races.py.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import IsolationLevel, errors

from pyapp._core.connection import connect
from pyapp.quota import get_fingerprint_quota, get_user_quota
from tests.metering import (
    MICROSECOND,
    add_fingerprint,
    add_months,
    add_user,
    copy_messages,
    insert_messages,
    new_message,
    period_start,
    usage_differences,
)
from tests.usage_sessions import (
    ANCHOR,
    NOON,
    Sessions,
    add_payer,
    add_slots,
    open_sessions,
    own_slot,
    record,
    slots_of,
)
from tests.waiting import run_blocked, wait_for_lock


@pytest.fixture
def sessions(module_database: str) -> Iterator[Sessions]:
    """Return four sessions that open different slots."""
    with open_sessions(module_database) as found:
        yield found


def test_writers_of_one_payer_take_different_rows(sessions: Sessions):
    """The first opens slot 0, and the others do not wait for its commit."""
    user = add_payer(sessions[0])
    record(sessions[0], user, NOON)
    sessions[0].commit()

    for session in sessions:
        record(session, user, NOON)
    for session in sessions:
        session.commit()

    opened = sorted((own_slot(session), 1) for session in sessions[1:])
    assert slots_of(sessions[0], user) == [(0, 2), *opened]
    assert usage_differences(sessions[0], [user]) == []


def test_quiet_payer_keeps_one_row(sessions: Sessions):
    user = add_payer(sessions[0])

    for session in sessions * 2:
        record(session, user, NOON)
        session.commit()

    assert slots_of(sessions[0], user) == [(0, 8)]


def test_messages_of_one_statement_wait_for_slot_0(sessions: Sessions):
    user = add_payer(sessions[0])
    record(sessions[0], user, NOON)

    holder, waiting, *_ = sessions
    run_blocked(holder, waiting, lambda conn: record(conn, user, NOON, NOON))

    assert slots_of(sessions[0], user) == [(0, 3)]


def test_single_messages_in_opposite_orders_do_not_wait(sessions: Sessions):
    one, other, *_ = sessions
    users = [add_payer(one) for _ in range(2)]
    for user in users:
        record(one, user, NOON)
        one.commit()

    record(one, users[0], NOON)
    record(other, users[1], NOON)
    record(one, users[1], NOON)
    record(other, users[0], NOON)
    one.commit()
    other.commit()

    assert usage_differences(one, users) == []


def test_message_is_in_one_row_when_another_row_becomes_free(
    database: str, sessions: Sessions
):
    """Also if a join would look for a free row again, for each row of the payer.

    The statistics of one row for each payer lead to such a plan.
    """
    with ExitStack() as stack:
        one, other, writer = (
            stack.enter_context(closing(connect(database))) for _ in range(3)
        )
        record(one, add_payer(one), NOON)
        one.execute("ANALYZE app.usage_slots")
        user = add_payer(one)
        add_slots([one, other], user)
        one.execute("""
            CREATE FUNCTION public.pause() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_advisory_xact_lock_shared(1);
                RETURN NEW;
            END $$
        """)
        one.execute("""
            CREATE TRIGGER pause BEFORE UPDATE ON app.usage_slots
            FOR EACH ROW EXECUTE FUNCTION public.pause()
        """)
        one.commit()
        one.execute("SELECT pg_advisory_xact_lock(1)")
        other.execute(
            "SELECT FROM app.usage_slots WHERE subject_id = %s AND slot > 0 FOR UPDATE",
            [user],
        )

        with ThreadPoolExecutor(1) as threads:
            written = threads.submit(record, writer, user, NOON)
            wait_for_lock(other, writer)
            other.commit()
            one.commit()
            written.result()
        writer.commit()

        assert sum(messages for _, messages in slots_of(one, user)) == 3
        assert usage_differences(one) == []


@pytest.mark.parametrize("level", ["REPEATABLE_READ", "SERIALIZABLE"])
def test_old_snapshot_of_a_row_is_a_serialization_failure(
    sessions: Sessions, level: str
):
    """The message is not added to an old version of a row; a retry succeeds."""
    one, other, *_ = sessions
    user = add_payer(one)
    record(one, user, NOON)
    one.commit()
    other.isolation_level = IsolationLevel[level]
    other.execute("SELECT 1 FROM app.users LIMIT 1")
    record(one, user, NOON)
    one.commit()

    with pytest.raises(errors.SerializationFailure):
        record(other, user, NOON)

    other.rollback()
    record(other, user, NOON)
    other.commit()
    assert slots_of(one, user) == [(0, 3)]


def test_rollback_to_a_savepoint_removes_the_messages_of_a_row(sessions: Sessions):
    user = add_payer(sessions[0])
    for conn in sessions[:2]:
        with conn.transaction(), conn.transaction(force_rollback=True):
            record(conn, user, NOON)
        with conn.transaction():
            record(conn, user, NOON)
            with conn.transaction(force_rollback=True):
                record(conn, user, NOON, NOON)

    assert slots_of(sessions[0], user) == [(0, 2)]


def test_two_inserts_of_one_statement_are_both_counted(conn: psycopg.Connection):
    user = add_user(conn, quota_anchor=ANCHOR)
    record(conn, user, NOON)
    again = """
        INSERT INTO app.messages (
            subject_id, id, user_id, finished_at, input_tokens, output_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, model, cost, credits
        )
        SELECT
            m.subject_id, gen_random_uuid(), m.user_id, m.finished_at, 1, 2, 3, 4,
            m.model, 1, 1
        FROM app.messages AS m
    """

    conn.execute(f"WITH other AS ({again}) {again}".encode())

    assert usage_differences(conn) == []


def test_view_of_daily_sums_cannot_be_written(conn: psycopg.Connection):
    for statement in (
        "INSERT INTO app.usage_daily (subject_id) VALUES (gen_random_uuid())",
        "UPDATE app.usage_daily SET credits = 0",
        "DELETE FROM app.usage_daily",
    ):
        with pytest.raises(errors.ObjectNotInPrerequisiteState), conn.transaction():
            conn.execute(statement.encode())


def expected_span(anchor: datetime, moment: datetime) -> tuple[datetime, datetime]:
    """Return the UTC day of *moment*, or its part before or after a boundary."""
    start = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    end = start + timedelta(days=1)
    months = (moment.year - anchor.year) * 12 + moment.month - anchor.month
    boundary = add_months(anchor, months)
    if start < boundary <= moment:
        return boundary, end
    return start, min(boundary, end) if boundary > moment else end


def test_span_is_the_part_of_a_day_on_one_side_of_the_boundary(
    conn: psycopg.Connection,
):
    anchors = [
        datetime(2026, 1, 31, 10, tzinfo=UTC),
        datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 6, 30, tzinfo=UTC),
        datetime(1999, 12, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(2150, 5, 15, 6, tzinfo=UTC),
        datetime(1, 3, 31, 12, tzinfo=UTC),
    ]
    pairs = [
        (anchor, boundary + step)
        for anchor in anchors
        for boundary in (
            add_months(anchor, (2024 - anchor.year) * 12 + months)
            for months in range(30)
        )
        for step in (
            timedelta(0),
            -MICROSECOND,
            MICROSECOND,
            timedelta(hours=13),
            timedelta(days=-1),
        )
    ]
    conn.execute("SET LOCAL TimeZone = 'America/St_Johns'")

    found = conn.execute(
        """
        SELECT s.starts_at, s.ends_at
        FROM unnest(%s::timestamptz[], %s::timestamptz[]) WITH ORDINALITY AS p (a, m, n)
        CROSS JOIN LATERAL app.get_usage_span(p.a, p.m) AS s
        ORDER BY p.n
        """,
        [list(column) for column in zip(*pairs, strict=True)],
    ).fetchall()

    assert found == [expected_span(*pair) for pair in pairs]


@pytest.mark.parametrize(
    "anchor",
    ["2026-01-31 10:00Z", "2026-11-01Z", "0001-01-31Z BC", "4714-12-24Z BC"],
)
def test_message_of_any_time_is_recorded(conn: psycopg.Connection, anchor: str):
    user = add_user(conn, quota_anchor=anchor, next_quota_reset=None)
    moments = [
        "4714-11-24 00:00Z BC",
        "4714-11-25 12:00Z BC",
        "4713-01-01 00:00Z BC",
        "0001-12-31 23:59Z BC",
        "0001-01-01 00:00Z",
        "294275-12-31 23:59Z",
        "294276-12-30 12:00Z",
        "294276-12-31 23:59:59.999999Z",
    ]
    statement = """
        INSERT INTO app.messages (
            subject_id, id, user_id, finished_at, recorded_at, input_tokens,
            output_tokens, cache_creation_input_tokens, cache_read_input_tokens,
            model, cost, credits
        )
        SELECT
            %(user)s, gen_random_uuid(), %(user)s, m,
            GREATEST(m, now()) - interval '24 hours', 1, 2, 3, 4, 'a', 1, 1
        FROM unnest(%(moments)s::timestamptz[]) AS m
    """

    for each in [*([moment] for moment in moments), moments]:
        conn.execute(statement, {"user": user, "moments": each})

    kept = conn.execute("SELECT count(*), sum(messages) FROM app.usage_daily")
    assert kept.fetchone() == (8, 16)
    assert conn.execute("SELECT * FROM app.usage_drift").fetchall() == []


@pytest.mark.parametrize(
    "anchor",
    [
        datetime(2026, 1, 31, 10, tzinfo=UTC),
        datetime(2024, 2, 29, 9, tzinfo=UTC),
        datetime(2026, 3, 15, tzinfo=UTC),
        datetime(2027, 8, 31, 23, 30, tzinfo=UTC),
    ],
    ids=["31 January", "29 February", "midnight", "ahead"],
)
@pytest.mark.parametrize("is_user", [True, False], ids=["user", "fingerprint"])
def test_messages_around_a_boundary_count_in_their_period(
    conn: psycopg.Connection, anchor: datetime, is_user: bool
):
    """No row lies across the boundary, in all ways to write the messages."""
    at = datetime(2026, 4, 20, tzinfo=UTC)
    boundary = period_start(anchor, at)
    columns = {"quota_anchor": anchor, "next_quota_reset": add_months(anchor, 24)}
    add, kind = (
        (add_user, "user_id") if is_user else (add_fingerprint, "fingerprint_id")
    )
    payer = add(conn, **columns)
    moments = [boundary + n * MICROSECOND for n in (-2, -1, 0, 1)]
    moments += [boundary + timedelta(hours=hours) for hours in (-24, 12, 24)]
    messages = [
        new_message(**{kind: payer}, finished_at=moment, credits=Decimal(2) ** n)
        for n, moment in enumerate(moments)
    ]

    for message in messages[1:3]:
        copy_messages(conn, [message])
    insert_messages(conn, [messages[0], *messages[3:]])

    quota: Any = (
        get_user_quota(conn, user_id=payer, at=at)
        if is_user
        else get_fingerprint_quota(conn, fingerprint_id=payer, at=at)
    )
    assert quota.period_start == boundary
    assert quota.credits_used == 4 + 8 + 32 + 64
    across = conn.execute(
        "SELECT FROM app.usage_slots WHERE starts_at < %(at)s AND ends_at > %(at)s",
        {"at": boundary},
    )
    assert across.fetchall() == []
    assert usage_differences(conn) == []
