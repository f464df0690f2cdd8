"""Recorded streams: the events of a response are one message.

What one file has to cost is in tests/data/usage_cases.
"""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.reader import BrokenLine
from tests.usage_lines import (
    ANTHROPIC,
    CHAT,
    RESPONSE,
    as_bytes,
    changed,
    only,
    read,
    tokens,
)

USAGE = {"input_tokens": 40, "cache_read_input_tokens": 7, "output_tokens": 1}
MESSAGE = changed(ANTHROPIC, id="msg_s", stop_reason=None, usage=USAGE)
GEMINI: dict[str, Any] = {
    "candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}],
    "usageMetadata": {
        "promptTokenCount": 100,
        "candidatesTokenCount": 10,
        "totalTokenCount": 110,
    },
    "modelVersion": "gemini-2.5-flash",
    "responseId": "g-1",
}
REALTIME: dict[str, Any] = {
    "type": "response.done",
    "response": {
        "object": "realtime.response",
        "id": "resp_rt",
        "usage": {"total_tokens": 30, "input_tokens": 20, "output_tokens": 10},
    },
}


def start(id: str = "msg_s", **usage: Any) -> dict[str, Any]:
    message = {**MESSAGE, "id": id, "usage": {**USAGE, **usage}}
    return {"type": "message_start", "message": message}


def delta(**usage: Any) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": "stop"}, "usage": usage}


def broken(results: list[Any]) -> list[tuple[int, str]]:
    return [(r.line, r.reason) for r in results if isinstance(r, BrokenLine)]


def test_a_stream_has_the_id_of_its_response(tmp_path: Path) -> None:
    whole = changed(MESSAGE, stop_reason="stop", usage__output_tokens=90)
    stream = only(tmp_path, start(), {"type": "ping"}, delta(output_tokens=90))

    assert stream.id == only(tmp_path, whole).id
    assert tokens(stream) == (40, 0, 7, 90)


def test_a_delta_without_usage_does_not_end_a_stream(tmp_path: Path) -> None:
    results, _ = read(tmp_path, start(), delta())

    assert broken(results) == [(1, "the stream ends before the usage of 'msg_s'")]
    assert tokens(only(tmp_path, start(), delta(), delta(output_tokens=9)))[3] == 9


def test_the_largest_count_of_an_event_is_the_whole(tmp_path: Path) -> None:
    events = (start(), delta(output_tokens=5), delta(output_tokens=90, input_tokens=61))
    stream = only(tmp_path, *events)
    smaller = only(tmp_path, start(), delta(output_tokens=9, input_tokens=0))

    assert tokens(stream) == (61, 0, 7, 90)
    assert tokens(smaller) == (40, 0, 7, 9)


@pytest.mark.parametrize("place", ["start", "delta"])
@pytest.mark.parametrize("count", [-101, "9", 1.5])
def test_an_invalid_count_of_an_event_is_reported(
    tmp_path: Path, place: str, count: object
) -> None:
    counts: dict[str, Any] = {"start": 1, "delta": 9, place: count}
    events = [
        start(output_tokens=counts["start"]),
        delta(output_tokens=counts["delta"]),
    ]
    results, _ = read(tmp_path, *events)

    assert [line for line, _ in broken(results)] == [2]
    assert len(results) == 1


def test_a_compaction_in_a_stream_is_a_pass_of_its_own(tmp_path: Path) -> None:
    compaction: dict[str, Any] = {"input_tokens": 10, "cache_read_input_tokens": 500}
    passes = [
        {"type": "compaction", **compaction, "output_tokens": 80},
        {"type": "message", "input_tokens": 181, "output_tokens": 8},
    ]
    usage = {"input_tokens": 181, "cache_read_input_tokens": 0, "output_tokens": 8}
    message = only(tmp_path, start(**compaction), delta(**usage, iterations=passes))

    assert tokens(message) == (191, 0, 500, 88)


def test_a_stream_that_began_twice_is_one(tmp_path: Path) -> None:
    assert tokens(only(tmp_path, start(), start(), delta(output_tokens=9)))[3] == 9


def test_a_stream_after_a_cut_one_keeps_its_usage(tmp_path: Path) -> None:
    lines = (start("msg_cut"), start("msg_next"), delta(output_tokens=9))
    results, counts = read(tmp_path, *lines)

    assert broken(results) == [(1, "the stream ends before the usage of 'msg_cut'")]
    assert [tokens(m) for m in results[:1]] == [(40, 0, 7, 9)]
    assert counts.messages == 1


