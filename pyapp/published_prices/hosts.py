"""Finds the hosts that may have served a model, and the model in the price data.

The provider that serves a model determines its price. It is the given one, else the one
that the model's id names, else the model's maker. A model whose maker has no price may
have several hosts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pyapp.published_prices.providers import (
    HOST_PREFIXES,
    VERTEX,
    find_provider,
    letters,
    provider_id,
)

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

# Servers of the operator's own, whose models have no published price.
_SELF_HOSTED = frozenset(
    ("hostedvllm", "llamafile", "lmstudio", "local", "ollama", "ollamachat", "vllm")
)
# Ollama's names of models that run on the operator's own computer.
_OLLAMA = re.compile(r"[\w.-]+:(latest|\d+(\.\d+)?[bmt]|e\d+b|\w+-cloud)([-_][\w.-]+)?")
# Providers that make models, each with a pattern of the listed models that it does not
# make. Such a model is served by several hosts, of which the maker may be one.
_MAKERS = {
    "openai": None,
    "anthropic": None,
    "google": re.compile(r"claude|gemma"),
    "mistral": None,
    "deepseek": None,
    "x-ai": None,
    "moonshotai": None,
    "zai": None,
    "zhipuai": None,
    "minimax": None,
    "cohere": None,
    "voyageai": None,
    "meta": None,
    "perplexity": re.compile(r"^(?!(perplexity/)?(sonar|pplx|r1-1776))"),
    "elevenlabs": None,
    "typesafe": None,
    "arcee": re.compile(r"/"),
    "azure": re.compile(r"^(?!phi-)"),
}
# Models that match a pattern in the price data and that the provider does not sell:
# what others made of its published weights.
_NOT_SOLD = {
    "deepseek": re.compile(r"deepseek-r1(?!(-\d{4})?$)"),
    "mistral": re.compile(r"mixtral-8x7b-(\d|instruct)"),
}
# How the price data marks an entry that it took from a router, not from the provider.
_NOT_PUBLISHED = re.compile(r"^(Imported from|Seen on) OpenRouter(?!.*Verified)", re.S)
# Amazon Bedrock: [region.]maker.model, or a resource name that ends in such an id.
_BEDROCK = re.compile(
    r"(?:(?:us|us-gov|eu|apac|ap|au|ca|in|jp|sa|me|af|global)\.)?"
    r"(?:ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|"
    r"moonshot|moonshotai|nvidia|openai|qwen|stability|twelvelabs|writer|zai)"
    r"\.[a-z][\w.:-]*"
)
_BEDROCK_REGION = re.compile(
    r"^arn:aws[\w-]*:bedrock:([\w-]+):|^bedrock\w*/([a-z]{2}(?:-gov)?-[a-z]+-\d)/"
)
_BEDROCK_GEOGRAPHY = re.compile(r"(?:^|/)([a-z]{2,6}(?:-gov)?)\.[a-z0-9]+\.")
_BEDROCK_RESOURCE = re.compile(r"arn:aws[\w-]*:bedrock:")
_BEDROCK_CATALOG = re.compile(r":(?:foundation-model|inference-profile)/([^/]+)$")
_VERTEX_VERSION = re.compile(r"claude[\w.-]*@(?:\d{8}|default|latest)")
_VERTEX_REGION = re.compile(r"/locations/([\w-]+)/publishers/anthropic/")
# Gemini models whose price on Vertex AI is not that of the Gemini API, which the data
# has: an older price, and models that are free of charge on the Gemini API only.
_NOT_ON_VERTEX = re.compile(r"gemini-2\.0-flash(?!-lite)|gemma(?!.*-maas)")
# Providers whose prices of another provider's models are that provider's own.
_AT_LIST_PRICE = {"azure": ("openai", "anthropic"), "google": ("anthropic",)}
# Azure's data zones, which cost more than its global service.
_AZURE_ZONE = re.compile(r"^(azure/)?(us|eu)/")
# OpenRouter appends what it does with a model; the price differs.
_ROUTED = re.compile(
    r":(free|nitro|floor|online|exacto|extended|thinking|beta|batch|flex|priority)$"
)
# Models that search for every request of the chat completions; what the search costs is
# neither in the response nor in the data.
_ALWAYS_SEARCHES = re.compile(r"gpt-[\w.]+(-mini)?-search-(preview|api)")
# What hosts add to the name of weights: how they serve them, or their use.
_SERVING_WORDS = re.compile(
    r"-(instruct|chat|it|hf|fp8|turbo|versatile|instant|specdec|tput|lora)(?![a-z])"
)
# Words that distinguish models: a name that has one is not a version of another.
_MODEL_WORDS = re.compile(
    r"(?<![a-z])(audio|coder|cyber|fast|flash|highspeed|image|lite|live|max|mini|nano"
    r"|pro|tts|turbo|vision)(?![a-z])"
)
_FINE_TUNED = re.compile(r"^ft:|\.ft-|:ft-|^tunedmodels/|^endpoints/")


class Host(NamedTuple):
    """A provider, and the model in the price data that the call used."""

    provider: Provider
    model: ModelInfo


def named_provider(model: str) -> str | None:
    """Return the id of the provider that the model's id names, or None.

    Ids of Bedrock, Vertex AI and Azure, and ids with a provider's name in front, name
    one; `anthropic/claude-opus-4-8` names the maker, which may not be the host.
    """
    ref = model.strip().lower()
    if _BEDROCK_RESOURCE.match(ref) or _BEDROCK.fullmatch(ref):
        return "aws"
    if "publishers/" in ref or _VERTEX_VERSION.fullmatch(ref):
        return VERTEX
    first, slash, _ = ref.partition("/")
    if not slash:
        return None
    if first == "models" or first == "tunedmodels":
        return "google"
    if first == "accounts":
        return "fireworks"
    if first == "@cf":
        return "cloudflare"
    return HOST_PREFIXES.get(letters(first))


def named_region(model: str) -> str | None:
    """Return the region that a Vertex AI resource name of a Claude model states."""
    found = _VERTEX_REGION.search(model.strip().lower())
    return found[1] if found else None


def is_free_route(providers: list[Provider], model: str, provider: str | None) -> bool:
    """Return whether OpenRouter served a free variant, which the data may not list."""
    ref = model.strip().lower()
    if not ref.endswith(":free"):
        return False
    if provider is None or letters(provider) == "litellm":
        return "/" in ref
    given = find_provider(providers, provider)
    return given is not None and given.id == "openrouter"


def find_hosts(
    providers: list[Provider], model: str, provider: str | None
) -> list[Host]:
    """Return the host of a model, or the several hosts whose prices must agree.

    The list is empty if none has a price of its own for the model.
    """
    # Claude Code marks the long context, which has no other price.
    ref = model.strip().lower().removesuffix("[1m]")
    if provider is not None and letters(provider) != "litellm":
        given = find_provider(providers, provider)
        if given is None or (_is_vertex(provider, ref) and _NOT_ON_VERTEX.search(ref)):
            return []
        return _at(providers, given, ref)
    first = letters(ref.partition("/")[0])
    if ("/" in ref and first in _SELF_HOSTED) or _OLLAMA.fullmatch(ref):
        return []
    named = named_provider(ref)
    if named is None and _ROUTED.search(ref) and "/" in ref:
        named = "openrouter"
    if named is not None:
        if named == VERTEX and _NOT_ON_VERTEX.search(ref):
            return []
        return _at(providers, find_provider(providers, named), ref)
    return _made_by(providers, ref) or _served_by_any(providers, ref)


def _at(providers: list[Provider], provider: Provider | None, ref: str) -> list[Host]:
    """Return the model at *provider*, which may sell another provider's models."""
    if provider is None or (provider.id == "azure" and _AZURE_ZONE.match(ref)):
        return []
    sellers = [provider]
    sellers += [p for p in providers if p.id in _AT_LIST_PRICE.get(provider.id, ())]
    for name in _names(ref, provider):
        for seller in sellers:
            found = _find_own(seller, name)
            if found is not None:
                is_priced = provider.id != "aws" or _is_priced_in(ref, found)
                return [Host(provider, found)] if is_priced else []
    return []


