"""Each role of sql/roles.sql can do its work and nothing else."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from pyapp import messages, quota, referrals, sessions, users
from pyapp._core.queries import QUERIES, Query
from pyapp.devtools.checks.query_plans import explain_query, is_planned
from pyapp.roles import ROLES, apply_roles
from pyapp.stripe_sync import handle_webhook
from tests.fake_stripe import TEST_SECRET, sign
from tests.role_logins import role_logins
from tests.role_statements import (
    APP,
    CALLABLE,
    EVERYTHING,
    OPERATOR,
    READONLY,
    REFUSED,
    SYNC,
)
from tests.stripe_world import make_customer, make_event, make_subscription

# Roles by the first word of the query file; pyapp_app runs all other queries.
WORK = {"stats": READONLY, "stripe": SYNC}
QUERIES_OF_ROLES = [query for query in QUERIES.values() if query.name not in OPERATOR]


@pytest.fixture
def granted(conn: psycopg.Connection) -> psycopg.Connection:
    """Return a connection with the roles, created in its transaction."""
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
    """Return whether *role* lacks a privilege that *statement* needs."""
    try:
        with conn.transaction(), acting_as(conn, role):
            conn.execute(sql.SQL(statement))
    except InsufficientPrivilege:
        return True
    except psycopg.Error:
        return False
    return False


@pytest.mark.parametrize("role", ROLES)
def test_role_lacks_privileges_beyond_its_work(granted: psycopg.Connection, role: str):
    allowed = [s for s in REFUSED[role] if not refused(granted, role, s)]

    assert not allowed, f"{role} may: {allowed}"


def test_readonly_role_reads_everything_but_secrets(granted: psycopg.Connection):
    assert not [s for s in EVERYTHING if refused(granted, READONLY, s)]


def run_or_explain(conn: psycopg.Connection, query: Query) -> None:
    """Make the server check the privileges for *query*; EXPLAIN checks them too."""
    if "staged_calls" in query.sql:
        conn.execute(QUERIES["create_staged_messages"].sql)
    if is_planned(query):
        explain_query(conn, query)
    elif query.sql.startswith("COPY"):
        with conn.cursor().copy(query.sql):
            pass


def test_role_may_run_the_queries_of_its_work(granted: psycopg.Connection):
    complaints = []
    for query in QUERIES_OF_ROLES:
        role = WORK.get(query.path.stem.partition("_")[0], APP)
        try:
            with granted.transaction(force_rollback=True), acting_as(granted, role):
                run_or_explain(granted, query)
        except InsufficientPrivilege as exc:
            complaints.append(f"{role} cannot {query.name}: {exc.diag.message_primary}")
            granted.execute("DEALLOCATE ALL")

    assert not complaints, "\n".join(complaints)


def test_no_role_writes_a_generated_column(granted: psycopg.Connection):
    writable = granted.execute(
        """
        SELECT r.rolname, a.attrelid::regclass::text, a.attname
        FROM pg_attribute AS a
        INNER JOIN pg_class AS t ON t.oid = a.attrelid
        INNER JOIN pg_roles AS r ON r.rolname = ANY(%s)
        WHERE t.relnamespace = 'app'::regnamespace AND a.attgenerated <> ''
            AND has_column_privilege(r.oid, a.attrelid, a.attnum, 'INSERT, UPDATE')
        """,
        [list(ROLES)],
    ).fetchall()

    assert writable == []


def test_role_cannot_use_a_trigger_function_on_its_own_table(
    granted: psycopg.Connection,
):
    granted.execute("GRANT CREATE ON SCHEMA public TO pyapp_app")

    granted.execute("SET LOCAL ROLE pyapp_app")
    granted.execute("CREATE TABLE public.forged (id uuid)")
    granted.execute("RESET ROLE")
    create_trigger = (
        "CREATE TRIGGER forge AFTER INSERT ON public.forged"
        " FOR EACH ROW EXECUTE FUNCTION app.{}()"
    )
    allowed = [
        function
        for function in (
            "add_usage",
            "end_unverified_sessions",
            "grant_referral_credits",
            "refuse_user_id",
        )
        if not refused(granted, APP, create_trigger.format(function))
    ]

    assert allowed == []


def test_role_may_call_only_its_security_definer_functions(
    granted: psycopg.Connection,
):
    found = granted.execute(
        """
        SELECT r.rolname, p.oid::regprocedure::text
        FROM pg_proc AS p
        INNER JOIN pg_roles AS r ON r.rolname = ANY(%s)
        WHERE p.pronamespace = 'app'::regnamespace AND p.prosecdef
            AND has_function_privilege(r.oid, p.oid, 'EXECUTE')
        """,
        [list(ROLES)],
    ).fetchall()

    assert set(found) == CALLABLE


def test_only_the_owner_executes_the_upkeep_of_sums(granted: psycopg.Connection):
    """Also if a role could write the tables."""
    found = granted.execute(
        """
        SELECT DISTINCT p.proname::text
        FROM pg_proc AS p
        CROSS JOIN unnest(%s::text[]) AS r (role)
        WHERE p.pronamespace = 'app'::regnamespace
            AND NOT p.prosecdef
            AND NOT has_function_privilege(r.role, p.oid, 'EXECUTE')
        ORDER BY 1
        """,
        [list(ROLES)],
    )

    assert [name for (name,) in found] == [
        "cut_usage_day",
        "fold_usage",
        "rebuild_usage_day",
        "repair_referral_totals",
        "repair_usage_day",
        "replace_usage_rows",
    ]


def test_apply_roles_revokes_privileges_granted_by_hand(granted: psycopg.Connection):
    granted.execute("GRANT DELETE ON app.messages TO pyapp_app")
    granted.execute("GRANT SELECT (token_hash) ON app.sessions TO pyapp_readonly")

    apply_roles(granted)

    assert refused(granted, APP, "DELETE FROM app.messages")
    assert refused(granted, READONLY, "SELECT token_hash FROM app.sessions")


def test_application_records_and_erases(granted: psycopg.Connection):
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


def test_application_ends_sessions_and_pending_referrals(granted: psycopg.Connection):
    with acting_as(granted, APP):
        ada, bob = (
            users.create_user(granted, email=f"{name}@example.com")
            for name in ("ada", "bob")
        )
        tokens = [
            sessions.create_session(granted, user_id=ada.id).token for _ in range(4)
        ]
        ended = [
            sessions.delete_session(granted, token=tokens[0]),
            sessions.delete_user_sessions(granted, user_id=ada.id),
            sessions.delete_expired_sessions(granted),
        ]
        token = sessions.create_session(granted, user_id=ada.id).token
        users.mark_user_email_verified(granted, user_id=ada.id, email="ada@example.com")
        found = sessions.find_session(granted, token=token)
        code = bob.referral_code
        referrals.create_referral(granted, referral_code=code, referred_id=ada.id)
        cancelled = referrals.cancel_referral(granted, referred_id=ada.id)

    assert ended == [True, 3, 0]
    assert found is None
    assert cancelled.referrer_id == bob.id


def test_sync_writes_what_stripe_owns(granted: psycopg.Connection):
    user = users.create_user(granted, email="ada@example.com")
    with acting_as(granted, SYNC):
        granted.execute(
            "UPDATE app.users SET stripe_customer_id = 'cus_1', base_quota = 50000,"
            " stripe_subscription_id = 'sub_1', subscription_status = 'active'"
        )
        granted.execute("INSERT INTO app.stripe_sync_runs (kind) VALUES ('reconcile')")

    assert users.get_user(granted, user_id=user.id).subscription_active


@pytest.fixture
def logins(database: str) -> Iterator[dict[str, str]]:
    """Return the connection string of one login for each role."""
    with role_logins(database) as found:
        yield found


def test_login_lacks_the_privileges_that_its_role_lacks(logins: dict[str, str]):
    allowed = []
    for role, login in logins.items():
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

    assert allowed == []


def test_login_of_the_sync_applies_webhooks(logins: dict[str, str], database: str):
    with psycopg.connect(database) as owner:
        user = users.create_user(owner, email="ada@example.com")
    bodies = [
        make_event("customer.created", make_customer("cus_1", user.id)),
        make_event(
            "customer.subscription.created", make_subscription("sub_1", "cus_1")
        ),
        make_event("customer.deleted", make_customer("cus_1", user.id)),
        make_event("customer.created", {"object": "customer"}),
    ]

    with psycopg.connect(logins[SYNC]) as conn:
        results = [
            handle_webhook(conn, body, sign(body, [TEST_SECRET]), TEST_SECRET).result
            for body in bodies
        ]

    assert results == ["applied", "applied", "applied", "failed"]
    with psycopg.connect(database) as owner:
        assert users.get_user(owner, user_id=user.id).stripe_customer_id == "cus_1"
