"""Every query uses the indexes listed in sql/devtools/query_plans.toml.

The plans are read from a large database with skewed data, and include the statements
of functions, triggers and foreign keys.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from pyapp._core.connection import connect
from pyapp._core.queries import QUERIES, TOOL_QUERIES, Query, schema_text
from pyapp.devtools.checks.catalog import Catalog, Constraint, read_catalog
from pyapp.devtools.checks.query_plans import (
    explain_query,
    is_planned,
    read_plans,
)
from pyapp.devtools.checks.schema_docs import read_index_notes
from tests.plan_data import fill
from tests.plan_reading import PlanReader
from tests.plan_values import values_for

PLANS = read_plans()
# The daily upkeep of sums, of all queries of sql/devtools.
UPKEEP = {
    name: query
    for name, query in TOOL_QUERIES.items()
    if query.path.name == "usage_upkeep.sql"
}
PLANNED = UPKEEP | {name: query for name, query in QUERIES.items() if is_planned(query)}
# Tables that a query reads as a whole.
READS_ALL = {
    "get_mirror_size": {"stripe_customers", "stripe_subscriptions"},
    "get_user_counts": {"usage_slots", "users"},
    # Reports over all payers; an index of days would slow down every message.
    "list_usage": {"usage_slots"},
    "list_uncut_usage": {"fingerprints", "usage_slots", "users"},
}

Connection = psycopg.Connection[TupleRow]


@pytest.fixture(scope="module")
def large(module_database: str) -> Iterator[Connection]:
    """Return a connection to the large database; tests roll back their changes."""
    fill(module_database)
    with connect(module_database) as conn:
        yield conn
        conn.rollback()


@pytest.fixture(scope="module")
def reader(large: Connection) -> PlanReader:
    reader = PlanReader(large)
    large.commit()
    return reader


@pytest.fixture
def catalog(conn: Connection) -> Catalog:
    return read_catalog(conn)


def find_complaints(query: Query, reader: PlanReader, catalog: Catalog) -> list[str]:
    """Return the differences between the plans of *query* and query_plans.toml."""
    try:
        runs = [
            reader.run(query, values, is_generic=is_generic)
            for is_generic in (True, False)
            for values in values_for(query)
        ]
    except psycopg.ProgrammingError as exc:
        return [f"{query.name} fails: {exc.diag.message_primary}"]
    scans = set().union(*(found.scans for found in runs))
    complaints = [
        f"{query.name} reads the whole of {table}: it needs an index"
        for table in scans - READS_ALL.get(query.name, set())
    ]
    listed = set(PLANS.get(query.name, ()))
    for found in runs[:1]:
        # Writers check unique indexes, which plans do not show.
        checked = {
            index.name
            for index in catalog.indexes
            if index.is_unique and index.table_name in found.written
        }
        complaints += [
            f"{query.name} does not use {name}, which query_plans.toml lists"
            for name in listed - found.indexes - checked
        ]
        complaints += [
            f"{query.name} uses {name}, which query_plans.toml does not list"
            for name in found.indexes - listed
            if query.name not in READS_ALL
        ]
    return complaints


def check_query(constraint: Constraint) -> Query:
    """Return the statement of a foreign key before a referenced row is deleted."""
    columns = " AND ".join(f"x.{name} = %({name})s" for name in constraint.columns)
    statement = f"SELECT 1 FROM app.{constraint.table_name} AS x WHERE {columns}"
    return Query(
        name=constraint.name,
        cardinality="many",
        description="",
        source="",
        sql=f"{statement} FOR KEY SHARE OF x",
        parameters=tuple(constraint.columns),
        path=Path(),
        line=0,
    )


def find_key_complaints(
    constraint: Constraint, reader: PlanReader, listed: list[str]
) -> list[str]:
    query = check_query(constraint)
    found = reader.run(query, dict.fromkeys(constraint.columns), is_generic=True)
    if found.indexes == set(listed) and not found.scans:
        return []
    return [
        f"{constraint.name} uses {sorted(found.indexes | found.scans)},"
        f" and query_plans.toml lists {listed}"
    ]


def list_foreign_keys(catalog: Catalog) -> list[Constraint]:
    return [constraint for constraint in catalog.constraints if constraint.kind == "f"]


def test_every_query_uses_its_indexes(reader: PlanReader, catalog: Catalog):
    complaints = [
        complaint
        for query in PLANNED.values()
        for complaint in find_complaints(query, reader, catalog)
    ]

    assert not complaints, "\n".join(complaints)


def test_report_of_one_payer_reads_no_other_days(large: Connection):
    plan = explain_query(large, QUERIES["list_usage"])
    conditions = [
        line for line in plan if "Index Cond" in line and "subject_id = " in line
    ]

    assert len(conditions) == 2
    assert "starts_at >= " in conditions[0]
    assert "finished_at >= " in conditions[1]


@pytest.mark.parametrize(
    "table", ["stripe_customers", "stripe_events", "stripe_subscriptions"]
)
def test_lookup_planned_on_an_empty_table_uses_its_key(conn, table):
    """A session may keep such a plan for a minute while it fills the table."""
    conn.execute(sql.SQL("ANALYZE {}").format(sql.Identifier("app", table)))
    conn.execute("SET LOCAL enable_seqscan = off")

    plan = conn.execute(
        sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {} AS t WHERE t.id = 'x'").format(
            sql.Identifier("app", table)
        )
    ).fetchone()

    assert plan[0][0]["Plan"]["Index Name"] == f"{table}_pkey"


def test_every_foreign_key_uses_its_index(reader: PlanReader, catalog: Catalog):
    complaints = [
        complaint
        for key in list_foreign_keys(catalog)
        for complaint in find_key_complaints(key, reader, PLANS.get(key.name, []))
    ]

    assert not complaints, "\n".join(complaints)


def test_query_plans_toml_lists_every_query_and_no_other(catalog: Catalog):
    keys = {key.name for key in list_foreign_keys(catalog)}
    indexes = {index.name for index in catalog.indexes}

    known = {*PLANNED, *keys}
    complaints = [
        *(f"{name}: list its indexes in query_plans.toml" for name in known - {*PLANS}),
        *(f"{name}: not a query or foreign key" for name in {*PLANS} - known),
        *(
            f"{name}: query_plans.toml lists {index}, which does not exist"
            for name, used in PLANS.items()
            for index in used
            if index not in indexes
        ),
    ]

    assert not complaints, "\n".join(complaints)


def test_index_comment_names_the_queries_that_use_it(catalog: Catalog):
    notes = read_index_notes(schema_text())
    complaints = [
        f"{index}: {name} does not use it, says query_plans.toml"
        for index, note in notes.items()
        for name in note.serves
        if index not in PLANS.get(name, ())
    ]

    assert not complaints, "\n".join(complaints)


def test_dropped_index_changes_a_plan_that_lists_it(
    large: Connection, reader: PlanReader, catalog: Catalog
):
    """Drop each index in turn: one of the queries that list it must report that."""
    keys = {key.name: key for key in list_foreign_keys(catalog)}
    unused = []
    for index in catalog.indexes:
        if index.constraint_name:
            continue
        served = [name for name, used in PLANS.items() if index.name in used]
        with large.transaction(force_rollback=True):
            large.execute(
                sql.SQL("DROP INDEX app.{}").format(sql.Identifier(index.name))
            )
            left = read_catalog(large)
            is_needed = any(
                find_key_complaints(keys[name], reader, PLANS[name])
                if name in keys
                else find_complaints(PLANNED[name], reader, left)
                for name in served
            )
        if not is_needed:
            unused.append(index.name)

    assert not unused, f"no plan needs {unused}: drop them or list their queries"
