"""No login can make a function of the schema run the login's code as another role.

Each of the three logins creates the traps of sql_traps, then runs every function body
that it can: by the statements of ALLOWED and by calling each function that it may call.
A trap reports its current user, which must always be the login itself.
"""

import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import (
    CheckViolation,
    Diagnostic,
    DuplicateObject,
    InsufficientPrivilege,
    RestrictViolation,
    UndefinedObject,
    WrongObjectType,
)

from pyapp._core.queries import sql_dir
from tests.role_logins import login_name, role_logins
from tests.role_statements import APP, READONLY, SYNC
from tests.sql_traps import KINDS, NOTICE, Names, create_traps, read_names
from tests.violations import ADA, BOB, EVE, FINGERPRINT, UNKNOWN

TIME = "2026-03-31 23:30:00+00"

ROWS = f"""
    INSERT INTO app.users (id, email) VALUES
        ('{ADA}', 'ada@example.com'), ('{BOB}', 'bob@example.com'),
        ('{EVE}', 'eve@example.com');
    INSERT INTO app.fingerprints (id) VALUES ('{FINGERPRINT}');
    INSERT INTO app.stripe_customers (id, user_id, as_of)
    VALUES ('cus_1', '{ADA}', '{TIME}');
    -- The next user is the one that a customer claims.
    ALTER TABLE app.users ALTER COLUMN id SET DEFAULT '{UNKNOWN}';
    INSERT INTO app.stripe_customers (id, claimed_user_id, claim_source, as_of)
    VALUES ('cus_2', '{UNKNOWN}', 'customer', '{TIME}');
    INSERT INTO app.stripe_subscriptions (id, customer_id, status, created_at, as_of)
    VALUES ('sub_2', 'cus_2', 'active', '{TIME}', '{TIME}');
    INSERT INTO app.stripe_subscription_items (subscription_id, id, price_id)
    VALUES ('sub_2', 'si_2', 'price_1');
    INSERT INTO app.plan_prices (stripe_price_id, plan_id) VALUES ('price_1', 'paid');
"""


def message(payer: str, number: int) -> str:
    """Return an INSERT of a message that pyapp_app may run."""
    column = "user_id" if payer != FINGERPRINT else "fingerprint_id"
    return f"""
        INSERT INTO app.messages (
            subject_id, id, {column}, finished_at, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens, model,
            cost, credits
        ) VALUES (
            '{payer}', '00000000-0000-4000-8000-00000000000{number}', '{payer}',
            '{TIME}', 1, 2, 3, 4, 'm', 0.5, 60
        )
    """


