"""Whatever happens while a run lists what Stripe has: changes, deliveries, kill -9."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pyapp._core.connection import connect
from pyapp.stripe_sync import reconcile, replay_events
from tests.fake_stripe import TEST_KEY, Fault
from tests.stripe_world import StripeWorld, stripe_world

COMMAND = "from pyapp.cli import main; main()"
PRICES = ("price_other", "price_year", "price_month")


@pytest.fixture
def world(module_database: str) -> Iterator[StripeWorld]:
    with stripe_world(module_database, start=int(time.time()) - 3600) as running:
        running.forget()
        yield running


def once_listed(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch, happen: Callable[[], None]
) -> None:
    """Let it happen after the first page of subscriptions has been listed."""
    from pyapp.stripe_sync.client import list_page

    left = [happen]

    def list_and_happen(client: Any, object_type: str, **parameters: Any) -> Any:
        page = list_page(client, object_type, **parameters)
        if object_type == "subscriptions" and left:
            left.pop()()
        return page

    monkeypatch.setattr("pyapp.stripe_sync.pages.list_page", list_and_happen)


def test_subscriptions_made_and_canceled_while_they_are_listed_are_right_in_the_end(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    customers = [world.customer(world.user()) for _ in range(8)]
    subscriptions = [world.subscribe(customer) for customer in customers]
    world.deliver()
    made: list[str] = []

    def happen() -> None:
        world.fake.advance(seconds=5)
        made.append(world.subscribe(customers[0]))
        # One has been listed, the last of which is where the list goes on; one will be.
        for subscription in (*subscriptions[-3:], subscriptions[0]):
            world.client.v1.subscriptions.cancel(subscription)
        world.fake.deliveries.drop()

    once_listed(world, monkeypatch, happen)
    world.reconcile(page_size=3)
    assert world.row(subscriptions[0]).status == "canceled"
    assert {world.row(one).status for one in subscriptions[1:-3]} == {"active"}

    world.reconcile(page_size=3)
    assert world.row(made[0]).status == "active"
    assert {world.row(one).status for one in subscriptions[-3:]} == {"canceled"}
    assert world.reconcile() == []


def test_customer_deleted_where_the_list_goes_on_hides_no_other(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    """Stripe refuses to list after an object that it has no more."""
    customers = [world.customer(world.user()) for _ in range(8)]
    world.fake.deliveries.drop()
    world.fake.advance(seconds=2)
    told: list[Any] = []

    def delete(progress: Any) -> None:
        told.append(progress)
        if progress.seen == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconcile(world.conn, world.client, progress=delete, page_size=3)
    world.client.v1.customers.delete(customers[-3])

    done = reconcile(world.conn, world.client, page_size=3)
    assert done.is_resumed
    for customer in customers:
        assert world.customer_row(customer).id == customer


def test_older_page_never_overwrites_a_webhook_that_comes_meanwhile(
    world: StripeWorld,
):
    """Two workers take deliveries while reconciliation after reconciliation runs."""
    subscriptions = [world.subscribe(world.customer(world.user())) for _ in range(8)]
    world.deliver()

    def deliver() -> list[str]:
        with connect(world.url) as conn:
            other = StripeWorld(world.fake, world.url, conn)
            return [other.handle(d).result for d in iter(take, None)]

    take = world.fake.deliveries.take
    with ThreadPoolExecutor(3) as pool, connect(world.url) as conn:
        for price in (*PRICES, PRICES[0]):
            world.fake.advance(seconds=2)
            running = pool.submit(reconcile, conn, world.client, page_size=4)
            for number, subscription in enumerate(subscriptions):
                world.fake.advance(seconds=number % 2)
                world.change_price(subscription, price)
            for worker in [pool.submit(deliver) for _ in range(2)]:
                assert "failed" not in worker.result()
            # What was delivered is there at once, and still when the pages are done.
            for _ in (running.done(), running.result()):
                found = [world.row(one).price_id for one in subscriptions]
                assert found == [price] * len(subscriptions)


def kill(world: StripeWorld, fault: Fault, *arguments: str) -> None:
    """Run the command and kill it by SIGKILL once it has met the *fault*."""
    environment = os.environ | {
        "DATABASE_URL": world.url,
        "STRIPE_API_BASE": world.fake.base_url,
        "STRIPE_SECRET_KEY": TEST_KEY,
    }
    victim = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "stripe", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        while fault.times and victim.poll() is None:
            time.sleep(0.01)
    finally:
        victim.kill()
    assert victim.communicate()[1] == b""
    assert victim.returncode == -signal.SIGKILL
    gone = "SELECT FROM pg_stat_activity WHERE datname = current_database()"
    while len(world.conn.execute(gone).fetchall()) > 1:
        time.sleep(0.01)


def test_reconciliation_killed_by_sigkill_goes_on_from_its_cursor(world: StripeWorld):
    world.fake.seed_accounts(450)
    # Its third page never comes, while the second is worked on.
    fault = world.fake.faults.add("slow", path="/v1/customers", skip=3, seconds=60)
    kill(world, fault, "reconcile")
    (counts,) = world.conn.execute(
        "SELECT (counts ->> 'customers')::integer FROM app.stripe_sync_runs"
    ).fetchall()[0]
    assert counts in (200, 300)
    world.fake.reset_stats()

    done = reconcile(world.conn, world.client)
    assert done.is_resumed
    assert done.seen == {"customers": 450, "subscriptions": 450}
    assert done.found["missing_here"] == 900
    pages = world.fake.stats()["requests"]
    assert pages == {
        "GET /v1/customers": 5 - counts // 100,
        "GET /v1/subscriptions": 5,
    }
    ends = world.conn.execute("SELECT outcome FROM app.stripe_sync_runs").fetchall()
    assert ends == [("completed",)]


def test_replay_killed_by_sigkill_goes_on_from_its_cursor(world: StripeWorld):
    for _ in range(250):
        world.fake.request("POST", "/v1/customers")
    # Down by three pages, up by the second.
    fault = world.fake.faults.add("slow", path="/v1/events", skip=4, seconds=60)
    kill(world, fault, "replay")
    assert len(world.events()) == 150
    world.fake.reset_stats()

    done = replay_events(world.conn, world.client)
    assert (done.is_resumed, done.seen) == (True, 250)
    assert done.results["applied"] == 250
    assert world.fake.stats()["requests"] == {"GET /v1/events": 2}
    assert len(world.events()) == 250
