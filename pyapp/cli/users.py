"""`pyapp users add | list`.

A short module, because each group of commands has one and is imported alone.
"""

from typing import Annotated

import typer

from pyapp._core.connection import connect
from pyapp.cli.console import say
from pyapp.users import create_user, list_users

PAGE = 1000


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp users`."""
    app.command()(add)
    app.command("list")(list_all)


def add(
    email: Annotated[str, typer.Argument(help="E-mail address, unique.")],
    name: Annotated[str | None, typer.Option(help="Display name.")] = None,
) -> None:
    """Create a user on the free plan."""
    with connect() as conn:
        user = create_user(conn, email=email, name=name)
    say(f"{user.email} is user {user.id}")


def list_all() -> None:
    """List all users: id, e-mail address, name."""
    with connect() as conn:
        after = None
        while page := list_users(conn, after=after, limit=PAGE):
            after = page[-1].id
            for user in page:
                columns = (user.email or "(anonymized)", user.name or "")
                say("  ".join((str(user.id), *columns)).rstrip())
