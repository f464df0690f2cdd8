"""Paths and locales of other systems: Windows, unusual folders, the C locale."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import pytest

from pyapp.devtools.migrations.files import source_of
from tests.temp_server import free_port, open_folder

REPOSITORY = Path(__file__).parents[1]
MAIN = "import sys; from pyapp.cli import main; main(sys.argv[1:])"
# What Python has on Unix only.
AS_ON_WINDOWS = f"""
import os, sys
sys.modules["fcntl"] = sys.modules["pwd"] = None
del os.geteuid
{MAIN}
"""


@pytest.fixture
def parent() -> Iterator[Path]:
    """Return a folder that the server's account can reach."""
    new = open_folder()
    yield new
    shutil.rmtree(new, ignore_errors=True)


def run(code: str, folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run Python with an almost empty environment; return status and output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), **variables},
        capture_output=True,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def copy_project(folder: Path) -> Path:
    """Copy what the project needs at run time to *folder*; return it."""
    for name in ("pyapp", "sql", "migrations"):
        shutil.copytree(
            REPOSITORY / name,
            folder / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("stack.env", "docker-compose.yml"):
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        (r"C:\Users\Zoë\app\migrations", "C:/Users/Zoë/app/migrations"),
        (r"D:\my [old] app\migrations", "D:/my [[]old] app/migrations"),
        (r"\\server\share\app", "//server/share/app"),
    ],
)
def test_yoyo_gets_forward_slashes_on_windows(folder: str, source: str) -> None:
    assert source_of(PureWindowsPath(folder)) == source


def test_project_works_in_any_folder_and_in_the_c_locale(
    parent: Path,
) -> None:
    folder = copy_project(parent / "it's a [new] {app} at $HOME, naïve 日本")
    url = f"postgresql://pyapp:pyapp@localhost:{free_port()}/pyapp"

    def pyapp(*words: str) -> tuple[int, str]:
        return run(MAIN, folder, *words, DATABASE_URL=url, LC_ALL="C")

    try:
        code, shown = pyapp("db", "start", "--embedded")
        assert (code, shown.endswith(" (embedded)\n")) == (0, True), shown
        code, shown = pyapp("db", "migrate")
        assert (code, shown.startswith("Applying 0001_create_schema\n")) == (0, True)
        code, shown = pyapp("db", "check")
        assert (code, "are equal" in shown) == (0, True), shown
        code, shown = pyapp("users", "add", "zoë@example.com", "--name", "Zoë 日本")
        assert (code, shown.startswith("zoë@example.com is user ")) == (0, True), shown
        assert "Zoë 日本" in pyapp("users", "list")[1]
    finally:
        pyapp("db", "stop")


def test_only_the_embedded_server_is_missing_on_windows(parent: Path) -> None:
    """Python on Windows has no fcntl, no pwd and no user numbers."""
    folder = copy_project(parent / "app")
    url = f"postgresql://pyapp:pyapp@localhost:{free_port()}/pyapp"

    def pyapp(*words: str) -> tuple[int, str]:
        return run(AS_ON_WINDOWS, folder, *words, DATABASE_URL=url)

    assert pyapp("db", "start", "--embedded") == (
        1,
        "error: the embedded server is for Linux and macOS: start Docker,"
        " then: pyapp db start\n",
    )
    code, shown = pyapp("db", "start", "--docker")
    assert (code, "embedded" in shown) == (1, False)
    assert pyapp("db", "stop") == (0, "PostgreSQL is not running\n")
    code, shown = pyapp("doctor")
    assert (code, "start it with: pyapp db start" in shown) == (1, True)
    assert ", and the embedded server is for Linux" in " ".join(shown.split())
