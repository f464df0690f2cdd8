"""Reconciliation reports each difference by kind, and repairs it."""

from typing import Any
from uuid import UUID

import psycopg
import pytest

from pyapp import users
from pyapp._core.connection import connect
from pyapp.errors import OtherAccountError
from pyapp.stripe_sync import Difference, Refusal, reconcile
from pyapp.stripe_sync import client as api
from tests.fake_stripe import seeded_user_id
from tests.stripe_world import (
    START,
    StripeWorld,
    make_checkout,
    make_customer,
    make_subscription,
)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waits between requests instead of waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(api, "sleep", seconds.append)
    return seconds


def kinds(found: list[Difference]) -> list[tuple[str, str, bool]]:
    return sorted((d.kind, d.object_id, d.is_repaired) for d in found)


def check_repair(world: StripeWorld, *expected: tuple[str, str]) -> None:
    """Check that a dry run and a run find *expected*, and that the run repairs it."""
    before = read_tables(world.conn)
    dry = kinds(world.reconcile(dry_run=True))
    assert dry == sorted((kind, name, False) for kind, name in expected)
    assert read_tables(world.conn) == before
    assert kinds(world.reconcile()) == sorted(
        (kind, name, True) for kind, name in expected
    )
    assert world.reconcile() == []


def read_tables(conn: psycopg.Connection[Any]) -> list[Any]:
    return [
        conn.execute(f"SELECT to_jsonb(t) FROM app.{table} AS t ORDER BY id").fetchall()
        for table in (
            "users",
            "stripe_customers",
            "stripe_subscriptions",
            "stripe_subscription_items",
        )
    ]


def test_equal_data_gives_no_differences(world: StripeWorld):
    world.create_subscribed_user()
    check_repair(world)


def test_missing_objects_are_stored(world: StripeWorld):
    user_id = world.create_user()
    customer = world.create_customer(user_id)
    subscription = world.subscribe(customer)
    check_repair(world, ("missing_here", customer), ("missing_here", subscription))
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, user.subscription_active) == (customer, True)
    assert user.created_at.timestamp() == START


def test_canceled_subscriptions_are_stored(world: StripeWorld):
    user_id = world.create_user()
    customer = world.create_customer(user_id)
    subscription = world.subscribe(customer)
    world.client.v1.subscriptions.cancel(subscription)
    world.reconcile()
    assert world.subscription_row(subscription).status == "canceled"
    assert world.get_user(user_id).subscription_status == "canceled"


def test_customer_deleted_in_stripe_is_found(world: StripeWorld):
    user_id, customer, subscription = world.create_subscribed_user()
    world.fake.advance(seconds=60)
    world.client.v1.customers.delete(customer)
    check_repair(world, ("missing_there", customer), ("status", subscription))
    assert world.customer_row(customer).is_deleted
    assert world.get_user(user_id).base_quota == 2500


def test_object_unknown_to_stripe_becomes_deleted(world: StripeWorld):
    """Test data of a Stripe account can be deleted."""
    world.handle_event(
        "customer.subscription.created", make_subscription("sub_1", "cus_1")
    )
    shape = {"id": "cus_2", "object": "customer", "created": START, "metadata": {}}
    world.handle_event("customer.created", shape)
    before = read_tables(world.conn)
    for options in ({}, {"dry_run": True}):
        with pytest.raises(OtherAccountError, match=r"\(cus_2, sub_1\); nothing was"):
            world.reconcile(**options)
    assert read_tables(world.conn) == before
    assert kinds(world.reconcile(cleared=True)) == [
        ("missing_there", "cus_2", True),
        ("missing_there", "sub_1", True),
    ]
    assert world.reconcile() == []
    assert world.subscription_row("sub_1").status == "canceled"
    assert world.customer_row("cus_2").is_deleted


def test_customer_known_only_by_a_checkout_is_fetched(world: StripeWorld):
    world.handle_event(
        "checkout.session.completed", make_checkout("cus_gone", world.create_user())
    )
    check_repair(world, ("missing_there", "cus_gone"))


def test_unknown_customer_of_an_imported_user_is_found(world: StripeWorld):
    user_id = world.create_user()
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = 'cus_gone', base_quota = 50000,"
        " stripe_subscription_id = 'sub_gone', subscription_status = 'active'"
        " WHERE id = %s",
        [user_id],
    )
    check_repair(world, ("missing_there", "cus_gone"))
    user = world.get_user(user_id)
    assert user.subscription_status is None
    assert user.base_quota == 2500


