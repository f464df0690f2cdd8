"""Read Stripe's JSON: events, and customers and subscriptions as snapshots.

A snapshot is a dictionary with the columns of `app.stripe_customers` or
`app.stripe_subscriptions` as keys; its times are ISO 8601 text. API versions before and
since 2025-03-31 are read. Missing and unknown values are passed on as they are; the
database refuses a row without the values that it needs.
"""

import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyapp._core.sanitize import json_text, storable_text
from pyapp._core.validation import MAX_ID_LENGTH, shown
from pyapp.errors import InvalidPayloadError

JsonObject = Mapping[str, Any]

# Some Python versions and PostgreSQL's default stack do not read deeper nesting.
MAX_LEVELS = 900
# A float has at most 770 significant digits; jsonb holds some ten thousand.
_MAX_DIGITS = 1000


@dataclass(frozen=True, slots=True)
class Event:
    """A verified event; `text` is the JSON to store.

    `foreign` says why the event is not ours: it is of a connected account, of an
    organization, or of the other mode. It is None for an event of our own.
    """

    id: str
    type: str
    api_version: str | None
    created_at: datetime
    object: JsonObject
    foreign: str | None
    text: str

    @property
    def is_ours(self) -> bool:
        """Return True unless the event is of another account or mode."""
        return self.foreign is None

    @property
    def lock_key(self) -> str:
        """Return the advisory-lock key: customer id, else object id, else event id."""
        if self.object.get("object") == "customer":
            customer = None
        else:
            customer = object_id(self.object.get("customer"))
        return customer or object_id(self.object) or self.id

    @property
    def outline(self) -> str:
        """Return JSON that can be stored even if jsonb refuses `text`."""
        return json_text(
            {
                "id": self.id,
                "object": "event",
                "type": self.type,
                "created": int(self.created_at.timestamp()),
                "unstorable": self.text,
            }
        )


def read_event(body: str | JsonObject, livemode: bool | None = None) -> Event:
    """Return the event in *body*, which is JSON text or decoded JSON.

    With *livemode*, an event of the other mode is not ours. `read_event` can read
    `Event.text` again; numbers that jsonb or Python cannot hold are text in it.

    Raises:
        InvalidPayloadError: *body* is not a Stripe event; the message says why, and
            quotes nothing but ids and types.
    """
    try:
        given = body if isinstance(body, str) else json.dumps(body)
        # An event decoded by Stripe's library may contain Infinity; JSON may not.
        document, is_exact = _read_json(given, allow_constants=given is not body)
    except _TooDeepError:
        raise InvalidPayloadError(
            f"not an event: it is nested more than {MAX_LEVELS} levels deep"
        ) from None
    except (ValueError, TypeError, RecursionError) as exc:
        raise InvalidPayloadError("not an event: it is not JSON") from exc
    try:
        event = _read_mapping("it", document)
        _check_is_event(event)
        version = event.get("api_version")
        data = _read_mapping("data", event.get("data"))
        found = Event(
            id=_read_identifier("id", event.get("id")),
            type=_read_identifier("type", event.get("type")),
            api_version=(
                None if version is None else _read_identifier("api_version", version)
            ),
            created_at=_read_created(event.get("created")),
            object=_read_mapping("data.object", data.get("object")),
            foreign=_find_other_owner(event, livemode),
            text=given if is_exact and _is_storable(given) else json_text(event),
        )
    except ValueError as exc:
        raise InvalidPayloadError(f"not an event: {exc}") from exc
    return found


def _check_is_event(event: JsonObject) -> None:
    """Raise ValueError if *event* is another of Stripe's objects."""
    kind, event_type = event.get("object"), event.get("type")
    if kind == "v2.core.event" or ("related_object" in event and "data" not in event):
        raise ValueError(
            f"{_show(event_type, 'it')} is a thin event, which contains no object;"
            " let the event destination send snapshots (payload style: snapshot)"
        )
    if isinstance(event.get("error"), Mapping):
        raise ValueError("it is an error of Stripe's API")
    if isinstance(kind, str) and kind != "event":
        raise ValueError(f"it is an object of type {_show(kind, 'unknown')}")


def _find_other_owner(event: JsonObject, livemode: bool | None) -> str | None:
    """Return why the event is not of our account and mode; None if it is."""
    if account := event.get("account"):
        return f"it is of the connected account {_show(account, '(not an id)')}"
    if context := event.get("context"):
        return f"it is of the organization's account {_show(context, '(not an id)')}"
    if livemode is None or event.get("livemode", livemode) == livemode:
        return None
    expected = "live" if livemode else "test"
    return f"it is of the other mode; only {expected} events are applied"


def _show(value: Any, otherwise: str) -> str:
    """Return an id or a type as it is; *otherwise* if it has not the form of one."""
    is_short = isinstance(value, str) and re.fullmatch(r"[\w./-]{1,100}", value)
    return value if is_short else otherwise


def read_customer(customer: JsonObject, *, is_deleted: bool = False) -> dict[str, Any]:
    """Return the snapshot of a customer, without `as_of`."""
    metadata = customer.get("metadata") or {}
    if not isinstance(metadata, Mapping):
        raise ValueError("metadata is not an object")
    return {
        "id": customer["id"],
        "user_id": read_user_id(metadata.get("user_id")),
        "email": customer.get("email"),
        "is_deleted": is_deleted or bool(customer.get("deleted")),
        "created_at": _read_time(customer.get("created")),
    }


