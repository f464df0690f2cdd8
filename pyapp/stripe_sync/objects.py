"""Read Stripe's JSON: events, and customers and subscriptions as snapshots.

A snapshot is a dictionary with the columns of `app.stripe_customers` or
`app.stripe_subscriptions` as keys, and a subscription's items; its times are ISO 8601
text. All API versions are read: before 2025-03-31 a subscription had the period, not
its items; the oldest had a plan instead of items.
"""

import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache
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
    """Return the snapshot of a customer, without `as_of`.

    Raises:
        ValueError: a field is missing or wrong; the text names it.
    """
    is_deleted = is_deleted or _read_flag(customer, "deleted")
    if not is_deleted:
        _require(customer, "created")
    return {
        "id": _read_identifier("id", customer.get("id")),
        "claimed_user_id": read_claim(customer),
        "email": customer.get("email"),
        "is_deleted": is_deleted,
        "created_at": _read_time(customer, "created"),
    }


def read_subscription(subscription: JsonObject) -> dict[str, Any]:
    """Return the snapshot of a subscription with all its items, without `as_of`.

    Raises:
        ValueError: a field is missing or wrong; the text names it.
    """
    pause = _read_field(subscription, "pause_collection")
    # Before 2016 a subscription had its start only.
    names = ("created", "start_date", "start")
    began = next((n for n in names if subscription.get(n) is not None), "created")
    _require(subscription, began)
    return {
        "id": _read_identifier("id", subscription.get("id")),
        "customer_id": _read_identifier(
            "customer", object_id(subscription.get("customer"))
        ),
        "status": _read_identifier("status", subscription.get("status")),
        "billing_cycle_anchor": _read_time(subscription, "billing_cycle_anchor"),
        "cancel_at": _read_time(subscription, "cancel_at"),
        "cancel_at_period_end": _read_flag(subscription, "cancel_at_period_end"),
        "canceled_at": _read_time(subscription, "canceled_at"),
        "trial_end": _read_time(subscription, "trial_end"),
        "pause_behavior": pause.get("behavior"),
        "pause_resumes_at": _read_time(pause, "resumes_at"),
        "created_at": _read_time(subscription, began),
        "claimed_user_id": read_claim(subscription),
        "items": _read_items(subscription),
    }


def has_more_items(subscription: JsonObject) -> bool:
    """Return True if the subscription has more items than the ten in the object."""
    items = subscription.get("items")
    return isinstance(items, Mapping) and bool(items.get("has_more"))


def read_claim(claiming: JsonObject) -> str | None:
    """Return the user id in an object's metadata, None if there is no valid one."""
    return read_user_id(_read_field(claiming, "metadata").get("user_id"))


def find_invoice_subscription(invoice: JsonObject) -> str | None:
    """Return the id of the subscription that an invoice bills, if there is one.

    Raises:
        ValueError: a field is wrong; the text names it.
    """
    details = _read_field(_read_field(invoice, "parent"), "subscription_details")
    return object_id(details.get("subscription") or invoice.get("subscription"))


