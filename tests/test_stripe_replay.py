"""Replay processes every event that Stripe could not deliver, once."""

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pyapp._core.connection import connect
from pyapp.errors import InvalidValueError, ReconcileRunningError, StripeRequestError
from pyapp.stripe_sync import Outcome, Replay, replay_events
from pyapp.stripe_sync import client as api
from pyapp.stripe_sync.replay import RESULTS
from tests.bad_input.values import NoOffset
from tests.stripe_world import Killed, StripeWorld, moment, stripe_world

HOUR = 3600
DAY = 24 * HOUR
LIST = "GET /v1/events"


@pytest.fixture
def world(module_database: str) -> Iterator[StripeWorld]:
    # Times more than 30 days ago would be refused.
    with stripe_world(module_database, start=int(time.time()) - HOUR) as running:
        running.clear_stripe()
        yield running


def lose_customers(world: StripeWorld, number: int) -> list[str]:
    """Create customers, a second apart, without deliveries; return the event ids."""
    for _ in range(number):
        world.create_customer(world.create_user())
        world.fake.advance(seconds=1)
    return [delivery.event.id for delivery in world.fake.deliveries.drop()]


def run(world: StripeWorld, **options: Any) -> tuple[Replay, list[Outcome]]:
    """Replay; return the totals and the outcomes in order."""
    outcomes: list[Outcome] = []
    done = replay_events(
        world.conn, world.client, on_outcome=outcomes.append, **options
    )
    return done, outcomes


def counts(done: Replay) -> dict[str, int]:
    return {result: number for result, number in done.results.items() if number}


def test_lost_events_are_processed_once_the_oldest_first(world: StripeWorld):
    user_id = world.create_user()
    subscription = world.subscribe(world.create_customer(user_id))
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.cancel(subscription)
    used = [
        d for d in world.fake.deliveries.drop() if d.event.type != "invoice.created"
    ]

    done, outcomes = run(world)
    assert not done.is_resumed
    assert {one.event_id for one in outcomes} <= {d.event.id for d in used}
    assert (outcomes[0].type, outcomes[-1].type) == (
        "customer.created",
        "customer.subscription.deleted",
    )
    assert counts(done) == {"applied": done.seen}
    assert world.get_user(user_id).subscription_status == "canceled"

    again, _ = run(world)
    assert counts(again) == {"duplicate": done.seen}
    assert tuple(again.results) == RESULTS


def test_delivered_events_are_not_listed(world: StripeWorld):
    world.create_customer(world.create_user())
    (delivery,) = world.pop_deliveries()
    world.handle_delivery(delivery)
    delivery.succeed()
    lost = lose_customers(world, 1)

    assert [one.event_id for one in run(world)[1]] == lost


def test_failed_events_are_processed_again(world: StripeWorld):
    change = "ALTER TABLE app.stripe_customers"
    world.conn.execute(f"{change} ADD CONSTRAINT refused CHECK (id = '') NOT VALID")
    world.create_customer(world.create_user())
    (delivery,) = world.pop_deliveries()
    assert world.handle_delivery(delivery).result == "failed"
    delivery.fail()

    done, (outcome,) = run(world)
    assert (counts(done), bool(outcome.error)) == ({"failed": 1}, True)
    world.conn.execute(f"{change} DROP CONSTRAINT refused")
    assert counts(run(world)[0]) == {"applied": 1}
    assert world.events()[0][1:3] == ("applied", 3)


def test_delivery_after_a_replay_is_a_duplicate(world: StripeWorld):
    world.create_customer(world.create_user())
    assert counts(run(world)[0]) == {"applied": 1}
    assert world.handle_all() == ["duplicate"]


def test_replayed_event_is_stale_after_a_newer_one(world: StripeWorld):
    subscription = world.create_subscription()
    world.handle_all()
    world.fake.advance(seconds=60)
    world.change_price(subscription, "price_other")
    (lost,) = world.fake.deliveries.drop("customer.subscription.updated")
    world.fake.advance(seconds=60)
    world.change_price(subscription, "price_year")
    world.handle_all()

    _, outcomes = run(world)
    (late,) = (one for one in outcomes if one.event_id == lost.event.id)
    assert late.result == "stale"
    assert world.price_of(subscription) == "price_year"


@pytest.mark.parametrize("page_size", [1, 3, 4, 8, 100])
def test_pages_of_any_size_are_read_from_the_oldest(world: StripeWorld, page_size: int):
    lost = lose_customers(world, 8)
    reported: list[Any] = []
    done, outcomes = run(world, page_size=page_size, progress=reported.append)

    assert [one.event_id for one in outcomes] == lost
    assert (done.seen, counts(done)) == (8, {"applied": 8})
    assert {(how.object_type, how.expected) for how in reported} == {("events", 8)}
    assert reported[-1].seen == 8


def test_only_events_since_a_time_are_replayed(world: StripeWorld):
    lost = lose_customers(world, 4)
    since = moment(world.fake.clock.now - 2)
    assert [one.event_id for one in run(world, since=since)[1]] == lost[2:]


