"""`pyapp.connect` and `pyapp.pool`, to be awaited."""

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from pyapp.config import load_settings
from pyapp.connection import (
    POOLER_REFUSAL,
    behaviour,
    session_conninfo,
    unavailable,
)
from pyapp.connection_types import AsyncConnection, AsyncPool


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
        return await AsyncConnection.connect(
            session_conninfo(url, has_options=not is_pooled), **behaviour(is_pooled)
        )
    except psycopg.OperationalError as exc:
        if not is_pooled and POOLER_REFUSAL in str(exc):
            return await connect(url, is_pooled=True)
        raise unavailable(url, exc) from exc


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
