"""A delivery is verified, stored and applied in one transaction."""

import json
import time
from typing import Any

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
from pyapp.stripe_sync import Outcome, handle_webhook
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


def test_delivery_without_a_valid_signature_is_refused(world: StripeWorld):
    body = make_event("customer.created", make_customer("cus_1"))
    good = sign(body, [TEST_SECRET])
    refused = {
        "by another secret": (body, sign(body, ["whsec_other"])),
        "six minutes ago": (body, sign(body, [TEST_SECRET], int(time.time()) - 360)),
        "without a signature": (body, None),
        "an empty signature": (body, ""),
        "half a signature": (body, good.partition(",")[0]),
        "nonsense": (body, "t=now,v1=yes"),
        "by an unknown scheme": (body, good.replace("v1=", "v0=")),
        "for another body": (body.replace(b"cus_1", b"cus_2"), good),
        "for a body that is not UTF-8": (b"\xff" + body, good),
    }

    for why, (payload, signature) in refused.items():
        with pytest.raises(InvalidSignatureError) as caught:
            handle_webhook(world.conn, payload, signature, [TEST_SECRET])
        assert TEST_SECRET not in str(caught.value), why
    assert world.events() == []


def test_either_secret_of_a_rotation_is_valid(world: StripeWorld):
    body = make_event("customer.created", make_customer("cus_1"))
    secrets = ["whsec_new", TEST_SECRET]

    def result(signature: str, known: list[str] | str) -> str:
        return handle_webhook(world.conn, body, signature, known).result

    assert result(sign(body, ["whsec_new"]), secrets) == "applied"
    assert result(sign(body, [TEST_SECRET]), secrets) == "duplicate"
    assert result(sign(body, ["whsec_x", TEST_SECRET]), TEST_SECRET) == "duplicate"
    with pytest.raises(ConfigError, match="STRIPE_WEBHOOK_SECRET"):
        result(sign(body, [TEST_SECRET]), [])


def test_too_large_body_is_refused(world: StripeWorld):
    body = b" " * (MAX_BODY + 1)
    with pytest.raises(InvalidPayloadError, match="more than 1048576 bytes"):
        handle_webhook(world.conn, body, sign(body, [TEST_SECRET]), [TEST_SECRET])


def test_event_applies_once(world: StripeWorld):
    world.create_customer(world.create_user())
    (delivery,) = world.pop_deliveries()

    assert world.handle_delivery(delivery).result == "applied"
    assert world.handle_delivery(delivery).result == "duplicate"
    assert world.events() == [("customer.created", "applied", 1, None)]


def test_unknown_type_is_stored_and_ignored(world: StripeWorld):
    kinds = ("customer.subscription.trial_will_end", "invoice.created", "moon.landed")
    for kind in kinds:
        assert (
            world.handle_event(kind, {"id": "x_1", "object": "x"}).result == "ignored"
        )
    assert [(kind, "ignored", 1, None) for kind in kinds] == sorted(world.events())


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"account": "acct_1"}, "it is of the connected account acct_1"),
        (
            {"account": "acct_1", "context": "acct_1"},
            "it is of the connected account acct_1",
        ),
        ({"context": "acct_2"}, "it is of the organization's account acct_2"),
        ({"account": ["x"]}, "it is of the connected account (not an id)"),
        ({"livemode": True}, "it is of the other mode; only test events are applied"),
    ],
)
def test_event_of_another_owner_is_ignored_by_name(
    world: StripeWorld, fields: dict[str, Any], note: str
):
    body = make_event("customer.created", make_customer("cus_1"), **fields)

    def handle() -> Outcome:
        signature = sign(body, [TEST_SECRET])
        return handle_webhook(
            world.conn, body, signature, [TEST_SECRET], livemode=False
        )

    outcome = handle()
    assert (outcome.result, outcome.note, outcome.error) == ("ignored", note, None)
    assert world.events() == [("customer.created", "ignored", 1, note)]
    assert (handle().result, handle().note) == ("duplicate", None)
    assert world.conn.execute("SELECT FROM app.stripe_customers").rowcount == 0


