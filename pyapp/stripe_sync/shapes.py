"""What Stripe's objects look like, before and since API 2025-03-31.

Only what the mirror keeps is read, under the names of its columns; times become text.
An unknown status, an item without a price or a missing field is no error here; what
a row cannot do without, the database refuses.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pyapp._core.sanitize import storable_text
from pyapp._core.validation import MAX_ID_LENGTH

Json = Mapping[str, Any]


def read_customer(shape: Json, *, is_deleted: bool = False) -> dict[str, Any]:
    """Return the customer as `upsert_snapshots` takes it."""
    metadata = shape.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise ValueError("metadata is not an object")
    return {
        "id": shape["id"],
        "user_id": read_user_id(metadata.get("user_id")),
        "email": shape.get("email"),
        "is_deleted": is_deleted or bool(shape.get("deleted")),
        "created_at": _moment(shape.get("created")),
    }


def read_subscription(shape: Json) -> dict[str, Any]:
    """Return the subscription as `upsert_snapshots` takes it.

    The item whose period ends first gives period and price; before 2025-03-31 items had
    no period of their own, the subscription had it.
    """
    items = (shape.get("items") or {}).get("data") or []
    item: Json = min(items, key=_item_end, default={})
    price = item.get("price") or item.get("plan") or shape.get("plan")
    return {
        "id": shape["id"],
        "customer_id": object_id(shape.get("customer")),
        "status": shape.get("status"),
        "price_id": object_id(price),
        "current_period_start": _period(item, shape, "current_period_start"),
        "current_period_end": _period(item, shape, "current_period_end"),
        "billing_cycle_anchor": _moment(shape.get("billing_cycle_anchor")),
        "cancel_at_period_end": bool(shape.get("cancel_at_period_end")),
        "canceled_at": _moment(shape.get("canceled_at")),
        "created_at": _moment(shape.get("created")),
    }


def find_invoice_subscription(shape: Json) -> str | None:
    """Return the id of the subscription that an invoice bills, if there is one."""
    parent = shape.get("parent") or {}
    details = parent.get("subscription_details") or {}
    return object_id(details.get("subscription") or shape.get("subscription"))


def object_id(value: Any) -> str | None:
    """Return the id of an object that is named, or expanded, or absent."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return value if isinstance(value, str) and value else None


def find_id(shape: Any) -> str | None:
    """Return the id of what a list shows, None if it has none that can be sent."""
    name = object_id(shape) if isinstance(shape, Mapping) else None
    if name is None or len(name) > MAX_ID_LENGTH or storable_text(name) != name:
        return None
    return name


def find_last_id(shapes: Sequence[Any]) -> str | None:
    """Return the id of the last that has one, None if none has."""
    return next(filter(None, map(find_id, reversed(shapes))), None)


def find_created(shape: Any) -> int | None:
    """Return when Stripe created what a list shows, or None if it has no valid time."""
    created = shape.get("created") if isinstance(shape, Mapping) else None
    if not isinstance(created, int) or isinstance(created, bool):
        return None
    try:
        datetime.fromtimestamp(created, UTC)
    except (OSError, OverflowError, ValueError):
        return None
    return created


def read_user_id(value: Any) -> str | None:
    """Return what somebody wrote into a field for a user's id, if it is a UUID."""
    try:
        return str(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError):
        return None


def _item_end(item: Json) -> float:
    end = item.get("current_period_end")
    if end is None:
        return float("inf")
    if not isinstance(end, int | float):
        raise ValueError("current_period_end is not a number of seconds")
    return end


def _period(item: Json, shape: Json, name: str) -> str | None:
    value = item.get(name)
    return _moment(shape.get(name) if value is None else value)


def _moment(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OSError, OverflowError, TypeError, ValueError):
        raise ValueError("a time is not a number of seconds in range") from None