def test_events_are_read_in_the_text_of_a_stream(tmp_path: Path) -> None:
    events = [start(), delta(output_tokens=9), {"type": "message_stop"}]
    lines = [b": comment", b"retry: 3000"]
    for event in events:
        lines += [b"event: " + event["type"].encode(), b"data: " + as_bytes(event), b""]

    assert tokens(only(tmp_path, *lines, b"data: [DONE]")) == (40, 0, 7, 9)


@pytest.mark.parametrize("key", ["event", "data", "chunk"])
def test_an_event_in_an_envelope_is_read(tmp_path: Path, key: str) -> None:
    events = (start(), delta(output_tokens=9))
    lines = [{"request_id": "r", key: event} for event in events]

    assert only(tmp_path, *lines).client_request_id == "r"


@pytest.mark.parametrize(
    "stream",
    [
        [changed(CHAT, usage=None, object="chat.completion.chunk")] * 3,
        [{"type": "response.created", "response": changed(RESPONSE, usage=None)}],
    ],
)
def test_a_stream_without_usage_is_reported(tmp_path: Path, stream: list[Any]) -> None:
    results, _ = read(tmp_path, *stream)
    name = stream[0].get("response", stream[0])["id"]

    assert broken(results) == [(1, f"the stream of '{name}' has no usage")]


def test_groqs_last_chunk_has_its_usage_apart(tmp_path: Path) -> None:
    chunk = changed(CHAT, usage=None, object="chat.completion.chunk")
    first = {**chunk, "x_groq": {"id": "req_1"}}
    last = {**chunk, "x_groq": {"id": "req_1", "usage": CHAT["usage"]}}
    message = only(tmp_path, first, chunk, last)

    assert tokens(message) == tokens(only(tmp_path, CHAT))
    assert message.provider == "groq"


def test_moonshots_last_chunk_has_its_usage_in_the_choice(tmp_path: Path) -> None:
    chunk = changed(CHAT, usage=None, object="chat.completion.chunk")
    last = {**chunk, "choices": [{"index": 0, "delta": {}, "usage": CHAT["usage"]}]}

    assert tokens(only(tmp_path, chunk, last)) == tokens(only(tmp_path, CHAT))


def test_chunks_with_ids_of_their_own_are_one_stream(tmp_path: Path) -> None:
    chunk = changed(CHAT, object="chat.completion.chunk")
    chunks = [changed(chunk, id=f"chatcmpl-{n}", usage=None) for n in range(3)]
    whole, _ = read(tmp_path, *chunks, chunk)
    cut, _ = read(tmp_path, *chunks)

    assert len(whole) == 1
    assert broken(cut) == [(1, "the stream of 'chatcmpl-0' has no usage")]


def test_later_chunks_of_a_stream_with_usage_add_nothing(tmp_path: Path) -> None:
    chunk = changed(CHAT, object="chat.completion.chunk")
    messages, counts = read(tmp_path, chunk, changed(chunk, usage=None))

    assert (len(messages), counts.broken) == (1, 0)


def test_realtime_responses_need_the_model_of_their_session(tmp_path: Path) -> None:
    session = {"type": "session.created", "session": {"model": "gpt-realtime"}}
    results, _ = read(tmp_path, REALTIME, session, REALTIME)

    assert broken(results) == [(1, "no session.created before it names the model")]
    assert [tokens(m) for m in results[1:]] == [(20, 0, 0, 10)]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"total_tokens": 31}, "(30) differ from total_tokens (31)"),
        (
            {"input_token_details": {"cached_tokens": 21}},
            "cached_tokens (21) exceed input_tokens (20)",
        ),
    ],
)
def test_realtime_usage_has_to_add_up(
    tmp_path: Path, usage: dict[str, Any], expected: str
) -> None:
    response = {**REALTIME["response"], "model": "gpt-realtime"}
    response["usage"] = {**response["usage"], **usage}
    results, _ = read(tmp_path, {**REALTIME, "response": response})

    assert [reason[-len(expected) :] for _, reason in broken(results)] == [expected]


def test_gemini_chunks_are_one_response_with_all_their_searches(
    tmp_path: Path,
) -> None:
    grounding = {"groundingMetadata": {"webSearchQueries": ["a"]}}
    first = {**GEMINI, "candidates": [grounding], "usageMetadata": {}}
    with_search = only(tmp_path, first, GEMINI)

    assert tokens(with_search) == (100, 0, 0, 10)
    assert with_search.published is not None
    assert with_search.published.other_cost == Decimal("0.035")


def test_a_chunk_with_a_traffic_type_alone_has_no_usage(tmp_path: Path) -> None:
    chunk = {**GEMINI, "usageMetadata": {"trafficType": "ON_DEMAND"}}
    chunk["candidates"] = [{"content": {"parts": [{"text": "a"}]}}]
    messages, counts = read(tmp_path, chunk, GEMINI)

    assert [tokens(m) for m in messages] == [(100, 0, 0, 10)]
    assert counts == LineCounts(messages=1, without_usage=1)


