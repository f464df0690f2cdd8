"""reset and rollback change the database that they name."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pyapp._core.connection import connect, is_local
from pyapp._core.database_url import redact_url
from pyapp.devtools.migrations.migrator import list_migrations, migrate
from pyapp.devtools.server import local
from pyapp.devtools.server.embedded import EmbeddedServer
from pyapp.devtools.server.urls import is_on_this_machine, local_target, name_reached
from pyapp.errors import ConfigError, LocalServerError
from tests.proxy import Proxy
from tests.support import Server, run_cli, unfolded
from tests.temp_server import open_folder

LOCAL = "postgresql://me:pw@localhost:5432/mine"
SERVICE = "[other]\nhostaddr=10.0.0.5\nport=6000\n"
# By name: the URL, the environment, and the reason that is given.
ELSEWHERE = {
    "hostaddr": (f"{LOCAL}?hostaddr=10.0.0.5", {}, "its hostaddr 10.0.0.5"),
    "two addresses": (f"{LOCAL}?hostaddr=127.0.0.1,10.0.0.5", {}, "its hostaddr"),
    "PGHOSTADDR": (LOCAL, {"PGHOSTADDR": "10.0.0.5"}, "PGHOSTADDR"),
    "PGSERVICE": (LOCAL, {"PGSERVICE": "other"}, "PGSERVICE"),
    "service": (f"{LOCAL}?service=other", {}, "names a service"),
    "?host=": (f"{LOCAL}?host=db.example.com", {}, "not a server on localhost"),
    "two hosts": (
        "postgresql://me:pw@localhost,db.example.com/mine",
        {},
        "not a server on localhost",
    ),
    "two ports": (
        "postgresql://me:pw@localhost:1,localhost:2/mine",
        {},
        "not a server",
    ),
    "PGHOST": ("postgresql://me:pw@/mine", {"PGHOST": "localhost"}, "not a server"),
    "PGPORT": ("postgresql://me:pw@localhost/mine", {"PGPORT": "1,2"}, "several ports"),
    "socket": ("postgresql://me:pw@/mine?host=/run", {}, "not a server on localhost"),
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a project, made current, on a machine without Docker."""
    folder = open_folder()
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.chdir(folder)
    (tmp_path / "services").write_text(SERVICE)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("command", ["reset --yes", "start", "stop"])
def test_url_of_another_machine_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str
):
    url, environment, reason = ELSEWHERE[name]
    monkeypatch.setenv("DATABASE_URL", url)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)

    code, out, err = run_cli("db", *command.split())

    assert (code, out, err.count("\n")) == (1, "", 1)
    assert reason in err
    assert "these commands start, stop and reset a server on localhost only" in err
    assert not is_local(url)


@pytest.mark.parametrize(
    ("url", "environment", "port"),
    [
        (f"{LOCAL}?hostaddr=127.0.0.1", {}, 5432),
        (LOCAL, {"PGHOSTADDR": "::1", "PGPORT": "1"}, 5432),
        (LOCAL, {"PGHOST": "db.example.com"}, 5432),
        ("host=localhost port='' user=me dbname=mine", {"PGPORT": "1"}, 5432),
        ("postgresql://me:pw@localhost/mine", {"PGPORT": "6001"}, 6001),
        ("postgresql://me:pw@localhost/mine", {}, 5432),
    ],
)
def test_local_url_gets_the_port_that_libpq_uses(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    environment: dict[str, str],
    port: int,
):
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)

    assert is_local(url)
    assert local_target(url).port == port


