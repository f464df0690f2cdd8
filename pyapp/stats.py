"""Stats: read-only statistics for operators and monitoring."""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple

from psycopg import Connection

from pyapp._core.run import fetch_all, fetch_one, fetch_optional
from pyapp._core.validation import validated


class MessageRates(NamedTuple):
    """Messages and credits recorded in the last minute, and in the last hour."""

    minute_messages: int
    minute_credits: Decimal
    hour_messages: int
    hour_credits: Decimal


class UserCounts(NamedTuple):
    """Users without the anonymized: all, with an active subscription, and blocked."""

    users: int
    subscribed: int
    blocked: int


class InboxCounts(NamedTuple):
    """Numbers of Stripe events.

    `oldest_failed_at` is in Stripe's time, None if no event failed; `last_received_at`
    is None before the first event.
    """

    failed: int
    oldest_failed_at: datetime | None
    hour_received: int
    last_received_at: datetime | None


class LastRun(NamedTuple):
    """The newest run of a kind; `outcome` is running, completed or failed.

    `counts` are its counters by name; `differences` and `repaired` are sums over the
    kinds of difference of a reconciliation. A run that was killed is shown as running
    until the next run marks it. `last_completed_at` is the end of the newest completed
    run, or None.
    """

    id: int
    started_at: datetime
    finished_at: datetime | None
    outcome: str
    counts: Mapping[str, int]
    last_error: str | None
    differences: int
    repaired: int
    last_completed_at: datetime | None


class PayloadMonths(NamedTuple):
    """The monthly partitions of message_payloads.

    `months_ahead` is the number of partitions after this month's without a gap; -1 if
    this month has none. `has_default_rows`: payloads are in the default partition.
    `has_waiting_table`: payloads are in waiting_payloads until they have moved to their
    months, and are not found until then. `estimated_waiting` is the number of both, by
    the server's statistics. An interrupted `pyapp db maintain` leaves the waiting table
    and the retired table behind.
    """

    partitions: int
    months_ahead: int
    oldest_month: date | None
    has_default_rows: bool
    has_waiting_table: bool
    estimated_waiting: int
    has_retired_table: bool


class ServerState(NamedTuple):
    """The clients of this database, and the age of the server's statistics.

    `waiting` is the number of clients that wait for a lock. `oldest_transaction_at` is
    None if no other client is in a transaction. These and `connections` are None for a
    role without pg_read_all_stats, which sees only its own clients. `counted_since` is
    when statistics were reset, None if never.
    """

    connections: int | None
    max_connections: int
    waiting: int | None
    oldest_transaction_at: datetime | None
    started_at: datetime
    counted_since: datetime | None


class TableSize(NamedTuple):
    """A table with its partitions; `table_bytes` include TOAST."""

    name: str
    estimated_rows: int
    table_bytes: int
    index_bytes: int


class UnusedIndex(NamedTuple):
    """An index without scans since statistics were reset."""

    name: str
    bytes: int


class TimeLimit(NamedTuple):
    """The limit as the server writes it."""

    setting: str


@validated
def limit_time(conn: Connection[Any], *, milliseconds: int) -> TimeLimit:
    """Set statement_timeout for the rest of the transaction; 0 means no limit.

    Waits for locks count. A statement that takes longer raises psycopg's QueryCanceled.
    """
    return fetch_one(conn, TimeLimit, "limit_time", milliseconds=milliseconds)


def get_message_rates(conn: Connection[Any]) -> MessageRates:
    """Return how much was recorded lately; it reads the messages of an hour."""
    return fetch_one(conn, MessageRates, "get_message_rates")


def get_user_counts(conn: Connection[Any]) -> UserCounts:
    """Return numbers of users; blocked users are those blocked by the quota's rule.

    It reads all users and usage_slots as a whole: a second for two million rows.
    """
    return fetch_one(conn, UserCounts, "get_user_counts")


def get_inbox_counts(conn: Connection[Any]) -> InboxCounts:
    """Return numbers of Stripe events."""
    return fetch_one(conn, InboxCounts, "get_inbox_counts")


@validated
def find_last_run(
    conn: Connection[Any], *, kind: Literal["reconcile", "replay"]
) -> LastRun | None:
    """Return the newest run of *kind* that was not a dry run, or None."""
    return fetch_optional(conn, LastRun, "find_last_run", kind=kind)


def get_payload_months(conn: Connection[Any]) -> PayloadMonths:
    """Return how far ahead the monthly partitions are."""
    return fetch_one(conn, PayloadMonths, "get_payload_months")


def get_server_state(conn: Connection[Any]) -> ServerState:
    """Return the clients of this database."""
    return fetch_one(conn, ServerState, "get_server_state")


@validated
def list_table_sizes(conn: Connection[Any], *, limit: int = 100) -> list[TableSize]:
    """Return up to *limit* tables, the largest with its indexes first."""
    return fetch_all(conn, TableSize, "list_table_sizes", limit=limit)


@validated
def list_unused_indexes(
    conn: Connection[Any], *, limit: int = 100
) -> list[UnusedIndex]:
    """Return up to *limit* indexes without scans, the largest first, except keys."""
    return fetch_all(conn, UnusedIndex, "list_unused_indexes", limit=limit)
