"""Rollouts of Codex CLI: the files of its sessions folder, one for each thread.

A `token_count` event has the counters of the thread so far (`total_token_usage`) and
the usage of its last call (`last_token_usage`). An event whose counters did not change
repeats the one before it. Newer versions write a `token_usage_record` for each call,
with the provider's response id, and the event after it describes the same call. The
input includes cached and written tokens, and the output includes reasoning. The model
and the tier are those of the last `turn_context` or `thread_settings_applied`.

A fork or a subagent begins with a copy of its parent's history, mostly with new
timestamps. The copy is not billed again: it ends at an ordinal that the thread names,
else at the first turn whose id, a UUIDv7, is not older than the thread, else at the
first pause, because the copy is written at once and a call takes time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    count,
    hashed_text,
    moment_at,
    text,
)
from pyapp.usage_import.formats.kinds import Format, Unfinished
from pyapp.usage_import.responses import ModelResponse, Pass, describe, make_id
from pyapp.usage_import.unknown import find_usage

# Types of the lines of a rollout; each has its content at `payload`.
_LINES = {
    "compacted",
    "event_msg",
    "inter_agent_communication",
    "realtime_item",
    "response_item",
    "retained_context",
    "session_meta",
    "token_usage_record",
    "turn_context",
    "world_state",
}
# Types of the events that `codex exec --json` prints.
_EXEC_LINES = {
    "item.completed",
    "item.started",
    "item.updated",
    "thread.started",
    "turn.failed",
    "turn.started",
}
# Types of what begins a turn and names it.
_TURNS = ("turn_context", "task_started", "turn_started")
# Calls of hosted tools, and the units that they are; the key names a kind of action.
_TOOLS = {
    "web_search_call": ("web_searches", "search"),
    "image_generation_call": ("image_generations", None),
}
# The tier of OpenAI's API that Codex requests in its fast mode.
_TIERS = {"fast": "priority"}
# Pause between two lines that are not of one copy.
_PAUSE = timedelta(seconds=1)


class _Usage(NamedTuple):
    """The counters of a thread, or the usage of a call."""

    input: int
    cached: int
    written: int
    output: int
    reasoning: int
    total: int

    @property
    def is_empty(self) -> bool:
        """Whether no call was billed; a full context has a total alone."""
        return not (self.input or self.output)

    @property
    def used(self) -> int:
        """All tokens."""
        return self.input + self.output

    def exceeds(self, other: _Usage) -> bool:
        """Whether a part is larger than that of *other*."""
        return any(mine > its for mine, its in zip(self[:4], other[:4], strict=True))

    def minus(self, other: _Usage) -> _Usage:
        """Return the differences."""
        return _Usage(*(a - b for a, b in zip(self, other, strict=True)))


_NOTHING = _Usage(0, 0, 0, 0, 0, 0)


@dataclass(slots=True)
class _Thread:
    """What a rollout said so far."""

    id: str | None = None
    created_at: datetime | None = None
    has_parent: bool = False
    is_copy: bool = False  # inside the history of another thread
    has_turn_ids: bool = False  # and that has turns older than the thread
    copied_at: datetime | None = None  # the time of the last copied line
    first_ordinal: int | None = None  # of the lines after the history
    provider: str | None = None
    model: str | None = None
    tier: str | None = None
    turn: str | None = None
    counters: _Usage | None = None
    seen: set[_Usage] = field(default_factory=set)
    tools: dict[str, int] = field(default_factory=dict)
    has_record: bool = False  # a record without its event
    last_counted: _Usage | None = None  # an event without its record
    missing: int = 0  # tokens of the counters that no line shows


class Rollout(Format):
    """A rollout, or several one after another."""

    def __init__(self) -> None:
        self._thread = _Thread()
        self._gaps: list[Unfinished] = []

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be a line of a rollout, or of `codex exec`."""
        return "payload" in keys or kind == "turn.completed" or kind in _EXEC_LINES

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the call that an event or a record describes."""
        kind = line.get("type")
        payload = line.get("payload")
        if not isinstance(payload, dict):
            return _read_exec(line, kind)
        if not isinstance(kind, str) or kind not in _LINES:
            return None
        if kind == "session_meta":
            self._begin(line, payload)
            return ()
        thread = self._thread
        if kind == "event_msg":
            kind = payload.get("type")
        if thread.is_copy:
            thread.is_copy = _is_copy(thread, line, kind, payload)
        if kind in _TURNS:
            thread.turn = text(payload.get("turn_id"))
            _set_model(thread, payload)
        elif kind == "thread_settings_applied":
            settings = payload.get("thread_settings")
            if isinstance(settings, dict):
                _set_model(thread, settings)
        elif kind == "response_item":
            _add_tool(thread, payload)
        elif kind == "token_count":
            found = _read_event(thread, line, payload)
            if thread.missing:
                reason = (
                    f"the counters of the thread have {thread.missing} tokens more than"
                    " its calls in this file"
                )
                self._gaps.append(Unfinished(number, reason))
                thread.missing = 0
            return found
        elif kind == "token_usage_record":
            return _read_record(thread, line, payload)
        return ()

    def finish(self) -> Iterable[Unfinished]:
        """Return where the counters show calls that are not in the file."""
        return self._gaps

    def _begin(self, line: Object, meta: Object) -> None:
        """Begin a thread, unless *meta* repeats it or is part of its history."""
        name = hashed_text(meta.get("id")) or hashed_text(meta.get("session_id"))
        before = self._thread
        is_inside = before.is_copy and before.has_parent
        if is_inside or (name is not None and name == before.id):
            return
        written_at = moment_at(line, "timestamp")
        created_at = _turn_time(name) or moment_at(meta, "timestamp") or written_at
        self._thread = _Thread(
            id=name,
            created_at=created_at,
            has_parent=_has_parent(meta),
            is_copy=True,
            copied_at=written_at or created_at,
            first_ordinal=_first_ordinal(meta),
            provider=text(meta.get("model_provider")),
        )


def _read_exec(line: Object, kind: object) -> Sequence[ModelResponse] | None:
    if not isinstance(kind, str):
        return None
    if kind == "turn.completed" and isinstance(line.get("usage"), dict):
        raise BadUsageError(
            "codex exec names neither the model nor the call; import its rollout, from"
            " the sessions folder of Codex"
        )
    return () if kind in _EXEC_LINES else None


def _has_parent(meta: Object) -> bool:
    source = meta.get("source")
    return bool(
        meta.get("forked_from_id")
        or meta.get("parent_thread_id")
        or (isinstance(source, dict) and source.get("subagent"))
    )


def _first_ordinal(meta: Object) -> int | None:
    """Return the ordinal of the first line that is not of the parent's history."""
    base = meta.get("history_base")
    first = meta.get("subagent_history_start_ordinal")
    if first is None and isinstance(base, dict):
        first = base.get("end_ordinal_exclusive")
    try:
        return None if first is None else int(first)
    except (OverflowError, TypeError, ValueError):
        return None


