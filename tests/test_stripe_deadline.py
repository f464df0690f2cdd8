"""A delivery takes at most five seconds, even with locks and a slow Stripe API."""

import threading
import time
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import pytest

from pyapp._core.connection import connect
from pyapp.messages import record_message
from pyapp.stripe_sync import Outcome, handle_webhook, retry_failed_events
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import (
    START,
    StripeWorld,
    count_lock_waits,
    held,
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


def handle(
    world: StripeWorld, body: bytes, client: Any = None
) -> tuple[Outcome, float]:
    """Handle a delivery on a new connection; return the outcome and its seconds."""
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
        # The connection goes back to a pool unchanged.
        assert conn.execute(settings).fetchone() == usual
        assert conn.cursor_factory is factory
        return outcome, seconds


@pytest.fixture
def linked(world: StripeWorld) -> StripeWorld:
    world.handle_event("customer.created", make_customer("cus_1", world.create_user()))
    world.handle_event(
        "customer.subscription.created", make_subscription("sub_1", "cus_1"), START
    )
    return world


def change() -> bytes:
    return make_event(UPDATED, make_subscription("sub_1", "cus_1"), START + 5)


@pytest.mark.parametrize("lock", [LOCK_USER, LOCK_CUSTOMER])
def test_locked_delivery_fails_and_is_stored(linked: StripeWorld, lock: str):
    with held(linked.url, lock):
        outcome, seconds = handle(linked, change())
        assert count_lock_waits(linked.conn) == 0
    assert (outcome.result, outcome.is_busy, outcome.attempts) == ("failed", True, 1)
    assert seconds < 5.5
    assert [o.result for o in retry_failed_events(linked.conn)] == ["applied"]


def test_several_locks_have_one_deadline(linked: StripeWorld):
    """The second lock is requested when the first is free, after three seconds."""
    with ExitStack() as stack:
        first = stack.enter_context(held(linked.url, LOCK_CUSTOMER))
        stack.enter_context(held(linked.url, LOCK_USER))
        timer = threading.Timer(3, first.rollback)
        timer.start()
        outcome, seconds = handle(linked, change())
        timer.join()
    assert (outcome.result, outcome.is_busy) == ("failed", True)
    assert 3 < seconds < 5.5


def test_delivery_waits_for_a_lock_that_is_free_in_time(linked: StripeWorld):
    with held(linked.url, LOCK_CUSTOMER) as conn:
        timer = threading.Timer(2, conn.rollback)
        timer.start()
        outcome, _ = handle(linked, change())
        timer.join()
    assert outcome.result == "applied"


def test_message_in_progress_does_not_block_a_link(world: StripeWorld):
    """Its foreign key locks the user's key; stripe_customer_id is not part of one."""
    user_id = world.create_user()
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
        outcome, _ = handle(world, body)
        conn.rollback()
    assert outcome.result == "applied"


def test_event_whose_own_row_is_locked_fails(linked: StripeWorld):
    body = change()
    with held(linked.url, LOCK_CUSTOMER):
        handle(linked, body)
    with held(linked.url, "SELECT FROM app.stripe_events FOR UPDATE"):
        outcome, seconds = handle(linked, body)
    assert (outcome.result, outcome.is_busy, outcome.attempts) == ("failed", True, None)
    assert seconds < 6


def test_slow_stripe_api_has_the_same_deadline(linked: StripeWorld):
    linked.fake.faults.add("slow", path="/v1/subscriptions", seconds=20, times=None)
    outcome, seconds = handle(
        linked, make_event("invoice.paid", PAID, START + 5), linked.client
    )
    linked.fake.faults.clear()
    assert outcome.result == "failed"
    assert str(outcome.error).startswith("APIConnectionError")
    assert seconds < 5.5


def make_paid(world: StripeWorld) -> bytes:
    """Return invoice.paid of an existing subscription with a linked user."""
    _, customer, subscription = world.create_subscribed_user()
    details = {"parent": {"subscription_details": {"subscription": subscription}}}
    return make_event(
        "invoice.paid", PAID | details | {"customer": customer}, START + 5
    )


def test_lock_after_a_fetch_has_the_same_deadline(world: StripeWorld):
    body = make_paid(world)
    world.fake.faults.add("slow", path="/v1/subscriptions", seconds=2, times=None)
    with held(world.url, "SELECT FROM app.users FOR UPDATE"):
        outcome, seconds = handle(world, body, world.client)
    world.fake.faults.clear()
    assert (outcome.result, outcome.is_busy) == ("failed", True)
    assert 2 < seconds < 5.5


def test_failed_request_is_retried_within_the_deadline(world: StripeWorld):
    body = make_paid(world)
    world.fake.faults.add("error", path="/v1/subscriptions", status=503, times=2)
    outcome, _ = handle(world, body, world.client)
    assert outcome.result == "applied"
