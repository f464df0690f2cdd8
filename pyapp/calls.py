"""What a query function is made of: one plan, and two ways to run it.

A plan says which parameters a query gets and what its rows become, and touches no
connection. `query` makes a plan a function on a `psycopg.Connection`, and `script` does
so for several steps; `twin` makes that function's other half on a
`psycopg.AsyncConnection`. None of them ever commits.
"""

import functools
import inspect
from collections.abc import (
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.rows import class_row

from pyapp.errors import PyappError, translate
from pyapp.queries import QUERIES, Query

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """The parameters of one execution and what its result becomes.

    `row` is the class of a row, None for a count. `is_guarded` runs it in a savepoint
    and turns violated rules into domain errors, so that the caller may go on.
    """

    row: type[Any] | None
    parameters: Mapping[str, Any]
    finish: Callable[[Sequence[Any], int], T]
    is_guarded: bool = False

    def map(self, function: Callable[[T], U]) -> "Call[U]":
        """Return the same call, its result passed through *function*."""
        finish = self.finish
        return Call(
            self.row,
            self.parameters,
            lambda rows, count: function(finish(rows, count)),
            self.is_guarded,
        )


def one(
    row: type[R],
    parameters: Mapping[str, Any],
    *,
    missing: Callable[[], PyappError] | None = None,
    is_guarded: bool = False,
) -> Call[R]:
    """Return a call for exactly one row; without one, *missing* says what to raise."""

    def finish(rows: Sequence[R], _: int) -> R:
        if not rows and missing is not None:
            raise missing()
        (result,) = rows
        return result

    return Call(row, parameters, finish, is_guarded)


def optional(
    row: type[R], parameters: Mapping[str, Any], *, is_guarded: bool = False
) -> Call[R | None]:
    """Return a call for one row or None."""
    return Call(row, parameters, lambda rows, _: rows[0] if rows else None, is_guarded)


def many(row: type[R], parameters: Mapping[str, Any]) -> Call[list[R]]:
    """Return a call for a list of rows, in the query's order."""
    return Call(row, parameters, lambda rows, _: list(rows))


def rowcount(parameters: Mapping[str, Any], *, is_guarded: bool = False) -> Call[int]:
    """Return a call for the number of rows changed."""
    return Call(None, parameters, lambda _, count: count, is_guarded)


@dataclass(frozen=True, slots=True)
class Step:
    """One query of a script, by name; the script is sent its result."""

    name: str
    call: Call[Any]


@dataclass(frozen=True, slots=True)
class CopyStep:
    """One COPY ... FROM STDIN of a script, by name; the script is sent the count."""

    name: str
    rows: Iterable[Sequence[Any]]


Script = Generator[Step | CopyStep, Any, T]


def query(
    plan: Callable[P, Call[T]],
) -> Callable[Concatenate[Connection[Any], P], T]:
    """Make *plan* a function on a connection, running the query of its name."""
    statement = QUERIES[plan.__name__]

    @functools.wraps(plan)
    def function(conn: Connection[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(conn, statement, plan(*args, **kwargs))

    return _describe(function, plan, Connection[Any])


def script(
    plan: Callable[P, Script[T]],
) -> Callable[Concatenate[Connection[Any], P], T]:
    """Make a generator of steps a function on a connection, all in one savepoint."""

    @functools.wraps(plan)
    def function(conn: Connection[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = plan(*args, **kwargs)
        with _translated(), conn.transaction():
            result: Any = None
            while True:
                try:
                    step = steps.send(result)
                except StopIteration as stop:
                    return cast("T", stop.value)
                result = _take(conn, step)

    return _describe(function, plan, Connection[Any])


def twin(
    function: Callable[Concatenate[Connection[Any], P], T],
) -> Callable[Concatenate[AsyncConnection[Any], P], Coroutine[Any, Any, T]]:
    """Return the async half of a function made by `query` or `script`."""
    plan: Callable[P, Any] = inspect.unwrap(function)

    @functools.wraps(plan)
    async def run_query(
        conn: AsyncConnection[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        call: Call[T] = plan(*args, **kwargs)
        return await _run_async(conn, QUERIES[plan.__name__], call)

    @functools.wraps(plan)
    async def run_script(
        conn: AsyncConnection[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        steps: Script[T] = plan(*args, **kwargs)
        with _translated():
            async with conn.transaction():
                result: Any = None
                while True:
                    try:
                        step = steps.send(result)
                    except StopIteration as stop:
                        return cast("T", stop.value)
                    result = await _take_async(conn, step)

    half = run_script if inspect.isgeneratorfunction(plan) else run_query
    return _describe(half, plan, AsyncConnection[Any])


def _describe(function: F, plan: Callable[..., Any], connection: Any) -> F:
    """Give *function* the signature of *plan* with the connection before it."""
    signature = inspect.signature(plan)
    conn = inspect.Parameter(
        "conn", inspect.Parameter.POSITIONAL_ONLY, annotation=connection
    )
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[conn, *signature.parameters.values()]
    )
    return function


@contextmanager
def _translated() -> Iterator[None]:
    """Turn a rule's violation into its domain error, and let all others through."""
    try:
        yield
    except psycopg.IntegrityError as exc:
        raise translate(exc) from exc


def _cursor_options(call: Call[Any]) -> dict[str, Any]:
    return {} if call.row is None else {"row_factory": class_row(call.row)}


def _run(conn: Connection[Any], statement: Query, call: Call[T]) -> T:
    if not call.is_guarded:
        return _execute(conn, statement, call)
    with _translated(), conn.transaction():
        return _execute(conn, statement, call)


def _execute(conn: Connection[Any], statement: Query, call: Call[T]) -> T:
    with conn.cursor(**_cursor_options(call)) as cursor:
        cursor.execute(statement.sql, call.parameters)
        rows = () if call.row is None else cursor.fetchall()
        return call.finish(rows, cursor.rowcount)


def _take(conn: Connection[Any], step: Step | CopyStep) -> Any:
    statement = QUERIES[step.name]
    if isinstance(step, Step):
        return _execute(conn, statement, step.call)
    with conn.cursor() as cursor:
        with cursor.copy(statement.sql) as copy:
            for row in step.rows:
                copy.write_row(row)
        return cursor.rowcount


async def _run_async(conn: AsyncConnection[Any], statement: Query, call: Call[T]) -> T:
    if not call.is_guarded:
        return await _execute_async(conn, statement, call)
    with _translated():
        async with conn.transaction():
            return await _execute_async(conn, statement, call)


async def _execute_async(
    conn: AsyncConnection[Any], statement: Query, call: Call[T]
) -> T:
    async with conn.cursor(**_cursor_options(call)) as cursor:
        await cursor.execute(statement.sql, call.parameters)
        rows = () if call.row is None else await cursor.fetchall()
        return call.finish(rows, cursor.rowcount)


async def _take_async(conn: AsyncConnection[Any], step: Step | CopyStep) -> Any:
    statement = QUERIES[step.name]
    if isinstance(step, Step):
        return await _execute_async(conn, statement, step.call)
    async with conn.cursor() as cursor:
        async with cursor.copy(statement.sql) as copy:
            for row in step.rows:
                await copy.write_row(row)
        return cursor.rowcount
