"""Single values of a logged response, each validated before it is billed."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeAlias

from pyapp._core.sanitize import storable_text
from pyapp._core.validation import (
    MAX_ID_LENGTH,
    MAX_INTEGER,
    check_amount,
    check_count,
    shown,
)
from pyapp.errors import InvalidValueError

Object: TypeAlias = dict[str, Any]

_MAX_SECONDS = 253_402_300_799  # the end of the year 9999
_MAX_COST = Decimal(10) ** 9
_NUMBER = re.compile(r"-?\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII)


class BadUsageError(InvalidValueError):
    """A line has usage that cannot be billed; the message gives the reason."""


class UnknownUsageError(InvalidValueError):
    """A line of a known format has usage in an unknown form; the message says where."""


def count(usage: Object, key: str, *, required: bool = False) -> int:
    """Return the token count at *key*; 0 if it is absent and not *required*."""
    value = usage.get(key)
    if type(value) is int and 0 <= value <= MAX_INTEGER:
        return value
    return 0 if value is None and not required else check_count(key, value)


def inner(usage: Object, key: str) -> Object:
    """Return the object at *key*, empty if it is absent."""
    value = usage.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadUsageError(f"{key} is not an object")
    return value


def value_at(part: object, path: tuple[str, ...]) -> object:
    """Return the value at *path* of objects, or None if it does not exist."""
    for key in path:
        part = part.get(key) if isinstance(part, dict) else None
    return part


def number(value: object, limit: int = _MAX_SECONDS * 1000) -> int | float | None:
    """Return *value* if it is a number from 0 up to *limit*, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if 0 <= value <= limit else None
    return None


def moment(key: str, value: object) -> datetime:
    """Return the time in UTC: ISO 8601, or seconds or milliseconds since 1970.

    Seconds may be a text of 9 to 13 digits. A time without a time zone is in UTC.
    """
    try:
        if isinstance(value, str):
            if value.isdigit() and 9 <= len(value) <= 13:
                return moment(key, int(value))
            parsed = datetime.fromisoformat(value.strip())
            if parsed.tzinfo is UTC:
                return parsed
            zoned = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
            return zoned.astimezone(UTC)
        seconds = number(value)
        if seconds is not None:
            in_seconds = seconds if seconds <= _MAX_SECONDS else seconds / 1000
            return datetime.fromtimestamp(in_seconds, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise BadUsageError(f"{key} is not a time: {shown(value)}") from exc
    raise BadUsageError(f"{key} is not a time: {shown(value)}")


def moment_at(part: Object, key: str) -> datetime | None:
    """Return the time at *key*, or None if it is absent."""
    return None if part.get(key) is None else moment(key, part[key])


def cost(key: str, value: object) -> Decimal | None:
    """Return the number of USD, or None: Claude Code writes 0 for an unknown cost."""
    if isinstance(value, str):
        raise BadUsageError(f"{key} is not a cost: {shown(value)}")
    return amount(key, value) or None


def amount(key: str, value: object) -> Decimal | None:
    """Return the amount in USD, a number or its text; None if it is absent."""
    if value is None:
        return None
    written = value.strip() if isinstance(value, str) else repr(value)
    if isinstance(value, bool) or not _NUMBER.fullmatch(written):
        raise BadUsageError(f"{key} is not a cost: {shown(value)}")
    return check_amount(key, Decimal(written), _MAX_COST)


def text(
    value: object, make_storable: Callable[[str], str] = storable_text
) -> str | None:
    """Return *value* as storable text if it is text and not blank, else None."""
    if not isinstance(value, str):
        return None
    if not value.isascii() or "\0" in value:
        value = make_storable(value)
    return value.strip() or None


def hashed_text(value: object) -> str | None:
    """Return *value* as `text` does, with "?" for the invalid characters.

    The UUIDs of messages are computed from this text. Another replacement would change
    them, and a log that was imported before would be billed again.
    """
    return text(value, _with_question_marks)


def _with_question_marks(value: str) -> str:
    return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "?")


def first_text(
    parts: list[Object],
    keys: tuple[str, ...],
    clean: Callable[[object], str | None] = text,
) -> str | None:
    """Return the first text at one of *keys*, from the outermost part inwards.

    *clean* replaces its invalid characters. It is truncated to the maximum length of an
    id.
    """
    for part in parts:
        for key in keys:
            if key in part and (found := clean(part[key])) is not None:
                return found[:MAX_ID_LENGTH]
    return None


def first_count(part: Object, keys: tuple[str, ...]) -> int:
    """Return the count at the first of *keys* that is not null; 0 without one."""
    for key in keys:
        if part.get(key) is not None:
            return check_count(key, part[key])
    return 0
