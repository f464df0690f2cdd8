"""Sessions and telemetry of Gemini CLI.

A session (`~/.gemini/tmp/*/chats`) is one object with all messages, or a line for each
message, which later lines repeat with more counts. The telemetry log has an event for
each response. Both count as the Gemini API does: the input includes cached tokens, and
thoughts and the results of tools are apart. The statistics that `gemini -p` prints are
sums of calls, whose prices depend on each call.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from pyapp.usage_import.fields import BadUsageError, Object, count, hashed_text, text
from pyapp.usage_import.formats.kinds import Lists
from pyapp.usage_import.responses import ModelResponse, Pass, describe, make_id

_RESPONSE = "gemini_cli.api_response"
# Types of the messages of a session that are not of a model.
_OTHERS = ("error", "info", "user", "warning")


class _Fields(NamedTuple):
    """The names of the counts."""

    input: str
    output: str
    cached: str
    thoughts: str
    tools: str
    total: str


_SESSION = _Fields("input", "output", "cached", "thoughts", "tool", "total")
_TELEMETRY = _Fields(
    "input_token_count",
    "output_token_count",
    "cached_content_token_count",
    "thoughts_token_count",
    "tool_token_count",
    "total_token_count",
)


_MESSAGE_KEYS = frozenset(("id", "timestamp", "content"))
# Keys of which a line has at least one, if its type does not say what it is.
_KEYS = ("projectHash", "messages", "$set", "$rewindTo", "attributes", "stats")


class Session(Lists):
    """A session's file, or a telemetry log."""

    def __init__(self) -> None:
        super().__init__()
        self._session: str | None = None

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether it can be of a session or of the telemetry log."""
        if kind == "gemini" or any(key in keys for key in _KEYS):
            return True
        return kind in _OTHERS and _MESSAGE_KEYS.issubset(keys)

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the responses of a session's line, or of its whole object."""
        if line.get("type") == "gemini":
            return (self._read_message(line),) if line.get("tokens") else ()
        if "projectHash" in line or ("sessionId" in line and "messages" in line):
            self._session = text(line.get("sessionId"))
            return self._read_messages(line.get("messages"), number)
        if "$set" in line:
            changes = line["$set"]
            messages = changes.get("messages") if isinstance(changes, dict) else None
            return self._read_messages(messages, number)
        if "$rewindTo" in line or _is_message(line):
            return ()
        if isinstance(line.get("attributes"), dict):
            return _read_event(line["attributes"])
        stats = line.get("stats")
        if isinstance(stats, dict) and "models" in stats:
            raise BadUsageError(
                "a sum of calls; import the session, from the tmp folder of Gemini CLI"
            )
        return None

    def _read_messages(self, messages: object, number: int) -> Sequence[ModelResponse]:
        listed = messages if isinstance(messages, list) else []
        parts = [m for m in listed if isinstance(m, dict) and m.get("tokens")]
        return self.read_each(parts, number, self._read_message)

    def _read_message(self, message: Object) -> ModelResponse:
        tokens, kind = message["tokens"], message.get("type")
        if kind != "gemini":
            raise BadUsageError(f"tokens in a message of type {str(kind)[:100]!a}")
        name = hashed_text(message.get("id"))
        if name is None:
            raise BadUsageError("no id: repeats of the response could not be detected")
        if not isinstance(tokens, dict):
            raise BadUsageError("tokens is not an object")
        return describe(
            [{"session_id": self._session, "timestamp": message.get("timestamp")}],
            make_id("gemini_cli", self._session, name),
            [_pass(tokens, _SESSION)],
            model=text(message.get("model")),
            provider="google",
            context={},
        )


def _is_message(line: Object) -> bool:
    return line.get("type") in _OTHERS and line.keys() >= _MESSAGE_KEYS


def _read_event(event: Object) -> Sequence[ModelResponse] | None:
    """Return the response of an event of the telemetry log."""
    name = event.get("event.name")
    if not isinstance(name, str) or not name.startswith("gemini_cli."):
        return None
    if name != _RESPONSE:
        return ()
    session = text(event.get("session.id"))
    at, prompt = event.get("event.timestamp"), text(event.get("prompt_id"))
    used = _pass(event, _TELEMETRY)
    return (
        describe(
            [{"session_id": session, "request_id": prompt, "timestamp": at}],
            make_id("gemini_cli", session, prompt, at, used[:4]),
            [used],
            model=text(event.get("model")),
            provider="google",
            context={},
        ),
    )


def _pass(tokens: Object, fields: _Fields) -> Pass:
    prompt, output, cached, thoughts, tools, total = (
        count(tokens, key) for key in fields
    )
    counted = prompt + output + thoughts + tools
    if total and total != counted:
        raise BadUsageError(
            f"the counts of the tokens ({counted}) differ from {fields.total} ({total})"
        )
    if cached > prompt:
        raise BadUsageError(
            f"{fields.cached} ({cached}) exceeds {fields.input} ({prompt})"
        )
    return Pass(prompt - cached + tools, 0, cached, output + thoughts)
