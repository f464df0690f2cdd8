"""What an event says about itself, whatever it is about."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyapp.arguments import MAX_ID_LENGTH
from pyapp.errors import InvalidPayloadError
from pyapp.storable import storable_text
from pyapp.stripe_sync.mirror import to_json
from pyapp.stripe_sync.shapes import object_id


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


def read_event(body: str | Mapping[str, Any], livemode: bool | None = None) -> Event:
    """Return the event that *body*, JSON or what it says, describes.

    One of a connected account is not ours, nor one of the other mode than *livemode*.

    Raises:
        InvalidPayloadError: it does not describe one.
    """
    try:
        shape = _object(_read_json(body) if isinstance(body, str) else body)
        text = body if isinstance(body, str) and _is_storable(body) else to_json(shape)
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


def _read_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    # NaN and infinities are Python's; jsonb refuses them.
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
