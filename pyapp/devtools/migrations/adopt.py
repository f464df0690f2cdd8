"""Marks migrations as applied on a database that was built in another way.

A database built from the SQL files by psql gets the marks of all migrations. One with
all migrations of the earlier history gets what the squashed migrations changed, and
their marks. Both are proved on a copy of the structure before anything is changed; then
the change and the marks are one transaction, so a killed run leaves all or nothing.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from pyapp._core.connection import connect
from pyapp._core.queries import sql_dir
from pyapp._core.run import execute
from pyapp._core.tool_sessions import connect_unlimited
from pyapp.devtools.checks.dumps import (
    Objects,
    dump_objects,
    dump_privileges,
    dump_schema,
    restore_objects,
    split_dump,
)
from pyapp.devtools.checks.privileges import require_dumpable
from pyapp.devtools.checks.schema_diff import compare, load_schema
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.checks.scratch_server import scratch_server
from pyapp.devtools.migrations.files import MigrationFile, read_migrations
from pyapp.devtools.migrations.history import (
    CHANGED_OBJECTS,
    EARLIER_HISTORY,
    NEW_OBJECTS,
    SQUASHED,
    find_schema,
    is_earlier,
    read_applied,
)
from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.migrations.session import (
    Backend,
    migration_session,
    record_checksum,
)
from pyapp.devtools.server.pg_dump import choose_pg_dump
from pyapp.errors import MigrationError, SchemaCheckError

LOCK_WAIT_MS = 5000
LIVE = "the database"
# Objects that CREATE OR REPLACE can replace.
_REPLACED = re.compile(r"^CREATE (FUNCTION|VIEW|TRIGGER) ")
_REVOKED = re.compile(r"^REVOKE \w+ ON (FUNCTION app\.\w+)\(.*;$", re.MULTILINE)


def adopt(
    url: str,
    *,
    scratch_url: str | None = None,
    folder: Path | None = None,
    schema: Path | None = None,
) -> list[str]:
    """Mark the migrations of *folder* at *url*; return their names, none if marked.

    The proof uses scratch databases on the server of *scratch_url*, else of *url*, else
    of a temporary one. On a database of the earlier history, sql/adopt.sql is run, the
    functions, views, triggers and comments that the squash changed are replaced, and
    only the squashed migrations are marked; later ones stay pending. All rows are kept.

    Raises:
        ConfigError, DatabaseUnavailableError: *url* or *scratch_url* is not usable.
        MigrationError: the database has no schema, another program's, or other
            migrations.
        SchemaCheckError: its structure is another one; the message says what differs.
    """
    files = read_migrations(folder)
    if scratch_url is not None:
        connect(scratch_url).close()  # reports an invalid value before any other result
    with connect(url) as conn:
        applied, _ = read_applied(conn)
        found = find_schema(conn)
    has_earlier = is_earlier(applied)
    if applied and not has_earlier:
        return []
    if found is None or not found.objects:
        raise MigrationError("there is no schema to adopt; run: pyapp db migrate")
    require_dumpable(url)
    program = choose_pg_dump(url)
    dump = dump_schema(url, program)
    statements: list[str] = []
    with scratch_server(url, scratch_url) as server:
        if has_earlier:
            _require_whole_history(applied)
            _require_known_objects(split_dump(dump))
            files = [file for file in files if file.name in SQUASHED]
            statements = _prove_earlier(server.url, dump, folder)
        else:
            _prove_built(server.url, dump, schema)
    with migration_session(url, is_adopting=True) as backend:
        _require_unchanged(url, dump, program, backend, applied)
        with _translated_errors(), backend.turn():
            execute(backend.connection, "set_lock_timeout", milliseconds=LOCK_WAIT_MS)
            for statement in statements:
                backend.connection.execute(statement.encode())
            _replace_marks(backend, files, list(applied))
    return [file.name for file in files]


def _require_whole_history(applied: dict[str, Any]) -> None:
    if set(applied) != set(EARLIER_HISTORY):
        raise MigrationError(
            f"the database has migrations of an earlier history up to {max(applied)},"
            f" and only {EARLIER_HISTORY[-1]} can be adopted: apply the others with the"
            " version of pyapp that has them, then run pyapp db adopt"
        )


def _require_known_objects(present: Objects) -> None:
    """Refuse to replace or drop objects that were changed by hand."""
    found = {
        title: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        for title, text in present.items()
    }
    wrong = [
        title
        for title, checksum in found.items()
        if CHANGED_OBJECTS.get(_name(title), checksum) != checksum
    ]
    names = {_name(title) for title in found}
    wrong += [name for name in CHANGED_OBJECTS if name not in names]
    if wrong:
        raise _refusal(f"migration {EARLIER_HISTORY[-1]}", wrong)


def _prove_built(server: str, dump: str, schema: Path | None) -> None:
    """Refuse a database whose structure *dump* is not that of the SQL files."""
    program = choose_pg_dump(server)
    with scratch_database(server) as copy, scratch_database(server) as built:
        load_schema(built, schema)
        missing = restore_objects(copy, dump)
        _require_equal("the SQL files", built, copy, program, missing)


def _prove_earlier(server: str, dump: str, folder: Path | None) -> list[str]:
    """Return the statements that turn *dump* into what the squashed migrations build.

    They replace only objects that the squash changed. Any other difference is refused.
    """
    program = choose_pg_dump(server)
    changes = (sql_dir() / "adopt.sql").read_text(encoding="utf-8")
    with scratch_database(server) as copy, scratch_database(server) as built:
        migrate(built, folder, names=SQUASHED)
        missing = restore_objects(copy, dump)
        with _translated_errors(), connect_unlimited(copy) as conn:
            conn.execute(changes.encode())
        statements = list(
            _replacements(
                dump_objects(copy, program),
                dump_objects(built, program),
                dump_privileges(built, program),
            )
        )
        with _translated_errors(), connect_unlimited(copy) as conn:
            conn.autocommit = True
            for statement in statements:
                # Without its object it fails, and the comparison names the object.
                with contextlib.suppress(psycopg.ProgrammingError):
                    conn.execute(statement.encode())
        _require_equal("migrations 0001 to 0006", built, copy, program, missing)
    return [changes, *statements]


def _replacements(present: Objects, expected: Objects, acls: Objects) -> Iterator[str]:
    """Yield the statements for what the squash changed, and for all comments."""
    for title, text in expected.items():
        name = _name(title)
        is_new = name in NEW_OBJECTS and title not in present
        if present.get(title) == text:
            continue
        if title.startswith("COMMENT "):
            yield text
        elif (is_new or name in CHANGED_OBJECTS) and _REPLACED.match(text):
            yield _REPLACED.sub(r"CREATE OR REPLACE \1 ", text)
    for text in acls.values():
        for revoke in _REVOKED.finditer(text):
            if revoke[1] in NEW_OBJECTS:
                yield revoke[0]


def _name(title: str) -> str:
    """Return the title of an object in a dump without a function's arguments."""
    return title.partition("(")[0]


