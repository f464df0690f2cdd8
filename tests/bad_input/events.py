"""Signed events with one bad value, and signed bodies that are not events."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from tests.bad_input.values import ESCAPE
from tests.stripe_world import make_customer, make_event, make_subscription

# JSON text, because Python cannot write some of these values.
RAW_VALUES: Mapping[str, str] = {
    "null": "null",
    "true": "true",
    "zero": "0",
    "minus one": "-1",
    "a fraction": "0.5",
    "in year 1": "-62135596800",
    "in year 9999": "253402300799",
    "after year 9999": "253402300800",
    "beyond int8": "9223372036854775808",
    "a number of 401 digits": "1" + "0" * 400,
    "a number of 5,001 digits": "9" * 5001,
    "1e400": "1e400",
    "NaN": "NaN",
    "infinity": "-Infinity",
    "empty text": '""',
    "digits": '"1789041600"',
    "NUL": '"cus_\\u0000"',
    "a lone surrogate": '"cus_\\ud800"',
    "DROP TABLE": '"\'; DROP TABLE app.users; --"',
    "placeholders": '"%s %(id)s $1 :id"',
    "an escape sequence": json.dumps(ESCAPE),
    "right to left": '"\u202e\u05d0"',
    "a long text": json.dumps("x" * 100_000),
    "a text that no index holds": json.dumps(
        "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(9_000))
    ),
    "a list": "[]",
    "a list of lists": "[[[1]]]",
    "an object": "{}",
    "an object with an id": '{"id": "cus_1"}',
    "900 levels": "[" * 900 + "]" * 900,
    "10,000 levels": "[" * 10_000 + "]" * 10_000,
}

# Values for fields inside the event's object.
WITHIN = (
    "null",
    "true",
    "minus one",
    "in year 9999",
    "after year 9999",
    "1e400",
    "NaN",
    "digits",
    "NUL",
    "a lone surrogate",
    "DROP TABLE",
    "a text that no index holds",
    "a list of lists",
    "an object",
)

CUSTOMER = make_customer("cus_1", "00000000-0000-4000-8000-000000000000")
SUBSCRIPTION = make_subscription("sub_1", "cus_1")
INVOICE = {
    "id": "in_1",
    "object": "invoice",
    "customer": "cus_1",
    "parent": {"subscription_details": {"subscription": "sub_1"}},
}
CHECKOUT = {
    "id": "cs_1",
    "object": "checkout.session",
    "customer": "cus_1",
    "subscription": "sub_1",
    "client_reference_id": "00000000-0000-4000-8000-000000000000",
}
EVENTS: Mapping[str, Mapping[str, Any]] = {
    "customer.updated": CUSTOMER,
    "customer.subscription.updated": SUBSCRIPTION,
    "invoice.paid": INVOICE,
    "checkout.session.completed": CHECKOUT,
}
Path: TypeAlias = tuple[str | int, ...]
_PLACEHOLDER = "placeholder"


def event_paths(event_type: str) -> Iterator[Path]:
    """Yield the path of each value in an event of this type."""
    return _paths(json.loads(make_event(event_type, EVENTS[event_type])))


def bad_events(event_type: str, path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a name and an event for each bad value at *path*."""
    event = json.loads(make_event(event_type, EVENTS[event_type]))
    part = event
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = _PLACEHOLDER
    values = RAW_VALUES if len(path) == 1 else {n: RAW_VALUES[n] for n in WITHIN}
    for number, (name, raw) in enumerate(values.items()):
        if path != ("id",):
            event["id"] = f"evt_{event_type}_{'_'.join(map(str, path))}_{number}"
        body = json.dumps(event).replace(json.dumps(_PLACEHOLDER), raw)
        yield name, body.encode("utf-8", "surrogatepass")
    if path != ("id",):
        event["id"] += "_nothing"
        del part[path[-1]]
        yield "nothing", json.dumps(event).encode()


def _paths(value: Any) -> Iterator[Path]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (key,)
        if isinstance(inner, dict | list):
            yield from ((key, *rest) for rest in _paths(inner))


def _doubled(text: str) -> bytes:
    """Return an event with *text* at its end; the last of equal keys counts."""
    return make_event("customer.updated", CUSTOMER)[:-1] + text.encode() + b"}"


# Signed bodies that are not events.
BODIES: Mapping[str, bytes] = {
    "nothing": b"",
    "white space": b" \n",
    "null": b"null",
    "a number": b"7",
    "NaN": b"NaN",
    "text": b'"text"',
    "a list": b"[{}]",
    "an empty object": b"{}",
    "an event of API v2": b'{"id": "evt_1", "object": "v2.core.event"}',
    "half an object": b'{"id":',
    "HTML": b"<html></html>",
    "a form": b"id=evt_1&type=x",
    "bytes that are not UTF-8": b'{"id": "\xff\xfe"}',
    "UTF-16": '{"id": "evt_1"}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "NUL": b"\0" * 100,
    "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\3",
    "100,000 levels": b"[" * 100_000,
    "100,000 objects in objects": b'{"a":' * 100_000,
    "a number of 100,000 digits": b"9" * 100_000,
    "no object": _doubled(',"data":{"object":null}'),
    "data that is a list": _doubled(',"data":[]'),
}
TWO_IDS = _doubled(',"id":"evt_second"')
TWO_OBJECTS = _doubled(
    ',"data":{"object":{"id":"cus_2","object":"customer","created":1}}'
)
