"""The roles of sql/roles.sql."""

from typing import Any

import psycopg
from psycopg import sql

from pyapp._core.queries import sql_dir
from pyapp._core.run import fetch_all
from pyapp.errors import MissingPrivilegeError

ROLES = ("pyapp_app", "pyapp_sync", "pyapp_readonly")


def apply_roles(conn: psycopg.Connection[Any]) -> None:
    """Create the roles and grant them the least privileges that they need.

    Raises:
        MissingPrivilegeError: they do not exist, and the owner may not create them.
    """
    if missing := fetch_all(conn, str, "list_missing_roles", names=list(ROLES)):
        raise MissingPrivilegeError(
            f"{conn.info.user} may not create roles: let an administrator run"
            f" {'; '.join(missing)}; then run this again"
        )
    text = (sql_dir() / "roles.sql").read_text(encoding="utf-8")
    conn.execute(sql.SQL(text))
