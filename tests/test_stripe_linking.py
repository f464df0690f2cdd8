"""A customer is linked to the user that its metadata or a checkout claims."""

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


def test_user_gets_the_creation_date_of_the_customer(world: StripeWorld):
    user_id = world.create_user()
    world.handle_event(
        "customer.created", make_customer("cus_1", user_id, created=START - 9)
    )
    user = world.get_user(user_id)
    assert user.stripe_customer_id == "cus_1"
    assert user.created_at == moment(START - 9)


def test_subscription_before_its_customer_is_linked_later(world: StripeWorld):
    user_id = world.create_user()
    world.handle_event(CREATED, make_subscription("sub_1", "cus_1"))
    assert world.conn.execute("SELECT FROM app.stripe_customers").rowcount == 0

    world.handle_event("customer.created", make_customer("cus_1", user_id))
    assert world.customer_row("cus_1").user_id == user_id
    assert world.get_user(user_id).stripe_subscription_id == "sub_1"
    assert world.get_user(user_id).base_quota == 50000


@pytest.mark.parametrize(
    "claim", ["", "no uuid", 7, "{'a': 1}", STRANGER, "0" * 31, "\0"]
)
def test_metadata_without_a_known_user_links_no_user(world: StripeWorld, claim):
    world.create_user()
    assert world.handle_event(
        "customer.created", make_customer("cus_1", claim)
    ).result == ("applied")
    assert world.customer_row("cus_1").user_id is None


def test_metadata_may_be_null(world: StripeWorld):
    shape = make_customer("cus_1") | {"metadata": None}
    assert world.handle_event("customer.created", shape).result == "applied"


def test_email_alone_never_links(world: StripeWorld):
    user_id = world.create_user("ada@example.com")
    world.handle_event(
        "customer.created", make_customer("cus_1", email="ada@example.com")
    )
    assert world.customer_row("cus_1").user_id is None
    assert world.get_user(user_id).stripe_customer_id is None


@pytest.mark.parametrize("has_client", [True, False])
def test_checkout_links_by_its_client_reference(world: StripeWorld, has_client: bool):
    user_id = world.create_user()
    session = world.client.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": "price_month", "quantity": 1}],
            "client_reference_id": str(user_id),
        }
    )
    world.fake.complete_checkout(session.id, "who@example.com")
    deliveries = world.pop_deliveries()
    (completed,) = [d for d in deliveries if d.event.type.startswith("checkout")]
    client = world.client if has_client else None

    assert world.handle_delivery(completed, client).result == "applied"
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, user.subscription_active) == (
        world.fake.world.sessions.get(session.id, livemode=False).customer,
        has_client,
    )
    for delivery in deliveries:
        world.handle_delivery(delivery, client)
    user = world.get_user(user_id)
    assert user.subscription_active
    assert user.created_at == moment(START)
    assert not world.customer_row(str(user.stripe_customer_id)).is_provisional


@pytest.mark.parametrize("reference", [None, "", "no uuid", 7, "0" * 31])
def test_checkout_that_claims_no_user_is_ignored(world: StripeWorld, reference):
    outcome = world.handle_event(COMPLETED, make_checkout("cus_1", reference))
    assert outcome.result == "ignored"
    assert world.conn.execute("SELECT id FROM app.stripe_customers").fetchall() == []


def test_checkout_without_a_customer_is_ignored(world: StripeWorld):
    assert (
        world.handle_event(COMPLETED, make_checkout(None, world.create_user())).result
        == "ignored"
    )


def test_checkout_fetches_a_customer_of_which_only_the_id_is_known(
    world: StripeWorld,
):
    user_id = world.create_user()
    customer = world.create_customer()
    shape = make_checkout(customer, user_id)
    world.handle_event(COMPLETED, shape)
    assert world.customer_row(customer).created_at is None
    world.handle_event(COMPLETED, shape, client=world.client)
    assert world.get_user(user_id).created_at == moment(START)


def test_checkout_does_not_move_a_linked_customer(world: StripeWorld):
    owner, other = world.create_user(), world.create_user()
    for customer in ("cus_0", "cus_1"):
        world.handle_event("customer.created", make_customer(customer, owner))
    outcome = world.handle_event(COMPLETED, make_checkout("cus_1", other), START + 1)
    assert (outcome.result, outcome.conflicting_user_id) == ("ignored", other)
    assert world.customer_row("cus_1").user_id == owner
    assert world.get_user(other).stripe_customer_id is None


def test_without_subscriptions_the_linked_or_oldest_customer_counts(
    world: StripeWorld,
):
    user_id = world.create_user()
    shapes = [
        make_customer(name, user_id, created=START - age)
        for name, age in (("cus_c", 0), ("cus_b", 8), ("cus_a", 4))
    ]
    for shape in shapes:
        world.handle_event("customer.created", shape)
    assert world.get_user(user_id).stripe_customer_id == "cus_c"
    world.handle_event("customer.deleted", shapes[0], START + 1)
    assert world.get_user(user_id).stripe_customer_id == "cus_b"


def test_second_live_customer_does_not_replace_the_first(world: StripeWorld):
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_b", user_id), START)
    world.handle_event(CREATED, make_subscription("sub_b", "cus_b"), START)
    earlier = make_customer("cus_a", user_id, created=START - 99)
    world.handle_event("customer.created", earlier, START + 1)
    world.handle_event(
        CREATED, make_subscription("sub_a", "cus_a", status="unpaid"), START + 1
    )

    user = world.get_user(user_id)
    assert user.stripe_customer_id == "cus_b"
    assert user.stripe_subscription_id == "sub_b"
    assert user.created_at == moment(START)
    assert world.customer_row("cus_a").user_id == user_id


