"""Texts that name a command, and texts of the help pages."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_cli_output import LEAVES, list_commands

SOURCE = Path(__file__).parents[1] / "pyapp"
NAMED = re.compile(r"\bpyapp ([a-z][a-z-]*)(?: ([a-z][a-z-]*))?((?: --[a-z-]+)*)")
GROUPS = {words for words, command in list_commands() if hasattr(command, "commands")}


def list_texts() -> Iterator[str]:
    """Yield the strings of the package, each on one line, with `...` for values."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", "...") for part in node.values]
                text = "".join(p if isinstance(p, str) else "..." for p in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            yield " ".join(text.split())


def test_commands_and_options_that_messages_name_exist():
    named = 0
    for first, second, options in (
        found.groups() for text in list_texts() for found in NAMED.finditer(text)
    ):
        words = f"{first} {second}" if first in GROUPS and second else first
        if words not in LEAVES:
            # A group itself, or an English verb, as in "pyapp needs".
            assert words.split()[0] not in GROUPS or not second, words
            continue
        named += 1
        known = {name for each in LEAVES[words].params for name in each.opts}
        assert set(options.split()) <= known, (words, options)
    assert named > 40


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_and_option_has_a_sentence(words: str):
    command = LEAVES[words]

    assert command.help.partition("\n\n")[0].endswith(".")
    for parameter in command.params:
        assert parameter.help, parameter.name
        assert parameter.help.endswith("."), parameter.help
