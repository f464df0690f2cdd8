"""Many messages at once: all or none, each once, at no cost to the catalog."""

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp._core.records import NewMessage
from pyapp.errors import (
    ConfigError,
    FingerprintNotFoundError,
    InvalidValueError,
    UnknownModelError,
    UserNotFoundError,
)
from pyapp.messages import (
    MessagePayload,
    RecordedMessages,
    find_message_payload,
    get_message,
    list_messages,
    record_message,
    record_messages,
)
from pyapp.users import anonymize_user
from tests.metering import add_fingerprint, add_user, new_message, usage_differences
from tests.waiting import wait_for_lock

NOBODY = UUID(int=404)


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    return add_user(conn)


def test_messages_are_recorded_as_given(conn: psycopg.Connection, user_id: UUID):
    device = add_fingerprint(conn)
    cost, credits = Decimal("0.123456789"), Decimal("0.0000001")
    message = new_message(
        fingerprint_id=device,
        user_id=user_id,
        finished_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        client_id="run\tone",
        client_request_id="\\N",
        latency_ms=5,
        cost=cost,
        credits=credits,
        request=[{"a": "\\n\0"}],
        response="ok",
    )

    assert record_messages(conn, [message]) == RecordedMessages(
        recorded=1, duplicates=0, cost=cost, credits=credits
    )
    found = get_message(conn, subject_id=user_id, message_id=message.id)
    payload = find_message_payload(conn, subject_id=user_id, message_id=message.id)

    names = set(NewMessage.__dataclass_fields__) - {"request", "response"}
    assert {name: getattr(message, name) for name in names} == {
        name: getattr(found, name) for name in names
    }
    assert payload == MessagePayload([{"a": "\\n\ufffd"}], "ok", {"a": "\\n\ufffd"})
    assert usage_differences(conn) == []


def test_repeated_messages_count_once_and_the_first_wins(
    conn: psycopg.Connection, user_id: UUID
):
    old, new = new_message(request=["old"]), new_message(request=["first"])
    record_messages(conn, [old], user_id=user_id)

    counts = record_messages(
        conn,
        [
            new,
            replace(old, request=["changed"]),
            replace(new, request=["second"], model="other"),
            new_message(),
        ],
        user_id=user_id,
    )

    said = [
        find_message_payload(conn, subject_id=user_id, message_id=message.id)
        for message in (old, new)
    ]
    assert (counts.recorded, counts.duplicates, counts.credits) == (2, 2, Decimal(2))
    assert [p.request for p in said if p] == [["old"], ["first"]]
    assert get_message(conn, subject_id=user_id, message_id=new.id).model == new.model
    assert usage_differences(conn) == []


def test_payer_is_the_callers_unless_the_message_names_one(
    conn: psycopg.Connection, user_id: UUID
):
    other, device = add_user(conn), add_fingerprint(conn)
    message = new_message()

    counts = record_messages(
        conn,
        [
            message,
            replace(message, user_id=other),
            replace(message, fingerprint_id=device),
        ],
        user_id=user_id,
    )

    assert (counts.recorded, counts.duplicates) == (3, 0)
    for payer in (user_id, other, device):
        assert get_message(conn, subject_id=payer, message_id=message.id)


def test_nothing_is_nothing(conn: psycopg.Connection):
    nothing = RecordedMessages(0, 0, Decimal(0), Decimal(0))

    assert record_messages(conn, []) == nothing


def test_price_and_margin_are_those_of_single_messages(
    conn: psycopg.Connection, user_id: UUID
):
    message = new_message(cost=None, credits=None, output_tokens=1234)
    margin = Decimal("0.35")

    record_messages(conn, [message], user_id=user_id, margin=margin)
    single = record_message(
        conn,
        user_id=user_id,
        model=message.model,
        input_tokens=message.input_tokens,
        cache_creation_input_tokens=message.cache_creation_input_tokens,
        cache_read_input_tokens=message.cache_read_input_tokens,
        output_tokens=message.output_tokens,
        finished_at=message.finished_at,
        margin=margin,
    )

    found = get_message(conn, subject_id=user_id, message_id=message.id)
    assert (found.cost, found.credits) == (single.cost, single.credits)


