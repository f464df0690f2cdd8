"""Ctrl-C in the middle of each command, sent to a real process and what it started."""

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
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.server.embedded import free_port
from pyapp.devtools.server.temp_server import open_folder
from pyapp.users import create_user
from tests.fake_stripe import TEST_KEY, FakeStripe
from tests.metering import usage_differences
from tests.support import run_cli
from tests.usage_import import ADA, calls, write_log
from tests.waiting import locked, wait_for_waiter

REPOSITORY = Path(__file__).parents[1]
STOPPED = "error: stopped by Ctrl-C; work reported as done is kept\n"
IMPORT = "import usage {log} --user ada@example.com"
# Each with the table whose lock stops it in its middle.
COMMANDS = {
    "quota --all": "users",
    IMPORT: "messages",
    "db maintain": "message_payloads_default",
    "stripe retry": "stripe_events",
}


@pytest.fixture
def conn(committing: psycopg.Connection) -> psycopg.Connection:
    create_user(committing, email=ADA)
    return committing


# What runs in the background of a script ignores Ctrl-C, and so do its children.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from pyapp.cli import main
main()
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start a command as a terminal does, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def press_ctrl_c(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, out, err


# Ctrl-C comes at the moment when the module of this name is looked for.
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
def test_command_that_is_interrupted_while_it_loads_says_so(module: str):
    code = INTERRUPTER.format(module=module) + INTERRUPTIBLE

    run = subprocess.run(
        [sys.executable, "-c", code, "quota"], capture_output=True, text=True
    )

    assert (run.returncode, run.stdout, run.stderr) == (130, "", STOPPED)


def interrupt_at_lock(
    conn: psycopg.Connection, table: str, *arguments: str
) -> tuple[int, str, str]:
    """Run a command, and press Ctrl-C when it waits for the lock of *table*."""
    with locked(conn, table):
        process = start(*arguments)
        try:
            wait_for_waiter(conn)
        except BaseException:
            process.kill()
            raise
        return press_ctrl_c(process)


@pytest.mark.parametrize("command", COMMANDS)
def test_interrupted_command_says_so_and_works_again(
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


def test_interrupted_migration_goes_on_where_it_stopped(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
):
    """Also in the middle of an index, which it leaves half built."""
    monkeypatch.setenv("DATABASE_URL", empty_database)
    names = [file.name for file in read_migrations()]
    index = next(n for n, name in enumerate(names) if "recorded_at_idx" in name)
    migrate(empty_database, count=index)
    with connect(empty_database) as conn:
        conn.autocommit = True
        code, out, err = interrupt_at_lock(conn, "messages", "db", "migrate")

    assert (code, err) == (130, STOPPED)
    assert out == f"Applying {names[index]}\n"
    code, out, err = run_cli("db", "migrate")
    assert (code, err) == (0, "")
    assert out == "".join(f"Applying {name}\n" for name in names[index:])


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


def test_interrupted_start_leaves_no_half_made_server(
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


def test_interrupted_wait_for_stripe_ends_at_once(
    conn: psycopg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """It would try again for minutes."""
    with FakeStripe(seed=1) as fake:
        fake.seed_accounts(1)
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
        fake.faults.add("rate_limit", times=None, retry_after=30)
        process = start("stripe", "reconcile")
        wait_until(lambda: fake.faults.met["rate_limit"] > 0)
        began = time.monotonic()
        code, out, err = press_ctrl_c(process)
        took = time.monotonic() - began
        fake.faults.clear()

        assert (code, out, err) == (130, "", STOPPED)
        assert took < 5
        run = conn.execute(
            "SELECT outcome, last_error FROM app.stripe_sync_runs"
        ).fetchone()
        assert run == ("failed", "it was stopped by Ctrl-C")
        with caplog.at_level(logging.INFO, "pyapp.stripe"):
            assert run_cli("stripe", "reconcile")[0] == 0
    begun, ended = caplog.records
    assert [begun.getMessage(), ended.getMessage()] == ["run started", "run completed"]
    assert vars(ended)["run_id"] == vars(begun)["run_id"]
    assert vars(ended)["counts"]["customers"] == 1
