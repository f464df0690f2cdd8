"""An event, once verified: taken in, applied and marked, in one transaction."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
import stripe
from psycopg import Connection
from psycopg.pq import TransactionStatus

from pyapp.errors import OpenTransactionError
from pyapp.stripe_sync import events
from pyapp.stripe_sync.api import describe, is_passing, patiently
from pyapp.stripe_sync.apply import USED_TYPES, View, apply, find_view, settle
from pyapp.stripe_sync.envelope import Event

Taken = Literal["applied", "duplicate", "stale", "ignored"]
Result = Taken | Literal["failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an event.

    applied    it is taken into account, now
    duplicate  it had been before, and nothing is changed
    stale      something newer is known, and nothing is changed
    ignored    it is kept, and says nothing that is used here
    failed     nothing is changed; it is kept with `error`, and should be sent again
    """

    event_id: str
    type: str
    result: Result
    error: str | None = None


def take_in(
    conn: Connection[Any],
    event: Event,
    client: stripe.StripeClient | None,
    *,
    is_patient: bool = False,
) -> Outcome:
    """Apply *event* in a transaction of its own and return what became of it.

    Whoever *is_patient* waits while Stripe is busy, without a lock; otherwise the event
    has failed.

    Raises:
        OpenTransactionError: the connection is in a transaction.
        StripeRequestError: somebody patient has waited for minutes.
        psycopg.OperationalError: the connection is lost; nothing is changed.
    """
    if is_patient:
        return patiently(lambda: _take_in(conn, event, client, keeps_busy=False))
    return _take_in(conn, event, client, keeps_busy=True)


def _take_in(
    conn: Connection[Any],
    event: Event,
    client: stripe.StripeClient | None,
    *,
    keeps_busy: bool,
) -> Outcome:
    _check_idle(conn)
    try:
        result = _take(conn, event, client)
    except Exception as exc:
        is_busy = isinstance(exc, stripe.StripeError) and is_passing(exc)
        if conn.closed or (is_busy and not keeps_busy):
            raise
        return _keep_failed(conn, event, describe(exc))
    return Outcome(event.id, event.type, result)


def _take(
    conn: Connection[Any], event: Event, client: stripe.StripeClient | None
) -> Taken:
    is_used = event.type in USED_TYPES and event.is_ours
    view = find_view(event) if is_used else None
    if view is not None or not is_used:
        taken = _take_at_once(conn, event, view, can_ask=client is not None)
        if taken != "unclear":
            return taken
    with own_transaction(conn):
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
        if view is None:
            result = apply(conn, client, event)
        else:
            result = settle(conn, client, event, view)
        if result != "applied":
            events.mark_event(conn, id=event.id, status=result)
        return result


def _take_at_once(
    conn: Connection[Any], event: Event, view: View | None, *, can_ask: bool
) -> Taken | Literal["unclear"]:
    def take() -> Taken | Literal["unclear"]:
        return events.take_event(
            conn,
            id=event.id,
            type=event.type,
            api_version=event.api_version,
            event_created_at=event.created_at,
            payload=event.text,
            lock_key=event.lock_key,
            noun=view.noun if view else None,
            view=view.row if view else None,
            can_ask=can_ask,
        ).result

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


def _keep_failed(conn: Connection[Any], event: Event, error: str) -> Outcome:
    with own_transaction(conn):
        kept = events.upsert_failed_event(
            conn,
            id=event.id,
            type=event.type,
            api_version=event.api_version,
            event_created_at=event.created_at,
            payload=event.text,
            last_error=error,
        )
    if kept is None:
        # Another delivery was quicker.
        return Outcome(event.id, event.type, "duplicate")
    return Outcome(event.id, event.type, "failed", error)


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
