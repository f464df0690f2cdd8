"""A user gets plan and quota period from the best subscription."""

import itertools
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest

from pyapp.quota import get_user_quota
from pyapp.stripe_sync.store import sync_users
from tests.stripe_world import (
    START,
    StripeWorld,
    at,
    make_customer,
    make_subscription,
    seconds,
)

CREATED = "customer.subscription.created"
UPDATED = "customer.subscription.updated"


@pytest.fixture
def user_id(world: StripeWorld) -> UUID:
    user_id = world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    return user_id


def subscribe(world: StripeWorld, name: str = "sub_1", **fields) -> None:
    world.handle_event(CREATED, make_subscription(name, "cus_1", **fields))


BEST: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"status": "past_due", "end": START + 5}, [{"status": "canceled"}]),
    ({"status": "trialing", "end": START + 5}, [{"status": "unpaid"}]),
    ({"end": START + 9}, [{"end": START + 8}, {"end": START + 7}]),
    ({"end": START + 9}, [{"end": None}]),
    (
        {"status": "unpaid", "end": START + 9},
        [{"status": "canceled", "end": START}],
    ),
    ({"status": "past_due", "end": START}, [{"status": "unpaid", "end": START + 9}]),
    ({"end": START + 9}, [{"status": "past_due", "end": START + 10}]),
    ({"end": START + 9}, [{"end": START + 9, "start": START + 1}]),
]


def test_best_subscription_entitles_and_is_paid_longest(world, user_id):
    for (best, others), order in itertools.product(BEST, (1, -1)):
        world.clear_stripe()
        world.handle_event("customer.created", make_customer("cus_1", user_id))
        shapes = [("sub_best", best)]
        shapes += [(f"sub_other{n}", other) for n, other in enumerate(others)]
        for name, fields in shapes[::order]:
            subscribe(world, name, **fields)
        assert world.get_user(user_id).stripe_subscription_id == "sub_best"


def test_user_falls_back_when_the_best_ends(world, user_id):
    subscribe(world, "sub_long", end=START + 99, price="price_month")
    subscribe(world, "sub_short", end=START + 9, price="price_other")
    ended = make_subscription("sub_long", "cus_1", status="canceled", end=START + 99)
    world.handle_event("customer.subscription.deleted", ended, START + 1)

    user = world.get_user(user_id)
    assert (user.stripe_subscription_id, user.stripe_price_id) == (
        "sub_short",
        "price_other",
    )


def test_price_gives_its_plan_while_active(world, user_id):
    quotas = []
    for n, status in enumerate(
        ["active", "past_due", "unpaid", "trialing", "canceled"]
    ):
        shape = make_subscription("sub_1", "cus_1", status=status)
        world.handle_event(UPDATED, shape, START + n)
        quotas.append(world.get_user(user_id).base_quota)
    assert quotas == [50000, 50000, 2500, 50000, 2500]


def test_price_without_a_plan_gives_the_free_quota(world, user_id):
    subscribe(world, price="price_unknown")
    user = world.get_user(user_id)
    assert (user.base_quota, user.subscription_active) == (2500, True)


# Paid period, Stripe's anchor, and the user's quota_anchor.
MONTHS = {
    "a month": ((2026, 9, 10), (2026, 10, 10), (2026, 9, 10), (2026, 9, 10)),
    "of the 31st": ((2026, 9, 30), (2026, 10, 31), (2026, 1, 31), (2026, 1, 31)),
    "February": ((2026, 1, 31), (2026, 2, 28), (2025, 12, 31), (2025, 12, 31)),
    "days to the anchor": ((2026, 9, 20), (2026, 10, 1), (2026, 10, 1), (2026, 10, 1)),
    "two weeks' trial": ((2026, 9, 10), (2026, 9, 24), (2026, 9, 24), (2026, 9, 24)),
    "off the anchor": ((2026, 9, 10), (2026, 10, 10), (2026, 9, 3), (2026, 10, 10)),
    "thirty days' trial": ((2027, 2, 8), (2027, 3, 10), (2027, 3, 10), (2027, 3, 10)),
    "without an anchor": ((2026, 9, 10), (2026, 10, 10), None, (2026, 10, 10)),
}


def test_paid_month_is_the_quota_period(world):
    for case, (start, end, anchor, expected) in MONTHS.items():
        user_id, customer = world.create_user(), f"cus_{case}"
        world.handle_event("customer.created", make_customer(customer, user_id))
        shape = make_subscription(
            f"sub_{case}",
            customer,
            start=seconds(*start),
            end=seconds(*end),
            billing_cycle_anchor=anchor and seconds(*anchor),
        )
        world.handle_event(CREATED, shape)
        assert world.quota_period(user_id) == (at(*expected), at(*end)), case


OTHERS = {
    "a year": ((2026, 3, 31), (2027, 3, 31), (2026, 3, 31)),
    "a quarter": ((2026, 8, 10), (2026, 11, 10), (2026, 5, 10)),
    "a long trial": ((2026, 9, 1), (2026, 11, 15), (2026, 11, 15)),
    "a week": ((2026, 9, 8), (2026, 9, 15), (2026, 9, 1)),
    "an unknown time": (None, None, (2026, 9, 1)),
}


