"""Comparisons ignore only what the server decides."""

import pytest

from pyapp.devtools.checks.dumps import split_dump
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.migrations.migrator import migrate
from tests.support import execute

DUMP = """\
--
-- Name: users; Type: TABLE; Schema: app; Owner: -
--

CREATE TABLE app.users (
    id uuid CONSTRAINT users_id_not_null NOT NULL,
    name text DEFAULT ' CONSTRAINT x NOT NULL'::text CONSTRAINT "od""d" NOT NULL,
    CONSTRAINT users_name_check CHECK ((name IS NOT NULL))
);
ALTER TABLE ONLY app.users ALTER COLUMN id SET (pg_attver=36103152);
ALTER TABLE ONLY app.users ALTER COLUMN name SET (pg_attver=7, n_distinct=5);
ALTER TABLE ONLY app.users ALTER COLUMN name SET STORAGE EXTERNAL;


--
-- Name: f(); Type: FUNCTION; Schema: app; Owner: -
--

CREATE FUNCTION app.f() RETURNS text LANGUAGE sql AS $$ SELECT '
ALTER TABLE ONLY app.users ALTER COLUMN id SET (pg_attver=1);
id uuid CONSTRAINT a NOT NULL' $$;
"""


def test_split_dump_drops_what_the_server_decides():
    objects = split_dump(DUMP)

    assert objects["TABLE app.users"] == (
        "CREATE TABLE app.users (\n"
        "    id uuid NOT NULL,\n"
        "    name text DEFAULT ' CONSTRAINT x NOT NULL'::text NOT NULL,\n"
        "    CONSTRAINT users_name_check CHECK ((name IS NOT NULL))\n"
        ");\n"
        "ALTER TABLE ONLY app.users ALTER COLUMN name SET (n_distinct=5);\n"
        "ALTER TABLE ONLY app.users ALTER COLUMN name SET STORAGE EXTERNAL;"
    )
    assert "(pg_attver=1)" in objects["FUNCTION app.f()"]
    assert "CONSTRAINT a NOT NULL" in objects["FUNCTION app.f()"]


@pytest.fixture
def url(empty_database: str) -> str:
    """Return the URL of a migrated database."""
    migrate(empty_database)
    return empty_database


def differences(url: str) -> list[str]:
    return [d.title for c in check(url).comparisons for d in c.differences]


def test_only_options_of_the_operator_are_differences(url: str):
    """Debian's 15.20 stores such options; elsewhere a superuser can write them."""
    execute(
        url,
        "UPDATE pg_attribute SET attoptions = ARRAY['pg_attver=' || attrelid]"
        " WHERE attrelid = 'app.users'::regclass AND attnum > 0",
    )
    assert differences(url) == []

    execute(
        url,
        "UPDATE pg_attribute SET attoptions = attoptions || '{n_distinct=5}'"
        " WHERE attrelid = 'app.users'::regclass AND attname = 'name'",
    )
    assert differences(url) == ["TABLE app.users"]


def test_single_option_of_the_operator_is_a_difference(url: str):
    execute(url, "ALTER TABLE app.users ALTER COLUMN name SET (n_distinct = 5)")
    assert differences(url) == ["TABLE app.users"]


def test_names_of_not_null_are_not_differences(url: str):
    """A dump of a version before 18 restores names with the partition's name."""
    execute(
        url,
        "UPDATE pg_constraint SET conname = conrelid::regclass::text || conname"
        " WHERE contype = 'n' AND connamespace = 'app'::regnamespace",
    )
    assert differences(url) == []

    execute(url, "ALTER TABLE app.users ALTER COLUMN referral_code DROP NOT NULL")
    assert differences(url) == ["TABLE app.users"]
