"""Connections use UTC and a name; their errors are one line with the remedy."""

import contextlib
import re
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pyapp._core.connection import connect, pool
from pyapp.errors import ConfigError, DatabaseUnavailableError
from pyapp.users import create_user, list_users
from tests.temp_server import free_port

IDLE, UNKNOWN = TransactionStatus.IDLE, TransactionStatus.UNKNOWN

SETTINGS = "SELECT current_setting('TimeZone'), current_setting('application_name')"


def test_session_uses_utc_and_is_named_pyapp(shared_database: str) -> None:
    with connect(shared_database) as conn:
        assert conn.execute(SETTINGS).fetchone() == ("UTC", "pyapp")


def test_parameters_of_the_url_are_kept(shared_database: str) -> None:
    url = f"{shared_database}?application_name=mine&options=-c%20work_mem%3D8MB"

    with connect(url) as conn:
        assert conn.execute(SETTINGS).fetchone() == ("UTC", "mine")
        assert conn.execute("SHOW work_mem").fetchone() == ("8MB",)


def test_default_is_the_configured_database(
    shared_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", shared_database)

    with connect() as conn:
        assert conn.info.dsn
        assert shared_database.endswith(f"/{conn.info.dbname}")


def test_connections_of_a_pool_have_the_same_settings(shared_database: str) -> None:
    with pool(shared_database) as connections, connections.connection() as conn:
        assert conn.execute(SETTINGS).fetchone() == ("UTC", "pyapp")


@pytest.mark.parametrize("open_it", [connect, pool])
def test_error_without_a_server_has_the_url_and_the_remedy(open_it) -> None:
    port = free_port()

    with pytest.raises(DatabaseUnavailableError) as caught:
        open_it(f"postgresql://me:hunter2@localhost:{port}/mine")

    assert not caught.value.refused
    assert str(caught.value) == (
        f"no database at postgresql://me@localhost:{port}/mine:"
        " Connection refused; start it with: pyapp db start"
    )


@pytest.mark.parametrize("open_it", [connect, pool])
def test_refusal_quotes_the_server(open_it, shared_database: str) -> None:
    url = re.sub(r"/\w+$", "/absent", shared_database)

    with pytest.raises(DatabaseUnavailableError) as caught:
        open_it(url)

    assert caught.value.refused
    assert 'refuses: database "absent" does not exist' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_remedy_for_a_server_on_another_machine() -> None:
    with pytest.raises(DatabaseUnavailableError) as caught:
        connect("postgresql://me:hunter2@nowhere.invalid/mine")

    assert "pyapp db start" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_invalid_url_is_refused_and_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        connect("postgresql://me:%hunter2@localhost/mine")

    assert "hunter2" not in str(caught.value)


def fail_quietly(conn: psycopg.Connection[Any]) -> None:
    create_user(conn, email="ada@example.com")
    with contextlib.suppress(psycopg.Error):
        conn.execute("SELECT 1 / 0")


def test_aborted_transaction_ends_with_an_error(database: str) -> None:
    """psycopg would send COMMIT, and the server would roll back."""
    conn = connect(database)
    for end in (conn.transaction(), conn):
        with pytest.raises(psycopg.errors.InFailedSqlTransaction), end:
            fail_quietly(conn)
        assert conn.info.transaction_status in (IDLE, UNKNOWN)

    with connect(database) as conn:
        assert list_users(conn) == []


def test_lost_transaction_ends_with_an_error(database: str) -> None:
    with (
        connect(database) as conn,
        pytest.raises(psycopg.OperationalError, match="the connection was lost"),
        conn.transaction(),
    ):
        conn.pgconn.finish()


def test_forced_rollback_of_an_aborted_transaction_is_no_error(database: str) -> None:
    with connect(database) as conn:
        with conn.transaction(force_rollback=True):
            fail_quietly(conn)

        assert list_users(conn) == []
