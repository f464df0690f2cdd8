"""Detects a pooler that runs the transactions of a connection in shared sessions."""

from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pyapp._core.connection import connect
from pyapp._core.database_url import redact_url
from pyapp._core.run import fetch_one

_ROUNDS = 3


def explain_sharing(conn: psycopg.Connection[Any]) -> str | None:
    """Return why *conn* has no session of its own; None if it has.

    A pooler in transaction mode, such as PgBouncer's, runs each transaction in any of
    its sessions. Locks and settings of a session then stay behind in a session that
    other clients use. *conn* must not be in a transaction.
    """
    # A pooler gives its clients process numbers of its own; so do some proxies in front
    # of sessions that are not shared.
    first = _process(conn)
    if first == conn.info.backend_pid:
        return None
    url = _url_of(conn)
    own, others = {first}, set()
    with connect(url, is_pooled=conn.prepare_threshold is None) as other:
        for _ in range(_ROUNDS):
            others.add(_process(other))
            own.add(_process(conn))
    if len(own) == 1 and not own & others:
        return None
    info = conn.info
    name = make_conninfo(
        "", user=info.user, dbname=info.dbname, host=info.host, port=info.port
    )
    return (
        f"{redact_url(name)} is a pooler that runs each transaction in another session,"
        " and this command needs one session: use the server's own host and port"
    )


def _url_of(conn: psycopg.Connection[Any]) -> str:
    """Return the connection string of the server that *conn* has reached."""
    info = conn.info
    parts = {"host": info.host, "port": str(info.port), "password": info.password}
    if "hostaddr" in info.get_parameters():
        parts["hostaddr"] = info.hostaddr
    return make_conninfo(info.dsn, **{key: text for key, text in parts.items() if text})


def _process(conn: psycopg.Connection[Any]) -> int:
    """Return the server process of one short transaction."""
    with conn.transaction():
        return fetch_one(conn, int, "get_server_process")
