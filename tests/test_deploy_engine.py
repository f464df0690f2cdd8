"""deploy/Dockerfile and deploy/compose.yml with a real Docker engine.

`.ci/docker-engine` brings the engine up. `docker build` runs the Dockerfile as it is,
on an image made of this machine's Python. `docker compose` starts the services next to
a database and a fake Stripe. promtool, which comes with the engine, evaluates the
alert rules.
"""

import contextlib
import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import yaml

from tests.deploy_files import DEPLOY
from tests.fake_stripe import TEST_KEY, TEST_SECRET, FakeStripe, sign
from tests.python_image import build_python_image
from tests.serving import PATH
from tests.stripe_world import make_customer, make_event
from tests.support import run_cli
from tests.temp_server import free_port

ROOT = Path(__file__).parents[1]
IMAGE = "pyapp-metering:test"
# By address, because the engine of `.ci/docker-engine` resolves no names.
GATEWAY, DATABASE = "172.31.97.1", "172.31.97.10"
ADDED = """\
services:
  db:
    image: postgres:18
    environment: {{POSTGRES_USER: me, POSTGRES_PASSWORD: secret, POSTGRES_DB: mine}}
    ports: ["127.0.0.1:{port}:5432"]
    networks: {{default: {{ipv4_address: {database}}}}}
    healthcheck:
      test: [CMD, pg_isready, -h, 127.0.0.1]
      interval: 1s
      retries: 60
  migrate:
    depends_on: {{db: {{condition: service_healthy}}}}
networks:
  default:
    ipam: {{config: [{{subnet: 172.31.97.0/24, gateway: {gateway}}}]}}
"""
LOGINS = (
    "CREATE ROLE server LOGIN PASSWORD 'secret' IN ROLE pyapp_sync",
    "CREATE ROLE stats LOGIN PASSWORD 'secret'"
    " IN ROLE pyapp_readonly, pg_read_all_stats",
)


