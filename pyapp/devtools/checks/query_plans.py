"""Query plans, and the indexes that they are expected to use.

`sql/devtools/query_plans.toml` lists the indexes; tests/test_plans.py checks them on a
large database.
"""

import tomllib
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.rows import TupleRow, tuple_row

from pyapp._core.queries import QUERIES, Query, sql_dir
from pyapp._core.run import execute, fetch_one
from pyapp.errors import QueryFileError


def read_plans() -> dict[str, list[str]]:
    """Return the indexes that each query and foreign key uses."""
    text = (sql_dir() / "devtools" / "query_plans.toml").read_text(encoding="utf-8")
    indexes: dict[str, list[str]] = tomllib.loads(text)
    return indexes


def find_query(name: str) -> Query:
    """Return the query called *name*.

    Raises:
        QueryFileError: there is none; the message lists similar names.
    """
    if query := QUERIES.get(name):
        return query
    words = set(name.split("_"))
    alike = [other for other in QUERIES if words & set(other.split("_"))]
    hint = f"; there is {', '.join(alike)}" if alike else ""
    raise QueryFileError(f"no query {name} in sql/queries{hint}")


def is_planned(query: Query) -> bool:
    """Tell whether PostgreSQL plans *query*: it does not plan COPY and CREATE."""
    first = query.sql.split(maxsplit=1)[0].upper()
    return first in {"SELECT", "WITH", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES"}


def explain_query(
    conn: psycopg.Connection[Any],
    query: Query,
    values: Mapping[str, str] | None = None,
    *,
    is_analyzed: bool = False,
) -> list[str]:
    """Return the lines of the plan of a prepared statement.

    Without *values* it is the generic plan, with *values* the custom plan for them.
    *is_analyzed* runs the query; the caller rolls back.
    """
    if not is_planned(query):
        raise QueryFileError(
            f"{query.name} has no plan: it is a {query.sql.split()[0]}"
        )
    values = values or {}
    if unknown := values.keys() - set(query.parameters):
        known = ", ".join(query.parameters) or "none"
        names = ", ".join(sorted(unknown))
        raise QueryFileError(f"{query.name} has no parameter {names}; it has {known}")
    given = [values.get(name) for name in query.parameters]
    mode = "force_custom_plan" if values else "force_generic_plan"
    execute(conn, "set_plan_mode", mode=mode)
    _run(conn, "format_prepare", statement=_numbered(query))
    plan = _run(conn, "format_explain", is_analyzed=is_analyzed, values=given)
    lines = [line for (line,) in plan]
    execute(conn, "deallocate_plan")
    return lines


def _run(
    conn: psycopg.Connection[Any], name: str, **parameters: Any
) -> psycopg.Cursor[TupleRow]:
    """Run the statement that the query *name* returns."""
    statement = fetch_one(conn, str, name, **parameters)
    return conn.cursor(row_factory=tuple_row).execute(statement.encode())


def _numbered(query: Query) -> str:
    """Return the statement with $1, $2 in the order of its parameters."""
    numbers = {name: f"${n}" for n, name in enumerate(query.parameters, start=1)}
    return query.sql.rstrip().removesuffix(";") % numbers
