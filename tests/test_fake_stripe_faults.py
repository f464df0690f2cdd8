"""Requests fail on demand; another process can control the fake."""

import json
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe

from tests.fake_stripe import TEST_SECRET, FakeStripe, seeded_user_id
from tests.fake_stripe.driving import events, make_customers


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with FakeStripe(seed=7, start=1_790_000_000) as running:
        running.add_price("price_month")
        yield running


@pytest.fixture
def client(fake: FakeStripe) -> stripe.StripeClient:
    return fake.client()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits of the client's own retries."""
    monkeypatch.setattr("stripe._http_client.HTTPClient.INITIAL_DELAY", 0.001)


def test_429_is_retried_only_with_should_retry(fake, quick_retries):
    retrying = fake.client(max_network_retries=2)
    fake.faults.add("rate_limit")
    with pytest.raises(stripe.RateLimitError) as limited:
        retrying.v1.customers.list()
    assert "Retry-After" not in dict(limited.value.headers or {})
    fake.faults.add("rate_limit", retry_after=3, should_retry=False)
    with pytest.raises(stripe.RateLimitError) as limited:
        retrying.v1.customers.list()
    assert dict(limited.value.headers or {})["Retry-After"] == "3"
    fake.faults.add("rate_limit", times=2, should_retry=True)
    assert retrying.v1.customers.list().is_empty
    assert fake.stats()["statuses"] == {"429": 4, "200": 1}


def test_500_is_retried_by_the_client(fake, client, quick_retries):
    fake.faults.add("error", times=3)
    with pytest.raises(stripe.APIError) as broken:
        client.v1.customers.list()
    assert broken.value.http_status == 500
    assert fake.client(max_network_retries=2).v1.customers.list().is_empty


def test_fault_applies_to_its_path_after_skipping(fake, client):
    make_customers(client, 3)
    fake.faults.add("error", path="/v1/customers", method="GET", skip=1, status=503)
    client.v1.events.list()
    page = client.v1.customers.list({"limit": 1})
    with pytest.raises(stripe.APIError) as broken:
        list(page.auto_paging_iter())
    assert broken.value.http_status == 503
    assert len(list(page.auto_paging_iter())) == 3


def test_cut_connection_is_a_connection_error(fake, client, quick_retries):
    for when in ("before", "body"):
        fake.faults.add("cut", when=when)
        with pytest.raises(stripe.APIConnectionError):
            client.v1.customers.list()
    fake.faults.add("cut")
    assert fake.client(max_network_retries=1).v1.customers.list().is_empty


def test_request_cut_after_its_effect_applies_once(fake, quick_retries):
    fake.faults.add("cut", method="POST", when="after")
    client = fake.client(max_network_retries=1)
    customer = client.v1.customers.create({"name": "Ada"})
    assert customer.last_response.headers["Idempotent-Replayed"] == "true"
    assert [customer.id] == [c.id for c in client.v1.customers.list().data]
    assert len(events(client)) == 1
    same: Any = {"idempotency_key": "same"}
    client.v1.customers.create({"name": "a"}, same)
    with pytest.raises(stripe.IdempotencyError):
        client.v1.customers.create({"name": "b"}, same)


def test_slow_page_times_out_in_the_client(fake):
    fake.faults.add("slow", seconds=0.2)
    impatient = fake.client(http_client=stripe.RequestsClient(timeout=0.05))
    with pytest.raises(stripe.APIConnectionError, match="timed out"):
        impatient.v1.customers.list()
    assert fake.client().v1.customers.list().is_empty


def test_outage_closes_connections_and_keeps_objects(fake, client):
    make_customers(client, 1)
    port = int(fake.base_url.rpartition(":")[2])
    fake.stop()
    with pytest.raises(stripe.APIConnectionError):
        client.v1.customers.list()
    fake.start(port=port)
    assert len(client.v1.customers.list().data) == 1


def test_fake_is_controlled_over_http(fake, client):
    connection = HTTPConnection(fake.base_url.removeprefix("http://"))

    def control(method: str, path: str, **params: Any) -> Any:
        connection.request(method, f"/_fake/{path}", urlencode(params))
        return json.loads(connection.getresponse().read())

    assert control("POST", "clock", seconds=60) == {"now": 1_790_000_060}
    control("POST", "prices", id="price_x", interval="year")
    assert client.v1.prices.retrieve("price_x").recurring.interval == "year"
    control("POST", "faults", kind="rate_limit", retry_after=1)
    with pytest.raises(stripe.RateLimitError):
        client.v1.customers.list()
    make_customers(client, 2)
    taken = control("POST", "deliveries/take")["delivery"]
    stripe.Webhook.construct_event(taken["payload"], taken["signature"], TEST_SECRET)
    control("POST", f"deliveries/{taken['number']}/fail")
    control("POST", "drop", limit=1)
    assert control("GET", "stats")["deliveries"] == {"failed": 1, "dropped": 1}
    assert control("POST", "redeliver", dropped="true") == {"queued": 2}
    assert control("POST", "nonsense")["error"]["type"] == "invalid_request_error"


def test_seeded_accounts_are_listed_without_events(fake, client):
    fake.seed_accounts(240, prices=("price_month", "price_yearly"))
    page = client.v1.customers.list({"limit": 100})
    customers = [c for c in page.auto_paging_iter() if c.id.startswith("cus_Seed")]
    assert [str(seeded_user_id(n)) for n in range(239, -1, -1)] == [
        customer.metadata["user_id"] for customer in customers
    ]
    listed = client.v1.subscriptions.list({"status": "all", "limit": 100})
    kinds = Counter(s.status for s in listed.auto_paging_iter())
    assert kinds["active"] == 180
    assert kinds["canceled"] == 24
    assert events(client) == []
