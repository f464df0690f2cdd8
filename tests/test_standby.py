"""A standby is told apart, and compared and watched without writing to it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.server.binaries import as_account, server_account, server_binaries
from tests.support import hash_once, run_cli, unfolded
from tests.temp_server import free_port, open_folder, temp_server


@pytest.fixture(scope="module")
def standby(programs: Path | None) -> Iterator[str]:
    """Return the URL of a standby of a migrated server."""
    folder = open_folder()
    account = server_account(folder)
    with temp_server(programs=programs) as primary:
        hash_once(primary)
        migrate(primary.url)
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        call = as_account(account)
        call["env"] |= {"PGPASSWORD": primary.password}
        program = str((programs or server_binaries(account)) / "pg_basebackup")
        where = ["--host=localhost", f"--port={primary.port}", "--no-password"]
        options = ["--checkpoint=fast", "--no-sync", "--wal-method=stream"]
        command = [program, *where, *options, f"--username={primary.user}"]
        command += ["--write-recovery-conf", f"--pgdata={folder / 'data'}"]
        subprocess.run(command, **{**call, "check": True})
        server = replace(primary, folder=folder / "data", port=free_port())
        try:
            server.start()
            yield server.url
        finally:
            server.remove()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _deployed(standby: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", standby)
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.chdir(tmp_path)


def test_doctor_compares_a_standby_on_a_temporary_server() -> None:
    code, out, err = run_cli("doctor")

    assert (code, err) == (0, "")
    assert ", a standby" in unfolded(out)
    assert "equal the SQL files and the migrations" in unfolded(out)
    assert "is a standby: a temporary PostgreSQL" in unfolded(out)


def test_status_stats_and_data_are_read_from_a_standby() -> None:
    code, out, err = run_cli("db", "status", "--json")
    found = json.loads(out)
    assert (code, err, found["is_standby"]) == (0, "", True)
    assert {mark["state"] for mark in found["migrations"]} == {"applied"}

    code, out, err = run_cli("stats", "--json")
    assert (code, err, json.loads(out)["unanswered"]) == (0, "", [])

    assert run_cli("db", "check", "--data")[0] == 0
    assert run_cli("quota", "--all")[0] == 0


@pytest.mark.parametrize("command", ["db migrate", "db roles"])
def test_writing_command_names_the_standby(command: str) -> None:
    code, _, err = run_cli(*command.split())

    assert (code, err.count("\n")) == (1, 1)
    assert "standby" in err


def test_url_that_asks_for_a_primary_finds_none(standby: str) -> None:
    code, _, err = run_cli(
        "db", "check", "--url", f"{standby}?target_session_attrs=primary"
    )

    assert (code, err.count("\n")) == (1, 1)
    assert "what its target_session_attrs asks for" in err
