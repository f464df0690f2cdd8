"""An event, once verified: taken in, applied and marked, in one transaction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import psycopg
import stripe
from psycopg import Connection
from psycopg.pq import TransactionStatus

from pyapp.errors import InvalidPayloadError, OpenTransactionError, StripeRequestError
from pyapp.stripe_sync import events
from pyapp.stripe_sync.apply import (
    SHOWN_TYPES,
    USED_TYPES,
    apply,
    find_snapshot,
    settle,
)
from pyapp.stripe_sync.client import (
    HastyClient,
    StripeApi,
    describe,
    is_of_all,
    is_transient,
    with_retries,
)
from pyapp.stripe_sync.deadline import (
    BUSY,
    NEVER,
    PATIENCE,
    RESERVE,
    Deadline,
    limited,
    milliseconds,
)
from pyapp.stripe_sync.envelope import Event

Taken = Literal["applied", "duplicate", "stale", "ignored"]
Result = Taken | Literal["failed"]

# Seconds for which a lock is waited for before that takes a transaction with limits.
_FIRST_WAIT = 0.25
# The payload is at fault, not the database.
_NOT_STORABLE = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an event.

    applied    it is taken into account, now
    duplicate  it had been before, and nothing is changed
    stale      something newer is known, and nothing is changed
    ignored    it is kept, and says nothing that is used here
    failed     nothing is changed; it is kept with `error`, and should be sent again

    `is_busy` says that it failed because of a lock, or because the time ran out, and
    may succeed later as it is. `attempts` is how often a kept event has failed; None if
    the event is not kept.
    """

    event_id: str
    type: str
    result: Result
    error: str | None = None
    is_busy: bool = False
    attempts: int | None = None


def take_in(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    *,
    is_patient: bool = False,
) -> Outcome:
    """Apply *event* in a transaction of its own and return what became of it.

    That takes PATIENCE seconds at most, after which the event has failed. With
    *is_patient*, only each statement does, and a busy Stripe is waited for, without a
    lock.

    Raises:
        OpenTransactionError: the connection is in a transaction.
        StripeRequestError: Stripe has been out of reach for minutes.
        psycopg.OperationalError: the connection is lost; nothing is changed.
    """
    if is_patient:
        try:
            return with_retries(lambda: _take_in(conn, event, client, NEVER))
        except StripeRequestError as exc:
            if client is None or is_of_all(exc, client):
                raise
            # Stripe cannot answer about this one; it does about others.
            return keep_failed(conn, event, exc, NEVER)
    return _take_in(conn, event, client, Deadline.after(PATIENCE))


def _take_in(
    conn: Connection[Any], event: Event, client: StripeApi | None, deadline: Deadline
) -> Outcome:
    _check_idle(conn)
    is_patient = deadline is NEVER
    work = deadline if is_patient else deadline.before(RESERVE)
    try:
        try:
            taken = take_at_once(conn, event, client, _FIRST_WAIT)
        except BUSY:
            taken = take_at_once(conn, event, client, deadline=work)
        if taken == "ambiguous":
            hasty = client if is_patient else hurried(client, work)
            taken = take_by_asking(conn, event, hasty, work)
    except Exception as exc:
        is_busy = isinstance(exc, stripe.StripeError) and is_transient(exc)
        if conn.closed or (is_busy and is_patient):
            raise
        return keep_failed(conn, event, exc, deadline)
    return Outcome(event.id, event.type, taken)


def hurried(client: StripeApi | None, deadline: Deadline) -> StripeApi | None:
    """Return *client* so that it gives up at *deadline*."""
    return client and HastyClient(client, deadline.left)


def needs_asking(event: Event) -> bool:
    """Say whether Stripe has to be asked about an event: it shows no object itself."""
    return event.type in USED_TYPES - SHOWN_TYPES and event.is_ours


