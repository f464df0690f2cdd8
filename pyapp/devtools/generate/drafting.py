"""From the statements that `results` drafts to the steps that our migrations are of.

`results` says what to do and in which order; the text is taken from schema.sql or the
migrations wherever they hold the object. What it says about comments is left out: it
misses those on indexes and constraints, so `generate.command` compares them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.generate.sql_source import Sources
from pyapp.devtools.generate.sql_text import alter_table, concurrent, not_valid, tidy

Kind = Literal["change", "comment", "drop index", "build index", "validate"]

_TABLE = r'"?app"?\."?(?P<table>\w+)"?'
_GENERATED = re.compile(r"GENERATED ALWAYS AS (\(.+\)) STORED", re.DOTALL)
_SIGNATURE = re.compile(r"CREATE FUNCTION (.*?)\n? *LANGUAGE ", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Step:
    """One statement of a migration, with what a reviewer has to know about it."""

    sql: str
    kind: Kind = "change"
    name: str = ""
    loses: str = ""
    note: str = ""


@dataclass(slots=True)
class Drafter:
    """Turns one draft into steps: from the objects *before* to those *after*.

    *former* are the texts of those before, *sources* those after.
    `is_online` is False for a rollback: its constraints are checked at once.
    """

    before: Objects
    after: Objects
    former: Sources
    sources: Sources
    is_online: bool = True
    _told: set[str] = field(default_factory=set)

    def read(self, statements: list[str]) -> list[Step]:
        """Return the steps of a draft, in its order."""
        return [step for text in statements for step in self._step(text.strip())]

    def _step(self, text: str) -> list[Step]:
        if text.startswith(("set ", "COMMENT ")):
            return []
        for pattern, make in _MAKERS:
            if found := re.match(pattern, text, re.DOTALL):
                table = found.groupdict().get("table") or ""
                if self._is_folded(table, text):
                    return []
                return make(self, found)
        return [Step(tidy(text))]

    def _is_folded(self, table: str, text: str) -> bool:
        """Say whether another step does this: a partition's parent, a table's drop."""
        if not table:
            return False
        if f"TABLE ATTACH app.{table}" in self.after:
            return True
        if text.startswith(("create table", "drop table", "CREATE TRIGGER")):
            return False
        return self._is_new(table) or f"TABLE app.{table}" not in self.after

    def _is_new(self, table: str) -> bool:
        title = f"TABLE app.{table}"
        return title in self.after and title not in self.before

    def _create_tables(self, found: re.Match[str]) -> list[Step]:
        """Take all new tables at once: schema.sql has them in an order that works."""
        if found["table"] not in self.sources.tables:
            return [Step(tidy(found.string))]
        if "tables" in self._told:
            return []
        self._told.add("tables")
        return [
            Step(source.render().replace("INDEX CONCURRENTLY", "INDEX"))
            for table in self.sources.tables
            if self._is_new(table)
            for source in self.sources.tables[table]
        ]

    def _drop_tables(self, found: re.Match[str]) -> list[Step]:
        """Drop all that go at once, each before those that it refers to."""
        if "drops" in self._told:
            return []
        self._told.add("drops")
        gone = [
            title.removeprefix("TABLE app.")
            for title in self.before
            if title.startswith("TABLE app.") and title not in self.after
        ]
        order = {table: n for n, table in enumerate(self.former.tables)}
        gone.sort(key=lambda table: order.get(table, 0), reverse=True)
        return [Step(f"DROP TABLE app.{t};", loses=f"app.{t}") for t in gone]

    def _add_column(self, found: re.Match[str]) -> list[Step]:
        table, column = found["table"], found["name"]
        source = self.sources.columns.get((table, column))
        if source is None:
            return [Step(tidy(found.string))]
        note = ""
        if "GENERATED ALWAYS AS (" in source:
            note = f"Rewrites app.{table}, which nobody can use meanwhile."
        elif "NOT NULL" in source and "DEFAULT" not in source:
            note = f"Fails where app.{table} has rows."
        return [Step(alter_table(table, f"ADD COLUMN {source}"), note=note)]

    def _drop_column(self, found: re.Match[str]) -> list[Step]:
        return [Step(tidy(found.string), loses=f"app.{found['table']}.{found['name']}")]

    def _set_expression(self, found: re.Match[str]) -> list[Step]:
        table, column = found["table"], found["name"]
        source = self.sources.columns.get((table, column), "")
        note = f"Rewrites app.{table}, which nobody can use meanwhile; PostgreSQL 17."
        if expression := _GENERATED.search(source):
            action = f"ALTER COLUMN {column} SET EXPRESSION AS {expression[1]}"
            return [Step(alter_table(table, action), note=note)]
        return [Step(tidy(found.string), note=note)]

    def _set_not_null(self, found: re.Match[str]) -> list[Step]:
        note = f"Reads all of app.{found['table']}, which nobody can use meanwhile."
        return [Step(tidy(found.string), note=note)]

    def _set_type(self, found: re.Match[str]) -> list[Step]:
        note = f"May rewrite app.{found['table']}, which nobody can use meanwhile."
        return [Step(tidy(found.string), note=note)]

    def _add_constraint(self, found: re.Match[str]) -> list[Step]:
        table, name = found["table"], found["name"]
        source = self.sources.constraints.get((table, name))
        is_late = self.is_online and found.string.lower().endswith("not valid;")
        if source is None:
            text = re.sub(r" NOT VALID;$", ";", tidy(found.string))
        else:
            text = alter_table(table, f"ADD {source}")
        if not is_late:
            return [Step(text)]
        # Checked in a later transaction, under a lock that lets others read and write.
        return [
            Step(not_valid(text)),
            Step(alter_table(table, f"VALIDATE CONSTRAINT {name}"), "validate", name),
        ]

    def _drop_constraint(self, found: re.Match[str]) -> list[Step]:
        text = tidy(found.string)
        stays = f"CONSTRAINT {found['name']} "
        if self.is_online and stays in self.after[f"TABLE app.{found['table']}"]:
            text = f"-- Replaced below.\n-- squawk-ignore ban-drop-constraint\n{text}"
        return [Step(text)]

    def _create_index(self, found: re.Match[str]) -> list[Step]:
        table, name = found["table"], found["name"]
        if f"CONSTRAINT app.{table} {name}" in self.after:
            return []  # its constraint makes it
        source = self.sources.objects.get(("index", name))
        text = source.render() if source else f"{found.string.removesuffix(';')};"
        if "PARTITION BY" in self.after.get(f"TABLE app.{table}", ""):
            note = f"Locks app.{table} against writes while the index is built."
            text = text.replace(" ON ONLY ", " ON ")
            return [Step(text, note=note)]
        return [Step(concurrent(text), "build index", name)]

    def _drop_index(self, found: re.Match[str]) -> list[Step]:
        name = found["name"]
        definition = self.before.get(f"INDEX app.{name}")
        if definition is None:
            return []  # it went with its constraint
        table = re.search(r" ON (?:ONLY )?app\.(\w+)", definition)
        if table is None or f"TABLE app.{table[1]}" not in self.after:
            return []
        if f"TABLE ATTACH app.{table[1]}" in self.after:
            return []
        if "PARTITION BY" in self.after[f"TABLE app.{table[1]}"]:
            return [Step(f"DROP INDEX app.{name};")]
        return [Step(f"DROP INDEX CONCURRENTLY app.{name};", "drop index", name)]

    def _create_function(self, found: re.Match[str]) -> list[Step]:
        name = found["name"]
        source = self.sources.objects.get(("function", name))
        text = (
            source.render() if source else f"{found.string.removesuffix(';').strip()};"
        )
        text = text.replace("CREATE OR REPLACE FUNCTION", "CREATE FUNCTION", 1)
        same = [t for t in self.before if t.startswith(f"FUNCTION app.{name}(")]
        if any(self.before[title] == self.after.get(title) for title in same):
            return []  # only its comment has changed
        if not any(title in self.after for title in same):
            return [Step(text)]
        title = same[0]
        old, new = (_SIGNATURE.search(o[title]) for o in (self.before, self.after))
        if old and new and old[1] == new[1]:
            replaced = text.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
            return [Step(replaced)]
        return [Step(f"DROP {title};"), Step(text)]

    def _create_view(self, found: re.Match[str]) -> list[Step]:
        source = self.sources.objects.get(("view", found["name"]))
        if source is None:
            return [Step(tidy(found.string))]
        text = source.render()
        if f"VIEW app.{found['name']}" in self.before:
            text = text.replace("CREATE VIEW", "CREATE OR REPLACE VIEW", 1)
        return [Step(text)]

    def _create_trigger(self, found: re.Match[str]) -> list[Step]:
        source = self.sources.objects.get(
            ("trigger", f"{found['table']}.{found['name']}")
        )
        return [Step(source.render() if source else found.string)]


_MAKERS: tuple[tuple[str, Callable[[Drafter, re.Match[str]], list[Step]]], ...] = (
    (rf"create table {_TABLE} ", Drafter._create_tables),
    (rf"drop table {_TABLE}", Drafter._drop_tables),
    (
        rf'alter table {_TABLE} add column "(?P<name>\w+)" ',
        Drafter._add_column,
    ),
    (rf'alter table {_TABLE} drop column "(?P<name>\w+)"', Drafter._drop_column),
    (
        rf'alter table {_TABLE} alter column "(?P<name>\w+)" set expression ',
        Drafter._set_expression,
    ),
    (
        rf'alter table {_TABLE} alter column "(?P<name>\w+)" set not null',
        Drafter._set_not_null,
    ),
    (
        rf'alter table {_TABLE} alter column "(?P<name>\w+)" set data type ',
        Drafter._set_type,
    ),
    (rf"alter table {_TABLE} validate constraint ", lambda self, found: []),
    (
        rf'alter table {_TABLE} add constraint "(?P<name>\w+)" ',
        Drafter._add_constraint,
    ),
    (
        rf'alter table {_TABLE} drop constraint "(?P<name>\w+)"',
        Drafter._drop_constraint,
    ),
    (rf"alter table {_TABLE} ", lambda self, found: [Step(tidy(found.string))]),
    (
        rf"CREATE (?:UNIQUE )?INDEX (?P<name>\w+) ON (?:ONLY )?{_TABLE} ",
        Drafter._create_index,
    ),
    (
        r'drop index if exists "?app"?\."?(?P<name>\w+)"?',
        Drafter._drop_index,
    ),
    # The partitions' indexes come with their parent's.
    (r"alter index .* attach partition ", lambda self, found: []),
    (
        r"(?i)create or replace function \"?app\"?\.\"?(?P<name>\w+)",
        Drafter._create_function,
    ),
    (
        r'create or replace view "?app"?\."?(?P<name>\w+)"?',
        Drafter._create_view,
    ),
    (
        rf"CREATE (?:CONSTRAINT )?TRIGGER (?P<name>\w+) .* ON {_TABLE} ",
        Drafter._create_trigger,
    ),
    (
        rf'drop trigger if exists "\w+" on {_TABLE}',
        lambda self, found: [Step(tidy(found.string))],
    ),
)
