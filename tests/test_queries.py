"""Queries, functions and rows agree with each other and with the database."""

import builtins
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

import pyapp
import pyapp.aio
from pyapp._core.caller_connection import RETURNED_TYPES
from pyapp._core.queries import QUERIES, TOOL_QUERIES, Query
from pyapp.messages import NewMessage
from tests.query_parity import (
    PYTHON_TYPES,
    Column,
    Described,
    Field,
    Function,
    Use,
    describe,
    find_calls,
    find_functions,
    find_uses,
    is_planned,
    plain_types,
    row_fields,
    split_optional,
)

FUNCTIONS = find_functions()
TOPICS = [
    module.name
    for module in pkgutil.iter_modules(pyapp.aio.__path__)
    if not module.name.startswith("connection")
]
# Columns that are nullable in the catalog and never NULL in the query.
NEVER_NULL = {
    # The query sets it.
    "stripe_customers.sql: link_customer: user_id",
    # Compared with a cursor, which excludes NULL.
    "stripe_customers.sql: list_unseen_customers: customer_id",
    "stripe_customers.sql: list_unseen_customers: id",
    # The catalog has no NOT NULL for columns of a view.
    *(
        f"entitlements.sql: {query}: {column}"
        for query in ("get_entitlement", "list_entitlements")
        for column in ("user_id", "base_quota", "differences")
    ),
}
# Fields that repeat another field of the row, so that the query does not select them.
REPEATED = {
    "find_session": {"session_user_id", "user_anonymized_at", "fingerprint_id"},
}
# Queries of tables that only migrations or maintenance create.
NEED_OTHER_TABLES = {
    "count_retired_payloads",
    "find_retired_months",
    "list_applied_migrations",
    "list_checksums",
    "list_waiting_months",
    "list_yoyo_locks",
}
DESCRIBED: dict[str, Described] = {}
every_query = pytest.mark.parametrize(
    "query", QUERIES.values(), ids=lambda q: f"{q.path.name}:{q.name}"
)
every_function = pytest.mark.parametrize("function", FUNCTIONS, ids=str)


# The cardinality in a query's header for each function of the runner.
CARDINALITY = {
    "fetch_one": "one",
    "fetch_optional": "optional",
    "fetch_all": "many",
    "stream_rows": "many",
    "execute": "rowcount",
    "copy_rows": "rowcount",
}


@every_query
def test_every_query_has_a_function(query: Query):
    assert query.name in find_uses(), f"{query.path.name}: {query.name} is never used"


@every_query
def test_query_of_a_topic_is_used_by_the_module_of_that_name(query: Query):
    if query.path.stem in TOPICS:
        users = {use.function.module for use in find_uses().get(query.name, [])}

        assert users == {f"pyapp.{query.path.stem}"}


def test_every_public_function_has_a_query_of_its_name():
    missing = [str(f) for f in FUNCTIONS if f.name not in QUERIES]

    assert missing == []


def test_every_call_names_a_query_and_gives_its_parameters():
    """Also the calls of the tools; where a call expands a mapping, only the name."""
    known = {**QUERIES, **TOOL_QUERIES}
    named = set()
    for path in Path(pyapp.__path__[0]).rglob("*.py"):
        for call in find_calls(path.read_text(encoding="utf-8")):
            named.add(call.query)
            given = call.keywords - {"missing"}
            expected = set(known[call.query].parameters)
            assert None in given or given == expected, f"{path}: {call.query}"
    assert set(QUERIES) <= named


def test_columns_and_fields_of_the_tools_agree(conn: psycopg.Connection[TupleRow]):
    undescribed = set()
    for info in pkgutil.walk_packages(pyapp.__path__, "pyapp."):
        module = importlib.import_module(info.name)
        for call in find_calls(inspect.getsource(module)):
            query = TOOL_QUERIES.get(call.query)
            if query is None or call.row is None:
                continue
            row = getattr(module, call.row, None) or getattr(builtins, call.row)
            try:
                with conn.transaction():
                    _, columns = describe(conn, query)
            except AssertionError:
                undescribed.add(query.name)
                continue
            if row.__module__ == "builtins":
                (column,) = columns
                assert row in PYTHON_TYPES[column.type], call
                continue
            names = getattr(row, "_fields", None) or row.__dataclass_fields__
            assert [*names] == [column.name for column in columns], call

    assert undescribed == NEED_OTHER_TABLES


def test_new_message_has_the_columns_of_its_copy_in_their_order():
    columns = QUERIES["copy_staged_messages"].source.partition("(")[2].partition(")")[0]
    names = [field.name for field in fields(NewMessage)]

    # The price is sent in its parts.
    assert names.pop() == "published"
    assert re.findall(r"\w+", columns) == [
        "position",
        "subject_id",
        *names,
        "published_cost",
        "other_cost",
        "is_standard",
        "published_reason",
    ]


@every_query
def test_querys_cardinality_is_the_one_of_its_function(query: Query):
    for use in find_uses().get(query.name, []):
        allowed = {CARDINALITY[use.call.runner]}
        if "missing" in use.call.keywords:
            allowed.add("optional")

        assert query.cardinality in allowed, f"{query.name}, used by {use.function}"


