"""The rules that the database keeps, each broken by plain SQL.

The numbers are those of docs/guidelines.md. Rule 10 is in test_catalog.
"""

from decimal import Decimal

import psycopg
import pytest
from psycopg import errors

from tests.metering import add_user, usage_differences
from tests.violations import (
    ADA,
    BOB,
    EVE,
    MESSAGE,
    SETUP,
    VIOLATIONS,
    expected_error,
    message,
    price,
    referral,
    subscription,
    user,
)

AMOUNTS = {
    "plans_monthly_credits_is_amount_check": (
        "UPDATE app.plans SET monthly_credits = {}"
    ),
    "users_base_quota_is_amount_check": user("base_quota = {}"),
    "users_referral_credits_is_amount_check": user("referral_credits = {}"),
    "fingerprints_base_quota_is_amount_check": (
        "UPDATE app.fingerprints SET base_quota = {}"
    ),
    "messages_cost_is_amount_check": message(cost="{}"),
    "messages_credits_is_amount_check": message(credits="{}"),
    "referrals_credits_is_amount_check": referral(BOB, EVE, credits="{}"),
    "model_prices_price_is_amount_check": price(output_price="{}"),
}

GENERATED = {
    "users.quota": user("quota = 1"),
    "users.quota_period_start": user("quota_period_start = now()"),
    "users.subscription_active": user("subscription_active = TRUE"),
    "fingerprints.quota_period_start": (
        "UPDATE app.fingerprints SET quota_period_start = now()"
    ),
    "messages.total_tokens": message(total_tokens="10"),
    "message_payloads.last_message": (
        "UPDATE app.message_payloads SET last_message = '1'"
    ),
}


@pytest.fixture
def rows(conn: psycopg.Connection) -> psycopg.Connection:
    conn.execute(SETUP)
    return conn


def violate(conn: psycopg.Connection, rule: str, sql: str) -> None:
    """Check that *rule* refuses *sql*, in a savepoint that is rolled back."""
    with pytest.raises(expected_error(rule)) as caught, conn.transaction():
        conn.execute(sql)
    assert rule == caught.value.diag.constraint_name


@pytest.mark.parametrize("rule", VIOLATIONS)
def test_rule_refuses_its_violation(rows: psycopg.Connection, rule: str):
    violate(rows, rule, VIOLATIONS[rule])


def test_every_rule_of_the_catalog_is_violated(conn: psycopg.Connection):
    found = conn.execute("""
        SELECT k.conname
        FROM pg_constraint AS k
        INNER JOIN pg_class AS c ON k.conrelid = c.oid
        WHERE c.relnamespace = 'app'::regnamespace
            AND c.relkind = 'r' AND k.contype <> 'n'
        UNION
        SELECT c.relname
        FROM pg_index AS i
        INNER JOIN pg_class AS c ON i.indexrelid = c.oid
        WHERE c.relnamespace = 'app'::regnamespace
            AND c.relkind = 'i' AND i.indisunique
        UNION
        SELECT t.tgname
        FROM pg_trigger AS t
        INNER JOIN pg_class AS c ON t.tgrelid = c.oid
        INNER JOIN pg_proc AS p ON t.tgfoid = p.oid
        WHERE c.relnamespace = 'app'::regnamespace
            AND NOT t.tgisinternal AND p.prosrc ~ 'CONSTRAINT = TG_NAME'
    """)

    assert sorted(name for (name,) in found) == sorted(VIOLATIONS)


@pytest.mark.parametrize("rule", AMOUNTS)
@pytest.mark.parametrize("amount", ["'NaN'", "'Infinity'", "'-Infinity'", "-0.01"])
def test_amount_is_finite_and_not_negative(
    rows: psycopg.Connection, rule: str, amount: str
):
    violate(rows, rule, AMOUNTS[rule].format(amount))


def test_every_amount_of_the_catalog_is_checked(conn: psycopg.Connection):
    found = conn.execute("""
        SELECT conname FROM pg_constraint
        WHERE connamespace = 'app'::regnamespace AND conname ~ '_is_amount_check$'
    """)

    assert sorted(name for (name,) in found) == sorted(AMOUNTS)


@pytest.mark.parametrize(
    "code",
    [
        "'ref-'",
        "gen_random_uuid()::text",
        "'ref-' || upper(gen_random_uuid()::text)",
        "'ref-' || gen_random_uuid() || E'\\n'",
        "'REF-' || gen_random_uuid()",
    ],
)
def test_1_referral_code_is_ref_and_a_uuid(rows: psycopg.Connection, code: str):
    violate(rows, "users_referral_code_shape_check", user(f"referral_code = {code}"))


def test_2_users_are_not_referred_by_themselves_twice_or_back(
    rows: psycopg.Connection,
):
    violate(rows, "referrals_not_self_check", referral(EVE, EVE))
    violate(rows, "referrals_referred_id_key", referral(EVE, BOB))
    violate(rows, "referrals_unordered_pair_idx", referral(BOB, ADA))


