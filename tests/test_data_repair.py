"""Repairs of drift while writers are at work, with real concurrent connections."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest

from pyapp.data_check import DataCheck, check_data
from tests.metering import add_user, usage_differences
from tests.support import run_cli
from tests.test_data_check import (
    DAY,
    PLANTED,
    plant,
    record,
    refer,
    repair_day,
    repair_user,
    totals,
)
from tests.waiting import wait_for_lock


class TestWriterAtWork:
    """A writer has inserted and not committed; the repair and the writer both count."""

    @pytest.fixture
    def user(self, database: str) -> UUID:
        with psycopg.connect(database) as conn:
            user = add_user(conn)
            record(conn, user)
            return user

    @pytest.mark.parametrize("kind", ["credits", "no row, credits", "no messages"])
    def test_repair_waits_for_the_writer_of_its_day(
        self, database: str, user: UUID, kind: str
    ):
        with (
            psycopg.connect(database) as writer,
            psycopg.connect(database) as repairer,
            ThreadPoolExecutor(1) as thread,
        ):
            plant(repairer, PLANTED[kind])
            repairer.commit()
            record(writer, user)
            waiting = thread.submit(repair_day, repairer, user)
            wait_for_lock(writer, repairer)
            writer.commit()
            assert waiting.result()
            repairer.commit()

            assert usage_differences(writer) == []

    @pytest.mark.parametrize("kind", ["credits", "no row, credits", "no messages"])
    @pytest.mark.parametrize("is_kept", [True, False], ids=["commit", "rollback"])
    def test_writer_waits_for_the_repair_and_adds_to_its_result(
        self, database: str, user: UUID, kind: str, is_kept: bool
    ):
        with (
            psycopg.connect(database) as writer,
            psycopg.connect(database) as repairer,
            ThreadPoolExecutor(1) as thread,
        ):
            plant(repairer, PLANTED[kind])
            repairer.commit()
            assert repair_day(repairer, user)
            waiting = thread.submit(record, writer, user)
            wait_for_lock(repairer, writer)
            if is_kept:
                repairer.commit()
            else:
                repairer.rollback()
            waiting.result()
            writer.commit()
            if not is_kept:
                repair_day(repairer, user)

            assert usage_differences(repairer) == []

    def test_referral_at_work_is_added_to_the_repaired_total(self, database: str):
        with (
            psycopg.connect(database) as writer,
            psycopg.connect(database) as repairer,
            ThreadPoolExecutor(1) as thread,
        ):
            ada, bob, cleo = (add_user(writer) for _ in range(3))
            refer(writer, ada, bob)
            plant(writer, "UPDATE app.users SET referral_credits = 0")
            writer.commit()
            assert repair_user(repairer, ada)
            waiting = thread.submit(refer, writer, ada, cleo)
            wait_for_lock(repairer, writer)
            repairer.commit()
            waiting.result()
            writer.commit()

            assert totals(writer, ada) == (2, 1000)

            plant(writer, "UPDATE app.users SET referral_credits = 0")
            writer.commit()
            dan = add_user(writer)
            refer(writer, ada, dan)
            later = thread.submit(repair_user, repairer, ada)
            wait_for_lock(writer, repairer)
            writer.commit()
            assert later.result()
            repairer.commit()

            assert totals(writer, ada) == (3, 1500)


def test_drift_is_repaired_and_never_invented_under_concurrent_writers(database: str):
    """Checks of sound data report nothing; planted drift is gone, all sums exact."""
    with psycopg.connect(database) as conn:
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

    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write, seed) for seed in range(4)]
        try:
            for _ in range(5):
                assert (check().usage.found, check().referrals.found) == (0, 0)
            with psycopg.connect(database) as conn:
                for statement in PLANTED.values():
                    if "DELETE FROM app.messages" in statement:
                        continue
                    plant(
                        conn,
                        f"{statement} WHERE (subject_id, day) ="
                        f" ('{random.choice(users)}', '{random.choice(days)}')",
                    )
                    plant(
                        conn,
                        "UPDATE app.users SET referral_count = 0, referral_credits = 0"
                        f" WHERE id = '{users[0]}'",
                    )
                    conn.commit()
                    found = check(is_repairing=True)
                    assert found.usage.found >= 1
                    assert found.remaining == 0
                    assert (check().usage.found, check().referrals.found) == (0, 0)
        finally:
            done.set()
        written = sum(writer.result() for writer in writers)

    with psycopg.connect(database) as conn:
        assert usage_differences(conn) == []
        kept = conn.execute("SELECT sum(messages) FROM app.usage_daily").fetchone()
    assert kept == (written + 18,)
    assert written > 20
    assert check().remaining == 0


def test_row_that_stays_locked_is_left_for_the_next_run(
    committing: psycopg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pyapp.data_check.LOCK_WAIT_MS", 50)
    user = add_user(committing)
    record(committing, user)
    plant(committing, "UPDATE app.usage_daily SET credits = 9")
    with psycopg.connect(database) as holder:
        holder.execute("SELECT FROM app.usage_daily FOR UPDATE")

        code, out, err = run_cli("db", "check", "--data", "--repair")

        assert (code, "repaired: " in out) == (1, False)
        assert "other transactions hold the rows: 1; repair again" in out
        assert "1 sum not equal" in err

    assert run_cli("db", "check", "--data", "--repair")[0] == 0
    assert usage_differences(committing) == []