def test_paying_customer_precedes_one_that_stopped_paying(world: StripeWorld):
    """A checkout without a customer creates a second one."""
    user_id, first, subscription = world.create_subscribed_user()
    world.client.v1.subscriptions.cancel(subscription)
    world.fake.advance(seconds=60)
    second = world.create_customer()
    bought = world.subscribe(second)
    world.handle_all()
    assert world.get_user(user_id).stripe_customer_id == first

    world.handle_event(COMPLETED, make_checkout(second, user_id), START + 60)
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, user.stripe_subscription_id) == (second, bought)
    assert user.subscription_active
    assert user.base_quota == 50000

    world.subscribe(first, "price_other")
    world.handle_all()
    assert world.get_user(user_id).stripe_customer_id == second
    world.client.v1.subscriptions.cancel(bought)
    world.handle_all()
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, user.subscription_active) == (first, True)


def test_live_customer_replaces_a_deleted_one(world: StripeWorld):
    user_id = world.create_user()
    first, second = make_customer("cus_1", user_id), make_customer("cus_2", user_id)
    world.handle_event("customer.created", first, START)
    world.handle_event(CREATED, make_subscription("sub_1", "cus_1"), START)
    world.handle_event("customer.deleted", first, START + 5)
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, user.subscription_status) == ("cus_1", "canceled")
    assert not user.subscription_active

    world.handle_event(CREATED, make_subscription("sub_2", "cus_2"), START + 9)
    world.handle_event("customer.created", second | {"created": START + 9}, START + 9)
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, user.subscription_status) == ("cus_2", "active")
    assert user.created_at == moment(START + 9)
    assert world.customer_row("cus_1").is_deleted


def test_customer_moves_to_the_user_of_a_later_claim(world: StripeWorld):
    first, second = world.create_user(), world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", first), START)
    world.handle_event(CREATED, make_subscription("sub_1", "cus_1"), START)
    world.handle_event("customer.updated", make_customer("cus_1", second), START + 1)

    assert world.get_user(first).stripe_customer_id is None
    assert world.get_user(first).subscription_status is None
    assert world.get_user(first).base_quota == 2500
    assert world.get_user(second).stripe_customer_id == "cus_1"
    assert world.get_user(second).base_quota == 50000
    assert world.customer_row("cus_1").user_id == second


def test_user_that_loses_a_customer_gets_its_other_one(world: StripeWorld):
    first, second = world.create_user(), world.create_user()
    for customer in ("cus_1", "cus_2"):
        world.handle_event("customer.created", make_customer(customer, first), START)
        world.handle_event(
            CREATED, make_subscription(f"sub_{customer}", customer), START
        )
    assert world.get_user(first).stripe_customer_id == "cus_1"

    world.handle_event("customer.updated", make_customer("cus_1", second), START + 1)
    assert world.get_user(first).stripe_subscription_id == "sub_cus_2"
    assert world.get_user(second).stripe_subscription_id == "sub_cus_1"


def test_link_is_kept_when_the_claim_is_removed(world: StripeWorld):
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id), START)
    world.handle_event("customer.updated", make_customer("cus_1"), START + 1)
    world.handle_event("customer.updated", make_customer("cus_1", uuid4()), START + 2)
    assert world.get_user(user_id).stripe_customer_id == "cus_1"


def test_customer_id_set_by_the_application_is_a_link(world: StripeWorld):
    """Users imported with their customer ids need no metadata."""
    user_id = world.create_user()
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = 'cus_1' WHERE id = %s", [user_id]
    )
    other = world.create_user()
    outcome = world.handle_event(COMPLETED, make_checkout("cus_1", other))
    assert (outcome.result, outcome.conflicting_user_id) == ("ignored", other)
    world.handle_event(CREATED, make_subscription("sub_1", "cus_1"))
    assert world.get_user(user_id).stripe_subscription_id == "sub_1"
    world.handle_event("customer.updated", make_customer("cus_1"), START + 1)
    assert world.customer_row("cus_1").user_id == user_id
    assert world.get_user(user_id).created_at == moment(START)


def test_unseen_customer_of_a_user_is_not_replaced(world: StripeWorld):
    """A replaced link would block a paying user."""
    user_id = world.create_user()
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = 'cus_1' WHERE id = %s", [user_id]
    )
    world.handle_event(CREATED, make_subscription("sub_1", "cus_1"))
    world.handle_event(COMPLETED, make_checkout("cus_2", user_id), START + 1)
    world.handle_event("customer.created", make_customer("cus_3", user_id), START + 1)
    assert world.get_user(user_id).stripe_customer_id == "cus_1"
    assert world.get_user(user_id).subscription_active

    world.handle_event("customer.updated", make_customer("cus_1"), START + 2)
    assert world.customer_row("cus_1").user_id == user_id
    assert world.get_user(user_id).stripe_subscription_id == "sub_1"


def test_outcome_names_the_user_that_loses_its_customer(world: StripeWorld):
    first, second, third = (world.create_user() for _ in range(3))
    world.handle_event(COMPLETED, make_checkout("cus_1", first))

    claim = make_checkout("cus_1", None, metadata={"user_id": str(second)})
    outcome = world.handle_event(COMPLETED, claim)
    assert set(outcome.user_ids) == {first, second}

    customer = make_customer("cus_1", third)
    outcome = world.handle_event("customer.created", customer)
    assert set(outcome.user_ids) == {second, third}


def test_subscription_names_the_user_that_loses_its_customer(world: StripeWorld):
    first, second = (world.create_user() for _ in range(2))
    world.handle_event(COMPLETED, make_checkout("cus_1", first))

    claiming = make_subscription("sub_1", "cus_1", metadata={"user_id": str(second)})
    outcome = world.handle_event(CREATED, claiming)

    assert set(outcome.user_ids) == {first, second}
