"""Sessions and runs of Claude Code; the responses in them are Anthropic's.

A session file (`~/.claude/projects`) has each response with its final counts. What
`claude -p` prints is another record of the same calls: with `--output-format json` only
the last line, of type `result`, whose `modelUsage` sums up the calls by model, and with
`stream-json` the responses too, but as they were when they began. So the result is a
message for each model with what the responses before it lack; alone, it is the whole
run, at the cost that it states. That cost is an estimate by Claude Code's own prices,
and 0 where it has none. One process may print several results, each with the sum since
it began: then only the increase is counted.

A result is left out if a file of its session is read in the same import.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from pyapp._core.validation import MAX_ID_LENGTH
from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    cost,
    count,
    hashed_text,
    inner,
    text,
)
from pyapp.usage_import.formats import anthropic, streams
from pyapp.usage_import.formats.kinds import Format
from pyapp.usage_import.responses import ModelResponse, Pass, describe, make_id

_TYPES = {
    "agent-name",
    "ai-title",
    "attachment",
    "bridge-session",
    "cost-state",
    "custom-title",
    "file-history-snapshot",
    "last-prompt",
    "mode",
    "permission-mode",
    "pr-link",
    "progress",
    "queue-operation",
    "rate_limit_event",
    "summary",
    "system",
    "tag",
    "user",
}
# Keys of which a line of a session has at least one.
_MARKS = {
    "leafUuid",
    "messageId",
    "sessionId",
    "session_id",
    "toolUseResult",
    "uuid",
}
_COUNTS = (
    "inputTokens",
    "cacheCreationInputTokens",
    "cacheReadInputTokens",
    "outputTokens",
)
_REQUIRED = ("inputTokens", "outputTokens")
# Hosts by the names that Claude Code has for them.
_PROVIDERS = {
    "bedrock": "aws",
    "firstParty": "anthropic",
    "foundry": "azure",
    "vertex": "vertex_ai",
}
# What a run printed: its responses, or its result alone.
OUTPUT = "output of "
RESULT = "result of "
_MAX_ROUNDING = Decimal("0.000001")


class _Sum(NamedTuple):
    """The calls of one model: the counts in the order of a Pass, searches and cost."""

    counts: tuple[int, ...] = (0, 0, 0, 0)
    searches: int = 0
    cost: Decimal | None = None
    provider: str | None = None


@dataclass(slots=True)
class _Run:
    """A session in what `claude -p` printed."""

    model: str | None = None
    has_result: bool = False
    before: dict[str, _Sum] = field(default_factory=dict)  # the last result
    responses: dict[bytes, ModelResponse] = field(default_factory=dict)


class Run(Format):
    """The lines that `claude -p` prints."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}
        self._events = streams.Messages()

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be a line of a run, and not of a session file."""
        if kind == "assistant":
            return "session_id" in keys and "sessionId" not in keys
        return kind in ("result", "stream_event", "system")

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return what a result adds to the responses before it."""
        kind = line.get("type")
        if kind == "result" and ("total_cost_usd" in line or "usage" in line):
            return self._read_result(line)
        if kind == "assistant":
            return self._read_response(line)
        if kind == "stream_event":
            return self._note(line, self._events.read(line, number) or ())
        if kind == "system" and "model" in line and "session_id" in line:
            self._run(line).model = text(line["model"])
            return ()
        return None

    def _run(self, line: Object) -> _Run:
        return self._runs.setdefault(text(line.get("session_id")) or "", _Run())

    def _read_response(self, line: Object) -> Sequence[ModelResponse] | None:
        message = line.get("message")
        if not isinstance(message, dict) or not message.get("usage"):
            return None
        response = anthropic.BODY.read([line, message])
        if response is None:
            return ()
        # No line of the run says that a response has ended.
        return self._note(line, (response._replace(is_open=False),))

    def _note(
        self, line: Object, responses: Sequence[ModelResponse]
    ) -> Sequence[ModelResponse]:
        """Store the largest usage of each response of the run."""
        run = self._run(line)
        named = [_named(response, OUTPUT) for response in responses]
        for response in named:
            known = run.responses.get(response.id)
            if known is None or known.total <= response.total:
                run.responses[response.id] = response
        return named

    def _read_result(self, line: Object) -> Sequence[ModelResponse]:
        session = text(line.get("session_id"))
        run = self._run(line)
        sums = _sums(line)
        if sums:
            sums = _with_costs(line, sums)
            own = dict(_increase(line, sums, run.before))
        else:
            own = _sum_of_turn(line, run)
        has_responses = bool(run.responses)
        for response in run.responses.values():
            for part in response.passes:
                _take(own, part.model or response.model, part)
        run.before, run.has_result, run.responses = sums, True, {}
        return [
            _describe(line, session, model, rest, has_responses)
            for model, rest in own.items()
            if any(rest.counts) or rest.searches or rest.cost
        ]


def name_run(source: str, session: str) -> str:
    """Return the client's request id of what a run of *session* printed."""
    return f"{source}{session}"[:MAX_ID_LENGTH]


def is_session_line(line: Object) -> bool:
    """Tell whether *line* is of a session, such as a user's turn."""
    kind = line.get("type")
    if not isinstance(kind, str) or kind not in _TYPES:
        return False
    return isinstance(line.get("message"), dict) or not _MARKS.isdisjoint(line)


def _model(name: str) -> str:
    """Return the model's id, without the size of its context window."""
    return name.removesuffix("[1m]")


