"""Traps: objects of a caller with the names that function bodies use.

`create_traps` creates, in pg_temp or another schema, a type of every name that
PostgreSQL has, and a function, operator, collation, view or table of every name that a
body of the schema app uses. Each trap reports the current user by a NOTICE. If
search_path does not list pg_temp, PostgreSQL searches it first for types, tables and
views; it never searches it for functions, operators and collations.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

# The text of the function bodies, defaults and checks of the schema.
BODIES = """
    SELECT concat(p.prosrc, ' ', pg_get_function_sqlbody(p.oid)) AS body
    FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = 'app'::regnamespace
    UNION ALL
    SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef AS d
    INNER JOIN pg_catalog.pg_class AS c ON c.oid = d.adrelid
    WHERE c.relnamespace = 'app'::regnamespace
    UNION ALL
    SELECT pg_get_constraintdef(k.oid) FROM pg_catalog.pg_constraint AS k
    WHERE k.connamespace = 'app'::regnamespace
"""
# Every name used as a relation, and the relations that exist.
RELATIONS = f"""
    SELECT w[1] FROM ({BODIES}) AS b, regexp_matches(
        lower(b.body), '(?:from|into|join|only|table|update|using)\\s+([a-z_]\\w*)', 'g'
    ) AS w
    UNION
    SELECT c.relname FROM pg_catalog.pg_class AS c
    WHERE c.relnamespace = 'app'::regnamespace AND c.relkind IN ('r', 'p', 'v')
    UNION
    SELECT c.relname FROM pg_catalog.pg_class AS c, ({BODIES}) AS b
    WHERE c.relnamespace = 'pg_catalog'::regnamespace
        AND b.body ~ ('\\m' || c.relname || '\\M')
"""
# Functions that AT TIME ZONE, EXTRACT and similar syntax call.
IMPLIED = ["timezone", "extract", "date_part", "concat", "like", "overlaps"]

TYPES = """
    SELECT t.typname FROM pg_catalog.pg_type AS t
    WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typname !~ '^_'
        AND t.typtype IN ('b', 'r', 'm', 'e')
"""
SPELLED = {
    "bigint": "int8",
    "boolean": "bool",
    "character": "bpchar",
    "dec": "numeric",
    "decimal": "numeric",
    "double": "float8",
    "int": "int4",
    "integer": "int4",
    "real": "float4",
    "smallint": "int2",
}
PSEUDO = ["record", "trigger", "void", "cstring", "anyelement"]

ARGUMENTS = """
    SELECT string_agg(
        CASE WHEN p.provariadic <> 0 AND a.n = p.pronargs THEN 'VARIADIC ' ELSE '' END
        || 'pg_catalog.' || quote_ident(t.typname), ', ' ORDER BY a.n
    )
    FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a (oid, n)
    INNER JOIN pg_catalog.pg_type AS t ON t.oid = a.oid
"""
FUNCTIONS = f"""
    SELECT
        p.proname,
        COALESCE(({ARGUMENTS}), ''),
        CASE WHEN p.proretset THEN 'SETOF ' ELSE '' END
        || 'pg_catalog.' || quote_ident(r.typname)
    FROM pg_catalog.pg_proc AS p
    INNER JOIN pg_catalog.pg_type AS r ON r.oid = p.prorettype
    WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY(%s)
"""
OPERATORS = """
    SELECT
        o.oprname,
        o.oid::bigint,
        'pg_catalog.' || quote_ident(l.typname),
        'pg_catalog.' || quote_ident(r.typname),
        'pg_catalog.' || quote_ident(res.typname)
    FROM pg_catalog.pg_operator AS o
    LEFT JOIN pg_catalog.pg_type AS l ON l.oid = o.oprleft
    INNER JOIN pg_catalog.pg_type AS r ON r.oid = o.oprright
    INNER JOIN pg_catalog.pg_type AS res ON res.oid = o.oprresult
    WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprname = ANY(%s)
"""
COLLATIONS = ["default", "C", "POSIX", "ucs_basic", "en_US", "unicode"]

# Without tables, because views have the same names.
KINDS = ("type", "view", "function", "operator", "collation", "cast")

# Text of the NOTICE, before the current user.
NOTICE = "trap runs as "

REPORT = """
CREATE FUNCTION {schema}.report(anyelement) RETURNS pg_catalog.bool LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE NOTICE 'trap runs as %', current_user;
    BEGIN
        EXECUTE 'CREATE FUNCTION app.backdoor() RETURNS integer LANGUAGE sql RETURN 1';
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    RETURN TRUE;
END $$;
CREATE FUNCTION {schema}.report_row() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE NOTICE 'trap runs as %', current_user;
    RETURN NULL;
END $$
"""


@dataclass(frozen=True)
class Names:
    """The names that bodies use, and PostgreSQL's objects of these names."""

    relations: list[str]
    types: list[str]
    functions: list[tuple[str, str, str]] = field(repr=False)
    operators: list[tuple[str, int, str | None, str, str]] = field(repr=False)