def take_at_once(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    lock_wait: float = PATIENCE,
    deadline: Deadline | None = None,
) -> Taken | Literal["ambiguous"]:
    """Apply the event in one statement; an ambiguous one is left as it was.

    It waits *lock_wait* seconds at most for each lock. A *deadline* for all of it costs
    more round trips.

    Raises:
        psycopg.Error: one of BUSY, if a lock was not free in time.
    """
    if needs_asking(event):
        return "ambiguous"
    is_used = event.type in USED_TYPES and event.is_ours
    snapshot = find_snapshot(event) if is_used else None

    def take() -> Taken | Literal["ambiguous"]:
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
        with own_transaction(conn), limited(conn, deadline):
            return take()
    # One statement is a transaction; without the frame of one it takes a third less.
    was_autocommit = conn.autocommit
    if not was_autocommit:
        conn.autocommit = True
    try:
        return take()
    except psycopg.errors.ObjectNotInPrerequisiteState:
        # The database has another isolation level by default.
        pass
    finally:
        if not was_autocommit and not conn.closed:
            conn.autocommit = False
    with own_transaction(conn):
        return take()


def take_by_asking(
    conn: Connection[Any],
    event: Event,
    client: StripeApi | None,
    deadline: Deadline,
    lock_wait: float | None = None,
) -> Taken:
    """Apply the event in a transaction in which Stripe is asked about it.

    Raises:
        psycopg.Error: one of BUSY, if a lock was not free in time.
    """
    with own_transaction(conn), limited(conn, deadline, lock_wait):
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
        if snapshot is None:
            result = apply(conn, client, event)
        else:
            result = settle(conn, client, event, snapshot)
        if result != "applied":
            events.mark_event(conn, id=event.id, status=result)
        return result


def keep_failed(
    conn: Connection[Any], event: Event, error: Exception, deadline: Deadline
) -> Outcome:
    """Keep an event that could not be applied, and why; return what became of it.

    Another transaction may hold the event itself: it has failed, and is not kept.
    """

    def upsert(payload: str) -> events.EventAttempt | None:
        return _upsert(conn, event, event.created_at, payload, error, deadline)

    def upsert_any() -> events.EventAttempt | None:
        try:
            return upsert(event.text)
        except _NOT_STORABLE:
            return upsert(event.outline)

    return _kept(conn, event, error, upsert_any)


def keep_unread(
    conn: Connection[Any],
    failed: events.StoredEvent,
    payload: str,
    error: InvalidPayloadError,
) -> Outcome:
    """Count one more attempt of an event whose payload cannot be read."""

    def upsert() -> events.EventAttempt | None:
        return _upsert(conn, failed, failed.event_created_at, payload, error, NEVER)

    return _kept(conn, failed, error, upsert)


def _upsert(
    conn: Connection[Any],
    event: Event | events.StoredEvent,
    created_at: datetime,
    payload: str,
    error: Exception,
    deadline: Deadline,
) -> events.EventAttempt | None:
    with own_transaction(conn), limited(conn, deadline):
        return events.upsert_failed_event(
            conn,
            id=event.id,
            type=event.type,
            api_version=event.api_version,
            event_created_at=created_at,
            payload=payload,
            last_error=describe(error),
        )


def _kept(
    conn: Connection[Any],
    event: Event | events.StoredEvent,
    error: Exception,
    keep: Callable[[], events.EventAttempt | None],
) -> Outcome:
    is_busy = isinstance(error, BUSY)
    reason = describe(error)
    try:
        kept = keep()
    except BUSY:
        if conn.closed:
            raise
        return Outcome(event.id, event.type, "failed", reason, is_busy=True)
    if kept is None:
        # Another delivery was quicker.
        return Outcome(event.id, event.type, "duplicate")
    return Outcome(event.id, event.type, "failed", reason, is_busy, kept.attempts)


@contextmanager
def own_transaction(conn: Connection[Any]) -> Iterator[None]:
    """Open a transaction in which each statement sees what was committed before it.

    Raises:
        OpenTransactionError: there is one already, which somebody else may roll back.
    """
    _check_idle(conn)
    level = conn.isolation_level
    if level != psycopg.IsolationLevel.READ_COMMITTED:
        conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
    try:
        with conn.transaction():
            yield
    finally:
        if level != psycopg.IsolationLevel.READ_COMMITTED and not conn.closed:
            conn.isolation_level = level


def _check_idle(conn: Connection[Any]) -> None:
    if conn.info.transaction_status != TransactionStatus.IDLE:
        raise OpenTransactionError(
            "the connection is in a transaction; commit it, or give another connection"
        )
