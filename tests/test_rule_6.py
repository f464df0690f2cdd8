"""Rule 6: usage_daily equals the sum of messages, at every commit, however written."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import errors

from tests.metering import MICROSECOND, add_fingerprint, add_user, usage_differences

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)

COLUMNS = """
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
"""
INSERT = f"INSERT INTO app.messages ({COLUMNS}) VALUES "
VALUES = "(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"

Row = tuple[Any, ...]
Writer = Callable[[psycopg.Connection, list[Row]], None]


def message(user_id: UUID, finished_at: datetime = NOW, credits: str = "0.1") -> Row:
    cost = Decimal(credits) / 120
    counts = [random.randrange(1000) for _ in range(4)]
    return (user_id, uuid4(), user_id, finished_at, *counts, "a-model", cost, credits)


def insert_one_by_one(conn: psycopg.Connection, rows: list[Row]) -> None:
    for row in rows:
        conn.execute(INSERT + VALUES, row)


def insert_together(conn: psycopg.Connection, rows: list[Row]) -> None:
    conn.execute(
        INSERT + ", ".join([VALUES] * len(rows)),
        [value for row in rows for value in row],
    )


def copy(conn: psycopg.Connection, rows: list[Row]) -> None:
    with (
        conn.cursor() as cursor,
        cursor.copy(f"COPY app.messages ({COLUMNS}) FROM STDIN") as stream,
    ):
        for row in rows:
            stream.write_row(row)


def insert_new(conn: psycopg.Connection, rows: list[Row]) -> None:
    # In the order of the keys, as writers of the same messages must.
    rows = sorted(rows, key=lambda row: row[:2])
    conn.execute(
        f"{INSERT} {', '.join([VALUES] * len(rows))} ON CONFLICT DO NOTHING",
        [value for row in rows for value in row],
    )


def insert_again(conn: psycopg.Connection, rows: list[Row]) -> None:
    insert_new(conn, rows)
    insert_new(conn, rows[:1])
    insert_new(conn, [*rows, *rows])


WRITERS = [insert_one_by_one, insert_together, copy, insert_again]


@pytest.mark.parametrize("write", WRITERS)
def test_sums_follow_every_way_to_write(conn: psycopg.Connection, write: Writer):
    users = [add_user(conn) for _ in range(3)]
    days = [NOW, NOW - timedelta(days=1), NOW.replace(hour=0), NOW.replace(month=1)]
    rows = [message(user, day) for user in users for day in days for _ in range(4)]
    random.shuffle(rows)

    write(conn, rows)

    kept = conn.execute("SELECT sum(messages), sum(credits) FROM app.usage_daily")
    assert kept.fetchone() == (len(rows), sum(Decimal(row[-1]) for row in rows))
    assert usage_differences(conn) == []


def test_sums_follow_what_is_undone(conn: psycopg.Connection):
    user = add_user(conn)
    row = message(user)
    copy(conn, [row, message(user)])

    with conn.transaction(force_rollback=True):
        copy(conn, [message(user)])
    with pytest.raises(errors.UniqueViolation), conn.transaction():
        copy(conn, [message(user), row])
    with pytest.raises(errors.CheckViolation), conn.transaction():
        insert_together(conn, [message(user), message(user, credits="NaN")])

    kept = conn.execute("SELECT messages FROM app.usage_daily").fetchall()
    assert kept == [(2,)]
    assert usage_differences(conn) == []


def test_days_are_in_utc_whatever_the_session(conn: psycopg.Connection):
    user = add_user(conn)
    midnight = NOW.replace(hour=0)
    conn.execute("SET LOCAL TimeZone = 'Pacific/Kiritimati'")

    copy(conn, [message(user, midnight - MICROSECOND), message(user, midnight)])

    kept = conn.execute("SELECT day FROM app.usage_daily ORDER BY day").fetchall()
    assert kept == [(date(2026, 2, 28),), (date(2026, 3, 1),)]
    assert usage_differences(conn) == []


def test_sums_of_users_and_devices_stay_apart(conn: psycopg.Connection):
    user, device = add_user(conn), add_fingerprint(conn)
    rows = [message(user), message(device)]

    insert_together(conn, rows[:1])
    conn.execute(f"{INSERT.replace('user_id', 'fingerprint_id')} {VALUES}", rows[1])

    kept = conn.execute("SELECT subject_id, messages FROM app.usage_daily").fetchall()
    assert sorted(kept) == sorted([(user, 1), (device, 1)])


def test_many_small_amounts_are_summed_exactly(conn: psycopg.Connection):
    user = add_user(conn)

    insert_together(conn, [message(user, credits="0.000001") for _ in range(999)])

    kept = conn.execute("SELECT credits FROM app.usage_daily").fetchone()
    assert kept == (Decimal("0.000999"),)


def test_sums_hold_at_every_commit_of_concurrent_writers(database: str):
    with psycopg.connect(database) as conn:
        users = [add_user(conn) for _ in range(4)]
    days = [NOW - timedelta(days=n) for n in range(3)]
    shared = [message(user, day) for user in users for day in days for _ in range(5)]
    done = threading.Event()

    def run(seed: int) -> int:
        choose = random.Random(seed)
        written = 0
        with psycopg.connect(database) as conn:
            # One statement for each commit: writers of several may deadlock.
            for _ in range(12):
                write = choose.choice([insert_together, copy, insert_new])
                payers = choose.choices(users, k=choose.randrange(1, 30))
                rows = [message(user, choose.choice(days)) for user in payers]
                write(conn, shared if write is insert_new else rows)
                if choose.random() < 0.3:
                    conn.rollback()
                else:
                    conn.commit()
                    written += 0 if write is insert_new else len(rows)
        return written

    def watch() -> int:
        seen = 0
        with psycopg.connect(database) as conn:
            conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            while not done.is_set():
                assert usage_differences(conn) == []
                conn.rollback()
                seen += 1
        return seen

    with ThreadPoolExecutor() as threads:
        watcher = threads.submit(watch)
        writers = [threads.submit(run, seed) for seed in range(8)]
        try:
            written = sum(writer.result() for writer in writers)
        finally:
            done.set()
        seen = watcher.result()

    with psycopg.connect(database) as conn:
        count = conn.execute("SELECT sum(messages) FROM app.usage_daily").fetchone()
        assert usage_differences(conn) == []
    assert count == (written + len(shared),)
    assert seen > 1
