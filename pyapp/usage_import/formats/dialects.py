"""Dialects of OpenAI's form: where servers state counts in other places, and hosts.

| Server | What differs |
|---|---|
| Writer, Mistral's libraries, transcriptions | `prompt_token_details` and the like |
| LiteLLM's proxy | cache counts by Anthropic's names, the lifetime in the details |
| Perplexity | citations and reasoning outside the completion, searches, tools |
| xAI | sources of a live search, tools on its servers; names of its library |
| Mistral | connectors, whose tokens are in the total only; seconds of audio |
| OpenAI's transcriptions | a duration in place of tokens |
| Groq | tools that it ran, in the message |

The input of Mistral's and OpenAI's audio by time is in whole seconds, as they bill it.

Sources: the API references of the servers; LiteLLM, Prompt caching and Usage; xAI,
Tools and Live search; Mistral, Conversations and Audio transcription; Perplexity, Sonar
pricing; OpenAI, Create transcription; Groq, Compound and Built-in tools.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pyapp.usage_import.fields import BadUsageError, Object, count, inner, number

# Keys of a usage in the form itself, for which nothing needs to be done.
_PLAIN = frozenset(
    (
        "cached_tokens",
        "completion_time",
        "completion_tokens",
        "completion_tokens_details",
        "cost",
        "cost_details",
        "input_tokens",
        "input_tokens_details",
        "is_byok",
        "num_cached_tokens",
        "output_tokens",
        "output_tokens_details",
        "prompt_cache_hit_tokens",
        "prompt_time",
        "prompt_tokens",
        "prompt_tokens_details",
        "queue_time",
        "total_time",
        "total_tokens",
    )
)
_SINGULAR = {
    "prompt_token_details": "prompt_tokens_details",
    "completion_token_details": "completion_tokens_details",
    "input_token_details": "input_tokens_details",
    "output_token_details": "output_tokens_details",
}
# Names of Anthropic and of xAI's library for counts that are part of the input here.
_CACHE = {
    "cache_read_input_tokens": "cached_tokens",
    "cached_prompt_text_tokens": "cached_tokens",
    "cache_creation_input_tokens": "cache_creation_tokens",
}
_WRITTEN = ("cache_creation_tokens", "cache_write_tokens")
_IN_DETAILS = frozenset(
    ("cache_creation_token_details", "web_search_requests", *_CACHE)
)
# Counts of what is billed apart from the tokens, each with its unit.
_UNITS = {
    "num_sources_used": "search_sources",
    "web_search_requests": "web_searches",
}
# Calls of xAI's tools, each with its unit; those of MCP servers cost their tokens only.
_TOOLS = {
    "web_search_calls": "web_searches",
    "x_search_calls": "x_searches",
    "file_search_calls": "storage_searches",
    "mcp_calls": None,
}
# Places of searches: those of a proxy are by the model's maker, OpenRouter's by others.
_SEARCHES = {
    "server_tool_use": "web_searches",
    "server_tool_use_details": "routed_searches",
}
# Keys that only responses of a host have, and fingerprints.
_HOST_KEYS = {
    "x_groq": "groq",
    "time_info": "cerebras",
    "prompt_filter_results": "azure",
    "timings": "llama.cpp",
}
_MARKS = {"fp_ollama": "ollama"}


class Dialect(NamedTuple):
    """A usage in OpenAI's form, and what that form has no place for."""

    usage: Object
    units: dict[str, int]
    hour: int = 0  # tokens that were written to a cache for one hour
    unclear: str | None = None  # why the counts cannot be billed


