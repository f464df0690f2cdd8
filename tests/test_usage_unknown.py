"""Usage in a form that no format knows is reported, and nothing else is."""

import pytest

from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.reader import UnknownUsage
from pyapp.usage_import.unknown import find_usage
from tests.usage_lines import CHAT, SESSION, changed, read


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ({"model": "m", "tokens": 12}, "tokens"),
        ({"model": "m", "tokens": {"in": 3, "out": 5}}, "tokens.in"),
        ({"tokensIn": 3, "tokensOut": 5}, "tokensIn"),
        ({"usageMetadata": {"count": 3}}, "usageMetadata.count"),
        ({"log": {"data": {"usage": {"prompt": 3}}}}, "log.data.usage.prompt"),
        ({"calls": [{"n": 1}, {"cost": 0.01}]}, "calls.cost"),
        ({"costUSD": 0.01}, "costUSD"),
        ({"total_cost": "0.0123"}, "total_cost"),
        ({"spend": 1e-7}, "spend"),
        ({"token_count": 7}, "token_count"),
        ({"prompt_eval_tokens": "12"}, "prompt_eval_tokens"),
        ({"LLMTokens": 4}, "LLMTokens"),
        ({"usage": {"input": 4}}, "usage.input"),
        ({"log": '{"usage": {"input_tokens": 5}}\n'}, "log.usage.input_tokens"),
        ({"messages": [{"content": "x", "tokens": 7}]}, "messages.tokens"),
        ({"a\x1b\n": {"tokens": 7}}, r"a\x1b\n.tokens"),
        ({"a" * 900: {"tokens": 7}}, "a" * 200),
        (
            {"attributes": [{"key": "llm.tokens", "value": {"intValue": "7"}}]},
            "attributes.llm.tokens.intValue",
        ),
    ],
)
def test_usage_is_found_at_any_depth(line, path):
    assert find_usage(line) == path


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"usage": None, "tokens": 0, "cost": 0.0},
        {"usage": {"input_tokens": 0}, "is_usage": True},
        {"max_tokens": 100, "maxOutputTokens": 5, "token_limit": 9},
        {"budget_tokens": 4_000, "thinking": {"budgetTokens": 5}},
        {"access_token": "12345", "refreshToken": "999", "token_type": "1"},
        {"tokenId": 5, "tokens_per_minute": 90, "cost_per_token": 0.1},
        {"messages": [{"content": [{"tokens": 5}]}]},
        {"content": "usage: 5 tokens", "text": {"cost": 3}},
        {"input": {"usage": 7}, "arguments": {"tokens": 8}, "tools": [{"cost": 1}]},
        {"choices": [{"logprobs": {"tokens": [1, 2]}}]},
        {"usage": "high", "costs": "none"},
        {"tokens": [101, 2003, 102], "token_ids": [5]},
        {"object": "vector_store", "usage_bytes": 4_000},
        {"log": '{"usage": ', "line": '{"a": 1}'},
    ],
)
def test_what_only_looks_like_usage_is_none(line):
    assert find_usage(line) is None


def test_deep_object_is_searched_in_part():
    def nested(depth: int) -> dict[str, object]:
        return {"a": nested(depth - 1)} if depth else {"tokens": 5}

    assert find_usage(nested(15)) == ".".join(["a"] * 15 + ["tokens"])
    assert find_usage(nested(16)) is None


def test_large_object_is_searched_in_part():
    rows = [{"n": n, "vector": [0.5] * 1_000} for n in range(1_000)]

    assert find_usage({"rows": rows}) is None
    assert find_usage({"rows": rows, "meta": {"tokens": 5}}) == "meta.tokens"
    assert find_usage({"rows": [{**row, "tokens": 1} for row in rows]}) == "rows.tokens"


def test_unknown_usage_is_reported_with_its_line(tmp_path):
    odd = {"when": "2026-05-04", "llm": {"tokens": 5_000}}
    results, counts = read(tmp_path, CHAT, odd, SESSION)

    file = str(tmp_path / "usage.jsonl")
    assert results[1] == UnknownUsage(file, 2, "usage in an unknown form: llm.tokens")
    assert counts == LineCounts(messages=2, unknown=1)


@pytest.mark.parametrize(
    "line",
    [
        {"type": "user", "uuid": "x", "toolUseResult": {"totalTokens": 5}},
        {"type": "system", "sessionId": "x", "compactMetadata": {"preTokens": 155_000}},
        {"type": "user", "message": {"content": [{"usage": {"input_tokens": 5}}]}},
        {"type": "cost-state", "sessionId": "x", "totalCostUSD": 3.5},
        {"object": "chat.completion.chunk", "choices": [{"content": {"tokens": 5}}]},
        {"input_tokens": 14},
        {"object": "response.input_tokens", "input_tokens": 16},
        {"type": "error", "error": {"type": "overloaded_error", "message": "x"}},
        {"error": {"message": "too many tokens", "code": 429}},
        {"custom_id": "a", "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": "a", "result": {"type": "expired"}},
        {
            "custom_id": "a",
            "response": {"status_code": 400, "body": {"error": {"message": "x"}}},
        },
    ],
)
def test_lines_of_known_formats_are_not_searched(tmp_path, line):
    _, counts = read(tmp_path, line, CHAT)

    assert counts == LineCounts(messages=1, without_usage=1)


def test_export_may_begin_with_items_without_usage(tmp_path):
    notes = [{"note": n} for n in range(9)]
    sessions = [{"type": "user", "uuid": "x"}] * 500
    results, counts = read(tmp_path, {"log": [*notes, *sessions, CHAT]})

    assert [type(r).__name__ for r in results] == ["NewMessage"]
    assert counts == LineCounts(messages=1, without_usage=509)


@pytest.mark.parametrize("key", ["data", "results", "generations"])
def test_items_of_an_export_are_read(tmp_path, key):
    items = [CHAT, changed(CHAT, id="chatcmpl-2"), {"tokens": 5}]
    results, counts = read(tmp_path, {"object": "list", key: items, "total_cost": 7})

    assert [type(r).__name__ for r in results] == ["NewMessage"] * 2 + ["UnknownUsage"]
    assert counts == LineCounts(messages=2, unknown=1)


@pytest.mark.parametrize(
    "line",
    [
        {
            "object": "chat.completion",
            "model": "m",
            "token_usage": {"prompt_tokens": 5},
        },
        {"object": "chat.completion", "us\ufffdage": {"prompt_tokens": 5}},
        {"type": "message", "role": "assistant", "usages": {"input_tokens": 5}},
    ],
)
def test_usage_beside_its_place_in_a_known_object_is_unknown(tmp_path, line):
    _, counts = read(tmp_path, line, CHAT)

    assert counts == LineCounts(messages=1, unknown=1)
