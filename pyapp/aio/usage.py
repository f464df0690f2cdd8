# Generated from pyapp/usage.py by .ci/generate_aio.py; do not edit.
"""Usage: sums over messages, for reports."""

from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import fetch_all
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import validated
from pyapp.usage import _DAILY, ModelUsage, Usage, UsageGroup, UsageKey, _is_midnight


@validated
async def list_usage(
    conn: AsyncConnection[Any],
    *,
    by: UsageKey,
    subject_id: UUID | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = 1000,
) -> list[UsageGroup]:
    """Return up to *limit* groups of the messages that finished in [since, until).

    The messages are those of one payer or, without *subject_id*, of all. A missing
    *since* or *until* is no limit. Days and months, which are in UTC, are in the order
    of time; models, providers, clients and payers are in the order of cost, the highest
    first. Groups without messages have no row.
    """
    return await fetch_all(
        conn,
        UsageGroup,
        "list_usage",
        by=by,
        subject_id=subject_id,
        since=since,
        until=until,
        limit=limit,
        is_daily=by in _DAILY and _is_midnight(since) and _is_midnight(until),
    )


@validated
async def get_request_usage(
    conn: AsyncConnection[Any],
    *,
    client_request_id: str,
    subject_id: UUID | None = None,
) -> Usage:
    """Return the usage of one request of a client, over all its calls to models.

    Clients choose the id, so give *subject_id* to count one payer's calls only.
    """
    total, *models = await fetch_all(
        conn,
        ModelUsage,
        "get_request_usage",
        client_request_id=storable_text(client_request_id),
        subject_id=subject_id,
    )
    return Usage(total, tuple(models))


@validated
async def get_client_usage(
    conn: AsyncConnection[Any], *, client_id: str, subject_id: UUID | None = None
) -> Usage:
    """Return the usage of one run of a client, over all its calls to models.

    Clients choose the id, so give *subject_id* to count one payer's calls only.
    """
    total, *models = await fetch_all(
        conn,
        ModelUsage,
        "get_client_usage",
        client_id=storable_text(client_id),
        subject_id=subject_id,
    )
    return Usage(total, tuple(models))
