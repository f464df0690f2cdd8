"""The SQL files, and their named queries, which are read once at import.

A query is a header, a description and one statement:

    -- name: find_session :optional
    -- The session, its user and fingerprint, while it is valid.
    SELECT ... WHERE s.token_hash = :token_hash;

Parameters are `:name`, as in psql and pgbench, so that a query also runs there. For
psycopg they become `%(name)s`, and `%` is doubled, because psycopg reads it even in a
comment. Strings, comments and `::` casts are not changed.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pyapp.errors import QueryFileError

Cardinality = Literal["one", "optional", "many", "rowcount"]

_PACKAGE = Path(__file__).resolve().parents[1]
_HEADER = re.compile(
    r"-- name: (?P<name>[a-z][a-z0-9_]*) :(?P<cardinality>one|optional|many|rowcount)"
)
_TOKEN = re.compile(
    r"""
    --[^\n]* | /\*.*?\*/
  | [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
  | (?P<tag>\$\w*\$).*?(?P=tag)
  | :: | :=
  | :(?P<parameter>[A-Za-z_]\w*)
  | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL,
)


def sql_dir() -> Path:
    """Return the folder of schema.sql, functions/ and queries/."""
    return _folder("_sql", "sql")


def schema_files(folder: Path | None = None) -> list[Path]:
    """Return the files that build the schema, in order: schema.sql, then functions."""
    folder = folder or sql_dir()
    return [folder / "schema.sql", *sorted((folder / "functions").glob("*.sql"))]


def schema_text(folder: Path | None = None) -> str:
    """Return the SQL of all `schema_files`."""
    return "\n".join(path.read_text(encoding="utf-8") for path in schema_files(folder))


def migrations_dir() -> Path:
    """Return the folder of the yoyo migrations."""
    return _folder("_migrations", "migrations")


def _folder(packaged: str, checkout: str) -> Path:
    inside = _PACKAGE / packaged
    return inside if inside.is_dir() else _PACKAGE.parent / checkout


@dataclass(frozen=True, slots=True)
class Query:
    """A named statement, and where it is defined.

    `source` is the statement as written, `sql` as psycopg needs it. `parameters` are in
    the order of their first use.
    """

    name: str
    cardinality: Cardinality
    description: str
    source: str
    sql: str
    parameters: tuple[str, ...]
    path: Path
    line: int


def load_queries(folder: Path) -> Mapping[str, Query]:
    """Return the queries of every `.sql` file in *folder* by name.

    Raises: QueryFileError, with file and line, for an invalid header, a repeated name,
    a missing description, or anything but one statement.
    """
    queries: dict[str, Query] = {}
    for path in sorted(folder.glob("*.sql")):
        for query in _read_file(path):
            if first := queries.get(query.name):
                raise QueryFileError(
                    f"{path}:{query.line}: query {query.name} is already defined at "
                    f"{first.path}:{first.line}"
                )
            queries[query.name] = query
    return queries


def _read_file(path: Path) -> Iterator[Query]:
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = [n for n, line in enumerate(lines) if line.startswith("-- name:")]
    first = next((n for n, line in enumerate(lines) if line), None)
    if first is not None and first not in starts:
        starts.insert(0, first)
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield _read_query(path, start + 1, lines[start:end])


def _read_query(path: Path, line: int, lines: list[str]) -> Query:
    header = _HEADER.fullmatch(lines[0])
    if header is None:
        raise QueryFileError(
            f"{path}:{line}: a query begins with '-- name: <name> :<cardinality>', one"
            " of :one, :optional, :many and :rowcount"
        )
    name = header["name"]
    body = 1
    while body < len(lines) and lines[body].startswith("--"):
        body += 1
    description = " ".join(text.removeprefix("--").strip() for text in lines[1:body])
    if not description:
        raise QueryFileError(f"{path}:{line}: {name} needs a description")
    source = "\n".join(lines[body:]).strip()
    ends = [token.end() for token in _TOKEN.finditer(source) if token["end"]]
    if ends != [len(source)] or source == ";":
        raise QueryFileError(f"{path}:{line}: {name} needs one statement, ended by ';'")
    sql, parameters = _translate(source.removesuffix(";"))
    cardinality = cast("Cardinality", header["cardinality"])
    return Query(name, cardinality, description, source, sql, parameters, path, line)


def _translate(source: str) -> tuple[str, tuple[str, ...]]:
    """Return the statement as psycopg needs it, and its parameters."""
    parameters: dict[str, None] = {}

    def replace(token: re.Match[str]) -> str:
        name = token["parameter"]
        if name is None:
            return token[0]
        parameters[name] = None
        return f"%({name})s"

    return _TOKEN.sub(replace, source.replace("%", "%%")), tuple(parameters)


QUERIES = load_queries(sql_dir() / "queries")
TOOL_QUERIES = load_queries(sql_dir() / "devtools")
