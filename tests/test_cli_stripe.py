"""`pyapp stripe`: list, retry, replay and prune events."""

import json
import re
import time
from collections.abc import Iterator

import pytest

from tests.fake_stripe import TEST_KEY
from tests.stripe_world import (
    StripeWorld,
    make_customer,
    make_subscription,
    stripe_world,
)
from tests.support import run_cli, unfolded

CREATED = "customer.subscription.created"


@pytest.fixture
def world(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[StripeWorld]:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("STRIPE_SECRET_KEY", "")
    # Events older than 30 days cannot be replayed.
    with stripe_world(database, start=int(time.time()) - 60) as running:
        running.fake.add_price("price_bad")
        yield running


def refuse_bad_price(world: StripeWorld) -> None:
    world.conn.execute(
        "ALTER TABLE app.users ADD CONSTRAINT no_bad_price"
        " CHECK (stripe_price_id <> 'price_bad')"
    )


def add_failed_event(world: StripeWorld, id: str = "evt_bad") -> None:
    refuse_bad_price(world)
    world.handle_event(
        "customer.created", make_customer("cus_1", world.create_user()), id="evt_good"
    )
    shape = make_subscription("sub_1", "cus_1", price="price_bad")
    assert world.handle_event(CREATED, shape, id=id).result == "failed"


def repair(world: StripeWorld) -> None:
    world.conn.execute("ALTER TABLE app.users DROP CONSTRAINT no_bad_price")


def test_events_are_listed_newest_first_or_only_failed_ones(world: StripeWorld):
    assert run_cli("stripe", "events") == (0, "there are no events\n", "")
    add_failed_event(world)

    code, out, err = run_cli("stripe", "events")
    assert (code, err) == (0, "")
    header, *rows = out.splitlines()
    assert re.split("  +", header) == [
        "event",
        "created (UTC)",
        "status",
        "attempts",
    ]
    bad, bad_type, *error, good, _ = rows
    assert [bad.split()[0], *bad.split()[3:]] == ["evt_bad", "failed", "1"]
    assert "no_bad_price" in unfolded("".join(error))
    assert [good.split()[0], *good.split()[3:]] == ["evt_good", "applied", "1"]
    assert bad_type == f"  {CREATED}"

    assert "evt_good" not in run_cli("stripe", "events", "--limit", "1")[1]
    _, *failed = run_cli("stripe", "events", "--failed")[1].splitlines()
    assert unfolded(" ".join(failed)) == unfolded(" ".join(rows[:-2]))


def test_text_of_an_event_cannot_control_the_terminal(world: StripeWorld):
    world.handle_event("\x1b[2Jmoon", {"id": "x_1", "object": "x"}, id="evt_\x1b[1m")

    assert "\x1b" not in run_cli("stripe", "events")[1]


def test_retry_exits_with_1_while_an_event_fails(world: StripeWorld):
    assert run_cli("stripe", "retry") == (0, "there are no failed events\n", "")
    add_failed_event(world)

    code, out, err = run_cli("stripe", "retry")
    assert (code, err) == (1, "")
    error, *_, summary = out.splitlines()
    assert error.startswith("evt_bad  ")
    assert summary == "1 failed"
    assert world.events()[1][1:3] == ("failed", 2)

    repair(world)
    assert run_cli("stripe", "retry") == (0, "1 applied\n", "")
    assert run_cli("stripe", "retry") == (0, "there are no failed events\n", "")
    assert world.price_of("sub_1") == "price_bad"


def test_discarded_event_is_not_retried(world: StripeWorld):
    add_failed_event(world)
    code, out, _ = run_cli("stripe", "discard", "evt_bad", answer="n\n")
    declined = "Nothing is discarded; --yes discards without asking."
    assert (code, out) == (1, f"Discard evt_bad? [y/N]: {declined}\n")
    assert world.events()[1][1] == "failed"

    code, out, err = run_cli("stripe", "discard", "evt_bad", "--yes")
    assert (code, err) == (0, "")
    assert out.startswith(f"evt_bad ({CREATED}) is discarded: RuleError: ")
    assert "no_bad_price" in unfolded(out)
    assert run_cli("stripe", "retry") == (0, "there are no failed events\n", "")
    repair(world)
    shape = make_subscription("sub_1", "cus_1", price="price_bad")
    assert world.handle_event(CREATED, shape, id="evt_bad").result == "duplicate"
    (row,) = [event for event in world.events() if event[1] == "ignored"]
    assert str(row[3]).startswith("discarded: RuleError: ")
    assert "discarded: RuleError: " in run_cli("stripe", "events")[1]

    for event in ("evt_bad", "evt_good", "evt_unknown"):
        code, out, err = run_cli("stripe", "discard", event, "--yes")
        assert (code, out) == (1, "")
        assert err.startswith(f"error: there is no failed event {event}: ")


def test_retry_names_the_user_of_a_conflict(world: StripeWorld):
    owner, other = world.create_user(), world.create_user()
    world.handle_event("customer.created", make_customer("cus_1", owner))
    refuse_bad_price(world)
    shape = make_subscription(
        "sub_1", "cus_1", price="price_bad", metadata={"user_id": str(other)}
    )
    world.handle_event(CREATED, shape, id="evt_bad")
    repair(world)
    assert run_cli("stripe", "retry") == (
        0,
        f"evt_bad  conflict: it claims user {other}, and its\n"
        "  customer has another one\n"
        "1 applied\n",
        "",
    )


def test_retry_prints_one_json_object_a_line(world: StripeWorld):
    add_failed_event(world)
    code, out, err = run_cli("stripe", "retry", "--json")
    assert (code, err) == (1, "")
    outcome, totals = map(json.loads, out.splitlines())
    assert "no_bad_price" in outcome.pop("error")
    assert outcome == {
        "record": "outcome",
        "event_id": "evt_bad",
        "event_type": CREATED,
        "result": "failed",
        "is_busy": False,
        "attempts": 2,
        "user_ids": [],
        "conflicting_user_id": None,
        "note": None,
    }
    results = dict.fromkeys(("applied", "duplicate", "stale", "ignored"), 0)
    assert totals == {
        "record": "totals",
        "is_resumed": False,
        "seen": 1,
        "results": {**results, "failed": 1},
    }
    repair(world)
    code, out, _ = run_cli("stripe", "retry", "--json")
    outcome = json.loads(out.splitlines()[0])
    assert (code, len(outcome["user_ids"])) == (0, 1)


def test_replay_sums_up_the_results_in_one_line(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    assert run_cli("stripe", "replay")[::2] == (
        1,
        "error: STRIPE_SECRET_KEY is not set; set it, or write it into .env.local\n",
    )
    monkeypatch.setenv("STRIPE_API_BASE", world.fake.base_url)
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    nothing = (0, "there are no undelivered events\n", "")
    assert run_cli("stripe", "replay") == nothing

    world.subscribe(world.create_customer(world.create_user()), "price_bad")
    assert run_cli("stripe", "replay", "--since", "0s") == nothing
    refuse_bad_price(world)
    code, out, err = run_cli("stripe", "replay", "--since", "30d")
    assert (code, err) == (1, "")
    *lines, summary = out.splitlines()
    errors = [line for line in lines if not line.startswith(" ")]
    *records, totals = map(
        json.loads, run_cli("stripe", "replay", "--json")[1].splitlines()
    )
    assert [record["result"] for record in records] == ["duplicate"] + ["failed"] * 2
    assert totals["seen"] == 3
    assert [error.split()[0][:4] for error in errors] == ["evt_"] * 2
    assert summary == "3 undelivered events: 1 applied, 2 failed"

    repair(world)
    summary = "3 undelivered events: 2 applied, 1 duplicate\n"
    assert run_cli("stripe", "replay") == (0, summary, "")


def test_replay_beyond_30_days_is_refused_in_one_line(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    code, out, err = run_cli("stripe", "replay", "--since", "31d")
    assert (code, out) == (1, "")
    assert err.startswith("error: Stripe keeps events for 30 days")
    assert len(err.splitlines()) == 1


def test_prune_keeps_payloads_of_new_and_of_failed_events(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pyapp.cli.stripe.BATCH", 2)
    add_failed_event(world)
    for number in range(4):
        world.handle_event("moon.landed", {"id": f"x_{number}", "object": "x"})
    world.conn.execute(
        "UPDATE app.stripe_events SET processed_at = now() - interval '2 days'"
        " WHERE id <> 'evt_good' AND status <> 'failed'"
    )

    def prune(*arguments: str) -> str:
        code, out, err = run_cli("stripe", "prune", *arguments)
        assert (code, err) == (0, "")
        return out

    assert prune() == "deleted the payloads of 0 events\n"
    assert prune("--older-than", "36h") == "deleted the payloads of 4 events\n"
    kept = world.conn.execute(
        "SELECT id FROM app.stripe_events WHERE payload IS NOT NULL ORDER BY id"
    ).fetchall()
    assert kept == [("evt_bad",), ("evt_good",)]
    assert len(world.events()) == 6


@pytest.mark.parametrize("age", ["90", "-1d", "1y", "d", "", "1.5h", "٣d"])
def test_age_without_a_unit_is_refused(age: str):
    assert run_cli("stripe", "prune", f"--older-than={age}")[0] == 2


def test_serving_without_a_secret_is_refused(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "")
    code, out, err = run_cli("stripe", "serve")

    assert (code, out) == (1, "")
    assert err.startswith("error: STRIPE_WEBHOOK_SECRET is not set")
    assert len(err.splitlines()) == 1
