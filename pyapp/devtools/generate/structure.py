"""The steps for tables and all that belongs to them, in the order to run them.

The differences come from two dumps of pg_dump, the text of each statement from the SQL
files or the migrations if they define the object. Every draft is proved by
`generate.proof`, so a change that is not covered here is reported, never written.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyapp.devtools.checks.schema_diff import Difference, find_differences
from pyapp.devtools.generate.constraints import ConstraintDrafter
from pyapp.devtools.generate.indexes import IndexDrafter
from pyapp.devtools.generate.sources import parse
from pyapp.devtools.generate.steps import (
    Change,
    Side,
    Step,
    alter_table,
    blocking,
    comment_steps,
    drop,
    remove_comment,
    uncomment_steps,
)

# Objects whose statements in a dump create them, and that DROP removes by name.
_SIMPLE = ("AGGREGATE", "DOMAIN", "SEQUENCE", "STATISTICS", "TYPE")
_PLAN = re.compile(r"VALUES \((?P<id>'.*'), (?P<credits>[^,]+)\);$")
_GENERATED = re.compile(r"GENERATED ALWAYS AS (\(.+\)) STORED", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column as a dump defines it."""

    type: str
    default: str | None
    generated: str | None
    is_required: bool


@dataclass(frozen=True, slots=True)
class StructureDrafter:
    """Drafts the changes from the tables of *old* to those of *new*.

    Without *is_online*, constraints are added at once, under a lock that blocks the
    table. `can_set_expression` tells whether the server changes generated columns in
    place.
    """

    old: Side
    new: Side
    is_online: bool = True
    can_set_expression: bool = True

    def draft(self) -> list[Change]:
        """Return the changes of all objects except functions and views, in order.

        What only the old schema has goes in the last phase, "finish".
        """
        kept = self._kept_tables()
        constraints = ConstraintDrafter(self.old, self.new, kept, self.is_online)
        indexes = IndexDrafter(self.old, self.new, kept, constraints.gaining_keys)
        changes = [
            *constraints.draft_first(),
            *self._free_triggers(),
            *self._create_others(),
            *self._create_tables(),
        ]
        for table in kept:
            changes += self._alter_columns(table)
        changes += indexes.draft_drops()
        changes += constraints.draft()
        changes += indexes.draft()
        changes += self._create_triggers()
        changes += self._drop_triggers()
        for table in kept:
            changes += self._drop_columns(table)
        changes += self._drop_tables()
        changes += self._drop_others()
        differences = find_differences(self.old.objects, self.new.objects)
        changes += _change_rows(differences)
        changes += self._change_comments(changes)
        if self.is_online:
            return changes
        return [replace(change, table="") for change in changes]

    def _kept_tables(self) -> list[str]:
        """Return the tables on both sides that change for themselves."""
        return [
            table
            for table in self.new.tables
            if table in self.old.tables
            and f"TABLE ATTACH app.{table}" not in self.new.objects
        ]

    def _free_triggers(self) -> Iterator[Change]:
        """Drop the triggers to be replaced: the type of their columns may change."""
        for title in self.old.objects:
            if self._is_changed_trigger(title) and title in self.new.objects:
                drop, create = _drop_trigger(title), _create_trigger(self.old, title)
                table = _trigger(title)[0]
                yield Change(title, "change", [drop], create, table=table)

    def _create_triggers(self) -> Iterator[Change]:
        kept = self._kept_tables()
        for title in self.new.objects:
            if self._is_changed_trigger(title):
                is_kept = _trigger(title)[0] in kept
                drop = [_drop_trigger(title)] if is_kept else []
                table = _trigger(title)[0] if is_kept else ""
                create = _create_trigger(self.new, title)
                yield Change(title, "change", create, drop, table=table)

    def _drop_triggers(self) -> Iterator[Change]:
        """Drop the triggers that only the old schema has."""
        kept = self._kept_tables()
        for title in reversed(self.old.objects):
            if self._is_changed_trigger(title) and title not in self.new.objects:
                is_kept = _trigger(title)[0] in kept
                drop = [_drop_trigger(title)] if is_kept else []
                create = _create_trigger(self.old, title)
                table, name = _trigger(title)
                yield Change(title, "finish", drop, create, name, table=table)

    def _is_changed_trigger(self, title: str) -> bool:
        return title.startswith("TRIGGER app.") and (
            self.old.objects.get(title) != self.new.objects.get(title)
        )

    def _create_tables(self) -> Iterator[Change]:
        """Create new tables in the order of the files, with all about them."""
        for table in self.new.sources.tables:
            if table in self.new.tables and table not in self.old.tables:
                drop = Step(f"DROP TABLE app.{table};", loses=f"app.{table}")
                create = _create_table(self.new, table)
                yield Change(f"TABLE app.{table}", "change", create, [drop])

    def _drop_tables(self) -> Iterator[Change]:
        """Drop tables before those that they refer to."""
        for table in reversed(self.old.sources.tables):
            if table in self.old.tables and table not in self.new.tables:
                drop = Step(f"DROP TABLE app.{table};", loses=f"app.{table}")
                create = _create_table(self.old, table)
                title = f"TABLE app.{table}"
                yield Change(title, "finish", [drop], create, table, table=table)

    def _alter_columns(self, table: str) -> Iterator[Change]:
        """Yield the changes of the columns that the new table has."""
        old = _read_columns(self.old.tables[table])
        new = _read_columns(self.new.tables[table])
        title = f"TABLE app.{table}"
        for name, column in old.items():
            if name not in new:
                continue
            if self._is_remade(column, new[name]) or self._is_remade(new[name], column):
                up = _add_column(self.new, table, name, new[name])
                down = _add_column(self.old, table, name, column)
                drop = _drop_column(table, name)
                yield Change(title, "change", [drop, *up], [drop, *down], table=table)
            else:
                up = list(_alter_column(self.new, table, name, column, new[name]))
                down = list(_alter_column(self.old, table, name, new[name], column))
                if up or down:
                    yield Change(title, "change", up, down, table=table)
        for name, column in new.items():
            if name not in old:
                add = _add_column(self.new, table, name, column)
                drop = _drop_column(table, name)
                yield Change(title, "change", add, [drop], table=table)

    def _is_remade(self, old: _Column, new: _Column) -> bool:
        """Tell whether a generated column is dropped and added."""
        if old.generated == new.generated:
            return False
        if old.generated and new.generated:
            return not self.can_set_expression
        return new.generated is not None

    def _drop_columns(self, table: str) -> Iterator[Change]:
        new = _read_columns(self.new.tables[table])
        for name, column in _read_columns(self.old.tables[table]).items():
            if name not in new:
                drop = _drop_column(table, name)
                add = _add_column(self.old, table, name, column)
                title = f"TABLE app.{table}"
                yield Change(title, "finish", [drop], add, table, table=table)

    def _create_others(self) -> Iterator[Change]:
        for title in self.new.objects:
            if title not in self.old.objects and _is_simple(title, self.new):
                create = _create_other(self.new, title)
                yield Change(title, "change", create, [Step(drop(title))])

    def _drop_others(self) -> Iterator[Change]:
        for title in reversed(self.old.objects):
            if title not in self.new.objects and _is_simple(title, self.old):
                create = _create_other(self.old, title)
                name = title.split(".")[-1]
                yield Change(title, "finish", [Step(drop(title))], create, name)

    def _change_comments(self, changes: Sequence[Change]) -> Iterator[Change]:
        """Yield the changes of the comments that none of *changes* sets or loses."""
        steps = [step for change in changes for step in (*change.up, *change.down)]
        known = {remove_comment(s.sql) for s in steps if "COMMENT ON" in s.sql}
        old, new = self.old.dumped.objects, self.new.dumped.objects
        for key in {**old, **new}:
            if key[0] != "COMMENT" or _is_routine_comment(key, self.old, self.new):
                continue
            before, after = (
                comment_steps(side, *key[1:]) for side in (self.old, self.new)
            )
            if old.get(key) == new.get(key) or known.intersection(
                remove_comment(step.sql) for step in (*before, *after)
            ):
                continue
            yield Change(
                f"COMMENT app.{' '.join(key[1:3])}",
                "change",
                after or uncomment_steps(before),
                before or uncomment_steps(after),
            )


