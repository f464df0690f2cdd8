"""The named queries of `sql/queries/*.sql`, read once at import.

A query is a header, a description and one statement:

    -- name: find_session :optional
    -- The session, its user and fingerprint, while it is valid.
    SELECT ... WHERE s.token_hash = :token_hash;

Parameters are `:name`, as psql and pgbench write them, so that a query runs there as it
stands. Here they become psycopg's `%(name)s`; strings, comments and `::` casts stay as
they are, and `%` is doubled, for psycopg reads it even inside a comment.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from pyapp.errors import QueryFileError

Cardinality = Literal["one", "optional", "many", "rowcount"]

_HEADER = re.compile(r"--\s*name:\s*(?P<name>\S*)\s*(?P<cardinality>.*?)\s*$")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TOKEN = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ )
  | (?P<string>  [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
               | (?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag) )
  | (?P<cast>    ::|:= )
  | (?P<psql>    :['"{] )
  | (?P<end>     ; )
  | :(?P<parameter>[A-Za-z_]\w*)
  | (?P<open>    '|"|/\*|\$(?:[A-Za-z_]\w*)?\$ )
    """,
    re.VERBOSE | re.DOTALL,
)

_PACKAGE = Path(__file__).resolve().parents[1]


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
    """One statement with its name, its promise and where it stands.

    `source` is the statement as written; `sql` is what psycopg is sent. `parameters`
    are in order of first appearance.
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

    Raises: QueryFileError, with file and line, for a missing or doubled name, an
    unknown cardinality, a missing description, or anything but one statement.
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
    starts = [n for n, line in enumerate(lines) if _HEADER.match(line)]
    stray = next(
        (n for n, line in enumerate(lines[: starts[0] if starts else None]) if line),
        None,
    )
    if stray is not None:
        raise QueryFileError(
            f"{path}:{stray + 1}: a query begins with '-- name: <name> :<cardinality>'"
        )
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield _read_query(path, start + 1, lines[start:end])


def _read_query(path: Path, line: int, lines: list[str]) -> Query:
    where = f"{path}:{line}"
    header = _HEADER.match(lines[0])
    assert header is not None
    name, cardinality = header["name"], header["cardinality"].removeprefix(":")
    if not _NAME.fullmatch(name):
        raise QueryFileError(f"{where}: {name or 'a query without a name'}: not a name")
    known = get_args(Cardinality)
    if cardinality not in known or not header["cardinality"].startswith(":"):
        raise QueryFileError(
            f"{where}: {name} needs one of {', '.join(f':{c}' for c in known)}"
        )
    body = 1
    while body < len(lines) and lines[body].startswith("--"):
        body += 1
    description = " ".join(text.removeprefix("--").strip() for text in lines[1:body])
    if not description:
        raise QueryFileError(f"{where}: {name} needs a sentence under its name")
    source = "\n".join(lines[body:]).strip()
    sql, parameters = _translate(source, f"{where}: {name}")
    return Query(
        name=name,
        cardinality=cast("Cardinality", cardinality),
        description=description,
        source=source,
        sql=sql,
        parameters=parameters,
        path=path,
        line=line,
    )


def _translate(source: str, where: str) -> tuple[str, tuple[str, ...]]:
    """Return the statement as psycopg wants it, and its parameters."""
    parts: list[str] = []
    parameters: dict[str, None] = {}
    position = 0
    ended = False
    for token in _TOKEN.finditer(source):
        between = source[position : token.start()]
        if ended and (between.strip() or token.lastgroup != "comment"):
            break
        parts.append(between.replace("%", "%%"))
        position = token.end()
        # PostgreSQL nests comments, and no pattern can follow that.
        is_nested = token[0].startswith("/*") and "/*" in token[0][2:]
        if token["open"] or token["psql"] or is_nested:
            raise QueryFileError(f"{where}: cannot read {token[0]!r}")
        if token["end"]:
            ended = True
        elif name := token["parameter"]:
            parameters[name] = None
            parts.append(f"%({name})s")
        else:
            parts.append(token[0].replace("%", "%%"))
    if not ended or source[position:].strip():
        raise QueryFileError(f"{where}: one statement, ended by ';', is expected")
    sql = "".join(parts).strip()
    if not sql:
        raise QueryFileError(f"{where}: the statement is empty")
    return sql, tuple(parameters)


QUERIES = load_queries(sql_dir() / "queries")
TOOL_QUERIES = load_queries(sql_dir() / "devtools")
