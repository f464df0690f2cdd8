"""Amazon Bedrock: logs of invocations, responses of Converse, and results of batches.

A record of the invocation log has the model, the region and the counts of a call, and
the response if the log keeps bodies. Its input is without the tokens that were read
from or written to a cache. The counts of the response come first, because they also
have the lifetime of cache writes, the passes and the tools. A record with an errorCode
and without counts is not billed. CloudWatch writes each record as a text. Cache writes
whose lifetime a record does not state have the default one, of five minutes.

Sources: the user guide of Amazon Bedrock (Model invocation logging, Prompt caching,
Inference profiles, Batch inference), the API references of Converse and TokenUsage.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from pyapp._core.validation import shown
from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    count,
    first_count,
    first_text,
    inner,
    moment,
    text,
)
from pyapp.usage_import.formats import anthropic
from pyapp.usage_import.formats.kinds import Body, Lines, Lists
from pyapp.usage_import.formats.streams import Messages
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    find_model,
    make_content_id,
    make_id,
)

_SCHEMA = "ModelInvocationLog"
_METRICS = "amazon-bedrock-invocationMetrics"
# Each count of a record, of a chunk's metrics and of a Converse usage: the first key
# that has it. The longer names are those of older responses.
_READS = ("cacheReadInputTokens", "cacheReadInputTokenCount")
_WRITES = ("cacheWriteInputTokens", "cacheWriteInputTokenCount")
_INPUT = ("inputTokens", "inputTokenCount")
_OUTPUT = ("outputTokens", "outputTokenCount")
_COUNTS = (*_INPUT, *_OUTPUT, *_READS, *_WRITES)
# Keys of an event of CloudWatch Logs, also as Logs Insights and subscriptions have it.
_EVENT_KEYS = frozenset(
    (
        "@log",
        "@logStream",
        "@message",
        "@ptr",
        "@timestamp",
        "eventId",
        "extractedFields",
        "id",
        "ingestionTime",
        "logStreamName",
        "message",
        "timestamp",
    )
)
# The first part of a model's id in which no geography is named.
_MAKERS = {
    "ai21",
    "amazon",
    "anthropic",
    "cohere",
    "deepseek",
    "google",
    "luma",
    "meta",
    "minimax",
    "mistral",
    "moonshot",
    "moonshotai",
    "nvidia",
    "openai",
    "qwen",
    "stability",
    "twelvelabs",
    "writer",
    "zai",
}
_LIFETIMES = ("5m", "1h")
_LISTS = ("events", "logEvents")
_REQUEST_IDS = ("requestId", "RequestId", "request_id")


def _is_record(line: Object) -> bool:
    if line.get("schemaType") == _SCHEMA:
        return True
    if "modelId" in line and isinstance(line.get("input"), dict):
        return "inputTokenCount" in line["input"]
    return _written(line) is not None


def _written(line: Object) -> str | None:
    """Return the text of a record, as an event of CloudWatch has it, or None."""
    message = line.get("message", line.get("@message"))
    return message if isinstance(message, str) and _SCHEMA in message else None


def _read_record(chain: Chain) -> ModelResponse | None:
    record = chain[-1]
    written = _written(record)
    if written is not None:
        try:
            record = json.loads(written)
        except ValueError as exc:
            raise BadUsageError(f"the record is not JSON: {exc}") from exc
        if not isinstance(record, dict):
            raise BadUsageError("the record is not an object")
    model = _model_in_region(text(record.get("modelId")), text(record.get("region")))
    answer = inner(record, "output")
    stated = {**record, **inner(record, "input"), **answer}
    has_counts = any(stated.get(key) is not None for key in _COUNTS)
    body = answer.get("outputBodyJson")
    passes, name, context = _read_body(body, model)
    if passes is None:
        if not has_counts:
            if record.get("errorCode"):
                return None
            raise BadUsageError("a record without token counts, such as that of images")
        passes = [_read_counts(stated)]
    elif has_counts:
        _compare(passes, stated)
    if record.get("operation") == "ConverseStream" and "openai." in (model or ""):
        _refuse_overlap(passes)
    request = text(record.get("requestId"))
    if name is None and request is None:
        raise BadUsageError("no requestId: repeats of it could not be detected")
    return describe(
        [record],
        anthropic.make_message_id(name) if name else make_id("bedrock", request),
        passes,
        model=model,
        provider="aws",
        finished_at=moment("timestamp", record.get("timestamp")),
        context={
            **_context(inner(record, "input").get("inputBodyJson")),
            **_context(record),
            **context,
        },
    )


def _model_in_region(model: str | None, region: str | None) -> str | None:
    """Return the model's id, as an ARN where its price may be that of the region.

    A model without a geography in front of its id ran in the region of the record. The
    published prices are those of the US, and Claude's are the same in other regions.
    """
    if model is None or region is None:
        return model
    is_in_region = model.split(".")[0] in _MAKERS
    has_us_price = region.startswith("us-") or model.startswith("anthropic.")
    if not is_in_region or (has_us_price and "-gov-" not in region):
        return model
    partition = "aws-us-gov" if "-gov-" in region else "aws"
    return f"arn:{partition}:bedrock:{region}::foundation-model/{model}"


def _read_counts(stated: Object) -> Pass:
    """Return the counts of a record, of the metrics of a stream, or of a usage."""
    written = first_count(stated, _WRITES)
    return Pass(
        first_count(stated, _INPUT),
        written,
        first_count(stated, _READS),
        first_count(stated, _OUTPUT),
        _hour(stated, written),
    )


def _hour(usage: Object, written: int) -> int:
    """Return the tokens that were written to the cache for one hour."""
    details = usage.get("cacheDetails") or []
    if not isinstance(details, list) or not all(isinstance(d, dict) for d in details):
        raise BadUsageError("cacheDetails is not a list of objects")
    hour = 0
    for detail in details:
        used, lifetime = count(detail, "inputTokens"), detail.get("ttl")
        if used and lifetime not in _LIFETIMES:
            raise BadUsageError(f"cache writes for {shown(lifetime)}")
        hour += used if lifetime == "1h" else 0
    if hour > written:
        raise BadUsageError(
            f"cache writes for one hour ({hour}) exceed all cache writes ({written})"
        )
    return hour


def _read_body(
    body: object, model: str | None
) -> tuple[list[Pass] | None, str | None, dict[str, str]]:
    """Return the passes of a response, the id of a Claude message, and the context.

    The passes are None if the response has no usage, or in a form of its maker's own:
    the record has its counts too.
    """
    if isinstance(body, list):
        return (*_read_chunks(body, model), {})
    if not isinstance(body, dict):
        return None, None, {}
    usage = body.get("usage")
    context = _context(body)
    if not isinstance(usage, dict):
        return None, None, context
    if "inputTokens" in usage:
        return [read_usage(usage)], None, context
    if body.get("type") == "message":
        passes = anthropic.read_passes(usage, model)
        for key in ("service_tier", "speed", "inference_geo"):
            if value := text(usage.get(key)):
                context[key] = value
        return passes, _unique_id(body), context
    return None, None, context


def _read_chunks(
    chunks: list[Any], model: str | None
) -> tuple[list[Pass] | None, str | None]:
    stream = Messages()
    passes: list[Pass] | None = None
    name: str | None = None
    for chunk in chunks:
        if not isinstance(chunk, dict):
            continue
        message = chunk.get("message")
        if chunk.get("type") == "message_start" and isinstance(message, dict):
            name = _unique_id(message)
            chunk = {**chunk, "message": {"id": "msg_", **message, "model": model}}
        for response in stream.read(chunk, 0) or ():
            passes = list(response.passes)
        metrics = chunk.get(_METRICS)
        usage = inner(chunk, "metadata").get("usage")
        if isinstance(usage, dict):
            # Only the metrics of Nova have the cache.
            passes = [read_usage({**inner(chunk, _METRICS), **usage})]
        elif passes is None and isinstance(metrics, dict):
            passes = [_read_counts(metrics)]
    return passes, name


def _unique_id(message: Object) -> str | None:
    """Return the id of a Claude message; other ids may repeat."""
    name = text(message.get("id"))
    return name if name and name.startswith("msg_") else None


def _compare(passes: list[Pass], stated: Object) -> None:
    """Compare the counts of the response with those of its record.

    Raises: BadUsageError if they differ.
    """
    output = sum(each.output_tokens for each in passes)
    recorded = first_count(stated, _OUTPUT)
    if recorded not in (0, output):
        raise BadUsageError(
            f"outputTokenCount ({recorded}) is not that of the response ({output})"
        )
    given = sum(each.input_tokens for each in passes)
    whole = sum(each.total for each in passes) - output
    recorded = first_count(stated, _INPUT)
    if recorded not in (0, given, whole):
        raise BadUsageError(
            f"inputTokenCount ({recorded}) is not that of the response ({given})"
        )


def _refuse_overlap(passes: list[Pass]) -> None:
    """Refuse streams of OpenAI's models with a cache.

    Bedrock counts the cached tokens in their input too, but not in other responses.
    """
    for each in passes:
        cached = each.cache_creation_input_tokens + each.cache_read_input_tokens
        if 0 < cached <= each.input_tokens:
            raise BadUsageError(
                f"whether inputTokenCount ({each.input_tokens}) includes the cached"
                f" tokens ({cached}) is not stated"
            )


def _context(body: object) -> dict[str, str]:
    """Return the tier and the speed that a request or a response names."""
    found: dict[str, str] = {}
    if not isinstance(body, dict):
        return found
    tier = body.get("serviceTier")
    if name := text(tier.get("type") if isinstance(tier, dict) else tier):
        found["service_tier"] = name
    performance = body.get("performanceConfig")
    if isinstance(performance, dict) and (name := text(performance.get("latency"))):
        found["speed"] = name
    return found


def read_usage(usage: Object) -> Pass:
    """Return the counts of a Converse usage, which are disjoint.

    Raises: BadUsageError if they are not the total.
    """
    for first, second in (_READS, _WRITES):
        both = [count(usage, key) for key in (first, second) if key in usage]
        if len(set(both)) > 1:
            raise BadUsageError(f"{first} ({both[0]}) is not {second} ({both[1]})")
    part = _read_counts(usage)
    total = count(usage, "totalTokens")
    if total and total not in (part.total, part.input_tokens + part.output_tokens):
        raise BadUsageError(
            f"totalTokens ({total}) is not the sum of its parts ({part.total})"
        )
    called = inner(usage, "serverToolUsage")
    units = {key: count(called, key) for key in called if called[key]}
    if "webSearchRequests" in units:
        units["web_searches"] = units.pop("webSearchRequests")
    return part._replace(units=units or None)


def _is_converse(response: Object) -> bool:
    usage = response.get("usage")
    return (
        isinstance(usage, dict)
        and "inputTokens" in usage
        and ("stopReason" in response or "metrics" in response)
    )


def _read_converse(chain: Chain) -> ModelResponse:
    response = chain[-1]
    model = find_model(chain)
    if model is None:
        raise BadUsageError(
            "a response of Converse names no model: import the invocation log"
        )
    request = first_text([*chain, inner(response, "ResponseMetadata")], _REQUEST_IDS)
    return describe(
        chain,
        make_id("bedrock", request)
        if request
        else make_content_id("bedrock-converse", chain),
        [read_usage(response["usage"])],
        model=model,
        provider="aws",
        context=_context(response),
        is_numbered=request is None,
    )


def _is_result(line: Object) -> bool:
    return "recordId" in line and ("modelOutput" in line or "error" in line)


def _read_result(chain: Chain) -> ModelResponse | None:
    body = chain[-1].get("modelOutput")
    if not isinstance(body, dict):
        return None
    model = find_model([chain[-1], body])
    if model is None:
        raise BadUsageError("a result of a batch that names no model")
    passes, name, context = _read_body(body, model)
    if passes is None:
        raise BadUsageError("a result of a batch without token counts")
    return describe(
        [chain[-1], body],
        anthropic.make_message_id(name)
        if name
        else make_id("bedrock-batch", text(chain[-1]["recordId"])),
        passes,
        model=model,
        provider="aws",
        context={**context, "processing": "batch"},
    )


class Records(Lines):
    """The log of invocations."""

    KEYS = frozenset(("modelId",))
    BODY = Body(has_usage=_is_record, read=_read_record)

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be a record, or an event of CloudWatch with one."""
        return super().may_read(kind, keys) or (
            ("message" in keys or "@message" in keys) and _EVENT_KEYS.issuperset(keys)
        )


class Events(Lists):
    """Records in a list of events, as CloudWatch returns and sends them."""

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether the line can be such a list."""
        return any(key in keys for key in _LISTS)

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the calls of the events."""
        for key in _LISTS:
            events = line.get(key)
            if not isinstance(events, list):
                continue
            parts = [e for e in events if isinstance(e, dict) and _written(e)]
            if parts:
                return self.read_each(parts, number, lambda e: _read_record([e]))
        return None


class Results(Lines):
    """The results of a batch."""

    KEYS = frozenset(("recordId",))
    BODY = Body(has_usage=_is_result, read=_read_result)


CONVERSE = Body(has_usage=_is_converse, read=_read_converse)
