"""Statements of a migration, and how they are written."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.generate.sources import Sources, read_sources

# The files of a draft, in order. "build" and "drop" run outside a transaction, one
# statement a file; the steps of each other phase are one transaction.
Phase = Literal["change", "build", "validate", "drop", "finish"]

WIDTH = 88
LOST_GRANTS = "Its grants are lost: run pyapp db roles afterwards."

# PostgreSQL cuts longer names.
LONGEST_NAME = 63

_SETTING = re.compile(
    r"ALTER TABLE (?:ONLY )?app\.(?P<table>\w+)"
    r" (?P<kind>CLUSTER ON|REPLICA IDENTITY USING INDEX) \w+;"
)
_NOT_VALID = re.compile(r"\s+NOT VALID$")


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a migration, and what its reviewer has to know."""

    sql: str
    loses: str = ""
    note: str = ""
    renews: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """The steps for one object in one phase, and those that undo them.

    `title` is the object's in a dump, and `name` what its file is named after.
    `comment` is for the file of a statement outside a transaction. `table` is the
    existing table that is locked, if it is one.
    """

    title: str
    phase: Phase
    up: Sequence[Step]
    down: Sequence[Step]
    name: str = ""
    comment: str = ""
    table: str = ""


@dataclass(frozen=True, slots=True)
class Rename:
    """A column's new name; a comparison shows a dropped and an added column instead."""

    table: str
    old: str
    new: str

    def change(self) -> Change:
        """Return the change that renames the column."""
        return Change(
            f"TABLE app.{self.table}",
            "change",
            [self.step()],
            [Rename(self.table, self.new, self.old).step()],
            table=self.table,
        )

    def step(self) -> Step:
        """Return the statement that renames the column."""
        return Step(
            f"ALTER TABLE app.{self.table} RENAME COLUMN {self.old} TO {self.new};",
            note=f"Breaks programs that still use {self.old}.",
        )


@dataclass(frozen=True)
class Side:
    """One of the two schemas: its objects in a dump, and their text.

    `sources` has the text of the files, and that of the dump for all that the files do
    not define. `dumped` has the text of the dump only, to compare two sides.
    """

    objects: Objects
    sources: Sources
    dumped: Sources

    @cached_property
    def tables(self) -> dict[str, str]:
        """The CREATE TABLE of each table by its name."""
        return {
            title.removeprefix("TABLE app."): text
            for title, text in self.objects.items()
            if title.startswith("TABLE app.")
        }

    @cached_property
    def names(self) -> set[str]:
        """The names that a new index or constraint cannot have."""
        titles = {re.split(r"[ .]", title)[-1] for title in self.objects}
        return titles | {name for _, name in self.dumped.constraints}

    def is_partitioned(self, table: str) -> bool:
        """Tell whether an index of *table* cannot be built CONCURRENTLY."""
        return "PARTITION BY" in self.tables.get(table, "")


def read_side(objects: Objects, files: Mapping[str, str]) -> Side:
    """Return the schema with *objects*, which the texts of *files* define."""
    dumped = read_sources(objects)
    return Side(objects, read_sources(files).completed_by(dumped), dumped)


def comment_steps(side: Side, kind: str, *names: str) -> list[Step]:
    """Return the step that sets the comment of an object that was just created.

    A comment that the files do not have is in the dump.
    """
    key = ("COMMENT", kind, *names)
    if key not in side.dumped.objects:
        return []
    return [Step(side.sources.objects[key].render())]


def uncomment_steps(comments: Sequence[Step]) -> list[Step]:
    """Return the steps that remove the comments that *comments* set."""
    return [Step(remove_comment(step.sql)) for step in comments]


def remove_comment(text: str) -> str:
    """Return the statement that removes the comment that *text* sets."""
    start = text.index("COMMENT ON")
    return re.split(r"\sIS\s", text[start:], maxsplit=1)[0] + " IS NULL;"


