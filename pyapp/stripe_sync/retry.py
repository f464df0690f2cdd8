"""Events that have failed, tried again: each in a transaction of its own."""

from collections.abc import Iterator
from typing import Any

import stripe
from psycopg import Connection

from pyapp.errors import InvalidPayloadError
from pyapp.stripe_sync import events
from pyapp.stripe_sync.envelope import read_event
from pyapp.stripe_sync.inbox import Outcome, keep_unread, own_transaction, take_in


def retry_failed_events(
    conn: Connection[Any],
    client: stripe.StripeClient | None = None,
    page: int = 100,
    *,
    livemode: bool | None = None,
) -> Iterator[Outcome]:
    """Yield what becomes of each failed event, the oldest first, each tried once.

    One that cannot be read or applied has failed again, by its error; the others are
    tried all the same. *livemode* is as in handle_webhook.

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
        for event in failed:
            yield _retry(conn, client, event, livemode)


def _retry(
    conn: Connection[Any],
    client: stripe.StripeClient | None,
    failed: events.StoredEvent,
    livemode: bool | None,
) -> Outcome:
    with own_transaction(conn):
        kept = events.find_event_payload(conn, id=failed.id)
    if kept is None:
        return Outcome(failed.id, failed.type, "failed", "it was deleted")
    if kept.payload is None:
        # Applied by another delivery, and its payload's retention has ended.
        return Outcome(failed.id, failed.type, "duplicate")
    try:
        event = read_event(kept.payload, livemode)
    except InvalidPayloadError as exc:
        return keep_unread(conn, failed, kept.payload, exc)
    return take_in(conn, event, client, is_patient=True)
