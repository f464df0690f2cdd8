"""`pyapp db check --data` names wrong sums and repairs them."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import psycopg
import pytest
from psycopg import errors

from pyapp.cli.data_check import _fitted
from pyapp.data_check import check_data
from pyapp.messages import record_messages
from tests.metering import (
    MICROSECOND,
    add_fingerprint,
    add_user,
    new_message,
    refer,
    referral_totals,
    usage_differences,
)
from tests.support import run_cli, unfolded

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = NOON.date()
# Each kind of wrong sum, in one day of one payer.
WRONG = {
    "credits": "UPDATE app.usage_slots SET credits = credits + 12.5",
    "cost": "UPDATE app.usage_slots SET cost = cost * 2",
    "messages": "UPDATE app.usage_slots SET messages = messages + 1",
    "input": "UPDATE app.usage_slots SET input_tokens = 0",
    "output": "UPDATE app.usage_slots SET output_tokens = 0",
    "cache writes": (
        "UPDATE app.usage_slots SET cache_creation_input_tokens = 9000000000"
    ),
    "cache reads": "UPDATE app.usage_slots SET cache_read_input_tokens = 0",
    "credits (+6)": """
        UPDATE app.usage_slots SET (
            messages, input_tokens, cache_creation_input_tokens,
            cache_read_input_tokens, output_tokens, cost, credits
        ) = (
            2 * messages, 2 * input_tokens, 2 * cache_creation_input_tokens,
            2 * cache_read_input_tokens, 2 * output_tokens, 2 * cost, 2 * credits
        )
    """,
    "no row, credits": "DELETE FROM app.usage_slots",
    "no messages": "DELETE FROM app.messages",
}


def run_without_triggers(conn: psycopg.Connection, statement: str) -> None:
    """Run *statement* as an owner can who disables the triggers."""
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        conn.execute(statement.encode())
        conn.execute("SET LOCAL session_replication_role = origin")


def record(
    conn: psycopg.Connection, user: UUID, day: date = DAY, count: int = 1
) -> None:
    """Record messages of one credit each on that day."""
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    new = [new_message(user_id=user, finished_at=noon) for _ in range(count)]
    record_messages(conn, new)


def repair_day(conn: psycopg.Connection, subject: UUID, day: date = DAY) -> bool:
    row = conn.execute("SELECT app.repair_usage_day(%s, %s)", [subject, day]).fetchone()
    assert row is not None
    return bool(row[0])


def repair_user(conn: psycopg.Connection, user: UUID) -> bool:
    row = conn.execute("SELECT app.repair_referral_totals(%s)", [user]).fetchone()
    assert row is not None
    return bool(row[0])


def test_correct_sums_are_reported_as_equal(committing: psycopg.Connection):
    ada, bob = add_user(committing), add_user(committing)
    fingerprint = add_fingerprint(committing)
    record(committing, ada, count=3)
    new = new_message(fingerprint_id=fingerprint, finished_at=NOON)
    record_messages(committing, [new])
    refer(committing, ada, bob)

    assert run_cli("db", "check", "--data") == (
        0,
        "usage_daily equals messages, users equal referrals: 2 payers' days, 2 users\n",
        "",
    )


@pytest.mark.parametrize("kind", WRONG)
def test_each_kind_of_wrong_sum_is_named_and_repaired(
    committing: psycopg.Connection, kind: str
):
    user = add_user(committing)
    record(committing, user, count=2)
    run_without_triggers(committing, WRONG[kind])

    code, out, err = run_cli("db", "check", "--data")

    assert code == 1
    header, row, *_ = out.splitlines()
    assert header.split() == ["payer", "day", "usage_daily", "off", "by"]
    assert row.startswith(f"{user}  {DAY}  {kind:<17}  ")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert err == (
        "error: 1 sum not equal to the rows summed:"
        " repair them by: pyapp db check --data --repair\n"
    )
    assert len(usage_differences(committing)) > 0

    code, out, err = run_cli("db", "check", "--data", "--repair")

    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "repaired: 1 payer's day, 0 users"
    assert usage_differences(committing) == []
    assert run_cli("db", "check", "--data")[0] == 0


def test_limit_shows_some_rows_and_counts_the_others(
    committing: psycopg.Connection,
):
    user = add_user(committing)
    days = [DAY + timedelta(days=n) for n in range(5)]
    for day in days:
        record(committing, user, day)
    run_without_triggers(committing, "UPDATE app.usage_slots SET credits = 1234567.25")

    code, out, _ = run_cli("db", "check", "--data", "--limit", "2")
    as_json = run_cli("db", "check", "--data", "--limit", "2", "--json")[1]

    assert code == 1
    _, *rows, more, last = out.splitlines()
    assert rows == [
        f"{user}  {day}  credits             +1,234,566" for day in days[:2]
    ]
    assert (more, last) == ("and 3 more", "")
    found = json.loads(as_json)
    assert found["compared"] == {"days": 5, "users": 1}
    assert (found["usage"]["found"], found["usage"]["repaired"]) == (5, 0)
    row, _ = found["usage"]["rows"]
    assert row["subject_id"] == str(user)
    assert row["day"] == "2026-03-01"
    assert (row["kept_credits"], row["recorded_credits"]) == ("1234567.25", "1")
    assert (row["kept_messages"], row["recorded_messages"]) == (1, 1)


def test_referral_totals_are_raised_and_never_lowered(
    committing: psycopg.Connection,
):
    ada, bob, cleo, dan = (add_user(committing) for _ in range(4))
    refer(committing, ada, bob)
    refer(committing, ada, cleo)
    run_without_triggers(
        committing,
        f"""
        UPDATE app.users SET referral_count = 4, referral_credits = 1500
        WHERE id = '{ada}';
        UPDATE app.users SET referral_credits = 499.5 WHERE id = '{bob}';
        UPDATE app.users SET referral_credits = 7 WHERE id = '{dan}'
        """,
    )

    code, out, err = run_cli("db", "check", "--data")
    repaired = run_cli("db", "check", "--data", "--repair")

    assert code == 1
    assert f"{ada}  referral_count              4            2\n" in out
    assert f"{bob}  referral_credits        499.5          500\n" in out
    wrong, _, raised = out.partition("More referral credits than granted")
    assert f"{ada}  referral_credits        1,500        1,000\n" in raised
    assert f"{dan}  referral_credits            7            0\n" in raised
    assert str(dan) not in wrong
    assert str(cleo) not in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert err.startswith("error: 2 sums not equal")
    assert (repaired[0], repaired[2]) == (0, "")
    assert repaired[1].splitlines()[-1] == "repaired: 0 payers' days, 2 users"
    totals = referral_totals(committing, ada, bob, cleo, dan)
    assert totals == [(2, 1500), (0, 500), (0, 500), (0, 7)]
    code, out, _ = run_cli("db", "check", "--data")
    assert (code, out.splitlines()[0]) == (
        0,
        "More referral credits than granted, given by hand and kept:",
    )


def test_count_above_the_limit_is_reported_with_the_remedy(
    committing: psycopg.Connection,
):
    ada, bob, cleo = (add_user(committing) for _ in range(3))
    refer(committing, ada, bob)
    refer(committing, ada, cleo)
    run_without_triggers(
        committing, "UPDATE app.users SET referral_count = 0, referral_limit = 1"
    )

    code, out, err = run_cli("db", "check", "--data", "--repair")

    assert code == 1
    assert (
        f"{ada} has completed 2 referrals and may have 1:"
        " raise referral_limit, then repair again"
    ) in unfolded(out)
    assert err == "error: 1 sum not equal to the rows summed: see above\n"
    committing.execute("UPDATE app.users SET referral_limit = 2")
    assert run_cli("db", "check", "--data", "--repair")[0] == 0
    assert referral_totals(committing, ada) == [(2, 1000)]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0", "+0"),
        ("12.500000", "+12.5"),
        ("-0.000001", "-0.000001"),
        ("0.00000000012345", "+1.234e-10"),
        ("123456.789012", "+123,457"),
        ("-9999999999", "-1.00e+10"),
        ("1e30", "+1.00e+30"),
        ("1e-100", "+1.000e-100"),
    ],
)
def test_amount_fits_its_column(value: str, shown: str):
    assert _fitted(Decimal(value), "+") == shown
    assert len(shown) <= 11


@pytest.mark.parametrize(
    "arguments",
    [["--repair"], ["--limit", "3"], ["--data", "--scratch", "x"]],
)
def test_options_of_another_check_are_refused(arguments: list[str]):
    code, _, err = run_cli("db", "check", *arguments)

    assert code == 2
    assert "--data" in err


def test_repair_of_correct_sums_changes_nothing(conn: psycopg.Connection):
    user = add_user(conn)
    record(conn, user)
    before = conn.execute("SELECT xmin, ctid, * FROM app.usage_slots").fetchall()

    assert not repair_day(conn, user)
    assert not repair_day(conn, user, DAY + timedelta(days=1))
    assert not repair_user(conn, user)

    assert (
        conn.execute("SELECT xmin, ctid, * FROM app.usage_slots").fetchall() == before
    )


def test_repaired_day_is_in_utc_in_every_session(conn: psycopg.Connection):
    user = add_user(conn)
    midnight = NOON.replace(hour=0)
    for moment in (midnight - MICROSECOND, midnight):
        new = new_message(user_id=user, finished_at=moment)
        record_messages(conn, [new])
    run_without_triggers(conn, "UPDATE app.usage_slots SET messages = 7, credits = 0")
    conn.execute("SET LOCAL TimeZone = 'Pacific/Kiritimati'")

    assert repair_day(conn, user, DAY)
    assert repair_day(conn, user, DAY - timedelta(days=1))

    assert usage_differences(conn) == []


def test_usage_daily_stays_read_only_after_a_repair(conn: psycopg.Connection):
    user = add_user(conn)
    record(conn, user)
    run_without_triggers(conn, "UPDATE app.usage_slots SET credits = 9")
    assert repair_day(conn, user)

    with pytest.raises(errors.RestrictViolation, match="only the trigger of messages"):
        conn.execute("UPDATE app.usage_slots SET credits = 0")


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize(
    "call",
    [
        "app.repair_usage_day(gen_random_uuid(), '2026-01-01')",
        "app.repair_referral_totals(gen_random_uuid())",
    ],
)
def test_repair_needs_read_committed(database: str, level: str, call: str):
    with psycopg.connect(database) as conn:
        conn.isolation_level = psycopg.IsolationLevel[level.replace(" ", "_")]

        with pytest.raises(errors.InvalidTransactionState, match="READ COMMITTED"):
            conn.execute(f"SELECT {call}".encode())


def test_repair_runs_with_a_serializable_default(
    committing: psycopg.Connection,
):
    user = add_user(committing)
    record(committing, user)
    run_without_triggers(committing, "UPDATE app.usage_slots SET credits = 9")
    committing.execute("""
        DO $$ BEGIN EXECUTE format(
            'ALTER DATABASE %I SET default_transaction_isolation = serializable',
            current_database()
        ); END $$
    """)

    assert run_cli("db", "check", "--data", "--repair")[0] == 0
    assert usage_differences(committing) == []


def test_check_does_not_wait_for_a_writer(database: str):
    """It does not wait for a writer that has locked the rows."""
    with psycopg.connect(database) as conn:
        user = add_user(conn)
        record(conn, user)
        conn.commit()
        run_without_triggers(conn, "UPDATE app.usage_slots SET credits = 9")
        conn.commit()
        record(conn, user)

        found = check_data(database, limit=1)

        assert (found.usage.found, found.usage.repaired) == (1, 0)
        assert found.usage.rows[0].differences() == {"credits": Decimal(8)}
