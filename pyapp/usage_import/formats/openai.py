"""Responses of OpenAI's APIs, and of the many servers that answer in their form.

Sources: the documentation of chat completions, responses, embeddings and tools. Servers
differ in where they state a count: `_READS` and `_WRITES` list the places. In a
Responses object each search of the web, search of files, container for code and
generated image is billed in addition to the tokens; to open or to search a page that
was found is not.
"""

from __future__ import annotations

from typing import Any

from pyapp._core.validation import shown
from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    count,
    hashed_text,
    inner,
    number,
    text,
)
from pyapp.usage_import.formats.dialects import (
    executed_tools,
    find_provider,
    read_dialect,
)
from pyapp.usage_import.formats.kinds import Body
from pyapp.usage_import.formats.stated_costs import find_cost
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    find_latency,
    find_request,
    identify,
    make_content_id,
    make_id,
)

_COUNTS = {"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"}
KEYS = {*_COUNTS, "total_tokens"}
_OBJECTS = (
    "chat.completion",
    "chat.completion.chunk",
    "response",
    "text_completion",
    "thread.run.step",
)
# Keys of the cached tokens, and of those written to a cache, which are parts of the
# input; each with whether it is in the details of the input or next to them.
_READS = (
    (True, "cached_tokens"),
    (False, "cached_tokens"),
    (False, "prompt_cache_hit_tokens"),
    (False, "num_cached_tokens"),
)
_WRITES = (
    (True, "cache_write_tokens"),
    (True, "cache_creation_tokens"),
)
# Shorter ids may repeat; those of hosted models are longer.
_UNIQUE_LENGTH = 16
_MODALITIES = {kind: f"{kind}_tokens" for kind in ("audio", "image", "video")}
# Types of the items of a Responses object that are billed, each with its unit.
_CALLS = {
    "file_search_call": "storage_searches",
    "image_generation_call": "image_generations",
}


def _has_usage(response: Object) -> bool:
    usage = response.get("usage")
    # The usage of a run's steps is part of that of the run, which names the model.
    if not usage or response.get("object") == "thread.run.step":
        return False
    if not isinstance(usage, dict):
        return response.get("object") in _OBJECTS
    return not KEYS.isdisjoint(usage) or usage.get("type") == "duration"


def _is_known(response: Object) -> bool:
    return response.get("object") in _OBJECTS


def _read(chain: Chain) -> ModelResponse:
    response = chain[-1]
    usage = response["usage"]
    if not isinstance(usage, dict):
        raise BadUsageError("usage is not an object")
    if response.get("object") == "batch":
        raise BadUsageError("a sum of calls; import the output file of the batch")
    model = text(response.get("model"))
    if usage.keys() == {"total_tokens"} and (
        response.get("object") == "list" or "results" in response
    ):
        # Embeddings and rerankings, as of Voyage and Jina, have no output.
        usage = {"prompt_tokens": usage["total_tokens"]}
    stated = find_cost(response, usage)
    if response.get("object") in _OBJECTS and usage.keys().isdisjoint(_COUNTS):
        raise BadUsageError("usage without token counts")
    part = read_pass(usage, model, is_stated=stated is not None)
    called = executed_tools(response) if "x_groq" in response else {}
    if "output" in response or "tool_usage" in response:
        called = _calls(response)
    if called:
        part = part._replace(units={**(part.units or {}), **called})
    created = _created(response)
    name = hashed_text(response.get("id"))
    is_named = name is not None or find_request(chain) is not None
    if name is not None:
        id = make_response_id(name, created)
    elif is_named:
        id = identify(chain, "openai")
    else:
        id = make_content_id("openai", chain)
    return describe(
        chain,
        id,
        [part],
        model=model,
        provider=_find_provider(response, usage, name, stated is not None),
        cost=stated,
        latency_ms=find_latency(response),
        is_numbered=not is_named,
        former_id=find_former_id(response) if name and _is_unique(name) else None,
    )


