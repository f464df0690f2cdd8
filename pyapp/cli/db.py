"""`pyapp db start | stop | status | reset`: the local server."""

from typing import Annotated

import typer

from pyapp._core.config import load_settings
from pyapp.cli.console import confirmed, say
from pyapp.cli.schema import say_migrations
from pyapp.devtools.server import local as server
from pyapp.devtools.server.local import Kind


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp db`."""
    for command in (start, stop, status, reset):
        app.command()(command)


def start(
    docker: Annotated[bool, typer.Option("--docker", help="Use Docker only.")] = False,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Use the embedded server only.")
    ] = False,
) -> None:
    """Start a server at DATABASE_URL: in Docker if an engine answers, else embedded."""
    if docker and embedded:
        raise typer.BadParameter("choose --docker or --embedded, not both")
    kind = Kind.DOCKER if docker else Kind.EMBEDDED if embedded else None
    say(server.start(load_settings(), kind))


def stop() -> None:
    """Stop the local server and keep its data."""
    say(server.stop(load_settings()))


def status() -> None:
    """Show whether the server runs and which migrations are applied."""
    settings = load_settings()
    say(server.status(settings))
    say_migrations(settings.database_url)


def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
) -> None:
    """Delete the local database and create it again, empty."""
    settings = load_settings()
    plan = server.plan_reset(settings)
    what = server.describe_reset(settings, plan)
    if yes:
        server.require_own(settings, plan)
    elif not confirmed(f"Delete {what}?"):
        say("Nothing is deleted; --yes deletes without asking.")
        raise typer.Exit(1)
    say(server.reset(settings, plan))
    say("Build the schema with: pyapp db migrate")
