"""`pyapp db start --docker` with a real engine, by Compose 2 and by Compose 1.

`.ci/docker-engine` brings such an engine up, and says how to reach it.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pyapp._core.config import load_settings
from pyapp.devtools.server.local import embedded_server
from tests.support import run_cli, unfolded
from tests.temp_server import free_port

REPOSITORY = Path(__file__).parents[1]


by_both = pytest.mark.parametrize("compose", [1, 2], indirect=True)


@pytest.fixture
def compose(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return the command of Compose 2 or 1; the other is not installed then."""
    if getattr(request, "param", 2) == 2:
        monkeypatch.setenv("DOCKER_CONFIG", os.environ["COMPOSE_2"])
        return ["docker", "compose"]
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{os.environ['COMPOSE_1']}:{os.environ['PATH']}")
    return ["docker-compose"]


@pytest.fixture
def project(
    compose: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Return the folder of a project, made current; remove its container and data."""
    folder = tmp_path / f"project{free_port()}"
    folder.mkdir()
    for name in ("stack.env", "docker-compose.yml"):
        shutil.copy(REPOSITORY / name, folder)
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.chdir(folder)
    yield folder
    subprocess.run([*compose, "down", "--volumes"], check=True, capture_output=True)


@pytest.fixture
def url(project: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the DATABASE_URL of the project, on a free port."""
    url = f"postgresql://me:p%40ss%24word@localhost:{free_port()}/mine"
    monkeypatch.setenv("DATABASE_URL", url)
    return url


@by_both
def test_compose_file_is_valid(project: Path, compose: list[str]) -> None:
    run = subprocess.run([*compose, "config"], capture_output=True, text=True)

    assert (run.returncode, run.stderr) == (0, "")
    assert "POSTGRES_USER: pyapp" in run.stdout


@by_both
def test_start_stop_and_reset_with_docker(url: str) -> None:
    shown = url.replace(":p%40ss%24word@", "@")

    code, out, err = run_cli("db", "start", "--docker")
    assert (code, err) == (0, "")
    assert out == f"PostgreSQL {version(url)} is up at {shown} (Docker)\n"
    assert run_cli("db", "migrate")[0] == 0
    code, out, _ = run_cli("db", "start")
    assert (code, out.endswith(f"is already up at {shown} (Docker)\n")) == (0, True)

    stopped = "PostgreSQL is stopped (Docker); its data stays\n"
    assert run_cli("db", "stop") == (0, stopped, "")
    assert run_cli("db", "start")[1].endswith("(Docker)\n")
    assert run_cli("db", "migrate")[1] == "Nothing to apply: the schema is up to date\n"

    code, out, err = run_cli("db", "reset", "--yes")
    assert (code, err) == (0, "")
    assert run_cli("db", "migrate")[1].startswith("Applying 0001_create_schema\n")


def version(url: str) -> str:
    with psycopg.connect(url) as conn:
        return conn.info.parameter_status("server_version") or ""


def test_container_that_does_not_start_shows_its_log(project: Path, url: str) -> None:
    file = project / "docker-compose.yml"
    text = file.read_text()
    broken = "image: postgres:18\n    command: [--no_such_setting=1]"
    file.write_text(text.replace("image: postgres:18", broken))

    code, out, err = run_cli("db", "start", "--docker")

    *log, line = err.splitlines()
    assert (code, out) == (1, "")
    assert line == (
        "error: the database's container does not start (exited): see the end of its"
        " log above, or run pyapp db start --embedded"
    )
    assert 'unrecognized configuration parameter "no_such_setting"' in log[-1]


def test_port_of_another_program_is_named(url: str) -> None:
    port = int(url.rpartition(":")[2].partition("/")[0])

    with socket.create_server(("127.0.0.1", port)):
        code, _, err = run_cli("db", "start", "--docker")

    assert (code, err) == (
        1,
        f"error: port {port} is used by another program: stop that,"
        " or choose another port in DATABASE_URL\n",
    )


def test_image_that_cannot_be_pulled_leads_to_the_embedded_server(
    project: Path, url: str
) -> None:
    file = project / "docker-compose.yml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("postgres:18", "registry.invalid/postgres:18"))

    code, _, refused = run_cli("db", "start", "--docker")
    started = run_cli("db", "start")[1]
    run_cli("db", "stop")
    file.write_text(text)
    again = run_cli("db", "start")[1]
    embedded_server(load_settings()).remove()

    assert (code, refused.count("\n")) == (1, 1)
    assert refused.startswith("error: Docker cannot pull the image (")
    assert refused.endswith(", or run pyapp db start --embedded\n")
    assert "(embedded, because Docker cannot pull the image (" in unfolded(started)
    assert again.endswith("(embedded)\n")
