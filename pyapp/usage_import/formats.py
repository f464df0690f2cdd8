"""The shapes in which providers and tools log a response, read into one.

Known: Anthropic messages and batch results, OpenAI chat completions, responses and
batch outputs, and Claude Code sessions; each also inside a common envelope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha1
from uuid import UUID

from pyapp.usage_import.fields import (
    MAX_TOKENS,
    BadUsageError,
    Object,
    cost,
    count,
    first_text,
    inner,
    moment,
    number,
    text,
)

_NAMESPACE = UUID("6f2c1b1e-9a34-5f0d-8a55-3f1c6a0e7d42")

# Where the response may stand in a line.
_PATHS: tuple[tuple[str, ...], ...] = (
    (),
    ("message",),
    ("response",),
    ("response", "body"),
    ("result", "message"),
    ("data", "message", "message"),
    ("data",),
    ("body",),
)
# Sums over many responses, and pieces of one: neither is a response.
_SUMS = ("result",)
_PIECES = ("message_start", "message_delta")
_TIMES = ("completed_at", "finished_at", "timestamp", "created_at", "created")
_CLIENTS = ("sessionId", "session_id", "client_id")
_REQUESTS = ("requestId", "request_id", "_request_id", "client_request_id", "custom_id")


@dataclass(frozen=True, slots=True)
class Counts:
    """What one pass of the model used: disjoint counts, then parts priced apart."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    details: Mapping[str, int]

    @property
    def total(self) -> int:
        """All tokens."""
        return (
            self.input_tokens
            + self.cache_creation_input_tokens
            + self.cache_read_input_tokens
            + self.output_tokens
        )


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """One response as its line has it; its passes of the model add up.

    It `is_open` while the model has not said why it stopped: more may be to come.
    """

    id: UUID
    model: str
    passes: tuple[Counts, ...]
    context: Mapping[str, str]
    finished_at: datetime | None
    client_id: str | None
    client_request_id: str | None
    cost: Decimal | None
    latency_ms: int | None
    is_sidechain: bool
    is_open: bool

    @property
    def total(self) -> int:
        """All tokens of all passes."""
        return sum(counts.total for counts in self.passes)


def read_response(line: Object) -> ModelResponse | None:
    """Return the response that *line* holds, or None when it holds no usage.

    Raises: BadUsageError when there is usage that cannot be billed.
    """
    chain = _find(line)
    if chain is None:
        return None
    response = chain[-1]
    usage = response["usage"]
    if line.get("type") in _PIECES:
        raise BadUsageError("a piece of a stream; only the whole response is counted")
    model = text(response.get("model"))
    if model == "<synthetic>":
        return None
    if model is None:
        raise BadUsageError("no model is named")
    shape = _shape(response, usage)
    passes = tuple(_openai(usage) if shape == "openai" else _anthropic(usage))
    if sum(counts.total for counts in passes) > MAX_TOKENS:
        raise BadUsageError("more tokens than any call can have")
    request_id = first_text(chain, _REQUESTS)
    return ModelResponse(
        id=_identity(shape, response, request_id),
        model=model,
        passes=passes,
        context=_context(line, response, usage),
        finished_at=_time(chain),
        client_id=first_text(chain, _CLIENTS),
        client_request_id=request_id,
        cost=_cost(line, usage),
        latency_ms=_latency(response),
        is_sidechain=line.get("isSidechain") is True,
        is_open=response.get("stop_reason", "") is None,
    )


def _find(line: Object) -> list[Object] | None:
    """Return the objects from *line* down to the one with usage."""
    if line.get("type") in _SUMS:
        return None
    for path in _PATHS:
        chain = [line]
        for key in path:
            part = chain[-1].get(key)
            if not isinstance(part, dict):
                break
            chain.append(part)
        else:
            usage = chain[-1].get("usage")
            if usage and not isinstance(usage, dict):
                raise BadUsageError("usage is not an object")
            if usage:
                return chain
    return None


def _shape(response: Object, usage: Object) -> str:
    if response.get("type") == "message":
        return "anthropic"
    if response.get("object") == "response" or "input_tokens_details" in usage:
        return "openai"
    if {"prompt_tokens", "completion_tokens"} & usage.keys():
        return "openai"
    if {"input_tokens", "output_tokens"} & usage.keys():
        return "anthropic"
    raise BadUsageError("usage without token counts")


def _anthropic(usage: Object) -> list[Counts]:
    """Anthropic's counts are disjoint already.

    A compaction is a pass of its own, billed, and not in the sum at the top.
    """
    parts = [usage]
    iterations = usage.get("iterations")
    if isinstance(iterations, list):
        parts += [
            part
            for part in iterations
            if isinstance(part, dict) and part.get("type") == "compaction"
        ]
    return [_anthropic_pass(part) for part in parts]


