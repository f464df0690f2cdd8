"""All that leads from one schema to another and back, as steps.

Most of it is drafted by `results`; renames, comments and the rows of plans are ours.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pyapp._core.connection import connect
from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import Difference, compare
from pyapp.devtools.generate.drafting import Drafter, Step
from pyapp.devtools.generate.sql_source import Sources, comment_key
from pyapp.errors import GenerateError, MissingExtraError

Way = Literal["add_all_changes", "add_all_changes_ordered"]
WAYS: tuple[Way, ...] = ("add_all_changes", "add_all_changes_ordered")

_COLUMN = re.compile(r"^    (?P<name>\w+) (?P<type>.+?),?$", re.MULTILINE)
_PLAN = re.compile(r"VALUES \((?P<id>'.*'), (?P<credits>[^,]+)\);$")


@dataclass(frozen=True, slots=True)
class Rename:
    """A column's new name, which no comparison can know from a drop and an addition."""

    table: str
    old: str
    new: str

    def step(self) -> Step:
        """Return the statement that renames it."""
        return Step(
            f"ALTER TABLE app.{self.table} RENAME COLUMN {self.old} TO {self.new};",
            note=f"Breaks every program that still says {self.old}.",
        )

    def undo(self) -> Step:
        """Return the statement that gives it its old name."""
        return Rename(self.table, self.new, self.old).step()


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two schemas: for `results`, as its objects, and as people wrote it."""

    definition: Any
    objects: Objects
    sources: Sources


def read_definition(url: str) -> Any:
    """Return the schema at *url* as `results` compares it.

    Raises:
        MissingExtraError: the `generate` extra is not installed.
        GenerateError: `results` cannot read it.
    """
    try:
        from results.schemainspect import get_inspector
    except ModuleNotFoundError as exc:
        raise MissingExtraError("generate") from exc
    with connect(url) as conn, _explained():
        inspector: Any = get_inspector(  # type: ignore[no-untyped-call]
            conn.cursor(), schema="app"
        )
        return inspector.as_definition()


def draft_changes(
    old: Side, new: Side, way: Way, renames: Sequence[Rename]
) -> tuple[list[Step], list[Step]]:
    """Return the steps that lead to *new*, and those that lead back to *old*.

    *old* has its *renames* already.
    """
    forth = Drafter(old.objects, new.objects, old.sources, new.sources)
    back = Drafter(new.objects, old.objects, new.sources, old.sources, is_online=False)
    with _explained():
        up = forth.read(_draft(old.definition, new.definition, way))
        down = back.read(_draft(new.definition, old.definition, way))
    differences = compare("", old.objects, "", new.objects).differences
    reverse = [Difference(d.title, d.right, d.left) for d in differences]
    up = [rename.step() for rename in renames] + up + _rows(differences)
    down = _rows(reverse) + down
    up += _new(comment_steps(differences, new.sources), up)
    down += _new(comment_steps(reverse, old.sources), down)
    return up, down + [rename.undo() for rename in reversed(renames)]


def comment_steps(differences: list[Difference], sources: Sources) -> list[Step]:
    """Return the statements that set the comments that differ from left to right."""
    steps = []
    for difference in differences:
        if difference.title.startswith("COMMENT ") and difference.right is not None:
            source = sources.comments.get(comment_key(difference.right))
            text = source.render() if source else difference.right
            steps.append(Step(text, "comment", difference.title))
    return steps


def comment_removals(differences: list[Difference]) -> list[Step]:
    """Return the statements that remove the comments that only the left has.

    Only of objects that are still there, which a proof shows.
    """
    steps = []
    for difference in differences:
        if difference.title.startswith("COMMENT ") and difference.left is not None:
            target = re.split(r"\sIS\s", difference.left, maxsplit=1)[0]
            steps.append(Step(f"{target} IS NULL;", "comment", difference.title))
    return steps


def rename_hint(before: Objects, after: Objects) -> str:
    """Return what to say when a column has another name in the same place."""
    for title in before:
        if not title.startswith("TABLE app.") or title not in after:
            continue
        old, new = (_COLUMN.findall(objects[title]) for objects in (before, after))
        if len(old) != len(new):
            continue
        table = title.removeprefix("TABLE app.")
        for (was, _), (now, _) in zip(old, new, strict=True):
            if was != now and was not in dict(new) and now not in dict(old):
                return f"if it is a new name, --rename {table}.{was}={now}; else "
    return ""


def _rows(differences: list[Difference]) -> list[Step]:
    """Return the statements that change the rows of plans."""
    steps = []
    for difference in differences:
        row = _PLAN.search(difference.right or difference.left or "")
        if not difference.title.startswith("ROW ") or row is None:
            continue
        if difference.right is None:
            sql = f"DELETE FROM app.plans\nWHERE id = {row['id']};"
            steps.append(Step(sql, loses=f"the plan {row['id']}"))
        elif difference.left is None:
            steps.append(Step(difference.right))
        else:
            changed = f"SET monthly_credits = {row['credits']}\nWHERE id = {row['id']};"
            steps.append(Step(f"UPDATE app.plans {changed}"))
    return steps


def _new(steps: list[Step], known: list[Step]) -> list[Step]:
    told = {step.sql for step in known}
    return [step for step in steps if step.sql not in told]


def _draft(before: Any, after: Any, way: Way) -> list[str]:
    """Return the statements by which `results` would lead from one to the other."""
    from results.dbdiff import Migration

    migration: Any = Migration(before, after, schema="app")  # type: ignore[no-untyped-call]
    migration.set_safety(False)
    getattr(migration, way)()
    return [str(statement) for statement in migration.statements]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what `results` stumbles over into an error that says so."""
    try:
        yield
    except (ValueError, KeyError, AttributeError) as exc:
        raise GenerateError(f"the drafting library failed: {exc!r}") from exc