def _require_equal(
    label: str, built: str, copy: str, program: Path, missing: Objects
) -> None:
    """Refuse the structure *copy* if it differs from *built*, which *label* names.

    *missing* are objects of the live database that could not be copied.
    """
    expected, found = (dump_objects(url, program) for url in (built, copy))
    result = compare(label, expected, LIVE, found | missing)
    if result.differences:
        absent = sum(one.right is None for one in result.differences)
        # The views come last: psql was stopped before them.
        has_views = any(title.startswith("VIEW ") for title in found)
        if absent == len(result.differences) and not has_views:
            raise SchemaCheckError(
                f"the database has only a part of {label}: {absent} objects are"
                " missing; if it has no data, run in psql: DROP SCHEMA app CASCADE,"
                " then: pyapp db migrate; nothing was changed"
            )
        error = _refusal(label, [difference.title for difference in result.differences])
        error.add_note("\n".join(line for _, line in result.report()))
        raise error


def _refusal(label: str, titles: list[str]) -> SchemaCheckError:
    more = f" and {len(titles) - 5} more" if titles[5:] else ""
    return SchemaCheckError(
        f"the database differs from {label} in {', '.join(titles[:5])}{more}:"
        " make it equal, then run pyapp db adopt again; nothing was changed"
    )


def _require_unchanged(
    url: str, dump: str, program: Path, backend: Backend, applied: dict[str, Any]
) -> None:
    """Refuse if another session has changed the database since the proof."""
    is_changed = read_applied(backend.connection)[0] != applied
    if is_changed or split_dump(dump_schema(url, program)) != split_dump(dump):
        raise MigrationError("the schema changed during the proof; run it again")


def _replace_marks(
    backend: Backend, files: list[MigrationFile], applied: list[str]
) -> None:
    execute(backend.connection, "delete_marks", names=applied)
    execute(backend.connection, "delete_checksums")
    for file in files:
        backend.mark_one(file.step, log=False)
        backend.log_migration(file.step, "mark")
        record_checksum(backend, file)


@contextlib.contextmanager
def _translated_errors() -> Iterator[None]:
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
