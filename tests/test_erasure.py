"""Anonymizing deletes a user's payloads in every table, and none is archived later."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from pyapp import payloads
from pyapp._core.connection import connect
from pyapp._core.run import execute
from pyapp.errors import MaintenanceError, UserNotFoundError
from pyapp.messages import find_message_payload, record_message
from pyapp.payload_archives import draft_archive
from pyapp.payloads import create_payload_partitions, retire_payloads
from pyapp.roles import apply_roles
from pyapp.users import User, anonymize_user
from tests.metering import add_fingerprint
from tests.payload_months import (
    NOW,
    OLD,
    VERY_OLD,
    add_user,
    archived_payers,
    fail_to_archive,
    read_archive,
    write,
    write_all,
)
from tests.support import run_cli
from tests.waiting import Pair, run_blocked, wait_for_lock, wait_for_waiter

MONTHS = [NOW, OLD, OLD - timedelta(days=40), VERY_OLD]


def erase(url: str, user_id: UUID) -> None:
    with connect(url) as conn:
        anonymize_user(conn, user_id=user_id)


def mark_erased(conn: psycopg.Connection, user_id: UUID) -> None:
    """Anonymize the user as an earlier version did, which left the payloads."""
    conn.execute("SELECT FROM app.users AS u WHERE u.id = %s FOR UPDATE", [user_id])
    conn.execute(
        "UPDATE app.users SET anonymized_at = now(), email = NULL WHERE id = %s",
        [user_id],
    )


def find_payers(url: str) -> dict[str, set[UUID]]:
    """Return the payers of the payloads in each table that exists."""
    found: dict[str, set[UUID]] = {}
    with connect(url) as conn:
        for name in ("message_payloads", "waiting_payloads", "retired_payloads"):
            row = conn.execute("SELECT to_regclass(%s)", [f"app.{name}"]).fetchone()
            if row != (None,):
                statement = f"SELECT DISTINCT subject_id FROM app.{name}".encode()
                found[name] = {row[0] for row in conn.execute(statement)}
    return found


@pytest.fixture
def users(database: str) -> list[UUID]:
    """Return two users with payloads of this month and of three expired months."""
    found = [add_user(database) for _ in range(2)]
    for user_id in found:
        write_all(database, user_id, *MONTHS)
    return found


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "MOST_UNDER_LOCK", 2)
    monkeypatch.setattr(payloads, "BATCH", 2)


@contextmanager
def before(
    monkeypatch: pytest.MonkeyPatch, step: str, act: Callable[[], object]
) -> Iterator[list[str]]:
    """Run *act* before each call of a step of maintenance; yield the calls."""
    calls: list[str] = []
    original = getattr(payloads, step)

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append(step)
        act()
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(payloads, step, function)
        yield calls


def test_retired_payloads_are_erased_before_they_are_archived(
    database: str, users: list[UUID], tmp_path: Path
):
    fail_to_archive(database, tmp_path)
    assert find_payers(database)["retired_payloads"] == set(users)

    erase(database, users[0])

    assert find_payers(database)["retired_payloads"] == {users[1]}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".message_payloads_202601.killed").write_text("words")
    retire_payloads(database, keep_months=1, archive_folder=folder)
    assert archived_payers(folder) == {users[1]}
    assert find_payers(database) == {"message_payloads": {users[1]}}


def test_archive_omits_users_erased_by_an_earlier_version(
    database: str, users: list[UUID], tmp_path: Path
):
    fail_to_archive(database, tmp_path)
    with connect(database) as conn:
        mark_erased(conn, users[0])

    folder = tmp_path / "folder"
    retire_payloads(database, keep_months=12, archive_folder=folder)

    assert archived_payers(folder) == {users[1]}


def test_failed_archive_names_the_payloads_left_and_the_remedy(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", database)
    create_payload_partitions(database)
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    command = ("db", "maintain", "--keep-months", "1", "--archive")

    code, _, err = run_cli(*command, str(blocked / "archives"))

    month = f"message_payloads_{OLD - timedelta(days=40):%Y%m}"
    assert code == 1
    assert err.count("\n") == 1
    assert f"{month} is left in app.retired_payloads" in err
    code, out, _ = run_cli(*command, str(tmp_path))
    assert code == 0
    assert f"Payload partitions dropped: {month}, " in out


def test_erasure_while_an_archive_is_copied_repeats_the_copy(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    create_payload_partitions(database)
    erasures = iter(users[:1])

    def act() -> None:
        for user_id in erasures:
            erase(database, user_id)

    with before(monkeypatch, "_publish", act) as published:
        names = retire_payloads(database, keep_months=1, archive_folder=tmp_path)

    assert archived_payers(tmp_path) == {users[1]}
    assert len(published) == len(names) + 1
    assert len(list(tmp_path.iterdir())) == len(names)


def test_last_copy_of_an_archive_makes_erasures_wait(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two copies without a lock are each overtaken by an erasure; the third is not."""
    users += [add_user(database) for _ in range(2)]
    for user_id in users[2:]:
        write_all(database, user_id, OLD)
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

        monkeypatch.setattr(payloads, "draft_archive", draft_and_erase)
        monkeypatch.setattr(payloads, "COPIES_WITHOUT_LOCK", 2)
        with connect(database) as conn:
            conn.autocommit = True
            payloads._detach_expired(conn, 1)
            payloads._drop(conn, tmp_path)
        waiting[0].result()
        eraser.commit()

    # The third user was archived before the erasure, and stays in the file.
    assert not archived_payers(tmp_path) & set(users[:2])
    found = find_payers(database)
    assert "retired_payloads" not in found
    assert users[2] not in found["message_payloads"]


