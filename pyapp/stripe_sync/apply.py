"""What each type of event does to the mirror and to users.

The lock on the event's customer is held. An event that names an object without showing
it (an invoice its subscription, a checkout its customer) has it fetched; so has one
whose own view cannot be put in order. Without a client the view that came last counts,
and is flagged for the next reconciliation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg import Connection

from pyapp.stripe_sync import mirror
from pyapp.stripe_sync.api import Asking, fetch
from pyapp.stripe_sync.envelope import Event
from pyapp.stripe_sync.mirror import Judgement, Noun, SyncedUser
from pyapp.stripe_sync.shapes import (
    find_invoice_subscription,
    object_id,
    read_customer,
    read_subscription,
    read_user_id,
)

Applied = Literal["applied", "stale", "ignored"]

_READERS: dict[Noun, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "customers": read_customer,
    "subscriptions": read_subscription,
}
# What events of these types show.
_SHOWN: dict[str, Noun] = {
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
class View:
    """How an object was at a moment, ready for `upsert_views`."""

    noun: Noun
    row: Mapping[str, Any]


def find_view(event: Event) -> View | None:
    """Return the view of a customer or subscription that the event gives, if any."""
    noun = _SHOWN.get(event.type)
    if noun is None:
        return None
    row = read(noun, event.object, event.created_at)
    if event.type == "customer.deleted":
        row["is_deleted"] = True
    return View(noun, row)


def read(noun: Noun, shape: Mapping[str, Any], as_of: datetime) -> dict[str, Any]:
    """Return what Stripe shows of an object, true as of then, for `upsert_views`."""
    return _READERS[noun](shape) | {"as_of": as_of.isoformat()}


def settle(
    conn: Connection[Any],
    client: Asking | None,
    event: Event,
    view: View,
) -> Applied:
    """Ask Stripe about what the event's view left unclear."""
    judged = client and _follow(
        conn, client, view.noun, view.row["id"], event.created_at
    )
    if not judged:
        judged = _put(conn, view, "event")
        sync_owners(conn, [judged])
    return "applied" if judged.verdict == "applied" else "stale"


def apply(conn: Connection[Any], client: Asking | None, event: Event) -> Applied:
    """Apply an event that gives no view itself, and return what it was worth."""
    if event.type in _INVOICE_TYPES:
        return _apply_invoice(conn, client, event)
    return _apply_checkout(conn, client, event)


def _apply_invoice(
    conn: Connection[Any], client: Asking | None, event: Event
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
    conn: Connection[Any], client: Asking | None, event: Event
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
    client: Asking,
    noun: Noun,
    object_id: str,
    not_before: datetime | None = None,
    *,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> Judgement | None:
    """Fetch an object under its customer's lock and keep it; None if there is none.

    *not_before* is a moment that had passed when the fetch began. The object's users
    need `sync_owners`.
    """
    answer = fetch(client, noun, object_id)
    if answer is None:
        return None
    as_of = max(answer.as_of, not_before or answer.as_of)
    view = View(noun, read(noun, answer.data, as_of))
    return _put(conn, view, "object", match_email=match_email, is_dry_run=is_dry_run)


def sync_owners(
    conn: Connection[Any], judged: Sequence[Judgement], *, is_dry_run: bool = False
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
    client: Asking,
    noun: Noun,
    object_id: str,
    not_before: datetime,
) -> Judgement | None:
    """Refresh an object that an event names, and its users."""
    judged = refresh(conn, client, noun, object_id, not_before)
    if judged is not None:
        sync_owners(conn, [judged])
    return judged


def _put(
    conn: Connection[Any],
    view: View,
    source: Literal["event", "object"],
    *,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> Judgement:
    """Keep the view if it counts, without asking anybody."""
    (judged,) = mirror.upsert_views(
        conn,
        noun=view.noun,
        views=[view.row],
        source=source,
        can_ask=False,
        match_email=match_email,
        is_dry_run=is_dry_run,
    )
    return judged