# Statements that each role may run. All values are plain literals, so that the
# statements themselves use no cast, operator or function.
ALLOWED = {
    APP: [
        "INSERT INTO app.users (email, name) VALUES ('new@example.com', 'New')",
        "UPDATE app.users SET name = 'Ada' WHERE email IN ('ada@example.com')",
        "INSERT INTO app.fingerprints (sig_hash) VALUES ('x')",
        message(ADA, 1),
        message(ADA, 2),
        f"""
        SELECT * FROM app.record_message(
            '00000000-0000-4000-8000-000000000004', '{ADA}', '{FINGERPRINT}', '{TIME}',
            1, 2, 3, 4, NULL, 'm', NULL, NULL, 0.5, 60, '[1]', NULL
        )
        """,
        message(FINGERPRINT, 3),
        f"""
        INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
        VALUES ('{ADA}', '00000000-0000-4000-8000-000000000001', '{TIME}', '[1]')
        """,
        f"""
        INSERT INTO app.referrals (
            referrer_id, referred_id, status, credits
        ) VALUES ('{ADA}', '{BOB}', 'completed', 500)
        """,
        f"""
        INSERT INTO app.referrals (referrer_id, referred_id, credits)
        VALUES ('{ADA}', '{EVE}', 500)
        """,
        "UPDATE app.referrals SET status = 'completed' WHERE status IN ('pending')",
        f"UPDATE app.users SET email_verified_at = '{TIME}'",
    ],
    SYNC: [
        f"""
        UPDATE app.users SET
            quota_anchor = '{TIME}', next_quota_reset = '2026-04-30 23:30:00+00',
            subscription_status = 'active', stripe_subscription_id = 'sub_9'
        """,
        f"""
        SELECT * FROM app.apply_stripe_event(
            'evt_1', 'customer.created', NULL, '{TIME}', '{{}}', 'cus_1', 'customers',
            'false',
            '{{"id": "cus_1", "claimed_user_id": "{BOB}", "is_deleted": false,
               "created_at": "{TIME}", "as_of": "2026-04-01T00:00:00Z"}}'
        )
        """,
        f"""
        SELECT * FROM app.apply_stripe_event(
            'evt_2', 'customer.subscription.created', NULL, '{TIME}', '{{}}', 'cus_1',
            'subscriptions', 'false',
            '{{"id": "sub_1", "customer_id": "cus_3", "status": "active",
               "claimed_user_id": "{EVE}",
               "cancel_at_period_end": false, "is_provisional": false,
               "created_at": "{TIME}", "as_of": "2026-04-01T00:00:00Z",
               "billing_cycle_anchor": "{TIME}",
               "items": [{{"id": "si_1", "price_id": "price_1", "quantity": 1,
                          "current_period_start": "{TIME}",
                          "current_period_end": "2026-04-30T23:30:00Z"}}]}}'
        )
        """,
        f"SELECT * FROM app.sync_stripe_users('{{{ADA},{BOB}}}')",
    ],
    READONLY: [
        f"SELECT app.get_period_start('{TIME}', '2026-05-01 00:00:00+00')",
        f"SELECT app.get_period_end('{TIME}', '2026-05-01 00:00:00+00')",
        f"SELECT * FROM app.get_period_usage('{ADA}', '{TIME}', NULL, '{TIME}')",
        "SELECT quota_period_start FROM app.users",
    ],
}
# Statements that a trigger function of the schema refuses.
REFUSED = {
    APP: [
        f"INSERT INTO app.fingerprints (id) VALUES ('{ADA}')",
        "UPDATE app.referrals SET status = 'pending'",
    ],
    SYNC: [
        "UPDATE app.stripe_customers SET is_deleted = 'true',"
        " as_of = '2020-01-01 00:00:00+00'"
    ],
    READONLY: [],
}

# An argument of each type, for calling every function.
ARGUMENTS = {
    "bigint": "1",
    "boolean": "true",
    "bytea": "\\x00",
    "date": "2026-03-31",
    "integer": "1",
    "interval": "1 day",
    "jsonb": "[]",
    "jsonb[]": '{"[]"}',
    "numeric": "1",
    "text": "customers",
    "text[]": "{sub_1}",
    "timestamp with time zone": TIME,
    "uuid": ADA,
    "uuid[]": f"{{{ADA}}}",
}

# The least number of traps of each kind.
FEWEST = {
    "type": 70,
    "view": 40,
    "table": 40,
    "function": 100,
    "operator": 300,
    "collation": 4,
    "cast": 15,
}