def test_other_intervals_reset_monthly_on_the_anchor(world):
    for case, (start, end, anchor) in OTHERS.items():
        user_id, customer = world.create_user(), f"cus_{case}"
        world.handle_event("customer.created", make_customer(customer, user_id))
        shape = make_subscription(
            f"sub_{case}",
            customer,
            start=start and seconds(*start),
            end=end and seconds(*end),
            billing_cycle_anchor=seconds(*anchor),
            created=START,
        )
        world.handle_event(CREATED, shape)

        (now,) = world.conn.execute("SELECT now()").fetchone()
        expected = first_boundary(world, at(*anchor), now)
        assert world.quota_period(user_id) == (at(*anchor), expected), case
        quota = get_user_quota(world.conn, user_id=user_id)
        assert quota.end_date == expected, case
        assert quota.quota == 50000, case


def test_lapsed_reset_is_not_written_again(world, user_id):
    """A lapsed reset on the same boundaries already means the next one."""
    start, end = seconds(2026, 3, 5), seconds(2027, 3, 5)
    year = make_subscription("sub_1", "cus_1", start=start, end=end)
    world.handle_event(CREATED, year)
    world.conn.execute("UPDATE app.users SET next_quota_reset = %s", [at(2026, 5, 5)])
    before = world.get_user(user_id).updated_at
    world.handle_event(UPDATED, year, START + 1)
    assert world.quota_period(user_id) == (at(2026, 3, 5), at(2026, 5, 5))
    assert world.get_user(user_id).updated_at == before


def test_inactive_subscription_does_not_move_the_period(world):
    """A failed payment must not begin a new period of the free quota."""
    user_id = world.create_user()
    before = world.quota_period(user_id)
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    for n, status in enumerate(["incomplete", "unpaid", "canceled", "paused"]):
        subscribe(world, f"sub_{n}", status=status)
        assert world.quota_period(user_id) == before


def test_view_shows_what_the_next_sync_writes(world, user_id):
    """Plain SQL has changed the mirror; its sync is still to come."""
    subscribe(world)
    world.conn.execute("UPDATE app.stripe_subscriptions SET status = 'unpaid'")
    statement = (
        "SELECT e.id, e.subscription_status, e.base_quota, e.differences"
        " FROM app.stripe_entitlements AS e WHERE e.differences <> '{}'"
    )
    assert world.conn.execute(statement).fetchall() == [
        (user_id, "unpaid", 2500, ["status", "price"])
    ]

    (synced,) = sync_users(world.conn, user_ids=[user_id])
    assert synced.differences == ["status", "price"]
    user = world.get_user(user_id)
    assert (user.subscription_status, user.base_quota) == ("unpaid", 2500)
    assert world.conn.execute(statement).fetchall() == []


def test_view_says_why_no_paid_plan_applies(world):
    user_id = world.create_user()

    def reason() -> str | None:
        found = world.conn.execute(
            "SELECT e.reason FROM app.stripe_entitlements AS e WHERE e.id = %s",
            [user_id],
        ).fetchone()
        assert found is not None
        text: str | None = found[0]
        return text

    assert reason() == "no_customer"
    world.handle_event("customer.created", make_customer("cus_1", user_id))
    assert reason() == "no_subscription"
    subscribe(world, "sub_1", status="unpaid")
    assert reason() == "inactive_subscription"
    subscribe(world, "sub_2")
    assert reason() is None
    assert world.get_user(user_id).base_quota == 50000
    world.conn.execute("DELETE FROM app.plan_prices")
    assert reason() == "unknown_price"
    world.handle_event("customer.deleted", make_customer("cus_1", user_id), START + 1)
    assert reason() == "deleted_customer"


def test_unchanged_subscription_does_not_write_the_user(world, user_id):
    subscribe(world)
    before = world.get_user(user_id).updated_at
    world.handle_event(UPDATED, make_subscription("sub_1", "cus_1"), START + 1)
    assert world.get_user(user_id).updated_at == before
    assert world.subscription_row("sub_1").as_of.timestamp() == START + 1


def first_boundary(world: StripeWorld, anchor: datetime, now: datetime) -> datetime:
    found = world.conn.execute(
        "SELECT min(b) FROM generate_series(-240, 240) AS n,"
        " LATERAL (SELECT (%s AT TIME ZONE 'UTC' + make_interval(months => n))"
        " AT TIME ZONE 'UTC' AS b) AS x WHERE b > %s",
        [anchor, now],
    ).fetchone()
    assert found is not None
    moment: datetime = found[0]
    return moment


def test_sync_writes_base_quota_and_keeps_referral_credits(
    world: StripeWorld,
):
    user_id = world.create_user()
    world.subscribe(world.create_customer(user_id))
    world.handle_all()
    world.conn.execute(
        "UPDATE app.users SET base_quota = 7, referral_credits = 1000"
        " WHERE stripe_customer_id IS NOT NULL"
    )
    world.reconcile()
    user = world.get_user(user_id)
    assert [user.base_quota, user.referral_credits] == [50000, 1000]

    world.conn.execute("UPDATE app.plans SET monthly_credits = 60000 WHERE id = 'paid'")
    world.reconcile()
    assert world.get_user(user_id).quota == 61000
