"""The catalog: what the schema of a live database holds."""

from dataclasses import dataclass
from typing import Any, Literal

import psycopg

from pyapp._core.run import fetch_all


@dataclass(frozen=True, slots=True)
class Table:
    """A table or view; `partition_key` is None unless it is partitioned."""

    name: str
    is_view: bool
    comment: str | None
    partition_key: str | None


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `expression` is its default, or what it is generated from."""

    table_name: str
    name: str
    type: str
    is_nullable: bool
    is_identity: bool
    is_generated: bool
    expression: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint; `kind` is primary, unique, exclusion, foreign or check."""

    table_name: str
    name: str
    kind: Literal["p", "u", "x", "f", "c"]
    referenced_table: str | None
    definition: str
    columns: list[str]


@dataclass(frozen=True, slots=True)
class Index:
    """An index; `constraint_name` is None unless a constraint made it."""

    table_name: str
    name: str
    is_unique: bool
    constraint_name: str | None
    definition: str


@dataclass(frozen=True, slots=True)
class Trigger:
    """A trigger and the function that it runs."""

    table_name: str
    name: str
    function_name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Function:
    """A function; `body` is its source."""

    name: str
    arguments: str
    result: str
    body: str
    comment: str | None


@dataclass(frozen=True, slots=True)
class Catalog:
    """All of the schema, each kind in the order of its query."""

    tables: list[Table]
    columns: list[Column]
    constraints: list[Constraint]
    indexes: list[Index]
    triggers: list[Trigger]
    functions: list[Function]


def read_catalog(conn: psycopg.Connection[Any]) -> Catalog:
    """Return what the schema of the database holds; nothing if it is not there."""
    return Catalog(
        tables=fetch_all(conn, Table, "list_tables"),
        columns=fetch_all(conn, Column, "list_columns"),
        constraints=fetch_all(conn, Constraint, "list_constraints"),
        indexes=fetch_all(conn, Index, "list_indexes"),
        triggers=fetch_all(conn, Trigger, "list_triggers"),
        functions=fetch_all(conn, Function, "list_functions"),
    )
