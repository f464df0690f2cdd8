"""Reconciliation finds each difference, says its kind, and mends it."""

from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.stripe_sync import Difference, reconcile
from pyapp.stripe_sync import client as api
from tests.fake_stripe import seeded_user_id
from tests.stripe_world import START, StripeWorld, make_checkout, make_subscription


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited."""
    told: list[float] = []
    monkeypatch.setattr(api, "sleep", told.append)
    return told


def kinds(found: list[Difference]) -> list[tuple[str, str, bool]]:
    return sorted((d.kind, d.object_id, d.is_repaired) for d in found)


def both(world: StripeWorld, *expected: tuple[str, str]) -> None:
    """A dry run finds *expected* and changes nothing; a run mends it; none is left."""
    before = snapshot(world.conn)
    dry = kinds(world.reconcile(dry_run=True))
    assert dry == sorted((kind, name, False) for kind, name in expected)
    assert snapshot(world.conn) == before
    assert kinds(world.reconcile()) == sorted(
        (kind, name, True) for kind, name in expected
    )
    assert world.reconcile() == []


def snapshot(conn: psycopg.Connection[Any]) -> list[Any]:
    return [
        conn.execute(f"SELECT to_jsonb(t) FROM app.{table} AS t ORDER BY id").fetchall()
        for table in ("users", "stripe_customers", "stripe_subscriptions")
    ]


def test_nothing_to_do_is_nothing_found(world: StripeWorld):
    world.subscribed()
    both(world)


def test_what_is_missing_here_is_fetched(world: StripeWorld):
    user_id = world.user()
    customer = world.customer(user_id)
    subscription = world.subscribe(customer)
    both(world, ("missing_here", customer), ("missing_here", subscription))
    user = world.get(user_id)
    assert (user.stripe_customer_id, user.subscription_active) == (customer, True)
    assert user.created_at.timestamp() == START


def test_canceled_subscriptions_are_backfilled(world: StripeWorld):
    user_id = world.user()
    customer = world.customer(user_id)
    subscription = world.subscribe(customer)
    world.client.v1.subscriptions.cancel(subscription)
    world.reconcile()
    assert world.row(subscription).status == "canceled"
    assert world.get(user_id).subscription_status == "canceled"


def test_customer_deleted_there_is_found(world: StripeWorld):
    user_id, customer, subscription = world.subscribed()
    world.fake.advance(seconds=60)
    world.client.v1.customers.delete(customer)
    both(world, ("missing_there", customer), ("status", subscription))
    assert world.customer_row(customer).is_deleted
    assert world.get(user_id).base_quota == 2500


def test_object_unknown_there_is_taken_for_deleted(world: StripeWorld):
    """As when the data of a test account have been deleted."""
    world.send("customer.subscription.created", make_subscription("sub_1", "cus_1"))
    shape = {"id": "cus_2", "object": "customer", "created": START, "metadata": {}}
    world.send("customer.created", shape)
    both(world, ("missing_there", "sub_1"), ("missing_there", "cus_2"))
    assert world.row("sub_1").status == "canceled"
    assert world.customer_row("cus_2").is_deleted


def test_customer_known_by_a_checkout_only_is_looked_at(world: StripeWorld):
    world.send("checkout.session.completed", make_checkout("cus_gone", world.user()))
    both(world, ("missing_there", "cus_gone"))


def test_customer_held_by_a_user_that_stripe_has_not_is_found(world: StripeWorld):
    """As where users came with their customers; a dry run does not look for it."""
    user_id = world.user()
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = 'cus_gone', base_quota = 50000,"
        " stripe_subscription_id = 'sub_gone', subscription_status = 'active'"
        " WHERE id = %s",
        [user_id],
    )
    assert world.reconcile(dry_run=True) == []
    assert kinds(world.reconcile()) == [("missing_there", "cus_gone", True)]
    user = world.get(user_id)
    assert user.subscription_status is None
    assert user.base_quota == 2500
    assert world.reconcile() == []


def test_status_price_and_period_are_told_apart(world: StripeWorld):
    _, _, paused = world.subscribed()
    _, _, other = world.subscribed()
    _, _, renewed = world.subscribed()
    world.fake.advance(seconds=60)
    world.change_price(other, "price_other")
    world.client.v1.subscriptions.pause(paused)
    world.client.v1.subscriptions.update(renewed, {"cancel_at_period_end": True})
    dry = world.reconcile(dry_run=True)
    assert {
        ("status", paused, False),
        ("price", other, False),
        ("period", renewed, False),
    } <= set(kinds(dry))
    world.reconcile()
    assert [d for d in world.reconcile() if d.kind != "unknown_price"] == []


def test_creation_date_is_compared(world: StripeWorld):
    user_id, customer, _ = world.subscribed()
    world.conn.execute("UPDATE app.stripe_customers SET created_at = now()")
    world.conn.execute("UPDATE app.users SET created_at = now()")
    both(world, ("created_at", customer))
    assert world.get(user_id).created_at.timestamp() == START


def test_user_who_differs_from_the_mirror_is_found(world: StripeWorld):
    user_id, _, _ = world.subscribed()
    world.conn.execute(
        "UPDATE app.users SET subscription_status = 'paused', base_quota = 7"
    )
    both(world, ("status", str(user_id)), ("price", str(user_id)))


def test_unknown_price_is_told_each_time(world: StripeWorld):
    subscription = world.subscribe(world.customer(world.user()), "price_other")
    world.deliver()
    for dry_run in (True, False, True):
        found = kinds(world.reconcile(dry_run=dry_run))
        assert found == [("unknown_price", subscription, False)]


def test_customer_that_names_nobody_is_unlinked(world: StripeWorld):
    customer = world.customer()
    world.reconcile()
    assert kinds(world.reconcile()) == [("unlinked", customer, False)]


def test_user_who_came_after_his_customer_is_linked(world: StripeWorld):
    user_id = seeded_user_id(1)
    customer = world.customer(user_id)
    subscription = world.subscribe(customer)
    world.deliver()
    assert world.row(subscription).user_id is None
    world.conn.execute(
        "INSERT INTO app.users (id, email) VALUES (%s, 'late@example.com')", [user_id]
    )
    both(world, ("unlinked", customer))
    assert world.get(user_id).subscription_active
    assert world.row(subscription).user_id == user_id


def test_second_customer_of_a_user_is_told_as_unlinked(world: StripeWorld):
    user_id, customer, _ = world.subscribed()
    second = world.customer(user_id)
    world.deliver()
    assert kinds(world.reconcile()) == [("unlinked", second, False)]
    assert world.get(user_id).stripe_customer_id == customer


def test_email_proposes_a_link_and_makes_it_when_told(world: StripeWorld):
    user_id = world.user("Ada@example.com")
    customer = world.customer(email="ada@EXAMPLE.com")
    subscription = world.subscribe(customer)
    world.deliver()

    (found,) = world.reconcile()
    assert found == Difference("unlinked", customer, user_id, False)
    assert world.get(user_id).stripe_customer_id is None
    (found,) = world.reconcile(dry_run=True, match_email=True)
    assert not found.is_repaired
    (found,) = world.reconcile(match_email=True)
    assert found == Difference("unlinked", customer, user_id, True)
    assert world.get(user_id).stripe_subscription_id == subscription
    assert world.reconcile() == []


def test_email_of_two_customers_links_the_first(world: StripeWorld):
    user_id = world.user("ada@example.com")
    customers = [world.customer(email="ada@example.com") for _ in range(2)]
    world.reconcile(match_email=True)
    linked = world.get(user_id).stripe_customer_id
    assert linked in customers
    (other,) = set(customers) - {linked}
    assert kinds(world.reconcile()) == [("unlinked", other, False)]


def test_user_whom_a_customer_names_is_not_matched_by_email(world: StripeWorld):
    user_id = world.user("ada@example.com")
    older = world.customer(email="ada@example.com")
    world.fake.advance(seconds=60)
    customer = world.customer(user_id, email="ada@example.com")
    dry = kinds(world.reconcile(dry_run=True, match_email=True))
    assert ("unlinked", older, False) in dry
    for found in (world.reconcile(match_email=True), world.reconcile()):
        assert Difference("unlinked", older, None, False) in found
        assert world.get(user_id).stripe_customer_id == customer


def test_page_fetched_before_a_cancellation_does_not_revive_it(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    user_id, _, subscription = world.subscribed()
    world.fake.advance(seconds=60)
    list_page = api.list_page

    def cancel_meanwhile(client: Any, object_type: str, **parameters: Any) -> Any:
        page = list_page(client, object_type, **parameters)
        if object_type == "subscriptions":
            world.fake.advance(seconds=3)
            world.client.v1.subscriptions.cancel(subscription)
            with connect(world.url) as conn:
                conn.autocommit = True
                other = StripeWorld(world.fake, world.url, conn)
                assert set(other.deliver()) == {"applied"}
        return page

    monkeypatch.setattr("pyapp.stripe_sync.pages.list_page", cancel_meanwhile)
    assert world.reconcile() == []
    assert not world.get(user_id).subscription_active


def test_provisional_rows_are_looked_at_again(world: StripeWorld):
    _, _, subscription = world.subscribed()
    world.conn.execute("UPDATE app.stripe_subscriptions SET is_provisional = TRUE")
    assert world.reconcile() == []
    assert not world.row(subscription).is_provisional
    # In the second in which it was flagged, the page cannot tell: it is fetched.
    world.conn.execute("UPDATE app.stripe_subscriptions SET is_provisional = TRUE")
    reconcile(world.conn, world.client)
    assert not world.row(subscription).is_provisional


def test_change_of_the_same_second_is_fetched(world: StripeWorld):
    _, _, subscription = world.subscribed()
    world.client.v1.subscriptions.cancel(subscription)
    found: list[Difference] = []
    reconcile(world.conn, world.client, on_difference=found.append)
    assert kinds(found) == [("status", subscription, True)]


def test_late_event_does_not_undo_a_reconciliation(world: StripeWorld):
    user_id, _, subscription = world.subscribed()
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.pause(subscription)
    (late,) = world.take()
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.resume(subscription)
    world.take()
    world.reconcile()
    assert world.handle(late).result == "stale"
    assert world.get(user_id).subscription_active


@pytest.mark.parametrize("same_second", [True, False])
def test_pages_of_any_size_find_what_was_deleted(world: StripeWorld, same_second: bool):
    """Also where a page is cut within a second."""
    customers = []
    for _ in range(13):
        customers.append(world.customer(world.user()))
        if not same_second:
            world.fake.advance(seconds=1)
    world.deliver()
    world.fake.advance(seconds=5)
    gone = {customers[0], customers[6], customers[12]}
    for customer in sorted(gone):
        world.client.v1.customers.delete(customer)
    world.fake.reset_stats()

    found = world.reconcile(page_size=4)
    assert {d.object_id for d in found} == gone
    requests = world.fake.stats()["requests"]
    assert requests["GET /v1/customers"] == 3
    assert requests["GET /v1/customers/:id"] == 3
    assert world.reconcile(page_size=4) == []
