"""A response counts once, although it is logged several times."""

import itertools
import json
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.files import find_logs
from pyapp.usage_import.reader import BrokenLine, read_usage_logs
from tests.usage_lines import (
    ANTHROPIC,
    CHAT,
    RESPONSE,
    SESSION,
    as_bytes,
    changed,
    only,
    read,
    read_files,
)

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_largest_usage_of_a_response_counts_once(tmp_path):
    lines = [changed(SESSION, message__usage__output_tokens=n) for n in (1, 90, 5)]
    messages, counts = read(tmp_path, *lines)
    assert [m.output_tokens for m in messages] == [90]
    assert counts == LineCounts(messages=1, repeats=2)


def test_later_line_of_equal_usage_counts(tmp_path):
    later = changed(SESSION, timestamp="2026-05-04T10:11:20Z")
    message = only(tmp_path, SESSION, later)
    assert message.finished_at.second == 20


def test_repeats_may_be_in_other_files(tmp_path):
    small = [changed(SESSION, message__id=f"msg_{n}") for n in range(300)]
    large = [changed(line, message__usage__output_tokens=7) for line in small]
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("\n".join(map(json.dumps, [*small, *large[:150]])))
    second.write_text("\n".join(map(json.dumps, [*reversed(large), *small])))
    for paths in itertools.permutations([first, second]):
        messages = read_files(*paths)
        assert [m.output_tokens for m in messages] == [7] * 300
        assert len({m.id for m in messages}) == 300


def test_subagents_copy_with_another_request_id_is_a_repeat(tmp_path):
    replay = changed(SESSION, isSidechain=True, requestId="req_02")
    for lines in itertools.permutations([SESSION, replay]):
        assert only(tmp_path, *lines).client_request_id == "req_01"


def test_subagents_own_call_counts(tmp_path):
    own = changed(SESSION, isSidechain=True, requestId="req_02", message__id="msg_02")
    messages, _ = read(tmp_path, SESSION, own)
    assert [m.client_request_id for m in messages] == ["req_01", "req_02"]


def test_lines_without_request_ids_are_repeats(tmp_path):
    line = changed(SESSION, requestId=...)
    _, counts = read(tmp_path, line, line)
    assert counts == LineCounts(messages=1, repeats=1)


def test_sequential_ids_are_combined_with_a_second_value(tmp_path):
    again = changed(CHAT, created=1_777_889_000)
    other = changed(SESSION, message__id="chatcmpl-B1")
    request = changed(other, requestId="req_02")
    messages, _ = read(tmp_path, CHAT, again, other, request)
    assert len({m.id for m in messages}) == 4


def test_reading_again_returns_the_same_ids(tmp_path):
    lines = [SESSION, CHAT, RESPONSE, changed(ANTHROPIC, id="msg_02")]
    first, _ = read(tmp_path, *lines)
    (tmp_path / "other").mkdir()
    at = datetime(2026, 7, 1, tzinfo=UTC)
    second, _ = read(tmp_path / "other", *lines, at=at)
    assert [m.id for m in first] == [m.id for m in second]


def test_ids_are_the_same_in_every_release(tmp_path):
    messages, _ = read(tmp_path, SESSION, CHAT, RESPONSE)
    assert [str(m.id) for m in messages] == [
        "9abe1b7c-a4e9-5343-ad89-d2af794c5715",
        "4077bf16-fc3e-5ab4-b58b-bb4ebe23d305",
        "a72c75ba-80f2-5532-9d31-50eea6195dba",
    ]


def test_lines_appended_during_the_import_are_not_read(tmp_path):
    file = tmp_path / "usage.jsonl"
    file.write_bytes(as_bytes(SESSION) + b"\n")
    more = as_bytes(changed(SESSION, message__usage__output_tokens=9)) + b"\n"

    def append(_):
        if file.stat().st_size < 10 * len(more):
            with file.open("ab") as stream:
                stream.write(more)

    (message,) = read_files(file, on_bytes=append)
    assert message.output_tokens == 1


@pytest.mark.parametrize(
    ("minutes", "stop_reason", "is_left"),
    [(1, None, True), (1, "end_turn", False), (11, None, False), (-1, None, True)],
)
def test_response_that_may_still_be_streaming_is_left_out(
    tmp_path, minutes, stop_reason, is_left
):
    """A recorded message is never changed, so its last tokens would be lost."""
    written_at = datetime.now(UTC) - timedelta(minutes=minutes)
    line = changed(
        SESSION, timestamp=written_at.isoformat(), message__stop_reason=stop_reason
    )

    messages, counts = read(tmp_path, line)

    assert len(messages) == counts.messages == int(not is_left)
    assert counts.still_open == int(is_left)


def test_response_without_a_time_is_not_streaming(tmp_path):
    line = changed(ANTHROPIC, stop_reason=None)
    only(tmp_path, line, at=datetime.now(UTC))


def test_examples_have_no_broken_line():
    counts = LineCounts()
    paths = sorted(EXAMPLES.rglob("*.jsonl"))
    at = datetime(2026, 11, 20, tzinfo=UTC)
    results = read_files(*paths, at=at, counts=counts)
    assert [r for r in results if isinstance(r, BrokenLine)] == []
    assert counts.messages == 179
    assert min(counts.repeats, counts.without_usage) > 0
    assert max(m.finished_at for m in results) == at


def test_memory_grows_by_few_bytes_for_each_response(tmp_path):
    def peak(lines):
        file = tmp_path / "big.jsonl"
        with file.open("w") as stream:
            for n in range(lines):
                line = changed(SESSION, message__id=f"msg_{n}")
                stream.write(json.dumps({**line, "text": "x" * 4_000}) + "\n")
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_usage_logs(find_logs([file]))) == lines
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    read_files(*EXAMPLES.glob("*.jsonl"))  # loads the prices
    assert peak(1_500) - peak(500) < 1_000 * 250
