"""Messages: recorded once, alone or in bulk, billed exactly, with any content."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import SerializationFailure

from pyapp._core.connection import connect
from pyapp.errors import (
    ConfigError,
    FingerprintNotFoundError,
    InvalidValueError,
    UnknownModelError,
    UserNotFoundError,
)
from pyapp.messages import (
    MessagePayload,
    NewMessage,
    RecordedMessages,
    find_message_payload,
    get_message,
    list_messages,
    record_message,
    record_messages,
)
from pyapp.pricing import price_usage
from pyapp.usage import list_usage
from pyapp.users import anonymize_user
from tests.metering import (
    add_fingerprint,
    add_user,
    either_way,
    new_message,
    record_one,
    usage_differences,
)
from tests.waiting import Pair, run_blocked

COST = Decimal("0.01")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MISSING = UUID(int=404)


@either_way
def test_message_is_recorded_as_given(conn: psycopg.Connection, user_id: UUID, send):
    message = new_message(
        user_id=user_id,
        fingerprint_id=add_fingerprint(conn),
        finished_at=NOON,
        provider="our\tgateway",
        client_id="run\tone",
        client_request_id="\\N",
        latency_ms=1500,
        cost=Decimal("0.123456789"),
        credits=Decimal("0.0000001"),
        request=[{"a": "\\n\0"}],
        response="ok",
    )

    assert send(conn, message) == (1, Decimal("0.0000001"))

    found = get_message(conn, subject_id=user_id, message_id=message.id)
    for name, value in asdict(message).items():
        if name in found._fields:
            assert getattr(found, name) == value, name
    assert found.total_tokens == 10
    payload = find_message_payload(conn, subject_id=user_id, message_id=message.id)
    assert payload == MessagePayload([{"a": "\\n\ufffd"}], "ok", {"a": "\\n\ufffd"})
    assert usage_differences(conn) == []


def test_same_id_again_adds_nothing(conn: psycopg.Connection, user_id: UUID):
    first = record_message(conn, user_id=user_id, model="m", cost=COST, request=["a"])
    again = record_message(
        conn, id=first.id, user_id=user_id, model="n", cost=COST, response="b"
    )
    other = record_message(
        conn, id=first.id, user_id=add_user(conn), model="m", cost=COST
    )

    assert again == first._replace(is_new=False, cost=Decimal(0), credits=Decimal(0))
    assert other == first
    payload = find_message_payload(conn, subject_id=user_id, message_id=first.id)
    assert payload == MessagePayload(["a"], None, "a")
    assert usage_differences(conn) == []


def test_repeated_messages_of_a_bulk_count_once_and_the_first_wins(
    conn: psycopg.Connection, user_id: UUID
):
    old, new = new_message(request=["old"]), new_message(request=["first"])
    record_messages(conn, [old], user_id=user_id)
    bulk = [
        new,
        replace(old, request=["changed"]),
        replace(new, request=["second"], model="other"),
        new_message(),
    ]

    counts = record_messages(conn, bulk, user_id=user_id)

    assert (counts.recorded, counts.duplicates, counts.credits) == (2, 2, Decimal(2))
    payloads = [
        find_message_payload(conn, subject_id=user_id, message_id=message.id)
        for message in (old, new)
    ]
    assert [p.request for p in payloads if p] == [["old"], ["first"]]
    assert get_message(conn, subject_id=user_id, message_id=new.id).model == new.model
    assert usage_differences(conn) == []


def test_messages_without_an_id_are_each_new(conn: psycopg.Connection, user_id: UUID):
    before = datetime.now(UTC)
    results = [
        record_message(conn, user_id=user_id, model="m", cost=COST) for _ in "ab"
    ]
    after = datetime.now(UTC)

    found = list_messages(conn, subject_id=user_id)
    assert {m.id for m in found} == {r.id for r in results}
    assert all(before <= m.finished_at <= after for m in found)


@either_way
def test_missing_cost_and_credits_are_computed(
    conn: psycopg.Connection, user_id: UUID, send
):
    message = new_message(
        user_id=user_id, finished_at=NOON, cost=None, credits=None, output_tokens=1234
    )
    price = price_usage(
        model=message.model,
        finished_at=NOON,
        input_tokens=message.input_tokens,
        cache_creation_input_tokens=message.cache_creation_input_tokens,
        cache_read_input_tokens=message.cache_read_input_tokens,
        output_tokens=message.output_tokens,
    )

    send(conn, message)

    found = get_message(conn, subject_id=user_id, message_id=message.id)
    assert found.cost == price
    assert found.credits == (price * 120).quantize(Decimal("0.000001"))


def test_margin_is_the_callers_choice(conn: psycopg.Connection, user_id: UUID):
    margin = Decimal("0.555")
    bulk = new_message(cost=COST, credits=None)

    alone = record_message(conn, user_id=user_id, model="m", cost=COST, margin=margin)
    many = record_messages(conn, [bulk], user_id=user_id, margin=margin)

    assert alone.credits == many.credits == Decimal("1.555")


@pytest.mark.usefixtures("fresh_configuration")
def test_margin_is_the_configured_one_by_default(
    conn: psycopg.Connection, user_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYAPP_MARGIN", "1")
    call: dict[str, Any] = {"user_id": user_id, "model": "m", "cost": COST}

    alone = record_message(conn, **call)
    many = record_messages(conn, [new_message(credits=None, **call)])
    given = record_message(conn, margin=Decimal(0), **call)

    assert (alone.credits, many.credits, given.credits) == (
        Decimal(2),
        Decimal(2),
        Decimal(1),
    )


@pytest.mark.usefixtures("fresh_configuration")
def test_invalid_configured_margin_records_nothing(
    conn: psycopg.Connection, user_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYAPP_MARGIN", "20%")

    with pytest.raises(ConfigError, match="PYAPP_MARGIN is '20%'"):
        record_message(conn, user_id=user_id, model="m", cost=COST)
    assert list_messages(conn, subject_id=user_id) == []

    message = new_message(user_id=user_id, credits=Decimal(3))
    assert record_one(conn, message) == (1, Decimal(3))


def test_many_small_messages_bill_exactly(conn: psycopg.Connection, user_id: UUID):
    for _ in range(30):
        record_message(conn, user_id=user_id, model="m", cost=Decimal("0.00000001"))

    (usage,) = list_usage(conn, by="day", subject_id=user_id)
    assert usage.cost == Decimal("0.0000003")
    assert usage.credits == Decimal("0.00003")


def test_unknown_model_is_an_error_that_names_it(
    conn: psycopg.Connection, user_id: UUID
):
    with pytest.raises(UnknownModelError, match="no-such-model"):
        record_message(conn, user_id=user_id, model="no-such-model", input_tokens=1)

    assert list_messages(conn, subject_id=user_id) == []


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"user_id": None}, "no payer"),
        ({"model": ""}, "model must not be empty"),
        ({"cache_read_input_tokens": -1}, "cache_read_input_tokens must be"),
        ({"cache_creation_input_tokens": 2**31}, "from 0 to 2147483647"),
        ({"finished_at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        (
            {"finished_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
            "out of range",
        ),
        ({"cost": 0.1}, "cost must be a Decimal"),
        ({"cost": Decimal("NaN")}, "cost must be from 0"),
        ({"cost": Decimal("-0.01")}, "cost must be from 0"),
        ({"cost": Decimal("1E+100")}, "cost must be from 0"),
        ({"cost": Decimal("1E-101")}, "more than 100 decimals"),
        ({"credits": Decimal("-1")}, "credits must be from 0"),
        ({"margin": Decimal("-1")}, "margin must be from 0"),
        ({"client_id": "x" * 256}, "client_id has 256 characters"),
    ],
)
def test_invalid_value_is_refused_and_named(
    conn: psycopg.Connection, user_id: UUID, values: dict[str, Any], reason: str
):
    """test_bad_input.py tries every type and range of every parameter."""
    message = {"user_id": user_id, "model": "m", "cost": COST, **values}

    with pytest.raises(InvalidValueError, match=reason):
        record_message(conn, **message)

    assert list_messages(conn, subject_id=user_id) == []


def test_whole_number_is_an_amount(conn: psycopg.Connection, user_id: UUID):
    amount: Any = 2

    result = record_message(conn, user_id=user_id, model="m", cost=amount)

    assert (result.cost, result.credits) == (Decimal(2), Decimal(240))


def test_invalid_characters_do_not_lose_the_message(
    conn: psycopg.Connection, user_id: UUID
):
    result = record_message(
        conn,
        user_id=user_id,
        model="m\0",
        client_id="\ud800" + "x" * 254,
        cost=COST,
        request=[{"role\0": "a\0b\udfff", "n": float("nan")}],
        response={"at": float("inf")},
    )

    message = get_message(conn, subject_id=user_id, message_id=result.id)
    payload = find_message_payload(conn, subject_id=user_id, message_id=result.id)
    assert (message.model, message.client_id) == ("m\ufffd", "\ufffd" + "x" * 254)
    assert payload == MessagePayload(
        [{"role\ufffd": "a\ufffdb\ufffd", "n": "NaN"}],
        {"at": "Infinity"},
        {"role\ufffd": "a\ufffdb\ufffd", "n": "NaN"},
    )


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (None, None),
        ([], MessagePayload([], None, None)),
        (["a", "b"], MessagePayload(["a", "b"], None, "b")),
        ("bare", MessagePayload("bare", None, "bare")),
        ({"a": 1}, MessagePayload({"a": 1}, None, None)),
    ],
)
def test_payload_is_optional_and_gives_the_last_message(
    conn: psycopg.Connection, user_id: UUID, request_: Any, expected: object
):
    result = record_message(
        conn, user_id=user_id, model="m", cost=COST, request=request_
    )

    payload = find_message_payload(conn, subject_id=user_id, message_id=result.id)
    assert payload == expected


@either_way
def test_payload_of_an_anonymized_user_is_not_kept(
    conn: psycopg.Connection, user_id: UUID, send
):
    anonymize_user(conn, user_id=user_id)
    late = new_message(user_id=user_id, request=["a"])

    assert send(conn, late)[0] == 1
    assert not find_message_payload(conn, subject_id=user_id, message_id=late.id)


@either_way
def test_payload_recorded_during_anonymizing_is_not_kept(pair: Pair, send):
    conn, other = pair
    user_id = add_user(conn)
    conn.commit()
    anonymize_user(conn, user_id=user_id)
    late = new_message(user_id=user_id, request=["secret"])

    run_blocked(conn, other, send, message=late)

    assert len(list_messages(other, subject_id=user_id)) == 1
    assert not find_message_payload(other, subject_id=user_id, message_id=late.id)


@either_way
def test_repeatable_read_does_not_miss_an_anonymization(pair: Pair, send):
    conn, other = pair
    user_id = add_user(conn)
    conn.commit()
    other.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    other.execute("SELECT")
    anonymize_user(conn, user_id=user_id)
    conn.commit()

    with pytest.raises(SerializationFailure):
        send(other, new_message(user_id=user_id, request=["secret"]))
    other.rollback()

    assert not list_messages(conn, subject_id=user_id)


def test_fingerprint_pays_without_a_user(conn: psycopg.Connection):
    fingerprint = add_fingerprint(conn)

    result = record_message(conn, fingerprint_id=fingerprint, model="m", cost=COST)

    message = get_message(conn, subject_id=fingerprint, message_id=result.id)
    assert (message.user_id, message.fingerprint_id) == (None, fingerprint)


def test_message_of_a_bulk_may_name_another_payer(
    conn: psycopg.Connection, user_id: UUID
):
    other, fingerprint = add_user(conn), add_fingerprint(conn)
    message = new_message()
    bulk = [
        message,
        replace(message, user_id=other),
        replace(message, fingerprint_id=fingerprint),
    ]

    counts = record_messages(conn, bulk, user_id=user_id)

    assert (counts.recorded, counts.duplicates) == (3, 0)
    for payer in (user_id, other, fingerprint):
        assert get_message(conn, subject_id=payer, message_id=message.id)


@either_way
@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"user_id": MISSING}, UserNotFoundError),
        ({"user_id": None, "fingerprint_id": MISSING}, FingerprintNotFoundError),
        ({"fingerprint_id": MISSING}, FingerprintNotFoundError),
    ],
)
def test_unknown_payer_is_refused_and_the_transaction_goes_on(
    conn: psycopg.Connection,
    user_id: UUID,
    values: dict[str, Any],
    error: type[Exception],
    send,
):
    with pytest.raises(error, match=str(MISSING)):
        send(conn, new_message(**{"user_id": user_id, **values}))

    assert list_messages(conn, subject_id=user_id) == []


@pytest.mark.parametrize(
    ("message", "error", "reason"),
    [
        (new_message(output_tokens=-1), InvalidValueError, "message 2: output_tokens"),
        (
            new_message(cost=None, model="no-such-model"),
            UnknownModelError,
            "message 2: .*no-such-model",
        ),
        (new_message(user_id=MISSING), UserNotFoundError, f"no such user: {MISSING}"),
        (
            new_message(fingerprint_id=MISSING),
            FingerprintNotFoundError,
            f"no such fingerprint: {MISSING}",
        ),
    ],
)
def test_one_refused_message_of_a_bulk_records_none(
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


def test_bulk_needs_a_payer_and_may_be_empty(conn: psycopg.Connection):
    with pytest.raises(InvalidValueError, match="message 1: no payer"):
        record_messages(conn, [new_message()])

    nothing = RecordedMessages(0, 0, Decimal(0), Decimal(0))
    assert record_messages(conn, []) == nothing


def test_bulk_is_read_as_a_stream(conn: psycopg.Connection, user_id: UUID):
    class Payload(list[str]):
        """A payload that can be weakly referenced."""

        __hash__ = object.__hash__  # type: ignore[assignment]

    alive: weakref.WeakSet[Payload] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[NewMessage]:
        nonlocal most
        for _ in range(1000):
            payload = Payload(["x" * 1000])
            alive.add(payload)
            most = max(most, len(alive))
            yield new_message(request=payload)

    gc.collect()
    counts = record_messages(conn, stream(), user_id=user_id)

    assert counts.recorded == 1000
    assert most < 10


def test_bulks_leave_the_catalog_unchanged(database: str):
    """Several callers share a session, as behind a pooler: a transaction for each."""
    catalog = "SELECT oid, relfilenode, xmin::text FROM pg_class ORDER BY oid"
    with connect(database) as conn:
        users = [add_user(conn) for _ in range(2)]
        conn.commit()
        conn.autocommit = True
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
