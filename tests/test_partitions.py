"""Payloads by month: none is lost, no writer fails, archives are complete."""

import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from pyapp import payloads
from pyapp._core.connection import connect
from pyapp._core.run import execute, fetch_one
from pyapp._core.tool_sessions import AdvisoryLock
from pyapp.errors import MaintenanceError
from pyapp.payloads import create_payload_partitions, retire_payloads
from pyapp.roles import apply_roles
from tests.metering import insert_messages, new_message
from tests.payload_months import (
    NOW,
    add_user,
    archived_messages,
    fail_to_archive,
    find_payloads,
    partition_of,
    write,
    write_all,
)
from tests.waiting import Pair, run_blocked

MANY_MONTHS_AGO = NOW - timedelta(days=400)
DEFAULT = "message_payloads_default"


@pytest.fixture
def user_id(database: str) -> UUID:
    return add_user(database)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "MOST_UNDER_LOCK", 5)
    monkeypatch.setattr(payloads, "BATCH", 3)


def count_billed(url: str) -> int:
    with connect(url) as conn:
        row = conn.execute("SELECT sum(messages)::int FROM app.usage_daily").fetchone()
    assert row is not None
    return int(row[0])


def write_every_month(url: str, user_id: UUID, months: int) -> None:
    """Record a message with a payload in each month, the current one first."""
    with psycopg.connect(url) as conn:
        conn.execute(
            """
            WITH new_message AS (
                INSERT INTO app.messages (
                    subject_id, id, user_id, finished_at, input_tokens, output_tokens,
                    cache_creation_input_tokens, cache_read_input_tokens, model, cost,
                    credits
                )
                SELECT
                    %(user_id)s, gen_random_uuid(), %(user_id)s,
                    now() - make_interval(months => n), 1, 1, 0, 0, 'm', 1, 1
                FROM generate_series(0, %(months)s - 1) AS n
                RETURNING subject_id, id, finished_at
            )
            INSERT INTO app.message_payloads
            SELECT n.subject_id, n.id, n.finished_at, '["a quote"]'
            FROM new_message AS n
            """,
            {"user_id": user_id, "months": months},
        )


def fill_default(url: str, user_id: UUID) -> dict[UUID, str]:
    """Record messages of months without a partition; return their later partitions."""
    moments = [NOW - timedelta(days=31 * (n % 3)) for n in range(20)]
    ids = write_all(url, user_id, *moments)
    return dict(zip(ids, map(partition_of, moments), strict=True))


def test_payload_without_a_partition_is_moved_to_a_new_one(
    database: str, user_id: UUID
):
    moments = [NOW, MANY_MONTHS_AGO, NOW + timedelta(hours=1)]
    ids = write_all(database, user_id, *moments)
    assert set(find_payloads(database).values()) == {DEFAULT}

    create_payload_partitions(database, months=2)

    expected = dict(zip(ids, map(partition_of, moments), strict=True))
    assert find_payloads(database) == expected


def test_month_ends_at_midnight_in_utc(database: str, user_id: UUID):
    first = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    before = first - timedelta(microseconds=1)
    with psycopg.connect(database) as conn:
        conn.execute("SELECT app.create_payload_partitions(%s, 2)", [before.date()])
        conn.execute("SET TimeZone = 'Pacific/Auckland'")
        ids = [write(conn, user_id, moment) for moment in (first, before)]

    expected = dict(zip(ids, map(partition_of, (first, before)), strict=True))
    assert find_payloads(database) == expected


@pytest.mark.parametrize(("keep_months", "past"), [(None, 24), (2, 2), (1200, 120)])
def test_payloads_of_many_months_make_few_partitions(
    database: str, user_id: UUID, keep_months: int | None, past: int
):
    write_every_month(database, user_id, 3600)

    created = create_payload_partitions(database, keep_months=keep_months)

    assert created == 3 + past
    found = Counter(find_payloads(database).values())
    assert found[DEFAULT] == 3600 - 1 - past
    assert set(found.values()) == {1, 3600 - 1 - past}
    assert create_payload_partitions(database, keep_months=keep_months) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "now()::date, 121",
        "now()::date, -1",
        "now()::date, 2147483647",
        "now()::date, NULL",
        "NULL, 1",
        "'infinity', 1",
        "'-infinity', 1",
        "(now() + interval '122 months')::date, 1",
        "(now() + interval '60 months')::date, 62",
        "(now() - interval '122 months')::date, 1",
    ],
)
def test_months_out_of_range_are_refused(conn: psycopg.Connection, arguments: str):
    statement = f"SELECT app.create_payload_partitions({arguments})"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="at most 120"):
        conn.execute(statement.encode())


