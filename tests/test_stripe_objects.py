"""Stripe's objects are read in all of their shapes."""

import json

import pytest

from pyapp.stripe_sync.objects import read_subscription
from tests.stripe_world import (
    StripeWorld,
    make_customer,
    make_subscription,
    moment,
    stripe_world,
)

CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"


def test_unknown_status_is_stored_and_entitles_to_nothing(world: StripeWorld):
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    shape = make_subscription("sub_1", "cus_1", status="enchanted")

    assert world.handle_event(CREATED, shape).result == "applied"
    user = world.get_user(user_id)
    assert (user.subscription_status, user.subscription_active) == ("enchanted", False)
    assert user.base_quota == 2500


@pytest.mark.parametrize("price", [None, {}, "price_month"])
def test_item_without_price_or_with_a_price_id_is_read(world: StripeWorld, price):
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    shape = make_subscription("sub_1", "cus_1")
    shape["items"]["data"][0]["price"] = price

    assert world.handle_event(CREATED, shape).result == "applied"
    user = world.get_user(user_id)
    assert user.subscription_active
    assert (price or None) == user.stripe_price_id
    assert (50000 if price else 2500) == user.base_quota


def test_subscription_without_items_is_read(world: StripeWorld):
    shape = make_subscription("sub_1", "cus_1") | {"items": None}
    assert world.handle_event(CREATED, shape).result == "applied"
    assert world.items("sub_1") == []


def test_text_in_place_of_a_flag_is_named(world: StripeWorld):
    """The text "false" is not empty, and would be true."""
    subscription = make_subscription("sub_1", "cus_1", cancel_at_period_end="false")
    outcome = world.handle_event(CREATED, subscription)
    assert outcome.error == "ValueError: cancel_at_period_end is not true or false"
    customer = make_customer("cus_1", deleted="false")
    outcome = world.handle_event("customer.created", customer)
    assert outcome.error == "ValueError: deleted is not true or false"


@pytest.mark.parametrize("status", [7, {"id": "active"}, "", "active\0"])
def test_status_that_is_not_text_is_named(world: StripeWorld, status: object):
    """Stored as an unknown status, it would take the plan away."""
    shape = make_subscription("sub_1", "cus_1", status=status)
    error = world.handle_event(CREATED, shape).error
    assert error is not None
    assert error.startswith("ValueError: status ")


@pytest.mark.parametrize(
    ("parent", "name"),
    [("in_1", "parent"), ({"subscription_details": [1]}, "subscription_details")],
)
def test_wrong_value_of_an_invoice_is_named(
    world: StripeWorld, parent: object, name: str
):
    shape = {"id": "in_1", "object": "invoice", "customer": "cus_1", "parent": parent}
    outcome = world.handle_event("invoice.paid", shape)
    assert outcome.error == f"ValueError: {name} is not an object"


@pytest.mark.parametrize("version", ["2024-06-20", "2026-10-28.endive"])
def test_both_api_versions_are_read(database: str, version: str):
    with stripe_world(database, api_version=version) as world:
        user_id = world.create_user()
        subscription = world.subscribe(world.create_customer(user_id))
        paid = world.pop_deliveries("invoice.paid", "customer.created", CREATED)
        expected = world.client.v1.subscriptions.retrieve(subscription)["items"].data[0]
        world.fake.advance(seconds=1)

        assert [world.handle_delivery(d, world.client).result for d in paid] == [
            "applied"
        ] * 3
        (item,) = world.items(subscription)
        assert item.current_period_start == moment(expected.current_period_start)
        assert item.current_period_end == moment(expected.current_period_end)
        assert item.price_id == "price_month"
        assert item.current_period_end == world.quota_period(user_id)[1]
        stored = world.conn.execute("SELECT api_version FROM app.stripe_events")
        assert {(version,)} == set(stored.fetchall())


def test_subscription_of_an_invoice_is_fetched(world: StripeWorld):
    user_id = world.create_user()
    subscription = world.subscribe(world.create_customer(user_id))
    for delivery in world.pop_deliveries("customer.created", "invoice.paid"):
        assert world.handle_delivery(delivery, world.client).result == "applied"
    assert subscription == world.get_user(user_id).stripe_subscription_id


def test_invoice_without_client_marks_it_provisional(world: StripeWorld):
    subscription = world.create_subscription()
    created, paid = world.pop_deliveries(CREATED, "invoice.paid")
    world.fake.advance(seconds=5)
    world.client.v1.subscriptions.update(subscription, {"metadata": {"a": "b"}})
    (updated,) = world.pop_deliveries(UPDATED)

    assert world.handle_delivery(paid).result == "ignored"
    assert world.handle_delivery(created).result == "applied"
    assert not world.subscription_row(subscription).is_provisional
    again = json.loads(paid.payload)["data"]["object"]
    assert world.handle_event("invoice.paid", again).result == "applied"
    assert world.subscription_row(subscription).is_provisional
    assert world.handle_delivery(updated).result == "applied"
    assert not world.subscription_row(subscription).is_provisional
    assert world.handle_event("invoice.paid", again).result == "stale"


def test_invoice_without_subscription_is_ignored(world: StripeWorld):
    shape = {"id": "in_1", "object": "invoice", "customer": "cus_1", "parent": None}
    assert (
        world.handle_event("invoice.paid", shape, client=world.client).result
        == "ignored"
    )


@pytest.mark.parametrize("seconds", [-62135596800, 253402300799])
@pytest.mark.parametrize("name", ["created", "cancel_at", "trial_end"])
def test_time_that_some_zones_cannot_show_is_refused(name: str, seconds: int):
    """A session east or west of UTC could not read it back."""
    shape = make_subscription("sub_1", "cus_1") | {name: seconds}

    with pytest.raises(ValueError, match=f"{name} is not a number of seconds in range"):
        read_subscription(shape)
