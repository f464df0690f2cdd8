"""An event is answered as applied if it changed something, and only then."""

import itertools
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.stripe_world import (
    START,
    StripeWorld,
    make_checkout,
    make_customer,
    make_item,
    make_items,
    make_subscription,
)

UPDATED = "customer.subscription.updated"
# One type of those that are read alike.
KINDS = (
    "customer.updated",
    "customer.deleted",
    "customer.subscription.updated",
    "customer.subscription.trial_will_end",
    "invoice.paid",
    "invoice.created",
    "checkout.session.completed",
)
OWNER = UUID("5f3b0a6c-6494-43db-be2b-8ae59cd64184")
# Seconds from the event that made the state.
AGES = (-5, 0, 5)


def subscription(**fields: Any) -> dict[str, Any]:
    return make_subscription("sub_1", "cus_1", **fields)


def dump(world: StripeWorld) -> list[Any]:
    """Return all that an event can change."""
    return world.conn.execute(
        "SELECT to_jsonb(u) - 'updated_at' AS row FROM app.users AS u"
        " UNION ALL SELECT to_jsonb(c) FROM app.stripe_customers AS c"
        " UNION ALL SELECT to_jsonb(s) FROM app.stripe_subscriptions AS s"
        " UNION ALL SELECT to_jsonb(i) FROM app.stripe_subscription_items AS i"
        " ORDER BY row"
    ).fetchall()


def send(world: StripeWorld, *events: tuple[str, dict[str, Any]]) -> None:
    for kind, shape in events:
        assert world.handle_event(kind, shape).result == "applied"


CUSTOMER = ("customer.created", make_customer("cus_1", OWNER))
SUBSCRIPTION = (UPDATED, subscription())
PROVISIONAL = (UPDATED, subscription(cancel_at_period_end=True))
STATES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "nothing": (),
    "customer": (CUSTOMER,),
    "customer of no user": (("customer.created", make_customer("cus_1")),),
    "subscription": (SUBSCRIPTION,),
    "both": (CUSTOMER, SUBSCRIPTION),
    "provisional": (CUSTOMER, SUBSCRIPTION, PROVISIONAL),
    "canceled": (
        CUSTOMER,
        ("customer.subscription.deleted", subscription(status="canceled")),
    ),
    "deleted": (CUSTOMER, SUBSCRIPTION, ("customer.deleted", CUSTOMER[1])),
    "checkout": (
        ("checkout.session.completed", make_checkout("cus_1", OWNER)),
        SUBSCRIPTION,
    ),
    "claim on an absent user": (
        ("customer.created", make_customer("cus_1", uuid4())),
        SUBSCRIPTION,
    ),
}


def shapes_of(kind: str, other: UUID) -> list[dict[str, Any]]:
    """Return objects for an event of this type: as stored, changed, and claiming."""
    if kind.startswith("customer.subscription."):
        more = make_items(make_item("si_1")) | {"has_more": True}
        return [
            subscription(),
            subscription(status="past_due"),
            subscription(items=make_items()),
            subscription(items=more),
            subscription(metadata={"user_id": str(other)}),
            subscription(metadata={"user_id": str(OWNER)}),
        ]
    if kind.startswith("customer."):
        return [
            make_customer("cus_1", OWNER),
            make_customer("cus_1"),
            make_customer("cus_1", other),
            make_customer("cus_1", uuid4()),
            make_customer("cus_1", OWNER, created=START - 9),
        ]
    if kind.startswith("checkout."):
        claims = [None, OWNER, other, uuid4()]
        return [make_checkout("cus_1", one) for one in claims] + [
            make_checkout("cus_1", None, metadata={"user_id": str(one)})
            for one in claims[1:]
        ]
    invoice = {"object": "invoice", "customer": "cus_1"}
    return [invoice, invoice | {"subscription": "sub_1"}]


RUNS = [(state, False) for state in STATES]
# Stripe has none of these objects, so that fetches find nothing.
RUNS += [(state, True) for state in ("both", "provisional", "checkout")]


@pytest.mark.parametrize(("state", "has_client"), RUNS)
def test_event_is_applied_if_and_only_if_it_changes_something(
    world: StripeWorld, state: str, has_client: bool
):
    """Each kind of event, with each object, older, of the same second, and newer."""
    client = world.client if has_client else None
    other = world.create_user()
    wrong = []
    for kind, age in itertools.product(KINDS, AGES):
        for shape in shapes_of(kind, other):
            world.clear_stripe()
            world.conn.execute("DELETE FROM app.users WHERE id = %s", [OWNER])
            world.conn.execute(
                "INSERT INTO app.users (id, email) VALUES (%s, 'o@example.com')",
                [OWNER],
            )
            send(world, *STATES[state])
            before = dump(world)
            outcome = world.handle_event(kind, shape, START + age, client=client)
            is_changed = dump(world) != before
            if outcome.result not in ("applied", "stale", "ignored") or (
                (outcome.result == "applied") != is_changed
            ):
                wrong.append((kind, age, outcome.result, is_changed, shape))
    assert wrong == []


@pytest.mark.parametrize(
    ("fields", "is_named"),
    [
        ({"status": "past_due"}, True),
        ({"items": make_items(make_item("si_1", quantity=2))}, True),
        ({"cancel_at": START + 99}, False),
        ({"pause_collection": {"behavior": "void"}}, False),
        ({}, False),
    ],
)
def test_outcome_names_the_users_whose_entitlement_changed(
    world: StripeWorld, fields: dict[str, Any], is_named: bool
):
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    first = world.handle_event(UPDATED, subscription())
    assert first.user_ids == (user_id,)
    outcome = world.handle_event(UPDATED, subscription(**fields), START + 1)
    assert outcome.result == "applied"
    assert outcome.user_ids == ((user_id,) if is_named else ())
