"""The fake has ids, test clocks, checkouts and events of all kinds, as Stripe has."""

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe

from tests.fake_stripe import TEST_SECRET, ApiError, FakeStripe
from tests.fake_stripe.driving import events, subscribe


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with FakeStripe(seed=7, start=1_790_000_000) as running:
        running.add_price("price_month")
        running.add_price("price_once", interval=None)
        yield running


@pytest.fixture
def client(fake: FakeStripe) -> stripe.StripeClient:
    return fake.client()


def create(client: stripe.StripeClient, **params: Any) -> stripe.Customer:
    return client.v1.customers.create(params)  # type: ignore[arg-type]


def check_out(client: stripe.StripeClient, price: str, **params: Any) -> Any:
    params["line_items"] = [{"price": price}]
    return client.v1.checkout.sessions.create(params)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["firebase-uid-1", "ada@example.com", "a/b c%2F?ü#1"])
def test_integration_chooses_the_customers_id(client, name):
    assert create(client, id=name).id == name
    subscription = subscribe(client, customer=name)
    assert [name] == [c.id for c in client.v1.customers.list().data]
    assert client.v1.customers.update(name, {"name": "Ada"}).id == name
    listed = client.v1.subscriptions.list({"customer": name}).data
    assert [subscription.id] == [s.id for s in listed]
    assert client.v1.customers.delete(name).id == name
    with pytest.raises(stripe.InvalidRequestError) as refused:
        create(client, id=name)
    assert refused.value.code == "resource_already_exists"
    with pytest.raises(stripe.InvalidRequestError, match="Invalid string"):
        create(client, id="x" * 256)


def test_new_objects_get_the_chosen_ids(fake, client):
    fake.add_price("gold plan")
    fake.choose_id("sub", "su_1a2b3c")
    subscription = subscribe(client, price="gold plan")
    assert subscription.id == "su_1a2b3c"
    assert client.v1.prices.retrieve("gold plan").id == "gold plan"
    assert subscribe(client).id.startswith("sub_")


def test_lists_leave_out_the_objects_of_test_clocks(client):
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": 1_800_000_000})
    clocks = client.v1.test_helpers.test_clocks
    assert clocks.retrieve(clock.id).frozen_time == 1_800_000_000
    hidden = create(client, test_clock=clock.id)
    subscription = subscribe(client, customer=hidden.id)
    shown = subscribe(client)
    assert subscription.test_clock == hidden.test_clock == clock.id

    def found(**filters: Any) -> tuple[list[str], list[str]]:
        lists = client.v1.customers.list, client.v1.subscriptions.list
        customers, subscriptions = ([o.id for o in f({**filters}).data] for f in lists)
        return customers, subscriptions

    assert found() == ([shown.customer], [shown.id])
    assert found(test_clock=clock.id) == ([hidden.id], [subscription.id])
    listed = client.v1.subscriptions.list({"customer": hidden.id}).data
    assert [subscription.id] == [s.id for s in listed]
    with pytest.raises(stripe.InvalidRequestError, match="No such test_clock"):
        create(client, test_clock="clock_none")


def test_checkout_passes_on_references_and_metadata(fake, client):
    session = check_out(
        client,
        "price_month",
        mode="subscription",
        client_reference_id="user-1",
        metadata={"user_id": "session"},
        subscription_data={"metadata": {"user_id": "subscription"}},
    )
    fake.complete_checkout(session.id, "typed@example.com")
    (event,) = events(client, "checkout.session.completed")
    shape = event.data.object
    assert (shape.client_reference_id, shape.metadata.user_id) == ("user-1", "session")
    assert (shape.customer_email, shape.customer_details.email) == (
        None,
        "typed@example.com",
    )
    subscription = client.v1.subscriptions.retrieve(shape.subscription)
    assert subscription.metadata["user_id"] == "subscription"


