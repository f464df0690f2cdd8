"""Privileges that migrations need, and privileges that adoption keeps."""

import gzip
from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pyapp._core.connection import connect
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.migrations.adopt import adopt
from pyapp.devtools.migrations.migrator import list_migrations, migrate, rollback
from pyapp.messages import record_message
from tests.metering import add_user
from tests.role_logins import role_logins
from tests.role_statements import APP
from tests.support import run_cli
from tests.test_adopt import EARLIER

ROLE = 'Mi"grator'


@pytest.fixture
def owner(empty_database: str) -> Iterator[psycopg.Connection]:
    """Return a superuser's connection; a role without privileges exists."""
    with psycopg.connect(empty_database, autocommit=True) as conn:
        name = conn.info.dbname
        conn.execute('DROP ROLE IF EXISTS "Mi""grator"')
        conn.execute('CREATE ROLE "Mi""grator" LOGIN PASSWORD \'pw\'')
        conn.execute("REVOKE CREATE ON SCHEMA public FROM public")
        yield conn
        conn.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER".encode())
        conn.execute('DROP OWNED BY "Mi""grator"')
        conn.execute('DROP ROLE "Mi""grator"')


@pytest.fixture
def url(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the DATABASE_URL of that role."""
    url = make_conninfo(empty_database, user=ROLE, password="pw")
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("ENVIRONMENT", "local")
    return url


def test_migrate_names_missing_grants(
    owner: psycopg.Connection, url: str, empty_database: str
):
    """The statements of the error are sufficient."""
    prefix = (
        f"error: the role {ROLE} may not create what the migrations need; let the"
        " database's owner or a superuser run: "
    )
    public = 'GRANT CREATE ON SCHEMA public TO "Mi""grator"'
    database = f'GRANT CREATE ON DATABASE {owner.info.dbname} TO "Mi""grator"'

    expected = f"{prefix}{public}; {database}\n"
    assert run_cli("db", "migrate") == (1, "", expected)
    owner.execute(public.encode())
    assert run_cli("db", "migrate") == (1, "", f"{prefix}{database}\n")
    owner.execute(database.encode())
    code, _, err = run_cli("db", "migrate")

    assert (code, err) == (0, "")
    assert {s.state for s in list_migrations(url)} == {"applied"}
    assert check(url, scratch_url=empty_database).differences == 0


def test_database_owner_needs_a_grant_on_public_only(
    owner: psycopg.Connection, url: str
):
    """Since 15 a database owner may create in public; here it was revoked."""
    owner.execute(f'ALTER DATABASE {owner.info.dbname} OWNER TO "Mi""grator"'.encode())
    owner.execute("ALTER SCHEMA public OWNER TO CURRENT_USER")

    code, _, err = run_cli("db", "migrate")

    assert code == 1
    assert err.endswith(' run: GRANT CREATE ON SCHEMA public TO "Mi""grator"\n')


@pytest.mark.parametrize(
    ("granted", "missing"), [("CREATE", "USAGE"), ("", "USAGE, CREATE")]
)
def test_missing_usage_on_public_is_named(
    owner: psycopg.Connection, url: str, granted: str, missing: str
):
    owner.execute(
        f'GRANT CREATE ON DATABASE {owner.info.dbname} TO "Mi""grator"'.encode()
    )
    owner.execute("REVOKE USAGE ON SCHEMA public FROM public")
    if granted:
        owner.execute(f'GRANT {granted} ON SCHEMA public TO "Mi""grator"'.encode())
    grant = f'GRANT {missing} ON SCHEMA public TO "Mi""grator"'

    code, out, err = run_cli("db", "migrate")

    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.endswith(f" run: {grant}\n")
    owner.execute(grant.encode())
    assert run_cli("db", "migrate")[0] == 0


def test_migrated_database_needs_usage_on_public_only(
    owner: psycopg.Connection, url: str
):
    owner.execute('GRANT CREATE ON SCHEMA public TO "Mi""grator"')
    owner.execute(
        f'GRANT CREATE ON DATABASE {owner.info.dbname} TO "Mi""grator"'.encode()
    )
    assert run_cli("db", "migrate")[0] == 0
    owner.execute('REVOKE CREATE ON SCHEMA public FROM "Mi""grator"')
    owner.execute("REVOKE USAGE ON SCHEMA public FROM public")

    code, _, err = run_cli("db", "migrate")

    assert code == 1
    assert err.endswith(' run: GRANT USAGE ON SCHEMA public TO "Mi""grator"\n')


def test_missing_schema_public_is_named(owner: psycopg.Connection, url: str):
    owner.execute("DROP SCHEMA public")
    owner.execute(
        f'GRANT CREATE ON DATABASE {owner.info.dbname} TO "Mi""grator"'.encode()
    )

    code, _, err = run_cli("db", "migrate")

    assert code == 1
    assert err.endswith(' run: CREATE SCHEMA public AUTHORIZATION "Mi""grator"\n')


def test_migrated_database_needs_no_grant_for_migrate(
    owner: psycopg.Connection, url: str, empty_database: str
):
    owner.execute('GRANT CREATE ON SCHEMA public TO "Mi""grator"')
    owner.execute(
        f'GRANT CREATE ON DATABASE {owner.info.dbname} TO "Mi""grator"'.encode()
    )
    assert run_cli("db", "migrate")[0] == 0
    owner.execute('REVOKE CREATE ON SCHEMA public FROM "Mi""grator"')
    owner.execute(
        f'REVOKE CREATE ON DATABASE {owner.info.dbname} FROM "Mi""grator"'.encode()
    )

    code, out, _ = run_cli("db", "migrate")

    assert (code, out) == (0, "Nothing to apply: the schema is up to date\n")


def test_adoption_keeps_the_grants_on_sync_stripe_users(empty_database: str):
    privileges = """
        SELECT a.grantee::regrole::text
        FROM pg_proc AS p CROSS JOIN aclexplode(p.proacl) AS a
        WHERE p.oid = 'app.sync_stripe_users(uuid[], boolean)'::regprocedure
            AND a.grantee <> p.proowner
    """
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(gzip.decompress(EARLIER.read_bytes()))
        conn.execute(
            "REVOKE EXECUTE ON FUNCTION app.sync_stripe_users FROM public;"
            " GRANT EXECUTE ON FUNCTION app.sync_stripe_users TO pg_monitor"
        )
    adopt(empty_database)
    with psycopg.connect(empty_database) as conn:
        assert conn.execute(privileges).fetchall() == [("pg_monitor",)]


# Programs of the release before give neither a provider nor prices.
EARLIER_CALL = """
    SELECT r.is_new
    FROM app.record_message(
        id => gen_random_uuid(), user_id => %(user)s, fingerprint_id => NULL,
        finished_at => now(), input_tokens => 1, cache_creation_input_tokens => 0,
        cache_read_input_tokens => 0, output_tokens => 1, latency_ms => NULL,
        model => 'm', client_id => NULL, client_request_id => NULL, cost => 1,
        credits => 1, request => NULL, response => NULL
    ) AS r
"""


def test_programs_record_between_migrate_and_roles(empty_database: str):
    """The roles are those of before: a rollback drops the newer privileges."""
    migrate(empty_database)
    with connect(empty_database) as conn:
        user_id = add_user(conn)
    with role_logins(empty_database) as logins, psycopg.connect(logins[APP]) as app:
        later = [s.name for s in list_migrations(empty_database) if s.name >= "0017"]
        rollback(empty_database, count=len(later))
        for name in later:
            migrate(empty_database, names=[name])
            found = app.execute(EARLIER_CALL, {"user": user_id}).fetchone()
            app.commit()
            assert found == (True,), name

        recorded = record_message(
            app, user_id=user_id, model="gpt-5", provider="openai", input_tokens=1
        )

        assert recorded.is_new
