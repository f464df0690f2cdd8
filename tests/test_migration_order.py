"""Migrations of two branches: out of order, renumbered, and rolled back in order."""

import json
from pathlib import Path

import psycopg
import pytest

from pyapp.cli import schema
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.migrations import files, session
from pyapp.devtools.migrations.migrator import list_migrations, migrate, rollback
from pyapp.errors import MigrationError
from tests.support import execute, run_cli, states

FIRST = "0001_create_pages"
ONE, OTHER = "0002_add_alpha", "0002_add_beta"
SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE app.pages (
    id integer{columns}
);
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of migrations with the first one."""
    created = tmp_path / "migrations"
    created.mkdir()
    up = SCHEMA.format(columns="")
    write(created, FIRST, up, "DROP TABLE app.pages;\nDROP SCHEMA app;")
    return created


def write(folder: Path, name: str, up: str, down: str) -> None:
    (folder / f"{name}.sql").write_text(f"-- Why.\n\n{up}\n", encoding="ascii")
    (folder / f"{name}.rollback.sql").write_text(f"-- Loses it.\n\n{down}\n", "ascii")


def add_column(folder: Path, name: str) -> None:
    """Write the migration that adds the column of its name."""
    column = name.rpartition("_")[2]
    up = f"ALTER TABLE app.pages ADD COLUMN {column} text;"
    write(folder, name, up, f"ALTER TABLE app.pages DROP COLUMN {column};")


def rename(folder: Path, old: str, new: str) -> None:
    for suffix in (".sql", ".rollback.sql"):
        (folder / f"{old}{suffix}").rename(folder / f"{new}{suffix}")


def columns(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        cursor = conn.execute("SELECT * FROM app.pages")
        return [column.name for column in cursor.description or ()]


@pytest.fixture
def merged(empty_database: str, folder: Path) -> Path:
    """Return the folder of two merged branches; the database has the second."""
    add_column(folder, OTHER)
    migrate(empty_database, folder)
    add_column(folder, ONE)
    return folder


def test_file_before_an_applied_one_is_refused(
    empty_database: str, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_column(merged, "0003_add_gamma")
    monkeypatch.chdir(merged.parent)
    (merged.parent / ".git").mkdir()

    with pytest.raises(MigrationError) as caught:
        migrate(empty_database, merged)

    assert str(caught.value) == (
        "0002_add_alpha is pending and sorts before 0002_add_beta, which is applied;"
        " nothing was applied: if it is merged, pyapp db migrate --out-of-order, or"
        " on your own database first pyapp db rollback -n 1; if not, renumber it:"
        " git mv migrations/0002_add_alpha.sql migrations/0004_add_alpha.sql && "
        "git mv migrations/0002_add_alpha.rollback.sql"
        " migrations/0004_add_alpha.rollback.sql"
    )
    assert columns(empty_database) == ["id", "beta"]
    assert states(empty_database, merged) == {
        FIRST: "applied",
        ONE: "out_of_order",
        OTHER: "applied",
        "0003_add_gamma": "pending",
    }


def test_refusal_in_an_installed_package_names_no_git(
    empty_database: str, merged: Path
) -> None:
    with pytest.raises(MigrationError, match=r"applied: pyapp db migrate --out-of-"):
        migrate(empty_database, merged)


def test_applied_migration_of_another_branch_is_respected(
    empty_database: str, merged: Path
) -> None:
    """Its file is not in this version, which cannot roll it back."""
    for suffix in (".sql", ".rollback.sql"):
        (merged / f"{OTHER}{suffix}").unlink()

    with pytest.raises(MigrationError, match="in the version that has it"):
        migrate(empty_database, merged)

    assert columns(empty_database) == ["id", "beta"]


def test_renumbered_file_is_applied(empty_database: str, merged: Path) -> None:
    rename(merged, ONE, "0003_add_alpha")

    assert migrate(empty_database, merged) == ["0003_add_alpha"]


def test_out_of_order_schema_equals_the_files(
    empty_database: str, merged: Path, tmp_path: Path
) -> None:
    """The database has another order of columns, which is not a difference."""
    schema = tmp_path / "sql"
    (schema / "functions").mkdir(parents=True)
    text = SCHEMA.format(columns=",\n    alpha text,\n    beta text")
    (schema / "schema.sql").write_text(text)
    before = check(empty_database, schema=schema, folder=merged)

    applied = migrate(empty_database, merged, is_out_of_order=True)
    after = check(empty_database, schema=schema, folder=merged)

    assert [status.state for status in before.wrong] == ["out_of_order"]
    assert before.differences == 1
    assert applied == [ONE]
    assert columns(empty_database) == ["id", "beta", "alpha"]
    assert after.differences == 0


def test_rollback_undoes_what_was_applied_last(
    empty_database: str, merged: Path
) -> None:
    migrate(empty_database, merged, is_out_of_order=True)

    assert rollback(empty_database, merged) == [ONE]
    assert columns(empty_database) == ["id", "beta"]
    assert rollback(empty_database, merged, count=None) == [OTHER, FIRST]


def test_rollback_needs_only_the_files_that_it_runs(
    empty_database: str, merged: Path
) -> None:
    """A migration of another branch that was applied before does not depend on it."""
    migrate(empty_database, merged, is_out_of_order=True)
    (merged / f"{OTHER}.sql").unlink()

    assert rollback(empty_database, merged) == [ONE]
    with pytest.raises(MigrationError, match=f"{OTHER} is applied and has no file"):
        rollback(empty_database, merged)


def test_order_of_marks_does_not_depend_on_the_clients_clock(
    empty_database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that applied the first one was a day ahead."""
    migrate(empty_database, folder)
    execute(
        empty_database,
        "UPDATE _yoyo_migration SET applied_at_utc = applied_at_utc + '1 day'",
    )
    add_column(folder, ONE)
    migrate(empty_database, folder)

    assert rollback(empty_database, folder) == [ONE]


