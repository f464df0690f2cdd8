"""Marks migrations as applied on a database that was built in another way.

That is a database built from the SQL files by psql, or one with all migrations of the
earlier history, whose functions, triggers and comments are first replaced by today's.
Both are proved on a copy of the structure before anything is changed; then the change
and the marks are one transaction, so a killed run leaves all or nothing.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from pyapp._core.connection import connect
from pyapp._core.queries import sql_dir
from pyapp._core.run import execute, fetch_all
from pyapp.devtools.checks.dumps import (
    Objects,
    dump_objects,
    dump_privileges,
    dump_schema,
    split_dump,
)
from pyapp.devtools.checks.schema_diff import Comparison, compare, load_schema
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.migrations.files import MigrationFile, read_migrations
from pyapp.devtools.migrations.history import (
    EARLIER_HISTORY,
    is_earlier,
    read_applied,
)
from pyapp.devtools.migrations.session import (
    Backend,
    migration_session,
    record_checksum,
)
from pyapp.devtools.server.pg_dump import choose_pg_dump
from pyapp.errors import MigrationError, SchemaCheckError

LOCK_WAIT_MS = 5000
# In a dump: commands of psql, and a setting that servers before 17 do not know.
_NOT_RESTORED = ("\\", "SET transaction_timeout")
SCHEMA, LIVE = "the SQL files", "the database"
# Objects that CREATE OR REPLACE can replace.
_REPLACED = re.compile(r"^CREATE (FUNCTION|VIEW|TRIGGER) ")


def adopt(
    url: str,
    *,
    scratch_url: str | None = None,
    folder: Path | None = None,
    schema: Path | None = None,
) -> list[str]:
    """Mark the migrations of *folder* at *url*; return their names, none if marked.

    The proof uses scratch databases on the server of *scratch_url*, else of *url*. For
    the earlier history, functions, views, triggers and comments that differ are
    replaced, and sql/adopt.sql is run. All rows are kept.

    Raises:
        MigrationError: the database has no schema, or other migrations.
        SchemaCheckError: its structure is another one; the message says what differs.
    """
    files = read_migrations(folder)
    with connect(url) as conn:
        applied, checksums = read_applied(conn)
        is_bridged = is_earlier(applied, checksums)
        if is_bridged:
            _require_whole_history(applied)
            _require_known_functions(conn)
    if applied and not is_bridged:
        return []
    program = choose_pg_dump(*{scratch_url or url, url})
    dump = dump_schema(url, program)
    if not dump:
        raise MigrationError("there is no schema to adopt; run: pyapp db migrate")
    statements = _prove(scratch_url or url, dump, schema, program, is_bridged)
    with migration_session(url, is_adopting=True) as backend:
        _require_unchanged(url, dump, program, backend, applied)
        with _explained(), backend.turn():
            execute(backend.connection, "set_lock_timeout", milliseconds=LOCK_WAIT_MS)
            _run(backend.connection, statements)
            _replace_marks(backend, files)
    return [file.name for file in files]


def _require_whole_history(applied: dict[str, Any]) -> None:
    if set(applied) != set(EARLIER_HISTORY):
        raise MigrationError(
            f"the database has migrations of an earlier history up to {max(applied)},"
            f" and only {EARLIER_HISTORY[-1]} can be adopted: apply the others with the"
            " version of pyapp that has them, then run pyapp db adopt"
        )


def _require_known_functions(conn: psycopg.Connection[Any]) -> None:
    """Refuse to overwrite functions that were changed by hand."""
    if changed := fetch_all(conn, str, "list_changed_functions"):
        raise SchemaCheckError(
            f"functions differ from those of {EARLIER_HISTORY[-1]}:"
            f" {', '.join(changed)}; restore them, then run pyapp db adopt again;"
            " nothing was changed"
        )


def _prove(
    server: str, dump: str, schema: Path | None, program: Path, is_bridged: bool
) -> list[str]:
    """Return the statements that make a copy of *dump* equal to the SQL files."""
    statements: list[str] = []
    with scratch_database(server) as copy, scratch_database(server) as built:
        load_schema(built, schema)
        expected = dump_objects(built, program)
        _restore(copy, dump)
        if is_bridged:
            renames = (sql_dir() / "adopt.sql").read_text(encoding="utf-8")
            with _explained(), connect(copy) as conn:
                _run(conn, [renames])
            present = dump_objects(copy, program)
            privileges = dump_privileges(built, program)
            statements = [renames, *_replacements(present, expected, privileges)]
            with _explained(), connect(copy) as conn:
                _run(conn, statements[1:])
        result = compare(SCHEMA, expected, LIVE, dump_objects(copy, program))
    if result.differences:
        raise _describe(result)
    return statements


def _replacements(present: Objects, expected: Objects, acls: Objects) -> Iterator[str]:
    """Yield the statements for functions, views, triggers and comments that differ."""
    for title, text in expected.items():
        if present.get(title) != text:
            if _REPLACED.match(text):
                yield _REPLACED.sub(r"CREATE OR REPLACE \1 ", text)
            elif title.startswith("COMMENT "):
                yield text
    for text in acls.values():
        yield from re.findall(r"^REVOKE .+;$", text, re.MULTILINE)


def _require_unchanged(
    url: str, dump: str, program: Path, backend: Backend, applied: dict[str, Any]
) -> None:
    """Refuse if another session has changed the database since the proof."""
    is_changed = read_applied(backend.connection)[0] != applied
    if is_changed or split_dump(dump_schema(url, program)) != split_dump(dump):
        raise MigrationError("the schema changed during the proof; run it again")


def _replace_marks(backend: Backend, files: list[MigrationFile]) -> None:
    execute(backend.connection, "delete_marks")
    execute(backend.connection, "delete_checksums")
    for file in files:
        backend.mark_one(file.step, log=False)
        backend.log_migration(file.step, "mark")
        record_checksum(backend, file)


def _restore(url: str, dump: str) -> None:
    lines = (line for line in dump.splitlines() if not line.startswith(_NOT_RESTORED))
    with connect(url) as conn:
        conn.execute("\n".join(lines).encode())


def _run(conn: psycopg.Connection[Any], statements: list[str]) -> None:
    for statement in statements:
        conn.execute(statement.encode())


def _describe(result: Comparison) -> SchemaCheckError:
    titles = [difference.title for difference in result.differences]
    more = f" and {len(titles) - 5} more" if titles[5:] else ""
    error = SchemaCheckError(
        f"the database differs from the SQL files in {', '.join(titles[:5])}{more}:"
        " make it equal, then run pyapp db adopt again; nothing was changed"
    )
    error.add_note("\n".join(line for _, line in result.report()))
    return error


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.LockNotAvailable as exc:
        raise MigrationError(
            "the database was not adopted: it waited too long for a lock; nothing was"
            " changed; run it again at a quieter time"
        ) from exc
    except psycopg.Error as exc:
        reason = " ".join(str(exc).partition("\nLINE ")[0].split())
        raise SchemaCheckError(
            f"the database was not adopted: {reason}; nothing was changed"
        ) from exc
