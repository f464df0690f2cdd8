"""Locks that each role of sql/roles.sql can take, and columns that it can write.

LOCK TABLE needs a privilege on the table itself: ACCESS SHARE needs SELECT, ROW
EXCLUSIVE needs INSERT, and UPDATE, DELETE, TRUNCATE, and MAINTAIN since 17, allow
every mode. A privilege on columns allows none.
"""

import re
import threading
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege

from pyapp._core.queries import QUERIES, sql_dir
from pyapp.roles import ROLES, apply_roles
from pyapp.stripe_sync import runs
from tests.role_logins import role_logins
from tests.role_statements import APP, READONLY, SYNC
from tests.waiting import wait_for_lock

MODES = [
    "ACCESS SHARE",
    "ROW SHARE",
    "ROW EXCLUSIVE",
    "SHARE UPDATE EXCLUSIVE",
    "SHARE",
    "SHARE ROW EXCLUSIVE",
    "EXCLUSIVE",
    "ACCESS EXCLUSIVE",
]
# The modes that a privilege on the table allows. Before 16, INSERT allows ROW EXCLUSIVE
# only, and the others do not allow ACCESS SHARE.
GIVEN = {
    "SELECT": MODES[:1],
    "INSERT": MODES[:3],
    "UPDATE": MODES,
    "DELETE": MODES,
    "TRUNCATE": MODES,
    "MAINTAIN": MODES,
}
STRONG = ["UPDATE", "DELETE", "TRUNCATE", "MAINTAIN"]


@pytest.fixture
def granted(conn: psycopg.Connection) -> psycopg.Connection:
    """Return a connection with the roles, created in its transaction."""
    apply_roles(conn)
    return conn


@pytest.fixture
def logins(database: str) -> Iterator[dict[str, str]]:
    """Return the connection string of one login for each role."""
    with role_logins(database) as found:
        yield found


def table_privileges(conn: psycopg.Connection) -> set[tuple[str, str, str]]:
    """Return (role, table, privilege) for privileges on whole tables."""
    found = conn.execute(
        """
        SELECT r.rolname, c.oid::regclass::text, a.privilege_type
        FROM pg_class AS c
        CROSS JOIN LATERAL aclexplode(c.relacl) AS a
        INNER JOIN pg_roles AS r ON r.rolname = ANY(%s)
        WHERE c.relnamespace = 'app'::regnamespace
            AND pg_has_role(r.oid, NULLIF(a.grantee, 0), 'USAGE') IS NOT FALSE
        """,
        [list(ROLES)],
    ).fetchall()
    return set(found)


def relations(conn: psycopg.Connection) -> list[str]:
    return [
        name
        for (name,) in conn.execute("""
            SELECT c.oid::regclass::text FROM pg_class AS c
            WHERE c.relnamespace = 'app'::regnamespace AND c.relkind IN ('r', 'p', 'v')
            ORDER BY 1
        """)
    ]


def can_lock(conn: psycopg.Connection, relation: str, mode: str) -> bool:
    """Return whether the current role may take the lock."""
    try:
        with conn.transaction(force_rollback=True):
            conn.execute(f"LOCK TABLE {relation} IN {mode} MODE".encode())
    except InsufficientPrivilege:
        return False
    return True


def test_no_role_has_a_privilege_that_allows_every_lock(granted: psycopg.Connection):
    strong = {found for found in table_privileges(granted) if found[2] in STRONG}

    assert strong == set(), "grant UPDATE by column, DELETE by a function"


def test_role_takes_only_the_locks_of_its_privileges(granted: psycopg.Connection):
    privileges = table_privileges(granted)
    tables = relations(granted)
    too_many, strong = [], set()
    for role in ROLES:
        granted.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
        for table in tables:
            held = {
                kind for who, what, kind in privileges if (who, what) == (role, table)
            }
            given = {mode for kind in held & set(GIVEN) for mode in GIVEN[kind]}
            for mode in MODES:
                if not can_lock(granted, table, mode):
                    continue
                if mode not in given:
                    too_many.append((role, table, mode))
                if mode not in GIVEN["INSERT"]:
                    strong.add((role, table))
        granted.execute("RESET ROLE")

    assert len(tables) > 10
    assert too_many == []
    assert strong == set()


def test_role_gets_no_lock_through_its_own_view(logins: dict[str, str]):
    locked = []
    for role, login in logins.items():
        with psycopg.connect(login) as conn:
            for table in ("users", "messages", "stripe_events", "stripe_customers"):
                conn.execute(
                    sql.SQL("CREATE TEMPORARY VIEW {} AS SELECT id FROM {}").format(
                        sql.Identifier(f"v_{table}"), sql.Identifier("app", table)
                    )
                )
                locked += [
                    (role, table, mode)
                    for mode in MODES[1:]
                    if can_lock(conn, f"pg_temp.v_{table}", mode)
                ]

    assert locked == []


