"""The proof of drafted migrations: applied one by one, compared, and rolled back."""

import re
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pyapp.devtools.checks.dumps import without_column_order
from pyapp.devtools.checks.schema_diff import find_differences, read_objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.drafts import Context
from pyapp.devtools.generate.migration_files import NewMigration
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import GenerateError, MigrationError

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Result:
    """What migrations leave; `reason` is empty if they do what they should.

    `left` has the titles of the objects that differ from what they should be: after
    all migrations if `is_left` is true, else after a rollback.
    """

    reason: str = ""
    left: list[str] = field(default_factory=list)
    is_left: bool = False


def prove(
    context: Context, migrations: list[NewMigration], known: Collection[str] = ()
) -> Result:
    """Apply *migrations* to a copy of the base, compare, roll back and compare.

    The objects *known* may differ from the SQL files afterwards.
    """
    loses_column = any("DROP COLUMN" in migration.up for migration in migrations)
    with (
        scratch_database(context.server, template=context.base) as proof,
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary, "migrations")
        shutil.copytree(context.folder, folder)
        write_migrations(folder, migrations)
        dumps = [context.before]
        try:
            for _ in migrations:
                migrate(proof, folder, count=1)
                dumps.append(read_objects(proof))
            compared = find_differences(dumps[-1], context.new.objects)
            left = [difference.title for difference in compared]
            if unexpected := [title for title in left if title not in known]:
                return Result(f"it leaves {enumerated(unexpected)}", left, is_left=True)
            for wanted in reversed(dumps[:-1]):
                rollback(proof, folder)
                found = read_objects(proof)
                if loses_column:  # a rollback adds it as the last one
                    found, wanted = map(without_column_order, (found, wanted))
                if undone := find_differences(found, wanted):
                    titles = [difference.title for difference in undone]
                    return Result(f"its rollback leaves {enumerated(titles)}", titles)
        except MigrationError as exc:
            return Result(_explain(exc), list(context.new.objects))
    return Result(left=left)


def write_migrations(folder: Path, migrations: list[NewMigration]) -> list[Path]:
    """Write *migrations* after the last migration of *folder*; return their paths.

    Raises:
        GenerateError: there are no numbers left.
    """
    first = int(read_migrations(folder)[-1].name[:4]) + 1
    if first + len(migrations) > 10_000:
        raise GenerateError(
            "the number of a migration has four digits, and 9999 is the last one"
        )
    paths = []
    for number, migration in enumerate(migrations, first):
        path = folder / f"{number:04}_{migration.name}.sql"
        path.write_text(migration.up, encoding="ascii", newline="\n")
        path.with_suffix(".rollback.sql").write_text(
            migration.down, encoding="ascii", newline="\n"
        )
        paths.append(path)
    return paths


def enumerated(titles: list[str]) -> str:
    """Return the titles as one phrase."""
    more = f" and {len(titles) - _SHOWN} more" if len(titles) > _SHOWN else ""
    return ", ".join(titles[:_SHOWN]) + more


def _explain(exc: MigrationError) -> str:
    """Return the server's message, with the objects that depend on another one."""
    cause = exc.__cause__
    if not isinstance(cause, psycopg.Error) or not cause.diag.message_primary:
        return str(exc)
    detail = cause.diag.message_detail or ""
    users = [line.partition(" depends on ")[0] for line in detail.splitlines()]
    shown = enumerated(users) if " depends on " in detail else detail
    text = cause.diag.message_primary
    return re.sub(r"\s+", " ", f"{text}: {shown}" if shown else text)