def read_settings(text: str) -> list[Step]:
    """Return the steps that make an index in a dump the one of CLUSTER or replication.

    They follow its definition in *text*.
    """
    return [Step(found.group()) for found in _SETTING.finditer(text)]


def unset(settings: Sequence[Step]) -> list[Step]:
    """Return the steps that undo *settings*."""
    steps = []
    for step in settings:
        found = _SETTING.match(step.sql)
        assert found is not None
        is_cluster = found["kind"] == "CLUSTER ON"
        action = "SET WITHOUT CLUSTER" if is_cluster else "REPLICA IDENTITY DEFAULT"
        steps.append(Step(f"ALTER TABLE app.{found['table']} {action};"))
    return steps


def change_settings(title: str, table: str, old: Side, new: Side) -> Iterator[Change]:
    """Yield the change of the settings of an index that has the same definition."""
    before, after = (read_settings(side.objects.get(title, "")) for side in (old, new))
    if before != after:
        up, down = after or unset(before), before or unset(after)
        yield Change(title, "change", up, down, table=table)


def temporary_name(name: str, *sides: Side) -> str:
    """Return a name for the index or constraint until it can have the name *name*."""
    taken = {taken for side in sides for taken in side.names}
    for suffix in itertools.chain(["_new"], (f"_new{n}" for n in itertools.count(2))):
        candidate = name[: LONGEST_NAME - len(suffix)] + suffix
        if candidate not in taken:
            return candidate
    raise AssertionError


def drop(title: str) -> str:
    text = f"DROP {title};"
    if is_wide(text):
        text = text.replace("(", "(\n    ", 1).replace(");", "\n);")
    return text


def concurrent(create_index: str, name: str | None = None) -> str:
    """Return the statement that builds the index without blocking writes.

    *name* is another name for it.
    """
    return _create_index(create_index, " CONCURRENTLY", name)


def blocking(create_index: str) -> str:
    """Return the statement that builds the index in a transaction."""
    return _create_index(create_index, "", None)


def _create_index(text: str, how: str, name: str | None) -> str:
    text = re.sub(
        r"^CREATE( UNIQUE)? INDEX(?: CONCURRENTLY)? (\w+)",
        lambda found: f"CREATE{found[1] or ''} INDEX{how} {name or found[2]}",
        text,
        flags=re.MULTILINE,
    )
    return text.replace(" ON app.", "\nON app.", 1) if is_wide(text) else text


def alter_table(table: str, action: str) -> str:
    """Return the statement for *action*, which may have several lines."""
    lines = "\n    ".join(action.splitlines())
    text = f"ALTER TABLE app.{table}\n    {lines};"
    if is_wide(text):
        text = re.sub(r"(ADD CONSTRAINT \w+) ", r"\1\n        ", text)
        text = re.sub(r"(RENAME CONSTRAINT \w+) ", r"\1\n    ", text)
        text = text.replace(" GENERATED ALWAYS", "\n    GENERATED ALWAYS")
    return text


def ignoring(rule: str, action: str, text: str) -> str:
    """Return the statement with what tells squawk that its *action* is meant so.

    squawk reads the comment only on the line above.
    """
    return re.sub(
        rf"^( *)(?=.*{action})",
        rf"\1-- squawk-ignore {rule}\n\1",
        text,
        count=1,
        flags=re.MULTILINE,
    )


def validated(constraint: str) -> str:
    """Return the definition of a constraint without NOT VALID."""
    return _NOT_VALID.sub("", constraint)


def not_valid(add_constraint: str) -> str:
    """Return the statement that does not check the existing rows."""
    text = f"{add_constraint.removesuffix(';')} NOT VALID;"
    if is_wide(text):
        text = re.sub(r"(ADD CONSTRAINT \w+) ", r"\1\n        ", text)
    if is_wide(text):
        text = text.replace(" NOT VALID;", "\n        NOT VALID;")
    return text


def is_wide(text: str) -> bool:
    return any(len(line) > WIDTH for line in text.splitlines())
