"""export_user returns the records of one user, of one snapshot, a batch at a time."""

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from pyapp import aio, payloads
from pyapp._core import run
from pyapp._core.connection import connect
from pyapp.errors import UserNotFoundError
from pyapp.fingerprints import UserFingerprint, list_user_fingerprints
from pyapp.messages import find_message_payload, record_message
from pyapp.roles import apply_roles
from pyapp.sessions import create_session
from pyapp.users import anonymize_user, export_user, get_user
from tests.metering import add_fingerprint, add_user
from tests.payload_months import OLD, fail_to_archive, write_all
from tests.personal_data import add_person
from tests.waiting import Pair, wait_for_waiter

Connection = psycopg.Connection[Any]


def export(conn: Connection, user_id: UUID) -> list[dict[str, Any]]:
    return [json.loads(row.json_text) for row in export_user(conn, user_id=user_id)]


def kinds(records: list[dict[str, Any]]) -> Counter[str]:
    return Counter(record["kind"] for record in records)


def record(conn: Connection, text: str = "words", **payer: UUID | None) -> UUID:
    """Record a message with a payload; return its id."""
    return record_message(
        conn,
        id=uuid4(),
        user_id=payer.get("user_id"),
        fingerprint_id=payer.get("fingerprint_id"),
        model="m",
        cost=Decimal("0.10"),
        request=[text],
    ).id


def test_records_have_their_kinds_and_exact_numbers(conn: Connection):
    person = add_person(conn, "ada")

    rows = list(export_user(conn, user_id=person.user_id))

    records = [json.loads(row.json_text) for row in rows]
    assert [row.kind for row in rows] == [record["kind"] for record in records]
    assert all(next(iter(record)) == "kind" for record in records)
    assert kinds(records) == {
        "user": 1,
        "session": 1,
        "fingerprint": 1,
        "payload": 2,
        "message": 2,
        "usage": 2,
        "referral": 3,
        "stripe_customer": 1,
        "stripe_subscription": 1,
        "stripe_subscription_item": 1,
        "entitlement": 1,
        "stripe_event": 1,
    }
    messages = [record for record in records if record["kind"] == "message"]
    assert {m["cost"] for m in messages} == {"0.1234567890123456789"}
    assert sorted((m["is_anonymous"], m["subject_id"]) for m in messages) == [
        (False, str(person.user_id)),
        (True, str(person.fingerprint_id)),
    ]
    payload = next(record for record in records if record["kind"] == "payload")
    assert payload["response"]["score"] == 0.1


def test_export_of_an_id_without_a_user_is_refused(conn: Connection):
    fingerprint = add_fingerprint(conn)
    record(conn, fingerprint_id=fingerprint)

    for unknown in (uuid4(), fingerprint):
        with pytest.raises(UserNotFoundError):
            export_user(conn, user_id=unknown)

    assert conn.info.transaction_status == TransactionStatus.INTRANS


@pytest.mark.parametrize("named_by", ["session", "message"])
def test_messages_of_a_shared_fingerprint_are_neither_exported_nor_erased(
    conn: Connection, named_by: str
):
    ada, bob = add_user(conn), add_user(conn)
    shared, own = add_fingerprint(conn, sig_hash="s"), add_fingerprint(conn)
    for user_id, fingerprint_id in ((ada, shared), (ada, own)):
        record(conn, user_id=user_id, fingerprint_id=fingerprint_id)
    if named_by == "session":
        create_session(conn, user_id=bob, fingerprint_id=shared)
    else:
        record(conn, user_id=bob, fingerprint_id=shared)
    kept = record(conn, "anonymous", fingerprint_id=shared)
    erased = record(conn, "anonymous", fingerprint_id=own)

    records = export(conn, ada)

    assert list_user_fingerprints(conn, user_id=ada) == sorted(
        [UserFingerprint(shared, True), UserFingerprint(own, False)]
    )
    assert {r["id"]: r["is_shared"] for r in records if r["kind"] == "fingerprint"} == {
        str(shared): True,
        str(own): False,
    }
    anonymous = [r["id"] for r in records if r.get("is_anonymous") and "id" in r]
    assert anonymous == [str(erased)]
    assert str(kept) not in str(records)
    assert str(bob) not in str(records)
    anonymize_user(conn, user_id=ada)
    assert find_message_payload(conn, subject_id=shared, message_id=kept)
    assert find_message_payload(conn, subject_id=own, message_id=erased) is None


