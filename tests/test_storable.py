"""Any text and any JSON value is storable; invalid characters are replaced."""

import json
from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyapp._core.sanitize import (
    MAX_DEPTH,
    MAX_JSON_CHARACTERS,
    storable_json,
    storable_text,
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | ANY_TEXT
    | st.binary(max_size=5)
    | st.decimals()
)
ANY_JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(ANY_TEXT | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=20,
)


class Hostile:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def nested(depth: int) -> Any:
    value: Any = "innermost"
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def stored(value: Any) -> Any:
    text = storable_json(value)
    assert text is not None
    return json.loads(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain \N{SNOWMAN}", "plain \N{SNOWMAN}"),
        ("a\0b", "a\ufffdb"),
        ("a\ud83d", "a\ufffd"),
        ("\ude00z", "\ufffdz"),
        ("\ud83d\ude00", "\N{GRINNING FACE}"),
        ("", ""),
    ],
)
def test_nul_and_half_surrogate_pairs_become_u_fffd(text: str, expected: str):
    assert expected == storable_text(text)
    assert [{expected: expected}] == stored([{text: text}])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([], []),
        ({"a": [1, 2.5, True, None, "x"]}, {"a": [1, 2.5, True, None, "x"]}),
        ("\\u0000 is six characters", "\\u0000 is six characters"),
        (float("nan"), "NaN"),
        ([float("inf"), {"a": -float("inf")}], ["Infinity", {"a": "-Infinity"}]),
        (
            {1: float("nan"), None: "b", False: "c"},
            {"1": "NaN", "null": "b", "false": "c"},
        ),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02 00:00:00+00:00"),
        ([Decimal("1.10"), b"raw", {1}], ["1.10", "b'raw'", "{1}"]),
        ((OrderedDict(a=(1, 2)),), [{"a": [1, 2]}]),
        ([10**400, 10**5000], [hex(10**400), hex(10**5000)]),
        ([Hostile(), {Hostile(): 1}], ["Hostile", {"Hostile": 1}]),
    ],
)
def test_values_unknown_to_json_become_text(value: Any, expected: Any):
    assert expected == stored(value)


def test_none_stays_none():
    assert storable_json(None) is None


def test_depth_is_limited():
    assert nested(MAX_DEPTH) == stored(nested(MAX_DEPTH))
    assert "innermost" not in str(stored(nested(MAX_DEPTH + 1)))
    assert "innermost" not in str(stored(nested(100_000)))


def test_circular_reference_is_replaced():
    circle: list[Any] = [1]
    circle += [circle, circle]

    assert stored(circle) == [1, "\ufffd", "\ufffd"]


def test_size_is_limited():
    text = "x" * MAX_JSON_CHARACTERS

    assert stored([text]) == f"(not stored: {len(text) + 4} characters)"
    assert stored(text[:-2]) == text[:-2]


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(value=ANY_JSON, text=ANY_TEXT)
def test_database_stores_any_value(conn: psycopg.Connection, value: Any, text: str):
    row = conn.execute(
        "SELECT %s::jsonb, %s::text", (storable_json(value), storable_text(text))
    ).fetchone()

    assert row is not None
    assert row[1] == storable_text(text)


def test_database_stores_the_maximum_depth(conn: psycopg.Connection):
    text = storable_json(nested(MAX_DEPTH))

    row = conn.execute("SELECT %s::jsonb", (text,)).fetchone()

    assert row == (nested(MAX_DEPTH),)