def test_payment_creates_a_customer_only_if_asked(fake, client):
    for creation in ("if_required", "always"):
        session = check_out(
            client, "price_once", mode="payment", customer_creation=creation
        )
        fake.complete_checkout(session.id)
    guest, customer = (e.data.object for e in events(client, "checkout.session.*"))
    assert (guest.customer, guest.subscription, guest.payment_status) == (
        None,
        None,
        "paid",
    )
    assert customer.customer == client.v1.customers.list().data[0].id
    for price, mode, message in (
        ("price_month", "payment", "recurring price"),
        ("price_once", "subscription", "at least one recurring"),
    ):
        with pytest.raises(stripe.InvalidRequestError, match=message):
            check_out(client, price, mode=mode)
    data: Any = {"metadata": {"a": "b"}}
    with pytest.raises(stripe.InvalidRequestError, match="subscription_data"):
        check_out(client, "price_once", mode="payment", subscription_data=data)


@pytest.mark.parametrize("succeeded", [True, False])
def test_bank_debit_of_a_checkout_ends_later(fake, client, succeeded):
    session = check_out(client, "price_month", mode="subscription").id
    with pytest.raises(ApiError, match="no payment on its way"):
        fake.finish_payment(session)
    fake.complete_checkout(session, unpaid=True)
    fake.advance(seconds=3 * 86_400)
    fake.finish_payment(session, succeeded=succeeded)
    last = "succeeded" if succeeded else "failed"
    made = events(client, "checkout.session.*")
    assert [(e.type, e.data.object.payment_status) for e in made] == [
        ("checkout.session.completed", "unpaid"),
        (f"checkout.session.async_payment_{last}", "paid" if succeeded else "unpaid"),
    ]


def test_events_name_their_account_or_context(fake, client):
    with fake.events_of(account="acct_1"):
        create(client)
    with fake.events_of(context="org_1/acct_2"):
        create(client)
    own = create(client)
    bodies = [json.loads(d.payload) for d in iter(fake.deliveries.take, None)]
    origins = [(body.get("account"), body.get("context")) for body in bodies]
    assert origins == [("acct_1", None), (None, "org_1/acct_2"), (None, None)]
    # The API lists only the events of the account itself.
    assert [own.id] == [event.data.object.id for event in events(client)]


def test_thin_event_names_an_object_without_a_snapshot(fake, client):
    subscription = subscribe(client)
    kind = "v1.customer.subscription.updated"
    payload, signature = fake.make_thin_event(kind, subscription.id)
    notice: Any = client.parse_event_notification(payload, signature, TEST_SECRET)
    assert (notice.object, notice.type) == ("v2.core.event", kind)
    assert notice.fetch_related_object().id == subscription.id
    assert "data" not in json.loads(payload)
    shape, _ = fake.make_thin_event(kind, subscription.id, context="org_1/acct_2")
    assert json.loads(shape)["context"] == "org_1/acct_2"


def test_distorted_object_is_false_in_lists_and_events(fake, client):
    customer = create(client)
    fake.distort(customer.id, created=None)
    client.v1.customers.update(customer.id, {"name": "Ada"})
    (updated,) = events(client, "customer.updated")
    listed = client.v1.customers.list().data[0]
    assert listed.created is updated.data.object.created is None


def test_new_behaviours_are_controlled_over_http(fake, client):
    connection = HTTPConnection(fake.base_url.removeprefix("http://"))

    def control(path: str, **params: Any) -> Any:
        connection.request("POST", f"/_fake/{path}", urlencode(params))
        return json.loads(connection.getresponse().read())

    control("ids", prefix="sub", id="su_1")
    control("prices", id="price_part", unit_amount="0.5")
    subscribe(client, price="price_part")
    canceled = control("portal/su_1/cancel")
    assert canceled["cancel_at"] == canceled["items"]["data"][0]["current_period_end"]
    assert control("portal/su_1/renew")["cancel_at"] is None
    thin = control("thin_events", type="v1.customer.subscription.updated", id="su_1")
    stripe.WebhookSignature.verify_header(
        thin["payload"], thin["signature"], TEST_SECRET
    )
    control("distortions", id="su_1", values='{"status": null}')
    assert client.v1.subscriptions.retrieve("su_1").status is None
    session = check_out(client, "price_once", mode="payment").id
    control(f"checkout/{session}/complete", unpaid="true")
    assert control(f"checkout/{session}/succeed")["payment_status"] == "paid"
    control("settings", account="acct_1")
    subscribe(client)
    control("settings", account="")
    subscribe(client)
    created = events(client, "customer.subscription.created")
    assert len(created) == 2
