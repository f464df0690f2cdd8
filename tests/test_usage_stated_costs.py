"""Costs that bodies in OpenAI's form state, and the hosts that they name."""

from decimal import Decimal

import pytest

from tests.usage_lines import CHAT, cost_of, only


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens_details": {"audio_tokens": 9_999}},
        {"completion_tokens_details": {"reasoning_tokens": 9_999}},
        {"prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 5},
        {"cached_tokens": 3},
        {"total_tokens": 7},
        {"cache_creation_input_tokens": 100},
    ],
)
def test_counts_that_contradict_do_not_hide_a_stated_cost(tmp_path, usage):
    assert only(tmp_path, cost_of(cost=0.5, **usage)).cost == Decimal("0.5")


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"cost": 1, "is_byok": False}, "1"),
        ({"cost": "0.5e-3"}, "0.0005"),
        ({"cost": 0, "is_byok": False}, "0"),
        ({"cost": 0.1, "cost_details": {"upstream_inference_cost": 0.05}}, "0.1"),
        ({"cost": 0.1, "cost_details": {"upstream_inference_cost": 0.2}}, "0.3"),
        ({"cost": {"total_cost": 0.7}}, "0.7"),
        ({"cost_in_usd_ticks": 1}, "1e-10"),
        ({"estimated_cost": 0.25}, "0.25"),
        ({"cost": 0}, None),
        ({"cost": None}, None),
        ({"cost": {"total_cost": 0}}, None),
        ({"cost_in_usd_ticks": 0}, None),
        ({"pydantic_ai_gateway": {"cost_estimate": 0.5}}, None),
    ],
)
def test_stated_cost(tmp_path, usage, cost):
    expected = None if cost is None else Decimal(cost)
    assert only(tmp_path, cost_of(**usage)).cost == expected


@pytest.mark.parametrize(
    ("changes", "provider"),
    [
        ({"x_groq": {"id": "req_1"}}, "groq"),
        ({"time_info": {"queue_time": 0.1}}, "cerebras"),
        ({"prompt_filter_results": [{"prompt_index": 0}]}, "azure"),
        ({"timings": {"predicted_n": 50}}, "llama.cpp"),
        ({"system_fingerprint": "fp_ollama"}, "ollama"),
        ({"system_fingerprint": "fp_123"}, None),
    ],
)
def test_host_that_marks_its_responses_is_the_provider(tmp_path, changes, provider):
    assert only(tmp_path, {**CHAT, **changes}).provider == provider
