"""The fake bills by its clock, as Stripe does."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe

from tests.fake_stripe import FakeStripe
from tests.fake_stripe.driving import DECLINED, events, period, previous, subscribe

DAY = 86_400


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with FakeStripe(seed=7, start=1_790_000_000) as running:
        running.add_price("price_month")
        running.add_price("price_year", interval="year")
        yield running


@pytest.fixture
def client(fake: FakeStripe) -> stripe.StripeClient:
    return fake.client()


def status(client: stripe.StripeClient, subscription: stripe.Subscription) -> str:
    return client.v1.subscriptions.retrieve(subscription.id).status


def declined_customer(client: stripe.StripeClient) -> str:
    settings: Any = {"default_payment_method": DECLINED}
    return client.v1.customers.create({"invoice_settings": settings}).id


def test_renewals_keep_to_the_anchor_at_month_ends(fake, client):
    fake.advance(to=int(datetime(2027, 1, 31, 12, tzinfo=UTC).timestamp()))
    subscription = subscribe(client)
    ends = []
    for _ in range(3):
        _, end = period(client.v1.subscriptions.retrieve(subscription.id))
        ends.append(end)
        fake.advance(to=end)
    days = [datetime.fromtimestamp(end, UTC).strftime("%m-%d") for end in ends]
    assert days == ["02-28", "03-31", "04-30"]
    paid = client.v1.invoices.list({"subscription": subscription.id}).data
    assert [*ends[::-1], subscription.created] == [i.created for i in paid]


def test_renewal_is_paid_in_the_same_second(fake, client):
    subscription = subscribe(client)
    _, end = period(subscription)
    fake.advance(to=end + DAY)

    made = [event for event in events(client) if event.created == end]
    assert [event.type for event in made] == [
        "customer.subscription.updated",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
    ]
    updated = made[0]
    (item,) = updated.data.object["items"].data
    (old,) = previous(updated)["items"].data
    assert end == item.current_period_start == old.current_period_end


def test_declined_renewal_is_past_due_until_it_is_paid(fake, client):
    subscription = subscribe(client)
    settings: Any = {"default_payment_method": DECLINED}
    client.v1.customers.update(subscription.customer, {"invoice_settings": settings})
    fake.advance(to=period(subscription)[1])
    assert status(client, subscription) == "past_due"
    (failed,) = events(client, "invoice.payment_failed")

    invoice = failed.data.object.id
    with pytest.raises(stripe.CardError):
        client.v1.invoices.pay(invoice)
    client.v1.invoices.pay(invoice, {"payment_method": "pm_card_visa"})
    assert status(client, subscription) == "active"


def test_renewal_declined_for_two_weeks_cancels(fake, client):
    subscription = subscribe(client)
    settings: Any = {"default_payment_method": DECLINED}
    client.v1.customers.update(subscription.customer, {"invoice_settings": settings})
    fake.advance(to=period(subscription)[1] + 15 * DAY)
    assert len(events(client, "invoice.payment_failed")) == 4
    (ended,) = events(client, "customer.subscription.deleted")
    assert ended.data.object.cancellation_details.reason == "payment_failed"
    assert status(client, subscription) == "canceled"


def test_first_payment_declined_expires_after_23_hours(fake, client):
    subscription = subscribe(client, customer=declined_customer(client))
    assert subscription.status == "incomplete"
    fake.advance(seconds=DAY)
    assert status(client, subscription) == "incomplete_expired"
    (updated,) = events(client, "customer.subscription.updated")
    assert previous(updated).status == "incomplete"

    with pytest.raises(stripe.CardError):
        subscribe(
            client,
            customer=subscription.customer,
            payment_behavior="error_if_incomplete",
        )


def test_trial_is_announced_and_turns_active(fake, client):
    subscription = subscribe(client, trial_period_days=14)
    assert subscription.status == "trialing"
    assert subscription.trial_end == period(subscription)[1]
    fake.advance(seconds=12 * DAY)
    (warning,) = events(client, "customer.subscription.trial_will_end")
    assert subscription.trial_end - 3 * DAY == warning.created
    fake.advance(seconds=2 * DAY)
    renewed = client.v1.subscriptions.retrieve(subscription.id)
    assert ("active", subscription.trial_end) == (renewed.status, period(renewed)[0])
    amounts = [e.data.object.amount_paid for e in events(client, "invoice.paid")]
    assert amounts == [0, 2000]


def test_trial_without_a_payment_method_pauses_and_resumes(fake, client):
    behavior = {"missing_payment_method": "pause"}
    subscription = subscribe(
        client, trial_period_days=5, trial_settings={"end_behavior": behavior}
    )
    fake.advance(seconds=10 * DAY)
    paused = client.v1.subscriptions.retrieve(subscription.id)
    reason = paused.status_details.paused.subscription.type
    assert (paused.status, reason) == ("paused", "trial_end_without_payment_method")
    assert len(events(client, "customer.subscription.paused")) == 1

    resumed = client.v1.subscriptions.resume(subscription.id)
    assert ("active", fake.clock.now) == (resumed.status, period(resumed)[0])
    assert len(events(client, "customer.subscription.resumed")) == 1


def test_paused_collection_stays_active_without_payments(fake, client):
    subscription = subscribe(client)
    pause: Any = {"behavior": "void"}
    client.v1.subscriptions.update(subscription.id, {"pause_collection": pause})
    fake.advance(to=period(subscription)[1])
    assert status(client, subscription) == "active"
    assert len(events(client, "invoice.paid")) == 1
    resumed = client.v1.subscriptions.update(subscription.id, {"pause_collection": ""})
    assert resumed.pause_collection is None


def test_cancellation_at_period_end_can_be_undone(fake, client):
    subscription = subscribe(client)
    end = period(subscription)[1]
    at_end = client.v1.subscriptions.update(
        subscription.id, {"cancel_at_period_end": True}
    )
    assert ("active", end) == (at_end.status, at_end.cancel_at)
    client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": False})
    fake.advance(to=end)
    assert status(client, subscription) == "active"

    client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    fake.advance(seconds=32 * DAY)
    ended = client.v1.subscriptions.retrieve(subscription.id)
    assert ("canceled", end) == (ended.status, ended.canceled_at)
    assert period(ended)[1] == ended.ended_at


def test_canceled_subscription_cannot_change(client):
    subscription = subscribe(client)
    canceled = client.v1.subscriptions.cancel(subscription.id)
    assert ("canceled", canceled.created) == (canceled.status, canceled.ended_at)
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription"):
        client.v1.subscriptions.cancel(subscription.id)
    with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
        client.v1.subscriptions.update(subscription.id, {"description": "x"})
    client.v1.subscriptions.update(subscription.id, {"metadata": {"x": "1"}})


def test_upgrade_keeps_the_period_unless_the_interval_changes(fake, client):
    fake.add_price("price_month_large", unit_amount=9000)
    subscription = subscribe(client)
    item = subscription["items"].data[0].id
    fake.advance(seconds=DAY)
    large: Any = {"items": [{"id": item, "price": "price_month_large"}]}
    upgraded = client.v1.subscriptions.update(subscription.id, large)
    assert period(subscription) == period(upgraded)
    yearly: Any = {"items": [{"id": item, "price": "price_year"}]}
    changed = client.v1.subscriptions.update(subscription.id, yearly)
    assert (fake.clock.now, fake.clock.now + 365 * DAY) == period(changed)
    prices = [
        previous(event)["items"].data[0].price.id
        for event in events(client, "customer.subscription.updated")
    ]
    assert prices == ["price_month", "price_month_large"]


def test_items_with_different_intervals_renew_separately(fake, client):
    subscription = subscribe(client)
    added: Any = {"items": [{"price": "price_year"}]}
    client.v1.subscriptions.update(subscription.id, added)
    fake.advance(to=period(subscription)[1])
    items = client.v1.subscriptions.retrieve(subscription.id)["items"].data
    starts = [item.current_period_start - subscription.created for item in items]
    assert starts == [period(subscription)[1] - subscription.created, 0]


def test_checkout_activates_in_the_same_second(fake, client):
    session = client.v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": "price_month", "quantity": 1}],
            "client_reference_id": "user-1",
        }
    )
    fake.complete_checkout(session.id, "typed@example.com")
    (completed,) = events(client, "checkout.session.completed")
    shape = completed.data.object
    assert (shape.client_reference_id, shape.status) == ("user-1", "complete")
    customer = client.v1.customers.retrieve(shape.customer)
    assert customer.email == "typed@example.com"
    created, updated = events(client, "customer.subscription.created") + (
        events(client, "customer.subscription.updated")
    )
    assert (
        created.data.object.status,
        updated.data.object.status,
    ) == ("incomplete", "active")
    assert created.created == updated.created == completed.created
    assert shape.subscription == created.data.object.id


def test_abandoned_checkout_expires_after_a_day(fake, client):
    session = client.v1.checkout.sessions.create(
        {"mode": "subscription", "line_items": [{"price": "price_month"}]}
    )
    fake.advance(seconds=DAY)
    assert client.v1.checkout.sessions.retrieve(session.id).status == "expired"
    assert len(events(client, "checkout.session.expired")) == 1