def read_names(conn: psycopg.Connection) -> Names:
    """Return the names that bodies, defaults and checks of the schema use."""

    def column(query: str, *values: object) -> list[str]:
        return sorted({row[0] for row in conn.execute(query.encode(), values or None)})

    words = column(
        f"SELECT w[1] FROM ({BODIES}) AS b, regexp_matches(lower(b.body),"
        " '[a-z_][a-z0-9_]*', 'g') AS w"
    )
    symbols = column(
        f"SELECT w[1] FROM ({BODIES}) AS b,"
        " regexp_matches(b.body, '[-~!@#^&|`?+*/%<>=]+', 'g') AS w"
    )
    called = [[*words, *IMPLIED]]
    return Names(
        column(RELATIONS),
        column(TYPES),
        conn.execute(FUNCTIONS.encode(), called).fetchall(),
        conn.execute(OPERATORS.encode(), [symbols]).fetchall(),
    )


def create_traps(
    conn: psycopg.Connection,
    names: Names,
    schema: str,
    kinds: Collection[str] = KINDS,
) -> dict[str, int]:
    """Create a trap of each name in *schema*, of these *kinds*.

    Return the number of each kind. Objects that PostgreSQL refuses to create, such as a
    PL/pgSQL function of a pseudo-type, are left out.
    """
    conn.execute(sql.SQL(REPORT).format(schema=sql.Identifier(schema)))
    counts = dict.fromkeys(kinds, 0)
    for kind, statement in _traps(names):
        if kind not in kinds:
            continue
        formatted = sql.SQL(statement).format(schema=sql.Identifier(schema))
        try:
            with conn.transaction():
                conn.execute(formatted)
            counts[kind] += 1
        except (psycopg.ProgrammingError, psycopg.NotSupportedError):
            continue
    return counts


def _traps(names: Names) -> Iterator[tuple[str, str]]:
    for number, (name, arguments, result) in enumerate(names.functions):
        body = "BEGIN PERFORM {schema}.report(0); RETURN; END"
        if not result.startswith("SETOF"):
            body = body.replace("RETURN;", "RETURN NULL;")
        yield (
            "function",
            f"CREATE FUNCTION {{schema}}.{quoted(name)}({arguments}) RETURNS {result}"
            f" LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp"
            f" AS $f{number}${body}$f{number}$",
        )
    for name, oid, left, right, result in names.operators:
        both = ", ".join(side for side in (left, right) if side)
        sides = f"LEFTARG = {left}, " if left else ""
        yield (
            "operator",
            f"CREATE FUNCTION {{schema}}.operator_{oid}({both}) RETURNS {result}"
            " LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp"
            " AS $$BEGIN PERFORM {schema}.report(0); RETURN NULL; END$$;"
            f"CREATE OPERATOR {{schema}}.{name} ({sides}RIGHTARG = {right},"
            f" FUNCTION = {{schema}}.operator_{oid})",
        )
    for name in COLLATIONS:
        yield (
            "collation",
            f'CREATE COLLATION {{schema}}.{quoted(name)} FROM pg_catalog."C"',
        )
    yield from _casts()
    types = {name: name for name in names.types} | SPELLED
    for name in sorted(set(names.relations) - set(types) - set(PSEUDO)):
        yield "view", _view(name)
        yield "table", _table(name)
    for name, base in types.items():
        yield (
            "type",
            f"CREATE DOMAIN {{schema}}.{quoted(name)} AS pg_catalog.{quoted(base)}"
            " CHECK ({schema}.report(VALUE))",
        )
    for name in PSEUDO:
        yield "type", f"CREATE TYPE {{schema}}.{quoted(name)} AS (x pg_catalog.int4)"


def _casts() -> Iterator[tuple[str, str]]:
    yield "cast", "CREATE TYPE {schema}.mine AS ENUM ('a')"
    for base in (
        "text",
        "date",
        "timestamptz",
        "timestamp",
        "numeric",
        "uuid",
        "jsonb",
    ):
        ends = f"pg_catalog.{base}", "{schema}.mine"
        for source, target in (ends, ends[::-1]):
            function = f"{{schema}}.cast_{base}({source})"
            yield (
                "cast",
                f"CREATE FUNCTION {function} RETURNS {target} LANGUAGE plpgsql AS"
                " $$BEGIN PERFORM {schema}.report(0); RETURN NULL; END$$;"
                f"CREATE CAST ({source} AS {target})"
                f" WITH FUNCTION {function} AS IMPLICIT",
            )


def _view(name: str) -> str:
    relation = f"{{schema}}.{quoted(name)}"
    return (
        f"CREATE VIEW {relation} AS"
        " SELECT pg_catalog.gen_random_uuid() AS id, {schema}.report(0) AS reported;"
        f"GRANT ALL ON {relation} TO public"
    )


def _table(name: str) -> str:
    relation = f"{{schema}}.{quoted(name)}"
    return (
        f"CREATE TABLE {relation} (id pg_catalog.uuid);"
        f"CREATE TRIGGER reported BEFORE INSERT OR UPDATE OR DELETE ON {relation}"
        " FOR EACH STATEMENT EXECUTE FUNCTION {schema}.report_row();"
        f"GRANT ALL ON {relation} TO public"
    )


def quoted(name: str) -> str:
    """Return *name* as an identifier, with braces escaped for str.format."""
    return '"' + name.replace("{", "{{").replace("}", "}}") + '"'
