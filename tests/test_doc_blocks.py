"""Each block of each page is run, or compared with what it shows, by a test file.

Blocks of Python are run by test_docs, commands by test_doc_commands. The others are
listed in BLOCKS with their files; those without a file of their own are run here.
"""

import inspect
import json
import re
from collections import Counter
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

import pyapp.users
from bench import report
from pyapp import roles
from pyapp._core import queries
from pyapp._core.connection_failures import unavailable
from pyapp.cli.stripe_serve import serve
from pyapp.messages import record_messages
from pyapp.stripe_sync import web
from pyapp.stripe_sync.runs import start_run
from pyapp.stripe_sync.webhooks import MAX_BODY
from pyapp.users import create_user
from tests.metering import add_user, new_message
from tests.stripe_world import StripeWorld, seconds
from tests.support import run_cli
from tests.test_cli_subscriptions import subscribe
from tests.test_data_check import DAY, WRONG, record, run_without_triggers

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "migrations/*.md", "deploy/**/*.md")
    for page in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
HERE = "test_doc_blocks"
# How many blocks of a language a page has, and the test file that runs them.
BLOCKS = {
    ("CHANGELOG.md", "sql"): (4, HERE),
    ("README.md", "text"): (1, "test_readme"),
    ("docs/adding-a-query.md", "py"): (2, HERE),
    ("docs/adding-a-query.md", "sql"): (1, HERE),
    ("docs/adding-a-query.md", "toml"): (1, HERE),
    ("docs/backup.md", "sh"): (1, "test_backup_outlines"),
    ("docs/backup.md", "text"): (2, "test_backup_outlines"),
    ("docs/changing-the-schema.md", "sql"): (8, "test_online_change"),
    ("docs/connections.md", "ini"): (1, "test_pooler"),
    ("docs/connections.md", "py"): (3, "test_forks"),
    ("docs/connections.md", "text"): (1, HERE),
    ("docs/deploy.md", "sql"): (1, HERE),
    ("docs/deploy.md", "text"): (1, HERE),
    ("docs/managed.md", "sql"): (2, "test_managed_server"),
    ("docs/operations.md", "sql"): (2, HERE),
    ("docs/operations.md", "text"): (4, HERE),
    ("docs/orms.md", "py"): (4, "test_orms"),
    ("docs/orms.md", "sql"): (1, "test_orms"),
    ("docs/performance.md", "text"): (4, HERE),
    ("docs/quota.md", "text"): (1, HERE),
    ("docs/schema.md", "mermaid"): (1, "test_schema_docs"),
    ("docs/stripe.md", "text"): (1, HERE),
    ("docs/stripe.md", "nginx"): (1, HERE),
    ("docs/stripe.md", "sql"): (1, HERE),
    ("docs/usage.md", "text"): (1, HERE),
}