def test_reset_through_a_forward_is_refused(
    project: Path, database: str, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """It looks like an SSH forward on localhost to an unknown server."""
    with Proxy(server.port) as forward:
        url = database.replace(f":{server.port}/", f":{forward.port}/")
        monkeypatch.setenv("DATABASE_URL", url)
        name = database.rpartition("/")[2]

        code, out, err = run_cli("db", "reset", answer="y\n")

        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"{redact_url(url)} is not known to be on this machine" in err
        assert f"'DROP DATABASE IF EXISTS {name} WITH (FORCE)'" in err
        with connect(url) as through, connect(database) as direct:
            assert not is_on_this_machine(through)
            assert is_on_this_machine(direct)
            assert through.execute("SELECT to_regclass('app.users')").fetchone() != (
                None,
            )


def test_reset_deletes_the_database_that_libpq_reaches(
    project: Path, database: str, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Without a port in the URL, question and deletion use PGPORT."""
    monkeypatch.setenv("DATABASE_URL", database.replace(f":{server.port}/", "/"))
    monkeypatch.setenv("PGPORT", str(server.port))

    assert run_cli("db", "reset", answer="y\n")[0] == 0

    with psycopg.connect(database) as conn:
        found = conn.execute("SELECT to_regclass('app.users')").fetchone()
    assert found == (None,)


def test_reset_stops_if_the_server_changed_after_the_question(
    project: Path, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", database)
    kinds = iter(["embedded", "not this project's"])
    monkeypatch.setattr(local, "running_kind", lambda _: local.Kind(next(kinds)))

    code, _, err = run_cli("db", "reset", "--yes")

    assert (code, "has changed since the question" in err) == (1, True)
    with psycopg.connect(database) as conn:
        conn.execute("SELECT FROM app.users")


def test_rollback_names_and_uses_one_server(
    empty_database: str, server: Server, monkeypatch: pytest.MonkeyPatch
):
    """Also if the URL has several servers, or the environment names them."""
    migrate(empty_database, count=1)
    name = empty_database.rpartition("/")[2]
    listed = (
        f"postgresql://{server.user}:{server.password}@127.0.0.1:1,"
        f"localhost:{server.port}/{name}"
    )
    with connect(listed) as conn:
        reached = name_reached(listed, conn)
    assert reached.name == redact_url(empty_database)
    with connect(reached.url) as conn:
        assert (conn.info.host, conn.info.port) == ("localhost", server.port)

    monkeypatch.setenv("PGHOST", "localhost")
    monkeypatch.setenv("PGPORT", str(server.port))
    url = f"postgresql://{server.user}:{server.password}@/{name}"
    monkeypatch.setenv("DATABASE_URL", url)
    code, out, _ = run_cli("db", "rollback", "--yes")

    assert (code, out.splitlines()[0]) == (
        0,
        f"To be rolled back at {redact_url(empty_database)}:",
    )
    assert {s.state for s in list_migrations(empty_database)} == {"pending"}


def test_address_is_named_if_a_parameter_sets_it(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
):
    url = empty_database.replace("@localhost:", "@db.example.com:")
    monkeypatch.setenv("DATABASE_URL", f"{url}?hostaddr=127.0.0.1")

    code, out, _ = run_cli("db", "rollback")

    assert (code, unfolded(out)) == (
        0,
        f"Nothing is applied at {redact_url(url)}?hostaddr=127.0.0.1",
    )


@pytest.mark.parametrize("by", ["URL", "PGSERVICE"])
def test_one_address_of_a_service_is_named_and_used(
    empty_database: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    by: str,
):
    """Only the service resolves its host names."""
    migrate(empty_database, count=1)
    name = empty_database.rpartition("/")[2]
    (tmp_path / "services").write_text(
        "[pair]\nhost=one.invalid,two.invalid\nhostaddr=127.0.0.1,127.0.0.1\n"
        f"port=1,{server.port}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    url = f"postgresql://{server.user}:{server.password}@/{name}"
    if by == "URL":
        url += "?service=pair"
    else:
        monkeypatch.setenv("PGSERVICE", "pair")
    monkeypatch.setenv("DATABASE_URL", url)
    shown = (
        f"postgresql://{server.user}@two.invalid:{server.port}/{name}"
        "?hostaddr=127.0.0.1"
    )

    code, out, _ = run_cli("db", "status")
    assert code == 0
    assert f" is up at {shown} (not this project's)" in unfolded(out)

    code, out, err = run_cli("db", "rollback", "--yes")
    assert (code, err) == (0, "")
    assert unfolded(out).startswith(f"To be rolled back at {shown}:")
    assert {s.state for s in list_migrations(empty_database)} == {"pending"}


def test_several_ports_are_an_error():
    with pytest.raises(ConfigError, match="several ports"):
        local_target("host=localhost port=1,2 user=a password=b dbname=c")


def test_embedded_server_ignores_hosts_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise databases would be created on that host."""
    monkeypatch.setenv("PGHOSTADDR", "10.0.0.5")

    with pytest.raises(LocalServerError, match=r"cannot be reached: .*PGHOSTADDR"):
        EmbeddedServer(tmp_path / "data", 1).start()
    assert not (tmp_path / "data").exists()
