"""The objects of schema app, from the catalog of a live database."""

from typing import Any, Literal, NamedTuple

import psycopg

from pyapp._core.run import fetch_all


class Table(NamedTuple):
    """A table or view; `partition_key` is None unless it is partitioned."""

    name: str
    comment: str | None
    partition_key: str | None


class Column(NamedTuple):
    """A column; `expression` is its default or its generation expression."""

    table_name: str
    name: str
    type: str
    is_nullable: bool
    is_identity: bool
    is_generated: bool
    expression: str | None
    comment: str | None


class Constraint(NamedTuple):
    """A constraint; `kind` is that of pg_constraint.contype."""

    table_name: str
    name: str
    kind: Literal["p", "u", "x", "f", "c"]
    referenced_table: str | None
    definition: str
    columns: list[str]


class Index(NamedTuple):
    """An index; `constraint_name` is None unless it belongs to a constraint."""

    table_name: str
    name: str
    is_unique: bool
    constraint_name: str | None
    definition: str


class Trigger(NamedTuple):
    """A trigger and its definition."""

    table_name: str
    name: str
    definition: str


class Function(NamedTuple):
    """A function; `body` is its source."""

    name: str
    arguments: str
    result: str
    body: str
    comment: str | None


class Catalog(NamedTuple):
    """All objects of the schema, each kind in the order of its query."""

    tables: list[Table]
    columns: list[Column]
    constraints: list[Constraint]
    indexes: list[Index]
    triggers: list[Trigger]
    functions: list[Function]


def read_catalog(conn: psycopg.Connection[Any]) -> Catalog:
    """Return the objects of schema app; none if it does not exist."""
    return Catalog(
        tables=fetch_all(conn, Table, "list_tables"),
        columns=fetch_all(conn, Column, "list_columns"),
        constraints=fetch_all(conn, Constraint, "list_constraints"),
        indexes=fetch_all(conn, Index, "list_indexes"),
        triggers=fetch_all(conn, Trigger, "list_triggers"),
        functions=fetch_all(conn, Function, "list_functions"),
    )