def written_columns(conn: psycopg.Connection) -> set[tuple[str, str, str]]:
    """Return every (INSERT or UPDATE, table, column) of the queries and functions."""
    texts = [query.sql for query in QUERIES.values()]
    # A SECURITY DEFINER function needs no privileges of its caller.
    bodies = conn.execute(
        "SELECT prosrc FROM pg_proc"
        " WHERE pronamespace = 'app'::regnamespace AND NOT prosecdef"
    ).fetchall()
    found = set()
    for text in [*texts, *(body for (body,) in bodies)]:
        clean = re.sub(r"--.*", "", text)
        # Assignments up to the next INSERT or UPDATE belong to this table.
        parts = re.split(r"\b(INSERT\s+INTO|UPDATE)\s+(app\.\w+)", clean)
        for table, rest in zip(parts[2::3], parts[3::3], strict=True):
            columns = re.match(r"(?:\s+AS\s+\w+)?\s*\(([^)]*)\)", rest)
            if columns:
                names = re.findall(r"\w+", columns[1])
                found |= {("INSERT", table, name) for name in names}
            for assigned in re.findall(r"(?:\bSET|,)\s+(\w+)\s*=(?!=)", rest):
                found.add(("UPDATE", table, assigned))
    return found


def test_role_may_write_only_columns_that_queries_write(granted: psycopg.Connection):
    written = written_columns(granted)
    found = granted.execute(
        """
        SELECT k.kind, c.oid::regclass::text, a.attname, r.rolname
        FROM pg_attribute AS a
        INNER JOIN pg_class AS c ON c.oid = a.attrelid
        INNER JOIN pg_roles AS r ON r.rolname = ANY(%s)
        CROSS JOIN (VALUES ('INSERT'), ('UPDATE')) AS k (kind)
        WHERE c.relnamespace = 'app'::regnamespace AND c.relkind IN ('r', 'p')
            AND a.attnum > 0 AND NOT a.attisdropped
            AND has_column_privilege(r.oid, c.oid, a.attnum, k.kind)
        """,
        [list(ROLES)],
    ).fetchall()

    assert len(found) > 70
    assert [row for row in found if row[:3] not in written] == []


def test_role_may_read_only_tables_that_queries_read(granted: psycopg.Connection):
    """pyapp_readonly is exempt: its reports are written by users."""
    texts = " ".join(query.sql for query in QUERIES.values())
    bodies = granted.execute(
        "SELECT prosrc || pg_get_functiondef(oid) FROM pg_proc"
        " WHERE pronamespace = 'app'::regnamespace"
    ).fetchall()
    texts += " ".join(body for (body,) in bodies)
    read = {
        table
        for role, table, kind in table_privileges(granted)
        if role != READONLY and kind == "SELECT"
    }

    assert read
    assert [table for table in read if not re.search(rf"{table}\b", texts)] == []


# What sql/roles.sql lists under "What privileges do not prevent".


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE RULE mine AS ON INSERT TO app.messages DO INSTEAD NOTHING",
        "CREATE TRIGGER mine AFTER INSERT ON app.messages FOR EACH ROW"
        " EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
    ],
)
def test_refused_statement_waits_for_its_lock_first(
    logins: dict[str, str], database: str, statement: str
):
    """PostgreSQL checks the owner of the table only once it has the lock."""
    errors: list[Exception] = []
    with (
        psycopg.connect(database) as writer,
        psycopg.connect(logins[READONLY], autocommit=True) as reader,
        psycopg.connect(database, autocommit=True) as watcher,
    ):
        writer.execute("LOCK TABLE app.messages IN ROW EXCLUSIVE MODE")

        def refuse() -> None:
            try:
                reader.execute(statement.encode())
            except psycopg.Error as exc:
                errors.append(exc)

        thread = threading.Thread(target=refuse)
        thread.start()
        wait_for_lock(watcher, reader)
        writer.rollback()
        thread.join()

    assert [type(error) for error in errors] == [InsufficientPrivilege]


def test_command_in_roles_sql_revokes_advisory_locks(
    logins: dict[str, str], database: str
):
    text = (sql_dir() / "roles.sql").read_text(encoding="utf-8")
    lines = re.findall(r"^--     (.*)", text, re.MULTILINE)
    with psycopg.connect(database, autocommit=True) as owner:
        with psycopg.connect(logins[READONLY]) as conn:
            assert runs.try_lock_runs(conn, kind="reconcile").is_held

        commands = "\n".join(lines).partition("REVOKE")
        owner.execute((commands[1] + commands[2]).encode())

        for role in (APP, READONLY):
            with (
                psycopg.connect(logins[role]) as conn,
                pytest.raises(InsufficientPrivilege),
            ):
                runs.try_lock_runs(conn, kind="reconcile")
        for function in ("pg_advisory_lock", "pg_advisory_xact_lock_shared"):
            with (
                psycopg.connect(logins[READONLY]) as conn,
                pytest.raises(InsufficientPrivilege),
            ):
                conn.execute(f"SELECT {function}(1)".encode())
        with psycopg.connect(logins[SYNC]) as conn:
            assert runs.try_lock_runs(conn, kind="reconcile").is_held
            assert runs.unlock_runs(conn, kind="reconcile").is_held
            conn.execute("SELECT app.lock_stripe_customer('cus_1')")
