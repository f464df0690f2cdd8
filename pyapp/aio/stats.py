# Generated from pyapp/stats.py by .ci/generate_aio.py; do not edit.
"""Stats: read-only statistics for operators and monitoring."""

from typing import Any, Literal

from psycopg import AsyncConnection

from pyapp._core.run_async import fetch_all, fetch_one, fetch_optional
from pyapp._core.validation import validated
from pyapp.stats import (
    InboxCounts,
    LastRun,
    MessageRates,
    PayloadMonths,
    ServerState,
    TableSize,
    TimeLimit,
    UnusedIndex,
    UserCounts,
)


@validated
async def limit_time(conn: AsyncConnection[Any], *, milliseconds: int) -> TimeLimit:
    """Set statement_timeout for the rest of the transaction; 0 means no limit.

    Waits for locks count. A statement that takes longer raises psycopg's QueryCanceled.
    """
    return await fetch_one(conn, TimeLimit, "limit_time", milliseconds=milliseconds)


async def get_message_rates(conn: AsyncConnection[Any]) -> MessageRates:
    """Return how much was recorded lately; it reads the messages of an hour."""
    return await fetch_one(conn, MessageRates, "get_message_rates")


async def get_user_counts(conn: AsyncConnection[Any]) -> UserCounts:
    """Return numbers of users; blocked users are those blocked by the quota's rule.

    It reads all users and usage_slots as a whole: a second for two million rows.
    """
    return await fetch_one(conn, UserCounts, "get_user_counts")


async def get_inbox_counts(conn: AsyncConnection[Any]) -> InboxCounts:
    """Return numbers of Stripe events."""
    return await fetch_one(conn, InboxCounts, "get_inbox_counts")


@validated
async def find_last_run(
    conn: AsyncConnection[Any], *, kind: Literal["reconcile", "replay"]
) -> LastRun | None:
    """Return the newest run of *kind* that was not a dry run, or None."""
    return await fetch_optional(conn, LastRun, "find_last_run", kind=kind)


async def get_payload_months(conn: AsyncConnection[Any]) -> PayloadMonths:
    """Return how far ahead the monthly partitions are."""
    return await fetch_one(conn, PayloadMonths, "get_payload_months")


async def get_server_state(conn: AsyncConnection[Any]) -> ServerState:
    """Return the clients of this database."""
    return await fetch_one(conn, ServerState, "get_server_state")


@validated
async def list_table_sizes(
    conn: AsyncConnection[Any], *, limit: int = 100
) -> list[TableSize]:
    """Return up to *limit* tables, the largest with its indexes first."""
    return await fetch_all(conn, TableSize, "list_table_sizes", limit=limit)


@validated
async def list_unused_indexes(
    conn: AsyncConnection[Any], *, limit: int = 100
) -> list[UnusedIndex]:
    """Return up to *limit* indexes without scans, the largest first, except keys."""
    return await fetch_all(conn, UnusedIndex, "list_unused_indexes", limit=limit)
