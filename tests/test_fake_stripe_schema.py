"""All that the fake returns follows Stripe's published schema."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe

from tests import fake_stripe, stripe_schema
from tests.fake_stripe import TEST_KEY, FakeStripe
from tests.fake_stripe.api import ROUTES
from tests.fake_stripe.driving import DECLINED, subscribe

DAY = 86_400
START = 1_790_000_000
Reply = tuple[str, str, int, Any]


class Recorder(stripe.RequestsClient):
    """Keeps method, path, status and body of each reply."""

    def __init__(self) -> None:
        super().__init__()
        self.replies: list[Reply] = []

    def request(self, method, url, headers, post_data=None, **options):
        reply = super().request(method, url, headers, post_data, **options)
        body = json.loads(reply[0])
        self.replies.append((method, urlsplit(url).path, reply[1], body))
        return reply


def advance(fake: FakeStripe, client: Any, *, days: int) -> None:
    """Let time pass, and list the events while they are kept."""
    for _ in range(days // 25 + 1):
        fake.advance(seconds=days * DAY // (days // 25 + 1))
        list(client.v1.events.list({"limit": 100}).auto_paging_iter())


def customers(fake: FakeStripe, client: Any) -> None:
    clock = client.v1.test_helpers.test_clocks.create({"frozen_time": START})
    client.v1.test_helpers.test_clocks.retrieve(clock.id)
    options = {"id": "a b/c", "test_clock": clock.id, "email": "a@example.com"}
    customer = client.v1.customers.create(options | {"metadata": {"user_id": "1"}}).id
    subscription = subscribe(client, customer=customer).id
    client.v1.customers.update(customer, {"name": "Ada", "metadata": {"user_id": ""}})
    shown = {"expand": ["subscriptions", "test_clock"]}
    client.v1.customers.retrieve(customer, shown)
    client.v1.customers.list(
        {"test_clock": clock.id, "expand": ["data.subscriptions.data.latest_invoice"]}
    )
    client.v1.customers.delete(customer)
    client.v1.customers.retrieve(customer)
    client.v1.subscriptions.retrieve(subscription, {"expand": ["customer"]})


def catalog(fake: FakeStripe, client: Any) -> None:
    product = client.v1.products.create({"name": "Plan"}).id
    client.v1.products.retrieve(product)
    given, inline = {"product": product}, {"product_data": {"name": "x"}}
    monthly = {"interval": "month"}
    meter = monthly | {"usage_type": "metered", "meter": "mtr_1"}
    tiers = [{"up_to": 5, "unit_amount": 10}, {"up_to": "inf", "unit_amount": 5}]
    tiered = {"billing_scheme": "tiered", "tiers_mode": "volume", "tiers": tiers}
    for options in (
        given | {"unit_amount": 0},
        given | {"unit_amount_decimal": "0.25", "recurring": meter},
        given | tiered | {"recurring": monthly, "expand": ["tiers"]},
        inline | {"unit_amount": 5},
    ):
        price = client.v1.prices.create(options | {"currency": "usd"}).id
        client.v1.prices.update(price, {"nickname": "x", "active": False})
    client.v1.prices.retrieve(price, {"expand": ["product"]})
    client.v1.prices.list({"expand": ["data.product"]})
    client.v1.products.list()


def subscriptions(fake: FakeStripe, client: Any) -> None:
    prices = (*(f"month{n}" for n in range(9)), "meter")
    items: list[Any] = [{"price": price} for price in prices]
    items += [{"price": p, "quantity": 7} for p in ("tiered", "year", "part")]
    many = subscribe(client, items=items, metadata={"user_id": "1"}).id
    page = client.v1.subscription_items.list({"subscription": many})
    client.v1.subscription_items.retrieve(page.data[0].id)
    client.v1.subscription_items.update(page.data[0].id, {"quantity": 5})
    added = {"subscription": many, "price": "month9"}
    client.v1.subscription_items.delete(client.v1.subscription_items.create(added).id)
    for change in (
        {"cancel_at": "max_period_end", "metadata": {"user_id": ""}},
        {"cancel_at_period_end": True, "description": "x"},
        {"cancel_at_period_end": False, "proration_behavior": "always_invoice"},
        {"trial_end": fake.clock.now + 5 * DAY},
    ):
        client.v1.subscriptions.update(many, change)
    classic = subscribe(client, billing_mode={"type": "classic"}).id
    fake.cancel_in_portal(many)
    fake.cancel_in_portal(classic)
    client.v1.subscriptions.retrieve(many, {"expand": ["latest_invoice", "customer"]})
    paused = subscribe(client).id
    client.v1.subscriptions.pause(paused)
    client.v1.subscriptions.list({"expand": ["data.customer"], "status": "all"})
    client.v1.subscriptions.resume(paused)
    client.v1.subscriptions.cancel(paused)
    for behavior in ("keep_as_draft", "mark_uncollectible", "void"):
        pause = {"behavior": behavior, "resumes_at": fake.clock.now + 33 * DAY}
        client.v1.subscriptions.update(
            subscribe(client).id, {"pause_collection": pause}
        )
    ways = ("cancel", "pause", "create_invoice")
    for behavior in ways:
        settings = {"end_behavior": {"missing_payment_method": behavior}}
        subscribe(client, trial_period_days=9, trial_settings=settings)
    subscribe(client, collection_method="send_invoice")
    advance(fake, client, days=40)


def payments(fake: FakeStripe, client: Any) -> None:
    settings = {"default_payment_method": DECLINED}
    declined = client.v1.customers.create({"invoice_settings": settings}).id
    subscribe(client, customer=declined)
    with suppress(stripe.CardError):
        subscribe(client, customer=declined, payment_behavior="error_if_incomplete")
    late = [subscribe(client) for _ in range(2)]
    for subscription in late:
        change = {"default_payment_method": DECLINED}
        client.v1.subscriptions.update(subscription.id, change)
    advance(fake, client, days=32)
    invoice = client.v1.invoices.list({"customer": late[0].customer}).data[0].id
    with suppress(stripe.CardError):
        client.v1.invoices.pay(invoice)
    client.v1.invoices.pay(invoice, {"payment_method": "pm_card_visa"})
    expand = ["parent.subscription_details.subscription", "customer"]
    client.v1.invoices.retrieve(invoice, {"expand": expand})
    fake.world.after_failed_payments = "unpaid"
    advance(fake, client, days=20)


def checkouts(fake: FakeStripe, client: Any) -> None:
    sessions = client.v1.checkout.sessions
    customer = client.v1.customers.create({"email": "a@example.com"}).id
    for price, options in (
        ("month0", {"mode": "subscription", "metadata": {"user_id": "1"}}),
        ("month0", {"mode": "subscription", "customer": customer}),
        (
            "year",
            {"mode": "subscription", "subscription_data": {"trial_period_days": 7}},
        ),
        ("once", {"mode": "payment", "client_reference_id": "user-1"}),
        ("once", {"mode": "payment", "customer_creation": "always"}),
    ):
        session = sessions.create(options | {"line_items": [{"price": price}]})
        fake.complete_checkout(session.id, "typed@example.com")
        expand = ["customer", "subscription", "invoice"]
        sessions.retrieve(session.id, {"expand": expand})
    for succeeded in (True, False):
        bought = {"mode": "payment", "line_items": [{"price": "once"}]}
        session = sessions.create(bought).id
        fake.complete_checkout(session, unpaid=True)
        fake.finish_payment(session, succeeded=succeeded)
    session = sessions.create({"mode": "setup", "customer": customer})
    sessions.expire(session.id)
    sessions.create({"mode": "setup", "customer_email": "b@example.com"})
    sessions.list()


def errors(fake: FakeStripe, client: Any) -> None:
    customer = client.v1.customers.create({}).id
    stranger = fake.client("sk_test_", http_client=client._requestor._client)
    for call in (
        lambda: client.v1.customers.retrieve("cus_none"),
        lambda: client.v1.customers.create({"colour": "red"}),
        lambda: client.v1.customers.list({"limit": 101}),
        lambda: client.v1.customers.list({"starting_after": "cus_none"}),
        lambda: client.v1.customers.create({"id": customer}),
        lambda: client.v1.customers.update(customer, {"metadata": "x" * (1 << 20)}),
        lambda: client.v1.subscriptions.create({"customer": customer}),
        lambda: client.v1.products.create({"id": "x"}),
        lambda: client.v1.coupons.list(),
        lambda: stranger.v1.customers.list(),
    ):
        with suppress(stripe.StripeError):
            call()
    for fault in (
        {"kind": "rate_limit"},
        {"kind": "error"},
        {"kind": "error", "status": 503},
    ):
        fake.faults.add(**fault)
        with suppress(stripe.StripeError):
            client.v1.customers.list()


@pytest.fixture(scope="module")
def recorded() -> Iterator[tuple[FakeStripe, list[Reply]]]:
    """Return a fake after requests of all kinds, and its replies."""
    with FakeStripe(seed=7, start=START) as fake:
        for n in range(10):
            fake.add_price(f"month{n}")
        fake.add_price("price_month")
        fake.add_price("year", interval="year")
        fake.add_price("meter", meter="mtr_1")
        fake.add_price("part", unit_amount=Decimal("0.25"))
        fake.add_price("tiered", tiers=[(5, 100), (None, 50)])
        fake.add_price("once", interval=None)
        recorder = Recorder()
        client: Any = fake.client(http_client=recorder)
        customers(fake, client)
        catalog(fake, client)
        subscriptions(fake, client)
        payments(fake, client)
        checkouts(fake, client)
        errors(fake, client)
        advance(fake, client, days=0)
        newest = fake.deliveries.all[-1].event.id
        client.v1.events.retrieve(newest)
        yield fake, recorder.replies


def test_every_reply_follows_the_schema(recorded):
    _, replies = recorded
    problems = {}
    for method, path, status, body in replies:
        found = stripe_schema.list_reply_problems(method, path, status, body)
        if found:
            problems[method, path, status] = found
    assert problems == {}


def test_every_route_has_replied(recorded):
    _, replies = recorded
    done = {(method, path) for method, path, status, _ in replies if status == 200}
    for method, template, _ in ROUTES:
        pattern = re.compile("/v1/" + template.replace(":id", "[^/]+"))
        found = [p for m, p in done if m == method.lower() and pattern.fullmatch(p)]
        assert found, (method, template)
    statuses = {status for _, _, status, _ in replies}
    assert statuses == {200, 400, 401, 402, 404, 413, 429, 500, 503}


def emitted_types() -> set[str]:
    """Return all types of events in the source of the fake."""
    folder = Path(fake_stripe.__file__).parent
    source = "".join(file.read_text(encoding="utf-8") for file in folder.glob("*.py"))
    found = re.findall(r'(?:emit|updating)\(\s*(?:\w+,\s*)?"([\w.]+)"', source)
    return set(found)


def list_shapes(value: Any) -> Iterator[dict[str, Any]]:
    """Return all objects in *value*."""
    if isinstance(value, dict):
        if "object" in value:
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from list_shapes(part)


def test_every_event_and_state_has_been_sent(recorded):
    fake, replies = recorded
    types = {delivery.event.type for delivery in fake.deliveries.all}
    assert len(types) > 20
    assert types == emitted_types()
    states = defaultdict(set)
    for shape in list_shapes([body for *_, body in replies]):
        if "status" in shape:
            states[shape["object"]].add(shape["status"])
    kinds = ("subscription", "invoice", "checkout.session")
    assert {kind: stripe_schema.list_states(kind) for kind in kinds} == {
        kind: states[kind] for kind in kinds
    }


def test_delivered_events_follow_the_schema(recorded):
    fake, _ = recorded
    fake.client().v1.customers.create({})
    for origin in ({"account": "acct_1"}, {"context": "org_1/acct_2"}):
        with fake.events_of(**origin):
            subscribe(fake.client())
    bodies = [json.loads(d.payload) for d in iter(fake.deliveries.take, None)]
    assert {"acct_1", "org_1/acct_2"} <= {
        body.get("account") or body.get("context") for body in bodies
    }
    assert [p for body in bodies for p in stripe_schema.list_problems(body)] == []


def test_thin_event_follows_the_schema(recorded):
    fake, _ = recorded
    subscription = subscribe(fake.client()).id
    payload, _ = fake.make_thin_event("v1.customer.subscription.updated", subscription)
    assert stripe_schema.list_problems(json.loads(payload)) == []


def test_seeded_objects_follow_the_schema():
    fake = FakeStripe(start=START)
    fake.seed_accounts(40, subscriptions=2)
    for path in ("/v1/customers", "/v1/subscriptions"):
        body = fake.request("GET", path, {"limit": 80})
        assert len(body["data"]) >= 40
        assert stripe_schema.list_reply_problems("get", path, 200, body) == []


# Where objects of API versions before 2025-03-31 have other fields than today's.
OLDER_FIELDS = {
    "customer": "",
    "price": "",
    "subscription": "current_period_end current_period_start discount plan quantity",
    "invoice": """charge discount lines.data.plan lines.data.price lines.data.proration
        lines.data.subscription_item lines.data.tax_amounts lines.data.type paid
        paid_out_of_band payment_intent quote subscription subscription_details tax
        total_tax_amounts""",
}
NEWER_FIELDS = {
    "customer": "",
    "price": "",
    "subscription": """billing_mode billing_schedules customer_account
        items.data.current_period_end items.data.current_period_start
        status_details""",
    "invoice": """amount_overpaid customer_account lines.data.parent lines.data.pricing
        lines.data.quantity_decimal lines.data.subtotal lines.data.taxes parent
        total_taxes""",
}


def list_fields(value: Any, place: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the paths of all fields in *value*; elements of a list have one path."""
    if isinstance(value, list):
        return {place}.union(*(list_fields(part, place) for part in value))
    if not isinstance(value, dict) or place[-1:] == ("metadata",):
        return {place}
    inner = (list_fields(part, (*place, name)) for name, part in value.items())
    return {place}.union(*inner)


