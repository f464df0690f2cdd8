"""The connections that callers pass, which a framework may have opened or wrapped."""

from typing import Any

import psycopg
from psycopg import AsyncConnection, AsyncCursor, Connection, Cursor
from psycopg.abc import Loader
from psycopg.pq import Format

from pyapp.errors import InvalidValueError

# The types of the columns that queries return; an array has the loader of its elements.
RETURNED_TYPES = (
    *("bool", "date", "int4", "int8", "jsonb"),
    *("name", "numeric", "text", "timestamptz", "uuid"),
)


def _loaders() -> list[tuple[int, type[Loader]]]:
    """Return psycopg's own loaders, before an application registers others."""
    found = []
    for name in RETURNED_TYPES:
        oid = psycopg.adapters.types[name].oid
        loader = psycopg.adapters.get_loader(oid, Format.TEXT)
        assert loader is not None
        found.append((oid, loader))
    return found


_LOADERS = _loaders()


def use_own_loaders(cursor: Cursor[Any] | AsyncCursor[Any]) -> None:
    """Load values as psycopg does, with any loaders of the connection.

    Django's connection returns jsonb as text, and without USE_TZ times without a zone.
    """
    adapters = cursor.adapters
    for oid, loader in _LOADERS:
        if adapters.get_loader(oid, Format.TEXT) is not loader:
            adapters.register_loader(oid, loader)


_ASYNC_DRIVER = "(await {}.get_raw_connection()).driver_connection"
_DJANGO = "pass connection.connection, after connection.ensure_connection()"
_OTHER_DRIVER = "the functions work on connections of psycopg 3 only"
_POOL = "pass a connection of it: with pool.connection() as conn"
# What to pass in place of an object, by its package and the name of its class.
_REMEDIES = {
    "asyncpg.Connection": _OTHER_DRIVER,
    "asyncpg.Pool": _OTHER_DRIVER,
    "asyncpg.PoolConnectionProxy": _OTHER_DRIVER,
    "django.BaseDatabaseWrapper": _DJANGO,
    "django.CursorWrapper": _DJANGO,
    "django.ConnectionProxy": _DJANGO,
    "psycopg.BaseCursor": "pass its connection",
    "psycopg2.connection": _OTHER_DRIVER,
    "psycopg_pool.BasePool": _POOL,
    "sqlalchemy.AdaptedConnection": "pass its driver_connection",
    "sqlalchemy.AsyncConnection": f"pass {_ASYNC_DRIVER.format('connection')}",
    "sqlalchemy.AsyncEngine": "pass the driver_connection of one of its connections",
    "sqlalchemy.AsyncSession": (
        f"pass {_ASYNC_DRIVER.format('(await session.connection())')}"
    ),
    "sqlalchemy.Connection": "pass connection.connection.driver_connection",
    "sqlalchemy.Engine": "pass the driver_connection of one of its connections",
    "sqlalchemy.PoolProxiedConnection": "pass its driver_connection",
    "sqlalchemy.Session": "pass session.connection().connection.driver_connection",
    "sqlalchemy.async_scoped_session": (
        f"pass {_ASYNC_DRIVER.format('(await session.connection())')}"
    ),
    "sqlalchemy.scoped_session": (
        "pass session.connection().connection.driver_connection"
    ),
}


def require_connection(conn: Any, *, is_async: bool = False) -> None:
    """Refuse an object that is not psycopg's connection, and say what to pass.

    Raises:
        InvalidValueError: *conn* is another object.
    """
    if isinstance(conn, AsyncConnection if is_async else Connection):
        return
    wanted = "an AsyncConnection" if is_async else "a Connection"
    given = "None" if conn is None else f"an object of {_class_name(type(conn))}"
    raise InvalidValueError(
        f"the first argument must be {wanted} of psycopg, not {given}: {_remedy(conn)}"
    )


def _remedy(conn: Any) -> str:
    if isinstance(conn, AsyncConnection):
        return "call the function of the same name in pyapp.aio"
    if isinstance(conn, Connection):
        return "call the function of the same name in pyapp"
    if conn is None:
        return "in Django, call connection.ensure_connection() first"
    for base in type(conn).__mro__:
        if remedy := _REMEDIES.get(_class_name(base)):
            return remedy
    return "open one with pyapp.connect"


def _class_name(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
