"""Payloads by the month: none is lost, no writer fails, archives are whole."""

import csv
import gzip
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp import payloads as maintenance
from pyapp._core.advisory_locks import AdvisoryLock
from pyapp._core.connection import connect
from pyapp._core.run import fetch_one
from pyapp.errors import ArchiveError, MaintenanceError
from pyapp.messages import record_message
from pyapp.payloads import create_payload_partitions, retire_payloads
from pyapp.users import create_user

NOW = datetime.now(UTC)
MANY_MONTHS_AGO = NOW - timedelta(days=400)


def write(conn: psycopg.Connection, user_id: UUID, moment: datetime) -> UUID:
    """Record a message of that time, with what was said."""
    message_id = uuid4()
    record_message(
        conn,
        model="m",
        id=message_id,
        user_id=user_id,
        finished_at=moment,
        cost=Decimal("0.01"),
        credits=Decimal("1.2"),
        request=[{"role": "user", "content": 'a comma, a "quote"\nand a line\'s end'}],
    )
    return message_id


def add_user(url: str) -> UUID:
    with connect(url) as conn:
        return create_user(conn, email=f"{uuid4()}@example.com").id


def places(url: str) -> dict[UUID, str]:
    """Return the table that holds the payload of each message."""
    with connect(url) as conn:
        return dict(
            conn.execute(
                "SELECT message_id, tableoid::regclass::text FROM app.message_payloads"
            ).fetchall()
        )


def partition_of(moment: datetime) -> str:
    return f"app.message_payloads_{moment:%Y%m}"


def archived(folder: Path) -> dict[UUID, str]:
    """Return the archive that holds the payload of each message."""
    found = {}
    for path in folder.iterdir():
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                assert "quote" in row["request"]
                found[UUID(row["message_id"])] = path.name
    return found


def test_payload_without_a_month_waits_and_then_moves(database: str):
    user_id = add_user(database)
    moments = [NOW, MANY_MONTHS_AGO, NOW + timedelta(hours=1)]
    with connect(database) as conn:
        ids = [write(conn, user_id, moment) for moment in moments]
    assert set(places(database).values()) == {"app.message_payloads_default"}

    create_payload_partitions(database, months=2)

    expected = {i: partition_of(m) for i, m in zip(ids, moments, strict=True)}
    assert expected == places(database)


def test_whole_month_ends_at_midnight_in_utc(database: str):
    user_id = add_user(database)
    first = NOW.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    before = first - timedelta(microseconds=1)
    with psycopg.connect(database) as conn:
        conn.execute("SELECT app.create_payload_partitions(%s, 2)", [before.date()])
        conn.execute("SET TimeZone = 'Pacific/Auckland'")
        ids = [write(conn, user_id, moment) for moment in (first, before)]

    assert places(database) == {
        ids[0]: partition_of(first),
        ids[1]: partition_of(before),
    }


def write_every_month(url: str, user_id: UUID, months: int) -> None:
    """Record a message with a payload in each of so many months, this one first."""
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


@pytest.mark.parametrize(("keep_months", "past"), [(None, 24), (2, 2), (1200, 120)])
def test_payloads_of_many_months_make_few_partitions(
    database: str, keep_months: int | None, past: int
):
    write_every_month(database, add_user(database), 3600)

    created = create_payload_partitions(database, keep_months=keep_months)

    assert created == 3 + past
    found = Counter(places(database).values())
    assert found["app.message_payloads_default"] == 3600 - 1 - past
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
def test_absurd_months_are_refused(conn: psycopg.Connection, arguments: str):
    statement = f"SELECT app.create_payload_partitions({arguments})"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="at most 120"):
        conn.execute(statement.encode())


def test_bill_remains_when_payloads_are_retired(database: str, tmp_path: Path):
    user_id = add_user(database)
    with connect(database) as conn:
        old, new = (write(conn, user_id, at) for at in (MANY_MONTHS_AGO, NOW))
    create_payload_partitions(database)

    names = retire_payloads(database, keep_months=1, archive_folder=tmp_path)

    month = partition_of(MANY_MONTHS_AGO).removeprefix("app.")
    assert names == [month]
    assert archived(tmp_path) == {old: f"{month}.csv.gz"}
    assert places(database) == {new: partition_of(NOW)}
    with connect(database) as conn:
        row = conn.execute("SELECT sum(messages) FROM app.usage_daily").fetchone()
    assert row == (2,)


def test_nothing_is_dropped_that_cannot_be_archived(database: str, tmp_path: Path):
    user_id = add_user(database)
    with connect(database) as conn:
        old = write(conn, user_id, MANY_MONTHS_AGO)
    create_payload_partitions(database)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")

    with pytest.raises(ArchiveError, match="cannot archive to"):
        retire_payloads(database, keep_months=1, archive_folder=blocked / "folder")

    # The next run finishes what was detached, also beside a late message of the month.
    with connect(database) as conn:
        late = write(conn, user_id, MANY_MONTHS_AGO)
    create_payload_partitions(database)
    folder = tmp_path / "folder"
    month = partition_of(MANY_MONTHS_AGO).removeprefix("app.")
    names = retire_payloads(database, keep_months=1, archive_folder=folder)
    assert names == [month, month]
    assert archived(folder) == {old: f"{month}.csv.gz", late: f"{month}-2.csv.gz"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())