THIN = {
    "id": "evt_test_1",
    "object": "v2.core.event",
    "type": "v1.customer.subscription.updated",
    "created": "2026-10-01T10:00:00.000Z",
    "livemode": False,
    "related_object": {"id": "sub_1", "type": "subscription", "url": "/v1/..."},
}
HEAD = {"id": "evt_1", "type": "ping", "created": 1}
NOT_EVENTS: list[tuple[Any, str]] = [
    (
        THIN,
        r"v1\.customer\.subscription\.updated is a thin event, .*: snapshot",
    ),
    (THIN | {"object": "event"}, "a thin event"),
    (THIN | {"type": "\x1b"}, "it is a thin event"),
    ({"id": "cus_1", "object": "customer"}, "it is an object of type customer"),
    ({"object": "list", "data": []}, "it is an object of type list"),
    ({"error": {"type": "api_error"}}, "it is an error of Stripe's API"),
    ([], "it is not an object"),
    (None, "it is missing or null"),
    ({"id": None}, "data is missing or null"),
    ({"data": []}, "data is not an object"),
    (HEAD | {"data": {}}, r"data\.object is missing or null"),
    (HEAD | {"data": {"object": "cus_1"}}, r"data\.object is not an object"),
    ({"data": {"object": {}}}, "id is missing or null"),
    ({"data": {"object": {}}, "id": 7}, "id is not text of 1 to 255 characters"),
    ({"data": {"object": {}}, "id": "\0"}, "id contains a character"),
    ({"data": {"object": {}}, "id": "evt_1"}, "type is missing or null"),
]


@pytest.mark.parametrize(("body", "reason"), NOT_EVENTS)
def test_body_that_is_not_an_event_says_why(world: StripeWorld, body: Any, reason: str):
    payload = json.dumps(body).encode()
    with pytest.raises(InvalidPayloadError, match=f"^not an event: .*{reason}"):
        handle_webhook(world.conn, payload, sign(payload, [TEST_SECRET]), [TEST_SECRET])


@pytest.mark.parametrize(
    ("created", "reason"),
    [
        (None, "missing or null"),
        ("today", "not a number of seconds"),
        (True, "not a number of seconds"),
        (10**20, "out of range"),
    ],
)
def test_event_with_a_wrong_time_says_so(world: StripeWorld, created: Any, reason: str):
    with pytest.raises(InvalidPayloadError, match=f"created is {reason}"):
        world.handle_event("customer.created", make_customer("cus_1"), created)


def test_characters_that_jsonb_refuses_are_replaced(world: StripeWorld):
    name = "a\0b \\u0000 \ud83d \U0001f600"
    shape = make_customer("cus_1", world.create_user(), name=name, email="a\0@b")
    assert world.handle_event("customer.created", shape).result == "applied"
    stored = world.conn.execute(
        "SELECT payload #>> '{data,object,name}' FROM app.stripe_events"
    ).fetchone()
    assert stored == ("a\ufffdb \\u0000 \ufffd \U0001f600",)


def test_failed_event_is_stored_and_changes_nothing(world: StripeWorld):
    """The last statement fails, and the transaction is rolled back."""
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    world.conn.execute(
        "ALTER TABLE app.users ADD CHECK (stripe_price_id <> 'price_bad')"
    )
    shape = make_subscription("sub_1", "cus_1", price="price_bad")

    outcome = world.handle_event(CREATED, shape, id="evt_bad")
    assert "users_stripe_price_id_check" in str(outcome.error)
    assert outcome.result == "failed"
    assert (CREATED, "failed", 1, outcome.error) == world.events()[1]
    assert world.get_user(user_id).subscription_status is None
    assert (
        world.conn.execute("SELECT id FROM app.stripe_subscriptions").fetchall() == []
    )

    assert world.handle_event(CREATED, shape, id="evt_bad").result == "failed"
    world.conn.execute(
        "ALTER TABLE app.users DROP CONSTRAINT users_stripe_price_id_check"
    )
    assert world.handle_event(CREATED, shape, id="evt_bad").result == "applied"
    assert (CREATED, "applied", 3, outcome.error) == world.events()[1]
    assert world.get_user(user_id).stripe_price_id == "price_bad"


def test_event_without_a_required_value_fails(world: StripeWorld):
    for missing in ("status", "customer", "created"):
        shape = make_subscription(f"sub_{missing}", "cus_1") | {missing: None}
        assert world.handle_event(CREATED, shape).result == "failed"
    assert len(world.events()) == 3


def test_connection_in_a_transaction_is_refused(world: StripeWorld):
    world.create_customer(world.create_user())
    (delivery,) = world.pop_deliveries()
    with world.conn.transaction(), pytest.raises(OpenTransactionError):
        world.handle_delivery(delivery)
    assert world.events() == []


def test_connection_settings_are_kept(world: StripeWorld):
    """The transaction is READ COMMITTED even if the connection's default is not."""
    world.create_customer(world.create_user())
    (delivery,) = world.pop_deliveries()
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


def test_anonymized_user_keeps_its_stripe_ids(world: StripeWorld):
    user_id = world.create_user()
    customer = world.create_customer(user_id)
    subscription = world.subscribe(customer)
    world.handle_all()
    users.anonymize_user(world.conn, user_id=user_id)
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.cancel(subscription)
    world.client.v1.customers.delete(customer)
    world.handle_all()

    user = world.get_user(user_id)
    assert (customer, subscription) == (
        user.stripe_customer_id,
        user.stripe_subscription_id,
    )
    assert user.subscription_status == "canceled"
