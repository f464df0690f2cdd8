"""Keeps two records of the same calls in different imports from being billed twice.

A run of Claude Code may be imported from the file of its session, which has each call,
or from its result alone, which is their sum. Within one import the reader leaves the
sum out. Here is what earlier imports recorded: a call of a session with a recorded
result, or a result of a session with recorded calls, is reported and not recorded.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from psycopg import Connection

from pyapp.usage import get_client_usage, get_request_usage
from pyapp.usage_import.formats.claude_code import name_result
from pyapp.usage_import.reader import ReadMessage


class RecordedRuns:
    """The sessions of a payer that are recorded by calls, or by results."""

    def __init__(self, conn: Connection[Any], subject_id: UUID) -> None:
        self._conn = conn
        self._subject_id = subject_id
        self._reasons: dict[tuple[str, bool], str | None] = {}
        self._reported: set[tuple[str, bool]] = set()

    def find_reason(self, read: ReadMessage) -> str | None:
        """Return why a message is not recorded, or None if it is.

        The reason is empty for further messages of the same session.
        """
        session = read.session
        if session is None:
            return None
        is_result = read.message.client_request_id == name_result(session)
        key = (session, is_result)
        if key not in self._reasons:
            self._reasons[key] = self._find(session, is_result)
        reason = self._reasons[key]
        if reason is None or key not in self._reported:
            self._reported.add(key)
            return reason
        return ""

    def _find(self, session: str, is_result: bool) -> str | None:
        results = get_request_usage(
            self._conn,
            client_request_id=name_result(session),
            subject_id=self._subject_id,
        ).total.messages
        if not is_result:
            return (
                f"not recorded again: session {session} was recorded by its result"
                if results
                else None
            )
        recorded = get_client_usage(
            self._conn, client_id=session, subject_id=self._subject_id
        ).total.messages
        if recorded == results:
            return None
        return f"not recorded again: session {session} was recorded by its calls"
