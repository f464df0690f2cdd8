"""A delivery takes five seconds at most, whatever its locks and Stripe's API do."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.messages import record_message
from pyapp.stripe_sync import Outcome, handle_webhook, retry_failed_events
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_event,
    make_subscription,
)

UPDATED = "customer.subscription.updated"
LOCK_USER = "SELECT FROM app.users WHERE stripe_customer_id = 'cus_1' FOR UPDATE"
LOCK_CUSTOMER = "SELECT app.lock_stripe_customer('cus_1')"
PAID = {
    "id": "in_1",
    "object": "invoice",
    "customer": "cus_1",
    "parent": {"subscription_details": {"subscription": "sub_1"}},
}


@contextmanager
def held(world: StripeWorld, statement: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(world.url) as conn:
        conn.execute(statement.encode())
        yield conn
        conn.rollback()


def deliver(
    world: StripeWorld, body: bytes, client: Any = None
) -> tuple[Outcome, float]:
    """Hand over on a connection of its own; return what became of it, and how soon."""
    with connect(world.url) as conn:
        settings = "SELECT current_setting('statement_timeout'),"
        settings += " current_setting('lock_timeout')"
        factory, usual = conn.cursor_factory, conn.execute(settings).fetchone()
        conn.rollback()
        began = time.monotonic()
        outcome = handle_webhook(
            conn, body, sign(body, [TEST_SECRET]), [TEST_SECRET], client
        )
        seconds = time.monotonic() - began
        # What a pool gets back is as it was.
        assert conn.execute(settings).fetchone() == usual
        assert conn.cursor_factory is factory
        return outcome, seconds


def waiting(conn: psycopg.Connection[Any]) -> list[Any]:
    return conn.execute(
        "SELECT pid FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchall()


@pytest.fixture
def linked(world: StripeWorld) -> StripeWorld:
    world.send("customer.created", make_customer("cus_1", world.user()))
    world.send(
        "customer.subscription.created", make_subscription("sub_1", "cus_1"), START
    )
    return world


def change() -> bytes:
    return make_event(UPDATED, make_subscription("sub_1", "cus_1"), START + 5)


@pytest.mark.parametrize("lock", [LOCK_USER, LOCK_CUSTOMER])
def test_locked_delivery_fails_and_is_kept(linked: StripeWorld, lock: str):
    with held(linked, lock):
        outcome, seconds = deliver(linked, change())
        assert waiting(linked.conn) == []
    assert (outcome.result, outcome.is_busy, outcome.attempts) == ("failed", True, 1)
    assert seconds < 5.5
    assert [o.result for o in retry_failed_events(linked.conn)] == ["applied"]


def test_several_locks_have_one_deadline(linked: StripeWorld):
    """The second is met when the first one is free, after three seconds."""
    with ExitStack() as stack:
        first = stack.enter_context(held(linked, LOCK_CUSTOMER))
        stack.enter_context(held(linked, LOCK_USER))
        timer = threading.Timer(3, first.rollback)
        timer.start()
        outcome, seconds = deliver(linked, change())
        timer.join()
    assert (outcome.result, outcome.is_busy) == ("failed", True)
    assert 3 < seconds < 5.5


def test_lock_that_is_free_in_time_is_waited_for(linked: StripeWorld):
    with held(linked, LOCK_CUSTOMER) as conn:
        timer = threading.Timer(2, conn.rollback)
        timer.start()
        outcome, _ = deliver(linked, change())
        timer.join()
    assert outcome.result == "applied"


def test_message_that_is_being_recorded_holds_up_the_link_only(world: StripeWorld):
    """The foreign key's lock is in the way of a new stripe_customer_id."""
    user_id = world.user()
    body = make_event("customer.created", make_customer("cus_1", user_id))
    with connect(world.url) as conn:
        record_message(
            conn,
            id=user_id,
            user_id=user_id,
            model="m",
            cost=Decimal(1),
            input_tokens=1,
        )
        outcome, seconds = deliver(world, body)
        conn.rollback()
    assert (outcome.result, outcome.is_busy) == ("failed", True)
    assert seconds < 5.5
    assert [o.result for o in retry_failed_events(world.conn)] == ["applied"]


def test_event_that_is_itself_locked_has_failed(linked: StripeWorld):
    body = change()
    with held(linked, LOCK_CUSTOMER):
        deliver(linked, body)
    with held(linked, "SELECT FROM app.stripe_events FOR UPDATE"):
        outcome, seconds = deliver(linked, body)
    assert (outcome.result, outcome.is_busy, outcome.attempts) == ("failed", True, None)
    assert seconds < 6


def test_slow_api_of_stripe_has_the_same_deadline(linked: StripeWorld):
    linked.fake.faults.add("slow", path="/v1/subscriptions", seconds=20, times=None)
    outcome, seconds = deliver(
        linked, make_event("invoice.paid", PAID, START + 5), linked.client
    )
    linked.fake.faults.clear()
    assert outcome.result == "failed"
    assert str(outcome.error).startswith("APIConnectionError")
    assert seconds < 5.5


def paid(world: StripeWorld) -> bytes:
    """An invoice of a subscription that Stripe knows, and whose user is linked."""
    _, customer, subscription = world.subscribed()
    details = {"parent": {"subscription_details": {"subscription": subscription}}}
    return make_event(
        "invoice.paid", PAID | details | {"customer": customer}, START + 5
    )


def test_lock_met_after_stripe_was_asked_has_the_same_deadline(world: StripeWorld):
    body = paid(world)
    world.fake.faults.add("slow", path="/v1/subscriptions", seconds=2, times=None)
    with held(world, "SELECT FROM app.users FOR UPDATE"):
        outcome, seconds = deliver(world, body, world.client)
    world.fake.faults.clear()
    assert (outcome.result, outcome.is_busy) == ("failed", True)
    assert 2 < seconds < 5.5


def test_failing_api_is_asked_again_within_the_deadline(world: StripeWorld):
    body = paid(world)
    world.fake.faults.add("error", path="/v1/subscriptions", status=503, times=2)
    outcome, _ = deliver(world, body, world.client)
    assert outcome.result == "applied"
