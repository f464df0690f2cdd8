"""The changes of constraints: a new one is valid before the one it replaces goes.

A check or foreign key is added NOT VALID and validated in a later transaction. The
index of a unique constraint or primary key is built CONCURRENTLY. While the old one has
the name, that happens under a temporary one, and the last transaction exchanges them.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pyapp.devtools.generate.steps import (
    Change,
    Side,
    Step,
    alter_table,
    blocking,
    change_settings,
    comment_steps,
    concurrent,
    ignoring,
    not_valid,
    read_settings,
    temporary_name,
    uncomment_steps,
    validated,
)

Key = tuple[str, ...]

_NAMED = re.compile(r"CONSTRAINT \w+")
# Constraints that can be added first and validated later.
_RULE = re.compile(r"CONSTRAINT \w+\s+(CHECK|FOREIGN KEY)\b")
_REFERENCED = re.compile(r"REFERENCES app\.(?P<table>\w+)")
# Constraints that can take over an index; a dump writes them in this way.
_KEY = re.compile(
    r"CONSTRAINT \w+ (?P<kind>UNIQUE|PRIMARY KEY)(?P<nulls> NULLS NOT DISTINCT)?"
    r" (?P<columns>\([^()]+\))(?P<include> INCLUDE \([^()]+\))?"
    r"(?P<options> WITH \([^()]+\))?(?P<when>(?: DEFERRABLE| INITIALLY DEFERRED)*)"
)


@dataclass(frozen=True)
class ConstraintDrafter:
    """Drafts the changes of the constraints of the tables *kept*.

    With *is_online* False, changed constraints are dropped before all other changes of
    the tables and added after them, in one transaction that blocks readers.
    """

    old: Side
    new: Side
    kept: Collection[str]
    is_online: bool = True

    def draft_first(self) -> Iterator[Change]:
        """Yield what goes before the changes of the columns."""
        for (table, before), after in self._renamed.items():
            up = alter_table(table, f"RENAME CONSTRAINT {before} TO {after}")
            down = alter_table(table, f"RENAME CONSTRAINT {after} TO {before}")
            yield self._change((table, after), [Step(up)], [Step(down)])
        if not self.is_online:
            for key in self._gone:
                add = self._add(self.old, key)
                yield self._change(key, [self._drop(key)], add)

    def draft(self) -> Iterator[Change]:
        """Yield what follows the changes of the columns."""
        gone = self._gone if self.is_online else []
        added = self._added
        for key in gone:
            if key in added:
                yield from self._replace(key)
            else:
                yield self._finish(key, [self._drop(key)], self._add(self.old, key))
        for key in added:
            if key not in gone:
                yield from self._create(key)
        for key, definition in self.new.dumped.constraints.items():
            if self.old.dumped.constraints.get(key) == definition:
                yield from change_settings(
                    self._title(*key), key[0], self.old, self.new
                )

    @property
    def gaining_keys(self) -> set[str]:
        """The tables that get a unique constraint or primary key."""
        return {
            table
            for table, name in self._added
            if _KEY.match(self.new.dumped.constraints[table, name])
        }

    @property
    def _gone(self) -> list[Key]:
        """The constraints that are dropped or replaced: foreign keys before keys."""
        keys = reversed(self._changed(self.old, self.new))
        return [key for key in keys if key not in self._renamed]

    @property
    def _added(self) -> list[Key]:
        """The constraints that are new or replace one."""
        names = {(table, after) for (table, _), after in self._renamed.items()}
        return [key for key in self._changed(self.new, self.old) if key not in names]

    @property
    def _renamed(self) -> dict[Key, str]:
        """The new names of the constraints that have only another name."""
        old, new = self.old.dumped.constraints, self.new.dumped.constraints
        bodies = {
            (table, _NAMED.sub("", new[table, name], count=1)): name
            for table, name in self._changed(self.new, self.old)
            if (table, name) not in old
        }
        renamed: dict[Key, str] = {}
        for key in self._changed(self.old, self.new):
            after = bodies.get((key[0], _NAMED.sub("", old[key], count=1)))
            if key not in new and after and after not in renamed.values():
                renamed[key] = after
        return renamed

    def _changed(self, side: Side, other: Side) -> list[Key]:
        return [
            key
            for key in side.dumped.constraints
            if key[0] in self.kept
            and side.dumped.constraints[key] != other.dumped.constraints.get(key)
        ]

    def _create(self, key: Key) -> Iterator[Change]:
        if self._key(key) and self.is_online:
            yield from self._create_key(key)
        elif self._refers_to_new_key(key) and self.is_online:
            yield self._finish(key, self._add(self.new, key), [self._drop(key)])
        elif self._is_validated_later(key) and self.is_online:
            yield from self._create_rule(key, key[1])
        else:
            add = self._add(self.new, key)
            yield self._change(key, add, [self._drop(key)])

    def _replace(self, key: Key) -> Iterator[Change]:
        table, name = key
        old, new = (side.dumped.constraints[key] for side in (self.old, self.new))
        if self._key(key):
            yield from self._create_key(key)
        elif new == validated(old):
            yield self._validate(table, name, self._add(self.old, key))
        elif self._is_validated_later(key):
            temporary = temporary_name(name, self.old, self.new)
            yield from self._create_rule(key, temporary)
            there = alter_table(table, f"RENAME CONSTRAINT {temporary} TO {name}")
            back = Step(alter_table(table, f"RENAME CONSTRAINT {name} TO {temporary}"))
            comments = comment_steps(self.new, "TABCONSTRAINT", table, name)
            yield self._finish(
                key,
                [
                    self._drop(key, is_replaced=True),
                    Step(ignoring("renaming-object", "RENAME", there)),
                    *comments,
                ],
                [*uncomment_steps(comments), back, *self._add(self.old, key)],
            )
        else:
            yield self._finish(
                key,
                [self._drop(key, is_replaced=True), *self._add(self.new, key)],
                [self._drop(key), *self._add(self.old, key)],
            )

    def _create_rule(self, key: Key, name: str) -> Iterator[Change]:
        """Yield the changes that add and validate a check or foreign key as *name*."""
        table = key[0]
        source = self.new.sources.constraints[key]
        source = _NAMED.sub(f"CONSTRAINT {name}", source, count=1)
        add = [Step(not_valid(alter_table(table, f"ADD {validated(source)}")))]
        if name == key[1]:
            add += comment_steps(self.new, "TABCONSTRAINT", table, name)
        drop = Step(alter_table(table, f"DROP CONSTRAINT {name}"))
        yield self._change(key, add, [drop])
        yield self._validate(table, name, add)

    def _validate(self, table: str, name: str, add: list[Step]) -> Change:
        """Return the change that validates; *add* adds the constraint NOT VALID."""
        up = Step(alter_table(table, f"VALIDATE CONSTRAINT {name}"))
        drop = Step(alter_table(table, f"DROP CONSTRAINT {name}"))
        return Change(self._title(table, name), "validate", [up], [drop, *add], name)

    def _create_key(self, key: Key) -> Iterator[Change]:
        """Yield the changes that build the index of a key and make it the key."""
        table, name = key
        found = self._key(key)
        assert found is not None
        index = name
        if name in self.old.names:
            index = temporary_name(name, self.old, self.new)
        build = (
            f"CREATE UNIQUE INDEX {index} ON app.{table} {found['columns']}"
            f"{found['include'] or ''}{found['nulls'] or ''}{found['options'] or ''};"
        )
        undo = f"DROP INDEX CONCURRENTLY app.{index};"
        yield Change(
            self._title(*key),
            "build",
            [Step(concurrent(build))],
            [Step(undo)],
            index,
            "The last migration of this change makes it the index of the key.",
        )
        use = f"ADD CONSTRAINT {name} {found['kind']} USING INDEX {index}"
        up = [
            Step(alter_table(table, use + found["when"])),
            *self._extras(self.new, key),
        ]
        # A dropped key takes its index with it, which the migration before has built.
        # Created last, it is read last, so errors report the name of the key.
        note = f"Blocks writes to app.{table} while the index is built."
        built = Step(blocking(build), note=note)
        down = [self._drop(key), built]
        if key in self.old.dumped.constraints:
            up = [self._drop(key, is_replaced=True), *up]
            down = [self._drop(key), *self._add(self.old, key), built]
        yield self._finish(key, up, down)

    def _change(self, key: Key, up: list[Step], down: list[Step]) -> Change:
        return Change(self._title(*key), "change", up, down, table=key[0])

    def _finish(self, key: Key, up: list[Step], down: list[Step]) -> Change:
        table, name = key
        return Change(self._title(*key), "finish", up, down, name, table=table)

    def _drop(self, key: Key, *, is_replaced: bool = False) -> Step:
        text = alter_table(key[0], f"DROP CONSTRAINT {key[1]}")
        if is_replaced:
            text = ignoring("ban-drop-constraint", "DROP", text)
        return Step(text)

    def _add(self, side: Side, key: Key) -> list[Step]:
        """Return the steps that add the constraint at once."""
        table, definition = key[0], side.dumped.constraints[key]
        source = validated(side.sources.constraints[key])
        add = alter_table(table, f"ADD {source}")
        note = f"Blocks writes to app.{table} while its rows are checked."
        if definition != validated(definition):
            add, note = not_valid(add), ""
        elif not _RULE.match(definition):
            note = f"Blocks reads and writes of app.{table} while the index is built."
        return [Step(add, note=note), *self._extras(side, key)]

    def _extras(self, side: Side, key: Key) -> list[Step]:
        """Return the steps for the comment and the settings of a constraint."""
        table, name = key
        text = side.objects.get(f"CONSTRAINT app.{table} {name}", "")
        return [
            *comment_steps(side, "TABCONSTRAINT", table, name),
            *comment_steps(side, "INDEX", name),
            *read_settings(text),
        ]

    def _key(self, key: Key) -> re.Match[str] | None:
        """Return the parts of a key whose index can be built CONCURRENTLY."""
        if self.new.is_partitioned(key[0]):
            return None
        return _KEY.fullmatch(self.new.dumped.constraints[key])

    def _refers_to_new_key(self, key: Key) -> bool:
        """Tell whether a foreign key needs what the draft may build in later files."""
        found = _REFERENCED.search(self.new.dumped.constraints[key])
        return found is not None and (
            found["table"] in self.gaining_keys
            or any(
                title not in self.old.objects
                and text.startswith("CREATE UNIQUE INDEX")
                and f" ON app.{found['table']} " in text
                for title, text in self.new.objects.items()
            )
        )

    def _is_validated_later(self, key: Key) -> bool:
        """Tell whether a constraint can be added NOT VALID, and can change its name.

        A partition keeps the first name of its foreign key.
        """
        definition = self.new.dumped.constraints[key]
        found = _RULE.match(definition)
        if found is None or definition != validated(definition):
            return False
        return found[1] == "CHECK" or not self.new.is_partitioned(key[0])

    def _title(self, table: str, name: str) -> str:
        """Return the title in a dump, where a check is a part of its table."""
        for kind in ("CONSTRAINT", "FK CONSTRAINT", "CHECK CONSTRAINT"):
            title = f"{kind} app.{table} {name}"
            if title in self.new.objects or title in self.old.objects:
                return title
        return f"TABLE app.{table}"
