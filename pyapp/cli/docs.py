"""`pyapp db docs | plan | roles`: the schema page, query plans, and roles."""

from pathlib import Path
from typing import Annotated

import psycopg
import typer

from pyapp import roles
from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp.cli.arguments import ArgumentError
from pyapp.cli.console import say
from pyapp.devtools.checks import query_plans
from pyapp.devtools.checks.schema_docs import render_schema


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp db`."""
    for command in (docs, plan, roles_command):
        app.command(command.__name__.removesuffix("_command"))(command)


def docs(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if the page is stale.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Path of the page; default docs/schema.md.")
    ] = None,
) -> None:
    """Write docs/schema.md from the database at DATABASE_URL."""
    settings = load_settings()
    path = output or settings.root / "docs" / "schema.md"
    name = path.relative_to(settings.root) if output is None else path
    with connect(settings.database_url) as conn:
        page = render_schema(conn)
    try:
        is_fresh = path.is_file() and path.read_bytes() == page.encode()
        if not is_fresh and not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page, encoding="utf-8", newline="\n")
    except OSError as exc:
        raise ArgumentError(f"cannot write {path}: {exc.strerror}") from exc
    if check and not is_fresh:
        say(f"{name} is stale; run: pyapp db docs")
        raise typer.Exit(1)
    say(f"{name} {'is up to date' if is_fresh else 'written'}")


def plan(
    query: Annotated[str, typer.Argument(help="Name of the query in sql/queries.")],
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="parameter=value: plan for this value."),
    ] = None,
    analyze: Annotated[
        bool, typer.Option("--analyze", help="Run the query, then roll back.")
    ] = False,
) -> None:
    """Show the plan of a query: the generic plan, or the plan for given values."""
    found = query_plans.find_query(query)
    given = dict(_assignment(value) for value in values or ())
    with connect(load_settings().database_url) as conn:
        try:
            lines = query_plans.explain_query(conn, found, given, is_analyzed=analyze)
        except psycopg.DataError as exc:
            raise typer.BadParameter(str(exc.diag.message_primary)) from exc
        finally:
            conn.rollback()
    for line in lines:
        say(line)
    if promised := query_plans.read_plans().get(query):
        say(f"On a large database it uses {', '.join(promised)}.")


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"{text}: write --set parameter=value")
    return name, value


def roles_command() -> None:
    """Create or update the roles of sql/roles.sql."""
    with connect(load_settings().database_url) as conn:
        roles.apply_roles(conn)
    say(f"{', '.join(roles.ROLES)} are up to date; grant one of them to each login")
