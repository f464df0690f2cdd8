"""The server and the databases of the tests.

`conn`            a connection whose transaction is rolled back after the test
`user_id`         the id of a new user in the database of `conn`
`database`        the URL of a fresh copy of the schema, for tests that commit
`pair`            two connections to `database`, for tests of locks
`committing`      an autocommit connection to `database`; the commands use it too
`module_database` the URL of a fresh copy of the schema, shared by one file
`empty_database`  the URL of a fresh database without the schema
`module_empty_database` the same, shared by one file
`world`           a fake Stripe and a `database`
`server`          the server of this run
`durable_server`  a second server, which the tests of one file may kill

Each worker of pytest-xdist starts a temporary server: from the wheel, or with the
pg_ctl that --postgresql-exec names. --postgresql-host, -port, -user and -password
name a running server instead.
"""

import contextlib
import functools
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
import sqlparse
from psycopg.rows import TupleRow
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor
from pytest_postgresql.janitor import DatabaseJanitor

from pyapp._core.config import configured_margin, configured_referral_bonus
from pyapp._core.connection import connect
from pyapp._core.queries import schema_files
from pyapp.devtools.server.embedded import EmbeddedServer
from tests.metering import add_user
from tests.stripe_world import StripeWorld, stripe_world
from tests.support import Server, find_pgbouncer, hash_once
from tests.temp_server import temp_server
from tests.tls_server import find_programs
from tests.waiting import Pair

NUMBERS = itertools.count(1)

# Files that need a program that is not on every machine, with the reason. On CI as
# root nothing may be missing: .ci/run installs them.
LEFT_OUT: dict[str, str] = {}
if not (os.environ.get("CI") and os.geteuid() == 0):
    if not find_pgbouncer():
        for name in ("test_pooler.py", "test_managed_server.py"):
            LEFT_OUT[name] = "pgbouncer is not installed"
    if not shutil.which("systemd-analyze"):
        LEFT_OUT["test_deploy_systemd.py"] = "systemd is not installed"
    if not find_programs():
        for name in ("test_server_15.py", "test_upgrade.py"):
            LEFT_OUT[name] = "the distribution's PostgreSQL 15 is not installed"
if not hasattr(os, "fork"):
    LEFT_OUT["test_forks.py"] = "this system has no fork()"
if "COMPOSE_2" not in os.environ:
    for name in ("test_docker_engine.py", "test_deploy_engine.py"):
        LEFT_OUT[name] = "no Docker engine from .ci/docker-engine"
if "PYAPP_WHEELS" not in os.environ:
    LEFT_OUT["test_installed.py"] = "no folder of packages in PYAPP_WHEELS"
collect_ignore = list(LEFT_OUT)


def pytest_xdist_auto_num_workers() -> int:
    """Return more workers than processors, because many tests wait for time-outs."""
    return (os.cpu_count() or 1) * 3 // 2


def pytest_report_header() -> list[str]:
    """List the files that are left out, with the reasons."""
    return [f"left out: {name}, {reason}" for name, reason in LEFT_OUT.items()]


@pytest.fixture(scope="session", autouse=True)
def _no_configuration() -> Iterator[None]:
    """Hide the developer's own database and Stripe account from the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://unused@localhost:1/none")
        for name in (
            "STRIPE_SECRET_KEY",
            "STRIPE_WEBHOOK_SECRET",
            "STRIPE_API_BASE",
            "PYAPP_MARGIN",
            "PYAPP_REFERRAL_BONUS",
        ):
            patch.setenv(name, "")
        yield


@pytest.fixture
def fresh_configuration() -> Iterator[None]:
    """Clear the cached amounts, so that a test can configure others."""
    readers = (configured_margin, configured_referral_bonus)
    for reader in readers:
        reader.cache_clear()
    yield
    for reader in readers:
        reader.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _migrations_parsed_once() -> Iterator[None]:
    """Cache the splitting of migrations, which is half of the time of a migration."""
    split = functools.cache(sqlparse.split)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlparse, "split", lambda text: list(split(text)))
        yield


@pytest.fixture(scope="session")
def programs(request: pytest.FixtureRequest) -> Path | None:
    """Return the folder of the pg_ctl that was given; None for the wheel's."""
    pg_ctl = request.config.getoption("postgresql_exec")
    return Path(pg_ctl).resolve().parent if pg_ctl else None


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, programs: Path | None) -> Iterator[Server]:
    """Return the server of this run."""
    option = request.config.getoption
    if option("postgresql_host") or option("postgresql_port"):
        yield Server(
            host=option("postgresql_host") or "localhost",
            port=int(option("postgresql_port") or 5432),
            user=option("postgresql_user") or "postgres",
            password=option("postgresql_password") or "not-asked-for",
        )
        return
    with temp_server(
        settings={"max_connections": "200", "autovacuum": "off"}, programs=programs
    ) as started:
        hash_once(started)
        yield Server("localhost", started.port, started.user, started.password)


@pytest.fixture(scope="module")
def durable_server(programs: Path | None) -> Iterator[EmbeddedServer]:
    """Return a server with synchronous commits, for one file to kill."""
    with temp_server(
        settings={"synchronous_commit": "on"}, programs=programs
    ) as started:
        hash_once(started)
        yield started


template = factories.postgresql_noproc(load=list(schema_files()), depends_on="server")


@pytest.fixture(scope="session")
def shared_database(server: Server, template: NoopExecutor) -> Iterator[str]:
    """Return the URL of the database of all tests that roll back."""
    with _new_database(server, template.template_dbname) as url:
        yield url


@pytest.fixture
def conn(shared_database: str) -> Iterator[psycopg.Connection[TupleRow]]:
    """Return a connection whose transaction is rolled back after the test."""
    with connect(shared_database) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def user_id(conn: psycopg.Connection) -> UUID:
    """Return the id of a new user."""
    return add_user(conn)


@pytest.fixture
def database(server: Server, template: NoopExecutor) -> Iterator[str]:
    """Return the URL of a copy of the schema that only this test uses."""
    with _new_database(server, template.template_dbname) as url:
        yield url


@pytest.fixture
def pair(database: str) -> Iterator[Pair]:
    """Return two connections to a database that only this test uses."""
    with connect(database) as one, connect(database) as other:
        yield one, other
        one.rollback()
        other.rollback()


@pytest.fixture(scope="module")
def module_database(server: Server, template: NoopExecutor) -> Iterator[str]:
    """Return the URL of a copy of the schema that the tests of one file share."""
    with _new_database(server, template.template_dbname) as url:
        yield url


@pytest.fixture
def empty_database(server: Server) -> Iterator[str]:
    """Return the URL of an empty database that only this test uses."""
    with _new_database(server, None) as url:
        yield url


@pytest.fixture(scope="module")
def module_empty_database(server: Server) -> Iterator[str]:
    """Return the URL of an empty database that the tests of one file share."""
    with _new_database(server, None) as url:
        yield url


@pytest.fixture
def committing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection[TupleRow]]:
    """Return an autocommit connection to the database that `pyapp` commands use."""
    monkeypatch.setenv("DATABASE_URL", database)
    with connect(database) as connection:
        connection.autocommit = True
        yield connection


@pytest.fixture
def world(database: str) -> Iterator[StripeWorld]:
    """Return a fake Stripe and a database that only this test uses."""
    with stripe_world(database) as running:
        yield running


@contextlib.contextmanager
def _new_database(server: Server, template: str | None) -> Iterator[str]:
    name = f"tests{os.getpid()}_{next(NUMBERS)}"
    with DatabaseJanitor(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname=name,
        template_dbname=template,
    ):
        yield server.url(name)
