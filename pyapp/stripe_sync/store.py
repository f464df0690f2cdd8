"""The queries of mirrored customers and subscriptions, and of their users.

Each function executes the query of its name in the caller's transaction; none commits.
Each raises psycopg.Error as it is, such as LockNotAvailable, or a RuleError if the row
violates a constraint. Times are aware; `as_of` is a time of Stripe's clock.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import execute, fetch_all, fetch_one, fetch_optional
from pyapp._core.sanitize import json_text

ObjectType = Literal["customers", "subscriptions"]
# A page is listed without locks; an object is fetched under its customer's lock.
Source = Literal["event", "page", "object"]
SnapshotResult = Literal["applied", "stale", "ambiguous"]


class Customer(NamedTuple):
    """A mirrored customer; `created_at` is None while only its id is known.

    `claimed_user_id` is the user that the strongest claim names, who may not exist yet;
    `claim_source` is customer, subscription, checkout, reference or email.
    """

    id: str
    user_id: UUID | None
    is_deleted: bool
    created_at: datetime | None
    as_of: datetime
    is_provisional: bool
    claimed_user_id: UUID | None
    claim_source: str | None


class Subscription(NamedTuple):
    """A mirrored subscription; `status` is Stripe's own word, an open set.

    `claimed_user_id` is the user that its metadata names.
    """

    id: str
    customer_id: str
    status: str
    billing_cycle_anchor: datetime | None
    cancel_at_period_end: bool
    canceled_at: datetime | None
    created_at: datetime
    as_of: datetime
    is_provisional: bool
    cancel_at: datetime | None
    trial_end: datetime | None
    pause_behavior: str | None
    pause_resumes_at: datetime | None
    claimed_user_id: UUID | None


class SubscriptionItem(NamedTuple):
    """A mirrored item; `unit_amount` is in the currency's smallest unit.

    `quantity` is None if the item is metered.
    """

    subscription_id: str
    id: str
    price_id: str | None
    unit_amount: Decimal | None
    quantity: int | None
    current_period_start: datetime | None
    current_period_end: datetime | None


class UpsertResult(NamedTuple):
    """The result of upserting one snapshot, and its differences from the stored row.

    `user_id` is the linked user, `released_user_id` the user of the former link, and
    `proposed_user_id` a user with its verified e-mail address and no customer.
    `conflicting_user_id` is a claimed user, if another claim or link is stronger.
    """

    id: str
    result: SnapshotResult
    differences: list[str]
    user_id: UUID | None
    released_user_id: UUID | None
    proposed_user_id: UUID | None
    conflicting_user_id: UUID | None


class SyncedUser(NamedTuple):
    """A user's Stripe data after the sync, and its differences from before."""

    id: UUID
    customer_id: str | None
    subscription_id: str | None
    differences: list[str]
    has_unknown_price: bool


class UsageCut(NamedTuple):
    """The number of days whose sums had to be cut."""

    days: int


class ClaimResult(NamedTuple):
    """A customer, and whether a claim changed its claim or its user.

    `user_id` is the linked user, `released_user_id` the user of the former link.
    `conflicting_user_id` is the claimed user, if another claim or link is stronger.
    """

    id: str
    user_id: UUID | None
    released_user_id: UUID | None
    conflicting_user_id: UUID | None
    is_changed: bool


class ObjectOwner(NamedTuple):
    """An object and the user that it belongs to, if there is one."""

    id: str
    user_id: UUID | None


class UnlistedObject(NamedTuple):
    """A stored object that no page of Stripe's lists contained."""

    id: str
    customer_id: str
    created_at: datetime | None


class KnownObject(NamedTuple):
    """A mirrored object that Stripe has listed or sent."""

    object_type: ObjectType
    id: str
    created_at: datetime


class MirrorSize(NamedTuple):
    """The numbers of mirrored objects."""

    customers: int
    subscriptions: int


def find_customer(conn: Connection[Any], *, id: str) -> Customer | None:
    """Return the customer, deleted or not, or None if it is not stored."""
    return fetch_optional(conn, Customer, "find_customer", id=id)


def find_subscription(conn: Connection[Any], *, id: str) -> Subscription | None:
    """Return the subscription, ended or not, or None if it is not stored."""
    return fetch_optional(conn, Subscription, "find_subscription", id=id)


def list_subscription_items(
    conn: Connection[Any], *, subscription_id: str, limit: int = 100
) -> list[SubscriptionItem]:
    """Return up to *limit* items of the subscription, by id."""
    return fetch_all(
        conn,
        SubscriptionItem,
        "list_subscription_items",
        subscription_id=subscription_id,
        limit=limit,
    )


def lock_customers(conn: Connection[Any], *, ids: Sequence[str]) -> int:
    """Lock these customers until the transaction ends; return their number."""
    return execute(conn, "lock_customers", ids=list(ids))


def lock_users(conn: Connection[Any], *, snapshots: Sequence[Mapping[str, Any]]) -> int:
    """Lock all users that the snapshots may change, until the transaction ends.

    A transaction that upserts several snapshots calls it before the first one, so that
    it locks the users in the order of all other transactions.
    """
    return execute(conn, "lock_users", snapshots=json_text(list(snapshots)))


