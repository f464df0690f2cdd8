"""`pyapp stripe serve --metrics` counts deliveries, on a port of its own."""

import asyncio
import json
import sys
import urllib.request
from collections.abc import Iterator
from itertools import count

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pyapp._core.connection import pool
from pyapp.stripe_sync import web as web_module
from pyapp.stripe_sync.metrics import RESULTS
from pyapp.stripe_sync.web import create_app
from tests.fake_stripe import TEST_SECRET, sign
from tests.serving import PATH, Served, serving
from tests.stripe_world import StripeWorld, make_customer, make_event
from tests.support import run_cli
from tests.temp_server import free_port

BODY = make_event("customer.created", make_customer("cus_1"))


def read_metrics(port: int) -> dict[str, float]:
    """Return the samples of /metrics by name; labels follow in braces."""
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    return {
        sample.name + "".join(f"{{{value}}}" for value in sample.labels.values()): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def measured(module_database: str) -> Iterator[tuple[Served, int]]:
    """Return a server, and the port of its metrics."""
    port = free_port()
    options = ("--metrics", str(port), "--json")
    with serving(module_database, *options) as served:
        yield served, port


def test_deliveries_are_counted_by_result(measured: tuple[Served, int]):
    served, port = measured
    before = read_metrics(port)

    statuses = [asyncio.run(served.post(body)).status for body in (BODY, BODY, b"{")]

    after = read_metrics(port)
    assert statuses == [200, 200, 400]
    deliveries = "pyapp_webhook_deliveries_total{%s}"
    grown = {
        result
        for result in RESULTS
        if after[deliveries % result] == before[deliveries % result] + 1
    }
    assert grown == {"applied", "duplicate", "refused"}
    assert after["pyapp_webhook_delivery_duration_seconds_count"] == 3
    assert after["pyapp_webhook_max_connections"] > 100
    assert after["pyapp_webhook_pool_max_size"] == 10
    assert after["process_start_time_seconds"] > 1e9


def test_metrics_are_not_on_the_public_port(measured: tuple[Served, int]):
    served, _ = measured

    assert asyncio.run(served.get("/metrics")).status == 404


def test_log_of_serve_with_json_is_json(measured: tuple[Served, int]):
    served, _ = measured

    records = [json.loads(line) for line in served.log]
    assert any("running on" in record["message"] for record in records)


def test_open_connections_are_counted(measured: tuple[Served, int]):
    served, port = measured

    async def hold() -> float:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        try:
            for _ in count():
                samples = await asyncio.to_thread(read_metrics, port)
                if found := samples["pyapp_webhook_connections"]:
                    return found
        finally:
            writer.close()
        raise AssertionError

    assert asyncio.run(asyncio.wait_for(hold(), 10)) == 1


def test_kinds_of_failures_are_distinguished(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(web_module, "DELIVERY_TIMEOUT", 0.6)
    monkeypatch.setattr(web_module, "FAILURE_RESERVE", 0.4)
    seen: list[str] = []
    with pool(world.url, max_size=2) as connections:
        app = create_app(
            connections,
            [TEST_SECRET],
            on_delivery=lambda result, _: seen.append(result),
        )
        web = TestClient(app)

        def post(body: bytes) -> int:
            headers = {"Stripe-Signature": sign(body, [TEST_SECRET])}
            return web.post(PATH, content=body, headers=headers).status_code

        world.conn.execute("ALTER TABLE app.stripe_customers ADD CHECK (id <> 'cus_2')")
        failed = post(make_event("customer.created", make_customer("cus_2")))
        with psycopg.connect(world.url) as other:
            post(BODY)
            other.execute("LOCK TABLE app.stripe_customers IN EXCLUSIVE MODE")
            busy = post(make_event("customer.updated", make_customer("cus_1")))
        connections.close()
        unavailable = post(BODY)

    assert (failed, busy, unavailable) == (500, 503, 503)
    assert seen == ["failed", "applied", "busy", "unavailable"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("x", "is not an address"),
        ("1:2:3", "is not an address"),
        ("70000", "is not an address"),
        ("nowhere.invalid:1", "cannot listen on nowhere.invalid port 1"),
    ],
)
def test_address_of_metrics_that_cannot_be_used_is_named(
    database: str, monkeypatch: pytest.MonkeyPatch, address: str, reason: str
):
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", TEST_SECRET)

    code, out, err = run_cli("stripe", "serve", "--port", "0", "--metrics", address)

    assert (code > 0, out, reason in err) == (True, "", True)


def test_metrics_without_their_package_name_the_extra(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    code, out, err = run_cli("stripe", "serve", "--metrics", "9464")

    assert (code, out, "[cli]" in err) == (1, "", True)
