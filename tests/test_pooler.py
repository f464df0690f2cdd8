"""All functions work behind PgBouncer in transaction mode, where sessions are shared.

Without `pgbouncer` these tests are left out, except on CI as root.
"""

import asyncio
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from pyapp._core.connection import SETTINGS, connect, pool
from pyapp._core.pooled_sessions import explain_sharing
from pyapp.devtools.server.binaries import as_account, server_account
from pyapp.errors import PyappError
from pyapp.messages import record_messages
from pyapp.quota import get_user_quota
from pyapp.sessions import create_session, find_session
from pyapp.users import create_user
from tests.fake_stripe import TEST_KEY
from tests.metering import new_message, record_one
from tests.serving import Served, serving
from tests.stripe_world import make_customer, make_event
from tests.support import find_pgbouncer, run_cli
from tests.temp_server import free_port, open_folder

SESSIONS = 2
CLIENTS = 6
CONNECTIONS = Path(__file__).parents[1] / "docs" / "connections.md"


def connect_query() -> str:
    """Return the connect_query of docs/connections.md."""
    text = CONNECTIONS.read_text("utf-8")
    (query,) = re.findall(r"^pooled = .*(connect_query=.*)$", text, re.M)
    return str(query)


def wait_for_pooler(url: str) -> None:
    """Wait until a query gets through, also when the pooler's sessions were ended."""
    deadline = time.monotonic() + 10
    while True:
        try:
            with connect(url, is_pooled=True) as conn:
                conn.execute("SELECT 1")
        except (psycopg.Error, PyappError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@pytest.fixture(scope="module", params=["refuses options", "ignores options"])
def pooled(module_database: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a PgBouncer in front of the module's database."""
    parts = conninfo_to_dict(module_database)
    names = ("host", "port", "user", "password", "dbname")
    target = " ".join(f"{name}={parts[name]}" for name in names if parts.get(name))
    ignored = "extra_float_digits"
    if request.param == "ignores options":
        ignored += ", options"
    port, folder = free_port(), open_folder()
    (folder / "pgbouncer.ini").write_text(
        f"""
[databases]
pooled = {target} {connect_query()}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SESSIONS}
ignore_startup_parameters = {ignored}
""",
        encoding="utf-8",
    )
    account = as_account(server_account(folder / "none"))
    account.pop("check")
    program = find_pgbouncer()
    assert program, "pgbouncer is not installed"
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [program, folder / "pgbouncer.ini"], stdout=file, stderr=file, **account
        )
    url = f"postgresql://anyone@127.0.0.1:{port}/pooled"
    try:
        try:
            wait_for_pooler(url)
        except (psycopg.Error, PyappError):
            pytest.fail(log.read_text())
        yield url
    finally:
        process.kill()
        process.wait()


def test_all_functions_work_in_shared_sessions(pooled: str):
    """Each function runs in many transactions, enough for prepared statements."""
    with connect(pooled, is_pooled=True) as conn:
        user_id = create_user(conn, email=f"{uuid4()}@example.com").id

    with pool(pooled, max_size=CLIENTS, is_pooled=True) as connections:

        def work(number: int) -> int:
            written = 0
            for n in range(12):
                with connections.connection() as conn:
                    message = new_message(user_id=user_id, request=["hello"])
                    written += record_one(conn, message)[0]
                    session = create_session(conn, user_id=user_id)
                with connections.connection() as conn:
                    assert find_session(conn, token=session.token)
                    assert get_user_quota(conn, user_id=user_id).credits_used > 0
                if n % 4 == number % 4:
                    with connections.connection() as conn:
                        bulk = [new_message() for _ in range(3)]
                        counts = record_messages(conn, bulk, user_id=user_id)
                    written += counts.recorded
            return written

        with ThreadPoolExecutor(CLIENTS) as threads:
            written = sum(threads.map(work, range(CLIENTS)))

    assert written == CLIENTS * (12 + 9)
    with connect(pooled, is_pooled=True) as conn:
        quota = get_user_quota(conn, user_id=user_id)
        assert quota.credits_used == written
        assert quota.end_date.utcoffset() == timedelta(0)
        conn.commit()
        assert len(find_sessions(conn, 10)) <= SESSIONS


def find_sessions(conn: psycopg.Connection, times: int) -> set[int]:
    """Return the server processes in which *times* transactions ran."""
    found = set()
    for _ in range(times):
        row = conn.execute(sql.SQL("SELECT pg_backend_pid()")).fetchone()
        assert row is not None
        found.add(row[0])
        conn.commit()
    return found


@pytest.mark.parametrize("pooled", ["refuses options"], indirect=True)
@pytest.mark.parametrize("open_it", [connect, pool])
def test_pooler_is_recognized_by_refused_options(pooled: str, open_it):
    opened = open_it(pooled)
    with opened as given:
        conn = given.getconn() if open_it is pool else given
        for _ in range(10):
            assert conn.execute("SELECT 1").fetchone() == (1,)
            conn.commit()
        if open_it is pool:
            given.putconn(conn)


def test_connect_query_sets_the_session_settings(module_database: str, pooled: str):
    parts = conninfo_to_dict(module_database)
    alter = sql.SQL("ALTER ROLE {} IN DATABASE {} ").format(
        *(sql.Identifier(str(parts[part])) for part in ("user", "dbname"))
    )
    hostile = {
        "DateStyle": "German",
        "IntervalStyle": "iso_8601",
        "TimeZone": "Asia/Kathmandu",
        "client_encoding": "LATIN1",
        "default_transaction_isolation": "serializable",
        "standard_conforming_strings": "off",
    }
    with psycopg.connect(module_database, autocommit=True) as admin:
        for name, value in hostile.items():
            admin.execute(alter + sql.SQL("SET {} TO {}").format(sql.SQL(name), value))
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> {}"
        admin.execute(
            sql.SQL(end + " AND datname = {}").format(
                admin.info.backend_pid, str(parts["dbname"])
            )
        )
        try:
            wait_for_pooler(pooled)
            with connect(pooled, is_pooled=True) as conn:
                for name in re.findall(r"SET (\w+)=", connect_query()):
                    row = conn.execute(sql.SQL("SHOW {}").format(sql.SQL(name)))
                    value = SETTINGS[name].replace("O,M", "O, M")
                    assert row.fetchone() == (value,), name
                assert conn.info.encoding == "utf-8"
                email = f"\u20ac{uuid4()}@example.com"
                user = create_user(conn, email=email)
                assert get_user_quota(conn, user_id=user.id).credits_used == 0
        finally:
            admin.execute(alter + sql.SQL("RESET ALL"))


def test_statements_are_prepared_without_a_pooler(module_database: str):
    with connect(module_database) as conn:
        assert conn.prepare_threshold == 5


SESSION_COMMANDS = (
    "db migrate",
    "db adopt",
    "db check",
    "db check --data --repair",
    "db maintain",
    "stripe reconcile",
    "stripe replay",
)


@pytest.mark.parametrize("command", SESSION_COMMANDS)
def test_command_that_needs_one_session_refuses_the_pooler(
    pooled: str, monkeypatch: pytest.MonkeyPatch, command: str
):
    """Its locks and settings would stay behind in sessions of other clients."""
    monkeypatch.setenv("DATABASE_URL", pooled)
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    monkeypatch.setenv("STRIPE_API_BASE", "http://localhost:1")

    code, _, err = run_cli(*command.split())

    assert (code, err.count("\n")) == (1, 1)
    assert err.endswith("use the server's own host and port\n")


@pytest.mark.parametrize("command", ["db status", "stats", "quota --all"])
def test_command_that_reads_works_behind_the_pooler(
    pooled: str, monkeypatch: pytest.MonkeyPatch, command: str
):
    monkeypatch.setenv("DATABASE_URL", pooled)

    code, out, err = run_cli(*command.split())

    assert (code, bool(out), err) == (0, True, "")


def test_session_behind_no_pooler_is_not_shared(module_database: str):
    with connect(module_database) as conn:
        assert explain_sharing(conn) is None


def test_webhook_server_works_behind_the_pooler(pooled: str):
    """More deliveries at once than the pooler has sessions."""
    customers = [make_customer(f"cus_{uuid4().hex}") for _ in range(6)]
    bodies = [make_event("customer.created", customer) for customer in customers]

    async def post_all(served: Served) -> set[int]:
        replies = await asyncio.gather(*map(served.post, bodies))
        return {reply.status for reply in replies}

    with serving(pooled) as served:
        assert asyncio.run(post_all(served)) == {200}
        assert asyncio.run(served.get("/healthz")).status == 200
