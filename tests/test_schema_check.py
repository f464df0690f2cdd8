"""The SQL files, the migrations and a live database are compared."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyapp._core.queries import migrations_dir, sql_dir
from pyapp.cli.schema_check import _as_object
from pyapp.devtools.checks import scratch_server
from pyapp.devtools.checks.dumps import dump_objects
from pyapp.devtools.checks.schema_diff import (
    NO_ROLES,
    PrivilegeCheck,
    SchemaCheck,
    check,
)
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import list_migrations, migrate, rollback
from pyapp.errors import (
    LocalServerError,
    MissingExtraError,
    MissingPrivilegeError,
    NotComparedError,
    SchemaCheckError,
)
from pyapp.payloads import create_payload_partitions
from tests.role_logins import login_name, role_logins
from tests.support import Server, execute

REORDERED = {
    "TABLE app.plans",
    "TABLE app.stripe_subscriptions",
    "FUNCTION app.compare_stripe_subscriptions(jsonb, text, boolean)",
}


def report_of(result: SchemaCheck) -> list[str]:
    """Return the lines that a check prints."""
    lines = [line for c in result.comparisons for _, line in c.report()]
    return [f"{s.name} is {s.state}" for s in result.wrong] + lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the migrations that the test may change."""
    return shutil.copytree(migrations_dir(), tmp_path / "migrations")


def test_migrations_build_what_the_sql_files_build(server: Server) -> None:
    result = check(None, scratch_url=server.url("postgres"))
    assert report_of(result) == []
    assert result.objects > 200


def without_order(dump: dict[str, str]) -> dict[str, list[str] | str]:
    """Return *dump* without the order of columns that a rollback has added again.

    They are the last ones of their table then. A function in BEGIN ATOMIC lists them.
    """
    return {
        name: sorted(re.split(r"[,()\s]+", text)) if name in REORDERED else text
        for name, text in dump.items()
    }


def test_each_migration_goes_down_and_up_again_to_equal_dumps(
    empty_database: str,
) -> None:
    dumps = [dump_objects(empty_database)]
    for _ in read_migrations():
        migrate(empty_database, count=1)
        dumps.append(dump_objects(empty_database))
    for before in reversed(dumps[:-1]):
        rollback(empty_database)
        after = dump_objects(empty_database)
        assert without_order(after) == without_order(before)
    migrate(empty_database)
    assert dump_objects(empty_database) == dumps[-1]


def test_partitions_and_new_plans_are_not_differences(empty_database: str) -> None:
    migrate(empty_database)
    assert create_payload_partitions(empty_database, months=2) == 2
    execute(empty_database, "INSERT INTO app.plans VALUES ('gold', 9)")
    result = check(empty_database)
    assert report_of(result) == []
    assert result.privileges == PrivilegeCheck(None, NO_ROLES)


def test_drift_of_a_live_database_is_shown_as_sql(empty_database: str) -> None:
    migrate(empty_database)
    execute(
        empty_database,
        "CREATE INDEX planted_idx ON app.users (name)",
        "ALTER TABLE app.plans ALTER COLUMN monthly_credits SET DEFAULT 7",
        "COMMENT ON TABLE app.sessions IS NULL",
        "UPDATE app.plans SET monthly_credits = 3000 WHERE id = 'free'",
    )
    result = check(empty_database)
    lines = report_of(result)
    assert result.differences == 4
    assert {one["title"] for one in _as_object(result)["differences"]} == {
        "TABLE app.plans",
        "ROW app.plans free",
        "COMMENT app.TABLE sessions",
        "INDEX app.planted_idx",
    }
    assert (
        "-- INDEX app.planted_idx is in the live database, not in the migrations"
        in (lines)
    )
    assert "CREATE INDEX planted_idx ON app.users USING btree (name);" in lines
    assert "-    monthly_credits numeric NOT NULL," in lines
    assert "+    monthly_credits numeric DEFAULT 7 NOT NULL," in lines
    assert (
        "-- COMMENT app.TABLE sessions is in the migrations, not in the live database"
    ) in lines
    assert (
        "-- ROW app.plans free differs: - in the migrations, + in the live database"
    ) in lines


