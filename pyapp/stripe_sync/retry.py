"""Events that have failed, tried again: each in a transaction of its own."""

from collections.abc import Iterator
from typing import Any

import stripe
from psycopg import Connection

from pyapp.stripe_sync import events
from pyapp.stripe_sync.envelope import read_event
from pyapp.stripe_sync.inbox import Outcome, own_transaction, take_in


def retry_failed_events(
    conn: Connection[Any],
    client: stripe.StripeClient | None = None,
    page: int = 100,
) -> Iterator[Outcome]:
    """Yield what becomes of each failed event, the oldest first, each tried once.

    Raises:
        OpenTransactionError: the connection is in a transaction.
        StripeRequestError: Stripe is out of reach for minutes.
        psycopg.OperationalError: the connection is lost.
    """
    after, after_id = None, None
    while True:
        with own_transaction(conn):
            failed = events.list_failed_events(
                conn, after=after, after_id=after_id, limit=page
            )
        if not failed:
            return
        after, after_id = failed[-1].event_created_at, failed[-1].id
        yield from _retry(conn, client, failed)


def _retry(
    conn: Connection[Any],
    client: stripe.StripeClient | None,
    failed: list[events.StoredEvent],
) -> Iterator[Outcome]:
    for event in failed:
        with own_transaction(conn):
            kept = events.find_event_payload(conn, id=event.id)
        if kept is not None and kept.payload is not None:
            yield take_in(conn, read_event(kept.payload), client, is_patient=True)
