"""`pyapp db start | stop | status | reset`, as commands."""

import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from pyapp._core.database_url import redact_url
from pyapp.devtools.server import owner
from pyapp.devtools.server.embedded import EmbeddedServer, port_is_free
from pyapp.errors import DatabaseUnavailableError, MissingExtraError
from tests.support import Server, run_cli, unfolded
from tests.temp_server import TEMP_SETTINGS, free_port, open_folder

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a project, made current, on a machine without Docker."""
    folder = open_folder()
    for name in ("stack.env", "docker-compose.yml"):
        shutil.copy(REPOSITORY / name, folder)
    programs = folder / "bin"
    programs.mkdir()
    (programs / "docker").write_text("#!/bin/sh\nexit 1\n")
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def url(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return the DATABASE_URL of the project, on a free port; stop its server."""
    url = f"postgresql://pyapp:pyapp@localhost:{free_port()}/pyapp"
    monkeypatch.setenv("DATABASE_URL", url)
    yield url
    run_cli("db", "stop")


def test_start_status_stop_and_reset(project: Path, url: str) -> None:
    shown = url.replace(":pyapp@", "@")

    code, out, err = run_cli("db", "status")
    assert (code, out) == (1, "")
    assert err == (
        f"error: no database at {shown}: Connection refused;"
        " start it with: pyapp db start\n"
    )
    assert run_cli("db", "stop") == (0, "PostgreSQL is not running\n", "")

    code, out, err = run_cli("db", "start")
    assert (code, err) == (0, "")
    assert out.startswith("PostgreSQL 18")
    assert out.endswith(f" is up at {shown} (embedded)\n")
    code, out, _ = run_cli("db", "start")
    assert code == 0
    assert unfolded(out).endswith(f"is already up at {shown} (embedded)")
    code, out, _ = run_cli("db", "status")
    assert code == 0
    assert f" is up at {shown} (embedded)" in unfolded(out)

    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept ()")
    _, out, _ = run_cli("db", "stop")
    assert out == "PostgreSQL is stopped (embedded); its data stays\n"
    run_cli("db", "start")
    assert _tables(url) == ["kept"]

    code, out, _ = run_cli("db", "reset")
    assert (code, out.splitlines()[-1]) == (
        1,
        "Nothing is deleted; --yes deletes without asking.",
    )
    code, out, _ = run_cli("db", "reset", answer="n\n")
    assert f"Delete {project}/.pyapp/postgres with all its databases?" in unfolded(out)
    assert (code, _tables(url)) == (1, ["kept"])
    code, out, err = run_cli("db", "reset", answer="y\n")
    assert (code, err, _tables(url)) == (0, "", [])
    assert out.splitlines()[-1] == "Build the schema with: pyapp db migrate"


def _port(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def _tables(url: str, schema: str = "public") -> list[str]:
    with psycopg.connect(url) as conn:
        rows = conn.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema]
        )
        return [name for (name,) in rows]


