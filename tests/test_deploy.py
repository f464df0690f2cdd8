"""The files of deploy/ are valid, and each process works with the role of its login."""

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pyapp import __version__
from pyapp._core.config import read_values
from pyapp.cli import repeating
from pyapp.roles import ROLES
from tests.deploy_files import (
    DEPLOY,
    MANIFESTS,
    UNITS,
    Started,
    containers_of,
    list_started,
    pod_of,
    read_compose,
    read_manifests,
)
from tests.fake_stripe import TEST_KEY, TEST_SECRET, FakeStripe
from tests.support import Server, run_cli
from tests.temp_server import free_port

ROOT = Path(__file__).parents[1]
ROLE_OF = {"sync": "pyapp_sync", "stats": "pyapp_readonly"}
STARTED = list_started()
# Each command once; some files start the same.
COMMANDS = {(one.words, one.variables): one for one in STARTED}
# The commands that run until they are stopped.
SERVERS = ("stripe serve", "stats --prometheus --listen")
SECRETS = DEPLOY / "kubernetes" / "secrets.yaml.example"


def is_server(started: Started) -> bool:
    return " ".join(started.words).startswith(SERVERS)


def migrates_later(started: Started) -> tuple[bool, str]:
    """Return the key that sorts the commands that build the schema first."""
    return "migrate" not in started.words, started.variables


@pytest.fixture(scope="module")
def logins(server: Server) -> Iterator[dict[str, str]]:
    """Return the URLs of three logins, none of them a superuser, and no schema."""
    database, password = f"deploy_{uuid4().hex[:8]}", uuid4().hex
    names = {name: f"{database}_{name}" for name in ("owner", *ROLE_OF)}
    with psycopg.connect(server.url("postgres"), autocommit=True) as admin:

        def run(statement: str, *values: sql.Composable) -> None:
            admin.execute(sql.SQL(statement).format(*values))

        for role in ROLES:
            # Without it, another test's roles decide whether CREATEROLE is needed.
            if not admin.execute(
                "SELECT 1 FROM pg_roles WHERE rolname = %s", [role]
            ).fetchone():
                run("CREATE ROLE {}", sql.Identifier(role))
        for login in names.values():
            name, secret = sql.Identifier(login), sql.Literal(password)
            run("CREATE ROLE {} LOGIN PASSWORD {}", name, secret)
        owner = sql.Identifier(names["owner"])
        run("CREATE DATABASE {} OWNER {}", sql.Identifier(database), owner)
        for login, role in ROLE_OF.items():
            run("GRANT {} TO {}", sql.Identifier(role), sql.Identifier(names[login]))
        run("GRANT pg_read_all_stats TO {}", sql.Identifier(names["stats"]))
        url = server.url(database)
        with psycopg.connect(url, autocommit=True) as own:
            own.execute(
                sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}").format(owner)
            )
        yield {
            login: make_conninfo(url, user=name, password=password)
            for login, name in names.items()
        }
        run("DROP DATABASE {} WITH (FORCE)", sql.Identifier(database))
        for login in names.values():
            run("DROP ROLE {}", sql.Identifier(login))


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeStripe]:
    with FakeStripe(seed=1) as running:
        yield running


def words_for_test(started: Started) -> list[str]:
    """Return the words with free ports of this machine."""
    words = [
        re.sub(r"\d{4}$", lambda _: str(free_port()), word).replace(
            "0.0.0.0", "127.0.0.1"
        )
        for word in started.words
    ]
    if words[:2] == ["stripe", "serve"]:
        words += ["--port", str(free_port())]
    return words


IN_ORDER: list[Started] = sorted(COMMANDS.values(), key=migrates_later)


@pytest.mark.parametrize(
    "started",
    IN_ORDER,
    ids=lambda one: f"{one.place}: {' '.join(one.words)}",
)
def test_command_works_with_its_login(
    logins: dict[str, str],
    fake: FakeStripe,
    monkeypatch: pytest.MonkeyPatch,
    started: Started,
    tmp_path: Path,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", logins[started.variables])
    monkeypatch.setenv("ENVIRONMENT", "production")
    if started.variables == "sync":
        monkeypatch.setenv("STRIPE_API_BASE", fake.base_url)
        monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
        monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", TEST_SECRET)
    words = words_for_test(started)
    if is_server(started):
        assert_serves(words)
        return

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repeating, "sleep", interrupt)
    code, out, err = run_cli(*words)
    if "--every" in words:
        assert (code, err.count("\n")) == (130, 1)
    else:
        assert (code, err) == (0, "")
    assert out


