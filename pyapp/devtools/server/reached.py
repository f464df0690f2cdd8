"""The server that a connection has reached, as the server itself reports it."""

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pyapp._core.database_url import reached_parameters, redact_url
from pyapp._core.tool_queries import fetch_one


@dataclass(frozen=True, slots=True)
class Reached:
    """A database: its redacted URL for messages, and a URL for that server alone."""

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
    The new URL always has the address, which replaces a service's list of them; the
    name has it only where a parameter may have set it.
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
    """Say whether the server of *conn* itself listens on this machine's loopback.

    Then it sees the same two addresses and ports as we do. Through an SSH forward, a
    proxy, a pooler or the port of a container it sees others, and can be anywhere.
    """
    theirs = fetch_one(conn, "get_connection_ends", _Ends)
    if theirs.server_address is None or theirs.client_address is None:
        return False
    own = socket.socket(fileno=conn.fileno())
    try:
        client, server = own.getsockname(), own.getpeername()
    finally:
        own.detach()  # the connection stays open
    ours = _Ends(client[0], client[1], server[0], server[1])
    return ours == theirs and ipaddress.ip_address(server[0]).is_loopback