@pytest.mark.parametrize("environment", ["production", ""])
def test_reset_refuses_outside_a_local_environment(
    url: str, monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    monkeypatch.setenv("ENVIRONMENT", environment)

    code, out, err = run_cli("db", "reset", "--yes")

    assert (code, out) == (1, "")
    assert err == (
        f"error: ENVIRONMENT is {environment or 'not set'}:"
        " only a local database is reset\n"
    )


def test_reset_repairs_an_incomplete_data_folder(project: Path, url: str) -> None:
    data = project / ".pyapp" / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")

    code, _, err = run_cli("db", "start")
    assert (code, err) == (
        1,
        f"error: the data folder {data} is incomplete;"
        " `pyapp db reset` recreates it without its data\n",
    )

    code, _, err = run_cli("db", "reset", "--yes")
    assert (code, err) == (
        1,
        "error: --yes deletes only the data of a server that this checkout started, and"
        " the databases of this one cannot be listed: run pyapp db reset without --yes,"
        " and answer its question\n",
    )
    code, out, _ = run_cli("db", "reset", answer="y\n")
    assert code == 0
    question = f"Delete {data} with all its databases, which cannot be listed?"
    assert question in unfolded(out)
    assert _tables(url) == []


def test_reset_with_another_password_asks_about_the_folder(
    project: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("db", "start")[0] == 0
    other = url.replace(":pyapp@", ":other@")
    monkeypatch.setenv("DATABASE_URL", other)

    assert run_cli("db", "reset", "--yes")[0] == 1
    assert _tables(url) == []
    code, out, _ = run_cli("db", "reset", answer="y\n")

    assert code == 0
    assert "postgres with all its databases, which" in unfolded(out)
    assert _tables(other) == []


@pytest.mark.parametrize("answer", ["--yes", "asked"])
def test_reset_on_another_port_keeps_the_running_server(
    project: Path, url: str, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    assert run_cli("db", "start")[0] == 0
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept ()")
    port, wrong = _port(url), free_port()
    monkeypatch.setenv("DATABASE_URL", url.replace(f":{port}/", f":{wrong}/"))

    code, out, err = run_cli(
        "db", "reset", *(["--yes"] if answer == "--yes" else []), answer="y\n"
    )

    assert (code, out) == (1, "")
    assert err == (
        f"error: this checkout's server (embedded) runs on port {port}, and"
        f" DATABASE_URL names port {wrong}: put port {port} into DATABASE_URL, or stop"
        " that server: pyapp db stop\n"
    )
    assert _tables(url) == ["kept"]


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("has_table", [False, True])
def test_reset_keeps_other_databases_of_the_server(
    project: Path,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    is_stopped: bool,
    has_table: bool,
) -> None:
    """Also if the named database does not exist yet."""
    scratch = url.rpartition("/")[0] + "/scratch"
    assert run_cli("db", "start")[0] == 0
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE TABLE kept ()")
        if has_table:
            conn.execute("CREATE DATABASE scratch")
    if has_table:
        with psycopg.connect(scratch) as conn:
            conn.execute("CREATE TABLE deleted ()")
    if is_stopped:
        run_cli("db", "stop")
    monkeypatch.setenv("DATABASE_URL", scratch)
    shown = redact_url(scratch)

    code, out, _ = run_cli("db", "reset", answer="n\n")
    assert unfolded(out).startswith(
        f"Delete {shown}, all its data, on a server that is embedded; its other"
        " databases stay?"
    )
    assert (code, port_is_free(_port(url))) == (1, is_stopped)
    code, _, err = run_cli("db", "reset", "--yes")

    assert (code, err) == (0, "")
    assert (_tables(scratch), _tables(url)) == ([], ["kept"])


def test_tables_in_postgres_count_as_another_database(project: Path, url: str) -> None:
    assert run_cli("db", "start")[0] == 0
    postgres = url.rpartition("/")[0] + "/postgres"
    for each in (url, postgres):
        with psycopg.connect(each) as conn:
            conn.execute("CREATE TABLE made ()")

    assert run_cli("db", "reset", "--yes")[0] == 0

    assert (_tables(url), _tables(postgres)) == ([], ["made"])


@pytest.mark.parametrize("by", ["URL", "PGHOSTADDR", "PGSERVICE"])
def test_server_on_another_loopback_address_is_not_embedded(
    project: Path, url: str, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Both can listen on the same port."""
    assert run_cli("db", "start")[0] == 0
    with psycopg.connect(url) as conn:
        conn.execute("CREATE TABLE kept ()")
    folder = open_folder()
    other = EmbeddedServer(folder / "data", free_port(), settings=TEMP_SETTINGS)
    moved = {"port": str(_port(url)), "listen_addresses": "127.0.0.2"}
    try:
        other.start()
        other.stop()
        with pytest.raises(DatabaseUnavailableError):  # it is looked for on localhost
            replace(other, settings={**TEMP_SETTINGS, **moved}).start()
        (folder / "services").write_text("[two]\nhostaddr=127.0.0.2\n")
        monkeypatch.setenv("PGSERVICEFILE", str(folder / "services"))
        if by == "URL":
            monkeypatch.setenv("DATABASE_URL", f"{url}?hostaddr=127.0.0.2")
        elif by == "PGHOSTADDR":
            monkeypatch.setenv("PGHOSTADDR", "127.0.0.2")
        else:
            monkeypatch.setenv("PGSERVICE", "two")

        shown = run_cli("db", "status")[1]
        code, out, err = run_cli("db", "reset", "--yes")
    finally:
        for name in ("PGHOSTADDR", "PGSERVICE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("DATABASE_URL", url)
        other.remove()
        shutil.rmtree(folder, ignore_errors=True)

    assert " (not this project's)" in unfolded(shown)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "hostaddr 127.0.0.2 is not an address of localhost" in err
    assert _tables(url) == ["kept"]


def test_foreign_server_is_used_and_not_stopped(
    project: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)

    _, started, _ = run_cli("db", "start")
    _, shown, _ = run_cli("db", "status")
    _, stopped, _ = run_cli("db", "stop")

    assert "is already up at" in started
    assert "(not this project's)" in started
    assert "(not this project's)" in unfolded(shown)
    assert "is not this project's; it is not stopped" in stopped
    assert not (project / ".pyapp").exists()
    with psycopg.connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM app.users").fetchone() == (0,)


@pytest.mark.parametrize("is_of_another_account", [False, True])
def test_server_of_another_checkout_is_named(
    project: Path,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    is_of_another_account: bool,
) -> None:
    run_cli("db", "start")
    if is_of_another_account:  # the folders of its processes are hidden
        monkeypatch.setattr(owner, "_of_process", lambda port: None)
    second = open_folder()
    shutil.copy(project / "stack.env", second)
    monkeypatch.chdir(second)
    try:
        started = run_cli("db", "start")
        shown = run_cli("db", "status")[1]
        stopped = run_cli("db", "stop")[1]
        asked = run_cli("db", "reset", answer="n\n")[1]
        monkeypatch.setenv("DATABASE_URL", url.replace("pyapp:pyapp@", "pyapp:other@"))
        refused = run_cli("db", "status")[2]
    finally:
        monkeypatch.chdir(project)
        monkeypatch.setenv("DATABASE_URL", url)
        shutil.rmtree(second)

    occupied = (
        f"port {_port(url)} has the server of {project}: choose another port in"
        " DATABASE_URL, in .env.local\n"
    )
    assert started == (1, "", f"error: {occupied}")
    whose = f"(of {project}: choose another port for a server of this folder)"
    assert whose in unfolded(shown)
    assert f"is of {project}; it is not stopped" in unfolded(stopped)
    assert f"all its data, on the server of {project}?" in unfolded(asked)
    assert is_of_another_account or refused.endswith(f"; {occupied}")


def test_reset_on_a_foreign_server_deletes_one_database(
    project: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)

    code, out, err = run_cli("db", "reset", "--yes")
    shown = redact_url(database)
    assert (code, out) == (1, "")
    assert err == (
        "error: --yes deletes only the data of a server that this checkout started, and"
        f" {shown} is on another: run pyapp db reset without --yes, and answer its"
        " question\n"
    )
    assert _tables(database, "app") != []

    code, out, _ = run_cli("db", "reset", answer="y\n")

    out = unfolded(out)
    assert out.startswith(f"Delete {shown}, all its data, on a server that is not")
    assert (code, "(not this project's)" in out) == (0, True)
    with psycopg.connect(database) as conn:
        found = conn.execute("SELECT to_regclass('app.users') IS NULL").fetchone()
    assert found == (True,)


def test_foreign_server_that_refuses_is_named(
    project: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", server.url("absent"))

    code, _, err = run_cli("db", "start")

    assert (code, err) == (
        1,
        f"error: another project's server is on port {server.port};"
        ' database "absent" does not exist;'
        " correct DATABASE_URL, or choose another port in it\n",
    )


def test_port_of_another_program_is_named(project: Path, url: str) -> None:
    port = _port(url)

    with socket.create_server(("127.0.0.1", port)):
        code, _, err = run_cli("db", "start", "--embedded")

    assert (code, err) == (
        1,
        f"error: port {port} is used by another program: stop that,"
        " or choose another port in DATABASE_URL\n",
    )


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://a:b@db.example.com/c", "not a server on localhost"),
        ("postgresql://a@localhost/c", "has no password"),
        ("postgresql://a:b@localhost", "has no database"),
        ("mysql://a:b@localhost/c", "is not a PostgreSQL URL"),
    ],
)
def test_url_of_another_machine_or_without_parts_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, url: str, reason: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    code, out, err = run_cli("db", "start")

    assert (code, out) == (1, "")
    assert reason in err
    assert err.count("\n") == 1


def test_docker_and_embedded_exclude_each_other(project: Path) -> None:
    code, _, err = run_cli("db", "start", "--docker", "--embedded")

    assert code == 2
    assert "not both" in err


def test_docker_option_without_an_engine_is_an_error(project: Path, url: str) -> None:
    code, _, err = run_cli("db", "start", "--docker")

    assert (code, err) == (
        1,
        "error: no Docker engine answers: start Docker,"
        " or run pyapp db start --embedded\n",
    )


def test_missing_extra_is_one_line(
    project: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    code, _, err = run_cli("db", "start")

    assert (code, err) == (
        1,
        "error: no Docker engine answers, and there is no embedded server:"
        f" start Docker, or {MissingExtraError('embedded').command}\n",
    )
