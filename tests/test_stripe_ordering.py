"""Deliveries come late, twice and out of order; the newest state stays.

The first tests are named after what engines of this kind were seen to get wrong.
"""

import json
import random
from typing import Any

import psycopg
import pytest

from pyapp.stripe_sync import reconcile
from tests.fake_stripe import Delivery
from tests.stripe_world import (
    START,
    StripeWorld,
    make_customer,
    make_subscription,
)

CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"
DELETED = "customer.subscription.deleted"


def test_second_event_of_the_same_second_is_not_lost(world: StripeWorld):
    """Whichever comes last: the events cannot tell, so Stripe is asked."""
    subscription = world.subscribe(world.customer(world.user()))
    world.change_price(subscription, "price_other", "price_month", "price_year")
    *_, first, second, third = world.take(CREATED, UPDATED)
    for order in ([first, second, third], [third, first, second], [second, third]):
        world.forget()
        for delivery in order:
            assert world.handle(delivery, world.client).result == "applied"
        row = world.row(subscription)
        assert (row.price_id, row.is_provisional) == ("price_year", False)
        assert row.as_of.timestamp() == START


def test_event_of_the_second_in_which_stripe_was_asked_is_not_newer_than_the_answer(
    world: StripeWorld,
):
    subscription = world.subscribe(world.customer(world.user()))
    world.deliver()
    world.fake.advance(seconds=10)
    world.change_price(subscription, "price_other", "price_year")
    late, _lost = world.take(UPDATED)
    reconcile(world.conn, world.client)
    assert world.handle(late, world.client).result == "applied"
    assert world.row(subscription).price_id == "price_year"

    # One of the next second is newer, and nobody has to be asked.
    world.fake.advance(seconds=1)
    world.change_price(subscription, "price_month")
    (newer,) = world.take(UPDATED)
    assert world.handle(newer).result == "applied"
    assert world.row(subscription).price_id == "price_month"


def test_without_a_client_the_same_second_goes_by_arrival_and_is_flagged(
    world: StripeWorld,
):
    subscription = world.subscribe(world.customer(world.user()))
    world.change_price(subscription, "price_other", "price_year")
    created, first, second = world.take(CREATED, UPDATED)

    assert world.handle(created).result == "applied"
    assert not world.row(subscription).is_provisional
    for delivery, price in ((second, "price_year"), (first, "price_other")):
        assert world.handle(delivery).result == "applied"
        assert world.row(subscription).price_id == price
        assert world.row(subscription).is_provisional

    # The same once more says nothing new and does not settle it; a later event does.
    shape = json.loads(first.payload)["data"]["object"]
    assert world.send(UPDATED, shape).result == "applied"
    assert world.row(subscription).is_provisional
    assert world.send(UPDATED, shape, START + 1).result == "applied"
    assert not world.row(subscription).is_provisional


def test_late_event_does_not_revive_a_removed_item(world: StripeWorld):
    subscription = world.subscribe(world.customer(world.user()))
    world.fake.advance(seconds=10)
    world.change_price(subscription, "price_other")
    created, updated = world.take(CREATED, UPDATED)
    assert world.handle(updated).result == "applied"
    assert world.handle(created).result == "stale"
    assert world.row(subscription).price_id == "price_other"


def test_late_event_does_not_reopen_a_canceled_subscription(world: StripeWorld):
    user_id = world.user()
    subscription = world.subscribe(world.customer(user_id))
    world.fake.advance(seconds=10)
    world.change_price(subscription, "price_other")
    world.fake.advance(seconds=10)
    world.client.v1.subscriptions.cancel(subscription)
    customer, *late, deleted = world.take("customer.created", CREATED, UPDATED, DELETED)
    for delivery in (customer, deleted):
        assert world.handle(delivery).result == "applied"
    for delivery in late:
        assert world.handle(delivery).result == "stale"
    assert not world.get(user_id).subscription_active


def test_late_event_does_not_revive_a_deleted_customer(world: StripeWorld):
    customer = world.customer(world.user())
    world.client.v1.customers.delete(customer)
    world.fake.advance(seconds=5)
    created, deleted = world.take()
    for delivery in (deleted, created):
        world.handle(delivery)
    assert world.customer_row(customer).is_deleted
    shape = make_customer(customer, created=START)
    world.send("customer.updated", shape, START + 60)
    assert world.customer_row(customer).is_deleted


def test_reconciliation_revives_a_customer_deleted_by_mistake(world: StripeWorld):
    """As when another account was asked; for events deleted is final."""
    user_id, customer, _ = world.subscribed()
    shape = make_customer(customer, user_id)
    world.send("customer.deleted", shape, START + 1)
    world.send("customer.updated", shape, START + 2)
    assert not world.get(user_id).subscription_active
    world.fake.advance(seconds=60)
    for found in (world.reconcile(dry_run=True), world.reconcile()):
        assert [(d.kind, d.object_id) for d in found] == [("missing_here", customer)]
    assert not world.customer_row(customer).is_deleted
    assert world.get(user_id).subscription_active
    assert world.reconcile() == []


