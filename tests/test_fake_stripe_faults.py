"""What goes wrong on demand: deliveries that come late, twice or never, and requests
that fail; all of it seen through the real client."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import urlencode

import pytest
import stripe

from tests.fake_stripe import TEST_SECRET, Delivery, FakeStripe, seeded_user_id, sign
from tests.fake_stripe.driving import events, subscribe


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
    """The client's own retries wait half a second at least."""
    monkeypatch.setattr("stripe._http_client.HTTPClient.INITIAL_DELAY", 0.001)


def names(fake: FakeStripe) -> list[str]:
    """Take every delivery that is due: the customers' names in order of arrival."""
    taken = []
    while (delivery := fake.deliveries.take()) is not None:
        taken.append(json.loads(delivery.payload)["data"]["object"]["name"])
        delivery.succeed()
    return taken


def make(client: stripe.StripeClient, number: int) -> list[str]:
    names = [f"é{n}" for n in range(number)]
    for name in names:
        client.v1.customers.create({"name": name})
    return names


# Deliveries


def test_payload_verifies_with_each_secret_and_no_other():
    with FakeStripe(secrets=("whsec_new", "whsec_old")) as fake:
        make(fake.client(), 1)
        delivery = fake.deliveries.take()
    assert delivery is not None
    payload, signature = delivery.payload, delivery.signature
    for secret in ("whsec_new", "whsec_old"):
        event = stripe.Webhook.construct_event(payload, signature, secret)
        assert (event.type, event.data.object.name) == ("customer.created", "é0")
    stale = sign(payload, ("whsec_new",), int(time.time()) - 301)
    for header, secret in ((signature, "whsec_other"), (stale, "whsec_new")):
        with pytest.raises(stripe.SignatureVerificationError):
            stripe.Webhook.construct_event(payload, header, secret)
    assert json.dumps(json.loads(payload)).encode() != payload


def test_deliveries_arrive_once_in_order_without_faults(fake, client):
    assert make(client, 5) == names(fake)
    assert fake.deliveries.states() == {"delivered": 5}


def test_delivery_faults_are_the_same_for_the_same_seed():
    def run(seed: int) -> tuple[list[str], Counter[str]]:
        with FakeStripe(seed=seed, start=1_790_000_000) as fake:
            faults = fake.deliveries.faults
            faults.duplicate = faults.drop = faults.delay = 0.3
            faults.shuffle = 4
            make(fake.client(), 20)
            return names(fake), fake.deliveries.states()

    arrived, states = run(1)
    assert (arrived, states) == run(1) != run(2)
    assert arrived != sorted(arrived)
    assert len(arrived) > len(set(arrived))
    assert states["dropped"]
    assert states["pending"]


def test_delayed_delivery_waits_for_the_fakes_clock(fake, client):
    fake.deliveries.faults.delay = 1
    make(client, 3)
    assert names(fake) == []
    fake.advance(seconds=3600)
    assert len(names(fake)) == 3
    make(client, 1)
    fake.deliveries.release()
    assert len(names(fake)) == 1


def test_failed_delivery_is_undelivered_until_it_is_repeated(fake, client):
    make(client, 2)
    fake.deliveries.take().succeed()
    fake.deliveries.take().fail("500")

    def undelivered() -> list[str]:
        page = client.v1.events.list({"delivery_success": False})
        return [event.data.object.name for event in page.data]

    assert undelivered() == ["é1"]
    assert client.v1.events.list().data[0].pending_webhooks == 1
    assert fake.deliveries.redeliver() == 1
    assert names(fake) == ["é1"]
    assert undelivered() == []
    assert len(client.v1.events.list({"delivery_success": True}).data) == 2


def test_dropped_delivery_never_comes_and_can_be_replayed(fake, client):
    make(client, 2)
    subscribe(client)
    dropped = fake.deliveries.drop("customer.created", limit=2)
    assert [delivery.state for delivery in dropped] == ["dropped", "dropped"]
    assert fake.deliveries.redeliver() == 0
    while (delivery := fake.deliveries.take()) is not None:
        delivery.succeed()
    left = client.v1.events.list({"delivery_success": False}).data
    assert {delivery.event.id for delivery in dropped} == {event.id for event in left}


def test_enabled_events_limit_what_is_owed():
    with FakeStripe(enabled_events=("customer.updated",)) as fake:
        client = fake.client()
        customer = client.v1.customers.create({"name": "a"})
        client.v1.customers.update(customer.id, {"name": "b"})
        assert names(fake) == ["b"]
        assert len(client.v1.events.list({"delivery_success": True}).data) == 2


def test_eight_workers_take_each_delivery_once(fake, client):
    make(client, 40)
    fake.deliveries.faults.shuffle = 10
    taken: list[Delivery] = []

    def work() -> None:
        while (delivery := fake.deliveries.take()) is not None:
            delivery.succeed()
            taken.append(delivery)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(taken) == len({delivery.event.id for delivery in taken}) == 40


def test_deliveries_are_posted_and_repeated_until_accepted(fake, client):
    received: list[str] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            payload = self.rfile.read(int(self.headers["Content-Length"]))
            signature = self.headers["Stripe-Signature"]
            event = stripe.Webhook.construct_event(payload, signature, TEST_SECRET)
            received.append(event.data.object.name)
            self.send_response(500 if len(received) == 1 else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=receiver.serve_forever, args=(0.01,), daemon=True).start()
    fake.deliveries.endpoints[0].url = f"http://127.0.0.1:{receiver.server_port}/hook"
    make(client, 2)
    assert fake.deliveries.deliver() == {"failed": 1, "delivered": 1}
    fake.deliveries.redeliver()
    assert fake.deliveries.deliver(workers=2) == {"delivered": 1}
    assert received == ["é0", "é1", "é0"]
    receiver.shutdown()
    receiver.server_close()
    fake.deliveries.redeliver()
    make(client, 1)
    assert fake.deliveries.deliver() == {"failed": 1}


# Requests


def test_429_is_retried_by_the_client_only_when_told_to(fake, quick_retries):
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


def test_fault_waits_for_its_path_and_turn(fake, client):
    make(client, 3)
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


def test_request_cut_after_its_effect_is_not_done_twice(fake, quick_retries):
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


def test_slow_page_runs_into_the_clients_timeout(fake):
    fake.faults.add("slow", seconds=0.2)
    impatient = fake.client(http_client=stripe.RequestsClient(timeout=0.05))
    with pytest.raises(stripe.APIConnectionError, match="timed out"):
        impatient.v1.customers.list()
    assert impatient.v1.customers.list().is_empty


# From another process


def test_everything_is_controlled_over_http_too(fake, client):
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
    make(client, 2)
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
