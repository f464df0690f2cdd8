"""The changes of indexes: a new index is valid before the one it replaces goes.

It is built CONCURRENTLY, under a temporary name while the old one has the name.
"""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from pyapp.devtools.generate.steps import (
    Change,
    Side,
    Step,
    blocking,
    change_settings,
    comment_steps,
    concurrent,
    ignoring,
    is_wide,
    read_settings,
    temporary_name,
    uncomment_steps,
    unset,
)

_INDEX = re.compile(
    r"CREATE (?P<unique>UNIQUE )?INDEX (?P<name>\w+)"
    r"(?P<rest> ON (?:ONLY )?app\.(?P<table>\w+) .*?;)",
    re.DOTALL,
)


class _Index(NamedTuple):
    """An index as a dump has it; `body` is its definition without its name."""

    name: str
    table: str
    body: str
    is_unique: bool
    settings: list[Step]


@dataclass(frozen=True, slots=True)
class IndexDrafter:
    """Drafts the changes of the indexes of the tables *kept*.

    Those of the tables *gaining_keys* are dropped in the transaction that adds keys, so
    that the rollback leaves no moment without either.
    """

    old: Side
    new: Side
    kept: Collection[str]
    gaining_keys: Collection[str] = ()

    def draft_drops(self) -> Iterator[Change]:
        """Yield the drops of the indexes that only the old schema has.

        They precede the changes of constraints: a key may take the name.
        """
        after, renamed = self._read(self.new), self._renamed
        for name, index in self._read(self.old).items():
            if name not in after and name not in renamed:
                yield self._drop(index)

    def draft(self) -> Iterator[Change]:
        """Yield the other changes; an index may take the name of a dropped key."""
        before, after = self._read(self.old), self._read(self.new)
        renamed = {new: old for old, new in self._renamed.items()}
        for name, index in after.items():
            if name in before:
                yield from self._alter(before[name], index)
            elif name in renamed:
                yield _rename(before[renamed[name]], index)
            else:
                yield from self._create(index)

    @property
    def _renamed(self) -> dict[str, str]:
        """The new names of the indexes that have only another name."""
        before, after = self._read(self.old), self._read(self.new)
        bodies = {i.body: name for name, i in after.items() if name not in before}
        renamed: dict[str, str] = {}
        for name, index in before.items():
            new = bodies.get(index.body)
            if name not in after and new and new not in renamed.values():
                renamed[name] = new
        return renamed

    def _read(self, side: Side) -> dict[str, _Index]:
        indexes = {}
        for title, text in side.objects.items():
            found = _INDEX.match(text) if title.startswith("INDEX app.") else None
            if found and found["table"] in self.kept:
                name, is_unique = found["name"], bool(found["unique"])
                body = f"{found['unique']}{found['rest']}"
                settings = read_settings(text)
                indexes[name] = _Index(name, found["table"], body, is_unique, settings)
        return indexes

    def _create(self, index: _Index) -> Iterator[Change]:
        source = self.new.sources.objects["INDEX", index.name].render()
        if self.new.is_partitioned(index.table):
            create, drop = self._in_transaction(self.new, index), _drop(index)
            yield Change(_title(index), "change", create, [drop], table=index.table)
            return
        name = index.name
        if name in self.old.names:  # of a constraint
            name = temporary_name(name, self.old, self.new)
        yield _build(index, source, name)
        extras = comment_steps(self.new, "INDEX", index.name)
        undone = uncomment_steps(extras) + unset(index.settings)
        renames = [_take_name(name, index.name)] if name != index.name else []
        back = [_rename_step(index.name, name)] if renames else []
        up = renames + extras + index.settings
        if up:
            yield _finish(index, up, undone + back)

    def _drop(self, index: _Index) -> Change:
        """Return the change that drops the index, CONCURRENTLY if its rollback may be.

        Its comment and settings can only be restored in a transaction.
        """
        if (
            self.old.is_partitioned(index.table)
            or self._has_extras(self.old, index)
            or (index.is_unique and index.table in self.gaining_keys)
        ):
            create = self._in_transaction(self.old, index)
            return _finish(index, [_drop(index)], create)
        return self._drop_concurrently(index)

    def _drop_concurrently(self, index: _Index) -> Change:
        source = self.old.sources.objects["INDEX", index.name].render()
        return Change(
            _title(index),
            "drop",
            [Step(f"DROP INDEX CONCURRENTLY app.{index.name};")],
            [Step(concurrent(source))],
            index.name,
        )

    def _alter(self, old: _Index, new: _Index) -> Iterator[Change]:
        if old.body == new.body:
            yield from change_settings(_title(new), new.table, self.old, self.new)
            return
        if self.new.is_partitioned(new.table):
            up = [_drop(old), *self._in_transaction(self.new, new)]
            down = [_drop(new), *self._in_transaction(self.old, old)]
            yield _finish(new, up, down)
            return
        temporary = temporary_name(new.name, self.old, self.new)
        source = self.new.sources.objects["INDEX", new.name].render()
        yield _build(new, source, temporary)
        extras = comment_steps(self.new, "INDEX", new.name)
        up = [_take_name(temporary, new.name), *extras, *new.settings]
        down = [
            *uncomment_steps(extras),
            *unset(new.settings),
            _rename_step(new.name, temporary),
        ]
        if old.is_unique or new.is_unique or self._has_extras(self.old, old):
            # In one transaction, errors report a violation of the rule by one name, and
            # ON CONFLICT never meets an index that is being dropped.
            drop = ignoring("require-concurrent-index-deletion", "DROP", _drop(old).sql)
            up = [Step(drop), *up]
            down = [*down, *self._in_transaction(self.old, old)]
        else:
            yield self._drop_concurrently(old)
        yield _finish(new, up, down)

    def _in_transaction(self, side: Side, index: _Index) -> list[Step]:
        """Return the steps that build the index while writers wait."""
        source = blocking(side.sources.objects["INDEX", index.name].render())
        note = f"Blocks writes to app.{index.table} while the index is built."
        return [
            Step(source.replace(" ON ONLY ", " ON "), note=note),
            *comment_steps(side, "INDEX", index.name),
            *index.settings,
        ]

    def _has_extras(self, side: Side, index: _Index) -> bool:
        return bool(index.settings or comment_steps(side, "INDEX", index.name))


def _title(index: _Index) -> str:
    return f"INDEX app.{index.name}"


def _build(index: _Index, source: str, name: str) -> Change:
    comment = ""
    if name != index.name:
        comment = f"{index.name} stays until this index is valid and takes its name."
    build = Step(concurrent(source, name))
    undo = Step(f"DROP INDEX CONCURRENTLY app.{name};")
    return Change(_title(index), "build", [build], [undo], name, comment)


def _finish(index: _Index, up: list[Step], down: list[Step]) -> Change:
    title, table = _title(index), index.table
    return Change(title, "finish", up, down, index.name, table=table)


def _drop(index: _Index) -> Step:
    return Step(f"DROP INDEX app.{index.name};")


def _rename(old: _Index, new: _Index) -> Change:
    up, down = _rename_step(old.name, new.name), _rename_step(new.name, old.name)
    return Change(_title(new), "change", [up], [down], table=new.table)


def _take_name(old: str, new: str) -> Step:
    return Step(ignoring("renaming-object", "RENAME", _rename_step(old, new).sql))


def _rename_step(old: str, new: str) -> Step:
    text = f"ALTER INDEX app.{old} RENAME TO {new};"
    return Step(text.replace(" RENAME", "\nRENAME") if is_wide(text) else text)
