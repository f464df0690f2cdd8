"""Logs of gateways, hosts and tracing tools: what is stored, and what is reported."""

import json
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from pyapp.usage_import.files import find_logs
from pyapp.usage_import.reader import ReadMessage, read_usage_logs
from pyapp.usage_import.responses import make_id
from tests.usage_lines import (
    ANTHROPIC,
    CHAT,
    changed,
    cost_of,
    only,
    read,
    reason,
    tokens,
)

ROW: dict[str, Any] = {
    "request_id": "chatcmpl-000000000000000000000001",
    "call_type": "acompletion",
    "spend": 0.25,
    "prompt_tokens": 1_000,
    "completion_tokens": 50,
    "total_tokens": 1_050,
    "startTime": "2026-05-04T10:00:00.500Z",
    "endTime": "2026-05-04T10:00:02Z",
    "model": "gpt-4o",
    "custom_llm_provider": "azure",
    "metadata": {},
}
GENERATION: dict[str, Any] = {
    "id": "gen-1777888999-a",
    "created_at": "2026-05-04T10:00:00Z",
    "model": "openai/gpt-4o-mini",
    "native_tokens_prompt": 1_000,
    "native_tokens_cached": 400,
    "native_tokens_completion": 50,
    "total_cost": 0.001,
    "upstream_inference_cost": 0.02,
    "is_byok": True,
    "generation_time": 1_500,
}
RECORD: dict[str, Any] = {
    "schemaType": "ModelInvocationLog",
    "timestamp": "2026-05-04T10:00:00Z",
    "region": "us-east-1",
    "requestId": "00000000-0000-4000-8000-000000000001",
    "operation": "Converse",
    "modelId": "amazon.nova-lite-v1:0",
    "input": {"inputTokenCount": 1_000},
    "output": {
        "outputTokenCount": 50,
        "outputBodyJson": {
            "stopReason": "end_turn",
            "usage": {
                "inputTokens": 1_000,
                "outputTokens": 50,
                "cacheReadInputTokens": 400,
                "cacheWriteInputTokens": 300,
                "cacheDetails": [
                    {"ttl": "5m", "inputTokens": 100},
                    {"ttl": "1h", "inputTokens": 200},
                ],
                "totalTokens": 1_750,
            },
        },
    },
}
CONVERSE = RECORD["output"]["outputBodyJson"]
OBSERVATION: dict[str, Any] = {
    "id": "o1",
    "traceId": "t1",
    "type": "GENERATION",
    "startTime": "2026-05-04T10:00:00Z",
    "model": "gpt-4o",
    "usageDetails": {"input": 100, "output": 20, "total": 120},
}
HELICONE: dict[str, Any] = {
    "request_id": "q1",
    "request_created_at": "2026-05-04T10:00:00Z",
    "model": "gpt-4o",
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "prompt_cache_read_tokens": 50,
}
RUN: dict[str, Any] = {
    "id": "r1",
    "trace_id": "r0",
    "run_type": "llm",
    "start_time": "2026-05-04T10:00:00",
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "extra": {"metadata": {"ls_model_name": "gpt-4o"}},
}
RERANK: dict[str, Any] = {
    "model": "rerank-v3.5",
    "id": "c1",
    "meta": {"billed_units": {}},
}
OLLAMA: dict[str, Any] = {
    "model": "llama3.2",
    "created_at": "2026-05-04T10:00:00Z",
    "done": True,
}


def test_row_of_litellm_is_a_message_at_its_spend(tmp_path):
    message = only(tmp_path, ROW)
    assert (message.provider, message.cost, message.latency_ms) == (
        "azure",
        Decimal("0.25"),
        1_500,
    )
    assert tokens(message) == (1_000, 0, 0, 50)
    assert message.finished_at.isoformat() == "2026-05-04T10:00:02+00:00"


@pytest.mark.parametrize("write", [json.dumps, dict])
def test_usage_in_the_metadata_has_the_cached_tokens(tmp_path, write):
    usage = {"usage_object": CHAT["usage"]}
    message = only(tmp_path, changed(ROW, metadata=write(usage)))
    assert tokens(message) == (104, 0, 896, 50)


def test_counts_that_overlap_do_not_hide_a_stated_cost(tmp_path):
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 9, "cache_creation_tokens": 9},
    }
    message = only(tmp_path, changed(ROW, metadata={"usage_object": usage}))
    assert (message.cost, tokens(message)) == (Decimal("0.25"), (0, 1, 9, 5))


