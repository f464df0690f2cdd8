"""docs/stripe.md says what the sync does: its lists are complete, its examples work."""

import re
from collections.abc import Callable
from dataclasses import fields
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pyapp.entitlements import get_entitlement
from pyapp.quota import get_user_quota
from pyapp.stripe_sync import Difference, Outcome, Reconciliation, Refusal
from pyapp.stripe_sync.apply import USED_TYPES
from pyapp.stripe_sync.differences import KINDS
from pyapp.stripe_sync.refusals import REFUSAL_KINDS
from tests.fake_stripe import TEST_SECRET, sign
from tests.stripe_world import (
    START,
    StripeWorld,
    make_checkout,
    make_event,
    make_subscription,
)
from tests.test_docs import DOCS, blocks_of

PAGE = DOCS / "stripe.md"
TEXT = PAGE.read_text(encoding="utf-8")
FREE, PAID = Decimal(2500), Decimal(50000)


def section(heading: str) -> str:
    found = re.search(rf"^## {heading}$(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """Return the cells of the tables of *text*."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("|") and not line.startswith("|---")
    ]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def example(name: str) -> Callable[..., Any]:
    """Return the function that the page defines."""
    (block,) = [code for _, code in blocks_of(PAGE) if f"def {name}(" in code]
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    found: Callable[..., Any] = names[name]
    return found


def test_the_events_to_enable_are_those_that_are_used():
    listed = [
        event for row in rows(section("Events to enable")) for event in codes(row[0])
    ]

    assert sorted(listed) == sorted(USED_TYPES)


def test_reasons_and_differences_are_those_of_the_view(conn: psycopg.Connection):
    found = conn.execute(
        "SELECT pg_get_viewdef('app.stripe_entitlements'::regclass)"
    ).fetchone()
    assert found is not None
    used = set(re.findall(r"THEN '(\w+)'", found[0])) | set(
        re.findall(r"ELSE '(\w+)'", found[0])
    )

    listed = {codes(row[0])[0] for row in rows(section("Entitlement")) if codes(row[0])}
    assert listed == used


def test_keys_of_json_are_those_of_the_records():
    table = [row for row in rows(section("Refused objects")) if len(row) == 3]
    keys = {(row[0], row[1]): set(codes(row[2])) for row in table}

    def names(kind: type) -> set[str]:
        return {"event_type" if f.name == "type" else f.name for f in fields(kind)}

    assert keys["`reconcile`", "`difference`"] == names(Difference)
    assert keys["", "`refused`"] == names(Refusal)
    assert keys["", "`totals`"] <= names(Reconciliation) | {"results"}
    assert keys["`replay`, `retry`", "`outcome`"] == names(Outcome)


def test_kinds_of_differences_and_refusals_are_listed():
    named = set(codes(section("Commands") + section("Refused objects")))

    assert {*KINDS, *REFUSAL_KINDS} <= named


def test_example_of_a_checkout_gives_the_user_a_plan(world: StripeWorld):
    user = world.get_user(world.create_user("ada@example.com"))

    url = example("open_checkout")(world.client, user, "price_month")
    session = re.search(r"cs_\w+", url or "")
    assert session is not None
    world.fake.complete_checkout(session[0])
    results = world.handle_all(world.client)

    assert "failed" not in results
    assert world.get_user(user.id).base_quota == PAID


@pytest.mark.parametrize("linked", ["by a payer", "deleted"])
def test_example_of_a_checkout_needs_a_customer_that_names_the_user(
    world: StripeWorld, linked: str
):
    """What the user pays must not be in the account of another payer."""
    user_id = world.create_user()
    customer = world.create_customer(None if linked == "by a payer" else user_id)
    shape = make_checkout(customer, user_id)
    world.handle_event("checkout.session.completed", shape)
    if linked == "deleted":
        world.client.v1.customers.delete(customer)
    user = world.get_user(user_id)
    assert user.stripe_customer_id == customer

    example("open_checkout")(world.client, user, "price_month")

    (session,) = world.client.v1.checkout.sessions.list().data
    assert isinstance(session.customer, str)
    assert session.customer != customer
    world.fake.complete_checkout(session.id)
    world.handle_all(world.client)
    user = world.get_user(user_id)
    assert (user.stripe_customer_id, user.base_quota) == (session.customer, PAID)


