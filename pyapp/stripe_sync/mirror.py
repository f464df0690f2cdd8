"""Stripe's customers and subscriptions as last seen, and what users get from them.

What a snapshot is worth, and what its user gets, is decided by functions of the schema.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import execute, fetch_all, fetch_optional

ObjectType = Literal["customers", "subscriptions"]
# A page is listed without locks; an object is fetched while its customer is locked.
Source = Literal["event", "page", "object"]
Result = Literal["applied", "stale", "ambiguous"]

_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class Customer(NamedTuple):
    """A customer as Stripe was last seen to have it; times are aware.

    `as_of` is in Stripe's time; `created_at` is None while only its name is known.
    """

    id: str
    user_id: UUID | None
    is_deleted: bool
    created_at: datetime | None
    as_of: datetime
    is_provisional: bool


class Subscription(NamedTuple):
    """A subscription as Stripe was last seen to have it; times are aware.

    `status` is Stripe's word, and Stripe adds new ones; `as_of` is in Stripe's time.
    """

    id: str
    customer_id: str
    user_id: UUID | None
    status: str
    price_id: str | None
    current_period_start: datetime | None
    current_period_end: datetime | None
    billing_cycle_anchor: datetime | None
    cancel_at_period_end: bool
    canceled_at: datetime | None
    created_at: datetime
    as_of: datetime
    is_provisional: bool


class UpsertResult(NamedTuple):
    """What a snapshot of an object is worth, and how it differs from what is known.

    `user_id` is whom it belongs to now, `released_user_id` who has just lost it,
    `proposed_user_id` who has its e-mail and no customer.
    """

    id: str
    result: Result
    differences: list[str]
    user_id: UUID | None
    released_user_id: UUID | None
    proposed_user_id: UUID | None


class SyncedUser(NamedTuple):
    """A user, what he has of Stripe's, and what differed from the mirror until now."""

    id: UUID
    customer_id: str | None
    subscription_id: str | None
    differences: list[str]
    has_unknown_price: bool


class Link(NamedTuple):
    """A customer and the user it has just been linked to."""

    id: str
    user_id: UUID


class Owned(NamedTuple):
    """An object and whose it is, if that is known."""

    id: str
    user_id: UUID | None


class Unlisted(NamedTuple):
    """An object that is known here and that Stripe did not list."""

    id: str
    customer_id: str
    created_at: datetime | None


def to_json(value: Any) -> str:
    """Return JSON that jsonb can hold: without NULs and halves of characters."""
    text = json.dumps(value, ensure_ascii=False)
    if "\\u0000" in text:
        text = _NUL.sub(r"\1", text)
    return text.encode(errors="replace").decode()


def find_customer(conn: Connection[Any], *, id: str) -> Customer | None:
    """Return the customer, deleted or not, or None if it was never seen."""
    return fetch_optional(conn, Customer, "find_customer", id=id)


def find_subscription(conn: Connection[Any], *, id: str) -> Subscription | None:
    """Return the subscription, ended or not, or None if it was never seen."""
    return fetch_optional(conn, Subscription, "find_subscription", id=id)


def lock_customers(conn: Connection[Any], *, ids: Sequence[str]) -> int:
    """Lock these customers until the transaction ends; return how many they are."""
    return execute(conn, "lock_customers", ids=list(ids))


def upsert_snapshots(
    conn: Connection[Any],
    *,
    object_type: ObjectType,
    snapshots: Sequence[Mapping[str, Any]],
    source: Source,
    can_fetch: bool,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> list[UpsertResult]:
    """Judge snapshots, as of `shapes`, and keep those that count; by id.

    The customers are locked. Their users are locked here, and need `sync_users`.
    """
    return fetch_all(
        conn,
        UpsertResult,
        "upsert_snapshots",
        object_type=object_type,
        snapshots=to_json(list(snapshots)),
        source=source,
        can_fetch=can_fetch,
        match_email=match_email,
        is_dry_run=is_dry_run,
    )


def mark_subscription_provisional(
    conn: Connection[Any], *, id: str, as_of: datetime
) -> int:
    """Have the subscription looked at again, unless it is known as of later: then 0."""
    return execute(conn, "mark_subscription_provisional", id=id, as_of=as_of)


def mark_subscription_missing(
    conn: Connection[Any], *, id: str, as_of: datetime
) -> Owned | None:
    """Take the subscription for canceled; its user needs `sync_users`."""
    return fetch_optional(conn, Owned, "mark_subscription_missing", id=id, as_of=as_of)


def link_customer(
    conn: Connection[Any], *, id: str, user_id: UUID, as_of: datetime
) -> Link | None:
    """Link a customer that has no user; return None if there is nothing to link."""
    return fetch_optional(
        conn, Link, "link_customer", id=id, user_id=user_id, as_of=as_of
    )


def sync_users(
    conn: Connection[Any], *, user_ids: Sequence[UUID], is_dry_run: bool = False
) -> list[SyncedUser]:
    """Give these users what the mirror says, and return them by id."""
    return fetch_all(
        conn, SyncedUser, "sync_users", user_ids=list(user_ids), is_dry_run=is_dry_run
    )


def list_unlisted_customers(
    conn: Connection[Any],
    *,
    since: datetime | None,
    until: datetime,
    listed_ids: Sequence[str],
    after_id: str | None = None,
    limit: int = 100,
) -> list[Unlisted]:
    """Return live customers created in (since, until] that are not in *listed_ids*.

    Newest first; go on with *until* and *after_id* from the last one.
    """
    return fetch_all(
        conn,
        Unlisted,
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
) -> list[Unlisted]:
    """Return subscriptions that go on, created in (since, until], not in *listed_ids*.

    Newest first; go on with *until* and *after_id* from the last one.
    """
    return fetch_all(
        conn,
        Unlisted,
        "list_unlisted_subscriptions",
        **_span(since, until, listed_ids, after_id, limit),
    )


def list_name_only_customers(
    conn: Connection[Any], *, after_id: str | None = None, limit: int = 100
) -> list[Unlisted]:
    """Return customers known by a checkout only, by id."""
    return fetch_all(
        conn, Unlisted, "list_name_only_customers", after_id=after_id, limit=limit
    )


def list_unseen_customers(
    conn: Connection[Any], *, after_id: str | None = None, limit: int = 100
) -> list[Unlisted]:
    """Return customers that users hold and Stripe has never shown, by id."""
    return fetch_all(
        conn, Unlisted, "list_unseen_customers", after_id=after_id, limit=limit
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
