"""Sessions of Claude Code; the responses in them are Anthropic's."""

from __future__ import annotations

from collections.abc import Sequence

from pyapp.usage_import.fields import Object
from pyapp.usage_import.formats.kinds import Format
from pyapp.usage_import.responses import ModelResponse

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


class Result(Format):
    """The last line of a run, which sums up the run's calls."""

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Leave the sum out: the calls are counted."""
        return () if line.get("type") == "result" else None


def is_session_line(line: Object) -> bool:
    """Tell whether *line* is of a session, such as a user's turn."""
    kind = line.get("type")
    if not isinstance(kind, str) or kind not in _TYPES:
        return False
    return isinstance(line.get("message"), dict) or not _MARKS.isdisjoint(line)
