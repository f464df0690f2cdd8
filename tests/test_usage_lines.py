"""Every JSON object of a log is read, on one line, on several or in an array."""

import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyapp.usage_import import lines as usage_lines
from pyapp.usage_import.lines import read_entries


def entries(data):
    if isinstance(data, str):
        data = data.encode()
    return [tuple(entry) for entry in read_entries(io.BytesIO(data))]


def values(data):
    return [value for _, value, _ in entries(data)]


ONE, TWO, THREE = {"a": 1}, {"b": [2, {"c": "}\n{"}]}, {"d": "é\u2028"}
ALL = [ONE, TWO, THREE]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        ("\n".join(map(json.dumps, ALL)), [1, 2, 3]),
        ("\r\n".join(map(json.dumps, ALL)) + "\r\n", [1, 2, 3]),
        ("\ufeff" + "\n\n".join(map(json.dumps, ALL)), [1, 3, 5]),
        ("".join(map(json.dumps, ALL)), [1, 1, 1]),
        (" , ".join(map(json.dumps, ALL)), [1, 1, 1]),
        (json.dumps(ALL), [1, 1, 1]),
        (json.dumps(ALL, indent=2), [2, 5, 13]),
        ("[\n" + ",\n".join(map(json.dumps, ALL)) + "\n]\n", [2, 3, 4]),
        ("[" + ", ".join(json.dumps(v, indent=4) for v in ALL) + "]", [1, 3, 10]),
        ("\n".join(json.dumps(v, indent=1) for v in ALL), [1, 4, 12]),
        ("\n".join(json.dumps(v, indent="\t") for v in ALL), [1, 4, 12]),
        ("\n".join(json.dumps([v]) for v in ALL), [1, 2, 3]),
        (json.dumps([ONE]) + "\n" + json.dumps(TWO) + json.dumps(THREE), [1, 2, 2]),
        ("\n".join(f"event: x\ndata: {json.dumps(v)}\n" for v in ALL), [2, 5, 8]),
        (": note\n" + "\n".join(f"data:{json.dumps(v)}" for v in ALL), [2, 3, 4]),
    ],
)
def test_objects_are_read_with_the_numbers_of_their_lines(data, lines):
    assert entries(data) == [(n, v, "") for n, v in zip(lines, ALL, strict=True)]


def test_end_of_a_stream_is_no_object():
    assert entries('data: {"a": 1}\n\ndata: [DONE]\n') == [(1, ONE, "")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_may_be_cut_at_any_byte_between_two_reads(monkeypatch, size, indent):
    monkeypatch.setattr(usage_lines, "_CHUNK", size)
    items = [{"n": n, "text": "é€😀" * n, "yes": True, "x": -1.5e3} for n in range(9)]
    data = json.dumps(items, ensure_ascii=False, indent=indent) + '\n{"after": 1}\n'

    assert values(data) == [*items, {"after": 1}]


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(
        st.dictionaries(
            st.text(max_size=3),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.text(max_size=9),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
                ),
                max_leaves=6,
            ),
            max_size=4,
        ),
        max_size=6,
    ),
    indent=st.sampled_from([None, 1, 4]),
    between=st.sampled_from(["\n", "\r\n", "", " ", "\n\n"]),
    is_array=st.booleans(),
    is_ascii=st.booleans(),
)
def test_any_objects_are_read_in_any_layout(items, indent, between, is_array, is_ascii):
    def written(value):
        return json.dumps(value, indent=indent, ensure_ascii=is_ascii)

    data = written(items) if is_array else between.join(map(written, items))

    assert values(data.encode("utf-8", "surrogatepass")) == items


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ('{"a": 1, "b":\n', 2),
        ('{"a": 1,\n', 2),
        ('{"a": "cut\n', 2),
        ('{"a": [{"b": 1}, {"c"\n', 2),
        ("{\n", 2),
        ("nonsense\n", 2),
        ('{"a": 1}}\n', 2),
    ],
)
def test_broken_line_is_named_and_the_others_are_read(broken, line):
    before, after = json.dumps(ONE) + "\n", json.dumps(TWO) + "\n" + json.dumps(THREE)

    found = entries(before + broken + after)

    assert [v for _, v, _ in found if v in (TWO, THREE)] == [TWO, THREE]
    assert [n for n, v, reason in found if v is None and reason] == [line]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("old", "new"),
    [('"text": "b"', '"text": "b'), ('"n": 1', '"n": '), ('"text": "b"', '"text" "b"')],
)
def test_broken_item_of_an_array_is_named_and_the_others_are_read(indent, old, new):
    items = [{"n": n, "text": text} for n, text in enumerate("abc")]
    data = json.dumps(items, indent=indent).replace(old, new)

    found = entries(data)

    assert [v for _, v, _ in found if v] == [items[0], items[2]]
    (line,) = [n for n, v, _ in found if v is None]
    assert line == (1 if indent is None else 6)


@pytest.mark.parametrize("end", ["", ",", ', {"a":', "\n"])
def test_array_that_does_not_end_is_broken_after_its_items(end):
    *found, last = entries("[\n" + json.dumps(ONE) + ",\n" + json.dumps(TWO) + end)

    assert [v for _, v, _ in found] == [ONE, TWO]
    assert (last[1], last[2].startswith("not JSON")) == (None, True)


def test_lines_after_an_array_are_counted_on():
    data = json.dumps(ALL, indent=2) + "\n\n" + json.dumps(ONE) + "\n{\n"

    assert [n for n, _, _ in entries(data)] == [2, 5, 13, 18, 19]


def test_line_over_the_limit_is_broken_and_the_next_is_read(monkeypatch):
    monkeypatch.setattr(usage_lines, "MAX_BYTES", 100)
    long = json.dumps({"a": "x" * 500})

    found = entries(f"{long}\n{json.dumps(ONE)}\n")

    assert found == [(1, None, "longer than 0 MiB"), (2, ONE, "")]


def test_array_may_be_longer_than_the_limit_and_its_items_may_not(monkeypatch):
    monkeypatch.setattr(usage_lines, "MAX_BYTES", 1_000)
    monkeypatch.setattr(usage_lines, "_CHUNK", 100)
    items = [{"n": n, "text": "x" * (3_000 if n == 20 else 50)} for n in range(40)]

    for indent in (None, 2):
        found = entries(json.dumps(items, indent=indent) + "\n" + json.dumps(ONE))

        assert [v for _, v, _ in found if v] == [*items[:20], *items[21:], ONE]
        assert [r for _, v, r in found if v is None] == ["longer than 0 MiB"]


def test_memory_is_flat_for_an_array_of_any_length():
    item = b'{"n": 1, "text": "' + b"x" * 500 + b'"}'
    data = io.BytesIO(b"[" + b",".join([item] * 40_000) + b"]")
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_entries(data))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert count == 40_000
    assert peak < 1_000_000
