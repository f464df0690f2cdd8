"""usage_daily equals the sums of messages, for every way to write them in SQL.

Random sequences of calls are in test_properties.py, concurrent writers in
test_recording_races.py.
"""

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import errors

from pyapp.messages import NewMessage
from tests.metering import (
    MICROSECOND,
    add_fingerprint,
    add_user,
    copy_messages,
    insert_messages,
    new_message,
    usage_differences,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
Writer = Callable[[psycopg.Connection, list[NewMessage]], object]


def message(**values: Any) -> NewMessage:
    names = ("input_tokens", "cache_creation_input_tokens", "output_tokens")
    counts = {name: random.randrange(1000) for name in names}
    return new_message(**{"finished_at": NOON, **counts, **values})


def insert_one_by_one(conn: psycopg.Connection, messages: list[NewMessage]) -> None:
    for each in messages:
        insert_messages(conn, [each])


def insert_repeatedly(conn: psycopg.Connection, messages: list[NewMessage]) -> None:
    for some in (messages, messages[:1], [*messages, *messages]):
        insert_messages(conn, some, on_conflict="ON CONFLICT DO NOTHING")


WRITERS = [insert_messages, insert_one_by_one, insert_repeatedly, copy_messages]


@pytest.mark.parametrize("write", WRITERS)
def test_sums_follow_every_way_to_write(conn: psycopg.Connection, write: Writer):
    users = [add_user(conn) for _ in range(3)]
    days = [NOON, NOON - timedelta(days=1), NOON.replace(hour=0), NOON.replace(month=1)]
    messages = [
        message(user_id=user, finished_at=day, credits=Decimal("0.1"))
        for user in users
        for day in days * 4
    ]
    random.shuffle(messages)

    write(conn, messages)

    kept = conn.execute("SELECT sum(messages), sum(credits) FROM app.usage_daily")
    assert kept.fetchone() == (len(messages), len(messages) * Decimal("0.1"))
    assert usage_differences(conn) == []


def test_sums_follow_rollbacks_and_failures(conn: psycopg.Connection):
    user = add_user(conn)
    first = message(user_id=user)
    copy_messages(conn, [first, message(user_id=user)])

    with conn.transaction(force_rollback=True):
        copy_messages(conn, [message(user_id=user)])
    with pytest.raises(errors.UniqueViolation), conn.transaction():
        copy_messages(conn, [message(user_id=user), first])
    wrong = message(user_id=user, credits=Decimal("NaN"))
    with pytest.raises(errors.CheckViolation), conn.transaction():
        insert_messages(conn, [message(user_id=user), wrong])

    kept = conn.execute("SELECT messages FROM app.usage_daily").fetchall()
    assert kept == [(2,)]
    assert usage_differences(conn) == []


def test_days_are_in_utc_in_every_session(conn: psycopg.Connection):
    user = add_user(conn)
    midnight = NOON.replace(hour=0)
    conn.execute("SET LOCAL TimeZone = 'Pacific/Kiritimati'")

    copy_messages(
        conn,
        [
            message(user_id=user, finished_at=moment)
            for moment in (midnight - MICROSECOND, midnight)
        ],
    )

    kept = conn.execute("SELECT day FROM app.usage_daily ORDER BY day").fetchall()
    assert kept == [(date(2026, 2, 28),), (date(2026, 3, 1),)]
    assert usage_differences(conn) == []


def test_each_payer_has_its_own_sums(conn: psycopg.Connection):
    user, fingerprint = add_user(conn), add_fingerprint(conn)

    insert_messages(conn, [message(user_id=user), message(fingerprint_id=fingerprint)])

    kept = conn.execute("SELECT subject_id, messages FROM app.usage_daily").fetchall()
    assert sorted(kept) == sorted([(user, 1), (fingerprint, 1)])


def test_many_small_amounts_are_summed_exactly(conn: psycopg.Connection):
    user = add_user(conn)

    insert_messages(
        conn, [message(user_id=user, credits=Decimal("0.000001")) for _ in range(999)]
    )

    kept = conn.execute("SELECT credits FROM app.usage_daily").fetchone()
    assert kept == (Decimal("0.000999"),)
