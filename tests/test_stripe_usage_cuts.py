"""After Stripe has moved a period, the sums of that day are cut at its start.

The subscribers' messages of yesterday lie on both sides of the new boundary, noon.
"""

import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from starlette.testclient import TestClient

from pyapp._core.connection import connect, pool
from pyapp._core.queries import QUERIES
from pyapp.quota import get_user_quota
from pyapp.roles import apply_roles
from pyapp.stripe_sync import handle_webhook, retry_failed_events
from pyapp.stripe_sync.web import create_app
from pyapp.usage_upkeep import cut_usage_days
from tests.fake_stripe import TEST_SECRET, sign
from tests.metering import (
    add_months,
    new_message,
    record_one,
    usage_differences,
)
from tests.plan_reading import PlanReader
from tests.stripe_world import (
    NUMBERS,
    StripeWorld,
    held,
    make_customer,
    make_event,
    make_subscription,
    stripe_world,
)

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
NOON = TODAY - timedelta(hours=12)
YESTERDAY = TODAY - timedelta(days=1)
HOURS = [NOON + timedelta(hours=hours) for hours in (-2, -1, 1)]
UPDATED = "customer.subscription.updated"
# The messages of each span.
UNCUT, CUT = [3], [2, 1]
WARNING = "stripe period moved, sums not cut"
LOCK_ROW = "SELECT FROM app.usage_slots WHERE subject_id = %s FOR UPDATE"


@pytest.fixture(scope="module")
def world(module_database: str) -> Iterator[StripeWorld]:
    """Return a world that all tests of this file share; its clock begins at noon."""
    with stripe_world(module_database, start=int(NOON.timestamp())) as shared:
        yield shared


@pytest.fixture(autouse=True)
def _no_events_of_others(world: StripeWorld) -> Iterator[None]:
    yield
    world.clear_stripe()
    world.pop_deliveries()


def add_user(world: StripeWorld) -> UUID:
    """Return a user with three messages in one row of yesterday."""
    user_id = world.create_user()
    start = YESTERDAY - timedelta(days=40)
    world.conn.execute(
        "UPDATE app.users SET quota_anchor = %s, next_quota_reset = %s WHERE id = %s",
        [start, add_months(start, 2), user_id],
    )
    for moment in HOURS:
        record_one(world.conn, new_message(user_id=user_id, finished_at=moment))
    return user_id


def add_customer(world: StripeWorld) -> tuple[UUID, str]:
    """Return such a user, and a customer that claims it."""
    user_id, customer = add_user(world), f"cus_{next(NUMBERS)}"
    world.handle_event("customer.created", make_customer(customer, user_id))
    return user_id, customer


def subscription_of(customer: str, **fields: Any) -> dict[str, Any]:
    """Return a paid subscription from noon on."""
    times = {"start": NOON, "end": add_months(NOON, 1)}
    seconds = {name: int(moment.timestamp()) for name, moment in times.items()}
    return make_subscription(f"sub_{customer}", customer, **seconds, **fields)


def rows_of(world: StripeWorld, user_id: UUID) -> list[int]:
    """Return the number of messages of each span, in order."""
    rows = world.conn.execute(
        "SELECT sum(messages)::integer FROM app.usage_slots WHERE subject_id = %s"
        " GROUP BY starts_at, ends_at ORDER BY starts_at, ends_at",
        [user_id],
    )
    return [messages for (messages,) in rows]