def test_rules_without_effect_are_reported(empty_database: str) -> None:
    migrate(empty_database)
    execute(
        empty_database,
        "ALTER TABLE app.messages ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE app.sessions DISABLE TRIGGER ALL",
    )
    result = check(empty_database)
    assert {one["title"] for one in _as_object(result)["differences"]} == {
        "ROW SECURITY app.messages",
        "DISABLED CONSTRAINT app.sessions sessions_fingerprint_id_fkey",
        "DISABLED CONSTRAINT app.sessions sessions_user_id_fkey",
    }
    assert "ALTER TABLE app.sessions DISABLE TRIGGER ALL;" in report_of(result)


def test_privilege_given_back_to_public_is_reported(empty_database: str) -> None:
    """sql/roles.sql revokes more, which is no difference."""
    migrate(empty_database)
    execute(
        empty_database,
        "REVOKE EXECUTE ON FUNCTION app.set_updated_at() FROM public",
        "GRANT EXECUTE ON FUNCTION app.add_usage() TO public",
    )
    assert report_of(check(empty_database)) == [
        "-- REVOKE app.add_usage() is in the migrations, not in the live database",
        "REVOKE EXECUTE ON FUNCTION app.add_usage() FROM public;",
        "",
    ]


def test_drift_between_the_files_names_the_objects(
    empty_database: str, folder: Path, tmp_path: Path
) -> None:
    migrate(empty_database, folder)
    # One that runs in a transaction may have another statement.
    texts = {path: path.read_text() for path in folder.glob("*.sql")}
    last = max(path for path, text in texts.items() if "CONCURRENTLY" not in text)
    last.write_text(f"{last.read_text()}CREATE INDEX extra_idx ON app.users (name);\n")
    schema = shutil.copytree(sql_dir(), tmp_path / "sql")
    with (schema / "schema.sql").open("a") as file:
        file.write("CREATE INDEX other_idx ON app.users (name);\n")
    with (schema / "functions" / "quota.sql").open("a") as file:
        file.write("CREATE FUNCTION app.one() RETURNS int LANGUAGE sql RETURN 1;\n")
    lines = report_of(check(empty_database, schema=schema, folder=folder))
    assert f"{last.stem} is edited" in lines
    assert "-- INDEX app.other_idx is in schema.sql, not in the migrations" in lines
    assert "-- FUNCTION app.one() is in quota.sql, not in the migrations" in lines
    assert "-- INDEX app.extra_idx is in the migrations, not in schema.sql" in lines
    assert (
        "-- INDEX app.extra_idx is in the migrations, not in the live database"
    ) in lines


def test_edit_after_plain_yoyo_is_found_after_a_first_check(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, folder)
    execute(empty_database, "DROP TABLE public.pyapp_migration_checksums")
    assert report_of(check(empty_database, folder=folder)) == []
    first = sorted(folder.glob("*.sql"))[1]
    first.write_text(first.read_text() + "-- Harmless.\n")
    assert report_of(check(empty_database, folder=folder)) == [
        f"{first.stem} is edited"
    ]


def test_pending_migration_is_the_only_difference(empty_database: str) -> None:
    names = [file.name for file in read_migrations()]
    migrate(empty_database, count=len(names) - 1)
    assert report_of(check(empty_database)) == [f"{names[-1]} is pending"]


def test_empty_database_has_all_migrations_pending(empty_database: str) -> None:
    names = [file.name for file in read_migrations()]
    assert report_of(check(empty_database)) == [f"{name} is pending" for name in names]


def test_invalid_schema_file_is_named(server: Server, tmp_path: Path) -> None:
    schema = tmp_path / "sql"
    schema.mkdir()
    (schema / "schema.sql").write_text("CREATE TABLE app.users ();")
    with pytest.raises(SchemaCheckError, match=r'schema.sql .* "app" does not exist'):
        check(None, scratch_url=server.url("postgres"), schema=schema)


