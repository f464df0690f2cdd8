"""Wheel and source distribution work in clean environments, in every folder.

`PYAPP_WHEELS` is a folder with the packages of the lock, `PYAPP_PYTHONS` names other
Pythons. .ci/run sets both.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyapp.devtools.server.binaries import state_folder
from tests.support import unfolded
from tests.temp_server import free_port

REPOSITORY = Path(__file__).parents[1]
# uv locks for all platforms, whose packages are not in the folder.
ONLY_THIS = (
    "environments = [\"sys_platform == 'linux' and python_version == '{}'\"]".format(
        "{}.{}".format(*sys.version_info)
    )
)
HINT = "from pyapp.errors import MissingExtraError as E; print(E('web').command)"
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
    folder = tmp_path_factory.mktemp("dist")
    source = ["--no-index", "--find-links", os.environ["PYAPP_WHEELS"]]
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    _run(*pip, *source, "--wheel-dir", folder, REPOSITORY)
    _run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder)
    return folder


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
        [str(word) for word in command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
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


def _commands(section: str, block: int) -> Iterator[tuple[str, str]]:
    """Yield the commands of a console block of README.md, each with its output."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    for part in found[block].removeprefix("$ ").split("\n$ "):
        command, _, output = part.partition("\n")
        yield command, output.strip()


def test_package_is_used_as_the_readme_says(dist: Path, tmp_path: Path) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (folder / "first.py").write_text(readme.split("```python\n")[1].split("```")[0])
    (first, _), *others = _commands("Use it as a package", 0)
    extras = re.fullmatch(r"pip install 'pyapp-metering\[([\w,]+)\]'", first)
    assert extras is not None
    wheel = next(dist.glob("*.whl"))
    programs = install(tmp_path / "venv", wheel, *extras[1].split(","))
    port = str(free_port())

    def answer(command: str) -> str:
        run = subprocess.run(
            ["/bin/sh", "-c", command.replace("54329", port)],
            cwd=folder,
            env={"PATH": f"{programs}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
        return (run.stdout + run.stderr).strip().replace(port, "54329")

    def varying(text: str) -> str:
        text = re.sub(r"PostgreSQL [\d.]+", "PostgreSQL 18", text)
        text = re.sub(r"\w{8}(-\w{4}){3}-\w{12}", "ID", text)
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "TIME", text)

    try:
        shown = [(command, varying(answer(command))) for command, _ in others]
    finally:
        answer("pyapp db stop")
        shutil.rmtree(state_folder(folder), ignore_errors=True)
    assert shown == [(command, varying(output)) for command, output in others]


@pytest.mark.parametrize("line", [0, 1])
def test_checkout_is_installed_without_make(tmp_path: Path, line: int) -> None:
    """The lines of README.md, without the index and for this Python only."""
    folder = tmp_path / "pyapp"
    _run("git", "clone", "--quiet", REPOSITORY, folder)
    project = folder / "pyproject.toml"
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    text = text.replace("[tool.uv]", f"[tool.uv]\n{ONLY_THIS}")
    project.write_text(re.sub(r"^servers = .*$", "", text, flags=re.MULTILINE))
    (command, _) = [*_commands("Start", 1)][line]

    script = [command, "pyapp doctor || true", f'eval "$(python -c "{HINT}")"']
    run = _in_shell(folder, *script)

    # What the newcomer does next.
    shown = unfolded(run.stdout)
    assert "cp .env.local.example .env.local" in shown, run.stdout + run.stderr
    assert run.returncode == 0, run.stderr
    _run(folder / ".venv" / "bin" / "python", "-c", "import pyapp.stripe_sync.web")


def _in_shell(folder: Path, *script: str) -> subprocess.CompletedProcess[str]:
    """Run *script* in *folder*, where pip, uv and pipx have no package index."""
    wheels = os.environ["PYAPP_WHEELS"]
    return subprocess.run(
        ["/bin/sh", "-ec", "\n".join(script)],
        cwd=folder,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(folder.parent),
            "PIP_NO_COMPILE": "1",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": wheels,
            "PIPX_HOME": str(folder / "pipx"),
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": wheels,
            "UV_PYTHON": sys.executable,
            "UV_TOOL_DIR": str(folder / "tools"),
            "UV_NO_DEV": "1",
        },
        capture_output=True,
        text=True,
    )


# How each manager installs the wheel, and the Python that runs it then.
MANAGERS = {
    "uv pip": (
        "uv venv --quiet e && uv pip install --python e/bin/python {wheel}",
        "e/bin/python",
    ),
    "uv add": (
        "uv init --quiet --bare --name e && cat only >> pyproject.toml"
        " && uv add {wheel}",
        ".venv/bin/python",
    ),
    "uv tool": ("uv tool install {wheel}", "tools/pyapp-metering/bin/python"),
    "pipx": (
        "pipx install --skip-maintenance {wheel}",
        "pipx/venvs/pyapp-metering/bin/python",
    ),
}


@pytest.mark.parametrize("manager", MANAGERS)
def test_command_of_a_missing_extra_works(
    dist: Path, tmp_path: Path, manager: str
) -> None:
    steps, python = MANAGERS[manager]
    (tmp_path / "only").write_text(f"[tool.uv]\n{ONLY_THIS}\n")
    script = steps.format(wheel=next(dist.glob("*.whl")))

    run = _in_shell(tmp_path, script, f'hint=$({python} -c "{HINT}")', 'eval "$hint"')

    assert run.returncode == 0, run.stderr
    _run(tmp_path / python, "-c", "import pyapp.stripe_sync.web")
