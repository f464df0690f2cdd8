"""Each role of sql/roles.sql can do its work, and nothing beyond it."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.errors import InsufficientPrivilege

from pyapp import messages, quota, users
from pyapp.devtools.query_plans import explain_query, is_planned
from pyapp.devtools.roles import ROLES, apply_roles
from pyapp.queries import QUERIES, Query

APP, SYNC, READONLY = ROLES

REFUSED = {
    APP: [
        "UPDATE app.messages SET credits = 0",
        "DELETE FROM app.messages",
        "TRUNCATE app.messages",
        "INSERT INTO app.messages (total_tokens) VALUES (DEFAULT)",
        "INSERT INTO app.messages (recorded_at) VALUES (now())",
        "INSERT INTO app.usage_daily (subject_id) VALUES (gen_random_uuid())",
        "UPDATE app.usage_daily SET credits = 0",
        "DELETE FROM app.usage_daily",
        "UPDATE app.users SET quota = DEFAULT",
        "UPDATE app.users SET base_quota = 1000000",
        "UPDATE app.users SET next_quota_reset = NULL",
        "UPDATE app.users SET quota_anchor = now()",
        "UPDATE app.users SET referral_credits = 1000000",
        "UPDATE app.users SET referral_count = 0",
        "UPDATE app.users SET referral_limit = 1000",
        "UPDATE app.users SET stripe_customer_id = 'cus_1'",
        "UPDATE app.users SET stripe_subscription_id = 'sub_1'",
        "UPDATE app.users SET stripe_price_id = 'price_1'",
        "UPDATE app.users SET subscription_status = 'active'",
        "UPDATE app.users SET subscription_active = DEFAULT",
        "UPDATE app.users SET created_at = now()",
        "INSERT INTO app.users (email, base_quota) VALUES ('a@b', 1000000)",
        "INSERT INTO app.users (email, stripe_customer_id) VALUES ('a@b', 'cus_1')",
        "DELETE FROM app.users",
        "UPDATE app.fingerprints SET base_quota = 1000000",
        "DELETE FROM app.fingerprints",
        "UPDATE app.sessions SET token_hash = sha256('x')",
        "UPDATE app.sessions SET user_id = gen_random_uuid()",
        "UPDATE app.plans SET monthly_credits = 1000000",
        "UPDATE app.referrals SET referrer_id = gen_random_uuid()",
        "DELETE FROM app.referrals",
        "SELECT id FROM app.stripe_events",
        "INSERT INTO app.stripe_subscriptions (id) VALUES ('sub_1')",
        "UPDATE app.stripe_customers SET user_id = NULL",
        "SELECT id FROM app.stripe_sync_runs",
        "CREATE TABLE app.mine ()",
        "ALTER TABLE app.messages DISABLE TRIGGER ALL",
        "SELECT app.retire_payload_partitions('2026-01-01')",
        "SELECT finished_at FROM app.message_payloads_default",
    ],
    SYNC: [
        "UPDATE app.users SET email = 'a@b'",
        "UPDATE app.users SET referral_credits = 1000000",
        "UPDATE app.users SET referral_count = 0",
        "UPDATE app.users SET quota = DEFAULT",
        "INSERT INTO app.users (email) VALUES ('a@b')",
        "DELETE FROM app.users",
        "INSERT INTO app.messages (model) VALUES ('x')",
        "SELECT model FROM app.messages",
        "SELECT token_hash FROM app.sessions",
        "SELECT request FROM app.message_payloads",
        "DELETE FROM app.stripe_events",
        "DELETE FROM app.stripe_customers",
        "DELETE FROM app.stripe_subscriptions",
        "INSERT INTO app.referrals (referrer_id) VALUES (gen_random_uuid())",
        "UPDATE app.plans SET monthly_credits = 1000000",
    ],
    READONLY: [
        "SELECT token_hash FROM app.sessions",
        "SELECT * FROM app.sessions",
        "SELECT count(*) FROM app.sessions WHERE token_hash = sha256('x')",
        "SELECT request FROM app.message_payloads",
        "SELECT response FROM app.message_payloads",
        "SELECT last_message FROM app.message_payloads",
        "SELECT request FROM app.message_payloads_default",
        "SELECT payload FROM app.stripe_events",
        "INSERT INTO app.users (email) VALUES ('a@b')",
        "UPDATE app.users SET name = 'x'",
        "DELETE FROM app.sessions",
        "INSERT INTO app.messages (model) VALUES ('x')",
        "SELECT id FROM app.users FOR UPDATE",
    ],
}
EVERYTHING = (
    "SELECT * FROM app.users",
    "SELECT * FROM app.fingerprints",
    "SELECT * FROM app.plans",
    "SELECT * FROM app.messages",
    "SELECT * FROM app.usage_daily",
    "SELECT * FROM app.referrals",
    "SELECT user_id, expires_at FROM app.sessions",
    "SELECT id, status, last_error FROM app.stripe_events",
    "SELECT * FROM app.stripe_customers",
    "SELECT * FROM app.stripe_subscriptions",
    "SELECT * FROM app.stripe_sync_runs",
)


@pytest.fixture
def granted(conn: psycopg.Connection) -> psycopg.Connection:
    """Return a connection on which the roles are there, until it is rolled back."""
    apply_roles(conn)
    return conn


@contextlib.contextmanager
def acting_as(conn: psycopg.Connection, role: str) -> Iterator[None]:
    conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
    try:
        yield
    finally:
        if conn.info.transaction_status != psycopg.pq.TransactionStatus.INERROR:
            conn.execute("RESET ROLE")


def refused(conn: psycopg.Connection, role: str, statement: str) -> bool:
    """Say whether *statement* is refused to *role* for want of a privilege."""
    try:
        with conn.transaction(), acting_as(conn, role):
            conn.execute(sql.SQL(statement))
    except InsufficientPrivilege:
        return True
    except psycopg.Error:
        return False
    return False


@pytest.mark.parametrize("role", ROLES)
def test_role_is_refused_what_is_not_its_work(granted: psycopg.Connection, role: str):
    allowed = [s for s in REFUSED[role] if not refused(granted, role, s)]

    assert not allowed, f"{role} may: {allowed}"


def test_reader_sees_all_that_is_no_secret(granted: psycopg.Connection):
    assert not [s for s in EVERYTHING if refused(granted, READONLY, s)]


@pytest.mark.parametrize("query", QUERIES.values(), ids=list(QUERIES))
def test_role_may_run_the_queries_of_its_work(
    granted: psycopg.Connection, query: Query
):
    role = SYNC if query.path.stem.startswith("stripe") else APP
    with acting_as(granted, role):
        if "staged_messages" in query.sql and is_planned(query):
            granted.execute(QUERIES["create_staged_messages"].sql)
        if is_planned(query):
            assert explain_query(granted, query)
        elif query.sql.startswith("COPY"):
            granted.execute(QUERIES["create_staged_messages"].sql)
            with granted.cursor().copy(query.sql):
                pass
        else:
            granted.execute(query.sql)


def test_no_role_writes_a_generated_column(granted: psycopg.Connection):
    writable = granted.execute(
        """
        SELECT r.rolname, a.attrelid::regclass::text, a.attname
        FROM pg_attribute AS a
        INNER JOIN pg_class AS t ON t.oid = a.attrelid
        INNER JOIN pg_roles AS r ON r.rolname = ANY(%s)
        WHERE t.relnamespace = 'app'::regnamespace AND a.attgenerated <> ''
            AND t.relname NOT LIKE 'stripe%%'
            AND has_column_privilege(r.oid, a.attrelid, a.attnum, 'INSERT, UPDATE')
        """,
        [list(ROLES)],
    ).fetchall()

    assert writable == []


def test_trigger_function_cannot_be_hung_on_a_table_of_ones_own(
    granted: psycopg.Connection,
):
    granted.execute("GRANT CREATE ON SCHEMA public TO pyapp_app")

    granted.execute("SET LOCAL ROLE pyapp_app")
    granted.execute("CREATE TABLE public.forged (id uuid)")
    granted.execute("RESET ROLE")
    hang = (
        "CREATE TRIGGER forge AFTER INSERT ON public.forged"
        " FOR EACH ROW EXECUTE FUNCTION app.{}()"
    )
    allowed = [
        function
        for function in ("add_usage", "grant_referral_credits", "refuse_user_id")
        if not refused(granted, APP, hang.format(function))
    ]

    assert allowed == []


def test_no_role_calls_a_function_that_runs_as_its_owner(granted: psycopg.Connection):
    callable_ones = granted.execute(
        """
        SELECT r.rolname, p.oid::regprocedure::text
        FROM pg_proc AS p
        INNER JOIN pg_roles AS r ON r.rolname = ANY(%s)
        WHERE p.pronamespace = 'app'::regnamespace AND p.prosecdef
            AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
        """,
        [list(ROLES)],
    ).fetchall()

    assert callable_ones == []


def test_roles_are_applied_again_from_nothing(granted: psycopg.Connection):
    granted.execute("GRANT DELETE ON app.messages TO pyapp_app")
    granted.execute("GRANT SELECT (token_hash) ON app.sessions TO pyapp_readonly")

    apply_roles(granted)

    assert refused(granted, APP, "DELETE FROM app.messages")
    assert refused(granted, READONLY, "SELECT token_hash FROM app.sessions")


def test_application_does_a_days_work(granted: psycopg.Connection):
    with acting_as(granted, APP):
        user = users.create_user(granted, email="ada@example.com")
        messages.record_message(
            granted,
            id=uuid4(),
            user_id=user.id,
            model="m",
            input_tokens=1,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=0,
            output_tokens=1,
            finished_at=datetime.now(UTC),
            cost=Decimal("0.01"),
            request=[{"role": "user"}],
        )
        used = quota.get_user_quota(granted, user_id=user.id)
        users.anonymize_user(granted, user_id=user.id)

    assert used.credits_used == Decimal("1.2")


def test_sync_writes_what_stripe_owns(granted: psycopg.Connection):
    user = users.create_user(granted, email="ada@example.com")
    with acting_as(granted, SYNC):
        granted.execute(
            "UPDATE app.users SET stripe_customer_id = 'cus_1', base_quota = 50000,"
            " stripe_subscription_id = 'sub_1', subscription_status = 'active'"
        )
        granted.execute("INSERT INTO app.stripe_sync_runs (kind) VALUES ('reconcile')")

    assert users.get_user(granted, user_id=user.id).subscription_active


def test_logins_inherit_their_roles(database: str):
    password = "p4ss"
    with psycopg.connect(database) as owner:
        apply_roles(owner)
        for role in ROLES:
            owner.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                    sql.Identifier(f"{role}_tester"),
                    sql.Literal(password),
                    sql.Identifier(role),
                )
            )
    allowed = []
    for role in ROLES:
        login = make_conninfo(database, user=f"{role}_tester", password=password)
        with psycopg.connect(login) as conn:
            for statement in REFUSED[role]:
                try:
                    with conn.transaction():
                        conn.execute(sql.SQL(statement))
                except InsufficientPrivilege:
                    continue
                except psycopg.Error:
                    pass
                allowed.append((role, statement))
    with psycopg.connect(database) as owner:
        for role in ROLES:
            owner.execute(
                sql.SQL("DROP ROLE {}").format(sql.Identifier(f"{role}_tester"))
            )

    assert allowed == []
