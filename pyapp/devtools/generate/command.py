"""The next migration, drafted from the SQL files and proved before it is written."""

import contextlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg

from pyapp._core.connection import connect
from pyapp._core.queries import migrations_dir, schema_files
from pyapp.devtools.checks.dumps import Objects, without_column_order
from pyapp.devtools.checks.schema_diff import (
    Difference,
    compare,
    load_schema,
    read_objects,
)
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.migration_files import Draft, NewMigration, assemble
from pyapp.devtools.generate.routines import changed_routines, draft_routines
from pyapp.devtools.generate.sources import Sources
from pyapp.devtools.generate.steps import (
    Rename,
    Side,
    Step,
    comment_steps,
    read_side,
)
from pyapp.devtools.generate.stored_results import (
    StoredResult,
    read_stored_results,
    renew_steps,
)
from pyapp.devtools.generate.structure import StructureDrafter, rename_hint
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import GenerateError, MigrationError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")


@dataclass(frozen=True, slots=True)
class _Context:
    """What drafts are made from, and the server on which they are proved."""

    server: str
    can_set_expression: bool
    base: str
    before: Objects
    old: Side
    new: Side
    folder: Path
    renames: Sequence[Rename]
    old_results: Sequence[StoredResult]
    new_results: Sequence[StoredResult]

    def hint(self) -> str:
        """Return advice if a dropped column may have been renamed."""
        return rename_hint(self.old, self.new)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A draft that is not complete, and the number of objects that it leaves."""

    left: int
    reason: str
    draft: str


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
) -> list[Path]:
    """Write the migrations that lead from those of *folder* to the SQL files.

    *schema* is the folder of schema.sql and functions/. Tables and functions get
    migrations of their own. Each is proved in scratch databases on the server of *url*:
    applied, it leaves no difference; rolled back, it restores the schema before it.
    Without a proof nothing is written. *base* is a database with the migrations of
    *folder*, which saves building one. Returns the paths written.

    Raises:
        GenerateError: nothing differs, data would be lost, or no draft is complete; the
            message names what is left, and `draft` holds the incomplete draft.
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
    with _prepare(url, renames, schema, folder, base) as context:
        migrations = _find_draft(context, name, why, allow_destructive)
    return _write(context.folder, migrations)


@contextlib.contextmanager
def _prepare(
    url: str,
    renames: Sequence[Rename],
    schema: Path | None,
    folder: Path | None,
    base: str | None,
) -> Iterator[_Context]:
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
        yield _Context(
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
    context: _Context, name: str, why: str, allow_destructive: bool
) -> list[NewMigration]:
    """Return the migrations of the first draft that is proved."""
    failures: dict[str, _Failure] = {}
    for draft in _drafts(context):
        if draft.losses and not allow_destructive:
            raise GenerateError(
                f"this would lose {', '.join(draft.losses)}: {context.hint()}add"
                " --allow-destructive to lose it"
            )
        key = repr(draft)
        if key in failures:
            continue
        result = _try(context, name, why, draft)
        if not isinstance(result, _Failure):
            return result
        failures[key] = result
    best = min(failures.values(), key=lambda failure: failure.left)
    advice = "change tables and functions in two steps, or write the migration by hand"
    if "cannot drop function" in best.reason:
        advice = "give the new function another name, and change what calls it"
    raise GenerateError(
        f"no complete draft, and nothing is written: {best.reason}; {context.hint()}"
        f"{advice}",
        draft=best.draft,
    )


