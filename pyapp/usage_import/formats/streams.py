"""Recordings of streams, whose events together are a response.

Anthropic's `message_start` has the model and the input, and `message_delta` the counts
so far; both may be inside another object, such as a `stream_event` of Claude Code.
OpenAI's realtime sessions name the model in an event, and `response.done` has the
usage. The events of other streams contain a whole response, which is a body. A stream
without usage, for which its client did not ask, is reported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    count,
    hashed_text,
    inner,
    text,
)
from pyapp.usage_import.formats import anthropic, openai
from pyapp.usage_import.formats.kinds import Format, Unfinished
from pyapp.usage_import.responses import (
    ModelResponse,
    Pass,
    describe,
    identify,
)

# Keys of an object around an event, and of the ids that identify its stream.
_ENVELOPES = ("event", "data", "chunk")
_STREAM_IDS = ("request_id", "session_id", "parent_tool_use_id", "stream_id")
_CHUNKS = ("chat.completion.chunk", "text_completion")
_ENDS = {
    "response.cancelled",
    "response.completed",
    "response.done",
    "response.failed",
    "response.incomplete",
}
_OTHER_EVENTS = {
    "content_block_delta",
    "content_block_start",
    "content_block_stop",
    "message_stop",
    "ping",
}
_EVENTS = {*_OTHER_EVENTS, "message_start", "message_delta"}
# Details of realtime usage, and their units.
_INPUT_UNITS = {
    "audio_tokens": "input_audio_tokens",
    "image_tokens": "input_image_tokens",
}
_CACHE_UNITS = {
    "audio_tokens": "cache_audio_read_tokens",
    "image_tokens": "cache_image_read_tokens",
}
_OUTPUT_UNITS = {"audio_tokens": "output_audio_tokens"}


class Messages(Format):
    """Events of Anthropic's streams; streams of one file may overlap."""

    def __init__(self) -> None:
        # Of each stream, the messages without their usage yet, with their lines.
        self._begun: dict[tuple[str | None, ...], list[tuple[Object, int]]] = {}
        self._given: dict[tuple[str | None, ...], Object] = {}

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be an event, in an envelope or not."""
        return kind in _EVENTS or any(key in keys for key in _ENVELOPES)

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the message of a `message_delta`, whose counts may still grow."""
        event, kind = line, line.get("type")
        for key in _ENVELOPES:
            part = line.get(key)
            if isinstance(part, dict):
                event, kind = part, part.get("type")
                break
        if kind == "message_start" and isinstance(event.get("message"), dict):
            self._begin(_stream(line), event["message"], number)
            return ()
        if kind == "message_delta" and "delta" in event:
            return self._go_on(_stream(line), line, event)
        if kind == "message_stop":
            self._given.pop(_stream(line), None)
        return () if isinstance(kind, str) and kind in _OTHER_EVENTS else None

    def finish(self) -> Iterable[Unfinished]:
        """Return the messages whose usage is not in the file."""
        for begun in self._begun.values():
            for message, number in begun:
                name = str(message.get("id"))[:100]
                yield Unfinished(
                    number, f"the stream ends before the usage of {name!a}"
                )

    def _begin(
        self, stream: tuple[str | None, ...], message: Object, number: int
    ) -> None:
        begun = self._begun.setdefault(stream, [])
        name = message.get("id")
        if not any(before.get("id") == name for before, _ in begun):
            # The content of a stream is in its other events.
            begun.append(({**message, "content": []}, number))

    def _go_on(
        self, stream: tuple[str | None, ...], line: Object, event: Object
    ) -> Sequence[ModelResponse]:
        begun, delta = self._begun.get(stream), inner(event, "usage")
        if delta.get("output_tokens") is None:
            return ()  # the stream still has no usage
        if begun:
            message, _ = begun.pop()
            self._given[stream] = message
            if not begun:
                del self._begun[stream]
        elif stream in self._given:
            message = self._given[stream]
        else:
            raise BadUsageError("message_delta without its message_start")
        given = inner(message, "usage")
        whole = dict(message)
        whole["usage"] = {**given, **_merged(given, delta)}
        whole["stop_reason"] = inner(event, "delta").get("stop_reason") or "unknown"
        self._given[stream] = whole
        response = anthropic.BODY.read([line, whole])
        return () if response is None else (response,)


def _stream(line: Object) -> tuple[str | None, ...]:
    return tuple(text(line.get(key)) for key in _STREAM_IDS)


def _merged(before: Object, after: Object) -> Object:
    """Return the values of *after*, whose counts are those of the whole message.

    They are never below those of *before*, except where the first pass was a compaction
    and is listed in the iterations.
    """
    stated = {key: value for key, value in after.items() if value is not None}
    if "iterations" in stated:
        return stated
    for key in stated:
        if key.endswith("_tokens"):
            stated[key] = max(count(stated, key), count(before, key))
    return stated


