"""The queries of stored Stripe events.

Each function executes the query of its name in the caller's transaction; none commits.
Each raises psycopg.Error as it is, such as LockNotAvailable, or a RuleError if the row
violates a constraint. Times are aware.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import execute, fetch_all, fetch_one, fetch_optional
from pyapp._core.sanitize import json_text, storable_text
from pyapp._core.validation import check_cursor, validated
from pyapp.stripe_sync.store import ObjectType


class EventResult(NamedTuple):
    """The result of applying an event; if ambiguous, nothing was recorded.

    `user_ids` are the users that changed, `moved_user_ids` those whose period moved;
    None if there are none. `conflicting_user_id` is a claimed user that a stronger
    claim or link excludes.
    """

    result: Literal["applied", "stale", "ignored", "duplicate", "ambiguous"]
    user_ids: list[UUID] | None
    conflicting_user_id: UUID | None
    moved_user_ids: list[UUID] | None


class Timeouts(NamedTuple):
    """The timeouts of the transaction, in the server's notation."""

    statement_timeout: str
    lock_timeout: str


class EventAttempt(NamedTuple):
    """An event and the number of attempts to apply it."""

    id: str
    attempts: int


class DiscardedEvent(NamedTuple):
    """An event that is not applied any more, and why it failed."""

    id: str
    type: str
    last_error: str | None


class EventPayload(NamedTuple):
    """The event as JSON text; None if it was pruned."""

    payload: str | None


class EventId(NamedTuple):
    """The id of an event."""

    id: str


class StoredEvent(NamedTuple):
    """A stored event without its payload.

    `status` is applied, stale, ignored or failed.
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
) -> EventResult:
    """Record the event and apply its snapshot, if it has one.

    It locks *lock_key* until the transaction ends, and waits at most
    *lock_milliseconds* for each lock; 0 is no limit.
    """
    return fetch_one(
        conn,
        EventResult,
        "apply_event",
        id=id,
        type=type,
        api_version=api_version,
        event_created_at=event_created_at,
        payload=payload,
        lock_key=lock_key,
        object_type=object_type,
        snapshot=None if snapshot is None else json_text(snapshot),
        can_fetch=can_fetch,
        lock_milliseconds=lock_milliseconds,
    )


def set_timeouts(
    conn: Connection[Any],
    *,
    statement_milliseconds: int | None,
    lock_milliseconds: int | None,
) -> Timeouts:
    """Set statement_timeout and lock_timeout for the rest of the transaction.

    0 means no limit; None keeps the current one. Both are returned.
    """
    return fetch_one(
        conn,
        Timeouts,
        "set_timeouts",
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
    """Lock *lock_key* until the transaction ends, and record the event as applied.

    Return None if the event was processed before; a failed one is processed again.
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


def mark_event(
    conn: Connection[Any], *, id: str, status: str, last_error: str | None = None
) -> int:
    """Set the status of a processed event; return 1, or 0 if it is unknown.

    *last_error* says why it is ignored; None keeps what is stored.
    """
    return execute(conn, "mark_event", id=id, status=status, last_error=last_error)


@validated
def discard_event(conn: Connection[Any], *, id: str) -> DiscardedEvent | None:
    """Set a failed event to ignored, so that no retry or delivery applies it.

    Return None if there is no such event, or it has not failed.
    """
    return fetch_optional(conn, DiscardedEvent, "discard_event", id=storable_text(id))


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
    """Record a failed event; return None if it was processed concurrently."""
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


@validated
def list_events(
    conn: Connection[Any],
    *,
    before: datetime | None = None,
    before_id: str | None = None,
    limit: int = 100,
) -> list[StoredEvent]:
    """Return up to *limit* events, the newest arrival first.

    The next page has *before* and *before_id* from `received_at` and `id` of the last.

    Raises:
        InvalidValueError: only one of *before* and *before_id* is given.
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


@validated
def list_failed_events(
    conn: Connection[Any],
    *,
    after: datetime | None = None,
    after_id: str | None = None,
    limit: int = 100,
) -> list[StoredEvent]:
    """Return up to *limit* failed events, the oldest first.

    The next page has *after* and *after_id* from `event_created_at` and `id` of the
    last.

    Raises:
        InvalidValueError: only one of *after* and *after_id* is given.
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


@validated
def find_event_payload(conn: Connection[Any], *, id: str) -> EventPayload | None:
    """Return the event as it was delivered, or None if it is unknown."""
    return fetch_optional(conn, EventPayload, "find_event_payload", id=id)


def list_done_events(conn: Connection[Any], *, ids: Sequence[str]) -> list[EventId]:
    """Return the events of *ids* that were applied, stale or ignored, by id."""
    return fetch_all(conn, EventId, "list_done_events", ids=list(ids))


@validated
def delete_event_payloads(
    conn: Connection[Any], *, before: datetime, limit: int = 1000
) -> int:
    """Delete the payloads of up to *limit* events processed before *before*.

    The events stay, so that each applies once. Failed events keep their payload. Return
    the number of payloads; repeat until it is less than *limit*.
    """
    return execute(conn, "delete_event_payloads", before=before, limit=limit)
