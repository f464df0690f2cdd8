"""The SQL files, the migrations and a live database, compared object by object."""

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import psycopg

from pyapp._core.connection import connect
from pyapp._core.queries import schema_files
from pyapp._core.run import fetch_all
from pyapp._core.tool_sessions import connect_unlimited
from pyapp.devtools.checks.dumps import (
    Objects,
    dump_objects,
    dump_schema,
    restore_objects,
)
from pyapp.devtools.checks.privileges import (
    expected_privileges,
    has_roles,
    read_privileges,
    require_dumpable,
    without_stricter,
)
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.checks.scratch_server import ScratchServer, scratch_server
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.history import refuse_earlier
from pyapp.devtools.migrations.migrator import (
    list_migrations,
    migrate,
    record_checksums,
)
from pyapp.devtools.migrations.states import MigrationStatus
from pyapp.devtools.server.pg_dump import choose_pg_dump
from pyapp.errors import MissingPrivilegeError, PyappError, SchemaCheckError

SCHEMA, MIGRATIONS, LIVE = "schema.sql", "the migrations", "the live database"
ROLES_FILE = "sql/roles.sql"
# The title of a row; pg_dump has titles of its own that begin with ROW SECURITY.
PLAN_ROW = "ROW app.plans "
NO_ROLES = "pyapp db roles has not been run here"

_ROUTINE = re.compile(
    r"(?:COMMENT app\.)?(?:FUNCTION|REVOKE|VIEW) (?:app\.)?(?P<name>\w+)"
)

# A line of a report is a comment, a line of one side, or a line of both.
Mark = Literal["--", "-", "+", " "]