def test_the_last_chunk_of_gemini_counts_and_not_the_largest(tmp_path: Path) -> None:
    usage = {"promptTokenCount": 900, "totalTokenCount": 900}
    first = changed(GEMINI, usageMetadata=usage, candidates=[{"index": 0}])
    whole = only(tmp_path, first, GEMINI)
    cut = only(tmp_path, first)

    assert tokens(whole) == (100, 0, 0, 10)
    assert tokens(cut) == (900, 0, 0, 0)


def test_gemini_chunks_without_an_id_are_one_response(tmp_path: Path) -> None:
    last = changed(GEMINI, responseId=...)
    chunk = changed(last, usageMetadata__totalTokenCount=100)
    chunk["usageMetadata"]["candidatesTokenCount"] = 0
    del chunk["candidates"][0]["finishReason"]
    whole, counts = read(tmp_path, chunk, last)
    cut, _ = read(tmp_path, chunk)

    assert [tokens(m) for m in whole] == [(100, 0, 0, 10)]
    assert counts == LineCounts(messages=1, without_usage=1)
    assert broken(cut) == [(1, "the stream ends before its usage")]


@pytest.mark.parametrize(
    ("changes", "provider"),
    [
        ({}, "google"),
        ({"usageMetadata__trafficType": "ON_DEMAND"}, "vertex_ai"),
        ({"modelVersion": "qwen3-coder-plus"}, None),
    ],
)
def test_the_host_of_googles_shape(
    tmp_path: Path, changes: dict[str, str], provider: str | None
) -> None:
    assert only(tmp_path, changed(GEMINI, **changes)).provider == provider


def test_counting_tokens_is_free(tmp_path: Path) -> None:
    details = [{"modality": "TEXT", "tokenCount": 31}]
    line = {"totalTokens": 31, "promptTokensDetails": details}

    assert read(tmp_path, line) == ([], LineCounts(without_usage=1))


@pytest.mark.parametrize("usage", [None, {"trafficType": "ON_DEMAND"}])
def test_a_gemini_response_without_usage_is_reported(
    tmp_path: Path, usage: object
) -> None:
    results, _ = read(tmp_path, changed(GEMINI, usageMetadata=usage))

    assert broken(results) == [(1, "a response without usage")]


def test_equal_gemini_responses_without_an_id_are_two(tmp_path: Path) -> None:
    line = changed(GEMINI, responseId=...)
    messages, _ = read(tmp_path, line, line)
    again, _ = read(tmp_path, line, line)

    assert len({m.id for m in messages}) == 2
    assert [m.id for m in again] == [m.id for m in messages]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (
            {"thoughtsTokenCount": 5},
            "the counts of the usage (115) differ from totalTokenCount (110)",
        ),
        ({"promptTokensDetails": {}}, "promptTokensDetails is not a list of objects"),
        (
            {"candidatesTokensDetails": ["IMAGE"]},
            "candidatesTokensDetails is not a list of objects",
        ),
        (
            {"promptTokensDetails": [{"modality": "SMELL", "tokenCount": 5}]},
            "a modality that is not known: 'SMELL'",
        ),
        (
            {"cachedContentTokenCount": 101},
            "cachedContentTokenCount (101) exceeds promptTokenCount (100)",
        ),
    ],
)
def test_gemini_usage_has_to_add_up(
    tmp_path: Path, usage: dict[str, Any], expected: str
) -> None:
    metadata = {**GEMINI["usageMetadata"], **usage}
    results, _ = read(tmp_path, {**GEMINI, "usageMetadata": metadata})

    assert broken(results) == [(1, expected)]


def test_one_bad_message_of_a_gemini_session_leaves_the_others(tmp_path: Path) -> None:
    def message(id: str, total: int) -> dict[str, Any]:
        counts = {"input": 10, "output": 5, "cached": 0, "total": total}
        line = {"id": id, "timestamp": "2026-05-04T10:11:12Z", "type": "gemini"}
        return {**line, "model": "gemini-2.5-flash", "tokens": counts}

    messages = [
        message("a", 15),
        message("b", 20),
        {**message("c", 15), "type": "model"},
    ]
    results, _ = read(tmp_path, {"sessionId": "s", "messages": messages})

    assert [tokens(m) for m in results[:1]] == [(10, 0, 0, 5)]
    assert broken(results) == [
        (1, "the counts of the tokens (15) differ from total (20)"),
        (1, "tokens in a message of type 'model'"),
    ]
