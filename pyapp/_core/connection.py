"""Connections as pyapp wants them: in UTC, named, with errors that say what to do."""

from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from pyapp._core.config import load_settings
from pyapp._core.connection_types import Connection, Pool
from pyapp._core.database_url import find_elsewhere, read_url, redact_url
from pyapp._core.session_settings import session_options, session_sql
from pyapp.errors import DatabaseUnavailableError

# How PgBouncer before 1.20 refuses a session's options.
POOLER_REFUSAL = "unsupported startup parameter"

REPLICA_ROLE = (
    "FATAL: session_replication_role switches triggers off for this role;"
    " a superuser takes that back by ALTER ROLE ... RESET session_replication_role"
)


def connect(
    url: str | None = None, *, is_pooled: bool = False
) -> psycopg.Connection[TupleRow]:
    """Return an open connection to *url*, else to the configured DATABASE_URL.

    Its session is called pyapp, is in UTC, and does not depend on settings of the role,
    the database or the server. The caller commits and closes it. *is_pooled* says that
    a pooler may give every transaction another session: nothing is then prepared on the
    server, and the settings are the pooler's to set. A pooler that refuses a session's
    options is known by that.

    Raises:
        ConfigError: no usable DATABASE_URL.
        DatabaseUnavailableError: nobody there, or the server refuses.
    """
    url = url or load_settings().database_url
    try:
        conn = Connection.connect(
            session_conninfo(url, has_options=not is_pooled), **behaviour(is_pooled)
        )
    except psycopg.OperationalError as exc:
        if not is_pooled and POOLER_REFUSAL in str(exc):
            return connect(url, is_pooled=True)
        raise unavailable(url, exc) from exc
    if is_pooled:
        return conn
    try:
        settle(conn)
    except BaseException as exc:
        conn.close()
        if isinstance(exc, psycopg.Error):
            raise unavailable(url, exc) from exc
        raise
    return conn


def pool(
    url: str | None = None,
    *,
    min_size: int = 1,
    max_size: int = 10,
    is_pooled: bool = False,
) -> Pool:
    """Return an open pool of such connections; close it, or use it in a `with`.

    The pool works in this process only: open it after a fork.

    Raises:
        ConfigError: no usable DATABASE_URL.
        DatabaseUnavailableError: nobody there, or the server refuses.
    """
    url = url or load_settings().database_url
    # The pool itself would retry for half a minute before it says that nobody is there.
    with connect(url, is_pooled=is_pooled) as conn:
        is_pooled = conn.prepare_threshold is None
    connections = Pool(
        session_conninfo(url, has_options=not is_pooled),
        connection_class=Connection,
        kwargs=behaviour(is_pooled),
        configure=None if is_pooled else settle,
        min_size=min_size,
        max_size=max_size,
        open=False,
    )
    try:
        connections.open(wait=True, timeout=10)
    except PoolTimeout as exc:
        connections.close()
        raise unavailable(url, exc) from exc
    return connections


def settle(conn: psycopg.Connection[Any]) -> None:
    """Set in a new session what its options cannot set."""
    try:
        conn.autocommit = True
        conn.execute(session_sql(), prepare=False)
        conn.autocommit = False
    except psycopg.errors.InsufficientPrivilege as exc:
        raise psycopg.OperationalError(REPLICA_ROLE) from exc


def behaviour(is_pooled: bool) -> dict[str, Any]:
    """Return what psycopg is told beside the conninfo."""
    return {"prepare_threshold": None} if is_pooled else {}


def session_conninfo(url: str, *, has_options: bool = True) -> str:
    """Return *url* with what every pyapp session sets added to it."""
    parts = read_url(url)
    parts.setdefault("application_name", "pyapp")
    parts.setdefault("connect_timeout", 10)
    parts["client_encoding"] = "UTF8"
    if has_options:
        # The last of two options wins: a URL may add others, not change these.
        parts["options"] = f"{parts.get('options', '')} {session_options()}".strip()
    return make_conninfo("", **parts)


def is_local(url: str) -> bool:
    """Say whether *url* leads to a TCP port of this machine.

    Whether the server is here too, `pyapp.devtools.server.urls` finds out.
    """
    return find_elsewhere(url) is None


def unavailable(url: str, exc: Exception) -> DatabaseUnavailableError:
    """Return the error for a failure to connect: URL, reason, what to do."""
    lines = str(exc).strip().splitlines() or [repr(exc)]
    reason = lines[0].rpartition(" failed: ")[2]
    refused = reason.startswith("FATAL")
    if refused:
        reason = reason.removeprefix("FATAL:").strip()
        message = f"the database at {redact_url(url)} refuses: {reason}"
        remedy = "; more by: pyapp doctor"
    else:
        message = f"no database at {redact_url(url)}: {reason}"
        remedy = "; start it with: pyapp db start"
    error = DatabaseUnavailableError(message + (remedy if is_local(url) else ""))
    error.refused, error.reason = refused, reason
    return error
