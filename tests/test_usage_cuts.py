"""Cuts, folds and repairs of usage_slots while other sessions write.

Reports of wrong sums are in test_data_check.py.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from functools import partial
from threading import Barrier, Event
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import errors, sql

from pyapp.quota import get_user_quota
from tests.metering import add_months, usage_differences
from tests.usage_sessions import (
    DAY,
    NOON,
    Sessions,
    add_payer,
    add_slots,
    open_sessions,
    own_slot,
    record,
    rows_of,
    slots_of,
)
from tests.waiting import run_blocked, wait_for_lock


@pytest.fixture
def sessions(module_database: str) -> Iterator[Sessions]:
    """Return four sessions that open different slots."""
    with open_sessions(module_database) as found:
        yield found


def cut(conn: psycopg.Connection, user: UUID) -> int:
    """Cut the days of a payer, and commit; return their number."""
    row = conn.execute("SELECT app.cut_usage(%s)", [user]).fetchone()
    conn.commit()
    assert row is not None
    return int(row[0])


def fold(conn: psycopg.Connection, user: UUID) -> int:
    """Fold the past days of a payer, and commit; return the number of rows removed."""
    row = conn.execute(
        """
        SELECT COALESCE(sum(app.fold_usage(u.subject_id, u.starts_at, u.ends_at)), 0)
        FROM app.unfolded_usage AS u
        WHERE u.subject_id = %s
        """,
        [user],
    ).fetchone()
    conn.commit()
    assert row is not None
    return int(row[0])


def now_and_day() -> tuple[datetime, datetime]:
    """Return a moment of today, hours away from midnight if possible, and midnight."""
    now = datetime.now(UTC)
    return now, now.replace(hour=0, minute=0, second=0, microsecond=0)


def move_anchor(conn: psycopg.Connection, user: UUID, anchor: datetime) -> None:
    """Move the period of a user, and commit."""
    conn.execute(
        "UPDATE app.users SET quota_anchor = %s, next_quota_reset = %s WHERE id = %s",
        [anchor, add_months(anchor, 1), user],
    )
    conn.commit()


def test_cut_splits_the_rows_at_the_anchor(sessions: Sessions):
    """Of several moves on one day, the last counts."""
    conn = sessions[0]
    now, midnight = now_and_day()
    moments = [midnight + (now - midnight) * n / 8 for n in range(9)]
    user = add_payer(conn)
    for session in sessions:
        record(session, user, *moments)
        session.commit()
    for n in (6, 2, 5):
        move_anchor(conn, user, moments[n])
        assert cut(conn, user) == 1

    end = midnight + timedelta(days=1)
    assert rows_of(conn, user) == [(midnight, moments[5], 20), (moments[5], end, 16)]
    assert cut(conn, user) == 0
    assert get_user_quota(conn, user_id=user).credits_used == 16
    assert usage_differences(conn, [user]) == []


def test_cut_is_of_the_next_boundary_too(sessions: Sessions):
    """Messages can be up to 24 hours ahead."""
    conn, (now, midnight) = sessions[0], now_and_day()
    tomorrow = midnight + timedelta(days=1)
    user = add_payer(conn)
    ahead = tomorrow + (now - midnight) * 0.9
    record(conn, user, tomorrow, ahead)
    conn.commit()
    boundary = tomorrow + (ahead - tomorrow) / 2
    move_anchor(conn, user, add_months(boundary, -1))

    assert cut(conn, user) == 1

    assert [row[2] for row in rows_of(conn, user)] == [1, 1]
    assert usage_differences(conn, [user]) == []


def test_day_with_wrong_sums_is_not_cut(sessions: Sessions):
    """A cut neither hides nor moves a difference; a repair cuts too."""
    conn, (now, midnight) = sessions[0], now_and_day()
    user = add_payer(conn)
    record(conn, user, midnight, now)
    conn.commit()
    move_anchor(conn, user, midnight + (now - midnight) / 2)
    for change in ("credits = credits + 5", "messages = 1", "input_tokens = 0"):
        conn.execute("SET LOCAL session_replication_role = replica")
        conn.execute(
            f"UPDATE app.usage_slots SET {change} WHERE subject_id = '{user}'".encode()
        )
        conn.commit()
        before = rows_of(conn, user)

        assert cut(conn, user) == 0
        assert rows_of(conn, user) == before
        assert len(usage_differences(conn, [user])) == 2

    conn.execute("SELECT app.repair_usage_day(%s, %s)", [user, now.date()])
    conn.commit()
    assert [row[2] for row in rows_of(conn, user)] == [1, 1]
    assert usage_differences(conn, [user]) == []


def test_cut_waits_for_writers_as_long_as_its_time_limit(sessions: Sessions):
    writer, cutter, *_ = sessions
    now, midnight = now_and_day()
    user = add_payer(writer)
    record(writer, user, midnight, now)
    writer.commit()
    move_anchor(writer, user, midnight + (now - midnight) / 2)
    record(writer, user, now)

    cutter.execute("SET LOCAL lock_timeout = '20ms'")
    with pytest.raises(errors.LockNotAvailable):
        cut(cutter, user)
    cutter.rollback()

    assert run_blocked(writer, cutter, cut, user=user) == 1
    assert usage_differences(writer, [user]) == []


def test_cut_while_others_write_leaves_no_row_across_the_boundary(sessions: Sessions):
    """A writer that read the former anchor can open one; the next cut removes it."""
    conn, (now, midnight) = sessions[0], now_and_day()
    user, start, done = add_payer(conn), Barrier(4, timeout=60), Event()
    moments = [midnight + (now - midnight) * n / 50 for n in range(50)]

    def write(seed: int, session: psycopg.Connection[Any]) -> None:
        start.wait()
        for count in itertools.count():
            record(session, user, *moments[seed :: 7 + count % 40][: 1 + count % 3])
            session.commit()
            if done.is_set():
                break

    with ThreadPoolExecutor(3) as threads:
        writers = [threads.submit(write, *pair) for pair in enumerate(sessions[1:])]
        try:
            start.wait()
            for n in (30, 10, 20, 40, 5, 35, 15, 25):
                move_anchor(conn, user, moments[n])
                tries = 1
                while cut(conn, user) or uncut(conn, user):
                    tries += 1
                assert tries < 100
        finally:
            done.set()
        for writer in writers:
            writer.result()

    assert not uncut(conn, user)
    assert usage_differences(conn, [user]) == []


def uncut(conn: psycopg.Connection, user: UUID) -> list[tuple[date]]:
    """Return the days of a payer that have rows across a boundary, and commit."""
    found = conn.execute(
        "SELECT day FROM app.uncut_usage WHERE subject_id = %s", [user]
    ).fetchall()
    conn.commit()
    return found


def test_two_cuts_of_a_day_with_a_new_row_do_not_deadlock(sessions: Sessions):
    """The first cut finds the row in its second round, when the other has locked it."""
    writer, *cutters, opener = sessions
    now, midnight = now_and_day()
    user = add_payer(writer)
    record(writer, user, midnight, now)
    writer.commit()
    move_anchor(writer, user, midnight + (now - midnight) / 2)
    # Both rows of slot 0. They do not change, so sessions lock them in turn.
    lock = "SELECT FROM app.usage_slots WHERE subject_id = %s FOR UPDATE"
    writer.execute(lock, [user])
    record(opener, user, now)
    opener.commit()
    writer.execute(lock, [user])

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cut, cutters[0], user)
        wait_for_lock(writer, cutters[0])
        record(opener, user, now)
        opener.commit()
        second = threads.submit(cut, cutters[1], user)
        wait_for_lock(writer, cutters[1])
        writer.commit()
        assert first.result() + second.result() == 1

    assert not uncut(writer, user)
    assert usage_differences(writer, [user]) == []


def test_fold_leaves_one_row_for_each_span(sessions: Sessions):
    """Spans of different lengths on one day are kept apart."""
    conn = sessions[0]
    user = add_payer(conn)
    add_slots(sessions, user)
    move_anchor(conn, user, NOON)
    for moment in (NOON - timedelta(hours=1), NOON, NOON - timedelta(days=1)):
        add_slots(sessions, user, moment)
    spans = [row[:2] for row in rows_of(conn, user)]

    assert fold(conn, user) == len(spans) - 4

    assert [row[:2] for row in rows_of(conn, user)] == sorted(set(spans))
    assert fold(conn, user) == 0
    assert usage_differences(conn, [user]) == []


def test_fold_skips_locked_rows_and_never_waits(sessions: Sessions):
    """Rows of the current day are not folded."""
    writer, conn, *_ = sessions
    user, today = add_payer(writer), add_payer(writer)
    add_slots(sessions, user)
    add_slots(sessions, today, datetime.now(UTC))
    record(writer, user, NOON)
    conn.execute("SET lock_timeout = '1ms'")

    assert fold(conn, user) == 2
    assert fold(conn, today) == 0

    writer.commit()
    assert len(rows_of(conn, user)) == 2
    assert len(rows_of(conn, today)) == 4
    assert fold(conn, user) == 1
    assert [row[2] for row in rows_of(conn, user)] == [5]
    assert usage_differences(conn, [user, today]) == []


def test_writers_add_to_a_row_that_is_folded(sessions: Sessions):
    """A writer of several messages waits for slot 0, another takes a new row."""
    one, other, folder, _ = sessions
    user = add_payer(one)
    add_slots([one, *sessions[2:]], user)
    removed = folder.execute(
        "SELECT app.fold_usage(%s, %s, %s)",
        [user, *rows_of(one, user)[0][:2]],
    ).fetchone()
    assert removed == (2,)

    record(other, user, NOON)
    other.commit()
    run_blocked(folder, one, lambda conn: record(conn, user, NOON, NOON))

    assert usage_differences(one, [user]) == []
    assert fold(one, user) == 1
    assert usage_differences(one, [user]) == []


def test_single_row_in_another_slot_is_not_folded(sessions: Sessions):
    conn = sessions[0]
    user = add_payer(conn)
    add_slots(sessions[:2], user)
    conn.execute("SET LOCAL session_replication_role = replica")
    conn.execute(
        "DELETE FROM app.usage_slots WHERE subject_id = %s AND slot = 0", [user]
    )
    conn.commit()

    listed = conn.execute(
        "SELECT FROM app.unfolded_usage WHERE subject_id = %s", [user]
    )
    assert listed.fetchall() == []
    conn.execute("SELECT app.repair_usage_day(%s, %s)", [user, DAY])
    conn.commit()
    assert usage_differences(conn, [user]) == []


@pytest.mark.parametrize(
    "call",
    [
        "app.fold_usage(%(user)s, %(day)s, %(day)s + interval '24 hours')",
        "app.cut_usage_day(%(user)s, %(day)s::date)",
        "app.repair_usage_day(%(user)s, %(day)s::date)",
    ],
)
def test_sums_are_kept_by_their_trigger_after_upkeep(sessions: Sessions, call: str):
    """Also in the same transaction."""
    conn, *_ = sessions
    user = add_payer(conn)
    record(conn, user, NOON)
    conn.commit()

    conn.execute(
        f"SELECT {call}".encode(), {"user": user, "day": NOON - timedelta(hours=12)}
    )
    with pytest.raises(errors.RestrictViolation):
        conn.execute("UPDATE app.usage_slots SET messages = 2")
    conn.rollback()


def test_difference_in_one_of_several_slots_is_repaired(sessions: Sessions):
    conn = sessions[0]
    user = add_payer(conn)
    add_slots(sessions, user)
    conn.execute("SET LOCAL session_replication_role = replica")
    conn.execute(
        "UPDATE app.usage_slots SET credits = credits + 5 WHERE slot = %s",
        [own_slot(sessions[2])],
    )
    conn.commit()
    assert len(usage_differences(conn, [user])) == 2

    conn.execute("SELECT app.repair_usage_day(%s, %s)", [user, DAY])
    conn.commit()

    assert slots_of(conn, user) == [(0, 4)]
    assert usage_differences(conn, [user]) == []


def test_second_repair_of_a_missing_row_adds_nothing(sessions: Sessions):
    one, other, *_ = sessions
    user = add_payer(one)
    record(one, user, NOON, NOON)
    one.execute("SET LOCAL session_replication_role = replica")
    one.execute("DELETE FROM app.usage_slots WHERE subject_id = %s", [user])
    one.commit()
    repair = partial(
        psycopg.Connection.execute,
        query=sql.SQL("SELECT app.repair_usage_day(%s, %s)"),
        params=[user, DAY],
    )
    assert repair(one).fetchone() == (True,)

    assert run_blocked(one, other, repair).fetchone() == (False,)

    assert usage_differences(one, [user]) == []
