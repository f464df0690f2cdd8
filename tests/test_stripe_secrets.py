"""No key and no secret gets into a log, an error, a table or onto the terminal."""

import logging
import time
from collections.abc import Iterator

import pytest
import stripe
from starlette.testclient import TestClient

from pyapp._core.connection import pool
from pyapp.devtools.server.embedded import free_port
from pyapp.errors import PyappError
from pyapp.stripe_sync import handle_webhook, reconcile, replay_events
from pyapp.stripe_sync.client import error_summary
from pyapp.stripe_sync.replay import retry_failed_events
from pyapp.stripe_sync.web import create_app
from tests.fake_stripe import TEST_KEY, TEST_SECRET
from tests.stripe_world import StripeWorld, stripe_world
from tests.support import run_cli

WRONG_KEY = "rk_test_51Wrong!key"
WRONG_SECRET = "whsec_ofSomebodyElse"
HIDDEN = (TEST_KEY, TEST_SECRET, WRONG_KEY, WRONG_SECRET, "v1=", "Bearer")
# Stripe quotes the end of a key that it does not know; only its library may say so.
END = WRONG_KEY[-4:]


@pytest.fixture
def world(database: str) -> Iterator[StripeWorld]:
    with stripe_world(database, start=int(time.time()) - 3600) as running:
        yield running


def test_no_key_or_secret_is_in_any_log_error_or_table(
    world: StripeWorld,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    caplog.set_level(logging.DEBUG)
    for name in ("pyapp", "pyapp.stripe", "stripe"):
        caplog.set_level(logging.DEBUG, logger=name)
    wrong = world.fake.client(WRONG_KEY)
    world.subscribe(world.create_customer(world.create_user()))
    told: list[str] = []

    deliveries = world.pop_deliveries()
    with pool(world.url, max_size=1) as connections:
        web = TestClient(create_app(connections, [WRONG_SECRET, TEST_SECRET], wrong))
        for delivery in deliveries:
            headers = {"Stripe-Signature": delivery.signature}
            answer = web.post(
                "/stripe/webhook", content=delivery.payload, headers=headers
            )
            told.append(answer.text)
        headers = {"Stripe-Signature": deliveries[0].signature.replace("v1=", "v1=0")}
        told.append(web.post("/stripe/webhook", content=b"{}", headers=headers).text)
    assert "failed" in told[-2] + told[-3]
    for outcome in retry_failed_events(world.conn, wrong):
        told.append(str(outcome))
    for work in (
        lambda: reconcile(world.conn, wrong),
        lambda: replay_events(world.conn, wrong),
        lambda: handle_webhook(world.conn, b"{}", "t=1,v1=2", WRONG_SECRET),
    ):
        with pytest.raises(PyappError) as caught:
            work()
        told.append(repr(caught.value))
    assert sum("Invalid API Key" in text for text in told) >= 3

    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("STRIPE_API_BASE", world.fake.base_url)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", WRONG_SECRET)
    for key in (WRONG_KEY, TEST_KEY):
        monkeypatch.setenv("STRIPE_SECRET_KEY", key)
        for command in ("reconcile", "replay", "retry", "events"):
            told.append(str(run_cli("stripe", command)))

    names = world.conn.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace = 'app'::regnamespace"
    ).fetchall()
    tables = ""
    for (name,) in names:
        rows = world.conn.execute(f"SELECT t::text FROM {name} AS t".encode())
        tables += str(rows.fetchall())
    assert "evt_" in tables
    logged = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    for text in (*told, *logged, tables):
        assert [hidden for hidden in HIDDEN if hidden in text] == [], text
        assert END not in text or "'name': 'stripe'" in text, text


def test_error_on_the_way_to_stripe_names_its_cause():
    client = stripe.StripeClient(
        TEST_KEY, base_addresses={"api": f"http://localhost:{free_port()}"}
    )
    with pytest.raises(stripe.APIConnectionError) as caught:
        client.v1.customers.list()

    told = error_summary(caught.value)

    assert told.startswith("APIConnectionError: ")
    assert "Connection refused" in told
    assert "support@" not in told
    assert TEST_KEY not in told
