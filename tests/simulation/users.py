"""Computes what a user must have, from its customers and their subscriptions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from tests.metering import period_end
from tests.simulation.history import SubscriptionState
from tests.simulation.life import CREDITS, DAY, PRICES
from tests.stripe_world import moment

ACTIVE = {"active", "trialing", "past_due"}
FREE = Decimal(2500)


@dataclass(frozen=True, slots=True)
class UserRow:
    """The columns of users that the sync writes."""

    id: UUID
    base_quota: Decimal
    quota_anchor: datetime
    next_quota_reset: datetime
    stripe_customer_id: str | None
    stripe_subscription_id: str | None
    stripe_price_id: str | None
    subscription_status: str | None
    subscription_active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CustomerRecord:
    """A customer and its subscriptions, in Stripe or in the mirror."""

    id: str
    user_id: UUID | None
    is_deleted: bool
    created: int | None
    subscriptions: Mapping[str, Sequence[SubscriptionState]]


def read_users(conn: psycopg.Connection[Any]) -> list[UserRow]:
    with conn.cursor(row_factory=class_row(UserRow)) as cursor:
        columns = ", ".join(UserRow.__slots__)
        return cursor.execute(f"SELECT {columns} FROM app.users ORDER BY id").fetchall()


def find_faults(
    users: Iterable[UserRow], customers: Iterable[CustomerRecord]
) -> list[str]:
    """Return the users whose columns differ from what their customers imply."""
    owned: dict[UUID | None, list[CustomerRecord]] = {}
    for customer in customers:
        owned.setdefault(customer.user_id, []).append(customer)
    return [
        f"user {user.id} {fault}: {user}"
        for user in users
        if (fault := find_fault(user, owned.get(user.id, [])))
    ]


def find_fault(user: UserRow, customers: Sequence[CustomerRecord]) -> str | None:
    live = [c for c in customers if not c.is_deleted]
    paying = [c for c in live if any(map(_is_paid, c.subscriptions.values()))]
    allowed = {c.id: c for c in paying or live or customers}
    if not allowed:
        return (
            _has_nothing(user)
            if user.stripe_customer_id is None
            else "has a customer of another user"
        )
    customer = allowed.get(user.stripe_customer_id or "")
    if customer is None:
        return f"should have one of the customers {sorted(allowed)}"
    if customer.created and user.created_at != moment(customer.created):
        return f"should be created at {moment(customer.created)}"
    if not customer.subscriptions:
        return _has_nothing(user)
    return _find_fault_of_subscription(user, customer)


def _find_fault_of_subscription(user: UserRow, customer: CustomerRecord) -> str | None:
    best = max(map(_worth, customer.subscriptions.values()))
    allowed = {
        name: states
        for name, states in customer.subscriptions.items()
        if _worth(states) == best
    }
    states = allowed.get(user.stripe_subscription_id or "")
    if states is None:
        return f"should have one of the subscriptions {sorted(allowed)}"
    faults = [_find_fault_of_state(user, customer, state) for state in states]
    return None if None in faults else faults[0]


def _find_fault_of_state(
    user: UserRow, customer: CustomerRecord, state: SubscriptionState
) -> str | None:
    status = state.status
    if customer.is_deleted and status != "incomplete_expired":
        status = "canceled"
    is_active = status in ACTIVE
    credits = CREDITS.get(state.price_id or "", FREE) if is_active else FREE
    found = (
        user.subscription_status,
        user.subscription_active,
        user.stripe_price_id,
        user.base_quota,
    )
    wanted = (status, is_active, state.price_id, credits)
    if found != wanted:
        return f"should have {wanted}"
    return _find_fault_of_period(user, state) if is_active else None


def _find_fault_of_period(user: UserRow, state: SubscriptionState) -> str | None:
    """A paid month is the quota period; otherwise the quota resets on the anchor."""
    assert state.start is not None
    assert state.end is not None
    assert state.anchor is not None
    anchor, reset = user.quota_anchor, user.next_quota_reset
    end, billed_from = moment(state.end), moment(state.anchor)
    days = (state.end - state.start) / DAY
    is_month = PRICES[state.price_id or ""] == 1 and days <= 31
    # An item's period may be shorter than a month, and before API 2025-03-31 period and
    # price may come from different items.
    if is_month and (days >= 28 or _is_boundary(billed_from, end)):
        if reset != end:
            return f"should be reset at {end}"
        return None if _is_boundary(anchor, reset) else "is not reset on a boundary"
    if 28 <= days <= 31 and anchor == reset == end:
        return None
    if anchor != billed_from:
        return f"should have the anchor {billed_from}"
    now = datetime.now(UTC)
    # The fake's clock may be ahead of the database's. A trial that ends on the first
    # boundary after its start is then reset there, and not before.
    start = moment(state.start)
    if start > now and reset == end == period_end(anchor, start):
        return None
    coming = period_end(anchor, now)
    effective = reset if reset > now else coming
    return None if effective == coming else f"should be reset at {coming}"


def _is_boundary(anchor: datetime, instant: datetime) -> bool:
    return period_end(anchor, instant - timedelta(seconds=1)) == instant


def _has_nothing(user: UserRow) -> str | None:
    has = (user.stripe_subscription_id, user.subscription_status, user.stripe_price_id)
    is_free = user.base_quota == FREE and not user.subscription_active
    return None if has == (None, None, None) and is_free else "should have nothing"


def _worth(states: Sequence[SubscriptionState]) -> tuple[bool, int]:
    return _is_paid(states), states[0].end or 0


def _is_paid(states: Sequence[SubscriptionState]) -> bool:
    return states[0].status in ACTIVE
