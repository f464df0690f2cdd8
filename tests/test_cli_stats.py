"""`pyapp stats`: a page for a person, or JSON for a monitor."""

import json
import re
from pathlib import Path

import psycopg
import pytest

from pyapp import payloads as maintenance
from pyapp.cli import stats as command
from pyapp.cli import stats_sections as sections
from pyapp.messages import record_messages
from tests.metering import add_user, new_message
from tests.support import run_cli

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
KEYS = {
    "at": None,
    "unanswered": None,
    "refused": None,
    "remedy": None,
    "messages": "minute_messages minute_credits hour_messages hour_credits",
    "users": "users subscribed blocked",
    "events": "failed oldest_failed_at hour_received last_received_at",
    "reconcile": "id started_at finished_at outcome counts last_error differences"
    " repaired last_completed_at",
    "replay": None,
    "payloads": "partitions months_ahead oldest_month has_default_rows"
    " has_waiting_table estimated_waiting has_retired_table",
    "server": "connections max_connections waiting oldest_transaction_at started_at"
    " counted_since",
    "tables": "name estimated_rows table_bytes index_bytes",
    "unused_indexes": "name bytes",
}


@pytest.fixture
def conn(committing: psycopg.Connection) -> psycopg.Connection:
    return committing


def shown(*arguments: str) -> list[str]:
    code, out, err = run_cli("stats", *arguments)

    assert (code, err) == (0, "")
    return out.splitlines()


def add_a_bad_day(conn: psycopg.Connection) -> None:
    """Add a blocked user, a failed event, a failed run and a payload without partition.

    The server's counters are flushed, so that they count the payload at once.
    """
    user_id = add_user(conn, base_quota=1)
    record_messages(conn, [new_message(request=["x"])], user_id=user_id)
    conn.execute(
        "INSERT INTO app.stripe_events (id, type, event_created_at, received_at,"
        " payload, status, last_error) VALUES ('evt_1', 'x', now() - interval '3 days',"
        " now() - interval '3 minutes', '{}', 'failed', 'why')"
    )
    conn.execute(
        "INSERT INTO app.stripe_sync_runs (kind, outcome, finished_at, last_error,"
        " counts) VALUES ('reconcile', 'failed', now() - interval '4 hours', %s, %s)",
        ["\x1b[2J" + "no answer " * 20, '{"status": 3, "status repaired": 2}'],
    )
    conn.execute(
        "INSERT INTO app.stripe_sync_runs (kind, started_at)"
        " VALUES ('replay', now() - interval '3 minutes')"
    )
    conn.execute("SELECT pg_stat_force_next_flush()")


def test_page_of_an_empty_database_fits_80_columns(conn: psycopg.Connection):
    lines = shown()

    assert lines[:7] == [
        "messages a minute    0 in the last minute, 0.00 over the last hour",
        "credits a minute     0.00 in the last minute, 0.00 over the last hour",
        "users                0: 0 subscribed, 0 blocked",
        "Stripe events        0 failed",
        "                     0 in the last hour; none received yet",
        "last reconciliation  never",
        "last replay          never",
    ]
    assert "no unused index of 1 MB or more" in "\n".join(lines)
    assert max(map(len, lines)) <= 80


def test_page_of_a_bad_day_fits_80_columns(conn: psycopg.Connection):
    add_a_bad_day(conn)

    lines = shown()

    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    for line in (
        "messages a minute    1 in the last minute, 0.02 over the last hour",
        "users                1: 0 subscribed, 1 blocked",
        "Stripe events        1 failed, the oldest from 3 days ago",
        "                     1 in the last hour; the latest 3 minutes ago",
        "last reconciliation  failed 4 hours ago: 3 differences, 2 repaired",
        "                     last completed: never",
        "last replay          running, started 3 minutes ago: 0 events, 0 failed",
        "payload partitions   none for this month; run: pyapp db maintain",
        "                     about 1 payloads without a partition: pyapp db maintain",
    ):
        assert line in lines


def test_payloads_detached_by_a_killed_run_are_reported(
    database: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    messages = [new_message(request=["x"]) for _ in range(4)]
    record_messages(conn, messages, user_id=add_user(conn))
    conn.execute("SELECT pg_stat_force_next_flush()")
    monkeypatch.setattr(maintenance, "MOST_UNDER_LOCK", 3)
    monkeypatch.delattr(maintenance, "_move_waiting")
    with pytest.raises(NameError):
        maintenance.create_payload_partitions(database)

    assert shown()[8:10] == [
        "                     about 4 payloads without a partition: pyapp db maintain",
        "                     some are in app.waiting_payloads, invisible to queries",
    ]


def test_json_has_the_promised_keys_and_plain_numbers(conn: psycopg.Connection):
    add_a_bad_day(conn)

    (line,) = shown("--json")
    found = json.loads(line)

    for section, names in KEYS.items():
        value = found.pop(section)
        first = value[0] if names and isinstance(value, list) else value
        assert names is None or list(first) == names.split()
        if section == "messages":
            assert value == {
                "minute_messages": 1,
                "minute_credits": 1.0,
                "hour_messages": 1,
                "hour_credits": 1.0,
            }
        if section == "payloads":
            assert (value["has_default_rows"], value["estimated_waiting"]) == (True, 1)
        if section == "reconcile":
            assert (value["differences"], value["repaired"]) == (3, 2)
            assert value["finished_at"].endswith("+00:00")
    assert found == {}


def test_section_that_takes_too_long_is_left_out_and_named(
    conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    """A session that locks a table delays neither the page nor a monitor."""
    monkeypatch.setattr(sections, "MILLISECONDS", 20)
    with conn.transaction():
        conn.execute("LOCK TABLE app.users, app.sessions IN ACCESS EXCLUSIVE MODE")
        (line,) = shown("--json")
        lines = shown()

    found = json.loads(line)
    assert found["users"] is None
    assert found["tables"] is None
    # A busy machine can leave other sections unanswered, too.
    assert {"users", "tables"} <= set(found["unanswered"]) < set(sections.QUESTIONS)
    assert f"users                {command.LATE}" in lines


def test_stats_neither_waits_for_locks_nor_keeps_any(conn: psycopg.Connection):
    """A writer's open transaction delays nothing; no lock outlives its query."""
    with conn.transaction():
        add_user(conn)
        assert any("0 subscribed" in line for line in shown())
        conn.execute("SET LOCAL lock_timeout = '1s'")
        conn.execute("LOCK TABLE app.users IN ACCESS EXCLUSIVE MODE")


def test_a_missing_schema_names_the_command_to_run(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", empty_database)

    code, out, err = run_cli("stats")

    assert (code, out) == (1, "")
    assert err.endswith("run: pyapp db migrate\n")


def test_promised_keys_are_documented():
    text = PAGE.read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_]+)`", text.partition("For a monitor")[2]))

    keys = {name for names in KEYS.values() if names for name in names.split()}
    assert KEYS.keys() | keys <= documented
