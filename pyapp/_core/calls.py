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
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast

from psycopg import AsyncConnection, Connection

from pyapp._core import execution
from pyapp._core.queries import QUERIES, Cardinality
from pyapp._core.rows import row_maker
from pyapp._core.validation import argument_checks
from pyapp.errors import PyappError, QueryFileError

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """The parameters of one execution and what its result becomes.

    `cardinality` is what the query's header promises. `row` makes a row of its values,
    in the columns' order; it is None for a count. `is_guarded` says that a rule may
    refuse the change: the caller then goes on in his transaction as if he had not
    asked.
    """

    cardinality: Cardinality
    row: Callable[..., Any] | None
    parameters: Mapping[str, Any]
    finish: Callable[[Sequence[Any], int], T]
    is_guarded: bool = False

    def result(self, values: Sequence[Any], count: int) -> T:
        """Return what the values of the rows, or else their count, become."""
        if self.row is None:
            return self.finish((), count)
        make = row_maker(self.row)
        return self.finish([make(*row) for row in values], count)

    def map(self, function: Callable[[T], U]) -> "Call[U]":
        """Return the same call, its result passed through *function*."""
        finish = self.finish
        return Call(
            self.cardinality,
            self.row,
            self.parameters,
            lambda rows, count: function(finish(rows, count)),
            self.is_guarded,
        )


def one(
    row: Callable[..., R],
    parameters: Mapping[str, Any],
    *,
    missing: Callable[[], PyappError] | None = None,
    is_guarded: bool = False,
) -> Call[R]:
    """Return a call for exactly one row; without one, *missing* says what to raise.

    An :optional query is one too, where its function raises instead of returning None.
    """

    def finish(rows: Sequence[R], _: int) -> R:
        if not rows and missing is not None:
            raise missing()
        (result,) = rows
        return result

    return Call("one", row, parameters, finish, is_guarded)


def optional(
    row: Callable[..., R], parameters: Mapping[str, Any], *, is_guarded: bool = False
) -> Call[R | None]:
    """Return a call for one row or None."""

    def finish(rows: Sequence[R], _: int) -> R | None:
        return rows[0] if rows else None

    return Call("optional", row, parameters, finish, is_guarded)


def many(row: Callable[..., R], parameters: Mapping[str, Any]) -> Call[list[R]]:
    """Return a call for a list of rows, in the query's order."""
    return Call("many", row, parameters, lambda rows, _: list(rows))


def rowcount(parameters: Mapping[str, Any], *, is_guarded: bool = False) -> Call[int]:
    """Return a call for the number of rows changed."""
    return Call("rowcount", None, parameters, lambda _, count: count, is_guarded)


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
    name = plan.__name__
    if name not in QUERIES:
        code = inspect.unwrap(plan).__code__
        where = f"{code.co_filename}:{code.co_firstlineno}"
        raise QueryFileError(f"{where}: no query is called {name}")
    sql = QUERIES[name].sql
    checked = _checked(plan)

    @functools.wraps(plan)
    def function(conn: Connection[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(conn, sql, checked(*args, **kwargs))

    return _describe(function, plan, Connection[Any])


def script(
    plan: Callable[P, Script[T]],
) -> Callable[Concatenate[Connection[Any], P], T]:
    """Make a generator of steps a function on a connection: all of them or none."""
    checked = _checked(plan)

    @functools.wraps(plan)
    def function(conn: Connection[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        steps = checked(*args, **kwargs)
        with execution.unit(conn):
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
    checked = _checked(plan)

    @functools.wraps(plan)
    async def run_query(
        conn: AsyncConnection[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        call: Call[T] = checked(*args, **kwargs)
        return await _run_async(conn, QUERIES[plan.__name__].sql, call)

    @functools.wraps(plan)
    async def run_script(
        conn: AsyncConnection[Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
        steps: Script[T] = checked(*args, **kwargs)
        async with execution.unit_async(conn):
            result: Any = None
            while True:
                try:
                    step = steps.send(result)
                except StopIteration as stop:
                    return cast("T", stop.value)
                result = await _take_async(conn, step)

    half = run_script if inspect.isgeneratorfunction(plan) else run_query
    return _describe(half, plan, AsyncConnection[Any])


def _checked(plan: Callable[P, U]) -> Callable[P, U]:
    """Return *plan* with its keyword arguments checked by their annotations."""
    checks = argument_checks(plan)

    def checked(*args: P.args, **kwargs: P.kwargs) -> U:
        for name, value in kwargs.items():
            if name in checks:
                checks[name](name, value)
        return plan(*args, **kwargs)

    return checked


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


def _run(conn: Connection[Any], sql: str, call: Call[T]) -> T:
    run = execution.run_guarded if call.is_guarded else execution.run
    return call.result(*run(conn, sql, call.parameters, has_rows=call.row is not None))


def _take(conn: Connection[Any], step: Step | CopyStep) -> Any:
    sql = QUERIES[step.name].sql
    if isinstance(step, Step):
        return _run(conn, sql, step.call)
    return execution.copy(conn, sql, step.rows)


async def _run_async(
    conn: AsyncConnection[Any], sql: str, call: Call[T], *, is_step: bool = False
) -> T:
    run = execution.run_step_async if is_step else execution.run_async
    if call.is_guarded:
        run = execution.run_guarded_async
    has_rows = call.row is not None
    return call.result(*await run(conn, sql, call.parameters, has_rows=has_rows))


async def _take_async(conn: AsyncConnection[Any], step: Step | CopyStep) -> Any:
    sql = QUERIES[step.name].sql
    if isinstance(step, Step):
        return await _run_async(conn, sql, step.call, is_step=True)
    return await execution.copy_async(conn, sql, step.rows)
