"""A schema app, or marks of yoyo, that belong to another program are left alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from yoyo import get_backend
from yoyo import read_migrations as yoyo_migrations

from pyapp._core.connection import connect
from pyapp._core.queries import sql_dir
from pyapp.devtools.checks.schema_diff import check, load_schema
from pyapp.devtools.migrations.adopt import adopt
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import (
    list_migrations,
    list_rollbacks,
    migrate,
    rollback,
)
from pyapp.errors import MigrationError, SchemaCheckError
from tests.backups import rows_of
from tests.support import execute, run_cli, states, yoyo

NAMES = [file.name for file in read_migrations()]
FOREIGN = """
CREATE SCHEMA app;
CREATE TABLE app.users (id bigserial PRIMARY KEY, email text);
CREATE TABLE app.orders (id int);
CREATE FUNCTION app.total(int) RETURNS int LANGUAGE sql AS 'SELECT 1';
"""
REFUSAL = (
    "the schema app of this database belongs to another program: it has table"
    " app.orders, table app.users, function app.total(integer) and 1 more object;"
    " nothing was changed. pyapp needs this name: use another database, or rename that"
    " schema (ALTER SCHEMA app RENAME TO ...)"
)


def objects(url: str) -> list[tuple[object, ...]]:
    """Return the relations and functions outside the system catalogs."""
    with psycopg.connect(url) as conn:
        return conn.execute(
            "SELECT oid::regclass::text FROM pg_class WHERE oid > 16383"
            " UNION ALL SELECT oid::regprocedure::text FROM pg_proc WHERE oid > 16383"
            " ORDER BY 1"
        ).fetchall()


def marks(url: str) -> set[str]:
    with psycopg.connect(url) as conn:
        found = conn.execute("SELECT migration_id FROM public._yoyo_migration")
        return {name for (name,) in found}


@pytest.fixture(scope="module")
def foreign(module_empty_database: str) -> str:
    """Return a database with a schema app of another program."""
    execute(module_empty_database, FOREIGN)
    return module_empty_database


@pytest.fixture
def logins(empty_database: str) -> Iterator[tuple[str, str]]:
    """Return logins of a role that migrates, and of one that reads."""
    names = [f"{name}_{uuid4().hex}" for name in ("migrator", "reader")]
    execute(
        empty_database,
        *(f"CREATE ROLE {name} LOGIN PASSWORD 'x'" for name in names),
        f"GRANT CREATE ON SCHEMA public TO {names[0]}",
    )
    migrator, reader = names
    yield migrator, reader
    execute(
        empty_database,
        *(f"DROP OWNED BY {name} CASCADE" for name in names),
        *(f"DROP ROLE {name}" for name in names),
    )


@pytest.mark.parametrize(
    "command",
    [
        "db migrate",
        "db adopt",
        "db check",
        "db check --data",
        "db roles",
        "db docs",
        "db generate add_it",
        "db maintain",
        "db rollback --yes",
        "db status",
        "quota --all",
        "users add ada@example.com",
        "stats",
        "stripe events",
        "prices list",
    ],
)
def test_commands_refuse_a_schema_of_another_program(
    foreign: str, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setenv("DATABASE_URL", foreign)
    before = objects(foreign)

    code, _, err = run_cli(*command.split())

    assert (code, err) == (1, f"error: {REFUSAL}\n")
    assert objects(foreign) == before


def test_library_refuses_a_schema_of_another_program(foreign: str):
    for call in (list_migrations, migrate, rollback, check, adopt):
        with pytest.raises(MigrationError) as refused:
            call(foreign)
        assert str(refused.value) == REFUSAL


def apply_others(url: str, folder: Path, *names: str) -> None:
    """Apply migrations of another project by plain yoyo."""
    for name in names:
        (folder / f"{name}.sql").write_text("SELECT 1;")
    backend = get_backend(url.replace("postgresql:", "postgresql+psycopg:"))
    backend.apply_migrations(yoyo_migrations(str(folder)))
    backend.connection.close()


def test_marks_of_another_yoyo_project_are_ignored_and_kept(
    empty_database: str, tmp_path: Path
):
    theirs = {"0001.create-shop", "9999_add_carts"}
    apply_others(empty_database, tmp_path, *theirs)

    migrate(empty_database, count=3)
    assert states(empty_database).keys() == set(NAMES)
    assert marks(empty_database) == {*NAMES[:3], *theirs}
    assert rollback(empty_database) == [NAMES[2]]
    assert rollback(empty_database, count=None) == [NAMES[1], NAMES[0]]
    assert marks(empty_database) == theirs
    load_schema(empty_database)
    assert adopt(empty_database) == NAMES
    assert marks(empty_database) == {*NAMES, *theirs}


def test_mark_of_the_same_name_without_a_schema_is_not_ours(
    empty_database: str, tmp_path: Path
):
    apply_others(empty_database, tmp_path, NAMES[1])
    with pytest.raises(MigrationError, match=r"no schema app; .* use another database"):
        migrate(empty_database)


def test_dropped_schema_is_not_up_to_date(empty_database: str):
    migrate(empty_database, count=1)
    execute(empty_database, "DROP SCHEMA app CASCADE")
    for call in (list_migrations, migrate, rollback, check, adopt):
        with pytest.raises(MigrationError, match=r"if it was dropped, .* unmark --all"):
            call(empty_database)
    yoyo(empty_database, "unmark", "--all")
    assert migrate(empty_database, count=1) == NAMES[:1]


def test_schema_that_psql_built_in_part_is_named(empty_database: str):
    schema = (sql_dir() / "schema.sql").read_text(encoding="utf-8")
    execute(empty_database, schema.partition("-- stripe_customers\n")[0])
    with pytest.raises(SchemaCheckError) as refused:
        adopt(empty_database)
    assert re.fullmatch(
        r"the database has only a part of the SQL files: \d+ objects are missing; if it"
        r" has no data, run in psql: DROP SCHEMA app CASCADE, then: pyapp db migrate;"
        r" nothing was changed",
        str(refused.value),
    )


def test_empty_schema_of_the_migrator_is_filled_and_keeps_its_grants(
    empty_database: str, logins: tuple[str, str]
):
    migrator, reader = logins
    url = make_conninfo(empty_database, user=migrator, password="x")
    execute(
        empty_database,
        f"CREATE SCHEMA app AUTHORIZATION {migrator}",
        f"GRANT USAGE ON SCHEMA app TO {reader}",
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {migrator} IN SCHEMA app"
        f" GRANT SELECT ON TABLES TO {reader}",
    )
    with pytest.raises(MigrationError, match="no schema to adopt; run: pyapp db migr"):
        adopt(url)

    assert migrate(url, count=1) == NAMES[:1]
    with connect(make_conninfo(empty_database, user=reader, password="x")) as conn:
        assert conn.execute("SELECT count(*) FROM app.plans").fetchall() == [(3,)]
    rollback(url, count=None)
    with pytest.raises(MigrationError, match="GRANT CREATE ON DATABASE"):
        migrate(url)


def test_empty_schema_of_another_role_names_its_owner(
    empty_database: str, logins: tuple[str, str]
):
    migrator, _ = logins
    url = make_conninfo(empty_database, user=migrator, password="x")
    execute(empty_database, "CREATE SCHEMA app")
    with pytest.raises(MigrationError, match="does not own schema app: connect as"):
        migrate(url)
    execute(empty_database, f"ALTER SCHEMA app OWNER TO {migrator}")
    assert migrate(url, count=1) == NAMES[:1]


SHOP = (
    "CREATE SCHEMA shop",
    "CREATE TABLE shop.orders (user_id uuid NOT NULL REFERENCES app.users)",
    "CREATE TABLE shop.ratings (subject_id uuid, message_id uuid,"
    " FOREIGN KEY (subject_id, message_id) REFERENCES app.messages)",
    "CREATE VIEW shop.spend AS SELECT user_id, cost FROM app.messages",
    "CREATE TRIGGER orders_set_updated_at BEFORE UPDATE ON shop.orders"
    " FOR EACH ROW EXECUTE FUNCTION app.set_updated_at()",
    "CREATE FUNCTION shop.months(timestamptz) RETURNS timestamptz LANGUAGE sql"
    " RETURN app.add_months($1, 1)",
)
DEPENDANTS = (
    "constraint orders_user_id_fkey on table shop.orders, constraint"
    " ratings_subject_id_message_id_fkey on table shop.ratings, function"
    " shop.months(timestamp with time zone) and 2 more"
)
# Objects that others create in a database, also for tables of ours.
OTHERS = (
    "CREATE PUBLICATION one FOR TABLE app.users, TABLES IN SCHEMA shop",
    "CREATE PUBLICATION two FOR TABLES IN SCHEMA app",
    "CREATE EXTENSION pg_trgm SCHEMA shop",
    "CREATE FUNCTION shop.log() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "CREATE EVENT TRIGGER log ON ddl_command_end EXECUTE FUNCTION shop.log()",
    "CREATE STATISTICS shop.names ON email, name FROM app.users",
    "CREATE TABLE public.alembic_version (version_num text)",
    "GRANT SELECT ON app.plans TO PUBLIC",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA app GRANT SELECT ON TABLES TO PUBLIC",
)
STRANGERS = (
    "CREATE TABLE app.notes (id int)",
    "CREATE INDEX shop_idx ON app.users (name)",
    "CREATE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "CREATE TRIGGER users_note AFTER INSERT ON app.users"
    " FOR EACH ROW EXECUTE FUNCTION shop.note()",
)


def test_check_ignores_what_is_outside_the_schema(empty_database: str):
    execute(empty_database, "CREATE SCHEMA app")
    migrate(empty_database)
    execute(empty_database, *SHOP, *OTHERS)
    assert check(empty_database).differences == 0

    execute(empty_database, *STRANGERS)
    found = check(empty_database).comparisons[-1].differences
    assert [one.title for one in found] == [
        "TABLE app.notes",
        "INDEX app.shop_idx",
        "TRIGGER app.users users_note",
    ]

    before = rows_of(empty_database)
    for call in (list_rollbacks, rollback):
        with pytest.raises(MigrationError) as refused:
            call(empty_database, count=None)
        assert str(refused.value) == (
            "nothing was rolled back, because objects of other schemas depend on schema"
            f" app: {DEPENDANTS}; drop them first"
        )
    assert rows_of(empty_database) == before
    assert states(empty_database)[NAMES[-1]] == "applied"

    rollback(empty_database, count=len(NAMES) - 3)
    with pytest.raises(MigrationError) as refused:
        rollback(empty_database)
    assert str(refused.value) == (
        "0003_create_usage was not rolled back: constraint"
        " ratings_subject_id_message_id_fkey on table shop.ratings depends on table"
        " app.messages; view shop.spend depends on table app.messages (nothing of it"
        " was kept); drop what depends on it first"
    )
    assert states(empty_database)[NAMES[2]] == "applied"


def test_refusal_of_an_event_trigger_is_one_line(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
):
    execute(
        empty_database,
        "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'no changes on Friday'; END$$",
        "CREATE EVENT TRIGGER refuse ON ddl_command_end"
        " EXECUTE FUNCTION public.refuse()",
    )
    monkeypatch.setenv("DATABASE_URL", empty_database)
    assert run_cli("db", "migrate") == (
        1,
        "",
        "error: a trigger of the database refused this: no changes on Friday\n",
    )
