"""The price is that of the host: given, named by the model's id, or the maker."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ClauseContains

from pyapp.errors import InvalidValueError
from pyapp.pricing import PublishedPrice, published_price
from pyapp.published_prices.hosts import find_hosts, named_provider
from pyapp.published_prices.providers import find_provider, provider_id

PROVIDERS = get_snapshot().providers
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
BEDROCK = "arn:aws:bedrock:us-east-1:123456789012:"


def price(model, provider=None, **more):
    """Return the price of 100,000 input tokens and 10,000 of output."""
    return published_price(
        model=model,
        provider=provider,
        input_tokens=100_000,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=0,
        output_tokens=10_000,
        finished_at=NOON,
        **more,
    )


def found(model: str, provider: str | None = None) -> list[tuple[str, str]]:
    hosts = find_hosts(PROVIDERS, model, provider)
    return [(host.provider.id, host.model.id) for host in hosts]


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("anthropic", "anthropic"),
        ("Anthropic", "anthropic"),
        ("OpenAI", "openai"),
        ("bedrock", "aws"),
        ("Amazon Bedrock", "aws"),
        ("bedrock_converse", "aws"),
        ("anthropic-bedrock", "aws"),
        ("AWS", "aws"),
        ("vertex", "google"),
        ("vertex_ai", "google"),
        ("vertex_ai-anthropic_models", "google"),
        ("gemini", "google"),
        ("Google AI Studio", "google"),
        ("azure", "azure"),
        ("azure_openai", "azure"),
        ("Azure OpenAI", "azure"),
        ("azure_ai", "azure"),
        ("openrouter", "openrouter"),
        ("OpenRouter.ai", "openrouter"),
        ("groq", "groq"),
        ("together_ai", "together"),
        ("Together", "together"),
        ("fireworks_ai", "fireworks"),
        ("x.ai", "x-ai"),
        ("xAI", "x-ai"),
        ("z.ai", "zai"),
        ("zhipu", "zhipuai"),
        ("mistralai", "mistral"),
        ("moonshot", "moonshotai"),
        ("huggingface/cerebras", "huggingface_cerebras"),
        ("cerebras", "cerebras"),
        ("github_copilot", "github-copilot"),
    ],
)
def test_provider_is_found_by_the_names_in_use(name, id):
    provider = find_provider(PROVIDERS, name)
    assert provider is not None
    assert provider.id == id
    assert provider_id(name) == ("vertex_ai" if "vertex" in name else id)


def test_every_provider_of_the_data_has_its_id_and_name():
    for provider in PROVIDERS:
        assert provider_id(provider.id) == provider.id
        assert provider_id(provider.name) == provider.id
        assert find_provider(PROVIDERS, provider.id) is provider


def test_newer_provider_is_found_by_the_data():
    newer = replace(PROVIDERS[0], id="acme", provider_match=ClauseContains("acme"))
    assert find_provider([*PROVIDERS, newer], "Acme Cloud") is newer
    assert provider_id(" Acme Cloud ") == "acme cloud"


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "unknown", "openai-compatible", "openai_like", "custom_openai"),
        *(
            "ollama",
            "our-azure-gateway",
            "bedrock-gateway",
            "\u4ee3\u7406 OpenAI",
            "azure-eu",
            "litellm_proxy",
        ),
    ],
)
def test_provider_that_is_not_known_is_not_guessed(name):
    assert find_provider(PROVIDERS, name) is None
    assert provider_id(name) == name.strip().lower()
    assert price("gpt-5", name).cost is None


@pytest.mark.parametrize(
    ("model", "id"),
    [
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "aws"),
        ("anthropic.claude-3-haiku-20240307-v1:0", "aws"),
        ("global.anthropic.claude-opus-4-6-v1", "aws"),
        ("meta.llama3-3-70b-instruct-v1:0", "aws"),
        (BEDROCK + "inference-profile/us.anthropic.claude-opus-4-6-v1", "aws"),
        ("bedrock/eu.anthropic.claude-opus-4-6-v1", "aws"),
        ("claude-opus-4-1@20250805", "vertex_ai"),
        ("publishers/anthropic/models/claude-sonnet-4-5", "vertex_ai"),
        ("vertex_ai/gemini-2.5-pro", "vertex_ai"),
        ("google-vertex/gemini-2.5-pro", "vertex_ai"),
        ("amazon-bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", "aws"),
        ("azure-openai/gpt-4o", "azure"),
        ("models/gemini-2.5-flash", "google"),
        ("azure/gpt-4o", "azure"),
        ("groq/llama-3.3-70b-versatile", "groq"),
        ("accounts/fireworks/models/glm-5p3", "fireworks"),
        ("claude-opus-4-6", None),
        ("anthropic/claude-opus-4-6", None),
        ("gpt-5", None),
        ("qwen2.5-coder", None),
        ("", None),
    ],
)
def test_some_ids_name_their_host(model, id):
    assert named_provider(model) == id


def test_bedrock_has_prices_by_region():
    profile = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    regional = PublishedPrice(Decimal("0.495"), Decimal(0), True, None)
    assert price(f"us.{profile}") == regional
    assert price(f"eu.{profile}", "bedrock") == regional
    assert price(f"{BEDROCK}inference-profile/us.{profile}") == regional
    assert price(f"bedrock/us.{profile}") == regional
    assert price(f"global.{profile}").cost == Decimal("0.45")


@pytest.mark.parametrize(
    "resource",
    ["application-inference-profile/a1b2c3", "provisioned-model/a1", "custom-model/a1"],
)
def test_bedrock_resource_without_a_model_has_no_price(resource):
    assert price(BEDROCK + resource).cost is None


@pytest.mark.parametrize(
    "model",
    [
        "eu.amazon.nova-lite-v1:0",
        "apac.amazon.nova-pro-v1:0",
        "bedrock/eu-west-2/meta.llama3-70b-instruct-v1:0",
        "arn:aws:bedrock:sa-east-1::foundation-model/meta.llama3-8b-instruct-v1:0",
        "us-gov.anthropic.claude-haiku-4-5-20251001-v1:0",
        "bedrock/us-gov-west-1/amazon.nova-pro-v1:0",
    ],
)
def test_region_of_bedrock_without_a_price_of_its_own_has_none(model):
    assert price(model).cost is None
    assert price(model, "bedrock").cost is None


@pytest.mark.parametrize(
    "model",
    [
        "us.amazon.nova-lite-v1:0",
        "amazon.nova-lite-v1:0",
        "bedrock/us-west-2/amazon.nova-lite-v1:0",
        "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0",
    ],
)
def test_prices_of_bedrock_are_those_of_the_us(model):
    assert price(model).cost == Decimal("0.0084")


def test_vertex_charges_more_at_regional_endpoints():
    name = "projects/p/locations/{}/publishers/anthropic/models/claude-sonnet-4-6"
    regional = price(name.format("europe-west1"))
    assert (regional.cost, regional.is_standard) == (Decimal("0.495"), False)
    world = price(name.format("global"))
    assert (world.cost, world.is_standard) == (Decimal("0.45"), True)
    older = "projects/p/locations/us-east5/publishers/anthropic/models/claude-opus-4-1"
    assert price(older).cost == price("claude-opus-4-1", "vertex").cost


def test_global_service_of_azure_has_the_list_price():
    for model in ("azure/global/gpt-4o-2024-11-20", "azure/global-standard/gpt-4o"):
        assert price(model) == price("gpt-4o", "azure") == price("gpt-4o")


def test_given_provider_determines_the_price():
    assert price("glm-4.7", "zai").cost == Decimal("0.082")
    assert price("glm-4.7", "zhipuai").cost == Decimal("0.03863")
    assert price("openai/gpt-oss-120b", "groq").cost == Decimal("0.021")


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("claude-sonnet-4-5", "openai"),
        ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "anthropic"),
        ("gpt-5", "no-such-host"),
    ],
)
def test_given_provider_without_the_model_is_an_error_with_both(model, provider):
    result = price(model, provider)
    assert result.cost is None
    assert repr(model) in result.reason
    assert repr(provider) in result.reason


@pytest.mark.parametrize(
    ("model", "maker"),
    [
        ("gpt-5", "openai"),
        ("openai/gpt-5", "openai"),
        ("text-embedding-3-small", "openai"),
        ("chatgpt-4o-latest", "openai"),
        ("claude-sonnet-4-5", "anthropic"),
        ("anthropic/claude-sonnet-4.5", "anthropic"),
        ("gemini-2.5-pro", "google"),
        ("gemini-embedding-001", "google"),
        ("google/gemini-2.5-pro", "google"),
        ("mistral-large-latest", "mistral"),
        ("deepseek-chat", "deepseek"),
        ("grok-4", "x-ai"),
        ("kimi-k2-0905-preview", "moonshotai"),
        ("z-ai/glm-4.7", "zai"),
        ("command-r-plus", "cohere"),
        ("embed-v4.0", "cohere"),
        ("sonar-pro", "perplexity"),
        ("phi-4", "azure"),
    ],
)
def test_maker_determines_the_price_otherwise(model, maker):
    assert [provider for provider, _ in found(model)] == [maker]


@pytest.mark.parametrize(
    "model",
    [
        "meta-llama/llama-3.3-70b-instruct",
        "qwen/qwen3-32b",
        "qwen3-32b",
        "openai/gpt-oss-120b",
        "gpt-oss-120b",
        "gemma-3-27b-it",
        "deepseek-r1-distill-llama-70b",
        "llama-3.3-70b",  # a name at Cerebras, and the plain name of the weights
    ],
)
def test_model_of_several_hosts_with_different_prices_is_an_error(model):
    result = price(model)
    assert result.cost is None
    assert "--provider" in result.reason
    for provider, _ in found(model)[:8]:
        assert provider in result.reason


@pytest.mark.parametrize(
    ("model", "host"),
    [
        ("llama-3.3-70b-versatile", "groq"),
        ("mixtral-8x7b-32768", "groq"),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "together"),
        ("accounts/fireworks/models/glm-5p3", "fireworks"),
    ],
)
def test_id_that_one_host_uses_names_it(model, host):
    assert [provider for provider, _ in found(model)] == [host]


def test_mark_of_the_long_context_changes_nothing():
    for model in ("claude-sonnet-5", "claude-opus-4-7"):
        assert price(f"{model}[1m]") == price(model)


def test_two_services_of_a_maker_with_different_prices_are_an_error():
    result = price("glm-4.7")
    assert result.cost is None
    assert "zai, zhipuai" in result.reason


def test_hosts_with_one_price_need_no_provider():
    model = next(
        model.id
        for provider in PROVIDERS
        if provider.id == "openrouter"
        for model in provider.models
        if len({p for p, _ in found(model.id)}) > 1 and price(model.id).cost is not None
    )
    costs = {price(model, provider).cost for provider, _ in found(model)}
    assert costs == {price(model).cost}


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gemini-2.0-flash", "vertex_ai"),  # 0.15 there, 0.10 at the Gemini API
        ("vertex_ai/gemini-2.0-flash", None),
        ("publishers/google/models/gemini-2.0-flash", None),
        ("publishers/google/models/gemma-3-27b-it", None),
        ("publishers/google/models/gemini-2.0-flash", "google"),
        ("google-vertex/gemini-2.0-flash", None),
        ("google_vertexai/gemini-2.0-flash", None),
        ("gemma-4-31b-it", "vertex"),  # free at the Gemini API only
        ("deepseek-chat", "azure"),
        ("grok-3-mini", "azure"),
        ("azure/eu/o4-mini", None),  # a data zone
        ("azure/us-gov/o3-mini", None),
        ("us/o4-mini", "azure"),
    ],
)
def test_price_of_one_service_is_not_that_of_another(model, provider):
    assert price(model, provider).cost is None


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gemini-3.8-flash-cyber", None),
        ("gemini-3.8-flash-cyber", "google"),
        ("gemini-3.6-flash-lite", None),
        ("deepseek-v4-flash-vision-exp", "deepseek"),
    ],
)
def test_name_of_another_model_is_not_a_version(model, provider):
    assert price(model, provider).cost is None


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o-search-preview",
        "gpt-4o-mini-search-preview-2025-03-11",
        "gpt-5-search-api",
    ],
)
def test_model_that_always_searches_has_no_price_without_the_search(model):
    assert price(model).cost is None
    assert price(model, "openai").cost is None


def test_price_taken_from_a_router_is_not_the_makers():
    # The data lists gpt-oss at OpenAI, which does not serve it, and at Azure by way of
    # OpenAI.
    assert found("gpt-oss-120b", "openai") == []
    assert found("gpt-oss-120b", "azure") == []


@pytest.mark.parametrize(
    "model",
    [
        "ft:gpt-4-0613:acme::a1",
        "ft:gpt-5-2025-08-07:acme::a1",
        "gpt-5.ft-a1b2",
        "tunedModels/gemini-2.5-flash-a1",
        "projects/p/locations/us-central1/endpoints/4611",
    ],
)
def test_fine_tuned_model_never_has_the_price_of_its_base(model):
    assert price(model).cost is None


def test_fine_tuned_model_has_its_own_price():
    tuned = price("ft:gpt-4o-mini-2024-07-18:acme::a1")
    assert tuned.cost == Decimal("0.042")  # 100k x 0.3/M + 10k x 1.2/M
    assert price("gpt-4o-mini-2024-07-18").cost == Decimal("0.021")


@pytest.mark.parametrize("variant", ["nitro", "floor", "online", "exacto"])
def test_openrouter_variant_never_has_the_price_of_its_base(variant):
    for provider in (None, "openrouter"):
        assert price(f"anthropic/claude-sonnet-4.5:{variant}", provider).cost is None


def test_free_variant_costs_nothing():
    free = PublishedPrice(Decimal(0), Decimal(0), True, None)
    assert price("meta-llama/llama-3.3-70b-instruct:free") == free
    assert price("vendor/not-listed:free") == free
    assert price("vendor/not-listed:free", "openrouter") == free
    assert price("vendor/not-listed:free", "groq").cost is None
    assert price("not-listed:free").cost is None
    searched = price("vendor/not-listed:free", units={"web_searches": 1})
    assert (searched.cost, searched.other_cost) == (None, None)


def test_model_without_cost_and_model_without_price_differ():
    assert price("gemma-4-31b-it", "google").cost == 0  # free on the Gemini API
    assert price("gpt-4o", "github-copilot").cost is None  # part of a subscription


@pytest.mark.parametrize(
    "model",
    [
        *("ollama/llama3.3", "hosted_vllm/qwen3-32b", "local/x"),
        *(
            "gemma3:4b",
            "llama3.1:8b-instruct-q4_0",
            "deepseek-r1:70b",
            "mistral:latest",
        ),
        *("gpt-oss:20b", "gemma3n:e4b"),
    ],
)
def test_model_of_an_own_server_has_no_price(model):
    assert price(model).cost is None


@pytest.mark.parametrize("name", [1, b"x", 0.5])
def test_names_must_be_text(name):
    with pytest.raises(InvalidValueError, match="must be text"):
        price(name)
    with pytest.raises(InvalidValueError, match="must be text"):
        price("gpt-5", name)
