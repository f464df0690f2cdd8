"""Own prices decide costs before the published ones, and never another unit's."""

import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import (
    InvalidValueError,
    UnknownModelError,
)
from pyapp.messages import NewMessage, get_message, list_messages, record_messages
from pyapp.prices import (
    delete_model_price,
    set_model_price,
)
from pyapp.pricing import PublishedPrice
from tests.metering import (
    MICROSECOND,
    add_fingerprint,
    add_user,
    either_way,
    new_message,
    record_one,
    usage_differences,
)
from tests.test_prices import LATER, MODEL, PRICES, START
from tests.waiting import race

UNKNOWN = PublishedPrice(None, Decimal(0), True, "no published price for the model")
KNOWN = PublishedPrice(Decimal(7), Decimal(0), True, None)

Send = Callable[[psycopg.Connection, NewMessage], tuple[int, Decimal]]


def unpriced_message(**values: object) -> NewMessage:
    """Return a message of 1,000 tokens of each count without a cost."""
    defaults: dict[str, object] = {
        "model": MODEL,
        "input_tokens": 1000,
        "cache_creation_input_tokens": 1000,
        "cache_creation_1h_input_tokens": 400,
        "cache_read_input_tokens": 1000,
        "output_tokens": 1000,
        "finished_at": START,
        "published": UNKNOWN,
        "cost": None,
        "credits": None,
    }
    return new_message(**{**defaults, **values})


def cost_of(conn: psycopg.Connection, send: Send, message: NewMessage) -> Decimal:
    assert message.user_id is not None
    assert send(conn, message)[0] == 1
    return get_message(conn, subject_id=message.user_id, message_id=message.id).cost


