"""One reconciliation runs at a time, resumes after a kill, and retries requests."""

import contextlib
from typing import Any

import pytest
from psycopg import Connection, OperationalError
from psycopg.conninfo import make_conninfo

from pyapp._core.connection import connect
from pyapp.errors import ReconcileRunningError, StripeRequestError
from pyapp.stripe_sync import Reconciliation, reconcile, runs
from pyapp.stripe_sync import client as api
from tests.role_logins import login_name, role_logins
from tests.role_statements import READONLY, SYNC
from tests.stripe_world import Killed, StripeWorld


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waits between requests instead of waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(api, "sleep", seconds.append)
    return seconds


def test_only_one_reconciliation_runs_at_a_time(world: StripeWorld):
    world.create_subscribed_user()
    refused = []
    with connect(world.url) as other:

        def try_another(_: object) -> None:
            with pytest.raises(ReconcileRunningError) as caught:
                reconcile(other, world.client, dry_run=True)
            refused.append(caught.value)

        reconcile(world.conn, world.client, progress=try_another)
        assert len(refused) == 2
        assert not reconcile(other, world.client).is_resumed


def test_only_the_last_commit_of_a_run_waits_for_the_disk(world: StripeWorld):
    def show(setting: bytes) -> list[Any]:
        return [value for (value,) in world.conn.execute(b"SHOW " + setting)]

    with world.conn.transaction():
        world.conn.execute("SET synchronous_commit = on")
    with runs.start_run(world.conn, "reconcile") as run, run.transaction():
        assert show(b"synchronous_commit") == ["off"]
        assert show(b"lock_timeout") == ["5s"]

    with world.conn.transaction():
        assert show(b"synchronous_commit") == ["on"]


def test_holder_of_the_lock_is_named(world: StripeWorld):
    """Any role can take an advisory lock, so the error names the session to end."""
    with role_logins(world.url) as logins:
        login = make_conninfo(logins[READONLY], application_name="reports")
        with connect(login) as holder:
            assert runs.try_lock_runs(holder, kind="reconcile").is_held

            with pytest.raises(ReconcileRunningError) as caught:
                reconcile(world.conn, world.client)
            text = str(caught.value)

            assert f"process {holder.info.backend_pid}," in text
            assert f"role {login_name(login)}" in text
            assert "application reports," in text
            assert "connected since 20" in text
            assert text.isprintable()
            command = text.partition("end that session: ")[2]
            with world.conn.transaction():
                world.conn.execute(command.encode())
            with pytest.raises(OperationalError):
                holder.execute("SELECT pg_sleep(60)")


def test_holder_of_another_role_is_named_without_its_start(world: StripeWorld):
    with (
        role_logins(world.url) as logins,
        connect(logins[READONLY]) as holder,
        connect(logins[SYNC]) as conn,
    ):
        runs.try_lock_runs(holder, kind="replay")

        lock = runs.try_lock_runs(conn, kind="replay")

        assert lock.holder_pid == holder.info.backend_pid
        assert lock.holder_role == login_name(logins[READONLY])
        assert lock.holder_since is None
        assert "pg_terminate_backend" in lock.describe_holder()


