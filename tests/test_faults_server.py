"""A server that is killed under load, and one whose disk is full.

The tests use their own server, which keeps confirmed messages.
"""

import os
import signal
import threading
from dataclasses import replace
from decimal import Decimal
from itertools import count
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core.connection import connect, pool
from pyapp._core.queries import schema_text
from pyapp.devtools.server.embedded import EmbeddedServer, find_postmaster
from pyapp.messages import record_message
from pyapp.quota import get_user_quota
from pyapp.users import create_user, find_user_by_email
from tests.metering import usage_differences
from tests.support import run_cli
from tests.usage_import import ADA, calls, write_log

NUMBERS = count(1)
WRITERS = 3
# So many are confirmed before the server is killed.
ENOUGH = 60


@pytest.fixture
def url(durable_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a new database with the schema and one user."""
    name = f"faults{next(NUMBERS)}"
    own = replace(durable_server, database=name).url
    with connect(durable_server.url) as conn:
        conn.autocommit = True
        conn.execute(f"CREATE DATABASE {name}".encode())
    with connect(own) as conn:
        conn.execute(schema_text().encode())
        create_user(conn, email=ADA)
    monkeypatch.setenv("DATABASE_URL", own)
    return own


class Writer(threading.Thread):
    """Records messages, each confirmed, until the server ends."""

    def __init__(self, url: str, user_id: UUID, enough: threading.Semaphore) -> None:
        super().__init__()
        self.url, self.user_id, self.enough = url, user_id, enough
        self.confirmed: list[UUID] = []
        self.doubtful = uuid4()
        self.error: psycopg.Error | None = None

    def run(self) -> None:
        try:
            with connect(self.url) as conn:
                while True:
                    self.record(conn)
                    self.enough.release()
        except psycopg.Error as exc:
            self.error = exc

    def record(self, conn: psycopg.Connection) -> None:
        """Record the message whose commit is in doubt, and commit."""
        record_message(
            conn,
            id=self.doubtful,
            user_id=self.user_id,
            model="m",
            cost=Decimal(1),
            credits=Decimal(2),
            request=["hello"],
        )
        conn.commit()
        self.confirmed.append(self.doubtful)
        self.doubtful = uuid4()


def kill_all(server: EmbeddedServer) -> None:
    """Kill all processes of *server* at once, so that none can react."""
    running = find_postmaster(server.folder)
    assert running is not None
    with connect(server.url) as conn:
        pids = [pid for (pid,) in conn.execute("SELECT pid FROM pg_stat_activity")]
    for pid in (running.pid, *pids):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_server_killed_under_load_keeps_confirmed_messages(
    durable_server: EmbeddedServer, url: str
):
    with connect(url) as conn:
        ada = find_user_by_email(conn, email=ADA)
    assert ada is not None
    enough = threading.Semaphore(0)
    writers = [Writer(url, ada.id, enough) for _ in range(WRITERS)]
    with pool(url, min_size=1, max_size=1) as connections:
        for writer in writers:
            writer.start()
        for _ in range(ENOUGH):
            assert enough.acquire(timeout=20)
        kill_all(durable_server)
        for writer in writers:
            writer.join(timeout=20)
        code, out, err = run_cli("quota", "--all")

        assert (code, out) == (1, "")
        assert err.startswith("error: no database at ")
        assert err.endswith("start it with: pyapp db start\n")
        assert durable_server.start()
        # The pool's connections are lost; the next request opens a new one.
        with pytest.raises(psycopg.OperationalError), connections.connection() as conn:
            conn.execute("SELECT 1")
        with connections.connection() as conn:
            kept = {id for (id,) in conn.execute("SELECT id FROM app.messages")}
            confirmed = {one for writer in writers for one in writer.confirmed}
            assert len(confirmed) >= ENOUGH
            assert confirmed <= kept
            assert kept - confirmed <= {writer.doubtful for writer in writers}
            for writer in writers:
                assert isinstance(writer.error, psycopg.OperationalError)
                writer.record(conn)
            assert usage_differences(conn) == []
            total = sum(len(writer.confirmed) for writer in writers)
            assert get_user_quota(conn, user_id=ada.id).credits_used == 2 * total
    assert run_cli("quota", "--all")[0] == 0


def data_file(conn: psycopg.Connection, table: str) -> Path:
    """Return the file of an empty table that no process has open."""
    row = conn.execute(
        "SELECT current_setting('data_directory'), pg_relation_filepath(%s)", [table]
    ).fetchone()
    assert row is not None
    return Path(row[0], row[1])


@pytest.mark.parametrize("table", ["app.messages", "app.usage_slots"])
def test_full_disk_is_an_error_without_partial_effects(
    url: str, tmp_path: Path, table: str
):
    """Also if the disk is full in the middle: for the sums, after the rows.

    The table's file becomes /dev/full, so no privilege to mount is needed.
    """
    log = write_log(tmp_path / "log.jsonl", *calls(3))
    arguments = ("import", "usage", log, "--user", ADA)
    with connect(url) as conn:
        file = data_file(conn, table)
    assert file.stat().st_size == 0
    file.rename(file.with_suffix(".kept"))
    file.symlink_to("/dev/full")
    try:
        code, out, err = run_cli(*arguments)
    finally:
        file.unlink()
        file.with_suffix(".kept").rename(file)

    assert (code, out) == (1, "")
    stopped, error = err.splitlines()
    assert stopped.startswith("stopped: 0 new messages were recorded;")
    assert error.startswith("error: the database's disk is full (could not extend file")
    assert error.endswith("free some space and run it again")
    with connect(url) as conn:
        counts = conn.execute(
            "SELECT (SELECT count(*) FROM app.messages), count(*) FROM app.usage_daily"
        ).fetchone()
        assert counts == (0, 0)

    code, out, _ = run_cli(*arguments)

    assert code == 0
    assert out.startswith("3 new messages")
    with connect(url) as conn:
        assert usage_differences(conn) == []
