"""What is handed to the database in bulk: plain, frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

JSON: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """One call to a model, not yet recorded.

    `id` makes recording it again harmless; the four token counts are disjoint;
    `finished_at` is aware, in UTC. `cost` is in USD: None means computed from the
    model's published prices. `credits` None means computed from the cost.
    Exactly one of `user_id` and `fingerprint_id` pays, or the user if both are given.
    """

    id: UUID
    model: str
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    finished_at: datetime
    user_id: UUID | None = None
    fingerprint_id: UUID | None = None
    client_id: str | None = None
    client_request_id: str | None = None
    cost: Decimal | None = None
    credits: Decimal | None = None
    latency_ms: int | None = None
    request: JSON = None
    response: JSON = None
