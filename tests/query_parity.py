"""Finds every query function, and what the database says about its statement."""

import functools
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias
from uuid import UUID

import psycopg
from psycopg import pq
from psycopg.rows import TupleRow

import pyapp
from pyapp._core.calls import Call, CopyStep, Step
from pyapp._core.queries import Query

# What a value of each PostgreSQL type is in Python; jsonb may be anything.
PYTHON_TYPES: dict[str, set[type]] = {
    "bool": {bool},
    "bytea": {bytes},
    "date": {date},
    "int2": {int},
    "int4": {int},
    "int8": {int},
    "interval": {timedelta},
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
    str: "x",
    timedelta: timedelta(days=1),
    UUID: UUID(int=1),
}


@dataclass(frozen=True)
class Function:
    """A function made of a plan."""

    module: str
    name: str
    plan: Callable[..., Any]

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Use:
    """One execution of a query by a function; `call` is None for a COPY."""

    function: Function
    call: Call[Any] | None
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
    """A field of a row; those of a row within it are named after it."""

    owner: str
    name: str
    types: set[Any]
    is_nullable: bool


@functools.cache
def find_functions() -> list[Function]:
    """Return every query function of the package, twins apart.

    The tools and the command line have queries of their own, in sql/devtools.
    """
    found = []
    for module_info in pkgutil.walk_packages(pyapp.__path__, "pyapp."):
        if module_info.name.startswith(("pyapp.cli", "pyapp.devtools")):
            continue
        module = importlib.import_module(module_info.name)
        for name, member in vars(module).items():
            plan = inspect.unwrap(member) if inspect.isfunction(member) else None
            if plan in (None, member) or plan.__module__ != module.__name__:
                continue
            result = typing.get_origin(typing.get_type_hints(plan).get("return"))
            if result in (Call, Generator):
                found.append(Function(module.__name__, name, plan))
    return found


@functools.cache
def find_uses() -> dict[str, list[Use]]:
    """Return for each query the executions that functions make of it."""
    uses: dict[str, list[Use]] = {}
    for function in find_functions():
        outcome = function.plan(**_sample_arguments(function.plan))
        if isinstance(outcome, Call):
            uses.setdefault(function.plan.__name__, []).append(
                Use(function, outcome, ())
            )
            continue
        before: tuple[str, ...] = ()
        for step in _walk(outcome):
            call = None if isinstance(step, CopyStep) else step.call
            uses.setdefault(step.name, []).append(Use(function, call, before))
            before = (*before, step.name)
    return uses


def _walk(steps: Generator[Any, Any, Any]) -> Iterator[Step | CopyStep]:
    """Return the steps of a script whose queries all give nothing."""
    yield from steps


def _sample_arguments(plan: Callable[..., Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(plan)
    return {name: sample(hints[name]) for name in inspect.signature(plan).parameters}


def sample(hint: Any) -> Any:
    """Return some value of the type *hint*."""
    kinds, _ = split_optional(hint)
    kind = next(iter(kinds))
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return typing.get_args(kind)[0]
    if kind in SAMPLES:
        return SAMPLES[kind]
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return {}
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return []
    raise LookupError(f"no sample of {hint}: add one to SAMPLES")


def split_optional(hint: Any) -> tuple[list[Any], bool]:
    """Return the types that *hint* allows beside None, and whether it allows None."""
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
    """Return the fields of what *row* makes, in the order of its values."""
    kind = row if is_dataclass(row) else typing.get_type_hints(row)["return"]
    return list(_fields(kind, "", is_nullable=False))


def _fields(kind: Any, prefix: str, *, is_nullable: bool) -> Iterator[Field]:
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        kinds, is_optional = split_optional(hints[field.name])
        is_none = is_nullable or is_optional
        if is_dataclass(kinds[0]):
            yield from _fields(kinds[0], f"{field.name}_", is_nullable=is_none)
        else:
            name = f"{prefix}{field.name}"
            yield Field(kind.__name__, name, plain_types(kinds), is_none)


def is_planned(query: Query) -> bool:
    """Say whether EXPLAIN knows such statements: not COPY or CREATE."""
    return (
        re.match(r"(SELECT|WITH|INSERT|UPDATE|DELETE|MERGE)\b", query.source)
        is not None
    )


def describe(conn: psycopg.Connection[TupleRow], query: Query) -> Described:
    """Return the types of the parameters and the columns of a planned statement."""
    places = {name: f"${n}" for n, name in enumerate(query.parameters, 1)}
    # The loader has doubled every other per cent sign.
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
    """Explain the prepared statement, and tell which outputs the plan may blank.

    The catalog does not know: there the inner column of a LEFT JOIN is not null, and
    so is the column of a grouping set.
    """
    conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    nulls = f"({', '.join(['NULL'] * parameters)})" if parameters else ""
    row = conn.execute(
        f"EXPLAIN (VERBOSE, COSTS OFF, FORMAT JSON) EXECUTE parity {nulls}"
    ).fetchone()
    assert row is not None
    plan = row[0][0]
    nodes = list(_nodes(plan["Plan"]))
    aliases = {alias for node in nodes for alias in _blanked(node)}
    keys = {key for node in nodes for key in _grouping_keys(node)}
    outputs = plan["Plan"].get("Output", [])
    return [out.partition(".")[0] in aliases or out in keys for out in outputs]


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _blanked(node: dict[str, Any]) -> set[str]:
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
