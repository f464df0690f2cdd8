"""All commands, put together: each module registers its own."""

import typer

from pyapp import __version__
from pyapp.cli import db, docs, doctor, schema

app = typer.Typer(
    help="The metering database: local server, schema, usage, quota, Stripe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db_app = typer.Typer(
    help="The local server and its schema.", no_args_is_help=True, add_completion=False
)
app.add_typer(db_app, name="db")

db.register(db_app)
schema.register(db_app)
docs.register(db_app)
doctor.register(app)


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