class _Begun(NamedTuple):
    """A stream without usage so far: its line and its model.

    `is_one` is false for a single chunk: some servers give each chunk another id.
    """

    line: int
    model: object
    is_one: bool


class Chunks(Format):
    """Streams of OpenAI's shapes: those without usage, or with it in another place.

    The usage of the others is in a body.
    """

    def __init__(self) -> None:
        self._begun: dict[str, _Begun] = {}
        self._ended: set[str] = set()
        self._models: list[object] = []  # of streams with usage

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be a chunk, or the first or last event of a response."""
        is_chunk = kind is None and "choices" in keys
        return is_chunk or kind == "response.created" or kind in _ENDS

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Note which streams have begun and ended; return the response of Groq's."""
        kind = line.get("type")
        response = line.get("response")
        if kind is None and line.get("object") in _CHUNKS:
            groq = inner(line, "x_groq")
            usage = groq.get("usage") or _usage_of_choice(line)
            self._note(line, number, bool(line.get("usage") or usage))
            if usage and not line.get("usage"):
                found = openai.BODY.read([{**line, "usage": usage}])
                if found is not None and groq:
                    found = found._replace(provider="groq")
                return () if found is None else (found,)
        elif isinstance(response, dict):
            self._note(response, number, kind != "response.created")
        return None

    def finish(self) -> Iterable[Unfinished]:
        """Return the streams without usage; a client has to ask for it."""
        for name, begun in self._begun.items():
            if not begun.is_one:
                if begun.model in self._models:
                    continue
                self._models.append(begun.model)
            yield Unfinished(begun.line, f"the stream of {name[:100]!a} has no usage")

    def _note(self, response: Object, number: int, has_ended: bool) -> None:
        name, model = response.get("id"), response.get("model")
        if not isinstance(name, str):
            return
        if has_ended:
            self._begun.pop(name, None)
            self._ended.add(name)
            if model not in self._models:
                self._models.append(model)
        elif name in self._begun:
            self._begun[name] = self._begun[name]._replace(is_one=True)
        elif name not in self._ended:
            self._begun[name] = _Begun(
                number, model, response.get("object") == "response"
            )


def _usage_of_choice(chunk: Object) -> object:
    """Return the usage in the first choice, where Moonshot's last chunk has it."""
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first.get("usage") if isinstance(first, dict) else None


class Realtime(Format):
    """Events of OpenAI's realtime sessions."""

    def __init__(self) -> None:
        self._model: str | None = None

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be an event of a session."""
        return kind in ("session.created", "session.updated", "response.done")

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the response of a `response.done`."""
        kind = line.get("type")
        if kind in ("session.created", "session.updated"):
            session = line.get("session")
            if isinstance(session, dict):
                self._model = text(session.get("model")) or self._model
            return ()
        response = line.get("response")
        if not isinstance(response, dict) or kind != "response.done":
            return None
        usage = response.get("usage")
        if response.get("object") != "realtime.response":
            return None
        if not usage and response.get("status") != "completed":
            return ()
        model = text(response.get("model")) or self._model
        if model is None:
            raise BadUsageError("no session.created before it names the model")
        chain = [line, response]
        return (
            describe(
                chain,
                identify(chain, "openai"),
                [_realtime_pass(inner(response, "usage"))],
                model=model,
                former_id=_former_id(response),
            ),
        )


def _former_id(response: Object) -> bytes | None:
    """Return the id of earlier versions, which took the usage for Anthropic's."""
    name = hashed_text(response.get("id"))
    return None if name is None else anthropic.make_message_id(name)


def _realtime_pass(usage: Object) -> Pass:
    read_from = inner(usage, "input_token_details")
    cached_parts = inner(read_from, "cached_tokens_details")
    written_to = inner(usage, "output_token_details")
    prompt = count(usage, "input_tokens", required=True)
    output = count(usage, "output_tokens", required=True)
    total = count(usage, "total_tokens")
    cached = count(read_from, "cached_tokens")
    if total and total != prompt + output:
        raise BadUsageError(
            f"input_tokens and output_tokens ({prompt + output}) differ from"
            f" total_tokens ({total})"
        )
    if cached > prompt:
        raise BadUsageError(f"cached_tokens ({cached}) exceed input_tokens ({prompt})")
    units: dict[str, int] = {}
    for part, names in (
        (read_from, _INPUT_UNITS),
        (cached_parts, _CACHE_UNITS),
        (written_to, _OUTPUT_UNITS),
    ):
        units |= {unit: n for key, unit in names.items() if (n := count(part, key))}
    return Pass(prompt - cached, 0, cached, output, 0, units or None)