# Statements that would change a function body or what its names refer to.
FORBIDDEN = [
    "SET ROLE {owner}",
    "SET SESSION AUTHORIZATION {owner}",
    "ALTER FUNCTION app.add_usage() SECURITY INVOKER",
    "ALTER FUNCTION app.add_usage() RESET search_path",
    "CREATE OR REPLACE FUNCTION app.add_usage() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NULL; END'",
    "CREATE FUNCTION app.add_usage(x integer) RETURNS integer LANGUAGE sql RETURN x",
    "CREATE DOMAIN app.date AS text",
    "CREATE TYPE pg_catalog.mine AS ENUM ()",
    "CREATE CAST (text AS date) WITH INOUT AS IMPLICIT",
    "CREATE EVENT TRIGGER mine ON ddl_command_end EXECUTE FUNCTION app.refuse_change()",
    "CREATE TRIGGER mine AFTER INSERT ON app.messages"
    " EXECUTE FUNCTION app.refuse_change()",
    "CREATE RULE mine AS ON INSERT TO app.usage_slots DO NOTHING",
    "SET session_replication_role = replica",
    "SET allow_system_table_mods = on",
    "SET plpgsql.variable_conflict = use_variable",
    "ALTER DATABASE {database} SET search_path = pg_temp",
    "ALTER ROLE {owner} SET search_path = pg_temp",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON TABLES TO public",
    "CREATE TEMPORARY TABLE mine () INHERITS (app.messages)",
    "COPY app.plans TO PROGRAM 'true'",
]
FORBIDDEN_ERRORS = (InsufficientPrivilege, UndefinedObject, WrongObjectType)


@dataclass
class Arena:
    """A database, its owner and the logins that attack it."""

    url: str
    owner: str
    logins: dict[str, str]
    names: Names


@dataclass
class Attack:
    """Results of an attack: users of traps, and SECURITY DEFINER functions run."""

    traps: dict[str, int]
    ran_as: set[str] = field(default_factory=set)
    failed: list[str] = field(default_factory=list)
    definers: set[str] = field(default_factory=set)
    has_backdoor: bool = False

    def add_notice(self, notice: Diagnostic) -> None:
        text = notice.message_primary or ""
        if text.startswith(NOTICE):
            self.ran_as.add(text.removeprefix(NOTICE))


@pytest.fixture(params=["superuser", "plain"])
def arena(request: pytest.FixtureRequest, database: str) -> Iterator[Arena]:
    """Return a database owned by a superuser, and one by another role."""
    with role_logins(database) as logins, psycopg.connect(database) as conn:
        conn.autocommit = True
        conn.execute(ROWS.encode())
        for login in logins.values():
            name = sql.Identifier(login_name(login))
            conn.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(name))
            conn.execute(
                sql.SQL("ALTER ROLE {} SET track_functions = 'all'").format(name)
            )
        owner = conn.info.user
        if request.param == "plain":
            owner = login_name(logins[APP]) + "_owner"
            change_owner(conn, owner)
        yield Arena(database, owner, logins, read_names(conn))
        if request.param == "plain":
            change_owner(conn, conn.info.user)
            conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(owner)))


def change_owner(conn: psycopg.Connection, owner: str) -> None:
    """Make *owner* the owner of the schema and its objects; create it if needed."""
    name = sql.Identifier(owner)
    with suppress(DuplicateObject):
        conn.execute(sql.SQL("CREATE ROLE {}").format(name))
    objects = conn.execute("""
        SELECT 'TABLE', c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace = 'app'::regnamespace AND c.relkind IN ('r', 'p', 'v')
        UNION ALL
        SELECT 'FUNCTION', p.oid::regprocedure::text FROM pg_proc AS p
        WHERE p.pronamespace = 'app'::regnamespace
        UNION ALL
        SELECT 'SCHEMA', 'app'
    """).fetchall()
    for kind, object_name in objects:
        conn.execute(
            sql.SQL("ALTER {} {} OWNER TO {}").format(
                sql.SQL(kind), sql.SQL(object_name), name
            )
        )