CHOSEN = "user/1?a=b&c #%2F+\u00e9 \u05d0"


def test_object_with_any_id_is_fetched(world: StripeWorld):
    """The list leaves out customers of a test clock."""
    clock = world.client.v1.test_helpers.test_clocks.create({"frozen_time": START})
    parameters: Any = {"id": CHOSEN, "test_clock": clock.id}
    world.client.v1.customers.create(parameters)
    assert world.handle_all() == ["applied"]
    world.fake.reset_stats()
    for is_dry_run in (True, False):
        found = world.reconcile(dry_run=is_dry_run)
        assert kinds(found) == [("unlinked", CHOSEN, False)]
    requests = world.fake.stats()["requests"]
    # Each run asks for it once more to prove the account.
    assert requests["GET /v1/customers/:id"] == 4


def test_id_that_is_no_part_of_a_path_is_refused(world: StripeWorld):
    """Stripe's answer would be about another path, and the customer seem deleted."""
    for customer in (".", ".."):
        world.handle_event("customer.created", make_customer(customer))
    refusals: list[Refusal] = []
    world.reconcile(on_refusal=refusals.append)
    assert [one.kind for one in refusals] == ["unreadable"] * 2
    assert not world.customer_row("..").is_deleted


def test_status_price_and_period_are_distinguished(world: StripeWorld):
    _, _, paused = world.create_subscribed_user()
    _, _, other = world.create_subscribed_user()
    _, _, renewed = world.create_subscribed_user()
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
    user_id, customer, _ = world.create_subscribed_user()
    world.conn.execute("UPDATE app.stripe_customers SET created_at = now()")
    world.conn.execute("UPDATE app.users SET created_at = now()")
    check_repair(world, ("created_at", customer))
    assert world.get_user(user_id).created_at.timestamp() == START


def test_user_that_differs_from_the_mirror_is_found(world: StripeWorld):
    user_id, _, _ = world.create_subscribed_user()
    world.conn.execute(
        "UPDATE app.users SET subscription_status = 'paused', base_quota = 7"
    )
    check_repair(world, ("status", str(user_id)), ("price", str(user_id)))


def test_unknown_price_is_reported_by_each_run(world: StripeWorld):
    subscription = world.create_subscription("price_other")
    world.handle_all()
    for dry_run in (True, False, True):
        found = kinds(world.reconcile(dry_run=dry_run))
        assert found == [("unknown_price", subscription, False)]


def test_customer_without_a_claim_is_unlinked(world: StripeWorld):
    customer = world.create_customer()
    world.reconcile()
    assert kinds(world.reconcile()) == [("unlinked", customer, False)]


def test_user_created_after_its_customer_is_linked(world: StripeWorld):
    user_id = seeded_user_id(1)
    customer = world.create_customer(user_id)
    subscription = world.subscribe(customer)
    world.handle_all()
    assert world.customer_row(customer).user_id is None
    world.conn.execute(
        "INSERT INTO app.users (id, email) VALUES (%s, 'late@example.com')", [user_id]
    )
    check_repair(world)
    assert world.get_user(user_id).stripe_subscription_id == subscription


def test_user_may_have_several_customers(world: StripeWorld):
    user_id, customer, _ = world.create_subscribed_user()
    second = world.create_customer(user_id)
    check_repair(world, ("missing_here", second))
    assert world.customer_row(second).user_id == user_id
    assert world.get_user(user_id).stripe_customer_id == customer


def create_verified_user(world: StripeWorld, email: str) -> UUID:
    user_id = world.create_user(email)
    users.mark_user_email_verified(world.conn, user_id=user_id, email=email)
    return user_id


def test_email_proposes_a_link_and_match_email_makes_it(world: StripeWorld):
    user_id = create_verified_user(world, "Ada@example.com")
    customer = world.create_customer(email="ada@EXAMPLE.com")
    subscription = world.subscribe(customer)
    world.handle_all()

    (found,) = world.reconcile()
    assert found == Difference("unlinked", customer, user_id, False)
    assert world.get_user(user_id).stripe_customer_id is None
    (found,) = world.reconcile(dry_run=True, match_email=True)
    assert not found.is_repaired
    (found,) = world.reconcile(match_email=True)
    assert found == Difference("unlinked", customer, user_id, True)
    assert world.get_user(user_id).stripe_subscription_id == subscription
    assert world.reconcile() == []


