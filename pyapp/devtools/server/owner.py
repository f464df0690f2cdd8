"""Finds the checkout whose server is on a port that another checkout also names."""

from pathlib import Path

from psycopg.conninfo import make_conninfo

from pyapp._core.connection import connect
from pyapp._core.run import fetch_optional
from pyapp.devtools.server import docker
from pyapp.devtools.server.embedded import find_postmaster
from pyapp.devtools.server.urls import Target, is_on_this_machine
from pyapp.errors import DatabaseUnavailableError


def find_owner(target: Target) -> Path | None:
    """Return the folder of the checkout that runs the server at *target*, if known.

    Processes of other accounts hide their folders, and a server shows its folder only
    to a login that may read all settings.
    """
    port = target.port
    return _of_process(port) or _of_docker(port) or _of_connection(target)


def _of_process(port: int) -> Path | None:
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


def _of_connection(target: Target) -> Path | None:
    try:
        with connect(make_conninfo(target.url, connect_timeout=5)) as conn:
            path = fetch_optional(conn, str, "find_data_directory")
            is_here = is_on_this_machine(conn)
    except DatabaseUnavailableError:
        return None
    data = Path(path or "")
    is_checkout = is_here and data.name == "postgres" and data.parent.name == ".pyapp"
    return data.parent.parent if is_checkout else None
