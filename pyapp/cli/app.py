"""All commands, put together: each module registers its own."""

from collections.abc import Iterable
from importlib import import_module

import typer

from pyapp import __version__

# By the first word of a command line: its help, and the modules of its commands. They
# are imported for that word alone, for what one command needs slows all others down.
GROUPS = {
    "db": ("The local server and its schema.", ("db", "schema", "docs")),
    "import": ("Usage from elsewhere.", ("usage",)),
    "users": ("Accounts.", ("users",)),
    "stripe": ("Webhooks and what became of them.", ("stripe", "stripe_reconcile")),
}
COMMANDS = ("doctor", "quota", "stats")


def make_app(word: str | None = None) -> typer.Typer:
    """Return the command line; with *word*, what one that begins with it needs.

    Every group is listed all the same.
    """
    app = typer.Typer(
        help="The metering database: local server, schema, usage, quota, Stripe.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name, (help, modules) in GROUPS.items():
        group = typer.Typer(help=help, no_args_is_help=True, add_completion=False)
        app.add_typer(group, name=name)
        if word in (name, None):
            _register(group, modules)
    if word not in GROUPS:
        _register(app, [word] if word in COMMANDS else COMMANDS)
    return app


def _register(app: typer.Typer, modules: Iterable[str]) -> None:
    for module in modules:
        import_module(f"pyapp.cli.{module}").register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pyapp {__version__}")
        raise typer.Exit


def _root(
    _version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print it."
    ),
) -> None:
    """Hold the options that come before any command."""
