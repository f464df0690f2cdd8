"""Single values of a logged response, each checked before it counts as money."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]

MAX_TOKENS = 2**31 - 1
_MAX_SECONDS = 253_402_300_799  # the end of the year 9999
_MAX_COST = 1_000_000_000
_MAX_TEXT = 255  # as long as the table takes an id


class BadUsageError(ValueError):
    """A line holds usage that cannot be billed; the message says why."""


def count(usage: Object, key: str, *, required: bool = False) -> int:
    """Return the token count at *key*; 0 when it may be absent and is."""
    value = usage.get(key)
    if value is None and not required:
        return 0
    if type(value) is not int or not 0 <= value <= MAX_TOKENS:
        raise BadUsageError(f"{key} is not a token count: {_shown(value)}")
    return value


def inner(usage: Object, key: str) -> Object:
    """Return the object at *key*, empty when there is none."""
    value = usage.get(key)
    if value is not None and not isinstance(value, dict):
        raise BadUsageError(f"{key} is not an object")
    return value or {}


def number(value: object, limit: int = _MAX_SECONDS * 1000) -> int | float | None:
    """Return *value* if it is a number from 0 up to *limit*, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if 0 <= value <= limit else None
    return None


def moment(key: str, value: object) -> datetime:
    """Return the time in UTC: ISO 8601, or seconds or milliseconds since 1970.

    A time without a zone is taken to be in UTC.
    """
    try:
        if isinstance(value, str):
            parsed = datetime.fromisoformat(value.strip())
            zoned = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
            return zoned.astimezone(UTC)
        seconds = number(value)
        if seconds is not None:
            in_seconds = seconds if seconds <= _MAX_SECONDS else seconds / 1000
            return datetime.fromtimestamp(in_seconds, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise BadUsageError(f"{key} is not a time: {_shown(value)}") from exc
    raise BadUsageError(f"{key} is not a time: {_shown(value)}")


def cost(key: str, value: object) -> Decimal | None:
    """Return the cost in USD; a log's zero means that it is not known."""
    if value is None or value == 0:
        return None
    known = number(value, _MAX_COST)
    if known is None:
        raise BadUsageError(f"{key} is not a cost: {_shown(value)}")
    return Decimal(repr(known))


def text(value: object) -> str | None:
    """Return *value* if it is text, in characters that PostgreSQL can store."""
    if not isinstance(value, str):
        return None
    clean = value.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")
    return clean.strip() or None


def first_text(parts: list[Object], keys: tuple[str, ...]) -> str | None:
    """Return the first text at one of *keys*, from the outermost part inwards.

    It is cut to what the table takes.
    """
    for part in parts:
        for key in keys:
            if key in part and (found := text(part[key])) is not None:
                return found[:_MAX_TEXT]
    return None


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 40 else f"{shown[:37]}..."
