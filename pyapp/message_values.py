"""Turns a new message into what the database stores: checked, priced, storable."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from pyapp.errors import InvalidUsageError, UnknownModelError
from pyapp.pricing import credits_for_cost, price_usage
from pyapp.records import NewMessage
from pyapp.storable import storable_json, storable_text

_MAX_INTEGER = 2**31 - 1
_MAX_AMOUNT = Decimal(10) ** 15
_MAX_DECIMALS = 100
_MAX_ID_LENGTH = 255


def message_values(
    message: NewMessage,
    *,
    margin: Decimal,
    user_id: UUID | None = None,
    fingerprint_id: UUID | None = None,
) -> dict[str, Any]:
    """Return the parameters that record *message*, by column, in staging's order.

    *user_id* and *fingerprint_id* pay if the message names nobody. A cost that is not
    given is computed from the published prices, and credits that are not given from
    the cost and *margin*.

    Raises:
        InvalidUsageError: no message can have this value; nothing has been sent.
        UnknownModelError: the cost is not given, and the model has no price.
        MissingExtraError: the cost is not given, and no prices are installed.
    """
    if message.user_id is not None or message.fingerprint_id is not None:
        user_id, fingerprint_id = message.user_id, message.fingerprint_id
    user_id = _checked_uuid("user_id", user_id)
    fingerprint_id = _checked_uuid("fingerprint_id", fingerprint_id)
    if user_id is None and fingerprint_id is None:
        raise InvalidUsageError("nobody pays: give user_id, fingerprint_id or both")
    if _checked_uuid("id", message.id) is None:
        raise InvalidUsageError("id must be a UUID, not None")
    model = _checked_text("model", message.model)
    if not model:
        raise InvalidUsageError("model must name a model, not be empty")
    counts: dict[str, Any] = {
        name: _checked_count(name, getattr(message, name))
        for name in (
            "input_tokens",
            "cache_creation_input_tokens",
            "cache_read_input_tokens",
            "output_tokens",
        )
    }
    finished_at = _checked_time(message.finished_at)
    if message.cost is None:
        cost = price_usage(model=model, finished_at=finished_at, **counts)
    else:
        cost = _checked_amount("cost", message.cost)
    if message.credits is None:
        credits = credits_for_cost(cost, _checked_amount("margin", margin))
    else:
        credits = _checked_amount("credits", message.credits)
    latency_ms = message.latency_ms
    return {
        "id": message.id,
        "user_id": user_id,
        "fingerprint_id": fingerprint_id,
        "finished_at": finished_at,
        **counts,
        "latency_ms": None
        if latency_ms is None
        else _checked_count("latency_ms", latency_ms),
        "model": model,
        "client_id": _checked_id("client_id", message.client_id),
        "client_request_id": _checked_id(
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
    margin: Decimal,
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of copy_staged_messages; the payer is of those that name none.

    Raises: as message_values; the message begins with the position, from 1.
    """
    for position, message in enumerate(messages, start=1):
        try:
            values = message_values(
                message, margin=margin, user_id=user_id, fingerprint_id=fingerprint_id
            )
        except (InvalidUsageError, UnknownModelError) as exc:
            raise type(exc)(f"message {position}: {exc}") from exc
        subject_id = values["user_id"] or values["fingerprint_id"]
        yield (position, subject_id, *values.values())


def _checked_uuid(name: str, value: Any) -> UUID | None:
    if value is None or isinstance(value, UUID):
        return value
    raise InvalidUsageError(f"{name} must be a UUID, not {_shown(value)}")


def _checked_count(name: str, value: Any) -> int:
    # A bool is an int to Python, and never a count.
    if type(value) is not int or not 0 <= value <= _MAX_INTEGER:
        raise InvalidUsageError(
            f"{name} must be a whole number from 0 to {_MAX_INTEGER},"
            f" not {_shown(value)}"
        )
    return value


def _checked_amount(name: str, value: Any) -> Decimal:
    # A float is refused, for what it stands for depends on who rounds it.
    amount = Decimal(value) if type(value) is int else value
    if not isinstance(amount, Decimal):
        raise InvalidUsageError(f"{name} must be a Decimal, not {_shown(value)}")
    if not amount.is_finite() or not 0 <= amount <= _MAX_AMOUNT:
        raise InvalidUsageError(
            f"{name} must be from 0 to {_MAX_AMOUNT:f}, not {_shown(value)}"
        )
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -_MAX_DECIMALS:
        raise InvalidUsageError(f"{name} has more than {_MAX_DECIMALS} decimals")
    return amount


def _checked_time(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise InvalidUsageError(f"finished_at must be a datetime, not {_shown(value)}")
    if value.utcoffset() is None:
        raise InvalidUsageError("finished_at must carry its time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:
        raise InvalidUsageError(f"finished_at is out of range: {value}") from exc


def _checked_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidUsageError(f"{name} must be text, not {_shown(value)}")
    return storable_text(value)


def _checked_id(name: str, value: Any) -> str | None:
    if value is None:
        return None
    text = _checked_text(name, value)
    if len(text) > _MAX_ID_LENGTH:
        raise InvalidUsageError(
            f"{name} has {len(text)} characters; {_MAX_ID_LENGTH} is the most"
        )
    return text


def _shown(value: Any) -> str:
    """Return *value* short, in one line, in ASCII."""
    try:
        text = ascii(value)
    except Exception:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."
