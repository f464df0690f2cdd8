"""Upgrade from PostgreSQL 15 to 18 by the commands of docs/backup.md."""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from pyapp.data_check import check_data
from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.server.binaries import binaries
from pyapp.devtools.server.embedded import EmbeddedServer
from tests.backups import commands_of, fill, rows_of, run, without_slots
from tests.support import DEBIAN_15, Server
from tests.temp_server import temp_server


def create_database(started: EmbeddedServer, name: str) -> str:
    """Create an empty database on *started*; return its URL."""
    server = Server("localhost", started.port, started.user, started.password)
    with psycopg.connect(server.url("postgres"), autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server.url(name)


@pytest.fixture(scope="module")
def old() -> Iterator[EmbeddedServer]:
    """Return a server of version 15."""
    with temp_server(programs=DEBIAN_15) as started:
        yield started


@pytest.fixture(scope="module")
def new() -> Iterator[EmbeddedServer]:
    """Return a server of version 18, also if other tests use another one."""
    with temp_server() as started:
        yield started


def test_dump_of_15_is_restored_on_18(
    old: EmbeddedServer, new: EmbeddedServer, tmp_path: Path
):
    source, target = create_database(old, "old"), create_database(new, "new")
    migrate(source)
    fill(source)
    dump, restore, *rest = commands_of("Everything")

    dumped = run([dump], tmp_path, source, target, DEBIAN_15)
    done = run([restore, *rest], tmp_path, source, target, binaries())

    assert dumped.returncode == 0, dumped.stderr
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(target) == rows_of(source)
    assert check_data(target, limit=1).remaining == 0


def test_rows_of_15_are_restored_on_18(
    old: EmbeddedServer, new: EmbeddedServer, tmp_path: Path
):
    source, target = create_database(old, "rows"), create_database(new, "rows")
    for url in (source, target):
        migrate(url)
    fill(source)

    done = run(commands_of("Only the rows"), tmp_path, source, target, binaries())

    assert done.returncode == 0, done.stdout + done.stderr
    assert without_slots(rows_of(target)) == without_slots(rows_of(source))
