"""`pyapp doctor` names each problem and its remedy."""

import io
import json
import re
import shutil
from pathlib import Path

import psycopg
import pytest
from rich.console import Console

from pyapp.devtools.checks.doctor import Level, examine
from pyapp.devtools.migrations.migrator import migrate
from pyapp.errors import MissingExtraError
from pyapp.roles import ROLES
from tests.role_logins import login_name, role_logins
from tests.support import execute, run_cli, unfolded

REPOSITORY = Path(__file__).parents[1]
CHECKS = [
    "files",
    "environment",
    "Stripe",
    "docker-compose.yml",
    "engine",
    "database",
    "server version",
    "migrations",
    "schema",
    "privileges",
]
# A deployment needs no Docker and no embedded server.
DEPLOYED = [name for name in CHECKS if name not in ("docker-compose.yml", "engine")]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a fresh clone, made current, without a database."""
    for name in ("stack.env", "docker-compose.yml", ".env.local.example"):
        shutil.copy(REPOSITORY / name, tmp_path)
    shutil.copy(REPOSITORY / ".env.local.example", tmp_path / ".env.local")
    for name in ("ENVIRONMENT", "NEXT_PUBLIC_ENVIRONMENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://pyapp:pyapp@localhost:1/pyapp")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finding(project: Path, name: str) -> tuple[Level, str]:
    """Return the level and the text of the check *name*."""
    return next((f.level, f.text) for f in examine(project) if f.name == name)


def test_fresh_clone_lacks_only_its_database(project: Path) -> None:
    found = {f.name: f.level for f in examine(project)}

    assert list(found) == CHECKS
    assert found.pop("database") is Level.PROBLEM
    assert set(found.values()) == {Level.OK, Level.WARNING, Level.UNKNOWN}


def test_a_problem_ends_doctor_with_exit_status_1(project: Path) -> None:
    code, out, err = run_cli("doctor")

    assert (code, err) == (1, "")
    lines = [line for line in out.splitlines() if not line.startswith(" ")]
    assert [line.split("  ")[0].strip() for line in lines] == [
        str(f.level) for f in examine(project)
    ]
    assert "start it with: pyapp db start" in unfolded(out)


def test_output_is_wrapped_for_a_terminal(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    terminal = Console(
        file=screen, force_terminal=True, width=80, highlight=False, soft_wrap=True
    )
    monkeypatch.setattr("pyapp.cli.console.console", terminal)

    run_cli("doctor")

    lines = screen.getvalue().splitlines()
    expected = " ".join(f"{f.level} {f.name} {f.text}" for f in examine(project))
    assert " ".join(lines).split() == expected.split()
    assert len(lines) > len(CHECKS)
    # A path may be longer than a line, and then stands alone.
    assert [line for line in lines if len(line) > 80 and " " in line[29:]] == []


def test_readable_env_local_is_a_warning(project: Path) -> None:
    (project / ".env.local").chmod(0o640)
    level, text = finding(project, "files")
    assert (level, text.endswith("chmod 600 .env.local")) == (Level.WARNING, True)

    (project / ".env.local").chmod(0o600)
    assert finding(project, "files")[0] is Level.OK


def test_missing_env_local_names_the_file_to_copy(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / ".env.local").unlink()
    level, text = finding(project, "files")
    assert (level, text.endswith("cp .env.local.example .env.local")) == (
        Level.WARNING,
        True,
    )

    monkeypatch.delenv("DATABASE_URL")
    assert finding(project, "files")[0] is Level.PROBLEM
    level, text = finding(project, "configuration")
    assert (level, "DATABASE_URL is not set" in text) == (Level.PROBLEM, True)


def test_the_two_environments_must_be_equal(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXT_PUBLIC_ENVIRONMENT", "production")

    level, text = finding(project, "environment")

    assert level is Level.PROBLEM
    assert "make them equal" in text


@pytest.mark.parametrize("key", ["sk_live_x", "rk_live_x"])
def test_live_stripe_key_is_a_problem_in_local_only(
    project: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY", key)
    level, text = finding(project, "Stripe")
    assert level is Level.PROBLEM
    assert key not in text

    monkeypatch.setenv("ENVIRONMENT", "production")
    assert finding(project, "Stripe")[0] is not Level.PROBLEM


def test_key_without_a_webhook_secret_is_a_warning(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY", "sk_test_x")
    monkeypatch.delenv("STRIPE_WEBHOOK_SECRET", raising=False)

    assert finding(project, "Stripe")[0] is Level.WARNING


def test_url_is_compared_with_docker_compose_yml(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finding(project, "docker-compose.yml")[0] is Level.WARNING

    monkeypatch.delenv("DATABASE_URL")
    assert finding(project, "docker-compose.yml") == (
        Level.OK,
        "equals DATABASE_URL",
    )


def test_no_docker_and_no_embedded_server_is_a_problem(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finding(project, "engine")[0] is Level.OK

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    level, text = finding(project, "engine")
    assert level is Level.PROBLEM
    assert MissingExtraError("embedded").command in text


@pytest.fixture(scope="module")
def migrated(module_database: str) -> str:
    """Return the URL of a database that the migrations have built."""
    execute(module_database, "DROP SCHEMA app CASCADE")
    migrate(module_database)
    return module_database


@pytest.fixture
def deployed(tmp_path: Path, migrated: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of a database whose environment is production, without files."""
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.delenv("NEXT_PUBLIC_ENVIRONMENT", raising=False)
    monkeypatch.setenv("DATABASE_URL", migrated)
    monkeypatch.chdir(tmp_path)
    return migrated


