"""Lost connections, time-outs and a clock that jumps: one line of error, nothing lost.

Each command is stopped while it waits for a lock that the test holds, and is run again.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyapp._core import run
from pyapp._core.connection import connect
from pyapp.cli import quota as quota_command
from pyapp.errors import RuleError
from pyapp.messages import list_messages, record_message
from pyapp.quota import get_user_quota, list_user_quotas
from pyapp.sessions import (
    create_session,
    delete_expired_sessions,
    extend_session,
    find_session,
)
from pyapp.stats import get_message_rates
from pyapp.users import create_user, find_user_by_email
from tests.metering import add_user, usage_differences
from tests.proxy import Proxy
from tests.support import run_cli
from tests.usage_import import ADA, calls, write_log
from tests.waiting import locked, wait_for_waiter

IMPORT = "import usage {log} --user ada@example.com"
# Each with the table whose lock stops it.
COMMANDS = {
    "quota --all": "users",
    "stats": "users",
    "usage --by day": "usage_daily",
    "prices list": "model_prices",
    "prices report": "messages",
    "users add new@example.com": "users",
    IMPORT: "messages",
    "db maintain": "message_payloads_default",
    "stripe prune": "stripe_events",
}
every_command = pytest.mark.parametrize("command", COMMANDS)
Result = tuple[int, str, str]


@pytest.fixture
def conn(committing: psycopg.Connection) -> psycopg.Connection:
    create_user(committing, email=ADA)
    return committing


@pytest.fixture
def proxied(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Return a proxy between the commands and the database."""
    port = int(str(conninfo_to_dict(database)["port"]))
    with Proxy(port) as proxy:
        url = make_conninfo(database, port=proxy.port)
        monkeypatch.setenv("DATABASE_URL", url)
        yield proxy


def words(command: str, folder: Path) -> list[str]:
    log = write_log(folder / "log.jsonl", *calls(3))
    return [word.format(log=log) for word in command.split()]


def run_stopped(
    conn: psycopg.Connection,
    table: str,
    arguments: list[str],
    stop: Callable[[int], object],
) -> Result:
    """Run a command; call *stop* with its process id when it waits for *table*."""
    with ThreadPoolExecutor(1) as pool, locked(conn, table):
        running = pool.submit(run_cli, *arguments)
        stop(wait_for_waiter(conn))
        return running.result(timeout=20)


@contextmanager
def database_setting(conn: psycopg.Connection, name: str, value: str) -> Iterator[None]:
    """Change a setting of all new sessions of the database."""
    alter = sql.SQL("ALTER DATABASE {} ").format(sql.Identifier(conn.info.dbname))
    conn.execute(alter + sql.SQL("SET {} = {}").format(sql.Identifier(name), value))
    try:
        yield
    finally:
        conn.execute(alter + sql.SQL("RESET {}").format(sql.Identifier(name)))


def assert_one_line(result: Result, *parts: str) -> None:
    """Check that the command failed with one line of error."""
    code, out, err = result
    *before, line = err.splitlines()
    assert code == 1
    assert line.startswith("error: ")
    for part in parts:
        assert part in line
    assert not before or (len(before) == 1 and before[0].startswith("stopped: "))
    assert "Traceback" not in out + err


@every_command
def test_ended_session_is_one_line_and_the_command_works_again(
    conn: psycopg.Connection, tmp_path: Path, command: str
):
    arguments = words(command, tmp_path)

    def end(pid: int) -> None:
        conn.execute("SELECT pg_terminate_backend(%s)", [pid])

    result = run_stopped(conn, COMMANDS[command], arguments, end)

    assert_one_line(result, "the database connection was lost: terminating connection")
    assert run_cli(*arguments)[0] == 0
    assert usage_differences(conn) == []


@pytest.mark.parametrize("command", ["quota --all", IMPORT, "db maintain"])
def test_cut_connection_is_one_line_and_the_command_works_again(
    conn: psycopg.Connection, proxied: Proxy, tmp_path: Path, command: str
):
    arguments = words(command, tmp_path)
    result = run_stopped(conn, COMMANDS[command], arguments, lambda _: proxied.cut())

    assert_one_line(result, "the database connection was lost: ")
    assert run_cli(*arguments)[0] == 0
    assert usage_differences(conn) == []


