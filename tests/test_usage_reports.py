"""Sums over messages: of a client's run or request."""

from decimal import Decimal
from uuid import UUID

import psycopg
import pytest

from pyapp.messages import record_message
from pyapp.usage import get_client_usage, get_request_usage
from tests.metering import add_user


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    return add_user(conn)


def test_usage_of_a_client_and_of_a_request_is_by_model(
    conn: psycopg.Connection, user_id: UUID
):
    other = add_user(conn)
    for payer, model, request_id in [
        (user_id, "b", "r1"),
        (user_id, "a", "r1"),
        (user_id, "b", "r2"),
        (other, "a", "r1"),
    ]:
        record_message(
            conn,
            user_id=payer,
            model=model,
            cost=Decimal("0.1"),
            output_tokens=10,
            client_id="run",
            client_request_id=request_id,
        )

    run = get_client_usage(conn, client_id="run")
    request = get_request_usage(conn, client_request_id="r1", subject_id=user_id)
    nothing = get_client_usage(conn, client_id="none")

    assert [(m.model, m.messages, m.cost) for m in (run.total, *run.models)] == [
        (None, 4, Decimal("0.4")),
        ("a", 2, Decimal("0.2")),
        ("b", 2, Decimal("0.2")),
    ]
    assert [(m.model, m.total_tokens) for m in request.models] == [("a", 10), ("b", 10)]
    assert (request.total.messages, request.total.credits) == (2, Decimal(24))
    assert (nothing.total.messages, nothing.total.cost) == (0, Decimal(0))
    assert nothing.models == ()
