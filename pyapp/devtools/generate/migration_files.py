"""Migration files from drafted steps: which steps share a file and a transaction."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pyapp.devtools.generate.steps import LOST_GRANTS, Step, concurrent, remove_comment

_TIMEOUT = "SET LOCAL lock_timeout = '5s';"
_INDEX_COMMENT = re.compile(r"COMMENT app\.INDEX (\w+)")
_ADDED = re.compile(r"ALTER TABLE (?P<table>\S+)\s+ADD CONSTRAINT (?P<name>\w+)")


@dataclass(frozen=True, slots=True)
class NewMigration:
    """One migration and its rollback; `name` has no number yet."""

    name: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class Draft:
    """The steps of a change and of its rollback, tables and functions apart."""

    structure: tuple[list[Step], list[Step]]
    routines: tuple[list[Step], list[Step]]
    has_routines_first: bool = False

    @property
    def losses(self) -> list[str]:
        """What data the change loses."""
        return [step.loses for step in self.structure[0] if step.loses]

    def with_comments(self, up: list[Step], down: list[Step]) -> "Draft":
        """Return the draft with more steps, which set or remove comments."""
        if any(self.structure) or not any(self.routines):
            structure = (self.structure[0] + up, self.structure[1] + down)
            return replace(self, structure=structure)
        routines = (self.routines[0] + up, self.routines[1] + down)
        return replace(self, routines=routines)


def assemble(name: str, why: str, draft: Draft) -> list[NewMigration]:
    """Return the migrations of *draft*, in order.

    Functions and views have a migration of their own.
    """
    if not any(draft.routines):
        return _lay_out_structure(name, why, *draft.structure)
    if not any(draft.structure):
        return [_lay_out_routines(name, why, *draft.routines)]
    structure = _lay_out_structure(name, why, *draft.structure)
    routines = [_lay_out_routines(f"{name}_functions", why, *draft.routines)]
    return routines + structure if draft.has_routines_first else structure + routines


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
        if renewed := [step.name for step in steps if step.kind == "renew"]:
            text.append(f"Renews stored results of functions: {', '.join(renewed)}.")
        yield [line for sentence in text for line in textwrap.wrap(sentence, 85)]


def _lay_out_structure(
    name: str, why: str, up: list[Step], down: list[Step]
) -> list[NewMigration]:
    """Return the migrations of the steps for tables.

    Indexes of existing tables are dropped and built CONCURRENTLY, each in its own file,
    before and after all other steps; constraints are validated last.
    """
    built = [step for step in up if step.kind == "build index"]
    names = {step.name for step in built}
    late = [step for step in up if _is_late(step, names)]
    changes = [
        step
        for step in up
        if step.kind in ("change", "comment") and not _is_late(step, names)
    ]
    back = [step for step in down if step.kind in ("change", "comment")]
    rebuilt = {step.name: step for step in down if step.kind == "build index"}

    migrations = [
        _outside_transaction(f"drop_{step.name}", why, step, rebuilt[step.name])
        for step in up
        if step.kind == "drop index"
    ]
    if changes or (back and not migrations and not built):
        lost = [step.loses for step in changes if step.loses]
        migrations.append(
            NewMigration(
                name, _file(why, changes), _file(_loss(back, lost), back, marks=False)
            )
        )
    migrations += [
        _outside_transaction(
            f"create_{step.name}",
            why,
            step,
            Step(f"DROP INDEX CONCURRENTLY app.{step.name};"),
        )
        for step in built
    ]
    if late:
        migrations.append(_lay_out_late(name, up, late))
    if not changes and migrations:
        migrations[0] = replace(migrations[0], name=name)
    return migrations


def _lay_out_late(name: str, up: list[Step], late: list[Step]) -> NewMigration:
    back = _file("Loses nothing.", _undo_late(up, late))
    checks = [step.name for step in late if step.kind == "validate"]
    if not checks:
        text = _file("Comments on the new indexes.", late)
        return NewMigration(f"comment_{name}", text, back)
    why = "Validates the rows in its own transaction, while others write."
    validated = checks[0] if len(checks) == 1 else name
    return NewMigration(f"validate_{validated}", _file(why, late), back)


def _is_late(step: Step, built: set[str]) -> bool:
    """Tell whether *step* follows the new indexes or needs an earlier commit."""
    on_index = _INDEX_COMMENT.match(step.name) if step.kind == "comment" else None
    return step.kind == "validate" or bool(on_index and on_index[1] in built)


def _undo_late(up: list[Step], late: list[Step]) -> list[Step]:
    """Return the steps that undo validations and the comments of new indexes."""
    added = {found["name"]: step for step in up if (found := _ADDED.search(step.sql))}
    steps = []
    for step in reversed(late):
        if step.kind == "comment":
            steps.append(Step(remove_comment(step.sql), "comment"))
            continue
        definition = added[step.name].sql
        found = _ADDED.search(definition)
        assert found is not None
        drop = f"ALTER TABLE {found['table']}\n    DROP CONSTRAINT {step.name};"
        steps += [Step(drop), Step(definition)]
    return steps


def _outside_transaction(name: str, why: str, step: Step, back: Step) -> NewMigration:
    """Return the migration of one statement outside a transaction."""
    return NewMigration(
        name,
        f"-- {why}\n-- transactional: false\n\n{step.sql}\n",
        f"-- Loses nothing.\n-- transactional: false\n\n{concurrent(back.sql)}\n",
    )


def _file(comment: str, steps: list[Step], *, marks: bool = True) -> str:
    text = f"-- {comment}\n\n{_TIMEOUT}\n"
    for n, step in enumerate(steps):
        is_comment = step.sql.startswith("COMMENT ON")
        follows = is_comment and n and steps[n - 1].sql.startswith("COMMENT ON")
        text += "" if follows else "\n"
        if marks and step.loses:
            text += f"-- Destructive: loses {step.loses}.\n"
        if marks and step.note:
            text += f"-- {step.note}\n"
        text += f"{step.sql}\n"
    return text


def _loss(back: list[Step], lost: list[str]) -> str:
    """Return the first comment of a rollback."""
    loses = [step.loses for step in back if step.loses]
    text = f"Loses {', '.join(loses)}." if loses else "Loses nothing."
    return text + (f" What {', '.join(lost)} held does not come back." if lost else "")
