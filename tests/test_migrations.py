"""Migrations use yoyo's tables, survive kills, and have checksums."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pyapp._core import tool_sessions
from pyapp._core.queries import migrations_dir
from pyapp._core.run import fetch_one
from pyapp._core.tool_sessions import AdvisoryLock
from pyapp.cli import console, schema
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.migrations import session as migration_session
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import (
    migrate,
    pending,
    rollback,
)
from pyapp.errors import DatabaseUnavailableError, MigrationError
from tests.support import run_cli, states, unfolded, yoyo

NAMES = [file.name for file in read_migrations()]

# Kills the process at the given moment of the given migration.
KILLED = """
import os, signal, sys
from pathlib import Path
from pyapp.devtools.migrations import session as migration_session
from pyapp.devtools.migrations import migrator

url, folder, direction, name, moment = sys.argv[1:]

def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def arm(event):
    if event.file.name == name:
        setattr(migration_session.Backend, moment, kill)

getattr(migrator, direction)(url, Path(folder), report=arm)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return three migrations; the last builds an index CONCURRENTLY."""
    for name, up, down in [
        ("0001_create_schema", "CREATE SCHEMA app;", "DROP SCHEMA app;"),
        (
            "0002_create_pages",
            "CREATE TABLE app.pages (id integer);\nINSERT INTO app.pages VALUES (1);",
            "DROP TABLE app.pages;",
        ),
        (
            "0003_create_pages_id_idx",
            "-- transactional: false\n"
            "CREATE UNIQUE INDEX CONCURRENTLY pages_id_idx ON app.pages (id);",
            "-- transactional: false\nDROP INDEX CONCURRENTLY app.pages_id_idx;",
        ),
    ]:
        write(tmp_path, name, up, down)
    return tmp_path


def write(folder: Path, name: str, up: str, down: str) -> None:
    (folder / f"{name}.sql").write_text(f"-- Why.\n{up}\n", encoding="ascii")
    (folder / f"{name}.rollback.sql").write_text(f"-- Loses it.\n{down}\n", "ascii")


def kill_run(url: str, folder: Path, direction: str, name: str, moment: str) -> None:
    """Run migrations in a process that is killed in *name* at *moment*."""
    run = subprocess.run(
        [sys.executable, "-c", KILLED, url, str(folder), direction, name, moment]
    )
    assert run.returncode == -signal.SIGKILL


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def test_plain_yoyo_and_pyapp_see_the_same_state(empty_database: str) -> None:
    assert pending(empty_database) == NAMES
    yoyo(empty_database, "apply")
    assert pending(empty_database) == []
    assert rollback(empty_database) == NAMES[-1:]
    listed = [line.split()[:2] for line in yoyo(empty_database, "list").splitlines()]
    assert ["U", NAMES[-1]] in listed
    assert ["A", NAMES[-2]] in listed
    yoyo(empty_database, "rollback", "--all")
    assert migrate(empty_database, count=2) == NAMES[:2]
    assert pending(empty_database) == NAMES[2:]


@pytest.mark.parametrize("moment", ["mark_one", "commit", "reset"])
def test_killed_migration_is_complete_or_absent_and_repeatable(
    empty_database: str, folder: Path, moment: str
) -> None:
    kill_run(empty_database, folder, "migrate", "0002_create_pages", moment)
    is_done = moment == "reset"
    assert states(empty_database, folder)["0002_create_pages"] == (
        "applied" if is_done else "pending"
    )
    found = query(empty_database, "SELECT to_regclass('app.pages') IS NOT NULL")
    assert found == [(is_done,)]
    migrate(empty_database, folder)
    assert pending(empty_database, folder) == []
    assert query(empty_database, "SELECT count(*) FROM app.pages") == [(1,)]


def test_killed_rollback_is_complete_or_absent_and_repeatable(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, folder, count=2)
    kill_run(empty_database, folder, "rollback", "0002_create_pages", "commit")
    assert query(empty_database, "SELECT count(*) FROM app.pages") == [(1,)]
    assert rollback(empty_database, folder) == ["0002_create_pages"]


def test_index_built_by_a_killed_run_is_kept(empty_database: str, folder: Path) -> None:
    name = "0003_create_pages_id_idx"
    kill_run(empty_database, folder, "migrate", name, "turn")
    assert pending(empty_database, folder) == [name]
    assert migrate(empty_database, folder) == [name]
    kill_run(empty_database, folder, "rollback", name, "turn")
    assert rollback(empty_database, folder) == [name]


def test_invalid_index_is_dropped_and_built_again(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, folder, count=2)
    query(empty_database, "INSERT INTO app.pages VALUES (1)")
    with pytest.raises(MigrationError, match=r"0003.*could not create unique index"):
        migrate(empty_database, folder)
    query(empty_database, "TRUNCATE app.pages")
    assert migrate(empty_database, folder) == ["0003_create_pages_id_idx"]
    assert query(
        empty_database,
        "SELECT indisvalid FROM pg_index"
        " WHERE indexrelid = 'app.pages_id_idx'::regclass",
    ) == [(True,)]


def test_lock_of_a_killed_yoyo_is_removed(empty_database: str, folder: Path) -> None:
    migrate(empty_database, folder, count=1)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    query(empty_database, f"INSERT INTO yoyo_lock VALUES (1, now(), {dead.pid})")
    assert len(migrate(empty_database, folder)) == 2


def test_unmarked_migration_of_a_killed_yoyo_names_the_remedy(
    empty_database: str,
) -> None:
    migrate(empty_database, count=1)
    query(empty_database, (migrations_dir() / f"{NAMES[1]}.sql").read_text())

    expected = (
        f"{NAMES[1]} was not applied: .* already exists .*: yoyo mark -m {NAMES[1]}$"
    )
    with pytest.raises(MigrationError, match=expected):
        migrate(empty_database)

    yoyo(empty_database, "mark", f"--match={NAMES[1]}")
    assert migrate(empty_database) == NAMES[2:]
    assert check(empty_database).differences == 0


def test_two_runs_at_once_apply_each_migration_once(
    empty_database: str, folder: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from pyapp.devtools.migrations import migrator\n"
        "print(*migrator.migrate(sys.argv[1], Path(sys.argv[2])))"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, empty_database, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    applied = [name for run in runs for name in run.communicate()[0].split()]
    assert sorted(applied) == [file.name for file in read_migrations(folder)]


def test_failed_migration_gives_one_line_and_leaves_nothing(
    empty_database: str, folder: Path
) -> None:
    write(folder, "0002_create_pages", "CREATE TABLE app.p ();\nSELECT 1 / 0;", "")
    with pytest.raises(MigrationError) as caught:
        migrate(empty_database, folder)
    assert str(caught.value) == (
        "0002_create_pages was not applied: division by zero (nothing of it was kept)"
    )
    assert query(empty_database, "SELECT to_regclass('app.p')") == [(None,)]


def test_each_migration_has_the_settings_of_a_new_session(
    empty_database: str, folder: Path
) -> None:
    """The database turns triggers off, which a session of pyapp does not accept."""
    migrate(empty_database, folder, count=2)
    name = empty_database.rpartition("/")[2]
    query(
        empty_database,
        f"ALTER DATABASE {name} SET session_replication_role = 'replica'",
    )
    setting = "SELECT current_setting('session_replication_role') AS role"
    for number in (4, 5):
        table = f"app.seen_{number}"
        up = f"SET jit = off;\nCREATE TABLE {table} AS {setting};"
        write(folder, f"000{number}_see_role", up, f"DROP TABLE {table};")
    migrate(empty_database, folder)
    for number in (4, 5):
        found = query(empty_database, f"SELECT s.role FROM app.seen_{number} AS s")
        assert found == [("origin",)]


@pytest.mark.parametrize("moment", ["begin", "commit"])
def test_lost_connection_is_reported_and_the_run_can_be_repeated(
    empty_database: str, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    migrate(empty_database, folder, count=1)
    original = getattr(migration_session.Backend, moment)

    def end_session(backend: migration_session.Backend) -> None:
        query(
            empty_database,
            f"SELECT pg_terminate_backend({backend.connection.info.backend_pid}, 5000)",
        )
        original(backend)

    with monkeypatch.context() as patch:
        patch.setattr(migration_session.Backend, moment, end_session)
        with pytest.raises(MigrationError) as caught:
            migrate(empty_database, folder)

    assert str(caught.value) == (
        "the connection was lost before 0002_create_pages was known to be applied:"
        " terminating connection due to administrator command; run it again, which"
        " continues there"
    )
    assert migrate(empty_database, folder) == [
        "0002_create_pages",
        "0003_create_pages_id_idx",
    ]


def test_edited_and_missing_migrations_have_different_states(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, folder)
    write(folder, "0001_create_schema", "CREATE SCHEMA other;", "DROP SCHEMA other;")
    (folder / "0003_create_pages_id_idx.sql").unlink()
    assert states(empty_database, folder) == {
        "0001_create_schema": "edited",
        "0002_create_pages": "applied",
        "0003_create_pages_id_idx": "unknown",
    }
    with pytest.raises(MigrationError, match="0003_create_pages_id_idx is applied and"):
        rollback(empty_database, folder)


def test_migration_redone_by_plain_yoyo_is_not_edited(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, folder)
    first = folder / "0001_create_schema.sql"
    first.write_text(first.read_text() + "-- Another text.\n")
    assert states(empty_database, folder)[first.stem] == "edited"
    yoyo(empty_database, "rollback", "--all", folder=folder)
    yoyo(empty_database, "apply", folder=folder)
    assert states(empty_database, folder)[first.stem] == "applied"


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("0001_Create", "SELECT 1;", "not named NNNN_verb_object"),
        ("0001_create_it", "-- \N{EM DASH}\nSELECT 1;", "0001_create_it.sql:1 is not"),
        (
            "0001_create_it",
            "-- transactional: false\nSELECT 1;\nSELECT 2;",
            "its own file",
        ),
    ],
)
def test_invalid_migration_file_is_named(
    tmp_path: Path, name: str, text: str, complaint: str
) -> None:
    (tmp_path / f"{name}.sql").write_text(text, encoding="utf-8")
    (tmp_path / f"{name}.rollback.sql").write_text("SELECT 1;")
    with pytest.raises(MigrationError, match=complaint):
        read_migrations(tmp_path)


@pytest.mark.parametrize("name", ["post-apply.sql", "post-apply-roles.py"])
def test_post_apply_file_is_refused(
    empty_database: str, folder: Path, name: str
) -> None:
    """Plain yoyo runs it after each apply; ignoring it would lose its effect."""
    (folder / name).write_text("SELECT 1;")

    with pytest.raises(MigrationError, match=rf"{name} is not run by pyapp: move its"):
        migrate(empty_database, folder)

    assert query(empty_database, "SELECT to_regnamespace('app')") == [(None,)]


def test_folder_without_migrations_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="no migrations"):
        read_migrations(tmp_path / "missing")


def test_path_with_brackets_and_c_locale_work(tmp_path: Path) -> None:
    folder = tmp_path / "[a] b"
    shutil.copytree(migrations_dir(), folder)
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from pyapp.devtools.migrations.files import read_migrations\n"
            "print(*[m.name for m in read_migrations(Path(sys.argv[1]))])",
            folder,
        ],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == NAMES


def test_migrate_without_a_database_names_the_start_command(folder: Path) -> None:
    with pytest.raises(DatabaseUnavailableError, match="pyapp db start"):
        migrate("postgresql://nobody@localhost:1/none", folder)


def test_error_names_the_session_that_holds_the_lock(empty_database: str) -> None:
    with psycopg.connect(empty_database, application_name="console") as holder:
        lock = fetch_one(
            holder, AdvisoryLock, "try_tool_lock", purpose="pyapp migrations"
        )
        assert lock.is_held
        expected = (
            f"at work: process {holder.info.backend_pid}, role {holder.info.user},"
            " application console, connected since .*pg_terminate_backend"
        )

        with (
            pytest.raises(MigrationError, match=expected),
            migration_session.migration_session(empty_database, patience=0),
        ):
            pass


def test_wait_for_another_run_is_reported(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run, which ends then, is named on stderr."""
    holder = psycopg.connect(empty_database)
    fetch_one(holder, AdvisoryLock, "try_tool_lock", purpose="pyapp migrations")
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setattr(tool_sessions, "SILENT_WAIT", 0)

    def end_holder(line: str) -> None:
        holder.close()
        console.warn(line)

    monkeypatch.setattr(schema, "warn", end_holder)
    pid = holder.info.backend_pid
    code, out, err = run_cli("db", "migrate", "--json")

    assert code == 0
    assert {line[0] for line in out.splitlines()} == {"{"}
    expected = f"Waiting for another run of migrations: process {pid}, role "
    assert unfolded(err).startswith(expected)
    assert err.count("Waiting") == 1
