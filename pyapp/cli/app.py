"""All commands, put together: each module registers its own."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from pyapp import __version__
from pyapp.errors import PyappError

# By the first word of a command line: its help, and the modules of its commands. They
# are imported for that word alone, for what one command needs slows all others down.
GROUPS = {
    "db": ("The local server and its schema.", ("db", "schema", "docs")),
    "import": ("Usage from elsewhere.", ("usage",)),
    "users": ("Accounts.", ("users",)),
    "stripe": ("Webhooks and what became of them.", ("stripe", "stripe_reconcile")),
}
COMMANDS = ("doctor", "quota", "stats")


# The error of a command line, in whatever module typer keeps it.
_UsageError: Any = typer.BadParameter.__base__


class CommandLineError(PyappError):
    """What was typed is no command, or no value of an option; the status is 2."""

    exit_code = 2


class _Commands(TyperGroup):
    """All commands; what is wrong with a command line is one line, too."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _in_one_line():
            return super().invoke(ctx)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except _UsageError as exc:
        if type(exc).__name__ == "NoArgsIsHelpError":
            raise
        reason = exc.format_message().strip().removesuffix(".")
        command = exc.ctx.command_path if exc.ctx else "pyapp"
        raise CommandLineError(f"{reason}; see: {command} --help") from None


def make_app(word: str | None = None) -> typer.Typer:
    """Return the command line; with *word*, what one that begins with it needs.

    Every group is listed all the same.
    """
    app = typer.Typer(
        cls=_Commands,
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
