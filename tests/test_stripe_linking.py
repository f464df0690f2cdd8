"""Which user a customer belongs to: whom metadata names, or a checkout. No other."""

from uuid import uuid4

import pytest

from tests.stripe_world import (
    START,
    StripeWorld,
    make_checkout,
    make_customer,
    make_subscription,
    moment,
)

CREATED = "customer.subscription.created"
COMPLETED = "checkout.session.completed"
STRANGER = "0f3b0a6c-6494-43db-be2b-8ae59cd64184"


def test_user_was_created_when_his_customer_was(world: StripeWorld):
    user_id = world.user()
    world.send("customer.created", make_customer("cus_1", user_id, created=START - 9))
    user = world.get(user_id)
    assert user.stripe_customer_id == "cus_1"
    assert user.created_at == moment(START - 9)


def test_subscription_that_comes_before_its_customer_is_joined_to_it(
    world: StripeWorld,
):
    user_id = world.user()
    world.send(CREATED, make_subscription("sub_1", "cus_1"))
    assert world.row("sub_1").user_id is None

    world.send("customer.created", make_customer("cus_1", user_id))
    assert world.row("sub_1").user_id == user_id
    assert world.get(user_id).stripe_subscription_id == "sub_1"
    assert world.get(user_id).base_quota == 50000


@pytest.mark.parametrize(
    "claim", ["", "nobody", 7, "{'a': 1}", STRANGER, "0" * 31, "\0"]
)
def test_metadata_that_names_nobody_links_nobody(world: StripeWorld, claim):
    world.user()
    assert world.send("customer.created", make_customer("cus_1", claim)).result == (
        "applied"
    )
    assert world.customer_row("cus_1").user_id is None


def test_metadata_of_another_type_is_no_metadata(world: StripeWorld):
    shape = make_customer("cus_1") | {"metadata": None}
    assert world.send("customer.created", shape).result == "applied"


def test_email_alone_never_links(world: StripeWorld):
    user_id = world.user("ada@example.com")
    world.send("customer.created", make_customer("cus_1", email="ada@example.com"))
    assert world.customer_row("cus_1").user_id is None
    assert world.get(user_id).stripe_customer_id is None


@pytest.mark.parametrize("has_client", [True, False])
def test_checkout_links_by_its_client_reference(world: StripeWorld, has_client: bool):
    user_id = world.user()
    session = world.client.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": "price_month", "quantity": 1}],
            "client_reference_id": str(user_id),
        }
    )
    world.fake.complete_checkout(session.id, "who@example.com")
    deliveries = world.take()
    (completed,) = [d for d in deliveries if d.event.type.startswith("checkout")]
    client = world.client if has_client else None

    assert world.handle(completed, client).result == "applied"
    user = world.get(user_id)
    assert (user.stripe_customer_id, user.subscription_active) == (
        world.fake.world.sessions.get(session.id, livemode=False).customer,
        has_client,
    )
    for delivery in deliveries:
        world.handle(delivery, client)
    user = world.get(user_id)
    assert user.subscription_active
    assert user.created_at == moment(START)
    assert not world.customer_row(str(user.stripe_customer_id)).is_provisional


@pytest.mark.parametrize("reference", [None, "", "nobody", STRANGER])
def test_checkout_that_names_nobody_links_nobody(world: StripeWorld, reference):
    world.send(COMPLETED, make_checkout("cus_1", reference))
    assert world.conn.execute("SELECT id FROM app.stripe_customers").fetchall() == []


def test_checkout_without_a_customer_is_ignored(world: StripeWorld):
    assert world.send(COMPLETED, make_checkout(None, world.user())).result == "ignored"


def test_checkout_does_not_take_a_customer_from_its_user(world: StripeWorld):
    owner, other = world.user(), world.user()
    for customer in ("cus_0", "cus_1"):
        world.send("customer.created", make_customer(customer, owner))
    world.send(COMPLETED, make_checkout("cus_1", other), START + 1)
    assert world.customer_row("cus_1").user_id == owner
    assert world.get(other).stripe_customer_id is None


def test_second_live_customer_of_a_user_does_not_replace_the_first(
    world: StripeWorld,
):
    user_id = world.user()
    world.send("customer.created", make_customer("cus_b", user_id), START)
    world.send(CREATED, make_subscription("sub_b", "cus_b"), START)
    earlier = make_customer("cus_a", user_id, created=START - 99)
    world.send("customer.created", earlier, START + 1)
    world.send(CREATED, make_subscription("sub_a", "cus_a", status="unpaid"), START + 1)

    user = world.get(user_id)
    assert user.stripe_customer_id == "cus_b"
    assert user.stripe_subscription_id == "sub_b"
    assert user.created_at == moment(START)
    assert world.customer_row("cus_a").user_id == user_id


