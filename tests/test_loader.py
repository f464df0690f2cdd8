"""The loader of named queries: what it reads, what it refuses with file and line."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import TupleRow

from pyapp._core.queries import QUERIES, Query, load_queries
from pyapp.devtools.server.binaries import binaries
from pyapp.errors import QueryFileError
from tests.query_parity import is_planned

HEADER = "-- name: get_thing :one\n-- Some thing.\n"


@pytest.fixture
def read(tmp_path: Path) -> Callable[[str], Query]:
    """Return a function that loads one query from its text."""

    def read(text: str) -> Query:
        (tmp_path / "things.sql").write_text(text, encoding="utf-8")
        (loaded,) = load_queries(tmp_path).values()
        return loaded

    return read


def test_query_has_name_cardinality_description_and_place(read):
    found = read("\n-- name: get_thing :many\n-- One.\n-- Two.\nSELECT 1;\n")

    assert (found.name, found.cardinality) == ("get_thing", "many")
    assert found.description == "One. Two."
    assert (found.path.name, found.line) == ("things.sql", 2)
    assert found.source == "SELECT 1;"
    assert found.sql == "SELECT 1"


def test_several_queries_stand_in_one_file(tmp_path: Path):
    text = HEADER + "SELECT 1;\n\n" + HEADER.replace("thing", "other") + "SELECT 2;\n"
    (tmp_path / "things.sql").write_text(text, encoding="utf-8")

    assert list(load_queries(tmp_path)) == ["get_thing", "get_other"]


def test_parameters_become_psycopgs_in_order_of_first_appearance(read):
    found = read(HEADER + "SELECT :b, :a, :b, (:a_1);")

    assert found.sql == "SELECT %(b)s, %(a)s, %(b)s, (%(a_1)s)"
    assert found.parameters == ("b", "a", "a_1")


@pytest.mark.parametrize(
    "text",
    [
        "':x'",
        "'it''s :x'",
        r"E'it\'s :x'",
        r"'a\'",
        '":x"',
        '"a "":x"',
        "$$ :x ' $$",
        "$body$ :x $$ :x $body$",
        "1 -- :x '",
        "1 /* :x\n' */",
        "'1'::text",
        "'{1,2}'::integer[]",
        "(ARRAY[1, 2])[1:2]",
        "make_interval(months := 1)",
        "make_interval(months => 1)",
        "'a''b' || ':x'",
        "';'",
        "1 -- ;",
    ],
)
def test_strings_comments_and_casts_stay_as_they_are(read, text: str):
    found = read(f"{HEADER}SELECT\n{text}\n, :real;")

    assert found.parameters == ("real",)
    assert found.sql == f"SELECT\n{text}\n, %(real)s"


@pytest.mark.parametrize("text", ["7 % 4", "'7 % 4'", "'%(x)s'", "1 -- %", '1 AS "%"'])
def test_per_cent_signs_reach_the_database_as_written(
    conn: psycopg.Connection[TupleRow], read, text: str
):
    found = read(f"{HEADER}SELECT :x || '%'\n, {text}\n;")

    row = conn.execute(found.sql, {"x": "100"}).fetchone()

    assert row is not None
    bare = conn.execute(f"SELECT {text}".encode()).fetchone()
    assert bare is not None
    assert row == ("100%", bare[0])


def test_comment_after_the_statement_is_allowed(read):
    assert read(HEADER + "SELECT 1; -- done\n").sql.startswith("SELECT 1")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("-- name:\n-- Some.\nSELECT 1;", 1, "without a name"),
        ("-- name: Get-Thing :one\n-- Some.\nSELECT 1;", 1, "not a name"),
        ("\n-- name: get_thing\n-- Some.\nSELECT 1;", 2, "needs one of :one"),
        ("-- name: get_thing :few\n-- Some.\nSELECT 1;", 1, "needs one of :one"),
        ("-- name: get_thing one\n-- Some.\nSELECT 1;", 1, "needs one of :one"),
        ("-- name: get_thing :one\nSELECT 1;", 1, "needs a sentence"),
        (HEADER + "SELECT 1", 1, "one statement"),
        (HEADER, 1, "one statement"),
        (HEADER + ";", 1, "empty"),
        (HEADER + "SELECT 1; SELECT 2;", 1, "one statement"),
        ("SELECT 1;", 1, "a query begins with"),
        ("\n-- Get some thing.\n" + HEADER + "SELECT 1;", 2, "a query begins with"),
        (HEADER + "SELECT 'a;", 1, 'cannot read "\'"'),
        (HEADER + "SELECT $a$ b;", 1, "cannot read '$a$'"),
        (HEADER + "SELECT 1 /* a;", 1, "cannot read '/*'"),
        (HEADER + "SELECT 1 /* a /* b */ :x */;", 1, "cannot read"),
        (HEADER + "SELECT :'x';", 1, 'cannot read ":\'"'),
    ],
)
def test_flaw_is_reported_with_file_and_line(read, text: str, line: int, reason: str):
    with pytest.raises(QueryFileError, match=rf"things\.sql:{line}: .*") as caught:
        read(text)

    assert reason in str(caught.value)


def test_doubled_name_is_reported_with_both_places(tmp_path: Path):
    (tmp_path / "a.sql").write_text(HEADER + "SELECT 1;\n", encoding="utf-8")
    (tmp_path / "b.sql").write_text("\n" + HEADER + "SELECT 1;\n", encoding="utf-8")

    with pytest.raises(QueryFileError, match=r"b\.sql:2: .*a\.sql:1"):
        load_queries(tmp_path)


def test_queries_are_ascii():
    """Their files are read by tools in whatever locale they run."""
    for found in QUERIES.values():
        assert found.path.read_bytes().isascii(), found.path.name


def test_every_query_stands_in_psql_as_it_is(shared_database: str):
    names = {name for found in QUERIES.values() for name in found.parameters}
    lines = ["BEGIN;", *(rf"\set {name} NULL" for name in sorted(names))]
    for found in QUERIES.values():
        if not found.source.startswith("COPY"):
            lines.append(rf"\echo {found.name}")
            lines.append(f"{'EXPLAIN' if is_planned(found) else ''} {found.source}")
    lines.append("ROLLBACK;")

    # A query that psql cannot read ends it with an error.
    output = run_psql(shared_database, "\n".join(lines))

    assert output.count("QUERY PLAN") == sum(map(is_planned, QUERIES.values()))


def run_psql(url: str, text: str) -> str:
    """Return what psql prints; it stops at the first error."""
    command = [str(binaries() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", url]
    run = subprocess.run(
        command, input=text, text=True, capture_output=True, check=False
    )
    assert run.returncode == 0, f"{run.stdout.splitlines()[-1:]}: {run.stderr}"
    return run.stdout


def test_query_gives_in_psql_what_it_gives_in_python(shared_database: str):
    settings = r"\set plan_id '''paid'''"

    output = run_psql(shared_database, f"{settings}\n{QUERIES['get_plan'].source}")

    assert "paid" in output
    assert "50000" in output
