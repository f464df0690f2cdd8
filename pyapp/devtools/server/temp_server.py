"""A PostgreSQL for one run of tests or checks, deleted after it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from pyapp.devtools.server.binaries import can_enter, server_account, system_folder
from pyapp.devtools.server.embedded import EmbeddedServer, free_port
from pyapp.errors import LocalServerError

# Nothing has to survive a power cut, and nothing runs long enough to be compiled.
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
) -> Iterator[EmbeddedServer]:
    """Give a fast server on a free port; delete it and its folder after."""
    parent = folder or open_folder()
    server = EmbeddedServer(
        parent / "data",
        free_port(),
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
    """Return a new folder in which a server can keep its data, as root too."""
    place = _memory_folder() or Path(tempfile.gettempdir())
    _sweep(place)
    new = Path(tempfile.mkdtemp(prefix=f"pyapp-{os.getpid()}-", dir=place))
    new.chmod(0o755)
    account = server_account(new / "data")
    if account is None or can_enter(account, new):
        return new
    new.rmdir()
    return system_folder("temp-")


def _sweep(place: Path) -> None:
    """Delete what runs that were killed have left in *place*, their servers too."""
    for folder in place.glob("pyapp-*-*"):
        pid = folder.name.split("-")[1]
        # Another run may be sweeping too.
        with contextlib.suppress(FileNotFoundError, LocalServerError):
            ours = folder.stat().st_uid == os.geteuid()
            if ours and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                EmbeddedServer(folder / "data", port=0).remove()
                shutil.rmtree(folder, ignore_errors=True)


def _memory_folder() -> Path | None:
    """Return a folder in memory if there is a roomy one: clones are 20 times faster."""
    shm = Path("/dev/shm")
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30:
        return shm
    return None