def name_of(page: Path) -> str:
    """Return the path of *page* in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a language, without their indentation."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
        for indent, found, block in BLOCK.findall(text)
        if found == language
    ]


def shape(text: str) -> list[str]:
    """Return the lines of *text* without what varies: numbers, and so widths."""
    text = re.sub(r"[\d,.:]*\d", "0", text)
    return [re.sub(r"  +", "  ", line).strip() for line in text.splitlines()]


def test_every_block_has_a_test_file() -> None:
    found = Counter(
        (name_of(page), language)
        for page in PAGES
        for _, language, _ in BLOCK.findall(page.read_text(encoding="utf-8"))
        if language not in ("python", "console")
    )

    assert dict(found) == {block: count for block, (count, _) in BLOCKS.items()}


@pytest.mark.parametrize(
    ("page", "file"), sorted({(page, file) for (page, _), (_, file) in BLOCKS.items()})
)
def test_file_of_a_block_reads_its_page(page: str, file: str) -> None:
    text = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")

    assert Path(page).name in text


def test_blocks_of_commands_show_no_output_that_is_not_compared() -> None:
    """.ci/run and test_installed compare README.md; a test below docs/users.md."""
    shown = {
        name_of(page): lines
        for page in PAGES
        for _, language, block in BLOCK.findall(page.read_text(encoding="utf-8"))
        if language == "console"
        and (lines := re.findall(r"^(?!\$ |    ).+$", block, re.MULTILINE))
    }

    assert shown.keys() <= {"README.md", "docs/users.md"}


def test_user_is_shown_as_on_the_page(committing: psycopg.Connection) -> None:
    create_user(committing, email="ada@example.com", name="Ada Lovelace")
    (shown,) = (text for text in blocks("docs/users.md", "console") if "show" in text)

    printed = run_cli("users", "show", "ada@example.com")[1]

    assert words(printed) == words(shown.partition("\n")[2])


def words(text: str) -> list[str]:
    """Return the words at the beginning of each line."""
    return [line[:15].strip() for line in text.splitlines()]


def test_example_of_a_query_works(
    conn: psycopg.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = "docs/adding-a-query.md"
    (statement,) = blocks(page, "sql")
    (tmp_path / "users.sql").write_text(statement, encoding="utf-8")
    (query,) = queries.load_queries(tmp_path).values()
    monkeypatch.setitem(queries.QUERIES, query.name, query)
    function, test = blocks(page, "py")
    # With what the module of the page has already.
    names = dict(vars(pyapp.users))
    exec(compile(function, page, "exec"), names)
    names["create_user"] = create_user
    exec(compile(test, page, "exec"), names)

    names["test_code_owner_is_found"](conn)
    (planned,) = blocks(page, "toml")
    assert planned == f'{query.name} = ["users_referral_code_key"]\n'
    conn.execute("SET LOCAL enable_seqscan = off")
    plan = conn.execute(
        f"EXPLAIN {query.sql}".encode(), {"referral_code": "none"}
    ).fetchall()
    assert "users_referral_code_key" in str(plan)


@pytest.mark.parametrize("number", range(4))
def test_sql_of_the_changelog_runs(conn: psycopg.Connection, number: int) -> None:
    statement = blocks("CHANGELOG.md", "sql")[number]
    conn.execute(re.sub(r"^(BEGIN|COMMIT);$", "", statement, flags=re.M).encode())


def test_sql_of_the_entitlements_runs(conn: psycopg.Connection) -> None:
    (statements,) = blocks("docs/stripe.md", "sql")
    conn.execute(statements.encode())


def test_day_of_an_anchor_moved_by_sql_is_cut(
    conn: psycopg.Connection[tuple[int]],
) -> None:
    move_and_cut, _ = blocks("docs/operations.md", "sql")
    move, cut = filter(None, move_and_cut.split(";\n"))
    (user,) = {UUID(found) for found in re.findall(r"'(\S{36})'", move_and_cut)}
    conn.execute(
        "INSERT INTO app.users (id, email, quota_anchor)"
        " VALUES (%s, 'ada@example.com', now() - interval '5 days')",
        [user],
    )
    record_messages(conn, [new_message(user_id=user)])
    conn.execute(move.encode())

    assert conn.execute(cut.encode()).fetchone() == (1,)


def test_grants_of_a_migrating_role_run(
    conn: psycopg.Connection[tuple[bool, bool]],
) -> None:
    _, grants = blocks("docs/operations.md", "sql")
    conn.execute("CREATE ROLE migrator")
    database = conn.info.dbname
    conn.execute(grants.replace("DATABASE pyapp", f"DATABASE {database}").encode())
    granted = conn.execute(
        "SELECT has_database_privilege('migrator', current_database(), 'CREATE'),"
        " has_schema_privilege('migrator', 'public', 'CREATE')"
    ).fetchone()
    assert granted == (True, True)


def test_logins_of_a_deployment_are_created(
    conn: psycopg.Connection[tuple[str]],
) -> None:
    (logins,) = blocks("docs/deploy.md", "sql")
    conn.execute("SET LOCAL client_min_messages = error")
    for role in roles.ROLES:
        if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount < 1:
            conn.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    conn.execute(logins.encode())
    names = re.findall(r"^CREATE ROLE (\w+) LOGIN", logins, re.MULTILINE)
    found = conn.execute(
        "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) AND rolcanlogin", [names]
    ).fetchall()
    assert len(found) == len(names) > 0


def test_command_of_the_cron_table_writes_the_metrics(
    database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    (line,) = blocks("docs/deploy.md", "text")
    *words, path = line.partition("pyapp ")[2].split()
    file = tmp_path / Path(path).name

    assert run_cli(*words, str(file)) == (0, "", "")
    assert "pyapp_" in file.read_text(encoding="utf-8")


def test_error_of_a_second_run_is_as_shown(
    database: str, monkeypatch: pytest.MonkeyPatch, world: StripeWorld
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    _, second, *_ = blocks("docs/operations.md", "text")
    with (
        psycopg.connect(database, application_name="psql") as first,
        psycopg.connect(database) as other,
        start_run(first, "reconcile"),
        pytest.raises(pyapp.errors.PyappError) as caught,
        start_run(other, "reconcile"),
    ):
        pass

    (line,) = shape(second)
    assert shape(str(caught.value)) == [line.replace("role reports", "role pyapp")]


def test_table_of_wrong_sums_is_as_shown(committing: psycopg.Connection) -> None:
    ada = add_user(committing)
    for day in (DAY, DAY + timedelta(days=1)):
        record(committing, ada, day)
    updated = f"{WRONG['credits (+6)']} WHERE starts_at = '{DAY}'"
    run_without_triggers(committing, updated)
    deleted = f"{WRONG['no row, credits']} WHERE starts_at > '{DAY}'"
    run_without_triggers(committing, deleted)
    wrong = "UPDATE app.users SET referral_count = 4"
    run_without_triggers(committing, wrong)
    _, _, table, _ = blocks("docs/operations.md", "text")

    _, out, err = run_cli("db", "check", "--data")

    assert table_shape(out + err) == table_shape(table.replace("+1,204.8", "+1.0"))


def table_shape(text: str) -> list[str]:
    """Return the shape of *text* without ids and signs."""
    ids = re.sub(r"\w{8}(-\w{4}){3}-\w{12}", "ID", text)
    return [line for line in shape(re.sub(r"[+-](?=\d)", "", ids)) if line]


def test_record_of_the_log_is_as_shown(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setenv("PYAPP_LOG", "json")
    *_, record_shown = blocks("docs/operations.md", "text")
    shown = json.loads(record_shown)

    _, _, err = run_cli("db", "migrate")

    first = json.loads(err.splitlines()[0])
    assert list(first) == list(shown)
    varies = {"at": "", "seconds": 0}
    assert {**first, **varies} == {**shown, **varies}


def test_statistics_have_the_lines_of_the_page(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    shown, *_ = blocks("docs/operations.md", "text")

    printed = run_cli("stats")[1]

    # The labels are in the first columns, and the table's header in a line of its own.
    head, _, tables = shown.partition("\n\n")
    labels = [line[:21].rstrip() for line in head.splitlines()]
    assert [line[:21].rstrip() for line in printed.splitlines()][
        : len(labels)
    ] == labels
    header, *_, last = shape(tables)
    assert {header, last} <= set(shape(printed))


@pytest.mark.parametrize("number", range(4))
def test_tables_of_measurements_are_those_of_make_bench(number: int) -> None:
    header, _, *rows = blocks("docs/performance.md", "text")[number].splitlines()
    made = report.render([], 1, {}).splitlines()[0]
    columns = [found.start() for found in re.finditer(r"\S+", header)]
    place = columns[header.split().index("target")]

    assert header.split() == made.split()
    for row in filter(None, rows):
        found = re.search(r"([\d.]+)x  ([<>]=) ([\d.]+)x  +(yes|NO)$", row)
        if found:
            ratio, limit = float(found[1]), float(found[3])
            is_met = ratio <= limit if found[2] == "<=" else ratio >= limit
            assert is_met is (found[4] == "yes"), row
            assert row[place:].startswith(found[2])


def test_lines_below_a_quota_are_as_shown(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    pause = {"behavior": "void", "resumes_at": seconds(2099, 1, 20)}
    subscribe(
        world,
        {
            "status": "trialing",
            "end": seconds(2099, 1, 31),
            "cancel_at": seconds(2099, 1, 31),
            "trial_end": seconds(2099, 1, 14),
            "pause_collection": pause,
        },
    )
    (shown,) = blocks("docs/quota.md", "text")
    head, _, *notes = run_cli("quota", "ada@example.com")[1].splitlines()

    assert shape(head) == shape(shown)[:1]
    assert notes == shown.splitlines()[2:]


def test_table_of_usage_is_as_shown(committing: psycopg.Connection) -> None:
    ada = add_user(committing)
    models = ("claude-sonnet-4-5", "gpt-5-mini")
    record_messages(
        committing, [new_message(user_id=ada, model=model) for model in models]
    )
    (shown,) = blocks("docs/usage.md", "text")

    assert shape(run_cli("usage", "--by", "model")[1]) == shape(shown)


@pytest.mark.parametrize("number", [0, 1])
def test_failed_connection_is_as_shown(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    (lines,) = blocks("docs/connections.md", "text")
    line = lines.splitlines()[number].removeprefix("error: ")
    url = "postgresql://web@db.example.com/shop"
    reason = line.partition(" refuses: " if " refuses: " in line else f"{url}: ")[2]
    fatal = "FATAL:  " if " refuses: " in line else ""
    said = 'connection to server at "db.example.com" (10.0.0.1), port 5432 failed: '

    error = unavailable(
        url, psycopg.OperationalError(f"{said}{fatal}{reason.split(';')[0]}")
    )

    assert str(error) == line


def test_proxy_passes_what_the_server_accepts() -> None:
    (config,) = blocks("docs/stripe.md", "nginx")
    directives = dict(re.findall(r"^ *(\w+) (.+);$", config, re.MULTILINE))
    parameters = inspect.signature(serve).parameters

    assert config.count("{") == config.count("}")
    assert directives["client_max_body_size"] == f"{MAX_BODY >> 20}m"
    address = f"{parameters['host'].default}:{parameters['port'].default}"
    assert directives["proxy_pass"] == f"http://{address}"
    (path,) = re.findall(r"location = (\S+) {", config)
    assert f'"{path}"' in inspect.getsource(web)
