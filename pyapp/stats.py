"""Stats: what an operator asks first, in questions that hold up nobody who writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from pyapp._core.calls import Call, many, one, optional, query
from pyapp._core.validation import MAX_INTEGER, check_count


@dataclass(frozen=True, slots=True)
class MessageRates:
    """What was recorded in the last minute and in the last hour, that minute included.

    Credits are exact sums.
    """

    minute_messages: int
    minute_credits: Decimal
    hour_messages: int
    hour_credits: Decimal


@dataclass(frozen=True, slots=True)
class UserCounts:
    """All users but the anonymized; those with an active subscription; the blocked."""

    users: int
    subscribed: int
    blocked: int


@dataclass(frozen=True, slots=True)
class InboxCounts:
    """Stripe's events; `oldest_failed_at` is in Stripe's time, None if none failed.

    `last_received_at` is None while none has come.
    """

    failed: int
    oldest_failed_at: datetime | None
    hour_received: int
    last_received_at: datetime | None


@dataclass(frozen=True, slots=True)
class LastRun:
    """The newest run of a kind; `outcome` is running, completed or failed.

    `counts` are what it has seen and found, by kind; `differences` and `repaired` are
    sums over the kinds of a reconciliation. A run that was killed is running until the
    next one finds it. `last_completed_at` is this run's end or an earlier one's, None
    if none has ever come to its end.
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


@dataclass(frozen=True, slots=True)
class PayloadMonths:
    """The partitions of what was said.

    `months_ahead` are those after this one without a gap: 0 is only this one, and -1
    not even that. `has_default_rows` says that payloads wait for their month's
    partition, `has_waiting_table` that they are put aside until they have moved there,
    and are not found meanwhile; `estimated_waiting` is how many, of both, as the server
    has counted since its last crash. `has_waiting_table` and `has_retired_table` remain
    where `pyapp db maintain` was ended in its middle.
    """

    partitions: int
    months_ahead: int
    oldest_month: date | None
    has_default_rows: bool
    has_waiting_table: bool
    estimated_waiting: int
    has_retired_table: bool


@dataclass(frozen=True, slots=True)
class ServerState:
    """The clients of this database, and since when the server has counted scans.

    `waiting` are those that wait for a lock. `oldest_transaction_at` is None if no
    other is in a transaction, or none that the role may see. `counted_since` is None
    for since ever.
    """

    connections: int
    max_connections: int
    waiting: int
    oldest_transaction_at: datetime | None
    started_at: datetime
    counted_since: datetime | None


@dataclass(frozen=True, slots=True)
class TableSize:
    """A table with its partitions; `table_bytes` include what is stored out of line."""

    name: str
    estimated_rows: int
    table_bytes: int
    index_bytes: int


@dataclass(frozen=True, slots=True)
class UnusedIndex:
    """An index that no statement has read since the server counts."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """What the server now understands by the limit."""

    setting: str


@query
def limit_time(*, milliseconds: int) -> Call[TimeLimit]:
    """Give up each later statement of this transaction that takes longer.

    It then raises psycopg's QueryCanceled; 0 is for no limit.
    """
    check_count("milliseconds", milliseconds, MAX_INTEGER)
    return one(TimeLimit, {"milliseconds": milliseconds})


@query
def get_message_rates() -> Call[MessageRates]:
    """Return how much was recorded lately; it reads the messages of an hour."""
    return one(MessageRates, {})


@query
def get_user_counts() -> Call[UserCounts]:
    """Return how many users there are, and how many are blocked by the quota's rule.

    It reads all users and the key of usage_daily: a second for two million payers'
    days.
    """
    return one(UserCounts, {})


@query
def get_inbox_counts() -> Call[InboxCounts]:
    """Return how Stripe's events stand."""
    return one(InboxCounts, {})


@query
def find_last_run(*, kind: Literal["reconcile", "replay"]) -> Call[LastRun | None]:
    """Return the newest run of *kind* that was no dry run, or None."""
    return optional(LastRun, {"kind": kind})


@query
def get_payload_months() -> Call[PayloadMonths]:
    """Return how far ahead the monthly partitions are."""
    return one(PayloadMonths, {})


@query
def get_server_state() -> Call[ServerState]:
    """Return who is connected to this database."""
    return one(ServerState, {})


@query
def list_table_sizes(*, limit: int = 100) -> Call[list[TableSize]]:
    """Return *limit* tables, the largest with its indexes first."""
    return many(TableSize, {"limit": limit})


@query
def list_unused_indexes(*, limit: int = 100) -> Call[list[UnusedIndex]]:
    """Return *limit* indexes that nobody has read, the largest first; keys left out."""
    return many(UnusedIndex, {"limit": limit})
