"""A line that cannot be read is reported with its reason; the others are read."""

import copy
import json
import os
import threading
from datetime import UTC
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyapp.messages import NewMessage
from pyapp.usage_import import lines as usage_lines
from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.reader import BrokenLine
from tests.usage_lines import (
    ANTHROPIC,
    CHAT,
    RESPONSE,
    SESSION,
    as_bytes,
    changed,
    only,
    price,
    read,
    read_files,
    reason,
    tokens,
)


def test_broken_line_is_reported_and_the_others_are_read(tmp_path):
    nope = changed(CHAT, usage__prompt_tokens=-1, id="chatcmpl-B2")
    lines = [b"{", SESSION, b"", b"[1]", CHAT, b"", nope]
    results, counts = read(tmp_path, *lines)
    kinds = [r.line if isinstance(r, BrokenLine) else r.model for r in results]
    assert kinds == [1, "claude-sonnet-4-5-20250929", 4, "gpt-4o-mini-2024-07-18", 7]
    assert results[0].file == str(tmp_path / "usage.jsonl")
    assert counts == LineCounts(messages=2, broken=3)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{'id': 1}", "not JSON: Expecting property name"),
        ('{"usage":', "not JSON"),
        ("12", "not a JSON object"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' + "9" * 5_000 + "}", "too many digits"),
        (changed(CHAT, model=...), "no model"),
        (changed(CHAT, model=7), "no model"),
        (changed(ANTHROPIC, id=...), "no id"),
        (changed(CHAT, usage=[1]), "usage is not an object"),
        (changed(CHAT, usage={"total_tokens": 3}), "without token counts"),
        (
            changed(CHAT, usage__prompt_tokens=...),
            "prompt_tokens must be a whole number",
        ),
        (
            changed(CHAT, usage__prompt_tokens=10, usage__total_tokens=60),
            "cached tokens (896) exceed prompt tokens (10)",
        ),
        (changed(CHAT, usage__prompt_tokens_details=3), "is not an object"),
        (changed(CHAT, created="yesterday"), "created is not a time: 'yesterday'"),
        (changed(CHAT, created=10**400), "created is not a time"),
        (changed(CHAT, created=True), "created is not a time: True"),
        (changed(SESSION, timestamp="0001-01-01T00:00:00+05:00"), "not a time"),
        (changed(SESSION, timestamp={"a": 1}), "timestamp is not a time"),
        (
            {**SESSION, "costUSD": -1},
            "costUSD must be from 0 to 1000000000, not Decimal('-1')",
        ),
        ({**SESSION, "costUSD": "one"}, "costUSD is not a cost: 'one'"),
        (
            changed(ANTHROPIC, usage__cache_creation__ephemeral_1h_input_tokens=9e3),
            "ephemeral_1h_input_tokens must be a whole number",
        ),
        (
            changed(ANTHROPIC, usage__cache_creation={"ephemeral_24h": 300}),
            "cache writes of an unknown lifetime: 'ephemeral_24h'",
        ),
        (changed(CHAT, service_tier=["priority"]), "service_tier is not text"),
        (changed(RESPONSE, object="batch"), "a sum of calls; import the output file"),
        (changed(RESPONSE, output={"type": "web_search_call"}), "output is not a list"),
        (
            changed(ANTHROPIC, usage__cache_creation_input_tokens=10),
            "cache writes by lifetime (300) exceed their sum (10)",
        ),
        ({"type": "message_start", "message": ANTHROPIC}, "ends before the usage of"),
        (
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}},
            "its message_start",
        ),
        (
            {"type": "result", "usage": {"input_tokens": 5, "output_tokens": 5}},
            "no modelUsage, so no model is named",
        ),
        (
            changed(ANTHROPIC, usage__input_tokens=2**31 - 1),
            "more tokens than a call can have",
        ),
    ],
)
def test_broken_line_has_a_reason(tmp_path, line, expected):
    assert expected in reason(tmp_path, line)


