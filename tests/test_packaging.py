"""Wheel and source distribution contain the SQL, and extras are optional."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pyapp import __version__
from pyapp._core.extras import EXTRAS
from pyapp.devtools.migrations.files import read_migrations
from tests.support import build

REPOSITORY = Path(__file__).parents[1]
# Hides the extras from an interpreter.
WITHOUT_EXTRAS = f"""
import sys
for name in {sorted(EXTRAS)}:
    sys.modules[name] = None
"""


def _python(code: str, folder: Path, path: Path | None = None) -> str:
    """Return the output of *code*, run in *folder* with *path* as PYTHONPATH."""
    environment = {"PYTHONPATH": str(path or REPOSITORY), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the source distribution."""
    return build(tmp_path_factory.mktemp("dist"))


def _repository_files(*patterns: str) -> set[str]:
    return {
        str(path.relative_to(REPOSITORY))
        for pattern in patterns
        for path in REPOSITORY.glob(pattern)
    }


def test_wheel_contains_the_sql_and_works_in_any_folder(
    built: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        wheel.extractall(tmp_path / "site")
    sql = _repository_files("sql/**/*.sql", "migrations/*.sql")

    assert len(sql) > 10
    assert {f"pyapp/_{name}" for name in sql} <= names
    assert {"pyapp/py.typed", "pyapp/_sql/schema.sql"} <= names
    shown = _python(
        "import pyapp; from pyapp._core import queries\n"
        "print(pyapp.__file__, queries.sql_dir(), queries.migrations_dir(), sep='\\n')",
        tmp_path,
        tmp_path / "site",
    )
    package = tmp_path / "site" / "pyapp"
    assert shown.splitlines() == [
        str(package / "__init__.py"),
        str(package / "_sql"),
        str(package / "_migrations"),
    ]


def test_source_distribution_contains_what_builds_and_tests_need(
    built: Path,
) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        names = {name.partition("/")[2] for name in source.getnames()}

    assert _repository_files(
        "pyapp/**/*.py", "sql/**/*.sql", "migrations/*.sql", "tests/*.py", "*.toml"
    ) <= {*names, ""}
    assert {"Makefile", "stack.env", "docker-compose.yml", "LICENSE"} <= names
    assert ".env.local" not in names


def test_source_distribution_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    # Python 3.11.2 has no filter, and the archive can be trusted.
    options: dict[str, Any] = (
        {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    )
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        source.extractall(tmp_path, **options)
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)

    wheels = [next(where.glob("*.whl")) for where in (built, folder / "dist")]
    assert wheels[0].name == wheels[1].name
    assert _contents(wheels[0]) == _contents(wheels[1])


def _contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_distributions_contain_no_other_files(built: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    with tarfile.open(next(built.glob("*.tar.gz"))) as source:
        names = {
            member.name.partition("/")[2]
            for member in source.getmembers()
            if member.isfile()
        }
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        inside = {name.partition("/")[2] for name in wheel.namelist()}
        tops = {name.split("/")[0] for name in wheel.namelist()}

    assert names - set(listed) == {"PKG-INFO"}
    assert tops == {"pyapp", f"pyapp_metering-{__version__}.dist-info"}
    assert {Path(name).suffix for name in inside} <= {
        ".py",
        ".sql",
        ".toml",
        ".typed",
        ".md",
        ".txt",
        "",
        ".cfg",
    }


def test_package_index_shows_complete_metadata(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        folder = f"pyapp_metering-{__version__}.dist-info"
        text = wheel.read(f"{folder}/METADATA").decode()
        licenses = wheel.read(f"{folder}/licenses/LICENSE").decode()
    fields, _, description = text.partition("\n\n")

    assert "\nName: pyapp-metering\n" in fields
    assert "\nLicense-Expression: MIT\n" in fields
    assert "\nRequires-Python: >=3.11\n" in fields
    assert "\nDescription-Content-Type: text/markdown" in fields
    assert "URL:" not in fields  # the project has no page yet
    assert licenses == (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert description == (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert f"'./{next(built.glob('*.whl')).name}[embedded,pricing]'" in description


def test_changelog_lists_the_version_and_every_migration() -> None:
    """The table says what each migration locks or loses."""
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\d{4}_\w+)` \| (.+) \|$", changelog, re.MULTILINE))

    assert f"\n## {__version__}" in changelog or "\n## Unreleased\n" in changelog
    assert {file.name for file in read_migrations()} <= set(rows)


def test_modules_of_pyapp_are_imported_on_first_use(tmp_path: Path) -> None:
    shown = _python(
        "import sys, pyapp\n"
        "print({'psycopg', 'pyapp.users'} & sys.modules.keys())\n"
        "print(set(pyapp.__all__) - set(dir(pyapp)), hasattr(pyapp, 'nothing'))\n"
        "print(pyapp.users.get_user.__name__, pyapp.connect.__module__)\n"
        "from pyapp import *\n"
        "print([name for name in pyapp.__all__ if name not in globals()])",
        tmp_path,
    )

    assert shown == "set()\nset() False\nget_user pyapp._core.connection\n[]\n"


def test_importing_pyapp_needs_no_extra(tmp_path: Path) -> None:
    modules = sorted(
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
        for path in (REPOSITORY / "pyapp").glob("*.py")
        if path.stem != "__main__"
    )
    imports = "".join(f"import {name}\n" for name in modules)

    assert _python(f"{WITHOUT_EXTRAS}\n{imports}\nprint('fine')", tmp_path) == "fine\n"


def test_every_group_but_import_needs_no_extra(tmp_path: Path) -> None:
    shown = _python(
        f"{WITHOUT_EXTRAS}\n"
        "from pyapp.cli import main\n"
        "from pyapp.cli.app import COMMANDS, GROUPS, make_app\n"
        "for name in [*COMMANDS, *GROUPS]:\n"
        "    if name != 'import': make_app(name)\n"
        "main(['import', 'usage', '.'])",
        tmp_path,
    )

    assert shown.startswith("error: the extra `cli` is missing: ")
    assert shown.count("\n") == 1


def test_missing_package_of_the_command_is_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['typer'] = None\nfrom pyapp.cli import main; main()"
    shown = _python(code, tmp_path)

    assert shown.startswith("error: the package typer is missing: ")
    assert shown.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["quota", "--help"]])
def test_command_does_not_import_packages_of_other_commands(
    tmp_path: Path, arguments: list[str]
) -> None:
    heavy = {"yoyo", "stripe", "genai_prices", "pglast", "starlette", "uvicorn"}
    shown = _python(
        "import sys; from pyapp.cli import main\n"
        f"try: main({arguments})\n"
        f"except SystemExit: print({heavy} & sys.modules.keys())",
        tmp_path,
    )

    assert shown.endswith("\nset()\n")


@pytest.mark.parametrize("name", ["dev", "servers"])
def test_lock_has_hashes_and_no_host_or_path(name: str) -> None:
    lock = (REPOSITORY / f"requirements-{name}.lock").read_text()

    assert "://" not in lock
    assert "file:" not in lock
    assert lock.count("==") < lock.count("--hash=sha256:")