def read_dialect(usage: Object, model: str | None) -> Dialect | None:
    """Return the usage in OpenAI's form, or None if it is in it already."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    if usage.keys() <= _PLAIN and not (
        isinstance(details, dict) and not _IN_DETAILS.isdisjoint(details)
    ):
        return None
    whole = dict(usage)
    for key, plural in _SINGULAR.items():
        if isinstance(usage.get(key), dict):
            whole.setdefault(plural, whole.pop(key))
    units = {unit: used for key, unit in _UNITS.items() if (used := count(usage, key))}
    _add_tools(usage, units)
    _add_connectors(whole, units)
    _add_audio(whole, units)
    _add_research(whole, units, model)
    unclear = _add_writes(whole)
    return Dialect(whole, units, _add_cache(whole, units), unclear)


def _add_tools(usage: Object, units: dict[str, int]) -> None:
    called = inner(usage, "server_side_tool_usage_details")
    for key in called:
        unit = _TOOLS.get(key, key)
        if unit is not None and (used := count(called, key)):
            units[unit] = used
    if not called and (used := count(usage, "num_server_side_tools_used")):
        units["server_side_tools"] = used
    listed = usage.get("server_side_tools_used")
    if isinstance(listed, list) and listed:
        units["server_side_tools"] = len(listed)
    for name, details in inner(usage, "tool_calls_details").items():
        if isinstance(details, dict) and (used := count(details, "invocation")):
            searches = ("search_web", "web_search")
            units["web_searches" if name in searches else f"{name}_calls"] = used
    for key, unit in _SEARCHES.items():
        if searched := count(inner(usage, key), "web_search_requests"):
            units[unit] = searched


def _add_connectors(whole: Object, units: dict[str, int]) -> None:
    connectors = inner(whole, "connectors")
    for name in connectors:
        if used := count(connectors, name):
            units["web_searches" if name == "web_search" else f"{name}_calls"] = used
    read = count(whole, "connector_tokens")
    if not read:
        return
    if not connectors:
        units["connector_calls"] = 1
    prompt, output = count(whole, "prompt_tokens"), count(whole, "completion_tokens")
    if count(whole, "total_tokens") == prompt + output + read:
        whole["prompt_tokens"] = prompt + read


def _add_audio(whole: Object, units: dict[str, int]) -> None:
    is_duration = whole.get("type") == "duration"
    key = "seconds" if is_duration else "prompt_audio_seconds"
    seconds = whole.get(key)
    if seconds is None:
        return
    if (known := number(seconds)) is None:
        raise BadUsageError(f"{key} is not a number of seconds")
    units["input_audio_seconds"] = math.ceil(known)
    if is_duration:
        whole.setdefault("prompt_tokens", 0)


def _add_research(whole: Object, units: dict[str, int], model: str | None) -> None:
    """Add what Perplexity and xAI state next to the completion.

    Perplexity's total is without it, and xAI's with it; at other servers reasoning next
    to the completion is part of it. Perplexity bills the searches of a deep research;
    its other models have a fee for the request.
    """
    name = model or ""
    searched = count(whole, "num_search_queries")
    if searched and "deep-research" in name:
        units["web_searches"] = searched
    for key in ("citation_tokens", "reasoning_tokens"):
        used = count(whole, key)
        if not used:
            continue
        units[f"output_{key}"] = used
        output, total = count(whole, "completion_tokens"), count(whole, "total_tokens")
        is_outside = total == count(whole, "prompt_tokens") + output + used
        if not is_outside and "sonar" not in name:
            continue
        whole["completion_tokens"] = output + used
        if total and not is_outside:
            whole["total_tokens"] = total + used


def _add_writes(whole: Object) -> str | None:
    """Add cache writes that a proxy states next to the prompt to it.

    LiteLLM's prompt includes what it read from the cache, and in later versions, which
    state the writes in the details too, also what it wrote. Return why it is unclear.
    """
    details = inner(whole, "prompt_tokens_details")
    written = count(whole, "cache_creation_input_tokens")
    is_detailed = any(details.get(key) is not None for key in _WRITTEN)
    if not written or is_detailed or "prompt_tokens" not in whole:
        return None
    prompt = count(whole, "prompt_tokens")
    read = count(whole, "cache_read_input_tokens") or count(details, "cached_tokens")
    if read + written <= prompt:
        return (
            f"whether prompt_tokens ({prompt}) includes cache_creation_input_tokens"
            f" ({written}) is not stated"
        )
    whole["prompt_tokens"] = prompt + written
    total = count(whole, "total_tokens")
    if total == prompt + count(whole, "completion_tokens"):
        whole["total_tokens"] = total + written
    return None


def _add_cache(whole: Object, units: dict[str, int]) -> int:
    """Add the cache counts of LiteLLM's proxy, and return those for one hour."""
    side = "prompt" if "prompt_tokens" in whole else "input"
    details = dict(inner(whole, f"{side}_tokens_details"))
    for key, name in _CACHE.items():
        for part in (whole, details):
            if (used := count(part, key)) and not details.get(name):
                details[name] = used
    if searched := count(details, "web_search_requests"):
        units["web_searches"] = searched
    whole[f"{side}_tokens_details"] = details
    for part in (details, whole):
        for key in ("cache_creation_token_details", "cache_creation"):
            if hour := count(inner(part, key), "ephemeral_1h_input_tokens"):
                return hour
    return 0


def executed_tools(response: Object) -> dict[str, int]:
    """Return the tools that Groq ran for a response, which it bills by the call."""
    choices = response.get("choices")
    called = 0
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        tools = message.get("executed_tools") if isinstance(message, dict) else None
        called += len(tools) if isinstance(tools, list) else 0
    return {"executed_tools": called} if called else {}


def find_provider(response: Object) -> str | None:
    """Return the host that marks its responses, or None.

    A local server may serve a model that hosts have a price for.
    """
    if not _HOST_KEYS.keys().isdisjoint(response):
        for key, provider in _HOST_KEYS.items():
            if response.get(key):
                return provider
    mark = response.get("system_fingerprint")
    return _MARKS.get(mark) if isinstance(mark, str) else None
