"""Wheel and source distribution work in clean environments, in every folder.

`PYAPP_WHEELS` is a folder with the packages of the lock, `PYAPP_PYTHONS` names other
Pythons. .ci/run sets both.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import build

REPOSITORY = Path(__file__).parents[1]
MIGRATE = "import pyapp.devtools.migrations.migrator as m; m.migrate({url!r})"
SAMPLE = """
from decimal import Decimal
import pyapp
with pyapp.connect() as conn:
    ada = pyapp.users.create_user(conn, email="ada@example.com")
    call = {{"model": "gpt-5", "input_tokens": 1000, "output_tokens": 100}}
    paid = pyapp.messages.record_message(conn, user_id=ada.id, **call{cost})
    print(paid.is_new, f"{{paid.credits:.2f}}")
"""
# Code that needs each extra.
USES = {
    "cli": "import pyapp.usage_import.files, orjson, prometheus_client",
    "embedded": "from pyapp.devtools.server.binaries import binaries; binaries()",
    "generate": "from pyapp.devtools.generate.sources import parse; parse("
    "'SELECT 1', 'x')",
    "pricing": "from pyapp.pricing import _snapshot; _snapshot()",
    "web": "import pyapp.stripe_sync.web",
}
TRY_ALL = """
from pyapp.errors import MissingExtraError
for name, code in {uses!r}.items():
    try:
        exec(code)
    except (MissingExtraError, ModuleNotFoundError):
        continue
    print(name)
"""


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the source distribution."""
    return build(tmp_path_factory.mktemp("dist"))


def install(
    folder: Path, file: Path, *extras: str, python: str = sys.executable
) -> Path:
    """Return the programs of a new environment with only *file* and *extras*."""
    _run(python, "-m", "venv", "--without-pip", folder)
    source = ["--no-index", "--find-links", os.environ["PYAPP_WHEELS"]]
    if python != sys.executable:  # which needs other wheels
        source = ["--constraint", str(_versions(folder))]
    names = f"[{','.join(extras)}]" if extras else ""
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    _run(*pip, "install", "--quiet", "--no-compile", *source, f"{file}{names}")
    return folder / "bin"


def _versions(folder: Path) -> Path:
    """Return a file with the versions of the lock, without its hashes."""
    lock = (REPOSITORY / "requirements-dev.lock").read_text(encoding="utf-8")
    file = folder / "versions.txt"
    file.write_text("\n".join(re.findall(r"^[\w.-]+(?=\[|==).*?==[\w.]+", lock, re.M)))
    return file


def _run(*command: object) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PIP_NO_INDEX"}
    run = subprocess.run(
        [str(word) for word in command], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def run_in(url: str, *command: object, folder: Path) -> str:
    """Return the output of *command*, run in *folder* with only a DATABASE_URL."""
    run = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={"DATABASE_URL": url, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    return run.stdout + run.stderr


@pytest.mark.parametrize("pattern", ["*.whl", "*.tar.gz"])
def test_schema_and_recording_need_no_extra(
    dist: Path, tmp_path: Path, empty_database: str, pattern: str
) -> None:
    programs = install(tmp_path / "venv", next(dist.glob(pattern)))
    python = programs / "python"

    def answer(*command: object) -> str:
        return run_in(empty_database, *command, folder=tmp_path)

    assert answer(python, "-c", MIGRATE.format(url=empty_database)) == ""
    sample = SAMPLE.format(cost=", cost=Decimal('0.01')")
    assert answer(python, "-c", sample) == "True 1.20\n"
    assert "ada@example.com" in answer(programs / "pyapp", "quota", "--all")
    missing = "error: the extra `cli` is missing: "
    assert answer(programs / "pyapp", "import", "usage", ".").startswith(missing)


@pytest.mark.parametrize("extra", USES)
def test_each_extra_installs_alone(
    dist: Path, tmp_path: Path, database: str, extra: str
) -> None:
    programs = install(tmp_path / "venv", next(dist.glob("*.whl")), extra)
    uses = {name: code.format(url=database) for name, code in USES.items()}

    code = TRY_ALL.format(uses=uses)
    shown = run_in(database, programs / "python", "-c", code, folder=tmp_path)

    assert shown == f"{extra}\n"


@pytest.mark.parametrize(
    "python", [sys.executable, *os.environ.get("PYAPP_PYTHONS", "").split()]
)
def test_commands_work_in_any_folder_with_any_python(
    dist: Path, tmp_path: Path, empty_database: str, python: str
) -> None:
    wheel = next(dist.glob("*.whl"))
    programs = install(tmp_path / "venv", wheel, *USES, python=python)

    def answer(program: str, *arguments: str) -> str:
        return run_in(empty_database, programs / program, *arguments, folder=tmp_path)

    assert answer("pyapp", "db", "migrate").startswith("Applying 0001_create_schema\n")
    assert "are equal" in answer("pyapp", "db", "check")
    assert answer("python", "-c", SAMPLE.format(cost="")) == "True 0.27\n"
    assert "ada@example.com" in answer("pyapp", "quota", "--all")
