"""Which server process a data folder's postmaster.pid means, if it still lives."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Postmaster:
    """The server's first process."""

    pid: int
    port: int


def find_postmaster(folder: Path) -> Postmaster | None:
    """Return the process that serves the data folder *folder*, or None."""
    try:
        lines = (folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        found = Postmaster(pid=int(lines[0]), port=int(lines[3]))
    except (OSError, ValueError, IndexError):
        return None
    return found if _is_postgres(found.pid) else None


def _is_postgres(pid: int) -> bool:
    """Say whether *pid* is a live PostgreSQL.

    After a crash the number may be another program's by now, or, in a container whose
    first process buries no children, a dead process's; PostgreSQL minds both.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return True
    name, _, state = stat.partition("(")[2].rpartition(")")
    return name == "postgres" and not state.strip().startswith(("Z", "X"))
