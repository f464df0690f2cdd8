"""Apply verified events to the Stripe mirror and to users, each in one transaction.

An event applies under a lock on its customer. Most events contain a snapshot of their
object and apply in one statement. The object is fetched from Stripe's API if the event
only names it (an invoice names its subscription, a checkout its customer), or if the
order of two snapshots is ambiguous. Without a client, the snapshot that arrived last is
kept and marked provisional for the next reconciliation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
import stripe
from psycopg import Connection

from pyapp.errors import StripeRequestError
from pyapp.stripe_sync import events, store
from pyapp.stripe_sync.client import (
    DeadlineClient,
    StripeApi,
    affects_all_objects,
    error_summary,
    fetch,
    is_transient,
    with_retries,
)
from pyapp.stripe_sync.objects import (
    Event,
    find_invoice_subscription,
    object_id,
    read_customer,
    read_subscription,
    read_user_id,
)
from pyapp.stripe_sync.store import ObjectType, Source, SyncedUser, UpsertResult
from pyapp.stripe_sync.transactions import (
    DELIVERY_TIMEOUT,
    FAILURE_RESERVE,
    LOCK_ERRORS,
    NO_DEADLINE,
    Deadline,
    check_idle,
    enforce_deadline,
    milliseconds,
    own_transaction,
)

Success = Literal["applied", "duplicate", "stale", "ignored"]
Result = Success | Literal["failed"]
_Applied = Literal["applied", "stale", "ignored"]

_READERS: dict[ObjectType, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "customers": read_customer,
    "subscriptions": read_subscription,
}
# Types of events that contain a snapshot.
_SNAPSHOT_TYPES: dict[str, ObjectType] = {
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
# Types of events that only name an object.
_REFERENCE_TYPES = _INVOICE_TYPES | _CHECKOUT_TYPES
USED_TYPES = _REFERENCE_TYPES | frozenset(_SNAPSHOT_TYPES)

# Seconds that the first attempt waits for a lock; the next one has a deadline, which
# costs more round trips.
_FIRST_LOCK_WAIT = 0.25
# The database cannot store the payload; a retry cannot succeed.
_NOT_STORABLE = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of processing an event.

    applied    the event changed the mirror or a user
    duplicate  the event was processed before; nothing changed
    stale      a newer snapshot is stored; nothing changed
    ignored    the event is stored and has no effect
    failed     nothing changed; the event is stored with `error`; deliver it again

    `is_busy` is True if it failed because of a lock or a timeout and may succeed if it
    is repeated. `attempts` counts the failures of a stored event; it is None if the
    event could not be stored.
    """

    event_id: str
    type: str
    result: Result
    error: str | None = None
    is_busy: bool = False
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A row for `upsert_snapshots`: one object as it was at `row["as_of"]`."""

    object_type: ObjectType
    row: Mapping[str, Any]


def process_event(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    *,
    wait_for_stripe: bool = False,
) -> Outcome:
    """Apply *event* in its own transaction; if that fails, record it as failed.

    It takes at most DELIVERY_TIMEOUT. With *wait_for_stripe*, only each statement does,
    and transient errors of Stripe's API are retried, without holding a lock.

    Raises:
        OpenTransactionError: the connection is in a transaction.
        StripeRequestError: Stripe was unavailable for minutes.
        psycopg.OperationalError: the connection is lost; nothing changed.
    """
    if wait_for_stripe:
        try:
            return with_retries(lambda: _process(conn, event, client, NO_DEADLINE))
        except StripeRequestError as exc:
            if client is None or affects_all_objects(exc, client):
                raise
            return record_failure(conn, event, exc, NO_DEADLINE)
    return _process(conn, event, client, Deadline.after(DELIVERY_TIMEOUT))


def _process(
    conn: Connection[Any], event: Event, client: StripeApi | None, deadline: Deadline
) -> Outcome:
    check_idle(conn)
    is_limited = deadline is not NO_DEADLINE
    until = deadline.before(FAILURE_RESERVE) if is_limited else deadline
    result: Success | Literal["ambiguous"]
    try:
        try:
            result = apply_directly(conn, event, client, _FIRST_LOCK_WAIT)
        except LOCK_ERRORS:
            result = apply_directly(conn, event, client, deadline=until)
        if result == "ambiguous":
            if is_limited:
                client = with_deadline(client, until)
            result = apply_with_fetch(conn, event, client, until)
    except Exception as exc:
        may_retry = isinstance(exc, stripe.StripeError) and is_transient(exc)
        if conn.closed or (may_retry and not is_limited):
            raise
        return record_failure(conn, event, exc, deadline)
    return Outcome(event.id, event.type, result)


def with_deadline(client: StripeApi | None, deadline: Deadline) -> StripeApi | None:
    """Return *client* with requests that end at *deadline*."""
    return client and DeadlineClient(client, deadline.left)


def needs_fetch(event: Event) -> bool:
    """Return True if the event only names its object, which has to be fetched."""
    return event.type in _REFERENCE_TYPES and event.is_ours


def apply_directly(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    lock_wait: float = DELIVERY_TIMEOUT,
    deadline: Deadline | None = None,
) -> Success | Literal["ambiguous"]:
    """Record and apply the event in one statement, or return "ambiguous".

    An ambiguous event is not recorded: the object has to be fetched. The statement
    waits at most *lock_wait* seconds for each lock. A *deadline* limits its total time
    and costs more round trips.

    Raises:
        psycopg.Error: one of LOCK_ERRORS, if a lock was not free in time.
    """
    if needs_fetch(event):
        return "ambiguous"
    is_used = event.type in USED_TYPES and event.is_ours
    snapshot = find_snapshot(event) if is_used else None

    def apply() -> Success | Literal["ambiguous"]:
        return events.apply_event(
            conn,
            id=event.id,
            type=event.type,
            api_version=event.api_version,
            event_created_at=event.created_at,
            payload=event.text,
            lock_key=event.lock_key,
            object_type=snapshot.object_type if snapshot else None,
            snapshot=snapshot.row if snapshot else None,
            can_fetch=client is not None,
            lock_milliseconds=milliseconds(lock_wait),
        ).result

    if deadline is not None:
        with own_transaction(conn), enforce_deadline(conn, deadline):
            return apply()
    # One statement is a transaction; BEGIN and COMMIT would add a third to its time.
    was_autocommit = conn.autocommit
    if not was_autocommit:
        conn.autocommit = True
    try:
        return apply()
    except psycopg.errors.ObjectNotInPrerequisiteState:
        # The database has another default isolation level.
        pass
    finally:
        if not was_autocommit and not conn.closed:
            conn.autocommit = False
    with own_transaction(conn):
        return apply()


def apply_with_fetch(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    deadline: Deadline,
    lock_wait: float | None = None,
) -> Success:
    """Record and apply the event in a transaction that fetches its object.

    Raises:
        psycopg.Error: one of LOCK_ERRORS, if a lock was not free in time.
        stripe.StripeError: Stripe refused, or is unavailable.
    """
    with own_transaction(conn), enforce_deadline(conn, deadline, lock_wait):
        attempt = events.insert_event(
            conn,
            id=event.id,
            type=event.type,
            api_version=event.api_version,
            event_created_at=event.created_at,
            payload=event.text,
            lock_key=event.lock_key,
        )
        if attempt is None:
            return "duplicate"
        snapshot = find_snapshot(event)
        if snapshot is not None:
            result = _apply_ambiguous(conn, client, event, snapshot)
        elif event.type in _INVOICE_TYPES:
            result = _apply_invoice(conn, client, event)
        else:
            result = _apply_checkout(conn, client, event)
        if result != "applied":
            events.mark_event(conn, id=event.id, status=result)
        return result


def record_failure(
    conn: Connection[Any], event: Event, error: Exception, deadline: Deadline
) -> Outcome:
    """Store an event that could not be applied, with the error, and return its outcome.

    The outcome is a duplicate if another delivery applied the event first. It is failed
    without `attempts` if another transaction holds the event's row.
    """

    def upsert(payload: str) -> events.EventAttempt | None:
        with own_transaction(conn), enforce_deadline(conn, deadline):
            return events.upsert_failed_event(
                conn,
                id=event.id,
                type=event.type,
                api_version=event.api_version,
                event_created_at=event.created_at,
                payload=payload,
                last_error=reason,
            )

    reason = error_summary(error)
    try:
        try:
            stored = upsert(event.text)
        except _NOT_STORABLE:
            stored = upsert(event.outline)
    except LOCK_ERRORS:
        if conn.closed:
            raise
        return Outcome(event.id, event.type, "failed", reason, is_busy=True)
    if stored is None:
        return Outcome(event.id, event.type, "duplicate")
    is_busy = isinstance(error, LOCK_ERRORS)
    return Outcome(event.id, event.type, "failed", reason, is_busy, stored.attempts)


def find_snapshot(event: Event) -> Snapshot | None:
    """Return the event's snapshot of a customer or subscription, if it has one."""
    object_type = _SNAPSHOT_TYPES.get(event.type)
    if object_type is None:
        return None
    row = read_snapshot(object_type, event.object, event.created_at)
    if event.type == "customer.deleted":
        row["is_deleted"] = True
    return Snapshot(object_type, row)


