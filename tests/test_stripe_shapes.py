"""What Stripe sends is read in every shape that it has."""

import json

import pytest

from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_subscription,
    stripe_world,
)

CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"


def test_unknown_status_is_kept_and_entitles_to_nothing(world: StripeWorld):
    user_id = world.user()
    world.send("customer.created", make_customer("cus_1", user_id))
    shape = make_subscription("sub_1", "cus_1", status="enchanted")

    assert world.send(CREATED, shape).result == "applied"
    user = world.get(user_id)
    assert (user.subscription_status, user.subscription_active) == ("enchanted", False)
    assert user.base_quota == 2500


@pytest.mark.parametrize("price", [None, {}, "price_month"])
def test_item_without_price_or_with_a_bare_one_is_read(world: StripeWorld, price):
    user_id = world.user()
    world.send("customer.created", make_customer("cus_1", user_id))
    shape = make_subscription("sub_1", "cus_1")
    shape["items"]["data"][0]["price"] = price

    assert world.send(CREATED, shape).result == "applied"
    user = world.get(user_id)
    assert user.subscription_active
    assert (price or None) == user.stripe_price_id
    assert (50000 if price else 2500) == user.base_quota


def test_subscription_without_items_is_read(world: StripeWorld):
    shape = make_subscription("sub_1", "cus_1") | {"items": None}
    assert world.send(CREATED, shape).result == "applied"
    assert world.row("sub_1").current_period_end is None


def test_of_several_items_the_one_that_ends_first_counts(world: StripeWorld):
    shape = make_subscription("sub_1", "cus_1", price="price_late", end=START + 900)
    early = make_subscription("sub_1", "cus_1", price="price_early", end=START + 800)
    shape["items"]["data"] += early["items"]["data"]
    world.send(CREATED, shape)

    row = world.row("sub_1")
    assert row.current_period_end is not None
    assert row.price_id == "price_early"
    assert row.current_period_end.timestamp() == START + 800


@pytest.mark.parametrize("version", ["2024-06-20", "2026-10-28.endive"])
def test_both_shapes_of_the_api_are_read(database: str, version: str):
    with stripe_world(database, api_version=version) as world:
        user_id = world.user()
        subscription = world.subscribe(world.customer(user_id))
        paid = world.take("invoice.paid", "customer.created", CREATED)
        expected = world.client.v1.subscriptions.retrieve(subscription)["items"].data[0]
        world.fake.advance(seconds=1)

        assert [world.handle(d, world.client).result for d in paid] == ["applied"] * 3
        row = world.row(subscription)
        assert row.current_period_start is not None
        assert row.current_period_end is not None
        assert expected.current_period_start == row.current_period_start.timestamp()
        assert expected.current_period_end == row.current_period_end.timestamp()
        assert row.price_id == "price_month"
        assert row.current_period_end == world.period(user_id)[1]
        stored = world.conn.execute("SELECT api_version FROM app.stripe_events")
        assert {(version,)} == set(stored.fetchall())


def test_invoice_has_its_subscription_fetched(world: StripeWorld):
    user_id = world.user()
    subscription = world.subscribe(world.customer(user_id))
    for delivery in world.take("customer.created", "invoice.paid"):
        assert world.handle(delivery, world.client).result == "applied"
    assert subscription == world.get(user_id).stripe_subscription_id


def test_invoice_without_a_client_flags_its_subscription(world: StripeWorld):
    subscription = world.subscribe(world.customer(world.user()))
    created, paid = world.take(CREATED, "invoice.paid")
    world.fake.advance(seconds=5)
    world.client.v1.subscriptions.update(subscription, {"metadata": {"a": "b"}})
    (updated,) = world.take(UPDATED)

    assert world.handle(paid).result == "ignored"
    assert world.handle(created).result == "applied"
    assert not world.row(subscription).is_provisional
    again = json.loads(paid.payload)["data"]["object"]
    assert world.send("invoice.paid", again).result == "applied"
    assert world.row(subscription).is_provisional
    assert world.handle(updated).result == "applied"
    assert not world.row(subscription).is_provisional
    assert world.send("invoice.paid", again).result == "stale"


def test_invoice_without_subscription_is_ignored(world: StripeWorld):
    shape = {"id": "in_1", "object": "invoice", "customer": "cus_1", "parent": None}
    assert world.send("invoice.paid", shape, client=world.client).result == "ignored"
