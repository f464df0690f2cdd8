"""The fake replies to Stripe's client as Stripe does."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
import stripe

from tests.fake_stripe import ApiError, FakeStripe
from tests.fake_stripe.driving import events, period, previous, subscribe

DAY = 86_400
OLD = "2024-06-20"


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with FakeStripe(seed=7, start=1_790_000_000) as running:
        running.add_price("price_month")
        running.add_price("price_year", interval="year")
        yield running


@pytest.fixture
def client(fake: FakeStripe) -> stripe.StripeClient:
    return fake.client()


def test_pages_go_forward_and_backward(client):
    made = [client.v1.customers.create({"name": str(n)}).id for n in range(8)]

    forward = client.v1.customers.list({"limit": 3}).auto_paging_iter()
    assert made[::-1] == [customer.id for customer in forward]

    back = client.v1.customers.list({"limit": 3, "ending_before": made[0]})
    assert back.has_more
    assert made[3:0:-1] == [customer.id for customer in back.data]
    assert made[1:] == [customer.id for customer in back.auto_paging_iter()]

    last = client.v1.customers.list({"limit": 3, "starting_after": made[3]})
    assert (made[2::-1], False) == ([c.id for c in last.data], last.has_more)


def test_created_filters_are_inclusive_or_exclusive(fake, client):
    made = {}
    for n in range(4):
        made[client.v1.customers.create({}).id] = n
        fake.advance(seconds=1)
    start = 1_790_000_000

    def found(**created: int) -> list[int]:
        bounds = {name: start + n for name, n in created.items()}
        page = client.v1.customers.list({"created": bounds})
        return [made[customer.id] for customer in page.data]

    assert found(gt=1) == [3, 2]
    assert found(gte=1) == [3, 2, 1]
    assert found(lt=1) == [0]
    assert found(lte=1) == [1, 0]
    assert found(gt=0, lte=2) == [2, 1]
    exact = client.v1.customers.list({"created": start + 2}).data
    assert [made[customer.id] for customer in exact] == [2]


def test_email_filter_is_case_sensitive(client):
    customer = client.v1.customers.create({"email": "Ada@example.com"})
    assert [customer.id] == [
        c.id for c in client.v1.customers.list({"email": "Ada@example.com"}).data
    ]
    assert client.v1.customers.list({"email": "ada@example.com"}).is_empty


def test_deleted_customer_has_canceled_subscriptions(client):
    subscription = subscribe(client)
    customer = subscription.customer
    client.v1.customers.delete(customer)

    stub = client.v1.customers.retrieve(customer).last_response.data
    assert {"id": customer, "object": "customer", "deleted": True} == stub
    assert client.v1.customers.list().is_empty
    remaining = client.v1.subscriptions.list({"customer": customer, "status": "all"})
    assert [s.status for s in remaining.data] == ["canceled"]
    last = [event.type for event in events(client)[-2:]]
    assert last == ["customer.subscription.deleted", "customer.deleted"]
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        client.v1.customers.update(customer, {"name": "Ada"})


def test_subscriptions_are_filtered_by_status_customer_and_price(client):
    kept = subscribe(client, price="price_year")
    gone = subscribe(client)
    client.v1.subscriptions.cancel(gone.id)

    def found(**filters: Any) -> list[str]:
        return [s.id for s in client.v1.subscriptions.list({**filters}).data]

    assert [kept.id] == found()
    assert [gone.id, kept.id] == found(status="all")
    assert [kept.id] == found(status="active")
    assert [gone.id] == found(status="canceled")
    assert [gone.id] == found(status="ended")
    assert [gone.id] == found(status="all", customer=gone.customer)
    assert [kept.id] == found(price="price_year")
    with pytest.raises(stripe.InvalidRequestError, match="status"):
        found(status="nonsense")


def absent(cls: Any, shape: Any, path: str = "") -> list[str]:
    """Return fields that the client's type requires and *shape* lacks."""
    missing = []
    for name, hint in cls.__annotations__.items():
        optional, value = type(None) in get_args(hint), shape.get(name)
        where = f"{path}.{name}"
        if name == "OBJECT_NAME" or (optional and value is None):
            continue
        if value is None:
            missing.append(where)
        elif get_origin(hint) is stripe.ListObject:
            item = getattr(stripe, get_args(hint)[0].__forward_arg__)
            for element in value["data"]:
                missing += absent(item, element, where)
            continue
        for kind in (hint, *get_args(hint)) if isinstance(value, dict) else ():
            if inspect.isclass(kind) and issubclass(kind, stripe.StripeObject):
                missing += absent(kind, value, where)
    return missing


def test_objects_have_every_required_field(fake, client):
    subscription = subscribe(client, trial_period_days=7)
    session = client.v1.checkout.sessions.create(
        {"mode": "subscription", "line_items": [{"price": "price_month"}]}
    )
    client.v1.subscriptions.pause(subscribe(client).id)
    fake.complete_checkout(session.id, "ada@example.com")
    shown = [
        client.v1.customers.list(),
        client.v1.subscriptions.list(),
        client.v1.prices.list(),
        client.v1.products.list(),
        client.v1.invoices.list(),
        client.v1.checkout.sessions.list(),
        client.v1.events.list(),
        client.v1.subscriptions.list({"customer": subscription.customer}),
    ]
    for page in shown:
        for parsed, raw in zip(page.data, page.last_response.data["data"], strict=True):
            assert parsed.object == raw["object"]
            assert absent(type(parsed), raw) == []


