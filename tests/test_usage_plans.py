"""Plans of add_usage, and what a quota check reads of a day that is cut."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from uuid import UUID

import psycopg
import pytest

from pyapp.messages import NewMessage
from pyapp.quota import get_user_quota
from tests.metering import (
    Period,
    add_user,
    copy_messages,
    credits_in,
    insert_messages,
    new_message,
    usage_differences,
)

# A past day, of which the rows lie across all of DAY after a move of the anchor.
DAY = datetime(2026, 3, 20, tzinfo=UTC)
NOON = DAY + timedelta(hours=12)


def messages_of(user_id: UUID, day: datetime, count: int) -> list[NewMessage]:
    step = timedelta(days=1) / count
    return [
        new_message(user_id=user_id, finished_at=day + n * step, credits=Decimal(n))
        for n in range(count)
    ]


def sum_credits(conn: psycopg.Connection, user_id: UUID, period: Period) -> Decimal:
    row = conn.execute(
        "SELECT credits_used FROM app.sum_credits(%s, %s, %s)",
        (user_id, period.start, period.end),
    ).fetchone()
    assert row is not None
    credits_used: Decimal = row[0]
    return credits_used


def messages_read(conn: psycopg.Connection) -> int:
    """Return the number of messages that this transaction has read by their index."""
    row = conn.execute("""
        SELECT pg_stat_get_xact_tuples_returned(
            'app.messages_subject_id_finished_at_idx'::regclass
        )
    """).fetchone()
    assert row is not None
    return int(row[0])


def scans_and_updates(conn: psycopg.Connection) -> tuple[int, int]:
    """Return the sequential scans and the updates of usage_slots so far."""
    row = conn.execute("""
        SELECT
            pg_stat_get_xact_numscans(t.oid),
            pg_stat_get_xact_tuples_updated(t.oid)
        FROM CAST('app.usage_slots' AS regclass) AS t (oid)
    """).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


@pytest.mark.parametrize(
    ("first", "count"), [(copy_messages, 10), (insert_messages, 1)]
)
def test_first_statement_of_a_session_does_not_decide_its_plans(
    database: str,
    first: Callable[[psycopg.Connection, list[NewMessage]], None],
    count: int,
):
    """A session keeps its plans, so they must not scan a table that is empty now."""
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("ANALYZE app.users, app.messages, app.usage_slots")
        users = [add_user(conn) for _ in range(3)]
        first(conn, messages_of(users[0], DAY, count))
        with conn.transaction():
            copy_messages(
                conn,
                [message for user in users for message in messages_of(user, DAY, 2)],
            )
            scans, updates = scans_and_updates(conn)
            insert_messages(conn, messages_of(users[1], DAY, 1))
            assert scans_and_updates(conn) == (scans, updates + 1)
        assert usage_differences(conn) == []


INSERT_ROWS = """
INSERT INTO app.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
)
SELECT u.id, gen_random_uuid(), u.id, now(), 1, 2, 3, 4, 'm', 0.5, 0.25
FROM app.users AS u
ORDER BY u.id
LIMIT %s
"""


def test_small_statement_after_large_ones_reads_no_other_users(
    conn: psycopg.Connection,
):
    """A session keeps the plan that a join of a large statement has."""
    conn.execute("""
        INSERT INTO app.users (id, email)
        SELECT md5(n::text)::uuid, n || '@example.com' FROM generate_series(1, 2000) n
    """)
    conn.execute("ANALYZE app.users")
    # Indexes cost little on a production server.
    conn.execute("SET LOCAL random_page_cost = 0.01")
    conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    conn.execute(INSERT_ROWS, [2000])
    query = "SELECT pg_stat_get_xact_tuples_returned('app.users_pkey'::regclass)"
    before = conn.execute(query).fetchone()

    conn.execute(INSERT_ROWS, [2])

    after = conn.execute(query).fetchone()
    assert before is not None
    assert after is not None
    assert after[0] - before[0] <= 6
    assert usage_differences(conn) == []


def test_credits_of_any_period_equal_its_messages(conn: psycopg.Connection):
    choose = Random(19)
    user_id = add_user(conn, quota_anchor=DAY + timedelta(hours=9))
    messages = [
        message
        for number in (-1, 0, 1)
        for message in messages_of(user_id, DAY + timedelta(days=number), 30)
    ]
    # Two rows of the day lie across most edges, and one of each part of it does not.
    insert_messages(conn, messages[:45])
    conn.execute(
        "UPDATE app.users SET quota_anchor = %s WHERE id = %s",
        (DAY + timedelta(hours=18), user_id),
    )
    insert_messages(conn, messages[45:])
    moments = [DAY + timedelta(hours=hours) for hours in (-24, 0, 9, 18, 24, 48)]
    moments += [
        DAY + timedelta(minutes=choose.randrange(-1440, 2880)) for _ in range(20)
    ]

    for start in moments:
        for end in moments:
            period = Period(start, end)
            found = sum_credits(conn, user_id, period)
            assert found == credits_in(period, messages), period


@pytest.mark.parametrize(
    ("boundary", "most"), [("01:00", 5), ("12:00", 51), ("23:00", 5)]
)
def test_check_reads_the_shorter_part_of_a_day_across_the_boundary(
    conn: psycopg.Connection, boundary: str, most: int
):
    user_id = add_user(conn, quota_anchor=DAY)
    messages = messages_of(user_id, DAY, 100)
    insert_messages(conn, messages)
    at = datetime.fromisoformat(f"{DAY:%Y-%m-%d}T{boundary}+00:00")
    conn.execute(
        "UPDATE app.users SET quota_anchor = %s, next_quota_reset = %s WHERE id = %s",
        (at, at + timedelta(days=31), user_id),
    )
    before = messages_read(conn)

    quota = get_user_quota(conn, user_id=user_id, at=NOON + timedelta(days=1))

    assert quota.credits_used == credits_in(
        Period(quota.period_start, quota.end_date), messages
    )
    assert quota.period_start == at
    assert messages_read(conn) - before <= most


def test_check_without_a_reset_does_not_read_the_day_of_the_anchor(
    conn: psycopg.Connection,
):
    user_id = add_user(conn, quota_anchor=NOON, next_quota_reset=None)
    today = datetime.now(UTC)
    messages = [
        *messages_of(user_id, DAY, 100),
        new_message(user_id=user_id, finished_at=today, credits=Decimal("0.5")),
    ]
    insert_messages(conn, messages)
    before = messages_read(conn)

    quota = get_user_quota(conn, user_id=user_id, at=today + timedelta(seconds=1))

    assert quota.credits_used == sum(range(50, 100)) + Decimal("0.5")
    assert messages_read(conn) - before <= 1
