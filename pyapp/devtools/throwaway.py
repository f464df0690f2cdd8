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
    """Give a fast server on a free port, in *folder* or a new one; delete it after."""
    parent = folder or Path(tempfile.mkdtemp(prefix="pyapp-", dir=_memory_folder()))
    parent.chmod(0o755)
    account = server_account(parent / "data")
    if account is not None and not can_enter(account, parent):
        shutil.rmtree(parent)
        parent = system_folder("throwaway-")
    server = EmbeddedServer(
        parent / "data", free_port(), settings={**THROWAWAY, **(settings or {})}
    )
    try:
        server.start()
        yield server
    finally:
        server.remove()
        shutil.rmtree(parent, ignore_errors=True)


def _memory_folder() -> str | None:
    """Return a folder in memory if there is a roomy one: clones are 20 times faster."""
    shm = "/dev/shm"
    if os.access(shm, os.W_OK) and shutil.disk_usage(shm).free > 2 << 30:
        return shm
    return None
