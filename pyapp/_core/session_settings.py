"""The settings of a session on which what the functions return and store depends.

A role, a database and a server can have other defaults, by ALTER ROLE, ALTER DATABASE
and postgresql.conf. Options of a session's start come before those, and RESET and
DISCARD ALL return to them.
"""

from pyapp._core.paths import sql_dir

# By name. The encoding of the connection is UTF8, too, as a parameter of its own.
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
    # What statements see and do. Several functions need READ COMMITTED.
    "default_table_access_method": "heap",
    "default_tablespace": "",
    "default_transaction_isolation": "read committed",
    "exit_on_error": "off",
    "gin_fuzzy_search_limit": "0",
    "row_security": "on",
    "temp_tablespaces": "",
}

# What an operator limits on purpose, with the reason why a session does not undo it.
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


def session_options() -> str:
    """Return the settings as options of a session's start."""
    return " ".join(
        f"-c {name}={value}".replace("read committed", r"read\ committed")
        for name, value in SETTINGS.items()
    )


def session_sql() -> bytes:
    """Return the statement that each new session runs once."""
    return (sql_dir() / "session.sql").read_bytes()
