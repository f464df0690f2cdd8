"""LiteLLM's logs: rows of its table of spend, and payloads of its callbacks.

`spend` in a row and `response_cost` in a payload are the cost. It is 0 for an answer
from LiteLLM's cache, which costs nothing, and for a model that LiteLLM has no price
for: then the call is priced here. Some streamed calls have their cost in the breakdown
only. A failed call costs nothing unless a cost is stated. The id is that of the
response, so a row and the body of its response are one message. A payload contains the
response too, which is read with it.

Sources: LiteLLM, StandardLoggingPayload Specification; Spend Tracking; the table
LiteLLM_SpendLogs of its schema.
"""

from __future__ import annotations

import json
from decimal import Decimal

from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    amount,
    first_text,
    hashed_text,
    moment_at,
    text,
)
from pyapp.usage_import.formats import anthropic, openai
from pyapp.usage_import.formats.kinds import Body, Lines
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    describe,
    find_context,
)

_COSTS = ("spend", "response_cost")
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
_TRUE = ("true", "1")
# To read a response again is not a call, though it has the cost of the call.
_READS_AGAIN = ("get_responses", "aget_responses")


def _has_usage(row: Object) -> bool:
    return "call_type" in row and any(key in row for key in _COSTS)


def _read(chain: Chain) -> ModelResponse | None:
    row = chain[-1]
    if row["call_type"] in _READS_AGAIN:
        return None
    key = _COSTS[0] if _COSTS[0] in row else _COSTS[1]
    stated = amount(key, row.get(key))
    metadata, response = _object(row.get("metadata")), _object(row.get("response"))
    usage = _usage(row, metadata, response)
    is_cached = str(row.get("cache_hit")).lower() in _TRUE
    if is_cached:
        stated = stated or Decimal(0)
    elif not stated:
        stated = _broken_down(row, metadata)
    if not stated and not is_cached:
        if row.get("status") == "failure" or not any(usage.get(k) for k in _COUNTS):
            return None
        stated = None
    model = first_text([row], ("model",))
    name = first_text([row], ("request_id", "id"), hashed_text)
    if name is None:
        raise BadUsageError("no request_id: repeats of it could not be detected")
    begin, end = moment_at(row, "startTime"), moment_at(row, "endTime")
    latency = None
    if begin is not None and end is not None and end >= begin:
        latency = int((end - begin).total_seconds() * 1000)
    return describe(
        [{}, row],
        anthropic.make_message_id(name)
        if name.startswith("msg_")
        else openai.make_response_id(name, begin.timestamp() if begin else None),
        [openai.read_pass(usage, model, is_stated=stated is not None)],
        model=model,
        provider=text(row.get("custom_llm_provider")),
        finished_at=end or begin,
        cost=stated,
        latency_ms=latency,
        context=_context(row, response, usage),
        # Earlier versions read the body in the row.
        former_id=openai.find_former_id(response),
    )


def _broken_down(row: Object, metadata: Object) -> Decimal | None:
    """Return the sum of the cost's parts, which some rows have without their spend."""
    parts = metadata.get("cost_breakdown")
    parts = parts if isinstance(parts, dict) else row.get("cost_breakdown")
    return amount("total_cost", _object(parts).get("total_cost"))


def _object(value: object) -> Object:
    """Return an object, or the text of one as a database exports it; else empty."""
    if isinstance(value, str) and value[:1] == "{":
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _usage(row: Object, metadata: Object, response: Object) -> Object:
    """Return the usage with its details, if the row has them, else its counts."""
    for usage in (metadata.get("usage_object"), response.get("usage")):
        if isinstance(usage, dict) and not openai.KEYS.isdisjoint(usage):
            return usage
    return {key: row.get(key) or 0 for key in _COUNTS}


def _context(row: Object, response: Object, usage: Object) -> dict[str, str]:
    context = find_context([row, {**response, "usage": usage}])
    if "batch" in (text(row.get("call_type")) or ""):
        context["processing"] = "batch"
    return context


class Rows(Lines):
    """Rows and payloads, also inside what a callback gets."""

    KEYS = frozenset(("call_type",))
    PLACES = ("standard_logging_object",)
    BODY = Body(has_usage=_has_usage, read=_read)
