"""The local database in Docker, by docker-compose.yml."""

import os
import shutil
import subprocess
from pathlib import Path

from pyapp.devtools.binaries import last_line
from pyapp.devtools.target import Target
from pyapp.errors import LocalServerError

SERVICE = "db"


def engine_answers() -> bool:
    """Say whether a Docker engine answers; the client alone is not enough."""
    if shutil.which("docker") is None:
        return False
    try:
        run = _run(["docker", "info", "--format", "{{.ServerVersion}}"], timeout=15)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0 and bool(run.stdout.strip())


def is_usable(root: Path) -> bool:
    """Say whether the project at *root* can be served by Docker."""
    if not (root / "docker-compose.yml").is_file() or not engine_answers():
        return False
    return _compose_command() is not None


def is_running(root: Path) -> bool:
    """Say whether the project's container is up."""
    run = _compose(root, "ps", "--services", "--filter", "status=running")
    return run.returncode == 0 and SERVICE in run.stdout.split()


def up(root: Path, target: Target) -> None:
    """Start the container for *target*, and wait for its healthcheck."""
    if not engine_answers():
        raise LocalServerError(
            "no Docker engine answers: start Docker, or: pyapp db start --embedded"
        )
    command = _compose_command()
    if command is None:
        raise LocalServerError(
            "Docker has no compose: install it, or: pyapp db start --embedded"
        )
    # Compose 1 cannot wait; the caller waits for the URL to answer anyway.
    waits = ["--wait", "--wait-timeout", "120"] if len(command) == 2 else []
    run = _compose(root, "up", "--detach", *waits, SERVICE, target=target)
    if run.returncode == 0:
        return
    if "already allocated" in run.stderr or "already in use" in run.stderr:
        raise LocalServerError(
            f"port {target.port} is taken by another program: stop that,"
            " or choose another port in DATABASE_URL"
        )
    raise LocalServerError(
        f"Docker did not start the database: {last_line(run)};"
        f" more by: docker compose logs {SERVICE}"
    )


def stop(root: Path) -> None:
    """Stop the container; its data stays."""
    _must(_compose(root, "stop", SERVICE))


def remove(root: Path) -> None:
    """Remove the container and its data."""
    _must(_compose(root, "down", "--volumes"))


def _compose(
    root: Path, *arguments: str, target: Target | None = None
) -> subprocess.CompletedProcess[str]:
    command = _compose_command() or ["docker", "compose"]
    variables = {}
    if target is not None:
        variables = {
            "PYAPP_DB_USER": target.user,
            "PYAPP_DB_PASSWORD": target.password,
            "PYAPP_DB_NAME": target.database,
            "PYAPP_DB_PORT": str(target.port),
        }
    file = ["--file", str(root / "docker-compose.yml")]
    return _run([*command, *file, *arguments], variables, timeout=600)


def _compose_command() -> list[str] | None:
    if _run(["docker", "compose", "version"], timeout=15).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def _run(
    command: list[str], variables: dict[str, str] | None = None, *, timeout: float
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | (variables or {}),
        check=False,
    )


def _must(run: subprocess.CompletedProcess[str]) -> None:
    if run.returncode:
        raise LocalServerError(f"docker compose failed: {last_line(run)}")