@pytest.mark.parametrize("order", [1, -1])
def test_stated_cost_counts_whichever_form_is_read_first(tmp_path, order):
    body = changed(CHAT, id=ROW["request_id"])
    message = only(tmp_path, *[body, ROW][::order])
    assert message.cost == Decimal("0.25")


def test_row_and_body_of_a_claude_message_are_one(tmp_path):
    row = changed(ROW, request_id="msg_01", spend=0.5)
    assert only(tmp_path, ANTHROPIC, row).cost == Decimal("0.5")


def test_cost_of_the_breakdown_replaces_a_spend_of_zero(tmp_path):
    breakdown = {"cost_breakdown": {"total_cost": 0.06}}
    message = only(tmp_path, changed(ROW, spend=0, metadata=breakdown))
    assert message.cost == Decimal("0.06")


def test_reading_a_response_again_is_not_a_call(tmp_path):
    row = changed(ROW, request_id="resp_other", call_type="aget_responses")
    results, counts = read(tmp_path, row)
    assert (results, counts.without_usage) == ([], 1)


def test_short_ids_of_local_servers_differ_by_their_second(tmp_path):
    later = changed(CHAT, created=1_777_889_000)
    assert len(read(tmp_path, CHAT, later)[0]) == 2
    long = {"id": "chatcmpl-000000000000000000000001"}
    assert len(read(tmp_path, {**CHAT, **long}, {**later, **long})[0]) == 1


def test_generation_with_a_key_of_ones_own_costs_fee_and_upstream(tmp_path):
    message = only(tmp_path, {"data": GENERATION})
    assert (message.provider, message.cost) == ("openrouter", Decimal("0.021"))
    assert (tokens(message), message.latency_ms) == ((600, 0, 400, 50), 1_500)


def test_generation_may_state_its_cost_as_usage(tmp_path):
    free = changed(GENERATION, total_cost=..., usage=3.4e-05, is_byok=False)
    assert only(tmp_path, free).cost == Decimal("0.000034")


@pytest.mark.parametrize(
    ("usage", "own_key", "cost"), [(0.0117, None, "0.0117"), (0.001, 0.02, "0.021")]
)
def test_row_of_openrouters_log_names_its_generation(tmp_path, usage, own_key, cost):
    row = {
        "id": 14_244_623_083,
        "generation_id": GENERATION["id"],
        "created_at": "2025-06-29T10:19:41.721754+00:00",
        "model": "anthropic/claude-3-7-sonnet-20250219",
        "native_tokens_prompt": 15_328,
        "native_tokens_completion": 457,
        "native_tokens_cached": 15_252,
        "usage": usage,
        "usage_cache": -0.0411279,
        "byok_usage_inference": own_key,
    }
    message = only(tmp_path, row)
    assert (message.cost, tokens(message)) == (Decimal(cost), (76, 0, 15_252, 457))
    assert message.id == only(tmp_path, GENERATION).id


def test_metrics_of_a_stream_have_the_cache_of_nova(tmp_path):
    chunk = {
        "metadata": {"usage": {"inputTokens": 600, "outputTokens": 50}},
        "amazon-bedrock-invocationMetrics": {
            "inputTokenCount": 600,
            "outputTokenCount": 50,
            "cacheReadInputTokenCount": 400,
            "cacheWriteInputTokenCount": 0,
        },
    }
    record = changed(RECORD, input={}, output={"outputBodyJson": [chunk]})
    assert tokens(only(tmp_path, record)) == (600, 0, 400, 50)


def test_body_of_a_stream_that_was_left_out_does_not_matter(tmp_path):
    counts = {"inputTokenCount": 6, "cacheWriteInputTokenCount": 225_913}
    output = {"outputTokenCount": 167, "outputBodyJson": ["..."]}
    message = only(tmp_path, changed(RECORD, input=counts, output=output))
    assert tokens(message) == (6, 225_913, 0, 167)


def test_record_has_the_lifetime_of_cache_writes(tmp_path):
    message = only(tmp_path, RECORD)
    assert tokens(message) == (1_000, 300, 400, 50)
    assert message.cache_creation_1h_input_tokens == 200
    assert (message.provider, message.model) == ("aws", "amazon.nova-lite-v1:0")


