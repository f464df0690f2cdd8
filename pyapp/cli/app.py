"""All commands, put together: each module registers its own."""

import typer

from pyapp import __version__
from pyapp.cli import (
    db,
    docs,
    doctor,
    quota,
    schema,
    stripe,
    stripe_reconcile,
    usage,
    users,
)

app = typer.Typer(
    help="The metering database: local server, schema, usage, quota, Stripe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _group(name: str, help: str) -> typer.Typer:
    group = typer.Typer(help=help, no_args_is_help=True, add_completion=False)
    app.add_typer(group, name=name)
    return group


db_app = _group("db", "The local server and its schema.")
import_app = _group("import", "Usage from elsewhere.")
users_app = _group("users", "Accounts.")
stripe_app = _group("stripe", "Webhooks and what became of them.")

db.register(db_app)
schema.register(db_app)
docs.register(db_app)
doctor.register(app)
usage.register(import_app)
users.register(users_app)
quota.register(app)
stripe.register(stripe_app)
stripe_reconcile.register(stripe_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyapp {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print it."
    ),
) -> None:
    """Hold the options that come before any command."""
