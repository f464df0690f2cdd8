"""Sessions of Claude Code; the responses in them are Anthropic's."""

from __future__ import annotations

from collections.abc import Sequence

from pyapp.usage_import.fields import Object
from pyapp.usage_import.formats.kinds import Format
from pyapp.usage_import.responses import ModelResponse

_TYPES = {
    "assistant",
    "attachment",
    "custom-title",
    "file-history-snapshot",
    "last-prompt",
    "progress",
    "queue-operation",
    "summary",
    "system",
    "tag",
    "user",
}


class Result(Format):
    """The last line of a run, which sums up the run's calls."""

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Leave the sum out: the calls are counted."""
        return () if line.get("type") == "result" else None


def is_session_line(line: Object) -> bool:
    """Tell whether *line* is of a session, such as a user's turn."""
    kind = line.get("type")
    return isinstance(kind, str) and kind in _TYPES
