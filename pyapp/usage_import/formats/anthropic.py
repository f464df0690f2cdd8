"""Responses of Anthropic's Messages API, also inside Claude Code's sessions."""

from __future__ import annotations

from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    cost,
    count,
    hashed_text,
    inner,
)
from pyapp.usage_import.formats.kinds import Body
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    find_request,
    identify,
)

# Counts of an object at server_tool_use, and the units that they are.
_TOOLS = {"web_search_requests": "web_searches"}


def _has_usage(response: Object) -> bool:
    usage = response.get("usage")
    if not usage:
        return False
    if not isinstance(usage, dict):
        return response.get("type") == "message"
    if response.get("type") == "message":
        return True
    return (
        ("input_tokens" in usage or "output_tokens" in usage)
        and "input_tokens_details" not in usage
        and response.get("object") != "response"
    )


def _is_known(response: Object) -> bool:
    return response.get("type") == "message" and "role" in response


def _read(chain: Chain) -> ModelResponse | None:
    response = chain[-1]
    usage = response["usage"]
    if not isinstance(usage, dict):
        raise BadUsageError("usage is not an object")
    # Claude Code writes such a message itself, without a call to a model.
    if response.get("model") == "<synthetic>":
        return None
    # A subagent's log may repeat a response with another request id.
    name = hashed_text(response.get("id"))
    is_unique = name is not None and name.startswith("msg_")
    return describe(
        chain,
        identify(chain, "anthropic", None if is_unique else find_request(chain)),
        _passes(usage),
        cost=cost("costUSD", chain[0].get("costUSD")),
        is_open=response.get("stop_reason", "") is None,
    )


def _passes(usage: Object) -> list[Pass]:
    """Return the passes; a compaction is billed and not included in the usage."""
    parts = [usage]
    iterations = usage.get("iterations")
    if isinstance(iterations, list):
        parts += [
            part
            for part in iterations
            if isinstance(part, dict) and part.get("type") == "compaction"
        ]
    return [_pass(part) for part in parts]


def _pass(usage: Object) -> Pass:
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
    called = inner(usage, "server_tool_use")
    units = {unit: used for key, unit in _TOOLS.items() if (used := count(called, key))}
    return Pass(
        count(usage, "input_tokens", required=True),
        creation,
        count(usage, "cache_read_input_tokens"),
        count(usage, "output_tokens", required=True),
        hour,
        units or None,
    )


BODY = Body(has_usage=_has_usage, read=_read, is_known=_is_known)
