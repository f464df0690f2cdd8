"""A reconciliation runs alone, goes on after a kill, and waits for a busy Stripe."""

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
from tests.stripe_world import StripeWorld


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been waited."""
    told: list[float] = []
    monkeypatch.setattr(api, "sleep", told.append)
    return told


def test_only_one_runs_at_a_time(world: StripeWorld):
    world.subscribed()
    refused = []
    with connect(world.url) as other:

        def try_another(_: object) -> None:
            with pytest.raises(ReconcileRunningError) as caught:
                reconcile(other, world.client, dry_run=True)
            refused.append(caught.value)

        reconcile(world.conn, world.client, progress=try_another)
        assert len(refused) == 2
        assert not reconcile(other, world.client).is_resumed


def test_holder_of_the_lock_is_named(world: StripeWorld):
    """Any role can take an advisory lock, so the error says which session to end."""
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


def test_holder_of_another_role_is_named_as_far_as_it_is_seen(world: StripeWorld):
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


class Killed(BaseException):
    """Stands for kill -9: nothing is tidied up after it."""


def killed_at(world: StripeWorld, page: int, **options: Any) -> None:
    """Begin a run and leave it at its *page*-th page, its session gone."""
    left = [page]

    def die(_: object) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    with connect(world.url) as conn, contextlib.suppress(Killed):
        reconcile(conn, world.client, progress=die, page_size=3, **options)


def test_killed_run_goes_on_from_where_it_was(world: StripeWorld):
    for _ in range(8):
        world.subscribe(world.customer(world.user()))
    world.fake.advance(seconds=2)
    killed_at(world, 2)
    world.fake.reset_stats()

    done = reconcile(world.conn, world.client, page_size=3)
    assert done.is_resumed
    assert done.seen == {"customers": 8, "subscriptions": 8}
    assert done.found["missing_here"] == 16
    assert world.fake.stats()["requests"] == {
        "GET /v1/customers": 1,
        "GET /v1/subscriptions": 3,
    }
    outcomes = world.conn.execute(
        "SELECT id, outcome FROM app.stripe_sync_runs"
    ).fetchall()
    assert outcomes == [(done.run_id, "completed")]
    assert world.reconcile() == []


def test_page_that_is_rolled_back_is_not_passed_over(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C comes between the page's work and its commit."""
    for _ in range(2):
        world.subscribe(world.customer(world.user()))
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


def test_killed_dry_run_begins_anew(world: StripeWorld):
    for _ in range(4):
        world.customer(world.user())
    world.fake.advance(seconds=2)
    killed_at(world, 1, dry_run=True)
    done = reconcile(world.conn, world.client, dry_run=True)
    assert not done.is_resumed
    assert done.found["missing_here"] == 4
    outcomes = world.conn.execute(
        "SELECT outcome, last_error FROM app.stripe_sync_runs ORDER BY id"
    ).fetchall()
    assert outcomes == [("failed", "it was killed"), ("completed", None)]


def test_run_that_is_too_old_is_not_resumed(world: StripeWorld):
    for _ in range(4):
        world.customer(world.user())
    killed_at(world, 1)
    world.conn.execute(
        "UPDATE app.stripe_sync_runs SET started_at = now() - interval '25 hours'"
    )
    assert not reconcile(world.conn, world.client).is_resumed


def test_run_goes_on_although_its_cursor_was_deleted(world: StripeWorld):
    customers = [world.customer(world.user()) for _ in range(8)]
    world.fake.advance(seconds=2)
    killed_at(world, 1)
    world.client.v1.customers.delete(customers[-3])
    world.reconcile(page_size=3)
    rows = world.conn.execute(
        "SELECT id FROM app.stripe_customers WHERE NOT is_deleted"
    ).fetchall()
    assert {name for (name,) in rows} >= set(customers) - {customers[-3]}
    world.reconcile()
    assert world.reconcile() == []


def test_rate_limit_is_waited_for_as_long_as_told(
    world: StripeWorld, waits: list[float]
):
    world.subscribed()
    world.fake.faults.add("rate_limit", times=2, retry_after=7)
    world.fake.faults.add("rate_limit")
    world.fake.faults.add("error", status=503)
    world.fake.faults.add("cut")
    assert world.reconcile() == []
    assert waits[:2] == [7, 7]
    assert [0 < wait <= 16 for wait in waits[2:]] == [True] * 3


def test_refusal_ends_the_run_with_a_reason_and_no_key(world: StripeWorld):
    with pytest.raises(StripeRequestError, match="Invalid API Key") as caught:
        reconcile(world.conn, world.fake.client("sk_test_not!a_key_at_all"))
    assert "sk_test" not in str(caught.value)
    ends = world.conn.execute(
        "SELECT outcome, last_error FROM app.stripe_sync_runs"
    ).fetchall()
    assert [(outcome, "sk_test" in error) for outcome, error in ends] == [
        ("failed", False)
    ]
    assert not reconcile(world.conn, world.client).is_resumed


def test_key_of_the_other_mode_ends_the_run_and_takes_nothing_for_deleted(
    world: StripeWorld,
):
    user_id, customer, _ = world.subscribed()
    world.fake.advance(seconds=60)
    with pytest.raises(StripeRequestError, match="but a live mode key was used"):
        reconcile(world.conn, world.fake.client("sk_live_fake"))
    assert not world.customer_row(customer).is_deleted
    assert world.get(user_id).subscription_active
    assert world.reconcile() == []


def test_progress_says_how_many_to_expect(world: StripeWorld):
    for _ in range(5):
        world.customer(world.user())
    world.deliver()
    world.fake.advance(seconds=2)
    told: list[Any] = []
    done = reconcile(world.conn, world.client, progress=told.append, page_size=2)
    assert [(p.object_type, p.seen, p.expected) for p in told] == [
        ("customers", 2, 5),
        ("customers", 4, 5),
        ("customers", 5, 5),
        ("subscriptions", 0, 0),
    ]
    assert isinstance(done, Reconciliation)
    assert done.number_found == 0
