"""What DATABASE_URL asks of a local server, and which server a connection reached."""

import ipaddress
import socket
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pyapp._core.database_url import (
    find_elsewhere,
    reached_parameters,
    redact_url,
)
from pyapp._core.run import fetch_one
from pyapp.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Reached:
    """A database: its redacted URL for messages, and a URL of only that server."""

    name: str
    url: str


@dataclass(frozen=True, slots=True)
class _Ends:
    """The addresses of a connection, as one side reports them; None for a socket."""

    client_address: str | None
    client_port: int | None
    server_address: str | None
    server_port: int | None


def name_reached(url: str, conn: psycopg.Connection[Any]) -> Reached:
    """Return the database that *conn*, made with *url*, is connected to.

    *url* may name several servers, or take its host from the environment or a service.
    The new URL always has the address, which replaces the list of a service; the name
    has it only if a parameter may have set it.
    """
    info = conn.info
    parts = {"host": info.host, "port": str(info.port)}
    address = {"hostaddr": info.hostaddr} if info.hostaddr else {}
    given = reached_parameters(url)
    is_set = bool(given.get("hostaddr")) or "service" in given
    shown = address if is_set and info.hostaddr != info.host else {}
    name = make_conninfo("", user=info.user, dbname=info.dbname, **parts, **shown)
    exact = make_conninfo(url, dbname=info.dbname, **parts, **address)
    return Reached(redact_url(name), exact)


def is_on_this_machine(conn: psycopg.Connection[Any]) -> bool:
    """Tell whether the server of *conn* listens on the loopback of this machine.

    Then client and server see the same two addresses and ports. Through an SSH forward,
    a proxy, a pooler or a container's port they see others, and the server can be on
    any machine.
    """
    theirs = fetch_one(conn, _Ends, "get_connection_ends")
    if theirs.server_address is None or theirs.client_address is None:
        return False
    own = socket.socket(fileno=conn.fileno())
    try:
        client, server = own.getsockname(), own.getpeername()
    finally:
        own.detach()  # keeps the connection open
    seen = _Ends(client[0], client[1], server[0], server[1])
    return seen == theirs and ipaddress.ip_address(server[0]).is_loopback


@dataclass(frozen=True)
class Target:
    """The port, user, password and database of a local server."""

    url: str = field(repr=False)
    port: int
    user: str
    password: str = field(repr=False)
    database: str


def local_target(url: str) -> Target:
    """Return the port, user, password and database of *url*.

    Raises:
        ConfigError: it is not on this machine, or has no user or database.
    """
    if reason := find_elsewhere(url):
        raise ConfigError(
            f"{reason}: these commands start, stop and reset a server on localhost only"
        )
    parts = reached_parameters(url)
    return Target(
        url=url,
        port=int(parts["port"] or "5432"),
        user=_given("user", parts.get("user")),
        password=parts.get("password", ""),
        database=_given("database", parts.get("dbname")),
    )


def require_password(target: Target) -> None:
    """Refuse to create a server without a password.

    Raises:
        ConfigError: DATABASE_URL has no password.
    """
    _given("password", target.password)


def _given(word: str, value: str | None) -> str:
    if not value:
        raise ConfigError(
            f"DATABASE_URL has no {word}; write"
            " postgresql://user:password@localhost:port/database"
        )
    return value
