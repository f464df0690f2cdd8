"""Passwords and keys are not printed, logged, stored or shown to other processes."""

import logging
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
import stripe
from psycopg import sql
from starlette.testclient import TestClient

from pyapp._core.connection import connect, pool
from pyapp.devtools.server import pg_dump
from pyapp.devtools.server.embedded import EmbeddedServer
from pyapp.errors import PyappError
from pyapp.stripe_sync import (
    handle_webhook,
    reconcile,
    replay_events,
    retry_failed_events,
)
from pyapp.stripe_sync.client import error_summary
from pyapp.stripe_sync.web import create_app
from tests.fake_stripe import TEST_KEY, TEST_SECRET, FakeStripe
from tests.stripe_world import StripeWorld, stripe_world
from tests.support import Server, recorded_commands, run_cli
from tests.temp_server import free_port, open_folder

ROOT = Path(__file__).parents[1]
# Letters only, so that quoting does not change them.
PASSWORD = "HunterTwo"
KEY = "sk_test_HunterThree"
WEBHOOK_SECRET = "whsec_HunterFour"
KEY_PASSWORD = "HunterFive"
SECRETS = ("HunterTwo", "HunterThree", "HunterFour", "HunterFive")
WRONG_KEY = "rk_test_51Wrong!key"
WRONG_SECRET = "whsec_ofAnotherEndpoint"
STRIPE_SECRETS = (TEST_KEY, TEST_SECRET, WRONG_KEY, WRONG_SECRET, "v1=", "Bearer")
# Stripe's errors quote the end of an unknown key; only its library may log it.
WRONG_KEY_END = WRONG_KEY[-4:]
COMMANDS = (
    "db status",
    "db check",
    "db docs --output schema.md",
    "db roles",
    "db maintain --keep-months 1 --archive archive",
    "users add ada@example.com",
    "quota --all",
    "stats",
    "usage --by day",
    "prices list",
    "import usage log.jsonl --user ada@example.com",
    "stripe events",
    "stripe retry",
    "stripe reconcile",
    "stripe replay",
    "db rollback -n 1 --yes",
)