def attack(arena: Arena, role: str, schema: str, kinds: Collection[str]) -> Attack:
    """Create traps as a login of *role*, run all bodies that it can, and roll back."""
    with psycopg.connect(arena.logins[role]) as conn:
        found = Attack(create_traps(conn, arena.names, schema, kinds))
        conn.add_notice_handler(found.add_notice)
        if schema != "pg_temp":
            conn.execute("SET LOCAL search_path = public, pg_temp, pg_catalog")
        for statement in ALLOWED[role]:
            if error := run(conn, statement):
                found.failed.append(f"{statement.strip()}: {error}")
        for statement in REFUSED[role]:
            error = run(conn, statement)
            if not isinstance(error, (RestrictViolation, CheckViolation)):
                found.failed.append(f"{statement.strip()}: {error or 'not refused'}")
        for statement in calls(arena, role):
            run(conn, statement)
        conn.execute("SET LOCAL search_path = pg_catalog, pg_temp")
        found.definers = {
            name
            for (name,) in conn.execute("""
                SELECT s.funcname::text FROM pg_stat_xact_user_functions AS s
                INNER JOIN pg_proc AS p ON p.oid = s.funcid
                WHERE s.schemaname = 'app' AND p.prosecdef
            """)
        }
        found.has_backdoor = bool(
            conn.execute("SELECT FROM pg_proc WHERE proname = 'backdoor'").rowcount
        )
        conn.rollback()
    return found


def run(conn: psycopg.Connection, statement: str) -> psycopg.Error | None:
    """Run *statement* in a savepoint; return its error, or None."""
    try:
        with conn.transaction():
            conn.execute(statement.encode())
    except psycopg.Error as exc:
        return exc
    return None


def calls(arena: Arena, role: str) -> list[str]:
    """Return a call of each function of the schema that *role* may call."""
    with psycopg.connect(arena.url) as conn:
        functions = conn.execute(
            """
            SELECT p.proname, ARRAY(
                SELECT format_type(a.oid, NULL)
                FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a (oid, n)
                ORDER BY a.n
            )
            FROM pg_proc AS p
            WHERE p.pronamespace = 'app'::regnamespace
                AND p.prorettype <> 'trigger'::regtype
                AND has_function_privilege(%s, p.oid, 'EXECUTE')
            """,
            [role],
        ).fetchall()
    return [
        "SELECT * FROM app.{}({})".format(
            name, ", ".join(f"'{ARGUMENTS[kind]}'" for kind in types)
        )
        for name, types in functions
    ]


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [("pg_temp", KINDS), ("pg_temp", ["table"]), ("public", KINDS)],
    ids=["pg_temp", "tables of pg_temp", "public"],
)
def test_no_body_runs_code_of_its_caller(
    arena: Arena, schema: str, kinds: Collection[str]
):
    definers = set()
    for role, login in arena.logins.items():
        found = attack(arena, role, schema, kinds)
        definers |= found.definers

        assert not found.failed, "\n".join(found.failed)
        assert found.ran_as <= {login_name(login)}
        assert not found.has_backdoor
        too_few = {k: n for k, n in found.traps.items() if n < FEWEST[k]}
        assert not too_few
    with psycopg.connect(arena.url) as conn:
        known = conn.execute("""
            SELECT p.proname::text FROM pg_proc AS p
            WHERE p.pronamespace = 'app'::regnamespace AND p.prosecdef
        """).fetchall()

    assert definers == {name for (name,) in known}, (
        "no login runs this SECURITY DEFINER function: add a statement to ALLOWED"
    )


# Each change makes one function vulnerable to a trap in the schema named.
PLANTED = (
    "CREATE OR REPLACE FUNCTION app.refuse_user_id() RETURNS trigger LANGUAGE plpgsql"
)
VULNERABLE = {
    "type, pg_temp not listed": (
        "pg_temp",
        f"{PLANTED} SECURITY DEFINER SET search_path = '' AS"
        " $$BEGIN PERFORM '2026-01-01'::date; RETURN NEW; END$$",
    ),
    "type, pg_temp first": (
        "pg_temp",
        f"{PLANTED} SECURITY DEFINER SET search_path = pg_temp, pg_catalog AS"
        " $$BEGIN PERFORM '2026-01-01'::date; RETURN NEW; END$$",
    ),
    "view": (
        "pg_temp",
        f"{PLANTED} SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS"
        " $$BEGIN PERFORM FROM users; RETURN NEW; END$$",
    ),
    "table": (
        "pg_temp",
        f"{PLANTED} SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS"
        " $$BEGIN DELETE FROM users; RETURN NEW; END$$",
    ),
    "function": (
        "public",
        f"{PLANTED} SECURITY DEFINER AS $$BEGIN PERFORM lower('x'); RETURN NEW; END$$",
    ),
    "operator": (
        "public",
        f"{PLANTED} SECURITY DEFINER AS $$BEGIN PERFORM 1 + 1; RETURN NEW; END$$",
    ),
}


