"""The units of deploy/systemd pass the checks of systemd itself.

Without `systemd-analyze` these tests are left out, except on CI as root.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy_files import DEPLOY, PROGRAM, UNITS

# The highest exposure by `systemd-analyze security`; without hardening it is 96.
EXPOSURE = 15
TIMERS = sorted((DEPLOY / "systemd").glob("*.timer"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the units whose program exists on this machine."""
    folder = tmp_path_factory.mktemp("units")
    shutil.copytree(DEPLOY / "systemd", folder, dirs_exist_ok=True)
    program = folder / "pyapp"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in folder.glob("*.service"):
        unit.write_text(unit.read_text().replace(PROGRAM, str(program)))
    return folder


def analyze(folder: Path, *words: str) -> str:
    """Return the output of a check that has to pass."""
    run = subprocess.run(
        ["systemd-analyze", "--no-pager", *words],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def test_units_are_valid(folder: Path):
    units = [str(folder / file.name) for file in (*UNITS, *TIMERS)]

    assert analyze(folder, "verify", *units) == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_unit_is_confined(folder: Path, unit: Path):
    limits = ("--offline=yes", f"--threshold={EXPOSURE}")

    shown = analyze(folder, "security", *limits, str(folder / unit.name))
    assert "Overall exposure level" in shown


@pytest.mark.parametrize("timer", TIMERS, ids=lambda timer: timer.stem)
def test_timer_has_a_schedule_and_a_service(folder: Path, timer: Path):
    text = timer.read_text(encoding="utf-8")
    (schedule,) = re.findall(r"^OnCalendar=(.+)$", text, re.MULTILINE)

    assert "Persistent=true\n" in text
    assert timer.with_suffix(".service") in UNITS
    assert "Next elapse" in analyze(folder, "calendar", schedule)
