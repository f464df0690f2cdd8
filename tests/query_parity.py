"""Finds every query function, and the database's description of its statement."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, TypeAlias
from unittest.mock import patch
from uuid import UUID

import psycopg
from psycopg import pq
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow

import pyapp
from pyapp._core import run
from pyapp._core.queries import QUERIES, Query
from pyapp.pricing import PublishedPrice

RUNNERS = {
    "fetch_one",
    "fetch_optional",
    "fetch_all",
    "stream_rows",
    "execute",
    "copy_rows",
}
BY_SQL = {query.sql: query.name for query in QUERIES.values()}
# The Python types of each PostgreSQL type; jsonb may be any type.
PYTHON_TYPES: dict[str, set[type]] = {
    "bool": {bool},
    "bytea": {bytes},
    "date": {date},
    "int2": {int},
    "int4": {int},
    "int8": {int},
    "interval": {timedelta},
    "name": {str},
    "numeric": {Decimal},
    "text": {str},
    "timestamptz": {datetime},
    "uuid": {UUID},
}
SAMPLES: dict[Any, Any] = {
    bool: True,
    bytes: b"x",
    date: date(2026, 1, 31),
    datetime: datetime(2026, 1, 31, tzinfo=UTC),
    Decimal: Decimal("0.5"),
    int: 1,
    PublishedPrice: PublishedPrice(Decimal(1), Decimal(0), True, None),
    str: "x",
    timedelta: timedelta(days=1),
    UUID: UUID(int=1),
}


@dataclass(frozen=True)
class Function:
    """A function that runs named queries of sql/queries."""

    module: str
    name: str
    call: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Call:
    """A call of the runner in a source text; `row` is the name of the row class."""

    runner: str
    row: str | None
    query: str
    keywords: set[str | None]


@dataclass(frozen=True)
class Use:
    """One execution of a query by a function; `row` is None for a count."""

    function: Function
    call: Call
    row: Callable[..., Any] | None
    parameters: Mapping[str, Any]
    before: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A column of a result; `is_nullable` is None where the catalog cannot tell."""

    name: str
    type: str
    is_nullable: bool | None


# The types of the parameters by name, and the columns.
Described: TypeAlias = tuple[dict[str, str], list[Column]]


@dataclass(frozen=True)
class Field:
    """A field of a row; `name` of a nested row's field has its name as prefix."""

    owner: str
    name: str
    types: set[Any]
    is_nullable: bool


def find_calls(source: str) -> list[Call]:
    """Return the calls of the runner in *source* that name their query."""
    found = []
    for node in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            runner = node.func.id
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            rows = [arg.id for arg in node.args[1:2] if isinstance(arg, ast.Name)]
            is_fetch = runner.startswith("fetch") or runner == "stream_rows"
            row = rows[0] if rows and is_fetch else None
            keywords = {keyword.arg for keyword in node.keywords}
            if runner in RUNNERS:
                found += [Call(runner, row, str(name), keywords) for name in names]
    return found


@functools.cache
def find_functions() -> list[Function]:
    """Return every function of the sync half that runs a query of sql/queries."""
    found = []
    for module_info in pkgutil.walk_packages(pyapp.__path__, "pyapp."):
        if module_info.name.startswith(("pyapp.aio", "pyapp.cli", "pyapp.devtools")):
            continue
        module = importlib.import_module(module_info.name)
        for name, member in vars(module).items():
            if not inspect.isfunction(member) or member.__module__ != module.__name__:
                continue
            calls = find_calls(inspect.getsource(member))
            if any(call.query in QUERIES for call in calls):
                found.append(Function(module.__name__, name, member))
    return found


class Recorder:
    """A connection that records the statements it is sent, and returns no rows."""

    autocommit = False
    closed = False
    rowcount = 0
    adapters = psycopg.adapters
    pgconn = SimpleNamespace(
        pipeline_status=0, transaction_status=TransactionStatus.IDLE
    )

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, Mapping[str, Any]]] = []

    def cursor(
        self, name: str = "", row_factory: Any = None, withhold: bool = False
    ) -> "Recorder":
        self.row = row_factory and row_factory(None)
        return self

    def execute(self, sql: str, parameters: Mapping[str, Any]) -> None:
        self.sent.append((BY_SQL[sql], self.row, parameters))

    def copy(self, sql: str) -> AbstractContextManager[None]:
        self.sent.append((BY_SQL[sql], None, {}))
        return nullcontext()

    def fetchall(self) -> list[Any]:
        return []

    def fetchmany(self, size: int) -> list[Any]:
        return []


@functools.cache
def find_uses() -> dict[str, list[Use]]:
    """Return for each query the executions that functions make of it."""
    uses: dict[str, list[Use]] = {}
    for function in find_functions():
        calls = {c.query: c for c in find_calls(inspect.getsource(function.call))}
        recorder = Recorder()
        # Most functions raise an error, because no row is returned.
        with (
            patch.object(run, "row_maker", lambda row: row),
            patch.object(run, "require_connection"),
            suppress(Exception),
        ):
            function.call(recorder, **_sample_arguments(function.call))
        before: tuple[str, ...] = ()
        for query, row, parameters in recorder.sent:
            row = None if row is tuple else row
            use = Use(function, calls[query], row, parameters, before)
            uses.setdefault(query, []).append(use)
            before = (*before, query)
    return uses


