"""Sessions that write the usage of one payer at once, and the rows that they write."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID

import psycopg

from pyapp._core.connection import connect
from tests.metering import add_user, insert_messages, new_message

Sessions: TypeAlias = list[psycopg.Connection[Any]]

NOON = datetime(2026, 3, 5, 12, tzinfo=UTC)
DAY = NOON.date()
# Without a boundary on that day.
ANCHOR = datetime(2026, 1, 20, tzinfo=UTC)
OPENED_SLOTS = 31


@contextmanager
def open_sessions(url: str, count: int = 4) -> Iterator[Sessions]:
    """Yield *count* sessions that open different slots."""
    with ExitStack() as stack:
        found: dict[int, psycopg.Connection[Any]] = {}
        while len(found) < count:
            conn = stack.enter_context(closing(connect(url)))
            conn.execute("SET lock_timeout = '10s'")
            conn.commit()
            found.setdefault(own_slot(conn), conn)
        yield list(found.values())


def record(conn: psycopg.Connection, user: UUID, *moments: datetime) -> None:
    """Insert a message of one credit at each of *moments*, by one statement."""
    insert_messages(
        conn, [new_message(user_id=user, finished_at=moment) for moment in moments]
    )


def add_payer(conn: psycopg.Connection, **columns: object) -> UUID:
    """Add a user without a boundary on DAY, and commit."""
    user = add_user(conn, **{"quota_anchor": ANCHOR, **columns})
    conn.commit()
    return user


def add_slots(sessions: Sessions, user: UUID, moment: datetime = NOON) -> None:
    """Let each session add a message to a row of its own, by locking the others."""
    for session in sessions:
        if session is not sessions[0]:
            sessions[0].execute(
                "SELECT FROM app.usage_slots WHERE subject_id = %s FOR UPDATE", [user]
            )
        record(session, user, moment)
        session.commit()
    sessions[0].commit()


def rows_of(conn: psycopg.Connection, user: UUID) -> list[tuple[Any, ...]]:
    """Return start, end and messages of the rows of a payer, and commit."""
    found = conn.execute(
        "SELECT starts_at, ends_at, messages FROM app.usage_slots"
        " WHERE subject_id = %s ORDER BY starts_at, ends_at, slot",
        [user],
    ).fetchall()
    conn.commit()
    return found


def slots_of(conn: psycopg.Connection, user: UUID) -> list[tuple[int, int]]:
    """Return slot and messages of the rows of a payer, and commit."""
    found = conn.execute(
        "SELECT slot, messages FROM app.usage_slots WHERE subject_id = %s ORDER BY 1",
        [user],
    ).fetchall()
    conn.commit()
    return found


def own_slot(conn: psycopg.Connection) -> int:
    """Return the slot that this session opens when all rows are locked."""
    return 1 + conn.info.backend_pid % OPENED_SLOTS
