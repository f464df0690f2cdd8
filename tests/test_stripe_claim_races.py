"""Users are created while deliveries and pages claim them."""

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import IsolationLevel

from pyapp._core.connection import connect
from pyapp.stripe_sync import Outcome
from pyapp.stripe_sync.snapshots import (
    read_snapshot,
    sync_affected_users,
    upsert_snapshots,
)
from pyapp.stripe_sync.store import lock_customers
from tests.stripe_claims import (
    COMPLETED,
    FREE,
    PAID,
    SOURCES,
    UPDATED,
    add_paid_customer,
    claim,
    claimed,
    insert,
    quota,
)
from tests.stripe_world import (
    START,
    StripeWorld,
    make_checkout,
    make_customer,
    make_subscription,
    moment,
)
from tests.waiting import wait_for_lock, wait_for_waiter


def upsert_page(conn: psycopg.Connection[Any], *claims: tuple[str, UUID]) -> None:
    """Apply a page of customers as a reconciliation does, without a commit."""
    lock_customers(conn, ids=[customer for customer, _ in claims])
    rows = [
        read_snapshot("customers", make_customer(*one), moment(START + 99))
        for one in claims
    ]
    upserted = upsert_snapshots(conn, "customers", rows, "page", can_fetch=True)
    sync_affected_users(conn, upserted)


@pytest.mark.parametrize("source", SOURCES)
def test_user_committed_while_its_delivery_waits_is_linked(
    world: StripeWorld, source: str
):
    add_paid_customer(world)
    user_id = uuid4()
    with ThreadPoolExecutor(1) as pool, connect(world.url) as holder:
        holder.execute("SELECT app.lock_stripe_customer('cus_1')")
        delivery = pool.submit(claim, world, source, user_id)
        wait_for_waiter(holder)
        with connect(world.url) as conn:
            insert(conn, user_id)
            conn.commit()
        holder.rollback()
        outcome = delivery.result(10)
    assert (outcome.result, outcome.user_ids) == ("applied", (user_id,))
    assert quota(world, user_id) == PAID


@pytest.mark.parametrize("source", SOURCES)
def test_delivery_does_not_wait_for_a_creation(world: StripeWorld, source: str):
    """The user is inserted and not committed; the next event takes the claim."""
    add_paid_customer(world)
    user_id = uuid4()
    with connect(world.url) as conn:
        insert(conn, user_id)
        assert claim(world, source, user_id).result == "applied"
        conn.commit()
    assert claimed(world) == (None, user_id, source)
    outcome = world.handle_event(UPDATED, make_subscription("sub_2", "cus_1"))
    assert outcome.user_ids == (user_id,)
    assert quota(world, user_id) == PAID


def test_delivery_waits_for_a_creation_that_takes_its_customer(world: StripeWorld):
    add_paid_customer(world)
    user_id, other = uuid4(), world.create_user()
    claim(world, "reference", user_id)
    with ThreadPoolExecutor(1) as pool, connect(world.url) as conn:
        insert(conn, user_id)
        delivery = pool.submit(claim, world, "checkout", other)
        wait_for_waiter(conn)
        conn.commit()
        outcome = delivery.result(10)
    assert set(outcome.user_ids) == {user_id, other}
    assert [quota(world, one) for one in (user_id, other)] == [FREE, PAID]


@pytest.mark.parametrize(
    "level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
)
def test_creation_in_an_older_snapshot_leaves_the_claim(
    world: StripeWorld, level: IsolationLevel
):
    """It does not see the cancellation; the next event takes the claim."""
    add_paid_customer(world)
    user_id = uuid4()
    claim(world, "customer", user_id)
    with connect(world.url) as conn:
        conn.isolation_level = level
        conn.execute("SELECT FROM app.users")
        canceled = make_subscription("sub_paid", "cus_1", status="canceled")
        world.handle_event(UPDATED, canceled, START + 1)
        insert(conn, user_id)
        conn.commit()
    assert quota(world, user_id) == FREE
    claim(world, "customer", user_id)
    assert claimed(world) == (user_id, user_id, "customer")
    assert world.get_user(user_id).subscription_status == "canceled"


