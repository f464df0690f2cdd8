"""Turns a new message into what the database stores: checked, priced, storable."""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

from pyapp._core.config import configured_margin
from pyapp._core.records import NewMessage
from pyapp._core.sanitize import storable_json, storable_text
from pyapp._core.validation import (
    MAX_INTEGER,
    check_amount,
    check_count,
    check_text,
    check_time,
    check_uuid,
    shown,
    storable_id,
)
from pyapp.errors import InvalidValueError, UnknownModelError
from pyapp.pricing import credits_for_cost, price_usage


def message_values(
    message: NewMessage,
    *,
    margin: Decimal | None,
    user_id: UUID | None = None,
    fingerprint_id: UUID | None = None,
) -> dict[str, Any]:
    """Return the parameters that record *message*, by column, in staging's order.

    *user_id* and *fingerprint_id* pay if the message names nobody. A cost that is not
    given is computed from the published prices, and credits that are not given from
    the cost and *margin*, or the configured one.

    Raises:
        InvalidValueError: no message can have this value; nothing has been sent.
        UnknownModelError: the cost is not given, and the model has no price.
        MissingExtraError: the cost is not given, and no prices are installed.
        ConfigError: the margin is not given, and what is configured is none.
    """
    if message.user_id is not None or message.fingerprint_id is not None:
        user_id, fingerprint_id = message.user_id, message.fingerprint_id
    user_id = _optional_uuid("user_id", user_id)
    fingerprint_id = _optional_uuid("fingerprint_id", fingerprint_id)
    if user_id is None and fingerprint_id is None:
        raise InvalidValueError("nobody pays: give user_id, fingerprint_id or both")
    check_uuid("id", message.id)
    model = storable_text(check_text("model", message.model))
    if not model:
        raise InvalidValueError("model must name a model, not be empty")
    counts: dict[str, Any] = {
        name: check_count(name, getattr(message, name), MAX_INTEGER)
        for name in (
            "input_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "output_tokens",
        )
    }
    finished_at = check_time("finished_at", message.finished_at)
    if message.cost is None:
        cost = price_usage(model=model, finished_at=finished_at, **counts)
    else:
        cost = check_amount("cost", message.cost)
    if message.credits is None:
        if margin is None:
            margin = configured_margin()
        credits = credits_for_cost(cost, check_amount("margin", margin))
    else:
        credits = check_amount("credits", message.credits)
    latency_ms = message.latency_ms
    return {
        "id": message.id,
        "user_id": user_id,
        "fingerprint_id": fingerprint_id,
        "finished_at": finished_at,
        **counts,
        "latency_ms": None
        if latency_ms is None
        else check_count("latency_ms", latency_ms, MAX_INTEGER),
        "model": model,
        "client_id": storable_id("client_id", message.client_id),
        "client_request_id": storable_id(
            "client_request_id", message.client_request_id
        ),
        "cost": cost,
        "credits": credits,
        "request": storable_json(message.request),
        "response": storable_json(message.response),
    }


def staged_rows(
    messages: Iterable[NewMessage],
    user_id: UUID | None,
    fingerprint_id: UUID | None,
    margin: Decimal | None,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of copy_staged_messages; the payer is of those that name none.

    Raises: as message_values; the message begins with the position, from 1.
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


def _optional_uuid(name: str, value: Any) -> UUID | None:
    return None if value is None else check_uuid(name, value)