def test_3_count_of_completed_referrals_stops_at_the_limit(rows: psycopg.Connection):
    done = {"status": "'completed'", "completed_at": "now()"}
    for _ in range(4):
        rows.execute(referral(ADA, str(add_user(rows)), **done))
    rows.execute(referral(ADA, str(add_user(rows))))

    violate(
        rows,
        "users_referral_count_within_limit_check",
        referral(ADA, str(add_user(rows)), **done),
    )
    violate(
        rows,
        "users_referral_count_within_limit_check",
        "UPDATE app.referrals SET status = 'completed', completed_at = now()"
        " WHERE status = 'pending'",
    )
    row = rows.execute(f"""
        SELECT u.referral_count, count(*) FILTER (WHERE r.status = 'completed')
        FROM app.users AS u INNER JOIN app.referrals AS r ON r.referrer_id = u.id
        WHERE u.id = '{ADA}' GROUP BY u.id
    """).fetchone()
    assert row == (5, 5)


def test_4_completing_a_referral_grants_both_users_once(rows: psycopg.Connection):
    complete = (
        "UPDATE app.referrals SET status = 'completed', completed_at = now()"
        f" WHERE referrer_id = '{BOB}'"
    )
    rows.execute(referral(BOB, EVE, credits="70"))
    pending = granted(rows)
    rows.execute(complete)

    violate(rows, "referrals_completed_is_final", complete)
    violate(rows, "referrals_completed_is_final", "DELETE FROM app.referrals")
    assert pending == {ADA: 500, BOB: 500, EVE: 0}
    assert granted(rows) == {ADA: 500, BOB: 570, EVE: 70}


@pytest.mark.parametrize("credits", ["1000000.01", "1e30"])
def test_4_referral_grants_at_most_a_million_credits(
    rows: psycopg.Connection, credits: str
):
    violate(
        rows,
        "referrals_credits_is_amount_check",
        referral(BOB, EVE, credits=credits),
    )
    rows.execute(referral(BOB, EVE, credits="1000000"))


def granted(conn: psycopg.Connection) -> dict[str, Decimal]:
    found = conn.execute("SELECT id::text, referral_credits FROM app.users")
    return dict(found)


def test_5_message_has_one_payer_and_never_changes(rows: psycopg.Connection):
    without_user = message(user_id="NULL")

    violate(rows, "messages_subject_is_payer_check", without_user)
    violate(rows, "messages_append_only", "UPDATE app.messages SET cost = 0")
    violate(rows, "messages_append_only", "DELETE FROM app.messages")
    violate(rows, "messages_append_only", "TRUNCATE app.messages CASCADE")


def test_7_repeated_id_changes_nothing(rows: psycopg.Connection):
    again = message(subject_id=f"'{ADA}'", user_id=f"'{ADA}'", credits="99")

    violate(rows, "messages_pkey", again)
    inserted = rows.execute(f"{again} ON CONFLICT DO NOTHING").rowcount
    used = rows.execute("SELECT sum(credits) FROM app.usage_daily").fetchone()
    rows.execute(message())

    assert inserted == 0
    assert used == (Decimal("1.2"),)
    assert usage_differences(rows) == []
    ids = rows.execute("SELECT subject_id::text, id::text FROM app.messages")
    assert sorted(ids) == [(ADA, MESSAGE), (BOB, MESSAGE)]


def test_8_event_is_stored_once_and_a_late_one_is_refused(rows: psycopg.Connection):
    violate(rows, "stripe_events_pkey", VIOLATIONS["stripe_events_pkey"])
    late = subscription(
        id="'sub_1'", status="'trialing'", as_of="now() - interval '1 second'"
    )
    upsert = (
        f"{late} ON CONFLICT (id) DO UPDATE"
        " SET status = excluded.status, as_of = excluded.as_of"
    )
    violate(rows, "stripe_subscriptions_newer_wins", upsert)
    found = rows.execute("SELECT status FROM app.stripe_subscriptions").fetchall()
    assert found == [("active",)]


@pytest.mark.parametrize("column", GENERATED)
def test_9_generated_column_is_never_written(rows: psycopg.Connection, column: str):
    with pytest.raises(errors.GeneratedAlways, match=column.split(".")[1]):
        rows.execute(GENERATED[column])


def test_9_every_generated_column_of_the_catalog_is_tried(conn: psycopg.Connection):
    found = conn.execute("""
        SELECT c.relname || '.' || a.attname
        FROM pg_attribute AS a
        INNER JOIN pg_class AS c ON a.attrelid = c.oid
        WHERE c.relnamespace = 'app'::regnamespace
            AND c.relkind IN ('r', 'p') AND NOT c.relispartition
            AND a.attgenerated = 's'
    """)

    assert sorted(name for (name,) in found) == sorted(GENERATED)
