"""Every command of the documents runs: here, or in the file named in RUN_BY."""

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyapp._core.connection import connect
from pyapp.users import create_user
from tests.fake_stripe import TEST_KEY, FakeStripe
from tests.support import run_cli

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "migrations/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = (
    "pyapp ",
    "make ",
    "yoyo ",
    "python ",
    "python3 ",
    "pip ",
    "pipx ",
    "uv ",
    "docker ",
    "psql ",
    "pg_dump ",
    "pg_restore ",
    "pg_upgrade ",
    "pg_basebackup ",
    "vacuumdb ",
    "systemctl ",
    "kubectl ",
    "curl ",
)

# Commands that cannot run on a test's own database, and the file that runs them.
RUN_BY = {
    "make demo": ".ci/run",
    "make check": ".ci/run",
    "make lint": "Makefile",
    "make test": "Makefile",
    "make freeze": "tests/test_migration_sums.py",
    "make bench": "tests/test_bench.py",
    "make simulate": "tests/test_stripe_simulation.py",
    "make soak": ".ci/run",
    "make audit": ".ci/run",
    "make aio": "Makefile",
    "make db-stop": "Makefile",
    "make format": "Makefile",
    "make install": "Makefile",
    "python -m examples.stripe_demo": "Makefile",
    "python examples/demo.py": "Makefile",
    "python first.py": "tests/test_installed.py",
    "python3 -m venv": "tests/test_installed.py",
    "pip install": "tests/test_installed.py",
    "pip wheel": "tests/test_installed.py",
    "pipx install": "tests/test_installed.py",
    "uv add": "tests/test_installed.py",
    "uv pip install": "tests/test_installed.py",
    "uv run pytest": "Makefile",
    "uv sync": "tests/test_installed.py",
    "uv tool install": "tests/test_installed.py",
    "kubectl": "tests/test_deploy.py",
    "systemctl": "tests/test_deploy.py",
    "pg_dump": "tests/test_backup.py",
    "pg_restore": "tests/test_backup.py",
    "psql": "tests/test_backup.py",
    "docker build": "tests/test_deploy_engine.py",
    "docker compose": "tests/test_deploy_engine.py",
    "yoyo apply": "tests/test_migrations.py",
    "pyapp db start": "tests/test_server_cli.py",
    "pyapp db stop": "tests/test_server_cli.py",
    "pyapp db reset": "tests/test_server_cli.py",
    "pyapp db rollback": "tests/test_cli_schema.py",
    "pyapp db generate": "tests/test_generate.py",
    "pyapp db erase-archived": "tests/test_archives.py",
    "pyapp db plan": "tests/test_schema_docs.py",
    "pyapp prices delete": "tests/test_cli_prices.py",
    "pyapp prices end": "tests/test_cli_prices.py",
    "pyapp sessions revoke": "tests/test_cli_users.py",
    "pyapp users anonymize": "tests/test_cli_users.py",
    "pyapp stripe discard": "tests/test_cli_stripe.py",
    "pyapp stripe serve": "tests/test_stripe_web.py",
    "pyapp users add ada@example.com": "tests/test_installed.py",
}


def list_commands() -> dict[str, str]:
    """Return each command with its page."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        written = [" ".join(code.split()) for code in CODE.findall(text)]
        for block in CONSOLE.findall(text):
            written += re.findall(r"^\$ (.+)$", block, re.MULTILINE)
        for command in written:
            if command.startswith(PROGRAMS):
                found.setdefault(command.partition(" | ")[0], page.name)
    return found


COMMANDS = list_commands()


def runner(command: str) -> str | None:
    """Return the other file that runs *command*, or None."""
    begins = (name for name in RUN_BY if f"{command} ".startswith(f"{name} "))
    return RUN_BY.get(next(begins, ""))


def variants(command: str) -> set[str]:
    """Return *command* without and with its options in brackets."""
    bare = re.sub(r" \[[^]]*\]", "", command)
    full = re.sub(r"[][]", "", command)
    return {bare, re.sub(r" --every \S+", "", full)}  # it would run forever


@pytest.fixture
def stripe(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStripe]:
    """Return the fake Stripe of the commands."""
    with FakeStripe(seed=1) as fake:
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
        monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_test")
        yield fake


def test_every_command_of_the_pages_is_run(
    tmp_path: Path,
    empty_database: str,
    stripe: FakeStripe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stack.env", "docker-compose.yml", ".env.local.example"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".env.local").write_bytes((ROOT / ".env.local.example").read_bytes())
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.chdir(tmp_path)
    assert run_cli("db", "migrate")[0] == 0
    with connect(empty_database) as conn:
        create_user(conn, email="ada@example.com")

    own = [command for command in COMMANDS if not runner(command)]
    failed = [
        (variant, COMMANDS[command], *done[1:])
        for command in own
        for variant in sorted(variants(command))
        if (done := run_cli(*words_of(variant)))[0]
    ]

    assert not failed
    assert len(own) > 10
    assert all(command.startswith("pyapp ") for command in own)


def words_of(command: str) -> list[str]:
    """Return the arguments, with file names expanded as by a shell."""
    _, *words = shlex.split(command)
    return list(
        itertools.chain.from_iterable(
            sorted(map(str, Path().glob(word))) if "*" in word else [word]
            for word in words
        )
    )


@pytest.mark.parametrize("command", sorted(filter(runner, COMMANDS)))
def test_command_of_another_file_is_run_there(command: str) -> None:
    file = ROOT / str(runner(command))
    name = next(name for name in RUN_BY if f"{command} ".startswith(f"{name} "))

    assert name.split()[-1] in file.read_text(encoding="utf-8")


def test_run_by_lists_only_commands_of_the_pages() -> None:
    names = {name for name in RUN_BY if not name.startswith("make ")}

    assert not [
        name
        for name in names
        if not any(f"{command} ".startswith(f"{name} ") for command in COMMANDS)
    ]


def test_files_that_ci_names_exist():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    braces = re.findall(r"tests/test_\{([\w,]+)\}\.py", text)
    names = {name for group in braces for name in group.split(",")}
    names |= set(re.findall(r"tests/test_(\w+)\.py", text))

    assert len(names) > 5
    assert not [name for name in names if not (ROOT / f"tests/test_{name}.py").exists()]