def _drafts(context: _Context) -> Iterator[Draft]:
    """Yield the drafts to try: with the text of the files first, tables first."""
    bare_old, bare_new = (
        replace(side, sources=side.dumped) for side in (context.old, context.new)
    )
    for old, new in ((context.old, context.new), (bare_old, bare_new)):
        can_set = context.can_set_expression
        up = StructureDrafter(old, new, can_set_expression=can_set).draft()
        back = StructureDrafter(
            new, old, is_online=False, can_set_expression=can_set
        ).draft()
        structure = (
            [rename.step() for rename in context.renames] + up,
            back + [rename.undo() for rename in reversed(context.renames)],
        )
        # Whether the migration, and whether its rollback, recreates views.
        for ups, downs in itertools.product((False, True), repeat=2):
            routines = (
                draft_routines(old, new, is_recreating_views=ups),
                draft_routines(new, old, is_recreating_views=downs),
            )
            for is_first in (False, True) if any(routines) else (False,):
                yield Draft(structure, _renewed(context, routines, is_first), is_first)


def _renewed(
    context: _Context, routines: tuple[list[Step], list[Step]], is_first: bool
) -> tuple[list[Step], list[Step]]:
    """Return *routines* followed by what renews the results of the changed functions.

    The tables are those of the moment: the old ones if functions come first.
    """
    side = context.old if is_first else context.new
    results = context.old_results if is_first else context.new_results
    changed = changed_routines(context.old.objects, context.new.objects)
    steps = renew_steps(results, changed, side.sources)
    return routines[0] + steps, routines[1] + steps


def _try(
    context: _Context, name: str, why: str, draft: Draft
) -> list[NewMigration] | _Failure:
    """Return the proved migrations of *draft*, completed by the comments it left."""
    while True:
        migrations = assemble(name, why, draft)
        text = "\n".join(
            f"-- INCOMPLETE: {migration.name}\n{migration.up}"
            for migration in migrations
        )
        try:
            left, undone = _prove(context, migrations)
        except MigrationError as exc:
            return _Failure(len(context.new.objects), str(exc), text)
        if not left and not undone:
            return migrations
        (up, down), (more_up, more_down) = draft.structure, draft.routines
        up = _missing(left, context.new.sources, up + more_up)
        down = _missing(undone, context.old.sources, down + more_down)
        if not up and not down:
            where = "it leaves" if left else "its rollback leaves"
            titles = ", ".join(d.title for d in (left or undone)[:5])
            return _Failure(len(left or undone), f"{where} {titles}", text)
        draft = draft.with_comments(up, down)


def _missing(
    differences: list[Difference], sources: Sources, known: list[Step]
) -> list[Step]:
    """Return the steps for comments that differ, without those already tried."""
    steps = comment_steps(differences, sources)
    texts = {step.sql for step in known}
    return [step for step in steps if step.sql not in texts]


def _prove(
    context: _Context, migrations: list[NewMigration]
) -> tuple[list[Difference], list[Difference]]:
    """Return the differences after applying *migrations* and after their rollback."""
    loses_column = any("DROP COLUMN" in migration.up for migration in migrations)
    with (
        scratch_database(context.server, template=context.base) as proof,
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary, "migrations")
        shutil.copytree(context.folder, folder)
        _write(folder, migrations)
        dumps = [context.before]
        for _ in migrations:
            migrate(proof, folder, count=1)
            dumps.append(read_objects(proof))
        if left := compare("", dumps[-1], "", context.new.objects).differences:
            return left, []
        for wanted in reversed(dumps[:-1]):
            rollback(proof, folder)
            found = read_objects(proof)
            if loses_column:  # a rollback adds it as the last one
                found, wanted = map(without_column_order, (found, wanted))
            if undone := compare("", found, "", wanted).differences:
                return [], undone
    return [], []


def _write(folder: Path, migrations: list[NewMigration]) -> list[Path]:
    """Write *migrations* after the last migration of *folder*; return their paths."""
    first = int(read_migrations(folder)[-1].name[:4]) + 1
    paths = []
    for number, migration in enumerate(migrations, first):
        path = folder / f"{number:04}_{migration.name}.sql"
        path.write_text(migration.up, encoding="ascii", newline="\n")
        path.with_suffix(".rollback.sql").write_text(
            migration.down, encoding="ascii", newline="\n"
        )
        paths.append(path)
    return paths
