"""Exports of tools that trace calls: Langfuse, Helicone, LangSmith, Cloudflare.

Their costs are what the tool computed from its own prices, or what the program stated;
a cost of 0 is unknown, because they write it for models that they have no price for.
Without a cost the call is priced here. Traces, spans and chains repeat the sums of the
calls in them, and are not billed. The id is the tool's own: import the same calls from
one log.

Sources: Langfuse, Blob storage export field reference, Token and cost tracking, and the
API reference of observations and ingestion; Helicone, Query requests; LangSmith, Run
data format and Cost tracking; Cloudflare AI Gateway, Logs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import NamedTuple

from pyapp._core.validation import shown
from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    amount,
    count,
    first_text,
    inner,
    text,
    value_at,
)
from pyapp.usage_import.formats.kinds import Lists
from pyapp.usage_import.responses import (
    ModelResponse,
    Pass,
    describe,
    find_time,
    make_id,
)
from pyapp.usage_import.unknown import find_usage

_MODELS = ("provided_model_name", "providedModelName", "model", "response_model")
_MODELS_ASKED = ("request_model", "model_override", "ls_model_name")
_ENDS = (
    "endTime",
    "end_time",
    "response_created_at",
    "startTime",
    "start_time",
    "request_created_at",
    "created_at",
)
_KEYS = {
    "batch",
    "observations",
    "request_created_at",
    "run_type",
    "tokens_in",
    "traceId",
    "trace_id",
}
_ANSWERED, _FAILED = "answered", "failed"
# A failed request is not billed, unless it has one of these: its answer was cut. Its
# input is what the tool counted itself.
_BILLED_IF_FAILED = ("completion_tokens", "tokens_out", "cost", "cost_usd", "costUSD")
_COSTS = (
    ("costDetails", "total"),
    ("cost_details", "total"),
    ("calculatedTotalCost",),
    ("totalCost",),
    ("total_cost",),
    ("cost_usd",),
    ("costUSD",),
    ("cost",),
    ("usage", "totalCost"),
)


class _Tool(NamedTuple):
    """A tool: which rows are of it, and the kind and the counts of such a row.

    Rows of other kinds than `calls` and `sums` are reported if they have usage. The
    kind of a failed request is `_FAILED`.
    """

    name: str
    is_row: Callable[[Object], bool]
    kind: Callable[[Object], object]
    calls: tuple[object, ...]
    sums: tuple[object, ...]
    read: Callable[[Object], Pass]
    providers: tuple[str, ...] = ()
    ids: tuple[str, ...] = ("id",)


class Rows(Lists):
    """Rows of exports, and the lists that contain them."""

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether the line has a key of one of the tools."""
        return not _KEYS.isdisjoint(keys)

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the calls of the line."""
        rows = _find_rows(line)
        if rows is None:
            return None
        return self.read_each(rows, number, _read)


def _find_rows(line: Object) -> list[Object] | None:
    """Return the rows in a line, or None if it is of another format."""
    if _find_tool(line) is not None:
        return [line]
    items = line.get("batch", line.get("observations"))
    if not isinstance(items, list):
        return None
    rows = []
    for item in items:
        body = item.get("body") if isinstance(item, dict) and "batch" in line else item
        if not isinstance(body, dict):
            continue
        if "batch" in line:
            event = text(item.get("type")) or ""
            body = {"type": event.partition("-")[0].upper(), **body}
        if _find_tool(body) is not None:
            rows.append(body)
    return rows or None


def _find_tool(row: Object) -> _Tool | None:
    for tool in _TOOLS:
        if tool.is_row(row):
            return tool
    return None


def _read(row: Object) -> ModelResponse | None:
    tool = _find_tool(row)
    if tool is None or (kind := tool.kind(row)) in tool.sums:
        return None
    if kind == _FAILED:
        used = find_usage({key: row.get(key) for key in _BILLED_IF_FAILED})
        if used is not None:
            raise BadUsageError(f"usage of a request that failed: {used}")
        return None
    cost = _find_cost(row)
    part = tool.read(row)
    if kind not in tool.calls:
        if cost is None and not part.total:
            return None
        raise BadUsageError(
            f"usage of {shown(kind)}, which may be the sum of other calls"
        )
    if cost is None and not part.total:
        elsewhere = find_usage({"outputs": row.get("outputs")})
        if elsewhere is not None:
            raise BadUsageError(f"usage in an unknown form: {elsewhere}")
        return None
    name = first_text([row], tool.ids)
    if name is None:
        raise BadUsageError("no id: repeats of the call could not be detected")
    named = [row, inner(inner(row, "extra"), "metadata")]
    provider = first_text(named, tool.providers)
    return describe(
        [{}, row],
        make_id(tool.name, name),
        [part],
        model=first_text(named, _MODELS) or first_text(named, _MODELS_ASKED),
        provider=provider and provider.lower(),
        finished_at=find_time([row], _ENDS),
        cost=cost,
        context={},
    )


def _find_cost(row: Object) -> Decimal | None:
    if row.get("cached") is True:  # the tool's own cache answered
        return Decimal(0)
    for path in _COSTS:
        if stated := amount(path[-1], value_at(row, path)):
            return stated
    return None


def _is_langfuse(row: Object) -> bool:
    return (
        ("traceId" in row or "trace_id" in row)
        and isinstance(row.get("type"), str)
        and row["type"].isupper()
        and ("startTime" in row or "start_time" in row or "usageDetails" in row)
    )


def _read_langfuse(row: Object) -> Pass:
    """Return the counts, of which each kind is stated apart from the others."""
    details = row.get("usageDetails") or row.get("usage_details") or row.get("usage")
    if not isinstance(details, dict):
        return Pass()
    if text(details.get("unit")) not in (None, "TOKENS"):
        raise BadUsageError(f"usage in {text(details['unit'])}, not in tokens")
    counts = {"input": 0, "write": 0, "read": 0, "output": 0}
    units = {}
    for key in details:
        side = "output" if "output" in key or "completion" in key else "input"
        if key in ("total", "unit") or key.endswith("Cost"):
            continue
        used = count(details, key)
        if "cache" in key:
            side = "write" if "creation" in key or "write" in key else "read"
        elif "audio" in key and used:
            units[f"{side}_audio_tokens"] = used
        counts[side] += used
    total, parts = count(details, "total"), sum(counts.values())
    reasoning = sum(count(details, key) for key in details if "reasoning" in key)
    if total and total == parts - reasoning:
        counts["output"] -= reasoning  # which the output includes
    elif total not in (0, parts):
        # Also with a cost, which Langfuse computes from the parts.
        raise BadUsageError(f"total ({total}) is not the sum of its parts ({parts})")
    return Pass(
        counts["input"],
        counts["write"],
        counts["read"],
        counts["output"],
        units=units or None,
    )


def _read_helicone(row: Object) -> Pass:
    written = count(row, "prompt_cache_write_tokens")
    read = count(row, "prompt_cache_read_tokens")
    if read + written and _find_cost(row) is None:
        raise BadUsageError(
            f"whether prompt_tokens include the cached tokens ({read + written})"
            " is not stated"
        )
    return Pass(
        count(row, "prompt_tokens"), written, read, count(row, "completion_tokens")
    )


def _read_cloudflare(row: Object) -> Pass:
    return Pass(count(row, "tokens_in"), 0, 0, count(row, "tokens_out"))


def _read_langsmith(row: Object) -> Pass:
    """Return the counts; the prompt includes the tokens of the cache."""
    prompt = count(row, "prompt_tokens")
    details = inner(row, "prompt_token_details")
    read, written = count(details, "cache_read"), count(details, "cache_creation")
    if read + written > prompt:
        raise BadUsageError(
            f"cached tokens ({read + written}) exceed prompt_tokens ({prompt})"
        )
    return Pass(prompt - read - written, written, read, count(row, "completion_tokens"))


def _outcome(is_answered: bool) -> str:
    return _ANSWERED if is_answered else _FAILED


_TOOLS = (
    _Tool(
        "langfuse",
        _is_langfuse,
        lambda row: row["type"],
        calls=("GENERATION", "EMBEDDING"),
        sums=("SPAN", "EVENT"),
        read=_read_langfuse,
    ),
    _Tool(
        "helicone",
        lambda row: "request_created_at" in row and "request_id" in row,
        lambda row: _outcome(
            row.get("status", row.get("response_status")) in (None, 0, 200)
        ),
        calls=(_ANSWERED,),
        sums=(),
        read=_read_helicone,
        providers=("provider",),
        ids=("request_id", "id"),
    ),
    _Tool(
        "langsmith",
        lambda row: "run_type" in row and ("trace_id" in row or "start_time" in row),
        lambda row: row["run_type"],
        calls=("llm", "embedding"),
        sums=("chain", "tool", "retriever", "prompt", "parser"),
        read=_read_langsmith,
        providers=("ls_provider",),
    ),
    _Tool(
        "cloudflare",
        lambda row: "tokens_in" in row and "provider" in row and "model" in row,
        lambda row: _outcome(row.get("success") is not False),
        calls=(_ANSWERED,),
        sums=(),
        read=_read_cloudflare,
        providers=("provider",),
    ),
)
