"""The commands log one record a line, without secrets, and only if configured."""

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import stripe

import pyapp
from pyapp._core.connection import connect
from pyapp.cli.logs import start_logging
from pyapp.users import create_user
from tests.support import restored_logging, run_cli
from tests.usage_import import calls, write_log

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    with restored_logging():
        yield


@pytest.fixture
def url(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATABASE_URL", empty_database)
    return empty_database


def records(err: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in err.splitlines()]


def test_each_unit_of_work_is_one_json_record(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("PYAPP_LOG", "json")
    log = write_log(tmp_path / "ada.jsonl", *calls(3))

    code, _, err = run_cli("db", "migrate")
    migrated = records(err)
    assert code == 0
    with connect(url) as conn:
        create_user(conn, email="ada@example.com")
    maintained = records(run_cli("db", "maintain")[2])
    imported = records(
        run_cli("import", "usage", str(log), "--user=ada@example.com")[2]
    )
    rolled_back = records(run_cli("db", "rollback", "--yes")[2])

    first, *_, last = migrated
    assert first["logger"] == "pyapp.migrations"
    assert first["message"] == "migration applied"
    assert first["migration"] == "0001_create_schema"
    assert isinstance(first["seconds"], float)
    assert str(first["at"]).endswith("+00:00")
    assert (last["logger"], last["message"]) == ("pyapp.maintenance", "month prepared")
    assert [(r["logger"], r["message"], r["count"]) for r in maintained] == [
        ("pyapp.sessions", "expired sessions deleted", 0),
        ("pyapp.maintenance", "usage days cut", 0),
        ("pyapp.maintenance", "usage rows folded", 0),
    ]
    (record,) = imported
    counts = {"recorded": 3, "duplicates": 0, "broken": 0}
    assert {name: record[name] for name in counts} == counts
    assert (record["logger"], record["message"]) == ("pyapp.imports", "usage imported")
    assert "ada" not in json.dumps(imported)
    assert [r["message"] for r in rolled_back] == ["migration rolled back"]


@pytest.mark.parametrize("form", ["text", ""])
def test_text_log_is_optional_and_has_fields_after_the_message(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PYAPP_LOG", form)
    logging.getLogger().handlers.clear()
    start_logging()
    fields = {"migration": "0001_create_schema", "seconds": 0.5}
    logging.getLogger("pyapp.migrations").info("migration applied", extra=fields)

    lines = capsys.readouterr().err.splitlines()

    expected = "INFO migration applied migration=0001_create_schema seconds=0.5"
    assert [line.split(" ", 1)[1] for line in lines] == ([expected] if form else [])


def test_failure_is_a_json_record_where_the_log_is_json(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("PYAPP_LOG", "json")
    monkeypatch.setenv("DATABASE_URL", "postgresql://ada:secret@localhost:1/none")

    code, _, err = run_cli("quota", "--all")

    (record,) = records(err)
    assert code == 1
    assert record["level"] == "ERROR"
    assert str(record["error"]).startswith(
        "no database at postgresql://ada@localhost:1"
    )
    assert "secret" not in err


def test_unknown_format_is_refused_where_configuration_is_read(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("PYAPP_LOG", "xml")

    error = "error: PYAPP_LOG is 'xml'; it must be text or json\n"
    assert run_cli("quota", "--all") == (1, "", error)
    assert run_cli("--version")[0] == 0


@pytest.mark.parametrize("form", ["text", "json"])
def test_record_has_no_control_characters_and_no_error_text(
    form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The text of a database error can contain a row, and so an e-mail address."""
    monkeypatch.setenv("PYAPP_LOG", form)
    start_logging()
    log = logging.getLogger("pyapp.stripe")
    try:
        raise psycopg.errors.CheckViolation("Failing row contains (ada@example.com)")
    except psycopg.Error:
        log.exception("refused", extra={"event_type": "a\x1b[2J\nINFO forged"})

    err = capsys.readouterr().err

    assert err.count("\n") == 1
    assert "\x1b" not in err
    assert "ada@" not in err
    assert "CheckViolation" in err
    assert "test_cli_logs.py:" in err


def test_other_libraries_log_warnings_only_and_no_fields(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("PYAPP_LOG", "json")
    start_logging()
    stripe_log = logging.getLogger(stripe.__name__)
    stripe_log.info("request", extra={"body": "card 4242"})
    stripe_log.warning("slow", extra={"body": "card 4242"})

    (record,) = records(capsys.readouterr().err)

    assert set(record) == {"at", "level", "logger", "message"}


def test_imported_package_leaves_logging_to_the_program():
    handlers = logging.getLogger(pyapp.__name__).handlers

    assert any(isinstance(handler, logging.NullHandler) for handler in handlers)


@pytest.mark.parametrize("column", [0, 2])
def test_loggers_and_fields_are_documented(column: int):
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    sources = "".join(
        path.read_text(encoding="utf-8") for path in ROOT.glob("pyapp/**/*.py")
    )
    rows = text.partition("| Logger |")[2].partition("\n\n")[0].splitlines()[2:]
    for row in rows:
        cell = row.strip("|").split("|")[column]
        for name in re.findall(r"`([a-z_.]+)`", cell):
            assert f'"{name}"' in sources, name