@dataclass(frozen=True)
class Project:
    """A Compose project: its command, the port of its server, and its database."""

    compose: list[str]
    port: int
    url: str

    def run(self, *words: str) -> str:
        run = subprocess.run(
            [*self.compose, *words], capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def ask(self, service: str, code: str) -> str:
        """Return the output of Python *code* in the container of *service*."""
        return self.run("exec", "-T", service, "python", "-c", code)

    def get(self, path: str, body: bytes | None = None) -> int:
        """Return the status of a request, signed if it has a body; 0 for none."""
        headers = {"Stripe-Signature": sign(body, [TEST_SECRET])} if body else {}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as exc:
            return exc.code
        except OSError:
            return 0


class Stripe(FakeStripe):
    """A fake Stripe that containers can reach."""

    def __init__(self) -> None:
        super().__init__(seed=1)
        self.start("0.0.0.0")

    def close(self) -> None:
        self.stop()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the image, from a context that contains a secret."""
    base = "python:of-this-machine"
    wheels = Path(os.environ["PYAPP_WHEELS"])
    build_python_image(base, wheels, tmp_path_factory.mktemp("python"))
    context = tmp_path_factory.mktemp("context")
    archive = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout
    for name in filter(None, archive.decode().split("\0")):
        if (ROOT / name).is_file():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            (context / name).write_bytes((ROOT / name).read_bytes())
    (context / ".env.local").write_text("STRIPE_SECRET_KEY=sk_test_hidden\n")
    (context / "pyapp" / "__pycache__").mkdir(exist_ok=True)
    command = ["docker", "build", "--network", "host", "--tag", IMAGE]
    command += ["--build-arg", f"PYTHON={base}", "-f", "deploy/Dockerfile", "."]
    run = subprocess.run(
        command,
        cwd=context,
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return IMAGE


@pytest.fixture
def project(image: str, tmp_path: Path) -> Iterator[Project]:
    """Return the project with its schema and logins, before the first `up`."""
    port, database = free_port(), free_port()
    added = tmp_path / "added.yml"
    added.write_text(ADDED.format(port=database, gateway=GATEWAY, database=DATABASE))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.closing(Stripe()) as fake,
    ):
        patch.setenv("DOCKER_CONFIG", os.environ["COMPOSE_2"])
        patch.setenv("PYAPP_IMAGE", image)
        patch.setenv("PYAPP_CONFIG", str(tmp_path))
        patch.setenv("PYAPP_LISTEN", f"127.0.0.1:{port}")
        base = f"http://{GATEWAY}:{fake.base_url.rpartition(':')[2]}"
        write_variables(tmp_path, base)
        files = ["-f", str(DEPLOY / "compose.yml"), "-f", str(added)]
        project = Project(
            ["docker", "compose", *files],
            port,
            f"postgresql://me:secret@127.0.0.1:{database}/mine",
        )
        try:
            yield project
        finally:
            subprocess.run(
                [*project.compose, "down", "--volumes", "--timeout", "5"],
                check=True,
                capture_output=True,
            )


def write_variables(folder: Path, stripe: str) -> None:
    secrets = (
        f"STRIPE_API_BASE={stripe}\nSTRIPE_SECRET_KEY={TEST_KEY}\n"
        f"STRIPE_WEBHOOK_SECRET={TEST_SECRET}\n"
    )
    for name, login, rest in (
        ("owner", "me", ""),
        ("sync", "server", secrets),
        ("stats", "stats", ""),
    ):
        url = f"postgresql://{login}:secret@{DATABASE}/mine"
        (folder / f"{name}.env").write_text(f"DATABASE_URL={url}\n{rest}")


def test_services_work_together_and_stop_in_time(project: Project):
    """One test, because two processes of tests would build the image twice."""
    assert_image_has_no_secret(IMAGE)
    project.run("run", "--rm", "roles")
    with psycopg.connect(project.url, autocommit=True) as conn:
        for statement in LOGINS:
            conn.execute(statement)
        project.run("up", "--detach")
        wait_until(lambda: project.get("/healthz") == 200)
        body = make_event("customer.created", make_customer("cus_1"))

        assert project.get(PATH, body) == 200
        assert project.get("/metrics") == 404
        runs = "SELECT count(*) FROM app.stripe_sync_runs WHERE outcome = 'completed'"
        wait_until(lambda: conn.execute(runs).fetchone() == (1,))
        month = "SELECT to_regclass(format('app.message_payloads_%s', '{}'))"
        name = time.strftime("%Y%m", time.gmtime())
        wait_until(
            lambda: conn.execute(month.format(name).encode()).fetchone() != (None,)
        )
    project.ask("server", healthcheck_of(IMAGE))
    events = project.run(
        "exec", "-T", "server", *["pyapp", "stripe", "events", "--failed"]
    )
    assert events == "there are no failed events\n"
    for service, port, sample in (
        ("server", 9464, 'pyapp_webhook_deliveries_total{result="applied"} 1.0'),
        ("stats", 9465, "pyapp_database_up 1.0"),
    ):
        url = f"http://127.0.0.1:{port}/metrics"
        code = f"import urllib.request as r; print(r.urlopen('{url}').read().decode())"
        assert sample in project.ask(service, code)

    assert_failed_release_keeps_server(project)
    began = time.monotonic()
    project.run("stop")
    assert time.monotonic() - began < 20
    assert exit_codes(project) == {
        "server": 0,
        "stats": 0,
        # Stopped by SIGTERM.
        "reconcile": 143,
        "maintain": 143,
        "migrate": 0,
        "roles": 0,
    }


def assert_image_has_no_secret(image: str) -> None:
    """Look into the image: its user, its environment, no .env file and no pip."""
    code = (
        "import os, getpass, pathlib, importlib.util as u;"
        "print(os.getuid(), getpass.getuser(), os.environ['ENVIRONMENT'],"
        " [str(p) for p in pathlib.Path('/').rglob('.env*')], u.find_spec('pip'))"
    )
    command = ["docker", "run", "--rm", "--network", "none", "--read-only"]
    run = subprocess.run(
        [*command, "--entrypoint", "python", image, "-c", code],
        capture_output=True,
        text=True,
    )

    assert run.stdout == "10001 pyapp production [] None\n", run.stderr


def assert_failed_release_keeps_server(project: Project) -> None:
    """Let the migration of a release fail, by the password of its login."""
    owner = Path(os.environ["PYAPP_CONFIG"]) / "owner.env"
    variables = owner.read_text()
    owner.write_text(variables.replace("secret", "wrong"))
    command = [*project.compose, "run", "--rm", "roles"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode != 0, run.stdout
    assert project.get("/healthz") == 200
    owner.write_text(variables)
    project.run("run", "--rm", "roles")


def wait_until(happens: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def healthcheck_of(image: str) -> str:
    """Return the Python code of the image's healthcheck."""
    run = subprocess.run(
        ["docker", "image", "inspect", image], capture_output=True, check=True
    )
    (found,) = json.loads(run.stdout)
    *_, option, code = found["Config"]["Healthcheck"]["Test"]
    assert option == "-c"
    return str(code)


def exit_codes(project: Project) -> dict[str, int]:
    """Return the exit status of each container but the database's."""
    lines = project.run("ps", "--all", "--format", "json").splitlines()
    found = {one["Service"]: one["ExitCode"] for one in map(json.loads, lines)}
    del found["db"]
    return found


def test_every_alert_fires_for_its_condition_alone(tmp_path: Path):
    """promtool evaluates the rules over 26 hours of good and of bad figures."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    names = [rule["alert"] for rule in rules["groups"][0]["rules"]]
    figures = yaml.safe_load((ROOT / "tests" / "data" / "alerts.yml").read_text())
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    tests = [
        {
            "interval": "1m",
            "name": kind,
            "input_series": [
                {"series": series, "values": values[kind]}
                for series, values in figures.items()
            ],
            "promql_expr_test": [
                {
                    "expr": firing,
                    "eval_time": "26h",
                    "exp_samples": [
                        {"labels": f'{{alertname="{name}"}}', "value": 1}
                        for name in expected
                    ],
                }
            ],
        }
        for kind, expected in (("good", []), ("bad", names))
    ]
    file = tmp_path / "tests.yml"
    rule_files = [str(DEPLOY / "prometheus" / "alerts.yml")]
    file.write_text(
        yaml.safe_dump(
            {"rule_files": rule_files, "evaluation_interval": "1m", "tests": tests}
        )
    )

    assert_passes("promtool", "test", "rules", str(file))
    configuration = DEPLOY / "prometheus" / "prometheus.yml"
    assert_passes("promtool", "check", "config", str(configuration))


def test_metrics_of_stats_pass_promtool(committing: psycopg.Connection):
    code, out, _ = run_cli("stats", "--prometheus")

    assert code == 0
    assert_passes("promtool", "check", "metrics", text=out)


def assert_passes(*command: str, text: str = "") -> None:
    run = subprocess.run(command, input=text, capture_output=True, text=True)

    assert run.returncode == 0, run.stdout + run.stderr
