"""docs/schema.md, and the commands that explain the schema."""

import re
from pathlib import Path

import psycopg
import pytest

from pyapp.devtools.checks.schema_docs import read_index_notes, render_schema
from tests.support import run_cli

WORD = r"[A-Za-z_][A-Za-z0-9_()\[\]-]*"
KEY = "(?:PK|FK|UK)"
# The part of the grammar of Mermaid's entity relationship diagrams that is used.
DIAGRAM_LINES = (
    re.compile(rf"    {WORD} (?:\|\||\|o)--(?:o\{{|o\|) {WORD} : \"[a-z_, ]+\""),
    re.compile(rf"    {WORD} \{{"),
    re.compile(rf"        {WORD} {WORD}(?: {KEY}(?:, {KEY})*)?"),
    re.compile(r"    \}"),
)


@pytest.fixture
def at_database(shared_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", shared_database)


def test_page_is_fresh(conn: psycopg.Connection):
    page = Path(__file__).parents[1] / "docs" / "schema.md"

    assert page.read_text(encoding="utf-8") == render_schema(conn), (
        "docs/schema.md is stale; run: pyapp db migrate, then pyapp db docs"
    )


def test_diagram_is_valid_mermaid(conn: psycopg.Connection):
    page = render_schema(conn)
    diagram = page.split("```mermaid\n")[1].split("```")[0].splitlines()

    assert diagram[0] == "erDiagram"
    assert not [
        line
        for line in diagram[1:]
        if not any(known.fullmatch(line) for known in DIAGRAM_LINES)
    ]


def test_diagram_quotes_types_of_several_words(conn: psycopg.Connection):
    conn.execute(
        "CREATE TABLE app.odds (a double precision, b numeric(4, 2), c text[])"
    )

    page = render_schema(conn)

    assert (
        "        double_precision a\n        numeric(4_2) b\n        text[] c" in page
    )


def test_bars_in_cells_are_escaped(conn: psycopg.Connection):
    rows = re.findall(r"^\|.*\|$", render_schema(conn), re.MULTILINE)
    widths = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}

    assert widths <= {3, 4, 5, 6}


def test_unique_foreign_key_is_one_to_one(conn: psycopg.Connection):
    page = render_schema(conn)

    assert 'users ||--o| referrals : "referred_id"' in page
    assert 'users ||--o{ referrals : "referrer_id"' in page
    assert 'users |o--o{ messages : "user_id"' in page


def test_index_note_names_its_queries_and_constraints():
    notes = read_index_notes(
        "-- For list_rows, get_row and rows_user_id_fkey; partial, because few\n"
        "-- are open.\nCREATE UNIQUE INDEX rows_open_idx\nON app.rows (id);\n"
        "\nCREATE INDEX rows_bare_idx ON app.rows (id);\n"
    )

    assert notes["rows_open_idx"].serves == (
        "list_rows",
        "get_row",
        "rows_user_id_fkey",
    )
    assert notes["rows_open_idx"].comment.endswith("because few are open.")
    assert notes["rows_bare_idx"].serves == ()


def test_index_note_that_only_names_queries():
    notes = read_index_notes(
        "-- For get_row.\nCREATE INDEX rows_idx ON app.rows (id);\n"
    )

    assert not notes["rows_idx"].says_more


@pytest.mark.usefixtures("at_database")
def test_check_reports_a_stale_page_and_keeps_it(tmp_path: Path):
    page = tmp_path / "schema.md"
    page.write_text("old")

    code, out, _ = run_cli("db", "docs", "--check", "--output", str(page))

    assert (code, page.read_text()) == (1, "old")
    assert "run: pyapp db docs" in out


@pytest.mark.usefixtures("at_database")
def test_written_page_is_fresh(tmp_path: Path):
    page = tmp_path / "new" / "schema.md"

    written = run_cli("db", "docs", "--output", str(page))
    checked = run_cli("db", "docs", "--check", "--output", str(page))

    assert (written[0], checked[0]) == (0, 0)
    assert page.read_text().startswith("# The schema\n")


def test_empty_database_is_pointed_to_migrate(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", empty_database)

    for command in (("docs",), ("plan", "get_user"), ("roles",)):
        code, _, err = run_cli("db", *command)

        assert (code, err.count("\n")) == (1, 1)
        assert "pyapp db migrate" in err


@pytest.mark.usefixtures("at_database")
def test_plan_of_a_query_is_shown():
    code, out, _ = run_cli("db", "plan", "get_user")

    assert code == 0
    assert "users_pkey" in out
    assert "$1" in out


@pytest.mark.usefixtures("at_database")
def test_plan_for_a_value_runs_the_query():
    user = "user_id=00000000-0000-0000-0000-000000000000"

    code, out, _ = run_cli("db", "plan", "get_user", "--set", user, "--analyze")

    assert code == 0
    assert "actual time" in out


@pytest.mark.usefixtures("at_database")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["get_usr"], "there is get_"),
        (["get_user", "--set", "email=x"], "it has user_id"),
        (["get_user", "--set", "user_id=x"], "uuid"),
        (["get_user", "--set", "user_id"], "parameter=value"),
        (["copy_staged_messages"], "it is a COPY"),
    ],
)
def test_invalid_plan_request_is_refused(arguments: list[str], complaint: str):
    code, _, err = run_cli("db", "plan", *arguments)

    assert code in {1, 2}
    assert complaint in err
