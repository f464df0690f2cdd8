"""Costs and credits are exact, and equal in SQL and Python, for all amounts."""

from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyapp.messages import get_message, record_message, record_messages
from pyapp.prices import set_model_price
from pyapp.pricing import PublishedPrice, credits_for_cost
from tests.metering import add_user, new_message

START = datetime(2026, 11, 1, tzinfo=UTC)
COUNTS = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)

# Every amount is rolled back with the transaction of the test.
on_one_connection = settings(
    max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
tokens = st.integers(0, 2**31 - 1)
prices = st.decimals(0, 1000, allow_nan=False, places=4)
# Half of them are halves of the last digit of the credits.
costs = st.one_of(
    st.decimals(0, 10**6, allow_nan=False, places=12),
    st.integers(0, 10**6).map(lambda n: n * Decimal("5E-9")),
)
margins = st.one_of(
    st.sampled_from([Decimal(0), Decimal("0.2"), Decimal(1)]),
    st.decimals(0, 10, allow_nan=False, places=3),
)


@pytest.fixture
def payer(conn: psycopg.Connection) -> dict[str, Any]:
    return {"user_id": add_user(conn)}


@given(cost=costs, margin=margins)
@example(cost=Decimal("0.000000005"), margin=Decimal(0))
@example(cost=Decimal("0.000000015"), margin=Decimal(0))
@on_one_connection
def test_credits_are_rounded_alike_in_sql_and_python(
    conn: psycopg.Connection, payer: dict[str, Any], cost: Decimal, margin: Decimal
):
    published = PublishedPrice(cost, Decimal(0), True, None)
    messages = [
        new_message(cost=cost, credits=None),
        new_message(cost=None, credits=None, published=published),
    ]
    one = record_message(conn, model="m", cost=cost, margin=margin, **payer)
    bulk = record_messages(conn, messages, margin=margin, **payer)

    expected = credits_for_cost(cost, margin)
    with localcontext(prec=200):
        twice = expected * 2

    assert one.credits == expected
    assert (bulk.cost, bulk.credits) == (cost * 2, twice)


@given(
    counts=st.tuples(tokens, tokens, tokens, tokens, tokens),
    each=st.tuples(prices, prices, prices, prices, prices),
    other_cost=costs,
)
@on_one_connection
def test_own_cost_is_the_exact_sum_of_the_products(
    conn: psycopg.Connection,
    payer: dict[str, Any],
    counts: tuple[int, ...],
    each: tuple[Decimal, ...],
    other_cost: Decimal,
):
    fresh, written, hour, read, out = counts
    hour = min(hour, written)
    values: dict[str, Any] = dict(
        zip(COUNTS, (fresh, written, hour, read, out), strict=True)
    )
    model = f"model of {counts} at {each}"
    set_model_price(
        conn,
        model=model,
        valid_from=START,
        input_price=each[0],
        cache_creation_price=each[1],
        cache_creation_1h_price=each[2],
        cache_read_price=each[3],
        output_price=each[4],
    )
    published = PublishedPrice(None, other_cost, True, "unknown")
    with localcontext(prec=200):
        units = (fresh, written - hour, hour, read, out)
        products = (n * price for n, price in zip(units, each, strict=True))
        expected = sum(products, Decimal(0)) / 10**6 + other_cost

    one = record_message(
        conn, model=model, margin=Decimal(0), published=published, **values, **payer
    )
    message = new_message(
        model=model, cost=None, credits=None, published=published, **values
    )
    record_messages(conn, [message], margin=Decimal(0), **payer)
    bulk = get_message(conn, subject_id=payer["user_id"], message_id=message.id)

    assert one.cost == bulk.cost == expected
    assert one.credits == bulk.credits == credits_for_cost(expected, Decimal(0))


@pytest.mark.parametrize("position", range(len(COUNTS)))
def test_own_cost_of_an_unknown_count_is_unknown(
    conn: psycopg.Connection, position: int
):
    set_model_price(
        conn,
        model="m",
        valid_from=START,
        input_price=Decimal(1),
        cache_creation_price=Decimal(2),
        cache_read_price=Decimal(3),
        output_price=Decimal(4),
    )
    counts = [None if n == position else 1000 for n in range(len(COUNTS))]

    row = conn.execute(
        "SELECT * FROM app.find_own_cost(NULL, 'm', %s, %s, %s, %s, %s, %s, 0, TRUE)",
        (START, *counts),
    ).fetchone()

    assert row == (None, None)
