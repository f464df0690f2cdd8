"""The endpoint's status tells Stripe whether to repeat a delivery."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from starlette.testclient import TestClient

from pyapp._core.config import load_settings
from pyapp._core.connection import pool
from pyapp.errors import MissingExtraError
from pyapp.stripe_sync.apply import apply_directly
from pyapp.stripe_sync.client import find_livemode
from pyapp.stripe_sync.outcomes import Effect
from pyapp.stripe_sync.web import create_app
from tests.fake_stripe import TEST_KEY, TEST_SECRET, sign
from tests.stripe_world import (
    StripeWorld,
    make_checkout,
    make_customer,
    make_event,
    make_subscription,
)
from tests.support import run_cli
from tests.test_docs import DOCS, blocks_of

PATH = "/stripe/webhook"
STRIPE_PAGE = DOCS / "stripe.md"
BODY = make_event("customer.created", make_customer("cus_1"))


@pytest.fixture
def web(world: StripeWorld) -> Iterator[TestClient]:
    with pool(world.url, max_size=2) as connections:
        yield TestClient(create_app(connections, [TEST_SECRET]))


def post(web: TestClient, body: bytes, signature: str | None = None) -> tuple[int, str]:
    headers = {"Stripe-Signature": signature or sign(body, [TEST_SECRET])}
    response = web.post(PATH, content=body, headers=headers)
    return response.status_code, response.text


def test_unsigned_delivery_gets_400_and_is_not_stored(
    world: StripeWorld, web: TestClient, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    old = sign(BODY, [TEST_SECRET], int(time.time()) - 360)
    missing = web.post(PATH, content=BODY)
    responses = [
        post(web, BODY, sign(BODY, ["whsec_other"])),
        post(web, BODY, old),
        (missing.status_code, missing.text),
    ]

    assert responses == [(400, '{"error":"bad signature"}')] * 3
    assert world.events() == []
    for secret in (TEST_SECRET, "whsec_other", "cus_1", old):
        assert secret not in caplog.text


def test_large_or_malformed_body_is_refused(world: StripeWorld, web: TestClient):
    large = b" " * 10_000_000
    chunks = (large[:100_000] for _ in range(100))

    assert post(web, large)[0] == 413
    assert web.post(PATH, content=chunks).status_code == 413
    assert post(web, b"{") == (400, '{"error":"not an event: it is not JSON"}')
    assert world.events() == []


def test_thin_event_gets_400_with_the_remedy(world: StripeWorld, web: TestClient):
    kind = "v1.customer.subscription.updated"
    subscription = world.create_subscription()
    payload, signature = world.fake.make_thin_event(kind, subscription)
    status, answer = post(web, payload, signature)
    assert status == 400
    assert json.loads(answer)["error"] == (
        f"not an event: {kind} is a thin event, which contains no object; let the event"
        " destination send snapshots (payload style: snapshot)"
    )
    assert world.events() == []


def own_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "pyapp.stripe"]


def test_changed_and_conflicting_users_are_logged(
    world: StripeWorld, web: TestClient, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    ada, bob = world.create_user(), world.create_user()
    post(web, make_event("customer.created", make_customer("cus_1", ada)))
    (record,) = own_records(caplog)
    assert record.__dict__["user_ids"] == [str(ada)]
    caplog.clear()
    claim = make_checkout("cus_1", bob)
    post(web, make_event("checkout.session.completed", claim))
    warning, record = own_records(caplog)
    assert (warning.levelname, warning.getMessage()) == (
        "WARNING",
        "stripe claim conflicts with another",
    )
    for one in (warning, record):
        assert one.__dict__["conflicting_user_id"] == str(bob)


def test_event_is_acknowledged_once_it_is_committed(
    world: StripeWorld, web: TestClient
):
    assert post(web, BODY) == (200, '{"result":"applied"}')
    assert post(web, BODY) == (200, '{"result":"duplicate"}')
    unknown = make_event("moon.landed", {"id": "x_1", "object": "x"})
    assert post(web, unknown) == (200, '{"result":"ignored"}')
    assert len(world.events()) == 2


def test_failed_event_is_stored_and_gets_500(
    world: StripeWorld, web: TestClient, caplog: pytest.LogCaptureFixture
):
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    world.conn.execute(
        "ALTER TABLE app.users ADD CHECK (stripe_price_id <> 'price_bad')"
    )
    shape = make_subscription("sub_1", "cus_1", price="price_bad")

    body = make_event("customer.subscription.created", shape)
    assert post(web, body) == (500, '{"result":"failed"}')
    assert world.events()[-1][1] == "failed"
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.__dict__["event_id"] == json.loads(body)["id"]


def test_unavailable_database_gets_503(world: StripeWorld):
    connections = pool(world.url)
    connections.close()
    web = TestClient(create_app(connections, [TEST_SECRET]))

    assert post(web, BODY) == (503, '{"error":"database unavailable"}')
    assert web.get("/healthz").status_code == 503


def cut_connections(conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


def test_restart_of_the_database_loses_no_delivery(world: StripeWorld):
    """All connections of the pool are dead then."""
    with pool(world.url, min_size=3) as connections:
        web = TestClient(create_app(connections, [TEST_SECRET]))
        connections.wait()
        cut_connections(world.conn)
        assert post(web, BODY) == (200, '{"result":"applied"}')
        cut_connections(world.conn)
        response = web.get("/healthz")
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert len(world.events()) == 1


def test_connection_lost_after_the_commit_is_a_duplicate(
    world: StripeWorld, web: TestClient, monkeypatch: pytest.MonkeyPatch
):
    deaths: list[Effect] = []

    def die_once(conn: psycopg.Connection[Any], *arguments: Any) -> Any:
        effect = apply_directly(conn, *arguments)
        if not deaths:
            deaths.append(effect)
            cut_connections(world.conn)
            conn.execute("SELECT")
        return effect

    monkeypatch.setattr("pyapp.stripe_sync.web.apply_directly", die_once)
    assert post(web, BODY) == (200, '{"result":"duplicate"}')
    assert [effect.result for effect in deaths] == ["applied"]


def test_events_of_the_other_mode_are_acknowledged_and_ignored(world: StripeWorld):
    shape = make_customer("cus_1", world.create_user())
    live = make_event("customer.created", shape, livemode=True)
    test = make_event("customer.created", shape)
    events = {True: (live, test), False: (test, live)}
    with pool(world.url) as connections:
        for livemode, (own, other) in events.items():
            world.clear_stripe()
            app = create_app(connections, [TEST_SECRET], livemode=livemode)
            web = TestClient(app)
            status, answer = post(web, other)
            assert (status, json.loads(answer)["result"]) == (200, "ignored")
            assert "it is of the other mode; only " in answer
            assert world.conn.execute("TABLE app.stripe_customers").fetchall() == []
            assert post(web, own) == (200, '{"result":"applied"}')


@pytest.mark.parametrize(
    ("key", "environment", "livemode"),
    [
        ("sk_test_1", "production", False),
        ("rk_live_1", "production", True),
        (None, "local", False),
        (None, "production", None),
    ],
)
def test_key_or_environment_decides_the_mode(
    key: str | None, environment: str, livemode: bool | None, tmp_path: Path
):
    settings = replace(
        load_settings(tmp_path), stripe_api_key=key, environment=environment
    )
    assert find_livemode(settings) is livemode


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_cli("stripe", "serve") == (1, "", f"error: {MissingExtraError('web')}\n")


def test_endpoint_is_mounted_in_fastapi_as_documented(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", TEST_SECRET)
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    (script,) = (code for _, code in blocks_of(STRIPE_PAGE) if "fastapi" in code)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(script, names)

    headers = {"Stripe-Signature": sign(BODY, [TEST_SECRET])}
    with TestClient(names["app"]) as web:
        response = web.post(f"/billing{PATH}", content=BODY, headers=headers)
        assert response.json() == {"result": "applied"}
        assert web.get("/billing/healthz").status_code == 200
    assert len(world.events()) == 1


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_stopped_server_finishes_running_requests(
    world: StripeWorld, stop: signal.Signals
):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "DATABASE_URL": world.url,
        "STRIPE_WEBHOOK_SECRET": TEST_SECRET,
        "STRIPE_SECRET_KEY": "",
    }
    command = "from pyapp.cli import main; main()"
    server = subprocess.Popen(
        [sys.executable, "-c", command, "stripe", "serve", "--port", str(port)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        assert any("running on" in line for line in iter(server.stderr.readline, ""))
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
            f"Stripe-Signature: {sign(BODY, [TEST_SECRET])}\r\n"
            "Expect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            line.sendall(head.encode())
            # The server now waits for the body.
            assert b"100 Continue" in line.recv(1000)
            server.send_signal(stop)
            assert any("Shutting" in text for text in iter(server.stderr.readline, ""))
            line.sendall(BODY)
            assert re.match(rb"HTTP/1.1 200 ", line.recv(1000))
        rest = server.communicate(timeout=20)[1]
        assert server.returncode == 0
        assert TEST_SECRET not in rest
    finally:
        server.kill()
        server.wait()
    assert [event[1] for event in world.events()] == ["applied"]
