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


def add(folder: Path, name: str) -> None:
    for suffix in (".sql", ".rollback.sql"):
        (folder / f"{name}{suffix}").write_text(f"-- {name}{suffix}\n")


def move(old: str, new: str) -> str:
    """Return the command that the program names."""
    return (
        f"    git mv migrations/{old}.sql migrations/{new}.sql &&"
        f" git mv migrations/{old}.rollback.sql migrations/{new}.rollback.sql"
        " && make freeze\n"
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("9001_add_alpha", "9001_add_alpha and 9001_add_beta have the number 9001"),
        ("9001_add_gamma", "9001_add_beta and 9001_add_gamma have the number 9001"),
        ("9000_add_alpha", "9000_add_alpha is new, and sorts before 9001_add_beta"),
    ],
)
def test_taken_or_late_number_is_not_recorded(
    folder: Path, name: str, reason: str
) -> None:
    add(folder, "9001_add_beta")
    assert run(folder, "--add")[0] == 0
    sums = (folder / "SHA256SUMS").read_text()
    add(folder, name)
    expected = f"migrations: {reason}; renumber the one that is not merged:\n" + move(
        name, f"9002{name[4:]}"
    )

    code, output = run(folder)
    assert (code, output.startswith(expected)) == (1, True)
    expected += "migrations/SHA256SUMS: nothing added\n"
    assert run(folder, "--add") == (1, expected)
    assert (folder / "SHA256SUMS").read_text() == sums


def test_two_frozen_branches_are_renumbered(folder: Path) -> None:
    """Each branch has recorded its migration, and the merge has both lines."""
    for name in ("9001_add_beta", "9002_add_gamma"):
        add(folder, name)
    assert run(folder, "--add")[0] == 0
    sums = folder / "SHA256SUMS"
    for path in folder.glob("9002*"):
        path.rename(folder / path.name.replace("9002", "9001"))
    sums.write_text(sums.read_text().replace("9002_add", "9001_add"))
    code, output = run(folder)
    assert (code, output) == (
        1,
        "migrations: 9001_add_beta and 9001_add_gamma have the number 9001; renumber"
        " the one that is not merged:\n"
        + move("9001_add_beta", "9002_add_beta")
        + move("9001_add_gamma", "9002_add_gamma"),
    )

    for path in folder.glob("9001_add_beta*"):
        path.rename(folder / path.name.replace("9001", "9002"))
    code, output = run(folder, "--add")

    assert (code, output.splitlines()[1:]) == (
        0,
        [
            f"migrations/SHA256SUMS: 9001_add_beta{suffix} is now 9002_add_beta{suffix}"
            for suffix in (".rollback.sql", ".sql")
        ],
    )
    assert run(folder) == (0, "")


def test_conflict_of_two_branches_is_resolved(folder: Path) -> None:
    """Both branches have added lines at the end of the list."""
    sums = folder / "SHA256SUMS"
    for name in ("9001_add_beta", "9002_add_gamma"):
        add(folder, name)
    before = sums.read_text()
    assert run(folder, "--add")[0] == 0
    after = sums.read_text()
    added = after.removeprefix(before).splitlines(keepends=True)
    merged = ["<<<<<<< HEAD\n", *added[:2], "=======\n", *added[2:], ">>>>>>> other\n"]
    sums.write_text(before + "".join(merged))

    assert run(folder) == (
        1,
        "migrations/SHA256SUMS has lines of a merge: make freeze keeps those of both\n",
    )
    assert run(folder, "--add") == (0, "migrations/SHA256SUMS: nothing added\n")
    assert sums.read_text() == after


def test_contradicting_checksums_are_not_resolved(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    other = f"{'0' * 64}  0001_create_schema.sql"
    sums.write_text(f"{sums.read_text()}{other}\n")

    code, output = run(folder, "--add")

    assert (code, output) == (
        1,
        f"migrations/SHA256SUMS: {other!r} is not a checksum and a name, or contradicts"
        " another line\nmigrations/SHA256SUMS: nothing added\n",
    )


def test_sums_file_is_not_a_migration(folder: Path) -> None:
    files = {path.name for path in folder.glob("*.sql")}

    assert {file.path.name for file in read_migrations(folder)} < files