def _is_vertex(provider: str, ref: str) -> bool:
    return VERTEX in (provider_id(provider), named_provider(ref))


def _is_priced_in(ref: str, found: ModelInfo) -> bool:
    """Return whether the price of a model on Bedrock is that of its region.

    The data has the prices of the US, and the other regions of some models by name.
    Claude has one price in all commercial regions, and another by the global profile.
    """
    region = _BEDROCK_REGION.search(ref)
    geography = _BEDROCK_GEOGRAPHY.search(ref)
    named = [*(region.groups() if region else ()), geography and geography[1]]
    for place in filter(None, named):
        if "-gov" in place:
            return False
        if place.startswith(("us", "global")) or ".anthropic." in found.id:
            continue
        if not any(text.startswith(f"{place}.") for text in _patterns(found.match)):
            return False
    return True


def _patterns(match: Any) -> Iterator[str]:
    """Yield the texts by which the price data recognises a model."""
    for part in getattr(match, "or_", None) or getattr(match, "and_", None) or ():
        yield from _patterns(part)
    yield from (text.lower() for text in vars(match).values() if isinstance(text, str))


def _made_by(providers: list[Provider], ref: str) -> list[Host]:
    """Return the model at its maker; a maker may sell it under two names."""
    by_id = {provider.id: provider for provider in providers}
    vendor, _, rest = ref.rpartition("/")
    maker = find_provider(providers, vendor) if vendor else None
    if maker is not None and maker.id in _MAKERS:
        found = _sold_by_maker(maker, rest) or _sold_by_maker(maker, ref)
        return [found] if found else []
    if vendor:
        return []
    named = [
        provider
        for provider in providers
        if provider.model_match is not None and provider.model_match.is_match(ref)
    ]
    if any(provider.id in ("zai", "zhipuai") for provider in named):
        named = [by_id[id] for id in ("zai", "zhipuai") if id in by_id]
        return [host for p in named if (host := _sold_by_maker(p, ref))]
    for provider in (*named, *(by_id[id] for id in _MAKERS if id in by_id)):
        if found := _sold_by_maker(provider, ref):
            return [found]
    return []


