"""Steps laid out as migration files: what needs a transaction, and what bears none."""

import re
from dataclasses import dataclass

from pyapp.devtools.generate.drafting import Step
from pyapp.devtools.generate.sql_text import concurrent

_TIMEOUT = "SET LOCAL lock_timeout = '5s';"
_INDEX_COMMENT = re.compile(r"COMMENT app\.INDEX (\w+)")
_ADDED = re.compile(r"ALTER TABLE (?P<table>\S+)\s+ADD CONSTRAINT (?P<name>\w+)")


@dataclass(frozen=True, slots=True)
class Piece:
    """One migration and its rollback; `name` is without the number."""

    name: str
    up: str
    down: str


def assemble(name: str, why: str, up: list[Step], down: list[Step]) -> list[Piece]:
    """Return the files of a draft, in order.

    Indexes on tables that were there before are dropped and built CONCURRENTLY, each
    in its own file, before and after all else; constraints are validated last.
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

    pieces = [
        _lone(f"drop_{step.name}", why, step, rebuilt[step.name])
        for step in up
        if step.kind == "drop index"
    ]
    if changes or (back and not pieces and not built):
        lost = [step.loses for step in changes if step.loses]
        pieces.append(
            Piece(
                name, _file(why, changes), _file(_loss(back, lost), back, marks=False)
            )
        )
    has_main = bool(changes)
    pieces += [
        _lone(
            f"create_{step.name}",
            why,
            step,
            Step(f"DROP INDEX CONCURRENTLY app.{step.name};"),
        )
        for step in built
    ]
    if late:
        checks = [step.name for step in late if step.kind == "validate"]
        pieces.append(
            Piece(
                f"validate_{checks[0] if len(checks) == 1 else name}"
                if checks
                else f"comment_{name}",
                _file(
                    "Apart, so that the rows are checked while others write."
                    if checks
                    else "What is said of the index, which is there by now.",
                    late,
                ),
                _file("Loses nothing.", _undo_late(up, late)),
            )
        )
    if not has_main and pieces:
        first = pieces[0]
        pieces[0] = Piece(name, first.up, first.down)
    return pieces


def _is_late(step: Step, built: set[str]) -> bool:
    """Say whether *step* has to wait for the indexes, or for a commit."""
    on_index = _INDEX_COMMENT.match(step.name) if step.kind == "comment" else None
    return step.kind == "validate" or bool(on_index and on_index[1] in built)


def _undo_late(up: list[Step], late: list[Step]) -> list[Step]:
    """Return what makes constraints unchecked again, and indexes bare."""
    added = {found["name"]: step for step in up if (found := _ADDED.search(step.sql))}
    steps = []
    for step in reversed(late):
        if step.kind == "comment":
            target = step.sql[step.sql.index("COMMENT ON") :].split(" IS")[0]
            steps.append(Step(f"{target} IS NULL;", "comment"))
            continue
        definition = added[step.name].sql
        found = _ADDED.search(definition)
        assert found is not None
        drop = f"ALTER TABLE {found['table']}\n    DROP CONSTRAINT {step.name};"
        steps += [Step(drop), Step(definition)]
    return steps


def _lone(name: str, why: str, step: Step, back: Step) -> Piece:
    """Return the piece of one statement outside a transaction."""
    return Piece(
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
