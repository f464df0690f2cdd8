"""A call that is recorded again after its user has signed in is one message."""

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from decimal import Decimal
from itertools import permutations
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql

from pyapp._core.queries import QUERIES
from pyapp._core.records import NewMessage
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate
from pyapp.errors import MigrationError
from pyapp.messages import record_message, record_messages
from tests.metering import add_fingerprint, add_user, new_message, usage_differences

REPOSITORY = Path(__file__).parents[1]
WRITERS = 8


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    return add_user(conn)


@pytest.fixture
def device(conn: psycopg.Connection) -> UUID:
    return add_fingerprint(conn)


def send_one(conn: psycopg.Connection, message: NewMessage) -> tuple[int, Decimal]:
    result = record_message(conn, **asdict(message))
    assert result.id == message.id
    return int(result.is_new), result.credits


def send_bulk(conn: psycopg.Connection, message: NewMessage) -> tuple[int, Decimal]:
    counts = record_messages(conn, [message])
    assert counts.recorded + counts.duplicates == 1
    return counts.recorded, counts.credits


def rows(conn: psycopg.Connection, table: str) -> list[tuple[UUID, ...]]:
    statement = sql.SQL("SELECT subject_id FROM {}").format(
        sql.Identifier("app", table)
    )
    return conn.execute(statement).fetchall()


def insert_by_hand(conn: psycopg.Connection, message: NewMessage) -> None:
    """Insert the message as plain SQL does, without a word on conflicts."""
    conn.execute(
        """
        INSERT INTO app.messages (
            subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens,
            model, cost, credits
        )
        VALUES (
            COALESCE(%(user_id)s::uuid, %(fingerprint_id)s), %(id)s, %(user_id)s,
            %(fingerprint_id)s, %(finished_at)s, 1, 0, 0, 0, 'm', 0.008, 1
        )
        """,
        asdict(message),
    )


@pytest.mark.parametrize("is_anonymous_first", [True, False])
@pytest.mark.parametrize("first", [send_one, send_bulk])
@pytest.mark.parametrize("second", [send_one, send_bulk])
def test_retry_after_sign_in_adds_nothing(
    conn: psycopg.Connection,
    user_id: UUID,
    device: UUID,
    first,
    second,
    is_anonymous_first: bool,
):
    anonymous = new_message(fingerprint_id=device, request=["said"])
    signed_in = replace(anonymous, user_id=user_id)
    calls = [anonymous, signed_in] if is_anonymous_first else [signed_in, anonymous]
    payer = device if is_anonymous_first else user_id

    assert first(conn, calls[0]) == (1, Decimal(1))
    assert second(conn, calls[1]) == (0, Decimal(0))

    assert rows(conn, "messages") == rows(conn, "message_payloads") == [(payer,)]
    assert usage_differences(conn) == []


def test_first_of_one_bulk_counts_whoever_pays(
    conn: psycopg.Connection, user_id: UUID, device: UUID
):
    anonymous = new_message(fingerprint_id=device, request=["said"])
    signed_in = replace(anonymous, user_id=user_id)
    elsewhere = replace(signed_in, fingerprint_id=None)
    for calls in permutations([anonymous, signed_in, elsewhere]):
        with conn.transaction(force_rollback=True):
            counts = record_messages(conn, calls)

            payer = calls[0].user_id or device
            # Only the call that names both says that the other two are one.
            expected = 2 if calls[2] is signed_in else 1
            assert (counts.recorded, counts.duplicates) == (expected, 3 - expected)
            assert counts.credits == expected
            assert (payer,) in rows(conn, "messages")
            assert sorted(rows(conn, "message_payloads")) == sorted(
                rows(conn, "messages")
            )
            assert usage_differences(conn) == []


def test_one_id_on_two_devices_or_on_none_is_two_messages(conn: psycopg.Connection):
    message = new_message()
    for calls in (
        [replace(message, fingerprint_id=add_fingerprint(conn)) for _ in range(2)],
        [replace(message, user_id=add_user(conn)) for _ in range(2)],
    ):
        assert [send_one(conn, call)[0] for call in calls] == [1, 1]
        fresh = [replace(call, id=UUID(int=1)) for call in calls]
        assert record_messages(conn, fresh).recorded == 2


def test_one_of_many_who_record_a_call_before_and_after_sign_in_bills_it(
    database: str,
):
    with psycopg.connect(database) as conn:
        user_id, device = add_user(conn), add_fingerprint(conn)
    messages = [new_message(fingerprint_id=device) for _ in range(10)]
    start = threading.Barrier(WRITERS, timeout=30)

    def run(n: int) -> int:
        send = send_bulk if n % 2 else send_one
        payer = user_id if n % 4 < 2 else None
        with psycopg.connect(database, autocommit=True) as conn:
            new = 0
            for message in messages:
                start.wait()
                new += send(conn, replace(message, user_id=payer))[0]
            return new

    with ThreadPoolExecutor(WRITERS) as threads:
        new = list(threads.map(run, range(WRITERS)))

    assert sum(new) == len(messages)
    with psycopg.connect(database) as conn:
        assert len(rows(conn, "messages")) == len(messages)
        assert usage_differences(conn) == []


