"""The strongest claim names the user of a customer, also before the user exists."""

import itertools
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp.users import create_user
from tests.stripe_claims import (
    FREE,
    PAID,
    PAIRS,
    SOURCES,
    UPDATED,
    add_paid_customer,
    claim,
    claimed,
    insert,
    quota,
)
from tests.stripe_world import (
    NUMBERS,
    START,
    StripeWorld,
    held,
    make_customer,
    make_subscription,
)


@pytest.mark.parametrize(("strong", "weak"), PAIRS)
def test_stronger_claim_moves_the_link(world: StripeWorld, strong: str, weak: str):
    add_paid_customer(world)
    first, second = world.create_user(), world.create_user()
    outcome = claim(world, weak, first)
    assert (outcome.result, outcome.user_ids) == ("applied", (first,))
    assert claimed(world) == (first, first, weak)

    outcome = claim(world, strong, second)
    assert outcome.result == "applied"
    assert set(outcome.user_ids) == {first, second}
    assert outcome.conflicting_user_id is None
    assert claimed(world) == (second, second, strong)
    assert [quota(world, one) for one in (first, second)] == [FREE, PAID]
    assert world.get_user(first).stripe_customer_id is None


@pytest.mark.parametrize(("strong", "weak"), PAIRS)
def test_weaker_claim_never_moves_a_link(world: StripeWorld, strong: str, weak: str):
    add_paid_customer(world)
    first, second = world.create_user(), world.create_user()
    claim(world, strong, first)
    outcome = claim(world, weak, second)
    # A subscription is stored also if its claim does not win.
    assert outcome.result == ("applied" if weak == "subscription" else "ignored")
    assert (outcome.user_ids, outcome.conflicting_user_id) == ((), second)
    assert claimed(world) == (first, first, strong)
    assert [quota(world, one) for one in (first, second)] == [PAID, FREE]


@pytest.mark.parametrize(
    "order", [*itertools.permutations(range(len(SOURCES)))], ids=str
)
def test_strongest_claim_wins_in_any_order(world: StripeWorld, order):
    users = [world.create_user() for _ in SOURCES]
    for number in order:
        claim(world, SOURCES[number], users[number])
    assert claimed(world) == (users[0], users[0], "customer")
    linked = [world.get_user(one).stripe_customer_id for one in users]
    assert linked == ["cus_1", None, None, None]


@pytest.mark.parametrize("source", SOURCES[1:])
def test_first_of_equally_strong_claims_stays(world: StripeWorld, source: str):
    first, second = world.create_user(), world.create_user()
    claim(world, source, first, "sub_1")
    outcome = claim(world, source, second, "sub_2")
    assert outcome.conflicting_user_id == second
    assert claimed(world) == (first, first, source)
    assert claim(world, source, first, "sub_1").conflicting_user_id is None


@pytest.mark.parametrize("source", SOURCES[1:])
def test_known_user_comes_before_an_equal_claim_on_none(
    world: StripeWorld, source: str
):
    user_id, absent = world.create_user(), uuid4()
    claim(world, source, absent, "sub_1")
    claim(world, source, user_id, "sub_2")
    assert claimed(world) == (user_id, user_id, source)
    insert(world.conn, absent)
    assert claimed(world)[0] == user_id


@pytest.mark.parametrize("source", SOURCES)
def test_absent_user_that_a_lost_claim_names_is_not_linked(
    world: StripeWorld, source: str
):
    """Neither by its creation nor by a repeated claim."""
    owner, absent = world.create_user(), uuid4()
    claim(world, "customer", owner)
    if source != "customer":
        claim(world, source, absent)
    insert(world.conn, absent)
    assert claimed(world) == (owner, owner, "customer")
    assert world.get_user(absent).stripe_customer_id is None


def insert_many(conn: psycopg.Connection[Any], user_id: UUID) -> None:
    insert(conn, uuid4(), user_id, uuid4())


def copy(conn: psycopg.Connection[Any], user_id: UUID) -> None:
    with conn.cursor().copy("COPY app.users (id, email) FROM STDIN") as rows:
        for one in (uuid4(), user_id):
            rows.write_row([one, f"{one}@example.com"])


def create(conn: psycopg.Connection[Any], user_id: UUID) -> None:
    """Create the user by create_user, with the id that it will get."""
    conn.execute(f"ALTER TABLE app.users ALTER COLUMN id SET DEFAULT '{user_id}'")
    assert create_user(conn, email="new@example.com").id == user_id


@pytest.mark.parametrize("make", [insert, insert_many, copy, create])
@pytest.mark.parametrize("source", SOURCES)
def test_claim_takes_effect_when_its_user_is_created(
    world: StripeWorld,
    source: str,
    make: Callable[[psycopg.Connection[Any], UUID], None],
):
    add_paid_customer(world)
    user_id = uuid4()
    outcome = claim(world, source, user_id)
    assert (outcome.result, outcome.user_ids) == ("applied", ())
    assert claimed(world) == (None, user_id, source)
    make(world.conn, user_id)
    assert claimed(world) == (user_id, user_id, source)
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, int(user.base_quota)) == ("cus_1", PAID)
    assert user.created_at.timestamp() == START


