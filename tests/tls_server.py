"""A server that accepts only TLS, from the distribution's PostgreSQL 15.

The embedded server is built without OpenSSL.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pyapp.devtools.server.binaries import server_account
from pyapp.devtools.server.embedded import EmbeddedServer
from tests.support import DEBIAN_15
from tests.temp_server import TEMP_SETTINGS, free_port, open_folder

ACCESS = "hostssl all all all scram-sha-256\n"


def find_programs() -> Path | None:
    """Return the folder of the distribution's PostgreSQL 15; None without openssl."""
    is_here = (DEBIAN_15 / "postgres").is_file() and shutil.which("openssl")
    return DEBIAN_15 if is_here else None


@contextlib.contextmanager
def tls_server() -> Iterator[tuple[EmbeddedServer, Path]]:
    """Yield the server and its certificate for localhost."""
    parent = open_folder()
    certificate = _certify(parent)
    settings = {
        **TEMP_SETTINGS,
        "ssl": "on",
        "ssl_cert_file": str(certificate),
        "ssl_key_file": str(parent / "server.key"),
        "hba_file": str(parent / "hba.conf"),
    }
    (parent / "hba.conf").write_text(ACCESS)
    server = EmbeddedServer(
        parent / "data",
        free_port(),
        database="postgres",
        settings=settings,
        programs=find_programs(),
    )
    try:
        server.start()
        yield server, certificate
    finally:
        server.remove()
        shutil.rmtree(parent, ignore_errors=True)


def _certify(folder: Path) -> Path:
    """Make a key and a self-signed certificate for localhost; return the latter."""
    key, certificate = folder / "server.key", folder / "server.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    certificate.chmod(0o644)
    if account := server_account(folder / "data"):
        os.chown(key, account.pw_uid, account.pw_gid)
    return certificate
