"""A PostgreSQL server for one comparison or run of tests, deleted afterwards."""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyapp.devtools.server.binaries import can_enter, server_account, system_folder
from pyapp.devtools.server.embedded import EmbeddedServer
from pyapp.errors import LocalServerError

# The data need not survive a power cut, and no query is worth compiling.
TEMP_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_wal_size": "256MB",
    "synchronous_commit": "off",
}


@contextlib.contextmanager
def temp_server(
    folder: Path | None = None,
    settings: Mapping[str, str] | None = None,
    programs: Path | None = None,
    password: str = "pyapp",
) -> Iterator[EmbeddedServer]:
    """Yield a fast server on a free port; delete it and its folder afterwards."""
    parent = folder or open_folder()
    server = EmbeddedServer(
        parent / "data",
        free_port(),
        password=password,
        settings={**TEMP_SETTINGS, **(settings or {})},
        programs=programs,
    )
    try:
        server.start()
        yield server
    finally:
        server.remove()
        shutil.rmtree(parent, ignore_errors=True)


def open_folder() -> Path:
    """Return a new folder that the account of a server can use, for root too."""
    place = _memory_folder() or Path(tempfile.gettempdir())
    _sweep(place)
    new = Path(tempfile.mkdtemp(prefix=f"pyapp-{os.getpid()}-", dir=place))
    new.chmod(0o755)
    account = server_account(new / "data")
    if account is None or can_enter(account, new):
        return new
    new.rmdir()
    return system_folder("temp-")


def free_port() -> int:
    """Return a TCP port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _sweep(place: Path) -> None:
    """Delete the servers and folders of killed runs in *place*."""
    import psutil  # comes with the extra `embedded`

    for folder in place.glob("pyapp-*-*"):
        pid = folder.name.split("-")[1]
        # Another run may delete the same folder.
        with contextlib.suppress(FileNotFoundError, LocalServerError):
            is_own = folder.stat().st_uid == os.geteuid()
            if is_own and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                EmbeddedServer(folder / "data", port=0).remove()
                shutil.rmtree(folder, ignore_errors=True)


def _memory_folder() -> Path | None:
    """Return a folder in memory with enough space: it copies databases 20x faster."""
    shm = Path("/dev/shm")
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30:
        return shm
    return None
