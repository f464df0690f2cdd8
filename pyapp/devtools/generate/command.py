"""The next migration, drafted from schema.sql and proved before it is written."""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pyapp._core.connection import connect
from pyapp._core.queries import migrations_dir, schema_text
from pyapp.devtools.checks.dumps import Objects, without_column_order
from pyapp.devtools.checks.schema_diff import (
    Difference,
    compare,
    load_schema,
    read_objects,
)
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.drafting import Step
from pyapp.devtools.generate.migration_file import Piece, assemble
from pyapp.devtools.generate.sql_source import Sources, read_sources
from pyapp.devtools.generate.steps import (
    WAYS,
    Rename,
    Side,
    comment_removals,
    comment_steps,
    draft_changes,
    read_definition,
    rename_hint,
)
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import GenerateError, MigrationError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")


@dataclass(frozen=True, slots=True)
class _Workshop:
    """Where drafts are made and proved: a server, the present, and what is wanted."""

    server: str
    base: str
    before: Objects
    old: Side
    new: Side
    folder: Path
    renames: Sequence[Rename]

    def hint(self) -> str:
        return rename_hint(self.old.objects, self.new.objects)


@dataclass(frozen=True, slots=True)
class _Failure:
    """A draft that fell short, and by how many objects."""

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
    """Write the migrations that lead from *folder*'s to *schema*; return their paths.

    Each is proved in scratch databases on the server of *url*: applied, nothing
    differs from *schema*; rolled back one by one, all is as it was. When that cannot
    be had, nothing is written. *base* is a database with *folder*'s migrations, which
    saves building one.

    Raises:
        GenerateError: nothing to do, data would be lost, or a draft falls short; the
            message names what is left, and `draft` holds the incomplete draft.
    """
    if not _NAME.fullmatch(name):
        raise GenerateError(f"{name!r} is no name: write verb_object, like add_notes")
    if why and not (why.isascii() and why.isprintable()):
        raise GenerateError("the reason is a comment: one line, in ASCII")
    why = why or f"{name.replace('_', ' ').capitalize()}."
    with _workshop(url, renames, schema, folder, base) as shop:
        pieces = _converge(shop, name, why, allow_destructive)
    return _write(shop.folder, pieces)


@contextlib.contextmanager
def _workshop(
    url: str,
    renames: Sequence[Rename],
    schema: Path | None,
    folder: Path | None,
    base: str | None,
) -> Iterator[_Workshop]:
    folder = folder or migrations_dir()
    with contextlib.ExitStack() as stack:
        if base is None:
            base = stack.enter_context(scratch_database(url))
            migrate(base, folder)
        wanted = stack.enter_context(scratch_database(url))
        load_schema(wanted, schema)
        before, after = read_objects(base), read_objects(wanted)
        if before == after:
            raise GenerateError(
                "schema.sql and the migrations are equal: nothing to do"
            )
        start, objects = base, before
        if renames:
            start = stack.enter_context(scratch_database(url, template=base))
            _rename(start, renames)
            objects = read_objects(start)
        migrated = read_sources(file.text for file in read_migrations(folder))
        written = read_sources([schema_text(schema)])
        yield _Workshop(
            server=url,
            base=base,
            before=before,
            old=Side(read_definition(start), objects, migrated),
            new=Side(read_definition(wanted), after, written),
            folder=folder,
            renames=renames,
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


def _converge(
    shop: _Workshop, name: str, why: str, allow_destructive: bool
) -> list[Piece]:
    """Return the pieces of the first draft that is proved.

    The texts as people wrote them are tried first, then those of the server.
    """
    failures: dict[str, _Failure] = {}
    bare = [Side(s.definition, s.objects, Sources()) for s in (shop.old, shop.new)]
    for old, new in ((shop.old, shop.new), (bare[0], bare[1])):
        for way in WAYS:
            up, down = draft_changes(old, new, way, shop.renames)
            loses = [step.loses for step in up if step.loses]
            if loses and not allow_destructive:
                raise GenerateError(
                    f"this would lose {', '.join(loses)}: {shop.hint()}give"
                    " --allow-destructive if that is meant"
                )
            draft = repr((up, down))
            if draft in failures:
                continue
            result = _try(shop, name, why, up, down)
            if not isinstance(result, _Failure):
                return result
            failures[draft] = result
    best = min(failures.values(), key=lambda failure: failure.left)
    raise GenerateError(
        f"no complete draft, and nothing is written: {best.reason}; {shop.hint()}write"
        " the migration by hand",
        draft=best.draft,
    )


def _try(
    shop: _Workshop, name: str, why: str, up: list[Step], down: list[Step]
) -> list[Piece] | _Failure:
    """Return the proved pieces of a draft, if need be with the comments it left."""
    while True:
        pieces = assemble(name, why, up, down)
        text = "\n".join(f"-- INCOMPLETE: {piece.name}\n{piece.up}" for piece in pieces)
        try:
            left, undone = _prove(shop, pieces)
        except MigrationError as exc:
            return _Failure(len(shop.new.objects), str(exc), text)
        if not left and not undone:
            return pieces
        more_up = _missing(left, shop.new.sources, up)
        more_down = _missing(undone, shop.old.sources, down)
        if not more_up and not more_down:
            where = "it leaves" if left else "its rollback leaves"
            titles = ", ".join(d.title for d in (left or undone)[:5])
            return _Failure(len(left or undone), f"{where} {titles}", text)
        up, down = up + more_up, down + more_down


def _missing(
    differences: list[Difference], sources: Sources, known: list[Step]
) -> list[Step]:
    """Return the steps that mend comments, as far as they are new."""
    steps = comment_steps(differences, sources) + comment_removals(
        [difference for difference in differences if difference.right is None]
    )
    return [step for step in steps if step not in known]


def _prove(
    shop: _Workshop, pieces: list[Piece]
) -> tuple[list[Difference], list[Difference]]:
    """Return what differs once *pieces* are applied, and once they are rolled back."""
    loses_column = any("DROP COLUMN" in piece.up for piece in pieces)
    with (
        scratch_database(shop.server, template=shop.base) as proof,
        tempfile.TemporaryDirectory() as temporary,
    ):
        folder = Path(temporary, "migrations")
        shutil.copytree(shop.folder, folder)
        _write(folder, pieces)
        dumps = [shop.before]
        for _ in pieces:
            migrate(proof, folder, count=1)
            dumps.append(read_objects(proof))
        if left := compare("", dumps[-1], "", shop.new.objects).differences:
            return left, []
        for wanted in reversed(dumps[:-1]):
            rollback(proof, folder)
            found = read_objects(proof)
            if loses_column:  # it comes back as the last one
                found, wanted = map(without_column_order, (found, wanted))
            if undone := compare("", found, "", wanted).differences:
                return [], undone
    return [], []


def _write(folder: Path, pieces: list[Piece]) -> list[Path]:
    """Write *pieces* after the last migration of *folder*; return their paths."""
    first = int(read_migrations(folder)[-1].name[:4]) + 1
    paths = []
    for number, piece in enumerate(pieces, first):
        path = folder / f"{number:04}_{piece.name}.sql"
        path.write_text(piece.up, encoding="ascii", newline="\n")
        path.with_suffix(".rollback.sql").write_text(
            piece.down, encoding="ascii", newline="\n"
        )
        paths.append(path)
    return paths
