"""What several test files share."""

import contextlib
import hmac
import io
import os
import shutil
import subprocess
import sys
from base64 import b64encode
from dataclasses import dataclass
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path
from urllib.parse import quote

import pytest

from pyapp._core.connection import connect
from pyapp.cli import main
from pyapp.devtools.server.embedded import EmbeddedServer

# Where Debian's package of the oldest supported version has its programs.
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@dataclass(frozen=True)
class Server:
    """Where the tests' PostgreSQL answers; pytest-postgresql reads these names."""

    host: str
    port: int
    user: str
    password: str
    options: str = ""
    maintenance_dbname: str = "postgres"
    template_dbname: None = None

    def url(self, database: str) -> str:
        """Return the URL of one of its databases."""
        user, password = quote(self.user, safe=""), quote(self.password, safe="")
        return f"postgresql://{user}:{password}@{self.host}:{self.port}/{database}"


def hash_once(server: EmbeddedServer) -> None:
    """Have each login hash the password once; 4096 times are half of its time.

    The server keeps what RFC 5803 says: `SCRAM-SHA-256$iterations:salt$keys`.
    """
    salt = os.urandom(16)
    salted = pbkdf2_hmac("sha256", server.password.encode(), salt, 1)
    ours, theirs = (
        hmac.digest(salted, name, "sha256") for name in (b"Client Key", b"Server Key")
    )
    told = [b64encode(part).decode() for part in (salt, sha256(ours).digest(), theirs)]
    secret = "SCRAM-SHA-256$1:{}${}:{}".format(*told)
    with connect(server.url) as conn:
        conn.execute(f"ALTER ROLE {server.user} PASSWORD '{secret}'".encode())


def run_cli(*arguments: str, answer: str = "") -> tuple[int, str, str]:
    """Run `pyapp` with *arguments*; return its exit code, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", io.StringIO(answer))
        try:
            main(list(arguments))
        except SystemExit as exc:
            code = int(exc.code or 0)
    return code, out.getvalue(), err.getvalue()


def find_pgbouncer() -> str | None:
    """Return the program, which distributions keep out of an ordinary PATH."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


def build(folder: Path) -> Path:
    """Build the wheel and the source distribution in *folder*; return it."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
    )
    return folder
