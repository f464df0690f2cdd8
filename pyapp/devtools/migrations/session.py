"""The session that migrates: one at a time, with yoyo's tables, safe to kill."""

import contextlib
import getpass
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
from yoyo import internalmigrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import DatabaseURI
from yoyo.migrations import default_migration_table

from pyapp._core.connection import connect, session_sql
from pyapp._core.run import execute, fetch_all, fetch_optional
from pyapp._core.tool_sessions import AdvisoryLock, require_own_session, take_lock
from pyapp.devtools.migrations.files import MigrationFile
from pyapp.devtools.migrations.history import (
    Bookkeeping,
    read_bookkeeping,
    refuse_earlier,
)
from pyapp.devtools.server.urls import is_on_this_machine
from pyapp.errors import MigrationError


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """yoyo's backend on a connection of pyapp, with its tables always in `public`."""

    schema = "public"

    def connect(self, dburi: DatabaseURI) -> psycopg.Connection[Any]:
        connection = connect(dburi.args["url"])
        require_own_session(connection)
        connection.autocommit = True
        return connection

    def init_connection(self, connection: psycopg.Connection[Any]) -> None:
        execute(connection, "clear_timeouts")
        super().init_connection(connection)
        with contextlib.suppress(psycopg.Error):  # some systems cannot detect it
            execute(connection, "end_with_client")

    def create_lock_table(self) -> None:
        """Create yoyo's lock table; yoyo's own method ignores every error."""
        with (
            contextlib.suppress(psycopg.errors.DuplicateTable),  # plain yoyo was first
            self.transaction(),
        ):
            self.execute(self.format_sql(self.create_lock_table_sql))

    def reset(self) -> None:
        """Undo the settings of a migration."""
        execute(self.connection, "reset_session")
        self.connection.execute(session_sql(), prepare=False)
        self.init_connection(self.connection)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Open a transaction that excludes plain yoyo by yoyo's own lock."""
        with self.transaction():
            execute(self.connection, "insert_yoyo_lock", pid=os.getpid())
            yield
            execute(self.connection, "delete_yoyo_lock")

    def mark_one(self, migration: Any, log: bool = True) -> None:
        """Mark *migration* as the one applied last."""
        super().mark_one(migration, log)
        execute(self.connection, "order_mark", name=migration.id)

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> Any:
        # yoyo's own method asks the name service for this machine, which may take
        # seconds, and fails for an account without a name.
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.getuid())
        return {
            "id": str(uuid.uuid4()),
            "migration_id": migration.id,
            "migration_hash": migration.hash,
            "username": user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }


@contextlib.contextmanager
def migration_session(
    url: str,
    *,
    patience: float = 60,
    on_wait: Callable[[AdvisoryLock], None] | None = None,
    is_building: bool = False,
    is_adopting: bool = False,
) -> Iterator[Backend]:
    """Yield the only backend that may migrate at *url*; create its missing tables.

    *on_wait* is called if another run is at work. *is_building*: a missing schema app
    will be created. *is_adopting*: migrations of the earlier history are allowed.

    Raises:
        DatabaseUnavailableError: the database is not healthy.
        PooledSessionError: a pooler shares the session with other clients.
        MigrationError: another run still works after *patience* seconds, the role may
            not create what is missing, or the database has the earlier history.
    """
    uri = DatabaseURI("postgresql+psycopg", None, None, None, None, None, {"url": url})
    with Backend(uri, default_migration_table) as backend:
        conn = backend.connection
        lock = take_lock(conn, "pyapp migrations", patience, on_wait)
        if not lock.is_held:
            raise MigrationError(
                f"another run of migrations is at work: {lock.describe_holder()}"
            )
        tables = read_bookkeeping(conn)
        _require_grants(conn, tables, is_building)
        if not is_adopting:
            refuse_earlier(conn)
        if not tables.has_lock:
            backend.create_lock_table()
        _wait_for_yoyo(conn, patience=10)
        if internalmigrations.needs_upgrading(backend):
            with backend.turn():
                internalmigrations.upgrade(backend)
        if not tables.has_checksums:
            with conn.transaction():
                execute(conn, "create_checksums")
                execute(conn, "comment_checksums")
        yield backend


def record_checksum(backend: Backend, file: MigrationFile) -> None:
    """Store the checksum of the applied migration *file*."""
    execute(
        backend.connection, "upsert_checksum", name=file.name, checksum=file.checksum
    )


def _require_grants(
    conn: psycopg.Connection[Any], tables: Bookkeeping, is_building: bool
) -> None:
    if owner := fetch_optional(conn, str, "find_other_owner"):
        raise MigrationError(
            f"the role {conn.info.user} does not own schema app: connect as its owner,"
            f" {owner}"
        )
    has_all = tables.has_lock and tables.has_migrations and tables.has_checksums
    grants = fetch_all(
        conn,
        str,
        "list_missing_grants",
        is_missing_tables=not has_all,
        is_building=is_building,
    )
    if grants:
        raise MigrationError(
            f"the role {conn.info.user} may not create what the migrations need; let"
            f" the database's owner or a superuser run: {'; '.join(grants)}"
        )


def _wait_for_yoyo(conn: psycopg.Connection[Any], patience: float) -> None:
    """Wait until plain yoyo has ended; remove the lock of a killed one.

    A run of pyapp leaves no such row, because it never commits one.
    """
    deadline = time.monotonic() + patience
    while holders := fetch_all(conn, int, "list_yoyo_locks"):
        pid = holders[0]
        others = read_bookkeeping(conn).other_clients
        if not others or (is_on_this_machine(conn) and not _is_alive(pid)):
            execute(conn, "delete_yoyo_lock")
        elif time.monotonic() > deadline:
            raise MigrationError(
                f"yoyo is at work as process {pid}; if it has ended: yoyo break-lock"
            )
        else:
            time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    """Tell whether the process exists; without psutil, which is in an extra."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