@pytest.mark.parametrize(
    "count",
    ["-1", "1.5", "2.0", '"7"', "true", "null", "NaN", "Infinity", "1e3", "[]"],
)
@pytest.mark.parametrize("key", ["input_tokens", "output_tokens"])
def test_count_must_be_a_whole_number_from_zero(tmp_path, key, count):
    line = json.dumps(changed(ANTHROPIC, **{f"usage__{key}": "COUNT"}))
    text = reason(tmp_path, line.replace('"COUNT"', count))
    assert text.startswith(f"{key} must be a whole number from 0 to ")


def test_reason_for_a_huge_count_is_short(tmp_path):
    text = reason(tmp_path, changed(ANTHROPIC, usage__input_tokens=10**4_000))
    assert len(text) < 130


def test_line_over_the_size_limit_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(usage_lines, "MAX_BYTES", 2_000)
    huge = changed(SESSION, message__content="x" * 9_000)
    (broken, message), _ = read(tmp_path, huge, CHAT)
    assert (broken.line, broken.reason) == (1, "longer than 0 MiB")
    assert message.model == CHAT["model"]


def test_broken_repeat_does_not_hide_the_valid_line(tmp_path):
    broken = changed(SESSION, message__usage__output_tokens=99, timestamp="never")
    results, counts = read(tmp_path, SESSION, broken)
    assert [type(r) for r in results] == [NewMessage, BrokenLine]
    assert counts == LineCounts(messages=1, broken=1)


