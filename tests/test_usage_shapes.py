"""A message is read from each format of a logged response."""

import os
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from pyapp.usage_import.collection import LineCounts
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
    tokens,
)


def test_session_line(tmp_path):
    message = only(tmp_path, SESSION)
    assert tokens(message) == (4, 300, 20_000, 1)
    assert message.model == "claude-sonnet-4-5-20250929"
    assert message.client_id == SESSION["sessionId"]
    assert message.client_request_id == "req_01"
    assert message.finished_at == datetime(2026, 5, 4, 10, 11, 12, 345_000, tzinfo=UTC)
    # $3, $3.75 for five minutes, $6 for an hour, $0.30 and $15 for a million.
    assert price(message) * 1_000_000 == (
        4 * 3 + 100 * Decimal("3.75") + 200 * 6 + 20_000 * Decimal("0.3") + 15
    )
    assert (message.user_id, message.fingerprint_id) == (None, None)


def test_anthropic_response_gets_the_given_time(tmp_path):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    message = only(tmp_path, ANTHROPIC, at=at)
    assert tokens(message) == (4, 300, 20_000, 1)
    assert message.finished_at == at


def test_anthropic_response_without_a_time_gets_the_files(tmp_path):
    file = tmp_path / "usage.jsonl"
    file.write_bytes(as_bytes(ANTHROPIC))
    os.utime(file, (1_777_000_000, 1_777_000_000))
    (message,) = read_files(file)
    assert message.finished_at.timestamp() == 1_777_000_000


@pytest.mark.parametrize("key", ["timestamp", "created_at", "finished_at"])
def test_envelope_gives_the_time(tmp_path, key):
    line = {key: "2026-05-04T12:00:00+02:00", "response": ANTHROPIC}
    message = only(tmp_path, line)
    assert message.finished_at == datetime(2026, 5, 4, 10, tzinfo=UTC)


def test_chat_completion(tmp_path):
    message = only(tmp_path, CHAT)
    assert tokens(message) == (104, 0, 896, 50)
    assert message.finished_at.timestamp() == 1_777_888_999
    assert price(message) * 1_000_000 == (
        104 * Decimal("0.15") + 896 * Decimal("0.075") + 50 * Decimal("0.6")
    )


def test_responses_object(tmp_path):
    message = only(tmp_path, RESPONSE)
    assert tokens(message) == (372, 0, 128, 70)
    assert message.finished_at.timestamp() == 1_777_888_003
    assert message.latency_ms == 3_000


def test_cache_writes_of_openai_are_part_of_its_input(tmp_path):
    details = {"cached_tokens": 128, "cache_write_tokens": 256}
    line = changed(RESPONSE, usage__input_tokens_details=details)
    assert tokens(only(tmp_path, line)) == (116, 256, 128, 70)


def test_reasoning_tokens_missing_in_the_output_are_added(tmp_path):
    line = changed(CHAT, usage__total_tokens=1_070)
    assert tokens(only(tmp_path, line)) == (104, 0, 896, 70)


def test_batch_results_of_both_providers(tmp_path):
    result = {"type": "succeeded", "message": ANTHROPIC}
    body = {"status_code": 200, "request_id": "r", "body": CHAT}
    (first, second), _ = read(
        tmp_path,
        {"custom_id": "a", "result": result},
        {"id": "batch_req_1", "custom_id": "b", "response": body, "error": None},
        at=datetime(2026, 11, 1, tzinfo=UTC),
    )
    assert first.client_request_id == "a"
    assert second.client_request_id == "b"
    in_full = only(tmp_path, ANTHROPIC, at=datetime(2026, 11, 1, tzinfo=UTC))
    assert price(first) == price(in_full) / 2


def test_last_event_of_a_responses_stream(tmp_path):
    begin = changed(RESPONSE, usage=None, status="in_progress")
    messages, counts = read(
        tmp_path,
        {"type": "response.created", "response": begin},
        {"type": "response.completed", "response": RESPONSE},
    )
    assert messages == [only(tmp_path, RESPONSE)]
    assert counts.without_usage == 1


def test_subagent_progress_counts_for_the_session(tmp_path):
    inner = {"type": "assistant", "requestId": "req_9", "message": ANTHROPIC}
    data = {"type": "agent_progress", "message": inner}
    line = changed(SESSION, type="progress", message=..., requestId=..., data=data)
    message = only(tmp_path, line)
    assert message.client_id == SESSION["sessionId"]
    assert message.id == only(tmp_path, SESSION).id


def test_fast_mode_and_web_searches_cost_more(tmp_path):
    line = changed(SESSION, message__model="claude-opus-4-8")
    usage = line["message"]["usage"]
    plain = price(only(tmp_path, line))
    usage["speed"] = "fast"
    assert price(only(tmp_path, line)) == plain * 2
    usage["server_tool_use"] = {"web_search_requests": 2}
    assert price(only(tmp_path, line)) == plain * 2 + Decimal("0.02")


def test_compaction_is_billed_in_addition_to_the_usage(tmp_path):
    line = changed(SESSION)
    line["message"]["usage"]["iterations"] = [
        {"type": "compaction", "input_tokens": 150_000, "output_tokens": 2_000},
        {"type": "message", "input_tokens": 4, "output_tokens": 1},
    ]
    message = only(tmp_path, line)
    assert tokens(message) == (150_004, 300, 20_000, 2_001)
    # Each pass has its own tier: neither is over 200,000 tokens.
    extra = price(message) - price(only(tmp_path, SESSION))
    assert extra * 1_000_000 == 150_000 * 3 + 2_000 * 15


def test_cost_in_the_log_is_used(tmp_path):
    line = {**SESSION, "costUSD": 0.0123, "type": "assistant"}
    assert only(tmp_path, line).cost == Decimal("0.0123")
    line = changed(CHAT, model="house/model", usage__cost=1e-05)
    assert only(tmp_path, line).cost == Decimal("0.00001")


def test_zero_cost_in_the_log_is_computed(tmp_path):
    message = only(tmp_path, {**SESSION, "costUSD": 0})
    assert (message.cost, price(message)) == (None, price(only(tmp_path, SESSION)))


@pytest.mark.parametrize(
    "line",
    [
        {"type": "user", "message": {"role": "user", "content": "hello"}},
        {"type": "summary", "summary": "A talk", "leafUuid": "x"},
        {"type": "user", "toolUseResult": {"usage": {"input_tokens": 5}}},
        {"type": "result", "usage": {"input_tokens": 0, "output_tokens": 0}},
        changed(SESSION, message__model="<synthetic>"),
        changed(SESSION, message__usage=None),
    ],
)
def test_lines_without_usage_are_only_counted(tmp_path, line):
    messages, counts = read(tmp_path, line)
    assert messages == []
    assert counts == LineCounts(without_usage=1)