def upsert_customers(
    conn: Connection[Any],
    *,
    snapshots: Sequence[Mapping[str, Any]],
    source: Source,
    can_fetch: bool,
    match_email: bool = False,
) -> list[UpsertResult]:
    """Upsert the snapshots that are newer than the stored rows; results by id.

    Snapshots come from `apply.read_snapshot`. The caller holds the customers' locks,
    and calls `sync_users` for the users of the results, which this locks. An ambiguous
    snapshot is not stored; *can_fetch* is False if a tie shall go by arrival.
    """
    return fetch_all(
        conn,
        UpsertResult,
        "upsert_customers",
        snapshots=json_text(list(snapshots)),
        source=source,
        can_fetch=can_fetch,
        match_email=match_email,
    )


def upsert_subscriptions(
    conn: Connection[Any],
    *,
    snapshots: Sequence[Mapping[str, Any]],
    source: Source,
    can_fetch: bool,
) -> list[UpsertResult]:
    """Upsert snapshots of subscriptions as `upsert_customers` those of customers.

    A claim of a subscription may link its customer; `proposed_user_id` is None.
    """
    return fetch_all(
        conn,
        UpsertResult,
        "upsert_subscriptions",
        snapshots=json_text(list(snapshots)),
        source=source,
        can_fetch=can_fetch,
    )


def mark_subscription_provisional(
    conn: Connection[Any], *, id: str, as_of: datetime
) -> int:
    """Mark the subscription for the next reconciliation; return 0 if it is newer."""
    return execute(conn, "mark_subscription_provisional", id=id, as_of=as_of)


def mark_subscription_missing(
    conn: Connection[Any], *, id: str, as_of: datetime
) -> ObjectOwner | None:
    """Mark the subscription as canceled; its user needs `sync_users`."""
    return fetch_optional(
        conn, ObjectOwner, "mark_subscription_missing", id=id, as_of=as_of
    )


def claim_customer(
    conn: Connection[Any],
    *,
    id: str,
    user_id: UUID,
    source: Literal["checkout", "reference"],
) -> ClaimResult:
    """Store the claim of a checkout, unless a stronger or equal one is stored.

    The caller holds the customer's lock, has called `lock_users`, and calls
    `sync_users` for the users.
    """
    return fetch_one(
        conn,
        ClaimResult,
        "claim_customer",
        id=id,
        user_id=user_id,
        source=source,
    )


def sync_users(conn: Connection[Any], *, user_ids: Sequence[UUID]) -> list[SyncedUser]:
    """Update these users from the mirror; return them by id."""
    return fetch_all(conn, SyncedUser, "sync_users", user_ids=list(user_ids))


def cut_usage(conn: Connection[Any], *, user_ids: Sequence[UUID]) -> UsageCut:
    """Cut the sums of these users at the boundaries of their periods.

    It follows the commit that moves them, because it must see the sums that concurrent
    writers begin before that.
    """
    return fetch_one(conn, UsageCut, "cut_usage", user_ids=list(user_ids))


def list_unlisted_customers(
    conn: Connection[Any],
    *,
    since: datetime | None,
    until: datetime,
    listed_ids: Sequence[str],
    after_id: str | None = None,
    limit: int = 100,
) -> list[UnlistedObject]:
    """Return live customers created in (since, until] that are not in *listed_ids*.

    Newest first. The next page starts at *until* and *after_id* of the last row.
    """
    return fetch_all(
        conn,
        UnlistedObject,
        "list_unlisted_customers",
        **_span(since, until, listed_ids, after_id, limit),
    )


def list_unlisted_subscriptions(
    conn: Connection[Any],
    *,
    since: datetime | None,
    until: datetime,
    listed_ids: Sequence[str],
    after_id: str | None = None,
    limit: int = 100,
) -> list[UnlistedObject]:
    """Return live subscriptions created in (since, until] not in *listed_ids*.

    Newest first. The next page starts at *until* and *after_id* of the last row.
    """
    return fetch_all(
        conn,
        UnlistedObject,
        "list_unlisted_subscriptions",
        **_span(since, until, listed_ids, after_id, limit),
    )


def list_name_only_customers(
    conn: Connection[Any], *, after_id: str | None = None, limit: int = 100
) -> list[UnlistedObject]:
    """Return customers known only by a checkout, by id."""
    return fetch_all(
        conn, UnlistedObject, "list_name_only_customers", after_id=after_id, limit=limit
    )


def list_unseen_customers(
    conn: Connection[Any], *, after_id: str | None = None, limit: int = 100
) -> list[UnlistedObject]:
    """Return customers of users that are not stored as customers, by id."""
    return fetch_all(
        conn, UnlistedObject, "list_unseen_customers", after_id=after_id, limit=limit
    )


def _span(
    since: datetime | None,
    until: datetime,
    listed_ids: Sequence[str],
    after_id: str | None,
    limit: int,
) -> dict[str, Any]:
    return {
        "since": since,
        "until": until,
        "listed_ids": list(listed_ids),
        "after_id": after_id,
        "limit": limit,
    }


def get_mirror_size(conn: Connection[Any]) -> MirrorSize:
    """Return the numbers of mirrored customers and subscriptions."""
    return fetch_one(conn, MirrorSize, "get_mirror_size")


def list_known_objects(conn: Connection[Any], *, limit: int) -> list[KnownObject]:
    """Return the newest live customers and subscriptions, *limit* of each."""
    return fetch_all(conn, KnownObject, "list_known_objects", limit=limit)