def kill_run(world: StripeWorld, page: int, **options: Any) -> None:
    """Begin a run, and abandon it and its session at its *page*-th page."""
    left = [page]

    def die(_: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    with connect(world.url) as conn, contextlib.suppress(Killed):
        reconcile(conn, world.client, progress=die, page_size=3, **options)


def test_page_that_was_rolled_back_is_repeated(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C arrives before the page's commit."""
    for _ in range(2):
        world.create_subscription()
    world.fake.advance(seconds=2)
    update_run = runs.update_run
    calls = iter([update_run])

    def interrupt(conn: Connection[Any], **values: Any) -> int:
        update = next(calls, None)
        if update is None and "outcome" not in values:
            raise KeyboardInterrupt
        return update_run(conn, **values)

    monkeypatch.setattr(runs, "update_run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reconcile(world.conn, world.client)
    monkeypatch.undo()

    done = reconcile(world.conn, world.client)
    assert done.found["missing_here"] == done.repaired["missing_here"] == 4
    assert done.seen == {"customers": 2, "subscriptions": 2}


def test_killed_dry_run_is_not_resumed(world: StripeWorld):
    for _ in range(4):
        world.create_customer(world.create_user())
    world.fake.advance(seconds=2)
    kill_run(world, 1, dry_run=True)
    done = reconcile(world.conn, world.client, dry_run=True)
    assert not done.is_resumed
    assert done.found["missing_here"] == 4
    outcomes = world.conn.execute(
        "SELECT outcome, last_error FROM app.stripe_sync_runs ORDER BY id"
    ).fetchall()
    assert outcomes == [("failed", "it was killed"), ("completed", None)]


def test_run_older_than_a_day_is_not_resumed(world: StripeWorld):
    for _ in range(4):
        world.create_customer(world.create_user())
    kill_run(world, 1)
    world.conn.execute(
        "UPDATE app.stripe_sync_runs SET started_at = now() - interval '25 hours'"
    )
    assert not reconcile(world.conn, world.client).is_resumed


def test_run_resumes_after_its_cursor_was_deleted(world: StripeWorld):
    customers = [world.create_customer(world.create_user()) for _ in range(8)]
    world.fake.advance(seconds=2)
    kill_run(world, 1)
    world.client.v1.customers.delete(customers[-3])
    world.reconcile(page_size=3)
    rows = world.conn.execute(
        "SELECT id FROM app.stripe_customers WHERE NOT is_deleted"
    ).fetchall()
    assert {name for (name,) in rows} >= set(customers) - {customers[-3]}
    world.reconcile()
    assert world.reconcile() == []


@pytest.mark.parametrize(
    "cursor",
    [
        "{",
        "null",
        '{"noun": "customers", "after": null, "created": null, "tail": []}',
        '{"object_type": "invoices"}',
        '{"object_type": "customers", "after": 5}',
    ],
)
def test_run_with_an_unreadable_cursor_starts_again(
    world: StripeWorld, caplog: pytest.LogCaptureFixture, cursor: str
):
    for _ in range(8):
        world.create_customer(world.create_user())
    world.fake.advance(seconds=2)
    kill_run(world, 1)
    world.conn.execute("UPDATE app.stripe_sync_runs SET cursor = %s", [cursor])
    done = reconcile(world.conn, world.client, page_size=3)
    assert (done.is_resumed, done.seen["customers"]) == (False, 8)
    assert "saved cursor is unreadable" in caplog.text


def test_retry_after_is_respected(world: StripeWorld, waits: list[float]):
    world.create_subscribed_user()
    world.fake.faults.add("rate_limit", times=2, retry_after=7)
    world.fake.faults.add("rate_limit")
    world.fake.faults.add("error", status=503)
    world.fake.faults.add("cut")
    assert world.reconcile() == []
    assert waits[:2] == [7, 7]
    assert [0 < wait <= 16 for wait in waits[2:]] == [True] * 3


def test_refused_key_fails_the_run_with_a_reason(world: StripeWorld):
    with pytest.raises(StripeRequestError, match="Invalid API Key") as caught:
        reconcile(world.conn, world.fake.client("sk_test_not!a_key_at_all"))
    assert "sk_test" not in str(caught.value)
    runs_ended = world.conn.execute(
        "SELECT outcome, last_error FROM app.stripe_sync_runs"
    ).fetchall()
    assert [(outcome, "sk_test" in error) for outcome, error in runs_ended] == [
        ("failed", False)
    ]
    assert not reconcile(world.conn, world.client).is_resumed


def test_key_of_the_other_mode_deletes_nothing(world: StripeWorld):
    user_id, customer, _ = world.create_subscribed_user()
    world.fake.advance(seconds=60)
    with pytest.raises(StripeRequestError, match="but a live mode key was used"):
        reconcile(world.conn, world.fake.client("sk_live_fake"))
    assert not world.customer_row(customer).is_deleted
    assert world.get_user(user_id).subscription_active
    assert world.reconcile() == []


def test_progress_reports_the_expected_total(world: StripeWorld):
    for _ in range(5):
        world.create_customer(world.create_user())
    world.handle_all()
    world.fake.advance(seconds=2)
    reported: list[Any] = []
    done = reconcile(world.conn, world.client, progress=reported.append, page_size=2)
    assert [(p.object_type, p.seen, p.expected) for p in reported] == [
        ("customers", 2, 5),
        ("customers", 4, 5),
        ("customers", 5, 5),
        ("subscriptions", 0, 0),
    ]
    assert isinstance(done, Reconciliation)
    assert done.number_found == 0