@pytest.mark.parametrize("vulnerable", VULNERABLE)
def test_attack_reaches_a_vulnerable_body(arena: Arena, vulnerable: str):
    schema, change = VULNERABLE[vulnerable]
    with psycopg.connect(arena.url) as conn:
        conn.execute(change.encode())
    kind = vulnerable.partition(",")[0]

    found = attack(arena, APP, schema, [kind])

    assert arena.owner in found.ran_as


def test_rollup_of_citus_runs_no_code_of_its_caller(arena: Arena):
    text = (sql_dir() / "citus.sql").read_text(encoding="utf-8")
    function = re.search(r"CREATE OR REPLACE FUNCTION.*?\$\$;", text, re.DOTALL)
    assert function
    with psycopg.connect(arena.url) as conn:
        conn.execute(function[0].encode())

    for kinds in (KINDS, ["table"]):
        found = attack(arena, APP, "pg_temp", kinds)

        assert "add_usage" in found.definers
        assert not found.failed
        assert found.ran_as <= {login_name(arena.logins[APP])}


def test_functions_of_pg_temp_are_not_called_unqualified(arena: Arena):
    """PostgreSQL searches pg_temp for types and relations only."""
    kinds = ("function", "operator", "collation")
    change = f"{PLANTED} SECURITY DEFINER AS $$BEGIN PERFORM {{}}; RETURN NEW; END$$"
    for expression in ("lower('x')", "1 + 1", "lower('x' COLLATE \"C\")"):
        with psycopg.connect(arena.url) as conn:
            conn.execute(change.format(expression).encode())
        with psycopg.connect(arena.logins[APP]) as conn:
            seen = Attack(create_traps(conn, arena.names, "pg_temp", kinds))
            conn.add_notice_handler(seen.add_notice)
            conn.execute("SET LOCAL search_path = pg_temp, pg_catalog")
            conn.execute("INSERT INTO app.fingerprints (sig_hash) VALUES ('x')")
            conn.rollback()

        assert seen.ran_as == set(), expression


def test_login_cannot_change_what_names_in_bodies_mean(arena: Arena):
    done = []
    for role, login in arena.logins.items():
        with psycopg.connect(login) as conn:
            values = {
                "owner": sql.Identifier(arena.owner),
                "database": sql.Identifier(conn.info.dbname),
            }
            # Load PL/pgSQL, which defines its settings.
            conn.execute("DO 'BEGIN END'")
            for statement in FORBIDDEN:
                formatted = sql.SQL(statement).format(**values).as_string(conn)
                if not isinstance(run(conn, formatted), FORBIDDEN_ERRORS):
                    done.append((role, statement))

    assert done == []


def test_trigger_function_cannot_be_used_on_a_temporary_table(arena: Arena):
    for login in arena.logins.values():
        for function in ("add_usage", "grant_referral_credits", "refuse_user_id"):
            with psycopg.connect(login) as conn:
                conn.execute("CREATE TEMPORARY TABLE inserted (id uuid)")
                with pytest.raises(InsufficientPrivilege):
                    conn.execute(
                        f"CREATE TRIGGER mine AFTER INSERT ON inserted FOR EACH ROW"
                        f" EXECUTE FUNCTION app.{function}()".encode()
                    )