@either_way
def test_own_price_comes_before_the_published_one(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    set_model_price(conn, **PRICES)
    message = unpriced_message(user_id=user_id, published=KNOWN)

    # 600 of the 1,000 cache writes are kept for five minutes.
    assert cost_of(conn, send, message) == Decimal("0.02295")
    found = get_message(conn, subject_id=user_id, message_id=message.id)
    assert found.credits == Decimal("2.754")
    assert usage_differences(conn) == []


@either_way
def test_own_price_needs_no_price_data(
    conn: psycopg.Connection,
    user_id: UUID,
    monkeypatch: pytest.MonkeyPatch,
    send: Send,
):
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    message = unpriced_message(user_id=user_id, published=None)
    with pytest.raises(UnknownModelError, match="the extra `pricing` is missing: "):
        send(conn, message)

    set_model_price(conn, **PRICES)

    assert cost_of(conn, send, message) == Decimal("0.02295")


@either_way
def test_given_cost_comes_before_the_own_price(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    set_model_price(conn, **PRICES)

    message = unpriced_message(user_id=user_id, cost=Decimal("0.5"))

    assert cost_of(conn, send, message) == Decimal("0.5")


@either_way
def test_searches_are_added_to_the_own_price(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    set_model_price(conn, **PRICES)
    published = replace(UNKNOWN, other_cost=Decimal("0.02"))

    message = unpriced_message(user_id=user_id, published=published)

    assert cost_of(conn, send, message) == Decimal("0.04295")


@either_way
def test_own_price_of_zero_is_zero(conn: psycopg.Connection, user_id: UUID, send: Send):
    free = {name: Decimal(0) for name in PRICES if name.endswith("_price")}
    set_model_price(conn, **PRICES | free)

    message = unpriced_message(user_id=user_id, published=KNOWN)

    assert cost_of(conn, send, message) == 0


@either_way
def test_1_hour_writes_cost_as_others_without_a_price(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    set_model_price(conn, **PRICES | {"cache_creation_1h_price": None})

    message = unpriced_message(user_id=user_id)

    assert cost_of(conn, send, message) == Decimal("0.02205")


@either_way
@pytest.mark.parametrize(
    ("finished_at", "cost"),
    [
        (START - MICROSECOND, Decimal(7)),
        (START, Decimal(1)),
        (START + timedelta(days=1) - MICROSECOND, Decimal(1)),
        (START + timedelta(days=1), Decimal(2)),
        (START + timedelta(days=2), Decimal(7)),
    ],
)
def test_price_holds_from_its_time_until_the_next(
    conn: psycopg.Connection,
    user_id: UUID,
    send: Send,
    finished_at: datetime,
    cost: Decimal,
):
    for day, price in enumerate((Decimal(1), Decimal(2), None)):
        set_model_price(
            conn,
            model=MODEL,
            valid_from=START + timedelta(days=day),
            input_price=price,
            output_price=price,
        )
    message = new_message(
        user_id=user_id,
        model=MODEL,
        input_tokens=1_000_000,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=0,
        output_tokens=0,
        finished_at=finished_at,
        published=KNOWN,
        cost=None,
        credits=None,
    )

    assert cost_of(conn, send, message) == cost


@either_way
@pytest.mark.parametrize("provider", [None, "azure", "our-azure"])
def test_price_is_for_its_provider_alone(
    conn: psycopg.Connection, user_id: UUID, send: Send, provider: str | None
):
    costs = {}
    set_model_price(conn, **PRICES, provider=provider)
    for name in (None, "azure", "our-azure"):
        message = unpriced_message(user_id=user_id, provider=name, published=KNOWN)
        costs[name] = cost_of(conn, send, message)

    assert [name for name, cost in costs.items() if cost != 7] == [provider]


@either_way
def test_names_of_one_provider_have_one_price(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    price = set_model_price(conn, **PRICES, provider=" Azure OpenAI ")
    message = unpriced_message(user_id=user_id, provider="azure_openai")

    assert price.provider == "azure"
    assert cost_of(conn, send, message) == Decimal("0.02295")
    found = get_message(conn, subject_id=user_id, message_id=message.id)
    assert found.provider == "azure"
    later = set_model_price(conn, **PRICES | {"valid_from": LATER, "provider": "azure"})
    deleted = delete_model_price(conn, provider="Azure", model=MODEL, valid_from=LATER)
    assert deleted == later


@either_way
@pytest.mark.parametrize(
    ("prices", "changes", "reason"),
    [
        ({}, {"published": replace(KNOWN, is_standard=False)}, "standard calls only"),
        ({}, {"published": replace(KNOWN, other_cost=None)}, "tokens only"),
        (
            {"cache_creation_price": None, "cache_creation_1h_price": None},
            {},
            "does not include cache writes",
        ),
        ({"cache_read_price": None}, {}, "does not include cache reads"),
    ],
)
def test_own_price_that_does_not_cover_the_call_is_an_error(
    conn: psycopg.Connection,
    user_id: UUID,
    send: Send,
    prices: dict[str, None],
    changes: dict[str, PublishedPrice],
    reason: str,
):
    set_model_price(conn, **PRICES | prices)

    with pytest.raises(
        UnknownModelError,
        match=f"own price of model 'our-model' since 2026-11-01T00:00:00Z.*{reason}",
    ):
        send(conn, unpriced_message(user_id=user_id, **changes))

    assert usage_differences(conn) == []
    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS


@either_way
def test_call_without_the_cache_needs_no_price_of_it(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    set_model_price(
        conn,
        model=MODEL,
        valid_from=START,
        input_price=Decimal(3),
        output_price=Decimal(15),
    )
    message = unpriced_message(
        user_id=user_id,
        cache_creation_input_tokens=0,
        cache_creation_1h_input_tokens=0,
        cache_read_input_tokens=0,
    )

    assert cost_of(conn, send, message) == Decimal("0.018")


@either_way
def test_call_without_a_price_is_an_error_with_the_reason(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    message = unpriced_message(
        user_id=user_id, published=replace(UNKNOWN, reason="a\n")
    )

    with pytest.raises(UnknownModelError, match=r"^(message 1: )?a\\n$"):
        send(conn, message)

    set_model_price(conn, **PRICES)
    assert send(conn, message)[0] == 1


@either_way
def test_call_with_a_price_is_recorded_with_any_reason(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    published = replace(KNOWN, reason="a part has no price")

    message = unpriced_message(user_id=user_id, published=published)

    assert cost_of(conn, send, message) == 7


@either_way
@pytest.mark.parametrize("is_signed_in", [False, True])
def test_retry_without_a_price_is_a_duplicate(
    conn: psycopg.Connection, user_id: UUID, send: Send, is_signed_in: bool
):
    device = add_fingerprint(conn)
    message = unpriced_message(fingerprint_id=device, cost=Decimal(1))
    send(conn, message)

    retry = replace(message, cost=None, user_id=user_id if is_signed_in else None)

    assert send(conn, retry) == (0, Decimal(0))
    assert usage_differences(conn) == []


def test_bulk_leaves_out_and_reports_messages_without_a_price(
    conn: psycopg.Connection, user_id: UUID
):
    known = unpriced_message(published=KNOWN)
    old = unpriced_message(cost=Decimal(1))
    record_messages(conn, [old], user_id=user_id)
    set_model_price(conn, **PRICES | {"cache_read_price": None}, provider="azure")
    bulk = [
        unpriced_message(),
        known,
        unpriced_message(id=known.id),
        replace(old, cost=None),
        unpriced_message(provider="azure"),
    ]
    reported: list[tuple[int, str]] = []

    result = record_messages(
        conn,
        bulk,
        user_id=user_id,
        margin=Decimal(0),
        on_unpriced=lambda position, reason: reported.append((position, reason)),
    )

    assert result == (1, 2, Decimal(7), Decimal(700))
    assert [position for position, _ in reported] == [1, 5]
    assert reported[0][1] == UNKNOWN.reason
    assert "does not include cache reads" in reported[1][1]
    assert usage_differences(conn) == []


def test_first_message_with_a_price_counts(conn: psycopg.Connection, user_id: UUID):
    first = unpriced_message(fingerprint_id=add_fingerprint(conn))
    bulk = [first, replace(first, user_id=user_id, cost=Decimal(2))]

    result = record_messages(conn, bulk, on_unpriced=lambda *_: pytest.fail("reported"))

    assert result[:3] == (1, 1, Decimal(2))


def test_bulk_with_a_message_without_a_price_records_nothing(
    conn: psycopg.Connection, user_id: UUID
):
    bulk = [unpriced_message(published=KNOWN), unpriced_message(), unpriced_message()]

    with pytest.raises(UnknownModelError, match=r"^message 2: no published price"):
        record_messages(conn, bulk, user_id=user_id)

    assert conn.execute("SELECT count(*) FROM app.messages").fetchone() == (0,)


def test_error_of_the_report_records_nothing(conn: psycopg.Connection, user_id: UUID):
    bulk = [unpriced_message(published=KNOWN), unpriced_message()]

    def refuse(_position: int, reason: str) -> None:
        raise LookupError(reason)

    with pytest.raises(LookupError):
        record_messages(conn, bulk, user_id=user_id, on_unpriced=refuse)

    assert conn.execute("SELECT count(*) FROM app.messages").fetchone() == (0,)


@either_way
def test_more_1_hour_writes_than_writes_are_refused(
    conn: psycopg.Connection, user_id: UUID, send: Send
):
    message = unpriced_message(user_id=user_id, cache_creation_1h_input_tokens=1001)

    with pytest.raises(InvalidValueError, match=r"1h_input_tokens \(1001\) exceed"):
        send(conn, message)


def test_plain_sql_reports_a_call_without_a_cost(
    conn: psycopg.Connection, user_id: UUID
):
    row = conn.execute(
        """
        SELECT r.is_new, r.cost, r.unpriced_reason
        FROM app.record_message(
            id => %(id)s, user_id => %(user)s, fingerprint_id => NULL,
            finished_at => now(), input_tokens => 1, cache_creation_input_tokens => 0,
            cache_read_input_tokens => 0, output_tokens => 1, latency_ms => NULL,
            model => 'm', client_id => NULL, client_request_id => NULL, cost => NULL,
            credits => NULL, request => NULL, response => NULL
        ) AS r
        """,
        {"id": uuid4(), "user": user_id},
    ).fetchone()

    assert row == (False, Decimal(0), "no cost is given")


def test_concurrent_price_is_applied_whole_or_not_at_all(database: str):
    with connect(database) as conn:
        user_id = add_user(conn)
    messages = [unpriced_message(user_id=user_id, published=KNOWN) for _ in range(6)]

    def set_price(conn: psycopg.Connection) -> None:
        set_model_price(conn, **PRICES)

    def record(conn: psycopg.Connection) -> None:
        for message in messages:
            record_one(conn, message)
            conn.commit()

    race(database, [set_price, record])

    with connect(database) as conn:
        costs = {message.cost for message in list_messages(conn, subject_id=user_id)}
        assert usage_differences(conn) == []
    assert costs <= {Decimal(7), Decimal("0.02295")}
