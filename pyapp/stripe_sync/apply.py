"""Apply verified events to the Stripe mirror and to users, each in one transaction.

An event applies under a lock on its customer. Most events contain a snapshot of their
object and apply in one statement. The object is fetched from Stripe's API if the event
only names it (an invoice names its subscription, a checkout its customer), or if the
order of two snapshots is ambiguous. Without a client, the snapshot that arrived last is
kept and marked provisional for the next reconciliation.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
import stripe
from psycopg import Connection

from pyapp._core.run import check_connection
from pyapp.errors import RuleError, StripeRequestError
from pyapp.stripe_sync import events, store
from pyapp.stripe_sync.client import (
    DeadlineClient,
    StripeApi,
    affects_all_objects,
    error_summary,
    is_transient,
    with_retries,
)
from pyapp.stripe_sync.objects import (
    Event,
    find_invoice_subscription,
    has_more_items,
    object_id,
    read_claim,
    read_user_id,
)
from pyapp.stripe_sync.outcomes import Effect, Outcome, make_outcome
from pyapp.stripe_sync.snapshots import (
    Snapshot,
    changed_users,
    fetch_snapshot,
    moved_users,
    read_snapshot,
    refresh_object,
    sync_affected_users,
    upsert_snapshots,
)
from pyapp.stripe_sync.store import ObjectType, Subscription, UpsertResult
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
from pyapp.stripe_sync.usage_cuts import cut_moved_usage

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
_CHECKOUT_TYPES = frozenset(
    {"checkout.session.completed", "checkout.session.async_payment_succeeded"}
)
# Types of events that only name an object.
_REFERENCE_TYPES = _INVOICE_TYPES | _CHECKOUT_TYPES
USED_TYPES = _REFERENCE_TYPES | frozenset(_SNAPSHOT_TYPES)

# Seconds that the first attempt waits for a lock; the next one has a deadline, which
# costs more round trips.
_FIRST_LOCK_WAIT = 0.25
# The database cannot store the payload; a retry cannot succeed.
_NOT_STORABLE = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)


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
        psycopg.OperationalError: the connection is lost; the event may be applied.
    """
    if wait_for_stripe:
        try:
            return with_retries(
                lambda: _process(conn, event, client, NO_DEADLINE), client
            )
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
    try:
        try:
            effect = apply_directly(conn, event, client, _FIRST_LOCK_WAIT)
        except LOCK_ERRORS:
            effect = apply_directly(conn, event, client, deadline=until)
        if effect.result == "ambiguous":
            if is_limited:
                client = with_deadline(client, until)
            effect = apply_with_fetch(conn, event, client, until)
    except Exception as exc:
        check_connection(conn, exc)
        may_retry = isinstance(exc, stripe.StripeError) and is_transient(exc)
        if conn.closed or (may_retry and not is_limited):
            raise
        return record_failure(conn, event, exc, deadline)
    cut_moved_usage(conn, effect.moved_user_ids, until)
    return make_outcome(event, effect)


def with_deadline(client: StripeApi | None, deadline: Deadline) -> StripeApi | None:
    """Return *client* with requests that end at *deadline*."""
    return client and DeadlineClient(client, deadline.left)


def needs_fetch(event: Event) -> bool:
    """Return True if the event only names its object, or contains a part of it."""
    if event.foreign is not None:
        return False
    if event.type in _REFERENCE_TYPES:
        return True
    return event.type in _SNAPSHOT_TYPES and has_more_items(event.object)


def apply_directly(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    lock_wait: float = DELIVERY_TIMEOUT,
    deadline: Deadline | None = None,
) -> Effect:
    """Record and apply the event in one statement, or return "ambiguous".

    An ambiguous event is not recorded: the object has to be fetched. The statement
    waits at most *lock_wait* seconds for each lock. A *deadline* limits its total time
    and costs more round trips.

    Raises:
        psycopg.Error: one of LOCK_ERRORS, if a lock was not free in time.
    """
    if event.foreign is not None:
        return _ignore(conn, event, event.foreign, deadline or NO_DEADLINE, lock_wait)
    if needs_fetch(event):
        return Effect("ambiguous")
    snapshot = find_snapshot(event) if event.type in USED_TYPES else None

    def apply() -> Effect:
        applied = events.apply_event(
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
        )
        return Effect(
            applied.result,
            applied.user_ids or (),
            applied.conflicting_user_id,
            applied.moved_user_ids or (),
        )

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


