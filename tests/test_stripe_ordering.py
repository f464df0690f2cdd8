"""Late, repeated and reordered deliveries leave the newest state.

Most tests name a fault that was seen in other sync engines.
"""

import json
import random
from typing import Any

import psycopg
import pytest

from pyapp.stripe_sync import client as api
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
    """Event times are whole seconds, so the object is fetched."""
    subscription = world.create_subscription()
    world.change_price(subscription, "price_other", "price_month", "price_year")
    *_, first, second, third = world.pop_deliveries(CREATED, UPDATED)
    for order, last in (
        ([first, second, third], "stale"),
        ([third, first, second], "applied"),
        ([second, third], "applied"),
    ):
        world.clear_stripe()
        results = [world.handle_delivery(one, world.client).result for one in order]
        # The last one is what the second one has fetched.
        assert results == ["applied"] * (len(order) - 1) + [last]
        row = world.subscription_row(subscription)
        assert (world.price_of(subscription), row.is_provisional) == (
            "price_year",
            False,
        )
        assert row.as_of.timestamp() == START


def test_event_in_the_second_of_a_fetch_is_ambiguous(world: StripeWorld):
    subscription = world.create_subscription()
    world.handle_all()
    world.fake.advance(seconds=10)
    world.change_price(subscription, "price_other", "price_year")
    late, _lost = world.pop_deliveries(UPDATED)
    reconcile(world.conn, world.client)
    assert world.handle_delivery(late, world.client).result == "applied"
    assert world.price_of(subscription) == "price_year"

    # An event of the next second is newer and needs no fetch.
    world.fake.advance(seconds=1)
    world.change_price(subscription, "price_month")
    (newer,) = world.pop_deliveries(UPDATED)
    assert world.handle_delivery(newer).result == "applied"
    assert world.price_of(subscription) == "price_month"


def test_without_client_a_tie_goes_by_arrival_and_is_provisional(
    world: StripeWorld,
):
    subscription = world.create_subscription()
    world.change_price(subscription, "price_other", "price_year")
    created, first, second = world.pop_deliveries(CREATED, UPDATED)

    assert world.handle_delivery(created).result == "applied"
    assert not world.subscription_row(subscription).is_provisional
    for delivery, price in ((second, "price_year"), (first, "price_other")):
        assert world.handle_delivery(delivery).result == "applied"
        assert world.price_of(subscription) == price
        assert world.subscription_row(subscription).is_provisional

    # An equal snapshot of that second leaves it provisional; a later event does not.
    shape = json.loads(first.payload)["data"]["object"]
    assert world.handle_event(UPDATED, shape).result == "stale"
    assert world.subscription_row(subscription).is_provisional
    assert world.handle_event(UPDATED, shape, START + 1).result == "applied"
    assert not world.subscription_row(subscription).is_provisional


def test_late_event_does_not_reopen_a_canceled_subscription(world: StripeWorld):
    user_id = world.create_user()
    subscription = world.subscribe(world.create_customer(user_id))
    world.fake.advance(seconds=10)
    world.change_price(subscription, "price_other")
    world.fake.advance(seconds=10)
    world.client.v1.subscriptions.cancel(subscription)
    customer, *late, deleted = world.pop_deliveries(
        "customer.created", CREATED, UPDATED, DELETED
    )
    for delivery in (customer, deleted):
        assert world.handle_delivery(delivery).result == "applied"
    for delivery in late:
        assert world.handle_delivery(delivery).result == "stale"
    assert not world.get_user(user_id).subscription_active


def test_late_event_does_not_revive_a_deleted_customer(world: StripeWorld):
    customer = world.create_customer(world.create_user())
    world.client.v1.customers.delete(customer)
    world.fake.advance(seconds=5)
    created, deleted = world.pop_deliveries()
    for delivery in (deleted, created):
        world.handle_delivery(delivery)
    assert world.customer_row(customer).is_deleted
    shape = make_customer(customer, created=START)
    before = world.customer_row(customer)
    outcome = world.handle_event("customer.updated", shape, START + 60)
    assert (outcome.result, world.customer_row(customer)) == ("stale", before)
    assert before.is_deleted


def test_reconciliation_revives_a_customer_deleted_by_mistake(world: StripeWorld):
    """No event can undo a deletion."""
    user_id, customer, _ = world.create_subscribed_user()
    shape = make_customer(customer, user_id)
    world.handle_event("customer.deleted", shape, START + 1)
    world.handle_event("customer.updated", shape, START + 2)
    assert not world.get_user(user_id).subscription_active
    world.fake.advance(seconds=60)
    for found in (world.reconcile(dry_run=True), world.reconcile()):
        assert [(d.kind, d.object_id) for d in found] == [("missing_here", customer)]
    assert not world.customer_row(customer).is_deleted
    assert world.get_user(user_id).subscription_active
    assert world.reconcile() == []


def test_deleted_customer_causes_only_get_requests(world: StripeWorld):
    user_id = world.create_user()
    customer = world.create_customer(user_id)
    world.subscribe(customer)
    world.client.v1.customers.delete(customer)
    world.fake.reset_stats()

    assert "failed" not in world.handle_all(world.client)
    requests = world.fake.stats()["requests"]
    assert [name for name in requests if not name.startswith("GET ")] == []
    assert not world.get_user(user_id).subscription_active


def test_deleted_customer_ends_its_subscriptions(world: StripeWorld):
    user_id = world.create_user()
    customer = world.create_customer(user_id)
    world.subscribe(customer)
    world.handle_all()
    assert world.get_user(user_id).subscription_active
    world.fake.advance(seconds=5)
    world.client.v1.customers.delete(customer)
    (deleted,) = world.pop_deliveries("customer.deleted")
    world.handle_delivery(deleted)
    assert world.get_user(user_id).subscription_status == "canceled"
    assert world.get_user(user_id).base_quota == 2500