def name_extra(fields: set[tuple[str, ...]], others: set[tuple[str, ...]]) -> list[str]:
    """Return the fields that *others* lack, without what these contain."""
    return sorted(".".join(f) for f in fields - others if f[:-1] in others)


@pytest.mark.parametrize("kind", ["customer", "price", "subscription", "invoice"])
def test_older_version_differs_in_known_fields(recorded, kind):
    fake, _ = recorded

    def fields(version: str) -> set[tuple[str, ...]]:
        header = {"Authorization": f"Bearer {TEST_KEY}", "Stripe-Version": version}
        reply = fake.api.handle("GET", f"/v1/{kind}s", "limit=100", "", header.get)
        return list_fields(json.loads(reply.body)["data"])

    older, newer = fields("2024-06-20"), fields(stripe.api_version)
    assert len(newer) > 20
    assert name_extra(older, newer) == OLDER_FIELDS[kind].split()
    assert name_extra(newer, older) == NEWER_FIELDS[kind].split()


def lose_a_required_field(shape: Any) -> None:
    del shape["items"]["data"][0]["current_period_end"]


def change_a_type(shape: Any) -> None:
    shape["items"]["data"][0]["quantity"] = "1"


def invent_a_status(shape: Any) -> None:
    shape["status"] = "hibernating"


