"""Concurrent deliveries wait for each other where they must."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.sessions import create_session
from pyapp.stripe_sync import handle_webhook
from pyapp.stripe_sync.snapshots import read_snapshot
from pyapp.stripe_sync.store import sync_users, upsert_customers
from pyapp.users import set_user_profile
from tests.fake_stripe import TEST_SECRET, Delivery
from tests.stripe_world import (
    START,
    StripeWorld,
    count_lock_waits,
    make_checkout,
    make_customer,
    make_subscription,
    moment,
    stripe_world,
)

CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"
DELETED = "customer.subscription.deleted"


class PausedClient:
    """Returns a fetched subscription only after `go_on` is set."""

    def __init__(self, world: StripeWorld) -> None:
        self.client = world.client
        self.fetching, self.go_on = threading.Event(), threading.Event()

    def raw_request(self, method: str, url: str, **params: Any) -> Any:
        response = self.client.raw_request(method, url, **params)
        if "/subscriptions/" in url:
            self.fetching.set()
            assert self.go_on.wait(10)
        return response


def test_slow_delivery_with_an_older_fetch_does_not_win(world: StripeWorld):
    """A fetch holds the lock, so the second delivery waits and fetches later."""
    subscription = world.create_subscription()
    (created,) = world.pop_deliveries(CREATED)
    world.handle_delivery(created)
    world.change_price(subscription, "price_other")
    (first,) = world.pop_deliveries(UPDATED)
    client = PausedClient(world)

    def handle(delivery: Delivery, client: Any) -> str:
        with connect(world.url) as conn:
            return handle_webhook(
                conn, delivery.payload, delivery.signature, TEST_SECRET, client
            ).result

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(handle, first, client)
        assert client.fetching.wait(10)
        world.change_price(subscription, "price_year")
        (second,) = world.pop_deliveries(UPDATED)
        quick = pool.submit(handle, second, world.client)
        wait_for_waiting_session(world.conn)
        client.go_on.set()
        assert [slow.result(10), quick.result(10)] == ["applied", "applied"]
    assert world.price_of(subscription) == "price_year"


def test_two_customers_of_one_user_are_serialized(world: StripeWorld):
    """Their own locks differ; the lock on the user's row serializes them."""
    user_id = world.create_user()
    for customer in ("cus_1", "cus_2"):
        world.handle_event(CREATED, make_subscription(f"sub_{customer}", customer))
    customers = [("cus_1", START), ("cus_2", START + 1)]

    def link(customer: str, created: int) -> str:
        with stripe_world(world.url, seed=2) as other:
            shape = make_customer(customer, user_id, created=created)
            return other.handle_event("customer.created", shape).result

    for _ in range(5):
        world.conn.execute("DELETE FROM app.stripe_customers")
        world.conn.execute("UPDATE app.users SET stripe_customer_id = NULL")
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(lambda one: link(*one), customers)) == ["applied"] * 2
        user = world.get_user(user_id)
        assert user.stripe_subscription_id == f"sub_{user.stripe_customer_id}"


def test_page_locks_users_in_id_order(world: StripeWorld):
    """The rows are stored in the reverse order."""
    low, high = low_and_high(world)
    for user_id in (high, low):
        world.conn.execute(
            "INSERT INTO app.stripe_customers (id, user_id, created_at, as_of)"
            " VALUES (%s, %s, now(), now())",
            [f"cus_{user_id}", user_id],
        )
    world.conn.commit()

    def sync() -> list[UUID]:
        with connect(world.url) as conn:
            # Without index scans, rows are read in the order of the table.
            conn.execute("SET enable_indexscan = off")
            return [user.id for user in sync_users(conn, user_ids=[low, high])]

    with ThreadPoolExecutor(1) as pool, connect(world.url) as conn:
        rename(conn, low)
        synced = pool.submit(sync)
        wait_for_waiting_session(world.conn)
        rename(conn, high)
        conn.commit()
        assert synced.result(10) == [low, high]


