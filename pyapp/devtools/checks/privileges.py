"""The privileges of the roles of sql/roles.sql, compared with that file."""

from typing import NamedTuple

import psycopg

from pyapp._core.connection import connect
from pyapp._core.database_url import quote_name
from pyapp._core.pooled_sessions import explain_sharing
from pyapp._core.run import fetch_all, fetch_optional
from pyapp.devtools.checks.dumps import Objects
from pyapp.errors import NotComparedError
from pyapp.roles import ROLES, apply_roles

# Privileges of the role itself, on no object of the schema.
_OF_ROLES = "ROLE "
_PUBLIC = " PUBLIC"
_FUNCTION = "PRIVILEGES FUNCTION "


class _Privileges(NamedTuple):
    name: str
    statement: str


def require_dumpable(url: str) -> None:
    """Refuse a pooler, and a role that may not dump schema app.

    pg_dump changes settings of its session, which a pooler would keep for its other
    clients.

    Raises:
        NotComparedError: the message names the remedy.
    """
    with connect(url) as conn:
        if reason := explain_sharing(conn):
            raise NotComparedError(reason)
        owner = fetch_optional(conn, str, "find_unread_owner")
        role = conn.info.user
    if owner is not None:
        raise NotComparedError(
            f"{role} may not read all tables of schema app: connect as their owner,"
            f" {owner}, or let a superuser run: GRANT pg_read_all_data TO"
            f" {quote_name(role)}"
        )


def read_privileges(url: str) -> Objects:
    """Return what PUBLIC and the roles may do at *url*, as GRANT statements."""
    with connect(url) as conn:
        return _read(conn)


def has_roles(privileges: Objects) -> bool:
    """Tell whether one of the roles may use the schema: sql/roles.sql was run."""
    return any(f"PRIVILEGES SCHEMA app {role}" in privileges for role in ROLES)


def expected_privileges(url: str) -> Objects:
    """Return what sql/roles.sql grants at *url*, a scratch database; it keeps nothing.

    Raises:
        MissingPrivilegeError: the role may not create the roles.
    """
    with connect(url) as conn:
        try:
            apply_roles(conn)
            found = _read(conn)
        finally:
            conn.rollback()
    return {k: text for k, text in found.items() if not k.startswith(_OF_ROLES)}


def without_stricter(live: Objects, expected: Objects) -> tuple[Objects, Objects]:
    """Return both without PUBLIC where *live* grants it no more than *expected*.

    An operator may take more from PUBLIC than sql/roles.sql does. What PUBLIC has
    beyond it, each role has, too, and is named once.
    """
    stricter: set[str] = set()
    looser: set[str] = set()
    for title in {*live, *expected}:
        if title.endswith(_PUBLIC):
            lines = set(live.get(title, "").splitlines())
            is_less = lines <= set(expected.get(title, "").splitlines())
            (stricter if is_less else looser).add(title.removesuffix(_PUBLIC))
    inherited = {
        f"{name} {role}"
        for name in looser
        for role in ROLES
        if f"{name} {role}" not in expected and name.startswith(_FUNCTION)
    }
    left_out = inherited | {f"{name}{_PUBLIC}" for name in stricter}
    return (
        {title: text for title, text in live.items() if title not in left_out},
        {title: text for title, text in expected.items() if title not in left_out},
    )


def _read(conn: psycopg.Connection[tuple[object, ...]]) -> Objects:
    rows = fetch_all(conn, _Privileges, "list_privileges")
    return {row.name: row.statement for row in rows}