def _sums(line: Object) -> dict[str, _Sum]:
    """Return the calls of each model, as the result sums them up."""
    sums: dict[str, _Sum] = {}
    for name, usage in inner(line, "modelUsage").items():
        if not isinstance(usage, dict):
            raise BadUsageError(f"modelUsage of {name[:100]!a} is not an object")
        one = _Sum(
            tuple(count(usage, key, required=key in _REQUIRED) for key in _COUNTS),
            count(usage, "webSearchRequests"),
            cost("costUSD", usage.get("costUSD")),
            _provider(name, usage),
        )
        model = _model(name)
        sums[model] = _plus(sums[model], one) if model in sums else one
    return sums


def _provider(model: str, usage: Object) -> str | None:
    named = text(usage.get("provider"))
    if named is None:
        return "anthropic" if model.startswith("claude-") else None
    return _PROVIDERS.get(named, named)


def _plus(a: _Sum, b: _Sum) -> _Sum:
    counts = tuple(x + y for x, y in zip(a.counts, b.counts, strict=True))
    both = a.cost + b.cost if a.cost is not None and b.cost is not None else None
    return _Sum(counts, a.searches + b.searches, both, a.provider)


def _sum_of_turn(line: Object, run: _Run) -> dict[str, _Sum]:
    """Return the calls of a result of an older version, which has no modelUsage.

    Its usage is that of the turn, and its cost that of the process.
    """
    total = cost("total_cost_usd", line.get("total_cost_usd"))
    usage = line.get("usage")
    turn = anthropic.read_pass(usage) if isinstance(usage, dict) else Pass()
    searches = (turn.units or {}).get("web_searches", 0)
    if not total and not turn.total and not searches:
        return {}
    models = {response.model for response in run.responses.values()}
    models = models or {text(line.get("model")) or run.model or ""}
    model = _model(models.pop())
    if not model or models:
        raise BadUsageError("the result has no modelUsage, so no model is named")
    paid = None if run.has_result else total
    return {model: _Sum(turn[:4], searches, paid, _provider(model, {}))}


def _with_costs(line: Object, sums: dict[str, _Sum]) -> dict[str, _Sum]:
    """Return *sums* with the cost of the only model that states none.

    Raises: BadUsageError if the costs of the models are not the cost of all.
    """
    total = cost("total_cost_usd", line.get("total_cost_usd"))
    unknown = [model for model, one in sums.items() if one.cost is None]
    stated = sum((one.cost or Decimal(0) for one in sums.values()), start=Decimal(0))
    rest = Decimal(0) if total is None else total - stated
    if len(unknown) == 1 and rest > _MAX_ROUNDING:
        return {**sums, unknown[0]: sums[unknown[0]]._replace(cost=rest)}
    if total is not None and not (unknown and rest > 0) and abs(rest) > _MAX_ROUNDING:
        raise BadUsageError(
            f"the costs of modelUsage ({stated}) differ from total_cost_usd ({total})"
        )
    return sums


def _increase(
    line: Object, sums: dict[str, _Sum], before: dict[str, _Sum]
) -> dict[str, _Sum]:
    """Return what was used since the last result, if its process printed this one.

    Then the increase covers the usage of the turn; another process begins at zero.
    """
    if not before:
        return sums
    turn = anthropic.read_pass(inner(line, "usage"))
    rest = {model: _minus(one, before.get(model)) for model, one in sums.items()}
    if before.keys() - sums.keys():
        return sums
    if any(part < 0 for one in rest.values() for part in (*one.counts, one.cost or 0)):
        return sums
    increase = map(sum, zip(*(one.counts for one in rest.values()), strict=True))
    if any(own > most for own, most in zip(turn[:4], increase, strict=True)):
        return sums
    return rest


def _minus(one: _Sum, other: _Sum | None) -> _Sum:
    if other is None:
        return one
    counts = tuple(x - y for x, y in zip(one.counts, other.counts, strict=True))
    left = None
    if one.cost is not None:
        left = one.cost - (other.cost or 0)
    return _Sum(counts, one.searches - other.searches, left, one.provider)


def _take(sums: dict[str, _Sum], model: str, part: Pass) -> None:
    """Subtract a pass of a response, which is counted by itself."""
    if model not in sums:
        return
    known = sums[model]
    searches = (part.units or {}).get("web_searches", 0)
    counts = (max(0, x - y) for x, y in zip(known.counts, part[:4], strict=True))
    left = max(0, known.searches - searches)
    sums[model] = _Sum(tuple(counts), left, None, known.provider)


def _describe(
    line: Object, session: str | None, model: str, rest: _Sum, is_rest: bool
) -> ModelResponse:
    name = hashed_text(line.get("uuid"))
    second = name or str([line.get(key) for key in ("duration_ms", "total_cost_usd")])
    # Of a sum of calls, no call's tier is known.
    units = {"passes": 2}
    if rest.searches:
        units["web_searches"] = rest.searches
    fresh, written, read, output = rest.counts
    response = describe(
        [line],
        make_id("claude_code", session, second, model, is_rest),
        [Pass(fresh, written, read, output, 0, units)],
        model=model,
        provider=rest.provider,
        cost=None if is_rest else rest.cost,
        context={},
    )
    response = response._replace(session=session, is_sum=True)
    return _named(response, OUTPUT if is_rest else RESULT)


def _named(response: ModelResponse, source: str) -> ModelResponse:
    """Return *response* with the name of what it was printed in."""
    if response.client_id is None:
        return response
    name = name_run(source, response.client_id)
    return response._replace(client_request_id=name)
