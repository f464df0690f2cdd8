"""A restored referral is not granted again: it is counted already, or refused."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import RestrictViolation, SerializationFailure

from pyapp.referrals import complete_referral, create_referral, redeem_referral
from pyapp.users import get_user
from tests.metering import add_user
from tests.waiting import wait_for_lock

EARLIER = datetime(2026, 1, 1, tzinfo=UTC)
INSERT = """
    INSERT INTO app.referrals (referrer_id, referred_id, status, credits, completed_at)
    VALUES (%s, %s, 'completed', 500, %s)
"""
# As a dump's users arrive before its referrals do.
FORGET_REFERRALS = """
    SET LOCAL session_replication_role = replica;
    DELETE FROM app.referrals;
    SET LOCAL session_replication_role = origin
"""


def totals(conn: psycopg.Connection, *users: UUID) -> list[tuple[int, int]]:
    """Return count and credits of each user."""
    found = [get_user(conn, user_id=user) for user in users]
    return [(user.referral_count, int(user.referral_credits)) for user in found]


def add_counted(conn: psycopg.Connection, count: int, credits: int) -> UUID:
    """Add a user as a dump holds it, with totals and without referrals."""
    return add_user(conn, referral_count=count, referral_credits=credits)


def refer(conn: psycopg.Connection, referrer: UUID, referred: UUID) -> None:
    code = get_user(conn, user_id=referrer).referral_code
    redeem_referral(conn, referral_code=code, referred_id=referred)


@pytest.mark.parametrize("is_copied", [True, False], ids=["COPY", "INSERT"])
def test_referrals_restored_after_their_users_are_not_granted_again(
    conn: psycopg.Connection, is_copied: bool
):
    ada, bob, cleo = (add_counted(conn, n, n * 500 + 500) for n in (2, 0, 0))
    conn.execute("UPDATE app.users SET referral_credits = 1000 WHERE id = %s", [ada])
    rows = [(ada, bob, EARLIER), (ada, cleo, EARLIER + timedelta(days=1))]

    if is_copied:
        columns = "referrer_id, referred_id, completed_at, status, credits"
        with conn.cursor().copy(f"COPY app.referrals ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([*row, "completed", 500])
    else:
        for row in rows:
            conn.execute(INSERT, row)

    assert totals(conn, ada, bob, cleo) == [(2, 1000), (0, 500), (0, 500)]
    found = conn.execute(
        "SELECT referrer_id, referred_id, completed_at"
        " FROM app.referrals ORDER BY completed_at"
    ).fetchall()
    assert found == rows


def test_what_was_redeemed_is_restored_to_the_same(conn: psycopg.Connection):
    ada, bob, cleo = (add_user(conn) for _ in range(3))
    refer(conn, ada, bob)
    refer(conn, bob, cleo)
    before = totals(conn, ada, bob, cleo)
    conn.execute("CREATE TEMP TABLE dump ON COMMIT DROP AS SELECT * FROM app.referrals")
    conn.execute("UPDATE dump SET completed_at = completed_at - interval '1 day'")
    conn.execute(FORGET_REFERRALS)

    conn.execute("INSERT INTO app.referrals SELECT * FROM dump")

    assert totals(conn, ada, bob, cleo) == before == [(1, 500), (1, 1000), (0, 500)]


@pytest.mark.parametrize(
    "moment",
    [
        "'2026-01-01Z'",
        "now() - interval '1 microsecond'",
        "now() + interval '1 microsecond'",
        "clock_timestamp()",
        "'infinity'",
        "'-infinity'",
    ],
)
@pytest.mark.parametrize("way", ["insert", "update"])
def test_referral_of_another_time_is_refused_unless_counted(
    conn: psycopg.Connection, moment: str, way: str
):
    ada, bob = add_user(conn), add_user(conn)
    if way == "update":
        code = get_user(conn, user_id=ada).referral_code
        create_referral(conn, referral_code=code, referred_id=bob)
        statement = (
            f"UPDATE app.referrals SET status = 'completed', completed_at = {moment}"
        )
    else:
        statement = (
            "INSERT INTO app.referrals"
            " (referrer_id, referred_id, status, credits, completed_at)"
            f" VALUES ('{ada}', '{bob}', 'completed', 500, {moment})"
        )

    with pytest.raises(RestrictViolation) as caught, conn.transaction():
        conn.execute(statement)

    assert caught.value.diag.constraint_name == f"referrals_grant_on_{way}"
    assert totals(conn, ada, bob) == [(0, 0), (0, 0)]
    completed = "SELECT FROM app.referrals WHERE status = 'completed'"
    assert conn.execute(completed).rowcount == 0


@pytest.mark.parametrize(
    ("referrer", "referred"),
    [((0, 500), (0, 500)), ((1, 499), (0, 500)), ((1, 500), (0, 499))],
    ids=["count", "referrer's credits", "referred's credits"],
)
def test_each_total_must_include_the_restored_referral(
    conn: psycopg.Connection, referrer: tuple[int, int], referred: tuple[int, int]
):
    ada, bob = add_counted(conn, *referrer), add_counted(conn, *referred)

    with pytest.raises(RestrictViolation, match="restore users before referrals"):
        conn.execute(INSERT, [ada, bob, EARLIER])


def test_credits_raised_by_hand_are_restored_as_they_are(conn: psycopg.Connection):
    ada, bob = add_counted(conn, 1, 9_000), add_counted(conn, 0, 500)

    conn.execute(INSERT, [ada, bob, EARLIER])

    assert totals(conn, ada, bob) == [(1, 9_000), (0, 500)]


def test_one_statement_restores_some_and_completes_others(conn: psycopg.Connection):
    ada = add_counted(conn, 1, 500)
    bob, cleo = add_counted(conn, 0, 500), add_user(conn)

    conn.execute(
        f"{INSERT}, (%s, %s, 'completed', 70, NULL)", [ada, bob, EARLIER, ada, cleo]
    )

    assert totals(conn, ada, bob, cleo) == [(2, 570), (0, 500), (0, 70)]


def test_time_of_completion_is_the_transactions(conn: psycopg.Connection):
    ada, bob, cleo = (add_user(conn) for _ in range(3))
    refer(conn, ada, bob)
    code = get_user(conn, user_id=ada).referral_code
    create_referral(conn, referral_code=code, referred_id=cleo)
    completed = complete_referral(conn, referred_id=cleo)

    now = conn.execute(
        "SELECT now(), count(*) FROM app.referrals"
        " WHERE completed_at = now() GROUP BY 1"
    ).fetchone()

    assert now == (completed.completed_at, 2)
    assert totals(conn, ada, bob, cleo) == [(2, 1000), (0, 500), (0, 500)]


def test_completion_undone_by_a_savepoint_is_granted_when_it_is_made_again(
    conn: psycopg.Connection,
):
    ada, bob = add_user(conn), add_user(conn)
    with conn.transaction(force_rollback=True):
        refer(conn, ada, bob)
    assert totals(conn, ada, bob) == [(0, 0), (0, 0)]

    refer(conn, ada, bob)

    assert totals(conn, ada, bob) == [(1, 500), (0, 500)]


def test_two_restores_at_once_cannot_both_use_one_count(database: str):
    """The second waits for the first, then sees its referral, and is refused."""
    with psycopg.connect(database) as conn:
        ada = add_counted(conn, 1, 500)
        bob, cleo = add_counted(conn, 0, 500), add_counted(conn, 0, 500)
    with (
        psycopg.connect(database) as first,
        psycopg.connect(database) as second,
        ThreadPoolExecutor(1) as thread,
    ):
        first.execute(INSERT, [ada, bob, EARLIER])
        waiting = thread.submit(second.execute, INSERT, [ada, cleo, EARLIER])
        wait_for_lock(first, second)
        first.commit()

        with pytest.raises(RestrictViolation):
            waiting.result()


def test_restore_by_repeatable_read_is_refused(database: str):
    """Its snapshot does not show what another restore has just counted."""
    with psycopg.connect(database) as conn:
        ada, bob = add_counted(conn, 1, 500), add_counted(conn, 0, 500)
        conn.commit()
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        with pytest.raises(RestrictViolation, match="READ COMMITTED"):
            conn.execute(INSERT, [ada, bob, EARLIER])
        conn.rollback()

        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.execute(INSERT, [ada, bob, EARLIER])
        conn.commit()
        assert totals(conn, ada, bob) == [(1, 500), (0, 500)]


def test_completions_by_repeatable_read_are_exact_or_fail(database: str):
    with psycopg.connect(database) as conn:
        ada, bob, cleo = (add_user(conn) for _ in range(3))
    with psycopg.connect(database) as late, psycopg.connect(database) as early:
        late.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        late.execute("SELECT 1 FROM app.users")
        refer(early, ada, bob)
        early.commit()
        with pytest.raises(SerializationFailure):
            refer(late, ada, cleo)
        late.rollback()

        refer(late, ada, cleo)
        late.commit()

        assert totals(early, ada, bob, cleo) == [(2, 1000), (0, 500), (0, 500)]