def test_pipe_without_times_needs_a_given_time(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    lines = as_bytes(ANTHROPIC) + b"\n" + as_bytes(CHAT)
    writer = threading.Thread(target=pipe.write_bytes, args=[lines])
    writer.start()
    broken, message = read_files(pipe)
    writer.join()
    assert broken.reason == "no time in the line, and none was given"
    assert broken.file == str(pipe)
    assert message.model == CHAT["model"]


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_files(tmp_path / "none.jsonl")


def as_bytes_of_json(value):
    return json.dumps(value).encode()


@st.composite
def mutations(draw, json_values):
    """Return a real line with one value, anywhere, replaced."""
    line = copy.deepcopy(draw(st.sampled_from([SESSION, ANTHROPIC, CHAT, RESPONSE])))
    part = line
    while True:
        key = draw(st.sampled_from(sorted(part)))
        if isinstance(part[key], dict) and draw(st.integers(0, 3)):
            part = part[key]
            continue
        part[key] = draw(json_values)
        return line


SURROUNDINGS = {
    "byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "carriage return": lambda raw: raw + b"\r",
    "blank lines": lambda raw: b"\n\r\n  \n" + raw,
    "NUL padding": lambda raw: b"\0" * 500 + raw + b"\0",
    "raw bytes": lambda raw: raw.replace(b"Done.", b"\xff\xfe \0 \x1b[0m"),
    "escaped NUL": lambda raw: raw.replace(b"Done.", b"\\ud800 \\u0000"),
    "a long text": lambda raw: raw.replace(b"Done.", b"x" * 3_000_000),
    "not quite JSON": lambda raw: raw.replace(b"null", b"[NaN, 1e999]"),
}


@pytest.mark.parametrize("surrounding", SURROUNDINGS)
def test_bytes_around_the_usage_have_no_effect(tmp_path, surrounding):
    raw = as_bytes(SESSION)
    surrounded = SURROUNDINGS[surrounding](raw)
    assert surrounded != raw
    assert only(tmp_path, surrounded) == only(tmp_path, raw)


def test_text_is_stored_with_replaced_characters(tmp_path):
    line = changed(SESSION, sessionId="a\0b\ud800", requestId="r" * 900)
    message = only(tmp_path, line)
    assert message.client_id == "a\ufffdb\ufffd"
    assert message.client_request_id == "r" * 255


@pytest.mark.parametrize(
    ("line", "id"),
    [
        (
            changed(SESSION, message__id="msg_a\0b"),
            "b8ced46c-c937-591c-a728-e0030f9c3c59",
        ),
        (
            changed(SESSION, message__id="msg_a\ud800b"),
            "b8ced46c-c937-591c-a728-e0030f9c3c59",
        ),
        (
            changed(SESSION, message__id="msg_a\ufffdb"),
            "379de7cc-440b-58e7-9221-edee8a97cb4d",
        ),
        (
            changed(SESSION, message__id="gen\0", requestId="r\0"),
            "60d8d00a-4e08-5ccc-a7d0-48633f86643a",
        ),
        (
            changed(SESSION, message__id=None, requestId="r\0\udfffq"),
            "0cfadb47-20ab-51f6-a604-428367cefa95",
        ),
        (changed(CHAT, id="c\0d"), "bf2f80fe-e0ff-5e15-88fc-f04f6f34cd41"),
    ],
)
def test_invalid_characters_give_the_ids_of_earlier_imports(tmp_path, line, id):
    """The ids are those of imports that replaced such characters by "?"."""
    assert only(tmp_path, line).id == UUID(id)


@pytest.mark.parametrize(
    ("time", "year"),
    [
        ("0001-01-01T00:00:00Z", 1),
        ("9999-12-31T23:59:59.999999Z", 9999),
        ("2026-05-04 10:11:12", 2026),
        (1_777_888_999, 2026),
        (1_777_888_999_123, 2026),
        (1_777_888_999.5, 2026),
    ],
)
def test_times_may_be_text_seconds_or_milliseconds(tmp_path, time, year):
    message = only(tmp_path, changed(SESSION, timestamp=time))
    assert message.finished_at.year == year
    assert message.finished_at.tzinfo is UTC


def test_null_and_missing_counts_are_zero(tmp_path):
    usage = {"input_tokens": 5, "output_tokens": 6, "cache_read_input_tokens": None}
    message = only(tmp_path, changed(SESSION, message__usage=usage))
    assert tokens(message) == (5, 0, 0, 6)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_line_stops_the_import(tmp_path_factory, data):
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=5,
    )
    lines = data.draw(
        st.lists(
            st.binary(max_size=60)
            | json_values.map(as_bytes_of_json)
            | mutations(json_values).map(as_bytes_of_json),
            max_size=8,
        )
    )
    folder = tmp_path_factory.mktemp("hostile")
    lines = [line.replace(b"\n", b"") for line in lines]
    results, counts = read(folder, RESPONSE, *lines, CHAT)
    reported = counts.broken + counts.unknown + counts.unknown_files
    assert counts.messages + reported == len(results)
    assert any(getattr(r, "model", "") == CHAT["model"] for r in results)
    for result in results:
        if not isinstance(result, NewMessage):
            assert result.reason.isprintable()
        else:
            cost = price(result)
            assert cost is None or (cost.is_finite() and cost >= 0)
            assert min(tokens(result)) >= 0


@pytest.mark.parametrize(
    ("more", "used"),
    [
        ({"completion_tokens": 20}, "completion_tokens"),
        ({"completion_tokens": -1, "prompt_tokens": 100}, None),
        ({"provider": "openai", "tokens_in": 100, "tokens_out": 20}, "tokens_out"),
        ({"provider": "openai", "tokens_in": 100, "cost": 0.1}, "cost"),
        ({"provider": "openai", "tokens_in": 100, "tokens_out": 0}, None),
    ],
)
def test_usage_of_a_failed_request_is_reported(tmp_path, more, used):
    """A tracing tool counts the input itself; an answer that was cut is billed."""
    row = {"id": "q1", "request_id": "q1", "model": "gpt-4o", "success": False, **more}
    if "tokens_in" not in row:
        row |= {"request_created_at": "2026-05-04T10:00:00Z", "status": -3}
    if used is None:
        assert read(tmp_path, row)[1].without_usage == 1
    else:
        assert reason(tmp_path, row) == f"usage of a request that failed: {used}"