def test_no_month_is_detached_while_an_erasure_is_open(
    database: str, users: list[UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(payloads, "ATTEMPTS", 1)
    monkeypatch.setattr(payloads, "LONG_WAIT_MS", 50)
    create_payload_partitions(database)
    with connect(database) as conn:
        anonymize_user(conn, user_id=users[0])

        with pytest.raises(MaintenanceError, match="kept message_payloads locked"):
            retire_payloads(database, keep_months=1, archive_folder=tmp_path)

        conn.commit()
    retire_payloads(database, keep_months=1, archive_folder=tmp_path)
    assert archived_payers(tmp_path) == {users[1]}


def test_erasure_waits_for_a_detachment_and_finds_the_month(
    database: str, users: list[UUID], pair: Pair
):
    conn, eraser = pair
    create_payload_partitions(database)
    payloads._detach_expired(conn, 1)

    run_blocked(conn, eraser, anonymize_user, user_id=users[0])

    assert find_payers(database) == {
        "message_payloads": {users[1]},
        "retired_payloads": {users[1]},
    }


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_user_is_erased_while_payloads_move(
    database: str, users: list[UUID], batches: int, monkeypatch: pytest.MonkeyPatch
):
    moves = itertools.count()

    def act() -> None:
        if next(moves) == batches:
            erase(database, users[0])

    with before(monkeypatch, "_move_batch", act):
        create_payload_partitions(database)

    assert find_payers(database) == {"message_payloads": {users[1]}}


@pytest.mark.usefixtures("small_batches")
def test_payloads_left_by_a_killed_move_are_erased(
    database: str, users: list[UUID], monkeypatch: pytest.MonkeyPatch
):
    with (
        before(monkeypatch, "_move_batch", iter([None]).__next__),
        pytest.raises(StopIteration),
    ):
        create_payload_partitions(database)
    assert find_payers(database)["waiting_payloads"] == set(users)

    erase(database, users[0])

    left = find_payers(database)
    assert left["waiting_payloads"] | left["message_payloads"] == {users[1]}


class TestMoves:
    """Moves from the waiting table, and to the retired table."""

    @pytest.fixture(params=["move_waiting_payloads", "move_expired_payloads"])
    def move(
        self, request: pytest.FixtureRequest, pair: Pair, users: list[UUID]
    ) -> Callable[[psycopg.Connection], object]:
        """Return one of the moves, which both have payloads to move."""
        query, conn = request.param, pair[0]
        if query == "move_waiting_payloads":
            payloads._detach_default(conn)
            conn.commit()
            return lambda conn: execute(conn, query, rows=100)
        execute(conn, "create_retired_table")
        conn.commit()
        return lambda conn: execute(conn, query, rows=100, months=1)

    def test_a_move_waits_for_an_erasure_and_moves_nothing_of_the_user(
        self, database: str, users: list[UUID], pair: Pair, move
    ):
        mover, eraser = pair
        mark_erased(eraser, users[0])

        run_blocked(eraser, mover, move)

        found = find_payers(database)
        name = "retired" if "retired_payloads" in found else "message"
        assert found[f"{name}_payloads"] == {users[1]}

    def test_an_erasure_waits_for_a_move_and_finds_the_moved_payloads(
        self, database: str, users: list[UUID], pair: Pair, move
    ):
        mover, eraser = pair
        move(mover)

        with ThreadPoolExecutor() as threads:
            erasing = threads.submit(anonymize_user, eraser, user_id=users[0])
            assert wait_for_waiter(mover) == eraser.info.backend_pid
            mover.commit()
            erasing.result()
        eraser.commit()

        assert set.union(*find_payers(database).values()) == {users[1]}


def test_erased_payloads_are_neither_kept_nor_archived_under_load(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(payloads, "MOST_UNDER_LOCK", 20)
    monkeypatch.setattr(payloads, "BATCH", 20)
    users = [add_user(database) for _ in range(60)]
    done = threading.Event()
    # The archives that existed when each user was erased.
    archives_before: dict[UUID, set[str]] = {}

    def keep_writing(seed: int) -> None:
        choose = random.Random(seed)
        with connect(database) as conn:
            conn.autocommit = True
            # At most 500, so that a slow machine does not fall behind the writers.
            for _ in range(500):
                if not done.is_set():
                    write(conn, choose.choice(users), choose.choice(MONTHS))

    def keep_erasing() -> None:
        for user_id in users[::2]:
            erase(database, user_id)
            archives_before[user_id] = {path.name for path in tmp_path.iterdir()}

    with ThreadPoolExecutor(4) as threads:
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

    erased = archives_before.keys()
    assert not set.union(*find_payers(database).values()) & erased
    archives = {
        path.name: {UUID(row["subject_id"]) for row in read_archive(path)}
        for path in tmp_path.iterdir()
        if not path.name.startswith(".")
    }
    archived_late = [
        (user_id, name)
        for user_id, known in archives_before.items()
        for name in archives.keys() - known
        if user_id in archives[name]
    ]
    assert archived_late == []
    assert archives


def test_payloads_of_a_fingerprint_are_not_erased(conn: psycopg.Connection):
    fingerprint = add_fingerprint(conn)
    message = record_message(
        conn, model="m", fingerprint_id=fingerprint, cost=Decimal(1), request=["words"]
    )

    with pytest.raises(UserNotFoundError):
        anonymize_user(conn, user_id=fingerprint)
    statement = "SELECT count(*) FROM app.anonymize_user(%s)"
    assert conn.execute(statement, [fingerprint]).fetchone() == (0,)

    assert find_message_payload(conn, subject_id=fingerprint, message_id=message.id)


def test_snapshot_that_may_miss_payloads_is_refused(database: str, users: list[UUID]):
    with connect(database) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.execute("SELECT 1")
        write_all(database, users[0], NOW)

        with pytest.raises(psycopg.errors.InvalidTransactionState):
            anonymize_user(conn, user_id=users[0])
        conn.rollback()


def test_application_role_erases_tables_that_it_may_not_read(
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
    assert find_payers(database)["retired_payloads"] == {users[1]}
