"""Connections and pools with pyapp's session settings.

Options at the start of a session override the defaults of a role, a database and a
server, set by ALTER ROLE, ALTER DATABASE and postgresql.conf. RESET and DISCARD ALL
return to the options. Results and stored values do not depend on those defaults.
"""

from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo
from psycopg.rows import TupleRow
from psycopg_pool import PoolTimeout

from pyapp._core.config import load_settings
from pyapp._core.connection_failures import unavailable
from pyapp._core.connection_types import Connection, Pool
from pyapp._core.database_url import find_elsewhere, read_url
from pyapp._core.queries import sql_dir

# The client encoding is set by a connection parameter of its own.
SETTINGS: dict[str, str] = {
    # How values are written and read.
    "DateStyle": "ISO,MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "timezone_abbreviations": "Default",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "xmlbinary": "base64",
    "xmloption": "content",
    # How SQL is read, and names are written.
    "array_nulls": "on",
    "backslash_quote": "safe_encoding",
    "plpgsql.extra_errors": "none",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    # How statements run. Several functions need READ COMMITTED.
    "default_table_access_method": "heap",
    "default_tablespace": "",
    "default_transaction_isolation": "read committed",
    "exit_on_error": "off",
    "gin_fuzzy_search_limit": "0",
    "row_security": "on",
    "temp_tablespaces": "",
}

# Settings that an operator may set on purpose, with the reason to leave each alone.
LEFT_TO_THE_OPERATOR: dict[str, str] = {
    "default_transaction_read_only": "keeps a replica or an upgrade free of changes",
    "idle_in_transaction_session_timeout": "a limit; it ends the session with an error",
    "idle_session_timeout": "a limit; it ends the session with an error",
    "lock_timeout": "a limit; it ends the statement with an error",
    "statement_timeout": "a limit; it ends the statement with an error",
    "transaction_timeout": "a limit; it ends the session with an error",
    "tcp_user_timeout": "a limit; it ends the session with an error",
    "max_stack_depth": "a limit; it ends the statement with an error",
    "temp_file_limit": "a limit; it ends the statement with an error",
    "dynamic_library_path": "where the server finds its libraries, PL/pgSQL among them",
    "post_auth_delay": "delays each session's start, for a debugger",
    "local_preload_libraries": "loads a library; a missing one refuses the session",
    "session_preload_libraries": "loads a library; a missing one refuses the session",
    "role": "gives the session the rights of another role",
    "session_authorization": "gives the session the rights of another role",
}

# How PgBouncer before 1.20 refuses a session's options.
POOLER_REFUSAL = "unsupported startup parameter"

TRIGGERS_OFF = (
    "FATAL: session_replication_role turns triggers off for this role;"
    " a superuser can undo it: ALTER ROLE ... RESET session_replication_role"
)


def connect(
    url: str | None = None, *, is_pooled: bool = False
) -> psycopg.Connection[TupleRow]:
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
        conn = Connection.connect(
            session_conninfo(url, has_options=not is_pooled),
            **connect_arguments(is_pooled),
        )
    except psycopg.OperationalError as exc:
        if not is_pooled and POOLER_REFUSAL in str(exc):
            return connect(url, is_pooled=True)
        raise unavailable(url, exc) from exc
    if is_pooled:
        return conn
    try:
        configure_session(conn)
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
        DatabaseUnavailableError: no server answers, or it refuses.
    """
    url = url or load_settings().database_url
    # The pool itself would retry for half a minute before it reports an error.
    with connect(url, is_pooled=is_pooled) as conn:
        is_pooled = conn.prepare_threshold is None
    connections = Pool(
        session_conninfo(url, has_options=not is_pooled),
        connection_class=Connection,
        kwargs=connect_arguments(is_pooled),
        configure=None if is_pooled else configure_session,
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


def configure_session(conn: psycopg.Connection[Any]) -> None:
    """Run the statement that sets what options cannot set."""
    try:
        conn.set_autocommit(True)
        conn.execute(session_sql(), prepare=False)
        conn.set_autocommit(False)
    except psycopg.errors.InsufficientPrivilege as exc:
        raise psycopg.OperationalError(TRIGGERS_OFF) from exc


def connect_arguments(is_pooled: bool) -> dict[str, Any]:
    """Return psycopg's arguments besides the conninfo."""
    return {"prepare_threshold": None} if is_pooled else {}


def session_conninfo(url: str, *, has_options: bool = True) -> str:
    """Return *url* with the parameters of every pyapp session."""
    parts = read_url(url)
    parts.setdefault("application_name", "pyapp")
    parts.setdefault("connect_timeout", 10)
    parts["client_encoding"] = "UTF8"
    if has_options:
        # The last of two equal options wins: a URL may add options, not change these.
        parts["options"] = f"{parts.get('options', '')} {session_options()}".strip()
    return make_conninfo("", **parts)


def session_options() -> str:
    """Return the settings as options of a session's start."""
    return " ".join(
        f"-c {name}={value}".replace("read committed", r"read\ committed")
        for name, value in SETTINGS.items()
    )


def session_sql() -> bytes:
    """Return the statement that each new session runs once."""
    return (sql_dir() / "session.sql").read_bytes()


def is_local(url: str) -> bool:
    """Return whether *url* leads to a TCP port of this machine.

    The server may be elsewhere: `pyapp.devtools.server.urls` finds out.
    """
    return find_elsewhere(url) is None
