"""Finds the checkout whose server is on a port that another checkout also names."""

from pathlib import Path

from pyapp.devtools.server import docker
from pyapp.devtools.server.embedded import find_postmaster


def find_owner(port: int) -> Path | None:
    """Return the folder of the checkout that runs the server on *port*, if known.

    Processes of other accounts hide their folders.
    """
    return _of_embedded(port) or _of_docker(port)


def _of_embedded(port: int) -> Path | None:
    try:
        import psutil  # comes with the extra `embedded`
    except ModuleNotFoundError:
        return None
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != "postgres":
            continue
        try:
            data = Path(process.cwd())
            is_pyapp = data.name == "postgres" and (data.parent / "lock").is_file()
        except (psutil.Error, OSError):
            continue
        found = find_postmaster(data)
        if is_pyapp and found and (found.pid, found.port) == (process.pid, port):
            # Data that the server's account could not reach has a folder elsewhere.
            state = data.parent
            return state.parent if state.name == ".pyapp" else state
    return None


def _of_docker(port: int) -> Path | None:
    folders = docker.find_projects(port)
    return next((path for path in folders if (path / "stack.env").is_file()), None)
