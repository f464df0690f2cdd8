"""A page of snapshots is judged and kept together, as if each had come alone."""

from typing import Any

import pytest

from pyapp.stripe_sync import mirror
from pyapp.stripe_sync.apply import read_snapshot, sync_affected_users
from pyapp.stripe_sync.mirror import ObjectType, UpsertResult
from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_subscription,
    moment,
)

LATER = moment(START + 60)


def keep(
    world: StripeWorld,
    object_type: ObjectType,
    *shapes: dict[str, Any],
    match_email: bool = False,
) -> list[UpsertResult]:
    judged = mirror.upsert_snapshots(
        world.conn,
        object_type=object_type,
        snapshots=[read_snapshot(object_type, shape, LATER) for shape in shapes],
        source="page",
        can_fetch=True,
        match_email=match_email,
    )
    sync_affected_users(world.conn, judged)
    world.conn.commit()
    return judged


def test_customers_of_one_page_exchange_their_users(world: StripeWorld):
    ada, bob = world.user("ada@example.com"), world.user("bob@example.com")
    world.send("customer.created", make_customer("cus_1", ada))
    world.send("customer.created", make_customer("cus_2", bob))

    keep(world, "customers", make_customer("cus_1", bob), make_customer("cus_2", ada))
    assert world.get(ada).stripe_customer_id == "cus_2"
    assert world.get(bob).stripe_customer_id == "cus_1"


def test_customers_of_one_page_that_name_one_user_leave_him_with_one(
    world: StripeWorld,
):
    ada = world.user()
    shapes = [make_customer(f"cus_{n}", ada, created=n) for n in (3, 2, 1)]
    judged = keep(world, "customers", *shapes)
    assert [one.user_id for one in judged] == [ada] * 3
    assert world.get(ada).stripe_customer_id == "cus_1"


@pytest.mark.parametrize("is_shown_first", [True, False])
@pytest.mark.parametrize("customer", ["cus_1", "cus_3"])
def test_email_alone_is_no_match_for_a_claim_on_the_same_page(
    world: StripeWorld, customer: str, is_shown_first: bool
):
    """Nor if it is the older customer's, who would be the one that he keeps."""
    ada = world.user("ada@example.com")
    claiming = make_customer("cus_2", ada, email="ada@example.com")
    matching = make_customer(customer, email="ada@example.com", created=START - 9)
    shapes = [matching, claiming] if is_shown_first else [claiming, matching]
    judged = {
        one.id: one for one in keep(world, "customers", *shapes, match_email=True)
    }
    assert (judged["cus_2"].user_id, world.get(ada).stripe_customer_id) == (
        ada,
        "cus_2",
    )
    alone = judged[customer]
    assert (alone.user_id, alone.proposed_user_id) == (None, None)
    assert alone.differences == ["missing_here", "unlinked"]


def test_email_alone_is_no_match_for_a_customer_in_the_mirror(world: StripeWorld):
    ada = world.user("ada@example.com")
    world.send("customer.created", make_customer("cus_2", ada))
    matching = make_customer("cus_1", email="ada@example.com", created=START - 9)
    (alone,) = keep(world, "customers", matching, match_email=True)
    assert (alone.user_id, alone.proposed_user_id) == (None, None)


def test_page_of_the_second_of_a_deletion_leaves_it_open(world: StripeWorld):
    shape = make_customer("cus_1", world.user())
    world.send("customer.created", shape)
    world.send("customer.deleted", shape, int(LATER.timestamp()))
    (shown,) = keep(world, "customers", shape)
    assert shown.result == "ambiguous"
    assert world.customer_row("cus_1").is_deleted


def test_what_a_page_shows_twice_counts_once(world: StripeWorld):
    ada = world.user()
    customer = make_customer("cus_1", ada)
    assert [one.id for one in keep(world, "customers", customer, customer)] == ["cus_1"]
    shape = make_subscription("sub_1", "cus_1")
    assert [one.id for one in keep(world, "subscriptions", shape, shape)] == ["sub_1"]
    assert world.get(ada).stripe_subscription_id == "sub_1"


def test_empty_page_is_judged_too(world: StripeWorld):
    assert keep(world, "customers") == keep(world, "subscriptions") == []