def test_renumbered_migration_is_not_applied_again(
    empty_database: str, merged: Path
) -> None:
    """Its mark takes the new name and keeps its time."""
    times = {s.name: s.applied_at for s in list_migrations(empty_database, merged)}
    execute(
        empty_database,
        "INSERT INTO pyapp_migration_checksums VALUES ('0003_add_beta', now(), 'left')",
    )
    rename(merged, OTHER, "0003_add_beta")
    (found,) = (s for s in list_migrations(empty_database, merged) if s.earlier_name)
    assert found == ("0003_add_beta", "renamed", times[OTHER], OTHER)
    with pytest.raises(MigrationError, match=r"its file is now 0003_add_beta; first"):
        rollback(empty_database, merged)

    migrate(empty_database, merged, is_out_of_order=True)

    after = {s.name: s.applied_at for s in list_migrations(empty_database, merged)}
    assert after["0003_add_beta"] == times[OTHER]
    assert columns(empty_database) == ["id", "beta", "alpha"]
    assert rollback(empty_database, merged, count=2) == [ONE, "0003_add_beta"]


def test_killed_renaming_leaves_the_old_mark(
    empty_database: str, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(merged, OTHER, "0003_add_beta")

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session.Backend, "log_migration", fail)
        with pytest.raises(KeyboardInterrupt):
            migrate(empty_database, merged)

    assert states(empty_database, merged)["0003_add_beta"] == "renamed"


def test_commands_report_a_renumbered_migration(
    empty_database: str, merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setattr(files, "migrations_dir", lambda: merged)
    monkeypatch.setattr(schema, "create_payload_partitions", lambda _: 0)
    rename(merged, OTHER, "0003_add_beta")
    (merged / f"{ONE}.sql").unlink()

    assert run_cli("db", "status")[1].endswith(
        "0003_add_beta: applied under an earlier name; run: pyapp db migrate\n"
    )
    code, out, _ = run_cli("db", "migrate", "--json")

    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == [
        {"migration": "0003_add_beta", "earlier_name": OTHER, "state": "renamed"},
        {"payload_partitions_created": 0},
    ]
    rename(merged, "0003_add_beta", "0004_add_beta")
    assert run_cli("db", "migrate") == (
        0,
        "Renamed 0003_add_beta to 0004_add_beta: it is applied already\n"
        "Nothing to apply: the schema is up to date\n",
        "",
    )


def test_texts_that_two_migrations_share_prove_no_new_name(
    empty_database: str, folder: Path
) -> None:
    write(folder, "0002_touch_pages", "ANALYZE app.pages;", "SELECT 1;")
    write(folder, "0003_touch_again", "ANALYZE app.pages;", "SELECT 1;")
    migrate(empty_database, folder)
    rename(folder, "0002_touch_pages", "0004_touch_pages")
    rename(folder, "0003_touch_again", "0005_touch_again")

    assert states(empty_database, folder) == {
        FIRST: "applied",
        "0002_touch_pages": "unknown",
        "0003_touch_again": "unknown",
        "0004_touch_pages": "pending",
        "0005_touch_again": "pending",
    }


def test_marks_of_another_yoyo_project_are_ignored(
    empty_database: str, folder: Path
) -> None:
    """They are in the same table, and sort after every name of pyapp."""
    migrate(empty_database, folder)
    execute(
        empty_database,
        "INSERT INTO _yoyo_migration VALUES ('x', '20260101_01_AbCdE-create', now())",
    )
    add_column(folder, ONE)

    assert migrate(empty_database, folder) == [ONE]
    assert set(states(empty_database, folder).values()) == {"applied"}
    assert rollback(empty_database, folder, count=None) == [ONE, FIRST]
