"""docs/schema.md: the schema of a live database as a page."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import psycopg

from pyapp._core.queries import schema_text
from pyapp.devtools.checks.catalog import (
    Catalog,
    Column,
    Constraint,
    Index,
    read_catalog,
)
from pyapp.devtools.checks.query_plans import read_plans
from pyapp.errors import MigrationError

_INDEX = re.compile(
    r"(?P<comment>(?:^--.*\n)*)^CREATE (?:UNIQUE )?INDEX (?P<name>\w+)", re.MULTILINE
)
_TABLE = re.compile(r"^CREATE (?:OR REPLACE )?(?:TABLE|VIEW) app\.(\w+)", re.MULTILINE)
_SERVED = re.compile(r"For (\w+_\w+(?:(?:, | and |, and )\w+_\w+)*)")
_TYPES = {"timestamp with time zone": "timestamptz", "character varying": "varchar"}
_CONVENTIONS = {
    "id": "The key.",
    "created_at": "When the row was created.",
    "updated_at": "When the row was last changed.",
}


class IndexNote(NamedTuple):
    """The comment above an index, and the queries and constraints that it names.

    `says_more` is False if the comment only names them.
    """

    serves: tuple[str, ...]
    comment: str
    says_more: bool = True


class _Sources(NamedTuple):
    """What the page is made from."""

    catalog: Catalog
    notes: Mapping[str, IndexNote]
    plans: Mapping[str, list[str]]


def render_schema(conn: psycopg.Connection[Any]) -> str:
    """Return the page for the database of *conn*, equal on each server version.

    Raises:
        MigrationError: the database has no tables in schema app.
    """
    catalog = read_catalog(conn)
    if not catalog.tables:
        raise MigrationError("there is no schema; run: pyapp db migrate")
    schema = schema_text()
    order = {name: place for place, name in enumerate(_TABLE.findall(schema))}
    names = sorted(
        (table.name for table in catalog.tables),
        key=lambda name: (order.get(name, len(order)), name),
    )
    sources = _Sources(
        catalog=catalog, notes=read_index_notes(schema), plans=read_plans()
    )
    parts = [_introduction(), _diagram(names, catalog)]
    parts += [_table(name, sources) for name in names]
    parts.append(_functions(catalog))
    return "\n".join("\n".join(part) + "\n" for part in parts)


def read_index_notes(schema: str) -> dict[str, IndexNote]:
    """Return the note above each CREATE INDEX: `-- For <query or constraint> ...`."""
    notes = {}
    for match in _INDEX.finditer(schema):
        lines = match["comment"].splitlines()
        comment = " ".join(line.removeprefix("--").strip() for line in lines)
        served = _SERVED.match(comment)
        names = re.findall(r"\w+_\w+", served[1]) if served else []
        says_more = served is None or comment[served.end() :] != "."
        notes[match["name"]] = IndexNote(tuple(names), comment, says_more)
    return notes


def _introduction() -> Iterator[str]:
    yield "# The schema"
    yield ""
    yield "<!-- Written by `pyapp db docs` from a live catalog. Change the comments in"
    yield "sql/schema.sql and sql/functions instead, and run it again. -->"
    yield ""
    yield "Everything is in the schema `app`. Times are timestamptz, money and credits"
    yield "numeric. An index serves queries of `sql/` or constraints."


def _diagram(names: Sequence[str], catalog: Catalog) -> Iterator[str]:
    """Yield the Mermaid diagram: tables with their columns, and foreign keys."""
    yield "```mermaid"
    yield "erDiagram"
    for constraint in catalog.constraints:
        if constraint.kind == "f":
            yield f"    {_relationship(constraint, catalog)}"
    for name in names:
        yield f"    {name} {{"
        for column in _of(name, catalog.columns):
            keys = ", ".join(_keys(column, catalog))
            word = re.sub(r"[^\w()\[\]-]", "_", _short(column.type))
            yield f"        {word} {column.name} {keys}".rstrip()
        yield "    }"
    yield "```"


def _relationship(constraint: Constraint, catalog: Catalog) -> str:
    columns = [
        column
        for column in _of(constraint.table_name, catalog.columns)
        if column.name in constraint.columns
    ]
    parent = "|o" if any(column.is_nullable for column in columns) else "||"
    is_single = any(
        set(other.columns) <= set(constraint.columns)
        for other in _of(constraint.table_name, catalog.constraints)
        if other.kind in "pu"
    )
    child = "o|" if is_single else "o{"
    names = ", ".join(constraint.columns)
    return (
        f"{constraint.referenced_table} {parent}--{child} {constraint.table_name}"
        f' : "{names}"'
    )


def _keys(column: Column, catalog: Catalog) -> Iterator[str]:
    """Yield the kinds of keys that the column is part of, in Mermaid's words."""
    kinds = {
        constraint.kind
        for constraint in _of(column.table_name, catalog.constraints)
        if column.name in constraint.columns
        and (constraint.kind != "u" or len(constraint.columns) == 1)
    }
    for kind, mark in (("p", "PK"), ("f", "FK"), ("u", "UK")):
        if kind in kinds:
            yield mark


