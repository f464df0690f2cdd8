"""Upsert snapshots of customers and subscriptions, and sync the users they belong to.

The caller holds the locks of the customers.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import Connection

from pyapp.stripe_sync import store
from pyapp.stripe_sync.client import StripeApi, fetch
from pyapp.stripe_sync.objects import read_customer, read_subscription
from pyapp.stripe_sync.store import (
    ClaimResult,
    ObjectType,
    Source,
    SyncedUser,
    UpsertResult,
)

_READERS: dict[ObjectType, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "customers": read_customer,
    "subscriptions": read_subscription,
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row for `upsert_snapshots`: one object as it was at `row["as_of"]`."""

    object_type: ObjectType
    row: Mapping[str, Any]


def read_snapshot(
    object_type: ObjectType, stripe_object: Mapping[str, Any], as_of: datetime
) -> dict[str, Any]:
    """Return an object's JSON as a snapshot row for `upsert_snapshots`."""
    return _READERS[object_type](stripe_object) | {"as_of": as_of.isoformat()}


def fetch_snapshot(
    client: StripeApi,
    object_type: ObjectType,
    object_id: str,
    not_before: datetime | None = None,
) -> Snapshot | None:
    """Fetch an object; return None if Stripe has none.

    The caller holds the lock on the object's customer. *not_before* is a time that had
    passed when the fetch began.

    Raises:
        stripe.StripeError: Stripe refused, or is unavailable.
        ValueError: the object cannot be read; the text says why.
    """
    response = fetch(client, object_type, object_id)
    if response is None:
        return None
    as_of = max(response.as_of, not_before or response.as_of)
    return Snapshot(object_type, read_snapshot(object_type, response.data, as_of))


def refresh_object(
    conn: Connection[Any],
    client: StripeApi,
    object_type: ObjectType,
    object_id: str,
    not_before: datetime | None = None,
    *,
    match_email: bool = False,
) -> UpsertResult | None:
    """Fetch an object and upsert its snapshot; return None if Stripe has none.

    The caller calls `sync_affected_users` afterwards.

    Raises:
        stripe.StripeError: Stripe refused, or is unavailable.
        ValueError: the object cannot be read; the text says why.
    """
    snapshot = fetch_snapshot(client, object_type, object_id, not_before)
    if snapshot is None:
        return None
    (upserted,) = upsert_snapshots(
        conn,
        object_type,
        [snapshot.row],
        "object",
        match_email=match_email,
    )
    return upserted


def upsert_snapshots(
    conn: Connection[Any],
    object_type: ObjectType,
    snapshots: Sequence[Mapping[str, Any]],
    source: Source,
    *,
    can_fetch: bool = False,
    match_email: bool = False,
) -> list[UpsertResult]:
    """Upsert snapshots of one type: `upsert_customers` or `upsert_subscriptions`."""
    if object_type == "customers":
        return store.upsert_customers(
            conn,
            snapshots=snapshots,
            source=source,
            can_fetch=can_fetch,
            match_email=match_email,
        )
    return store.upsert_subscriptions(
        conn,
        snapshots=snapshots,
        source=source,
        can_fetch=can_fetch,
    )


def sync_affected_users(
    conn: Connection[Any], stored: Sequence[UpsertResult | ClaimResult]
) -> list[SyncedUser]:
    """Sync the users that own, or owned until now, these objects; ordered by id."""
    ids = {one.user_id for one in stored} | {one.released_user_id for one in stored}
    return store.sync_users(
        conn,
        user_ids=[user_id for user_id in ids if user_id is not None],
    )


def changed_users(
    users: Iterable[SyncedUser], released: Collection[UUID | None]
) -> list[UUID]:
    """Return the users whose row a sync changed; those *released* lost a customer."""
    return [user.id for user in users if user.differences or user.id in released]


def moved_users(users: Iterable[SyncedUser]) -> list[UUID]:
    """Return the users whose period a sync moved."""
    return [user.id for user in users if "period" in user.differences]