@dataclass(frozen=True, slots=True)
class Difference:
    """An object that differs between two sources, or that only one of them has."""

    title: str
    left: str | None
    right: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sources by name, and their differences.

    `files` names the file of a function or view, in place of schema.sql.
    """

    left: str
    right: str
    differences: list[Difference]
    files: Mapping[str, str] = field(default_factory=dict)

    def report(self) -> Iterator[tuple[Mark, str]]:
        """Yield the differences as lines of SQL, each under a comment."""
        for difference in self.differences:
            yield from _report(self, difference)
            yield " ", ""


@dataclass(frozen=True, slots=True)
class PrivilegeCheck:
    """The privileges of the roles compared with sql/roles.sql.

    `comparison` is None if they were not compared, for the reason in `note`.
    """

    comparison: Comparison | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class SchemaCheck:
    """The result of `check`; `wrong` are edited, unknown and pending migrations.

    `note` says why the files were built on another server than the live one, if they
    were. `privileges` is None without a live database or with `wrong` migrations.
    """

    objects: int
    comparisons: list[Comparison]
    wrong: list[MigrationStatus]
    note: str | None = None
    privileges: PrivilegeCheck | None = None

    @property
    def differences(self) -> int:
        """The number of objects that differ and of migrations that are not applied."""
        drift = self.privileges.comparison if self.privileges else None
        return (
            len(self.wrong)
            + sum(len(c.differences) for c in self.comparisons)
            + (len(drift.differences) if drift else 0)
        )


def check(
    url: str | None,
    *,
    scratch_url: str | None = None,
    schema: Path | None = None,
    folder: Path | None = None,
) -> SchemaCheck:
    """Compare the SQL files, the migrations of *folder* and the database at *url*.

    *schema* is the folder of schema.sql and functions/. Files and migrations are built
    in scratch databases on the server of *scratch_url*, else of *url*, else of a
    temporary server. A live database is compared with the migrations that it has; on
    another server than its own, a copy of its structure is. Without *url*, only the
    files are compared.

    Raises:
        DatabaseUnavailableError: a server is not healthy.
        NotComparedError: the role or this machine lacks what a comparison needs.
        MigrationError, SchemaCheckError: one of them cannot be built.
    """
    target = scratch_url or url
    if target is None:
        raise SchemaCheckError("no server to build the schema on: give a URL")
    statuses: list[MigrationStatus] = []
    if url is not None:
        with connect(url) as conn:
            refuse_earlier(conn)
        require_dumpable(url)
        _remember(url, folder)
        statuses = list_migrations(url, folder)
    applied = _applied_in_order(statuses)
    wrong = [status for status in statuses if status.state != "applied"]
    privileges = None
    with (
        scratch_server(target, scratch_url) as server,
        scratch_database(server.url) as built,
        scratch_database(server.url) as migrated,
    ):
        program = choose_pg_dump(server.url)
        load_schema(built, schema)
        comparisons = []
        if url is not None:
            migrate(migrated, folder, names=applied)
            expected = read_objects(migrated, program)
            found = _read_live(url, server, program, expected)
            if found and not applied:
                raise SchemaCheckError(
                    "the database has the schema and no migrations; if psql built it"
                    " from the SQL files, run: pyapp db adopt"
                )
            comparisons.append(compare(MIGRATIONS, expected, LIVE, found))
            if not wrong:
                privileges = _check_privileges(url, migrated, expected)
        objects = read_objects(built, program)
        names = [file.name for file in read_migrations(folder)]
        with contextlib.ExitStack() as stack:
            if applied != names[: len(applied)]:
                migrated = stack.enter_context(scratch_database(server.url))
            migrate(migrated, folder)
            found = read_objects(migrated, program)
        files = compare(SCHEMA, objects, MIGRATIONS, found)
    files = replace(files, files=_files_of(files.differences, schema))
    return SchemaCheck(
        objects=len(objects),
        comparisons=[files, *comparisons],
        wrong=wrong,
        note=server.note,
        privileges=privileges,
    )


def load_schema(url: str, schema: Path | None = None) -> None:
    """Build the SQL files of the folder *schema* at *url*."""
    with connect_unlimited(url) as conn:
        for path in schema_files(schema):
            try:
                conn.execute(path.read_bytes())
            except psycopg.Error as exc:
                reason = " ".join(str(exc).split())
                raise SchemaCheckError(f"{path} cannot be built: {reason}") from exc


def read_objects(url: str, program: Path | None = None) -> Objects:
    """Return the objects at *url* as *program* dumps them, and what a dump leaves out.

    That is the rows of plans, the functions that PUBLIC may not execute, owners, and
    disabled foreign keys.
    """
    return dump_objects(url, program) | _read_beyond_dump(url)


def compare(left: str, ours: Objects, right: str, theirs: Objects) -> Comparison:
    """Return the differences between two sources, with their names."""
    return Comparison(left, right, find_differences(ours, theirs))


def find_differences(ours: Objects, theirs: Objects) -> list[Difference]:
    """Return the objects that differ, in the order of *ours*."""
    titles = [*ours, *(title for title in theirs if title not in ours)]
    return [
        Difference(title, ours.get(title), theirs.get(title))
        for title in titles
        if ours.get(title) != theirs.get(title)
    ]


@dataclass(frozen=True, slots=True)
class _Named:
    name: str
    statement: str


def _applied_in_order(statuses: list[MigrationStatus]) -> list[str]:
    """Return the names of the applied migrations, the first one first.

    Another order can give tables another order of columns.
    """
    applied = [(s.applied_at, s.name) for s in statuses if s.is_applied]
    return [name for _, name in sorted(applied)]


def _remember(url: str, folder: Path | None) -> None:
    """Store the checksums of what plain yoyo applied, if the role may write."""
    with contextlib.suppress(psycopg.Error, PyappError):
        record_checksums(url, folder)


def _read_live(
    url: str, server: ScratchServer, program: Path, expected: Objects
) -> Objects:
    """Return the objects at *url* without the plans and REVOKEs of the operator.

    Another server than the live one builds a copy of the structure. Versions of a
    server print the same object differently, and one pg_dump may not reach both.
    """
    if server.is_live:
        objects = dump_objects(url, program)
    else:
        dump = dump_schema(url, choose_pg_dump(url))
        with scratch_database(server.url) as copy:
            missing = restore_objects(copy, dump)
            objects = dump_objects(copy, program) | missing
    return {
        title: text
        for title, text in (objects | _read_beyond_dump(url)).items()
        if title in expected or not title.startswith((PLAN_ROW, "REVOKE "))
    }


def _check_privileges(url: str, migrated: str, expected: Objects) -> PrivilegeCheck:
    """Compare the privileges at *url* with sql/roles.sql, applied to *migrated*.

    *expected* has the functions that the migrations take from PUBLIC; a difference
    there is one of the schema.
    """
    live = read_privileges(url)
    if not has_roles(live):
        return PrivilegeCheck(None, NO_ROLES)
    try:
        granted = expected_privileges(migrated)
    except (psycopg.errors.InsufficientPrivilege, MissingPrivilegeError):
        return PrivilegeCheck(None, "the role may not create roles on that server")
    live, granted = without_stricter(live, granted)
    live = {
        title: text
        for title, text in live.items()
        if title.replace("PRIVILEGES FUNCTION", "REVOKE").removesuffix(" PUBLIC")
        not in expected
    }
    return PrivilegeCheck(compare(ROLES_FILE, granted, LIVE, live))


def _files_of(differences: list[Difference], schema: Path | None) -> dict[str, str]:
    """Return the file of each function and view in *differences*."""
    texts = {path: path.read_text(encoding="utf-8") for path in schema_files(schema)}
    files = {}
    for difference in differences:
        if found := _ROUTINE.match(difference.title):
            files[difference.title] = "sql/functions"
            definition = re.compile(rf"(?:FUNCTION|VIEW) app\.{found['name']}\b")
            for path, text in texts.items():
                if definition.search(text):
                    files[difference.title] = path.name
    return files


def _read_beyond_dump(url: str) -> Objects:
    """Return the functions that PUBLIC may not execute, and the rows of plans.

    And the objects that do not belong to the schema's owner, and the foreign keys that
    are disabled, of which there are none in a scratch database.
    """
    with connect_unlimited(url) as conn:
        rows = fetch_all(conn, _Named, "list_revoked_functions")
        revoked = {f"REVOKE {row.name}": row.statement for row in rows}
        for query in ("list_other_owners", "list_disabled_constraints"):
            others = fetch_all(conn, _Named, query)
            revoked |= {row.name: row.statement for row in others}
        try:
            plans = fetch_all(conn, _Named, "list_plan_rows")
        except psycopg.errors.UndefinedTable:
            conn.rollback()
            return revoked
    return revoked | {f"{PLAN_ROW}{row.name}": row.statement for row in plans}


def _report(
    comparison: Comparison, difference: Difference
) -> Iterator[tuple[Mark, str]]:
    title, right = difference.title, comparison.right
    left = comparison.files.get(title, comparison.left)
    if difference.left is None or difference.right is None:
        here, there = (left, right) if difference.right is None else (right, left)
        mark: Mark = "-" if difference.right is None else "+"
        yield "--", f"-- {title} is in {here}, not in {there}"
        for line in (difference.left or difference.right or "").splitlines():
            yield mark, line
        return
    yield "--", f"-- {title} differs: - in {left}, + in {right}"
    ours, theirs = difference.left.splitlines(), difference.right.splitlines()
    for line in list(difflib.unified_diff(ours, theirs, lineterm=""))[3:]:
        if line.startswith("@@"):
            yield " ", " ..."
        else:
            yield "-" if line[0] == "-" else "+" if line[0] == "+" else " ", line