@pytest.mark.parametrize("kind", ["customer.updated", "checkout.session.completed"])
def test_link_does_not_deadlock_with_a_sign_in(world: StripeWorld, kind: str):
    """A new session locks its user by a foreign key; a link does not wait for that."""
    ada, bob = low_and_high(world)
    world.handle_event("customer.created", make_customer("cus_1", ada))
    shape = (
        make_customer("cus_1", bob)
        if kind == "customer.updated"
        else make_checkout("cus_2", bob)
    )

    with ThreadPoolExecutor(1) as pool, connect(world.url) as conn:
        for user_id in (bob, ada):
            create_session(conn, user_id=user_id)
        linked = pool.submit(world.handle_event, kind, shape, START + 1)
        assert linked.result(20).result == "applied"
        for user_id in (bob, ada):
            rename(conn, user_id)
        conn.commit()
    assert world.get_user(bob).stripe_customer_id == shape.get("customer", "cus_1")


def test_checkout_and_a_page_do_not_deadlock(world: StripeWorld):
    """The metadata claims one user, the checkout another, and the page both."""
    low, high = low_and_high(world)
    customer = world.create_customer(high)
    bought = world.subscribe(customer)
    session = make_checkout(customer, low, subscription=bought)

    def check_out() -> str:
        with connect(world.url) as conn:
            other = StripeWorld(world.fake, world.url, conn)
            kind = "checkout.session.completed"
            return other.handle_event(kind, session, client=world.client).result

    def upsert_page(conn: psycopg.Connection[Any], *claims: UUID) -> list[UUID | None]:
        snapshots = [
            read_snapshot("customers", make_customer(f"cus_{one}", one), moment(START))
            for one in claims
        ]
        upserted = upsert_customers(
            conn, snapshots=snapshots, source="page", can_fetch=True
        )
        return [one.user_id for one in upserted]

    with ThreadPoolExecutor(1) as pool, connect(world.url) as conn:
        assert upsert_page(conn, low) == [low]
        checkout = pool.submit(check_out)
        wait_for_waiting_session(world.conn)
        assert upsert_page(conn, low, high) == [low, high]
        conn.commit()
        assert checkout.result(10) == "applied"
    assert world.customer_row(customer).user_id == high


def test_fetch_of_a_checkout_locks_no_user(world: StripeWorld):
    user_id = world.create_user()
    customer = world.create_customer(user_id)
    session = make_checkout(customer, user_id, subscription=world.subscribe(customer))
    client: Any = PausedClient(world)
    kind = "checkout.session.completed"
    with ThreadPoolExecutor(1) as pool, connect(world.url) as conn:
        checkout = pool.submit(
            world.handle_event, kind, session, START + 1, client=client
        )
        assert client.fetching.wait(10)
        conn.execute("SET lock_timeout = '1s'")
        rename(conn, user_id)
        conn.commit()
        client.go_on.set()
        assert checkout.result(10).result == "applied"
    assert world.get_user(user_id).base_quota == 50000


def test_concurrent_duplicates_apply_once(world: StripeWorld):
    world.create_customer(world.create_user())
    (delivery,) = world.pop_deliveries()

    def handle(_: int) -> str:
        with connect(world.url) as conn:
            return handle_webhook(
                conn, delivery.payload, delivery.signature, TEST_SECRET
            ).result

    with ThreadPoolExecutor(6) as pool:
        results = sorted(pool.map(handle, range(6)))
    assert results == ["applied", *["duplicate"] * 5]


def low_and_high(world: StripeWorld) -> tuple[UUID, UUID]:
    """Return two users in id order; their rows are stored in reverse order."""
    low, high = UUID(int=1), UUID(int=2)
    for user_id in (high, low):
        world.conn.execute(
            "INSERT INTO app.users (id, email) VALUES (%s, %s)",
            [user_id, f"{user_id}@example.com"],
        )
    return low, high


def rename(conn: psycopg.Connection[Any], user_id: UUID) -> None:
    set_user_profile(conn, user_id=user_id, name="New", image_url=None)


def wait_for_waiting_session(conn: psycopg.Connection[Any]) -> None:
    """Return once a session waits for a lock."""
    for _ in range(1000):
        if count_lock_waits(conn):
            return
        threading.Event().wait(0.01)
    raise AssertionError("no session waits for a lock")