def warnings(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [r.__dict__ for r in caplog.records if r.message == WARNING]


def test_event_that_moves_the_period_cuts_the_day(world: StripeWorld):
    user_id, customer = add_customer(world)
    assert rows_of(world, user_id) == UNCUT

    world.handle_event(UPDATED, subscription_of(customer))

    assert rows_of(world, user_id) == CUT
    assert get_user_quota(world.conn, user_id=user_id).credits_used == Decimal(1)
    assert usage_differences(world.conn, [user_id]) == []


def test_quota_check_after_the_event_reads_no_message(world: StripeWorld):
    user_id, customer = add_customer(world)
    world.handle_event(UPDATED, subscription_of(customer))
    with connect(world.url) as conn:
        values = {"user_id": user_id, "at": datetime.now(UTC)}
        found = PlanReader(conn).run(QUERIES["get_user_quota"], values, is_generic=True)

    assert "usage_slots_pkey" in found.indexes
    assert not [name for name in found.indexes if name.startswith("messages")]


def test_event_that_is_fetched_cuts_the_day(world: StripeWorld):
    user_id = add_user(world)
    customer = world.create_customer(user_id)
    subscription = world.subscribe(customer)
    invoice = {
        "id": "in_1",
        "object": "invoice",
        "customer": customer,
        "parent": {"subscription_details": {"subscription": subscription}},
    }
    for delivery in world.pop_deliveries("customer.created"):
        world.handle_delivery(delivery)

    world.handle_event("invoice.paid", invoice, client=world.client)

    assert rows_of(world, user_id) == CUT


def test_checkout_that_claims_a_subscriber_cuts_the_day(world: StripeWorld):
    customer = f"cus_{next(NUMBERS)}"
    world.handle_event("customer.created", make_customer(customer))
    world.handle_event(UPDATED, subscription_of(customer))
    user_id = add_user(world)
    session = {
        "id": "cs_1",
        "object": "checkout.session",
        "customer": customer,
        "client_reference_id": str(user_id),
    }

    world.handle_event("checkout.session.completed", session)

    assert rows_of(world, user_id) == CUT


def test_retried_event_cuts_the_day(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    user_id, customer = add_customer(world)
    monkeypatch.setattr("pyapp.stripe_sync.apply.DELIVERY_TIMEOUT", 1.3)
    with held(world.url, "SELECT FROM app.users WHERE id = %s FOR UPDATE", user_id):
        outcome = world.handle_event(UPDATED, subscription_of(customer))
    assert (outcome.result, rows_of(world, user_id)) == ("failed", UNCUT)

    assert [o.result for o in retry_failed_events(world.conn)] == ["applied"]

    assert rows_of(world, user_id) == CUT


def test_reconciliation_cuts_the_days_of_a_page(world: StripeWorld):
    user_ids = [add_user(world) for _ in range(3)]
    for user_id in user_ids:
        world.subscribe(world.create_customer(user_id))

    world.reconcile(dry_run=True)
    assert [rows_of(world, user_id) for user_id in user_ids] == [UNCUT] * 3

    world.reconcile()
    assert [rows_of(world, user_id) for user_id in user_ids] == [CUT] * 3


def test_subscription_that_is_missing_in_stripe_cuts_the_day(world: StripeWorld):
    """The period of the user's other subscription is in force again."""
    user_id = add_user(world)
    customer = world.create_customer(user_id)
    world.subscribe(customer)
    world.reconcile()
    start = int((YESTERDAY + timedelta(hours=6)).timestamp())
    end = int(add_months(NOON, 2).timestamp())
    gone = make_subscription("sub_gone", customer, start=start, end=end)
    world.handle_event(UPDATED, gone)
    assert rows_of(world, user_id) == UNCUT

    world.reconcile(cleared=True)

    assert rows_of(world, user_id) == CUT


def test_locked_user_of_a_page_is_left_alone(
    world: StripeWorld,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("pyapp.stripe_sync.usage_cuts._LOCK_WAIT", 0.05)
    first, locked, last = (add_user(world) for _ in range(3))
    for user_id in (first, locked, last):
        world.subscribe(world.create_customer(user_id))

    with held(world.url, LOCK_ROW, locked):
        world.reconcile()

    assert [rows_of(world, one) for one in (first, last)] == [CUT] * 2
    assert rows_of(world, locked) == UNCUT
    (record,) = warnings(caplog)
    assert record["user_ids"] == [str(locked)]


def test_served_delivery_cuts_the_day(world: StripeWorld):
    user_id, customer = add_customer(world)
    body = make_event(UPDATED, subscription_of(customer))
    with pool(world.url, max_size=2) as connections:
        response = TestClient(create_app(connections, [TEST_SECRET])).post(
            "/stripe/webhook",
            content=body,
            headers={"Stripe-Signature": sign(body, [TEST_SECRET])},
        )

    assert (response.status_code, rows_of(world, user_id)) == (200, CUT)


@pytest.mark.parametrize("is_served", [False, True])
def test_locked_row_delays_the_answer_by_half_a_second(
    world: StripeWorld, caplog: pytest.LogCaptureFixture, is_served: bool
):
    user_id, customer = add_customer(world)
    body = make_event(UPDATED, subscription_of(customer))
    with held(world.url, LOCK_ROW, user_id):
        began = time.monotonic()
        if is_served:
            with pool(world.url, max_size=2) as connections:
                web = TestClient(create_app(connections, [TEST_SECRET]))
                headers = {"Stripe-Signature": sign(body, [TEST_SECRET])}
                answer = web.post("/stripe/webhook", content=body, headers=headers)
                assert answer.status_code == 200
        else:
            outcome = world.handle_event(UPDATED, subscription_of(customer))
            assert outcome.result == "applied"
        seconds = time.monotonic() - began

    assert 0.5 <= seconds < 3
    (record,) = warnings(caplog)
    assert (record["kind"], record["levelno"]) == ("LockNotAvailable", logging.WARNING)
    assert record["user_ids"] == [str(user_id)]
    assert rows_of(world, user_id) == UNCUT
    assert get_user_quota(world.conn, user_id=user_id).credits_used == Decimal(1)
    assert cut_usage_days(world.url).done > 0
    assert rows_of(world, user_id) == CUT


def test_role_without_the_privilege_applies_the_event(
    world: StripeWorld, caplog: pytest.LogCaptureFixture
):
    _, customer = add_customer(world)
    apply_roles(world.conn)
    world.conn.execute("REVOKE EXECUTE ON FUNCTION app.cut_usage FROM pyapp_sync")
    world.conn.execute("SET ROLE pyapp_sync")
    try:
        outcome = world.handle_event(UPDATED, subscription_of(customer))
    finally:
        world.conn.execute("RESET ROLE")

    assert outcome.result == "applied"
    (record,) = warnings(caplog)
    assert record["kind"] == "InsufficientPrivilege"
    assert record["remedy"] == "pyapp db roles"


def test_role_of_the_sync_cuts_the_day(world: StripeWorld):
    user_id, customer = add_customer(world)
    apply_roles(world.conn)
    world.conn.execute("SET ROLE pyapp_sync")
    try:
        world.handle_event(UPDATED, subscription_of(customer))
    finally:
        world.conn.execute("RESET ROLE")

    assert rows_of(world, user_id) == CUT


def test_connection_lost_by_the_cut_leaves_the_event_applied(
    world: StripeWorld,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    def end_session(conn: Any, **_: Any) -> None:
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr("pyapp.stripe_sync.store.cut_usage", end_session)
    _, customer = add_customer(world)
    body = make_event(UPDATED, subscription_of(customer))
    with connect(world.url) as conn:
        outcome = handle_webhook(conn, body, sign(body, [TEST_SECRET]), [TEST_SECRET])
        assert conn.closed

    assert outcome.result == "applied"
    assert [record["kind"] for record in warnings(caplog)] == ["AdminShutdown"]


def test_event_that_moves_no_period_executes_no_cut(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    calls: list[Any] = []
    monkeypatch.setattr(
        "pyapp.stripe_sync.store.cut_usage", lambda *_, user_ids: calls.append(user_ids)
    )
    user_id, customer = add_customer(world)
    second = int(NOON.timestamp())
    world.handle_event(UPDATED, subscription_of(customer), second)
    assert calls == [[user_id]]
    for number, status in enumerate(("past_due", "active"), 1):
        shape = subscription_of(customer, status=status)
        outcome = world.handle_event(UPDATED, shape, second + number)
        assert outcome.user_ids == (user_id,)

    assert calls == [[user_id]]


def test_day_is_cut_while_eight_writers_record(world: StripeWorld):
    """Each moves the boundary by an event; all messages of the day are counted once."""
    user_id, customer = add_customer(world)
    moments = [YESTERDAY + timedelta(hours=hour) for hour in range(24)]

    def record(_: int) -> None:
        with connect(world.url) as conn:
            for moment in moments:
                record_one(conn, new_message(user_id=user_id, finished_at=moment))
                conn.commit()

    with ThreadPoolExecutor(8) as threads:
        written = threads.map(record, range(8))
        for hour in (6, 18, 12):
            start = YESTERDAY + timedelta(hours=hour)
            shape = subscription_of(customer) | {
                "billing_cycle_anchor": int(start.timestamp())
            }
            item = shape["items"]["data"][0]
            item["current_period_start"] = int(start.timestamp())
            item["current_period_end"] = int(add_months(start, 1).timestamp())
            world.handle_event(UPDATED, shape, int(start.timestamp()) + 86400 * hour)
        list(written)
    cut_usage_days(world.url)

    assert usage_differences(world.conn, [user_id]) == []
    used = get_user_quota(world.conn, user_id=user_id).credits_used
    counted = world.conn.execute(
        "SELECT count(*) FROM app.messages AS m INNER JOIN app.users AS u"
        " ON u.id = m.subject_id AND m.finished_at >= u.quota_period_start"
        " WHERE u.id = %s",
        [user_id],
    ).fetchone()
    assert counted == (used,)
    uncut = world.conn.execute(
        "SELECT FROM app.uncut_usage WHERE subject_id = %s", [user_id]
    )
    assert uncut.rowcount == 0