def _find_provider(
    response: Object, usage: Object, name: str | None, is_stated: bool
) -> str | None:
    """Return the host that the response names.

    OpenRouter's responses name the provider behind it. Without a stated cost the price
    is that of the model's maker, which OpenRouter passes on.
    """
    if is_stated and name is not None and name.startswith("gen-"):
        return "openrouter"
    stated = usage.get("cost")
    if isinstance(stated, dict) and "total_cost" in stated:
        return "perplexity"  # which serves other makers' models too
    return find_provider(response)


def make_response_id(name: str, created: float | None) -> bytes:
    """Return the id of a response.

    Local servers number their responses; the time tells short ids of these apart.
    """
    second = None if created is None or _is_unique(name) else int(created)
    return make_id("openai", name, second)


def find_former_id(response: Object) -> bytes | None:
    """Return the id with the time, which earlier versions added to long ids too."""
    name, created = hashed_text(response.get("id")), _created(response)
    if name is None or created is None:
        return None
    return make_id("openai", name, int(created))


def _created(response: Object) -> float | None:
    return number(response.get("created", response.get("created_at")))


def _is_unique(name: str) -> bool:
    return len(name) >= _UNIQUE_LENGTH or name.startswith("gen-")


def read_pass(usage: Object, model: str | None, *, is_stated: bool = False) -> Pass:
    """Return the disjoint counts of *usage*; its input includes cached tokens.

    Raises: BadUsageError if the counts contradict each other; not if `is_stated`,
    because then nothing is computed from them.
    """
    dialect = read_dialect(usage, model)
    if dialect is not None:
        usage = dialect.usage
        if dialect.unclear is not None and not is_stated:
            raise BadUsageError(dialect.unclear)
    chat = "prompt_tokens" in usage or "completion_tokens" in usage
    if not chat and "input_tokens" not in usage and "output_tokens" not in usage:
        raise BadUsageError("usage without token counts")
    into, out = ("prompt", "completion") if chat else ("input", "output")
    read_from = inner(usage, f"{into}_tokens_details")
    written_to = inner(usage, f"{out}_tokens_details")
    prompt = count(usage, f"{into}_tokens", required=True)
    output = count(usage, f"{out}_tokens", required=not chat)
    reasoning = count(written_to, "reasoning_tokens")
    output = _whole_output(usage, model, into, prompt, output, reasoning, is_stated)
    if reasoning > output and not is_stated:
        raise BadUsageError(
            f"reasoning_tokens ({reasoning}) exceed {out} tokens ({output})"
        )
    read = _count_at(usage, read_from, _READS, is_stated)
    missed = usage.get("prompt_cache_miss_tokens")
    if missed is not None and missed != prompt - read and not is_stated:
        raise BadUsageError(
            f"cache hits ({read}) and misses ({shown(missed)}) are not the"
            f" {into} tokens ({prompt})"
        )
    written = _count_at(usage, read_from, _WRITES, is_stated)
    if read + written > prompt:
        if not is_stated:
            raise BadUsageError(
                f"cached tokens ({read + written}) exceed {into} tokens ({prompt})"
            )
        read = min(read, prompt)
        written = prompt - read
    hour, units = 0, {}
    if not is_stated:
        units = _modalities(into, read_from, prompt)
        units |= _modalities(out, written_to, output)
    if dialect is not None:
        units |= dialect.units
        hour = _hour(dialect.hour, written, is_stated)
    return Pass(prompt - read - written, written, read, output, hour, units or None)


def _hour(hour: int, written: int, is_stated: bool) -> int:
    if hour > written and not is_stated:
        raise BadUsageError(
            f"cache writes for one hour ({hour}) exceed all cache writes ({written})"
        )
    return min(hour, written)


