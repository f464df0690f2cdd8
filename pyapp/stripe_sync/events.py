"""The inbox: each verified event once, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pyapp._core.calls import Call, many, one, optional, query, rowcount
from pyapp._core.validation import check_cursor
from pyapp.stripe_sync.mirror import ObjectType, to_json


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an event; if ambiguous, nothing was recorded."""

    result: Literal["applied", "stale", "ignored", "duplicate", "ambiguous"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings of the transaction, as the server writes them."""

    statement_timeout: str
    lock_timeout: str


@dataclass(frozen=True, slots=True)
class EventAttempt:
    """An event and how often applying it was tried, this time included."""

    id: str
    attempts: int


@dataclass(frozen=True, slots=True)
class EventPayload:
    """The event as JSON text; None once its retention has ended."""

    payload: str | None


@dataclass(frozen=True, slots=True)
class EventId:
    """The id of an event."""

    id: str


@dataclass(frozen=True, slots=True)
class StoredEvent:
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


@query
def apply_event(
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
) -> Call[Taken]:
    """Enter the event with the snapshot that it gives, or none, and return what it was.

    No other session changes the rows of *lock_key* until the transaction ends. It waits
    for each lock for *lock_milliseconds* at most, without end for 0.
    """
    parameters = {
        "id": id,
        "type": type,
        "api_version": api_version,
        "event_created_at": event_created_at,
        "payload": payload,
        "lock_key": lock_key,
        "object_type": object_type,
        "snapshot": None if snapshot is None else to_json(snapshot),
        "can_fetch": can_fetch,
        "lock_milliseconds": lock_milliseconds,
    }
    return one(Taken, parameters)


@query
def limit_statements(
    *, statement_milliseconds: int | None, lock_milliseconds: int | None
) -> Call[Limits]:
    """Limit each statement until the transaction ends; return the limits.

    0 is no limit, None leaves the limit as it is.
    """
    parameters = {
        "statement_milliseconds": statement_milliseconds,
        "lock_milliseconds": lock_milliseconds,
    }
    return one(Limits, parameters)


@query
def insert_event(
    *,
    id: str,
    type: str,
    api_version: str | None,
    event_created_at: datetime,
    payload: str,
    lock_key: str,
) -> Call[EventAttempt | None]:
    """Lock *lock_key* until the transaction ends, and enter the event as applied.

    Return None for one that is done already; one that has failed is entered again.
    """
    parameters = {
        "id": id,
        "type": type,
        "api_version": api_version,
        "event_created_at": event_created_at,
        "payload": payload,
        "lock_key": lock_key,
    }
    return optional(EventAttempt, parameters)


@query
def mark_event(*, id: str, status: str) -> Call[int]:
    """Change what became of an event that is done; return how many there were."""
    return rowcount({"id": id, "status": status})


@query
def upsert_failed_event(
    *,
    id: str,
    type: str,
    api_version: str | None,
    event_created_at: datetime,
    payload: str,
    last_error: str,
) -> Call[EventAttempt | None]:
    """Keep an event that could not be applied; return None if it is done meanwhile."""
    parameters = {
        "id": id,
        "type": type,
        "api_version": api_version,
        "event_created_at": event_created_at,
        "payload": payload,
        "last_error": last_error,
    }
    return optional(EventAttempt, parameters)


@query
def list_events(
    *, before: datetime | None = None, before_id: str | None = None, limit: int = 100
) -> Call[list[StoredEvent]]:
    """Return *limit* events, the newest arrival first.

    Start again with *before* and *before_id*, the last one's `received_at` and `id`, to
    get the next page.
    """
    check_cursor("before", before, before_id)
    return many(StoredEvent, {"before": before, "before_id": before_id, "limit": limit})


@query
def list_failed_events(
    *, after: datetime | None = None, after_id: str | None = None, limit: int = 100
) -> Call[list[StoredEvent]]:
    """Return *limit* events that have failed, the oldest first.

    Start again with *after* and *after_id*, the last one's `event_created_at` and `id`,
    to get the next page.
    """
    check_cursor("after", after, after_id)
    return many(StoredEvent, {"after": after, "after_id": after_id, "limit": limit})


@query
def find_event_payload(*, id: str) -> Call[EventPayload | None]:
    """Return the event as it was delivered, or None for an unknown one."""
    return optional(EventPayload, {"id": id})


@query
def list_done_events(*, ids: Sequence[str]) -> Call[list[EventId]]:
    """Return those of *ids* that were applied, stale or ignored, by id."""
    return many(EventId, {"ids": list(ids)})


@query
def delete_event_payloads(*, before: datetime, limit: int = 1000) -> Call[int]:
    """Empty at most *limit* events done before *before*; return how many.

    The events stay, so that each takes effect once for ever; one that has failed keeps
    its payload. Repeat until it returns less than *limit*.
    """
    return rowcount({"before": before, "limit": limit})