def _trigger(title: str) -> list[str]:
    """Return the table and the name of a trigger."""
    return title.removeprefix("TRIGGER app.").split()


def _create_trigger(side: Side, title: str) -> list[Step]:
    key = ("TRIGGER", *_trigger(title))
    return [Step(side.sources.objects[key].render()), *comment_steps(side, *key)]


def _drop_trigger(title: str) -> Step:
    table, name = _trigger(title)
    return Step(f"DROP TRIGGER {name} ON app.{table};")


def _create_table(side: Side, table: str) -> list[Step]:
    return [
        Step(blocking(statement.render())) for statement in side.sources.tables[table]
    ]


def _drop_column(table: str, name: str) -> Step:
    loses = f"app.{table}.{name}"
    return Step(alter_table(table, f"DROP COLUMN {name}"), loses=loses)


def _add_column(side: Side, table: str, name: str, column: _Column) -> list[Step]:
    source = side.sources.columns[table, name]
    note = ""
    if column.generated and _is_stored(side, table, name):
        note = f"Rewrites app.{table} under an ACCESS EXCLUSIVE lock."
    elif column.is_required and column.default is None:
        note = f"Fails if app.{table} has rows."
    return [
        Step(alter_table(table, f"ADD COLUMN {source}"), note=note),
        *comment_steps(side, "COLUMN", table, name),
    ]


def _is_stored(side: Side, table: str, name: str) -> bool:
    return side.dumped.columns[table, name].endswith("STORED")