def read_subscription(subscription: JsonObject) -> dict[str, Any]:
    """Return the snapshot of a subscription, without `as_of`.

    The item whose period ends first gives the period and the price. Before 2025-03-31
    the subscription had the period, not its items.
    """
    items = (subscription.get("items") or {}).get("data") or []
    item: JsonObject = min(items, key=_item_end, default={})
    price = item.get("price") or item.get("plan") or subscription.get("plan")
    return {
        "id": subscription["id"],
        "customer_id": object_id(subscription.get("customer")),
        "status": subscription.get("status"),
        "price_id": object_id(price),
        "current_period_start": _period(item, subscription, "current_period_start"),
        "current_period_end": _period(item, subscription, "current_period_end"),
        "billing_cycle_anchor": _read_time(subscription.get("billing_cycle_anchor")),
        "cancel_at_period_end": bool(subscription.get("cancel_at_period_end")),
        "canceled_at": _read_time(subscription.get("canceled_at")),
        "created_at": _read_time(subscription.get("created")),
    }


def find_invoice_subscription(invoice: JsonObject) -> str | None:
    """Return the id of the subscription that an invoice bills, if there is one."""
    parent = invoice.get("parent") or {}
    details = parent.get("subscription_details") or {}
    return object_id(details.get("subscription") or invoice.get("subscription"))


def object_id(value: Any) -> str | None:
    """Return the id of an object given by its id or expanded; None if absent."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return value if isinstance(value, str) and value else None


def find_id(listed: Any) -> str | None:
    """Return the id of a listed object; None if it has no valid id."""
    found = object_id(listed) if isinstance(listed, Mapping) else None
    if found is None or len(found) > MAX_ID_LENGTH or storable_text(found) != found:
        return None
    return found


def describe_id(listed: Any) -> str:
    """Return the id of a listed object for a report, valid or not."""
    if not isinstance(listed, Mapping):
        return "(not an object)"
    found = object_id(listed)
    if found is None:
        return "(no id)"
    return found if find_id(listed) else shown(found)


def require_id(listed: Any) -> str:
    """Return the id of a listed object.

    Raises:
        ValueError: it is not an object, or has no valid id.
    """
    return _read_identifier("id", _read_mapping("it", listed).get("id"))


def find_last_id(listed: Sequence[Any]) -> str | None:
    """Return the last valid id of the listed objects; None if there is none."""
    return next(filter(None, map(find_id, reversed(listed))), None)


def count_without_id(listed: Iterable[Any]) -> int:
    """Return how many objects precede the first one with a valid id."""
    count = 0
    for one in listed:
        if find_id(one):
            break
        count += 1
    return count


def find_created(listed: Any) -> int | None:
    """Return `created` of a listed object; None if it is not a valid time."""
    created = listed.get("created") if isinstance(listed, Mapping) else None
    if not isinstance(created, int) or isinstance(created, bool):
        return None
    try:
        datetime.fromtimestamp(created, UTC)
    except (OSError, OverflowError, ValueError):
        return None
    return created


def read_user_id(value: Any) -> str | None:
    """Return the user id in a field that customers or integrations fill, if a UUID."""
    try:
        return str(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError):
        return None


class _TooDeepError(ValueError):
    """The JSON has more than MAX_LEVELS levels."""


def _is_storable(text: str) -> bool:
    # jsonb refuses NUL and lone surrogates; escaped surrogate pairs are rare.
    return "\\u0000" not in text and "\\ud" not in text and "\\uD" not in text


def _read_json(text: str, *, allow_constants: bool) -> tuple[Any, bool]:
    """Return the decoded JSON, and whether all of its numbers became numbers."""
    is_exact = True

    def keep_text(number: str) -> str:
        nonlocal is_exact
        is_exact = False
        return number

    def read_float(number: str) -> float | str:
        value = float(number)
        # A number that underflows to 0 may have more decimals than jsonb holds.
        is_lost = value == 0 and re.search("[1-9]", number.lower().partition("e")[0])
        if is_lost or math.isinf(value) or len(number) > _MAX_DIGITS:
            return keep_text(number)
        return value

    def read_int(number: str) -> int | str:
        return keep_text(number) if len(number) > _MAX_DIGITS else int(number)

    _check_levels(text)
    document = json.loads(
        text,
        # Python reads NaN and Infinity; jsonb refuses them.
        parse_constant=keep_text if allow_constants else _refuse_constant,
        parse_float=read_float,
        parse_int=read_int,
    )
    return document, is_exact


def _check_levels(text: str) -> None:
    # Most texts have too few brackets, those in strings included, to be too deep.
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
                raise _TooDeepError
        elif character in "]}":
            depth -= 1


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _read_mapping(name: str, value: Any) -> JsonObject:
    if value is None:
        raise ValueError(f"{name} is missing or null")
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is not an object")
    return value


def _read_identifier(name: str, value: Any) -> str:
    """Return an id or type that can be stored unchanged, or raise ValueError."""
    if value is None:
        raise ValueError(f"{name} is missing or null")
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_LENGTH:
        raise ValueError(f"{name} is not text of 1 to {MAX_ID_LENGTH} characters")
    if storable_text(value) != value:
        raise ValueError(f"{name} contains a character that cannot be stored")
    return value


def _read_created(value: Any) -> datetime:
    if value is None:
        raise ValueError("created is missing or null")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("created is not a number of seconds")
    try:
        return datetime.fromtimestamp(value, UTC)
    except (OSError, OverflowError, ValueError):
        raise ValueError("created is out of range") from None


def _item_end(item: JsonObject) -> float:
    end = item.get("current_period_end")
    if end is None:
        return float("inf")
    if not isinstance(end, int | float):
        raise ValueError("current_period_end is not a number of seconds")
    return end


def _period(item: JsonObject, subscription: JsonObject, name: str) -> str | None:
    value = item.get(name)
    return _read_time(subscription.get(name) if value is None else value)


def _read_time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OSError, OverflowError, TypeError, ValueError):
        raise ValueError("a time is not a number of seconds in range") from None
