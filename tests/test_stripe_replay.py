"""Replay takes in what Stripe could not deliver: all of it, and nothing twice."""

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
from tests.stripe_world import StripeWorld, moment, stripe_world

HOUR = 3600
DAY = 24 * HOUR
LIST = "GET /v1/events"


@pytest.fixture
def world(module_database: str) -> Iterator[StripeWorld]:
    # What lies more than 30 days back would be refused.
    with stripe_world(module_database, start=int(time.time()) - HOUR) as running:
        running.forget()
        yield running


def lose_customers(world: StripeWorld, number: int) -> list[str]:
    """Lose the news of so many customers, a second apart; return their events."""
    for _ in range(number):
        world.customer(world.user())
        world.fake.advance(seconds=1)
    return [delivery.event.id for delivery in world.fake.deliveries.drop()]


def run(world: StripeWorld, **options: Any) -> tuple[Replay, list[Outcome]]:
    """Replay; return what it says, and each outcome in order."""
    told: list[Outcome] = []
    done = replay_events(world.conn, world.client, on_outcome=told.append, **options)
    return done, told


def counts(done: Replay) -> dict[str, int]:
    return {result: number for result, number in done.results.items() if number}


def test_lost_events_are_taken_in_once_the_oldest_first(world: StripeWorld):
    user_id = world.user()
    subscription = world.subscribe(world.customer(user_id))
    world.fake.advance(seconds=60)
    world.client.v1.subscriptions.cancel(subscription)
    used = [
        d for d in world.fake.deliveries.drop() if d.event.type != "invoice.created"
    ]

    done, told = run(world)
    assert not done.is_resumed
    assert {one.event_id for one in told} <= {d.event.id for d in used}
    assert (told[0].type, told[-1].type) == (
        "customer.created",
        "customer.subscription.deleted",
    )
    assert counts(done) == {"applied": done.seen}
    assert world.get(user_id).subscription_status == "canceled"

    again, _ = run(world)
    assert counts(again) == {"duplicate": done.seen}
    assert tuple(again.results) == RESULTS


def test_delivered_events_are_not_asked_for(world: StripeWorld):
    world.customer(world.user())
    (delivery,) = world.take()
    world.handle(delivery)
    delivery.succeed()
    lost = lose_customers(world, 1)

    assert [one.event_id for one in run(world)[1]] == lost


def test_what_has_failed_here_is_tried_again(world: StripeWorld):
    change = "ALTER TABLE app.stripe_customers"
    world.conn.execute(f"{change} ADD CONSTRAINT none CHECK (id = '') NOT VALID")
    world.customer(world.user())
    (delivery,) = world.take()
    assert world.handle(delivery).result == "failed"
    delivery.fail()

    done, (outcome,) = run(world)
    assert (counts(done), bool(outcome.error)) == ({"failed": 1}, True)
    world.conn.execute(f"{change} DROP CONSTRAINT none")
    assert counts(run(world)[0]) == {"applied": 1}
    assert world.events()[0][1:3] == ("applied", 3)


def test_delivery_that_comes_after_all_changes_nothing(world: StripeWorld):
    world.customer(world.user())
    assert counts(run(world)[0]) == {"applied": 1}
    assert world.deliver() == ["duplicate"]


def test_replay_undoes_nothing_newer(world: StripeWorld):
    subscription = world.subscribe(world.customer(world.user()))
    world.deliver()
    world.fake.advance(seconds=60)
    world.change_price(subscription, "price_other")
    (lost,) = world.fake.deliveries.drop("customer.subscription.updated")
    world.fake.advance(seconds=60)
    world.change_price(subscription, "price_year")
    world.deliver()

    _, told = run(world)
    (late,) = (one for one in told if one.event_id == lost.event.id)
    assert late.result == "stale"
    assert world.row(subscription).price_id == "price_year"


@pytest.mark.parametrize("page_size", [1, 3, 4, 8, 100])
def test_pages_of_any_size_are_walked_from_the_oldest_on(
    world: StripeWorld, page_size: int
):
    lost = lose_customers(world, 8)
    told: list[Any] = []
    done, outcomes = run(world, page_size=page_size, progress=told.append)

    assert [one.event_id for one in outcomes] == lost
    assert (done.seen, counts(done)) == (8, {"applied": 8})
    assert {(how.object_type, how.expected) for how in told} == {("events", 8)}
    assert told[-1].seen == 8


def test_only_events_since_then_are_taken(world: StripeWorld):
    lost = lose_customers(world, 4)
    since = moment(world.fake.clock.now - 2)
    assert [one.event_id for one in run(world, since=since)[1]] == lost[2:]


def test_time_at_which_stripe_has_no_events_is_refused(world: StripeWorld):
    now = datetime.now(UTC)
    for since, told in (
        (datetime(2026, 9, 1), "must have a time zone"),  # noqa: DTZ001
        (datetime(2026, 9, 1, tzinfo=NoOffset()), "must have a time zone"),
        ("2026-09-01", "must be a datetime"),
        (now - timedelta(days=31), "keeps events for 30 days"),
        (now + timedelta(hours=1), "in the future"),
    ):
        with pytest.raises(InvalidValueError, match=told):
            run(world, since=since)
    assert world.conn.execute("SELECT FROM app.stripe_sync_runs").fetchall() == []


