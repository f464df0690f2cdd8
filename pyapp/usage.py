"""Usage: sums over messages, for reports."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import fetch_all
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import validated

UsageKey: TypeAlias = Literal["day", "month", "model", "provider", "client", "payer"]

# usage_slots has the sums of these groups, if all days are whole.
_DAILY: frozenset[UsageKey] = frozenset({"day", "month", "payer"})


class UsageGroup(NamedTuple):
    """Sums over the messages of one group.

    Only the fields of the key are set. `day` is a day in UTC, or the first day of a
    month. `model`, `provider` and `client_id` are those of the messages; the last two
    are None for messages without one. A payer has `subject_id`, `kind` (user or
    fingerprint) and `email`, which is None for fingerprints and anonymized users.
    `cost` is in USD.
    """

    day: date | None
    model: str | None
    provider: str | None
    client_id: str | None
    subject_id: UUID | None
    kind: str | None
    email: str | None
    messages: int
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    total_tokens: int
    cost: Decimal
    credits: Decimal


class ModelUsage(NamedTuple):
    """Sums over the calls to one model, or to all models if `model` is None."""

    model: str | None
    messages: int
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    total_tokens: int
    cost: Decimal
    credits: Decimal


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage in total, and by model in the order of the models' names."""

    total: ModelUsage
    models: tuple[ModelUsage, ...]


@validated
def list_usage(
    conn: Connection[Any],
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
    return fetch_all(
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
def get_request_usage(
    conn: Connection[Any], *, client_request_id: str, subject_id: UUID | None = None
) -> Usage:
    """Return the usage of one request of a client, over all its calls to models.

    Clients choose the id, so give *subject_id* to count one payer's calls only.
    """
    total, *models = fetch_all(
        conn,
        ModelUsage,
        "get_request_usage",
        client_request_id=storable_text(client_request_id),
        subject_id=subject_id,
    )
    return Usage(total, tuple(models))


@validated
def get_client_usage(
    conn: Connection[Any], *, client_id: str, subject_id: UUID | None = None
) -> Usage:
    """Return the usage of one run of a client, over all its calls to models.

    Clients choose the id, so give *subject_id* to count one payer's calls only.
    """
    total, *models = fetch_all(
        conn,
        ModelUsage,
        "get_client_usage",
        client_id=storable_text(client_id),
        subject_id=subject_id,
    )
    return Usage(total, tuple(models))


def _is_midnight(moment: datetime | None) -> bool:
    """Return whether a day in UTC begins at *moment*; no limit cuts no day."""
    return moment is None or moment.astimezone(UTC).time() == time()