def test_deployment_needs_no_files_and_no_engine(
    deployed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Docker and the embedded server are not asked for")

    monkeypatch.setattr("pyapp.devtools.checks.doctor.docker", refuse)
    monkeypatch.setattr("pyapp.devtools.server.local.running_kind", refuse)
    found = {f.name: f for f in examine(Path.cwd())}

    assert list(found) == DEPLOYED
    assert found["files"].level is found["environment"].level is Level.OK
    code, out, _ = run_cli("db", "status")
    assert code == 0
    assert out.splitlines()[0].startswith("PostgreSQL ")
    assert "project" not in out


def test_unreachable_deployment_names_no_local_command(
    deployed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://pyapp:pyapp@localhost:1/pyapp")

    code, out, _ = run_cli("doctor")

    assert code == 1
    assert "check the host, the port and the firewall" in unfolded(out)
    assert not re.search("docker|embedded|db start", out, re.IGNORECASE)


def test_answer_as_json_is_one_object(deployed: str) -> None:
    code, out, err = run_cli("doctor", "--json")

    found = json.loads(out)
    assert (code, err, list(found)) == (0, "", ["problems", "findings"])
    assert [one["name"] for one in found["findings"]] == DEPLOYED
    assert {one["level"] for one in found["findings"]} == {"ok"}
    assert all(one["text"] for one in found["findings"])


@pytest.mark.parametrize("role", [*ROLES, None])
def test_each_line_answers_or_names_the_grant(
    deployed: str, monkeypatch: pytest.MonkeyPatch, role: str | None
) -> None:
    with role_logins(deployed) as logins:
        login = logins[role or ROLES[0]]
        name = login_name(login)
        if role is None:
            execute(deployed, f"REVOKE {ROLES[0]} FROM {name}")
        monkeypatch.setenv("DATABASE_URL", login)
        found = {f.name: f for f in examine(Path.cwd())}

        assert list(found) == DEPLOYED
        assert Level.PROBLEM not in {f.level for f in found.values()}
        if role is None:
            tables = "public._yoyo_migration, public.pyapp_migration_checksums"
            grant = f"GRANT SELECT ON {tables} TO {name}"
            assert found["migrations"].text.endswith(grant)
        else:
            assert found["migrations"].level is Level.OK
        assert found["schema"].level is Level.UNKNOWN
        assert role is None or "connect as their owner" in found["schema"].text


GRANTED = {
    "GRANT UPDATE ON app.messages TO pyapp_app": "GRANT UPDATE ON app.messages",
    "GRANT UPDATE (credits) ON app.messages TO pyapp_sync": "GRANT UPDATE (credits)",
    "GRANT pg_write_all_data TO pyapp_readonly": "GRANT pg_write_all_data TO",
    "GRANT DELETE ON app.plans TO PUBLIC": "GRANT DELETE ON app.plans TO PUBLIC;",
    "GRANT EXECUTE ON FUNCTION app.repair_usage_day(uuid, date) TO PUBLIC": (
        "GRANT EXECUTE ON FUNCTION app.repair_usage_day(uuid, date) TO PUBLIC;"
    ),
    "REVOKE SELECT ON app.plans FROM pyapp_app": "GRANT SELECT ON app.plans TO",
    # An operator may take more from PUBLIC, not from the roles.
    "REVOKE EXECUTE ON FUNCTION app.add_months(timestamptz, integer)"
    " FROM PUBLIC, pyapp_app": (
        "GRANT EXECUTE ON FUNCTION app.add_months(timestamp with time zone, integer) TO"
        " pyapp_app;"
    ),
}


def test_privileges_of_the_roles_are_compared_with_the_file(deployed: str) -> None:
    """All changes in one comparison."""
    with role_logins(deployed):
        execute(deployed, *GRANTED)
        level, text = finding(Path.cwd(), "privileges")
        code, out, _ = run_cli("db", "check")
        execute(
            deployed,
            "REVOKE pg_write_all_data FROM pyapp_readonly",
            "REVOKE DELETE ON app.plans FROM PUBLIC",
            "GRANT EXECUTE ON FUNCTION app.add_months(timestamptz, integer) TO PUBLIC",
        )

    expected = [*GRANTED.values()]
    assert (level, code) == (Level.PROBLEM, 1)
    assert f"differ from sql/roles.sql: {len(expected)};" in text
    assert [line for line in expected if line not in unfolded(out)] == []
    assert "add_months(timestamp with time zone, integer) PUBLIC" not in out


def test_old_server_is_a_problem(
    deployed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path.cwd()
    assert finding(root, "database")[0] is Level.OK
    assert finding(root, "server version")[0] is Level.OK

    monkeypatch.setattr("pyapp.devtools.checks.doctor.OLDEST", 99)
    assert finding(root, "server version")[0] is Level.PROBLEM


def test_pending_migrations_and_drift_are_problems(
    project: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    level, text = finding(project, "migrations")
    assert (level, text.endswith("run: pyapp db migrate")) == (Level.PROBLEM, True)

    migrate(empty_database)
    with psycopg.connect(empty_database) as conn:
        conn.execute("CREATE INDEX planted ON app.users (name)")

    found = {f.name: (f.level, f.text) for f in examine(project)}
    assert found["migrations"][0] is Level.OK
    assert found["schema"] == (
        Level.PROBLEM,
        "objects that differ: 1; see them with: pyapp db check",
    )