def test_expired_payloads_of_the_default_partition_are_retired(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(maintenance, "BATCH", 7)
    monkeypatch.setattr(maintenance, "RETIRED_AT_ONCE", 28)
    write_every_month(database, add_user(database), 60)
    before = places(database).keys()

    create_payload_partitions(database, keep_months=12)
    names = retire_payloads(database, keep_months=12, archive_folder=tmp_path)

    kept, gone = places(database), archived(tmp_path)
    assert (len(kept), len(gone)) == (13, 47)
    assert before == kept.keys() | gone.keys()
    assert "app.message_payloads_default" not in kept.values()
    assert set(gone.values()) == {f"{name}.csv.gz" for name in names}
    assert len(names) == 2
    with connect(database) as conn:
        row = conn.execute("SELECT sum(messages) FROM app.usage_daily").fetchone()
    assert row == (60,)


def test_expired_payloads_that_were_moved_are_archived_by_the_next_run(
    database: str, tmp_path: Path
):
    write_every_month(database, add_user(database), 30)
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    create_payload_partitions(database, keep_months=1)
    with pytest.raises(ArchiveError, match=r"left in app\.retired_payloads"):
        retire_payloads(database, keep_months=1, archive_folder=blocked)

    folder = tmp_path / "folder"
    (name,) = retire_payloads(database, keep_months=1, archive_folder=folder)

    assert re.fullmatch(r"message_payloads_\d{6}_to_\d{6}", name)
    assert len(archived(folder)) == 28
    assert set(archived(folder).values()) == {f"{name}.csv.gz"}


def test_nothing_is_lost_while_months_come_and_go(database: str, tmp_path: Path):
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

    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(keep_writing, n) for n in range(8)]
        try:
            # Each round makes the months that have waited, and retires most again.
            for _ in range(4):
                create_payload_partitions(database, months=1)
                retire_payloads(database, keep_months=2, archive_folder=tmp_path)
        finally:
            done.set()
        written = {message for writer in writers for message in writer.result()}

    kept, gone = places(database), archived(tmp_path)
    assert written == kept.keys() | gone.keys()
    assert not kept.keys() & gone.keys()
    assert gone


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "MOST_UNDER_LOCK", 5)
    monkeypatch.setattr(maintenance, "BATCH", 3)


def fill_default(url: str, user_id: UUID) -> dict[UUID, datetime]:
    """Record messages of months without a partition; return when they were."""
    moments = [NOW - timedelta(days=31 * (n % 3)) for n in range(20)]
    with connect(url) as conn:
        return {write(conn, user_id, moment): moment for moment in moments}


def shape_of_default(url: str) -> list[tuple[object, ...]]:
    """Return what a dump would tell of the default partition."""
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


def test_many_move_in_batches_that_lock_out_nobody(
    database: str, few_at_once: None, monkeypatch: pytest.MonkeyPatch
):
    written = fill_default(database, add_user(database))
    shape = shape_of_default(database)
    moved: list[int] = []
    move_batch = maintenance._move_batch

    def move_and_write(conn: psycopg.Connection) -> int:
        with conn.transaction():
            moved.append(move_batch(conn))
            # Others write, change and read whatever they like before it commits.
            user_id = add_user(database)
            with connect(database) as other:
                for days in (0, 31, 500):
                    moment = NOW - timedelta(days=days)
                    written[write(other, user_id, moment)] = moment
        return moved[-1]

    monkeypatch.setattr(maintenance, "_move_batch", move_and_write)
    create_payload_partitions(database)
    monkeypatch.undo()
    create_payload_partitions(database)

    assert moved == [3] * 6 + [2, 0]
    assert places(database) == {i: partition_of(m) for i, m in written.items()}
    assert shape_of_default(database) == shape


def test_move_that_was_killed_is_finished_by_the_next_run(
    database: str, few_at_once: None, monkeypatch: pytest.MonkeyPatch
):
    written = fill_default(database, add_user(database))
    batches = iter([maintenance._move_batch] * 2)
    monkeypatch.setattr(maintenance, "_move_batch", lambda conn: next(batches)(conn))
    with pytest.raises(StopIteration):
        create_payload_partitions(database)
    assert len(places(database)) == 6
    monkeypatch.undo()

    create_payload_partitions(database)

    assert places(database) == {i: partition_of(m) for i, m in written.items()}
    with connect(database) as conn:
        row = conn.execute("SELECT to_regclass('app.waiting_payloads')").fetchone()
    assert row == (None,)


def test_only_one_maintenance_runs_at_a_time(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two runs could drop a month that only one of them thought archived."""
    monkeypatch.setattr(maintenance, "PATIENCE", 0.2)
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

    monkeypatch.undo()
    assert create_payload_partitions(database) == 3