def test_two_creations_of_one_transaction_wait_for_no_page(world: StripeWorld):
    """They take customers from two users that the page locks in id order."""
    low, high = UUID(int=1), UUID(int=2)
    insert(world.conn, low, high)
    new = {owner: uuid4() for owner in (low, high)}
    for owner in (low, high):
        name = f"cus_{owner.int}"
        world.handle_event("customer.created", make_customer(name, owner))
        world.handle_event(UPDATED, make_subscription(f"sub_{name}", name))
        claimed_later = make_customer(name, new[owner])
        world.handle_event("customer.updated", claimed_later, START + 1)
        world.handle_event("customer.created", make_customer(f"{name}_b", owner))

    def apply_page(conn: psycopg.Connection[Any]) -> None:
        upsert_page(conn, ("cus_1_b", low), ("cus_2_b", high))
        conn.commit()

    with (
        ThreadPoolExecutor(1) as pool,
        connect(world.url) as creating,
        connect(world.url) as paging,
    ):
        insert(creating, new[high])
        page = pool.submit(apply_page, paging)
        wait_for_lock(creating, paging)
        creating.execute("SET lock_timeout = '2s'")
        insert(creating, new[low])
        creating.commit()
        page.result(10)
    assert claimed(world, "cus_2")[0] == new[high]
    # The other claim waits for the next event.
    assert claimed(world, "cus_1")[:2] == (low, new[low])
    world.handle_event("customer.updated", make_customer("cus_1", new[low]), START + 2)
    assert claimed(world, "cus_1")[0] == new[low]
    assert [quota(world, one) for one in (low, high)] == [FREE, FREE]
    assert [quota(world, one) for one in new.values()] == [PAID, PAID]


def test_owner_of_a_customer_that_a_creation_takes_does_not_return_to_it(
    world: StripeWorld,
):
    """The owner's best subscription ends before the creation is committed."""
    owner, user_id = world.create_user(), uuid4()
    world.handle_event("customer.created", make_customer("cus_2", owner))
    world.handle_event(UPDATED, make_subscription("sub_2", "cus_2"))
    add_paid_customer(world)
    claim(world, "reference", owner)
    claim(world, "checkout", user_id)
    # Of two equal items, the first counts.
    ended, taken = world.get_user(owner).stripe_customer_id, "cus_1"
    assert ended == "cus_2"
    with ThreadPoolExecutor(1) as pool, connect(world.url) as conn:
        insert(conn, user_id)
        canceled = make_subscription("sub_2", "cus_2", status="canceled")
        delivery = pool.submit(world.handle_event, UPDATED, canceled, START + 1)
        wait_for_waiter(conn)
        conn.commit()
        assert delivery.result(10).result == "applied"
    assert claimed(world, taken)[0] == user_id
    assert [quota(world, one) for one in (owner, user_id)] == [FREE, PAID]


NAMES = [f"cus_{number}" for number in range(4)]
USERS = [UUID(int=number) for number in range(1, 9)]


def act_at_random(url: str, seed: int, clock: Callable[[], int]) -> list[Outcome]:
    """Deliver, page and create users; return the outcomes of the deliveries."""
    choose = random.Random(seed)
    outcomes = []
    with connect(url) as conn, connect(url) as second:
        conn.autocommit = True
        world = StripeWorld.__new__(StripeWorld)
        world.url, world.conn = url, conn
        for _ in range(40):
            name, user_id = choose.choice(NAMES), choose.choice(USERS)
            kind = choose.choice([*SOURCES, "both", "page", "create"])
            if kind == "page":
                claims = {one: choose.choice(USERS) for one in choose.sample(NAMES, 3)}
                upsert_page(second, *claims.items())
                second.commit()
            elif kind == "create":
                for one in choose.sample(USERS, 2):
                    second.execute(
                        "INSERT INTO app.users (id, email) VALUES (%s, %s)"
                        " ON CONFLICT DO NOTHING",
                        [one, f"{one}@example.com"],
                    )
                second.commit()
            elif kind == "both":
                metadata = {"user_id": str(choose.choice(USERS))}
                shape = make_checkout(name, user_id, metadata=metadata)
                outcomes.append(world.handle_event(COMPLETED, shape, clock()))
            else:
                subscription = f"sub_{name}_{choose.randrange(2)}"
                outcomes.append(
                    claim(
                        world,
                        kind,
                        user_id,
                        subscription,
                        created=clock(),
                        customer=name,
                    )
                )
    return outcomes


@pytest.mark.parametrize("seed", range(3))
def test_concurrent_claims_and_creations_end_consistent(world: StripeWorld, seed: int):
    """No deadlock reaches a caller, and no user differs from its entitlement."""
    lock, second = threading.Lock(), START

    def clock() -> int:
        nonlocal second
        with lock:
            second += 1
            return second

    with ThreadPoolExecutor(6) as pool:
        runs = [
            pool.submit(act_at_random, world.url, 10 * seed + n, clock)
            for n in range(6)
        ]
        results = {one.result for run in runs for one in run.result(60)}
    assert results <= {"applied", "stale", "ignored"}
    assert "applied" in results
    differing = world.conn.execute(
        "SELECT id, differences FROM app.stripe_entitlements WHERE differences <> '{}'"
    ).fetchall()
    assert differing == []
    linked = world.conn.execute(
        "SELECT c.id, c.user_id, c.claimed_user_id FROM app.stripe_customers AS c"
        " LEFT JOIN app.users AS u ON u.stripe_customer_id = c.id"
        " WHERE u.id <> c.user_id"
    ).fetchall()
    assert linked == []
