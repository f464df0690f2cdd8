"""No password and no key is printed, logged, stored or shown to other processes."""

import logging
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pyapp._core.connection import connect
from pyapp.devtools.server import pg_dump
from pyapp.devtools.server.embedded import EmbeddedServer, free_port
from pyapp.devtools.server.temp_server import open_folder
from tests.fake_stripe import FakeStripe
from tests.support import Server, recorded_commands, run_cli

ROOT = Path(__file__).parents[1]
# Of letters only, so that nothing writes them in another way.
PASSWORD = "HunterTwo"
KEY = "sk_test_HunterThree"
WEBHOOK_SECRET = "whsec_HunterFour"
KEY_PASSWORD = "HunterFive"
SECRETS = ("HunterTwo", "HunterThree", "HunterFour", "HunterFive")
COMMANDS = (
    "db status",
    "db check",
    "db docs --output schema.md",
    "db roles",
    "db maintain --keep-months 1 --archive archive",
    "users add ada@example.com",
    "quota --all",
    "stats",
    "import usage log.jsonl --user ada@example.com",
    "stripe events",
    "stripe retry",
    "stripe reconcile",
    "stripe replay",
    "db rollback -n 1 --yes",
)


@pytest.fixture
def url(server: Server, empty_database: str) -> Iterator[str]:
    """Return a URL of an empty database with passwords that can be recognized."""
    role = f"hunted_{uuid4().hex[:8]}"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(
                sql.Identifier(role), sql.Literal(PASSWORD)
            )
        )
    named = empty_database.replace(
        f"{quote(server.user)}:{quote(server.password, safe='')}@",
        f"{role}:{PASSWORD}@",
    )
    yield f"{named}?sslpassword={KEY_PASSWORD}"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(role)))
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return the folder in which the commands run, with keys for Stripe set."""
    for name in ("stack.env", "docker-compose.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "log.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRIPE_SECRET_KEY", KEY)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET)
    with FakeStripe(seed=1) as fake:
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        yield tmp_path


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def run_all(caplog: pytest.LogCaptureFixture, *commands: str) -> dict[str, str]:
    """Return what each of the commands printed, and what they all logged."""
    caplog.set_level(logging.INFO)
    told = {}
    for command in commands:
        code, out, err = run_cli(*command.split())
        told[command] = f"{code} {out} {err}"
    return told | {"log": caplog.text}


def test_secrets_are_neither_printed_nor_logged_nor_stored_nor_in_process_lists(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    project: Path,
    url: str,
):
    monkeypatch.setenv("DATABASE_URL", url)
    with recorded_commands() as commands:
        told = run_all(caplog, "db migrate", *COMMANDS)
    with connect(url) as conn:
        sessions = conn.execute("SELECT * FROM pg_catalog.pg_stat_activity").fetchall()
    dump = subprocess.run(
        [pg_dump.choose_pg_dump(url), "--no-password", f"--dbname={url}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    files = [path.read_text() for path in project.rglob("*") if path.is_file()]

    assert "stripe_events" in dump
    assert {where: leaks(text) for where, text in told.items() if leaks(text)} == {}
    assert any("pg_dump" in command for command in commands)
    for text in (dump, str(sessions), *commands):
        assert leaks(text) == []
    assert leaks("".join(files)) == []


def test_pg_dump_is_told_the_secrets_all_the_same(database: str):
    """Whatever is in them; libpq itself says what it was given."""
    url = f"{database}?sslpassword=%23Hunter%3D%20%27Five&oauth_client_secret=Six"
    with (
        pg_dump.without_secrets(url) as (conninfo, variables),
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        with psycopg.connect(conninfo) as conn:
            given = {option.keyword: option.val for option in conn.pgconn.info}
        mode = stat.S_IMODE(Path(variables["PGSERVICEFILE"]).parent.stat().st_mode)

    assert given[b"sslpassword"] == b"#Hunter= 'Five"
    assert given[b"oauth_client_secret"] == b"Six"
    assert mode == 0o700


def test_pg_dump_without_such_secrets_gets_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("tempfile.TemporaryDirectory")
    with pg_dump.without_secrets("postgresql://u:Hunter@localhost/x") as (_, variables):
        assert variables == {"PGPASSWORD": "Hunter"}


@pytest.mark.parametrize(
    "away",
    [
        "postgresql://u:HunterTwo@localhost:1/x",
        "postgresql://u:HunterTwo@no.such.host.invalid/x",
        "postgresql://u:Hunter/HunterTwo@localhost:1/x",
        "postgresql://u:HunterTwo%@localhost:1/x",
        "HunterTwo",
    ],
)
def test_failures_tell_no_secret(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    project: Path,
    away: str,
):
    monkeypatch.setenv("DATABASE_URL", away)
    told = run_all(caplog, "db migrate", "doctor", *COMMANDS, "stripe serve")

    assert {where: leaks(text) for where, text in told.items() if leaks(text)} == {}


def test_wrong_password_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    project: Path,
    server: Server,
):
    url = server.url("postgres").replace(f":{server.password}@", f":{PASSWORD}@", 1)
    monkeypatch.setenv("DATABASE_URL", url)
    told = run_all(caplog, "db status", "db check", "quota --all", "stripe serve")

    assert {where: leaks(text) for where, text in told.items() if leaks(text)} == {}
    assert "password authentication failed" in told["quota --all"]


@contextmanager
def embedded() -> Iterator[EmbeddedServer]:
    folder = open_folder()
    server = EmbeddedServer(
        folder / "data",
        free_port(),
        password=PASSWORD,
        database="other",
        settings={"fsync": "off"},
    )
    try:
        yield server
    finally:
        server.remove()
        shutil.rmtree(folder)


def test_embedded_server_is_made_without_showing_its_password():
    with embedded() as server, recorded_commands() as commands:
        server.start()
        log = server.log.read_text()
        command_of_server = (server.folder / "postmaster.opts").read_text()
        mode = stat.S_IMODE(server.folder.stat().st_mode)
        left = {path.name for path in server.folder.parent.iterdir()}

    programs = {Path(command.split()[0]).name for command in commands}
    assert programs >= {"initdb", "pg_ctl"}
    assert leaks("\n".join([*commands, command_of_server])) == []
    assert leaks(log + repr(server)) == []
    assert mode == 0o700
    assert left == {"data", "lock"}


def test_local_configuration_is_ignored_by_git_and_made_for_its_owner_only():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    makefile = (ROOT / "Makefile").read_text()

    assert {".env.local", ".pyapp/"} <= set(ignored)
    assert "install -m 600 .env.local.example .env.local" in makefile
