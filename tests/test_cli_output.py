"""Every command's output fits 80 columns, and is JSON by --json.

A new command has a row in COMMANDS, which is run on a database of long values.
"""

import errno
import functools
import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import typer
from psycopg import Connection
from rich.cells import cell_len
from rich.console import Console

from pyapp._core.connection import connect
from pyapp.cli import console, main
from pyapp.cli.app import make_app
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import record_messages
from pyapp.plans import add_plan_price, create_plan
from pyapp.prices import set_model_price
from pyapp.referrals import create_referral, redeem_referral
from pyapp.sessions import create_session
from pyapp.stripe_sync import handle_webhook
from pyapp.users import create_user
from tests.fake_stripe import TEST_KEY, TEST_SECRET, FakeStripe
from tests.fake_stripe.deliveries import sign
from tests.metering import new_message
from tests.stripe_world import make_event
from tests.support import run_cli, use_terminal

WIDTH = 80
# Runs of each command: in a pipe, in a terminal, and with --json.
RUNS = ("pipe", "terminal", "json")
CONTROL = "\x1b[2J\r\n\t\u202e"
LONG = "\u4e2d\u6587-\N{GRINNING FACE} " * 20 + CONTROL
EMAIL = "e" * 100 + "\u4e2d" * 142 + "@example.com"
MODEL = "model-" * 30 + CONTROL + "\u4e2d" * 10
PROVIDER = "provider.example/" * 14
ID = "i" * 250
FINGERPRINT = UUID(int=7)
HUGE = Decimal("9" * 14 + ".987654")


def list_commands() -> Iterator[tuple[str, Any]]:
    """Yield each command and group with its words; the root has none."""
    left: list[tuple[str, Any]] = [("", typer.main.get_command(make_app()))]
    for words, command in left:
        yield words, command
        for word, part in getattr(command, "commands", {}).items():
            left.append((f"{words} {word}".strip(), part))


LEAVES = {
    words: command
    for words, command in list_commands()
    if not hasattr(command, "commands")
}

# The arguments of each command, and its exit status. `{run}` is one of RUNS.
COMMANDS: dict[str, tuple[str, int]] = {
    "db adopt": ("", 0),
    "db status": ("", 0),
    "db migrate": ("", 0),
    "db roles": ("", 0),
    "db plan": ("list_user_quotas", 0),
    "db start": ("", 0),
    "db stop": ("", 0),
    "db docs": ("--output {folder}/page.md", 0),
    "db maintain": ("--keep-months 3", 0),
    "db erase-archived": ("{folder} --payer {fingerprint}", 0),
    "quota": ("--all", 0),
    "usage": ("--by model", 0),
    "stats": ("", 0),
    "import usage": ("{folder}/usage.jsonl --user {email} --allow-broken 9", 1),
    "prices set": (
        "{model} --provider {provider} --input 1 --output 99999999999999.123456"
        " --from 2101-01-0{number}",
        0,
    ),
    "prices end": ("{model} --provider {provider} --from 2100-01-0{number}T12:00", 0),
    "prices delete": ("{model} --provider {provider} --from 2099-01-0{number}", 0),
    "prices list": ("", 0),
    "prices check": ("", 1),
    "prices report": ("", 0),
    "plans list": ("", 0),
    "plans add": ("{number}{id} --credits 99999999999999.5 --price {number}{id}", 0),
    "plans set": ("{id} --credits 99999999999999.5", 0),
    "plans price": ("{id} x{number}{id}", 0),
    "referrals show": ("{email}", 0),
    "users add": ("{run}{email} --name {name}", 0),
    "users list": ("", 0),
    "users show": ("{email}", 0),
    "users export": ("{email}", 0),
    "users anonymize": ("{number}@example.com --yes", 0),
    "sessions list": ("{email}", 0),
    "sessions revoke": ("{number}@example.org --yes", 0),
    "stripe events": ("", 0),
    "stripe retry": ("", 1),
    "stripe replay": ("", 0),
    "stripe discard": ("{id}{number} --yes", 0),
    "stripe prune": ("--older-than 0s", 0),
    "stripe reconcile": ("--dry-run", 3),
}
# Other forms of the output of these commands.
FORMS: list[tuple[str, tuple[str, int]]] = [
    ("quota", ("{email}", 0)),
    ("quota", ("--all --sort used", 0)),
    ("usage", ("--by payer --user {email}", 0)),
    ("usage", ("--by provider --fingerprint {fingerprint}", 0)),
    ("usage", ("--by day --until 2000-01-01", 0)),
    ("stripe events", ("--failed --limit 2", 0)),
    ("db check", ("--data", 0)),
    ("referrals show", ("1@example.org", 0)),
]
# Commands that are not run here; their own tests check their output.
ELSEWHERE = {
    "doctor": "test_doctor.py",
    "db check": "test_schema_check.py",
    "db generate": "test_generate.py",
    "db reset": "test_server_cli.py",
    "db rollback": "test_cli_schema.py",
    "stripe serve": "test_stripe_server.py",
}


