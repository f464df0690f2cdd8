"""The steps for tables and all that belongs to them, in the order to run them.

The differences come from two dumps of pg_dump, the text of each statement from the SQL
files or the migrations if they define the object. Every draft is proved by
`generate.command`, so a change that is not covered here is reported, never written.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyapp.devtools.checks.schema_diff import Difference, compare
from pyapp.devtools.generate.routines import commented_routine
from pyapp.devtools.generate.sources import parse
from pyapp.devtools.generate.steps import (
    Side,
    Step,
    alter_table,
    comment_steps,
    concurrent,
    drop,
    drop_constraint,
    not_valid,
    validated,
)

# Objects whose statements in a dump create them, and that DROP removes by name.
_SIMPLE = ("AGGREGATE", "DOMAIN", "SEQUENCE", "STATISTICS", "TYPE")
_PLAN = re.compile(r"VALUES \((?P<id>'.*'), (?P<credits>[^,]+)\);$")
# Constraints that can be added first and validated later.
_VALIDATED = re.compile(r"CONSTRAINT \w+\s+(CHECK|FOREIGN KEY)\b")
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
    """Drafts the steps from the tables of *old* to those of *new*.

    `is_online` is False for a rollback, whose constraints are validated at once.
    `can_set_expression` tells whether the server changes generated columns in place.
    """

    old: Side
    new: Side
    is_online: bool = True
    can_set_expression: bool = True

    def draft(self) -> list[Step]:
        """Return the steps for all objects except functions and views."""
        steps = [
            *self._drop_triggers_and_constraints(),
            *self._drop_indexes(),
            *self._drop_tables(),
            *self._create_others(),
            *self._create_tables(),
        ]
        for table in self._kept_tables():
            steps += self._alter_columns(table)
        steps += self._add_constraints()
        steps += self._create_indexes_and_triggers()
        steps += self._drop_others()
        differences = compare("", self.old.objects, "", self.new.objects).differences
        steps += _change_rows(differences)
        known = {step.sql for step in steps}
        kept = (d for d in differences if d.right is not None)
        return steps + [
            step
            for step in comment_steps(kept, self.new.sources)
            if step.sql not in known
            and not commented_routine(step.name, self.new.objects)
        ]

    def _kept_tables(self) -> list[str]:
        """Return the tables on both sides that change for themselves."""
        return [
            table
            for table in self.new.tables
            if table in self.old.tables
            and f"TABLE ATTACH app.{table}" not in self.new.objects
        ]

    def _drop_triggers_and_constraints(self) -> Iterator[Step]:
        kept = self._kept_tables()
        for title, text in reversed(self.old.objects.items()):
            found = re.match(r"TRIGGER app\.(\w+) (\w+)$", title)
            if found and found[1] in kept and self.new.objects.get(title) != text:
                yield Step(f"DROP TRIGGER {found[2]} ON app.{found[1]};")
        wanted = self.new.dumped.constraints
        for (table, name), definition in reversed(self.old.dumped.constraints.items()):
            if table not in kept or wanted.get((table, name)) == definition:
                continue
            if self.is_online and (table, name) in wanted:
                yield Step(f"-- Replaced below.\n{drop_constraint(table, name)}")
            else:
                yield Step(alter_table(table, f"DROP CONSTRAINT {name}"))

    def _drop_indexes(self) -> Iterator[Step]:
        for title, text in self.old.objects.items():
            if (
                not title.startswith("INDEX app.")
                or self.new.objects.get(title) == text
            ):
                continue
            table, name = _index_table(text), title.removeprefix("INDEX app.")
            if table not in self._kept_tables():
                continue
            if self._is_partitioned(table):
                yield Step(f"DROP INDEX app.{name};")
            else:
                sql = f"DROP INDEX CONCURRENTLY app.{name};"
                yield Step(sql, "drop index", name)

    def _drop_tables(self) -> Iterator[Step]:
        """Drop tables before those that they refer to."""
        for table in reversed(self.old.sources.tables):
            if table in self.old.tables and table not in self.new.tables:
                yield Step(f"DROP TABLE app.{table};", loses=f"app.{table}")

    def _create_tables(self) -> Iterator[Step]:
        """Create new tables in the order of the files, with all about them."""
        for table, statements in self.new.sources.tables.items():
            if table in self.new.tables and table not in self.old.tables:
                for statement in statements:
                    text = statement.render()
                    yield Step(text.replace("INDEX CONCURRENTLY", "INDEX"))

    def _alter_columns(self, table: str) -> Iterator[Step]:
        old = _read_columns(self.old.tables[table])
        new = _read_columns(self.new.tables[table])
        for name, column in old.items():
            if name not in new:
                yield self._drop_column(table, name)
            elif self._is_remade(column, new[name]):
                yield self._drop_column(table, name)
                yield self._add_column(table, name, new[name])
            else:
                yield from self._alter_column(table, name, column, new[name])
        for name, column in new.items():
            if name not in old:
                yield self._add_column(table, name, column)

    def _is_remade(self, old: _Column, new: _Column) -> bool:
        if old.generated == new.generated:
            return False
        if old.generated and new.generated:
            return not self.can_set_expression
        return new.generated is not None

    def _drop_column(self, table: str, name: str) -> Step:
        loses = f"app.{table}.{name}"
        return Step(alter_table(table, f"DROP COLUMN {name}"), loses=loses)

    def _add_column(self, table: str, name: str, column: _Column) -> Step:
        source = self.new.sources.columns[table, name]
        note = ""
        if column.generated:
            note = f"Rewrites app.{table} under an ACCESS EXCLUSIVE lock."
        elif column.is_required and column.default is None:
            note = f"Fails if app.{table} has rows."
        return Step(alter_table(table, f"ADD COLUMN {source}"), note=note)

    def _alter_column(
        self, table: str, name: str, old: _Column, new: _Column
    ) -> Iterator[Step]:
        actions = []
        if old.generated and new.generated is None:
            actions.append(("DROP EXPRESSION", ""))
        if old.type != new.type:
            note = f"May rewrite app.{table} under an ACCESS EXCLUSIVE lock."
            actions.append((f"SET DATA TYPE {new.type}", note))
        if old.generated != new.generated and new.generated is not None:
            found = _GENERATED.search(self.new.sources.columns[table, name])
            expression = found[1] if found else f"({new.generated})"
            note = (
                f"Rewrites app.{table} under an ACCESS EXCLUSIVE lock; PostgreSQL 17."
            )
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

    def _add_constraints(self) -> Iterator[Step]:
        kept = self._kept_tables()
        for key, definition in self.new.dumped.constraints.items():
            if key[0] in kept and self.old.dumped.constraints.get(key) != definition:
                yield from self._add_constraint(*key)

    def _add_constraint(self, table: str, name: str) -> Iterator[Step]:
        source = validated(self.new.sources.constraints[table, name])
        text = alter_table(table, f"ADD {source}")
        if not self.is_online or not _VALIDATED.match(source):
            yield Step(text)
            return
        # Validated in a later transaction, under a lock that allows writes.
        yield Step(not_valid(text))
        validate = alter_table(table, f"VALIDATE CONSTRAINT {name}")
        yield Step(validate, "validate", name)

    def _create_indexes_and_triggers(self) -> Iterator[Step]:
        kept = self._kept_tables()
        for title, text in self.new.objects.items():
            if self.old.objects.get(title) == text:
                continue
            if title.startswith("INDEX app."):
                table, name = _index_table(text), title.removeprefix("INDEX app.")
                sql = self.new.sources.objects["INDEX", name].render()
                if table in kept and self._is_partitioned(table):
                    note = f"Blocks writes to app.{table} while the index is built."
                    yield Step(sql.replace(" ON ONLY ", " ON "), note=note)
                elif table in kept:
                    yield Step(concurrent(sql), "build index", name)
            elif title.startswith("TRIGGER app."):
                key = ("TRIGGER", *title.removeprefix("TRIGGER app.").split())
                yield Step(self.new.sources.objects[key].render())

    def _create_others(self) -> Iterator[Step]:
        for title, text in self.new.objects.items():
            if title not in self.old.objects and self._is_simple(title, self.new):
                yield Step(text)

    def _drop_others(self) -> Iterator[Step]:
        for title in reversed(self.old.objects):
            if title not in self.new.objects and self._is_simple(title, self.old):
                yield Step(drop(title))

    def _is_simple(self, title: str, side: Side) -> bool:
        """Tell whether the object stands alone: an identity's sequence does not."""
        is_owned = side.objects[title].startswith("ALTER TABLE")
        return title.startswith(_SIMPLE) and not is_owned

    def _is_partitioned(self, table: str) -> bool:
        return "PARTITION BY" in self.new.tables.get(table, "")


def _change_rows(differences: Sequence[Difference]) -> list[Step]:
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


def _index_table(create_index: str) -> str:
    found = re.search(r" ON (?:ONLY )?app\.(\w+)", create_index)
    return found[1] if found else ""


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
                return f"if it is a new name, --rename {table}.{was}={now}; else "
    return ""