def test_invalid_since_is_refused(world: StripeWorld):
    now = datetime.now(UTC)
    for since, message in (
        (datetime(2026, 9, 1), "must have a time zone"),  # noqa: DTZ001
        (datetime(2026, 9, 1, tzinfo=NoOffset()), "must have a time zone"),
        ("2026-09-01", "must be a datetime"),
        (now - timedelta(days=31), "keeps events for 30 days"),
        (now + timedelta(hours=1), "in the future"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            run(world, since=since)
    assert world.conn.execute("SELECT FROM app.stripe_sync_runs").fetchall() == []


def kill_replay(world: StripeWorld, number: int, **options: Any) -> None:
    """Begin a replay in pages of 3, and abandon it at its *number*-th event."""
    left = [number]

    def die(_: Outcome) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    with connect(world.url) as conn, contextlib.suppress(Killed):
        replay_events(conn, world.client, on_outcome=die, page_size=3, **options)


def test_killed_replay_resumes_at_its_page(world: StripeWorld):
    lose_customers(world, 8)
    kill_replay(world, 5)
    late = lose_customers(world, 1)
    world.fake.reset_stats()

    done, outcomes = run(world, page_size=3)
    assert done.is_resumed
    # The page of the kill is repeated; the last event is a new one.
    assert [one.result for one in outcomes] == ["duplicate"] * 3 + ["applied"] * 4
    assert outcomes[-1].event_id == late[0]
    assert done.seen == 9
    # The newest customer proves the account.
    assert world.fake.stats()["requests"] == {LIST: 4, "GET /v1/customers/:id": 1}
    assert len(world.events()) == 9


@pytest.mark.parametrize(
    "cursor",
    [
        "{",
        "[]",
        '{"since": null, "after": "evt_1", "created": 5, "nameless": 2}',
        '{"since": null, "after": 5}',
        '{"since": "yesterday"}',
    ],
)
def test_replay_with_an_unreadable_cursor_starts_again(
    world: StripeWorld, caplog: pytest.LogCaptureFixture, cursor: str
):
    lost = lose_customers(world, 8)
    kill_replay(world, 5)
    world.conn.execute("UPDATE app.stripe_sync_runs SET cursor = %s", [cursor])
    done, outcomes = run(world, page_size=3)
    assert (done.is_resumed, done.seen) == (False, 8)
    assert [one.event_id for one in outcomes] == lost
    assert "saved cursor is unreadable" in caplog.text


def test_replay_of_a_longer_time_does_not_resume_a_shorter(world: StripeWorld):
    lost = lose_customers(world, 8)
    since = moment(world.fake.clock.now - 4)
    kill_replay(world, 4, since=since)

    done, outcomes = run(world, page_size=3)
    assert not done.is_resumed
    assert [one.event_id for one in outcomes] == lost
    assert (done.seen, counts(done)) == (8, {"applied": 4, "duplicate": 4})


def test_replay_of_a_shorter_time_resumes_a_longer_one(world: StripeWorld):
    lose_customers(world, 8)
    kill_replay(world, 4)
    since = moment(world.fake.clock.now - 1)
    done, _ = run(world, page_size=3, since=since)
    assert (done.is_resumed, done.seen) == (True, 8)


def test_replay_resumes_after_stripe_dropped_its_cursor(world: StripeWorld):
    lost = lose_customers(world, 3)
    world.fake.advance(seconds=5 * DAY)
    lost += lose_customers(world, 5)
    kill_replay(world, 5)
    world.fake.advance(seconds=26 * DAY)

    done, outcomes = run(world, page_size=3)
    assert done.is_resumed
    assert [one.event_id for one in outcomes] == lost[3:]
    assert len(world.events()) == 8


def test_replay_continues_when_stripe_drops_old_events(world: StripeWorld):
    lost = lose_customers(world, 5)
    world.fake.advance(seconds=30 * DAY - 4)
    replayed: list[str] = []

    def age(outcome: Outcome) -> None:
        replayed.append(outcome.event_id)
        world.fake.advance(seconds=1)

    replay_events(world.conn, world.client, on_outcome=age, page_size=1)
    assert replayed[-1] == lost[-1]
    assert len(replayed) == len(set(replayed))


def test_replay_ends_while_deliveries_keep_failing(world: StripeWorld):
    lose_customers(world, 4)
    left = iter(range(100))

    def lose_more(_: Outcome) -> None:
        next(left)
        world.fake.advance(seconds=10)
        lose_customers(world, 3)

    done = replay_events(world.conn, world.client, on_outcome=lose_more, page_size=3)
    assert done.seen <= 6


def test_only_one_replay_runs_at_a_time(world: StripeWorld):
    lose_customers(world, 1)

    def try_another(_: object) -> None:
        with connect(world.url) as other, pytest.raises(ReconcileRunningError):
            replay_events(other, world.client)

    assert replay_events(world.conn, world.client, on_outcome=try_another).seen == 1


def test_rate_limit_fails_no_event(world: StripeWorld, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    world.create_subscription()
    world.fake.faults.add("rate_limit", path="/v1/events", retry_after=7)
    world.fake.faults.add("rate_limit", path="/v1/subscriptions/", retry_after=9)
    world.fake.faults.add("error", path="/v1/subscriptions/", status=503)

    def check_locks(seconds: float) -> None:
        # The replay's own lock, and no lock on a customer.
        held = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
        assert len(world.conn.execute(held).fetchall()) == 1
        waits.append(seconds)

    monkeypatch.setattr(api, "sleep", check_locks)
    done, _ = run(world)
    assert counts(done) == {"applied": done.seen}
    assert waits[:2] == [7, 9]
    assert len(waits) == 3


def test_outage_ends_the_replay_and_fails_no_event(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(api, "sleep", lambda _: None)
    subscription = world.create_subscription()
    outage = world.fake.faults.add("error", skip=1, times=None)
    with pytest.raises(StripeRequestError):
        run(world)
    assert {status for _, status, _, _ in world.events()} == {"applied"}
    outage.times = 0
    assert "failed" not in counts(run(world)[0])
    assert world.subscription_row(subscription).status == "active"
