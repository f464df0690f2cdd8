"""Repairs of wrong sums while other sessions write."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.data_check import DataCheck, check_data
from tests.metering import add_user, refer, referral_totals, usage_differences
from tests.support import run_cli
from tests.test_data_check import (
    DAY,
    WRONG,
    record,
    repair_day,
    repair_user,
    run_without_triggers,
)
from tests.waiting import Pair, run_blocked

locked_kinds = pytest.mark.parametrize("kind", ["credits", "no messages"])
kept_or_not = pytest.mark.parametrize(
    "is_kept", [True, False], ids=["commit", "rollback"]
)


def add_recorded(conn: psycopg.Connection) -> UUID:
    """Add a user with a message, and commit."""
    user = add_user(conn)
    record(conn, user)
    conn.commit()
    return user


def lose_referral_credits(conn: psycopg.Connection) -> None:
    run_without_triggers(conn, "UPDATE app.users SET referral_credits = 0")
    conn.commit()


def break_day(
    writer: psycopg.Connection, repairer: psycopg.Connection, kind: str
) -> UUID:
    """Add a user with a message and a wrong sum of its day; return the id."""
    user = add_recorded(writer)
    run_without_triggers(repairer, WRONG[kind])
    repairer.commit()
    return user


@locked_kinds
def test_repair_waits_for_a_writer_of_its_day(pair: Pair, kind: str):
    writer, repairer = pair
    user = break_day(writer, repairer, kind)
    record(writer, user)

    assert run_blocked(writer, repairer, repair_day, subject=user)

    assert usage_differences(writer) == []


@kept_or_not
def test_repair_of_a_missing_row_adds_to_one_that_a_writer_opens(
    pair: Pair, is_kept: bool
):
    """Neither waits for the other, because their rows have different slots."""
    writer, repairer = pair
    user = break_day(writer, repairer, "no row, credits")
    record(writer, user)

    assert repair_day(repairer, user)

    repairer.commit()
    (writer.commit if is_kept else writer.rollback)()
    assert usage_differences(writer) == []


@locked_kinds
@kept_or_not
def test_several_messages_wait_for_a_repair_and_add_to_its_result(
    pair: Pair, kind: str, is_kept: bool
):
    writer, repairer = pair
    user = break_day(writer, repairer, kind)
    assert repair_day(repairer, user)

    end = repairer.commit if is_kept else repairer.rollback
    run_blocked(repairer, writer, record, release=end, user=user, count=2)

    if not is_kept:
        repair_day(repairer, user)
    assert usage_differences(repairer) == []


@pytest.mark.parametrize("kind", ["credits", "no row, credits", "no messages"])
@kept_or_not
def test_single_message_does_not_wait_for_a_repair(
    pair: Pair, kind: str, is_kept: bool
):
    writer, repairer = pair
    user = break_day(writer, repairer, kind)
    assert repair_day(repairer, user)

    record(writer, user)
    writer.commit()
    (repairer.commit if is_kept else repairer.rollback)()

    if not is_kept:
        repair_day(repairer, user)
    assert usage_differences(repairer) == []


def test_referral_waits_for_a_repair_and_adds_to_its_result(pair: Pair):
    writer, repairer = pair
    ada, bob, cleo = (add_user(writer) for _ in range(3))
    refer(writer, ada, bob)
    lose_referral_credits(writer)
    assert repair_user(repairer, ada)

    run_blocked(repairer, writer, refer, referrer=ada, referred=cleo)

    assert referral_totals(writer, ada) == [(2, 1000)]


def test_repair_waits_for_a_referral_and_counts_it(pair: Pair):
    writer, repairer = pair
    ada, bob, cleo = (add_user(writer) for _ in range(3))
    refer(writer, ada, bob)
    lose_referral_credits(writer)
    refer(writer, ada, cleo)

    assert run_blocked(writer, repairer, repair_user, user=ada)

    assert referral_totals(writer, ada) == [(2, 1000)]


def test_wrong_sums_are_repaired_under_concurrent_writers(database: str):
    """Correct sums are never reported, and all sums are exact in the end."""
    with connect(database) as conn:
        users = [add_user(conn, referral_limit=1000) for _ in range(3)]
        days = [DAY + timedelta(days=n) for n in range(3)]
        for user in users:
            for day in days:
                record(conn, user, day, count=2)
    done = threading.Event()

    def write(seed: int) -> int:
        choose, written = random.Random(seed), 0
        with psycopg.connect(database) as conn:
            while not done.is_set():
                count = choose.randrange(1, 4)
                record(conn, choose.choice(users), choose.choice(days), count=count)
                conn.commit()
                written += count
                if choose.random() < 0.3:
                    refer(conn, choose.choice(users), add_user(conn))
                    conn.commit()
        return written

    def check(is_repairing: bool = False) -> DataCheck:
        return check_data(database, limit=100, is_repairing=is_repairing)

    def break_and_repair(statement: str) -> None:
        user, day = random.choice(users), random.choice(days)
        with psycopg.connect(database) as conn:
            run_without_triggers(
                conn,
                f"{statement} WHERE subject_id = '{user}'"
                f" AND starts_at::date = '{day}'",
            )
            run_without_triggers(
                conn,
                "UPDATE app.users SET referral_count = 0, referral_credits = 0"
                f" WHERE id = '{users[0]}'",
            )
        found = check(is_repairing=True)
        assert found.usage.found >= 1
        assert found.remaining == 0
        assert (check().usage.found, check().referrals.found) == (0, 0)

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, seed) for seed in range(4)]
        try:
            for _ in range(5):
                assert (check().usage.found, check().referrals.found) == (0, 0)
            for statement in WRONG.values():
                if "app.messages" not in statement:
                    break_and_repair(statement)
        finally:
            done.set()
        written = sum(writer.result() for writer in writers)

    with connect(database) as conn:
        assert usage_differences(conn) == []
        kept = conn.execute("SELECT sum(messages) FROM app.usage_daily").fetchone()
    assert kept == (written + 18,)
    assert written > 20
    assert check().remaining == 0


def test_locked_row_is_left_for_the_next_repair(
    committing: psycopg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pyapp.data_check.LOCK_WAIT_MS", 50)
    user = add_user(committing)
    record(committing, user)
    run_without_triggers(committing, "UPDATE app.usage_slots SET credits = 9")
    with psycopg.connect(database) as holder:
        holder.execute("SELECT FROM app.usage_slots FOR UPDATE")

        code, out, err = run_cli("db", "check", "--data", "--repair")

        assert (code, "repaired: " in out) == (1, False)
        assert "other transactions have locked the rows: 1; repair" in out
        assert "1 sum not equal" in err

    assert run_cli("db", "check", "--data", "--repair")[0] == 0
    assert usage_differences(committing) == []