def test_erased_user_is_exported_as_it_remains(conn: Connection):
    person = add_person(conn, "ada")
    anonymize_user(conn, user_id=person.user_id)

    records = export(conn, person.user_id)

    assert kinds(records) == {
        "user": 1,
        "message": 1,
        "usage": 1,
        "referral": 2,
        "stripe_customer": 1,
        "stripe_subscription": 1,
        "stripe_subscription_item": 1,
        "entitlement": 1,
        "stripe_event": 1,
    }
    assert records[0]["email"] is None
    assert records[0]["anonymized_at"]


def test_detached_payloads_are_exported(database: str, tmp_path: Path):
    with connect(database) as conn:
        ada, bob = add_user(conn), add_user(conn)
    ids = [write_all(database, user_id, OLD) for user_id in (ada, bob)]
    fail_to_archive(database, tmp_path)

    with connect(database) as conn:
        apply_roles(conn)
        conn.execute("SET LOCAL ROLE pyapp_app")
        found = [r for r in export(conn, ada) if r["kind"] == "payload"]

    assert [payload["message_id"] for payload in found] == [str(ids[0][0])]


def test_application_role_exports_all_and_readonly_role_nothing(conn: Connection):
    person = add_person(conn, "ada")
    expected = export(conn, person.user_id)
    apply_roles(conn)

    conn.execute("SET LOCAL ROLE pyapp_app")
    assert export(conn, person.user_id) == expected
    conn.execute("SET LOCAL ROLE pyapp_readonly")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        export_user(conn, user_id=person.user_id)


class TestEvents:
    """The customer of an event decides which user it is about."""

    def add(self, conn: Connection, id: str, object: Any) -> None:
        conn.execute(
            """
            INSERT INTO app.stripe_events (
                id, type, event_created_at, payload, status, processed_at
            ) VALUES (%s, 'test', now(), %s, 'ignored', now())
            """,
            [id, Jsonb({"data": {"object": object}})],
        )

    def test_event_is_exported_to_the_user_of_its_customer(self, conn: Connection):
        person, other = add_person(conn, "ada"), add_person(conn, "bob")
        user_id, customer = str(person.user_id), person.customer_id
        claim = {"metadata": {"user_id": user_id}, "client_reference_id": user_id}
        self.add(conn, "evt_customer", {"object": "customer", "id": customer})
        self.add(conn, "evt_expanded", {"customer": {"id": customer}})
        self.add(conn, "evt_guest", {"customer": None, "client_reference_id": user_id})
        self.add(conn, "evt_metadata", {"metadata": {"user_id": user_id}})
        self.add(conn, "evt_other", {"customer": other.customer_id, **claim})
        self.add(conn, "evt_claim", {"object": "customer", "id": "cus_9", **claim})
        self.add(conn, "evt_like", {"customer": f"{customer}0"})
        self.add(conn, "evt_text", "a text in place of an object")

        records = export(conn, person.user_id)

        assert {r["id"] for r in records if r["kind"] == "stripe_event"} == {
            "ada-stripe_events-id",
            "evt_customer",
            "evt_expanded",
            "evt_guest",
            "evt_metadata",
        }

    def test_customer_is_that_of_the_users_row_too(self, conn: Connection):
        user_id = add_user(conn, stripe_customer_id="cus_only_there")
        self.add(conn, "evt_1", {"customer": "cus_only_there"})

        assert kinds(export(conn, user_id))["stripe_event"] == 1


