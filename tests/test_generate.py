"""Migrations are drafted from the SQL files and proved before they are written.

On another version: pytest tests/test_generate.py --postgresql-host=... (see conftest).
"""

import shutil
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyapp._core.queries import migrations_dir, sql_dir
from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import load_schema, read_objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.command import generate
from pyapp.devtools.generate.sources import read_sources
from pyapp.devtools.generate.steps import Rename, read_side
from pyapp.devtools.generate.structure import StructureDrafter
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import GenerateError, MigrationError
from tests.support import Server

SCHEMA = (sql_dir() / "schema.sql").read_text(encoding="utf-8")
Change = Callable[[str], str]

NOTES = """
CREATE TABLE app.notes (
    id      uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    body    text,

    CONSTRAINT notes_pkey PRIMARY KEY (id),
    CONSTRAINT notes_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT notes_body_not_empty_check CHECK (body <> '')
);

COMMENT ON TABLE app.notes IS
    'What support wrote about a user.';

-- For notes_user_id_fkey.
CREATE INDEX notes_user_id_idx ON app.notes (user_id);
"""


def add(text: str) -> Change:
    return lambda schema: schema + text


def replace(old: str, new: str) -> Change:
    def change(schema: str) -> str:
        assert old in schema
        return schema.replace(old, new)

    return change


def add_column(definition: str) -> Change:
    """Add a last column to stripe_sync_runs."""
    last = "    last_error  text,\n"
    return replace(last, f"{last}    {definition},\n")


