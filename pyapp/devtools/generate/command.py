"""The next migration, drafted from the SQL files and proved before it is written."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import psycopg

from pyapp._core.connection import connect
from pyapp._core.queries import migrations_dir, schema_files
from pyapp.devtools.checks.schema_diff import load_schema, read_objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.checks.scratch_server import scratch_server
from pyapp.devtools.generate.drafts import Context, draft_variants
from pyapp.devtools.generate.incomplete import explain
from pyapp.devtools.generate.migration_files import Draft, NewMigration, assemble
from pyapp.devtools.generate.proof import Result, prove, write_migrations
from pyapp.devtools.generate.routines import is_of_routine
from pyapp.devtools.generate.steps import Rename, read_side
from pyapp.devtools.generate.stored_results import read_stored_results
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate
from pyapp.errors import GenerateError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")


def generate(
    url: str,
    name: str,
    *,
    why: str | None = None,
    renames: Sequence[Rename] = (),
    allow_destructive: bool = False,
    schema: Path | None = None,
    folder: Path | None = None,
    base: str | None = None,
    scratch_url: str | None = None,
) -> list[Path]:
    """Write the migrations that lead from those of *folder* to the SQL files.

    *schema* is the folder of schema.sql and functions/. Tables and functions get
    migrations of their own. Each is proved in scratch databases on the server of
    *scratch_url*, else of *url*, else a temporary one: applied, it leaves no
    difference; rolled back, it restores the schema before it. Without a proof nothing
    is written. *base* is a database there with the migrations of *folder*, which saves
    building one. Returns the paths written.

    Raises:
        GenerateError: nothing differs, data would be lost, or no draft is complete; the
            message and `left` name what is left, and `draft` has the migrations of the
            rest.
    """
    if not _NAME.fullmatch(name):
        raise GenerateError(
            f"{name!r} is not a valid name: write verb_object, such as add_notes"
        )
    if why and not (why.isascii() and why.isprintable()):
        raise GenerateError(
            "the reason must be one line of ASCII, because it becomes a comment"
        )
    why = why or f"{name.replace('_', ' ').capitalize()}."
    with (
        scratch_server(url, scratch_url) as server,
        _prepare(server.url, renames, schema, folder, base) as context,
    ):
        migrations = _find_draft(context, name, why, allow_destructive)
    return write_migrations(context.folder, migrations)


@contextlib.contextmanager
def _prepare(
    url: str,
    renames: Sequence[Rename],
    schema: Path | None,
    folder: Path | None,
    base: str | None,
) -> Iterator[Context]:
    folder = folder or migrations_dir()
    migrated = {str(file.path): file.text for file in read_migrations(folder)}
    with contextlib.ExitStack() as stack:
        if base is None:
            base = stack.enter_context(scratch_database(url))
            migrate(base, folder)
        wanted = stack.enter_context(scratch_database(url))
        load_schema(wanted, schema)
        before, after = read_objects(base), read_objects(wanted)
        if before == after:
            raise GenerateError(
                "the SQL files and the migrations are equal: nothing to do"
            )
        start, objects = base, before
        if renames:
            start = stack.enter_context(scratch_database(url, template=base))
            _rename(start, renames)
            objects = read_objects(start)
        with connect(url) as conn:
            can_set_expression = conn.info.server_version >= 170000
        files = {str(path): path.read_text("utf-8") for path in schema_files(schema)}
        yield Context(
            server=url,
            can_set_expression=can_set_expression,
            base=base,
            before=before,
            old=read_side(objects, migrated),
            new=read_side(after, files),
            folder=folder,
            renames=renames,
            old_results=read_stored_results(base),
            new_results=read_stored_results(wanted),
        )


def _rename(url: str, renames: Sequence[Rename]) -> None:
    with connect(url) as conn:
        for rename in renames:
            try:
                conn.execute(rename.step().sql.encode())
            except psycopg.Error as exc:
                raise GenerateError(
                    f"cannot rename: {exc.diag.message_primary}"
                ) from exc


def _find_draft(
    context: Context, name: str, why: str, allow_destructive: bool
) -> list[NewMigration]:
    """Return the migrations of the first draft that is proved."""
    failures: dict[str, Result] = {}
    for draft in draft_variants(context):
        if draft.losses and not allow_destructive:
            hint = f"{found}; else " if (found := context.hint()) else ""
            raise GenerateError(
                f"this would lose {', '.join(draft.losses)}: {hint}add"
                " --allow-destructive to lose it"
            )
        migrations = assemble(name, why, draft)
        key = repr(migrations)
        if key in failures:
            continue
        result = prove(context, migrations)
        if not result.reason:
            return migrations
        failures[key] = result
        if _is_beyond(result, draft, context):
            break
    best = min(failures.values(), key=lambda result: len(result.left))
    raise explain(context, name, why, best)


def _is_beyond(result: Result, draft: Draft, context: Context) -> bool:
    """Tell whether the draft leaves an object that no draft changes."""
    changed = {change.title for change in draft.changes}
    sides = context.old.objects, context.new.objects
    return result.is_left and any(
        not (title in changed or title.startswith("COMMENT "))
        and not is_of_routine(title, *sides)
        for title in result.left
    )
