"""Keeps records of the same calls in several imports from being billed twice.

A session of Claude Code may be imported from its file, which has each call, from the
output of its runs, which has each call as it began, or from their results alone, which
are sums. Of a file and a result in one import, the reader leaves out the result. Beyond
that, a session is recorded from one of the three: what another one has is reported and
not recorded. Calls of a file after those of an output have the same ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import fetch_all
from pyapp.usage import get_client_usage, get_request_usage
from pyapp.usage_import.formats.claude_code import OUTPUT, RESULT, name_run
from pyapp.usage_import.reader import ReadMessage

_FILE = "file of "


class _Recorded(NamedTuple):
    id: UUID


def leave_out_recorded(
    conn: Connection[Any], subject_id: UUID, batch: list[ReadMessage]
) -> list[ReadMessage]:
    """Return *batch* without the messages that an earlier version recorded."""
    ids = [each.former_id for each in batch if each.former_id is not None]
    if not ids:
        return batch
    rows = fetch_all(
        conn, _Recorded, "list_recorded_ids", subject_id=subject_id, ids=ids
    )
    recorded = {row.id for row in rows}
    return [each for each in batch if each.former_id not in recorded]


class RecordedRuns:
    """The sessions of a payer, and what each was recorded from."""

    def __init__(self, conn: Connection[Any], subject_id: UUID) -> None:
        self._conn = conn
        self._subject_id = subject_id
        self._read: dict[str, str] = {}  # the first source in this import
        self._reasons: dict[tuple[str, str], str | None] = {}
        self._reported: set[tuple[str, str]] = set()

    def find_reason(self, read: ReadMessage) -> str | None:
        """Return why a message is not recorded, or None if it is.

        The reason is empty for further messages of the same session and source.
        """
        request = read.message.client_request_id or ""
        source = next((s for s in (OUTPUT, RESULT) if request.startswith(s)), _FILE)
        session = read.session if source == _FILE else read.message.client_id
        if session is None:
            return None
        key = (session, source)
        if key not in self._reasons:
            self._reasons[key] = self._find(session, source)
        reason = self._reasons[key]
        if reason is None or key not in self._reported:
            self._reported.add(key)
            return reason
        return ""

    def _find(self, session: str, source: str) -> str | None:
        other = self._find_other(session, source)
        if other is None:
            self._read.setdefault(session, source)
            return None
        return f"not recorded again: session {session} was recorded by the {other}"

    def _find_other(self, session: str, source: str) -> str | None:
        """Return the other source that the session was recorded from."""
        results = self._count(RESULT, session)
        if source == _FILE:
            return "result of its run" if results else None
        first = self._read.get(session, source)
        if first != source:
            return f"{first}its run"
        outputs = self._count(OUTPUT, session)
        recorded = get_client_usage(
            self._conn, client_id=session, subject_id=self._subject_id
        ).total.messages
        if recorded > results + outputs:
            return "calls in its file"
        if source == RESULT and outputs:
            return "output of its run"
        return "result of its run" if source == OUTPUT and results else None

    def _count(self, source: str, session: str) -> int:
        """Return the number of messages recorded from *source*."""
        return get_request_usage(
            self._conn,
            client_request_id=name_run(source, session),
            subject_id=self._subject_id,
        ).total.messages
