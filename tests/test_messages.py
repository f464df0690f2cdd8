"""One message: recorded once, billed exactly, whatever it holds."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp.errors import (
    FingerprintNotFoundError,
    InvalidValueError,
    UnknownModelError,
    UserNotFoundError,
)
from pyapp.messages import (
    MessagePayload,
    find_message_payload,
    get_message,
    list_daily_usage,
    list_messages,
    record_message,
    record_messages,
)
from pyapp.pricing import price_usage
from pyapp.users import anonymize_user
from tests.metering import add_fingerprint, add_user, new_message, usage_differences

COST = Decimal("0.01")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    return add_user(conn)


def test_message_is_recorded_as_given(conn: psycopg.Connection, user_id: UUID):
    device = add_fingerprint(conn)
    result = record_message(
        conn,
        user_id=user_id,
        fingerprint_id=device,
        model="a-model",
        input_tokens=1,
        cache_creation_input_tokens=2,
        cache_read_input_tokens=3,
        output_tokens=4,
        finished_at=NOON,
        client_id="run",
        client_request_id="request",
        cost=Decimal("0.123456789"),
        credits=Decimal("0.0000001"),
        latency_ms=1500,
    )

    message = get_message(conn, subject_id=user_id, message_id=result.id)
    assert (result.is_new, result.cost, result.credits) == (
        True,
        Decimal("0.123456789"),
        Decimal("0.0000001"),
    )
    assert (message.user_id, message.fingerprint_id) == (user_id, device)
    assert (message.finished_at, message.total_tokens) == (NOON, 10)
    assert (message.cost, message.credits) == (result.cost, result.credits)
    assert (message.client_id, message.client_request_id) == ("run", "request")
    assert (message.model, message.latency_ms) == ("a-model", 1500)


def test_same_id_again_adds_nothing(conn: psycopg.Connection, user_id: UUID):
    first = record_message(conn, user_id=user_id, model="m", cost=COST, request=["a"])
    again = record_message(
        conn, id=first.id, user_id=user_id, model="n", cost=COST, response="b"
    )
    other = record_message(
        conn, id=first.id, user_id=add_user(conn), model="m", cost=COST
    )

    assert again == replace(first, is_new=False, cost=Decimal(0), credits=Decimal(0))
    assert other == first
    payload = find_message_payload(conn, subject_id=user_id, message_id=first.id)
    assert payload == MessagePayload(["a"], None, "a")
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


def test_cost_and_credits_are_computed_when_not_given(
    conn: psycopg.Connection, user_id: UUID
):
    counts: dict[str, Any] = {
        "input_tokens": 999,
        "cache_read_input_tokens": 7,
        "output_tokens": 3,
    }
    model = "claude-sonnet-4-5"
    price = price_usage(
        model=model, finished_at=NOON, cache_creation_input_tokens=0, **counts
    )

    plain = record_message(
        conn, user_id=user_id, model=model, finished_at=NOON, **counts
    )
    with_margin = record_message(
        conn, user_id=user_id, model="m", cost=COST, margin=Decimal("0.555")
    )

    assert plain.cost == price
    assert plain.credits == (price * 120).quantize(Decimal("0.000001"))
    assert with_margin.credits == Decimal("1.555")


@pytest.mark.usefixtures("fresh_configuration")
def test_margin_is_the_configured_one_if_none_is_given(
    conn: psycopg.Connection, user_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PYAPP_MARGIN", "1")
    call: dict[str, Any] = {"user_id": user_id, "model": "m", "cost": Decimal("0.01")}

    first = record_message(conn, **call)
    record_messages(conn, [new_message(id=UUID(int=5), credits=None, **call)])
    given = record_message(conn, margin=Decimal(0), **call)

    assert (first.credits, given.credits) == (Decimal(2), Decimal(1))
    second = get_message(conn, subject_id=user_id, message_id=UUID(int=5))
    assert second.credits == Decimal(2)


def test_many_small_calls_bill_what_they_cost(conn: psycopg.Connection, user_id: UUID):
    for _ in range(30):
        record_message(conn, user_id=user_id, model="m", cost=Decimal("0.00000001"))

    (usage,) = list_daily_usage(
        conn, subject_id=user_id, first_day=date.min, last_day=date.max
    )
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
        ({"user_id": None}, "nobody pays"),
        ({"user_id": "ada"}, "user_id must be a UUID"),
        ({"id": "1"}, "id must be a UUID"),
        ({"model": ""}, "model must name"),
        ({"model": None}, "model must be text"),
        ({"input_tokens": True}, "input_tokens must be"),
        ({"output_tokens": 1.0}, "output_tokens must be"),
        ({"cache_read_input_tokens": -1}, "cache_read_input_tokens must be"),
        ({"cache_creation_input_tokens": 2**31}, "from 0 to 2147483647"),
        ({"latency_ms": 0.5}, "latency_ms must be"),
        ({"finished_at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"finished_at": "now"}, "must be a datetime"),
        (
            {"finished_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
            "out of range",
        ),
        ({"cost": 0.1}, "cost must be a Decimal"),
        ({"cost": True}, "cost must be a Decimal"),
        ({"cost": Decimal("NaN")}, "cost must be from 0"),
        ({"cost": Decimal("sNaN")}, "cost must be from 0"),
        ({"cost": float("nan")}, "cost must be a Decimal"),
        ({"cost": Decimal("Infinity")}, "cost must be from 0"),
        ({"cost": Decimal("-0.01")}, "cost must be from 0"),
        ({"cost": Decimal("1E+100")}, "cost must be from 0"),
        ({"cost": Decimal("1E-101")}, "more than 100 decimals"),
        ({"credits": Decimal("-1")}, "credits must be from 0"),
        ({"margin": Decimal("-1")}, "margin must be from 0"),
        ({"client_id": "x" * 256}, "client_id has 256 characters"),
        ({"client_request_id": 7}, "client_request_id must be text"),
    ],
)
def test_impossible_value_is_refused_before_anything_is_sent(
    conn: psycopg.Connection, user_id: UUID, values: dict[str, Any], reason: str
):
    message = {"user_id": user_id, "model": "m", "cost": COST, **values}

    with pytest.raises(InvalidValueError, match=reason):
        record_message(conn, **message)

    assert list_messages(conn, subject_id=user_id) == []


def test_whole_number_is_an_amount(conn: psycopg.Connection, user_id: UUID):
    amount: Any = 2

    result = record_message(conn, user_id=user_id, model="m", cost=amount)

    assert (result.cost, result.credits) == (Decimal(2), Decimal(240))


def test_flawed_text_does_not_lose_the_message(conn: psycopg.Connection, user_id: UUID):
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


def test_payload_is_optional(conn: psycopg.Connection, user_id: UUID):
    bare = record_message(conn, user_id=user_id, model="m", cost=COST)
    empty = record_message(conn, user_id=user_id, model="m", cost=COST, request=[])

    found = [
        find_message_payload(conn, subject_id=user_id, message_id=message.id)
        for message in (bare, empty)
    ]
    assert found == [None, MessagePayload([], None, None)]


@pytest.mark.parametrize(
    ("request_", "last"), [(["a", "b"], "b"), ("bare", "bare"), ({"a": 1}, None)]
)
def test_last_message_is_the_last_of_the_request(
    conn: psycopg.Connection, user_id: UUID, request_: Any, last: Any
):
    result = record_message(
        conn, user_id=user_id, model="m", cost=COST, request=request_
    )

    payload = find_message_payload(conn, subject_id=user_id, message_id=result.id)
    assert payload == MessagePayload(request_, None, last)


def test_what_an_erased_person_said_is_not_kept(
    conn: psycopg.Connection, user_id: UUID
):
    anonymize_user(conn, user_id=user_id)

    late = record_message(conn, user_id=user_id, model="m", cost=COST, request=["a"])

    assert late.is_new
    assert not find_message_payload(conn, subject_id=user_id, message_id=late.id)


def test_device_pays_for_itself(conn: psycopg.Connection):
    device = add_fingerprint(conn)

    result = record_message(conn, fingerprint_id=device, model="m", cost=COST)

    message = get_message(conn, subject_id=device, message_id=result.id)
    assert (message.user_id, message.fingerprint_id) == (None, device)


def test_unknown_payer_is_told_apart_and_the_transaction_goes_on(
    conn: psycopg.Connection, user_id: UUID
):
    nobody = uuid4()
    with pytest.raises(UserNotFoundError, match=str(nobody)):
        record_message(conn, user_id=nobody, model="m", cost=COST)
    with pytest.raises(FingerprintNotFoundError, match=str(nobody)):
        record_message(conn, fingerprint_id=nobody, model="m", cost=COST)
    with pytest.raises(FingerprintNotFoundError):
        record_message(
            conn, user_id=user_id, fingerprint_id=nobody, model="m", cost=COST
        )

    assert list_messages(conn, subject_id=user_id) == []
