"""The local server: in Docker if an engine answers, else embedded."""

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.conninfo import make_conninfo

from pyapp._core.config import Settings
from pyapp._core.connection import connect
from pyapp._core.database_url import redact_url
from pyapp._core.run import fetch_all, fetch_one
from pyapp.devtools.server import docker
from pyapp.devtools.server.binaries import state_folder
from pyapp.devtools.server.embedded import (
    RESET_HINT,
    EmbeddedServer,
    find_postmaster,
    has_embedded,
    port_is_free,
    run_formatted,
)
from pyapp.devtools.server.owner import find_owner
from pyapp.devtools.server.urls import (
    Target,
    is_on_this_machine,
    local_target,
    name_reached,
    require_password,
)
from pyapp.errors import (
    ConfigError,
    DatabaseUnavailableError,
    LocalServerError,
    MissingExtraError,
)

log = logging.getLogger("pyapp.server")


class Kind(StrEnum):
    """What runs the server."""

    DOCKER = "Docker"
    EMBEDDED = "embedded"
    OTHER = "not this project's"


def start(settings: Settings, kind: Kind | None = None) -> str:
    """Start a server at DATABASE_URL and wait until it is healthy; return a report.

    Without *kind*, it is embedded if Docker cannot create a container.

    Raises:
        LocalServerError: it does not start; the message says what to do.
    """
    target = local_target(settings.database_url)
    running = running_kind(settings)
    if running is Kind.OTHER and (owner := find_owner(target)):
        raise LocalServerError(_occupied(target, owner))
    if kind is None:
        try:
            version = _version(target.url)
            already = f"is already up at {_name(settings)} ({running})"
            return f"PostgreSQL {version} {already}"
        except DatabaseUnavailableError as exc:
            if exc.refused and running is Kind.OTHER:
                raise LocalServerError(
                    f"another project's server is on port {target.port}; {exc.reason};"
                    " correct DATABASE_URL, or choose another port in it"
                ) from None
    require_password(target)
    began = time.monotonic()
    version, used, reason = _bring_up_any(settings, kind)
    seconds = round(time.monotonic() - began, 3)
    log.info("server started", extra={"server": used.value, "seconds": seconds})
    because = f", because {reason}" if reason else ""
    return f"PostgreSQL {version} is up at {_name(settings)} ({used}{because})"


def _occupied(target: Target, owner: Path) -> str:
    return (
        f"port {target.port} has the server of {owner}: choose another port in"
        " DATABASE_URL, in .env.local"
    )


def _bring_up_any(settings: Settings, kind: Kind | None) -> tuple[str, Kind, str]:
    """Start the server; return its version, its kind, and why it is not Docker's."""
    wanted = kind or _usual_kind(settings)
    try:
        return _bring_up(settings, wanted), wanted, ""
    except docker.DockerError as exc:
        # A container that exists has this checkout's data.
        root = settings.root
        is_new = docker.is_usable(root) and docker.find_container(root) is None
        if kind or not is_new or not has_embedded():
            raise
        return _bring_up(settings, Kind.EMBEDDED), Kind.EMBEDDED, exc.reason


