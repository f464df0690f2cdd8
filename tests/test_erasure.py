"""An erased user's payloads are deleted wherever they are, and archived no more."""

import csv
import gzip
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp import payloads as maintenance
from pyapp._core.connection import connect
from pyapp._core.run import execute
from pyapp.errors import (
    AlreadyReferredError,
    ArchiveError,
    MaintenanceError,
    UserNotFoundError,
)
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import find_message_payload, record_message
from pyapp.payload_archives import draft_archive
from pyapp.payloads import create_payload_partitions, retire_payloads
from pyapp.referrals import create_referral, redeem_referral
from pyapp.roles import apply_roles
from pyapp.users import User, anonymize_user, create_user
from tests.support import run_cli
from tests.waiting import wait_for_lock, wait_for_waiter

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=100)
VERY_OLD = NOW - timedelta(days=9000)


def add_user(url: str) -> UUID:
    with connect(url) as conn:
        return create_user(conn, email=f"{uuid4()}@example.com").id


def write(url: str, payer: UUID, *moments: datetime) -> None:
    """Record a message with a payload at each of *moments*."""
    with connect(url) as conn:
        for moment in moments:
            record_message(
                conn,
                model="m",
                user_id=payer,
                finished_at=moment,
                cost=Decimal(1),
                request=["words"],
            )


def erase(url: str, user_id: UUID) -> None:
    with connect(url) as conn:
        anonymize_user(conn, user_id=user_id)


def holders(url: str) -> dict[str, set[UUID]]:
    """Return whose payloads are in the tables that there are, by table."""
    found: dict[str, set[UUID]] = {}
    with connect(url) as conn:
        for name in ("message_payloads", "waiting_payloads", "retired_payloads"):
            row = conn.execute("SELECT to_regclass(%s)", [f"app.{name}"]).fetchone()
            if row != (None,):
                statement = f"SELECT DISTINCT subject_id FROM app.{name}".encode()
                found[name] = {row[0] for row in conn.execute(statement)}
    return found


def archived(folder: Path) -> set[UUID]:
    """Return whose payloads are in the archives."""
    return {UUID(row["subject_id"]) for path in folder.iterdir() for row in rows(path)}


def rows(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


@pytest.fixture
def users(database: str) -> list[UUID]:
    """Return two users who have payloads of this month and of two that are over."""
    found = [add_user(database) for _ in range(2)]
    for user_id in found:
        write(database, user_id, NOW, OLD, OLD - timedelta(days=40), VERY_OLD)
    return found


@contextmanager
def before(
    monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], object]
) -> Iterator[list[None]]:
    """Run *act* before each call of a step of maintenance; yield what counts them."""
    calls: list[None] = []
    original = getattr(maintenance, step)

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        act()
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, step, function)
        yield calls


def fail_to_archive(url: str, tmp_path: Path) -> None:
    """Detach a month and fail to archive it."""
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    create_payload_partitions(url)
    with pytest.raises(ArchiveError, match=r"left in app\.retired_payloads"):
        retire_payloads(url, keep_months=1, archive_folder=blocked)


def test_month_that_was_left_is_archived_without_erased_users(
    database: str, users: list[UUID], tmp_path: Path
):
    fail_to_archive(database, tmp_path)
    assert holders(database)["retired_payloads"] == set(users)

    erase(database, users[0])

    assert holders(database)["retired_payloads"] == {users[1]}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".message_payloads_202601.killed").write_text("words")
    retire_payloads(database, keep_months=1, archive_folder=folder)
    assert archived(folder) == {users[1]}
    assert holders(database) == {"message_payloads": {users[1]}}


def test_archive_leaves_out_whom_an_earlier_version_erased(
    database: str, users: list[UUID], tmp_path: Path
):
    fail_to_archive(database, tmp_path)
    with connect(database) as conn:
        conn.execute(
            "UPDATE app.users SET anonymized_at = now(), email = NULL WHERE id = %s",
            [users[0]],
        )

    folder = tmp_path / "folder"
    retire_payloads(database, keep_months=12, archive_folder=folder)

    assert archived(folder) == {users[1]}


