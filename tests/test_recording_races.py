"""Concurrent writers and retries: no message is lost, and none is billed twice."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import permutations
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from pyapp._core.connection import connect
from pyapp._core.queries import QUERIES
from pyapp.messages import NewMessage, record_messages
from pyapp.quota import get_user_quota
from tests.metering import (
    add_fingerprint,
    add_months,
    add_user,
    copy_messages,
    credits_in,
    insert_messages,
    new_message,
    period_at,
    quota_differences,
    record_bulk,
    record_one,
    usage_differences,
)
from tests.waiting import race

WRITERS = 8
MESSAGES = 6000
ANCHOR = datetime(2026, 1, 31, 10, tzinfo=UTC)


@pytest.fixture
def fingerprint(conn: psycopg.Connection) -> UUID:
    return add_fingerprint(conn)


def payers_in(conn: psycopg.Connection, table: str) -> list[tuple[UUID, ...]]:
    statement = sql.SQL("SELECT subject_id FROM {}").format(
        sql.Identifier("app", table)
    )
    return conn.execute(statement).fetchall()


def random_message(choose: Random, users: list[UUID]) -> NewMessage:
    return new_message(
        id=UUID(int=choose.getrandbits(128)),
        user_id=choose.choice(users),
        finished_at=ANCHOR + timedelta(seconds=choose.randrange(40 * 86400)),
        credits=Decimal(choose.randrange(10**9)) / 10**7,
    )


def write(url: str, messages: list[NewMessage]) -> tuple[int, Decimal]:
    """Send *messages*, and again what was rolled back; return the new ones.

    Each transaction has one statement: several can deadlock, as docs/messages.md says.
    """
    count, credits = 0, Decimal(0)
    choose, rest = Random(str(messages[0].id)), list(messages)
    with psycopg.connect(url, autocommit=True) as conn:
        while rest:
            size = choose.choice([1, 1, 1, 30, 250])
            batch, rest = rest[:size], rest[size:]
            is_kept = choose.random() > 0.2
            with conn.transaction(force_rollback=not is_kept):
                new = send(conn, choose, batch)
            if is_kept:
                count, credits = count + new[0], credits + new[1]
            else:
                rest += batch
    return count, credits


def send(
    conn: psycopg.Connection, choose: Random, batch: list[NewMessage]
) -> tuple[int, Decimal]:
    if len(batch) == 1:
        return record_one(conn, batch[0])
    if choose.random() < 0.5:
        result = record_messages(conn, batch)
        return result.recorded, result.credits
    in_order = sorted(batch, key=lambda message: message.id)
    new = insert_messages(conn, in_order, on_conflict="ON CONFLICT DO NOTHING")
    return len(new), sum(new, start=Decimal(0))


def copy(url: str, messages: list[NewMessage]) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        for n in range(0, len(messages), 25):
            copy_messages(conn, messages[n : n + 25])


def move_periods(url: str, users: list[UUID], done: threading.Event) -> None:
    choose = Random("resets")
    with psycopg.connect(url, autocommit=True) as conn:
        while not done.is_set():
            user = choose.choice(users)
            anchor = add_months(ANCHOR, -choose.randrange(4))
            conn.execute(
                """
                UPDATE app.users SET next_quota_reset = %s, quota_anchor = %s
                WHERE id = %s
                """,
                (
                    add_months(ANCHOR, choose.randrange(4)),
                    anchor + timedelta(minutes=choose.randrange(1440)),
                    user,
                ),
            )
            # app.cut_usage only cuts the current period's days.
            for day in (add_months(ANCHOR, 0), add_months(ANCHOR, 1)):
                conn.execute("SELECT app.cut_usage_day(%s, %s)", [user, day.date()])


def fold_and_repair(url: str, users: list[UUID], done: threading.Event) -> int:
    """Fold spans and repair days, which are right; return the rows removed."""
    choose, folded = Random("upkeep"), 0
    with psycopg.connect(url, autocommit=True) as conn:
        while not done.is_set():
            row = conn.execute(
                """
                SELECT sum(app.fold_usage(u.subject_id, u.starts_at, u.ends_at))::int
                FROM (
                    SELECT * FROM app.unfolded_usage ORDER BY random() LIMIT 5
                ) AS u
                """
            ).fetchone()
            assert row is not None
            folded += row[0] or 0
            day = (ANCHOR + timedelta(days=choose.randrange(40))).date()
            repaired = conn.execute(
                "SELECT app.repair_usage_day(%s, %s)", [choose.choice(users), day]
            )
            assert repaired.fetchone() == (False,)
    return folded


def watch_sums(url: str, done: threading.Event) -> int:
    """Compare the sums in one snapshot after another; return how many."""
    seen = 0
    with psycopg.connect(url) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        while not done.is_set():
            assert usage_differences(conn) == []
            assert quota_differences(conn, ANCHOR + timedelta(days=20)) == []
            conn.rollback()
            seen += 1
    return seen


def check_quota(
    conn: psycopg.Connection, user_id: UUID, messages: list[NewMessage]
) -> None:
    found = conn.execute(
        "SELECT quota_anchor, next_quota_reset FROM app.users WHERE id = %s",
        (user_id,),
    ).fetchone()
    assert found is not None
    at = ANCHOR + timedelta(days=20)
    quota = get_user_quota(conn, user_id=user_id, at=at)
    own = [message for message in messages if message.user_id == user_id]
    period = period_at(found[0], found[1], at)
    assert quota.credits_used == credits_in(period, own)


def test_sums_hold_at_every_commit_of_concurrent_writers(database: str):
    """No message is lost or doubled, and the sums are right in every snapshot.

    Periods move, days are cut and repaired, and rows are folded, without a deadlock.
    """
    choose = Random("messages")
    with connect(database) as conn:
        users = [add_user(conn, quota_anchor=ANCHOR) for _ in range(12)]
    messages = [random_message(choose, users) for _ in range(MESSAGES)]
    sent = messages + choose.sample(messages, MESSAGES // 2)
    choose.shuffle(sent)
    copied = [random_message(choose, users) for _ in range(500)]
    done = threading.Event()

    with ThreadPoolExecutor(WRITERS + 4) as threads:
        mover = threads.submit(move_periods, database, users, done)
        upkeep = threads.submit(fold_and_repair, database, users, done)
        watcher = threads.submit(watch_sums, database, done)
        copier = threads.submit(copy, database, copied)
        writers = [
            threads.submit(write, database, sent[n::WRITERS]) for n in range(WRITERS)
        ]
        try:
            new = [writer.result() for writer in writers]
            copier.result()
        finally:
            done.set()
        mover.result()
        assert upkeep.result() > 0
        assert watcher.result() > 1

    assert sum(count for count, _ in new) == MESSAGES
    assert sum(credits for _, credits in new) == sum(
        message.credits or Decimal(0) for message in messages
    )
    with connect(database) as conn:
        assert usage_differences(conn) == []
        for user_id in users:
            check_quota(conn, user_id, [*messages, *copied])


@pytest.mark.parametrize("has_fingerprint", [True, False], ids=["retry", "same payer"])
def test_one_of_many_concurrent_calls_is_billed(database: str, has_fingerprint: bool):
    """With a fingerprint, half of the calls come from before the sign-in."""
    with connect(database) as conn:
        user_id, fingerprint = add_user(conn), add_fingerprint(conn)
    messages = [
        new_message(fingerprint_id=fingerprint if has_fingerprint else None)
        for _ in range(10)
    ]
    start = threading.Barrier(WRITERS, timeout=30)

    def run(n: int, conn: psycopg.Connection) -> int:
        conn.autocommit = True
        send = record_bulk if n % 2 else record_one
        payer = None if has_fingerprint and n % 4 >= 2 else user_id
        new = 0
        for message in messages:
            start.wait()
            new += send(conn, replace(message, user_id=payer))[0]
        return new

    new = race(database, [partial(run, n) for n in range(WRITERS)])

    assert sum(new) == len(messages)
    with connect(database) as conn:
        assert len(payers_in(conn, "messages")) == len(messages)
        assert usage_differences(conn) == []


def test_bulks_of_the_same_calls_for_other_payers_do_not_deadlock(database: str):
    """Two bulks order the messages differently by payer, and equally by id."""
    choose = Random("payers")
    with connect(database) as conn:
        users = [add_user(conn) for _ in range(20)]
        fingerprint = add_fingerprint(conn)
    messages = [new_message(fingerprint_id=fingerprint) for _ in range(400)]
    start = threading.Barrier(WRITERS, timeout=30)

    def run(bulk: list[NewMessage], conn: psycopg.Connection) -> int:
        conn.autocommit = True
        new = 0
        for n in range(0, len(bulk), 100):
            start.wait()
            new += record_messages(conn, bulk[n : n + 100]).recorded
        return new

    bulks = []
    for _ in range(WRITERS):
        bulk = [replace(m, user_id=choose.choice([None, *users])) for m in messages]
        bulks.append(choose.sample(bulk, len(bulk)))
    new = race(database, [partial(run, bulk) for bulk in bulks])

    assert sum(new) == len(messages)
    with connect(database) as conn:
        assert usage_differences(conn) == []


@pytest.mark.parametrize("is_anonymous_first", [True, False])
@pytest.mark.parametrize("first", [record_one, record_bulk])
@pytest.mark.parametrize("second", [record_one, record_bulk])
def test_retry_after_sign_in_adds_nothing(
    conn: psycopg.Connection,
    user_id: UUID,
    fingerprint: UUID,
    first,
    second,
    is_anonymous_first: bool,
):
    anonymous = new_message(fingerprint_id=fingerprint, request=["words"])
    signed_in = replace(anonymous, user_id=user_id)
    calls = [anonymous, signed_in] if is_anonymous_first else [signed_in, anonymous]
    payer = fingerprint if is_anonymous_first else user_id

    assert first(conn, calls[0]) == (1, Decimal(1))
    assert second(conn, calls[1]) == (0, Decimal(0))

    assert payers_in(conn, "messages") == [(payer,)]
    assert payers_in(conn, "message_payloads") == [(payer,)]
    assert usage_differences(conn) == []


def test_first_of_the_retries_in_a_bulk_counts(
    conn: psycopg.Connection, user_id: UUID, fingerprint: UUID
):
    anonymous = new_message(fingerprint_id=fingerprint, request=["words"])
    signed_in = replace(anonymous, user_id=user_id)
    elsewhere = replace(signed_in, fingerprint_id=None)
    for calls in permutations([anonymous, signed_in, elsewhere]):
        with conn.transaction(force_rollback=True):
            counts = record_messages(conn, calls)

            payer = calls[0].user_id or fingerprint
            # Only the call that names both shows that the other two are one call.
            expected = 2 if calls[2] is signed_in else 1
            assert (counts.recorded, counts.duplicates) == (expected, 3 - expected)
            assert counts.credits == expected
            messages = sorted(payers_in(conn, "messages"))
            assert (payer,) in messages
            assert sorted(payers_in(conn, "message_payloads")) == messages
            assert usage_differences(conn) == []


def test_one_id_of_two_payers_is_two_messages(conn: psycopg.Connection):
    message = new_message()
    for calls in (
        [replace(message, fingerprint_id=add_fingerprint(conn)) for _ in range(2)],
        [replace(message, user_id=add_user(conn)) for _ in range(2)],
    ):
        assert [record_one(conn, call)[0] for call in calls] == [1, 1]
        fresh = [replace(call, id=UUID(int=1)) for call in calls]
        assert record_messages(conn, fresh).recorded == 2


def test_plain_sql_cannot_record_a_call_for_two_payers(
    conn: psycopg.Connection, user_id: UUID, fingerprint: UUID
):
    message = new_message(fingerprint_id=fingerprint)
    record_one(conn, message)

    with pytest.raises(
        psycopg.errors.UniqueViolation, match="messages_fingerprint_id_id_idx"
    ):
        insert_messages(conn, [replace(message, user_id=user_id)])


def read_nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from read_nodes(child)


def is_price_lookup(loop: dict[str, Any]) -> bool:
    """Tell whether *loop* reads the messages once, and a price for each."""
    outer, inner = loop["Plans"]
    return outer.get("Relation Name") == "staged_calls" and "model_prices" in str(inner)


def test_plan_of_a_bulk_does_not_loop_over_all_rows(conn: psycopg.Connection):
    """The plan is kept for the session, also when later bulks are larger."""
    conn.execute(QUERIES["create_staged_messages"].sql)

    row = conn.execute(
        "EXPLAIN (FORMAT JSON) " + QUERIES["record_messages"].sql,
        {"margin": Decimal("0.2")},
    ).fetchone()

    assert row is not None
    loops = [
        child
        for node in read_nodes(row[0][0]["Plan"])
        if node["Node Type"] == "Nested Loop" and not is_price_lookup(node)
        for child in node["Plans"]
        if child.get("CTE Name") in {"first_message", "new_message"}
        or child.get("Relation Name") == "staged_calls"
    ]
    assert loops == []
