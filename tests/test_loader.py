"""The loader of named queries: files, parameters, and errors with file and line."""

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

Read = Callable[[str], Query]
HEADER = "-- name: get_thing :one\n-- Some thing.\n"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that loads one query from its text."""

    def read(text: str) -> Query:
        (tmp_path / "things.sql").write_text(text, encoding="utf-8")
        (loaded,) = load_queries(tmp_path).values()
        return loaded

    return read


def test_query_has_name_cardinality_description_and_place(read: Read):
    found = read("\n-- name: get_thing :many\n-- One.\n-- Two.\nSELECT 1;\n")

    assert (found.name, found.cardinality) == ("get_thing", "many")
    assert found.description == "One. Two."
    assert (found.path.name, found.line) == ("things.sql", 2)
    assert found.source == "SELECT 1;"
    assert found.sql == "SELECT 1"


def test_file_may_have_several_queries(tmp_path: Path):
    text = HEADER + "SELECT 1;\n\n" + HEADER.replace("thing", "other") + "SELECT 2;\n"
    (tmp_path / "things.sql").write_text(text, encoding="utf-8")

    assert list(load_queries(tmp_path)) == ["get_thing", "get_other"]


def test_parameters_become_psycopgs_in_order_of_first_use(read: Read):
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
def test_strings_comments_and_casts_are_unchanged(read: Read, text: str):
    found = read(f"{HEADER}SELECT\n{text}\n, :real;")

    assert found.parameters == ("real",)
    assert found.sql == f"SELECT\n{text}\n, %(real)s"


@pytest.mark.parametrize("text", ["7 % 4", "'7 % 4'", "'%(x)s'", "1 -- %", '1 AS "%"'])
def test_percent_signs_reach_the_database_unchanged(
    conn: psycopg.Connection[TupleRow], read: Read, text: str
):
    found = read(f"{HEADER}SELECT :x || '%'\n, {text}\n;")

    row = conn.execute(found.sql, {"x": "100"}).fetchone()

    assert row is not None
    bare = conn.execute(f"SELECT {text}".encode()).fetchone()
    assert bare is not None
    assert row == ("100%", bare[0])


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("-- name:\n-- Some.\nSELECT 1;", 1, "begins with"),
        ("-- name: Get-Thing :one\n-- Some.\nSELECT 1;", 1, "begins with"),
        ("\n-- name: get_thing\n-- Some.\nSELECT 1;", 2, "one of :one, :optional"),
        ("-- name: get_thing :few\n-- Some.\nSELECT 1;", 1, "one of :one, :optional"),
        ("-- name: get_thing one\n-- Some.\nSELECT 1;", 1, "one of :one, :optional"),
        ("SELECT 1;", 1, "begins with"),
        ("\n-- Get some thing.\n" + HEADER + "SELECT 1;", 2, "begins with"),
        ("-- name: get_thing :one\nSELECT 1;", 1, "needs a description"),
        (HEADER + "SELECT 1", 1, "one statement"),
        (HEADER, 1, "one statement"),
        (HEADER + ";", 1, "one statement"),
        (HEADER + "SELECT 1; SELECT 2;", 1, "one statement"),
    ],
)
def test_error_is_reported_with_file_and_line(
    read: Read, text: str, line: int, reason: str
):
    with pytest.raises(QueryFileError, match=rf"things\.sql:{line}: .*") as caught:
        read(text)

    assert reason in str(caught.value)


def test_repeated_name_is_reported_with_both_places(tmp_path: Path):
    (tmp_path / "a.sql").write_text(HEADER + "SELECT 1;\n", encoding="utf-8")
    (tmp_path / "b.sql").write_text("\n" + HEADER + "SELECT 1;\n", encoding="utf-8")

    with pytest.raises(QueryFileError, match=r"b\.sql:2: .*a\.sql:1"):
        load_queries(tmp_path)


def test_queries_are_ascii():
    """Tools read their files in any locale."""
    for found in QUERIES.values():
        assert found.path.read_bytes().isascii(), found.path.name


def test_every_query_runs_in_psql(shared_database: str):
    names = {name for found in QUERIES.values() for name in found.parameters}
    lines = ["BEGIN;", *(rf"\set {name} NULL" for name in sorted(names))]
    for found in QUERIES.values():
        if not found.source.startswith("COPY"):
            lines.append(rf"\echo {found.name}")
            lines.append(f"{'EXPLAIN' if is_planned(found) else ''} {found.source}")
    lines.append("ROLLBACK;")

    # psql stops at the first query that it cannot read.
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


def test_query_returns_the_same_rows_in_psql(shared_database: str):
    settings = r"\set plan_id '''paid'''"

    output = run_psql(shared_database, f"{settings}\n{QUERIES['get_plan'].source}")

    assert "paid" in output
    assert "50000" in output
