"""Recordings of streams: the events of which a response consists."""

from __future__ import annotations

from collections.abc import Sequence

from pyapp.usage_import.fields import BadUsageError, Object
from pyapp.usage_import.formats.kinds import Format
from pyapp.usage_import.responses import ModelResponse

_PIECES = ("message_start", "message_delta")


class Stream(Format):
    """Events of Anthropic's streams."""

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Refuse a part of a response."""
        if line.get("type") in _PIECES:
            raise BadUsageError("part of a stream; only the whole response is counted")
        return None
