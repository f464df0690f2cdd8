"""The test server's URL, the command line, and builds."""

import contextlib
import hmac
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from rich.console import Console

from pyapp._core.connection import connect
from pyapp._core.queries import migrations_dir
from pyapp.cli import console, main
from pyapp.devtools.migrations.migrator import list_migrations
from pyapp.devtools.server.embedded import EmbeddedServer

# The programs of the oldest supported version, from Debian's package.
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")

# A refused call must not change this row.
ROW_COUNTS = """
    SELECT
        (SELECT count(*) FROM app.users),
        (SELECT count(*) FROM app.fingerprints),
        (SELECT count(*) FROM app.sessions),
        (SELECT count(*) FROM app.messages),
        (SELECT count(*) FROM app.message_payloads),
        (SELECT sum(messages) FROM app.usage_daily),
        (SELECT count(*) FROM app.referrals),
        (SELECT count(*) FROM app.plan_prices),
        (SELECT count(*) FROM app.stripe_events),
        (SELECT count(*) FROM app.stripe_sync_runs),
        (SELECT max(updated_at) FROM app.users)
"""


@dataclass(frozen=True)
class Server:
    """The address of the tests' server; pytest-postgresql reads these names."""

    host: str
    port: int
    user: str
    password: str
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: None = None

    def url(self, database: str) -> str:
        """Return the URL of a database of this server."""
        user, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/{database}"


def hash_once(server: EmbeddedServer) -> None:
    """Store the password with one SCRAM iteration; 4096 take half of a login's time.

    RFC 5803 has the format: `SCRAM-SHA-256$iterations:salt$keys`.
    """
    salt = os.urandom(16)
    salted = pbkdf2_hmac("sha256", server.password.encode(), salt, 1)
    client_key, server_key = (
        hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key")
    )
    parts = (salt, sha256(client_key).digest(), server_key)
    secret = "SCRAM-SHA-256$1:{}${}:{}".format(
        *(b64encode(part).decode() for part in parts)
    )
    with connect(server.url) as conn:
        conn.execute(f"ALTER ROLE {server.user} PASSWORD '{secret}'".encode())


def run_cli(*arguments: str, answer: str = "") -> tuple[int, str, str]:
    """Run `pyapp` with *arguments*; return its exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
        restored_logging(),
    ):
        patch.setattr("sys.stdin", io.StringIO(answer))
        try:
            main(list(arguments))
        except SystemExit as exc:
            code = int(exc.code or 0)
    return code, out.getvalue(), err.getvalue()


@contextlib.contextmanager
def restored_logging() -> Iterator[None]:
    """Restore the logging of this process, which a command configures."""
    root = logging.getLogger()
    names = ("", "pyapp", "uvicorn")
    levels = [logging.getLogger(name).level for name in names]
    handlers = list(root.handlers)
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for name, level in zip(names, levels, strict=True):
            logging.getLogger(name).setLevel(level)


def unfolded(text: str) -> str:
    """Return the words of *text* on one line: output is folded at 80 columns."""
    return " ".join(text.split())


def use_terminal(patch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Let commands print to a terminal of 80 columns; return a function to read it."""
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, no_color=True)
    patch.setattr(console, "console", terminal)
    return lambda: re.sub(r"\x1b\[\d*m", "", screen.getvalue()).splitlines()


def find_pgbouncer() -> str | None:
    """Return the program, which distributions install outside the usual PATH."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


@contextlib.contextmanager
def recorded_commands() -> Iterator[list[str]]:
    """Yield the command lines of the programs that this process starts inside."""
    started: list[str] = []
    is_over = threading.Event()

    def record(event: str, args: tuple[Any, ...]) -> None:
        if event == "subprocess.Popen" and not is_over.is_set():
            words = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
            started.append(" ".join(map(os.fsdecode, words)))

    # An audit hook cannot be removed, and sees programs that any library starts.
    sys.addaudithook(record)
    try:
        yield started
    finally:
        is_over.set()


def build(folder: Path) -> Path:
    """Build the wheel and the source distribution in *folder*; return it."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
    )
    return folder


def execute(url: str, *statements: str) -> None:
    """Run each of *statements* at *url*, without a transaction."""
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in statements:
            conn.execute(statement.encode())


def yoyo(url: str, *arguments: str, folder: Path | None = None) -> str:
    """Run plain yoyo on *folder*, else on the migrations; return its output."""
    run = subprocess.run(
        [
            Path(sys.executable).with_name("yoyo"),
            *arguments[:1],
            "--batch",
            "--no-config-file",
            f"--database={url.replace('postgresql:', 'postgresql+psycopg:')}",
            *arguments[1:],
            folder or migrations_dir(),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def states(url: str, folder: Path | None = None) -> dict[str, str]:
    """Return the state of each migration at *url*, by name."""
    return {status.name: status.state for status in list_migrations(url, folder)}
