"""When Docker is used and which calls it gets, with a fake docker program."""

import subprocess
from pathlib import Path

import pytest

from pyapp._core.connection import connect
from pyapp._core.database_url import redact_url
from pyapp.devtools.server import docker
from pyapp.devtools.server.local import (
    Kind,
    embedded_server,
    reset,
    reset_kind,
    start,
    stop,
)
from pyapp.devtools.server.urls import local_target
from pyapp.errors import LocalServerError
from tests.fake_docker import URL, fake_docker, install, settings
from tests.support import Server, run_cli, unfolded
from tests.temp_server import free_port, temp_server


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project on a machine whose `docker` answers from files."""
    return fake_docker(tmp_path, monkeypatch)


def _calls(project: Path) -> list[str]:
    """Return the calls that change something."""
    lines = (project / "calls").read_text().splitlines()
    looks = (" info", " compose version", " ps ", ": inspect")
    return [line for line in lines if not any(look in line for look in looks)]


def _times_asked(project: Path) -> int:
    """Return the number of requests for the container's state."""
    lines = (project / "calls").read_text().splitlines()
    return sum(": inspect" in line and ".State.Health" in line for line in lines)


def test_engine_with_compose_is_usable(project: Path) -> None:
    assert docker.is_usable(project)


def test_client_without_an_engine_is_not_usable(project: Path) -> None:
    (project / "engine").unlink()

    assert not docker.is_usable(project)
    with pytest.raises(LocalServerError, match=r"no Docker engine answers.*--embedded"):
        docker.up(project, local_target(URL))


def test_machine_without_docker_is_not_usable(project: Path) -> None:
    (project / "bin" / "docker").unlink()

    assert not docker.is_usable(project)


def test_engine_without_compose_is_not_usable(project: Path) -> None:
    (project / "compose").unlink()

    assert not docker.is_usable(project)
    with pytest.raises(
        LocalServerError,
        match=r"Docker has no Compose: install it, or run pyapp db start --embedded",
    ):
        docker.up(project, local_target(URL))


def test_project_without_a_compose_file_is_not_usable(project: Path) -> None:
    (project / "docker-compose.yml").unlink()

    assert not docker.is_usable(project)


def test_compose_gets_the_url_and_healthcheck_is_awaited(project: Path) -> None:
    (project / "states").write_text("created\nstarting\nhealthy\n")

    docker.up(project, local_target(URL))

    file = project / "docker-compose.yml"
    assert _calls(project) == [
        f"me p@ss mine 6543: compose --file {file} up --detach db"
    ]
    assert _times_asked(project) == 3


@pytest.mark.parametrize("state", ["exited", "unhealthy", "dead"])
def test_container_that_does_not_start_shows_its_log(
    project: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    (project / "states").write_text(f"starting\n{state}\n")
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("ENVIRONMENT", "local")

    assert run_cli("db", "start", "--docker") == (
        1,
        "",
        "initdb: making it\nFATAL:  no space left\n"
        f"error: the database's container does not start ({state}): see the end of its"
        " log above, or run pyapp db start --embedded\n",
    )


def test_container_that_never_starts_is_an_error(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "states").write_text("starting\n")
    monkeypatch.setattr(docker, "START_TIMEOUT", 0)

    with pytest.raises(LocalServerError, match=r"does not start \(starting\)"):
        docker.up(project, local_target(URL))


def test_container_without_a_healthcheck_must_run(project: Path) -> None:
    (project / "states").write_text("created\nrunning\n")

    docker.up(project, local_target(URL))

    assert _times_asked(project) == 2


def test_hanging_engine_is_not_usable(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*arguments: object, timeout: float, **options: object) -> None:
        raise subprocess.TimeoutExpired("docker", timeout)

    monkeypatch.setattr(subprocess, "run", hang)

    assert not docker.is_usable(project)
    with pytest.raises(LocalServerError, match="no answer within 600 seconds"):
        docker.stop(project)


def test_broken_docker_program_is_not_usable(project: Path) -> None:
    (project / "bin" / "docker").write_text("no program")

    assert not docker.is_usable(project)


def test_compose_1_is_called_as_docker_compose(project: Path) -> None:
    (project / "compose").unlink()
    install(project / "bin" / "docker-compose")

    docker.up(project, local_target(URL))

    file = project / "docker-compose.yml"
    assert _calls(project) == [f"me p@ss mine 6543: --file {file} up --detach db"]


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (
            "Bind for 127.0.0.1:6543 failed: port is already allocated",
            "port 6543 is used by another program",
        ),
        (
            "Pulling db\nmanifest for postgres:18 not found\n",
            r"Docker cannot pull the image \(manifest for postgres:18 not found\): ",
        ),
    ],
)
def test_failure_is_one_line(project: Path, failure: str, line: str) -> None:
    (project / "failure").write_text(failure)

    with pytest.raises(LocalServerError, match=line) as caught:
        docker.up(project, local_target(URL))

    assert "\n" not in str(caught.value)