def test_failed_archive_says_what_is_left_and_what_to_do(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", database)
    create_payload_partitions(database)
    folder = tmp_path / "folder"
    folder.write_text("in the way")
    command = ("db", "maintain", "--keep-months", "1", "--archive")

    code, _, err = run_cli(*command, str(folder / "archives"))

    month = f"message_payloads_{OLD - timedelta(days=40):%Y%m}"
    assert code == 1
    assert err.count("\n") == 1
    assert f"{month}: left in app.retired_payloads, with which the next run" in err
    code, out, _ = run_cli(*command, str(tmp_path))
    assert code == 0
    assert f"Payload partitions dropped: {month}, " in out


def test_user_is_erased_while_an_archive_is_copied(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    create_payload_partitions(database)
    erasures = iter([lambda: erase(database, users[0])])

    def act() -> None:
        next(erasures, lambda: None)()

    with before(monkeypatch, "_publish", act) as published:
        names = retire_payloads(database, keep_months=1, archive_folder=tmp_path)

    assert archived(tmp_path) == {users[1]}
    assert len(published) == len(names) + 1
    assert len(list(tmp_path.iterdir())) == len(names)


def test_last_copy_is_made_while_erasures_wait(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each copy is overtaken; the last one keeps the third erasure out."""
    users += [add_user(database) for _ in range(2)]
    for user_id in users[2:]:
        write(database, user_id, OLD)
    create_payload_partitions(database)
    queue = iter(users)
    draft = draft_archive
    waiting: list[Future[User]] = []

    with ThreadPoolExecutor() as threads, connect(database) as eraser:

        @contextmanager
        def draft_and_erase(conn: psycopg.Connection, *args: Any) -> Iterator[Any]:
            with draft(conn, *args) as archive:
                if conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                    erase(database, next(queue))
                elif not waiting:
                    erasing = threads.submit(
                        anonymize_user, eraser, user_id=next(queue)
                    )
                    waiting.append(erasing)
                    wait_for_lock(conn, eraser)
                yield archive

        monkeypatch.setattr(maintenance, "draft_archive", draft_and_erase)
        monkeypatch.setattr(maintenance, "COPIES_WITHOUT_LOCK", 2)
        with connect(database) as conn:
            conn.autocommit = True
            maintenance._detach(conn, 1)
            maintenance._drop(conn, tmp_path)
        waiting[0].result()
        eraser.commit()

    # What was archived before the third user was erased stays in the file.
    assert not archived(tmp_path) & set(users[:2])
    with connect(database) as conn:
        row = conn.execute("SELECT to_regclass('app.retired_payloads')").fetchone()
    assert row == (None,)
    assert users[2] not in holders(database)["message_payloads"]


def test_no_month_is_detached_while_an_erasure_is_open(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(maintenance, "ATTEMPTS", 1)
    create_payload_partitions(database)
    with connect(database) as conn:
        anonymize_user(conn, user_id=users[0])

        with pytest.raises(MaintenanceError, match="stayed locked"):
            retire_payloads(database, keep_months=1, archive_folder=tmp_path)

        conn.commit()
    retire_payloads(database, keep_months=1, archive_folder=tmp_path)
    assert archived(tmp_path) == {users[1]}


def test_erasure_that_waits_for_a_detachment_finds_the_month_after_it(
    database: str, users: list[UUID]
):
    create_payload_partitions(database)
    with (
        connect(database) as conn,
        connect(database) as eraser,
        ThreadPoolExecutor() as threads,
    ):
        maintenance._detach(conn, 1)
        erasing = threads.submit(anonymize_user, eraser, user_id=users[0])
        wait_for_lock(conn, eraser)
        conn.commit()
        erasing.result()
        eraser.commit()

    assert holders(database) == {
        "message_payloads": {users[1]},
        "retired_payloads": {users[1]},
    }


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_user_is_erased_while_payloads_move(
    database: str,
    users: list[UUID],
    batches: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(maintenance, "MOST_UNDER_LOCK", 2)
    monkeypatch.setattr(maintenance, "BATCH", 2)
    waits = iter([*[lambda: None] * batches, lambda: erase(database, users[0])])

    with before(monkeypatch, "_move_batch", lambda: next(waits, lambda: None)()):
        create_payload_partitions(database)

    assert holders(database) == {"message_payloads": {users[1]}}


def test_what_a_killed_move_has_left_is_erased(
    database: str, users: list[UUID], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(maintenance, "MOST_UNDER_LOCK", 2)
    monkeypatch.setattr(maintenance, "BATCH", 2)
    with (
        before(monkeypatch, "_move_batch", iter([None]).__next__),
        pytest.raises(StopIteration),
    ):
        create_payload_partitions(database)
    assert holders(database)["waiting_payloads"] == set(users)

    erase(database, users[0])

    left = holders(database)
    assert left["waiting_payloads"] | left["message_payloads"] == {users[1]}


@pytest.mark.parametrize("query", ["move_waiting_payloads", "move_expired_payloads"])
def test_move_waits_for_an_erasure_and_moves_nothing_of_the_user(
    database: str, users: list[UUID], query: str
):
    parameters: dict[str, int] = {"rows": 100}
    with (
        connect(database) as conn,
        connect(database) as eraser,
        ThreadPoolExecutor() as threads,
    ):
        conn.autocommit = True
        if query == "move_waiting_payloads":
            maintenance._put_aside(conn)
        else:
            execute(conn, "create_retired_table")
            parameters["months"] = 1
        # As an earlier version did it: the payloads are not deleted.
        eraser.execute(
            "SELECT FROM app.users AS u WHERE u.id = %s FOR UPDATE", [users[0]]
        )
        eraser.execute(
            "UPDATE app.users SET anonymized_at = now(), email = NULL WHERE id = %s",
            [users[0]],
        )
        moving = threads.submit(execute, conn, query, **parameters)
        wait_for_lock(eraser, conn)
        eraser.commit()
        moving.result()

    found = holders(database)
    is_waiting = query == "move_waiting_payloads"
    assert found["message_payloads" if is_waiting else "retired_payloads"] == {users[1]}


@pytest.mark.parametrize("query", ["move_waiting_payloads", "move_expired_payloads"])
def test_erasure_waits_for_a_move_and_finds_what_it_moved(
    database: str, users: list[UUID], query: str
):
    parameters: dict[str, int] = {"rows": 100}
    with (
        connect(database) as conn,
        connect(database) as eraser,
        ThreadPoolExecutor() as threads,
    ):
        if query == "move_waiting_payloads":
            maintenance._put_aside(conn)
        else:
            execute(conn, "create_retired_table")
            parameters["months"] = 1
        conn.commit()
        execute(conn, query, **parameters)
        erasing = threads.submit(anonymize_user, eraser, user_id=users[0])
        assert wait_for_waiter(conn) == eraser.info.backend_pid
        conn.commit()
        erasing.result()
        eraser.commit()

    assert set.union(*holders(database).values()) == {users[1]}


def test_nothing_of_erased_users_is_kept_or_archived_under_load(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(maintenance, "MOST_UNDER_LOCK", 5)
    monkeypatch.setattr(maintenance, "BATCH", 5)
    users = [add_user(database) for _ in range(60)]
    moments = [NOW, OLD, OLD - timedelta(days=40), VERY_OLD]
    done = threading.Event()
    earlier: dict[UUID, set[str]] = {}

    def keep_writing(seed: int) -> None:
        choose = random.Random(seed)
        with connect(database) as conn:
            conn.autocommit = True
            while not done.is_set():
                record_message(
                    conn,
                    model="m",
                    user_id=choose.choice(users),
                    finished_at=choose.choice(moments),
                    cost=Decimal(1),
                    request=["words"],
                )

    def keep_erasing() -> None:
        for user_id in users[::2]:
            erase(database, user_id)
            earlier[user_id] = {path.name for path in tmp_path.iterdir()}

    with ThreadPoolExecutor() as threads:
        work = [threads.submit(keep_writing, seed) for seed in range(3)]
        erasing = threads.submit(keep_erasing)
        try:
            while not erasing.done():
                create_payload_partitions(database, keep_months=1)
                retire_payloads(database, keep_months=1, archive_folder=tmp_path)
        finally:
            done.set()
        for future in (*work, erasing):
            future.result()
    create_payload_partitions(database)

    assert not set.union(*holders(database).values()) & earlier.keys()
    archives = {
        path.name: {UUID(row["subject_id"]) for row in rows(path)}
        for path in tmp_path.iterdir()
        if not path.name.startswith(".")
    }
    too_late = [
        (user_id, name)
        for user_id, known in earlier.items()
        for name in archives.keys() - known
        if user_id in archives[name]
    ]
    assert too_late == []
    assert archives


def test_payloads_of_a_fingerprint_are_not_a_users(conn: psycopg.Connection):
    device = upsert_fingerprint(conn).id
    message = record_message(
        conn, model="m", fingerprint_id=device, cost=Decimal(1), request=["words"]
    )
    conn.execute("SAVEPOINT before")

    with pytest.raises(UserNotFoundError):
        anonymize_user(conn, user_id=device)
    assert conn.execute(
        "SELECT count(*) FROM app.anonymize_user(%s)", [device]
    ).fetchone() == (0,)

    assert find_message_payload(conn, subject_id=device, message_id=message.id)


def test_pending_referrals_end_and_completed_ones_stay(conn: psycopg.Connection):
    ada, bob, eve, dan = (
        create_user(conn, email=f"{name}@example.com")
        for name in ("ada", "bob", "eve", "dan")
    )
    redeem_referral(conn, referral_code=ada.referral_code, referred_id=bob.id)
    create_referral(conn, referral_code=ada.referral_code, referred_id=eve.id)
    create_referral(conn, referral_code=dan.referral_code, referred_id=ada.id)
    with pytest.raises(AlreadyReferredError), conn.transaction():
        create_referral(conn, referral_code=bob.referral_code, referred_id=eve.id)

    anonymize_user(conn, user_id=ada.id)

    left = conn.execute(
        "SELECT referrer_id, referred_id, status FROM app.referrals"
    ).fetchall()
    assert left == [(ada.id, bob.id, "completed")]
    create_referral(conn, referral_code=bob.referral_code, referred_id=eve.id)


def test_snapshot_that_may_miss_payloads_is_refused(database: str, users: list[UUID]):
    with connect(database) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT 1")
        write(database, users[0], NOW)

        with pytest.raises(psycopg.errors.InvalidTransactionState):
            anonymize_user(conn, user_id=users[0])


def test_application_erases_what_it_may_not_even_read(
    database: str, users: list[UUID], tmp_path: Path
):
    fail_to_archive(database, tmp_path)
    with connect(database) as conn:
        apply_roles(conn)
        conn.execute("SET LOCAL ROLE pyapp_app")
        with pytest.raises(psycopg.errors.InsufficientPrivilege), conn.transaction():
            conn.execute("SELECT FROM app.retired_payloads")

        anonymize_user(conn, user_id=users[0])

        conn.execute("RESET ROLE")
    assert holders(database)["retired_payloads"] == {users[1]}
