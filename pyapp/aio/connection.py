"""`pyapp.connect` and `pyapp.pool`, to be awaited."""

from typing import Any

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from pyapp._core.config import load_settings
from pyapp._core.connection import (
    POOLER_REFUSAL,
    REPLICA_ROLE,
    behaviour,
    session_conninfo,
    unavailable,
)
from pyapp._core.connection_types import AsyncConnection, AsyncPool
from pyapp._core.session_settings import session_sql


async def connect(
    url: str | None = None, *, is_pooled: bool = False
) -> psycopg.AsyncConnection[TupleRow]:
    """Return an open connection as `pyapp.connect` does.

    Raises:
        ConfigError: no usable DATABASE_URL.
        DatabaseUnavailableError: nobody there, or the server refuses.
    """
    url = url or load_settings().database_url
    try:
        conn = await AsyncConnection.connect(
            session_conninfo(url, has_options=not is_pooled), **behaviour(is_pooled)
        )
    except psycopg.OperationalError as exc:
        if not is_pooled and POOLER_REFUSAL in str(exc):
            return await connect(url, is_pooled=True)
        raise unavailable(url, exc) from exc
    if is_pooled:
        return conn
    try:
        await settle(conn)
    except BaseException as exc:
        await conn.close()
        if isinstance(exc, psycopg.Error):
            raise unavailable(url, exc) from exc
        raise
    return conn


async def settle(conn: psycopg.AsyncConnection[Any]) -> None:
    """Set in a new session what its options cannot set."""
    try:
        await conn.set_autocommit(True)
        await conn.execute(session_sql(), prepare=False)
        await conn.set_autocommit(False)
    except psycopg.errors.InsufficientPrivilege as exc:
        raise psycopg.OperationalError(REPLICA_ROLE) from exc


async def pool(
    url: str | None = None,
    *,
    min_size: int = 1,
    max_size: int = 10,
    is_pooled: bool = False,
) -> AsyncPool:
    """Return an open pool as `pyapp.pool` does; close it, or use it in an `async with`.

    Raises:
        ConfigError: no usable DATABASE_URL.
        DatabaseUnavailableError: nobody there, or the server refuses.
    """
    url = url or load_settings().database_url
    # The pool itself would retry for half a minute before it says that nobody is there.
    async with await connect(url, is_pooled=is_pooled) as conn:
        is_pooled = conn.prepare_threshold is None
    connections = AsyncPool(
        session_conninfo(url, has_options=not is_pooled),
        connection_class=AsyncConnection,
        kwargs=behaviour(is_pooled),
        configure=None if is_pooled else settle,
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