@pytest.mark.parametrize(
    ("region", "model", "expected"),
    [
        ("us-west-2", "amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
        ("eu-west-1", "eu.amazon.nova-lite-v1:0", "eu.amazon.nova-lite-v1:0"),
        ("eu-west-1", "anthropic.claude-sonnet-4-6", "anthropic.claude-sonnet-4-6"),
        (
            "eu-west-1",
            "amazon.nova-lite-v1:0",
            "arn:aws:bedrock:eu-west-1::foundation-model/amazon.nova-lite-v1:0",
        ),
        (
            "us-gov-west-1",
            "anthropic.claude-sonnet-4-6",
            "arn:aws-us-gov:bedrock:us-gov-west-1::foundation-model/"
            "anthropic.claude-sonnet-4-6",
        ),
    ],
)
def test_model_names_the_region_where_its_price_may_differ(
    tmp_path, region, model, expected
):
    assert only(tmp_path, changed(RECORD, region=region, modelId=model)).model == (
        expected
    )


def test_records_and_chunks_without_usage_are_known(tmp_path):
    failed = changed(RECORD, errorCode="ThrottlingException", input={}, output={})
    chunk = changed(OLLAMA, done=False)
    failure = changed(ROW, spend=0, status="failure")
    span = changed(OBSERVATION, type="SPAN")
    tool = changed(OBSERVATION, type="TOOL", usageDetails={})
    results, counts = read(tmp_path, failed, chunk, failure, span, tool)
    assert (results, counts.without_usage, counts.unknown_files) == ([], 5, 0)


def test_run_of_an_embedding_is_a_call(tmp_path):
    run = changed(RUN, run_type="embedding", completion_tokens=None)
    assert tokens(only(tmp_path, run)) == (100, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (ROW["request_id"], [{**ROW, "response": changed(CHAT, id=ROW["request_id"])}]),
        (
            ROW["request_id"],
            [{**ROW, "response": json.dumps(changed(CHAT, id=ROW["request_id"]))}],
        ),
        (ROW["request_id"], [changed(CHAT, id=ROW["request_id"]), ROW]),
        (ROW["request_id"], [ROW, changed(CHAT, id=ROW["request_id"])]),
        (GENERATION["id"], [changed(CHAT, id=GENERATION["id"]), {"data": GENERATION}]),
        (GENERATION["id"], [{"data": GENERATION}, changed(CHAT, id=GENERATION["id"])]),
    ],
)
def test_row_has_the_id_that_its_body_had(tmp_path, name, lines):
    file = tmp_path / "usage.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    (found,) = read_usage_logs(find_logs([file]))
    assert isinstance(found, ReadMessage)
    assert found.message.cost is not None
    former_id = make_id("openai", name, CHAT["created"])
    assert found.former_id == UUID(bytes=former_id, version=5)


def test_broken_row_of_a_list_does_not_hide_the_others(tmp_path):
    rows = [changed(OBSERVATION, id=None), OBSERVATION, changed(OBSERVATION, id="o2")]
    records = [changed(RECORD, requestId=None), RECORD]
    events = [{"message": json.dumps(record)} for record in records]
    results, counts = read(tmp_path, {"observations": rows}, {"events": events})
    assert [type(r).__name__ for r in results] == [
        "NewMessage",
        "NewMessage",
        "NewMessage",
        "BrokenLine",
        "BrokenLine",
    ]
    assert counts.broken == 2


