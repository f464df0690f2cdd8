"""`pyapp db start | stop | status | reset | docs | plan | roles`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from pyapp import roles
from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp.cli.arguments import ArgumentError, AsJson, require_yes
from pyapp.cli.console import print_json, require_consent, say
from pyapp.cli.schema_check import say_migrations, schema_url
from pyapp.devtools.checks import query_plans
from pyapp.devtools.checks.schema_docs import render_schema
from pyapp.devtools.migrations.migrator import list_migrations
from pyapp.devtools.server import local as server
from pyapp.devtools.server.local import Kind
from pyapp.errors import QueryFileError


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp db`."""
    for command in (start, stop, status, reset, docs, plan):
        app.command()(command)
    app.command("roles")(apply_roles)


def start(
    docker: Annotated[bool, typer.Option("--docker", help="Use Docker only.")] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use the embedded server only.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Start a server at DATABASE_URL: in Docker if an engine answers, else embedded."""
    if docker and embedded:
        raise typer.BadParameter("choose --docker or --embedded, not both")
    kind = Kind.DOCKER if docker else Kind.EMBEDDED if embedded else None
    settings = load_settings()
    report = server.start(settings, kind)
    if as_json:
        print_json({**asdict(server.status(settings)), "report": report})
    else:
        say(report)


def stop(as_json: AsJson = False) -> None:
    """Stop the local server and keep its data."""
    settings = load_settings()
    kind = server.running_kind(settings) if as_json else None
    report = server.stop(settings)
    if as_json:
        origin = None if kind is None else kind.value
        print_json({"origin": origin, "report": report})
    else:
        say(report)


def status(as_json: AsJson = False) -> None:
    """Show whether the server runs and which migrations are applied."""
    settings = load_settings()
    found = server.status(settings)
    if not as_json:
        say(str(found))
    migrations = list_migrations(settings.database_url)
    if as_json:
        marks = [status._asdict() for status in migrations]
        print_json({**asdict(found), "migrations": marks})
    else:
        say_migrations(migrations)


def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the local database and create it again, empty."""
    require_yes(yes, as_json)
    settings = load_settings()
    plan = server.plan_reset(settings)
    what = server.describe_reset(settings, plan)
    if yes:
        server.require_own(settings, plan)
    else:
        require_consent(
            f"Delete {what}?", "Nothing is deleted; --yes deletes without asking."
        )
    report = server.reset(settings, plan)
    if as_json:
        print_json({**asdict(server.status(settings)), "report": report})
    else:
        say(report)
        say("Build the schema with: pyapp db migrate")


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the page is stale.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The page; default: docs/schema.md."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write docs/schema.md from the database at DATABASE_URL."""
    settings = load_settings()
    path = output or settings.root / "docs" / "schema.md"
    name = path.relative_to(settings.root) if output is None else path
    with connect(schema_url()) as conn:
        page = render_schema(conn)
    try:
        is_fresh = path.is_file() and path.read_bytes() == page.encode()
        if not is_fresh and not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as exc:
        raise ArgumentError(f"cannot write {path}: {exc.strerror}") from exc
    is_stale = check and not is_fresh
    if as_json:
        state = "stale" if is_stale else "unchanged" if is_fresh else "written"
        print_json({"path": path, "state": state})
    elif is_stale:
        say(f"{name} is stale; run: pyapp db docs")
    else:
        say(f"{name} {'is up to date' if is_fresh else 'is written'}")
    if is_stale:
        raise typer.Exit(1)


def plan(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="Name of a query in sql/queries.")
    ],
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PARAMETER=VALUE", help="Plan for this value."),
    ] = None,
    analyze: Annotated[
        bool, typer.Option("--analyze", help="Run the query, then roll back.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the plan of a query: the generic plan, or the plan for given values."""
    found = query_plans.find_query(query)
    given = dict(_assignment(value) for value in values or ())
    with connect(schema_url()) as conn:
        try:
            lines = query_plans.explain_query(conn, found, given, is_analyzed=analyze)
        except psycopg.DataError as exc:
            raise typer.BadParameter(str(exc.diag.message_primary)) from exc
        except psycopg.errors.UndefinedTable as exc:
            if "pg_temp." not in found.sql:
                raise
            raise QueryFileError(
                f"{query} reads a temporary table of its caller: it has no plan alone"
            ) from exc
        finally:
            conn.rollback()
    promised = query_plans.read_plans().get(query, [])
    if as_json:
        print_json({"query": query, "plan": lines, "indexes": promised})
        return
    for line in lines:
        say(line, hanging=2)
    if promised:
        say(f"On a large database it uses {', '.join(promised)}.")


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"{text}: write --set parameter=value")
    return name, value


def apply_roles(as_json: AsJson = False) -> None:
    """Create or update the roles of sql/roles.sql."""
    with connect(schema_url()) as conn:
        roles.apply_roles(conn)
    if as_json:
        print_json({"roles": roles.ROLES})
        return
    say(f"{', '.join(roles.ROLES)} are up to date; grant one of them to each login")
