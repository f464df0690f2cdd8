"""The roles of sql/roles.sql."""

from typing import Any

import psycopg
from psycopg import sql

from pyapp._core.queries import sql_dir

ROLES = ("pyapp_app", "pyapp_sync", "pyapp_readonly")


def apply_roles(conn: psycopg.Connection[Any]) -> None:
    """Create the roles and grant them the least privileges that they need."""
    text = (sql_dir() / "roles.sql").read_text(encoding="utf-8")
    conn.execute(sql.SQL(text))