def test_provider_of_a_tool_is_in_lower_case(tmp_path):
    row = changed(HELICONE, provider="OPENAI", cost_usd=0.5)
    assert only(tmp_path, row).provider == "openai"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (cost_of(cost=-1), "cost must be from 0"),
        (cost_of(cost=True), "cost is not a cost"),
        (cost_of(cost="free"), "cost is not a cost: 'free'"),
        (cost_of(cost=1e12), "cost must be from 0"),
        (cost_of(cost_in_usd_ticks="x"), "cost_in_usd_ticks is not a cost"),
        (
            cost_of(cost=0.01, is_byok=True),
            "cost (0.01) is the fee only: is_byok is true",
        ),
        (cost_of(cost=0.01, cost_details=1), "cost_details is not an object"),
        (
            cost_of(type="duration", seconds="x"),
            "seconds is not a number of seconds",
        ),
        (
            cost_of(cache_creation={"ephemeral_1h_input_tokens": 7}),
            "cache writes for one hour (7) exceed all cache writes (0)",
        ),
        (
            cost_of(prompt_cache_hit_tokens=896, prompt_cache_miss_tokens=1),
            "are not the prompt tokens (1000)",
        ),
        (changed(ROW, request_id=None), "no request_id"),
        (changed(ROW, spend="a lot"), "spend is not a cost"),
        (changed(ROW, endTime="soon"), "endTime is not a time"),
        (changed(GENERATION, id=None), "a generation without an id"),
        (
            changed(GENERATION, upstream_inference_cost=None),
            "cost (0.001) is the fee only",
        ),
        (changed(RECORD, requestId=None), "no requestId"),
        (changed(RECORD, timestamp="2025-04-99T10:00:00Z"), "timestamp is not a time"),
        (changed(RECORD, modelId=None), "no model is named"),
        (
            {
                "id": "1",
                "timestamp": 1,
                "message": '{"schemaType": "ModelInvocationLog',
            },
            "the record is not JSON",
        ),
        (
            {"id": "1", "timestamp": 1, "message": '["ModelInvocationLog"]'},
            "the record is not an object",
        ),
        (changed(RECORD, input={}, output={}), "a record without token counts"),
        (
            changed(
                RECORD,
                modelId="openai.gpt-5.6-luna",
                operation="ConverseStream",
                input={"inputTokenCount": 4_995, "cacheWriteInputTokenCount": 4_993},
                output={"outputTokenCount": 19},
            ),
            "whether inputTokenCount (4995) includes the cached tokens (4993)",
        ),
        (
            changed(RECORD, output__outputTokenCount=49),
            "outputTokenCount (49) is not that of the response (50)",
        ),
        (
            changed(RECORD, input__inputTokenCount=999),
            "inputTokenCount (999) is not that of the response (1000)",
        ),
        (
            {"modelId": "x", "timestamp": 1, "response": CONVERSE},
            "no published price",
        ),
        (changed(CONVERSE, usage__totalTokens=7), "names no model"),
        (
            {"modelId": "x", "response": changed(CONVERSE, usage__totalTokens=7)},
            "totalTokens (7) is not the sum of its parts (1750)",
        ),
        (
            {
                "modelId": "x",
                "response": changed(CONVERSE, usage__cacheReadInputTokenCount=7),
            },
            "cacheReadInputTokens (400) is not cacheReadInputTokenCount (7)",
        ),
        (
            {"modelId": "x", "response": changed(CONVERSE, usage__cacheDetails=7)},
            "cacheDetails is not a list of objects",
        ),
        (
            {
                "modelId": "x",
                "response": changed(
                    CONVERSE, usage__cacheDetails=[{"ttl": "1h", "inputTokens": 301}]
                ),
            },
            "cache writes for one hour (301) exceed all cache writes (300)",
        ),
        (
            {
                "modelId": "x",
                "response": changed(
                    CONVERSE, usage__cacheDetails=[{"ttl": "1d", "inputTokens": 1}]
                ),
            },
            "cache writes for '1d'",
        ),
        ({"recordId": "1", "modelOutput": CONVERSE}, "names no model"),
        (
            {"recordId": "1", "modelOutput": {"model": "x"}},
            "a result of a batch without token counts",
        ),
        (changed(OBSERVATION, id=None), "no id"),
        (
            changed(OBSERVATION, usageDetails__total=130),
            "total (130) is not the sum of its parts (120)",
        ),
        (
            changed(OBSERVATION, type="AGENT"),
            "usage of 'AGENT', which may be the sum of other calls",
        ),
        (
            changed(RUN, run_type="graph"),
            "usage of 'graph', which may be the sum of other calls",
        ),
        (HELICONE, "whether prompt_tokens include the cached tokens (50)"),
        (
            changed(RUN, prompt_token_details={"cache_read": 101}),
            "cached tokens (101) exceed prompt_tokens (100)",
        ),
        (
            {
                "id": "r1",
                "run_type": "llm",
                "start_time": "2026-05-04T10:00:00",
                "outputs": {"llm_output": {"token_usage": {"prompt_tokens": 7}}},
            },
            "usage in an unknown form: outputs.llm_output.token_usage.prompt_tokens",
        ),
        (changed(RERANK, meta__billed_units={"search_units": -1}), "search_units must"),
    ],
)
def test_line_that_cannot_be_billed_has_a_reason(tmp_path, line, expected):
    if expected == "no published price":
        message = only(tmp_path, line)
        assert message.published.reason.startswith(expected)
    else:
        assert expected in reason(tmp_path, line)