CHANGES: dict[str, tuple[Change, list[str]]] = {
    "new_table": (add(NOTES), [NOTES.strip()]),
    "new_column": (
        add_column("host text NOT NULL DEFAULT 'x'"),
        ["    ADD COLUMN host text NOT NULL DEFAULT 'x';"],
    ),
    "new_generated_column": (
        add_column("is_over boolean GENERATED ALWAYS AS (outcome <> 'running') STORED"),
        ["-- Rewrites app.stripe_sync_runs", "ADD COLUMN is_over boolean"],
    ),
    "changed_generated_expression": (
        replace("AS (base_quota + referral_credits)", "AS (base_quota)"),
        ["    ALTER COLUMN quota SET EXPRESSION AS (base_quota);"],
    ),
    "new_check": (
        add(
            "ALTER TABLE app.users ADD CONSTRAINT users_name_length_check"
            " CHECK (length(name) < 300);"
        ),
        [
            "CHECK (length(name) < 300) NOT VALID;",
            "VALIDATE CONSTRAINT users_name_length_check;",
        ],
    ),
    "new_partial_covering_index": (
        add(
            "-- For finance.\nCREATE INDEX messages_model_idx ON app.messages (model)"
            " INCLUDE (credits)\nWHERE model <> 'x';"
        ),
        [
            "-- transactional: false",
            "-- For finance.\nCREATE INDEX CONCURRENTLY messages_model_idx ON"
            " app.messages (model) INCLUDE (credits)\nWHERE model <> 'x';",
        ],
    ),
    "dropped_index": (
        replace("CREATE INDEX messages_user_id_idx ON app.messages (user_id);\n", ""),
        [
            "-- transactional: false",
            "DROP INDEX CONCURRENTLY app.messages_user_id_idx;",
        ],
    ),
    "new_check_value": (
        replace("IN ('pending', 'completed'))", "IN ('pending', 'completed', 'void'))"),
        ["DROP CONSTRAINT referrals_status_known_check;", "'void'", "NOT VALID"],
    ),
    "changed_function_body": (
        replace("-- In key order, so that", "-- By key, so that"),
        [
            "CREATE OR REPLACE FUNCTION app.add_usage()\nRETURNS trigger",
            "-- By key, so",
        ],
    ),
    "changed_trigger": (
        replace(
            "messages_append_only BEFORE UPDATE OR DELETE OR TRUNCATE",
            "messages_append_only BEFORE UPDATE OR DELETE",
        ),
        ["DROP TRIGGER messages_append_only ON app.messages;", "UPDATE OR DELETE ON"],
    ),
    "new_comments": (
        add(
            "COMMENT ON INDEX app.messages_user_id_idx IS 'Ours.';\n"
            "COMMENT ON CONSTRAINT users_pkey ON app.users IS 'Theirs.';"
        ),
        ["messages_user_id_idx IS 'Ours.';", "users_pkey ON app.users IS 'Theirs.';"],
    ),
    "changed_type": (
        replace("attempts         integer", "attempts         bigint"),
        [
            "-- May rewrite app.stripe_events under an ACCESS EXCLUSIVE lock.",
            "ALTER COLUMN attempts SET DATA TYPE bigint;",
        ],
    ),
    "changed_default_and_not_null": (
        replace(
            "is_dry_run  boolean NOT NULL DEFAULT FALSE",
            "is_dry_run  boolean DEFAULT TRUE",
        ),
        ["is_dry_run SET DEFAULT TRUE;", "is_dry_run DROP NOT NULL;"],
    ),
    "new_not_null": (
        replace("cursor      text,", "cursor      text NOT NULL,"),
        ["-- Reads all of app.stripe_sync_runs", "cursor SET NOT NULL;"],
    ),
    "new_foreign_key_and_index": (
        add(
            "ALTER TABLE app.stripe_events ADD COLUMN user_id uuid;\n"
            "ALTER TABLE app.stripe_events ADD CONSTRAINT stripe_events_user_id_fkey"
            " FOREIGN KEY (user_id) REFERENCES app.users (id) ON DELETE RESTRICT;\n"
            "CREATE INDEX stripe_events_user_id_idx ON app.stripe_events (user_id);"
        ),
        [
            "ADD COLUMN user_id uuid;",
            "NOT VALID;",
            "VALIDATE CONSTRAINT stripe_events_user_id_fkey;",
            "CREATE INDEX CONCURRENTLY stripe_events_user_id_idx",
        ],
    ),
    "new_unique_constraint": (
        add(
            "ALTER TABLE app.plans ADD CONSTRAINT plans_credits_key"
            " UNIQUE (monthly_credits, id);"
        ),
        ["ADD CONSTRAINT plans_credits_key UNIQUE (monthly_credits, id);"],
    ),
    "new_type": (
        add("CREATE TYPE app.mood AS ENUM ('good', 'bad');"),
        ["CREATE TYPE app.mood AS ENUM", "DROP TYPE app.mood;"],
    ),
    "index_of_a_partitioned_table": (
        add(
            "CREATE INDEX message_payloads_x_idx ON app.message_payloads (message_id);"
        ),
        [
            "-- Blocks writes to app.message_payloads while the index is built.",
            "CREATE INDEX message_payloads_x_idx ON app.message_payloads",
        ],
    ),
    "renamed_column": (
        replace("email_verified_at", "email_checked_at"),
        ["ALTER TABLE app.users RENAME COLUMN email_verified_at TO email_checked_at;"],
    ),
}
RENAMES = {"renamed_column": [Rename("users", "email_verified_at", "email_checked_at")]}


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url("postgres")


@pytest.fixture(scope="module")
def base(url: str) -> Iterator[tuple[str, Objects]]:
    """Return a database with the migrations as they are, and its objects."""
    with scratch_database(url) as database:
        migrate(database)
        yield database, read_objects(database)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the migrations."""
    return shutil.copytree(migrations_dir(), tmp_path / "migrations")


@pytest.fixture
def schema(tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that writes a copy of sql/ with a changed schema.sql."""

    def write(change: Change) -> Path:
        copied = shutil.copytree(sql_dir() / "functions", tmp_path / "sql/functions")
        path = copied.parent / "schema.sql"
        path.write_text(change(SCHEMA), encoding="utf-8")
        return copied.parent

    return write


def version(url: str) -> int:
    with psycopg.connect(url) as conn:
        return conn.info.server_version // 10000


