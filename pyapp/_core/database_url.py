"""Parses DATABASE_URL; no message quotes its password."""

import re
from typing import Any
from urllib.parse import quote

from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict

from pyapp.errors import ConfigError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_SCHEMES = ("postgresql://", "postgres://")


def read_url(url: str) -> dict[str, Any]:
    """Return the parameters of a URL or of a conninfo string.

    Raises:
        ConfigError: it is not valid, or libpq would read it in another way.
    """
    try:
        if not url.isprintable() or _is_misread(url):
            raise ProgrammingError
        parts = conninfo_to_dict(url)
    except ProgrammingError:
        # libpq's own message may quote the password.
        raise ConfigError(
            "DATABASE_URL is not a PostgreSQL URL; write"
            " postgresql://user:password@host:port/database,"
            " with special characters percent-encoded"
        ) from None
    if not all(map(_is_host, str(parts.get("host", "")).split(","))):
        raise ConfigError("invalid host in DATABASE_URL")
    for port in str(parts.get("port", "")).split(","):
        if port and not (_is_number(port) and 0 < int(port) < 65536):
            raise ConfigError(
                "invalid port in DATABASE_URL; it must be from 1 to 65535"
            )
    if not _is_number(str(parts.get("connect_timeout", 0))):
        raise ConfigError(
            "invalid connect_timeout in DATABASE_URL; it must be a whole number"
        )
    return parts


def reached_parameters(url: str) -> dict[str, str]:
    """Return the parameters of *url* and libpq's defaults.

    The defaults are PGHOSTADDR, PGPORT and similar variables, and the service of
    PGSERVICE.

    Raises:
        ConfigError: *url* is not valid.
    """
    defaults = {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val
    }
    return defaults | {name: str(value) for name, value in read_url(url).items()}


def find_elsewhere(url: str) -> str | None:
    """Return the reason why *url* does not lead to this machine, or None if it does.

    Raises:
        ConfigError: *url* is not valid.
    """
    if "service" in (parts := read_url(url)):
        return "DATABASE_URL names a service: write the host and the port instead"
    if parts.get("host") not in LOOPBACK:
        return f"DATABASE_URL is {redact_url(url)}, not a server on localhost"
    reached = reached_parameters(url)
    if "," in reached["port"]:
        return f"DATABASE_URL is {redact_url(url)}, which names several ports"
    address = reached.get("hostaddr", "")
    # Local servers listen only on these addresses; a server on 127.0.0.2 may have the
    # same port.
    if not address or address in LOOPBACK:
        return None
    source = "its" if "hostaddr" in parts else "PGHOSTADDR or PGSERVICE sets the"
    return (
        f"DATABASE_URL is {redact_url(url)}, and {source} hostaddr {address} is not an"
        " address of localhost"
    )


def redact_url(url: str) -> str:
    """Return *url* for messages: without its password, and only with the parameters
    that select the server.
    """
    try:
        parts = read_url(url)
    except ConfigError:
        return "(unreadable DATABASE_URL)"
    host = str(parts.get("host") or parts.get("hostaddr") or "")
    socket = f"?host={host}" if host.startswith("/") else ""
    address = "" if socket else _address(host, str(parts.get("port", "")))
    port = f":{parts['port']}" if socket and "port" in parts else ""
    user = f"{quote(str(parts['user']), safe='')}@" if "user" in parts else ""
    name = quote(str(parts.get("dbname", "")), safe="")
    if "hostaddr" in parts and "host" in parts and not socket:
        name += f"?hostaddr={quote(str(parts['hostaddr']), safe=',:')}"
    return f"postgresql://{user}{address}{port}/{name}{socket}"


def quote_name(name: str) -> str:
    """Return the name of a role or a database as a statement in a message has it."""
    if re.fullmatch(r"[a-z_][a-z0-9_]*", name):
        return name
    return '"{}"'.format(name.replace('"', '""'))


def _address(host: str, port: str) -> str:
    """Return the hosts with their ports, as a URL lists them."""
    hosts = [f"[{name}]" if ":" in name else name for name in host.split(",")]
    ports = port.split(",") if "," in port else [port] * len(hosts)
    if len(ports) != len(hosts):
        return f"{','.join(hosts)}:{port}"
    pairs = zip(hosts, ports, strict=True)
    return ",".join(f"{name}:{port}" if port else name for name, port in pairs)


def _is_misread(url: str) -> bool:
    """Return whether libpq would read a part of the password as the host or name."""
    scheme = next((s for s in _SCHEMES if url.startswith(s)), None)
    if scheme is None:
        return False
    authority, _, path = url.removeprefix(scheme).partition("/")
    return authority.count("@") > 1 or "@" in path.partition("?")[0]


def _is_host(name: str) -> bool:
    try:
        if not name.startswith("/"):
            name.encode("idna")  # as the resolver does
    except UnicodeError:
        return False
    return name.isprintable()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
