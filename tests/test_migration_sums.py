"""A merged migration never changes: migrations/SHA256SUMS holds its text."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyapp._core.queries import migrations_dir
from pyapp.devtools.migrations.files import read_migrations

PROGRAM = Path(__file__).parents[1] / ".ci" / "migration_sums.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the migrations, all of them listed."""
    copy = Path(shutil.copytree(migrations_dir(), tmp_path / "migrations"))
    assert run(copy, "--add")[0] == 0
    return copy


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code of the program there, and what it says."""
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(
        command, cwd=folder.parent, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["0001_create_plans", "0001_create_plans.rollback"])
def test_an_edited_or_deleted_migration_is_named(folder: Path, file: str) -> None:
    path = folder / f"{file}.sql"
    assert run(folder) == (0, "")
    path.write_text(path.read_text() + "-- One more word.\n")
    code, said = run(folder)
    assert (code, said.split(":")[0]) == (
        1,
        f"migrations/{file}.sql has changed since it was merged",
    )

    path.unlink()
    assert run(folder) == (code, said)
    assert run(folder, "--add")[1] == "migrations/SHA256SUMS: nothing added\n"
    assert run(folder) == (code, said)


def test_a_new_migration_is_added_by_the_command_that_its_error_names(
    folder: Path,
) -> None:
    (folder / "9999_add_word.sql").write_text("SELECT 1;\n")
    before = (folder / "SHA256SUMS").read_text()

    code, said = run(folder)
    assert (code, said) == (
        1,
        "migrations/9999_add_word.sql is not in SHA256SUMS;"
        " when it is final: make freeze\n",
    )
    assert run(folder, "--add")[0] == 0
    assert run(folder) == (0, "")
    assert (folder / "SHA256SUMS").read_text().startswith(before)


def test_the_list_is_no_migration(folder: Path) -> None:
    files = {path.name for path in folder.glob("*.sql")}

    assert {file.path.name for file in read_migrations(folder)} < files
