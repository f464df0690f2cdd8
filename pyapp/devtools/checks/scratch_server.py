"""The server on which a comparison builds its scratch databases.

The live server serves, unless it is read-only or the role may not create databases
there. Then a temporary server of the embedded wheel is started.
"""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from psycopg.conninfo import make_conninfo

from pyapp._core.connection import connect
from pyapp._core.database_url import redact_url
from pyapp._core.run import fetch_one
from pyapp.devtools.server.binaries import binaries
from pyapp.devtools.server.embedded import require_unix
from pyapp.devtools.server.temporary import temp_server
from pyapp.errors import (
    DatabaseUnavailableError,
    LocalServerError,
    MissingExtraError,
    NotComparedError,
)

_ROLE = "pyapp_scratch"


@dataclass(frozen=True, slots=True)
class ScratchServer:
    """The server, and whether it is the live one; if not, `note` says why."""

    url: str
    is_live: bool
    note: str | None = None


class _Rights(NamedTuple):
    role: str
    can_create: bool
    is_standby: bool
    is_read_only: bool


@contextlib.contextmanager
def scratch_server(url: str, given: str | None) -> Iterator[ScratchServer]:
    """Yield the server *given*, else that of *url*, else a temporary one.

    Raises:
        DatabaseUnavailableError: a server is not healthy.
        NotComparedError: no server can be used; the message names the remedy.
    """
    if given is not None:
        yield ScratchServer(given, is_live=False)
        return
    obstacle = _find_obstacle(url)
    if obstacle is None:
        yield ScratchServer(url, is_live=True)
        return
    try:
        require_unix()
        binaries()
    except (LocalServerError, MissingExtraError) as exc:
        raise NotComparedError(
            f"{obstacle}: name a server where scratch databases can be created with"
            f" --scratch URL; for a temporary one, {exc}"
        ) from exc
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(_temporary_server())
            with connect(server) as conn:
                version = conn.info.server_version
        except (LocalServerError, DatabaseUnavailableError, OSError) as exc:
            raise NotComparedError(
                f"{obstacle}, and no temporary server starts ({exc}): name a server"
                " where scratch databases can be created with --scratch URL"
            ) from exc
        note = f"{obstacle}: a temporary PostgreSQL {version // 10000} is used"
        yield ScratchServer(server, is_live=False, note=note)


def _find_obstacle(url: str) -> str | None:
    """Return why no scratch databases can be created at *url*, or None."""
    with connect(url) as conn:
        rights = fetch_one(conn, _Rights, "get_scratch_rights")
    if rights.is_standby:
        return f"{redact_url(url)} is a standby"
    if rights.is_read_only:
        return f"{redact_url(url)} is read-only"
    return None if rights.can_create else f"{rights.role} may not create databases"


@contextlib.contextmanager
def _temporary_server() -> Iterator[str]:
    """Yield the URL of a new server on this machine, for a role without SUPERUSER.

    The role restores the structure of the live database, which others have written.
    """
    secret = secrets.token_urlsafe()
    with temp_server(password=secret) as server:
        with connect(server.url) as conn:
            statement = fetch_one(
                conn, str, "format_create_role", name=_ROLE, password=secret
            )
            conn.execute(statement.encode())
        yield make_conninfo(server.url, user=_ROLE, dbname="postgres")
