"""A PostgreSQL for one run of tests or checks, deleted after it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pyapp.devtools.binaries import can_enter, server_account, system_folder
from pyapp.devtools.embedded import EmbeddedServer
from pyapp.devtools.ports import free_port

# Nothing has to survive a power cut.
THROWAWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "256MB",
    "synchronous_commit": "off",
}


@contextlib.contextmanager
def throwaway_server(
    folder: Path | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[EmbeddedServer]:
    """Give a fast server on a free port; delete it and its folder after."""
    parent = folder or open_folder()
    server = EmbeddedServer(
        parent / "data", free_port(), settings={**THROWAWAY, **(settings or {})}
    )
    try:
        server.start()
        yield server
    finally:
        server.remove()
        shutil.rmtree(parent, ignore_errors=True)


def open_folder() -> Path:
    """Return a new folder in which a server can keep its data, as root too."""
    new = Path(tempfile.mkdtemp(prefix="pyapp-", dir=_memory_folder()))
    new.chmod(0o755)
    account = server_account(new / "data")
    if account is None or can_enter(account, new):
        return new
    new.rmdir()
    return system_folder("throwaway-")


def _memory_folder() -> str | None:
    """Return a folder in memory if there is a roomy one: clones are 20 times faster."""
    shm = "/dev/shm"
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30:
        return shm
    return None
