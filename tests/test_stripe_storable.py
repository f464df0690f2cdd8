"""Every event signed by Stripe is stored and can be read again."""

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pyapp._core.connection import connect, pool
from pyapp.stripe_sync.objects import read_event
from pyapp.stripe_sync.replay import retry_failed_events
from pyapp.stripe_sync.web import create_app
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import NUMBERS, make_customer, make_event, make_subscription

PATH = "/stripe/webhook"
# JSON numbers, some of which Python cannot hold, and others jsonb.
NUMERALS = (
    "1e400000",
    "-1e400000",
    "1e-400000",
    "1e400",
    "1e5000",
    "1e-5000",
    "0e400000",
    "1" * 5001,
    "-" + "9" * 200_000,
    "0." + "0" * 20_000 + "1",
    "1." + "3" * 20_000,
)
TEXTS = (
    '"\\u0000"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\\\u0000"',
    json.dumps("x" * 500_000),
    '{"\\u0000": 1, "\\ud800": 2, "": 3}',
    '{"id": "cus_1", "id": 7}',
    "[]",
    "[[[[]]]]",
    "[" * 800 + "]" * 800,
    "true",
    "null",
    "-0",
    "-0.0",
)
_HOLE = "replace this"


@pytest.fixture(scope="module")
def conn(module_database: str) -> Iterator[psycopg.Connection[Any]]:
    with connect(module_database) as connection:
        connection.autocommit = True
        yield connection


@pytest.fixture(scope="module")
def web(module_database: str) -> Iterator[TestClient]:
    with pool(module_database, max_size=2) as connections:
        yield TestClient(create_app(connections, [TEST_SECRET]))


def event(raw: str, *path: str) -> tuple[str, bytes]:
    """Return an event with *raw* JSON in it, and its id."""
    shape: dict[str, Any] = make_customer("cus_1")
    kind = "customer.updated"
    if path and path[0] == "items":
        kind, shape = "customer.subscription.updated", make_subscription("sub_1", "c")
    shape[path[0] if path else "balance"] = _HOLE
    body = make_event(kind, shape).decode()
    return json.loads(body)["id"], body.replace(json.dumps(_HOLE), raw).encode()


def post(web: TestClient, body: bytes) -> int:
    headers = {"Stripe-Signature": sign(body, [TEST_SECRET])}
    return web.post(PATH, content=body, headers=headers).status_code


def check_kept(conn: psycopg.Connection[Any], name: str, status: int) -> None:
    """Check that the response agrees with the stored event, which can be read."""
    row = conn.execute(
        "SELECT status, payload::text FROM app.stripe_events WHERE id = %s", [name]
    ).fetchone()
    if status == 400:
        assert row is None
        return
    assert row is not None
    assert status == (500 if row[0] == "failed" else 200)
    assert read_event(row[1]).id == name


@pytest.mark.parametrize("raw", [*NUMERALS, *TEXTS], ids=lambda raw: raw[:20])
@pytest.mark.parametrize("path", ["balance", "email", "created", "items", "metadata"])
def test_signed_event_with_any_value_is_stored(
    conn: psycopg.Connection[Any], web: TestClient, raw: str, path: str
):
    name, body = event(raw, path)
    status = post(web, body)
    assert status in {200, 500}
    check_kept(conn, name, status)


def test_number_beyond_jsonb_is_stored_as_text(
    conn: psycopg.Connection[Any], web: TestClient
):
    name, body = event("1e400000")
    assert post(web, body) == 200
    row = conn.execute(
        "SELECT payload #>> '{data,object,balance}' FROM app.stripe_events"
        " WHERE id = %s",
        [name],
    ).fetchone()
    assert row == ("1e400000",)


def test_deep_nesting_is_refused_in_every_python_version(web: TestClient):
    for raw in ("[" * 901 + "]" * 901, '{"a":' * 1000 + "1" + "}" * 1000):
        assert post(web, event(raw)[1]) == 400
    # Brackets in strings do not count.
    assert post(web, event(json.dumps('\\"[' * 5000))[1]) == 200


def test_payload_refused_by_the_database_is_stored_as_an_outline(
    conn: psycopg.Connection[Any],
    web: TestClient,
    monkeypatch: pytest.MonkeyPatch,
):
    """In case jsonb refuses a value that is not known to be refused."""
    monkeypatch.setattr(
        "pyapp.stripe_sync.objects._read_json",
        lambda text, allow_constants: (json.loads(text), True),
    )
    name, body = event("1e400000")
    assert post(web, body) == 500
    row = conn.execute(
        "SELECT status, payload ->> 'unstorable' FROM app.stripe_events WHERE id = %s",
        [name],
    ).fetchone()
    assert row == ("failed", body.decode())
    (outcome,) = (o for o in retry_failed_events(conn) if o.event_id == name)
    assert (outcome.result, outcome.attempts) == ("failed", 2)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
_FIELDS = (
    *("id", "object", "email", "created", "metadata", "deleted", "customer"),
    *("status", "items", "plan", "billing_cycle_anchor", "canceled_at"),
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(["customer.updated", "customer.subscription.updated"]),
    values=st.dictionaries(st.sampled_from(_FIELDS), _JSON),
    around=st.dictionaries(
        st.sampled_from(["api_version", "livemode", "account", "data", "created"]),
        _JSON,
        max_size=1,
    ),
)
def test_any_signed_json_gets_one_of_the_known_statuses(
    conn: psycopg.Connection[Any],
    web: TestClient,
    kind: str,
    values: dict[str, Any],
    around: dict[str, Any],
):
    shape = (
        make_customer("cus_1")
        if kind == "customer.updated"
        else make_subscription("sub_1", "cus_1")
    )
    name = f"evt_any{next(NUMBERS)}"
    body = make_event(kind, shape | values, **({"id": name} | around))
    status = post(web, body)
    assert status in {200, 400, 500}
    check_kept(conn, name, status)
