"""Statistics for operators agree with the quota, the tables and the clock."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from uuid import uuid4

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pyapp import stats
from pyapp.messages import record_messages
from pyapp.quota import list_user_quotas
from pyapp.users import anonymize_user
from tests.metering import add_fingerprint, add_months, add_user, new_message

Connection = psycopg.Connection
DAY = timedelta(days=1)


def add_run(conn: Connection, *, age: str, **columns: object) -> None:
    values = {"kind": "reconcile", "outcome": "completed", **columns}
    names = ", ".join(values)
    places = ", ".join(f"%({name})s" for name in values)
    finished = "NULL" if values["outcome"] == "running" else "now() - %(age)s::interval"
    conn.execute(
        f"INSERT INTO app.stripe_sync_runs (started_at, finished_at, {names})"
        f" VALUES (now() - %(age)s::interval, {finished}, {places})".encode(),
        {**values, "age": age},
    )


def test_blocked_users_are_those_that_the_quota_blocks(conn: Connection):
    """With periods that have lapsed, that were moved, or that have no end."""
    random, now = Random(7), datetime.now(UTC)
    for number in range(120):
        anchor = now - random.uniform(-40, 800) * DAY
        resets = [None, add_months(anchor, 3), now + random.uniform(0, 200) * DAY]
        user_id = add_user(
            conn,
            base_quota=random.choice([0, 10, 20]),
            quota_anchor=anchor,
            next_quota_reset=random.choice(resets),
            subscription_status="active" if number % 6 == 0 else None,
            stripe_subscription_id=f"sub_{number}" if number % 6 == 0 else None,
        )
        times = [now - random.uniform(-1, 45) * DAY for _ in range(3)]
        messages = [new_message(credits=Decimal(5), finished_at=t) for t in times]
        record_messages(conn, messages, user_id=user_id)
    gone = add_user(conn, base_quota=0)
    anonymize_user(conn, user_id=gone)

    found = stats.get_user_counts(conn)

    quotas = [q for q in list_user_quotas(conn, limit=1000) if q.email is not None]
    blocked = sum(q.is_blocked for q in quotas)
    assert 20 < blocked < 80
    assert found == stats.UserCounts(users=120, subscribed=20, blocked=blocked)


def test_rates_count_by_the_time_of_recording(conn: Connection):
    fingerprint = add_fingerprint(conn)
    old = datetime.now(UTC) - 40 * DAY
    message = new_message(
        fingerprint_id=fingerprint, finished_at=old, credits=Decimal("2")
    )
    record_messages(conn, [message])
    for age in ("59 seconds", "61 seconds", "59 minutes", "61 minutes"):
        conn.execute(
            "INSERT INTO app.messages (subject_id, id, fingerprint_id, model, cost,"
            " credits, finished_at, recorded_at, input_tokens, output_tokens,"
            " cache_creation_input_tokens, cache_read_input_tokens) VALUES"
            " (%s, %s, %s, 'm', 0, 3, now(), now() - %s::interval, 1, 1, 1, 1)",
            [fingerprint, uuid4(), fingerprint, age],
        )

    found = stats.get_message_rates(conn)

    assert found == stats.MessageRates(2, Decimal(5), 4, Decimal(11))


def test_inbox_counts_failed_and_recent_events(conn: Connection):
    nothing = stats.get_inbox_counts(conn)
    assert nothing == stats.InboxCounts(0, None, 0, None)
    now = conn.execute("SELECT now()").fetchone()
    assert now is not None
    for number, status in enumerate(["failed", "failed", "applied"]):
        age = timedelta(minutes=45 * (number + 1))
        conn.execute(
            "INSERT INTO app.stripe_events (id, type, event_created_at, received_at,"
            " payload, status, last_error, processed_at)"
            " VALUES (%s, 'x', %s, %s, '{}', %s, 'why', %s)",
            [
                f"evt_{number}",
                now[0] - age - DAY,
                now[0] - age,
                status,
                now[0] if status == "applied" else None,
            ],
        )

    found = stats.get_inbox_counts(conn)

    hour = timedelta(hours=1)
    expected = (2, now[0] - 1.5 * hour - DAY, 1, now[0] - 0.75 * hour)
    assert found == stats.InboxCounts(*expected)


def test_last_run_is_the_newest_that_was_not_a_dry_run(conn: Connection):
    assert stats.find_last_run(conn, kind="reconcile") is None
    add_run(conn, age="3 hours", counts=Jsonb({"status": 2}))
    add_run(conn, age="2 hours", outcome="failed", last_error="no answer")
    add_run(conn, age="1 hour", is_dry_run=True)
    add_run(conn, age="1 minute", kind="replay", outcome="running")

    found = stats.find_last_run(conn, kind="reconcile")
    replay = stats.find_last_run(conn, kind="replay")

    assert found is not None
    assert replay is not None
    assert (found.outcome, found.last_error) == ("failed", "no answer")
    assert found.last_completed_at is not None
    assert found.started_at - found.last_completed_at == timedelta(hours=1)
    assert (replay.outcome, replay.last_completed_at) == ("running", None)


@pytest.mark.parametrize(
    ("months", "ahead"), [((), -1), ((0,), 0), ((0, 1, 2), 2), ((0, 2), 0), ((1,), -1)]
)
def test_months_ahead_are_counted_up_to_the_first_gap(
    conn: Connection, months: tuple[int, ...], ahead: int
):
    for month in months:
        conn.execute(
            "SELECT app.create_payload_partitions("
            "(now() AT TIME ZONE 'UTC' + make_interval(months => %s))::date, 1)",
            [month],
        )

    found = stats.get_payload_months(conn)

    assert (found.partitions, found.months_ahead) == (len(months), ahead)
    assert (found.has_default_rows, found.has_retired_table) == (False, False)
    assert (found.oldest_month is None) == (not months)


def test_default_rows_and_the_retired_table_are_reported(
    conn: Connection,
):
    fingerprint = add_fingerprint(conn)
    message = new_message(fingerprint_id=fingerprint, request=[{"role": "user"}])
    record_messages(conn, [message])
    conn.execute("CREATE TABLE app.retired_payloads ()")

    found = stats.get_payload_months(conn)

    assert (found.has_default_rows, found.has_retired_table) == (True, True)
    assert (found.has_waiting_table, found.estimated_waiting) == (False, 0)


def test_partitions_count_as_their_table(conn: Connection):
    def sizes() -> dict[str, stats.TableSize]:
        return {table.name: table for table in stats.list_table_sizes(conn)}

    before = sizes()
    conn.execute("SELECT app.create_payload_partitions(now()::date, 2)")
    after = sizes()

    whole = [table.table_bytes + table.index_bytes for table in before.values()]
    assert whole == sorted(whole, reverse=True)
    assert before.keys() == after.keys()
    assert not any("default" in name for name in after)
    one, three = before["message_payloads"], after["message_payloads"]
    assert three.table_bytes > one.table_bytes
    assert three.index_bytes > one.index_bytes


def test_scanned_index_is_not_unused(database: str):
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("SET enable_seqscan = off")
        conn.execute("SELECT FROM app.sessions WHERE user_id = gen_random_uuid()")
        conn.execute("SELECT pg_stat_force_next_flush()")

        names = {index.name for index in stats.list_unused_indexes(conn)}

    assert "sessions_fingerprint_id_idx" in names
    assert not names & {"sessions_user_id_idx", "users_pkey", "users_lower_email_idx"}


def test_server_state_counts_the_clients_of_this_database(database: str):
    with psycopg.connect(database) as conn, psycopg.connect(database) as other:
        other.execute("SELECT 1")

        found = stats.get_server_state(conn)

    assert (found.connections, found.waiting) == (2, 0)
    assert found.max_connections >= 100
    assert found.oldest_transaction_at is not None
    assert found.started_at < found.oldest_transaction_at


def test_query_over_its_time_limit_is_cancelled(conn: Connection):
    assert stats.limit_time(conn, milliseconds=20).setting == "20ms"

    with pytest.raises(psycopg.errors.QueryCanceled), conn.transaction():
        conn.execute("SELECT pg_sleep(10)")
