"""Whatever is delivered, it is refused, or kept with what became of it."""

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
from tests.bad_input.rows import COUNTS
from tests.bad_input.values import WRONG_TYPES
from tests.fake_stripe import TEST_SECRET, sign

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


def deliver(conn: psycopg.Connection[Any], body: bytes) -> str:
    """Return what became of a delivery, or what was raised."""
    signature = sign(body, [TEST_SECRET])
    try:
        result: str = handle_webhook(conn, body, signature, [TEST_SECRET]).result
    except REFUSALS as exc:
        return "refused" if str(exc).isprintable() else f"steers: {exc!a}"
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    return result


@pytest.mark.parametrize("kind", EVENTS)
def test_event_with_one_bad_value_is_refused_or_kept(
    conn: psycopg.Connection[Any], kind: str
):
    known = {"applied", "stale", "ignored", "failed", "refused"}
    outcomes = {
        (*path, name): deliver(conn, body)
        for path in event_paths(kind)
        for name, body in bad_events(kind, path)
    }
    kept = conn.execute(
        "SELECT count(*) FROM app.stripe_events WHERE id LIKE %s", [f"evt_{kind}_%"]
    ).fetchone()

    # Where the id is the bad value, it is another one.
    ids = {case for case in outcomes if case[0] == "id"}
    assert {c: o for c, o in outcomes.items() if c not in ids and o not in known} == {}
    assert {outcomes[case] for case in ids} <= {
        "refused",
        "applied",
        "duplicate",
    } | known
    assert conn.info.transaction_status == TransactionStatus.IDLE
    assert kept == (
        sum(o != "refused" for case, o in outcomes.items() if case not in ids),
    )


@pytest.mark.parametrize("name", BODIES)
def test_body_that_is_no_event_is_answered_400_and_not_stored(
    conn: psycopg.Connection[Any], web: TestClient, name: str
):
    body = BODIES[name]
    before = conn.execute(COUNTS).fetchone()
    answer = web.post(
        PATH, content=body, headers={"Stripe-Signature": sign(body, [TEST_SECRET])}
    )

    assert answer.status_code == 400
    assert answer.json()["error"] in {"not an event", "bad signature"}
    assert conn.execute(COUNTS).fetchone() == before


def test_last_of_equal_keys_counts_here_and_in_the_database(
    conn: psycopg.Connection[Any],
):
    assert [deliver(conn, TWO_IDS), deliver(conn, TWO_OBJECTS)] == ["applied"] * 2

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
def test_signature_that_is_none_is_refused(
    conn: psycopg.Connection[Any], signature: str
):
    before = conn.execute(COUNTS).fetchone()
    with pytest.raises(InvalidSignatureError) as caught:
        handle_webhook(conn, b"{}", signature, [TEST_SECRET])

    assert str(caught.value).isprintable()
    assert TEST_SECRET not in str(caught.value)
    assert conn.execute(COUNTS).fetchone() == before


@pytest.mark.parametrize("secrets", ["", " ", [], [""], [TEST_SECRET, ""]])
def test_empty_secret_verifies_nothing(conn: psycopg.Connection[Any], secrets: Any):
    with pytest.raises(ConfigError, match="STRIPE_WEBHOOK_SECRET"):
        handle_webhook(conn, b"{}", sign(b"{}", [""]), secrets)


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_argument_of_another_type_is_refused(conn: psycopg.Connection[Any], name: str):
    value = WRONG_TYPES[name]
    with pytest.raises((InvalidValueError, InvalidSignatureError)):
        handle_webhook(conn, value, "t=1,v1=x", [TEST_SECRET])
    with pytest.raises((InvalidValueError, InvalidSignatureError)):
        handle_webhook(conn, b"{}", value, [TEST_SECRET])
    if name != "an int":
        with pytest.raises(InvalidValueError):
            next(retry_failed_events(conn, page=value))


def test_endpoint_takes_nothing_but_posts(web: TestClient):
    methods = ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")

    assert {web.request(method, PATH).status_code for method in methods} == {405}


def test_no_other_route_is_there(web: TestClient):
    answers = [
        web.request(method, path, follow_redirects=False)
        for method in ("GET", "POST", "OPTIONS")
        for path in NOWHERE
    ]

    assert {(a.status_code, a.text) for a in answers} == {(404, "Not Found")}
    assert not [a for a in answers if {"server", "x-powered-by"} & a.headers.keys()]
