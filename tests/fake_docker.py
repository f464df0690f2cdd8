"""A `docker` program that answers from files, for tests of what calls it."""

import shutil
from pathlib import Path

import pytest

from pyapp._core.config import Settings

URL = "postgresql://me:p%40ss@localhost:6543/mine"
STAND_IN = """#!/bin/sh
echo "$PYAPP_DB_USER $PYAPP_DB_PASSWORD $PYAPP_DB_NAME $PYAPP_DB_PORT: $*" >>calls
case "$*" in
*PortBindings*) if [ -e folder ]; then read folder <folder; else folder=$PWD; fi
    if [ -e running ]; then read port <running; echo "true $port, $folder"
    else echo "false 6543, $folder"; fi ;;
"ps --filter"*) [ ! -e folder ] || cat folder ;;
info*) if [ -e engine ]; then echo 29.0; else exit 1; fi ;;
"compose version") [ -e compose ] ;;
*" ps --all --quiet "*) [ -e absent ] || echo 4f1d ;;
inspect*) read state <states; echo $state
    { read state; cat; } <states >rest; [ ! -s rest ] || cat rest >states ;;
logs*) echo "initdb: making it"; echo "FATAL:  no space left" >&2 ;;
*) [ ! -e failure ] || { cat failure >&2; exit 1; } ;;
esac
"""


def fake_docker(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make *folder* a current project on a machine with only this Docker; return it."""
    (folder / "docker-compose.yml").touch()
    programs = folder / "bin"
    programs.mkdir()
    install(programs / "docker")
    for name in ("sh", "cat"):
        (programs / name).symlink_to(shutil.which(name) or name)
    (folder / "states").write_text("healthy\n")
    patch.setenv("PATH", str(programs))
    patch.chdir(folder)
    for name in ("engine", "compose"):
        (folder / name).touch()
    return folder


def install(path: Path) -> None:
    """Write the program."""
    path.write_text(STAND_IN)
    path.chmod(0o755)


def settings(project: Path, url: str) -> Settings:
    """Return the settings of *project*."""
    return Settings(root=project, database_url=url, environment="local")
