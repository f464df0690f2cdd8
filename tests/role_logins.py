"""Logins with one role of sql/roles.sql each."""

import contextlib
import time
from collections.abc import Iterator
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pyapp.roles import ROLES, apply_roles


@contextlib.contextmanager
def role_logins(url: str) -> Iterator[dict[str, str]]:
    """Apply the roles at *url*; yield the connection string of a login for each."""
    password = uuid4().hex
    names = {role: f"{role}_{uuid4().hex}" for role in ROLES}
    with psycopg.connect(url) as owner:
        apply_roles(owner)
        for role, name in names.items():
            statement = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {} IN ROLE {}").format(
                sql.Identifier(name), sql.Literal(password), sql.Identifier(role)
            )
            owner.execute(statement)
    try:
        yield {
            role: make_conninfo(url, user=name, password=password)
            for role, name in names.items()
        }
    finally:
        with psycopg.connect(url, autocommit=True) as owner:
            # A closed session keeps its temporary objects for a moment.
            _wait_for_end(owner, list(names.values()))
            for name in names.values():
                owner.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
                owner.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def login_name(login: str) -> str:
    """Return the role name in the connection string *login*."""
    return str(conninfo_to_dict(login)["user"])


def _wait_for_end(
    conn: psycopg.Connection, names: list[str], seconds: float = 20
) -> None:
    deadline = time.monotonic() + seconds
    count = "SELECT count(*) FROM pg_stat_activity WHERE usename = ANY(%s)"
    while conn.execute(count, [names]).fetchone() != (0,):
        if time.monotonic() > deadline:
            raise AssertionError("a login of the test is still connected")
        time.sleep(0.01)
