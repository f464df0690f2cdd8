"""Stripe's ids are text of any 1 to 255 characters."""

from typing import Any

import pytest

from pyapp.plans import add_plan_price
from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_item,
    make_items,
    make_subscription,
)

UPDATED = "customer.subscription.updated"
PAID = 50_000
IDS = [
    "7",
    "su_1",
    "cus_" + "x" * 251,
    "ä" * 255,
    "😀" * 255,
    "auth0|5f3b/0a6c",
    "a b",
    "50%",
    "%2F",
    "it's",
    '"quoted"',
    "back\\slash",
    ".",
    "..",
    "../customers",
    "a?b=c&d#e",
    "ada@example.com",
    "{curly}[1]",
    "日本-é",
    "null",
    "5f3b0a6c-6494-43db-be2b-8ae59cd64184",
]


def make_all(name: str, user_id: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a customer and its subscription, all of whose ids are *name*."""
    shape = make_subscription(name, name, items=make_items(make_item(name, name)))
    return make_customer(name, user_id), shape


@pytest.mark.parametrize("name", IDS, ids=lambda name: ascii(name)[:20])
def test_any_id_of_255_characters_is_stored_unchanged(world: StripeWorld, name: str):
    add_plan_price(world.conn, plan_id="paid", stripe_price_id=name)
    user_id = world.create_user()
    customer, subscription = make_all(name, user_id)
    for kind, shape in (("customer.created", customer), (UPDATED, subscription)):
        assert world.handle_event(kind, shape).result == "applied"
    user = world.get_user(user_id)
    assert [
        user.stripe_customer_id,
        user.stripe_subscription_id,
        user.stripe_price_id,
        int(user.base_quota),
    ] == [name, name, name, PAID]
    (item,) = world.items(name)
    assert (item.id, item.price_id) == (name, name)


@pytest.mark.parametrize("name", [one for one in IDS if one not in (".", "..")])
def test_object_of_any_id_is_fetched_and_reconciled(world: StripeWorld, name: str):
    user_id = world.create_user()
    world.create_customer(user_id, id=name)
    world.fake.choose_id("sub", name)
    assert world.subscribe(name) == name
    (paid,) = world.pop_deliveries("invoice.paid")
    assert world.handle_delivery(paid, world.client).result == "applied"
    found = world.reconcile()
    assert [(one.kind, one.object_id) for one in found] == [("missing_here", name)]
    assert world.get_user(user_id).stripe_subscription_id == name
    assert int(world.get_user(user_id).base_quota) == PAID
    assert world.reconcile() == []


@pytest.mark.parametrize("name", ["", "x" * 256, "😀" * 256, "a\0b", "\ud800"])
def test_other_ids_fail_the_event_and_nothing_else(world: StripeWorld, name: str):
    user_id = world.create_user()
    good = make_all("good", user_id)
    customer, subscription = make_all(name, user_id)
    bad = [
        ("customer.updated", customer),
        (UPDATED, subscription),
        (UPDATED, good[1] | {"id": name}),
        (UPDATED, good[1] | {"customer": name}),
        (UPDATED, good[1] | {"items": make_items(make_item(name or "y" * 256))}),
        (
            UPDATED,
            good[1] | {"items": make_items(make_item("si_1", name or "y" * 256))},
        ),
    ]
    results = [world.handle_event(kind, shape).result for kind, shape in bad]
    assert results == ["failed"] * len(bad)
    for table in ("customers", "subscriptions", "subscription_items"):
        assert world.conn.execute(f"SELECT FROM app.stripe_{table}").rowcount == 0
    for kind, shape in (("customer.updated", good[0]), (UPDATED, good[1])):
        assert world.handle_event(kind, shape, START + 1).result == "applied"
    assert world.get_user(user_id).stripe_subscription_id == "good"


def test_ids_that_differ_in_case_or_spaces_are_different(world: StripeWorld):
    names = ["cus", "CUS", "cus ", " cus", "cu\u0301s", "c\u00fas", "cús"]
    users = {name: world.create_user() for name in dict.fromkeys(names)}
    for name, user_id in users.items():
        world.handle_event("customer.created", make_customer(name, user_id))
    assert len(users) == 6
    found = {
        name: world.get_user(one).stripe_customer_id for name, one in users.items()
    }
    assert found == {name: name for name in users}