def test_user_of_two_customers_with_its_email_is_linked(world: StripeWorld):
    user_id = create_verified_user(world, "ada@example.com")
    customers = [world.create_customer(email="ada@example.com") for _ in range(2)]
    world.reconcile(match_email=True)
    assert world.get_user(user_id).stripe_customer_id in customers


def test_claimed_user_is_not_matched_by_email(world: StripeWorld):
    user_id = create_verified_user(world, "ada@example.com")
    older = world.create_customer(email="ada@example.com")
    world.fake.advance(seconds=60)
    customer = world.create_customer(user_id, email="ada@example.com")
    dry = kinds(world.reconcile(dry_run=True, match_email=True))
    assert ("unlinked", older, False) in dry
    for found in (world.reconcile(match_email=True), world.reconcile()):
        assert Difference("unlinked", older, None, False) in found
        assert world.get_user(user_id).stripe_customer_id == customer


def test_page_fetched_before_a_cancellation_does_not_revive_it(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    user_id, _, subscription = world.create_subscribed_user()
    world.fake.advance(seconds=60)
    list_page = api.list_page

    def cancel_after_listing(client: Any, object_type: str, **parameters: Any) -> Any:
        page = list_page(client, object_type, **parameters)
        if object_type == "subscriptions":
            world.fake.advance(seconds=3)
            world.client.v1.subscriptions.cancel(subscription)
            with connect(world.url) as conn:
                conn.autocommit = True
                other = StripeWorld(world.fake, world.url, conn)
                assert set(other.handle_all()) == {"applied"}
        return page

    monkeypatch.setattr("pyapp.stripe_sync.pages.list_page", cancel_after_listing)
    assert world.reconcile() == []
    assert not world.get_user(user_id).subscription_active


def test_provisional_rows_are_checked_again(world: StripeWorld):
    _, _, subscription = world.create_subscribed_user()
    world.conn.execute("UPDATE app.stripe_subscriptions SET is_provisional = TRUE")
    assert world.reconcile() == []
    assert not world.subscription_row(subscription).is_provisional
    # In the second in which it was marked, the page is ambiguous: it is fetched.
    world.conn.execute("UPDATE app.stripe_subscriptions SET is_provisional = TRUE")
    reconcile(world.conn, world.client)
    assert not world.subscription_row(subscription).is_provisional


def test_change_of_the_same_second_is_fetched(world: StripeWorld):
    _, _, subscription = world.create_subscribed_user()
    world.client.v1.subscriptions.cancel(subscription)
    found: list[Difference] = []
    reconcile(world.conn, world.client, on_difference=found.append)
    assert kinds(found) == [("status", subscription, True)]


def test_late_event_does_not_undo_a_reconciliation(world: StripeWorld):
    user_id, _, subscription = world.create_subscribed_user()
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.pause(subscription)
    (late,) = world.pop_deliveries()
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.resume(subscription)
    world.pop_deliveries()
    world.reconcile()
    assert world.handle_delivery(late).result == "stale"
    assert world.get_user(user_id).subscription_active


@pytest.mark.parametrize("same_second", [True, False])
def test_pages_of_any_size_find_deleted_customers(
    world: StripeWorld, same_second: bool
):
    """Even if a page ends within one second."""
    customers = []
    for _ in range(13):
        customers.append(world.create_customer(world.create_user()))
        if not same_second:
            world.fake.advance(seconds=1)
    world.handle_all()
    world.fake.advance(seconds=5)
    gone = {customers[0], customers[6], customers[12]}
    for customer in sorted(gone):
        world.client.v1.customers.delete(customer)
    world.fake.reset_stats()

    found = world.reconcile(page_size=4)
    assert {d.object_id for d in found} == gone
    requests = world.fake.stats()["requests"]
    assert requests["GET /v1/customers"] == 3
    # The newest one proves the account.
    assert requests["GET /v1/customers/:id"] == 3 + 1
    assert world.reconcile(page_size=4) == []