def invent_a_field(shape: Any) -> None:
    shape["items"]["data"][0]["price"]["recurring"]["colour"] = "red"


def give_null(shape: Any) -> None:
    shape["billing_cycle_anchor"] = None


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lose_a_required_field, '"current_period_end" is a required property'),
        (change_a_type, "items.data.0.quantity"),
        (invent_a_status, "hibernating"),
        (invent_a_field, "colour"),
        (give_null, "billing_cycle_anchor"),
    ],
)
def test_false_object_is_found(recorded, spoil, problem):
    fake, _ = recorded
    subscription = subscribe(fake.client()).id
    shape = fake.request("GET", f"/v1/subscriptions/{subscription}")
    assert stripe_schema.list_problems(shape) == []
    spoil(shape)
    for problems in (
        stripe_schema.list_problems(shape),
        stripe_schema.list_reply_problems("get", "/v1/subscriptions/sub_1", 200, shape),
    ):
        assert len(problems) == 1
        assert problem in problems[0]


def test_false_previous_attributes_and_errors_are_found(recorded):
    fake, _ = recorded
    kind = {"type": "customer.subscription.updated"}
    event = fake.request("GET", "/v1/events", kind)["data"][0]
    previous = event["data"]["previous_attributes"]
    for spoiled in ({"colour": "red"}, {"created": "today"}):
        event["data"]["previous_attributes"] = previous | spoiled
        assert len(stripe_schema.list_problems(event)) == 1
    for error in ({"type": "odd"}, {"message": "x"}, {"type": "api_error", "x": 1}):
        body = {"error": error}
        found = stripe_schema.list_reply_problems("get", "/v1/customers", 400, body)
        assert len(found) == 1


def test_extra_fields_are_known_by_the_package():
    classes = {
        "product": stripe.Product,
        "recurring": stripe.Price.Recurring,
        "subscription": stripe.Subscription,
        "subscription_item": stripe.SubscriptionItem,
    }
    for schema, fields in stripe_schema.EXTRA_FIELDS.items():
        for name in fields:
            assert name in classes[schema].__annotations__
