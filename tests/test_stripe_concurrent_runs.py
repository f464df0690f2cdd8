"""Changes, deliveries and SIGKILL during a run leave the right state."""

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
        running.clear_stripe()
        yield running


def call_after_first_page(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[], None]
) -> None:
    """Call *change* after the first page of subscriptions is listed."""
    from pyapp.stripe_sync.client import list_page

    pending = [change]

    def list_and_change(client: Any, object_type: str, **parameters: Any) -> Any:
        page = list_page(client, object_type, **parameters)
        if object_type == "subscriptions" and pending:
            pending.pop()()
        return page

    monkeypatch.setattr("pyapp.stripe_sync.pages.list_page", list_and_change)


def test_changes_between_pages_are_found_by_the_next_run(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    customers = [world.create_customer(world.create_user()) for _ in range(8)]
    subscriptions = [world.subscribe(customer) for customer in customers]
    world.handle_all()
    created: list[str] = []

    def change() -> None:
        world.fake.advance(seconds=5)
        created.append(world.subscribe(customers[0]))
        # Three on the listed page, the cursor among them, and one on a later page.
        for subscription in (*subscriptions[-3:], subscriptions[0]):
            world.client.v1.subscriptions.cancel(subscription)
        world.fake.deliveries.drop()

    call_after_first_page(monkeypatch, change)
    world.reconcile(page_size=3)
    assert world.subscription_row(subscriptions[0]).status == "canceled"
    assert {world.subscription_row(one).status for one in subscriptions[1:-3]} == {
        "active"
    }

    world.reconcile(page_size=3)
    assert world.subscription_row(created[0]).status == "active"
    assert {world.subscription_row(one).status for one in subscriptions[-3:]} == {
        "canceled"
    }
    assert world.reconcile() == []


def test_page_never_overwrites_a_newer_concurrent_delivery(world: StripeWorld):
    """Two workers handle deliveries during each reconciliation."""
    subscriptions = [world.create_subscription() for _ in range(8)]
    world.handle_all()

    def deliver() -> list[str]:
        with connect(world.url) as conn:
            other = StripeWorld(world.fake, world.url, conn)
            return [other.handle_delivery(d).result for d in iter(take, None)]

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
            # Delivered changes are stored at once, and still after the last page.
            for _ in (running.done(), running.result()):
                found = [world.price_of(one) for one in subscriptions]
                assert found == [price] * len(subscriptions)


def test_deliveries_go_on_during_dry_runs(world: StripeWorld):
    """A dry run applies each page, and so takes the locks of a run."""
    subscriptions = [world.create_subscription() for _ in range(8)]
    world.handle_all()

    def reconcile_dry() -> int:
        with connect(world.url) as conn:
            runs = [
                reconcile(conn, world.client, dry_run=True, page_size=4)
                for _ in range(10)
            ]
        return sum(run.number_refused for run in runs)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(reconcile_dry)
        while not running.done():
            for subscription in subscriptions:
                world.fake.advance(seconds=1)
                world.change_price(subscription, *PRICES)
            assert "failed" not in world.handle_all()
        assert running.result() == 0
    assert {world.price_of(one) for one in subscriptions} == {PRICES[-1]}


def kill(world: StripeWorld, fault: Fault, *arguments: str) -> None:
    """Run the command; send SIGKILL once the *fault* has occurred."""
    environment = os.environ | {
        "DATABASE_URL": world.url,
        "STRIPE_API_BASE": world.fake.base_url,
        "STRIPE_SECRET_KEY": TEST_KEY,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "stripe", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        while fault.times and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.communicate()[1] == b""
    assert process.returncode == -signal.SIGKILL
    sessions = "SELECT FROM pg_stat_activity WHERE datname = current_database()"
    while len(world.conn.execute(sessions).fetchall()) > 1:
        time.sleep(0.01)


def test_reconciliation_resumes_after_sigkill(world: StripeWorld):
    world.fake.seed_accounts(450)
    # The third page does not arrive while the second is processed.
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
        "GET /v1/customers/:id": 1,  # proves the account
        "GET /v1/customers": 5 - counts // 100,
        "GET /v1/subscriptions": 5,
    }
    outcomes = world.conn.execute("SELECT outcome FROM app.stripe_sync_runs").fetchall()
    assert outcomes == [("completed",)]


def test_replay_resumes_after_sigkill(world: StripeWorld):
    for _ in range(250):
        world.fake.request("POST", "/v1/customers")
    # Three requests find the oldest page; the second page upwards is slow.
    fault = world.fake.faults.add("slow", path="/v1/events", skip=4, seconds=60)
    kill(world, fault, "replay")
    assert len(world.events()) == 150
    world.fake.reset_stats()

    done = replay_events(world.conn, world.client)
    assert (done.is_resumed, done.seen) == (True, 250)
    assert done.results["applied"] == 250
    assert world.fake.stats()["requests"] == {
        "GET /v1/customers/:id": 1,  # proves the account
        "GET /v1/events": 2,
    }
    assert len(world.events()) == 250
