"""Arguments to try, by the type of the parameter, each with a name.

Values of another type come from WRONG_TYPES and are refused. Values of the parameter's
type are refused or accepted, and harmless in both cases.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Literal, get_origin
from uuid import UUID

from pyapp.pricing import PublishedPrice


class Raising:
    """An object whose repr raises an error."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


class NoOffset(tzinfo):
    """A time zone without an offset."""

    def utcoffset(self, _: datetime | None) -> None:
        return None

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "nowhere"


def zone(hours: int) -> timezone:
    return timezone(timedelta(hours=hours, minutes=59 if hours > 0 else -59))


def published(**values: Any) -> PublishedPrice:
    standard = {"cost": None, "other_cost": None, "is_standard": True, "reason": None}
    return PublishedPrice(**{**standard, **values})


NOON = datetime(2026, 2, 28, 12, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
ESCAPE = "\x1b[2J\x1b]0;owned\x07"

# One value of each type, wrong for a parameter of another type.
WRONG_TYPES: Mapping[str, Any] = {
    "None": None,
    "a bool": True,
    "an int": 7,
    "a float": 0.5,
    "NaN as a float": float("nan"),
    "a Decimal": Decimal(7),
    "text": "seven",
    "empty text": "",
    "digits": "7",
    "bytes": b"7",
    "a list": [7],
    "a dict": {"a": 7},
    "a tuple": (),
    "a UUID": UUID(int=7),
    "a date": date(2026, 2, 28),
    "a datetime": NOON,
    "a timedelta": timedelta(days=7),
    "a class": int,
    "an object that cannot be shown": Raising(),
}

# Strings with a special meaning in SQL, COPY, JSON, terminals or Python.
TEXTS: Mapping[str, str] = {
    "empty": "",
    "a space": " ",
    "other white space": "\t\r\n\v\f\u00a0\u2003",
    "NUL": "a\0b",
    "only NUL": "\0",
    "a lone high surrogate": "a\ud83d",
    "a lone low surrogate": "\udc00a",
    "a pair of surrogates": "\ud83d\ude00",
    "a quote": "O'Brien",
    "DROP TABLE": "'; DROP TABLE app.users; --",
    "an always true condition": "' OR '1'='1",
    "a union": "' UNION SELECT token_hash FROM app.sessions --",
    "an escaped quote": "\\'; DELETE FROM app.users; --",
    "a dollar quote": "$$; DROP SCHEMA app CASCADE; $$",
    "a comment": "/* */ -- ",
    "placeholders": "%s %(email)s %% %",
    "parameters": ":email ::text $1 {0} ${HOME}",
    "backslashes": "\\ \\\\ \\x00 \\N \\.",
    "COPY's end": "\\.\n\\N\t\n",
    "an array": '{1,"2",NULL}',
    "JSON": '{"a": [1, null]}',
    "null": "null",
    "right to left": "\u202e\u05d0\u05d1\u200f",
    "combining": "a" + "\u0301" * 100,
    "outside the first plane": "\U0001f469\u200d\U0001f4bb",
    "not a character": "\ufffe\uffff",
    "an escape sequence": ESCAPE,
    "carriage return": "good\rbad",
    "lines": "one\ntwo\r\nthree",
    "markup": "[red]a[/red] [link=x]",
    "a path": "../../etc/passwd",
    "long": "x" * 10_000,
    "random-looking, too long for an index": "".join(
        chr(0x4E00 + n * 7919 % 20_000) for n in range(20_000)
    ),
}

TEN_MEGABYTES = "x" * 10_000_000

COUNTS: Mapping[str, int] = {
    "zero": 0,
    "minus one": -1,
    "beyond int4": 2**31,
    "beyond int8": 2**63,
    "the least int8": -(2**63),
    "of 401 digits": 10**400,
    "of 5,001 digits": 10**5000,
}

AMOUNTS: Mapping[str, Decimal] = {
    "zero": Decimal(0),
    "minus zero": Decimal("-0"),
    "minus one": Decimal(-1),
    "a little less than nothing": Decimal("-1E-20"),
    "NaN": Decimal("NaN"),
    "signalling NaN": Decimal("sNaN"),
    "infinity": Decimal("Infinity"),
    "minus infinity": Decimal("-Infinity"),
    "1e400": Decimal("1E400"),
    "1e200000": Decimal("1E200000"),
    "1e-400": Decimal("1E-400"),
    "1e-20000": Decimal("1E-20000"),
    "of 1,000 digits": Decimal("1" * 1000),
}

TIMES: Mapping[str, datetime] = {
    "without a zone": NOON.replace(tzinfo=None),
    "of a zone without offset": NOON.replace(tzinfo=NoOffset()),
    "the first": datetime.min.replace(tzinfo=UTC),
    "the last": datetime.max.replace(tzinfo=UTC),
    "before the first": datetime.min.replace(tzinfo=zone(23)),
    "after the last": datetime.max.replace(tzinfo=zone(-23)),
    "far east": NOON.replace(tzinfo=zone(23)),
    "far west": NOON.replace(tzinfo=zone(-23)),
    "the end of year 9998": datetime(9998, 12, 31, 23, 59, tzinfo=UTC),
    "before PostgreSQL's epoch": datetime(1999, 12, 31, tzinfo=UTC),
    "year 2": datetime(2, 1, 1, tzinfo=UTC),
}

DURATIONS: Mapping[str, timedelta] = {
    "nothing": timedelta(0),
    "a microsecond": timedelta(microseconds=1),
    "a microsecond back": timedelta(microseconds=-1),
    "a day back": timedelta(days=-1),
    "the longest": timedelta.max,
    "the longest back": timedelta.min,
    "ten thousand years": timedelta(days=3_652_500),
    "a century": timedelta(days=36_525),
}

UUIDS: Mapping[str, UUID] = {
    "of no row": UUID("00000000-0000-4000-8000-000000000000"),
    "the least": UUID(int=0),
    "the greatest": UUID(int=2**128 - 1),
}

# Strings are not UUIDs; they may be malformed.
UUID_TEXTS: Mapping[str, str] = {
    "a UUID as text": "00000000-0000-4000-8000-000000000000",
    "half a UUID": "00000000-0000-4000",
    "a UUID with a quote": "00000000-0000-4000-8000-000000000000'",
    "a UUID in braces": "{00000000-0000-4000-8000-000000000000}",
    "a UUID with NUL": "00000000-0000-4000-8000-00000000000\0",
}

PUBLISHED: Mapping[str, PublishedPrice] = {
    **{f"cost {name}": published(cost=value) for name, value in AMOUNTS.items()},
    **{f"rest {name}": published(other_cost=value) for name, value in AMOUNTS.items()},
    **{f"because {name}": published(reason=value) for name, value in TEXTS.items()},
}

FUNCTIONS: Mapping[str, Any] = {"without arguments": lambda: None}

BY_TYPE: Mapping[Any, Mapping[str, Any]] = {
    str: TEXTS,
    int: COUNTS,
    Decimal: AMOUNTS,
    datetime: TIMES,
    timedelta: DURATIONS,
    UUID: {**UUIDS, **UUID_TEXTS},
    PublishedPrice: PUBLISHED,
    Callable: FUNCTIONS,
}


def values_for(kind: Any, *, is_optional: bool) -> Iterator[tuple[str, Any]]:
    """Yield values for a parameter of this type by name, wrong types first."""
    for name, value in WRONG_TYPES.items():
        is_right = isinstance(value, kind) if isinstance(kind, type) else False
        if not is_right and not (is_optional and value is None):
            yield name, value
    kind = {Literal: str, Callable: Callable}.get(get_origin(kind), kind)
    assert kind in BY_TYPE, (
        f"no values to try for {kind}: add some to BY_TYPE in tests/bad_input/values.py"
    )
    yield from BY_TYPE[kind].items()


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)

# Values for JSON parameters, all of which are stored.
JSONS: Mapping[str, Any] = {
    **WRONG_TYPES,
    "10,000 levels": nested(10_000),
    "a circle": CIRCLE,
    "NUL in a key": {"a\0": 1},
    "a surrogate in a key": {"\ud800": "\udfff"},
    "NaN inside": [float("nan"), float("inf"), -float("inf")],
    "a number of 5,001 digits": [10**5000],
    "a number beyond double": [Decimal("1E400"), 1e308],
    "keys of many types": {1: 1, "1": 2, None: 3, False: 4, (1,): 5},
    "a lone surrogate": "\ud800",
    "a thousand lists": [[]] * 1000,
}

# Values that are not messages, among messages.
MESSAGES: Mapping[str, Any] = {
    "none": [],
    "text": "text",
    "lists": [[], [7]],
    "a dict": {"id": 7},
    **{f"{name} in a list": [value] for name, value in WRONG_TYPES.items()},
}