def assert_serves(words: list[str]) -> None:
    """Run the server until its metrics answer, and stop it."""
    option = next(word for word in ("--metrics", "--listen") if word in words)
    port = words[words.index(option) + 1].rpartition(":")[2]
    process = subprocess.Popen(
        [sys.executable, "-c", "from pyapp.cli import main; main()", *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        text = ""
        while process.poll() is None and not text:
            try:
                url = f"http://127.0.0.1:{port}/metrics"
                with urllib.request.urlopen(url, timeout=10) as response:
                    text = response.read().decode()
            except OSError:
                time.sleep(0.05)
        if option == "--listen":
            assert "pyapp_stats_section_answered 0" not in text
            assert "pyapp_database_up 1.0" in text
        else:
            assert "pyapp_webhook_deliveries_total" in text
        process.terminate()
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    finally:
        process.kill()
        process.wait()


def test_all_three_start_the_same_processes():
    """They differ in options: Compose repeats by itself what the others schedule."""
    kinds = [
        {
            (one.words[:2], one.variables)
            for one in STARTED
            if one.place.startswith(place)
        }
        for place in ("pyapp-", "compose ", "kubernetes ")
    ]
    assert kinds[0] == kinds[1] == kinds[2]
    assert len(kinds[0]) == 6


def test_each_file_of_variables_has_an_example():
    examples = {
        file.name.partition(".")[0]: read_example(file)
        for file in (DEPLOY / "env").iterdir()
    }
    secrets = {
        one["metadata"]["name"].removeprefix("pyapp-"): set(one["stringData"])
        for one in yaml.safe_load_all(SECRETS.read_text())
    }

    assert {one.variables for one in STARTED} == examples.keys()
    assert examples == secrets
    stated = [file.read_text() for file in (*(DEPLOY / "env").iterdir(), SECRETS)]
    assert not re.search(r"(?m)^\s*[A-Z_]+[=:] *[^\s\"]", "\n".join(stated))


def read_example(file: Path) -> set[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return {line.partition("=")[0] for line in lines if not line.startswith("#")}


def test_dockerfile_passes_hadolint():
    program = str(Path(sys.executable).with_name("hadolint"))
    command = [program, "--failure-threshold", "style", str(DEPLOY / "Dockerfile")]
    run = subprocess.run(command, capture_output=True, text=True)

    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_image_is_pinned_and_copies_only_what_is_allowed():
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)

    assert re.search(r"^ARG PYTHON=python:3\.\d+-slim-\w+$", text, re.MULTILINE)
    assert "*" in allowed
    paths = {f"!{path}" for line in copied for path in line.split()}
    assert paths == {line for line in allowed if line.startswith("!")}
    assert ".env.local" not in text


@pytest.mark.parametrize("name", ["requirements", "requirements-build"])
def test_lock_of_the_image_is_a_part_of_the_other_lock(name: str):
    """So that `make audit` and the tests cover the packages of the image."""
    own, all_locked = (
        read_lock(path)
        for path in (DEPLOY / f"{name}.lock", ROOT / "requirements-dev.lock")
    )

    assert own.items() <= all_locked.items()
    assert len(own) > 5


def read_lock(file: Path) -> dict[str, frozenset[str]]:
    """Return the hashes of each package and version."""
    found: dict[str, set[str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if name := re.match(r"([\w.-]+==[\w.]+)", line):
            hashes = found.setdefault(name[1], set())
        hashes |= set(re.findall(r"sha256:\w+", line))
    return {name: frozenset(hashes) for name, hashes in found.items()}


@pytest.mark.parametrize("name", list(read_compose()))
def test_service_of_compose_is_confined(name: str):
    service = read_compose()[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["stop_grace_period"] == "30s"
    assert ("ports" in service) == (name == "server")
    is_job = service["restart"] == "no"
    assert is_job == (name in {"migrate", "roles"})
    assert ("healthcheck" in service) == (name != "server")


@pytest.mark.parametrize("version", ["1.30.0", "1.37.0"])
@pytest.mark.parametrize(
    "file", [*MANIFESTS, SECRETS], ids=lambda file: file.name.partition(".")[0]
)
def test_manifest_is_valid(file: Path, version: str):
    manifests = list(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    assert manifests
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    "manifest",
    [one for one in read_manifests() if pod_of(one)],
    ids=lambda one: one["metadata"]["name"],
)
def test_pods_meet_the_restricted_standard(manifest: dict[str, Any]):
    pod = pod_of(manifest)
    assert pod is not None
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{pod['securityContext']['runAsGroup']}\n" in dockerfile
    for container in containers_of(pod):
        assert container["image"] == f"pyapp-metering:{__version__}"
        assert container["resources"]["limits"]["memory"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_cron_jobs_never_overlap_or_hang():
    jobs = [one["spec"] for one in read_manifests() if one["kind"] == "CronJob"]

    assert len(jobs) == 2
    for job in jobs:
        assert job["concurrencyPolicy"] == "Forbid"
        assert job["timeZone"] == "Etc/UTC"
        assert job["startingDeadlineSeconds"] > 10
        assert job["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0


def test_files_hold_no_secret_and_read_no_local_file():
    for file in DEPLOY.rglob("*"):
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"(sk|rk)_(live|test)_\w|whsec_\w|postgresql://", text)
    assert read_values(DEPLOY / "env").keys() >= {"PATH"}


def test_files_and_units_of_the_page_exist():
    text = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")

    for path in re.findall(r"\bdeploy/[\w./-]*\w", text):
        assert (ROOT / path).exists(), path
    for unit in re.findall(r"pyapp-\w+\.(?:service|timer)\b", text):
        assert (DEPLOY / "systemd" / unit).is_file(), unit


def test_commands_of_the_page_name_what_the_files_define():
    """systemctl enables exactly the units with [Install]; kubectl waits for the Job."""
    commands = console_lines(ROOT / "docs" / "deploy.md")
    enabled = {
        unit
        for command in commands
        if command.startswith("systemctl enable --now ")
        for unit in command.split()[3:]
    }
    units = [*UNITS, *(DEPLOY / "systemd").glob("*.timer")]
    assert enabled == {one.name for one in units if "[Install]" in one.read_text()}

    jobs = {one["metadata"]["name"] for one in read_manifests() if one["kind"] == "Job"}
    (waited,) = (one for one in commands if one.startswith("kubectl wait "))
    (deleted,) = (one for one in commands if one.startswith("kubectl delete "))
    assert jobs == {waited.rpartition("job/")[2]} == {deleted.split()[3]}


def console_lines(page: Path) -> list[str]:
    """Return the commands of the page's console blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines()]
