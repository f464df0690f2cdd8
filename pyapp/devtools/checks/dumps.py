"""The objects of a database, from pg_dump: one text for each."""

import re
from pathlib import Path

import psycopg

from pyapp._core.connection import connect
from pyapp.devtools.server.pg_dump import choose_pg_dump, run_pg_dump

# Created at run time for each month, so not part of the schema.
_MONTHS = "app.message_payloads_[0-9][0-9][0-9][0-9][0-9][0-9]"
_OPTIONS = (
    "--schema=app",
    f"--exclude-table={_MONTHS}",
    "--no-owner",
    "--no-publications",
    "--no-subscriptions",
    "--no-security-labels",
)

_HEADER = re.compile(
    r"^--\n-- Name: (?P<name>.+); Type: (?P<type>.+); Schema: (?P<schema>.+);"
    r" Owner: .*\n--\n",
    re.MULTILINE,
)
_NOISE = re.compile(r"^SET default_\w+ = .*;$", re.MULTILINE)
_END = re.compile(r"^--\n-- PostgreSQL database dump complete\n--\n", re.MULTILINE)
_TABLES = ("TABLE ", "FOREIGN TABLE ", "MATERIALIZED VIEW ")
_COLUMN_OPTIONS = re.compile(
    r"^(?P<action>ALTER .+ ALTER COLUMN .+ SET) \((?P<options>\w[^()]*)\);\n?",
    re.MULTILINE,
)
_NOT_NULL_NAME = re.compile(
    r' CONSTRAINT (?:\w+|"(?:[^"]|"")+")(?= NOT NULL(?: NO INHERIT)?,?$)', re.MULTILINE
)

# Commands of psql, and a setting that servers before 17 do not know.
_NOT_RESTORED = ("\\", "SET transaction_timeout")

Objects = dict[str, str]


def dump_objects(url: str, program: Path | None = None) -> Objects:
    """Return the objects of schema app at *url*: by kind and name, their statements.

    Owners, privileges and the monthly partitions are left out. *program* is the pg_dump
    of all sides of a comparison; without it, one that reaches this server is chosen.

    Raises:
        SchemaCheckError: no pg_dump can reach the server, or pg_dump fails.
    """
    return split_dump(dump_schema(url, program or choose_pg_dump(url)))


def dump_schema(url: str, program: Path) -> str:
    """Return the structure of schema app at *url* as SQL; empty without the schema."""
    return run_pg_dump(program, url, *_OPTIONS, "--no-privileges")


def restore_objects(url: str, dump: str) -> Objects:
    """Build the objects of *dump* at *url*; return those that cannot be built there.

    Another server may lack a type, a role or a language that they need.
    """
    lines = [line for line in dump.splitlines() if not line.startswith(_NOT_RESTORED)]
    text = "\n".join(lines)
    first = _HEADER.search(text)
    missing: Objects = {}
    with connect(url) as conn:
        conn.execute(text[: first.start() if first else 0].encode())
        objects = split_dump(text)
        try:
            with conn.transaction():
                conn.execute("\n".join(objects.values()).encode())
        except psycopg.Error:
            for title, statements in objects.items():
                try:
                    with conn.transaction():
                        conn.execute(statements.encode())
                except psycopg.Error:
                    missing[title] = statements
    return missing


def dump_privileges(url: str, program: Path) -> Objects:
    """Return the privileges on the objects of schema app at *url*."""
    objects = split_dump(run_pg_dump(program, url, *_OPTIONS))
    return {title: acl for title, acl in objects.items() if title.startswith("ACL ")}


def split_dump(dump: str) -> Objects:
    """Return the objects of a plain dump by the kind and name that pg_dump prints."""
    dump = _END.split(dump)[0]
    headers = list(_HEADER.finditer(dump))
    ends = [header.start() for header in headers[1:]] + [len(dump)]
    objects: Objects = {}
    for header, end in zip(headers, ends, strict=False):
        schema = "" if header["schema"] == "-" else f"{header['schema']}."
        title = f"{header['type']} {schema}{header['name']}"
        text = _NOISE.sub("", dump[header.end() : end]).strip()
        objects[title] = _of_table(text) if title.startswith(_TABLES) else text
    return objects


def _of_table(text: str) -> str:
    """Return the statements of a table without what depends on the server.

    Debian's 15.20 stores an option of its own, pg_attver, with each column, each time
    with another number. NOT NULL constraints have names since PostgreSQL 18: a dump of
    an older version has none, and a restored partition has other names than its parent.
    """
    text = _COLUMN_OPTIONS.sub(_without_server_options, text)
    return _NOT_NULL_NAME.sub("", text).strip()


def _without_server_options(found: re.Match[str]) -> str:
    """Return the statement with the options that an operator can set, if any.

    The prefix pg_ is reserved for PostgreSQL.
    """
    options = found["options"].split(", ")
    kept = [option for option in options if not option.startswith("pg_")]
    return f"{found['action']} ({', '.join(kept)});\n" if kept else ""


def without_column_order(objects: Objects) -> Objects:
    """Return *objects* with the lines of each table sorted."""
    return {
        title: "\n".join(sorted(line.rstrip(",") for line in text.splitlines()))
        if title.startswith("TABLE ")
        else text
        for title, text in objects.items()
    }
