"""Which privilege a command lacks, and the statement that grants it."""

import psycopg

from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp._core.database_url import quote_name
from pyapp._core.run import fetch_one, fetch_optional
from pyapp.errors import PyappError

# The role of sql/roles.sql that each command needs, by its first words; the longest
# that matches counts. All other commands need the owner of the schema.
ROLES = {
    "stats": "pyapp_readonly",
    "quota": "pyapp_readonly",
    "usage": "pyapp_readonly",
    "plans list": "pyapp_readonly",
    "prices list": "pyapp_readonly",
    "referrals show": "pyapp_readonly",
    "users list": "pyapp_readonly",
    "users show": "pyapp_readonly",
    "sessions list": "pyapp_readonly",
    "stripe events": "pyapp_readonly",
    "db check --data": "pyapp_readonly",
    "import": "pyapp_app",
    "users": "pyapp_app",
    "sessions": "pyapp_app",
    "stripe": "pyapp_sync",
}


def find_grant(arguments: list[str]) -> str | None:
    """Return what allows the command, as the end of a sentence.

    None if that is not known, because the database cannot be asked.
    """
    words = " ".join(arguments)
    fits = [name for name in ROLES if f"{words} ".startswith(f"{name} ")]
    try:
        with connect(load_settings().database_url) as conn:
            role = conn.info.user
            owner = fetch_optional(conn, str, "find_schema_owner")
            if not fits:
                return f"connect as the owner of the schema, {owner}" if owner else None
            needed = ROLES[max(fits, key=len)]
            has_role = fetch_one(conn, bool, "has_role", name=needed)
    except (PyappError, psycopg.Error):
        return None
    if has_role:
        return f"let the owner of the schema, {owner}, run: pyapp db roles"
    return (
        f"let {owner or 'the owner'} run pyapp db roles, and an administrator:"
        f" GRANT {needed} TO {quote_name(role)}"
    )