def test_older_api_versions_have_the_older_shapes(fake):
    fake.world.api_version = OLD
    old, new = fake.client(stripe_version=OLD), fake.client()
    subscription = subscribe(new)
    expected = period(subscription)
    made = events(new, "customer.subscription.created", "invoice.paid")
    assert [event.api_version for event in made] == [OLD, OLD]
    shape, invoice = (event.data.object for event in made)
    assert expected == (shape.current_period_start, shape.current_period_end)
    assert "current_period_end" not in shape["items"].data[0]
    assert (subscription.id, False) == (invoice.subscription, "parent" in invoice)

    fetched = old.v1.subscriptions.retrieve(subscription.id)
    assert expected[1] == fetched.current_period_end
    current = new.v1.invoices.retrieve(invoice.id)
    assert subscription.id == current.parent.subscription_details.subscription
    assert "subscription" not in current.last_response.data


def test_event_has_a_snapshot_and_previous_attributes(client):
    metadata = {"plan": "a", "user_id": "1"}
    customer = client.v1.customers.create({"email": "a@b.c", "metadata": metadata})
    changes = {"email": "d@e.f", "metadata": {"plan": "b", "user_id": "", "x": "1"}}
    client.v1.customers.update(customer.id, changes)
    client.v1.customers.update(customer.id, {"email": "d@e.f"})
    client.v1.customers.update(customer.id, {"name": "Ada"})

    created, first, second = events(client)
    assert created.data.object.email == "a@b.c"
    assert created.created == first.created == second.created
    assert first.data.object.metadata.to_dict() == {"plan": "b", "x": "1"}
    old = {"plan": "a", "user_id": "1", "x": None}
    assert {
        "email": "a@b.c",
        "metadata": old,
    } == previous(first).to_dict()
    assert previous(second).to_dict() == {"name": None}


def test_events_are_filtered_by_type_and_kept_30_days(fake, client):
    subscription = subscribe(client)
    fake.advance(seconds=DAY)
    client.v1.customers.update(subscription.customer, {"name": "Ada"})

    wild = client.v1.events.list({"type": "customer.*"})
    assert [event.type for event in wild.data] == [
        "customer.updated",
        "customer.subscription.created",
        "customer.created",
    ]
    (paid,) = events(client, "invoice.paid")
    assert client.v1.events.retrieve(paid.id).type == "invoice.paid"
    with pytest.raises(stripe.InvalidRequestError, match="20"):
        client.v1.events.list({"types": [f"a.{n}" for n in range(21)]})

    fake.advance(seconds=30 * DAY - 1)
    assert [
        event.type
        for event in client.v1.events.list({"created": {"lt": 1_790_090_000}})
    ] == ["customer.updated"]
    with pytest.raises(stripe.InvalidRequestError, match="No such event"):
        client.v1.events.retrieve(paid.id)


def test_invalid_requests_get_the_errors_of_stripe(client):
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.customers.retrieve("cus_none")
    assert (missing.value.http_status, missing.value.code) == (404, "resource_missing")
    assert dict(missing.value.headers or {})["Request-Id"] == missing.value.request_id
    with pytest.raises(stripe.InvalidRequestError) as missing:
        client.v1.customers.list({"starting_after": "cus_none"})
    assert (missing.value.http_status, missing.value.param) == (400, "starting_after")
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter: colour"):
        client.v1.customers.create({"colour": "red"})
    with pytest.raises(stripe.InvalidRequestError, match="limit"):
        client.v1.customers.list({"limit": 101})
    with pytest.raises(stripe.InvalidRequestError, match="Unrecognized request URL"):
        client.v1.coupons.list()


def test_refused_update_changes_nothing(client):
    customer = client.v1.customers.create({"name": "Ada"})
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.update(customer.id, {"name": "Bob", "colour": "red"})
    assert client.v1.customers.retrieve(customer.id).name == "Ada"


def test_live_and_test_objects_are_separate(fake, client):
    live = fake.client("sk_live_fake")
    customer = live.v1.customers.create({})
    assert customer.livemode
    assert client.v1.customers.list().is_empty
    with pytest.raises(stripe.InvalidRequestError, match="exists in live mode"):
        client.v1.customers.retrieve(customer.id)
    for key in ("nonsense-key-of-no-kind", "pk_test_fake_key_public"):
        with pytest.raises(stripe.AuthenticationError) as refused:
            fake.client(key).v1.customers.list()
        assert key not in str(refused.value)


def test_date_header_has_the_time_of_the_fake(fake, client):
    fake.advance(to=1_800_000_000)
    response = client.v1.customers.list().last_response
    assert response.headers["Date"] == "Fri, 15 Jan 2027 08:00:00 GMT"


def test_request_returns_what_the_client_gets(fake, client):
    params: Any = {"metadata": {"user_id": "1"}, "name": "Ada"}
    customer = fake.request("POST", "/v1/customers", params)
    assert customer == client.v1.customers.retrieve(customer["id"]).last_response.data
    page = fake.request("GET", "/v1/customers", {"created": {"gt": 1}, "limit": 1})
    assert [customer] == page["data"]
    with pytest.raises(ApiError, match="No such customer") as missing:
        fake.request("DELETE", "/v1/customers/cus_none")
    assert missing.value.status == 404
