"""The endpoint gives each outcome to the application, after the response."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from pyapp._core.connection import connect, pool
from pyapp.entitlements import get_entitlement
from pyapp.stripe_sync import Outcome
from pyapp.stripe_sync.web import create_app
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import StripeWorld, make_event, make_subscription


@contextmanager
def endpoint(
    world: StripeWorld, on_outcome: Callable[[Outcome], None]
) -> Iterator[TestClient]:
    with pool(world.url, max_size=2) as connections:
        app = create_app(connections, [TEST_SECRET], on_outcome=on_outcome)
        yield TestClient(app)


def post(web: TestClient, body: bytes) -> int:
    headers = {"Stripe-Signature": sign(body, [TEST_SECRET])}
    return web.post("/stripe/webhook", content=body, headers=headers).status_code


def make_body(user_id: object, **fields: object) -> bytes:
    metadata = {"user_id": str(user_id)}
    shape = make_subscription("sub_1", "cus_1", metadata=metadata, **fields)
    return make_event("customer.subscription.created", shape)


def test_application_gets_each_outcome(world: StripeWorld):
    user_id = world.create_user()
    outcomes: list[Outcome] = []
    body, odd = make_body(user_id), make_body(user_id, status=None)

    with endpoint(world, outcomes.append) as web:
        statuses = [post(web, one) for one in (body, body, odd, b"[]")]

    assert statuses == [200, 200, 500, 400]
    assert [one.result for one in outcomes] == ["applied", "duplicate", "failed"]
    assert [one.user_ids for one in outcomes] == [(user_id,), (), ()]


def test_application_reads_what_the_event_committed(world: StripeWorld):
    user_id = world.create_user()
    plans: list[str | None] = []

    def read(outcome: Outcome) -> None:
        with connect(world.url) as conn:
            plans.append(get_entitlement(conn, user_id=outcome.user_ids[0]).plan_id)

    with endpoint(world, read) as web:
        post(web, make_body(user_id))

    assert plans == ["paid"]


def test_error_of_the_application_is_logged_without_its_text(
    world: StripeWorld, caplog: pytest.LogCaptureFixture
):
    def fail(_: Outcome) -> None:
        raise ValueError("ada@example.com")

    with endpoint(world, fail) as web:
        status = post(web, make_body(world.create_user()))

    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert (status, record.getMessage()) == (200, "stripe outcome not handled")
    assert vars(record)["kind"] == "ValueError"
    assert "ada@example.com" not in caplog.text
