"""Generated columns, indexes and checks that hold results of changed functions.

Replacing an immutable function changes none of them, and a dump shows no difference:
only the catalog tells which ones are stale. The steps renew them.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from pyapp._core.connection import connect
from pyapp._core.run import fetch_all
from pyapp.devtools.generate.sources import Sources
from pyapp.devtools.generate.steps import (
    WIDTH,
    Step,
    alter_table,
    ignoring,
    validated,
)


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A generated column, index or check, and the functions of app that it calls.

    `definition` is the expression of a column, else the statement's clause. An UPDATE
    that sets `plain_column` to itself computes the generated columns of a row.
    """

    kind: Literal["column", "index", "check"]
    table_name: str
    name: str
    definition: str
    plain_column: str
    functions: list[str]


def read_stored_results(url: str) -> list[StoredResult]:
    """Return the results of functions stored at *url*, in the order of the tables."""
    with connect(url) as conn:
        return fetch_all(conn, StoredResult, "list_stored_results")


def renew_steps(
    results: Sequence[StoredResult], changed: Collection[str], sources: Sources
) -> list[Step]:
    """Return the steps that renew the results of the functions named *changed*."""
    stale = [r for r in results if not set(changed).isdisjoint(r.functions)]
    return [
        step
        for table, group in groupby(stale, key=lambda result: result.table_name)
        for step in _renew(table, list(group), sources)
    ]


def _renew(table: str, stale: list[StoredResult], sources: Sources) -> Iterator[Step]:
    if columns := [result for result in stale if result.kind == "column"]:
        yield _update(table, columns)
    for result in stale:
        if result.kind == "index":
            yield Step(
                ignoring(
                    "require-concurrent-reindex",
                    "REINDEX",
                    f"REINDEX INDEX app.{result.name};",
                ),
                note=f"Blocks writes to app.{table}, and reads that use the index.",
                renews=f"index app.{result.name}",
            )
        elif result.kind == "check":
            source = sources.constraints.get((table, result.name))
            definition = source or f"CONSTRAINT {result.name} {result.definition}"
            add = alter_table(table, f"ADD {validated(definition)}").replace(
                "\n", "\n    -- squawk-ignore constraint-missing-not-valid\n", 1
            )
            drop = alter_table(table, f"DROP CONSTRAINT {result.name}")
            drop = ignoring("ban-drop-constraint", "DROP", drop)
            yield Step(
                f"{drop}\n{add}",
                note=f"Checks all rows of app.{table} under an ACCESS EXCLUSIVE lock.",
                renews=f"check {result.name}",
            )


def _update(table: str, columns: list[StoredResult]) -> Step:
    """Return the step that updates the rows whose generated columns are stale.

    The lock waits for transactions that have written with the previous function.
    """
    plain = columns[0].plain_column
    stale = "\n    OR ".join(_is_stale(column) for column in columns)
    return Step(
        f"LOCK TABLE app.{table} IN SHARE ROW EXCLUSIVE MODE;\n\n"
        f"UPDATE app.{table}\nSET {plain} = {plain}\nWHERE {stale};",
        note=f"Blocks writes to app.{table} until all stale rows are updated.",
        renews=", ".join(f"app.{table}.{column.name}" for column in columns),
    )


def _is_stale(column: StoredResult) -> str:
    text = f"{column.name} IS DISTINCT FROM {column.definition}"
    is_wide = len(text) > WIDTH - len("    OR ;")
    return text.replace(" IS DISTINCT", "\n    IS DISTINCT", 1) if is_wide else text