@pytest.mark.parametrize("name", CHANGES)
def test_change_is_drafted_applied_and_rolled_back(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
    name: str,
) -> None:
    change, expected = CHANGES[name]
    database, before = base
    path, known = schema(change), set(folder.iterdir())
    arguments: Any = {"schema": path, "folder": folder, "base": database}
    arguments["renames"] = RENAMES.get(name, ())
    if name == "changed_generated_expression" and version(url) < 17:
        # Before PostgreSQL 17 the column is dropped and added, so it becomes the last.
        with pytest.raises(GenerateError, match=r"would lose app\.users\.quota"):
            generate(url, name, **arguments)
        with pytest.raises(GenerateError, match=r"leaves TABLE app\.users"):
            generate(url, name, **arguments, allow_destructive=True)
        assert set(folder.iterdir()) == known
        return
    written = generate(url, name, **arguments)
    text = "".join(part for file in written for part in read_pair(file))
    assert [part for part in expected if part not in text] == []
    assert text.count("lock_timeout = '5s'") + text.count(": false") == 2 * len(written)
    with (
        scratch_database(url, template=database) as applied,
        scratch_database(url) as wanted,
    ):
        migrate(applied, folder)
        load_schema(wanted, path)
        assert read_objects(applied) == read_objects(wanted)
        rollback(applied, folder, count=len(written))
        assert read_objects(applied) == before


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            replace("email_verified_at", "email_checked_at"),
            r"would lose app\.users\.email_verified_at: if it is a new name,"
            r" --rename users\.email_verified_at=email_checked_at; else",
        ),
        (
            replace("fillfactor = 70", "fillfactor = 60"),
            r"leaves TABLE app\.usage_daily",
        ),
        (
            lambda text: replace("COALESCE(status IN", "COALESCE(state IN")(
                replace("active_status(status text)", "active_status(state text)")(text)
            ),
            r"cannot drop function .*column subscription_active of table app\.users"
            r".*; give the new function another name",
        ),
        (lambda schema: schema, "nothing to do"),
    ],
)
def test_incomplete_draft_is_reported_and_not_written(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
    change: Change,
    complaint: str,
) -> None:
    known = set(folder.iterdir())
    with pytest.raises(GenerateError, match=complaint):
        generate(url, "try_it", schema=schema(change), folder=folder, base=base[0])
    assert set(folder.iterdir()) == known


def test_unreadable_statement_is_named_with_file_and_line() -> None:
    with pytest.raises(GenerateError, match=r"^b\.sql:3 cannot be read: syntax error"):
        read_sources({"a.sql": "SELECT 1;\n", "b.sql": "SELECT 1;\n\nSELEC 2;\n"})


def test_last_statement_of_a_file_may_lack_its_semicolon(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
) -> None:
    files = schema(add("\nCREATE INDEX users_name_idx ON app.users (name)"))
    generate(url, "index_names", schema=files, folder=folder, base=base[0])


def test_object_that_no_file_defines_is_drafted_from_the_dump(
    url: str, base: tuple[str, Objects]
) -> None:
    database, before = base
    with scratch_database(url, template=database) as copy:
        with psycopg.connect(copy) as conn:
            conn.execute(NOTES.encode())
        wanted = read_objects(copy)
    steps = StructureDrafter(read_side(before, {}), read_side(wanted, {})).draft()

    with scratch_database(url, template=database) as copy:
        with psycopg.connect(copy) as conn:
            for step in steps:
                conn.execute(step.sql.encode())
        assert read_objects(copy) == wanted


