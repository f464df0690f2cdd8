"""Apply one event to the Stripe mirror and to users.

The caller holds the lock on the event's customer. The object is fetched from Stripe if
the event only names it (an invoice names its subscription, a checkout its customer) or
if the order of two snapshots is ambiguous. Without a client, the snapshot that arrived
last is kept and marked provisional for the next reconciliation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg import Connection

from pyapp.stripe_sync import mirror
from pyapp.stripe_sync.client import StripeApi, fetch
from pyapp.stripe_sync.envelope import Event
from pyapp.stripe_sync.mirror import ObjectType, SyncedUser, UpsertResult
from pyapp.stripe_sync.shapes import (
    find_invoice_subscription,
    object_id,
    read_customer,
    read_subscription,
    read_user_id,
)

Applied = Literal["applied", "stale", "ignored"]

_READERS: dict[ObjectType, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "customers": read_customer,
    "subscriptions": read_subscription,
}
# What events of these types show.
_SHOWN: dict[str, ObjectType] = {
    "customer.created": "customers",
    "customer.updated": "customers",
    "customer.deleted": "customers",
    "customer.subscription.created": "subscriptions",
    "customer.subscription.updated": "subscriptions",
    "customer.subscription.deleted": "subscriptions",
    "customer.subscription.paused": "subscriptions",
    "customer.subscription.resumed": "subscriptions",
}
_INVOICE_TYPES = frozenset({"invoice.paid", "invoice.payment_failed"})
_CHECKOUT_TYPES = frozenset({"checkout.session.completed"})
SHOWN_TYPES = frozenset(_SHOWN)
USED_TYPES = _INVOICE_TYPES | _CHECKOUT_TYPES | SHOWN_TYPES


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How an object was at a moment, ready for `upsert_snapshots`."""

    object_type: ObjectType
    row: Mapping[str, Any]


def find_snapshot(event: Event) -> Snapshot | None:
    """Return the event's snapshot of a customer or subscription, if it has one."""
    object_type = _SHOWN.get(event.type)
    if object_type is None:
        return None
    row = read(object_type, event.object, event.created_at)
    if event.type == "customer.deleted":
        row["is_deleted"] = True
    return Snapshot(object_type, row)


def read(
    object_type: ObjectType, shape: Mapping[str, Any], as_of: datetime
) -> dict[str, Any]:
    """Return an object as a snapshot row for `upsert_snapshots`."""
    return _READERS[object_type](shape) | {"as_of": as_of.isoformat()}


def settle(
    conn: Connection[Any],
    client: StripeApi | None,
    event: Event,
    snapshot: Snapshot,
) -> Applied:
    """Ask Stripe about what the event's snapshot left ambiguous."""
    judged = client and _follow(
        conn, client, snapshot.object_type, snapshot.row["id"], event.created_at
    )
    if not judged:
        judged = _upsert_snapshots(conn, snapshot, "event")
        sync_owners(conn, [judged])
    return "applied" if judged.result == "applied" else "stale"


def apply(conn: Connection[Any], client: StripeApi | None, event: Event) -> Applied:
    """Apply an event that gives no snapshot itself, and return what it was worth."""
    if event.type in _INVOICE_TYPES:
        return _apply_invoice(conn, client, event)
    return _apply_checkout(conn, client, event)


def _apply_invoice(
    conn: Connection[Any], client: StripeApi | None, event: Event
) -> Applied:
    subscription = find_invoice_subscription(event.object)
    if subscription is None:
        return "ignored"
    known = mirror.find_subscription(conn, id=subscription)
    if known is not None and known.as_of.replace(microsecond=0) > event.created_at:
        return "stale"
    if client is None:
        marked = mirror.mark_subscription_provisional(
            conn, id=subscription, as_of=event.created_at
        )
        return "applied" if marked else "ignored"
    found = _follow(conn, client, "subscriptions", subscription, event.created_at)
    return "applied" if found else "ignored"


def _apply_checkout(
    conn: Connection[Any], client: StripeApi | None, event: Event
) -> Applied:
    customer = object_id(event.object.get("customer"))
    if customer is None:
        return "ignored"
    found = None
    if client is not None:
        known = mirror.find_customer(conn, id=customer)
        if known is None or known.created_at is None:
            found = _follow(conn, client, "customers", customer, event.created_at)
        bought = object_id(event.object.get("subscription"))
        if bought and mirror.find_subscription(conn, id=bought) is None:
            _follow(conn, client, "subscriptions", bought, event.created_at)
    user_id = read_user_id(event.object.get("client_reference_id"))
    if user_id is None:
        return "applied" if found else "ignored"
    linked = mirror.link_customer(
        conn, id=customer, user_id=UUID(user_id), as_of=event.created_at
    )
    if linked is not None:
        mirror.sync_users(conn, user_ids=[linked.user_id])
    return "applied"


def refresh(
    conn: Connection[Any],
    client: StripeApi,
    object_type: ObjectType,
    object_id: str,
    not_before: datetime | None = None,
    *,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> UpsertResult | None:
    """Fetch an object under its customer's lock and keep it; None if there is none.

    *not_before* is a moment that had passed when the fetch began. The object's users
    need `sync_owners`.
    """
    answer = fetch(client, object_type, object_id)
    if answer is None:
        return None
    as_of = max(answer.as_of, not_before or answer.as_of)
    snapshot = Snapshot(object_type, read(object_type, answer.data, as_of))
    return _upsert_snapshots(
        conn, snapshot, "object", match_email=match_email, is_dry_run=is_dry_run
    )


def sync_owners(
    conn: Connection[Any], judged: Sequence[UpsertResult], *, is_dry_run: bool = False
) -> list[SyncedUser]:
    """Give whoever has or just lost these objects what the mirror says; by id."""
    ids = {one.user_id for one in judged} | {one.released_user_id for one in judged}
    return mirror.sync_users(
        conn,
        user_ids=[user_id for user_id in ids if user_id is not None],
        is_dry_run=is_dry_run,
    )


def _follow(
    conn: Connection[Any],
    client: StripeApi,
    object_type: ObjectType,
    object_id: str,
    not_before: datetime,
) -> UpsertResult | None:
    """Refresh an object that an event names, and its users."""
    judged = refresh(conn, client, object_type, object_id, not_before)
    if judged is not None:
        sync_owners(conn, [judged])
    return judged


def _upsert_snapshots(
    conn: Connection[Any],
    snapshot: Snapshot,
    source: Literal["event", "object"],
    *,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> UpsertResult:
    """Keep the snapshot if it counts, without asking anybody."""
    (judged,) = mirror.upsert_snapshots(
        conn,
        object_type=snapshot.object_type,
        snapshots=[snapshot.row],
        source=source,
        can_fetch=False,
        match_email=match_email,
        is_dry_run=is_dry_run,
    )
    return judged