def stop(settings: Settings) -> str:
    """Stop the server of this project, if it runs; return a report."""
    target = local_target(settings.database_url)
    kind = running_kind(settings)
    if kind is Kind.DOCKER:
        docker.stop(settings.root)
    elif not embedded_server(settings).stop():
        if kind is Kind.OTHER:
            owner = find_owner(target)
            whose = f"of {owner}" if owner else kind
            return f"the server on port {target.port} is {whose}; it is not stopped"
        return "PostgreSQL is not running"
    log.info("server stopped", extra={"server": (kind or Kind.EMBEDDED).value})
    return f"PostgreSQL is stopped ({kind or Kind.EMBEDDED}); its data stays"


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A healthy server; `origin` says what runs it, None outside the local environment.

    `url` is for messages, without the password.
    """

    version: str
    url: str
    is_standby: bool
    is_read_only: bool
    origin: str | None

    def __str__(self) -> str:
        origin = f" ({self.origin})" if self.origin else ""
        mode = "a standby" if self.is_standby else "read-only"
        is_limited = self.is_standby or self.is_read_only
        limit = f", {mode}" if is_limited else ""
        return f"PostgreSQL {self.version} is up at {self.url}{origin}{limit}"


class _Mode(NamedTuple):
    is_standby: bool
    is_read_only: bool


def status(settings: Settings) -> ServerStatus:
    """Return the state of the server at DATABASE_URL.

    Raises:
        DatabaseUnavailableError: it is not healthy.
    """
    origin, owner = None, None
    if settings.environment in (None, "local"):
        kind, owner = _find_kind(settings)
        whose = f"of {owner}: choose another port for a server of this folder"
        origin = whose if owner else str(kind)
    try:
        with connect(settings.database_url) as conn:
            version = readable_version(conn.info.server_version)
            name = name_reached(settings.database_url, conn).name
            mode = fetch_one(conn, _Mode, "get_server_mode")
    except DatabaseUnavailableError as exc:
        if owner is None:
            raise
        text = f"{exc}; {_occupied(local_target(settings.database_url), owner)}"
        raise LocalServerError(text) from exc
    return ServerStatus(version, name, *mode, origin)


def _find_kind(settings: Settings) -> tuple[Kind, Path | None]:
    """Return the kind of the server, and the folder of the other checkout it is of."""
    try:
        kind = running_kind(settings) or Kind.OTHER
    except (ConfigError, LocalServerError):  # elsewhere, or a port of root
        return Kind.OTHER, None
    target = local_target(settings.database_url)
    return kind, find_owner(target) if kind is Kind.OTHER else None


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """What `reset` deletes: one database, or the whole server with its data."""

    kind: Kind
    # The other databases of the server, or None if they cannot be listed.
    others: tuple[str, ...] | None

    @property
    def is_whole(self) -> bool:
        """Whether the whole server is deleted: it has no other database, or fails."""
        return self.kind is not Kind.OTHER and not self.others


def plan_reset(settings: Settings) -> ResetPlan:
    """Return what `reset` would delete.

    A stopped server of this checkout is started to list its databases, then stopped.

    Raises:
        ConfigError: ENVIRONMENT is not local.
        LocalServerError: the server is not on this machine, or the server of this
            checkout runs on another port than that of DATABASE_URL.
    """
    if settings.environment != "local":
        raise ConfigError(
            f"ENVIRONMENT is {settings.environment or 'not set'}:"
            " only a local database is reset"
        )
    target = local_target(settings.database_url)
    kind = reset_kind(settings)
    if kind is not Kind.OTHER:
        require_password(target)
        _require_port(settings, target, kind)
        return ResetPlan(kind, _find_others(settings, target, kind))
    with _maintenance(target):
        return ResetPlan(kind, None)


def reset(settings: Settings, agreed: ResetPlan | None = None) -> str:
    """Delete the local database and create it again, empty; return a report.

    *agreed* is the plan that the user has confirmed.

    Raises:
        ConfigError: ENVIRONMENT is not local.
        LocalServerError: the server has changed, or is not on this machine.
    """
    target = local_target(settings.database_url)
    plan = plan_reset(settings)
    if agreed not in (None, plan):
        raise LocalServerError(
            f"the server at {_name(settings)} has changed since the question: it is now"
            f" {plan.kind}, or has other databases; run the command again"
        )
    kind = plan.kind
    if plan.is_whole:
        if kind is Kind.DOCKER:
            docker.remove(settings.root)
        else:
            embedded_server(settings).remove()
        _bring_up(settings, kind)
    else:
        if running_kind(settings) is None:
            _bring_up(settings, kind, "postgres")
        with _maintenance(target, kind) as conn:
            for query in ("format_drop_database", "format_create_database"):
                run_formatted(conn, query, target.database)
    log.info("database recreated", extra={"server": kind.value})
    return f"the database at {_name(settings)} is new and empty ({kind})"


def reset_kind(settings: Settings) -> Kind:
    """Return the kind of the server that `reset` would change."""
    return running_kind(settings) or _usual_kind(settings)


def _usual_kind(settings: Settings) -> Kind:
    """Return the kind of the server that has this checkout's data, else Docker's."""
    server = embedded_server(settings)
    if server.is_running() or not docker.is_usable(settings.root):
        return Kind.EMBEDDED
    if server.folder.exists() and docker.own_container(settings.root) is None:
        return Kind.EMBEDDED
    return Kind.DOCKER


def describe_reset(settings: Settings, plan: ResetPlan) -> str:
    """Return what `reset` deletes by *plan*, as the object of a question."""
    if not plan.is_whole:
        stays = "; its other databases stay" if plan.others else ""
        owner = _find_kind(settings)[1]
        server = f"the server of {owner}" if owner else f"a server that is {plan.kind}"
        return f"{_name(settings)}, all its data, on {server}{stays}"
    unknown = "" if plan.others == () else ", which cannot be listed"
    if plan.kind is Kind.DOCKER:
        return f"Docker's volume of {_name(settings)} with all databases in it{unknown}"
    return f"{embedded_server(settings).folder} with all its databases{unknown}"


def require_own(settings: Settings, plan: ResetPlan) -> None:
    """Refuse to delete without a question what this checkout may not have created.

    Raises:
        LocalServerError: another checkout or program started the server, or all of its
            data would be deleted and cannot be listed.
    """
    if plan.kind is Kind.OTHER:
        owner = _find_kind(settings)[1]
        reason = f"{_name(settings)} is on {f'that of {owner}' if owner else 'another'}"
    elif plan.kind is Kind.DOCKER and docker.own_container(settings.root) is None:
        reason = "it has no container in Docker"
    elif plan.others is None:
        reason = "the databases of this one cannot be listed"
    else:
        return
    raise LocalServerError(
        "--yes deletes only the data of a server that this checkout started, and"
        f" {reason}: run pyapp db reset without --yes, and answer its question"
    )


def running_kind(settings: Settings) -> Kind | None:
    """Return the kind of the server on the port of DATABASE_URL; None if it is free."""
    embedded = embedded_server(settings)
    if port_is_free(embedded.port):
        return None
    postmaster = find_postmaster(embedded.folder)
    if postmaster and postmaster.port == embedded.port:
        return Kind.EMBEDDED
    root = settings.root
    container = docker.own_container(root) if docker.is_usable(root) else None
    by_docker = container and container.is_running and embedded.port in container.ports
    return Kind.DOCKER if by_docker else Kind.OTHER


def embedded_server(settings: Settings) -> EmbeddedServer:
    """Return the embedded server of the project, as DATABASE_URL names it."""
    target = local_target(settings.database_url)
    return EmbeddedServer(
        folder=state_folder(settings.root) / "postgres",
        port=target.port,
        user=target.user,
        password=target.password,
        database=target.database,
    )


def _require_port(settings: Settings, target: Target, kind: Kind) -> None:
    """Refuse to delete the data of a server of this checkout on another port."""
    if kind is Kind.EMBEDDED:
        found = find_postmaster(embedded_server(settings).folder)
        ports = {found.port} if found else set()
    else:
        container = docker.find_container(settings.root)
        ports = set(container.ports) if container and container.is_running else set()
    if ports and target.port not in ports:
        listed = ", ".join(map(str, sorted(ports)))
        raise LocalServerError(
            f"this checkout's server ({kind}) runs on port {listed}, and DATABASE_URL"
            f" names port {target.port}: put port {listed} into DATABASE_URL, or stop"
            " that server: pyapp db stop"
        )


def _find_others(
    settings: Settings, target: Target, kind: Kind
) -> tuple[str, ...] | None:
    """Return the other databases of this checkout's server; None if it fails.

    Raises:
        LocalServerError: the server that answers is not of this checkout.
    """
    if kind is Kind.EMBEDDED:
        if not embedded_server(settings).folder.exists():
            return ()
    elif docker.own_container(settings.root) is None:
        return None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_running(settings, kind))
            conn = stack.enter_context(_maintenance(target, kind))
        except _FinalError:
            raise
        except (LocalServerError, DatabaseUnavailableError):
            return None
        return tuple(fetch_all(conn, str, "list_other_databases", name=target.database))


@contextlib.contextmanager
def _running(settings: Settings, kind: Kind) -> Iterator[None]:
    """Run this checkout's server during the block; stop it if it did not run."""
    if running_kind(settings) is not None:
        yield
        return
    try:
        _bring_up(settings, kind, "postgres")
        yield
    finally:
        if kind is Kind.EMBEDDED:
            embedded_server(settings).stop()
        else:
            docker.stop(settings.root)


