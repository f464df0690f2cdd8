# Generated from pyapp/_core/connection.py by .ci/generate_aio.py; do not edit.
"""Connections and pools with pyapp's session settings.

Options at the start of a session override the defaults of a role, a database and a
server, set by ALTER ROLE, ALTER DATABASE and postgresql.conf. RESET and DISCARD ALL
return to the options. Results and stored values do not depend on those defaults.
"""

from typing import Any

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from pyapp._core.config import load_settings
from pyapp._core.connection import (
    POOLER_REFUSAL,
    TRIGGERS_OFF,
    connect_arguments,
    session_conninfo,
    session_sql,
)
from pyapp._core.connection_failures import unavailable
from pyapp.aio.connection_types import AsyncConnection, AsyncPool


async def connect(
    url: str | None = None, *, is_pooled: bool = False
) -> psycopg.AsyncConnection[TupleRow]:
    """Return an open connection to *url*, else to the configured DATABASE_URL.

    The session's application_name is pyapp, its time zone is UTC, and it does not
    depend on settings of the role, the database or the server. The caller commits and
    closes it. *is_pooled* means that a pooler may run each transaction in another
    session: no statement is then prepared on the server, and the pooler has to set the
    settings. A pooler that refuses the session's options is detected.

    Raises:
        ConfigError: no usable DATABASE_URL.
        DatabaseUnavailableError: no server answers, or it refuses.
    """
    url = url or load_settings().database_url
    try:
        conn = await AsyncConnection.connect(
            session_conninfo(url, has_options=not is_pooled),
            **connect_arguments(is_pooled),
        )
    except psycopg.OperationalError as exc:
        if not is_pooled and POOLER_REFUSAL in str(exc):
            return await connect(url, is_pooled=True)
        raise unavailable(url, exc) from exc
    if is_pooled:
        return conn
    try:
        await configure_session(conn)
    except BaseException as exc:
        await conn.close()
        if isinstance(exc, psycopg.Error):
            raise unavailable(url, exc) from exc
        raise
    return conn


async def pool(
    url: str | None = None,
    *,
    min_size: int = 1,
    max_size: int = 10,
    is_pooled: bool = False,
) -> AsyncPool:
    """Return an open pool of such connections; close it, or use it in an `async with`.

    The pool works in this process only: open it after a fork.

    Raises:
        ConfigError: no usable DATABASE_URL.
        DatabaseUnavailableError: no server answers, or it refuses.
    """
    url = url or load_settings().database_url
    # The pool itself would retry for half a minute before it reports an error.
    async with await connect(url, is_pooled=is_pooled) as conn:
        is_pooled = conn.prepare_threshold is None
    connections = AsyncPool(
        session_conninfo(url, has_options=not is_pooled),
        connection_class=AsyncConnection,
        kwargs=connect_arguments(is_pooled),
        configure=None if is_pooled else configure_session,
        min_size=min_size,
        max_size=max_size,
        open=False,
    )
    try:
        await connections.open(wait=True, timeout=10)
    except PoolTimeout as exc:
        await connections.close()
        raise unavailable(url, exc) from exc
    return connections


async def configure_session(conn: psycopg.AsyncConnection[Any]) -> None:
    """Run the statement that sets what options cannot set."""
    try:
        await conn.set_autocommit(True)
        await conn.execute(session_sql(), prepare=False)
        await conn.set_autocommit(False)
    except psycopg.errors.InsufficientPrivilege as exc:
        raise psycopg.OperationalError(TRIGGERS_OFF) from exc
