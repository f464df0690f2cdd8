"""What a DATABASE_URL says, read so that no message ever quotes its password."""

from typing import Any
from urllib.parse import quote

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict

from pyapp.errors import ConfigError

_SCHEMES = ("postgresql://", "postgres://")


def read_url(url: str) -> dict[str, Any]:
    """Return the parameters of a URL or of a conninfo string.

    Raises:
        ConfigError: it is neither, or a character in it is taken for another's place.
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
        raise ConfigError("the host in DATABASE_URL is no name of a host")
    for port in str(parts.get("port", "")).split(","):
        if port and not (_is_number(port) and 0 < int(port) < 65536):
            raise ConfigError("the port in DATABASE_URL is no number from 1 to 65535")
    if not _is_number(str(parts.get("connect_timeout", 0))):
        raise ConfigError("connect_timeout in DATABASE_URL is no whole number")
    return parts


def redact_url(url: str) -> str:
    """Return *url* without its password and parameters, for messages."""
    try:
        parts = read_url(url)
    except ConfigError:
        return "(unreadable DATABASE_URL)"
    host = str(parts.get("host") or parts.get("hostaddr") or "")
    socket = f"?host={host}" if host.startswith("/") else ""
    address = "" if socket else f"[{host}]" if ":" in host else host
    port = f":{parts['port']}" if "port" in parts else ""
    user = f"{quote(str(parts['user']), safe='')}@" if "user" in parts else ""
    name = quote(str(parts.get("dbname", "")), safe="")
    return f"postgresql://{user}{address}{port}/{name}{socket}"


def _is_misread(url: str) -> bool:
    """Say whether libpq would take a part of the password for the host or the name."""
    scheme = next((s for s in _SCHEMES if url.startswith(s)), None)
    if scheme is None:
        return False
    authority, _, path = url.removeprefix(scheme).partition("/")
    return authority.count("@") > 1 or "@" in path.partition("?")[0]


def _is_host(name: str) -> bool:
    try:
        if not name.startswith("/"):
            name.encode("idna")  # as it is looked up
    except UnicodeError:
        return False
    return name.isprintable()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
