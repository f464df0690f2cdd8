"""Chooses the pg_dump of a comparison: new enough, and able to reach the servers.

pg_dump refuses servers newer than itself, and that of the embedded wheel is built
without SSL. So each pg_dump of this machine is tried, the newest first. One program
dumps all sides of a comparison, because versions of pg_dump print the same object
differently.
"""

import contextlib
import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyapp._core.connection import connect
from pyapp._core.database_url import read_url, redact_url
from pyapp.devtools.server.binaries import as_account, binaries
from pyapp.errors import MissingExtraError, NotComparedError, SchemaCheckError

# The paths of PostgreSQL packages, one for each major version.
PACKAGED = ("usr/lib/postgresql/*/bin/pg_dump", "usr/pgsql-*/bin/pg_dump")
# Secrets for which libpq has no environment variable, only the service file.
_FILE_ONLY = (
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)
_VERSION = re.compile(r"(\d+)(?:\.(\d+))?")
_NO_SSL = "SSL support is not compiled in"
# Of a parameter of DATABASE_URL that is newer than the program.
_OLDER_LIBPQ = re.compile(
    r'invalid connection option|root certificate file "system"|invalid \w+ value'
)
# The error of pg_dump after it has connected and accepted the server's version.
_NOT_FOUND = "no matching schemas were found"
_ABSENT = "pyapp_probe_no_such_schema"
# The program chosen for each set of servers.
_CHOSEN: dict[frozenset[tuple[tuple[str, str], ...]], Path] = {}


@dataclass(frozen=True, slots=True)
class PgDump:
    """One program and its version, such as (18, 6)."""

    path: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path} of PostgreSQL {'.'.join(map(str, self.version))}"


@dataclass(frozen=True, slots=True)
class _Server:
    """A server, and what its pg_dump must support."""

    url: str
    major: int
    has_ssl: bool


def choose_pg_dump(*urls: str) -> Path:
    """Return the newest pg_dump that can dump from all servers of *urls*.

    If the connection of psycopg is encrypted, programs with SSL are tried first.

    Raises:
        DatabaseUnavailableError: a server is not healthy.
        NotComparedError: no program can; the message says which is missing.
    """
    key = frozenset(_server_of(url) for url in urls)
    if key not in _CHOSEN:
        _CHOSEN[key] = _choose([*dict.fromkeys(urls)])
    return _CHOSEN[key]


def run_pg_dump(program: Path, url: str, *options: str) -> str:
    """Return the dump of the database at *url*, in UTF-8.

    It is empty if the schema that *options* name does not exist.

    Raises:
        SchemaCheckError: *program* fails.
    """
    run = _run(program, url, *options)
    if run.returncode and _NOT_FOUND not in run.stderr:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[0]
        raise SchemaCheckError(f"cannot dump {redact_url(url)}: {reason}")
    return "" if run.returncode else run.stdout


def list_pg_dumps() -> list[PgDump]:
    """Return all pg_dump programs of this machine, the newest first."""
    paths: list[Path] = []
    with contextlib.suppress(MissingExtraError):
        paths.append(binaries() / "pg_dump")
    # Before the PATH, in which Debian has a wrapper that chooses a version.
    for pattern in PACKAGED:
        paths += sorted(Path("/").glob(pattern))
    for folder in os.get_exec_path():
        paths += [Path(folder, "pg_dump"), Path(folder, "pg_dump.exe")]
    found = {path.resolve(): path for path in reversed(paths) if _is_program(path)}
    programs = [PgDump(path, _version(path)) for path in reversed(found.values())]
    running = [program for program in programs if program.version]
    return sorted(running, key=lambda program: program.version, reverse=True)


@functools.cache
def has_ssl(program: Path) -> bool:
    """Tell whether *program* is built with SSL; its libpq reports it offline."""
    options = as_account(None)
    run = subprocess.run(
        [program, "--no-password", "--dbname=host=/nonexistent sslmode=require"],
        capture_output=True,
        text=True,
        **options,
    )
    return _NO_SSL not in run.stderr