def _ignore(
    conn: Connection[Any],
    event: Event,
    reason: str,
    deadline: Deadline,
    lock_wait: float,
) -> Effect:
    """Record an event of another account or mode, and why it is ignored."""
    with own_transaction(conn), enforce_deadline(conn, deadline, lock_wait):
        if _insert_event(conn, event) is None:
            return Effect("duplicate")
        events.mark_event(conn, id=event.id, status="ignored", last_error=reason)
        return Effect("ignored")


def _insert_event(conn: Connection[Any], event: Event) -> events.EventAttempt | None:
    return events.insert_event(
        conn,
        id=event.id,
        type=event.type,
        api_version=event.api_version,
        event_created_at=event.created_at,
        payload=event.text,
        lock_key=event.lock_key,
    )


def apply_with_fetch(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    deadline: Deadline,
    lock_wait: float | None = None,
) -> Effect:
    """Record and apply the event in a transaction that fetches its object.

    Raises:
        psycopg.Error: one of LOCK_ERRORS, if a lock was not free in time.
        stripe.StripeError: Stripe refused, or is unavailable.
    """
    with own_transaction(conn), enforce_deadline(conn, deadline, lock_wait):
        if _insert_event(conn, event) is None:
            return Effect("duplicate")
        snapshot = find_snapshot(event)
        if snapshot is not None:
            effect = _apply_ambiguous(conn, client, event, snapshot)
        elif event.type in _INVOICE_TYPES:
            effect = _apply_invoice(conn, client, event)
        else:
            effect = _apply_checkout(conn, client, event)
        if effect.result != "applied":
            events.mark_event(conn, id=event.id, status=effect.result)
        return effect


def record_failure(
    conn: Connection[Any], event: Event, error: Exception, deadline: Deadline
) -> Outcome:
    """Store an event that could not be applied, with the error, and return its outcome.

    The outcome is a duplicate if another delivery applied the event first. It is failed
    without `attempts` if another transaction holds the event's row, or if the database
    refuses the event itself.
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
    except (psycopg.Error, RuleError) as exc:
        if conn.closed:
            raise
        reason = f"{reason}; it is not stored: {error_summary(exc)}"
        return Outcome(event.id, event.type, "failed", reason)
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


def _apply_ambiguous(
    conn: Connection[Any],
    client: StripeApi | None,
    event: Event,
    snapshot: Snapshot,
) -> Effect:
    """Fetch the object; without a client, keep the event's snapshot as provisional."""
    effect = client and _refresh_and_sync(
        conn, client, snapshot.object_type, snapshot.row["id"], event.created_at
    )
    if effect:
        return effect
    is_partial = has_more_items(event.object)
    if is_partial:
        known = store.find_subscription(conn, id=snapshot.row["id"])
        if known is not None and not _is_newer(known, event):
            return _mark_provisional(conn, known, event)
    upserted = upsert_snapshots(conn, snapshot.object_type, [snapshot.row], "event")
    if is_partial:
        store.mark_subscription_provisional(
            conn, id=snapshot.row["id"], as_of=event.created_at
        )
    return _sync(conn, upserted)


def _is_newer(known: Subscription, event: Event) -> bool:
    return known.as_of.replace(microsecond=0) > event.created_at


def _mark_provisional(
    conn: Connection[Any], known: Subscription, event: Event
) -> Effect:
    """Leave a stored subscription to the next reconciliation."""
    if known.is_provisional:
        return Effect("ignored")
    store.mark_subscription_provisional(conn, id=known.id, as_of=event.created_at)
    return Effect("applied")


