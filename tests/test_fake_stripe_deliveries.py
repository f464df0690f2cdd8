"""Deliveries are signed, and late, repeated or lost on demand."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import stripe

from tests.fake_stripe import TEST_SECRET, Delivery, FakeStripe, sign
from tests.fake_stripe.driving import make_customers, subscribe


@pytest.fixture
def fake() -> Iterator[FakeStripe]:
    with FakeStripe(seed=7, start=1_790_000_000) as running:
        running.add_price("price_month")
        yield running


@pytest.fixture
def client(fake: FakeStripe) -> stripe.StripeClient:
    return fake.client()


def names(fake: FakeStripe) -> list[str]:
    """Take all due deliveries; return the customers' names in that order."""
    taken = []
    while (delivery := fake.deliveries.take()) is not None:
        taken.append(json.loads(delivery.payload)["data"]["object"]["name"])
        delivery.succeed()
    return taken


def test_signature_is_valid_for_each_secret_only():
    with FakeStripe(secrets=("whsec_new", "whsec_old")) as fake:
        make_customers(fake.client(), 1)
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
    assert make_customers(client, 5) == names(fake)
    assert fake.deliveries.states() == {"delivered": 5}


def test_same_seed_gives_the_same_faults():
    def run(seed: int) -> tuple[list[str], Counter[str]]:
        with FakeStripe(seed=seed, start=1_790_000_000) as fake:
            faults = fake.deliveries.faults
            faults.duplicate = faults.drop = faults.delay = 0.3
            faults.shuffle = 4
            make_customers(fake.client(), 20)
            return names(fake), fake.deliveries.states()

    arrived, states = run(1)
    assert (arrived, states) == run(1) != run(2)
    assert arrived != sorted(arrived)
    assert len(arrived) > len(set(arrived))
    assert states["dropped"]
    assert states["pending"]


def test_delayed_delivery_waits_for_the_fakes_clock(fake, client):
    fake.deliveries.faults.delay = 1
    make_customers(client, 3)
    assert names(fake) == []
    fake.advance(seconds=3600)
    assert len(names(fake)) == 3
    make_customers(client, 1)
    fake.deliveries.release()
    assert len(names(fake)) == 1


def test_failed_delivery_is_undelivered_until_repeated(fake, client):
    make_customers(client, 2)
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


def test_dropped_delivery_is_listed_as_undelivered(fake, client):
    make_customers(client, 2)
    subscribe(client)
    dropped = fake.deliveries.drop("customer.created", limit=2)
    assert [delivery.state for delivery in dropped] == ["dropped", "dropped"]
    assert fake.deliveries.redeliver() == 0
    while (delivery := fake.deliveries.take()) is not None:
        delivery.succeed()
    left = client.v1.events.list({"delivery_success": False}).data
    assert {delivery.event.id for delivery in dropped} == {event.id for event in left}


def test_enabled_events_limit_the_deliveries():
    with FakeStripe(enabled_events=("customer.updated",)) as fake:
        client = fake.client()
        customer = client.v1.customers.create({"name": "a"})
        client.v1.customers.update(customer.id, {"name": "b"})
        assert names(fake) == ["b"]
        assert len(client.v1.events.list({"delivery_success": True}).data) == 2


def test_eight_workers_take_each_delivery_once(fake, client):
    make_customers(client, 40)
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
    make_customers(client, 2)
    assert fake.deliveries.deliver() == {"failed": 1, "delivered": 1}
    fake.deliveries.redeliver()
    assert fake.deliveries.deliver(workers=2) == {"delivered": 1}
    assert received == ["é0", "é1", "é0"]
    receiver.shutdown()
    receiver.server_close()
    fake.deliveries.redeliver()
    make_customers(client, 1)
    assert fake.deliveries.deliver() == {"failed": 1}
