"""Statements of a migration, and how they are written."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import Difference
from pyapp.devtools.generate.sources import (
    Sources,
    comment_key,
    parse,
    read_sources,
)

Kind = Literal["change", "comment", "drop index", "build index", "validate", "renew"]

WIDTH = 88
LOST_GRANTS = "Its grants are lost: run pyapp db roles afterwards."

_NOT_VALID = re.compile(r"\s+NOT VALID$")


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a migration, and what its reviewer has to know."""

    sql: str
    kind: Kind = "change"
    name: str = ""
    loses: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Rename:
    """A column's new name; a comparison shows a dropped and an added column instead."""

    table: str
    old: str
    new: str

    def step(self) -> Step:
        """Return the statement that renames the column."""
        return Step(
            f"ALTER TABLE app.{self.table} RENAME COLUMN {self.old} TO {self.new};",
            note=f"Breaks programs that still use {self.old}.",
        )

    def undo(self) -> Step:
        """Return the statement that restores the old name."""
        return Rename(self.table, self.new, self.old).step()


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


def read_side(objects: Objects, files: Mapping[str, str]) -> Side:
    """Return the schema with *objects*, which the texts of *files* define."""
    dumped = read_sources(objects)
    return Side(objects, read_sources(files).completed_by(dumped), dumped)


def comment_steps(differences: Iterable[Difference], sources: Sources) -> list[Step]:
    """Return the statements that set the comments of the right side.

    Comments that only the left side has are removed. Only a proof shows which of their
    objects still exist.
    """
    steps = []
    for difference in differences:
        if not difference.title.startswith("COMMENT "):
            continue
        if difference.right is None:
            text = remove_comment(difference.left or "")
        else:
            (raw,) = parse(difference.right, difference.title)
            source = sources.objects.get(("COMMENT", *comment_key(raw.stmt)))
            text = source.render() if source else difference.right
        steps.append(Step(text, "comment", difference.title))
    return steps


def remove_comment(text: str) -> str:
    """Return the statement that removes the comment that *text* sets."""
    start = text.index("COMMENT ON")
    return re.split(r"\sIS\s", text[start:], maxsplit=1)[0] + " IS NULL;"


def drop(title: str) -> str:
    text = f"DROP {title};"
    if is_wide(text):
        text = text.replace("(", "(\n    ", 1).replace(");", "\n);")
    return text


def concurrent(create_index: str) -> str:
    """Return the statement that builds the index without blocking writes."""
    text = re.sub(
        r"^CREATE (UNIQUE )?INDEX (?!CONCURRENTLY)",
        lambda found: f"CREATE {found[1] or ''}INDEX CONCURRENTLY ",
        create_index,
        flags=re.MULTILINE,
    )
    return text.replace(" ON app.", "\nON app.", 1) if is_wide(text) else text


def alter_table(table: str, action: str) -> str:
    """Return the statement for *action*, which may have several lines."""
    lines = "\n    ".join(action.splitlines())
    text = f"ALTER TABLE app.{table}\n    {lines};"
    if is_wide(text):
        text = re.sub(r"(ADD CONSTRAINT \w+) ", r"\1\n        ", text)
        text = text.replace(" GENERATED ALWAYS", "\n    GENERATED ALWAYS")
    return text


def drop_constraint(table: str, name: str) -> str:
    """Return the statement that drops a constraint which is added again.

    squawk reads the comment only on the line above DROP CONSTRAINT.
    """
    return (
        f"ALTER TABLE app.{table}\n"
        f"    -- squawk-ignore ban-drop-constraint\n    DROP CONSTRAINT {name};"
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
