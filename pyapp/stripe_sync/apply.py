"""What each type of event does to the mirror and to users.

The lock on the event's customer is held. An event that names an object without showing
it (an invoice its subscription, a checkout its customer) has it fetched; so has one
whose own view cannot be put in order. Without a client the view that came last counts,
and is flagged for the next reconciliation.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import stripe
from psycopg import Connection

from pyapp.stripe_sync import mirror
from pyapp.stripe_sync.api import fetch
from pyapp.stripe_sync.envelope import Event
from pyapp.stripe_sync.mirror import Judgement, Source, SyncedUser
from pyapp.stripe_sync.shapes import (
    find_invoice_subscription,
    object_id,
    read_customer,
    read_subscription,
    read_user_id,
)

Applied = Literal["applied", "stale", "ignored"]
Noun = Literal["customers", "subscriptions"]

_SUBSCRIPTION_TYPES = frozenset(
    f"customer.subscription.{verb}"
    for verb in ("created", "updated", "deleted", "paused", "resumed")
)
_CUSTOMER_TYPES = frozenset(
    {"customer.created", "customer.updated", "customer.deleted"}
)
_INVOICE_TYPES = frozenset({"invoice.paid", "invoice.payment_failed"})
_CHECKOUT_TYPES = frozenset({"checkout.session.completed"})
_READERS: dict[Noun, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "customers": read_customer,
    "subscriptions": read_subscription,
}
USED_TYPES = _SUBSCRIPTION_TYPES | _CUSTOMER_TYPES | _INVOICE_TYPES | _CHECKOUT_TYPES


def apply(
    conn: Connection[Any], event: Event, client: stripe.StripeClient | None
) -> Applied:
    """Apply the event in the transaction that is open, and return what it was worth."""
    if event.type in _SUBSCRIPTION_TYPES:
        row = read_subscription(event.object)
        return _apply_view(conn, client, "subscriptions", row, event.created_at)
    if event.type in _CUSTOMER_TYPES:
        is_deleted = event.type == "customer.deleted"
        row = read_customer(event.object, is_deleted=is_deleted)
        return _apply_view(conn, client, "customers", row, event.created_at)
    if event.type in _INVOICE_TYPES:
        return _apply_invoice(conn, client, event)
    return _apply_checkout(conn, client, event)


def _apply_view(
    conn: Connection[Any],
    client: stripe.StripeClient | None,
    noun: Noun,
    row: Mapping[str, Any],
    as_of: datetime,
) -> Applied:
    can_ask = client is not None
    (judged,) = upsert(conn, noun, [row], as_of, "event", can_ask=can_ask)
    if judged.verdict == "unclear" and client is not None:
        fresh = refresh(conn, client, noun, row["id"], not_before=as_of)
        if fresh is None:
            (judged,) = upsert(conn, noun, [row], as_of, "event", can_ask=False)
        else:
            judged = fresh
    if judged.verdict != "applied":
        return "stale"
    sync(conn, [judged])
    return "applied"


def _apply_invoice(
    conn: Connection[Any], client: stripe.StripeClient | None, event: Event
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
    judged = refresh(
        conn, client, "subscriptions", subscription, not_before=event.created_at
    )
    if judged is None:
        return "ignored"
    sync(conn, [judged])
    return "applied"


def _apply_checkout(
    conn: Connection[Any], client: stripe.StripeClient | None, event: Event
) -> Applied:
    customer = object_id(event.object.get("customer"))
    if customer is None:
        return "ignored"
    moment = event.created_at
    judged = []
    if client is not None:
        known = mirror.find_customer(conn, id=customer)
        if known is None or known.created_at is None:
            judged.append(refresh(conn, client, "customers", customer, moment))
        bought = object_id(event.object.get("subscription"))
        if bought and mirror.find_subscription(conn, id=bought) is None:
            judged.append(refresh(conn, client, "subscriptions", bought, moment))
    linked = None
    user_id = read_user_id(event.object.get("client_reference_id"))
    if user_id is not None:
        linked = mirror.link_customer(
            conn, id=customer, user_id=UUID(user_id), as_of=moment
        )
    sync(conn, judged, [linked.user_id] if linked else [])
    return "applied" if judged or user_id else "ignored"


def refresh(
    conn: Connection[Any],
    client: stripe.StripeClient,
    noun: Noun,
    object_id: str,
    not_before: datetime | None = None,
    *,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> Judgement | None:
    """Fetch an object under its customer's lock and write it; None if there is none.

    *not_before* is a moment that had passed when the fetch began.
    """
    answer = fetch(client, noun, object_id)
    if answer is None:
        return None
    read = _READERS[noun]
    (judged,) = upsert(
        conn,
        noun,
        [read(answer.data)],
        max(answer.as_of, not_before or answer.as_of),
        "object",
        can_ask=False,
        match_email=match_email,
        is_dry_run=is_dry_run,
    )
    return judged


def upsert(
    conn: Connection[Any],
    noun: Noun,
    rows: Sequence[Mapping[str, Any]],
    as_of: datetime,
    source: Source,
    *,
    can_ask: bool,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> list[Judgement]:
    """Judge views of customers or of subscriptions, and write those worth it."""
    if noun == "subscriptions":
        return mirror.upsert_subscriptions(
            conn,
            rows=rows,
            as_of=as_of,
            source=source,
            can_ask=can_ask,
            is_dry_run=is_dry_run,
        )
    return mirror.upsert_customers(
        conn,
        rows=rows,
        as_of=as_of,
        source=source,
        can_ask=can_ask,
        match_email=match_email,
        is_dry_run=is_dry_run,
    )


def sync(
    conn: Connection[Any],
    judged: Iterable[Judgement | None],
    user_ids: Iterable[UUID] = (),
    *,
    is_dry_run: bool = False,
) -> list[SyncedUser]:
    """Give the users of what was judged, and *user_ids*, what the mirror says."""
    ids = set(user_ids)
    for one in filter(None, judged):
        ids.update(filter(None, (one.user_id, one.released_user_id)))
    if not ids:
        return []
    return mirror.sync_users(conn, user_ids=sorted(ids), is_dry_run=is_dry_run)