def read_snapshot(
    object_type: ObjectType, stripe_object: Mapping[str, Any], as_of: datetime
) -> dict[str, Any]:
    """Return an object's JSON as a snapshot row for `upsert_snapshots`."""
    return _READERS[object_type](stripe_object) | {"as_of": as_of.isoformat()}


def _apply_ambiguous(
    conn: Connection[Any],
    client: StripeApi | None,
    event: Event,
    snapshot: Snapshot,
) -> _Applied:
    """Fetch the object; without a client, keep the event's snapshot as provisional."""
    upserted = client and _refresh_and_sync(
        conn, client, snapshot.object_type, snapshot.row["id"], event.created_at
    )
    if not upserted:
        (upserted,) = upsert_snapshots(
            conn, snapshot.object_type, [snapshot.row], "event"
        )
        sync_affected_users(conn, [upserted])
    return "applied" if upserted.result == "applied" else "stale"


def _apply_invoice(
    conn: Connection[Any], client: StripeApi | None, event: Event
) -> _Applied:
    subscription = find_invoice_subscription(event.object)
    if subscription is None:
        return "ignored"
    known = store.find_subscription(conn, id=subscription)
    if known is not None and known.as_of.replace(microsecond=0) > event.created_at:
        return "stale"
    if client is None:
        marked = store.mark_subscription_provisional(
            conn, id=subscription, as_of=event.created_at
        )
        return "applied" if marked else "ignored"
    found = _refresh_and_sync(
        conn, client, "subscriptions", subscription, event.created_at
    )
    return "applied" if found else "ignored"