class _FinalError(LocalServerError):
    """An error that does not mean that the server's databases cannot be listed."""


def _bring_up(settings: Settings, kind: Kind, database: str | None = None) -> str:
    """Start this checkout's server; return its version when *database* answers.

    The default is the database of DATABASE_URL, which an embedded server creates.
    """
    target = local_target(settings.database_url)
    database = database or target.database
    url = make_conninfo(target.url, dbname=database)
    if kind is Kind.DOCKER:
        docker.up(settings.root, target)
        return _wait_for_docker(url)
    try:
        replace(embedded_server(settings), database=database).start()
    except MissingExtraError as exc:
        obstacle = docker.find_obstacle(settings.root)
        if obstacle is None:  # --embedded
            raise
        ways = filter(None, (obstacle.remedy, exc.command))
        raise _FinalError(
            f"{obstacle.reason}, and there is no embedded server: {', or '.join(ways)}"
        ) from exc
    return _version(url)


@contextlib.contextmanager
def _maintenance(
    target: Target, kind: Kind = Kind.OTHER
) -> Iterator[psycopg.Connection[Any]]:
    """Yield a connection to another database of the server, on this machine.

    A container of this checkout is known by its port; it sees other addresses.

    Raises:
        LocalServerError: the server is not known to be on this machine.
    """
    other = "postgres" if target.database != "postgres" else "template1"
    with connect(make_conninfo(target.url, dbname=other)) as conn:
        conn.autocommit = True
        if kind is not Kind.DOCKER and not is_on_this_machine(conn):
            name = target.database
            drop = fetch_one(conn, str, "format_drop_database", name=name)
            raise _FinalError(
                f"{redact_url(target.url)} is not known to be on this machine: a"
                " forward, a proxy, a pooler or a container is in between; drop the"
                f" database there: psql -c {shlex.quote(drop)}"
            )
        yield conn


def _wait_for_docker(url: str) -> str:
    """Return the version as soon as the container at *url* accepts connections.

    Without a healthcheck, Compose reports a container before its server runs.
    """
    deadline = time.monotonic() + 120
    while True:
        try:
            return _version(url)
        except DatabaseUnavailableError as exc:
            if exc.refused and "starting up" not in str(exc):
                raise LocalServerError(
                    "Docker's database was created with another user, password or name:"
                    f" restore them in DATABASE_URL, or {RESET_HINT}"
                ) from exc
            if time.monotonic() > deadline:
                raise
        time.sleep(0.25)


def _version(url: str) -> str:
    """Return the version of the healthy server at *url*."""
    with connect(make_conninfo(url, connect_timeout=5)) as conn:
        return readable_version(conn.info.server_version)


def readable_version(version: int) -> str:
    """Return a version number, such as 180006, in its written form: 18.6."""
    return f"{version // 10000}.{version % 10000}"


def _name(settings: Settings) -> str:
    return redact_url(settings.database_url)