def test_scratch_databases_are_dropped_after_interrupt_or_kill(
    server: Server,
) -> None:
    url = server.url("postgres")
    left_over, of_others = "pyapp_scratch_1_0123abcd", "pyapp_scratch_1_kept"
    execute(url, f"CREATE DATABASE {left_over}", f"CREATE DATABASE {of_others}")
    with (
        pytest.raises(KeyboardInterrupt),
        scratch_database(url) as scratch,
        psycopg.connect(scratch),
    ):
        raise KeyboardInterrupt
    with psycopg.connect(url) as conn:
        left = conn.execute(
            "SELECT datname FROM pg_database WHERE datname ~ '^pyapp_scratch_1_'"
            " OR datname = %s",
            [psycopg.conninfo.conninfo_to_dict(scratch)["dbname"]],
        ).fetchall()
    execute(url, f"DROP DATABASE {of_others}")
    assert left == [(of_others,)]


@pytest.fixture
def plain_owner(empty_database: str) -> Iterator[str]:
    """Return the URL of a migrated database for an owner without CREATEDB."""
    name = f"owner_{uuid4().hex}"
    database = conninfo_to_dict(empty_database)["dbname"]
    execute(
        empty_database,
        f"CREATE ROLE {name} LOGIN PASSWORD 'pw'",
        f"ALTER DATABASE {database} OWNER TO {name}",
    )
    url = make_conninfo(empty_database, user=name, password="pw")
    migrate(url)
    yield url
    execute(empty_database, f"DROP OWNED BY {name} CASCADE")
    user = conninfo_to_dict(empty_database)["user"]
    execute(empty_database, f"ALTER DATABASE {database} OWNER TO {user}")
    execute(empty_database, f"DROP ROLE {name}")


def test_role_without_createdb_is_compared_on_a_temporary_server(
    plain_owner: str, empty_database: str
) -> None:
    """What cannot be built there, such as a column of a type of public, is drift."""
    execute(
        plain_owner,
        "CREATE DOMAIN public.name AS text",
        "CREATE TABLE app.planted (name public.name)",
        "DROP INDEX app.messages_client_id_idx",
    )
    execute(empty_database, "CREATE VIEW app.of_another AS SELECT 1 AS one")

    result = check(plain_owner)

    assert "may not create databases: a temporary PostgreSQL" in str(result.note)
    assert [
        difference.title for c in result.comparisons for difference in c.differences
    ] == [
        "INDEX app.messages_client_id_idx",
        "VIEW app.of_another",
        "TABLE app.planted",
        "OWNER VIEW app.of_another",
    ]


def test_scratch_is_named_without_an_embedded_server(
    plain_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str) -> None:
        raise MissingExtraError(name)

    monkeypatch.setattr(scratch_server, "binaries", lambda: find("embedded"))

    with pytest.raises(NotComparedError, match=r"may not create .* with --scratch URL"):
        check(plain_owner)


def test_temporary_server_that_does_not_start_is_named(
    plain_owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise LocalServerError("initdb failed")

    monkeypatch.setattr(scratch_server, "temp_server", fail)

    with pytest.raises(
        NotComparedError, match=r"starts \(initdb failed\): .*--scratch"
    ):
        check(plain_owner)


def test_role_that_may_not_read_all_tables_is_pointed_to_the_owner(
    empty_database: str,
) -> None:
    migrate(empty_database)
    owner = conninfo_to_dict(empty_database)["user"]
    with role_logins(empty_database) as logins:
        for login in logins.values():
            with pytest.raises(NotComparedError, match=f"their owner, {owner}, or let"):
                check(login)


def test_login_without_a_role_lacks_the_marks_of_migrations(
    empty_database: str,
) -> None:
    migrate(empty_database)
    with role_logins(empty_database) as logins:
        login = logins["pyapp_readonly"]
        execute(empty_database, f"REVOKE pyapp_readonly FROM {login_name(login)}")
        with pytest.raises(MissingPrivilegeError) as caught:
            list_migrations(login)
        grants = str(caught.value).partition(" run: ")[2]
        execute(empty_database, grants)
        assert {s.state for s in list_migrations(login)} == {"applied"}
        assert "public._yoyo_migration, public.pyapp_migration_checksums" in grants