def _turn_time(name: str | None) -> datetime | None:
    """Return the time at which *name* was made, if it is a UUIDv7."""
    with suppress(OverflowError, ValueError):
        uuid = UUID(name or "")
        if uuid.version == 7:
            return datetime.fromtimestamp((uuid.int >> 80) / 1000, UTC)
    return None


def _is_copy(thread: _Thread, line: Object, kind: object, payload: Object) -> bool:
    """Tell whether *line* is of the history of another thread."""
    ordinal = line.get("ordinal")
    if thread.first_ordinal is not None and isinstance(ordinal, int):
        return ordinal < thread.first_ordinal
    created_at, written_at = thread.created_at, moment_at(line, "timestamp")
    if not thread.has_parent:
        # Older versions copy the history of a resumed thread, with its timestamps.
        return bool(written_at and created_at and written_at < created_at - _PAUSE)
    if kind in _TURNS:
        begun = _turn_time(text(payload.get("turn_id")))
        if begun is not None and created_at is not None:
            thread.has_turn_ids = begun < created_at
            return thread.has_turn_ids
    if thread.has_turn_ids or written_at is None:
        return True
    if thread.copied_at is None or written_at < thread.copied_at:
        return True
    is_next = written_at - thread.copied_at < _PAUSE
    thread.copied_at = written_at
    return is_next


def _set_model(thread: _Thread, settings: Object) -> None:
    thread.model = text(settings.get("model")) or thread.model
    provider = settings.get("model_provider_id") or settings.get("model_provider")
    thread.provider = text(provider) or thread.provider
    if "service_tier" in settings:
        tier = text(settings["service_tier"])
        thread.tier = _TIERS.get(tier, tier) if tier else None


def _add_tool(thread: _Thread, item: Object) -> None:
    """Count a call of a hosted tool for the call of the model that made it."""
    kind = item.get("type")
    if thread.is_copy or not isinstance(kind, str) or kind not in _TOOLS:
        return
    unit, wanted = _TOOLS[kind]
    action = item.get("action")
    done = action.get("type") if isinstance(action, dict) else None
    # A search is billed; opening one of its pages is not.
    if wanted is None or done is None or done == wanted:
        thread.tools[unit] = thread.tools.get(unit, 0) + 1


def _usage(usage: object) -> _Usage | None:
    """Return the counts of *usage*, or None if it is absent."""
    if usage is None:
        return None
    if not isinstance(usage, dict):
        raise BadUsageError("the token usage is not an object")
    return _Usage(
        count(usage, "input_tokens"),
        count(usage, "cached_input_tokens"),
        count(usage, "cache_write_input_tokens"),
        count(usage, "output_tokens"),
        count(usage, "reasoning_output_tokens"),
        count(usage, "total_tokens"),
    )


