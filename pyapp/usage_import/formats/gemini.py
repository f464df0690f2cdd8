"""Responses of Google's Gemini API and of Vertex AI, in their own shapes.

The prompt includes cached tokens. Thoughts are not part of the candidates, and the
results of tools are not part of the prompt; the total is the sum of the four. A stream
repeats the usage in each chunk, with counts that grow, so that all its chunks are one
response. Google's SDK for Python writes the names in snake case.

The prices of grounding with Google Search are for each query since Gemini 3, and for
each prompt before; empty and repeated queries are not billed. Google's free searches of
a day are not known from a response.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    count,
    hashed_text,
    inner,
    moment,
    text,
)
from pyapp.usage_import.formats.kinds import Body, Format, Unfinished
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    find_context,
    find_request,
    find_time,
    make_id,
)

# Modalities with prices of their own; text and documents have the plain one.
# Some clients write the numbers of the names.
_MODALITIES = {
    "AUDIO": "audio",
    "IMAGE": "image",
    "VIDEO": "video",
    "2": "image",
    "3": "video",
    "4": "audio",
}
_PLAIN_MODALITIES = {
    "",
    "0",
    "1",
    "5",
    "DOCUMENT",
    "MODALITY_UNSPECIFIED",
    "NONE",
    "TEXT",
}
# Vertex AI's traffic types, and the tiers that they are.
_TRAFFIC = {
    "ON_DEMAND_FLEX": "flex",
    "ON_DEMAND_PRIORITY": "priority",
    "2": "provisioned_throughput",
}
_PLAIN_TRAFFIC = ("ON_DEMAND", "TRAFFIC_TYPE_UNSPECIFIED", "0", "1")
_OWN = re.compile(r"(models/|gemini|gemma|text-embedding|learnlm)")
# Generations that are billed for each prompt with a search.
_BILLED_BY_PROMPT = re.compile(r"gemini-[12](\.|-|$)")


class _Fields(NamedTuple):
    """The names of the counts in one shape of the usage."""

    prompt: str
    output: str
    cached: str
    thoughts: str
    tools: str
    total: str
    prompt_parts: str
    output_parts: str
    cached_parts: str
    tool_parts: str


_CAMEL = _Fields(
    "promptTokenCount",
    "candidatesTokenCount",
    "cachedContentTokenCount",
    "thoughtsTokenCount",
    "toolUsePromptTokenCount",
    "totalTokenCount",
    "promptTokensDetails",
    "candidatesTokensDetails",
    "cacheTokensDetails",
    "toolUsePromptTokensDetails",
)
# The live API.
_LIVE = _CAMEL._replace(
    output="responseTokenCount", output_parts="responseTokensDetails"
)
_INTERACTION = _Fields(
    "total_input_tokens",
    "total_output_tokens",
    "total_cached_tokens",
    "total_thought_tokens",
    "total_tool_use_tokens",
    "total_tokens",
    "input_tokens_by_modality",
    "output_tokens_by_modality",
    "cached_tokens_by_modality",
    "tool_use_tokens_by_modality",
)


@cache
def _snake(name: str) -> str:
    return re.sub("[A-Z]", lambda found: "_" + found[0].lower(), name)


_SNAKE = _Fields(*map(_snake, _CAMEL))
_SHAPES = (_CAMEL, _LIVE, _SNAKE, _INTERACTION)
_COUNTS = {name for shape in _SHAPES for name in shape[:6]}


def _has_usage(response: Object) -> bool:
    usage = response.get("usageMetadata") or response.get("usage_metadata")
    if not isinstance(usage, dict):
        return bool(usage)
    # The first chunks of Vertex AI have the traffic type alone.
    return any(usage.get(name) is not None for name in _COUNTS)


def _is_known(response: Object) -> bool:
    return "candidates" in response or "usageMetadata" in response


def _read(chain: Chain, searches: _Searches | None = None) -> ModelResponse:
    response = chain[-1]
    if "expireTime" in response or "expire_time" in response:
        raise BadUsageError("a cache is billed by its time, which is not in the log")
    searches = searches or _Searches()
    searches.add_candidates(response.get("candidates"))
    model = text(_either(response, "modelVersion")) or text(chain[0].get("model"))
    return _describe(
        chain,
        _either(response, "usageMetadata"),
        name=hashed_text(_either(response, "responseId")),
        model=model,
        made_at=_either(response, "createTime"),
        units=searches.units(model),
        is_open=bool(response.get("candidates")) and not _has_ended(response),
    )


def _has_ended(response: Object) -> bool:
    """Tell whether a candidate has its end."""
    candidates = _objects(response.get("candidates"))
    return any(_either(candidate, "finishReason") for candidate in candidates)


class Chunks(Format):
    """A recorded stream: its last chunk has the usage, any chunk the searches."""

    def __init__(self) -> None:
        self._searches: dict[str | None, _Searches] = {}
        # Of the streams that have not ended, the last chunk with usage.
        self._open: dict[str | None, tuple[ModelResponse, int]] = {}
        # Of the streams that have ended without usage, the line.
        self._ended: dict[str | None, int] = {}

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be a chunk."""
        return "candidates" in keys

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the response of a last chunk, with all searches of its stream."""
        name = hashed_text(_either(line, "responseId"))
        searches = self._searches.pop(name, None) or _Searches()
        if not _has_usage(line):
            searches.add_candidates(line["candidates"])
            self._keep(name, searches)
            if name not in self._open and _has_ended(line):
                self._ended[name] = number
            return None
        self._ended.pop(name, None)
        found = _read([line], searches)
        if found.is_open:
            self._open[name] = (found, number)
            self._keep(name, searches)
            return ()
        self._open.pop(name, None)
        if name is not None:
            self._keep(name, searches)
        return (found,)

    def finish(self) -> Iterable[ModelResponse | Unfinished]:
        """Return what is known of the streams that have not ended."""
        for name, (found, number) in self._open.items():
            if name is not None:
                yield found
            else:
                yield Unfinished(number, "the stream ends before its usage")
        for number in self._ended.values():
            yield Unfinished(number, "a response without usage")

    def _keep(self, name: str | None, searches: _Searches) -> None:
        if searches.units(None):
            self._searches[name] = searches


def _has_interaction(response: Object) -> bool:
    usage = response.get("usage")
    if response.get("object") == "interaction" and usage:
        return True
    return isinstance(usage, dict) and _INTERACTION.prompt in usage


def _is_interaction(response: Object) -> bool:
    return response.get("object") == "interaction"


def _read_interaction(chain: Chain) -> ModelResponse:
    response = chain[-1]
    model = text(response.get("model")) or text(response.get("agent"))
    usage = inner(response, "usage")
    searches = _Searches()
    searches.add_interaction(response, usage)
    return _describe(
        chain,
        usage,
        name=hashed_text(response.get("id")),
        model=model,
        made_at=response.get("updated") or response.get("created"),
        units=searches.units(model),
        is_open=response.get("status") == "in_progress",
    )


def _describe(
    chain: Chain,
    usage: object,
    *,
    name: str | None,
    model: str | None,
    made_at: object,
    units: Mapping[str, int],
    is_open: bool,
) -> ModelResponse:
    name = name or find_request(chain)
    if not isinstance(usage, dict):
        raise BadUsageError("the usage is not an object")
    # Older responses have no id.
    content = json.dumps(chain[0], sort_keys=True) if name is None else None
    return describe(
        chain,
        make_id("gemini", name, content) if content else make_id("gemini", name),
        [_pass(usage, units)],
        model=None if model is None else model.removeprefix("models/"),
        provider=_provider(model, usage),
        finished_at=find_time(chain)
        if made_at is None
        else moment("createTime", made_at),
        is_open=is_open,
        is_numbered=name is None,
        context=_context(chain, usage),
    )


def _provider(model: str | None, usage: Object) -> str | None:
    """Return the host; only Vertex AI names a traffic type."""
    if _either(usage, "trafficType") is not None:
        return "vertex_ai"
    return "google" if _OWN.match(model or "") else None


def _pass(usage: Object, units: Mapping[str, int]) -> Pass:
    fields = next((s for s in _SHAPES if s.output in usage), None)
    fields = fields or next((s for s in _SHAPES if s.total in usage), _CAMEL)
    if fields.prompt not in usage and fields.total not in usage:
        raise BadUsageError("usage without token counts")
    prompt, output, cached, thoughts, tools, total = (
        count(usage, key) for key in fields[:6]
    )
    counted = prompt + output + thoughts + tools
    is_silent = usage.get(fields.thoughts) is None and usage.get(fields.tools) is None
    if total > counted and is_silent:
        # Early versions name the thoughts in the total alone.
        thoughts = total - counted
    elif total and total != counted:
        raise BadUsageError(
            f"the counts of the usage ({counted}) differ from {fields.total} ({total})"
        )
    if cached > prompt:
        raise BadUsageError(
            f"{fields.cached} ({cached}) exceeds {fields.prompt} ({prompt})"
        )
    parts = dict(units)
    _add_parts(parts, usage, fields.prompt_parts, "input_{}_tokens")
    _add_parts(parts, usage, fields.tool_parts, "input_{}_tokens")
    _add_parts(parts, usage, fields.cached_parts, "cache_{}_read_tokens")
    _add_parts(parts, usage, fields.output_parts, "output_{}_tokens")
    fresh = prompt - cached + tools
    return Pass(fresh, 0, cached, output + thoughts, 0, parts or None)


def _add_parts(units: dict[str, int], usage: Object, key: str, unit: str) -> None:
    """Add the tokens of the modalities that have prices of their own."""
    details = usage.get(key)
    parts = _objects(details)
    if details is not None and parts != details:
        raise BadUsageError(f"{key} is not a list of objects")
    for part in parts:
        named = str(part.get("modality")).upper()
        modality = _MODALITIES.get(named)
        key = "tokenCount" if "tokenCount" in part else "token_count"
        used = count(part, "tokens" if "tokens" in part else key)
        if used and modality is None and named not in _PLAIN_MODALITIES:
            raise BadUsageError(f"a modality that is not known: {named[:100]!a}")
        if modality and used:
            name = unit.format(modality)
            units[name] = units.get(name, 0) + used


def _objects(value: object) -> list[Object]:
    if not isinstance(value, list):
        return []
    return [part for part in value if isinstance(part, dict)]


class _Searches:
    """What the response searched for so far."""

    def __init__(self) -> None:
        self._queries: set[str] = set()
        self._maps = 0
        self._prompts = 0

    def add(self, queries: object) -> None:
        """Add the queries of one search."""
        asked = [] if queries is None else queries
        if not isinstance(asked, list) or not all(isinstance(q, str) for q in asked):
            raise BadUsageError("the queries of a search are not a list of texts")
        self._queries.update(query for query in asked if query.strip())

    def add_candidates(self, candidates: object) -> None:
        """Add the searches that the candidates name."""
        for candidate in _objects(candidates):
            grounding = _part(candidate, "groundingMetadata")
            self.add(_either(grounding, "webSearchQueries"))
            for chunk in _objects(_either(grounding, "groundingChunks")):
                if chunk.get("maps"):
                    self._maps = 1
            for part in _objects(_part(candidate, "content").get("parts")):
                call = _part(part, "toolCall")
                if _either(call, "toolType") == "GOOGLE_SEARCH_WEB":
                    self.add(_part(call, "args").get("queries"))

    def add_interaction(self, response: Object, usage: Object) -> None:
        """Add the searches that the usage or the steps of an interaction name."""
        for tool in _objects(usage.get("grounding_tool_count")):
            kind, used = tool.get("type"), count(tool, "count")
            self._prompts += used if kind == "google_search" else 0
            self._maps += used if kind == "google_maps" else 0
        for step in _objects(response.get("steps") or response.get("outputs")):
            if step.get("type") == "google_search_call":
                self.add(_part(step, "arguments").get("queries"))
            elif step.get("type") == "google_maps_call":
                self._maps = self._maps or 1

    def units(self, model: str | None) -> dict[str, int]:
        """Return the searches that *model* bills."""
        searches = self._prompts or len(self._queries)
        if searches and _BILLED_BY_PROMPT.search(model or ""):
            searches = 1
        units = {"web_searches": searches, "maps_searches": self._maps}
        return {unit: used for unit, used in units.items() if used}


def _either(part: Object, key: str) -> object:
    """Return the value at *key* or at its name in snake case."""
    found = part.get(key)
    return part.get(_snake(key)) if found is None else found


def _part(part: Object, key: str) -> Object:
    value = _either(part, key)
    return value if isinstance(value, dict) else {}


def _context(chain: Chain, usage: Object) -> dict[str, str]:
    """Return the tier, also by Vertex AI's traffic type, and whether it is a batch."""
    line = chain[0]
    context = find_context(chain)
    tier = text(usage.get("serviceTier") or usage.get("service_tier"))
    traffic = str(usage.get("trafficType") or usage.get("traffic_type") or 0).upper()
    if traffic not in _PLAIN_TRAFFIC:
        tier = _TRAFFIC.get(traffic, traffic)
    if tier and tier.lower() != "unspecified":
        context["service_tier"] = tier.lower()
    # The lines of a batch's output: of the Gemini API, and of Vertex AI.
    if "response" in line and ("key" in line or "processed_time" in line):
        context["processing"] = "batch"
    return context


BODY = Body(
    has_usage=_has_usage,
    read=_read,
    is_known=_is_known,
    keys=("usageMetadata", "usage_metadata"),
)
INTERACTION = Body(
    has_usage=_has_interaction, read=_read_interaction, is_known=_is_interaction
)
