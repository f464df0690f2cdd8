"""Checks from the configuration files to the schema, each with a remedy."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from pyapp._core.config import Settings, is_live_key, load_settings, read_values
from pyapp._core.connection import connect, is_local
from pyapp.devtools.checks import schema_diff
from pyapp.devtools.migrations import migrator
from pyapp.devtools.server import docker
from pyapp.devtools.server.binaries import binaries
from pyapp.devtools.server.embedded import require_unix
from pyapp.devtools.server.local import readable_version, status
from pyapp.errors import PyappError

OLDEST, NEWEST = 15, 18


class Level(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One check by name, its result, and the reason or the remedy."""

    link: str
    level: Level
    text: str


def examine(root: Path) -> Iterator[Finding]:
    """Check the project at *root*; each check depends on those before it."""
    values = read_values(root)
    yield _files(root, values)
    yield _environment(values)
    yield _stripe(values)
    try:
        settings = load_settings(root)
    except PyappError as exc:
        yield Finding("configuration", Level.PROBLEM, str(exc))
        return
    yield _compose(settings)
    yield _engine(settings)
    yield from _database(settings)


def _files(root: Path, values: dict[str, str]) -> Finding:
    names = ("stack.env", ".env.local")
    missing = [name for name in names if not (root / name).is_file()]
    if not missing:
        if (root / ".env.local").stat().st_mode & 0o077:
            remedy = "others can read .env.local: chmod 600 .env.local"
            return Finding("files", Level.WARNING, remedy)
        return Finding("files", Level.OK, f"{' and '.join(names)} are in {root}")
    remedy = (
        "cp .env.local.example .env.local"
        if missing == [".env.local"]
        else "run this in the folder of the project"
    )
    set_elsewhere = {"ENVIRONMENT", "DATABASE_URL"} <= values.keys()
    return Finding(
        "files",
        Level.WARNING if set_elsewhere else Level.PROBLEM,
        f"no {' and no '.join(missing)} in {root}: {remedy}",
    )


def _environment(values: dict[str, str]) -> Finding:
    ours, public = values.get("ENVIRONMENT"), values.get("NEXT_PUBLIC_ENVIRONMENT")
    if ours and ours == public:
        return Finding("environment", Level.OK, ours)
    return Finding(
        "environment",
        Level.PROBLEM,
        f"ENVIRONMENT is {ours or 'not set'}, NEXT_PUBLIC_ENVIRONMENT is"
        f" {public or 'not set'}: make them equal in stack.env",
    )


def _stripe(values: dict[str, str]) -> Finding:
    key = values.get("STRIPE_SECRET_KEY", "")
    if is_live_key(key) and values.get("ENVIRONMENT") == "local":
        return Finding(
            "Stripe",
            Level.PROBLEM,
            "STRIPE_SECRET_KEY is a live key in a local environment:"
            " put a test key (sk_test_...) into .env.local",
        )
    if not key:
        return Finding("Stripe", Level.OK, "no key; commands that call Stripe need one")
    if "STRIPE_WEBHOOK_SECRET" not in values:
        return Finding(
            "Stripe",
            Level.WARNING,
            "STRIPE_WEBHOOK_SECRET is not set: webhooks cannot be verified",
        )
    return Finding("Stripe", Level.OK, "a key and a webhook secret are set")


def _compose(settings: Settings) -> Finding:
    link, file = "docker-compose.yml", settings.root / "docker-compose.yml"
    if not is_local(settings.database_url):
        return Finding(link, Level.OK, "not used: DATABASE_URL is on another machine")
    if not file.is_file():
        return Finding(
            link, Level.WARNING, f"not in {settings.root}: Docker is not used"
        )
    parts = conninfo_to_dict(settings.database_url)
    url = [str(parts.get(name, "")) for name in ("user", "password", "dbname", "port")]
    names = ("USER", "PASSWORD", "NAME", "PORT")
    text = file.read_text(encoding="utf-8")
    defaults = [re.search(rf"\{{PYAPP_DB_{name}:-([^}}]*)\}}", text) for name in names]
    if url == [found and found[1] for found in defaults]:
        return Finding(link, Level.OK, "equals DATABASE_URL")
    return Finding(
        link,
        Level.WARNING,
        "differs from DATABASE_URL: use `pyapp db start`, which passes the URL's values"
        " to Docker, not `docker compose up`",
    )


def _engine(settings: Settings) -> Finding:
    if not is_local(settings.database_url):
        return Finding("engine", Level.OK, "not needed: the database is not local")
    if docker.is_usable(settings.root):
        return Finding("engine", Level.OK, "Docker answers")
    try:
        require_unix()
        binaries()
    except PyappError as exc:
        return Finding("engine", Level.PROBLEM, f"Docker does not answer, and {exc}")
    return Finding(
        "engine", Level.OK, "Docker does not answer; the embedded server is used"
    )


def _database(settings: Settings) -> Iterator[Finding]:
    try:
        yield Finding("database", Level.OK, status(settings))
    except PyappError as exc:
        yield Finding("database", Level.PROBLEM, str(exc))
        for link in ("server version", "migrations", "schema"):
            yield Finding(link, Level.UNKNOWN, "the database is not available")
        return
    yield _version(settings)
    for check in (_migrations, _schema):
        yield check(settings.database_url)


def _version(settings: Settings) -> Finding:
    with connect(settings.database_url) as conn:
        number = conn.info.server_version
    version = readable_version(number)
    supported = f"pyapp is tested on {OLDEST} to {NEWEST}"
    if number // 10000 < OLDEST:
        level, text = Level.PROBLEM, f"{version} is too old; {supported}"
    elif number // 10000 > NEWEST:
        level, text = Level.WARNING, f"{version} is not tested yet; {supported}"
    else:
        level, text = Level.OK, f"{version}; {supported}"
    return Finding("server version", level, text)


def _migrations(url: str) -> Finding:
    link = "migrations"
    try:
        statuses = migrator.list_migrations(url)
    except PyappError as exc:
        return Finding(link, Level.PROBLEM, str(exc))
    for state, meaning in migrator.MEANINGS.items():
        names = [status.name for status in statuses if status.state == state]
        if names and state != "applied":
            more = f" and {len(names) - 1} more" if names[1:] else ""
            return Finding(link, Level.PROBLEM, f"{names[0]}{more}: {meaning}")
    return Finding(link, Level.OK, f"all {len(statuses)} are applied")


def _schema(url: str) -> Finding:
    link = "schema"
    try:
        found = schema_diff.check(url)
    except PyappError as exc:
        return Finding(link, Level.PROBLEM, str(exc))
    drift = sum(len(comparison.differences) for comparison in found.comparisons)
    if drift:
        text = f"objects that differ: {drift}; see them with: pyapp db check"
        return Finding(link, Level.PROBLEM, text)
    if found.wrong:
        return Finding(link, Level.OK, "the applied migrations built what they should")
    text = f"all {found.objects} objects equal the SQL files and the migrations"
    return Finding(link, Level.OK, text)