@every_query
def test_query_and_function_have_the_same_parameters(
    conn: psycopg.Connection[TupleRow], query: Query
):
    for use in find_uses().get(query.name, []):
        where = f"{query.path.name}: {query.name}, used by {use.function}"
        assert set(query.parameters) == set(use.parameters), where
        if not is_planned(query):
            continue

        types, _ = _describe(conn, query, use)

        hints = typing.get_type_hints(use.function.call)
        for name, type_ in types.items():
            known = PYTHON_TYPES.get(type_)
            if known is None:
                continue
            if name in hints:
                given = plain_types(split_optional(hints[name])[0])
            elif use.parameters[name] is None:
                continue
            else:
                given = {type(use.parameters[name])}
            assert given <= known, f"{where}: parameter {name} is {type_}, not {given}"


@every_query
def test_columns_and_fields_agree_in_name_order_and_type(
    conn: psycopg.Connection[TupleRow], query: Query
):
    for where, field, column in _pairs(conn, query):
        known = PYTHON_TYPES.get(column.type)

        assert known is None or field.types <= known, f"{where} is {column.type}"
        # Without a loader there, a framework's own loader would change the value.
        assert column.type.removesuffix("[]") in RETURNED_TYPES, where


def test_fields_allow_none_if_and_only_if_a_query_returns_null(
    conn: psycopg.Connection[TupleRow],
):
    nullable: dict[str, set[bool | None]] = {}
    optional: dict[str, str] = {}
    for query in QUERIES.values():
        for where, field, column in _pairs(conn, query):
            is_nullable = column.is_nullable and where not in NEVER_NULL
            nullable.setdefault(f"{field.owner}.{field.name}", set()).add(is_nullable)
            assert field.is_nullable or not is_nullable, f"{where} may be NULL"

            # Of several queries with the same row, one may return NULL.
            if field.is_nullable:
                optional[f"{field.owner}.{field.name}"] = where
    never = [w for field, w in optional.items() if nullable[field] == {False}]
    assert never == [], "these fields allow None, but the database never returns NULL"


@every_function
def test_docstring_is_a_sentence_and_repeats_no_type(function: Function):
    text = inspect.getdoc(function.call) or ""

    assert re.match(r"[A-Z].*[.,;:]?", text), f"{function} has no docstring"
    assert text.partition("\n\n")[0].rstrip().endswith("."), str(function)
    types = r"\b(UUID|Decimal|datetime|timedelta|str|int|float|dict|tuple|Optional)\b"
    assert re.findall(types, text) == []


@every_function
def test_parameters_after_the_connection_are_passed_by_name(function: Function):
    _, *parameters = inspect.signature(function.call).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]

    # The messages recorded in bulk cannot be confused with another argument.
    assert positional == (["messages"] if function.name == "record_messages" else [])


@pytest.mark.parametrize("topic", TOPICS)
def test_every_function_of_a_topic_has_its_async_twin(topic: str):
    sync = importlib.import_module(f"pyapp.{topic}")
    twins = importlib.import_module(f"pyapp.aio.{topic}")
    names = {f.name for f in FUNCTIONS if f.module == sync.__name__}

    assert names == {
        name
        for name, member in vars(twins).items()
        if inspect.iscoroutinefunction(member) and member.__module__ == twins.__name__
    }
    for name in names:
        function, twin = getattr(sync, name), getattr(twins, name)
        _, *expected = inspect.signature(function).parameters.values()
        conn, *actual = inspect.signature(twin).parameters.values()
        assert expected == actual
        assert conn.annotation == psycopg.AsyncConnection[typing.Any]
        assert inspect.getdoc(function) == inspect.getdoc(twin)


def test_every_topic_has_its_async_twin():
    topics = {f.module.removeprefix("pyapp.") for f in FUNCTIONS}

    assert {topic for topic in topics if "." not in topic} == set(TOPICS)


def _describe(conn: psycopg.Connection[TupleRow], query: Query, use: Use) -> Described:
    if query.name not in DESCRIBED:
        # An earlier statement of the function may create the table of this one.
        for name in use.before:
            if not (
                is_planned(QUERIES[name]) or QUERIES[name].source.startswith("COPY")
            ):
                conn.execute(QUERIES[name].sql)
        DESCRIBED[query.name] = describe(conn, query)
    return DESCRIBED[query.name]


def _pairs(
    conn: psycopg.Connection[TupleRow], query: Query
) -> Iterator[tuple[str, Field, Column]]:
    """Yield each column with its field, and the name of both."""
    for use in find_uses().get(query.name, []):
        if use.row is None or not is_planned(query):
            continue
        _, columns = _describe(conn, query, use)
        repeated = REPEATED.get(query.name, set())
        fields = [f for f in row_fields(use.row) if f.name not in repeated]
        where = f"{query.path.name}: {query.name}"
        assert [f.name for f in fields] == [c.name for c in columns], where
        for field, column in zip(fields, columns, strict=True):
            yield f"{where}: {column.name}", field, column
