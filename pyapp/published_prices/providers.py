"""Names of providers: their ids, and the names in use.

The ids are those of genai-prices, which has no id for Vertex AI: its prices and bills
are not those of the Gemini API, which is `google`.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genai_prices.types import Provider

VERTEX = "vertex_ai"
_IDS = (
    *("anthropic", "arcee", "avian", "aws", "azure", "baseten", "cerebras"),
    *("cloudflare", "cohere", "cursor", "databricks", "deepseek", "doubleword"),
    *("elevenlabs", "fireworks", "github-copilot", "google", "groq", "meta"),
    *("minimax", "mistral", "modal", "moonshotai", "novita", "openai"),
    *("openai-decisions", "openrouter", "ovhcloud", "perplexity", "quicksilverpro"),
    *("together", "typesafe", "voyageai", "x-ai", "zai", "zhipuai"),
    *("huggingface_cerebras", "huggingface_fireworks-ai", "huggingface_groq"),
    *("huggingface_hyperbolic", "huggingface_nebius", "huggingface_novita"),
    *("huggingface_nscale", "huggingface_ovhcloud", "huggingface_publicai"),
    *("huggingface_sambanova", "huggingface_together", VERTEX),
)
# Other names, in letters and digits only.
_ALIASES = {
    "bigmodel": "zhipuai",
    "claude": "anthropic",
    "cloudflareworkersai": "cloudflare",
    "fireworksai": "fireworks",
    "githubmodels": "azure",
    "grok": "x-ai",
    "groqcloud": "groq",
    "kimi": "moonshotai",
    "metallama": "meta",
    "microsoft": "azure",
    "novitaai": "novita",
    "ovhcloudaiendpoints": "ovhcloud",
    "pplx": "perplexity",
    "togetherai": "together",
    "zhipu": "zhipuai",
}
# A name with such a word means its provider; a host comes before a maker.
_WORDS = {
    "azure": "azure",
    "bedrock": "aws",
    "amazon": "aws",
    "vertex": VERTEX,
    "openrouter": "openrouter",
    "anthropic": "anthropic",
    "openai": "openai",
    "google": "google",
    "gemini": "google",
    "mistral": "mistral",
    "moonshot": "moonshotai",
    "cohere": "cohere",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "copilot": "github-copilot",
    "databricks": "databricks",
    "voyage": "voyageai",
}
# Whole names of which provider_id knows a part.
_WHOLE_NAMES = {
    "amazonbedrock": "aws",
    "awsbedrock": "aws",
    "azureai": "azure",
    "azureaifoundry": "azure",
    "azureopenai": "azure",
    "bedrock": "aws",
    "copilot": "github-copilot",
    "gemini": "google",
    "geminiapi": "google",
    "googleai": "google",
    "googleaistudio": "google",
    "googlegemini": "google",
    "googlevertex": VERTEX,
    "googlevertexai": VERTEX,
    "microsoftazure": "azure",
    "mistralai": "mistral",
    "moonshot": "moonshotai",
    "vertex": VERTEX,
    "voyage": "voyageai",
}
# Names of gateways and dialects, which say nothing about the provider.
_NOT_PROVIDERS = re.compile(r"compatible|like$|proxy|^litellm$|^custom|huggingface")
# Names in front of a model's id, as routers and gateways write them, that name a host.
HOST_PREFIXES = {
    "azure": "azure",
    "azureai": "azure",
    "baseten": "baseten",
    "bedrock": "aws",
    "bedrockconverse": "aws",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "databricks": "databricks",
    "fireworks": "fireworks",
    "fireworksai": "fireworks",
    "gemini": "google",
    "githubcopilot": "github-copilot",
    "groq": "groq",
    "novita": "novita",
    "openrouter": "openrouter",
    "ovhcloud": "ovhcloud",
    "together": "together",
    "togetherai": "together",
    "vertex": VERTEX,
    "vertexai": VERTEX,
}


def letters(name: str) -> str:
    """Return the letters and digits of a name, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_LETTERS = {**{letters(id): id for id in _IDS}, **_ALIASES}


def provider_id(name: str) -> str:
    """Return the id of the provider that people call *name*.

    An unknown name is returned in lower case, without spaces around it. The ids are
    the same with and without the extra `pricing`.
    """
    wanted = letters(name)
    if wanted in _BY_LETTERS:
        return _BY_LETTERS[wanted]
    if not _NOT_PROVIDERS.search(wanted):
        for word, id in _WORDS.items():
            if word in wanted:
                return id
    return name.strip().lower()


@functools.lru_cache(maxsize=1024)
def stored_provider(name: str) -> str:
    """Return the id under which messages and own prices of this provider are stored.

    Only whole names are known: a name that merely contains one, such as that of a
    gateway of the operator's own, is an id of its own, in lower case.
    """
    wanted = letters(name)
    known = _BY_LETTERS.get(wanted) or _WHOLE_NAMES.get(wanted)
    return known or name.strip().lower()


def find_provider(providers: list[Provider], name: str) -> Provider | None:
    """Return the provider that people call *name*, or None."""
    id = provider_id(name)
    id = "google" if id == VERTEX else id
    for provider in providers:
        if provider.id == id:
            return provider
    wanted = letters(name)
    if not wanted or _NOT_PROVIDERS.search(wanted):
        return None
    for provider in providers:  # that are newer than the names above
        match = provider.provider_match
        if match is not None and match.is_match(name.strip()):
            return provider
    return None