def test_start_prefers_docker_and_returns_when_the_url_answers(
    project: Path, server: Server
) -> None:
    url = server.url("postgres")

    line = start(settings(project, url), Kind.DOCKER)

    assert line.startswith("PostgreSQL ")
    assert line.endswith("(Docker)")
    assert len(_calls(project)) == 1


def test_docker_is_chosen_when_nothing_answers_yet(project: Path) -> None:
    (project / "failure").write_text("chosen")

    with pytest.raises(LocalServerError, match=r"Docker did not start .*\(chosen\)"):
        start(settings(project, URL))


def test_volume_of_another_url_names_the_remedy(project: Path, server: Server) -> None:
    url = server.url("absent")

    with pytest.raises(LocalServerError, match="restore them in DATABASE_URL"):
        start(settings(project, url), Kind.DOCKER)


def test_stop_and_reset_reach_the_running_container(project: Path) -> None:
    with temp_server() as alone:
        (project / "running").write_text(f"{alone.port}\n")
        running = settings(project, alone.url)

        stopped = stop(running)
        was_reset = reset(running)

    assert stopped == "PostgreSQL is stopped (Docker); its data stays"
    assert was_reset.endswith("is new and empty (Docker)")
    actions = [call.split(".yml ")[1] for call in _calls(project)]
    assert actions == [
        "stop db",
        "down --volumes",
        "up --detach db",
    ]


def test_reset_keeps_the_volume_that_holds_other_databases(
    project: Path,
    database: str,
    empty_database: str,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (project / "running").write_text(f"{server.port}\n")
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setenv("ENVIRONMENT", "local")
    with connect(empty_database) as conn:
        conn.execute("CREATE TABLE deleted ()")
        conn.commit()

    asked = unfolded(run_cli("db", "reset", answer="n\n")[1])
    code, out, err = run_cli("db", "reset", "--yes")

    assert asked.startswith(
        f"Delete {redact_url(empty_database)}, all its data, on a server that is"
        " Docker; its other databases stay?"
    )
    assert (code, err) == (0, "")
    assert "is new and empty (Docker)" in unfolded(out)
    with connect(empty_database) as conn:
        found = conn.execute("SELECT to_regclass('public.deleted')").fetchone()
        assert found == (None,)
    with connect(database) as conn:
        assert conn.execute("SELECT count(*) FROM app.users").fetchone() == (0,)
    assert _calls(project) == []


def test_reset_on_another_port_keeps_the_container(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    (project / "running").write_text("6543\n")
    monkeypatch.setenv("DATABASE_URL", URL.replace("6543", str(port)))
    monkeypatch.setenv("ENVIRONMENT", "local")

    assert run_cli("db", "reset", "--yes") == (
        1,
        "",
        "error: this checkout's server (Docker) runs on port 6543, and DATABASE_URL"
        f" names port {port}: put port 6543 into DATABASE_URL, or stop that server:"
        " pyapp db stop\n",
    )
    assert _calls(project) == []


def test_reset_of_a_broken_container_asks_about_its_volume(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "states").write_text("exited\n")
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("ENVIRONMENT", "local")

    code, _, err = run_cli("db", "reset", "--yes")
    asked = unfolded(run_cli("db", "reset", answer="n\n")[1])

    assert (code, "cannot be listed: run pyapp db reset without" in err) == (
        1,
        True,
    )
    assert "with all databases in it, which cannot be listed?" in asked
    assert not any("down" in call for call in _calls(project))


def test_container_on_another_port_is_not_the_server_of_the_url(
    project: Path, server: Server
) -> None:
    (project / "running").write_text("6543\n")
    running = settings(project, server.url("postgres"))

    assert reset_kind(running) is Kind.OTHER
    assert stop(running) == (
        f"the server on port {server.port} is not this project's; it is not stopped"
    )
    assert _calls(project) == []


@pytest.mark.parametrize("action", ["up", "stop", "remove"])
def test_project_of_another_checkout_is_not_changed(project: Path, action: str) -> None:
    (project / "folder").write_text("/elsewhere/app\n")
    calls = {
        "up": lambda: docker.up(project, local_target(URL)),
        "stop": lambda: docker.stop(project),
        "remove": lambda: docker.remove(project),
    }

    with pytest.raises(LocalServerError, match="was created in /elsewhere/app: rename"):
        calls[action]()

    assert _calls(project) == []


def test_reset_with_yes_needs_a_container_of_this_checkout(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "absent").touch()
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setenv("ENVIRONMENT", "local")

    assert run_cli("db", "reset", "--yes") == (
        1,
        "",
        "error: --yes deletes only the data of a server that this checkout started, and"
        " it has no container in Docker: run pyapp db reset without --yes, and answer"
        " its question\n",
    )
    assert _calls(project) == []


def test_reset_prefers_the_data_folder_of_the_checkout(project: Path) -> None:
    (project / "absent").touch()
    stopped = settings(project, URL)
    assert reset_kind(stopped) is Kind.DOCKER

    embedded_server(stopped).folder.mkdir(parents=True)
    assert reset_kind(stopped) is Kind.EMBEDDED
