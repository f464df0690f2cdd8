"""Responses of Anthropic's Messages API, also inside Claude Code's sessions.

Sources: the documentation of the Messages API and of its tools (advisor, compaction,
fallbacks, web search, web fetch, code execution), and the types of the official
package `anthropic`. A web fetch and a tool search cost their tokens only; executions
of code are free in a request with web search or web fetch.
"""

from __future__ import annotations

import re

from pyapp._core.validation import shown
from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    cost,
    count,
    hashed_text,
    inner,
    text,
)
from pyapp.usage_import.formats.kinds import Body
from pyapp.usage_import.formats.stated_costs import find_cost
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    find_request,
    identify,
    make_id,
)

# Counts at server_tool_use, each with its unit; None if it costs nothing of its own.
_TOOLS = {
    "web_search_requests": "web_searches",
    "web_fetch_requests": None,
    "code_execution_requests": "code_executions",
    "tool_search_requests": None,
}
# With these, executions of code are free.
_FREES_CODE = ("web_search_requests", "web_fetch_requests")
_KEYS = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)
_TIER = 128_000  # input tokens: no tier begins below
_LIFETIMES = {"ephemeral_1h_input_tokens", "ephemeral_5m_input_tokens"}
# Types of iterations that the usage itself reports too.
_MAIN = ("message", "fallback_message")
# Hosts that mark the ids of their responses.
_HOSTS = {"msg_bdrk_": "aws", "msg_vrtx_": "vertex_ai"}
_PREFIXES = tuple(_HOSTS)
_DATE = re.compile(r"-\d{8}$")