def fill(conn: Connection, fake: FakeStripe) -> None:
    """Store values that are as long and as wide as the tables allow."""
    user = create_user(conn, email=EMAIL, name=LONG)
    upsert_fingerprint(conn, fingerprint_id=FINGERPRINT)
    others = [
        create_user(conn, email=f"{number}@example.{end}")
        for number in (1, 2, 3)
        for end in ("com", "org")
    ]
    for other in others:
        create_session(conn, user_id=other.id, fingerprint_id=FINGERPRINT)
    create_session(conn, user_id=user.id, fingerprint_id=FINGERPRINT)
    redeem_referral(
        conn,
        referral_code=user.referral_code,
        referred_id=others[0].id,
        credits=Decimal("999999.999999"),
    )
    create_referral(conn, referral_code=others[1].referral_code, referred_id=user.id)
    messages = [
        new_message(model=MODEL, provider=PROVIDER, cost=HUGE, credits=HUGE),
        new_message(model="short", cost=Decimal(0), credits=Decimal(0)),
    ]
    record_messages(conn, messages, user_id=user.id)
    record_messages(conn, [new_message(model=MODEL)], fingerprint_id=FINGERPRINT)
    for year, day in itertools.product((2099, 2100), (1, 2, 3)):
        set_model_price(
            conn,
            model=MODEL,
            provider=PROVIDER,
            valid_from=datetime(year, 1, day, tzinfo=UTC),
            input_price=HUGE,
            output_price=HUGE,
        )
    create_plan(conn, plan_id=ID, monthly_credits=HUGE)
    add_plan_price(conn, plan_id=ID, stripe_price_id=ID)
    fake.seed_accounts(3, prices=("price_month",))
    for number in range(6):
        body = make_event(
            "customer.created", {"id": 7, "object": "customer"}, id=f"{ID}{number}"
        )
        handle_webhook(conn, body, sign(body, [TEST_SECRET]), [TEST_SECRET])


