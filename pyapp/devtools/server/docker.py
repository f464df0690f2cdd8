"""The local database in Docker, from docker-compose.yml."""

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pyapp.devtools.server.binaries import IS_UNIX, last_line
from pyapp.devtools.server.urls import Target
from pyapp.errors import LocalServerError

SERVICE = "db"
STATE = (
    "{{if and .State.Running .State.Health}}{{.State.Health.Status}}"
    "{{else}}{{.State.Status}}{{end}}"
)
# Whether a container runs, its ports on this machine, and the folder of its project.
ORIGIN = (
    "{{.State.Running}} {{range .HostConfig.PortBindings}}{{range .}}{{.HostPort}},"
    '{{end}}{{end}} {{index .Config.Labels "com.docker.compose.project.working_dir"}}'
)
HEALTHY = ("healthy", "running")
STARTING = ("created", "starting")
# Seconds until a container must be healthy, and lines of its log shown otherwise.
START_TIMEOUT = 120
LOG_LINES = 20
EMBEDDED_HINT = ", or: pyapp db start --embedded" if IS_UNIX else ""


@dataclass(frozen=True, slots=True)
class Container:
    """The container of a Compose project, whose name is only that of its folder."""

    id: str
    is_running: bool
    ports: frozenset[int]
    folder: str

    def is_made_from(self, root: Path) -> bool:
        """Tell whether the checkout at *root* created it, not another of that name."""
        return bool(self.folder) and Path(self.folder).resolve() == root.resolve()


def engine_answers() -> bool:
    """Tell whether a Docker engine answers; the client alone is not enough."""
    if shutil.which("docker") is None:
        return False
    run = _run(["docker", "info", "--format", "{{.ServerVersion}}"], timeout=15)
    return run.returncode == 0 and bool(run.stdout.strip())


def is_usable(root: Path) -> bool:
    """Tell whether Docker can serve the project at *root*."""
    if not (root / "docker-compose.yml").is_file() or not engine_answers():
        return False
    return _compose_command() is not None


def find_container(root: Path) -> Container | None:
    """Return the container of the Compose project at *root*, running or not."""
    run = _compose(root, "ps", "--all", "--quiet", SERVICE)
    if run.returncode or not run.stdout.strip():
        return None
    id = run.stdout.split()[0]
    text = _checked(_run(["docker", "inspect", "--format", ORIGIN, id], timeout=15))
    running, _, rest = text.partition(" ")
    ports, _, folder = rest.partition(" ")
    return Container(
        id=id,
        is_running=running == "true",
        ports=frozenset(int(port) for port in ports.split(",") if port.isdecimal()),
        folder=folder,
    )


def own_container(root: Path) -> Container | None:
    """Return the container that the checkout at *root* has created, running or not."""
    found = find_container(root)
    return found if found is not None and found.is_made_from(root) else None


def _refuse_others(root: Path) -> None:
    """Refuse to change the container of another checkout with the same name."""
    found = find_container(root)
    if found is not None and not found.is_made_from(root):
        folder = found.folder or "an unknown folder"
        raise LocalServerError(
            f"the Compose project of this name was created in {folder}:"
            " rename this folder, or set COMPOSE_PROJECT_NAME; if that folder is gone:"
            f" docker rm --force {found.id[:12]}"
        )


def up(root: Path, target: Target) -> None:
    """Start the container for *target* and wait for its healthcheck."""
    if not engine_answers():
        raise LocalServerError(f"no Docker engine answers: start Docker{EMBEDDED_HINT}")
    command = _compose_command()
    if command is None:
        raise LocalServerError(f"Docker has no compose: install it{EMBEDDED_HINT}")
    _refuse_others(root)
    run = _compose(root, "up", "--detach", SERVICE, target=target)
    if "already allocated" in run.stderr or "already in use" in run.stderr:
        raise LocalServerError(
            f"port {target.port} is used by another program: stop that,"
            " or choose another port in DATABASE_URL"
        )
    if run.returncode:
        raise LocalServerError(f"Docker did not start the database: {last_line(run)}")
    _wait_for_health(_checked(_compose(root, "ps", "--all", "--quiet", SERVICE)))


def _wait_for_health(container: str) -> None:
    """Wait for the healthcheck of *container*, which Compose 1 and early 2 cannot."""
    deadline = time.monotonic() + START_TIMEOUT
    while (state := _state(container)) not in HEALTHY:
        if state not in STARTING or time.monotonic() > deadline:
            failure = LocalServerError(
                f"the database in Docker does not start: its container is {state};"
                " the end of its log is above"
            )
            failure.add_note(_log(container))
            raise failure
        time.sleep(0.2)


def _state(container: str) -> str:
    """Return the status of the healthcheck of *container*, else of the container."""
    return _checked(
        _run(["docker", "inspect", "--format", STATE, container], timeout=15)
    )


def _log(container: str) -> str:
    """Return the last lines of the log of *container*."""
    run = _run(["docker", "logs", "--tail", str(LOG_LINES), container], timeout=15)
    return (run.stdout + run.stderr).rstrip()


def stop(root: Path) -> None:
    """Stop the container and keep its data."""
    _refuse_others(root)
    _checked(_compose(root, "stop", SERVICE))


def remove(root: Path) -> None:
    """Remove the container and its data."""
    _refuse_others(root)
    _checked(_compose(root, "down", "--volumes"))


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
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=os.environ | (variables or {}),
            check=False,
        )
    except subprocess.TimeoutExpired:
        late = f"no answer within {timeout:.0f} seconds"
        return subprocess.CompletedProcess(command, 124, "", late)
    except OSError as exc:  # the program exists and cannot be run
        return subprocess.CompletedProcess(command, 126, "", str(exc))


def _checked(run: subprocess.CompletedProcess[str]) -> str:
    """Return the output of *run*, which must have succeeded."""
    if run.returncode:
        raise LocalServerError(f"Docker failed: {last_line(run)}")
    return run.stdout.strip()