def _count_at(
    usage: Object,
    details: Object,
    places: tuple[tuple[bool, str], ...],
    is_stated: bool,
) -> int:
    """Return the count that *places* state, the first of several; 0 without one.

    Raises: BadUsageError if they state different ones, not if `is_stated`; a zero may
    be a default.
    """
    found = 0
    for is_detail, key in places:
        stated = count(details if is_detail else usage, key)
        if stated and found and stated != found and not is_stated:
            raise BadUsageError(f"{key} is {found} at one place and {stated} elsewhere")
        found = found or stated
    return found


def _whole_output(
    usage: Object,
    model: str | None,
    into: str,
    prompt: int,
    output: int,
    reasoning: int,
    is_stated: bool,
) -> int:
    """Return the output with the reasoning that some providers do not include.

    Google's models count their thoughts in the total only.
    """
    if usage.get("total_tokens") is None:
        return output
    total = count(usage, "total_tokens")
    if total in (prompt + output, prompt + output + reasoning):
        return total - prompt
    if total > prompt + output and _is_google(model):
        return total - prompt
    if is_stated:
        return output
    raise BadUsageError(
        f"total_tokens ({total}) is not the sum of {into} tokens ({prompt})"
        f" and output ({output})"
    )


def _is_google(model: str | None) -> bool:
    return model is not None and model.rpartition("/")[2].startswith("gemini-")


def _modalities(side: str, details: Object, whole: int) -> dict[str, int]:
    """Return the parts of *whole* that are not text, by the units of their prices."""
    found: dict[str, int] = {}
    for kind, key in _MODALITIES.items():
        if details.get(key):
            direction = "input" if side in ("prompt", "input") else "output"
            found[f"{direction}_{kind}_tokens"] = count(details, key)
    if not found:
        return found
    words = count(details, "text_tokens")
    if sum(found.values()) + words > whole:
        parts = {**found, "text_tokens": words}
        listed = " and ".join(
            f"{name} ({used})" for name, used in parts.items() if used
        )
        raise BadUsageError(f"{listed} exceed the {side} tokens ({whole})")
    cached = inner(details, "cached_tokens_details")
    for kind, key in _MODALITIES.items():
        if cached.get(key):
            found[f"cache_{kind}_read_tokens"] = count(cached, key)
    return found


def _calls(response: Object) -> dict[str, int]:
    """Return the calls of tools that are billed, by unit."""
    calls: dict[str, int] = {}
    containers = set()
    search = _search_unit(response)
    items = response.get("output") or []
    if not isinstance(items, list):
        raise BadUsageError("output is not a list")
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        if not isinstance(kind, str):
            continue
        if kind == "web_search_call" and _is_search(item):
            calls[search] = calls.get(search, 0) + 1
        elif kind == "code_interpreter_call":
            containers.add(text(item.get("container_id")))
        elif kind in _CALLS:
            calls[_CALLS[kind]] = calls.get(_CALLS[kind], 0) + 1
    if containers:
        calls["code_interpreter_containers"] = len(containers)
    tools = response.get("tool_usage")
    searched = tools.get("web_search") if isinstance(tools, dict) else None
    if isinstance(searched, dict) and searched.get("num_requests") is not None:
        calls[search] = count(searched, "num_requests")
    return {unit: used for unit, used in calls.items() if used}


def _search_unit(response: Object) -> str:
    """Return the unit of a search; the preview has a price of its own.

    That is higher at the models that do not reason.
    """
    model = text(response.get("model")) or ""
    tools = response.get("tools")
    if isinstance(tools, list) and model.startswith(("gpt-4o", "gpt-4.1")):
        for tool in tools:
            kind = tool.get("type") if isinstance(tool, dict) else None
            if isinstance(kind, str) and kind.startswith("web_search_preview"):
                return "web_search_previews"
    return "web_searches"


def _is_search(item: Any) -> bool:
    action = item.get("action")
    return not isinstance(action, dict) or action.get("type", "search") == "search"


BODY = Body(has_usage=_has_usage, read=_read, is_known=_is_known)
