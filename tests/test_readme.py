"""README.md matches the commands, files and settings that exist."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from pyapp._core import config
from pyapp._core.connection import connect
from pyapp.cli.app import make_app
from pyapp.cli.quota import HEADER
from pyapp.users import create_user

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return the text under a heading."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table in a section, without its heading."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def console() -> Iterator[list[str]]:
    """Yield the lines of each console command: the command, then its output."""
    for block in code("console"):
        for command in block.removeprefix("$ ").split("\n$ "):
            yield command.splitlines()


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def test_it_begins_with_three_sentences() -> None:
    title, sentences, heading = README.split("\n\n")[:3]

    assert (title, heading) == ("# pyapp", "## Start")
    assert len(re.findall(r"[.!?](?:\s|$)", sentences)) == 3


def test_the_script_runs_as_printed(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    with connect(database) as conn:
        create_user(conn, email="ada@example.com")
    (script,) = code("python")

    exec(compile(script, "README.md", "exec"), {})

    (shown,) = code("text")
    assert capsys.readouterr().out == re.sub(r"of \S+", "of 2,500.00", shown)
    assert len(script.splitlines()) == 10


def test_the_demo_has_the_commands_of_the_makefile() -> None:
    steps = re.findall(r"^\t\$\(call show,(.*)\)$", MAKEFILE, re.MULTILINE)

    demo, *_ = code("console")

    assert re.findall(r"^\$ (.+)$", demo, re.MULTILINE) == ["make demo", *steps]


def test_the_quota_table_has_the_columns_of_the_command() -> None:
    table = next(lines for first, *lines in console() if "quota" in first)

    assert re.split(r"  +", table[0]) == list(HEADER)
    assert max(map(len, table)) <= 80


def test_the_commands_exist() -> None:
    texts = {first for first, *_ in console()} | set(re.findall(r"`([^`]+)`", README))
    shown = (text.partition(" | ")[0] for text in texts)
    commands = {text for text in shown if text.startswith(("make ", "pyapp "))}
    assert len(commands) > 5

    for program, *words in map(str.split, commands):
        if program == "make":
            assert words[0] in makefile_targets()
            continue
        command = get_command(make_app())
        while words and hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands")
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options


def test_the_extras_of_the_table_exist() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = [row[0].strip("`") for row in rows("Use it as a package")]

    assert names == list(pyproject["project"]["optional-dependencies"])


def test_the_folders_exist() -> None:
    shown = [row[0].strip("`") for row in rows("Folders")]
    for name in shown:
        assert (ROOT / name).exists()

    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    visible = {name for name in folders if not name.startswith((".", "__"))}
    assert visible - {"dist"} == {name.split("/")[0] for name in shown}


def test_the_configuration_table_lists_all_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: set[str] = set()

    class Recorder(dict[str, str]):
        def get(self, name: str, default: Any = None) -> Any:
            names.add(name)
            return super().get(name, default)

    values = Recorder(DATABASE_URL="postgresql://u:p@localhost/d")
    monkeypatch.setattr(config, "read_values", lambda root: values)
    settings = config.load_settings(tmp_path)
    table = {row[0].strip("`"): row[1] for row in rows("Configuration")}

    assert set(table) == names
    assert table["PYAPP_MARGIN"] == f"`{settings.margin}`"
    assert table["PYAPP_REFERRAL_BONUS"] == f"`{settings.referral_bonus}`"


def test_changing_the_schema_takes_five_steps() -> None:
    steps = re.findall(r"^(\d)\. ", section("Change the schema"), re.MULTILINE)

    assert steps == ["1", "2", "3", "4", "5"]