class TestStream:
    """The rows come from a cursor of the server."""

    @pytest.fixture(autouse=True)
    def _small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run, "BATCH", 2)

    @pytest.fixture
    def user(self, database: str) -> UUID:
        with connect(database) as conn:
            user_id = add_user(conn)
            for _ in range(5):
                record(conn, user_id=user_id)
        return user_id

    @pytest.mark.parametrize("is_autocommit", [False, True])
    def test_records_are_of_the_snapshot_of_the_call(
        self, database: str, user: UUID, is_autocommit: bool
    ):
        with connect(database) as conn, connect(database) as other:
            conn.autocommit = is_autocommit
            rows = export_user(conn, user_id=user)
            first = next(rows)
            anonymize_user(other, user_id=user)
            other.commit()

            found = [first, *rows]

            assert conn.execute("SELECT name FROM pg_cursors").fetchall() == []
        assert Counter(row.kind for row in found)["payload"] == 5
        assert json.loads(first.json_text)["anonymized_at"] is None

    def test_waiting_payloads_cannot_be_dropped_before_they_are_read(
        self, database: str, user: UUID
    ):
        """Their foreign key needs a lock on messages, which the export holds."""
        with connect(database) as conn, connect(database) as other:
            for _ in range(3):
                create_session(conn, user_id=user)
            conn.commit()
            payloads._detach_default(other)
            other.commit()
            rows = export_user(conn, user_id=user)
            assert next(rows).kind == "user"
            other.execute("SET LOCAL lock_timeout = '20ms'")

            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("DROP TABLE app.waiting_payloads")
            other.rollback()

            assert Counter(row.kind for row in rows)["payload"] == 5

    def test_connection_can_be_used_between_records(self, database: str, user: UUID):
        with connect(database) as conn:
            seen = 0
            for row, twin in zip(
                export_user(conn, user_id=user),
                export_user(conn, user_id=user),
                strict=True,
            ):
                assert row == twin
                assert get_user(conn, user_id=user).id == user
                seen += 1
        assert seen == 13

    @pytest.mark.parametrize("is_autocommit", [False, True])
    def test_abandoned_iterator_leaves_the_connection_usable(
        self, database: str, user: UUID, is_autocommit: bool
    ):
        with connect(database) as conn:
            conn.autocommit = is_autocommit
            rows = export_user(conn, user_id=user)
            next(rows)
            rows.close()  # type: ignore[attr-defined]
            with conn.transaction(force_rollback=True):
                inner = export_user(conn, user_id=user)
                next(inner)
            del inner

            assert get_user(conn, user_id=user).id == user
            conn.rollback()
            assert conn.execute("SELECT name FROM pg_cursors").fetchall() == []

    def test_iterator_ends_with_the_transaction(self, database: str, user: UUID):
        with connect(database) as conn:
            rows = export_user(conn, user_id=user)
            next(rows)
            conn.commit()

            with pytest.raises(psycopg.errors.InvalidCursorName):
                list(rows)

    @pytest.mark.parametrize("is_autocommit", [False, True])
    def test_asyncio_returns_the_same_records(
        self, database: str, user: UUID, is_autocommit: bool
    ):
        async def collect() -> list[Any]:
            async with await AsyncConnection.connect(
                database, autocommit=is_autocommit, options="-c TimeZone=UTC"
            ) as conn:
                with pytest.raises(UserNotFoundError):
                    await aio.users.export_user(conn, user_id=uuid4())
                rows = await aio.users.export_user(conn, user_id=user)
                found = [row async for row in rows]
                assert await aio.users.get_user(conn, user_id=user)
                abandoned = await aio.users.export_user(conn, user_id=user)
                assert (await anext(abandoned)) == found[0]
                await abandoned.aclose()  # type: ignore[attr-defined]
                return found

        with connect(database) as conn:
            assert asyncio.run(collect()) == list(export_user(conn, user_id=user))


def test_erasure_finds_anonymous_payloads_that_are_moved_concurrently(pair: Pair):
    """Payloads of a fingerprint are moved without a lock on the user."""
    eraser, mover = pair
    user_id, fingerprint = add_user(eraser), add_fingerprint(eraser)
    create_session(eraser, user_id=user_id, fingerprint_id=fingerprint)
    message = record(eraser, fingerprint_id=fingerprint)
    eraser.commit()
    payloads._detach_default(mover)
    mover.commit()
    run.execute(mover, "move_waiting_payloads", rows=100)

    with ThreadPoolExecutor() as threads:
        erasing = threads.submit(anonymize_user, eraser, user_id=user_id)
        assert wait_for_waiter(mover) == eraser.info.backend_pid
        mover.commit()
        erasing.result()
    eraser.commit()

    payload = find_message_payload(mover, subject_id=fingerprint, message_id=message)
    assert payload is None
