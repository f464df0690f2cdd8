"""Time limits of a role or a database do not end migrations, checks and maintenance."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pyapp import payloads
from pyapp._core.connection import connect
from pyapp._core.tool_sessions import AdvisoryLock, connect_unlimited, take_lock
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.migrations import migrator
from pyapp.devtools.migrations.session import Backend
from tests.support import execute

# What each limit is set for; scratch databases have those of the role only.
LIMITS = {
    "idle_in_transaction_session_timeout": "DATABASE",
    "idle_session_timeout": "ROLE",
    "lock_timeout": "DATABASE",
    "statement_timeout": "ROLE",
    "transaction_timeout": "ROLE",
}
LIMIT = "300ms"
# Seconds; longer than the limit.
LONG = 0.5
TABLE = "CREATE SCHEMA app;\nCREATE TABLE app.pages (\n    id integer\n);\n"
INDEX = "CREATE INDEX {}pages_id_idx ON app.pages (id);\n"


@pytest.fixture
def limited(empty_database: str) -> Iterator[str]:
    """Return the URL of a role that may do all, with every limit that exists."""
    role = "limited"
    with psycopg.connect(empty_database, autocommit=True) as conn:
        names = {"DATABASE": conn.info.dbname, "ROLE": role}
        conn.execute(f"DROP ROLE IF EXISTS {role}".encode())
        conn.execute(f"CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'pw'".encode())
        for limit, kind in LIMITS.items():
            if conn.info.server_version >= 170000 or limit != "transaction_timeout":
                statement = f"ALTER {kind} {names[kind]} SET {limit} = '{LIMIT}'"
                conn.execute(statement.encode())
        yield make_conninfo(empty_database, user=role, password="pw")
        conn.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER".encode())
        conn.execute(f"DROP ROLE {role}".encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a long migration, and one that waits for a lock."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for name, up, down in [
        (
            "0001_create_pages",
            f"SET LOCAL lock_timeout = '5s';\n{TABLE}SELECT pg_sleep({LONG});\n",
            "DROP TABLE app.pages;\nDROP SCHEMA app;\n",
        ),
        (
            "0002_create_pages_id_idx",
            "-- transactional: false\n" + INDEX.format("CONCURRENTLY "),
            "-- transactional: false\nDROP INDEX CONCURRENTLY app.pages_id_idx;\n",
        ),
    ]:
        (folder / f"{name}.sql").write_text(f"-- Why.\n{up}")
        (folder / f"{name}.rollback.sql").write_text(f"-- Loses it.\n{down}")
    return folder


def test_limits_of_the_sessions_are_in_force(limited: str) -> None:
    """Otherwise the other tests of this file prove nothing."""
    with connect(limited) as conn:
        with pytest.raises(psycopg.Error, match="timeout"):
            conn.execute(sql.SQL("SELECT pg_sleep({})").format(LONG))
        conn.close()


def test_long_migrations_and_checks_are_not_ended(
    limited: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is idle, idle in a transaction, busy, and waits for a lock."""
    mark = Backend.mark_one

    def mark_slowly(self: Backend, migration: object, log: bool = True) -> None:
        mark(self, migration, log)
        time.sleep(LONG)

    with monkeypatch.context() as patch:
        patch.setattr(Backend, "mark_one", mark_slowly)
        migrator.migrate(
            limited, folder, count=1, report=lambda event: time.sleep(LONG / 2)
        )
    with psycopg.connect(limited) as writer:
        writer.execute(
            "SET idle_in_transaction_session_timeout = 0; SET transaction_timeout = 0"
            if writer.info.server_version >= 170000
            else "SET idle_in_transaction_session_timeout = 0"
        )
        writer.commit()
        writer.execute("INSERT INTO app.pages VALUES (1)")
        release = threading.Timer(LONG, writer.commit)
        release.start()
        assert migrator.migrate(limited, folder) == ["0002_create_pages_id_idx"]
        release.join()

    schema = tmp_path / "sql"
    (schema / "functions").mkdir(parents=True)
    (schema / "schema.sql").write_text(TABLE + INDEX.format(""))
    assert check(limited, schema=schema, folder=folder).differences == 0
    assert len(migrator.rollback(limited, folder, count=None)) == 2


def test_tools_have_no_limits(limited: str) -> None:
    with connect_unlimited(limited) as conn:
        rows = conn.execute(
            "SELECT s.name, s.setting FROM pg_settings AS s WHERE s.name = ANY (%s)",
            [list(LIMITS)],
        ).fetchall()
    assert {setting for _, setting in rows} == {"0"}
    assert len(rows) >= len(LIMITS) - 1


def test_long_maintenance_is_not_ended(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_slowly(
        conn: psycopg.Connection[object], purpose: str, seconds: float
    ) -> AdvisoryLock:
        conn.execute(sql.SQL("SELECT pg_sleep({})").format(LONG))
        return take_lock(conn, purpose, seconds)

    name = database.rpartition("/")[2]
    execute(database, f"ALTER DATABASE {name} SET statement_timeout = '{LIMIT}'")
    monkeypatch.setattr(payloads, "take_lock", take_slowly)

    assert payloads.create_payload_partitions(database) == 3