def test_bill_remains_when_payloads_are_retired(
    database: str, user_id: UUID, tmp_path: Path
):
    old, new = write_all(database, user_id, MANY_MONTHS_AGO, NOW)
    create_payload_partitions(database)

    names = retire_payloads(database, keep_months=1, archive_folder=tmp_path)

    month = partition_of(MANY_MONTHS_AGO)
    assert names == [month]
    assert archived_messages(tmp_path) == {old: f"{month}.csv.gz"}
    assert find_payloads(database) == {new: partition_of(NOW)}
    assert count_billed(database) == 2


def test_retiring_a_month_does_not_deadlock_with_a_writer(
    database: str, user_id: UUID, pair: Pair
):
    """It waits for the writer's message before it locks the payloads."""
    writer, maintenance = pair
    write_all(database, user_id, MANY_MONTHS_AGO)
    create_payload_partitions(database)
    message = new_message(user_id=user_id, finished_at=MANY_MONTHS_AGO)
    insert_messages(writer, [message])

    def write_payload_and_commit() -> None:
        writer.execute(
            "INSERT INTO app.message_payloads"
            " (subject_id, message_id, finished_at, request) VALUES (%s, %s, %s, '[]')",
            [user_id, message.id, message.finished_at],
        )
        writer.commit()

    def retire(conn: psycopg.Connection) -> object:
        statement = "SELECT app.retire_payload_partition(now()::date)"
        return conn.execute(statement).fetchone()

    retired = run_blocked(writer, maintenance, retire, release=write_payload_and_commit)

    assert retired == (partition_of(MANY_MONTHS_AGO),)
    count = writer.execute("SELECT count(*) FROM app.retired_payloads").fetchone()
    assert count == (2,)


