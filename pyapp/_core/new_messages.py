"""New messages, and the checked, priced, storable values that the database gets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

from pyapp._core.config import configured_margin
from pyapp._core.sanitize import storable_json, storable_text
from pyapp._core.validation import (
    Check,
    argument_checks,
    check_amount,
    check_text,
    shown,
    storable_id,
)
from pyapp.errors import InvalidValueError, UnknownModelError
from pyapp.pricing import credits_for_cost, price_usage

JSON: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """One call to a model, not yet recorded.

    Recording the same `id` again is harmless. The payer is `user_id`, otherwise
    `fingerprint_id`. `finished_at` is aware. The four token counts are disjoint.
    `cost` is in USD, by default computed from the model's published prices; `credits`
    are by default computed from the cost.
    """

    # In the order of the columns of copy_staged_messages.
    id: UUID
    user_id: UUID | None = None
    fingerprint_id: UUID | None = None
    finished_at: datetime
    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    latency_ms: int | None = None
    model: str
    client_id: str | None = None
    client_request_id: str | None = None
    cost: Decimal | None = None
    credits: Decimal | None = None
    request: JSON = None
    response: JSON = None


def message_values(
    message: NewMessage,
    *,
    margin: Decimal | None,
    user_id: UUID | None = None,
    fingerprint_id: UUID | None = None,
) -> dict[str, Any]:
    """Return the parameters that record *message*, in the order of its fields.

    *user_id* and *fingerprint_id* pay if the message names no payer. A missing cost is
    computed from the published prices, and missing credits from the cost and *margin*,
    by default PYAPP_MARGIN.

    Raises:
        InvalidValueError: a value that no message can have.
        UnknownModelError: the cost is not given, and the model has no price.
        MissingExtraError: the cost is not given, and no prices are installed.
        ConfigError: the margin is not given, and PYAPP_MARGIN is not an amount.
    """
    values = {name: check(name, getattr(message, name)) for name, check in _FIELDS}
    if values["user_id"] is None and values["fingerprint_id"] is None:
        if user_id is None and fingerprint_id is None:
            raise InvalidValueError("no payer: give user_id, fingerprint_id or both")
        values["user_id"], values["fingerprint_id"] = user_id, fingerprint_id
    if values["cost"] is None:
        values["cost"] = price_usage(**{name: values[name] for name in _PRICED})
    if margin is not None:
        margin = check_amount("margin", margin)
    if values["credits"] is None:
        margin = configured_margin() if margin is None else margin
        values["credits"] = credits_for_cost(values["cost"], margin)
    return values


def staged_rows(
    messages: Iterable[NewMessage],
    user_id: UUID | None,
    fingerprint_id: UUID | None,
    margin: Decimal | None,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of copy_staged_messages.

    *user_id* and *fingerprint_id* pay for the messages that name no payer.

    Raises: as message_values; the error begins with the message's position, from 1.
    """
    for position, message in enumerate(messages, start=1):
        try:
            if not isinstance(message, NewMessage):
                raise InvalidValueError(f"not a NewMessage: {shown(message)}")
            values = message_values(
                message, margin=margin, user_id=user_id, fingerprint_id=fingerprint_id
            )
        except (InvalidValueError, UnknownModelError) as exc:
            raise type(exc)(f"message {position}: {exc}") from exc
        subject_id = values["user_id"] or values["fingerprint_id"]
        yield (position, subject_id, *values.values())


def _model(name: str, value: Any) -> str:
    if check_text(name, value):
        return storable_text(value)
    raise InvalidValueError(f"{name} must not be empty")


def _json(name: str, value: Any) -> str | None:
    return storable_json(value)


_CHECKS: Mapping[str, Check] = {
    **argument_checks(NewMessage),
    "model": _model,
    "client_id": storable_id,
    "client_request_id": storable_id,
    "request": _json,
    "response": _json,
}
_FIELDS = [(field.name, _CHECKS[field.name]) for field in fields(NewMessage)]
_PRICED = (
    "model",
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "finished_at",
)
