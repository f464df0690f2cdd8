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
    check_hour_writes,
    check_text,
    shown,
    storable_id,
)
from pyapp.errors import InvalidValueError
from pyapp.pricing import PublishedPrice, published_price
from pyapp.published_prices.providers import provider_id

JSON: TypeAlias = dict[str, Any] | list[Any] | str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """One call to a model, not yet recorded.

    Recording the same `id` again is harmless. The payer is `user_id`, otherwise
    `fingerprint_id`. `finished_at` is aware. The four token counts are disjoint.
    `cache_creation_1h_input_tokens` are part of `cache_creation_input_tokens`; they
    affect the price and are not stored. `cost` is in USD; by default it follows from
    the own price of the provider and model, else from `published`, which is by default
    computed from the counts. `credits` are by default computed from the cost.
    """

    # In the order of the columns of copy_staged_messages.
    id: UUID
    user_id: UUID | None = None
    fingerprint_id: UUID | None = None
    finished_at: datetime
    input_tokens: int
    cache_creation_input_tokens: int
    cache_creation_1h_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    latency_ms: int | None = None
    provider: str | None = None
    model: str
    client_id: str | None = None
    client_request_id: str | None = None
    cost: Decimal | None = None
    credits: Decimal | None = None
    request: JSON = None
    response: JSON = None
    published: PublishedPrice | None = None


def message_values(
    message: NewMessage,
    *,
    user_id: UUID | None = None,
    fingerprint_id: UUID | None = None,
) -> dict[str, Any]:
    """Return the parameters that record *message*, in the order of its fields.

    *user_id* and *fingerprint_id* pay if the message names no payer. Without a cost,
    the parameters contain the published price.

    Raises:
        InvalidValueError: a value that no message can have.
    """
    values = {name: check(name, getattr(message, name)) for name, check in _FIELDS}
    if values["user_id"] is None and values["fingerprint_id"] is None:
        if user_id is None and fingerprint_id is None:
            raise InvalidValueError("no payer: give user_id, fingerprint_id or both")
        values["user_id"], values["fingerprint_id"] = user_id, fingerprint_id
    check_hour_writes(
        values["cache_creation_1h_input_tokens"], values["cache_creation_input_tokens"]
    )
    published = _published("published", message.published)
    if values["cost"] is not None:
        values.update(_NOT_NEEDED)
        return values
    if published is None:
        published = published_price(**{name: values[name] for name in _PRICED})
    values["published_cost"] = published.cost
    values["other_cost"] = published.other_cost
    values["is_standard"] = published.is_standard
    values["published_reason"] = published.reason and storable_text(published.reason)
    return values


def staged_rows(
    messages: Iterable[NewMessage],
    user_id: UUID | None,
    fingerprint_id: UUID | None,
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
                message, user_id=user_id, fingerprint_id=fingerprint_id
            )
        except InvalidValueError as exc:
            raise InvalidValueError(f"message {position}: {exc}") from exc
        subject_id = values["user_id"] or values["fingerprint_id"]
        yield (position, subject_id, *values.values())


def margin_of(margin: Decimal | None, credits: object = None) -> Decimal | None:
    """Return *margin*, by default PYAPP_MARGIN; it is not read if *credits* are given.

    Raises:
        InvalidValueError: *margin* is not an amount.
        ConfigError: the margin is not given, and PYAPP_MARGIN is not an amount.
    """
    if margin is not None:
        return check_amount("margin", margin)
    return configured_margin() if credits is None else None


def one_line(reason: str) -> str:
    """Return *reason*, which can quote any text, with all its characters printable."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in reason)


def _model(name: str, value: Any) -> str:
    if check_text(name, value):
        return storable_text(value)
    raise InvalidValueError(f"{name} must not be empty")


def check_provider(name: str, value: Any) -> str | None:
    """Return the id of a provider; None stays None.

    An unknown name is its own id.
    """
    if value is None:
        return None
    found = provider_id(storable_text(check_text(name, value)))
    if not found:
        raise InvalidValueError(f"{name} must not be empty")
    return storable_id(name, found)


def _published(name: str, value: Any) -> PublishedPrice | None:
    if value is None:
        return None
    if not isinstance(value, PublishedPrice):
        raise InvalidValueError(f"{name} must be a PublishedPrice, not {shown(value)}")
    for part in (value.cost, value.other_cost):
        if part is not None:
            check_amount(name, part)
    return value


def _json(name: str, value: Any) -> str | None:
    return storable_json(value)


_CHECKS: Mapping[str, Check] = {
    **argument_checks(NewMessage),
    "provider": check_provider,
    "model": _model,
    "client_id": storable_id,
    "client_request_id": storable_id,
    "request": _json,
    "response": _json,
}
_NOT_NEEDED: Mapping[str, Any] = {
    "published_cost": None,
    "other_cost": None,
    "is_standard": True,
    "published_reason": None,
}
_FIELDS = [
    (field.name, _CHECKS[field.name])
    for field in fields(NewMessage)
    if field.name != "published"
]
_PRICED = (
    "provider",
    "model",
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "finished_at",
)