def _alter_column(
    side: Side, table: str, name: str, old: _Column, new: _Column
) -> Iterator[Step]:
    """Yield the steps that make the column *new*, as *side* has it."""
    actions = []
    if old.generated and new.generated is None:
        actions.append(("DROP EXPRESSION", ""))
    if old.type != new.type:
        note = f"May rewrite app.{table} under an ACCESS EXCLUSIVE lock."
        actions.append((f"SET DATA TYPE {new.type}", note))
    if old.generated != new.generated and new.generated is not None:
        found = _GENERATED.search(side.sources.columns[table, name])
        expression = found[1] if found else f"({new.generated})"
        note = "PostgreSQL 17."
        if _is_stored(side, table, name):
            note = f"Rewrites app.{table} under an ACCESS EXCLUSIVE lock; {note}"
        actions.append((f"SET EXPRESSION AS {expression}", note))
    if old.default != new.default:
        default = f"SET DEFAULT {new.default}" if new.default else "DROP DEFAULT"
        actions.append((default, ""))
    if not old.is_required and new.is_required:
        note = f"Reads all of app.{table} under an ACCESS EXCLUSIVE lock."
        actions.append(("SET NOT NULL", note))
    if old.is_required and not new.is_required:
        actions.append(("DROP NOT NULL", ""))
    for action, note in actions:
        yield Step(alter_table(table, f"ALTER COLUMN {name} {action}"), note=note)


def _is_simple(title: str, side: Side) -> bool:
    """Tell whether the object stands alone: an identity's sequence does not."""
    is_owned = side.objects[title].startswith("ALTER TABLE")
    return title.startswith(_SIMPLE) and not is_owned


def _create_other(side: Side, title: str) -> list[Step]:
    kind, name = title.split(" app.")
    return [Step(side.objects[title]), *comment_steps(side, kind, name)]


def _is_routine_comment(key: tuple[str, ...], *sides: Side) -> bool:
    """Tell whether the comment belongs to the migration of functions and views."""
    return key[1] in ("FUNCTION", "PROCEDURE", "VIEW") or (
        key[1] == "COLUMN"
        and any(f"VIEW app.{key[2]}" in side.objects for side in sides)
    )


def _change_rows(differences: Sequence[Difference]) -> Iterator[Change]:
    """Yield the changes of the rows of plans."""
    for difference in differences:
        row = _PLAN.search(difference.right or difference.left or "")
        if not difference.title.startswith("ROW ") or row is None:
            continue
        up = _change_row(row["id"], difference.left, difference.right)
        down = _change_row(row["id"], difference.right, difference.left)
        yield Change(difference.title, "change", [up], [down], table="plans")


def _change_row(plan: str, before: str | None, after: str | None) -> Step:
    if after is None:
        sql = f"DELETE FROM app.plans\nWHERE id = {plan};"
        return Step(sql, loses=f"the plan {plan}")
    row = _PLAN.search(after)
    if before is None or row is None:
        return Step(after)
    credits = f"SET monthly_credits = {row['credits']}\nWHERE id = {plan};"
    return Step(f"UPDATE app.plans {credits}")


def _read_columns(create_table: str) -> dict[str, _Column]:
    """Return the columns that the CREATE TABLE of a dump defines, by name."""
    from pglast.stream import RawStream

    columns = {}
    for part in parse(create_table, "the dump")[0].stmt.tableElts or ():
        if type(part).__name__ == "Constraint":
            continue
        found: dict[str, Any] = {c.contype.name: c for c in part.constraints or ()}
        default, generated = found.get("CONSTR_DEFAULT"), found.get("CONSTR_GENERATED")
        columns[part.colname] = _Column(
            type=RawStream()(part.typeName),
            default=RawStream()(default.raw_expr) if default else None,
            generated=RawStream()(generated.raw_expr) if generated else None,
            is_required="CONSTR_NOTNULL" in found,
        )
    return columns


def rename_hint(before: Side, after: Side) -> str:
    """Return advice if a column has another name in the same place."""
    for table in before.tables:
        if table not in after.tables:
            continue
        old, new = (list(_read_columns(side.tables[table])) for side in (before, after))
        if len(old) != len(new):
            continue
        for was, now in zip(old, new, strict=True):
            if was != now and was not in new and now not in old:
                return f"if it is a new name, --rename {table}.{was}={now}"
    return ""


def order_hint(before: Side, after: Side) -> str:
    """Return advice if a column would have to be added before another one."""
    for table in before.tables:
        if table in after.tables:
            old, new = (_read_columns(side.tables[table]) for side in (before, after))
            kept = [name for name in old if name in new]
            added = [name for name in new if name not in old]
            if list(new) != [*kept, *added]:
                return f"PostgreSQL adds columns last: in app.{table}, after {kept[-1]}"
    return ""


def kind_hint(before: Side, after: Side) -> str:
    """Return advice if a table becomes a view of the same name, or a view a table."""
    for kind, other in (("TABLE", "VIEW"), ("VIEW", "TABLE")):
        for title in before.objects:
            name = title.removeprefix(f"{kind} ")
            if name == title or f"{other} {name}" not in after.objects:
                continue
            if kind == "VIEW":
                return f"{name} becomes a table: move what depends on the view first"
            return (
                f"{name} becomes a view: store its rows elsewhere, rename the table,"
                " create the view, move what depends on the table, and drop the table"
            )
    return ""
