"""Who writes which table: the named queries, the triggers and the functions."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyapp._core.queries import Query
from pyapp.devtools.checks.catalog import Catalog

_WRITE = re.compile(
    r"\b(?P<verb>INSERT\s+INTO|COPY|UPDATE|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE)\s+"
    r"(?:ONLY\s+)?app\.(?P<table>\w+)",
    re.IGNORECASE,
)
_UPSERT = re.compile(r"\bON\s+CONFLICT\b.*?\bDO\s+UPDATE\b", re.IGNORECASE | re.DOTALL)
_ASSIGNMENT = re.compile(r"\bNEW\.(\w+)\s*:=", re.IGNORECASE)
_DOES = {
    "COPY": "copies",
    "DELETE": "deletes",
    "INSERT": "inserts",
    "MERGE": "merges",
    "TRUNCATE": "truncates",
    "UPDATE": "updates",
    "UPSERT": "inserts or updates",
}
_COMMENT = re.compile(r"--[^\n]*")


@dataclass(frozen=True, slots=True, order=True)
class Writer:
    """A query, trigger or function, and what it does to the rows of one table."""

    kind: str
    name: str
    does: tuple[str, ...]


def list_writers(catalog: Catalog, queries: Iterable[Query]) -> dict[str, list[Writer]]:
    """Return for each table who writes it; a partition counts as its table."""
    tables = [table.name for table in catalog.tables]
    found: dict[str, list[Writer]] = defaultdict(list)
    for kind, name, text in _statements(catalog, queries):
        does: dict[str, set[str]] = defaultdict(set)
        for table, verb in _writes(_COMMENT.sub("", text)):
            does[_table_of(table, tables)].add(verb)
        for table, verbs in does.items():
            found[table].append(Writer(kind, name, tuple(sorted(verbs))))
    bodies = {function.name: function.body for function in catalog.functions}
    for trigger in catalog.triggers:
        for column in _ASSIGNMENT.findall(bodies[trigger.function_name]):
            found[trigger.table_name].append(
                Writer("trigger", trigger.name, (f"sets {column}",))
            )
    return {table: sorted(writers) for table, writers in found.items()}


def _statements(
    catalog: Catalog, queries: Iterable[Query]
) -> Iterator[tuple[str, str, str]]:
    """Yield kind, name and text of all that may write."""
    for query in queries:
        yield "query", query.name, query.source
    bodies = {function.name: function.body for function in catalog.functions}
    for trigger in catalog.triggers:
        yield "trigger", trigger.name, bodies[trigger.function_name]
    run_by_trigger = {trigger.function_name for trigger in catalog.triggers}
    for name, body in bodies.items():
        if name not in run_by_trigger:
            yield "function", name, body


def _writes(text: str) -> Iterator[tuple[str, str]]:
    """Yield each table that *text* writes, and how."""
    matches = list(_WRITE.finditer(text))
    for number, match in enumerate(matches, start=1):
        end = matches[number].start() if number < len(matches) else len(text)
        verb = match["verb"].split()[0].upper()
        if verb == "INSERT" and _UPSERT.search(text, match.end(), end):
            verb = "UPSERT"
        yield match["table"], _DOES[verb]


def _table_of(name: str, tables: Iterable[str]) -> str:
    """Return the table that *name* is, or is a partition of: its name begins so."""
    if name in tables:
        return name
    parents = [table for table in tables if name.startswith(f"{table}_")]
    return max(parents, key=len, default=name)
