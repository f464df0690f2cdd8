"""A delivery is believed, taken in and applied, or it leaves nothing behind."""

import json
import time

import psycopg
import pytest

from pyapp import users
from pyapp._core.connection import connect
from pyapp.errors import (
    ConfigError,
    InvalidPayloadError,
    InvalidSignatureError,
    OpenTransactionError,
)
from pyapp.stripe_sync import handle_webhook
from pyapp.stripe_sync.webhooks import MAX_BODY
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import (
    StripeWorld,
    make_customer,
    make_event,
    make_subscription,
)

CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"


def test_delivery_that_nobody_signed_is_refused_and_not_stored(world: StripeWorld):
    body = make_event("customer.created", make_customer("cus_1"))
    good = sign(body, [TEST_SECRET])
    refused = {
        "by another secret": (body, sign(body, ["whsec_other"])),
        "six minutes ago": (body, sign(body, [TEST_SECRET], int(time.time()) - 360)),
        "without a signature": (body, None),
        "with an empty one": (body, ""),
        "with half of one": (body, good.partition(",")[0]),
        "with nonsense": (body, "t=now,v1=yes"),
        "by an unknown scheme": (body, good.replace("v1=", "v0=")),
        "for another body": (body.replace(b"cus_1", b"cus_2"), good),
        "for what is not UTF-8": (b"\xff" + body, good),
    }

    for why, (payload, signature) in refused.items():
        with pytest.raises(InvalidSignatureError) as caught:
            handle_webhook(world.conn, payload, signature, [TEST_SECRET])
        assert TEST_SECRET not in str(caught.value), why
    assert world.events() == []


def test_either_secret_of_a_rotation_is_good(world: StripeWorld):
    body = make_event("customer.created", make_customer("cus_1"))
    secrets = ["whsec_new", TEST_SECRET]

    def result(signature: str, known: list[str] | str) -> str:
        return handle_webhook(world.conn, body, signature, known).result

    assert result(sign(body, ["whsec_new"]), secrets) == "applied"
    assert result(sign(body, [TEST_SECRET]), secrets) == "duplicate"
    assert result(sign(body, ["whsec_x", TEST_SECRET]), TEST_SECRET) == "duplicate"
    with pytest.raises(ConfigError, match="STRIPE_WEBHOOK_SECRET"):
        result(sign(body, [TEST_SECRET]), [])


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"\xef\xbb\xbf{}",
        b"[" * 5000,
        json.dumps({"id": "evt_1", "object": "v2.core.event"}).encode(),
        make_event("customer.created", {}, created="2026-01-01"),  # type: ignore[arg-type]
        make_event("customer.created", {}, id=7),
        make_event("customer.created", {}, data=None),
        b" " * (MAX_BODY + 1),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_signed_body_that_is_no_event_is_refused(conn: psycopg.Connection, body: bytes):
    with pytest.raises(InvalidPayloadError):
        handle_webhook(conn, body, sign(body, [TEST_SECRET]), [TEST_SECRET])


def test_event_takes_effect_once(world: StripeWorld):
    world.customer(world.user())
    (delivery,) = world.take()

    assert world.handle(delivery).result == "applied"
    assert world.handle(delivery).result == "duplicate"
    assert world.events() == [("customer.created", "applied", 1, None)]


def test_unknown_type_is_kept_and_acknowledged(world: StripeWorld):
    kinds = ("customer.subscription.trial_will_end", "invoice.created", "moon.landed")
    for kind in kinds:
        assert world.send(kind, {"id": "x_1", "object": "x"}).result == "ignored"
    assert [(kind, "ignored", 1, None) for kind in kinds] == sorted(world.events())


def test_event_of_a_connected_account_is_not_ours(world: StripeWorld):
    shape = make_customer("cus_1", world.user())
    assert world.send("customer.created", shape, account="acct_1").result == "ignored"


