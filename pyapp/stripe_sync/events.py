"""The inbox: each verified event once, and what became of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from psycopg import Connection

from pyapp._core.run import execute, fetch_all, fetch_one, fetch_optional
from pyapp._core.validation import check_cursor
from pyapp.stripe_sync.mirror import ObjectType, to_json


class Taken(NamedTuple):
    """What became of an event; if ambiguous, nothing was recorded."""

    result: Literal["applied", "stale", "ignored", "duplicate", "ambiguous"]


class Limits(NamedTuple):
    """The settings of the transaction, as the server writes them."""

    statement_timeout: str
    lock_timeout: str


class EventAttempt(NamedTuple):
    """An event and how often applying it was tried, this time included."""

    id: str
    attempts: int


class EventPayload(NamedTuple):
    """The event as JSON text; None once its retention has ended."""

    payload: str | None


class EventId(NamedTuple):
    """The id of an event."""

    id: str


class StoredEvent(NamedTuple):
    """An event of the inbox without its payload; times are aware.

    `status` is received, applied, stale, ignored or failed.
    """

    id: str
    type: str
    api_version: str | None
    event_created_at: datetime
    status: str
    attempts: int
    last_error: str | None
    received_at: datetime
    processed_at: datetime | None


def apply_event(
    conn: Connection[Any],
    *,
    id: str,
    type: str,
    api_version: str | None,
    event_created_at: datetime,
    payload: str,
    lock_key: str,
    object_type: ObjectType | None,
    snapshot: Mapping[str, Any] | None,
    can_fetch: bool,
    lock_milliseconds: int,
) -> Taken:
    """Enter the event with the snapshot that it gives, or none, and return what it was.

    No other session changes the rows of *lock_key* until the transaction ends. It waits
    for each lock for *lock_milliseconds* at most, without end for 0.
    """
    return fetch_one(
        conn,
        Taken,
        "apply_event",
        id=id,
        type=type,
        api_version=api_version,
        event_created_at=event_created_at,
        payload=payload,
        lock_key=lock_key,
        object_type=object_type,
        snapshot=None if snapshot is None else to_json(snapshot),
        can_fetch=can_fetch,
        lock_milliseconds=lock_milliseconds,
    )


def limit_statements(
    conn: Connection[Any],
    *,
    statement_milliseconds: int | None,
    lock_milliseconds: int | None,
) -> Limits:
    """Limit each statement until the transaction ends; return the limits.

    0 is no limit, None leaves the limit as it is.
    """
    return fetch_one(
        conn,
        Limits,
        "limit_statements",
        statement_milliseconds=statement_milliseconds,
        lock_milliseconds=lock_milliseconds,
    )


def insert_event(
    conn: Connection[Any],
    *,
    id: str,
    type: str,
    api_version: str | None,
    event_created_at: datetime,
    payload: str,
    lock_key: str,
) -> EventAttempt | None:
    """Lock *lock_key* until the transaction ends, and enter the event as applied.

    Return None for one that is done already; one that has failed is entered again.
    """
    return fetch_optional(
        conn,
        EventAttempt,
        "insert_event",
        id=id,
        type=type,
        api_version=api_version,
        event_created_at=event_created_at,
        payload=payload,
        lock_key=lock_key,
    )


def mark_event(conn: Connection[Any], *, id: str, status: str) -> int:
    """Change what became of an event that is done; return how many there were."""
    return execute(conn, "mark_event", id=id, status=status)


def upsert_failed_event(
    conn: Connection[Any],
    *,
    id: str,
    type: str,
    api_version: str | None,
    event_created_at: datetime,
    payload: str,
    last_error: str,
) -> EventAttempt | None:
    """Keep an event that could not be applied; return None if it is done meanwhile."""
    return fetch_optional(
        conn,
        EventAttempt,
        "upsert_failed_event",
        id=id,
        type=type,
        api_version=api_version,
        event_created_at=event_created_at,
        payload=payload,
        last_error=last_error,
    )


def list_events(
    conn: Connection[Any],
    *,
    before: datetime | None = None,
    before_id: str | None = None,
    limit: int = 100,
) -> list[StoredEvent]:
    """Return *limit* events, the newest arrival first.

    Start again with *before* and *before_id*, the last one's `received_at` and `id`, to
    get the next page.
    """
    check_cursor("before", before, before_id)
    return fetch_all(
        conn,
        StoredEvent,
        "list_events",
        before=before,
        before_id=before_id,
        limit=limit,
    )


def list_failed_events(
    conn: Connection[Any],
    *,
    after: datetime | None = None,
    after_id: str | None = None,
    limit: int = 100,
) -> list[StoredEvent]:
    """Return *limit* events that have failed, the oldest first.

    Start again with *after* and *after_id*, the last one's `event_created_at` and `id`,
    to get the next page.
    """
    check_cursor("after", after, after_id)
    return fetch_all(
        conn,
        StoredEvent,
        "list_failed_events",
        after=after,
        after_id=after_id,
        limit=limit,
    )


def find_event_payload(conn: Connection[Any], *, id: str) -> EventPayload | None:
    """Return the event as it was delivered, or None for an unknown one."""
    return fetch_optional(conn, EventPayload, "find_event_payload", id=id)


def list_done_events(conn: Connection[Any], *, ids: Sequence[str]) -> list[EventId]:
    """Return those of *ids* that were applied, stale or ignored, by id."""
    return fetch_all(conn, EventId, "list_done_events", ids=list(ids))


def delete_event_payloads(
    conn: Connection[Any], *, before: datetime, limit: int = 1000
) -> int:
    """Empty at most *limit* events done before *before*; return how many.

    The events stay, so that each takes effect once for ever; one that has failed keeps
    its payload. Repeat until it returns less than *limit*.
    """
    return execute(conn, "delete_event_payloads", before=before, limit=limit)