def test_bulks_of_the_same_calls_for_other_payers_do_not_deadlock(database: str):
    """Their order by payer crosses; their order by id does not."""
    choose = Random("payers")
    with psycopg.connect(database) as conn:
        users = [add_user(conn) for _ in range(20)]
        device = add_fingerprint(conn)
    messages = [new_message(fingerprint_id=device, id=uuid4()) for _ in range(400)]
    bulks = []
    for _ in range(WRITERS):
        bulk = [replace(m, user_id=choose.choice([None, *users])) for m in messages]
        choose.shuffle(bulk)
        bulks.append(bulk)
    start = threading.Barrier(WRITERS, timeout=30)

    def run(bulk: list[NewMessage]) -> int:
        with psycopg.connect(database, autocommit=True) as conn:
            new = 0
            for n in range(0, len(bulk), 100):
                start.wait()
                new += record_messages(conn, bulk[n : n + 100]).recorded
            return new

    with ThreadPoolExecutor(WRITERS) as threads:
        new = list(threads.map(run, bulks))

    assert sum(new) == len(messages)
    with psycopg.connect(database) as conn:
        assert usage_differences(conn) == []


def test_message_of_another_users_sign_in_is_refused_by_the_index(
    conn: psycopg.Connection, user_id: UUID, device: UUID
):
    """Plain SQL meets the same rule as the functions."""
    send_one(conn, new_message(id=UUID(int=7), fingerprint_id=device))

    with pytest.raises(
        psycopg.errors.UniqueViolation, match="messages_fingerprint_id_id_idx"
    ):
        insert_by_hand(
            conn, new_message(id=UUID(int=7), user_id=user_id, fingerprint_id=device)
        )


def test_calls_recorded_twice_stop_the_migration_until_repaired(empty_database: str):
    """By the statements of CHANGELOG.md, which leave the bill as it is."""
    name = "0019_create_messages_fingerprint_id_id_idx"
    before = [file.name for file in read_migrations() if file.name < name]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    find, repair, *_ = re.findall(r"```sql\n(.*?)```", changelog, re.DOTALL)
    migrate(empty_database, names=before)
    with psycopg.connect(empty_database, autocommit=True) as conn:
        users, device = [add_user(conn) for _ in range(2)], add_fingerprint(conn)
        anonymous = [new_message(fingerprint_id=device) for _ in range(3)]
        calls = [
            anonymous[0],
            *(replace(anonymous[0], user_id=user) for user in users),
            *(replace(anonymous[1], user_id=user) for user in users),
            anonymous[2],
        ]
        for call in calls:
            insert_by_hand(conn, call)

        with pytest.raises(
            MigrationError, match=f"{name}.*{device}.* is duplicated.*CHANGELOG"
        ):
            migrate(empty_database)
        found = conn.execute(find.encode()).fetchall()
        conn.execute(repair.encode())
        migrate(empty_database)

        assert {(key, len(payers)) for _, key, payers in found} == {
            (anonymous[0].id, 3),
            (anonymous[1].id, 2),
        }
        assert len(rows(conn, "messages")) == len(calls)
        assert usage_differences(conn) == []
        kept = conn.execute(
            "SELECT id, user_id IS NULL FROM app.messages"
            " WHERE fingerprint_id IS NOT NULL"
        ).fetchall()
        assert sorted(kept) == sorted(
            [(anonymous[0].id, True), (anonymous[1].id, False), (anonymous[2].id, True)]
        )
        with pytest.raises(psycopg.errors.RestrictViolation):
            conn.execute("UPDATE app.messages SET fingerprint_id = NULL")


def read_nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from read_nodes(child)


def test_plan_made_for_few_messages_reads_none_of_many_twice(
    conn: psycopg.Connection,
):
    """The plan is kept for the session: a loop over all rows for each would be slow."""
    conn.execute(QUERIES["create_staged_messages"].sql)

    row = conn.execute(
        "EXPLAIN (FORMAT JSON) " + QUERIES["record_messages"].sql
    ).fetchone()

    assert row is not None
    loops = [
        child
        for node in read_nodes(row[0][0]["Plan"])
        if node["Node Type"] == "Nested Loop"
        for child in node["Plans"]
        if child.get("CTE Name") in {"first_message", "new_message"}
        or child.get("Relation Name") == "staged_messages"
    ]
    assert loops == []