def test_customer_who_pays_counts_before_one_who_no_longer_does(world: StripeWorld):
    """A checkout without a customer makes another one."""
    user_id, first, subscription = world.subscribed()
    world.client.v1.subscriptions.cancel(subscription)
    world.fake.advance(seconds=60)
    second = world.customer()
    bought = world.subscribe(second)
    world.deliver()
    assert world.get(user_id).stripe_customer_id == first

    world.send(COMPLETED, make_checkout(second, user_id), START + 60)
    user = world.get(user_id)
    assert (user.stripe_customer_id, user.stripe_subscription_id) == (second, bought)
    assert user.subscription_active
    assert user.base_quota == 50000

    world.subscribe(first)
    world.deliver()
    assert world.get(user_id).stripe_customer_id == second
    world.client.v1.subscriptions.cancel(bought)
    world.deliver()
    user = world.get(user_id)
    assert (user.stripe_customer_id, user.subscription_active) == (first, True)


def test_deleted_customer_makes_room_for_a_live_one(world: StripeWorld):
    user_id = world.user()
    first, second = make_customer("cus_1", user_id), make_customer("cus_2", user_id)
    world.send("customer.created", first, START)
    world.send(CREATED, make_subscription("sub_1", "cus_1"), START)
    world.send("customer.deleted", first, START + 5)
    user = world.get(user_id)
    assert (user.stripe_customer_id, user.subscription_status) == ("cus_1", "canceled")
    assert not user.subscription_active

    world.send(CREATED, make_subscription("sub_2", "cus_2"), START + 9)
    world.send("customer.created", second | {"created": START + 9}, START + 9)
    user = world.get(user_id)
    assert (user.stripe_customer_id, user.subscription_status) == ("cus_2", "active")
    assert user.created_at == moment(START + 9)
    assert world.customer_row("cus_1").is_deleted


def test_customer_moves_to_the_user_named_later(world: StripeWorld):
    first, second = world.user(), world.user()
    world.send("customer.created", make_customer("cus_1", first), START)
    world.send(CREATED, make_subscription("sub_1", "cus_1"), START)
    world.send("customer.updated", make_customer("cus_1", second), START + 1)

    assert world.get(first).stripe_customer_id is None
    assert world.get(first).subscription_status is None
    assert world.get(first).base_quota == 2500
    assert world.get(second).stripe_customer_id == "cus_1"
    assert world.get(second).base_quota == 50000
    assert world.row("sub_1").user_id == second


def test_user_who_loses_a_customer_falls_back_to_his_other(world: StripeWorld):
    first, second = world.user(), world.user()
    for customer in ("cus_1", "cus_2"):
        world.send("customer.created", make_customer(customer, first), START)
        world.send(CREATED, make_subscription(f"sub_{customer}", customer), START)
    assert world.get(first).stripe_customer_id == "cus_1"

    world.send("customer.updated", make_customer("cus_1", second), START + 1)
    assert world.get(first).stripe_subscription_id == "sub_cus_2"
    assert world.get(second).stripe_subscription_id == "sub_cus_1"


def test_link_stays_when_metadata_no_longer_names_the_user(world: StripeWorld):
    user_id = world.user()
    world.send("customer.created", make_customer("cus_1", user_id), START)
    world.send("customer.updated", make_customer("cus_1"), START + 1)
    world.send("customer.updated", make_customer("cus_1", uuid4()), START + 2)
    assert world.get(user_id).stripe_customer_id == "cus_1"


def test_user_who_holds_a_customer_already_keeps_it(world: StripeWorld):
    """A table filled before there was a mirror needs no metadata."""
    user_id = world.user()
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = 'cus_1' WHERE id = %s", [user_id]
    )
    named = make_checkout("cus_1", world.user())
    assert world.send(COMPLETED, named).result == "applied"
    world.send(CREATED, make_subscription("sub_1", "cus_1"))
    assert world.get(user_id).stripe_subscription_id == "sub_1"
    world.send("customer.updated", make_customer("cus_1"), START + 1)
    assert world.customer_row("cus_1").user_id == user_id
    assert world.get(user_id).created_at == moment(START)


def test_customer_held_but_not_yet_seen_is_not_lost_to_another(world: StripeWorld):
    """Else he who pays by it would be blocked, and nothing would bring it back."""
    user_id = world.user()
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = 'cus_1' WHERE id = %s", [user_id]
    )
    world.send(CREATED, make_subscription("sub_1", "cus_1"))
    world.send(COMPLETED, make_checkout("cus_2", user_id), START + 1)
    world.send("customer.created", make_customer("cus_3", user_id), START + 1)
    assert world.get(user_id).stripe_customer_id == "cus_1"
    assert world.get(user_id).subscription_active

    world.send("customer.updated", make_customer("cus_1"), START + 2)
    assert world.customer_row("cus_1").user_id == user_id
    assert world.get(user_id).stripe_subscription_id == "sub_1"
