"""Databases created for one comparison and dropped after it."""

import contextlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyapp._core.connection import session_conninfo
from pyapp._core.run import fetch_all, fetch_one
from pyapp._core.tool_sessions import connect_unlimited
from pyapp.errors import SchemaCheckError


@contextlib.contextmanager
def scratch_database(url: str, *, template: str | None = None) -> Iterator[str]:
    """Yield the conninfo of a new database on the server of *url*.

    It is empty, or a copy of *template*, which must have no sessions. It is dropped at
    the end, also after Ctrl-C; a later run drops the database of a killed one.

    Raises:
        DatabaseUnavailableError: the server is not healthy.
        SchemaCheckError: the role may not create databases.
    """
    name = f"pyapp_scratch_{int(time.time())}_{secrets.token_hex(4)}"
    with connect_unlimited(url) as conn:
        conn.autocommit = True
        for old in fetch_all(conn, str, "list_old_scratches"):
            with contextlib.suppress(psycopg.Error):
                conn.execute(old.encode())
        try:
            _create(conn, name, template)
            yield make_conninfo(session_conninfo(url), dbname=name)
        finally:
            if conn.closed:  # the server was restarted
                with connect_unlimited(url) as second:
                    second.autocommit = True
                    _run(second, "format_drop_scratch", name)
            else:
                _run(conn, "format_drop_scratch", name)


def _create(
    conn: psycopg.Connection[tuple[object, ...]], name: str, template: str | None
) -> None:
    source = conninfo_to_dict(template)["dbname"] if template else "template0"
    try:
        _run(conn, "format_create_scratch", name, template=source)
    except psycopg.errors.InsufficientPrivilege as exc:
        raise SchemaCheckError(
            f"{conn.info.user} may not create the scratch databases that a comparison"
            " needs: give a server where it may with --scratch"
        ) from exc


def _run(
    conn: psycopg.Connection[tuple[object, ...]], query: str, name: str, **others: Any
) -> None:
    conn.execute(fetch_one(conn, str, query, name=name, **others).encode())
