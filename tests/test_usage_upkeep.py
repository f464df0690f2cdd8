"""`pyapp db maintain` cuts and folds the sums of past days, and waits for no writer."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest

from pyapp import usage_upkeep
from pyapp._core.connection import connect
from pyapp.usage_upkeep import Upkeep, cut_usage_days, fold_usage_rows
from tests.metering import (
    add_fingerprint,
    add_months,
    add_user,
    new_message,
    record_one,
    usage_differences,
)
from tests.stripe_world import held
from tests.support import run_cli
from tests.test_data_check import run_without_triggers

TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
NOON = TODAY - timedelta(hours=12)
LOCK_ROW = "SELECT FROM app.usage_slots WHERE subject_id = %s AND slot = %s FOR UPDATE"


@pytest.fixture(scope="module")
def shared(module_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Return an autocommit connection to a database that all tests share."""
    with connect(module_database) as conn:
        conn.autocommit = True
        yield conn


@pytest.fixture
def url(
    shared: psycopg.Connection[Any],
    module_database: str,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Return the URL of the database, without sums; commands use it."""
    run_without_triggers(shared, "DELETE FROM app.usage_slots")
    run_without_triggers(shared, "DELETE FROM app.messages")
    monkeypatch.setattr(usage_upkeep, "PAUSE", 0)
    monkeypatch.setattr(usage_upkeep, "LOCK_WAIT_MS", 20)
    monkeypatch.setenv("DATABASE_URL", module_database)
    return module_database


def add_uncut(conn: psycopg.Connection[Any], *, is_user: bool = True) -> UUID:
    """Add a payer with messages around noon of yesterday, and move its anchor there."""
    period = {"quota_anchor": NOON, "next_quota_reset": add_months(NOON, 1)}
    add = add_user if is_user else add_fingerprint
    payer = add(conn, quota_anchor=NOON - timedelta(days=40))
    name = "user_id" if is_user else "fingerprint_id"
    for hours in (-3, -2, 2):
        moment = NOON + timedelta(hours=hours)
        record_one(conn, new_message(**{name: payer}, finished_at=moment))
    table = "users" if is_user else "fingerprints"
    conn.execute(
        f"UPDATE app.{table} SET quota_anchor = %(quota_anchor)s,"
        " next_quota_reset = %(next_quota_reset)s WHERE id = %(payer)s",
        {**period, "payer": payer},
    )
    return payer


# Divides each of a payer's rows by the number of its messages.
SPLIT = """
WITH one AS (
    DELETE FROM app.usage_slots WHERE subject_id = '{payer}' RETURNING *
)

INSERT INTO app.usage_slots (
    subject_id, starts_at, ends_at, slot, messages, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost, credits
)
SELECT
    o.subject_id, o.starts_at, o.ends_at, n - 1, 1, o.input_tokens / o.messages,
    o.cache_creation_input_tokens / o.messages, o.cache_read_input_tokens / o.messages,
    o.output_tokens / o.messages, o.cost / o.messages, o.credits / o.messages
FROM one AS o
CROSS JOIN generate_series(1, o.messages) AS n
"""


def add_unfolded(conn: psycopg.Connection[Any], rows: int = 3) -> UUID:
    """Add a payer whose writers used this number of rows of yesterday at once."""
    payer = add_user(conn, quota_anchor=NOON - timedelta(days=40))
    for _ in range(rows):
        record_one(conn, new_message(user_id=payer, finished_at=NOON))
    run_without_triggers(conn, SPLIT.format(payer=payer))
    return payer


def rows_of(conn: psycopg.Connection[Any], payer: UUID) -> list[int]:
    """Return the numbers of messages of the payer's rows, by span and slot."""
    rows = conn.execute(
        "SELECT messages::integer FROM app.usage_slots WHERE subject_id = %s"
        " ORDER BY starts_at, ends_at, slot",
        [payer],
    )
    return [messages for (messages,) in rows]


def test_sums_across_a_boundary_are_cut(shared: psycopg.Connection[Any], url: str):
    payers = [add_uncut(shared), add_uncut(shared, is_user=False)]
    assert [rows_of(shared, payer) for payer in payers] == [[3], [3]]

    assert cut_usage_days(url) == Upkeep(2, 0)
    assert cut_usage_days(url) == Upkeep(0, 0)

    assert [rows_of(shared, payer) for payer in payers] == [[2, 1], [2, 1]]
    assert usage_differences(shared) == []


def test_locked_day_is_left_to_the_next_run(shared: psycopg.Connection[Any], url: str):
    locked, free = add_uncut(shared), add_uncut(shared)

    with held(url, LOCK_ROW, locked, 0):
        assert cut_usage_days(url) == Upkeep(1, 1)
    assert [rows_of(shared, payer) for payer in (locked, free)] == [[3], [2, 1]]

    assert cut_usage_days(url) == Upkeep(1, 0)


def test_day_that_becomes_free_is_cut_by_the_next_attempt(
    shared: psycopg.Connection[Any], url: str, monkeypatch: pytest.MonkeyPatch
):
    payer = add_uncut(shared)

    with held(url, LOCK_ROW, payer, 0) as holder:
        monkeypatch.setattr("time.sleep", lambda _: holder.rollback())
        assert cut_usage_days(url) == Upkeep(1, 0)

    assert rows_of(shared, payer) == [2, 1]


def test_day_that_another_session_cuts_is_not_left(
    shared: psycopg.Connection[Any], url: str, monkeypatch: pytest.MonkeyPatch
):
    payer = add_uncut(shared)

    def cut_elsewhere(*_: Any) -> bool:
        shared.execute("SELECT app.cut_usage(%s)", [payer])
        return False

    monkeypatch.setattr(usage_upkeep, "_cut", cut_elsewhere)

    assert cut_usage_days(url) == Upkeep(0, 0)


def test_day_whose_sums_differ_is_left_to_the_repair(
    shared: psycopg.Connection[Any], url: str
):
    payer = add_uncut(shared)
    run_without_triggers(shared, "UPDATE app.usage_slots SET credits = credits + 1")

    assert cut_usage_days(url) == Upkeep(0, 1)
    assert run_cli("db", "check", "--data", "--repair")[0] == 0
    assert cut_usage_days(url) == Upkeep(0, 0)

    assert rows_of(shared, payer) == [2, 1]


def test_rows_of_a_past_span_are_folded_to_one(
    shared: psycopg.Connection[Any], url: str
):
    payers = [add_unfolded(shared), add_unfolded(shared, 2)]
    assert [rows_of(shared, payer) for payer in payers] == [[1, 1, 1], [1, 1]]

    assert fold_usage_rows(url) == Upkeep(3, 0)
    assert fold_usage_rows(url) == Upkeep(0, 0)

    assert [rows_of(shared, payer) for payer in payers] == [[3], [2]]
    assert usage_differences(shared) == []


def test_locked_row_is_folded_by_the_next_run(
    shared: psycopg.Connection[Any], url: str
):
    payer = add_unfolded(shared)

    with held(url, LOCK_ROW, payer, 1):
        assert fold_usage_rows(url) == Upkeep(1, 1)
    assert rows_of(shared, payer) == [2, 1]

    assert fold_usage_rows(url) == Upkeep(1, 0)


def test_maintain_prints_what_it_cut_and_folded(
    shared: psycopg.Connection[Any], url: str
):
    add_uncut(shared)
    add_unfolded(shared)

    code, out, err = run_cli("db", "maintain")

    assert (code, err) == (0, "")
    assert out.splitlines()[2:] == ["Usage days cut: 1", "Usage rows folded: 2"]


def test_maintain_prints_what_it_left(shared: psycopg.Connection[Any], url: str):
    uncut, unfolded = add_uncut(shared), add_unfolded(shared)

    with held(url, LOCK_ROW, uncut, 0), held(url, LOCK_ROW, unfolded, 2):
        code, out, err = run_cli("db", "maintain")
        printed = json.loads(run_cli("db", "maintain", "--json")[1])

    assert (code, err) == (0, "")
    assert out.splitlines()[2:] == [
        "Usage days cut: 0, left: 1 (locked, or differing: pyapp db check --data)",
        "Usage rows folded: 1, spans left: 1 (locked)",
    ]
    assert {name: n for name, n in printed.items() if name.startswith("usage")} == {
        "usage_days_cut": 0,
        "usage_days_left": 1,
        "usage_rows_folded": 0,
        "usage_spans_left": 1,
    }
