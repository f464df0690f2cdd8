"""Messages one by one and by page."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp.errors import MessageNotFoundError
from pyapp.messages import (
    get_message,
    list_messages,
    record_message,
)
from tests.metering import MICROSECOND

COST = Decimal("0.01")
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_missing_message_is_an_error(conn: psycopg.Connection, user_id: UUID):
    with pytest.raises(MessageNotFoundError):
        get_message(conn, subject_id=user_id, message_id=uuid4())


def test_pages_continue_between_messages_of_the_same_time(
    conn: psycopg.Connection, user_id: UUID
):
    for n in range(12):
        at = NOON - timedelta(seconds=n // 4)
        record_message(conn, user_id=user_id, model="m", cost=COST, finished_at=at)

    pages, page = [], list_messages(conn, subject_id=user_id, limit=5)
    while page:
        pages.append(page)
        last = page[-1]
        page = list_messages(
            conn,
            subject_id=user_id,
            before=last.finished_at,
            before_id=last.id,
            limit=5,
        )

    found = [message for page in pages for message in page]
    assert [len(page) for page in pages] == [5, 5, 2]
    assert len({message.id for message in found}) == 12
    assert found == sorted(found, key=lambda m: (m.finished_at, m.id), reverse=True)
    earlier = list_messages(conn, subject_id=user_id, before=NOON)
    assert earlier == found[4:]
    assert list_messages(conn, subject_id=user_id, before=NOON + MICROSECOND) == found