def _read_event(
    thread: _Thread, line: Object, event: Object
) -> Sequence[ModelResponse]:
    info = event.get("info")
    if not isinstance(info, dict):
        rest = {key: value for key, value in event.items() if key != "rate_limits"}
        if info is not None or find_usage(rest):
            raise BadUsageError("a token_count without the counters of its thread")
        return ()  # the event is about rate limits alone
    counters = _usage(info.get("total_token_usage"))
    last = _usage(info.get("last_token_usage"))
    if counters is None or counters == _NOTHING:
        counters = None
    elif counters in thread.seen:
        return ()
    used = _measure(thread, counters, last)
    thread.model = text(info.get("model")) or thread.model
    if counters is not None:
        thread.counters = counters
        thread.seen.add(counters)
    if used.is_empty or thread.is_copy:
        return ()
    if thread.has_record:
        thread.has_record = False
        return ()
    thread.last_counted = used
    written_at = moment_at(line, "timestamp")
    identity = _identify(thread, written_at, counters or used)
    return (_response(thread, identity, used, written_at, thread.turn),)


def _measure(thread: _Thread, counters: _Usage | None, last: _Usage | None) -> _Usage:
    """Return the usage of the last call, and note what the counters have beyond it."""
    before = thread.counters
    if counters is None:
        return last or _NOTHING
    if last is None:
        if before is None:
            # The counters of a fork begin with those of its parent.
            return _NOTHING if thread.is_copy else counters
        return counters if before.exceeds(counters) else counters.minus(before)
    if last.exceeds(counters):
        raise BadUsageError(
            f"last_token_usage ({last.used}) exceeds total_token_usage"
            f" ({counters.used})"
        )
    begin = counters.minus(last)
    # Another thread's events may stand between two of this one.
    if begin.is_empty or begin in thread.seen or thread.is_copy:
        return last
    if before is None:
        is_whole = thread.id is not None and not thread.has_parent
        thread.missing = begin.used if is_whole else 0
    elif not before.exceeds(counters):
        step = counters.minus(before)
        if last.exceeds(step):
            raise BadUsageError(
                f"last_token_usage ({last.used}) exceeds the step of total_token_usage"
                f" ({step.used})"
            )
        thread.missing = step.used - last.used
    return last


def _read_record(
    thread: _Thread, line: Object, record: Object
) -> Sequence[ModelResponse]:
    used = _usage(record.get("usage"))
    owner = text(record.get("thread_id"))
    if thread.is_copy or (owner and thread.id and owner != thread.id):
        return ()
    if used is None:
        raise BadUsageError("a token_usage_record without its usage")
    if used.is_empty:
        return ()
    if thread.last_counted == used:
        thread.last_counted = None
        return ()
    thread.has_record = True
    written_at = moment_at(line, "timestamp")
    response = hashed_text(record.get("response_id"))
    identity = make_id("codex", response)
    if response is None:
        identity = _identify(thread, written_at, used)
    return (_response(thread, identity, used, written_at, response),)


def _identify(thread: _Thread, at: datetime | None, usage: _Usage) -> bytes:
    """Return the id of a call without a response's id."""
    return make_id("codex", thread.id, at and at.isoformat(), *usage)


def _response(
    thread: _Thread,
    identity: bytes,
    used: _Usage,
    finished_at: datetime | None,
    request: str | None,
) -> ModelResponse:
    if thread.model is None:
        raise BadUsageError("no turn_context before it names the model")
    tools, thread.tools = thread.tools, {}
    return describe(
        [{"session_id": thread.id, "request_id": request}],
        identity,
        [_pass(used, tools)],
        model=thread.model,
        provider=thread.provider,
        finished_at=finished_at,
        context={"service_tier": thread.tier} if thread.tier else {},
    )


def _pass(used: _Usage, tools: dict[str, int]) -> Pass:
    if used.cached + used.written > used.input:
        raise BadUsageError(
            f"cached tokens ({used.cached + used.written}) exceed input_tokens"
            f" ({used.input})"
        )
    output = used.output
    if used.reasoning > output:
        raise BadUsageError(
            f"reasoning_output_tokens ({used.reasoning}) exceed output_tokens"
            f" ({output})"
        )
    # OpenAI's output includes reasoning; some versions add it to the total once more.
    allowed = (0, used.input + output, used.input + output + used.reasoning)
    if used.total not in allowed:
        raise BadUsageError(
            f"input_tokens and output_tokens ({used.input + output}) differ from"
            f" total_tokens ({used.total})"
        )
    fresh = used.input - used.cached - used.written
    return Pass(fresh, used.written, used.cached, output, 0, tools or None)
