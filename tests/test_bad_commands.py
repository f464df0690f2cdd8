"""Any argument of any command either works or ends in one line of error."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.cli import main
from pyapp.users import create_user
from tests.bad_input.commands import CASES, list_options
from tests.support import ROW_COUNTS, run_cli

MAX_LENGTH = 600  # characters of an error
SWITCHES = [option for option in list_options() if option.is_switch]


@pytest.fixture
def conn(
    module_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[psycopg.Connection[Any]]:
    """Return a connection that commits to the database of the commands."""
    monkeypatch.setenv("DATABASE_URL", module_database)
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_unused")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "usage.jsonl").write_text('{"type": "summary", "leafUuid": "1"}\n')
    with connect(module_database) as connection:
        connection.autocommit = True
        yield connection


def list_faults(
    conn: psycopg.Connection[Any], case: str, words: list[str]
) -> Iterator[str]:
    """Yield the faults in the way a command ends."""
    before = conn.execute(ROW_COUNTS).fetchone()
    try:
        code, out, err = run_cli(*words)
    except Exception as exc:
        yield f"{case}: {type(exc).__name__}: {exc}"
        return
    if not (out + err).replace("\n", "").isprintable():
        yield f"{case}: controls the terminal: {out + err!a}"
    if "secret-word" in out + err:
        yield f"{case}: shows the password"
    if code == 0:
        return
    if conn.execute(ROW_COUNTS).fetchone() != before:
        yield f"{case}: changed the database"
    lines = err.splitlines()
    if len(lines) != 1 or not err.startswith("error: ") or len(err) > MAX_LENGTH:
        yield f"{case}: ends {code} with {out!a}, {err[:MAX_LENGTH]!a}"


@pytest.mark.parametrize("key", CASES)
def test_bad_value_ends_in_one_line(
    conn: psycopg.Connection[Any], key: str, tmp_path: Path
):
    values, pattern = CASES[key]
    create_user(conn, email=f"{key.replace(' ', '-')}@example.com")
    found: list[str] = []
    for number, (name, value) in enumerate(values.items()):
        places = {
            "{}": value.replace("{folder}", str(tmp_path)),
            "{log}": "usage.jsonl",
            "{address}": f"new{number}@example.com",
            "{user}": f"{key.replace(' ', '-')}@example.com",
        }
        words = [places.get(word, word) for word in pattern]
        found += list_faults(conn, name, words)

    assert found == []


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.key)
def test_switch_takes_no_value(switch: Any):
    code, out, err = run_cli(*switch.command, f"{switch.flag}=maybe")

    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_every_option_of_every_command_has_cases():
    options = [option for option in list_options() if not option.is_switch]

    assert {option.key for option in options} == CASES.keys()
    assert len(SWITCHES) > 10
    assert sum(len(values) for values, _ in CASES.values()) > 350


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["users"],
        ["nope"],
        ["users", "nope"],
        ["users", "add"],
        ["users", "list", "more"],
        ["\udcff"],
        ["--\x1b[2J"],
        ["users", "add", "--name"],
        ["quota", "a@example.com", "--all"],
        ["db", "start", "--docker", "--embedded"],
    ],
)
def test_invalid_command_line_exits_with_2(words: list[str]):
    code, out, err = run_cli(*words)

    assert (code, out) == (2, "") or "Usage:" in out
    assert "Traceback" not in err
    assert code == 0 or err.replace("\n", "").isprintable()


def test_terminal_without_a_character_gets_its_escape(
    conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit) as end:
        main(["users", "add", "z\u00e9@example.com"])
    out.seek(0)

    assert end.value.code == 0
    assert out.read().startswith("z\\xe9@example.com is user ")