def _table(name: str, sources: _Sources) -> Iterator[str]:
    catalog = sources.catalog
    (table,) = (table for table in catalog.tables if table.name == name)
    yield f"## {name}"
    yield ""
    yield table.comment or ""
    if table.partition_key:
        yield ""
        yield f"Partitioned by {table.partition_key}."
    yield from _grid(
        ("Column", "Type", "Null", "Value", "Description"),
        (
            (
                _code(column.name),
                _short(column.type),
                "yes" if column.is_nullable else "no",
                _value(column),
                column.comment or _CONVENTIONS.get(column.name, ""),
            )
            for column in _of(name, catalog.columns)
        ),
    )
    yield from _grid(
        ("Constraint", "Definition"),
        (
            (_code(constraint.name), _code(constraint.definition))
            for constraint in _of(name, catalog.constraints)
        ),
    )
    yield from _grid(
        ("Index", "Definition", "Serves", "Why"),
        (_index_cells(index, sources) for index in _of(name, catalog.indexes)),
    )
    yield from _grid(
        ("Trigger", "Definition"),
        (
            (_code(trigger), _code(definition.partition(f" {trigger} ")[2]))
            for _, trigger, definition in _of(name, catalog.triggers)
        ),
    )


def _value(column: Column) -> str:
    if column.is_identity:
        return "GENERATED ALWAYS AS IDENTITY"
    if column.is_generated:
        return f"GENERATED ALWAYS AS {_code(column.expression or '')}"
    return f"DEFAULT {_code(column.expression)}" if column.expression else ""


def _index_cells(index: Index, sources: _Sources) -> tuple[str, ...]:
    is_unique = "UNIQUE " if index.is_unique else ""
    on = is_unique + index.definition.partition(" USING ")[2]
    note = sources.notes.get(index.name, IndexNote((), "Not in sql/schema.sql."))
    first = [index.constraint_name] if index.constraint_name else note.serves
    planned = [name for name, used in sources.plans.items() if index.name in used]
    serves = ", ".join(_code(name) for name in dict.fromkeys([*first, *planned]))
    why = note.comment if note.says_more and not index.constraint_name else ""
    return (_code(index.name), _code(on), serves, why)


def _functions(catalog: Catalog) -> Iterator[str]:
    yield "## Functions"
    yield from _grid(
        ("Function", "Returns", "Description"),
        (
            (
                _code(f"{function.name}({_short(function.arguments)})"),
                _short(function.result),
                function.comment or "",
            )
            for function in catalog.functions
        ),
    )


def _short(types: str) -> str:
    for long, short in _TYPES.items():
        types = types.replace(long, short)
    return types


def _of(name: str, things: Iterable[Any]) -> Iterator[Any]:
    return (thing for thing in things if thing.table_name == name)


def _code(text: str) -> str:
    """Return *text* as code on one line."""
    return f"`{' '.join(text.split())}`" if text else ""


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield an empty line and a Markdown table; nothing without rows.

    Bars in cells are escaped, in code too.
    """
    for number, row in enumerate(rows):
        if number == 0:
            yield ""
            yield f"| {' | '.join(header)} |"
            yield f"|{'---|' * len(header)}"
        cells = " | ".join(cell.replace("|", "\\|") for cell in row)
        yield f"| {cells} |"