@pytest.fixture(scope="module")
def filled(
    module_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Let the commands use a database of long values; return a folder for files."""
    folder = tmp_path_factory.mktemp("output")
    line = {"type": "assistant", "message": {"id": "m", "model": MODEL, "usage": {}}}
    log = f"{json.dumps(line)}\n{{\n"
    (folder / "usage.jsonl").write_text(log, encoding="utf-8")
    with FakeStripe(seed=5) as fake, pytest.MonkeyPatch.context() as patch:
        fake.add_price("price_month", interval="month", unit_amount=2000)
        with connect(module_database) as conn:
            conn.autocommit = True
            fill(conn, fake)
        patch.setenv("DATABASE_URL", module_database)
        patch.setenv("ENVIRONMENT", "local")
        # Otherwise `db stop` would stop the server of this checkout.
        patch.chdir(folder)
        patch.setenv("STRIPE_API_BASE", fake.base_url)
        patch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
        assert run_cli("db", "adopt")[0] == 0
        yield folder


def run_once(
    words: str, form: tuple[str, int], run: str, folder: Path
) -> tuple[str, str]:
    """Run the command, and return its stdout and stderr."""
    template, status = form
    places = {
        "run": run,
        "number": RUNS.index(run) + 1,
        "folder": folder,
        "email": EMAIL,
        "name": LONG,
        "model": MODEL,
        "provider": PROVIDER,
        "fingerprint": FINGERPRINT,
        "id": ID,
    }
    given = [word.format(**places) for word in template.split()]
    option = ["--json"] if run == "json" else []
    code, out, err = run_cli(*words.split(), *given, *option)
    assert code == status, (code, err)
    return out, err


@functools.cache
def read_keys() -> dict[str, set[str] | None]:
    """Return the keys that docs/json.md gives for each command.

    It is None where the page links to another one.
    """
    page = Path(__file__).parents[1] / "docs" / "json.md"
    found: dict[str, set[str] | None] = {}
    last: set[str] | None = None
    rows = re.findall(r"^\| (`.*) \| .* \| (.*) \|$", page.read_text("utf-8"), re.M)
    for commands, keys in rows:
        if keys != "the same":
            last = None if "](" in keys else set(re.findall("`([a-z0-9_]+)`", keys))
        found |= dict.fromkeys(re.findall("`([^`]+)`", commands), last)
    return found


def check_lines(lines: list[str]) -> None:
    for line in lines:
        assert cell_len(line) <= WIDTH, line
        assert line.isprintable(), line


def test_every_command_is_documented_with_its_keys():
    assert read_keys().keys() == LEAVES.keys()


def test_every_command_is_run_here_or_elsewhere():
    assert LEAVES.keys() == COMMANDS.keys() | ELSEWHERE.keys()
    assert not COMMANDS.keys() & ELSEWHERE.keys()
    for name in ELSEWHERE.values():
        assert Path(__file__).with_name(name).exists()


@pytest.mark.parametrize("words", LEAVES)
def test_every_command_has_json(words: str):
    (option,) = (each for each in LEAVES[words].params if "--json" in each.opts)

    assert option.is_flag


@pytest.mark.parametrize("words", [words for words, _ in list_commands()])
def test_help_fits_80_columns_and_is_whole(words: str):
    code, out, err = run_cli(*words.split(), "--help")

    lines = out.splitlines()
    assert (code, err) == (0, "")
    check_lines(lines)
    assert lines[0].split()[:2] == ["Usage:", "pyapp"]
    # Neither a type such as <bool>, nor a summary that is cut.
    assert re.findall(r"<\w+>|\.\.\.$", out, re.MULTILINE) == []


@pytest.mark.parametrize(("words", "form"), [*COMMANDS.items(), *FORMS])
def test_output_fits_80_columns_and_is_json(
    filled: Path, monkeypatch: pytest.MonkeyPatch, words: str, form: tuple[str, int]
):
    out, _ = run_once(words, form, "pipe", filled)
    if words != "users export":  # whose output is JSON by its nature
        check_lines(out.splitlines())
    assert out.endswith("\n")

    values = run_once(words, form, "json", filled)[0].splitlines()
    assert values or "--until" in form[0]
    documented = read_keys()[words]
    for line in values:
        keys = json.loads(line).keys()
        assert all(re.fullmatch(r"[a-z][a-z0-9_]*", key) for key in keys), keys
        assert documented is None or keys <= documented, keys - documented

    read_screen = use_terminal(monkeypatch)
    printed, _ = run_once(words, form, "terminal", filled)
    lines = read_screen()
    check_lines(lines)
    # Only JSON and questions are not printed by the console.
    assert (lines == []) == (printed != "")


class Full(io.StringIO):
    """A stdout on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("option", [[], ["--json"], ["--csv"]])
@pytest.mark.parametrize("is_full", [True, False])
def test_a_full_or_closed_stdout_is_no_traceback(
    filled: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool, option: list[str]
):
    err = io.StringIO()
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setattr("sys.stdout", Full() if is_full else None)
    monkeypatch.setattr(console, "console", Console(soft_wrap=True))

    with pytest.raises(SystemExit) as caught:
        main(["usage", "--by", "model", *option])

    message = "error: cannot write the output: No space left on device\n"
    assert (caught.value.code, err.getvalue()) == ((1, message) if is_full else (0, ""))


def test_a_reader_that_ends_early_gets_no_traceback(filled: Path):
    program = "from pyapp.cli import main; main()"
    command = [sys.executable, "-c", program, "users", "export", EMAIL]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize("width", [1, 20, 41])
def test_a_narrow_terminal_gets_all_output(
    filled: Path, monkeypatch: pytest.MonkeyPatch, width: int
):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=width, soft_wrap=True)
    monkeypatch.setattr(console, "console", terminal)

    for words in ("quota", "plans list", "stripe events", "stats"):
        run_once(words, COMMANDS[words], "terminal", filled)

    shown = "".join(screen.getvalue().split())
    assert EMAIL in shown


def test_characters_that_an_encoding_lacks_are_escaped_before_they_are_counted():
    class Ascii(io.StringIO):
        encoding = "ascii"

    file = Ascii()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "console", Console(file=file, width=80))
        console.print_table(("name", "n"), [("\u4e2d" * 15, "1"), ("b", "2")])

    lines = file.getvalue().splitlines()
    check_lines(lines)
    assert lines[1].endswith("...  1")
    assert "".join(line.strip() for line in lines[2:-1]) == "\\u4e2d" * 15


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("  one two three", ["  one", "  two", "  three"]),
        ("-- one two", ["-- one", "-- two"]),
        ("ab 0123456789012345", ["ab", "01234567", "89012345"]),
        ("\u4e2d" * 5, ["\u4e2d" * 4, "\u4e2d"]),
        ("one     two", ["one", "two"]),
        ("", [""]),
    ],
)
def test_a_line_is_folded_between_words(text: str, lines: list[str]):
    assert console.fold(text, 8) == lines


@pytest.mark.parametrize("unit", ["x ", "x", "\u4e2d", "\u0301", " "])
def test_a_long_line_is_folded_in_linear_time(unit: str):
    text = f"a{unit * 50_000}b"

    lines = console.fold(text, WIDTH)

    assert "".join("".join(lines).split()) == "".join(text.split())
    check_lines(lines)
