"""Drafted migrations of functions and views, and of what stores their results."""

import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import psycopg
import pytest

from pyapp._core.queries import sql_dir
from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.command import generate
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import MigrationError
from tests import drafting
from tests.drafting import NOTES, SCHEMA, Change, add, read_pair, replace

# Fixtures; pytest finds them by their names in this module.
url, base, folder, schema = (
    drafting.url,
    drafting.base,
    drafting.folder,
    drafting.schema,
)

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


def test_replaced_trigger_function_is_dropped_last(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    files = schema(replace("set_completed_at()", "stamp_completed_at()"))

    paths = generate(url, "stamp", schema=files, folder=folder, base=base[0])

    names = ["stamp_functions", "stamp", "stamp_drop_functions"]
    assert [path.stem[5:] for path in paths] == names
    created, _, dropped = (read_pair(path) for path in paths)
    assert "DROP FUNCTION app.stamp_completed_at();" in created[1]
    assert dropped[0].endswith("\n\nDROP FUNCTION app.set_completed_at();\n")


def test_column_that_a_function_reads_is_replaced_in_three_steps(
    url: str, base: tuple[str, Objects], folder: Path, sql_files: Path
) -> None:
    """The new one is added, the function reads it, and the old one is dropped."""
    reader = FUNCTION.replace("RETURN 42", "RETURN (SELECT count(body) FROM app.notes)")
    reader = reader.replace("IMMUTABLE", "STABLE")
    (sql_files / "schema.sql").write_text(SCHEMA + NOTES, encoding="utf-8")
    write_function(sql_files, reader)
    generate(url, "add_notes", schema=sql_files, folder=folder, base=base[0])
    notes = NOTES.replace("body ", "text ").replace("body", "text")
    (sql_files / "schema.sql").write_text(SCHEMA + notes, encoding="utf-8")
    write_function(sql_files, reader.replace("body", "text"))

    paths = generate(
        url, "call_it_text", schema=sql_files, folder=folder, allow_destructive=True
    )

    ups = [read_pair(path)[0] for path in paths]
    order = ["ADD COLUMN text", "VALIDATE", "count(text)", "DROP COLUMN body"]
    assert [part for part, up in zip(order, ups, strict=True) if part not in up] == []


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


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            replace("REVOKE EXECUTE ON FUNCTION app.add_usage() FROM public;\n", ""),
            ("GRANT EXECUTE ON FUNCTION app.add_usage() TO public;", "REVOKE"),
        ),
        (
            add("REVOKE EXECUTE ON FUNCTION app.set_updated_at() FROM public;\n"),
            ("REVOKE EXECUTE ON FUNCTION app.set_updated_at() FROM public;", "GRANT"),
        ),
    ],
    ids=["removed", "added"],
)
def test_changed_privilege_of_public_is_drafted(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
    change: Change,
    expected: tuple[str, str],
) -> None:
    files = schema(change)
    (path,) = generate(url, "change_it", schema=files, folder=folder, base=base[0])
    up, down = read_pair(path)
    assert up.endswith(f"\n\n{expected[0]}\n")
    assert f"\n{expected[1]} EXECUTE ON FUNCTION" in down
    assert "CREATE" not in up + down