def _apply_checkout(
    conn: Connection[Any], client: StripeApi | None, event: Event
) -> _Applied:
    customer = object_id(event.object.get("customer"))
    if customer is None:
        return "ignored"
    found = None
    if client is not None:
        as_of = event.created_at
        known = store.find_customer(conn, id=customer)
        if known is None or known.created_at is None:
            found = _refresh_and_sync(conn, client, "customers", customer, as_of)
        bought = object_id(event.object.get("subscription"))
        if bought and store.find_subscription(conn, id=bought) is None:
            _refresh_and_sync(conn, client, "subscriptions", bought, as_of)
    user_id = read_user_id(event.object.get("client_reference_id"))
    if user_id is None:
        return "applied" if found else "ignored"
    linked = store.link_customer(
        conn, id=customer, user_id=UUID(user_id), as_of=event.created_at
    )
    if linked is not None:
        store.sync_users(conn, user_ids=[linked.user_id])
    return "applied"


def refresh_object(
    conn: Connection[Any],
    client: StripeApi,
    object_type: ObjectType,
    object_id: str,
    not_before: datetime | None = None,
    *,
    match_email: bool = False,
    is_dry_run: bool = False,
) -> UpsertResult | None:
    """Fetch an object and upsert its snapshot; return None if Stripe has none.

    The caller holds the lock on the object's customer, and calls `sync_affected_users`
    afterwards. *not_before* is a time that had passed when the fetch began.

    Raises:
        stripe.StripeError: Stripe refused, or is unavailable.
    """
    response = fetch(client, object_type, object_id)
    if response is None:
        return None
    as_of = max(response.as_of, not_before or response.as_of)
    (upserted,) = upsert_snapshots(
        conn,
        object_type,
        [read_snapshot(object_type, response.data, as_of)],
        "object",
        match_email=match_email,
        is_dry_run=is_dry_run,
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
    is_dry_run: bool = False,
) -> list[UpsertResult]:
    """Upsert snapshots of one type: `upsert_customers` or `upsert_subscriptions`."""
    if object_type == "customers":
        return store.upsert_customers(
            conn,
            snapshots=snapshots,
            source=source,
            can_fetch=can_fetch,
            match_email=match_email,
            is_dry_run=is_dry_run,
        )
    return store.upsert_subscriptions(
        conn,
        snapshots=snapshots,
        source=source,
        can_fetch=can_fetch,
        is_dry_run=is_dry_run,
    )


def sync_affected_users(
    conn: Connection[Any],
    upserted: Sequence[UpsertResult],
    *,
    is_dry_run: bool = False,
) -> list[SyncedUser]:
    """Sync the users that own, or owned until now, these objects; ordered by id."""
    ids = {one.user_id for one in upserted} | {one.released_user_id for one in upserted}
    return store.sync_users(
        conn,
        user_ids=[user_id for user_id in ids if user_id is not None],
        is_dry_run=is_dry_run,
    )


def _refresh_and_sync(
    conn: Connection[Any],
    client: StripeApi,
    object_type: ObjectType,
    object_id: str,
    not_before: datetime,
) -> UpsertResult | None:
    upserted = refresh_object(conn, client, object_type, object_id, not_before)
    if upserted is not None:
        sync_affected_users(conn, [upserted])
    return upserted
