"""Every delivery is refused, or stored with a result."""

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus
from starlette.testclient import TestClient

from pyapp._core.connection import connect, pool
from pyapp.errors import (
    ConfigError,
    InvalidPayloadError,
    InvalidSignatureError,
    InvalidValueError,
)
from pyapp.stripe_sync import handle_webhook, retry_failed_events
from pyapp.stripe_sync.web import create_app
from tests.bad_input.events import (
    BODIES,
    EVENTS,
    TWO_IDS,
    TWO_OBJECTS,
    bad_events,
    event_paths,
)
from tests.bad_input.values import WRONG_TYPES
from tests.fake_stripe import TEST_SECRET, sign
from tests.support import ROW_COUNTS

REFUSALS = (InvalidPayloadError, InvalidSignatureError)
PATH = "/stripe/webhook"
NOWHERE = [
    "/",
    "/docs",
    "/openapi.json",
    "/metrics",
    "/stripe",
    "/stripe/webhook/x",
    "/STRIPE/WEBHOOK",
    "/stripe/webhook%00",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/.env.local",
    "/static/../.env.local",
    "/admin?x='; DROP TABLE app.users; --",
    "/\u202e",
    "/" + "x" * 10_000,
]


@pytest.fixture
def conn(module_database: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(module_database) as connection:
        connection.autocommit = True
        yield connection


@pytest.fixture(scope="module")
def web(module_database: str) -> Iterator[TestClient]:
    with pool(module_database, max_size=1) as connections:
        yield TestClient(create_app(connections, [TEST_SECRET]))


def handle(conn: psycopg.Connection[Any], body: bytes) -> str:
    """Return the result of a delivery, or the error."""
    signature = sign(body, [TEST_SECRET])
    try:
        result: str = handle_webhook(conn, body, signature, [TEST_SECRET]).result
    except REFUSALS as exc:
        return "refused" if str(exc).isprintable() else f"steers: {exc!a}"
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return result


@pytest.mark.parametrize("event_type", EVENTS)
def test_event_with_one_bad_value_is_refused_or_stored(
    conn: psycopg.Connection[Any], event_type: str
):
    known = {"applied", "stale", "ignored", "failed", "refused"}
    outcomes = {
        (*path, name): handle(conn, body)
        for path in event_paths(event_type)
        for name, body in bad_events(event_type, path)
    }
    stored = conn.execute(
        "SELECT count(*) FROM app.stripe_events WHERE id LIKE %s",
        [f"evt_{event_type}_%"],
    ).fetchone()

    # An event with a bad id is stored under that id.
    ids = {case for case in outcomes if case[0] == "id"}
    assert {c: o for c, o in outcomes.items() if c not in ids and o not in known} == {}
    assert {outcomes[case] for case in ids} <= {
        "refused",
        "applied",
        "duplicate",
    } | known
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert stored == (
        sum(o != "refused" for case, o in outcomes.items() if case not in ids),
    )


@pytest.mark.parametrize("name", BODIES)
def test_body_that_is_not_an_event_gets_400(
    conn: psycopg.Connection[Any], web: TestClient, name: str
):
    body = BODIES[name]
    before = conn.execute(ROW_COUNTS).fetchone()
    response = web.post(
        PATH, content=body, headers={"Stripe-Signature": sign(body, [TEST_SECRET])}
    )

    assert response.status_code == 400
    assert response.json()["error"].startswith(("not an event: ", "bad signature"))
    assert conn.execute(ROW_COUNTS).fetchone() == before


def test_last_of_equal_keys_counts(
    conn: psycopg.Connection[Any],
):
    assert [handle(conn, TWO_IDS), handle(conn, TWO_OBJECTS)] == ["applied"] * 2

    found = conn.execute(
        """
        SELECT
            (SELECT payload ->> 'id' FROM app.stripe_events WHERE id = 'evt_second'),
            (SELECT id FROM app.stripe_customers WHERE id = 'cus_2')
        """
    ).fetchone()
    assert found == ("evt_second", "cus_2")


@pytest.mark.parametrize(
    "signature",
    [
        "",
        " ",
        "t=",
        "t=,v1=",
        "t=now,v1=x",
        "t=1e400,v1=x",
        "t=-1,v1=x",
        "t=" + "9" * 5001 + ",v1=x",
        "v1=" + "0" * 64,
        "t=1,v1='; DROP TABLE app.users; --",
        "t=1," + "v1=x," * 1000,
        "=" * 1000,
        "\u0661",
        "t=\u0661\u0662,v1=\u05d0",
    ],
)
def test_malformed_signature_is_refused(conn: psycopg.Connection[Any], signature: str):
    before = conn.execute(ROW_COUNTS).fetchone()
    with pytest.raises(InvalidSignatureError) as caught:
        handle_webhook(conn, b"{}", signature, [TEST_SECRET])

    assert str(caught.value).isprintable()
    assert TEST_SECRET not in str(caught.value)
    assert conn.execute(ROW_COUNTS).fetchone() == before


@pytest.mark.parametrize("secrets", ["", " ", [], [""], [TEST_SECRET, ""]])
def test_empty_secret_is_refused(conn: psycopg.Connection[Any], secrets: Any):
    with pytest.raises(ConfigError, match="STRIPE_WEBHOOK_SECRET"):
        handle_webhook(conn, b"{}", sign(b"{}", [""]), secrets)


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_argument_of_the_wrong_type_is_refused(
    conn: psycopg.Connection[Any], name: str
):
    value = WRONG_TYPES[name]
    with pytest.raises((InvalidValueError, InvalidSignatureError)):
        handle_webhook(conn, value, "t=1,v1=x", [TEST_SECRET])
    with pytest.raises((InvalidValueError, InvalidSignatureError)):
        handle_webhook(conn, b"{}", value, [TEST_SECRET])
    if name != "an int":
        with pytest.raises(InvalidValueError):
            next(retry_failed_events(conn, page=value))


def test_endpoint_accepts_only_post(web: TestClient):
    methods = ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")

    assert {web.request(method, PATH).status_code for method in methods} == {405}


def test_other_paths_get_404(web: TestClient):
    responses = [
        web.request(method, path, follow_redirects=False)
        for method in ("GET", "POST", "OPTIONS")
        for path in NOWHERE
    ]

    assert {(r.status_code, r.text) for r in responses} == {(404, "Not Found")}
    assert not [r for r in responses if {"server", "x-powered-by"} & r.headers.keys()]
