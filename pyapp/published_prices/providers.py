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
# Other names in use, in letters and digits only.
_ALIASES = {
    "amazonbedrock": "aws",
    "anthropicbedrock": "aws",
    "anthropicvertex": VERTEX,
    "awsbedrock": "aws",
    "azureai": "azure",
    "azureaifoundry": "azure",
    "azureopenai": "azure",
    "azuretext": "azure",
    "bedrock": "aws",
    "bedrockanthropic": "aws",
    "bedrockconverse": "aws",
    "bedrockmantle": "aws",
    "bigmodel": "zhipuai",
    "claude": "anthropic",
    "cloudflareworkersai": "cloudflare",
    "coherechat": "cohere",
    "copilot": "github-copilot",
    "fireworksai": "fireworks",
    "gemini": "google",
    "geminiapi": "google",
    "githubmodels": "azure",
    "googleai": "google",
    "googleaistudio": "google",
    "googlegemini": "google",
    "googlevertex": VERTEX,
    "googlevertexai": VERTEX,
    "grok": "x-ai",
    "groqcloud": "groq",
    "kimi": "moonshotai",
    "metallama": "meta",
    "microsoft": "azure",
    "microsoftazure": "azure",
    "mistralai": "mistral",
    "moonshot": "moonshotai",
    "novitaai": "novita",
    "openrouterai": "openrouter",
    "ovhcloudaiendpoints": "ovhcloud",
    "pplx": "perplexity",
    "textcompletionopenai": "openai",
    "togetherai": "together",
    "vertex": VERTEX,
    "vertexaianthropicmodels": VERTEX,
    "vertexailanguagemodels": VERTEX,
    "vertexanthropic": VERTEX,
    "voyage": "voyageai",
    "zhipu": "zhipuai",
}
# Other names are looked up in the price data, by their parts. Those with such a part
# are gateways, or hosts under the name of a maker.
_NOT_PROVIDERS = re.compile(
    r"compatible|like$|proxy|gateway|litellm|^custom|huggingface|azure|openrouter"
)


def letters(name: str) -> str:
    """Return the letters and digits of a name, in lower case; "" if not all are ASCII.

    A name in another script that ends in a known one is that of a gateway.
    """
    if not name.isascii():
        return ""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_LETTERS = {**{letters(id): id for id in _IDS}, **_ALIASES}
# Names in front of a model's id, as routers and gateways write them, that name a host.
HOST_PREFIXES = {
    name: _BY_LETTERS[name]
    for name in (
        *("amazonbedrock", "awsbedrock", "azure", "azureai", "azureopenai"),
        *("baseten", "bedrock", "bedrockconverse", "cerebras", "cloudflare"),
        *("databricks", "fireworks", "fireworksai", "gemini", "githubcopilot"),
        *("googlevertex", "googlevertexai", "groq", "novita", "openrouter"),
        *("ovhcloud", "together", "togetherai", "vertex", "vertexai"),
    )
}


@functools.lru_cache(maxsize=1024)
def provider_id(name: str) -> str:
    """Return the id of a provider, under which its messages and own prices are stored.

    Only whole names are known. A name that merely contains one, such as that of a
    gateway, is an id of its own, in lower case and without spaces around it. The ids
    are the same with and without the extra `pricing`.
    """
    return _BY_LETTERS.get(letters(name)) or name.strip().lower()


def find_provider(providers: list[Provider], name: str) -> Provider | None:
    """Return the provider that *name* is a name of, or None."""
    id = provider_id(name)
    id = "google" if id == VERTEX else id
    for provider in providers:
        if provider.id == id:
            return provider
    wanted = letters(name)
    if not wanted or _NOT_PROVIDERS.search(wanted):
        return None
    for provider in providers:
        match = provider.provider_match
        if match is not None and match.is_match(name.strip()):
            return provider
    return None
