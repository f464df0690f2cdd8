"""A page of snapshots is upserted as if each snapshot had come alone."""

from typing import Any

import pytest

from pyapp.stripe_sync.snapshots import (
    read_snapshot,
    sync_affected_users,
    upsert_snapshots,
)
from pyapp.stripe_sync.store import ObjectType, UpsertResult
from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_subscription,
    moment,
)

LATER = moment(START + 60)


def upsert_page(
    world: StripeWorld,
    object_type: ObjectType,
    *shapes: dict[str, Any],
    match_email: bool = False,
) -> list[UpsertResult]:
    upserted = upsert_snapshots(
        world.conn,
        object_type,
        [read_snapshot(object_type, shape, LATER) for shape in shapes],
        "page",
        can_fetch=True,
        match_email=match_email,
    )
    sync_affected_users(world.conn, upserted)
    world.conn.commit()
    return upserted


def test_customers_of_one_page_swap_users(world: StripeWorld):
    ada, bob = (
        world.create_user("ada@example.com"),
        world.create_user("bob@example.com"),
    )
    world.handle_event("customer.created", make_customer("cus_1", ada))
    world.handle_event("customer.created", make_customer("cus_2", bob))

    upsert_page(
        world, "customers", make_customer("cus_1", bob), make_customer("cus_2", ada)
    )
    assert world.get_user(ada).stripe_customer_id == "cus_2"
    assert world.get_user(bob).stripe_customer_id == "cus_1"


def test_user_claimed_by_a_whole_page_gets_one_customer(world: StripeWorld):
    ada = world.create_user()
    shapes = [make_customer(f"cus_{n}", ada, created=n) for n in (3, 2, 1)]
    upserted = upsert_page(world, "customers", *shapes)
    assert [one.user_id for one in upserted] == [ada] * 3
    assert world.get_user(ada).stripe_customer_id == "cus_1"


@pytest.mark.parametrize("is_listed_first", [True, False])
@pytest.mark.parametrize("customer", ["cus_1", "cus_3"])
def test_email_does_not_match_a_user_claimed_on_the_page(
    world: StripeWorld, customer: str, is_listed_first: bool
):
    """Not even for an older customer, which would precede the claiming one."""
    ada = world.create_user("ada@example.com")
    claiming = make_customer("cus_2", ada, email="ada@example.com")
    matching = make_customer(customer, email="ada@example.com", created=START - 9)
    shapes = [matching, claiming] if is_listed_first else [claiming, matching]
    upserted = {
        one.id: one
        for one in upsert_page(world, "customers", *shapes, match_email=True)
    }
    assert (upserted["cus_2"].user_id, world.get_user(ada).stripe_customer_id) == (
        ada,
        "cus_2",
    )
    unclaimed = upserted[customer]
    assert (unclaimed.user_id, unclaimed.proposed_user_id) == (None, None)
    assert unclaimed.differences == ["missing_here", "unlinked"]


def test_email_does_not_match_a_user_with_a_customer(world: StripeWorld):
    ada = world.create_user("ada@example.com")
    world.handle_event("customer.created", make_customer("cus_2", ada))
    matching = make_customer("cus_1", email="ada@example.com", created=START - 9)
    (unclaimed,) = upsert_page(world, "customers", matching, match_email=True)
    assert (unclaimed.user_id, unclaimed.proposed_user_id) == (None, None)


def test_page_in_the_second_of_a_deletion_is_ambiguous(world: StripeWorld):
    shape = make_customer("cus_1", world.create_user())
    world.handle_event("customer.created", shape)
    world.handle_event("customer.deleted", shape, int(LATER.timestamp()))
    (listed,) = upsert_page(world, "customers", shape)
    assert listed.result == "ambiguous"
    assert world.customer_row("cus_1").is_deleted


def test_object_listed_twice_on_a_page_is_upserted_once(world: StripeWorld):
    ada = world.create_user()
    customer = make_customer("cus_1", ada)
    assert [one.id for one in upsert_page(world, "customers", customer, customer)] == [
        "cus_1"
    ]
    shape = make_subscription("sub_1", "cus_1")
    assert [one.id for one in upsert_page(world, "subscriptions", shape, shape)] == [
        "sub_1"
    ]
    assert world.get_user(ada).stripe_subscription_id == "sub_1"


def test_empty_page_is_accepted(world: StripeWorld):
    assert upsert_page(world, "customers") == upsert_page(world, "subscriptions") == []
