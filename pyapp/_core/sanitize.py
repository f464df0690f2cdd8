"""Makes any text or JSON storable: invalid characters are replaced, never refused.

So no billed message is lost. PostgreSQL's text holds neither NUL nor half a surrogate
pair, and its jsonb neither NaN nor infinity; both have limits of depth and size.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 200
# Well under the server's limits: a byte of JSON may take eight in jsonb.
MAX_JSON_CHARACTERS = 16 * 1024 * 1024

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# json.dumps would make one for each call.
_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
# JSON's escape for NUL, after an even number of backslashes.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def storable_text(text: str) -> str:
    """Return *text* with U+FFFD for NUL and for halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        # UTF-16 joins two halves that form a pair.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\0", REPLACEMENT)


def optional_text(text: str | None) -> str | None:
    """Return *text* as storable_text does; None stays None."""
    return None if text is None else storable_text(text)


def json_text(value: Any) -> str:
    """Return *value* as JSON, with text as storable_text returns it.

    Raises: as json.dumps, and ValueError for NaN and infinities.
    """
    text = _ENCODER.encode(value)
    if "\\u0000" in text:
        text = _NUL.sub(rf"\1{REPLACEMENT}", text)
    return storable_text(text)


def storable_json(value: Any) -> str | None:
    """Return *value* as JSON text for jsonb; None stays None.

    NaN, infinities and types unknown to JSON become strings; values nested deeper than
    MAX_DEPTH become U+FFFD; a value of more than MAX_JSON_CHARACTERS becomes a string
    that gives its length.
    """
    if value is None:
        return None
    try:
        text = json_text(value)
        brackets = text.count("[") + text.count("{")
        is_plain = brackets <= MAX_DEPTH or not _is_deep(value)
    except (RecursionError, TypeError, ValueError):
        is_plain = False
    if not is_plain:
        try:
            text = json_text(_storable(value))
        except (RecursionError, ValueError):
            text = json_text(f"(not storable: {_name(value)})")
    if len(text) > MAX_JSON_CHARACTERS:
        text = json_text(f"(not stored: {len(text)} characters)")
    return text


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list, tuple))
        ]
        if not level:
            return False
    return True


def _storable(value: Any, outer: tuple[int, ...] = ()) -> Any:
    """Return a copy of *value* for JSON; *outer* are the ids of its containers."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        # Python refuses to write very long integers in decimal.
        return int(value) if value.bit_length() < 1024 else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)
    if not isinstance(value, (Mapping, list, tuple)):
        return _text(value)
    if len(outer) == MAX_DEPTH or id(value) in outer:
        return REPLACEMENT
    outer = (*outer, id(value))
    if isinstance(value, Mapping):
        return {_key(name): _storable(inner, outer) for name, inner in value.items()}
    return [_storable(inner, outer) for inner in value]


def _key(name: Any) -> str:
    return json_text(name) if name is None or isinstance(name, bool) else _text(name)


def _text(value: Any) -> str:
    try:
        return storable_text(str(value))
    except Exception:
        # A caller's __str__ may raise any error.
        return _name(value)


def _name(value: Any) -> str:
    return type(value).__name__
