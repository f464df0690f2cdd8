"""Ctrl-C during each command, sent to a real process and its children."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp._core.queries import migrations_dir
from pyapp.devtools.migrations import files
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate
from pyapp.users import create_user
from tests.fake_stripe import TEST_KEY, FakeStripe
from tests.metering import usage_differences
from tests.support import run_cli
from tests.temp_server import free_port, open_folder
from tests.usage_import import ADA, calls, write_log
from tests.waiting import locked, wait_for_waiter

REPOSITORY = Path(__file__).parents[1]
STOPPED = "error: stopped by Ctrl-C; work reported as done is kept\n"
IMPORT = "import usage {log} --user ada@example.com"
# Each command with the table whose lock stops it.
COMMANDS = {
    "quota --all": "users",
    "usage --by model": "messages",
    "prices report": "messages",
    IMPORT: "messages",
    "db maintain": "message_payloads_default",
    "stripe retry": "stripe_events",
}


@pytest.fixture
def conn(committing: psycopg.Connection) -> psycopg.Connection:
    create_user(committing, email=ADA)
    return committing


# A background process of a shell script ignores Ctrl-C, and so do its children.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pyapp.cli import main
main()
"""
WITH_MIGRATIONS = """
import pathlib
from pyapp.devtools.migrations import files
files.migrations_dir = lambda: pathlib.Path({folder!r})
"""


def start(*arguments: str, before: str = "") -> subprocess.Popen[str]:
    """Start a command as a terminal does, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", before + INTERRUPTIBLE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def press_ctrl_c(
    process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT
) -> tuple[int, str, str]:
    os.killpg(process.pid, number)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, out, err


# Ctrl-C arrives when the module of this name is imported.
INTERRUPTER = """
import signal, sys

class Interrupter:
    @staticmethod
    def find_spec(name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupter)
"""


@pytest.mark.parametrize(
    "module", ["pyapp.cli.run", "psycopg", "dotenv", "typer", "pyapp.cli.quota"]
)
def test_command_interrupted_during_its_imports_reports_it(module: str):
    code = INTERRUPTER.format(module=module) + INTERRUPTIBLE

    run = subprocess.run(
        [sys.executable, "-c", code, "quota"], capture_output=True, text=True
    )

    assert (run.returncode, run.stdout, run.stderr) == (130, "", STOPPED)


def interrupt_at_lock(
    conn: psycopg.Connection, table: str, *arguments: str, before: str = ""
) -> tuple[int, str, str]:
    """Run a command, and press Ctrl-C when it waits for the lock of *table*."""
    with locked(conn, table):
        process = start(*arguments, before=before)
        try:
            wait_for_waiter(conn)
        except BaseException:
            process.kill()
            raise
        return press_ctrl_c(process)


@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_command_reports_it_and_can_be_repeated(
    conn: psycopg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
):
    log = write_log(tmp_path / "log.jsonl", *calls(3))
    arguments = [word.format(log=log) for word in command.split()]
    with FakeStripe(seed=1) as fake:
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)

        code, out, err = interrupt_at_lock(conn, COMMANDS[command], *arguments)

        assert (code, out) == (130, "")
        if command == IMPORT:
            assert err.startswith("stopped: 0 new messages were recorded;")
            assert err.count("\n") == 1
        else:
            assert err == STOPPED
        assert run_cli(*arguments)[0] == 0
    assert usage_differences(conn) == []


def test_interrupted_migration_continues_where_it_stopped(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The interrupted one builds an index, which it leaves invalid."""
    folder = shutil.copytree(migrations_dir(), tmp_path / "migrations")
    new = ("9001_create_index", "9002_drop_index")
    create = "CREATE INDEX CONCURRENTLY extra_idx ON app.messages (model);"
    drop = "DROP INDEX CONCURRENTLY app.extra_idx;"
    for name, up, down in ((new[0], create, drop), (new[1], drop, create)):
        for suffix, statement in (("sql", up), ("rollback.sql", down)):
            text = f"-- A test.\n-- transactional: false\n{statement}\n"
            (folder / f"{name}.{suffix}").write_text(text)
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setattr(files, "migrations_dir", lambda: folder)
    migrate(empty_database, count=len(read_migrations()) - 2)
    with connect(empty_database) as conn:
        conn.autocommit = True
        code, out, err = interrupt_at_lock(
            conn,
            "messages",
            "db",
            "migrate",
            before=WITH_MIGRATIONS.format(folder=str(folder)),
        )

    assert (code, err) == (130, STOPPED)
    assert out == f"Applying {new[0]}\n"
    code, out, err = run_cli("db", "migrate")
    assert (code, err) == (0, "")
    assert out == "".join(f"Applying {name}\n" for name in new)


def wait_until(happens: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a project's folder, entered, with a DATABASE_URL of its own."""
    folder = open_folder()
    shutil.copy(REPOSITORY / "stack.env", folder)
    url = f"postgresql://pyapp:pyapp@localhost:{free_port()}/pyapp"
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(folder)
    yield folder
    run_cli("db", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def test_interrupted_start_leaves_no_incomplete_server(
    project: Path, caplog: pytest.LogCaptureFixture
):
    process = start("db", "start", "--embedded")
    wait_until(lambda: any(project.glob(".pyapp/postgres.new-*/data/base/1")))

    code, out, err = press_ctrl_c(process)

    assert (code, out, err) == (130, "", STOPPED)
    assert not any(project.glob(".pyapp/postgres*"))
    with caplog.at_level(logging.INFO, "pyapp.server"):
        code, out, err = run_cli("db", "start", "--embedded")
    assert (code, err) == (0, "")
    assert out.startswith("PostgreSQL ")
    (record,) = caplog.records
    assert record.getMessage() == "server started"
    assert vars(record)["server"] == "embedded"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_wait_for_stripe_ends_immediately(
    conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: signal.Signals,
):
    """Without a signal it would retry for minutes."""
    line = STOPPED if number == signal.SIGINT else STOPPED.replace("Ctrl-C", "SIGTERM")
    with FakeStripe(seed=1) as fake:
        fake.seed_accounts(1)
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
        fake.faults.add("rate_limit", times=None, retry_after=30)
        process = start("stripe", "reconcile")
        wait_until(lambda: fake.faults.met["rate_limit"] > 0)
        began = time.monotonic()
        code, out, err = press_ctrl_c(process, number)
        took = time.monotonic() - began
        fake.faults.clear()

        report, last = err.splitlines(keepends=True)
        assert report.startswith("Stripe limits the rate of requests (127.0.0.1:")
        assert (code, out, last) == (128 + number, "", line)
        assert took < 5
        run = conn.execute(
            "SELECT outcome, last_error FROM app.stripe_sync_runs"
        ).fetchone()
        assert run == ("failed", "it was stopped by a signal")
        with caplog.at_level(logging.INFO, "pyapp.stripe"):
            assert run_cli("stripe", "reconcile")[0] == 0
    begun, ended = caplog.records
    assert [begun.getMessage(), ended.getMessage()] == ["run started", "run completed"]
    assert vars(ended)["run_id"] == vars(begun)["run_id"]
    assert vars(ended)["counts"]["customers"] == 1
