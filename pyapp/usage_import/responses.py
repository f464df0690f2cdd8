"""One response of a model as a log shows it, and what its envelope adds.

A response is often inside other objects: a batch result, a webhook, the line of a
session. *chain* is the list of these objects, from the line down to the response.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from hashlib import sha1
from typing import NamedTuple, TypeAlias

from pyapp._core.validation import MAX_ID_LENGTH, MAX_INTEGER, shown
from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    first_text,
    hashed_text,
    moment,
    number,
    text,
)

Chain: TypeAlias = list[Object]

_NAMESPACE = bytes.fromhex("6f2c1b1e9a345f0d8a553f1c6a0e7d42")
_TIMES = ("completed_at", "finished_at", "timestamp", "created_at", "created")
_CLIENTS = ("sessionId", "session_id", "client_id")
_REQUESTS = ("requestId", "request_id", "_request_id", "client_request_id", "custom_id")
_MODELS = ("model", "model_id", "modelId", "model_name", "request_model")
# What changes the price of a call: keys of the response, then of its usage.
_CONTEXT = ("service_tier", "speed", "inference_geo", "search_context_size")


class Pass(NamedTuple):
    """Usage of one pass of a model: four disjoint counts, and units with own prices.

    The cache writes for one hour are part of all cache writes. *units* are by the names
    of genai-prices: parts of the four counts (`input_audio_tokens`), and separate units
    (`web_searches`). *model* is None for a pass of the response's model.
    """

    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0
    units: Mapping[str, int] | None = None
    model: str | None = None

    @property
    def total(self) -> int:
        """All tokens."""
        return sum(self[:4])


class ModelResponse(NamedTuple):
    """One response; its usage is the sum of its passes.

    `cost` is in USD, and None unless the log states what was paid. `context` is as
    `published_price` takes it. `provider` is the host that the log names, or that its
    format implies. `is_open` is true without a stop reason: a later line may have
    larger counts. `session` names the session of whose calls the response is one, or,
    if `is_sum`, of whose calls it is the sum: such a sum is left out if one of the
    session's calls is read. `is_numbered` is true if the id is that of the line's
    content, and equal lines of a file are different responses. `former_id` is the id
    that earlier versions gave to the response, if it was another one.
    """

    id: bytes
    model: str
    passes: tuple[Pass, ...]
    context: Mapping[str, str]
    provider: str | None = None
    finished_at: datetime | None = None
    client_id: str | None = None
    client_request_id: str | None = None
    cost: Decimal | None = None
    latency_ms: int | None = None
    is_sidechain: bool = False
    is_open: bool = False
    session: str | None = None
    is_sum: bool = False
    is_numbered: bool = False
    former_id: bytes | None = None

    @property
    def is_billed(self) -> bool:
        """Whether anything was used, or a cost is stated."""
        return (
            self.cost is not None
            or self.total > 0
            or any(part.units for part in self.passes)
        )

    @property
    def total(self) -> int:
        """All tokens of all passes."""
        total = 0
        for part in self.passes:
            total += sum(part[:4])
        return total


def describe(
    chain: Chain,
    id: bytes,
    passes: Iterable[Pass],
    *,
    model: str | None = None,
    provider: str | None = None,
    finished_at: datetime | None = None,
    cost: Decimal | None = None,
    latency_ms: int | None = None,
    is_open: bool = False,
    is_numbered: bool = False,
    former_id: bytes | None = None,
    context: Mapping[str, str] | None = None,
) -> ModelResponse:
    """Return the response at the end of *chain*; its envelope gives what is missing.

    Raises: BadUsageError if no model is named, or the counts are too large.
    """
    line, response = chain[0], chain[-1]
    model = model or text(response.get("model")) or find_model(chain)
    if model is None:
        raise BadUsageError("no model is named")
    counted = tuple(passes)
    total = 0
    for part in counted:
        total += sum(part[:4])
    if total > MAX_INTEGER:
        raise BadUsageError("more tokens than a call can have")
    # By position, in half of the time.
    return ModelResponse(
        id,
        model,
        counted,
        find_context(chain) if context is None else context,
        provider and provider[:MAX_ID_LENGTH],
        finished_at or find_time(chain),
        first_text(chain, _CLIENTS),
        first_text(chain, _REQUESTS),
        cost,
        latency_ms,
        line.get("isSidechain") is True,
        is_open,
        text(line["sessionId"]) if "sessionId" in line else None,
        False,
        is_numbered,
        former_id,
    )


def make_id(*names: object) -> bytes:
    """Return the id of what *names* identify, the first of which names its format.

    The ids are the same in every release: a log that is imported again adds nothing.
    """
    # As uuid5, in half the time; ascii() is the same in every Python version.
    return sha1(_NAMESPACE + ascii(names).encode()).digest()[:16]


def identify(chain: Chain, shape: str, second: object = None) -> bytes:
    """Return an id that is the same in every log of the response.

    *second* is added to an id of the response that is not unique by itself, because it
    is short or sequential. Without an id of its own, its request's id is used.
    """
    name = hashed_text(chain[-1].get("id"))
    if name is None:
        second = find_request(chain)
        if second is None:
            raise BadUsageError("no id: repeats of the response could not be detected")
    return make_id(shape, name, second)


def make_content_id(shape: str, chain: Chain) -> bytes:
    """Return the id of a response that has none, from the contents of its line.

    Equal lines have equal ids, so such a response is `is_numbered`.
    """
    return make_id(shape, "content", json.dumps(chain[0], sort_keys=True))


def find_request(chain: Chain) -> str | None:
    """Return the request's id, from the outermost object inwards."""
    return first_text(chain, _REQUESTS, hashed_text)


def find_context(chain: Chain) -> dict[str, str]:
    """Return what changes the price of the call, as published_price takes it."""
    line, response = chain[0], chain[-1]
    usage = response.get("usage")
    found = {}
    for key in _CONTEXT:
        value = response.get(key)
        if not value and isinstance(usage, dict):
            value = usage.get(key)
        if not value:
            continue
        if not isinstance(value, str):
            raise BadUsageError(f"{key} is not text: {shown(value)}")
        found[key] = value
    is_batch = "custom_id" in line and ("response" in line or "result" in line)
    if is_batch or found.get("service_tier") == "batch":
        found["processing"] = "batch"
    return found


def find_model(chain: Chain) -> str | None:
    """Return the model that the response names, else its envelope or its request."""
    found = first_text(chain[::-1], _MODELS)
    request: object = chain[0].get("request")
    while found is None and isinstance(request, dict):
        found = first_text([request], _MODELS)
        request = request.get("body")
    return found


def find_time(chain: Chain, keys: tuple[str, ...] = _TIMES) -> datetime | None:
    """Return the response's own time at the first of *keys*, else its envelope's."""
    for part in reversed(chain):
        for key in keys:
            if part.get(key) is not None:
                return moment(key, part[key])
    return None


def find_latency(response: Object) -> int | None:
    """Return the milliseconds between the two times of a Responses API object."""
    begin = number(response.get("created_at"))
    end = number(response.get("completed_at"))
    if begin is None or end is None:
        return None
    taken = int((end - begin) * 1000)
    return taken if 0 <= taken <= MAX_INTEGER else None