def test_destructive_step_is_marked_with_its_loss(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    start = SCHEMA.index("CREATE TABLE app.stripe_sync_runs")
    end = (SCHEMA + "\n-- ---").index("\n-- ---", start)
    (path,) = generate(
        url,
        "drop_sync_runs",
        why="No query reads them.",
        schema=schema(lambda text: text[:start] + text[end:]),
        folder=folder,
        base=base[0],
        allow_destructive=True,
    )
    assert path.read_text(encoding="ascii") == (
        "-- No query reads them.\n\nSET LOCAL lock_timeout = '5s';\n\n"
        "-- Destructive: loses app.stripe_sync_runs.\n"
        "DROP TABLE app.stripe_sync_runs;\n"
    )
    back = path.with_suffix(".rollback.sql").read_text(encoding="ascii")
    assert "What app.stripe_sync_runs held does not come back." in back.splitlines()[0]


FUNCTION = """
CREATE OR REPLACE FUNCTION app.get_answer(question text)
RETURNS integer LANGUAGE sql IMMUTABLE
RETURN 42;

COMMENT ON FUNCTION app.get_answer(text) IS
    'The answer.';

REVOKE EXECUTE ON FUNCTION app.get_answer(text) FROM public;
"""
VIEW = """
CREATE OR REPLACE VIEW app.answers WITH (security_invoker = TRUE) AS
SELECT
    1 AS number,
    app.get_answer('') AS answer;

COMMENT ON VIEW app.answers IS
    'All answers.';
COMMENT ON COLUMN app.answers.answer IS
    'What get_answer returns.';
"""


@pytest.fixture
def sql_files(tmp_path: Path) -> Path:
    """Return a copy of the SQL files."""
    return shutil.copytree(sql_dir(), tmp_path / "sql")


def write_function(sql_files: Path, text: str) -> None:
    (sql_files / "functions" / "answers.sql").write_text(text, encoding="utf-8")


def read_pair(path: Path) -> tuple[str, str]:
    """Return the text of a migration and of its rollback."""
    back = path.with_suffix(".rollback.sql")
    return path.read_text(encoding="ascii"), back.read_text(encoding="ascii")


def test_function_change_is_a_migration_of_its_own(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    """It has the file's text; its rollback has that of the migrations."""
    write_function(sql_files, FUNCTION)
    (first,) = generate(
        url, "add_answer", schema=sql_files, folder=folder, base=base[0]
    )
    up, down = read_pair(first)
    assert up.endswith(f"SET LOCAL lock_timeout = '5s';\n{FUNCTION}")
    assert down.endswith("\nDROP FUNCTION app.get_answer(text);\n")

    write_function(sql_files, FUNCTION.replace("42", "43"))
    (second,) = generate(url, "fix_answer", schema=sql_files, folder=folder)
    up, down = read_pair(second)

    assert up.count("CREATE") == down.count("CREATE") == 1
    assert FUNCTION.replace("42", "43") in up
    assert FUNCTION in down


def test_function_with_another_result_is_dropped_first(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    write_function(sql_files, FUNCTION)
    generate(url, "add_answer", schema=sql_files, folder=folder, base=base[0])
    write_function(sql_files, FUNCTION.replace("integer", "bigint"))

    (path,) = generate(url, "widen_answer", schema=sql_files, folder=folder)

    for text in read_pair(path):
        drop = "DROP FUNCTION app.get_answer(text);\n\nCREATE OR REPLACE FUNCTION"
        assert f"run pyapp db roles afterwards.\n{drop}" in text
        assert "REVOKE EXECUTE ON FUNCTION app.get_answer(text)" in text


def test_tables_and_functions_are_two_migrations(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    """The function reads the new table, so the table is first."""
    (sql_files / "schema.sql").write_text(SCHEMA + NOTES, encoding="utf-8")
    reader = FUNCTION.replace("RETURN 42", "RETURN (SELECT count(*) FROM app.notes)")
    write_function(sql_files, reader.replace("IMMUTABLE", "STABLE"))

    paths = generate(url, "add_notes", schema=sql_files, folder=folder, base=base[0])

    assert [path.stem[5:] for path in paths] == ["add_notes", "add_notes_functions"]
    tables, functions = (read_pair(path)[0] for path in paths)
    assert ("FUNCTION" in tables, "CREATE TABLE" in functions) == (False, False)


def test_new_trigger_function_comes_before_its_trigger(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    (sql_files / "schema.sql").write_text(
        SCHEMA + "\nCREATE FUNCTION app.skip_row()\nRETURNS trigger LANGUAGE plpgsql"
        "\nAS $$ BEGIN RETURN NULL; END; $$;\n\nCREATE TRIGGER plans_skip"
        " BEFORE UPDATE ON app.plans\nFOR EACH ROW EXECUTE FUNCTION app.skip_row();\n",
        encoding="utf-8",
    )

    paths = generate(url, "skip_rows", schema=sql_files, folder=folder, base=base[0])

    assert [path.stem[5:] for path in paths] == ["skip_rows_functions", "skip_rows"]


def test_view_that_loses_a_column_is_recreated(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    write_function(sql_files, FUNCTION + VIEW)
    (added,) = generate(
        url, "add_answers", schema=sql_files, folder=folder, base=base[0]
    )
    assert VIEW in read_pair(added)[0]
    write_function(sql_files, FUNCTION + VIEW.replace("    1 AS number,\n", ""))

    (path,) = generate(url, "drop_number", schema=sql_files, folder=folder)

    up, down = read_pair(path)
    assert "DROP VIEW app.answers;\n\nCREATE OR REPLACE VIEW app.answers" in up
    assert "FUNCTION" not in up + down
    assert VIEW in down


def test_appended_view_column_drops_the_view_in_the_rollback_only(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    write_function(sql_files, FUNCTION + VIEW)
    generate(url, "add_answers", schema=sql_files, folder=folder, base=base[0])
    wider = VIEW.replace("AS answer;", "AS answer,\n    2 AS score;")
    write_function(sql_files, FUNCTION + wider)

    (path,) = generate(url, "add_score", schema=sql_files, folder=folder)

    up, down = read_pair(path)
    assert ("DROP" in up, "DROP VIEW app.answers;" in down) == (False, True)
    assert down.startswith(
        "-- Loses nothing.\n-- Run pyapp db roles right after it: grants are lost.\n"
    )


def test_view_is_recreated_with_the_function_that_it_calls(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    """CREATE OR REPLACE cannot rename an argument."""
    write_function(sql_files, FUNCTION + VIEW)
    generate(url, "add_answers", schema=sql_files, folder=folder, base=base[0])
    renamed = FUNCTION.replace("(question text)", "(topic text)")
    write_function(sql_files, renamed + VIEW)

    (path,) = generate(url, "rename_topic", schema=sql_files, folder=folder)

    for text in read_pair(path):
        assert 0 < text.index("DROP VIEW app.answers;") < text.index("DROP FUNCTION")
        assert text.endswith(VIEW)
        assert "Run pyapp db roles right after it" in text.partition("\n\n")[0]


STATUSES = "'active', 'trialing', 'past_due'"
USERS = """
INSERT INTO app.users (
    email, stripe_subscription_id, subscription_status, next_quota_reset, quota_anchor
) VALUES
    ('a@example.com', 'sub_1', 'active', '2024-02-10', '2024-01-10'),
    ('b@example.com', 'sub_2', 'unpaid', '2024-02-10', '2024-01-10')
"""
STORED = """
SELECT array_agg(u.subscription_active ORDER BY u.email),
    array_agg(DISTINCT date(u.quota_period_start AT TIME ZONE 'UTC'))
FROM app.users AS u
"""


@pytest.mark.parametrize(
    ("change", "renewed", "stored"),
    [
        (
            replace(STATUSES, f"{STATUSES}, 'unpaid'"),
            ["app.users.subscription_active"],
            ([True, True], [date(2024, 1, 10)]),
        ),
        (
            replace(
                "reset AT TIME ZONE interval '0' - interval '1 microsecond'",
                "reset AT TIME ZONE interval '0' - interval '40 days'",
            ),
            ["app.users.quota_period_start", "app.fingerprints.quota_period_start"],
            ([True, False], [date(2023, 12, 10)]),
        ),
        (  # get_period_start, in PL/pgSQL, calls it
            replace(
                "+ make_interval(months => months))",
                "+ make_interval(months => months, days => 1))",
            ),
            ["app.users.quota_period_start", "app.fingerprints.quota_period_start"],
            ([True, False], [date(2024, 1, 11)]),
        ),
    ],
    ids=["called_directly", "called_by_two_tables", "called_by_plpgsql"],
)
def test_changed_function_renews_the_columns_that_store_its_results(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
    change: Change,
    renewed: list[str],
    stored: tuple[object, ...],
) -> None:
    database, _ = base
    (path,) = generate(
        url, "change_it", schema=schema(change), folder=folder, base=database
    )
    for text in read_pair(path):
        head = " ".join(text.partition("\n\n")[0].split("\n-- "))
        assert [name for name in renewed if name not in head] == []
    with scratch_database(url, template=database) as copy:
        with psycopg.connect(copy) as conn:
            conn.execute(USERS.encode())
            before = conn.execute(STORED.encode()).fetchone()
        migrate(copy, folder)
        with psycopg.connect(copy) as conn:
            assert conn.execute(STORED.encode()).fetchone() == stored
        rollback(copy, folder)
        with psycopg.connect(copy) as conn:
            assert conn.execute(STORED.encode()).fetchone() == before


CALLERS = """
CREATE INDEX users_active_idx ON app.users (app.is_active_status(subscription_status));

ALTER TABLE app.users ADD CONSTRAINT users_active_check
    CHECK (app.is_active_status(subscription_status) IN (TRUE, FALSE));
"""


def test_changed_function_renews_indexes_and_checks(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    files = schema(add(CALLERS))
    added = generate(url, "add_callers", schema=files, folder=folder, base=base[0])
    changed = SCHEMA.replace(STATUSES, f"{STATUSES}, 'unpaid'") + CALLERS
    (files / "schema.sql").write_text(changed, encoding="utf-8")

    (path,) = generate(url, "count_unpaid", schema=files, folder=folder)

    for text in read_pair(path):
        assert "REINDEX INDEX app.users_active_idx;" in text
        assert "DROP CONSTRAINT users_active_check;" in text
    by_index = "SELECT count(*) FROM app.users AS u WHERE app.is_active_status("
    by_index += "u.subscription_status)"
    with scratch_database(url, template=base[0]) as copy:
        migrate(copy, folder, count=len(added))
        with psycopg.connect(copy) as conn:
            conn.execute(USERS.encode())
        migrate(copy, folder)
        with psycopg.connect(copy) as conn:
            conn.execute("SET enable_seqscan = off")
            plan = conn.execute(f"EXPLAIN {by_index}".encode()).fetchall()
            assert "users_active_idx" in str(plan)
            assert conn.execute(by_index.encode()).fetchone() == (2,)


def test_changed_function_is_refused_if_rows_violate_its_check(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    check = (
        "\nALTER TABLE app.users ADD CONSTRAINT users_unpaid_check CHECK ("
        "subscription_status <> 'unpaid' OR NOT"
        " app.is_active_status(subscription_status));\n"
    )
    files = schema(add(check))
    added = generate(url, "add_check", schema=files, folder=folder, base=base[0])
    changed = SCHEMA.replace(STATUSES, f"{STATUSES}, 'unpaid'") + check
    (files / "schema.sql").write_text(changed, encoding="utf-8")
    generate(url, "count_unpaid", schema=files, folder=folder)
    with scratch_database(url, template=base[0]) as copy:
        migrate(copy, folder, count=len(added))
        with psycopg.connect(copy) as conn:
            conn.execute(USERS.encode())
        with pytest.raises(MigrationError, match="users_unpaid_check"):
            migrate(copy, folder)


def test_comment_alone_changes_no_function(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    write_function(sql_files, FUNCTION)
    generate(url, "add_answer", schema=sql_files, folder=folder, base=base[0])
    write_function(sql_files, FUNCTION.replace("'The answer.'", "'Always 42.'"))

    (path,) = generate(url, "say_42", schema=sql_files, folder=folder)

    assert [text.count("CREATE") for text in read_pair(path)] == [0, 0]