def _sample_arguments(function: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(function)
    _, *names = inspect.signature(function).parameters
    return {name: sample(hints[name]) for name in names}


def sample(hint: Any) -> Any:
    """Return a value of the type *hint*."""
    kinds, _ = split_optional(hint)
    kind = next(iter(kinds))
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return typing.get_args(kind)[0]
    if kind in SAMPLES:
        return SAMPLES[kind]
    if origin is Callable:
        return print
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return {}
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return []
    raise LookupError(f"no sample of {hint}: add one to SAMPLES")


def split_optional(hint: Any) -> tuple[list[Any], bool]:
    """Return the types that *hint* allows except None, and whether it allows None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint], False
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds, len(kinds) < len(typing.get_args(hint))


def plain_types(kinds: Iterable[Any]) -> set[Any]:
    """Return *kinds* with the values of Literals replaced by their types."""
    return {
        type(typing.get_args(kind)[0])
        if typing.get_origin(kind) is typing.Literal
        else kind
        for kind in kinds
    }


def row_fields(row: Callable[..., Any]) -> list[Field]:
    """Return the fields of the rows that *row* makes, in the order of its values."""
    kind = row if is_row(row) else typing.get_type_hints(row)["return"]
    return list(_fields(kind, "", is_nullable=False))


def _fields(kind: Any, prefix: str, *, is_nullable: bool) -> Iterator[Field]:
    hints = typing.get_type_hints(kind)
    for name in kind._fields:
        kinds, is_optional = split_optional(hints[name])
        is_none = is_nullable or is_optional
        if is_row(kinds[0]):
            yield from _fields(kinds[0], f"{name}_", is_nullable=is_none)
        else:
            types = plain_types(kinds)
            yield Field(kind.__name__, f"{prefix}{name}", types, is_none)


def is_row(kind: Any) -> bool:
    """Return whether *kind* is a NamedTuple."""
    return hasattr(kind, "_make")


def is_planned(query: Query) -> bool:
    """Return whether EXPLAIN accepts the statement; it refuses COPY and CREATE."""
    return (
        re.match(r"(SELECT|WITH|INSERT|UPDATE|DELETE|MERGE)\b", query.source)
        is not None
    )


def describe(conn: psycopg.Connection[TupleRow], query: Query) -> Described:
    """Return the types of the parameters and the columns of a planned statement."""
    places = {name: f"${n}" for n, name in enumerate(query.parameters, 1)}
    # The loader has doubled every other percent sign.
    text = re.sub(r"%%|%\((\w+)\)s", lambda m: places[m[1]] if m[1] else "%", query.sql)
    prepared = conn.pgconn.prepare(b"parity", text.encode())
    if prepared.status != pq.ExecStatus.COMMAND_OK:
        raise AssertionError(prepared.get_error_message())
    result = conn.pgconn.describe_prepared(b"parity")
    outer = _nullable_outputs(conn, len(places))
    conn.execute("DEALLOCATE parity")
    parameters = {
        name: _type_name(conn, result.param_type(n))
        for n, name in enumerate(query.parameters)
    }
    columns = []
    for n in range(result.nfields):
        is_nullable = _is_nullable(conn, result.ftable(n), result.ftablecol(n))
        if result.ftable(n) and outer[n]:
            is_nullable = True
        name = (result.fname(n) or b"").decode()
        columns.append(Column(name, _type_name(conn, result.ftype(n)), is_nullable))
    return parameters, columns


def _nullable_outputs(
    conn: psycopg.Connection[TupleRow], parameters: int
) -> list[bool]:
    """Return which outputs of the prepared statement's plan may be NULL.

    In the catalog, the inner column of a LEFT JOIN is not null, and neither is the
    column of a grouping set.
    """
    conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    nulls = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    row = conn.execute(
        f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE parity {nulls}"
    ).fetchone()
    assert row is not None
    plan = row[0][0]
    nodes = list(_nodes(plan["Plan"]))
    aliases = {alias for node in nodes for alias in _nulled_aliases(node)}
    keys = {key for node in nodes for key in _grouping_keys(node)}
    outputs = plan["Plan"].get("Output", [])
    return [out.partition(".")[0] in aliases or out in keys for out in outputs]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _nulled_aliases(node: dict[str, Any]) -> set[str]:
    sides = {"Left": ["Inner"], "Right": ["Outer"], "Full": ["Inner", "Outer"]}
    return {
        inner["Alias"]
        for child in node.get("Plans", [])
        if child["Parent Relationship"] in sides.get(node.get("Join Type", ""), [])
        for inner in _nodes(child)
        if "Alias" in inner
    }


def _grouping_keys(node: dict[str, Any]) -> set[str]:
    return {
        key.rpartition(".")[2]
        for grouping in node.get("Grouping Sets", [])
        for keys in (*grouping.get("Group Keys", []), *grouping.get("Hash Keys", []))
        for key in keys
    }


def _type_name(conn: psycopg.Connection[TupleRow], oid: int) -> str:
    known = conn.adapters.types.get(oid)
    if known is None:
        return str(oid)
    return f"{known.name}[]" if oid == known.array_oid else known.name


def _is_nullable(
    conn: psycopg.Connection[TupleRow], table: int, column: int
) -> bool | None:
    row = conn.execute(
        "SELECT NOT attnotnull FROM pg_catalog.pg_attribute"
        " WHERE attrelid = %s AND attnum = %s",
        [table, column],
    ).fetchone()
    return None if row is None else bool(row[0])
