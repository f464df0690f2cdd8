"""Each rule of docs/guidelines.md names what enforces it, and all of that exists.

Some enforcing tests are here, because they fit no other file.
"""

import re
from pathlib import Path

import psycopg
import typer

from pyapp._core.queries import QUERIES, sql_dir
from pyapp.cli.app import make_app
from pyapp.devtools.checks.catalog import read_catalog
from tests.catalog_rules import COLUMNS

ROOT = Path(__file__).parents[1]
GUIDELINES = (ROOT / "docs" / "guidelines.md").read_text(encoding="utf-8")
RULES = re.findall(r"^- (.+?)(?=^- |^$|\Z)", GUIDELINES, re.MULTILINE | re.DOTALL)
PROGRAMS = [*ROOT.glob("pyapp/**/*.py"), *ROOT.glob("examples/*.py")]

# Times without a default, and their sources.
GIVEN_TIMES = {
    "sessions.expires_at": "create_session, from the requested time to live",
    "messages.finished_at": "the caller, from the provider's response",
    "message_payloads.finished_at": "its message",
    "usage_slots.starts_at": "its messages, and the boundary of their payer",
    "usage_slots.ends_at": "its messages, and the boundary of their payer",
    "model_prices.valid_from": "the operator, from the contract",
    "stripe_events.event_created_at": "Stripe",
    "stripe_customers.as_of": "Stripe, or the time of the request",
    "stripe_subscriptions.created_at": "Stripe",
    "stripe_subscriptions.as_of": "Stripe, or the time of the request",
}


def keepers(rule: str) -> list[str]:
    return re.findall(r"`([^`]+)`", rule.partition("Kept by:")[2])


def list_commands() -> set[str]:
    """Return every `pyapp ...` and `make ...` command."""
    found = set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), re.MULTILINE))
    commands = {f"make {target}" for target in found}
    groups = [("pyapp", typer.main.get_command(make_app()))]
    for name, command in groups:
        commands.add(name)
        for word, below in getattr(command, "commands", {}).items():
            groups.append((f"{name} {word}", below))
    return commands


def list_tests() -> set[str]:
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py")
    )
    return set(re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE))


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_guideline_names_its_enforcement():
    assert len(RULES) > 25
    assert not [rule for rule in RULES if not keepers(rule)]


def test_enforcement_of_each_guideline_exists(conn: psycopg.Connection):
    catalog = read_catalog(conn)
    objects = {
        thing.name
        for things in (catalog.constraints, catalog.indexes, catalog.triggers)
        for thing in things
    }
    known = objects | list_tests() | list_commands()

    assert not [
        f"{keeper} does not exist; it would enforce: {' '.join(rule.split())[:70]}"
        for rule in RULES
        for keeper in keepers(rule)
        if keeper not in known
    ]


def test_python_files_have_at_most_500_lines():
    lines = {
        path: len(path.read_text("utf-8").splitlines())
        for folder in ("pyapp", "tests", "bench", "examples")
        for path in ROOT.glob(f"{folder}/**/*.py")
    }

    assert len(lines) > 100
    assert not [str(path) for path, count in lines.items() if count > 500]


def test_sql_functions_have_at_most_80_lines():
    """Blank lines and comments are not counted."""
    body = re.compile(
        r"^(?:AS \$\$|BEGIN ATOMIC)$(.*?)^END;$", re.DOTALL | re.MULTILINE
    )
    bodies = [
        [line for line in found[1].splitlines() if re.match(r"\s*[^\s-]", line)]
        for path in (sql_dir() / "schema.sql", *sql_dir().glob("functions/*.sql"))
        for found in body.finditer(path.read_text("utf-8"))
    ]

    assert len(bodies) > 20
    assert not [lines[:3] for lines in bodies if len(lines) > 80]


def test_stack_env_is_local():
    lines = read("stack.env").splitlines()

    assert {"ENVIRONMENT=local", "NEXT_PUBLIC_ENVIRONMENT=local"} <= set(lines)


def test_paths_are_pathlib():
    assert '"PTH"' in read("pyproject.toml"), "ruff's rules on paths are off"
    assert not [path for path in PROGRAMS if "os.path" in path.read_text("utf-8")]


def test_no_program_creates_an_index():
    queries = sql_dir().glob("queries/*.sql")
    makes_index = re.compile(r"CREATE\s+(UNIQUE\s+)?INDEX\b")

    assert not [
        f"{path}: define the index in sql/schema.sql and a migration"
        for path in (*PROGRAMS, *queries)
        if makes_index.search(path.read_text("utf-8")) and "devtools" not in path.parts
    ]


def test_generated_columns_are_stored(conn: psycopg.Connection):
    generated = conn.execute(
        f"SELECT c.object, c.attgenerated FROM ({COLUMNS}) AS c"
        " WHERE c.attgenerated <> ''"
    ).fetchall()

    assert {"app.users.quota", "app.users.quota_period_start"} <= {
        name for name, _ in generated
    }
    assert {kind for _, kind in generated} == {"s"}


def test_no_trigger_computes_a_column(conn: psycopg.Connection):
    """A trigger may set a transaction's time, which no expression can compute."""
    assigned = {
        f"{function.name} sets {column}"
        for function in read_catalog(conn).functions
        for column in re.findall(r"^\s*NEW\.(\w+) *:?=", function.body, re.MULTILINE)
    }

    assert assigned == {
        "set_completed_at sets completed_at",
        "set_updated_at sets updated_at",
    }


def test_end_date_stands_alone(conn: psycopg.Connection):
    ends = 0
    for query in QUERIES.values():
        if "end_date" not in query.source:
            continue
        values = dict.fromkeys(query.parameters)
        columns = conn.execute(query.sql.encode(), values).description or ()
        names = {column.name for column in columns}
        ends += "end_date" in names

        assert "next_quota_reset" not in names, query.name
    assert ends


def test_time_defaults_to_now_or_has_another_source(conn: psycopg.Connection):
    bare = conn.execute(
        f"""
        SELECT concat(c.relname, '.', c.attname) FROM ({COLUMNS}) AS c
        WHERE c.type = 'timestamp with time zone' AND c.attnotnull
            AND NOT c.atthasdef
        """
    ).fetchall()
    names = {name for (name,) in bare}

    assert not [
        f"{name}: give it DEFAULT now(), or name its source in GIVEN_TIMES"
        for name in names - set(GIVEN_TIMES)
    ]
    assert not set(GIVEN_TIMES) - names, "an exception is stale"


def test_guidelines_have_their_sections():
    assert re.findall(r"^## (.+)$", GUIDELINES, re.MULTILINE) == [
        "Files",
        "Setting up",
        "Environment",
        "Connections",
        "Indexes",
        "Defaults and calculated columns",
        "Referrals",
        "Sessions",
        "Messages",
        "Data of other systems",
        "Privileges",
    ]