def test_failed_archive_is_made_by_the_next_run(
    database: str, user_id: UUID, tmp_path: Path
):
    """A late message of the month gets an archive of its own."""
    (old,) = write_all(database, user_id, MANY_MONTHS_AGO)
    create_payload_partitions(database)
    fail_to_archive(database, tmp_path)
    (late,) = write_all(database, user_id, MANY_MONTHS_AGO)
    create_payload_partitions(database)
    folder = tmp_path / "folder"

    names = retire_payloads(database, keep_months=1, archive_folder=folder)

    month = partition_of(MANY_MONTHS_AGO)
    assert names == [month, month]
    expected = {old: f"{month}.csv.gz", late: f"{month}-2.csv.gz"}
    assert archived_messages(folder) == expected
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_expired_payloads_of_the_default_partition_are_retired(
    database: str, user_id: UUID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(payloads, "BATCH", 7)
    monkeypatch.setattr(payloads, "RETIRED_AT_ONCE", 28)
    write_every_month(database, user_id, 60)
    before = find_payloads(database).keys()

    create_payload_partitions(database, keep_months=12)
    names = retire_payloads(database, keep_months=12, archive_folder=tmp_path)

    kept, retired = find_payloads(database), archived_messages(tmp_path)
    assert (len(kept), len(retired)) == (13, 47)
    assert before == kept.keys() | retired.keys()
    assert DEFAULT not in kept.values()
    assert set(retired.values()) == {f"{name}.csv.gz" for name in names}
    assert len(names) == 2
    assert count_billed(database) == 60


def test_failed_archive_of_default_rows_is_made_by_the_next_run(
    database: str, user_id: UUID, tmp_path: Path
):
    write_every_month(database, user_id, 30)
    fail_to_archive(database, tmp_path)

    folder = tmp_path / "folder"
    (name,) = retire_payloads(database, keep_months=1, archive_folder=folder)

    assert re.fullmatch(r"message_payloads_\d{6}_to_\d{6}", name)
    assert len(archived_messages(folder)) == 28
    assert set(archived_messages(folder).values()) == {f"{name}.csv.gz"}


def test_no_payload_is_lost_while_months_are_made_and_retired(
    database: str, tmp_path: Path
):
    users = [add_user(database) for _ in range(4)]
    months = [NOW - timedelta(days=31 * n) for n in range(7)]
    done = threading.Event()

    def keep_writing(number: int) -> list[UUID]:
        written: list[UUID] = []
        with connect(database) as conn:
            conn.autocommit = True
            while not done.is_set():
                moment = months[len(written) % len(months)]
                written.append(write(conn, users[number % len(users)], moment))
        return written

    with ThreadPoolExecutor(8) as threads:
        writers = [threads.submit(keep_writing, n) for n in range(8)]
        try:
            # Each round makes partitions for new payloads, and retires most of them.
            for _ in range(4):
                create_payload_partitions(database, months=1)
                retire_payloads(database, keep_months=2, archive_folder=tmp_path)
        finally:
            done.set()
        written = {message for writer in writers for message in writer.result()}

    kept, retired = find_payloads(database), archived_messages(tmp_path)
    assert written == kept.keys() | retired.keys()
    assert not kept.keys() & retired.keys()
    assert retired


def describe_default(url: str) -> list[tuple[object, ...]]:
    """Return the comment and the constraints of the default partition."""
    with connect(url) as conn:
        return conn.execute(
            """
            SELECT obj_description(c.oid), k.conname, pg_get_constraintdef(k.oid)
            FROM pg_class AS c
            INNER JOIN pg_constraint AS k ON k.conrelid = c.oid
            WHERE c.oid = 'app.message_payloads_default'::regclass
            ORDER BY k.conname
            """
        ).fetchall()


@pytest.mark.usefixtures("small_batches")
def test_many_payloads_move_in_batches_while_others_write(
    database: str, user_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    expected = fill_default(database, user_id)
    description = describe_default(database)
    moved: list[int] = []
    move_batch = payloads._move_batch

    def move_and_write(conn: psycopg.Connection) -> int:
        with conn.transaction():
            moved.append(move_batch(conn))
            # Other sessions can write before the batch is committed.
            for days in (0, 31, 500):
                moment = NOW - timedelta(days=days)
                (new,) = write_all(database, add_user(database), moment)
                expected[new] = partition_of(moment)
        return moved[-1]

    with monkeypatch.context() as patch:
        patch.setattr(payloads, "_move_batch", move_and_write)
        create_payload_partitions(database)
    create_payload_partitions(database)

    assert moved == [3] * 6 + [2, 0]
    assert find_payloads(database) == expected
    assert describe_default(database) == description


@pytest.mark.usefixtures("small_batches")
def test_killed_move_is_finished_by_the_next_run(
    database: str, user_id: UUID, monkeypatch: pytest.MonkeyPatch
):
    expected = fill_default(database, user_id)
    batches = iter([payloads._move_batch] * 2)
    with monkeypatch.context() as patch:
        patch.setattr(payloads, "_move_batch", lambda conn: next(batches)(conn))
        with pytest.raises(StopIteration):
            create_payload_partitions(database)
    assert len(find_payloads(database)) == 6

    create_payload_partitions(database)

    assert find_payloads(database) == expected
    with connect(database) as conn:
        row = conn.execute("SELECT to_regclass('app.waiting_payloads')").fetchone()
    assert row == (None,)


def test_one_maintenance_runs_at_a_time(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two runs could drop a month that only one of them has archived."""
    monkeypatch.setattr(payloads, "LOCK_WAIT", 0.1)
    with connect(database) as other:
        lock = fetch_one(
            other, AdvisoryLock, "try_tool_lock", purpose="pyapp maintenance"
        )
        assert lock.is_held

        for run in (
            lambda: create_payload_partitions(database),
            lambda: retire_payloads(database, keep_months=1, archive_folder=tmp_path),
        ):
            holder = f"another maintenance .* process {other.info.backend_pid}"
            with pytest.raises(MaintenanceError, match=holder):
                run()

    assert create_payload_partitions(database) == 3


def test_new_default_partition_has_the_grants_of_the_former(database: str) -> None:
    """pyapp stats reads it with the role pyapp_readonly."""
    with connect(database) as conn:
        apply_roles(conn)
        before = table_grants(conn)
        execute(conn, "put_default_aside")
        after = table_grants(conn)
        conn.rollback()

    assert "pyapp_readonly" in before
    assert before == after


def table_grants(conn: psycopg.Connection) -> str:
    """Return the privileges on the default partition and its columns."""
    row = conn.execute(
        "SELECT string_agg(t.attname || ' ' || t.attacl::text, ' ' ORDER BY t.attnum)"
        " FROM pg_attribute AS t"
        " WHERE t.attrelid = 'app.message_payloads_default'::regclass"
    ).fetchone()
    assert row is not None
    return str(row[0])
