"""A missing extra is reported with the command that installs it here."""

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from pyapp._core import extras
from pyapp._core.extras import (
    command_of,
    explain_import,
    find_conflict,
    install_command,
)

WEB = "'pyapp-metering[web]'"
PYTHON = ".venv/bin/python"
WHEEL = "file:///wheels/pyapp_metering-0.1.0-py3-none-any.whl"
REQUIRES = (
    "psycopg>=3",
    "starlette>=1.0; extra == 'web'",
    "uvicorn>=0.40; extra == 'web'",
    "rich>=14; extra == 'present'",
    "absent-package; extra == 'absent'",
    "absent-package; python_version < '3' and extra == 'present'",
)
Install = Callable[..., Distribution]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a user in which no environment is active."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def install(here: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that makes an environment and an installation in it."""

    def write(
        environment: str = ".venv",
        installer: str = "pip",
        name: str = "pyapp-metering",
        summary: str = "ours",
        **files: str,
    ) -> Distribution:
        folder = here / environment
        site = folder / "lib" / "python3.11" / "site-packages"
        info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
        info.mkdir(parents=True)
        (folder / "pyvenv.cfg").touch()
        (folder / "bin").mkdir(exist_ok=True)
        lines = [f"Requires-Dist: {requirement}" for requirement in REQUIRES]
        head = [f"Name: {name}", "Version: 0.1.0", f"Summary: {summary}"]
        (info / "METADATA").write_text("\n".join([*head, *lines, ""]))
        (info / "INSTALLER").write_text(f"{installer}\n")
        for file, text in files.items():
            (info / file.replace("_json", ".json")).write_text(text)
        monkeypatch.setattr(sys, "prefix", str(folder))
        monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
        return Distribution.at(info)

    return write


def origin(url: str, **values: Any) -> str:
    """Return the contents of direct_url.json."""
    return json.dumps({"url": url, **values})


def test_pip_of_this_environment_is_named(
    install: Install, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = install("my env")
    python = "'my env/bin/python'"
    assert command_of(found, "web") == f"{python} -m pip install 'pyapp-metering[web]'"

    pip = here / "my env" / "bin" / "pip"
    pip.touch(0o755)
    monkeypatch.setenv("PATH", f"{pip.parent}:{os.environ['PATH']}")
    assert command_of(found, "web") == "pip install 'pyapp-metering[web]'"


def test_pip_of_another_folder_is_named_with_its_path(
    install: Install, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = install()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")

    python = here / ".venv" / "bin" / "python"
    assert command_of(found, "web") == f"{python} -m pip install 'pyapp-metering[web]'"


def test_source_checkout_is_installed_again_in_place(
    install: Install, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = origin(here.as_uri(), dir_info={"editable": True})
    found = install(direct_url_json=url)
    assert command_of(found, "web").endswith("-m pip install -e '.[web]'")

    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert command_of(found, "web").endswith(f" -m pip install -e '{here}[web]'")


def test_environment_without_pip_uses_uv(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = install()
    monkeypatch.setattr(extras, "_find", lambda name: None)

    assert command_of(found, "web") == f"uv pip install {WEB} --python {PYTHON}"


def test_source_checkout_of_uv_keeps_its_extras(install: Install, here: Path) -> None:
    url = origin(here.as_uri(), dir_info={"editable": True})
    found = install(installer="uv", direct_url_json=url)
    command = f"uv pip install -e '.[absent]' --python {PYTHON}"
    assert command_of(found, "absent") == command

    (here / "uv.lock").touch()
    kept = "uv sync --extra web --extra present --extra absent"
    assert command_of(found, "absent") == kept


def test_project_of_uv_gets_the_extra(install: Install, here: Path) -> None:
    found = install(installer="uv")
    assert command_of(found, "web") == f"uv pip install {WEB} --python {PYTHON}"

    (here / "uv.lock").touch()
    assert command_of(found, "web") == f"uv add {WEB}"


def test_uv_tool_keeps_the_extras(install: Install, here: Path) -> None:
    found = install("tools/pyapp-metering", "uv")
    (here / "tools" / "pyapp-metering" / "uv-receipt.toml").touch()

    kept = "uv tool install 'pyapp-metering[web,present,absent]'"
    assert command_of(found, "absent") == kept


def test_pipx_injects_the_extra(install: Install, here: Path) -> None:
    found = install("venvs/pyapp-metering")
    (here / "venvs" / "pyapp-metering" / "pipx_metadata.json").touch()

    assert command_of(found, "web") == f"pipx inject pyapp-metering {WEB}"


def test_absent_distribution_has_a_plain_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "_find", lambda name: None)
    install_command.cache_clear()

    assert install_command("web") == f"pip install {WEB}"
    install_command.cache_clear()


@pytest.fixture
def both(install: Install, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that adds a distribution `pyapp` with a summary."""
    own = install(direct_url_json=origin(WHEEL))
    found = {"pyapp-metering": own, "pip": own}

    def add(summary: str) -> None:
        found["pyapp"] = install(name="pyapp", summary=summary)

    monkeypatch.setattr(extras, "_find", found.get)
    return add


def test_package_of_another_project_is_reported(both: Callable[[str], None]) -> None:
    assert find_conflict() is None
    both("theirs")

    text = (
        "the distribution `pyapp` 0.1.0 of another project is in the same environment"
        " and has the same package: .venv/bin/python -m pip uninstall pyapp; then"
        " .venv/bin/python -m pip install --force-reinstall --no-deps"
        f" 'pyapp-metering @ {WHEEL}'"
    )
    assert find_conflict() == text
    assert explain_import(ImportError("cannot import", name="pyapp")) == text


def test_former_name_is_reported(both: Callable[[str], None]) -> None:
    both("ours")

    assert find_conflict() == (
        "an installation under the former name `pyapp` is left:"
        " .venv/bin/python -m pip uninstall pyapp"
    )


def test_other_missing_imports_are_bugs(both: Callable[[str], None]) -> None:
    assert explain_import(ModuleNotFoundError("no x", name="x")) is None
    assert explain_import(ImportError("no name", name="pyapp")) is None
