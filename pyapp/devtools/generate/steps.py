"""Statements of a migration, and how they are written."""

import re
from dataclasses import dataclass
from typing import Literal

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import Difference
from pyapp.devtools.generate.sources import Sources, comment_key, parse

Kind = Literal["change", "comment", "drop index", "build index", "validate"]

WIDTH = 88


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


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two schemas: its objects in a dump, and their text in the files."""

    objects: Objects
    sources: Sources


def comment_steps(differences: list[Difference], sources: Sources) -> list[Step]:
    """Return the statements that set the comments of the right side."""
    steps = []
    for difference in differences:
        if difference.title.startswith("COMMENT ") and difference.right is not None:
            (raw,) = parse(difference.right)
            source = sources.objects.get(("COMMENT", *comment_key(raw.stmt)))
            text = source.render() if source else difference.right
            steps.append(Step(text, "comment", difference.title))
    return steps


def comment_removals(differences: list[Difference]) -> list[Step]:
    """Return the statements that remove the comments that only the left side has.

    Only a proof shows which of their objects still exist.
    """
    return [
        Step(
            re.split(r"\sIS\s", difference.left, maxsplit=1)[0] + " IS NULL;",
            "comment",
            difference.title,
        )
        for difference in differences
        if difference.title.startswith("COMMENT ")
        and difference.left is not None
        and difference.right is None
    ]


def drop(title: str) -> str:
    text = f"DROP {title};"
    if _is_wide(text):
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
    return text.replace(" ON app.", "\nON app.", 1) if _is_wide(text) else text


def alter_table(table: str, action: str) -> str:
    """Return the statement for *action*, which may have several lines."""
    lines = "\n    ".join(action.splitlines())
    text = f"ALTER TABLE app.{table}\n    {lines};"
    if _is_wide(text):
        text = re.sub(r"(ADD CONSTRAINT \w+) ", r"\1\n        ", text)
        text = text.replace(" GENERATED ALWAYS", "\n    GENERATED ALWAYS")
    return text


def not_valid(add_constraint: str) -> str:
    """Return the statement that does not check the existing rows."""
    text = f"{add_constraint.removesuffix(';')} NOT VALID;"
    if _is_wide(text):
        text = re.sub(r"(ADD CONSTRAINT \w+) ", r"\1\n        ", text)
    if _is_wide(text):
        text = text.replace(" NOT VALID;", "\n        NOT VALID;")
    return text


def _is_wide(text: str) -> bool:
    return any(len(line) > WIDTH for line in text.splitlines())