def test_creation_takes_all_claims_on_the_new_users(world: StripeWorld):
    users = [uuid4() for _ in range(3)]
    for number in range(6):
        shape = make_customer(f"cus_{number}", users[number % 3])
        world.handle_event("customer.created", shape)
        shape = make_subscription(f"sub_{number}", f"cus_{number}")
        world.handle_event(UPDATED, shape)
    insert(world.conn, *users[:2])
    owners = [world.customer_row(f"cus_{number}").user_id for number in range(6)]
    assert owners == [users[0], users[1], None] * 2
    assert [quota(world, one) for one in users[:2]] == [PAID, PAID]


def test_creation_that_is_rolled_back_links_no_user(world: StripeWorld):
    add_paid_customer(world)
    user_id = uuid4()
    claim(world, "checkout", user_id)
    with world.conn.transaction(force_rollback=True):
        insert(world.conn, user_id)
        assert claimed(world)[0] == user_id
    assert claimed(world) == (None, user_id, "checkout")
    insert(world.conn, user_id)
    assert quota(world, user_id) == PAID


@pytest.mark.parametrize(("strong", "weak"), PAIRS)
def test_link_stays_until_the_user_of_a_stronger_claim_exists(
    world: StripeWorld, strong: str, weak: str
):
    add_paid_customer(world)
    owner, absent = world.create_user(), uuid4()
    claim(world, weak, owner)
    claim(world, strong, absent)
    assert claimed(world) == (owner, absent, strong)
    assert quota(world, owner) == PAID
    insert(world.conn, absent)
    assert claimed(world) == (absent, absent, strong)
    assert [quota(world, one) for one in (owner, absent)] == [FREE, PAID]


@pytest.mark.parametrize(("strong", "weak"), PAIRS)
def test_claim_on_an_absent_user_excludes_weaker_ones(
    world: StripeWorld, strong: str, weak: str
):
    add_paid_customer(world)
    other, absent = world.create_user(), uuid4()
    claim(world, strong, absent)
    assert claim(world, weak, other).conflicting_user_id == other
    assert claimed(world) == (None, absent, strong)
    assert quota(world, other) == FREE


NEXT = (
    *SOURCES,
    "customer without a claim",
    "subscription without a claim",
    "invoice",
    "reconciliation",
)


@pytest.mark.parametrize("event", NEXT)
def test_claim_left_by_a_creation_is_taken_by_the_next_event(
    world: StripeWorld, event: str
):
    """The creation does not wait for a delivery that holds the customer's lock."""
    customer = world.create_customer()
    subscription = world.subscribe(customer)
    world.handle_all()
    user_id = uuid4()
    claim(world, "checkout", user_id, customer=customer)
    world.conn.execute("SET lock_timeout = '5s'")
    with held(world.url, "SELECT app.lock_stripe_customer(%s)", customer):
        insert(world.conn, user_id)
    row = world.customer_row(customer)
    assert (row.user_id, row.claimed_user_id) == (None, user_id)
    assert quota(world, user_id) == FREE

    source, _, is_silent = event.partition(" ")
    if event == "reconciliation":
        found = world.reconcile()
        assert [(d.kind, d.object_id) for d in found] == [("unlinked", customer)]
    elif event == "invoice":
        shape = {
            "object": "invoice",
            "customer": customer,
            "subscription": subscription,
        }
        second = START + next(NUMBERS)
        world.handle_event("invoice.paid", shape, second, client=world.client)
    else:
        named = None if is_silent else user_id
        outcome = claim(world, source, named, customer=customer)
        assert (outcome.result, outcome.user_ids) == ("applied", (user_id,))
    assert quota(world, user_id) == PAID


def test_fetched_object_of_an_ambiguous_event_takes_the_claim(world: StripeWorld):
    """The user that loses the customer loses the plan: both changes are one."""
    customer = world.create_customer()
    subscription = world.subscribe(customer)
    world.handle_all()
    owner, absent = world.create_user(), uuid4()
    claim(world, "reference", owner, customer=customer)
    claim(world, "checkout", absent, customer=customer)
    with held(world.url, "SELECT app.lock_stripe_customer(%s)", customer):
        insert(world.conn, absent)
    assert claimed(world, customer) == (owner, absent, "checkout")

    # Two states of one second.
    params = {"cancel_at_period_end": True}
    world.client.v1.subscriptions.update(subscription, params)  # type: ignore[arg-type]
    (delivery,) = world.pop_deliveries()
    outcome = world.handle_delivery(delivery, world.client)

    assert outcome.result == "applied"
    assert set(outcome.user_ids) == {owner, absent}
    assert [quota(world, one) for one in (owner, absent)] == [FREE, PAID]