def _apply_invoice(
    conn: Connection[Any], client: StripeApi | None, event: Event
) -> Effect:
    subscription = find_invoice_subscription(event.object)
    if subscription is None:
        return Effect("ignored")
    known = store.find_subscription(conn, id=subscription)
    if known is not None and _is_newer(known, event):
        return Effect("stale")
    if client is None:
        return _mark_provisional(conn, known, event) if known else Effect("ignored")
    effect = _refresh_and_sync(
        conn, client, "subscriptions", subscription, event.created_at
    )
    return effect or Effect("ignored")


def _apply_checkout(
    conn: Connection[Any], client: StripeApi | None, event: Event
) -> Effect:
    """Fetch what is not stored yet; then store the claims of the checkout."""
    customer = object_id(event.object.get("customer"))
    if customer is None:
        return Effect("ignored")
    fetched = _fetch_bought(conn, client, event, customer) if client else []
    claims: dict[Literal["checkout", "reference"], str | None] = {
        "checkout": read_claim(event.object),
        "reference": read_user_id(event.object.get("client_reference_id")),
    }
    # A page locks the same users at once, in id order.
    claiming = [
        {"customer_id": customer, "claimed_user_id": user_id}
        for user_id in claims.values()
    ]
    store.lock_users(conn, snapshots=[*(one.row for one in fetched), *claiming])
    effects = [
        _sync(conn, upsert_snapshots(conn, one.object_type, [one.row], "object"))
        for one in fetched
    ]
    for source, user_id in claims.items():
        if user_id is not None:
            effects.append(_claim(conn, customer, UUID(user_id), source))
    conflicts = (one.conflicting_user_id for one in effects)
    return Effect(
        "applied" if any(one.result == "applied" for one in effects) else "ignored",
        sorted({user_id for one in effects for user_id in one.user_ids}),
        next(filter(None, conflicts), None),
        sorted({user_id for one in effects for user_id in one.moved_user_ids}),
    )


def _fetch_bought(
    conn: Connection[Any], client: StripeApi, event: Event, customer: str
) -> list[Snapshot]:
    """Fetch the customer and the subscription of a checkout that are not stored."""
    fetched = []
    known = store.find_customer(conn, id=customer)
    if known is None or known.created_at is None:
        fetched.append(fetch_snapshot(client, "customers", customer, event.created_at))
    bought = object_id(event.object.get("subscription"))
    if bought and store.find_subscription(conn, id=bought) is None:
        fetched.append(
            fetch_snapshot(client, "subscriptions", bought, event.created_at)
        )
    return [one for one in fetched if one is not None]


def _claim(
    conn: Connection[Any],
    customer: str,
    user_id: UUID,
    source: Literal["checkout", "reference"],
) -> Effect:
    stored = store.claim_customer(conn, id=customer, user_id=user_id, source=source)
    users = sync_affected_users(conn, [stored]) if stored.is_changed else []
    return Effect(
        "applied" if stored.is_changed else "ignored",
        changed_users(users, [stored.released_user_id]),
        stored.conflicting_user_id,
        moved_users(users),
    )


def _sync(conn: Connection[Any], upserted: Sequence[UpsertResult]) -> Effect:
    users = sync_affected_users(conn, upserted)
    conflicts = (one.conflicting_user_id for one in upserted)
    is_applied = any(one.result == "applied" for one in upserted)
    return Effect(
        "applied" if is_applied else "stale",
        changed_users(users, [one.released_user_id for one in upserted]),
        next(filter(None, conflicts), None),
        moved_users(users),
    )


def _refresh_and_sync(
    conn: Connection[Any],
    client: StripeApi,
    object_type: ObjectType,
    object_id: str,
    not_before: datetime,
) -> Effect | None:
    upserted = refresh_object(conn, client, object_type, object_id, not_before)
    return None if upserted is None else _sync(conn, [upserted])
