"""The embedded PostgreSQL: a server in a folder of the project, without Docker.

The wheel has a server class of its own, which uses Unix-domain sockets only and changes
permissions of folders for root; this one listens on the port of DATABASE_URL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg
from psycopg.conninfo import make_conninfo

from pyapp._core.connection_failures import unavailable
from pyapp._core.database_url import find_elsewhere
from pyapp._core.run import fetch_one
from pyapp.devtools.server.binaries import (
    IS_UNIX,
    as_account,
    binaries,
    last_line,
    make_folder,
    owner_name,
    remove_folder,
    server_account,
    server_binaries,
)
from pyapp.errors import LocalServerError, MissingExtraError

if TYPE_CHECKING:
    import pwd

# Errors while the server starts. After a kill, connections that the old server had
# accepted are closed without an answer.
TRANSIENT = ("starting up", "closed the connection unexpectedly")
RESET_HINT = "`pyapp db reset` recreates it without its data"
# The same sort order on each system. Before PostgreSQL 17 only the system has it.
BUILTIN_LOCALE = (
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)
SYSTEM_LOCALE = ("--locale=C.UTF-8",)


@dataclass(frozen=True)
class EmbeddedServer:
    """A PostgreSQL server with its data in *folder*, on a TCP port of this machine."""

    folder: Path
    port: int
    user: str = "pyapp"
    password: str = field(default="pyapp", repr=False)
    database: str = "pyapp"
    settings: Mapping[str, str] = field(default_factory=dict)
    # The folder of initdb, postgres and pg_ctl; None for those of the wheel.
    programs: Path | None = None

    @property
    def url(self) -> str:
        """The DATABASE_URL of this server."""
        user, password, database = (
            quote(part, safe="") for part in (self.user, self.password, self.database)
        )
        return f"postgresql://{user}:{password}@localhost:{self.port}/{database}"

    @property
    def log(self) -> Path:
        """The log since the last start."""
        return self.folder / "server.log"

    def start(self) -> bool:
        """Start the server, created first if necessary; False if it already runs."""
        if reason := find_elsewhere(self.url):
            raise LocalServerError(f"the embedded server cannot be reached: {reason}")
        with _locked(self.folder.parent):
            if not self._has_data():
                self._create()
            running = find_postmaster(self.folder)
            if running and running.port != self.port:
                self._stop("fast")
                running = None
            if running is None:
                self._launch()
            self._check_database()
            return running is None

    def stop(self, mode: str = "fast") -> bool:
        """Stop the server; False if it did not run."""
        if not self.is_running():
            return False
        self._stop(mode)
        return True

    def is_running(self) -> bool:
        """Tell whether the server process runs."""
        return find_postmaster(self.folder) is not None

    def kill(self) -> None:
        """Kill the server process, like a crash, and wait until it has ended."""
        if running := find_postmaster(self.folder):
            os.kill(running.pid, signal.SIGKILL)
            while _is_postgres(running.pid):
                time.sleep(0.01)

    def remove(self) -> None:
        """Stop the server and delete its data."""
        with _locked(self.folder.parent):
            with contextlib.suppress(LocalServerError):
                self.stop("immediate")
            shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.exists():
            raise LocalServerError(
                f"cannot delete {self.folder}: it belongs to {owner_name(self.folder)}"
            )

    def _has_data(self) -> bool:
        """Tell whether there is a data folder; refuse one that cannot be used."""
        try:
            if not self.folder.exists() or not any(self.folder.iterdir()):
                return False
            version = (self.folder / "PG_VERSION").read_text(encoding="utf-8").strip()
            (self.folder / "global" / "pg_control").stat()
        except FileNotFoundError:
            raise LocalServerError(
                f"the data folder {self.folder} is incomplete; {RESET_HINT}"
            ) from None
        except PermissionError:
            raise LocalServerError(
                f"the data folder {self.folder} belongs to {owner_name(self.folder)}:"
                " start as that user, or delete the folder"
            ) from None
        programs = self._version()
        if programs.split(".")[0] != version:
            raise LocalServerError(
                f"the data folder {self.folder} is of PostgreSQL {version},"
                f" this server is {programs}: move the folder away, or {RESET_HINT}"
            )
        return True

    def _version(self) -> str:
        """Return the version of the programs, such as 18.6."""
        # Distributions append theirs: postgres (PostgreSQL) 15.18 (Debian ...)
        return self._run("postgres", "--version").split()[2]

    def _create(self) -> None:
        """Create the data folder under another name: it is complete or absent."""
        account = server_account(self.folder)
        major = int(self._version().split(".")[0])
        parent, prefix = self.folder.parent, f"{self.folder.name}.new-"
        for leftover in parent.glob(f"{prefix}*"):
            remove_folder(leftover)
        new = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        try:
            secret = new / "password"
            secret.write_text(self.password, encoding="utf-8")
            if account is not None:
                os.chown(new, account.pw_uid, account.pw_gid)
                os.chown(secret, account.pw_uid, account.pw_gid)
            self._run(
                "initdb",
                f"--pgdata={new / 'data'}",
                f"--username={self.user}",
                f"--pwfile={secret}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                *(BUILTIN_LOCALE if major >= 17 else SYSTEM_LOCALE),
                *(["--no-sync"] if self.settings.get("fsync") == "off" else []),
            )
            if self.folder.exists():
                self.folder.rmdir()
            (new / "data").rename(self.folder)
        finally:
            remove_folder(new)

    def _launch(self) -> None:
        if not port_is_free(self.port):
            raise LocalServerError(
                f"port {self.port} is used by another program: stop that,"
                " or choose another port in DATABASE_URL"
            )
        self.log.unlink(missing_ok=True)
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        settings = {
            "port": str(self.port),
            "listen_addresses": "localhost",
            "unix_socket_directories": "",
            **self.settings,
        }
        options = shlex.join(f"--{name}={value}" for name, value in settings.items())
        deadline = time.monotonic() + 20
        while self._pg_ctl("start", f"--log={self.log.name}", f"--options={options}"):
            reason = self._failure()
            # The processes of a crashed server need a moment to end.
            if "still in use" not in reason or time.monotonic() > deadline:
                raise LocalServerError(
                    f"PostgreSQL did not start: {reason} (log: {self.log})"
                )
            self.log.unlink(missing_ok=True)
            time.sleep(0.1)

    def _failure(self) -> str:
        """Return the first error of the log: a fatal one, or one that leads to it."""
        with contextlib.suppress(OSError):
            text = self.log.read_text(errors="replace")
            if found := re.search(r"(?:FATAL: |LOG:  (?=could not ))(.*)", text):
                return found[1].strip()
        return "no reason given"

    def _check_database(self) -> None:
        """Wait until the URL's user can connect; create a missing database."""
        deadline = time.monotonic() + 60
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.OperationalError as exc:
                reason = str(exc)
                is_transient = any(word in reason for word in TRANSIENT)
                if 'FATAL:  database "' in reason:
                    self._create_database()
                elif "password authentication failed" in reason:
                    raise LocalServerError(
                        f"the server in {self.folder} was created with another user or"
                        f" password: restore them in DATABASE_URL, or {RESET_HINT}"
                    ) from None
                elif not is_transient or time.monotonic() > deadline:
                    raise unavailable(self.url, exc) from exc
                time.sleep(0.1)

    def _create_database(self) -> None:
        url = make_conninfo(self.url, dbname="postgres")
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as conn:
            run_formatted(conn, "format_create_database", self.database)

    def _stop(self, mode: str) -> None:
        if self._pg_ctl("stop", f"--mode={mode}") != 0:
            raise LocalServerError(
                f"PostgreSQL in {self.folder} does not stop (log: {self.log})"
            )

    def _pg_ctl(self, action: str, *options: str) -> int:
        account = server_account(self.folder)
        call = as_account(account)
        # pg_ctl passes its arguments to a shell, which may change paths.
        call |= {"cwd": self.folder, "env": call["env"] | {"PGDATA": str(self.folder)}}
        # No pipe: the server would inherit it and keep it open.
        return subprocess.run(
            [
                self._program("pg_ctl", account),
                action,
                "--wait",
                "--timeout=60",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **call,
        ).returncode

    def _run(self, program: str, *options: str) -> str:
        account = server_account(self.folder)
        run = subprocess.run(
            [self._program(program, account), *options],
            capture_output=True,
            text=True,
            **as_account(account),
        )
        if run.returncode:
            raise LocalServerError(f"{program} failed: {last_line(run)}")
        return str(run.stdout)

    def _program(self, name: str, account: pwd.struct_passwd | None) -> Path:
        return (self.programs or server_binaries(account)) / name


def run_formatted(conn: psycopg.Connection[Any], query: str, database: str) -> None:
    """Run the statement that *query* returns for *database*."""
    statement = fetch_one(conn, str, query, name=database)
    try:
        conn.execute(statement.encode())
    except psycopg.Error as exc:
        raise LocalServerError(
            f"{statement} failed: {exc.diag.message_primary or exc}"
        ) from exc


def require_unix() -> None:
    """Refuse Windows."""
    if not IS_UNIX:
        raise LocalServerError(
            "the embedded server is for Linux and macOS: start Docker,"
            " then: pyapp db start"
        )


def has_embedded() -> bool:
    """Tell whether the extra `embedded` is installed, on a system that it supports."""
    try:
        return IS_UNIX and binaries().is_dir()
    except MissingExtraError:
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock *folder*, so that one process at a time starts or removes a server."""
    require_unix()
    import fcntl

    make_folder(folder)
    try:
        lock = (folder / "lock").open("w")
    except PermissionError:
        raise LocalServerError(
            f"cannot write in {folder}: it belongs to {owner_name(folder)};"
            " start as that user, or delete the folder"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Postmaster:
    """The main process of a PostgreSQL server."""

    pid: int
    port: int


def find_postmaster(folder: Path) -> Postmaster | None:
    """Return the running process that serves the data folder *folder*, or None.

    After a crash, postmaster.pid can name a process that has ended, a zombie, or
    another program. The number of a single-user server, such as initdb's, is negative.
    """
    try:
        lines = (folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        found = Postmaster(pid=int(lines[0]), port=int(lines[3]))
    except (OSError, ValueError, IndexError):
        return None
    return found if found.pid > 0 and _is_postgres(found.pid) else None


def _is_postgres(pid: int) -> bool:
    try:
        import psutil  # comes with the extra `embedded`
    except ModuleNotFoundError:
        raise MissingExtraError("embedded") from None
    try:
        process = psutil.Process(pid)
        is_ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return process.name() == "postgres" and not is_ended
    except psutil.NoSuchProcess:
        return False


def port_is_free(port: int) -> bool:
    """Tell whether *port* is free on each loopback address.

    PostgreSQL starts if one of them is free, and clients may connect to the other.
    """
    try:
        for family, address in (
            (socket.AF_INET, "127.0.0.1"),
            (socket.AF_INET6, "::1"),
        ):
            _bind(family, address, port)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return False
        raise LocalServerError(
            f"port {port} cannot be used ({exc.strerror}):"
            " choose another in DATABASE_URL"
        ) from exc
    return True


def _bind(family: socket.AddressFamily, address: str, port: int) -> None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Like PostgreSQL: connections closed recently do not block the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as exc:
        no_ipv6 = exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if not (family is socket.AF_INET6 and no_ipv6):
            raise
