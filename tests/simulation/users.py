"""Computes what a user must have, from its customers and their subscriptions.

The rule is that of the documentation: the best item of all live customers counts, and
only what is paid for moves the period.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from tests.metering import period_end
from tests.simulation.catalog import FREE_CREDITS, PRICES
from tests.simulation.history import History, ItemState, SubscriptionState
from tests.simulation.life import DAY
from tests.stripe_world import moment

ENTITLING = {"active", "trialing", "past_due"}


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
    """A mirrored customer and its subscriptions."""

    id: str
    user_id: UUID | None
    is_deleted: bool
    created: int | None
    subscriptions: Mapping[str, SubscriptionState]


class Candidate(NamedTuple):
    """An item that may be the best one."""

    customer: CustomerRecord
    subscription_id: str
    subscription: SubscriptionState
    item: ItemState

    @property
    def status(self) -> str:
        """Return the status; a deleted customer's subscriptions have ended."""
        status = self.subscription.status
        has_ended = status in {"canceled", "incomplete_expired"}
        return "canceled" if self.customer.is_deleted and not has_ended else status

    @property
    def worth(self) -> tuple[bool, bool, bool, Decimal, int]:
        """Return the order of the items; ids decide among equal ones."""
        return (
            self.status in ENTITLING,
            self.item.credits is not None,
            self.status in {"active", "trialing"},
            self.item.credits or Decimal(0),
            self.item.end or 0,
        )

    @property
    def credits(self) -> Decimal:
        bought = self.item.credits if self.status in ENTITLING else None
        return FREE_CREDITS if bought is None else bought

    @property
    def is_paid(self) -> bool:
        return self.status == "active" and self.subscription.is_paid(self.item)


def read_users(
    conn: psycopg.Connection[Any], ids: Set[UUID] | None = None
) -> list[UserRow]:
    """Return these users, by default all."""
    with conn.cursor(row_factory=class_row(UserRow)) as cursor:
        columns = ", ".join(UserRow.__slots__)
        statement = (
            f"SELECT {columns} FROM app.users"
            " WHERE %(ids)s::uuid[] IS NULL OR id = ANY(%(ids)s) ORDER BY id"
        )
        chosen = None if ids is None else list(ids)
        return cursor.execute(statement.encode(), {"ids": chosen}).fetchall()


def find_faults(
    users: Iterable[UserRow], customers: Iterable[CustomerRecord], history: History
) -> Iterator[str]:
    """Yield the users whose columns differ from what their customers imply."""
    owned: dict[UUID | None, list[CustomerRecord]] = defaultdict(list)
    for customer in customers:
        owned[customer.user_id].append(customer)
    paid = history.paid_periods()
    for user in users:
        fault, best = _find_fault(user, owned[user.id])
        if fault is None and not (best and best.is_paid):
            fault = _find_fault_of_kept_period(
                user, history.initial.get(user.id), paid.get(user.id, set())
            )
        if fault is not None:
            yield f"user {user.id} {fault}: {user}, with {owned[user.id]}"


def _find_fault(
    user: UserRow, customers: Sequence[CustomerRecord]
) -> tuple[str | None, Candidate | None]:
    """Return what is wrong, and the best item."""
    if not customers:
        if user.stripe_customer_id is not None:
            return "has a customer of another user", None
        return _has_nothing(user), None
    relevant = [c for c in customers if not c.is_deleted] or customers
    items = [
        Candidate(customer, name, subscription, item)
        for customer in relevant
        for name, subscription in customer.subscriptions.items()
        for item in subscription.items
    ]
    best = max((one.worth for one in items), default=None)
    allowed = [one for one in items if one.worth == best]
    names = {one.customer.id for one in allowed} or {c.id for c in relevant}
    if user.stripe_customer_id not in names:
        return f"should have one of the customers {sorted(names)}", None
    (customer,) = (c for c in relevant if c.id == user.stripe_customer_id)
    if customer.created and user.created_at != moment(customer.created):
        return f"should be created at {moment(customer.created)}", None
    if not allowed:
        return _has_nothing(user), None
    return _find_fault_of_item(user, allowed)


def _find_fault_of_item(
    user: UserRow, allowed: Sequence[Candidate]
) -> tuple[str | None, Candidate | None]:
    """Compare with the items that are equally good."""
    found = (
        user.stripe_customer_id,
        user.stripe_subscription_id,
        user.stripe_price_id,
        user.subscription_status,
        user.subscription_active,
        user.base_quota,
    )
    wanted = {
        (
            one.customer.id,
            one.subscription_id,
            one.item.price_id,
            one.status,
            one.status in ENTITLING,
            one.credits,
        ): one
        for one in allowed
    }
    if found not in wanted:
        return f"should have one of {list(wanted)}", None
    best = wanted[found]
    fault = None
    if best.is_paid:
        fault = _find_fault_of_paid_period(user, best.subscription, best.item)
    return fault, best


def _find_fault_of_paid_period(
    user: UserRow, subscription: SubscriptionState, item: ItemState
) -> str | None:
    """A paid month is the quota period; otherwise the quota resets on the anchor."""
    assert item.start is not None
    assert item.end is not None
    assert subscription.anchor is not None
    anchor, reset = user.quota_anchor, user.next_quota_reset
    end, billed_from = moment(item.end), moment(subscription.anchor)
    days = (item.end - item.start) / DAY
    is_month = PRICES[item.price_id or ""].months == 1 and days <= 31
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
    coming = period_end(anchor, datetime.now(UTC))
    effective = reset if reset > datetime.now(UTC) else coming
    return None if effective == coming else f"should be reset at {coming}"


def _find_fault_of_kept_period(
    user: UserRow, initial: tuple[Any, Any] | None, paid: Set[tuple[int, int]]
) -> str | None:
    """Without a paid item, the period is that of the last one, or the first period.

    So a user who has never paid for a plan never gets a second period.
    """
    anchor, reset = user.quota_anchor, user.next_quota_reset
    if initial is None or (anchor, reset) == initial:
        return None
    if not paid:
        return f"has paid for nothing, and should still have the period {initial}"
    anchors = {initial[0], *(moment(time) for pair in paid for time in pair)}
    if anchor not in anchors:
        return f"has an anchor that no paid item had, {anchor}"
    ends = {initial[1], *(moment(end) for _, end in paid)}
    if reset not in ends and not _is_boundary(anchor, reset):
        return f"is reset at {reset}, which is no boundary of a paid item"
    return None


def _is_boundary(anchor: datetime, instant: datetime) -> bool:
    return period_end(anchor, instant - timedelta(seconds=1)) == instant


def _has_nothing(user: UserRow) -> str | None:
    has = (user.stripe_subscription_id, user.subscription_status, user.stripe_price_id)
    is_free = user.base_quota == FREE_CREDITS and not user.subscription_active
    return None if has == (None, None, None) and is_free else "should have nothing"
