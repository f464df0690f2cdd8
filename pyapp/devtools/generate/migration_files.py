"""Migration files from drafted changes: which steps share a file and a transaction."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pyapp.devtools.generate.steps import LOST_GRANTS, Change, Phase, Step

# Where the migrations of functions are among those of tables.
Place = Literal["first", "middle", "last"]
PLACES: tuple[Place, ...] = ("first", "middle", "last")
Routines = tuple[list[Step], list[Step]]

_TIMEOUT = "SET LOCAL lock_timeout = '5s';"
_VALIDATES = "Validates the rows in its own transaction, while others write."
_FINISHES = "Last, so that nothing goes before what replaces it is valid."


@dataclass(frozen=True, slots=True)
class NewMigration:
    """One migration and its rollback; `name` has no number yet."""

    name: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Draft:
    """The changes of tables, and the steps for functions and of their rollback.

    `routines` has the latter by their place: before the changes, before the old objects
    go, or after all changes.
    """

    changes: Sequence[Change]
    routines: Mapping[Place, Routines]

    @property
    def losses(self) -> list[str]:
        """What data the change loses."""
        return [s.loses for change in self.changes for s in change.up if s.loses]


def assemble(name: str, why: str, draft: Draft) -> list[NewMigration]:
    """Return the migrations of *draft*, in order.

    Functions and views have migrations of their own.
    """
    early, late = _lay_out_changes(name, why, draft.changes)
    routines = {}
    for place, steps in draft.routines.items():
        verb = "_drop" if place == "last" and "first" in draft.routines else ""
        title = f"{name}{verb}_functions"
        routines[place] = [_lay_out_routines(title, why, *steps)]
    first, middle, last = (routines.get(place, []) for place in PLACES)
    migrations = [*first, *early, *middle, *late, *last]
    if migrations and not (early or late):
        migrations[0] = replace(migrations[0], name=name)
    return migrations


def _lay_out_routines(
    name: str, why: str, up: list[Step], down: list[Step]
) -> NewMigration:
    up_comment, down_comment = _routine_comments(up, down)
    return NewMigration(
        name,
        _file("\n-- ".join([why, *up_comment]), up),
        _file("\n-- ".join(["Loses nothing.", *down_comment]), down),
    )


def _routine_comments(*directions: list[Step]) -> Iterator[list[str]]:
    """Yield for each direction the lines that its first comment needs."""
    for steps in directions:
        text = []
        if any(step.note == LOST_GRANTS for step in steps):
            text.append("Run pyapp db roles right after it: grants are lost.")
        if renewed := [step.renews for step in steps if step.renews]:
            text.append(f"Renews stored results of functions: {', '.join(renewed)}.")
        yield [line for sentence in text for line in textwrap.wrap(sentence, 85)]


def _lay_out_changes(
    name: str, why: str, changes: Sequence[Change]
) -> tuple[list[NewMigration], list[NewMigration]]:
    """Return the migrations of the changes of tables: phase by phase.

    The first ones add, those after them remove. The very first has the name *name*.
    """
    phases: dict[Phase, list[Change]] = {
        phase: [change for change in changes if change.phase == phase]
        for phase in ("change", "build", "validate", "drop", "finish")
    }
    early = [
        *_by_table("alter", name, why, phases["change"]),
        *(_outside_transaction("create", why, change) for change in phases["build"]),
        *_in_transaction(
            f"validate_{_named_after(phases['validate'], name)}",
            _VALIDATES,
            phases["validate"],
        ),
    ]
    late = [_outside_transaction("drop", why, change) for change in phases["drop"]]
    comment = f"{why}\n-- {_FINISHES}" if early or late else why
    late += _by_table("finish", name, comment, phases["finish"])
    for migrations in (early, late):
        if migrations:
            migrations[0] = replace(migrations[0], name=name)
            break
    return early, late


def _by_table(
    verb: str, name: str, comment: str, changes: Sequence[Change]
) -> Iterator[NewMigration]:
    """Yield a migration for each table, after one for all that belongs to none.

    Programs that lock two tables in another order would deadlock with one transaction.
    Comments take weak locks, and are added to the last one.
    """
    comments = [change for change in changes if change.title.startswith("COMMENT ")]
    others = [change for change in changes if change not in comments]
    tables = sorted(dict.fromkeys(change.table for change in others), key=bool) or [""]
    for table in tables:
        group = [change for change in others if change.table == table]
        group += comments if table == tables[-1] else []
        ending = _named_after(group, table or name)
        yield from _in_transaction(f"{verb}_{ending}", comment, group)


def _named_after(changes: Sequence[Change], name: str) -> str:
    """Return the name of the only object, else *name*."""
    names = {change.name for change in changes}
    return (names.pop() if len(names) == 1 else "") or name


def _in_transaction(
    name: str, comment: str, changes: Sequence[Change]
) -> Iterator[NewMigration]:
    up = [step for change in changes for step in change.up]
    down = [step for change in reversed(changes) for step in change.down]
    if up or down:
        lost = [step.loses for step in up if step.loses]
        yield NewMigration(
            name, _file(comment, up), _file(_loss(down, lost), down, is_rollback=True)
        )


def _outside_transaction(verb: str, why: str, change: Change) -> NewMigration:
    """Return the migration of one statement outside a transaction."""
    (up,), (down,) = change.up, change.down
    lines = [why, *textwrap.wrap(change.comment, 85), "transactional: false"]
    comment = "".join(f"-- {line}\n" for line in lines)
    return NewMigration(
        f"{verb}_{change.name}",
        f"{comment}\n{up.sql}\n",
        f"-- Loses nothing.\n-- transactional: false\n\n{down.sql}\n",
    )


def _file(comment: str, steps: list[Step], *, is_rollback: bool = False) -> str:
    text = f"-- {comment}\n\n{_TIMEOUT}\n"
    for n, step in enumerate(steps):
        is_comment = step.sql.startswith("COMMENT ON")
        follows = is_comment and n and steps[n - 1].sql.startswith("COMMENT ON")
        text += "" if follows else "\n"
        if step.loses and not is_rollback:
            text += f"-- Destructive: loses {step.loses}.\n"
        if step.note and step.note not in step.sql:
            text += f"-- {step.note}\n"
        text += f"{step.sql}\n"
    return text


def _loss(back: list[Step], lost: list[str]) -> str:
    """Return the first comment of a rollback."""
    loses = [step.loses for step in back if step.loses]
    text = f"Loses {', '.join(loses)}." if loses else "Loses nothing."
    return text + (f" What {', '.join(lost)} held does not come back." if lost else "")