def test_text_that_jsonb_cannot_hold_is_kept_without_it(world: StripeWorld):
    odd = "a\0b \\u0000 \ud83d \U0001f600"
    shape = make_customer("cus_1", world.user(), name=odd, email="a\0@b")
    assert world.send("customer.created", shape).result == "applied"
    kept = world.conn.execute(
        "SELECT payload #>> '{data,object,name}' FROM app.stripe_events"
    ).fetchone()
    assert kept == ("ab \\u0000 ? \U0001f600",)


def test_failure_leaves_the_event_and_nothing_else(world: StripeWorld):
    """State and event are one transaction: a failure at its end undoes it all."""
    user_id = world.user()
    world.send("customer.created", make_customer("cus_1", user_id))
    world.conn.execute(
        "ALTER TABLE app.users ADD CHECK (stripe_price_id <> 'price_bad')"
    )
    shape = make_subscription("sub_1", "cus_1", price="price_bad")

    outcome = world.send(CREATED, shape, id="evt_bad")
    assert "users_stripe_price_id_check" in str(outcome.error)
    assert outcome.result == "failed"
    assert (CREATED, "failed", 1, outcome.error) == world.events()[1]
    assert world.get(user_id).subscription_status is None
    assert (
        world.conn.execute("SELECT id FROM app.stripe_subscriptions").fetchall() == []
    )

    assert world.send(CREATED, shape, id="evt_bad").result == "failed"
    world.conn.execute(
        "ALTER TABLE app.users DROP CONSTRAINT users_stripe_price_id_check"
    )
    assert world.send(CREATED, shape, id="evt_bad").result == "applied"
    assert (CREATED, "applied", 3, outcome.error) == world.events()[1]
    assert world.get(user_id).stripe_price_id == "price_bad"


def test_event_that_lacks_what_a_row_needs_fails_and_is_kept(world: StripeWorld):
    for missing in ("status", "customer", "created"):
        shape = make_subscription(f"sub_{missing}", "cus_1") | {missing: None}
        assert world.send(CREATED, shape).result == "failed"
    assert len(world.events()) == 3


def test_no_key_gets_into_an_error(world: StripeWorld):
    customer = world.customer(world.user())
    subscription = world.subscribe(customer)
    invoice = world.take("invoice.paid")[0]
    key = "sk_test_wrong!key"

    outcome = world.handle(invoice, world.fake.client(key))
    assert outcome.result == "failed"
    assert "AuthenticationError" in str(outcome.error)
    assert "sk_test" not in str(outcome.error)
    assert subscription not in str(world.events())


def test_connection_in_a_transaction_is_refused(world: StripeWorld):
    world.customer(world.user())
    (delivery,) = world.take()
    with world.conn.transaction(), pytest.raises(OpenTransactionError):
        world.handle(delivery)
    assert world.events() == []


def test_connection_is_left_as_it_was(world: StripeWorld):
    """Whatever it is set to, each statement sees what the lock waited for, in UTC."""
    world.customer(world.user())
    (delivery,) = world.take()
    with connect(world.url) as conn:
        conn.execute("SET TimeZone = 'Asia/Kolkata'")
        conn.commit()
        conn.execute("SET default_transaction_isolation = 'serializable'")
        conn.commit()
        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        done = handle_webhook(conn, delivery.payload, delivery.signature, [TEST_SECRET])
        assert done.result == "applied"
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert not conn.autocommit
        assert conn.isolation_level == psycopg.IsolationLevel.SERIALIZABLE
        assert conn.execute("SHOW TimeZone").fetchone() == ("Asia/Kolkata",)
        conn.rollback()
    assert len(world.events()) == 1


def test_anonymized_user_keeps_what_stripe_calls_him(world: StripeWorld):
    user_id = world.user()
    customer = world.customer(user_id)
    subscription = world.subscribe(customer)
    world.deliver()
    users.anonymize_user(world.conn, user_id=user_id)
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.cancel(subscription)
    world.client.v1.customers.delete(customer)
    world.deliver()

    user = world.get(user_id)
    assert (customer, subscription) == (
        user.stripe_customer_id,
        user.stripe_subscription_id,
    )
    assert user.subscription_status == "canceled"
