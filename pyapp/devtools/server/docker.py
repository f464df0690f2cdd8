"""The local database in Docker, from docker-compose.yml."""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pyapp.devtools.server.binaries import IS_UNIX, binaries, last_line
from pyapp.devtools.server.urls import Target
from pyapp.errors import LocalServerError, MissingExtraError

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
_LINES = re.IGNORECASE | re.MULTILINE
# Messages of Docker and Compose, what they mean, and the remedy.
_STOPPED = ("no Docker engine answers", "start Docker")
_REFUSED = (
    "this account may not use Docker",
    "add it to the group `docker`, and log in again",
)
_FAILURES = {
    r"permission denied.*(docker\.sock|docker API|daemon socket)": _REFUSED,
    r"cannot connect to the docker daemon|error during connect"
    r"|while fetching server API version": _STOPPED,
    r"no space left on device": (
        "Docker's disk is full",
        "free some space, such as by: docker image prune",
    ),
    r"toomanyrequests|rate limit": (
        "the registry's limit of downloads is reached",
        "run docker login, or try it again later",
    ),
    r"no matching manifest|no match for platform": (
        "the image does not exist for this machine",
        "choose another image in docker-compose.yml",
    ),
    r"Unsupported config option|Version in \S+ is unsupported|is invalid because": (
        "this Compose is too old for docker-compose.yml",
        "install Compose 2",
    ),
    r"dial tcp|i/o timeout|handshake timeout|proxyconnect|no such host"
    r"|failed to (pull|resolve|do request|copy)|\bEOF$|connection reset"
    r"|unexpected HTTP status|error getting credentials"
    r"|deadline exceeded|request canceled|pull access denied|unauthorized|x509"
    r"|manifest (unknown|for \S+ not found)": (
        "Docker cannot pull the image",
        "check the network and the registry",
    ),
}


class DockerError(LocalServerError):
    """Docker does not start the container, for `reason`; the message has the remedy.

    The way out without Docker is the embedded server.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        self.reason, self.remedy = reason, remedy
        ways = filter(None, (remedy, _way_out()))
        super().__init__(f"{reason}: {', or '.join(ways)}")


def _way_out() -> str:
    """Return how to start a server without Docker; empty on Windows, which has none."""
    if not IS_UNIX:
        return ""
    try:
        binaries()
    except MissingExtraError as exc:
        return f"use the embedded server: {exc.command}"
    return "run pyapp db start --embedded"


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


def is_usable(root: Path) -> bool:
    """Tell whether Docker can serve the project at *root*."""
    return find_obstacle(root) is None


def find_obstacle(root: Path) -> DockerError | None:
    """Return why Docker cannot serve the project at *root*; None if it can.

    The client alone is not enough: an engine must answer.
    """
    if not (root / "docker-compose.yml").is_file():
        return DockerError(f"there is no docker-compose.yml in {root}", "")
    if shutil.which("docker") is None:
        return DockerError("Docker is not installed", "install it")
    run = _run(["docker", "info", "--format", "{{.ServerVersion}}"], timeout=15)
    if run.returncode or not run.stdout.strip():
        is_refused = "permission denied" in run.stderr
        return DockerError(*(_REFUSED if is_refused else _STOPPED))
    if _compose_command() is None:
        return DockerError("Docker has no Compose", "install it")
    return None


def find_projects(port: int) -> list[Path]:
    """Return the folders of the Compose projects with a container on *port*."""
    label = '{{.Label "com.docker.compose.project.working_dir"}}'
    if shutil.which("docker") is None:
        return []
    command = ["docker", "ps", "--filter", f"publish={port}", "--format", label]
    run = _run(command, timeout=15)
    lines = run.stdout.splitlines() if run.returncode == 0 else []
    return [Path(line) for line in lines if line]


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
    if obstacle := find_obstacle(root):
        raise obstacle
    _refuse_others(root)
    run = _compose(root, "up", "--detach", SERVICE, target=target)
    if re.search("already allocated|already in use|Ports are not avail", run.stderr):
        raise LocalServerError(
            f"port {target.port} is used by another program: stop that,"
            " or choose another port in DATABASE_URL"
        )
    if run.returncode:
        raise _explain(run)
    _wait_for_health(_checked(_compose(root, "ps", "--all", "--quiet", SERVICE)))


def _explain(run: subprocess.CompletedProcess[str]) -> DockerError:
    """Return the error of the failed `up`; a known one without a container."""
    said = last_line(run)
    for pattern, (reason, remedy) in _FAILURES.items():
        if found := re.search(rf"^.*(?:{pattern}).*$", run.stderr, _LINES):
            return DockerError(f"{reason} ({_short(found[0])})", remedy)
    return DockerError(f"Docker did not start the database ({_short(said)})", "")


def _short(line: str) -> str:
    """Return *line* without the prefixes that each client adds."""
    prefixes = r"^(?:ERROR:|Error response from daemon:|\S+ Error|\s)+"
    return re.sub(prefixes, "", line).strip()


def _wait_for_health(container: str) -> None:
    """Wait for the healthcheck of *container*, which Compose 1 and early 2 cannot."""
    deadline = time.monotonic() + START_TIMEOUT
    while (state := _state(container)) not in HEALTHY:
        if state not in STARTING or time.monotonic() > deadline:
            failure = DockerError(
                f"the database's container does not start ({state})",
                "see the end of its log above",
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
