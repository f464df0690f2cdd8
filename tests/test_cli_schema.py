"""The commands of `pyapp db` that change or compare the schema."""

import io
import json
import shutil
from pathlib import Path

import psycopg
import pytest

from pyapp import cli
from pyapp import payloads as maintenance
from pyapp._core.database_url import redact_url
from pyapp._core.queries import migrations_dir
from pyapp.cli import schema
from pyapp.devtools.migrations import files
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate
from pyapp.errors import MaintenanceError
from pyapp.payloads import create_payload_partitions, retire_payloads
from tests.support import execute, run_cli, states, unfolded


@pytest.fixture
def url(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the configured DATABASE_URL of an empty local database."""
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.setenv("ENVIRONMENT", "local")
    return empty_database


def run(*arguments: str) -> int:
    """Return the exit status of `pyapp db ...`."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["db", *arguments])
    return int(caught.value.code or 0)


def partitions(url: str) -> list[str]:
    with psycopg.connect(url) as conn:
        rows = conn.execute(
            "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'app.message_payloads'::regclass"
            " AND c.relname ~ '[0-9]{6}$' ORDER BY 1"
        )
        return [name for (name,) in rows]


def test_migrate_names_the_migration_that_loses_grants(
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a new database no role has privileges, so that none are lost."""
    folder = shutil.copytree(migrations_dir(), tmp_path / "migrations")
    monkeypatch.setattr(files, "migrations_dir", lambda: folder)
    assert run("migrate") == 0
    assert "grants" not in capsys.readouterr().out
    execute(url, "GRANT SELECT ON app.referral_drift TO pg_monitor")
    text = "-- Why.\n-- Run pyapp db roles right after it: grants are lost.\n\n"
    for suffix in (".sql", ".rollback.sql"):
        (folder / f"0999_recreate_views{suffix}").write_text(
            text + "SET LOCAL jit = off;\n", encoding="ascii"
        )
    assert run("migrate") == 0
    assert capsys.readouterr().out == (
        "Applying 0999_recreate_views\n"
        "  It drops functions or views with their grants: run pyapp db roles next\n"
    )


def test_migrate_twice_then_check(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("migrate") == 0
    assert "Applying 0001_create_schema\n" in capsys.readouterr().out
    assert len(partitions(url)) == 3
    assert run("migrate") == 0
    assert capsys.readouterr().out == "Nothing to apply: the schema is up to date\n"
    assert run("check") == 0
    assert "are equal" in capsys.readouterr().out
    execute(url, "CREATE INDEX planted_idx ON app.users (name)")
    assert run("check") == 1
    captured = capsys.readouterr()
    assert "CREATE INDEX planted_idx ON app.users USING btree (name);" in captured.out
    assert captured.err == "error: the schemas are not equal: 1 difference\n"


def test_rollback_shows_the_loss_and_asks(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate(url, count=1)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run("rollback") == 1
    output = capsys.readouterr().out
    name = redact_url(url)
    assert output.startswith(
        f"To be rolled back at {name}:\n0001_create_schema\n  Loses the plans"
    )
    assert f"Roll back at {name}, with that loss?" in unfolded(output)
    assert "Nothing is rolled back" in output
    assert run("rollback", "--all", "--yes") == 0
    assert "Rolling back 0001_create_schema\n" in capsys.readouterr().out
    assert run("rollback") == 0
    assert capsys.readouterr().out == f"Nothing is applied at {name}\n"


def test_rollback_describes_each_loss_in_80_columns(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate(url)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert run("rollback", "--all") == 1
    shown = capsys.readouterr().out.partition("Roll back at")[0].splitlines()[1:]
    names, losses = shown[::2], shown[1::2]
    assert names == [file.name for file in reversed(read_migrations())]
    assert [loss for loss in losses if len(loss) < 10 or len(loss) > 80] == []


def test_rollback_outside_local_needs_the_database_name(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(url, count=1)
    monkeypatch.setenv("ENVIRONMENT", "production")
    name = url.rpartition("/")[2]
    needed = (
        "error: ENVIRONMENT is production: outside local, give --yes --confirm"
        " DATABASE, with the name of the database\n"
    )
    for words in ([], ["--yes"], ["--confirm", name], ["--json", "--yes"]):
        code, out, err = run_cli("db", "rollback", *words, answer="y\n")
        assert (code, err) == (1, needed)
        assert out == "" if "--json" in words else "0001_create_schema" in out
    other = run_cli("db", "rollback", "--yes", "--confirm", "another")
    assert other == (
        1,
        "",
        f"error: --confirm names another, and this is {redact_url(url)}\n",
    )
    assert states(url)["0001_create_schema"] == "applied"

    code, out, _ = run_cli("db", "rollback", "--yes", "--confirm", name)

    assert (code, out.splitlines()[-1]) == (0, "Rolling back 0001_create_schema")


def test_question_of_a_rollback_follows_the_loss(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "migrations_dir", lambda: tmp_path)
    questions = {
        "-- Loses every page.\n": "?, with that loss? [y/N]: ",
        "-- Loses nothing; a check is replaced.\n": "?? No data is lost. [y/N]: ",
        "": "?, with a loss that is not known? [y/N]: ",
    }
    for number, comment in enumerate(questions, 1):
        path = tmp_path / f"{number:04}_do_nothing.sql"
        path.write_text("-- Why.\nCREATE SCHEMA IF NOT EXISTS app;\nSELECT 1;\n")
        path.with_suffix(".rollback.sql").write_text(f"{comment}SELECT 1;\n")
    monkeypatch.setattr(schema, "create_payload_partitions", lambda _: 0)
    assert len(run_cli("db", "migrate")[1].splitlines()) == len(questions)

    for question in reversed(questions.values()):
        expected = question.replace("?", f"Roll back at {redact_url(url)}", 1)
        out = run_cli("db", "rollback", answer="y\n")[1]
        assert expected in unfolded(out)


def test_migrate_and_rollback_print_json(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines(*arguments: str) -> list[dict[str, object]]:
        code, out, err = run_cli("db", *arguments, "--json")
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    names = [file.name for file in read_migrations()]
    assert lines("migrate") == [
        *(
            {"migration": name, "state": "applied", "loses_grants": False}
            for name in names
        ),
        {"payload_partitions_created": 3},
    ]
    assert lines("migrate") == [{"payload_partitions_created": 0}]
    code, out, err = run_cli("db", "rollback", "--json", answer="y\n")
    assert (code, out) == (1, "")
    assert err == "error: --json asks no question: give --yes to roll back\n"
    assert lines("rollback", "-n", "2", "--yes") == [
        {"migration": name, "state": "rolled_back"} for name in names[:-3:-1]
    ]


@pytest.mark.parametrize(
    "command", ["migrate", "rollback", "check", "generate x", "maintain"]
)
def test_command_without_a_database_names_db_start(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*command.split()) == 1
    error = capsys.readouterr().err
    assert error.endswith("start it with: pyapp db start\n")
    assert error.count("\n") == 1


def test_maintain_creates_and_retires_partitions(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate(url)
    execute(url, "SELECT app.create_payload_partitions('2024-01-15', 2)")
    assert run("maintain", "--keep-months", "2") == 0
    assert (
        "Payload partitions dropped: message_payloads_202401, message_payloads_202402"
    ) in capsys.readouterr().out
    assert len(partitions(url)) == 3


def test_keep_months_keeps_whole_months(url: str) -> None:
    migrate(url)
    with psycopg.connect(url) as conn:
        conn.execute(
            "SELECT app.create_payload_partitions("
            "(now() AT TIME ZONE 'UTC' - interval '3 months')::date, 4)"
        )
    assert retire_payloads(url, keep_months=2) == [_month_ago(url, 3)]
    assert partitions(url)[0] == _month_ago(url, 2)


def _month_ago(url: str, months: int) -> str:
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT to_char(date_trunc('month', now() AT TIME ZONE 'UTC')"
            " - make_interval(months => %s), '\"message_payloads_\"YYYYMM')",
            [months],
        ).fetchone()
    assert row
    return str(row[0])


def test_maintenance_reports_a_table_that_stays_locked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(url)
    monkeypatch.setattr(maintenance, "ATTEMPTS", 1)
    with psycopg.connect(url) as holder:
        holder.execute("LOCK TABLE app.message_payloads_default IN SHARE MODE")
        with pytest.raises(MaintenanceError, match="other sessions kept"):
            create_payload_partitions(url)
    assert create_payload_partitions(url) == 3