def test_example_of_a_route_reports_changed_users(
    world: StripeWorld,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fresh_configuration: None,
):
    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", TEST_SECRET)
    user_id = world.create_user()
    shape = make_subscription("sub_1", "cus_1", metadata={"user_id": str(user_id)})
    body = make_event("customer.subscription.created", shape)
    odd = make_event("customer.subscription.created", shape | {"customer": None})
    receive = example("receive")

    statuses = [
        receive(one, signature)
        for one, signature in (
            (body, sign(body, [TEST_SECRET])),
            (body, sign(body, [TEST_SECRET])),
            (body, "t=1,v1=no"),
            (odd, sign(odd, [TEST_SECRET])),
        )
    ]

    assert statuses == [200, 200, 400, 500]
    assert capsys.readouterr().out == f"{user_id} paid active 50000\n"


STATES: list[tuple[dict[str, Any], Decimal, bool]] = [
    ({"status": "active"}, PAID, True),
    ({"status": "trialing"}, PAID, False),
    ({"status": "past_due"}, PAID, False),
    ({"status": "incomplete"}, FREE, False),
    ({"status": "incomplete_expired"}, FREE, False),
    ({"status": "unpaid"}, FREE, False),
    ({"status": "paused"}, FREE, False),
    ({"status": "canceled"}, FREE, False),
    ({"status": "not_known"}, FREE, False),
    ({"cancel_at": START + 9}, PAID, True),
    ({"cancel_at_period_end": True}, PAID, True),
    ({"pause_collection": {"behavior": "void", "resumes_at": None}}, PAID, True),
]


@pytest.mark.parametrize(("state", "quota", "is_paid"), STATES)
def test_state_of_a_subscription_has_the_effect_of_the_table(
    world: StripeWorld, state: dict[str, Any], quota: Decimal, is_paid: bool
):
    user_id = world.create_user()
    before = world.quota_period(user_id)

    shape = make_subscription(
        "sub_1", "cus_1", metadata={"user_id": str(user_id)}, **state
    )
    world.handle_event("customer.subscription.updated", shape)

    assert world.get_user(user_id).base_quota == quota
    assert (world.quota_period(user_id) != before) == is_paid


def test_states_of_the_table_are_tested():
    named = set(codes(" ".join(row[0] for row in rows(section("What a.*state does")))))
    tested = {state["status"] for state, *_ in STATES if "status" in state}
    tested |= {name for state, *_ in STATES for name in state} - {"status"}

    assert named == tested - {"not_known"}


@pytest.mark.parametrize(
    "event_type", ["charge.refunded", "charge.dispute.created", "refund.created"]
)
def test_refund_or_dispute_changes_nothing(world: StripeWorld, event_type: str):
    user_id, customer, _ = world.create_subscribed_user()

    charge = {"id": "ch_1", "object": "charge", "customer": customer}
    outcome = world.handle_event(event_type, charge | {"refunded": True})

    assert (outcome.result, outcome.user_ids) == ("ignored", ())
    assert get_entitlement(world.conn, user_id=user_id).plan_id == "paid"
    assert not get_user_quota(world.conn, user_id=user_id).is_blocked


def test_conflict_ends_as_the_page_says(world: StripeWorld):
    ada, bob = world.create_user(), world.create_user()
    customer = world.create_customer(ada)
    subscription = world.subscribe(customer, metadata={"user_id": str(bob)})
    reported = [[d.kind for d in world.reconcile()][-1:] for _ in range(2)]

    world.client.v1.customers.update(customer, {"metadata": {"user_id": str(bob)}})
    world.client.v1.subscriptions.update(
        subscription, {"metadata": {"user_id": str(bob)}}
    )
    world.reconcile()

    assert reported == [["conflict"], ["conflict"]]
    assert world.reconcile() == []
    assert world.get_user(bob).stripe_customer_id == customer
    assert world.get_user(ada).stripe_customer_id is None
