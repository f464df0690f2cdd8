"""What DATABASE_URL asks of a local server."""

from dataclasses import dataclass, field

from pyapp._core.database_url import find_elsewhere, reached_parameters
from pyapp.errors import ConfigError


@dataclass(frozen=True)
class Target:
    """The port, user, password and database that a local server must have."""

    url: str = field(repr=False)
    port: int
    user: str
    password: str = field(repr=False)
    database: str


def local_target(url: str) -> Target:
    """Return what *url* asks for.

    Raises:
        ConfigError: it is not on this machine, or names no user or database.
    """
    if reason := find_elsewhere(url):
        raise ConfigError(
            f"{reason}: only a server on localhost is started, stopped and reset here"
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
    """Refuse to make a server without a password; others' servers may need none.

    Raises:
        ConfigError: there is none.
    """
    _given("password", target.password)


def _given(word: str, value: str | None) -> str:
    if not value:
        raise ConfigError(
            f"DATABASE_URL names no {word}; write"
            " postgresql://user:password@localhost:port/database"
        )
    return value
