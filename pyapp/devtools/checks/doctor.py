"""Checks from the configuration files to the schema, each with a remedy."""

import re
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pyapp._core.config import Settings, is_live_key, load_settings, read_values
from pyapp._core.connection import is_local
from pyapp._core.extras import find_conflict
from pyapp.devtools.checks import schema_diff
from pyapp.devtools.migrations import migrator, states
from pyapp.devtools.server import docker
from pyapp.devtools.server.binaries import binaries
from pyapp.devtools.server.embedded import require_unix
from pyapp.devtools.server.local import status
from pyapp.errors import MissingPrivilegeError, NotComparedError, PyappError

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


def examine(root: Path, *, scratch_url: str | None = None) -> Iterator[Finding]:
    """Check the project at *root*; each check depends on those before it.

    *scratch_url* is the server for the scratch databases of the comparison.
    """
    if conflict := find_conflict():
        yield Finding("package", Level.PROBLEM, conflict)
    values = read_values(root)
    yield Finding("files", *_files(root, values))
    yield Finding("environment", *_environment(root, values))
    yield Finding("Stripe", *_stripe(values))
    try:
        settings = load_settings(root)
    except PyappError as exc:
        yield Finding("configuration", Level.PROBLEM, str(exc))
        return
    if not _is_deployed(values):
        yield Finding("docker-compose.yml", *_compose(settings))
        yield Finding("engine", *_engine(settings))
    later = ("server version", "migrations", "schema", "privileges")
    try:
        server = status(settings)
    except (PyappError, psycopg.Error) as exc:
        yield Finding("database", Level.PROBLEM, _reason(exc))
        for name in later:
            yield Finding(name, Level.UNKNOWN, "the database is not available")
        return
    yield Finding("database", Level.OK, str(server))
    yield Finding("server version", *_version(server.version))
    yield Finding("migrations", *_migrations(settings.database_url))
    schema, privileges = _schema(settings.database_url, scratch_url)
    yield Finding("schema", *schema)
    yield Finding("privileges", *privileges)


def _reason(error: Exception) -> str:
    """Return the error in one line; that of the server contains no row."""
    if not isinstance(error, psycopg.Error):
        return str(error)
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    return f"the database answers: {lines[0] if lines else type(error).__name__}"


def _is_deployed(values: dict[str, str]) -> bool:
    """Tell whether ENVIRONMENT is set to another value than local."""
    return values.get("ENVIRONMENT", "local") != "local"


def _files(root: Path, values: dict[str, str]) -> Result:
    names = ("stack.env", ".env.local")
    missing = [name for name in names if not (root / name).is_file()]
    if ".env.local" not in missing and (root / ".env.local").stat().st_mode & 0o077:
        return Level.WARNING, "others can read .env.local: chmod 600 .env.local"
    if not missing:
        return Level.OK, f"{' and '.join(names)} are in {root}"
    set_elsewhere = {"ENVIRONMENT", "DATABASE_URL"} <= values.keys()
    if set_elsewhere and _is_deployed(values):
        return Level.OK, "not needed: ENVIRONMENT and DATABASE_URL are set"
    remedy = (
        "cp .env.local.example .env.local"
        if missing == [".env.local"]
        else "run this in the folder of the project"
    )
    level = Level.WARNING if set_elsewhere else Level.PROBLEM
    return level, f"no {' and no '.join(missing)} in {root}: {remedy}"


def _environment(root: Path, values: dict[str, str]) -> Result:
    ours, public = values.get("ENVIRONMENT"), values.get("NEXT_PUBLIC_ENVIRONMENT")
    if ours and ours == public:
        return Level.OK, ours
    has_file = (root / "stack.env").is_file()
    if ours and not public and not has_file:
        return Level.OK, f"{ours}; NEXT_PUBLIC_ENVIRONMENT is not set here"
    return (
        Level.PROBLEM,
        f"ENVIRONMENT is {ours or 'not set'}, NEXT_PUBLIC_ENVIRONMENT is"
        f" {public or 'not set'}: make them equal{' in stack.env' if has_file else ''}",
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
        return Level.OK, f"not in {settings.root}: Docker is not used"
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


def _version(version: str) -> Result:
    major = int(version.partition(".")[0])
    supported = f"pyapp is tested on {OLDEST} to {NEWEST}"
    if major < OLDEST:
        return Level.PROBLEM, f"{version} is too old; {supported}"
    if major > NEWEST:
        return Level.WARNING, f"{version} is not tested yet; {supported}"
    return Level.OK, f"{version}; {supported}"


def _migrations(url: str) -> Result:
    try:
        statuses = migrator.list_migrations(url)
    except MissingPrivilegeError as exc:
        return Level.UNKNOWN, str(exc)
    except (PyappError, psycopg.Error) as exc:
        return Level.PROBLEM, _reason(exc)
    for state, meaning in states.MEANINGS.items():
        names = [status.name for status in statuses if status.state == state]
        if names and state != "applied":
            more = f" and {len(names) - 1} more" if names[1:] else ""
            return Level.PROBLEM, f"{names[0]}{more}: {meaning}"
    return Level.OK, f"all {len(statuses)} are applied"


def _schema(url: str, scratch_url: str | None) -> tuple[Result, Result]:
    """Return the results for the schema and for the privileges of the roles."""
    try:
        found = schema_diff.check(url, scratch_url=scratch_url)
    except (NotComparedError, MissingPrivilegeError) as exc:
        not_compared = Level.UNKNOWN, f"not compared: {exc}"
        return not_compared, (Level.UNKNOWN, "not compared, as the schema")
    except (PyappError, psycopg.Error) as exc:
        unknown = Level.UNKNOWN, "the schema could not be read"
        return (Level.PROBLEM, _reason(exc)), unknown
    return _objects(found), _privileges(found.privileges)


def _objects(found: schema_diff.SchemaCheck) -> Result:
    drift = sum(len(comparison.differences) for comparison in found.comparisons)
    note = f" ({found.note})" if found.note else ""
    if drift:
        return (
            Level.PROBLEM,
            f"objects that differ: {drift}; see them with: pyapp db check",
        )
    if found.wrong:
        return Level.OK, f"the applied migrations built what they should{note}"
    text = f"all {found.objects} objects equal the SQL files and the migrations{note}"
    return Level.OK, text


def _privileges(found: schema_diff.PrivilegeCheck | None) -> Result:
    if found is None:
        return Level.UNKNOWN, "compared when all migrations are applied"
    if found.comparison is None:
        return Level.OK, f"not compared: {found.note}"
    if drift := len(found.comparison.differences):
        return (
            Level.PROBLEM,
            f"privileges that differ from sql/roles.sql: {drift}; see them with: pyapp"
            " db check; restore the grants of the roles with: pyapp db roles",
        )
    return Level.OK, "those of the three roles equal sql/roles.sql"