def _anthropic_pass(usage: Object) -> Counts:
    written = inner(usage, "cache_creation")
    hour = count(written, "ephemeral_1h_input_tokens")
    by_lifetime = hour + count(written, "ephemeral_5m_input_tokens")
    creation = count(usage, "cache_creation_input_tokens")
    if usage.get("cache_creation_input_tokens") is None:
        creation = by_lifetime
    if by_lifetime > creation:
        raise BadUsageError(
            f"cache writes by lifetime ({by_lifetime}) exceed their sum ({creation})"
        )
    searches = count(inner(usage, "server_tool_use"), "web_search_requests")
    details = {"cache_write_1h_tokens": hour, "web_searches": searches}
    return Counts(
        count(usage, "input_tokens", required=True),
        creation,
        count(usage, "cache_read_input_tokens"),
        count(usage, "output_tokens", required=True),
        {unit: used for unit, used in details.items() if used},
    )


def _openai(usage: Object) -> list[Counts]:
    """OpenAI's input holds the cached tokens, and its output the reasoning."""
    chat = "prompt_tokens" in usage or "completion_tokens" in usage
    into, out = ("prompt", "completion") if chat else ("input", "output")
    read_from = inner(usage, f"{into}_tokens_details")
    written_to = inner(usage, f"{out}_tokens_details")
    prompt = count(usage, f"{into}_tokens", required=True)
    output = count(usage, f"{out}_tokens", required=not chat)
    reasoning = count(written_to, "reasoning_tokens")
    if reasoning and usage.get("total_tokens") == prompt + output + reasoning:
        output += reasoning  # some providers leave it out of the output
    read = count(read_from, "cached_tokens")
    written = count(read_from, "cache_write_tokens")
    if read + written > prompt:
        raise BadUsageError(
            f"cached tokens ({read + written}) exceed {into} tokens ({prompt})"
        )
    fresh = prompt - read - written
    heard, spoken = (count(part, "audio_tokens") for part in (read_from, written_to))
    if heard > prompt or spoken > output:
        raise BadUsageError("audio tokens exceed the tokens that hold them")
    audio = {}
    if heard or spoken:
        audio = {"input_audio_tokens": heard, "output_audio_tokens": spoken}
        audio["cache_audio_read_tokens"] = max(0, heard - fresh)
    return [Counts(fresh, written, read, output, audio)]


def _identity(shape: str, response: Object, request_id: str | None) -> UUID:
    """Return the same id for the same response, wherever and however often logged.

    Anthropic's own ids are unique, and a subagent's log may repeat one under another
    request id. Other servers' ids are short or counted: more is needed beside them.
    """
    name = text(response.get("id"))
    if name is None and request_id is None:
        raise BadUsageError("no id: it could not be told from a repeat")
    beside: object = request_id
    if name is not None and shape == "openai":
        created = number(response.get("created", response.get("created_at")))
        beside = None if created is None else int(created)
    elif name is not None and name.startswith("msg_"):
        beside = None
    # As uuid5 does it, in half the time; ascii() is the same in every Python.
    named = ascii((shape, name, beside)).encode()
    return UUID(bytes=sha1(_NAMESPACE.bytes + named).digest()[:16], version=5)


def _context(line: Object, response: Object, usage: Object) -> Mapping[str, str]:
    tier = response.get("service_tier") or usage.get("service_tier")
    found = {"service_tier": tier, "speed": usage.get("speed")}
    is_batch = "custom_id" in line and ("response" in line or "result" in line)
    if tier == "batch" or is_batch:
        found["processing"] = "batch"
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _time(chain: list[Object]) -> datetime | None:
    """Return the response's own time, else its envelope's."""
    for part in reversed(chain):
        for key in _TIMES:
            if part.get(key) is not None:
                return moment(key, part[key])
    return None


def _latency(response: Object) -> int | None:
    """Return the milliseconds between the two times of a Responses API object."""
    begin = number(response.get("created_at"))
    end = number(response.get("completed_at"))
    if begin is None or end is None:
        return None
    taken = int((end - begin) * 1000)
    return taken if 0 <= taken <= MAX_TOKENS else None


def _cost(line: Object, usage: Object) -> Decimal | None:
    """Return the cost in USD that the log itself gives."""
    given = usage.get("cost")  # a number, where it is the whole cost
    whole = given if isinstance(given, int | float) else None
    return cost("costUSD", line.get("costUSD")) or cost("cost", whole)
