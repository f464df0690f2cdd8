"""Reads one response from the formats in which providers and tools log it.

The formats are Anthropic messages and batch results, OpenAI chat completions, responses
and batch outputs, and Claude Code sessions; each also inside a common envelope.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from hashlib import sha1
from uuid import UUID

from pyapp._core.validation import MAX_INTEGER
from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    cost,
    count,
    first_text,
    hashed_text,
    inner,
    moment,
    number,
    text,
)

_NAMESPACE = UUID("6f2c1b1e-9a34-5f0d-8a55-3f1c6a0e7d42")

# Paths to the response in a line.
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
# Types of lines that are not a response: sums over many, and parts of a stream.
_SUMS = ("result",)
_PIECES = ("message_start", "message_delta")
_TIMES = ("completed_at", "finished_at", "timestamp", "created_at", "created")
_CLIENTS = ("sessionId", "session_id", "client_id")
_REQUESTS = ("requestId", "request_id", "_request_id", "client_request_id", "custom_id")


@dataclass(frozen=True, slots=True)
class Counts:
    """Usage of one pass of the model: disjoint counts, and parts with own prices."""

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
    """One response as its line shows it; its usage is the sum of its passes.

    `is_open` is true without a stop reason: a later line may have larger counts.
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
    """Return the response in *line*, or None if it has no usage.

    Raises: InvalidValueError, if the usage cannot be billed.
    """
    chain = _find(line)
    if chain is None:
        return None
    response = chain[-1]
    usage = response["usage"]
    if line.get("type") in _PIECES:
        raise BadUsageError("part of a stream; only the whole response is counted")
    model = text(response.get("model"))
    if model == "<synthetic>":
        return None
    if model is None:
        raise BadUsageError("no model is named")
    shape = _shape(response, usage)
    passes = tuple(_openai(usage) if shape == "openai" else _anthropic(usage))
    if sum(counts.total for counts in passes) > MAX_INTEGER:
        raise BadUsageError("more tokens than a call can have")
    return ModelResponse(
        id=_identity(shape, chain),
        model=model,
        passes=passes,
        context=_context(line, response, usage),
        finished_at=_time(chain),
        client_id=first_text(chain, _CLIENTS),
        client_request_id=first_text(chain, _REQUESTS),
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
    """Return Anthropic's counts, which are disjoint.

    A compaction is another pass, which is billed and not included in the usage.
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
    """Return OpenAI's counts; its input includes cached tokens."""
    chat = "prompt_tokens" in usage or "completion_tokens" in usage
    into, out = ("prompt", "completion") if chat else ("input", "output")
    read_from = inner(usage, f"{into}_tokens_details")
    written_to = inner(usage, f"{out}_tokens_details")
    prompt = count(usage, f"{into}_tokens", required=True)
    output = count(usage, f"{out}_tokens", required=not chat)
    reasoning = count(written_to, "reasoning_tokens")
    if reasoning and usage.get("total_tokens") == prompt + output + reasoning:
        output += reasoning  # some providers do not include it in the output
    read = count(read_from, "cached_tokens")
    written = count(read_from, "cache_write_tokens")
    if read + written > prompt:
        raise BadUsageError(
            f"cached tokens ({read + written}) exceed {into} tokens ({prompt})"
        )
    fresh = prompt - read - written
    heard, spoken = (count(part, "audio_tokens") for part in (read_from, written_to))
    if heard > prompt or spoken > output:
        raise BadUsageError("audio tokens exceed the tokens that include them")
    audio = {}
    if heard or spoken:
        audio = {"input_audio_tokens": heard, "output_audio_tokens": spoken}
        audio["cache_audio_read_tokens"] = max(0, heard - fresh)
    return [Counts(fresh, written, read, output, audio)]


def _identity(shape: str, chain: list[Object]) -> UUID:
    """Return an id that is the same in every log of the response.

    Anthropic's ids are unique, and a subagent's log may repeat one with another request
    id. Other servers' ids are short or sequential, so a second value is added.
    """
    response = chain[-1]
    name = hashed_text(response.get("id"))
    request_id = first_text(chain, _REQUESTS, hashed_text)
    if name is None and request_id is None:
        raise BadUsageError("no id: repeats of the response could not be detected")
    second: object = request_id
    if name is not None and shape == "openai":
        created = number(response.get("created", response.get("created_at")))
        second = None if created is None else int(created)
    elif name is not None and name.startswith("msg_"):
        second = None
    # As uuid5, in half the time; ascii() is the same in every Python version.
    named = ascii((shape, name, second)).encode()
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
    return taken if 0 <= taken <= MAX_INTEGER else None


def _cost(line: Object, usage: Object) -> Decimal | None:
    """Return the cost in USD that the log gives."""
    given = usage.get("cost")  # a number, if it is the whole cost
    whole = given if isinstance(given, int | float) else None
    return cost("costUSD", line.get("costUSD")) or cost("cost", whole)