def _server_of(url: str) -> tuple[tuple[str, str], ...]:
    """Return the parameters of *url* that identify and reach the server."""
    parts = read_url(url)
    session = ("dbname", "application_name", "connect_timeout", "options")
    return tuple(sorted((k, str(v)) for k, v in parts.items() if k not in session))


def _choose(urls: list[str]) -> Path:
    servers = [_ask(url) for url in urls]
    programs = list_pg_dumps()
    if any(server.has_ssl for server in servers):
        programs.sort(key=lambda program: not has_ssl(program.path))
    failures = {}
    for program in programs:
        for server in servers:
            run = _run(program.path, server.url, f"--schema={_ABSENT}")
            if run.returncode and _NOT_FOUND not in run.stderr:
                failures[program] = (server, run.stderr)
                break
        else:
            return program.path
    raise NotComparedError(_explain(programs, servers, failures))


def _explain(
    programs: list[PgDump],
    servers: list[_Server],
    failures: dict[PgDump, tuple[_Server, str]],
) -> str:
    """Return which pg_dump is missing, and how to install it."""
    major = max(server.major for server in servers)
    wanted = f"postgresql-client-{major}"
    get = f"install the package {wanted} or a newer one"
    if not programs:
        return f"there is no pg_dump: {MissingExtraError('embedded').command}, or {get}"
    able = [program for program in programs if program.version[0] >= major]
    if not able:
        newest = max(programs, key=lambda program: program.version)
        return (
            f"no pg_dump here is new enough for PostgreSQL {major}, the newest is"
            f" {newest}: {get}"
        )
    server, reason = failures[able[0]]
    if server.has_ssl and not any(has_ssl(program.path) for program in able):
        return (
            f"{redact_url(server.url)} needs TLS, and {able[0]} is built"
            f" without SSL: {get}"
        )
    line = (reason.strip().splitlines() or ["no reason given"])[0]
    message = f"cannot dump {redact_url(server.url)}: {line}"
    if _OLDER_LIBPQ.search(line):
        message += f"; {able[0]} does not know this parameter: install a newer one"
    return message


def _ask(url: str) -> _Server:
    with connect(url) as conn:
        major = conn.info.server_version // 10000
        return _Server(url, major, bool(conn.pgconn.ssl_in_use))


def _is_program(path: Path) -> bool:
    # os.access first: is_file raises an error in an unreadable folder.
    return os.access(path, os.X_OK) and path.is_file()


def _version(program: Path) -> tuple[int, ...]:
    """Return the version of *program*; empty if it does not run here."""
    try:
        run = subprocess.run([program, "--version"], capture_output=True, text=True)
    except OSError:  # built for another platform
        return ()
    found = _VERSION.search(run.stdout)
    return tuple(int(number or 0) for number in found.groups()) if found else ()


def _run(program: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    with without_secrets(url) as (conninfo, variables):
        return subprocess.run(
            [
                program,
                f"--dbname={conninfo}",
                "--no-password",
                "--schema-only",
                "--encoding=UTF8",
                "--lock-wait-timeout=10s",
                *options,
            ],
            env=os.environ | {"LC_ALL": "C"} | variables,
            capture_output=True,
            encoding="utf-8",
        )


@contextlib.contextmanager
def without_secrets(url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield *url* without secrets, and the variables that pass the secrets to libpq.

    Other users of the machine can read command lines.
    """
    parts = conninfo_to_dict(url)
    variables = {}
    if "password" in parts:
        variables["PGPASSWORD"] = str(parts.pop("password"))
    kept = {name: parts.pop(name) for name in _FILE_ONLY if name in parts}
    if not kept:
        yield make_conninfo("", **parts), variables
        return
    with tempfile.TemporaryDirectory(
        prefix="pyapp-"
    ) as folder:  # readable by its owner only
        service = Path(folder, "pg_service.conf")
        lines = ["[pyapp]", *(f"{name}={value}" for name, value in kept.items())]
        service.write_text("\n".join(lines), encoding="utf-8")
        variables |= {"PGSERVICE": "pyapp", "PGSERVICEFILE": str(service)}
        yield make_conninfo("", **parts), variables
