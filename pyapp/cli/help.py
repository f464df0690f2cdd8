"""Help pages, the same with each version of typer and in each terminal."""

from typing import Any

from typer.core import TyperCommand, TyperGroup


class _Help:
    """The parts of a help page that typer's versions print in different ways."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the command's name in its usage."""
        pieces = [
            _argument(each) if each.required else f"[{_argument(each)}]"
            for each in _params(self, ctx, "argument")
        ]
        return [*pieces, "[OPTIONS]", *(["COMMAND"] * isinstance(self, TyperGroup))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, the options and the commands."""
        arguments = [
            (_argument(each), _text(each)) for each in _params(self, ctx, "argument")
        ]
        options = [
            (_option(each), _text(each)) for each in _params(self, ctx, "option")
        ]
        commands = []
        if isinstance(self, TyperGroup):
            for name in self.list_commands(ctx):
                command: Any = self.get_command(ctx, name)
                # The first paragraph, which typer would cut to a line.
                text = (command.help or "").partition("\n\n")[0]
                commands.append((name, " ".join(text.split())))
        for title, rows in (
            ("Arguments", arguments),
            ("Options", options),
            ("Commands", commands),
        ):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Command(_Help, TyperCommand):
    """A command with the project's help page."""


class Group(_Help, TyperGroup):
    """A group of commands with the project's help page."""


def _params(command: Any, ctx: Any, kind: str) -> list[Any]:
    return [each for each in command.get_params(ctx) if each.param_type_name == kind]


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return f"{name}..." if param.nargs == -1 else name


def _option(param: Any) -> str:
    names = ", ".join(param.opts)
    if param.is_flag:
        return names
    return f"{names} {param.metavar or param.name.strip('_').upper()}"


def _text(param: Any) -> str:
    text = param.help or ""
    if param.param_type_name == "argument" or param.is_flag:
        return text
    if param.required:
        return f"{text} [required]"
    # Other defaults, such as a function, have no text.
    is_shown = isinstance(param.default, int | str)
    return f"{text} [default: {param.default}]".lstrip() if is_shown else text