def test_lost_answer_of_a_commit_is_billed_once(
    conn: psycopg.Connection, proxied: Proxy, database: str
):
    """The caller cannot know the outcome, and repeats the call with the same id."""
    ada = find_user_by_email(conn, email=ADA)
    assert ada is not None
    through = make_conninfo(database, port=proxied.port)
    record = partial(
        record_message, id=uuid4(), model="m", cost=Decimal(1), credits=Decimal(5)
    )
    proxied.cut_after(b"COMMIT")

    with pytest.raises(psycopg.OperationalError), connect(through) as broken:
        record(broken, user_id=ada.id)
    with connect(through) as again:
        second = record(again, user_id=ada.id)

    assert not second.is_new
    assert len(list_messages(conn, subject_id=ada.id)) == 1
    assert get_user_quota(conn, user_id=ada.id).credits_used == 5


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("statement_timeout", "the database canceled this (canceling statement due to"),
        (
            "lock_timeout",
            "another session holds a lock that this needs (canceling statement",
        ),
    ],
)
@pytest.mark.parametrize("command", ["quota --all", IMPORT])
def test_time_out_is_one_line_and_the_command_works_again(
    conn: psycopg.Connection, tmp_path: Path, command: str, setting: str, reason: str
):
    arguments = words(command, tmp_path)

    with database_setting(conn, setting, "100ms"), locked(conn, COMMANDS[command]):
        result = run_cli(*arguments)

    assert_one_line(result, reason, "run it again")
    assert run_cli(*arguments)[0] == 0
    assert usage_differences(conn) == []


def test_idle_in_transaction_time_out_is_named(
    conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    """As when the output of a long table is not read for some time."""
    add_user(conn)

    def read_slowly(session: psycopg.Connection, **arguments: object) -> object:
        page = list_user_quotas(session, **arguments)  # type: ignore[arg-type]
        alive = "SELECT FROM pg_stat_activity WHERE pid = %s"
        while conn.execute(alive, [session.info.backend_pid]).fetchone() is not None:
            conn.execute("SELECT pg_sleep(0.01)")
        return page

    with (
        database_setting(conn, "idle_in_transaction_session_timeout", "50ms"),
        monkeypatch.context() as patch,
    ):
        patch.setattr(quota_command, "list_user_quotas", read_slowly)
        code, _, err = run_cli("quota", "--all")

    assert code == 1
    assert re.fullmatch(r"error: the database .*idle-in-transaction.*\n", err)
    assert run_cli("quota", "--all")[0] == 0


def test_read_only_database_is_reported(conn: psycopg.Connection):
    with database_setting(conn, "default_transaction_read_only", "on"):
        result = run_cli("users", "add", "new@example.com")
        assert run_cli("quota", "--all")[0] == 0

    assert_one_line(result, "the database is read-only")


def test_clock_that_jumps_back_loses_no_session_or_message(conn: psycopg.Connection):
    """Rows written before the jump then have times in the future."""
    ada = find_user_by_email(conn, email=ADA)
    assert ada is not None
    now, jump = datetime.now(UTC), timedelta(hours=3)
    record = partial(record_message, model="m", cost=Decimal(1), credits=Decimal(5))
    record(conn, user_id=ada.id, finished_at=now + jump)
    session = create_session(conn, user_id=ada.id, ttl=timedelta(hours=1))
    conn.execute(
        "UPDATE app.sessions SET created_at = created_at + %(jump)s,"
        " expires_at = expires_at + %(jump)s",
        {"jump": jump},
    )
    end = session.session.expires_at + jump

    record(conn, user_id=ada.id, finished_at=now)
    extended = extend_session(conn, token=session.token, ttl=timedelta(hours=1))

    assert find_session(conn, token=session.token) is not None
    assert extended is not None
    assert extended.expires_at == end
    assert delete_expired_sessions(conn) == 0
    assert get_user_quota(conn, user_id=ada.id).credits_used == 10
    assert usage_differences(conn) == []
    assert get_message_rates(conn).hour_messages == 2
    code, out, err = run_cli("stats")
    assert (code, err) == (0, "")
    assert "-" not in re.sub(r"\d{4}-\d{2}", "", out)


def test_refusal_does_not_hide_a_lost_connection(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    """A caller that handled the refusal would otherwise expect a commit."""

    def run_and_lose(conn: psycopg.Connection, *given: Any) -> Any:
        try:
            return run_query(conn, *given)
        except RuleError:
            conn.close()
            raise

    run_query = run._run
    monkeypatch.setattr(run, "_run", run_and_lose)
    with (
        pytest.raises(psycopg.OperationalError, match="lost"),
        connect(database) as conn,
    ):
        create_user(conn, email="no address")