def test_response_is_dated_by_the_start_of_its_request(world: StripeWorld):
    """A slow response may be out of date when it arrives."""
    subscription = world.create_subscription()
    (paid,) = world.pop_deliveries("invoice.paid")

    class SlowClient:
        def raw_request(self, method: str, url: str, **params: Any) -> Any:
            response = world.client.raw_request(method, url, **params)
            world.fake.advance(seconds=30)
            world.change_price(subscription, "price_other")
            return response

    client: Any = SlowClient()
    assert world.handle_delivery(paid, client).result == "applied"
    assert world.subscription_row(subscription).as_of.timestamp() == START
    (updated,) = world.pop_deliveries(UPDATED)
    assert world.handle_delivery(updated, world.client).result == "applied"
    assert world.price_of(subscription) == "price_other"


def test_object_unknown_to_stripe_goes_by_arrival(world: StripeWorld):
    """Test data of a Stripe account can be deleted."""
    shape = make_subscription("sub_gone", "cus_1")
    assert world.handle_event(CREATED, shape, client=world.client).result == "applied"
    other = make_subscription("sub_gone", "cus_1", price="price_other")
    assert world.handle_event(UPDATED, other, client=world.client).result == "applied"
    row = world.subscription_row("sub_gone")
    assert (world.price_of("sub_gone"), row.is_provisional) == ("price_other", True)


def test_claims_of_the_same_second_are_fetched(world: StripeWorld):
    first, second = world.create_user(), world.create_user()
    customer = world.create_customer(first)
    world.client.v1.customers.update(customer, {"metadata": {"user_id": str(second)}})
    created, updated = world.pop_deliveries()
    for order in ([created, updated], [updated, created]):
        world.clear_stripe()
        for delivery in order:
            assert world.handle_delivery(delivery, world.client).result == "applied"
        assert world.customer_row(customer).user_id == second


def test_failed_fetch_fails_the_event(world: StripeWorld):
    subscription = world.create_subscription()
    (paid,) = world.pop_deliveries("invoice.paid")
    world.fake.faults.add("rate_limit")
    outcome = world.handle_delivery(paid, world.client)
    assert outcome.result == "failed"
    assert "RateLimitError" in str(outcome.error)
    assert world.handle_delivery(paid, world.client).result == "applied"
    assert world.subscription_row(subscription).status == "active"


@pytest.mark.parametrize("has_client", [True, False])
def test_any_order_and_repetition_gives_the_same_state(
    world: StripeWorld, has_client: bool
):
    """One customer's history, each event twice; without a client, no ties."""
    user_id = world.create_user()
    history = make_history(world, user_id, pause=0 if has_client else 7)
    client = world.client if has_client else None
    expected = None
    shuffled = random.Random(5)
    for _ in range(12):
        for delivery in history:
            world.handle_delivery(delivery, client)
        found = state(world.conn)
        expected = expected or found
        assert found == expected
        world.clear_stripe()
        history = shuffled.sample(history, len(history))


def make_history(world: StripeWorld, user_id: object, pause: int) -> list[Delivery]:
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
    due = world.pop_deliveries()
    used = [d for d in due if d.event.type.startswith("customer.")]
    return [*used, *used]


def state(conn: psycopg.Connection[Any]) -> list[Any]:
    return conn.execute(
        "SELECT to_jsonb(s) - 'as_of', to_jsonb(c) - 'as_of',"
        " to_jsonb(u) - 'updated_at' FROM app.stripe_subscriptions AS s"
        " JOIN app.stripe_customers AS c ON c.id = s.customer_id"
        " JOIN app.users AS u ON u.id = c.user_id ORDER BY s.id"
    ).fetchall()


def test_claim_before_the_customer_hides_no_event_of_it(world: StripeWorld):
    """A claim stores the id of the customer, not a state of it."""
    first, second, other = (world.create_user() for _ in range(3))
    claiming = make_subscription("sub_1", "cus_1", metadata={"user_id": str(other)})

    world.handle_event("customer.subscription.created", claiming, START + 20)
    for delay, user_id in ((0, first), (10, second)):
        shape = make_customer("cus_1", user_id)
        outcome = world.handle_event("customer.updated", shape, START + delay)
        assert outcome.result == "applied"

    assert world.customer_row("cus_1").user_id == second


def test_items_beyond_ten_are_of_the_state_of_their_subscription(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    """The items that an object leaves out are listed by another request."""
    names = [f"price_{n}" for n in range(11)]
    for name in names:
        world.fake.add_price(name)
    subscription = world.client.v1.subscriptions.create(
        {
            "customer": world.create_customer(),
            "items": [{"price": name} for name in names],
        }
    )
    list_items, item = api._list_items, subscription["items"].data[0].id

    def change_then_list(client: Any, name: str) -> list[Any]:
        monkeypatch.setattr(api, "_list_items", list_items)
        change = {"cancel_at_period_end": True, "items": [{"id": item, "quantity": 3}]}
        world.fake.request("POST", f"/v1/subscriptions/{name}", change)
        return list_items(client, name)

    monkeypatch.setattr(api, "_list_items", change_then_list)
    response = api.fetch(world.client, "subscriptions", subscription.id)

    assert response is not None
    found = {one["id"]: one["quantity"] for one in response.data["items"]["data"]}
    assert (response.data["cancel_at_period_end"], found[item], len(found)) == (
        True,
        3,
        11,
    )