def object_id(value: Any) -> str | None:
    """Return the id of an object given by its id or expanded; None if absent."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return value if isinstance(value, str) and value else None


def find_id(listed: Any) -> str | None:
    """Return the id of a listed object; None if it has no valid id."""
    try:
        return require_id(listed)
    except ValueError:
        return None


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
        _read_seconds(created)
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
    # Most texts have no escape, and one character is found faster than two.
    if "\\" not in text:
        return True
    # jsonb refuses NUL and lone surrogates; escaped surrogate pairs are rare.
    return "\\u0000" not in text and "\\ud" not in text and "\\uD" not in text


def _read_json(text: str, *, allow_constants: bool) -> tuple[Any, bool]:
    """Return the decoded JSON, and whether all of its numbers became numbers."""
    _check_levels(text)
    try:
        # A function that reads integers would take half as long as all the rest.
        return _DECODER.decode(text), True
    except json.JSONDecodeError:
        raise
    except ValueError:
        # A number that Python or jsonb cannot hold.
        return _read_numbers_as_text(text, allow_constants), False


def _read_float(number: str) -> float:
    value = float(number)
    # A number that underflows to 0 may have more decimals than jsonb holds.
    is_lost = value == 0 and re.search("[1-9]", number.lower().partition("e")[0])
    if is_lost or math.isinf(value) or len(number) > _MAX_DIGITS:
        raise ValueError("the number cannot be held")
    return value


def _refuse_constant(name: str) -> Any:
    # Python reads NaN and Infinity; jsonb refuses them.
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_float=_read_float, parse_constant=_refuse_constant)


def _read_numbers_as_text(text: str, allow_constants: bool) -> Any:
    """Return the decoded JSON, in which numbers that cannot be held are text."""

    def read_float(number: str) -> float | str:
        try:
            return _read_float(number)
        except ValueError:
            return number

    def read_int(number: str) -> int | str:
        return number if len(number) > _MAX_DIGITS else int(number)

    return json.loads(
        text,
        parse_constant=str if allow_constants else _refuse_constant,
        parse_float=read_float,
        parse_int=read_int,
    )


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
    try:
        return _read_seconds(value)
    except TypeError:
        raise ValueError("created is not a number of seconds") from None
    except (OSError, OverflowError, ValueError):
        raise ValueError("created is out of range") from None


def _read_seconds(value: Any) -> datetime:
    """Return a time that a session in any time zone can read from the database.

    Raises:
        TypeError: it is not a number.
        ValueError, OverflowError, OSError: it is not in the years 2 to 9998.
    """
    if isinstance(value, bool):
        raise TypeError
    moment = datetime.fromtimestamp(value, UTC)
    if not 2 <= moment.year <= 9998:
        raise OverflowError
    return moment


def _read_items(subscription: JsonObject) -> list[dict[str, Any]]:
    """Return the items; a subscription of the oldest API versions is its own item."""
    listed = subscription.get("items")
    if isinstance(listed, Mapping):
        listed = listed.get("data")
    if listed is None:
        listed = [subscription] if subscription.get("plan") else []
    if not isinstance(listed, list) or not all(isinstance(i, Mapping) for i in listed):
        raise ValueError("items is not a list of objects")
    items = [_read_item(item, subscription) for item in listed]
    if len({item["id"] for item in items}) < len(items):
        raise ValueError("two items have the same id")
    return items


def _read_item(item: JsonObject, subscription: JsonObject) -> dict[str, Any]:
    price = item.get("price") or item.get("plan")
    price_id = object_id(price)
    quantity = item.get("quantity")
    if quantity is not None and type(quantity) is not int:
        raise ValueError("quantity of an item is not a whole number")
    return {
        "id": _read_identifier("id of an item", object_id(item) or subscription["id"]),
        "price_id": (
            _read_identifier("price of an item", price_id) if price_id else None
        ),
        "unit_amount": _read_amount(price) if isinstance(price, Mapping) else None,
        "quantity": quantity,
        "current_period_start": _read_period(item, subscription, "start"),
        "current_period_end": _read_period(item, subscription, "end"),
    }


def _read_amount(price: JsonObject) -> str | None:
    """Return the amount of a price or legacy plan; None if it has tiers, or none."""
    for name in ("unit_amount", "unit_amount_decimal", "amount", "amount_decimal"):
        value = price.get(name)
        if value is None:
            continue
        try:
            amount = Decimal(value)
        except (InvalidOperation, TypeError, ValueError):
            raise ValueError(f"{name} of a price is not a number") from None
        if not amount.is_finite():
            raise ValueError(f"{name} of a price is not a number")
        return str(amount)
    return None


def _read_period(item: JsonObject, subscription: JsonObject, end: str) -> str | None:
    name = f"current_period_{end}"
    return _read_time(item if item.get(name) is not None else subscription, name)


def _require(stripe_object: JsonObject, name: str) -> None:
    if stripe_object.get(name) is None:
        raise ValueError(f"{name} is missing")


def _read_field(stripe_object: JsonObject, name: str) -> JsonObject:
    """Return a field that is an object; an absent or empty one is an empty object."""
    value = stripe_object.get(name) or {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is not an object")
    return value


def _read_flag(stripe_object: JsonObject, name: str) -> bool:
    value = stripe_object.get(name)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{name} is not true or false")
    return bool(value)


def _read_time(stripe_object: JsonObject, name: str) -> str | None:
    seconds = stripe_object.get(name)
    if seconds is None:
        return None
    try:
        return _format_seconds(seconds)
    except (OSError, OverflowError, TypeError, ValueError):
        raise ValueError(f"{name} is not a number of seconds in range") from None


# The times of one object are often equal. 1 and True are, too.
@lru_cache(maxsize=1024, typed=True)
def _format_seconds(seconds: Any) -> str:
    return _read_seconds(seconds).isoformat()