def test_customer_deleted_event_leads_to_no_request_that_changes_stripe(
    world: StripeWorld,
):
    user_id = world.user()
    customer = world.customer(user_id)
    world.subscribe(customer)
    world.client.v1.customers.delete(customer)
    world.fake.reset_stats()

    assert "failed" not in world.deliver(world.client)
    asked = world.fake.stats()["requests"]
    assert [name for name in asked if not name.startswith("GET ")] == []
    assert not world.get(user_id).subscription_active


def test_deleting_a_customer_ends_what_it_has_though_that_news_is_lost(
    world: StripeWorld,
):
    user_id = world.user()
    customer = world.customer(user_id)
    world.subscribe(customer)
    world.deliver()
    assert world.get(user_id).subscription_active
    world.fake.advance(seconds=5)
    world.client.v1.customers.delete(customer)
    (deleted,) = world.take("customer.deleted")
    world.handle(deleted)
    assert world.get(user_id).subscription_status == "canceled"
    assert world.get(user_id).base_quota == 2500


def test_answer_is_not_taken_for_newer_than_its_request(world: StripeWorld):
    """An answer that takes long was true when it was asked for, no later."""
    subscription = world.subscribe(world.customer(world.user()))
    (paid,) = world.take("invoice.paid")

    class Late:
        def raw_request(self, method: str, url: str, **params: Any) -> Any:
            answer = world.client.raw_request(method, url, **params)
            world.fake.advance(seconds=30)
            world.change_price(subscription, "price_other")
            return answer

    client: Any = Late()
    assert world.handle(paid, client).result == "applied"
    assert world.row(subscription).as_of.timestamp() == START
    (updated,) = world.take(UPDATED)
    assert world.handle(updated, world.client).result == "applied"
    assert world.row(subscription).price_id == "price_other"


def test_object_that_stripe_does_not_know_goes_by_arrival(world: StripeWorld):
    """As when data of a test account has been deleted."""
    shape = make_subscription("sub_gone", "cus_1")
    assert world.send(CREATED, shape, client=world.client).result == "applied"
    other = make_subscription("sub_gone", "cus_1", price="price_other")
    assert world.send(UPDATED, other, client=world.client).result == "applied"
    row = world.row("sub_gone")
    assert (row.price_id, row.is_provisional) == ("price_other", True)


def test_claim_of_the_same_second_is_asked_about(world: StripeWorld):
    first, second = world.user(), world.user()
    customer = world.customer(first)
    world.client.v1.customers.update(customer, {"metadata": {"user_id": str(second)}})
    created, updated = world.take()
    for order in ([created, updated], [updated, created]):
        world.forget()
        for delivery in order:
            assert world.handle(delivery, world.client).result == "applied"
        assert world.customer_row(customer).user_id == second


def test_fetch_that_fails_fails_the_event(world: StripeWorld):
    subscription = world.subscribe(world.customer(world.user()))
    (paid,) = world.take("invoice.paid")
    world.fake.faults.add("rate_limit")
    outcome = world.handle(paid, world.client)
    assert outcome.result == "failed"
    assert "RateLimitError" in str(outcome.error)
    assert world.handle(paid, world.client).result == "applied"
    assert world.row(subscription).status == "active"


@pytest.mark.parametrize("has_client", [True, False])
def test_any_order_and_repetition_gives_the_same_state(
    world: StripeWorld, has_client: bool
):
    """A life of one customer, each event twice; without a client a second apart."""
    user_id = world.user()
    history = live(world, user_id, pause=0 if has_client else 7)
    client = world.client if has_client else None
    expected = None
    shuffled = random.Random(5)
    for _ in range(12):
        for delivery in history:
            world.handle(delivery, client)
        found = state(world.conn)
        expected = expected or found
        assert found == expected
        world.forget()
        history = shuffled.sample(history, len(history))


def live(world: StripeWorld, user_id: object, pause: int) -> list[Delivery]:
    def wait() -> None:
        if pause:
            world.fake.advance(seconds=pause)

    customer = world.client.v1.customers.create({}).id
    wait()
    first = world.subscribe(customer)
    wait()
    world.client.v1.customers.update(customer, {"metadata": {"user_id": str(user_id)}})
    for price in ("price_other", "price_year"):
        wait()
        world.change_price(first, price)
    wait()
    second = world.subscribe(customer, "price_other")
    wait()
    world.client.v1.subscriptions.cancel(first)
    wait()
    world.client.v1.subscriptions.update(second, {"cancel_at_period_end": True})
    wait()
    taken = [d for d in world.take() if d.event.type.startswith("customer.")]
    return [*taken, *taken]


def state(conn: psycopg.Connection[Any]) -> list[Any]:
    return conn.execute(
        "SELECT to_jsonb(s) - 'as_of', to_jsonb(c) - 'as_of',"
        " to_jsonb(u) - 'updated_at' FROM app.stripe_subscriptions AS s"
        " JOIN app.stripe_customers AS c ON c.id = s.customer_id"
        " JOIN app.users AS u ON u.id = c.user_id ORDER BY s.id"
    ).fetchall()
