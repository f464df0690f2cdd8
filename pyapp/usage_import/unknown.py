"""Finds usage in objects of no known format, so that it is not passed over."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orjson import JSONDecodeError, loads

from pyapp._core.new_messages import one_line
from pyapp.usage_import.fields import Object

_MAX_DEPTH = 16
_MAX_VALUES = 50_000
_MAX_ITEMS = 100  # of a list; the others are like them
_MAX_NAME = 200  # characters of a path
_MAX_TEXT = 1_000_000  # characters of a text that is parsed
# Words of a key, in snake case, that name usage or a price.
_WORDS = {
    "usage",
    "usages",
    "spend",
    "cost",
    "costs",
    "tokens",
    "token",
    "billed",
    "usd",
    "credits",
}
# Words that make it a limit, a price list or a secret.
_OTHERS = {
    "max",
    "min",
    "limit",
    "limits",
    "budget",
    "per",
    "price",
    "pricing",
    "window",
    "bytes",
    "overlap",
    "threshold",
    "remaining",
    "reset",
    "id",
    "ids",
    "type",
    "access",
    "refresh",
    "auth",
    "api",
    "expires",
    "at",
}
# Keys of what users and models say to each other.
_CONTENT = {
    "arguments",
    "content",
    "contents",
    "input",
    "logprobs",
    "parameters",
    "prompt",
    "text",
    "tools",
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def find_usage(line: Object) -> str | None:
    """Return the path of the first usage in *line*, such as `meta.tokens`, or None.

    Usage is a number greater than zero at a key that names tokens or a cost, or
    anywhere in an object that is at such a key; but not in what a model was asked or
    has answered. An object can also be written as a text.
    """
    left = _MAX_VALUES
    level: list[tuple[str, object, bool]] = [("", line, False)]
    for _ in range(_MAX_DEPTH):
        inner: list[tuple[str, object, bool]] = []
        for path, value, is_usage in level:
            for key, item in _items(value):
                left -= 1
                if left < 0:
                    return None
                name, named = path, is_usage
                if isinstance(key, str):
                    if key in _CONTENT and not is_usage:
                        continue
                    name = f"{path}.{key}" if path else key
                    named = _names_usage(key, is_usage)
                    if named and _is_amount(item):
                        return one_line(name[:_MAX_NAME])
                item = _object_in(item)
                if isinstance(item, dict | list):
                    inner.append((name, item, named))
        level = inner
    return None


def _items(value: object) -> Iterator[tuple[object, object]]:
    """Yield the keys and values of an object, or the first items of a list.

    An attribute of OpenTelemetry is an object with its key and its value.
    """
    if isinstance(value, list):
        yield from enumerate(value[:_MAX_ITEMS])
    elif isinstance(value, dict):
        yield from value.items()
        if isinstance(value.get("key"), str) and "value" in value:
            yield value["key"], value["value"]


def _object_in(item: object) -> object:
    """Return the object that a text is, else *item*."""
    if isinstance(item, str) and item[:1] == "{" and len(item) <= _MAX_TEXT:
        try:
            return loads(item)
        except JSONDecodeError:
            return item
    return item


def _names_usage(key: str, is_usage: bool) -> bool:
    words = {word.lower() for word in _WORD.findall(key)}
    return (is_usage or not words.isdisjoint(_WORDS)) and words.isdisjoint(_OTHERS)


def _is_amount(value: object) -> bool:
    if isinstance(value, str):
        return bool(re.fullmatch(r"\d*\.?\d*[1-9]\d*(e-?\d+)?", value[:40]))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value > 0
