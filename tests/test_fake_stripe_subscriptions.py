"""The fake's subscriptions end, pause, mix items and try out as Stripe's do."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
import stripe

from tests.fake_stripe import FakeStripe
from tests.fake_stripe.driving import events, previous, subscribe

DAY = 86_400
UPDATED = "customer.subscription.updated"


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with FakeStripe(seed=7, start=1_790_000_000) as running:
        running.add_price("price_month")
        running.add_price("price_year", interval="year")
        running.add_price("price_meter", meter="mtr_tokens")
        yield running


@pytest.fixture
def client(fake: FakeStripe) -> stripe.StripeClient:
    return fake.client()


def refetch(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> stripe.Subscription:
    return client.v1.subscriptions.retrieve(subscription.id)


def ends(subscription: stripe.Subscription) -> list[int]:
    return [item.current_period_end for item in subscription["items"].data]


def ending(subscription: stripe.Subscription) -> tuple[int | None, bool, bool]:
    canceled = subscription.canceled_at is not None
    return subscription.cancel_at, subscription.cancel_at_period_end, canceled


def mix(client: stripe.StripeClient, *prices: str, **options: Any) -> Any:
    options["items"] = [{"price": price} for price in prices]
    return subscribe(client, **options)


def test_cancel_at_names_the_first_or_last_period_end(fake, client):
    subscription = mix(client, "price_year", "price_month")
    year, month = ends(subscription)
    for name, moment in (("min_period_end", month), ("max_period_end", year)):
        planned: Any = {"cancel_at": name}
        updated = client.v1.subscriptions.update(subscription.id, planned)
        assert (moment, False, True) == ending(updated)
        assert updated.cancellation_details.reason == "cancellation_requested"

    fake.advance(to=month)
    assert year == refetch(client, subscription).cancel_at
    fake.advance(to=year)
    ended = refetch(client, subscription)
    assert ("canceled", year) == (ended.status, ended.ended_at)


def test_cancel_at_a_time_ends_the_subscription_then(fake, client):
    subscription = subscribe(client, cancel_at=fake.clock.now + 3 * DAY)
    fake.advance(seconds=3 * DAY - 1)
    assert refetch(client, subscription).status == "active"
    fake.advance(seconds=1)
    (deleted,) = events(client, "customer.subscription.deleted")
    assert subscription.cancel_at == deleted.data.object.ended_at

    other = subscribe(client, cancel_at=fake.clock.now + DAY)
    unset: Any = {"cancel_at": ""}
    kept = client.v1.subscriptions.update(other.id, unset)
    assert ending(kept) == (None, False, False)
    for wrong in (
        {"cancel_at": fake.clock.now},
        {"cancel_at": "min_period_end", "cancel_at_period_end": "true"},
    ):
        both: Any = wrong
        with pytest.raises(stripe.InvalidRequestError, match="cancel_at"):
            client.v1.subscriptions.update(other.id, both)
    fake.advance(seconds=2 * DAY)
    assert refetch(client, other).status == "active"


def test_cancel_at_period_end_follows_the_period(fake, client):
    subscription = subscribe(client, cancel_at_period_end=True)
    assert (*ends(subscription), True, True) == ending(subscription)
    fake.advance(seconds=DAY)
    again: Any = {"billing_cycle_anchor": "now"}
    moved = client.v1.subscriptions.update(subscription.id, again)
    assert moved.cancel_at == ends(moved)[0] != ends(subscription)[0]

    resolved: Any = {"cancel_at": "min_period_end"}
    fixed = client.v1.subscriptions.update(subscription.id, resolved)
    fake.advance(seconds=DAY)
    client.v1.subscriptions.update(subscription.id, again)
    assert fixed.cancel_at == refetch(client, subscription).cancel_at


def test_portal_cancels_by_cancel_at_with_flexible_billing(fake, client):
    flexible = subscribe(client)
    classic = subscribe(client, billing_mode={"type": "classic"})
    for subscription, at_end in ((flexible, False), (classic, True)):
        fake.cancel_in_portal(subscription.id)
        planned = refetch(client, subscription)
        assert (*ends(subscription), at_end, True) == ending(planned)
    old = previous(events(client, UPDATED)[0]).to_dict()
    assert old == {
        "cancel_at": None,
        "canceled_at": None,
        "cancellation_details": {"reason": None},
    }
    fake.renew_in_portal(flexible.id)
    fake.advance(to=ends(classic)[0])
    statuses = [refetch(client, s).status for s in (flexible, classic)]
    assert statuses == ["active", "canceled"]


@pytest.mark.parametrize(
    ("behavior", "status"),
    [
        ("keep_as_draft", "draft"),
        ("mark_uncollectible", "uncollectible"),
        ("void", "void"),
    ],
)
def test_paused_collection_leaves_invoices_unpaid(fake, client, behavior, status):
    subscription = subscribe(client)
    pause: Any = {"behavior": behavior, "resumes_at": fake.clock.now + 40 * DAY}
    client.v1.subscriptions.update(subscription.id, {"pause_collection": pause})
    fake.advance(seconds=39 * DAY)
    paused: Any = refetch(client, subscription)
    shape = paused.last_response.data
    assert ("active", pause) == (shape["status"], shape["pause_collection"])
    newest = client.v1.invoices.list({"subscription": subscription.id}).data[0]
    assert status == newest.status

    fake.advance(seconds=2 * DAY)
    assert refetch(client, subscription).pause_collection is None
    resumed = events(client, UPDATED)[-1]
    assert pause["resumes_at"] == resumed.created
    assert {"pause_collection": pause} == previous(resumed).to_dict()


def test_pause_collection_is_checked_and_unset(fake, client):
    subscription = subscribe(client)
    for wrong in ({"resumes_at": 1_900_000_000}, {"behavior": "void", "resumes_at": 1}):
        pause: Any = {"pause_collection": wrong}
        with pytest.raises(stripe.InvalidRequestError, match="pause_collection"):
            client.v1.subscriptions.update(subscription.id, pause)
    void: Any = {"pause_collection": {"behavior": "void"}}
    client.v1.subscriptions.update(subscription.id, void)
    unset: Any = {"pause_collection": ""}
    resumed = client.v1.subscriptions.update(subscription.id, unset)
    assert resumed.pause_collection is None
    old = previous(events(client, UPDATED)[0]).to_dict()
    assert old == {"pause_collection": None}


def test_classic_billing_has_one_interval(client):
    classic: Any = {"type": "classic"}
    subscription = subscribe(client, billing_mode=classic)
    assert subscription.billing_mode.type == "classic"
    yearly: Any = {"items": [{"price": "price_year"}]}
    with pytest.raises(stripe.InvalidRequestError, match="billing mode `classic`"):
        client.v1.subscriptions.update(subscription.id, yearly)
    with pytest.raises(stripe.InvalidRequestError, match="billing mode `classic`"):
        mix(client, "price_month", "price_year", billing_mode=classic)


def test_subscriptions_of_old_versions_are_classic(fake):
    old = subscribe(fake.client(stripe_version="2024-06-20"))
    assert refetch(fake.client(), old).billing_mode.type == "classic"


def test_item_of_a_meter_has_no_quantity(client):
    subscription = mix(client, "price_meter", "price_month")
    meter, seat = subscription.last_response.data["items"]["data"]
    assert "quantity" not in meter
    assert meter["price"]["recurring"]["usage_type"] == "metered"
    assert seat["quantity"] == 1
    wrong: Any = {"items": [{"id": meter["id"], "quantity": 2}]}
    with pytest.raises(stripe.InvalidRequestError, match="usage_type=metered"):
        client.v1.subscriptions.update(subscription.id, wrong)
    assert [i.amount_due for i in client.v1.invoices.list().data] == [2000]


def test_items_change_by_their_own_endpoint(client):
    subscription = subscribe(client)
    items = client.v1.subscription_items
    added = items.create(
        {
            "subscription": subscription.id,
            "price": "price_meter",
            "proration_behavior": "none",
        }
    )
    seats: Any = {"quantity": 5, "proration_behavior": "create_prorations"}
    first = subscription["items"].data[0]
    assert items.update(first.id, seats).quantity == 5
    assert items.retrieve(added.id).price.id == "price_meter"
    assert items.delete(first.id).deleted
    left = refetch(client, subscription)
    assert [added.id] == [item.id for item in left["items"].data]
    with pytest.raises(stripe.InvalidRequestError, match="at least one"):
        items.delete(added.id)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription_item"):
        items.retrieve("si_none")
    before = [previous(event).to_dict() for event in events(client, UPDATED)]
    quantities = [
        [item.get("quantity") for item in old["items"]["data"]] for old in before
    ]
    assert quantities == [[1], [1, None], [5, None]]


def test_subscription_contains_ten_items_and_lists_twenty(fake, client):
    for n in range(21):
        fake.add_price(f"price_{n}")
    subscription = mix(client, *(f"price_{n}" for n in range(20)))
    contained = subscription["items"]
    assert (len(contained.data), contained.has_more) == (10, True)
    page = client.v1.subscription_items.list(
        {"subscription": subscription.id, "limit": 8}
    )
    listed = list(page.auto_paging_iter())
    assert [f"price_{n}" for n in range(20)] == [item.price.id for item in listed]
    assert [item.id for item in contained.data] == [item.id for item in listed[:10]]
    back = client.v1.subscription_items.list(
        {"subscription": subscription.id, "limit": 8, "ending_before": listed[9].id}
    )
    assert back.has_more
    assert [item.id for item in listed[1:9]] == [item.id for item in back.data]

    # The client continues the contained list at its own address.
    assert len(list(contained.auto_paging_iter())) == 20
    more: Any = {"items": [{"price": "price_20"}]}
    with pytest.raises(stripe.InvalidRequestError, match="at most 20"):
        client.v1.subscriptions.update(subscription.id, more)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription_item"):
        client.v1.subscription_items.list(
            {"subscription": subscription.id, "starting_after": "si_none"}
        )


def test_refused_update_keeps_the_periods_of_items(fake, client):
    subscription = subscribe(client)
    fake.advance(seconds=DAY)
    wrong: Any = {"billing_cycle_anchor": "now", "cancel_at": 1}
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.subscriptions.update(subscription.id, wrong)
    assert ends(subscription) == ends(refetch(client, subscription))


@pytest.mark.parametrize(
    ("behavior", "status"),
    [("cancel", "canceled"), ("pause", "paused"), ("create_invoice", "active")],
)
def test_trial_without_a_payment_method_ends_as_set(fake, client, behavior, status):
    settings: Any = {"end_behavior": {"missing_payment_method": behavior}}
    subscription = subscribe(
        client, trial_end=fake.clock.now + 5 * DAY, trial_settings=settings
    )
    assert ("trialing", fake.clock.now) == (
        subscription.status,
        subscription.trial_start,
    )
    fake.advance(seconds=5 * DAY)
    assert status == refetch(client, subscription).status


def test_price_may_be_free_fractional_or_tiered(fake, client):
    fake.add_price("free", unit_amount=0)
    fake.add_price("fractional", unit_amount=Decimal("0.25"))
    fake.add_price("tiered", tiers=[(2, 100), (None, 50)])
    amounts = {}
    for name in ("free", "fractional", "tiered"):
        options: Any = {"items": [{"price": name, "quantity": 4}]}
        subscription = subscribe(client, **options)
        assert subscription.status == "active"
        invoice = client.v1.invoices.retrieve(subscription.latest_invoice)
        price = client.v1.prices.retrieve(name).last_response.data
        amounts[name] = (
            price["unit_amount"],
            price["unit_amount_decimal"],
            invoice.total,
        )
    assert amounts == {
        "free": (0, "0", 0),
        "fractional": (None, "0.25", 1),
        "tiered": (None, None, 300),
    }
    expand: Any = {"expand": ["tiers"]}
    tiered = client.v1.prices.retrieve("tiered", expand)
    assert [tier.up_to for tier in tiered.tiers] == [2, None]
    assert "tiers" not in client.v1.prices.retrieve("tiered")