@pytest.mark.parametrize(
    ("message", "error", "reason"),
    [
        (new_message(output_tokens=-1), InvalidValueError, "message 2: output_tokens"),
        (
            new_message(cost=None, model="no-such-model"),
            UnknownModelError,
            "message 2: .*no-such-model",
        ),
        (
            new_message(user_id=NOBODY),
            UserNotFoundError,
            f"no such user: {NOBODY}",
        ),
        (
            new_message(fingerprint_id=NOBODY),
            FingerprintNotFoundError,
            f"no such fingerprint: {NOBODY}",
        ),
    ],
)
def test_one_that_cannot_be_leaves_none_and_the_transaction_goes_on(
    conn: psycopg.Connection,
    user_id: UUID,
    message: NewMessage,
    error: type[Exception],
    reason: str,
):
    with pytest.raises(error, match=reason):
        record_messages(conn, [new_message(), message], user_id=user_id)

    assert list_messages(conn, subject_id=user_id) == []
    assert record_messages(conn, [new_message()], user_id=user_id).recorded == 1


def test_somebody_must_pay(conn: psycopg.Connection):
    with pytest.raises(InvalidValueError, match="message 1: nobody pays"):
        record_messages(conn, [new_message()])


def test_what_an_erased_person_said_is_not_kept(
    conn: psycopg.Connection, user_id: UUID
):
    anonymize_user(conn, user_id=user_id)
    late = new_message(request=["a"])

    assert record_messages(conn, [late], user_id=user_id).recorded == 1
    assert not find_message_payload(conn, subject_id=user_id, message_id=late.id)


@pytest.mark.parametrize("is_bulk", [False, True])
def test_what_is_recorded_during_anonymizing_keeps_no_payload(
    database: str, is_bulk: bool
):
    with connect(database) as conn, connect(database) as other:
        user_id = add_user(conn)
        conn.commit()
        anonymize_user(conn, user_id=user_id)
        said = new_message(user_id=user_id, request=["secret"])

        with ThreadPoolExecutor() as threads:
            recording = (
                threads.submit(record_messages, other, [said])
                if is_bulk
                else threads.submit(record_message, other, **asdict(said))
            )
            wait_for_lock(conn, other)
            conn.commit()
            recording.result()

        assert len(list_messages(other, subject_id=user_id)) == 1
        assert not find_message_payload(other, subject_id=user_id, message_id=said.id)


@pytest.mark.usefixtures("fresh_configuration")
def test_nothing_is_recorded_with_a_margin_that_cannot_be_read(
    conn: psycopg.Connection, user_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYAPP_MARGIN", "20%")

    with pytest.raises(ConfigError, match="PYAPP_MARGIN is '20%'"):
        record_message(conn, user_id=user_id, model="m", cost=Decimal("0.01"))

    assert list_messages(conn, subject_id=user_id) == []


def test_messages_are_taken_one_by_one(conn: psycopg.Connection, user_id: UUID):
    class Said(list[str]):
        """A payload that can be watched."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    alive: weakref.WeakSet[Said] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[NewMessage]:
        nonlocal most
        for _ in range(2000):
            said = Said(["x" * 1000])
            alive.add(said)
            most = max(most, len(alive))
            yield new_message(request=said)

    gc.collect()
    counts = record_messages(conn, stream(), user_id=user_id)

    assert counts.recorded == 2000
    assert most < 10


def test_bulk_writers_share_a_session_and_leave_the_catalog_alone(database: str):
    with psycopg.connect(database) as conn:
        users = [add_user(conn) for _ in range(2)]
    catalog = "SELECT oid, relfilenode, xmin::text FROM pg_class ORDER BY oid"

    # As behind a pooler: one session, several callers, a transaction for each.
    with psycopg.connect(database, autocommit=True) as conn:
        record_messages(conn, [new_message()], user_id=users[0])
        before = conn.execute(catalog).fetchall()
        for user_id in users:
            with conn.transaction():
                first = record_messages(conn, [new_message()] * 2, user_id=user_id)
                second = record_messages(conn, [new_message()], user_id=user_id)
            assert (first.recorded, first.duplicates) == (1, 1)
            assert (second.recorded, second.duplicates) == (1, 0)
        with pytest.raises(ZeroDivisionError):
            record_messages(
                conn, (new_message(latency_ms=1 // n) for n in [1, 0]), user_id=users[0]
            )
        record_messages(conn, [new_message()], user_id=users[1])

        assert before == conn.execute(catalog).fetchall()
        assert [len(list_messages(conn, subject_id=u)) for u in users] == [3, 3]
        conn.execute("DISCARD ALL")
        assert record_messages(conn, [new_message()], user_id=users[0]).recorded == 1