def _sold_by_maker(provider: Provider, ref: str) -> Host | None:
    others = _MAKERS.get(provider.id)
    if others is not None and others.search(ref):
        return None
    found = _find_own(provider, ref)
    return None if found is None else Host(provider, found)


def _served_by_any(providers: list[Provider], ref: str) -> list[Host]:
    """Return all hosts of a model whose maker has no price.

    Hosts name it differently. An id that only one host uses names that host, unless it
    is the model's plain name.
    """
    hosts = [
        Host(provider, found)
        for provider in providers
        if (found := _served_by(provider, ref)) is not None
    ]
    family = _family(ref)
    if len(hosts) > 1 or (hosts and family != letters(ref.rpartition("/")[2])):
        return hosts
    return [
        Host(provider, found)
        for provider in providers
        if (found := _served_by(provider, ref) or _relative(provider, family))
    ]


def _served_by(provider: Provider, ref: str) -> ModelInfo | None:
    return _find_own(provider, ref) if _is_host(provider, ref) else None


def _relative(provider: Provider, family: str) -> ModelInfo | None:
    """Return a model that *provider* lists under another name of the same weights."""
    for model in provider.models:
        name = model.id.lower()
        if _family(name) == family and _is_own(provider, model, name):
            return model if _is_host(provider, name) else None
    return None


def _is_host(provider: Provider, ref: str) -> bool:
    # Gemma is free of charge on the Gemini API, which has no price to compare.
    return provider.id != "google" or "gemma" not in ref


def _family(ref: str) -> str:
    """Return the name of the weights, without what hosts add to it."""
    name = ref.rpartition("/")[2].removeprefix("meta-")
    return letters(_SERVING_WORDS.sub("", name))


def _find_own(provider: Provider, ref: str) -> ModelInfo | None:
    """Return the model with a price of its own that *provider* lists as *ref*."""
    found = provider.find_model(ref)
    return found if found is not None and _is_own(provider, found, ref) else None


def _is_own(provider: Provider, found: ModelInfo, ref: str) -> bool:
    """Return whether *found* is the price of *ref* itself, not of its base model."""
    id = found.id.lower()
    if provider.id in _NOT_SOLD and _NOT_SOLD[provider.id].search(ref):
        return False
    if provider.id != "openrouter" and _NOT_PUBLISHED.match(found.price_comments or ""):
        return False
    if _ALWAYS_SEARCHES.search(ref):
        return False
    if _FINE_TUNED.search(ref) and not _FINE_TUNED.search(id):
        return False
    texts = (id, *_patterns(found.match))
    if ref in texts:
        return True
    for word in _MODEL_WORDS.findall(ref):
        if not any(word in text for text in texts):
            return False
    routed = _ROUTED.search(ref)
    return routed is None or routed[0] in id


def _names(ref: str, provider: Provider) -> Iterator[str]:
    """Yield the forms of a model's id under which *provider* may list it."""
    if _BEDROCK_RESOURCE.match(ref):
        # A custom or provisioned model has a price of its own contract.
        catalog = _BEDROCK_CATALOG.search(ref)
        if catalog:
            yield catalog[1]
        return
    yield ref
    if "publishers/" in ref or ref.startswith("models/"):
        yield (rest := ref.rpartition("/")[2])
        yield rest.replace("@", "-")
        return
    first, slash, rest = ref.partition("/")
    if not slash:
        yield ref.replace("@", "-")
        return
    is_named = provider.id == named_provider(ref)
    if is_named or find_provider([provider], first) is not None:
        yield rest
        yield rest.replace("@", "-")
        if provider.id == "azure" and rest.startswith("global"):
            yield rest.partition("/")[2]  # the service at list price
        if provider.id == "aws":
            place, _, name = rest.rpartition("/")
            if _BEDROCK_REGION.match(ref) or place in ("converse", "invoke"):
                yield name
            yield f"{first}.{rest}"
    elif provider.id != "openrouter" and letters(first) not in HOST_PREFIXES:
        yield rest  # the name in front is the maker's
