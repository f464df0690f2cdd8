"""Usage: sums over messages, for reports."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import fetch_all
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import validated


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
