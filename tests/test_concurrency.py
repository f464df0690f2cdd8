"""Many writers at once: nothing is lost, nothing counts twice, nobody sees an error."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from random import Random
from uuid import UUID

import psycopg

from pyapp._core.records import NewMessage
from pyapp.messages import record_message, record_messages
from pyapp.quota import get_user_quota
from tests.metering import (
    add_months,
    add_user,
    credits_in,
    new_message,
    period_at,
    usage_differences,
)

WRITERS = 16
MESSAGES = 20_000
SINGLES = 80
BATCH = 250

ANCHOR = datetime(2026, 1, 31, 10, tzinfo=UTC)


def send_one(conn: psycopg.Connection, message: NewMessage) -> tuple[int, Decimal]:
    result = record_message(
        conn,
        id=message.id,
        user_id=message.user_id,
        model=message.model,
        finished_at=message.finished_at,
        cost=message.cost,
        credits=message.credits,
    )
    return int(result.is_new), result.credits


def send(url: str, messages: Iterator[NewMessage]) -> tuple[int, Decimal]:
    """Send *messages*, some alone and the rest in batches; return what was new."""
    with psycopg.connect(url, autocommit=True) as conn:
        counts = [send_one(conn, message) for message in islice(messages, SINGLES)]
        while batch := list(islice(messages, BATCH)):
            result = record_messages(conn, batch)
            counts.append((result.recorded, result.credits))
    return sum(n for n, _ in counts), sum((c for _, c in counts), start=Decimal(0))


def move_resets(url: str, users: list[UUID], done: threading.Event) -> None:
    choose = Random("resets")
    with psycopg.connect(url, autocommit=True) as conn:
        while not done.is_set():
            conn.execute(
                """
                UPDATE app.users SET next_quota_reset = %s, quota_anchor = %s
                WHERE id = %s
                """,
                (
                    add_months(ANCHOR, choose.randrange(4)),
                    add_months(ANCHOR, -choose.randrange(4)),
                    choose.choice(users),
                ),
            )


def test_writers_lose_and_double_nothing_while_resets_move(database: str):
    choose = Random("messages")
    with psycopg.connect(database) as conn:
        users = [add_user(conn, quota_anchor=ANCHOR) for _ in range(12)]
    messages = [
        new_message(
            id=UUID(int=choose.getrandbits(128)),
            user_id=choose.choice(users),
            finished_at=ANCHOR + timedelta(seconds=choose.randrange(40 * 86400)),
            credits=Decimal(choose.randrange(10**9)) / 10**7,
        )
        for _ in range(MESSAGES)
    ]
    sent = messages + choose.sample(messages, MESSAGES // 2)
    choose.shuffle(sent)
    done = threading.Event()

    with ThreadPoolExecutor(WRITERS + 1) as threads:
        mover = threads.submit(move_resets, database, users, done)
        writers = [
            threads.submit(send, database, iter(sent[n::WRITERS]))
            for n in range(WRITERS)
        ]
        try:
            results = [writer.result() for writer in writers]
        finally:
            done.set()
        mover.result()

    total = sum((m.credits for m in messages if m.credits), start=Decimal(0))
    assert sum(recorded for recorded, _ in results) == MESSAGES
    assert sum(credits for _, credits in results) == total
    with psycopg.connect(database) as conn:
        assert usage_differences(conn) == []
        for user_id in users:
            found = conn.execute(
                "SELECT quota_anchor, next_quota_reset FROM app.users WHERE id = %s",
                (user_id,),
            ).fetchone()
            assert found is not None
            anchor, reset = found
            at = ANCHOR + timedelta(days=20)
            quota = get_user_quota(conn, user_id=user_id, at=at)
            own = [message for message in messages if message.user_id == user_id]
            assert quota.credits_used == credits_in(period_at(anchor, reset, at), own)


def test_one_of_many_who_record_the_same_message_at_once_bills_it(database: str):
    with psycopg.connect(database) as conn:
        user_id = add_user(conn)
    message = new_message(user_id=user_id)
    start = threading.Barrier(WRITERS, timeout=30)

    def run(n: int) -> int:
        with psycopg.connect(database, autocommit=True) as conn:
            start.wait()
            if n % 2:
                return send_one(conn, message)[0]
            return record_messages(conn, [message, message]).recorded

    with ThreadPoolExecutor(WRITERS) as threads:
        new = list(threads.map(run, range(WRITERS)))

    assert sum(new) == 1
    with psycopg.connect(database) as conn:
        assert get_user_quota(conn, user_id=user_id).credits_used == 1
        assert usage_differences(conn) == []