def _has_usage(response: Object) -> bool:
    usage = response.get("usage")
    if not usage:
        return False
    if response.get("type") == "message":
        return True
    return (
        isinstance(usage, dict)
        and ("input_tokens" in usage or "output_tokens" in usage)
        and "input_tokens_details" not in usage
        and "input_token_details" not in usage
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
    model = text(response.get("model"))
    # A subagent's log may repeat a response with another request id.
    name = hashed_text(response.get("id"))
    is_unique = name is not None and name.startswith("msg_")
    passes = read_passes(usage, model)
    if len(passes) == 1 and sum(passes[0][:3]) > _TIER and _has_server_tools(response):
        passes = [_of_several(passes[0])]
    stated = cost("costUSD", chain[0].get("costUSD"))
    provider = _find_provider(name, model)
    if stated is None and "cost" in usage:
        # OpenRouter serves this form too.
        stated = find_cost(response, usage)
        provider = provider or (None if stated is None else "openrouter")
    return describe(
        chain,
        identify(chain, "anthropic", None if is_unique else find_request(chain)),
        passes,
        provider=provider,
        cost=stated,
        is_open=response.get("stop_reason", "") is None,
    )


def _find_provider(id: str | None, model: str | None) -> str | None:
    """Return the host; other makers' models are served in this format too."""
    if id is not None and id.startswith(_PREFIXES):
        return _HOSTS[id[: len("msg_bdrk_")]]
    return "anthropic" if model is not None and model.startswith("claude-") else None


def make_message_id(name: str) -> bytes:
    """Return the id of a message whose own id, *name*, is unique."""
    return make_id("anthropic", name, None)


def read_passes(usage: Object, model: str | None) -> list[Pass]:
    """Return every pass that is billed; *model* is the response's.

    `iterations` lists all passes. The counts of *usage* are those of the model's own
    passes without compactions: their sum or, in older responses, those of the first.

    Raises: BadUsageError if they are neither.
    """
    whole = read_pass(usage)
    iterations = usage.get("iterations")
    if not iterations:
        return [whole]
    if not isinstance(iterations, list):
        raise BadUsageError("iterations is not a list")
    main: list[Object] = []
    others: list[Pass] = []
    for number, part in enumerate(iterations, start=1):
        if not isinstance(part, dict):
            raise BadUsageError(f"iteration {number} is not an object")
        kind, name = part.get("type"), text(part.get("model"))
        is_own = name is None or _base(name) == _base(model)
        if kind in _MAIN and is_own:
            main.append(part)
        elif kind not in (*_MAIN, "compaction") and name is None:
            raise BadUsageError(
                f"iteration {number} of type {shown(kind)} names no model"
            )
        else:
            others.append(read_pass(part)._replace(model=None if is_own else name))
    return [*_main_passes(whole, main), *others]


def _of_several(whole: Pass) -> Pass:
    """Return the counts as sums of several passes; how many is not known.

    A sum that is above a tier is not the context of one pass.
    """
    return whole._replace(units={**(whole.units or {}), "passes": 2})


def _has_server_tools(response: Object) -> bool:
    called = response["usage"].get("server_tool_use")
    if isinstance(called, dict) and any(called.values()):
        return True
    if response.get("container"):
        return True
    content = response.get("content")
    return isinstance(content, list) and any(
        isinstance(block, dict) and block.get("type") == "server_tool_use"
        for block in content
    )


def _main_passes(whole: Pass, parts: list[Object]) -> list[Pass]:
    """Return the passes of *parts*, of which *whole* has the counts."""
    if not parts:
        return [whole]
    passes = [read_pass(part) for part in parts]
    for key in _KEYS:
        stated = getattr(whole, key)
        counts = [getattr(each, key) for each in passes]
        if all(part.get(key) is None for part in parts):
            passes[0] = passes[0]._replace(**{key: stated})
        elif stated not in (sum(counts), counts[0]):
            raise BadUsageError(
                f"{key} ({stated}) is neither the sum of the iterations"
                f" ({sum(counts)}) nor that of the first ({counts[0]})"
            )
    hours = whole.cache_creation_1h_input_tokens
    if not any("cache_creation" in part for part in parts):
        for place, each in enumerate(passes):
            hour = min(hours, each.cache_creation_input_tokens)
            passes[place] = each._replace(cache_creation_1h_input_tokens=hour)
            hours -= hour
    passes[0] = passes[0]._replace(units=whole.units)
    return passes


def _base(model: str | None) -> str | None:
    """Return the name of a model without its date."""
    return model and _DATE.sub("", model)


def read_pass(usage: Object) -> Pass:
    """Return the counts of *usage*, which are disjoint."""
    written = inner(usage, "cache_creation")
    hour = by_lifetime = 0
    if written:
        hour = count(written, "ephemeral_1h_input_tokens")
        by_lifetime = hour + count(written, "ephemeral_5m_input_tokens")
        if not written.keys() <= _LIFETIMES:
            others = [key for key in written.keys() - _LIFETIMES if written[key]]
            if others:
                raise BadUsageError(
                    f"cache writes of an unknown lifetime: {shown(min(others))}"
                )
    creation = count(usage, "cache_creation_input_tokens")
    if not creation and usage.get("cache_creation_input_tokens") is None:
        creation = by_lifetime
    if by_lifetime > creation:
        raise BadUsageError(
            f"cache writes by lifetime ({by_lifetime}) exceed their sum ({creation})"
        )
    return Pass(
        count(usage, "input_tokens", required=True),
        creation,
        count(usage, "cache_read_input_tokens"),
        count(usage, "output_tokens", required=True),
        hour,
        _units(inner(usage, "server_tool_use")),
    )


def _units(called: Object) -> dict[str, int] | None:
    """Return the calls of tools that cost more than their tokens."""
    if not called:
        return None
    counts = {
        key: count(called, key)
        for key, value in called.items()
        if isinstance(value, int) or key in _TOOLS
    }
    if any(counts.get(key) for key in _FREES_CODE):
        counts.pop("code_execution_requests", None)
    units = {
        unit: used
        for key, used in counts.items()
        if used and (unit := _TOOLS.get(key, key)) is not None
    }
    return units or None


BODY = Body(has_usage=_has_usage, read=_read, is_known=_is_known)
