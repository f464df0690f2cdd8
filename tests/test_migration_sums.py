"""A merged migration never changes: migrations/SHA256SUMS has its checksum."""

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
    """Return a copy of the migrations, all listed in SHA256SUMS."""
    copy = Path(shutil.copytree(migrations_dir(), tmp_path / "migrations"))
    assert run(copy, "--add")[0] == 0
    return copy


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit status and the output of the program."""
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(
        command, cwd=folder.parent, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["0001_create_schema", "0001_create_schema.rollback"])
def test_edited_or_deleted_migration_is_named(folder: Path, file: str) -> None:
    path = folder / f"{file}.sql"
    assert run(folder) == (0, "")
    path.write_text(path.read_text() + "-- One more word.\n")
    code, output = run(folder)
    assert (code, output.split(":")[0]) == (
        1,
        f"migrations/{file}.sql has changed since it was merged",
    )

    path.unlink()
    assert run(folder) == (code, output)
    assert run(folder, "--add")[1] == "migrations/SHA256SUMS: nothing added\n"
    assert run(folder) == (code, output)


def test_error_names_the_command_that_adds_a_migration(
    folder: Path,
) -> None:
    (folder / "9999_add_word.sql").write_text("SELECT 1;\n")
    before = (folder / "SHA256SUMS").read_text()

    code, output = run(folder)
    assert (code, output) == (
        1,
        "migrations/9999_add_word.sql is not in SHA256SUMS;"
        " when it is final: make freeze\n",
    )
    assert run(folder, "--add")[0] == 0
    assert run(folder) == (0, "")
    assert (folder / "SHA256SUMS").read_text().startswith(before)


def test_sums_file_is_not_a_migration(folder: Path) -> None:
    files = {path.name for path in folder.glob("*.sql")}

    assert {file.path.name for file in read_migrations(folder)} < files
