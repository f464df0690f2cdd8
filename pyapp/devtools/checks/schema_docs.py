"""docs/schema.md: the schema of a live database as a page to read."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from pyapp._core.queries import QUERIES, Query, schema_text
from pyapp.devtools.checks import rules
from pyapp.devtools.checks.catalog import (
    Catalog,
    Column,
    Constraint,
    Index,
    read_catalog,
)
from pyapp.devtools.checks.query_plans import read_plans
from pyapp.devtools.checks.schema_text import (
    IndexNote,
    read_index_notes,
    read_table_order,
)
from pyapp.devtools.checks.writers import Writer, list_writers
from pyapp.errors import MigrationError

_TYPES = {"timestamp with time zone": "timestamptz", "character varying": "varchar"}
_CONVENTIONS = {
    "id": "The key.",
    "created_at": "When the row was made.",
    "updated_at": "When the row last changed.",
}


@dataclass(frozen=True, slots=True)
class _Sources:
    """All that the page is made from."""

    catalog: Catalog
    notes: Mapping[str, IndexNote]
    writers: Mapping[str, list[Writer]]
    queries: Mapping[str, Query]
    plans: Mapping[str, list[str]]


def render_schema(conn: psycopg.Connection[Any]) -> str:
    """Return the page for the database of *conn*, the same on every server version.

    Raises:
        MigrationError: the database has no tables of ours.
    """
    catalog = read_catalog(conn)
    if not catalog.tables:
        raise MigrationError("the schema is not there; run: pyapp db migrate")
    schema = schema_text()
    order = {name: place for place, name in enumerate(read_table_order(schema))}
    names = sorted(
        (table.name for table in catalog.tables),
        key=lambda name: (order.get(name, len(order)), name),
    )
    sources = _Sources(
        catalog=catalog,
        notes=read_index_notes(schema),
        writers=list_writers(catalog, QUERIES.values()),
        queries=QUERIES,
        plans=read_plans(),
    )
    parts = [_introduction(), _diagram(names, catalog)]
    parts += [_table(name, sources) for name in names]
    parts.append(_functions(catalog))
    return "\n".join("\n".join(part) + "\n" for part in parts)


def _introduction() -> Iterator[str]:
    yield "# The schema"
    yield ""
    yield "<!-- Written by `pyapp db docs` from a live catalog: change the comments in"
    yield "sql/schema.sql instead, and run it again. -->"
    yield ""
    yield "Everything is in the schema `app`. Times are timestamptz, money and credits"
    yield "numeric. What an index serves is a query of `sql/queries/` or a constraint."


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
    """Yield the column's part in keys, as Mermaid writes it."""
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
    yield ""
    yield from _grid(
        ("Column", "Type", "Null", "Value", "What it holds"),
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
    found = list(rules.list_rules(name, catalog))
    if found:
        yield ""
        yield from _grid(
            ("Rule", "In words", "In SQL"),
            ((_code(rule.name), rule.words, _code(rule.sql)) for rule in found),
        )
    indexes = list(_of(name, catalog.indexes))
    if indexes:
        yield ""
        yield from _grid(
            ("Index", "On", "Serves", "Why"),
            (_index_cells(index, sources) for index in indexes),
        )
    if not table.is_view:
        writers = _written_by(sources.writers.get(name, []), sources.queries)
        yield ""
        yield f"Written by: {writers}."


def _value(column: Column) -> str:
    if column.is_identity:
        return "GENERATED ALWAYS AS IDENTITY"
    if column.is_generated:
        return f"GENERATED ALWAYS AS {_code(column.expression or '')}"
    return f"DEFAULT {_code(column.expression)}" if column.expression else ""


def _index_cells(index: Index, sources: _Sources) -> tuple[str, ...]:
    on = index.definition.partition(" USING ")[2]
    note = sources.notes.get(index.name, IndexNote((), "Not in sql/schema.sql."))
    first = [index.constraint_name] if index.constraint_name else note.serves
    planned = [name for name, used in sources.plans.items() if index.name in used]
    serves = ", ".join(_code(name) for name in dict.fromkeys([*first, *planned]))
    why = note.comment if note.says_more and not index.constraint_name else ""
    return (_code(index.name), _code(on), serves, why)


def _written_by(writers: Sequence[Writer], queries: Mapping[str, Query]) -> str:
    """Return who writes a table: queries by file, then triggers, then functions."""
    if not writers:
        return "nobody here; it is filled by hand or by migrations"
    groups: dict[str, list[str]] = {}
    for writer in writers:
        place = f"{writer.kind}s"
        if writer.kind == "query":
            place = f"`sql/queries/{queries[writer.name].path.name}`"
        does = " and ".join(writer.does)
        groups.setdefault(place, []).append(f"{_code(writer.name)} {does}")
    rank = {"triggers": 1, "functions": 2}
    places = sorted(groups, key=lambda place: (rank.get(place, 0), place))
    return "; ".join(f"{place}: {', '.join(groups[place])}" for place in places)


def _functions(catalog: Catalog) -> Iterator[str]:
    yield "## Functions"
    yield ""
    yield from _grid(
        ("Function", "Returns", "What it does"),
        (
            (
                _code(f"{function.name}({_arguments(function.arguments)})"),
                _short(function.result),
                function.comment or "",
            )
            for function in catalog.functions
        ),
    )


def _arguments(arguments: str) -> str:
    for long, short in _TYPES.items():
        arguments = arguments.replace(long, short)
    return arguments


def _short(type_name: str) -> str:
    return _TYPES.get(type_name, type_name)


def _of(name: str, things: Iterable[Any]) -> Iterator[Any]:
    return (thing for thing in things if thing.table_name == name)


def _code(text: str) -> str:
    """Return *text* as code for a cell: on one line."""
    return f"`{' '.join(text.split())}`" if text else ""


def _grid(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table in Markdown; a bar inside a cell is escaped, in code too."""
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        cells = " | ".join(cell.replace("|", "\\|") for cell in row)
        yield f"| {cells} |"