@pytest.fixture
def url(server: Server, empty_database: str) -> Iterator[str]:
    """Return the URL of an empty database, with known passwords in it."""
    role = f"hunted_{uuid4().hex[:8]}"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(
            sql.SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(
                sql.Identifier(role), sql.Literal(PASSWORD)
            )
        )
    renamed = empty_database.replace(
        f"{quote(server.user)}:{quote(server.password, safe='')}@",
        f"{role}:{PASSWORD}@",
    )
    yield f"{renamed}?sslpassword={KEY_PASSWORD}"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(role)))
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return the folder in which the commands run; Stripe keys are set."""
    for name in ("stack.env", "docker-compose.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "log.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRIPE_SECRET_KEY", KEY)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET)
    with FakeStripe(seed=1) as fake:
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        yield tmp_path


@pytest.fixture
def world(database: str) -> Iterator[StripeWorld]:
    with stripe_world(database, start=int(time.time()) - 3600) as running:
        yield running


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def run_all(caplog: pytest.LogCaptureFixture, *commands: str) -> dict[str, str]:
    """Return the output of each command, and the log of all."""
    caplog.set_level(logging.INFO)
    outputs = {}
    for command in commands:
        code, out, err = run_cli(*command.split())
        outputs[command] = f"{code} {out} {err}"
    return outputs | {"log": caplog.text}


def test_commands_do_not_reveal_secrets(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    project: Path,
    url: str,
):
    monkeypatch.setenv("DATABASE_URL", url)
    with recorded_commands() as commands:
        outputs = run_all(caplog, "db migrate", *COMMANDS)
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
    assert {where: leaks(text) for where, text in outputs.items() if leaks(text)} == {}
    assert any("pg_dump" in command for command in commands)
    for text in (dump, str(sessions), *commands):
        assert leaks(text) == []
    assert leaks("".join(files)) == []


def test_pg_dump_still_gets_the_secrets(database: str):
    """libpq reports the options that it received."""
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


def test_pg_dump_without_secrets_needs_no_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("tempfile.TemporaryDirectory")
    with pg_dump.without_secrets("postgresql://u:Hunter@localhost/x") as (_, variables):
        assert variables == {"PGPASSWORD": "Hunter"}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:HunterTwo@localhost:1/x",
        "postgresql://u:HunterTwo@no.such.host.invalid/x",
        "postgresql://u:Hunter/HunterTwo@localhost:1/x",
        "postgresql://u:HunterTwo%@localhost:1/x",
        "HunterTwo",
    ],
)
def test_failed_connections_do_not_reveal_secrets(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    project: Path,
    url: str,
):
    monkeypatch.setenv("DATABASE_URL", url)
    outputs = run_all(caplog, "db migrate", "doctor", *COMMANDS, "stripe serve")

    assert {where: leaks(text) for where, text in outputs.items() if leaks(text)} == {}


def test_wrong_password_is_not_revealed(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    project: Path,
    server: Server,
):
    url = server.url("postgres").replace(f":{server.password}@", f":{PASSWORD}@", 1)
    monkeypatch.setenv("DATABASE_URL", url)
    outputs = run_all(caplog, "db status", "db check", "quota --all", "stripe serve")

    assert {where: leaks(text) for where, text in outputs.items() if leaks(text)} == {}
    assert "password authentication failed" in outputs["quota --all"]


def test_stripe_sync_does_not_reveal_secrets(
    world: StripeWorld,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    caplog.set_level(logging.DEBUG)
    for name in ("pyapp", "pyapp.stripe", "stripe"):
        caplog.set_level(logging.DEBUG, logger=name)
    wrong = world.fake.client(WRONG_KEY)
    world.create_subscription()
    outputs: list[str] = []

    deliveries = world.pop_deliveries()
    with pool(world.url, max_size=1) as connections:
        web = TestClient(create_app(connections, [WRONG_SECRET, TEST_SECRET], wrong))
        for delivery in deliveries:
            headers = {"Stripe-Signature": delivery.signature}
            answer = web.post(
                "/stripe/webhook", content=delivery.payload, headers=headers
            )
            outputs.append(answer.text)
        headers = {"Stripe-Signature": deliveries[0].signature.replace("v1=", "v1=0")}
        outputs.append(web.post("/stripe/webhook", content=b"{}", headers=headers).text)
    assert "failed" in outputs[-2] + outputs[-3]
    for outcome in retry_failed_events(world.conn, wrong):
        outputs.append(str(outcome))
    for work in (
        lambda: reconcile(world.conn, wrong),
        lambda: replay_events(world.conn, wrong),
        lambda: handle_webhook(world.conn, b"{}", "t=1,v1=2", WRONG_SECRET),
    ):
        with pytest.raises(PyappError) as caught:
            work()
        outputs.append(repr(caught.value))
    assert sum("Invalid API Key" in text for text in outputs) >= 3

    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("STRIPE_API_BASE", world.fake.base_url)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", WRONG_SECRET)
    monkeypatch.setenv("STRIPE_SECRET_KEY", WRONG_KEY)
    for command in ("reconcile", "replay", "retry", "events"):
        outputs.append(str(run_cli("stripe", command)))

    names = world.conn.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'p')"
        " AND relnamespace = 'app'::regnamespace"
    ).fetchall()
    tables = ""
    for (name,) in names:
        rows = world.conn.execute(f"SELECT t::text FROM {name} AS t".encode())
        tables += str(rows.fetchall())
    assert "evt_" in tables
    logged = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records]
    for text in (*outputs, *logged, tables):
        assert [one for one in STRIPE_SECRETS if one in text] == [], text
        assert WRONG_KEY_END not in text or "'name': 'stripe'" in text, text


def test_connection_error_of_stripe_names_its_cause():
    client = stripe.StripeClient(
        TEST_KEY, base_addresses={"api": f"http://localhost:{free_port()}"}
    )
    with pytest.raises(stripe.APIConnectionError) as caught:
        client.v1.customers.list()

    outputs = error_summary(caught.value)

    assert outputs.startswith("APIConnectionError: ")
    assert "Connection refused" in outputs
    assert "support@" not in outputs
    assert TEST_KEY not in outputs


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


def test_embedded_server_does_not_reveal_its_password():
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


def test_local_configuration_is_private_and_not_in_git():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    makefile = (ROOT / "Makefile").read_text()

    assert {".env.local", ".pyapp/"} <= set(ignored)
    assert "install -m 600 .env.local.example .env.local" in makefile
