"""Only what is paid for moves the period of the quota.

The anchor moves to Stripe's when the best item's price buys a plan, its subscription is
active, and the price is not known to be zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyapp.plans import add_plan_price
from pyapp.quota import get_user_quota
from tests.metering import add_months, new_message, record_one
from tests.stripe_world import (
    NUMBERS,
    StripeWorld,
    make_customer,
    make_item,
    make_items,
    make_subscription,
    stripe_world,
)

UPDATED = "customer.subscription.updated"
FREE, PAID = Decimal(2500), Decimal(50_000)
# Stripe's times are whole seconds.
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
USED = Decimal(2000)


@pytest.fixture(scope="module")
def world(module_database: str) -> Iterator[StripeWorld]:
    """Return a world that all tests of this file share."""
    with stripe_world(module_database) as shared:
        add_plan_price(shared.conn, plan_id="paid", stripe_price_id="price_year")
        yield shared


@dataclass(slots=True)
class Payer:
    """A user whose period began ten days ago, and who has used credits since."""

    world: StripeWorld
    anchor: datetime = NOW - 10 * DAY
    tag: str = field(default_factory=lambda: f"{next(NUMBERS):06}")
    user_id: UUID = field(init=False)
    # The time of the next event.
    clock: int = field(default_factory=lambda: int((NOW - 9 * DAY).timestamp()))

    def __post_init__(self) -> None:
        self.user_id = self.world.create_user()
        self.world.conn.execute(
            "UPDATE app.users SET quota_anchor = %s, next_quota_reset = %s,"
            " created_at = %s WHERE id = %s",
            [self.anchor, add_months(self.anchor, 1), self.anchor, self.user_id],
        )
        message = new_message(
            user_id=self.user_id, credits=USED, finished_at=NOW - 9 * DAY
        )
        record_one(self.world.conn, message)
        self.add_customer("cus")

    def add_customer(self, name: str) -> None:
        shape = make_customer(f"{name}_{self.tag}", self.user_id)
        self.world.handle_event("customer.updated", shape, self.next_second())

    def next_second(self) -> int:
        self.clock += 1
        return self.clock

    def receive(
        self,
        status: str,
        price: Any = "price_month",
        *,
        name: str = "sub",
        customer: str = "cus",
        start: datetime = NOW - 3 * DAY,
        end: datetime | None = None,
        anchor: datetime | None = None,
        quantity: int | None = 1,
        **fields: Any,
    ) -> None:
        """Handle an event of a subscription with one item."""
        item = make_item(
            "si_1",
            price,
            quantity=quantity,
            current_period_start=int(start.timestamp()),
            current_period_end=int((end or add_months(start, 1)).timestamp()),
        )
        shape = make_subscription(
            f"{name}_{self.tag}",
            f"{customer}_{self.tag}",
            status=status,
            items=make_items(item),
            billing_cycle_anchor=int((anchor or start).timestamp()),
            **fields,
        )
        second = self.next_second()
        assert self.world.handle_event(UPDATED, shape, second).result == "applied"

    def period(self) -> tuple[datetime, datetime]:
        return self.world.quota_period(self.user_id)

    def used(self) -> Decimal:
        return get_user_quota(self.world.conn, user_id=self.user_id).credits_used

    def quota(self) -> Decimal:
        return self.world.get_user(self.user_id).base_quota


@pytest.fixture
def payer(world: StripeWorld) -> Payer:
    return Payer(world)


def price(**fields: Any) -> dict[str, Any]:
    return {"id": "price_month", "object": "price"} | fields


# Prices that are known to be zero.
ZERO: dict[str, Any] = {
    "unit_amount": price(unit_amount=0, unit_amount_decimal="0"),
    "no decimal": price(unit_amount=0),
    "decimal": price(unit_amount=None, unit_amount_decimal="0.00"),
    "exponent": price(unit_amount=None, unit_amount_decimal="0E-12"),
    "legacy plan": {"id": "price_month", "object": "plan", "amount": 0},
}
# Prices that cost something, or may.
NOT_ZERO: dict[str, Any] = {
    "unit_amount": price(unit_amount=1),
    "decimal": price(unit_amount=None, unit_amount_decimal="0.000000000001"),
    "tiers": price(unit_amount=None, unit_amount_decimal=None, tiers_mode="graduated"),
    "no amount": price(),
    "only its id": "price_month",
    "legacy plan": {"id": "price_month", "object": "plan", "amount": 900},
}


@pytest.mark.parametrize("kind", ZERO)
def test_zero_price_gives_the_plan_and_keeps_the_period(payer: Payer, kind: str):
    before = payer.period()
    payer.receive("active", ZERO[kind])
    assert (payer.quota(), payer.period(), payer.used()) == (PAID, before, USED)


@pytest.mark.parametrize("kind", NOT_ZERO)
def test_price_not_known_to_be_zero_moves_the_period(payer: Payer, kind: str):
    payer.receive("active", NOT_ZERO[kind])
    assert payer.period() == (NOW - 3 * DAY, add_months(NOW - 3 * DAY, 1))
    assert (payer.quota(), payer.used()) == (PAID, Decimal(0))


UNPAID: dict[str, tuple[dict[str, Any], Decimal]] = {
    "trialing": ({"status": "trialing"}, PAID),
    "past due": ({"status": "past_due"}, PAID),
    "a free price past due": ({"status": "past_due", "price": price()}, PAID),
    "another product": ({"status": "active", "price": "price_other"}, FREE),
    "quantity 0": ({"status": "active", "quantity": 0}, FREE),
    "no price": ({"status": "active", "price": None}, FREE),
    "canceled": ({"status": "canceled"}, FREE),
    "unpaid": ({"status": "unpaid"}, FREE),
    "incomplete": ({"status": "incomplete"}, FREE),
    "incomplete_expired": ({"status": "incomplete_expired"}, FREE),
    "paused": ({"status": "paused"}, FREE),
    "an unknown status": ({"status": "enchanted"}, FREE),
}


@pytest.mark.parametrize("kind", UNPAID)
def test_what_is_not_paid_for_keeps_the_period(payer: Payer, kind: str):
    before = payer.period()
    fields, quota = UNPAID[kind]
    payer.receive(**fields)
    assert (payer.quota(), payer.period(), payer.used()) == (quota, before, USED)


@pytest.mark.parametrize("kind", UNPAID)
def test_what_is_not_paid_for_keeps_a_paid_period(payer: Payer, kind: str):
    payer.receive("active", start=NOW - 5 * DAY)
    paid = (NOW - 5 * DAY, add_months(NOW - 5 * DAY, 1))
    fields, quota = UNPAID[kind]
    payer.receive(**fields)
    assert (payer.quota(), payer.period()) == (quota, paid)


def test_paused_collection_moves_the_period(payer: Payer):
    """Access ends by the status `paused` only."""
    pause = {"behavior": "void", "resumes_at": None}
    payer.receive("active", pause_collection=pause)
    assert payer.period()[0] == NOW - 3 * DAY
    assert payer.quota() == PAID


def test_period_moves_when_a_trial_is_paid(payer: Payer):
    before = payer.period()
    trial: dict[str, Any] = {
        "start": NOW - 8 * DAY,
        "end": NOW - DAY,
        "anchor": NOW - DAY,
    }
    payer.receive("trialing", **trial)
    assert (payer.quota(), payer.period(), payer.used()) == (PAID, before, USED)
    payer.receive("active", start=NOW - DAY)
    assert payer.period() == (NOW - DAY, add_months(NOW - DAY, 1))
    assert (payer.quota(), payer.used()) == (PAID, Decimal(0))


def test_abandoned_trials_keep_period_and_usage(payer: Payer):
    before = payer.period()
    for n in range(3):
        name = f"sub_{n}"
        start = NOW - (6 - n) * DAY
        payer.receive("trialing", name=name, start=start, end=start + DAY)
        payer.receive("canceled", name=name, start=start, end=start + DAY)
        assert (payer.quota(), payer.period(), payer.used()) == (FREE, before, USED)


@pytest.mark.parametrize("customer", ["cus", "cus_2"])
def test_trial_after_a_paid_subscription_keeps_its_period(payer: Payer, customer: str):
    payer.receive("active", start=NOW - 9 * DAY)
    paid, used = payer.period(), payer.used()
    payer.receive("canceled", start=NOW - 9 * DAY)
    if customer != "cus":
        payer.add_customer(customer)
    payer.receive("trialing", name="sub_2", customer=customer)
    assert (payer.quota(), payer.period(), payer.used()) == (PAID, paid, used)


def test_change_of_price_keeps_the_period(payer: Payer):
    """Stripe keeps the billing period at an upgrade and at a downgrade."""
    payer.receive("active", start=NOW - 9 * DAY)
    paid = payer.period()
    for changed in ("price_year", price(unit_amount=1), price(unit_amount=0), "other"):
        payer.receive("active", changed, start=NOW - 9 * DAY)
        assert (payer.period(), payer.used()) == (paid, USED)


def test_new_billing_anchor_of_a_paid_plan_moves_the_period(payer: Payer):
    for days in (9, 4, 2):
        payer.receive("active", start=NOW - days * DAY)
        assert payer.period()[0] == NOW - days * DAY
    payer.receive("trialing", start=NOW - DAY)
    assert payer.period()[0] == NOW - 2 * DAY


def test_failed_renewal_keeps_the_anchor_and_resets_on_it(payer: Payer):
    start = add_months(NOW - 2 * DAY, -1)
    payer.receive("active", start=start)
    renewed: dict[str, Any] = {
        "start": add_months(start, 1),
        "end": add_months(start, 2),
        "anchor": start,
    }
    payer.receive("past_due", **renewed)
    assert payer.period() == (start, add_months(start, 1))
    quota = get_user_quota(payer.world.conn, user_id=payer.user_id)
    assert quota.end_date == add_months(start, 2)
    payer.receive("active", **renewed)
    assert payer.period() == (start, add_months(start, 2))


@pytest.mark.parametrize("is_first", [True, False])
def test_period_is_that_of_the_item_with_the_plan(payer: Payer, is_first: bool):
    """A yearly plan with a monthly meter, and the reverse."""
    start, month = NOW - 3 * DAY, add_months(NOW - 3 * DAY, 1)
    year = add_months(start, 12)
    for plan_end, other_end in ((year, month), (month, year)):
        listed = [
            make_item(
                f"si_{name}",
                name,
                current_period_start=int(start.timestamp()),
                current_period_end=int(end.timestamp()),
                quantity=quantity,
            )
            for name, end, quantity in (
                ("price_month", plan_end, 1),
                ("price_meter", other_end, None),
            )
        ]
        shape = make_subscription(
            f"sub_{payer.tag}",
            f"cus_{payer.tag}",
            items=make_items(*(listed if is_first else listed[::-1])),
            billing_cycle_anchor=int(start.timestamp()),
        )
        payer.world.handle_event(UPDATED, shape, payer.next_second())
        # A year resets monthly.
        assert payer.period() == (start, month)
        assert payer.world.get_user(payer.user_id).stripe_price_id == "price_month"


def test_anchor_of_29_february_keeps_its_day(payer: Payer):
    anchor = datetime(2024, 2, 29, 8, 30, tzinfo=UTC)
    for months, end in ((0, (2024, 3, 29)), (11, (2025, 2, 28)), (12, (2025, 3, 29))):
        start = add_months(anchor, months)
        expected = datetime(*end, 8, 30, tzinfo=UTC)
        payer.receive("active", start=start, end=expected, anchor=anchor)
        assert payer.period() == (anchor, expected)
    payer.receive(
        "active",
        "price_year",
        start=add_months(anchor, 24),
        end=add_months(anchor, 36),
        anchor=anchor,
    )
    boundaries = (add_months(anchor, n) for n in range(1200))
    quota = get_user_quota(payer.world.conn, user_id=payer.user_id)
    assert quota.end_date == min(b for b in boundaries if b > NOW)


# What happens to a subscription without a payment for a plan.
KINDS = {
    **{name: fields for name, (fields, _) in UNPAID.items()},
    **{f"zero, {k}": {"status": "active", "price": p} for k, p in ZERO.items()},
    "a yearly trial": {"status": "trialing", "price": "price_year"},
    "a trial of many": {"status": "trialing", "quantity": 9},
}
STEPS = st.lists(
    st.tuples(
        st.sampled_from(sorted(KINDS)),
        st.sampled_from(["sub_1", "sub_2", "sub_3"]),
        # Days from now to the start of Stripe's period, and its length.
        st.integers(-40, 5),
        st.sampled_from([1, 7, 30, 31, 365]),
        st.integers(-40, 40),
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=STEPS, is_subscriber=st.booleans())
def test_nothing_unpaid_moves_a_period_or_lowers_usage(
    world: StripeWorld, steps, is_subscriber
):
    """Neither of a free user nor of one that paid once."""
    payer = Payer(world)
    payer.add_customer("cus_2")
    if is_subscriber:
        payer.receive("active", name="sub_1", start=NOW - 9 * DAY - DAY)
    before = payer.period()
    for kind, name, start, days, anchor in steps:
        payer.receive(
            name=name,
            customer="cus_2" if name == "sub_2" else "cus",
            start=NOW + start * DAY,
            end=NOW + (start + days) * DAY,
            anchor=NOW + anchor * DAY,
            **KINDS[kind],
        )
        assert (payer.period(), payer.used()) == (before, USED)
    payer.receive("active", name="sub_4", quantity=10)
    assert payer.period() == (NOW - 3 * DAY, add_months(NOW - 3 * DAY, 1))
