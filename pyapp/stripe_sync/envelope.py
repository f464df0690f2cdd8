"""What an event says about itself, whatever it is about."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyapp._core.sanitize import storable_text
from pyapp._core.validation import MAX_ID_LENGTH
from pyapp.errors import InvalidPayloadError
from pyapp.stripe_sync.mirror import to_json
from pyapp.stripe_sync.shapes import object_id

# Python reads no deeper, in some versions, and the server's stack has an end, too.
MAX_LEVELS = 900
# A float has no more than 770 digits that count; jsonb holds some ten thousand.
_MAX_DIGITS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """A verified event; `text` is what is stored of it."""

    id: str
    type: str
    api_version: str | None
    created_at: datetime
    object: Mapping[str, Any]
    is_ours: bool
    text: str

    @property
    def lock_key(self) -> str:
        """Return the customer it is about, or what else others may be about too."""
        if self.object.get("object") == "customer":
            customer = None
        else:
            customer = object_id(self.object.get("customer"))
        return customer or object_id(self.object) or self.id

    @property
    def outline(self) -> str:
        """Return what can be stored of an event that jsonb does not hold: its text."""
        return to_json(
            {
                "id": self.id,
                "object": "event",
                "type": self.type,
                "created": int(self.created_at.timestamp()),
                "unstorable": self.text,
            }
        )


def read_event(body: str | Mapping[str, Any], livemode: bool | None = None) -> Event:
    """Return the event that *body*, JSON or what it says, describes.

    One of a connected account is not ours, nor one of the other mode than *livemode*.
    What is stored of it can be read by this again: a number that jsonb or Python does
    not hold is text in it.

    Raises:
        InvalidPayloadError: it does not describe one.
    """
    try:
        given = body if isinstance(body, str) else json.dumps(body)
        # An event from Stripe's library may hold what JSON does not allow: Infinity.
        whole, is_exact = _read_json(given, has_constants=given is not body)
        shape = _object(whole)
        text = given if is_exact and _is_storable(given) else to_json(shape)
        version = shape.get("api_version")
        return Event(
            id=_name(shape["id"]),
            type=_name(shape["type"]),
            api_version=None if version is None else _name(version),
            created_at=datetime.fromtimestamp(shape["created"], UTC),
            object=_object(shape["data"]["object"]),
            is_ours=not shape.get("account")
            and livemode in (None, shape.get("livemode", livemode)),
            text=text,
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as exc:
        raise InvalidPayloadError(
            f"this is not a Stripe event with a snapshot: {type(exc).__name__}"
        ) from exc


def _is_storable(text: str) -> bool:
    # jsonb refuses NULs and halves of characters; whole ones written so are rare.
    return "\\u0000" not in text and "\\ud" not in text and "\\uD" not in text


def _read_json(text: str, *, has_constants: bool) -> tuple[Any, bool]:
    """Return what the JSON says, and whether all of its numbers are held as numbers."""
    is_exact = True

    def as_text(number: str) -> str:
        nonlocal is_exact
        is_exact = False
        return number

    def read_float(number: str) -> float | str:
        value = float(number)
        # What is too small for a float has more decimals than jsonb may hold.
        is_lost = value == 0 and re.search("[1-9]", number.lower().partition("e")[0])
        if is_lost or math.isinf(value) or len(number) > _MAX_DIGITS:
            return as_text(number)
        return value

    def read_int(number: str) -> int | str:
        return as_text(number) if len(number) > _MAX_DIGITS else int(number)

    _check_levels(text)
    whole = json.loads(
        text,
        # NaN and infinities are Python's; jsonb refuses them.
        parse_constant=as_text if has_constants else _refuse_constant,
        parse_float=read_float,
        parse_int=read_int,
    )
    return whole, is_exact


def _check_levels(text: str) -> None:
    # Few have so many brackets; within strings they count as well.
    if text.count("[") + text.count("{") <= MAX_LEVELS:
        return
    depth, is_text, is_escaped = 0, False, False
    for character in text:
        if is_text:
            is_text = is_escaped or character != '"'
            is_escaped = character == "\\" and not is_escaped
        elif character == '"':
            is_text = True
        elif character in "[{":
            depth += 1
            if depth > MAX_LEVELS:
                raise ValueError("too many levels")
        elif character in "]}":
            depth -= 1


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError
    return dict(value)


def _name(value: Any) -> str:
    """Return an id or a type, which the database keeps as it is, or raise."""
    if not isinstance(value, str) or not value or len(value) > MAX_ID_LENGTH:
        raise TypeError
    if storable_text(value) != value:
        raise ValueError
    return value