class Killed(BaseException):
    """Stands for kill -9: nothing is tidied up after it."""


def killed_at(world: StripeWorld, number: int, **options: Any) -> None:
    """Begin a replay in pages of 3, and leave it at its *number*-th event."""
    left = [number]

    def die(_: Outcome) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    with connect(world.url) as conn, contextlib.suppress(Killed):
        replay_events(conn, world.client, on_outcome=die, page_size=3, **options)


def test_killed_replay_goes_on_from_its_page(world: StripeWorld):
    lose_customers(world, 8)
    killed_at(world, 5)
    late = lose_customers(world, 1)
    world.fake.reset_stats()

    done, told = run(world, page_size=3)
    assert done.is_resumed
    # Of the page at which it was killed all were done, and the last came meanwhile.
    assert [one.result for one in told] == ["duplicate"] * 3 + ["applied"] * 4
    assert told[-1].event_id == late[0]
    assert done.seen == 9
    assert world.fake.stats()["requests"] == {LIST: 4}
    assert len(world.events()) == 9


def test_replay_of_a_longer_time_does_not_go_on_from_a_shorter_one(world: StripeWorld):
    lost = lose_customers(world, 8)
    since = moment(world.fake.clock.now - 4)
    killed_at(world, 4, since=since)

    done, told = run(world, page_size=3)
    assert not done.is_resumed
    assert [one.event_id for one in told] == lost
    assert (done.seen, counts(done)) == (8, {"applied": 4, "duplicate": 4})


def test_replay_of_a_shorter_time_goes_on_from_a_longer_one(world: StripeWorld):
    lose_customers(world, 8)
    killed_at(world, 4)
    since = moment(world.fake.clock.now - 1)
    done, _ = run(world, page_size=3, since=since)
    assert (done.is_resumed, done.seen) == (True, 8)


def test_replay_goes_on_although_its_cursor_is_kept_no_more(world: StripeWorld):
    lost = lose_customers(world, 3)
    world.fake.advance(seconds=5 * DAY)
    lost += lose_customers(world, 5)
    killed_at(world, 5)
    world.fake.advance(seconds=26 * DAY)

    done, told = run(world, page_size=3)
    assert done.is_resumed
    assert [one.event_id for one in told] == lost[3:]
    assert len(world.events()) == 8


def test_oldest_event_that_stripe_drops_meanwhile_holds_up_nothing(world: StripeWorld):
    lost = lose_customers(world, 5)
    world.fake.advance(seconds=30 * DAY - 4)
    told: list[str] = []

    def age(outcome: Outcome) -> None:
        told.append(outcome.event_id)
        world.fake.advance(seconds=1)

    replay_events(world.conn, world.client, on_outcome=age, page_size=1)
    assert told[-1] == lost[-1]
    assert len(told) == len(set(told))


def test_replay_ends_although_nothing_can_be_delivered(world: StripeWorld):
    lose_customers(world, 4)
    left = iter(range(100))

    def happen(_: Outcome) -> None:
        next(left)
        world.fake.advance(seconds=10)
        lose_customers(world, 3)

    done = replay_events(world.conn, world.client, on_outcome=happen, page_size=3)
    assert done.seen <= 6


def test_only_one_replay_runs_at_a_time(world: StripeWorld):
    lose_customers(world, 1)

    def try_another(_: object) -> None:
        with connect(world.url) as other, pytest.raises(ReconcileRunningError):
            replay_events(other, world.client)

    assert replay_events(world.conn, world.client, on_outcome=try_another).seen == 1


def test_rate_limit_fails_no_event(world: StripeWorld, monkeypatch: pytest.MonkeyPatch):
    waits: list[float] = []
    world.subscribe(world.customer(world.user()))
    world.fake.faults.add("rate_limit", path="/v1/events", retry_after=7)
    world.fake.faults.add("rate_limit", path="/v1/subscriptions/", retry_after=9)
    world.fake.faults.add("error", path="/v1/subscriptions/", status=503)

    def look(seconds: float) -> None:
        # The lock on the replay itself, and none on a customer.
        held = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1"
        assert len(world.conn.execute(held).fetchall()) == 1
        waits.append(seconds)

    monkeypatch.setattr(api, "sleep", look)
    done, _ = run(world)
    assert counts(done) == {"applied": done.seen}
    assert waits[:2] == [7, 9]
    assert len(waits) == 3


def test_outage_ends_the_replay_and_fails_no_event(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(api, "sleep", lambda _: None)
    subscription = world.subscribe(world.customer(world.user()))
    outage = world.fake.faults.add("error", skip=1, times=None)
    with pytest.raises(StripeRequestError):
        run(world)
    assert {status for _, status, _, _ in world.events()} == {"applied"}
    outage.times = 0
    assert "failed" not in counts(run(world)[0])
    assert world.row(subscription).status == "active"


def test_event_that_cannot_be_read_holds_up_no_other(world: StripeWorld):
    with world.fake.world.lock:
        shape: Any = None
        world.fake.world.emit_shape("customer.updated", False, shape)
    lost = lose_customers(world, 1)

    done, (unread, other) = run(world)
    assert counts(done) == {"failed": 1, "applied": 1}
    assert "InvalidPayloadError" in str(unread.error)
    assert other.event_id == lost[-1]
