"""The command line: each module registers its own commands."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import typer

from pyapp import __version__
from pyapp.cli.help import Command, Group
from pyapp.errors import PyappError

# The help and the modules of each group. A module is imported only if the command line
# begins with its group, because the imports of one command would slow down all others.
GROUPS = {
    "db": ("The schema, its migrations, and the local server.", ("db", "schema")),
    "import": ("Record usage logs.", ("usage",)),
    "prices": ("Own prices of models, before the published ones.", ("prices",)),
    "plans": ("Plans, and the Stripe prices that buy them.", ("plans",)),
    "referrals": ("Referral codes and referred users.", ("referrals",)),
    "users": ("Accounts, and all that is stored about one.", ("users",)),
    "sessions": ("Sign-ins of users.", ("sessions",)),
    "stripe": ("Webhooks, replay and reconciliation.", ("stripe_serve", "stripe")),
}
# The module of each command without a group.
COMMANDS = {
    "doctor": "doctor",
    "quota": "quota",
    "stats": "stats",
    "usage": "usage_report",
}

# The base class of command-line errors; typer's versions keep it in other modules.
_UsageError: Any = typer.BadParameter.__base__


class CommandLineError(PyappError):
    """An unknown command or an invalid argument; the exit status is 2."""

    exit_code = 2


class _Commands(Group):
    """Report an invalid command line in one line."""

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
        # The project's own messages name what is invalid.
        reason = reason.removeprefix("Invalid value: ")
        command = exc.ctx.command_path if exc.ctx else "pyapp"
        raise CommandLineError(f"{reason}; see: {command} --help") from None


def make_app(word: str | None = None) -> typer.Typer:
    """Return the command line.

    With *word*, only the commands of that group are imported; all groups are listed.
    """
    app = typer.Typer(
        cls=_Commands,
        help="The metering database: local server, schema, usage, quota, Stripe.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for name, (help, modules) in GROUPS.items():
        group = typer.Typer(
            cls=Group,
            help=help,
            no_args_is_help=True,
            add_completion=False,
            rich_markup_mode=None,
        )
        app.add_typer(group, name=name)
        if word in (name, None):
            _register(group, modules)
    if word not in GROUPS:
        _register(app, [COMMANDS[word]] if word in COMMANDS else COMMANDS.values())
    return app


def _register(app: typer.Typer, modules: Iterable[str]) -> None:
    for module in modules:
        import_module(f"pyapp.cli.{module}").register(app)
    for command in app.registered_commands:
        command.cls = Command


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"pyapp {__version__}")
        raise typer.Exit


def _root(
    _version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version.",
    ),
) -> None:
    """Define the options that come before a command."""
