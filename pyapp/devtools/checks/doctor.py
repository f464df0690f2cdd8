"""Checks from the configuration files to the schema, each with a remedy."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from psycopg.conninfo import conninfo_to_dict

from pyapp._core.config import Settings, is_live_key, load_settings, read_values
from pyapp._core.connection import connect, is_local
from pyapp._core.extras import find_conflict
from pyapp.devtools.checks import schema_diff
from pyapp.devtools.migrations import migrator, states
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


Result = tuple[Level, str]


class Finding(NamedTuple):
    """One check by name, its result, and the reason or the remedy."""

    name: str
    level: Level
    text: str


def examine(root: Path) -> Iterator[Finding]:
    """Check the project at *root*; each check depends on those before it."""
    if conflict := find_conflict():
        yield Finding("package", Level.PROBLEM, conflict)
    values = read_values(root)
    yield Finding("files", *_files(root, values))
    yield Finding("environment", *_environment(values))
    yield Finding("Stripe", *_stripe(values))
    try:
        settings = load_settings(root)
    except PyappError as exc:
        yield Finding("configuration", Level.PROBLEM, str(exc))
        return
    yield Finding("docker-compose.yml", *_compose(settings))
    yield Finding("engine", *_engine(settings))
    checks = {"server version": _version, "migrations": _migrations, "schema": _schema}
    try:
        yield Finding("database", Level.OK, status(settings))
    except PyappError as exc:
        yield Finding("database", Level.PROBLEM, str(exc))
        for name in checks:
            yield Finding(name, Level.UNKNOWN, "the database is not available")
        return
    for name, check in checks.items():
        yield Finding(name, *check(settings.database_url))


def _files(root: Path, values: dict[str, str]) -> Result:
    names = ("stack.env", ".env.local")
    missing = [name for name in names if not (root / name).is_file()]
    if not missing:
        if (root / ".env.local").stat().st_mode & 0o077:
            return Level.WARNING, "others can read .env.local: chmod 600 .env.local"
        return Level.OK, f"{' and '.join(names)} are in {root}"
    remedy = (
        "cp .env.local.example .env.local"
        if missing == [".env.local"]
        else "run this in the folder of the project"
    )
    set_elsewhere = {"ENVIRONMENT", "DATABASE_URL"} <= values.keys()
    level = Level.WARNING if set_elsewhere else Level.PROBLEM
    return level, f"no {' and no '.join(missing)} in {root}: {remedy}"


def _environment(values: dict[str, str]) -> Result:
    ours, public = values.get("ENVIRONMENT"), values.get("NEXT_PUBLIC_ENVIRONMENT")
    if ours and ours == public:
        return Level.OK, ours
    return (
        Level.PROBLEM,
        f"ENVIRONMENT is {ours or 'not set'}, NEXT_PUBLIC_ENVIRONMENT is"
        f" {public or 'not set'}: make them equal in stack.env",
    )


def _stripe(values: dict[str, str]) -> Result:
    key = values.get("STRIPE_SECRET_KEY", "")
    if is_live_key(key) and values.get("ENVIRONMENT") == "local":
        return (
            Level.PROBLEM,
            "STRIPE_SECRET_KEY is a live key in a local environment:"
            " put a test key (sk_test_...) into .env.local",
        )
    if not key:
        return Level.OK, "no key; commands that call Stripe need one"
    if "STRIPE_WEBHOOK_SECRET" not in values:
        text = "STRIPE_WEBHOOK_SECRET is not set: webhooks cannot be verified"
        return Level.WARNING, text
    return Level.OK, "a key and a webhook secret are set"


def _compose(settings: Settings) -> Result:
    file = settings.root / "docker-compose.yml"
    if not is_local(settings.database_url):
        return Level.OK, "not used: DATABASE_URL is on another machine"
    if not file.is_file():
        return Level.WARNING, f"not in {settings.root}: Docker is not used"
    parts = conninfo_to_dict(settings.database_url)
    url = [str(parts.get(name, "")) for name in ("user", "password", "dbname", "port")]
    names = ("USER", "PASSWORD", "NAME", "PORT")
    text = file.read_text(encoding="utf-8")
    defaults = [re.search(rf"\{{PYAPP_DB_{name}:-([^}}]*)\}}", text) for name in names]
    if url == [found and found[1] for found in defaults]:
        return Level.OK, "equals DATABASE_URL"
    return (
        Level.WARNING,
        "differs from DATABASE_URL: use `pyapp db start`, which passes the URL's values"
        " to Docker, not `docker compose up`",
    )


def _engine(settings: Settings) -> Result:
    if not is_local(settings.database_url):
        return Level.OK, "not needed: the database is not local"
    obstacle = docker.find_obstacle(settings.root)
    if obstacle is None:
        return Level.OK, "Docker answers"
    try:
        require_unix()
        binaries()
    except PyappError as exc:
        return Level.PROBLEM, f"{obstacle.reason}, and {exc}"
    return Level.OK, f"{obstacle.reason}; the embedded server is used"


def _version(url: str) -> Result:
    with connect(url) as conn:
        number = conn.info.server_version
    version = readable_version(number)
    supported = f"pyapp is tested on {OLDEST} to {NEWEST}"
    if number // 10000 < OLDEST:
        return Level.PROBLEM, f"{version} is too old; {supported}"
    if number // 10000 > NEWEST:
        return Level.WARNING, f"{version} is not tested yet; {supported}"
    return Level.OK, f"{version}; {supported}"


def _migrations(url: str) -> Result:
    try:
        statuses = migrator.list_migrations(url)
    except PyappError as exc:
        return Level.PROBLEM, str(exc)
    for state, meaning in states.MEANINGS.items():
        names = [status.name for status in statuses if status.state == state]
        if names and state != "applied":
            more = f" and {len(names) - 1} more" if names[1:] else ""
            return Level.PROBLEM, f"{names[0]}{more}: {meaning}"
    return Level.OK, f"all {len(statuses)} are applied"


def _schema(url: str) -> Result:
    try:
        found = schema_diff.check(url)
    except PyappError as exc:
        return Level.PROBLEM, str(exc)
    drift = sum(len(comparison.differences) for comparison in found.comparisons)
    if drift:
        return (
            Level.PROBLEM,
            f"objects that differ: {drift}; see them with: pyapp db check",
        )
    if found.wrong:
        return Level.OK, "the applied migrations built what they should"
    text = f"all {found.objects} objects equal the SQL files and the migrations"
    return Level.OK, text
