"""Every query goes by the indexes that sql/devtools/query_plans.toml promises.

Asked of a large and uneven database, and of all that a query sets off: the statements
of functions, triggers and foreign keys too.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from pyapp._core.connection import connect
from pyapp._core.queries import QUERIES, Query, schema_text
from pyapp.devtools.checks.catalog import Catalog, Constraint, read_catalog
from pyapp.devtools.checks.query_plans import is_planned, read_plans
from pyapp.devtools.checks.schema_text import read_index_notes
from tests.plan_data import fill
from tests.plan_reading import PlanReader
from tests.plan_values import values_for

PLANS = read_plans()
PLANNED = {name: query for name, query in QUERIES.items() if is_planned(query)}
# What may be read from end to end, for all of it counts.
READS_ALL = {
    "get_mirror_size": {"stripe_customers", "stripe_subscriptions"},
    "get_user_counts": {"usage_daily", "users"},
}

Connection = psycopg.Connection[TupleRow]


@pytest.fixture(scope="module")
def large(module_database: str) -> Iterator[Connection]:
    """Return a connection to the large database; tests undo what they do."""
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
    """Return what is wrong with the plans of *query*, each with its name."""
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
    promised = set(PLANS.get(query.name, ()))
    for found in runs[:1]:
        # A unique index is looked at by every writer, and shows in no plan.
        checked = {
            index.name
            for index in catalog.indexes
            if index.is_unique and index.table_name in found.written
        }
        complaints += [
            f"{query.name} goes without {name}, which query_plans.toml promises"
            for name in promised - found.indexes - checked
        ]
        complaints += [
            f"{query.name} goes by {name}, which query_plans.toml does not promise"
            for name in found.indexes - promised
            if query.name not in READS_ALL
        ]
    return complaints


def check_query(constraint: Constraint) -> Query:
    """Return what a foreign key asks before what it names may go."""
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
    constraint: Constraint, reader: PlanReader, promised: list[str]
) -> list[str]:
    query = check_query(constraint)
    found = reader.run(query, dict.fromkeys(constraint.columns), is_generic=True)
    if found.indexes == set(promised) and not found.scans:
        return []
    return [
        f"{constraint.name} goes by {sorted(found.indexes | found.scans)},"
        f" and query_plans.toml promises {promised}"
    ]


def list_foreign_keys(catalog: Catalog) -> list[Constraint]:
    return [constraint for constraint in catalog.constraints if constraint.kind == "f"]


def test_every_query_goes_by_its_indexes(reader: PlanReader, catalog: Catalog):
    complaints = [
        complaint
        for query in PLANNED.values()
        for complaint in find_complaints(query, reader, catalog)
    ]

    assert not complaints, "\n".join(complaints)


def test_every_foreign_key_goes_by_its_index(reader: PlanReader, catalog: Catalog):
    complaints = [
        complaint
        for key in list_foreign_keys(catalog)
        for complaint in find_key_complaints(key, reader, PLANS.get(key.name, []))
    ]

    assert not complaints, "\n".join(complaints)


def test_plans_are_promised_for_what_exists(catalog: Catalog):
    keys = {key.name for key in list_foreign_keys(catalog)}
    indexes = {index.name for index in catalog.indexes}

    known = {*PLANNED, *keys}
    complaints = [
        *(
            f"{name}: say in query_plans.toml what it goes by"
            for name in known - {*PLANS}
        ),
        *(f"{name}: query_plans.toml promises for nobody" for name in {*PLANS} - known),
        *(
            f"{name}: query_plans.toml promises {index}, which is not there"
            for name, used in PLANS.items()
            for index in used
            if index not in indexes
        ),
    ]

    assert not complaints, "\n".join(complaints)


def test_index_comment_names_who_goes_by_it(catalog: Catalog):
    notes = read_index_notes(schema_text())
    complaints = [
        f"{index}: {name} does not go by it, says query_plans.toml"
        for index, note in notes.items()
        for name in note.serves
        if index not in PLANS.get(name, ())
    ]

    assert not complaints, "\n".join(complaints)


def test_index_that_is_gone_is_missed_by_name(
    large: Connection, reader: PlanReader, catalog: Catalog
):
    """Drop each index in turn: one of those whom it serves says so."""
    keys = {key.name: key for key in list_foreign_keys(catalog)}
    unmissed = []
    for index in catalog.indexes:
        if index.constraint_name:
            continue
        served = [name for name, used in PLANS.items() if index.name in used]
        with large.transaction(force_rollback=True):
            large.execute(
                sql.SQL("DROP INDEX app.{}").format(sql.Identifier(index.name))
            )
            left = read_catalog(large)
            complaints = [
                complaint
                for name in served
                for complaint in (
                    find_key_complaints(keys[name], reader, PLANS[name])
                    if name in keys
                    else find_complaints(PLANNED[name], reader, left)
                )
            ]
        if not any(complaint.startswith(tuple(served)) for complaint in complaints):
            unmissed.append(index.name)

    assert not unmissed, f"nobody misses {unmissed}: drop them, or say whom they serve"
