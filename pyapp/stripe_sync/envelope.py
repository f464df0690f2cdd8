"""What an event says about itself, whatever it is about."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyapp.errors import InvalidPayloadError
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


def read_event(body: str | Mapping[str, Any]) -> Event:
    """Return the event that *body*, JSON or what it says, describes.

    Raises:
        InvalidPayloadError: it does not describe one.
    """
    try:
        shape = json.loads(body) if isinstance(body, str) else body
        text = body if isinstance(body, str) and _is_storable(body) else to_json(shape)
        return Event(
            id=_text(shape["id"]),
            type=_text(shape["type"]),
            api_version=shape.get("api_version"),
            created_at=datetime.fromtimestamp(shape["created"], UTC),
            object=dict(shape["data"]["object"]),
            is_ours=not shape.get("account"),
            text=text,
        )
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as exc:
        raise InvalidPayloadError(
            f"this is not a Stripe event with a snapshot: {type(exc).__name__}"
        ) from exc


def _is_storable(text: str) -> bool:
    # jsonb refuses NULs and halves of characters; whole ones written so are rare.
    return "\\u0000" not in text and "\\ud" not in text and "\\uD" not in text


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value
