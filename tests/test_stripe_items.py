"""One event or object that fails ends no run: it is named, and the others go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from pyapp._core.connection import connect
from pyapp.stripe_sync import Failure, Outcome, reconcile, replay_events
from pyapp.stripe_sync import client as api
from pyapp.stripe_sync.replay import retry_failed_events
from tests.fake_stripe import TEST_KEY
from tests.stripe_world import StripeWorld, make_customer
from tests.support import run_cli

Twist = Callable[[list[Any]], None]
TOO_FAR = 10**20


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for locks for less than five seconds, and for Stripe not at all."""
    monkeypatch.setattr("pyapp.stripe_sync.transactions.DELIVERY_TIMEOUT", 0.3)
    monkeypatch.setattr(api, "sleep", lambda _: None)


@dataclass
class Odd:
    """Stripe, with one thing that it lists changed: the customer, or its event."""

    client: Any
    object_type: str
    twist: Twist
    victim: str

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        answer = self.client.raw_request(method_, url_, **params)
        if url_ == f"/v1/{self.object_type}":
            shapes = answer.data["data"]
            for place, shape in enumerate(shapes):
                shown = (
                    shape["data"]["object"] if self.object_type == "events" else shape
                )
                if shown["id"] == self.victim:
                    one = [shape]
                    self.twist(one)
                    shapes[place] = one[0]
        return answer


@contextmanager
def held(world: StripeWorld, statement: str, *parameters: Any) -> Iterator[None]:
    with connect(world.url) as conn:
        conn.execute(statement.encode(), parameters)
        yield
        conn.rollback()


def refuse(world: StripeWorld, customer: str) -> None:
    """Have the database refuse one customer."""
    world.conn.execute(
        "ALTER TABLE app.stripe_customers ADD CONSTRAINT not_this_one"
        f" CHECK (id <> '{customer}') NOT VALID"
    )


# --- events ---


def fail_events(world: StripeWorld) -> list[str]:
    """Have three events fail that would be applied now; return their ids."""
    world.conn.execute(
        "ALTER TABLE app.stripe_customers ADD CONSTRAINT none CHECK (id = '') NOT VALID"
    )
    names = []
    for number in (1, 2, 3):
        outcome = world.send("customer.created", make_customer(f"cus_{number}"))
        assert outcome.result == "failed"
        names.append(outcome.event_id)
    world.conn.execute("ALTER TABLE app.stripe_customers DROP CONSTRAINT none")
    return names


def retry(world: StripeWorld) -> dict[str, tuple[str, str]]:
    """Return the result of each, and the kind of its error."""
    return {
        o.event_id: (o.result, str(o.error or "").partition(":")[0])
        for o in retry_failed_events(world.conn)
    }


DONE = ("applied", "")


@pytest.mark.parametrize(
    "payload", ["{}", "[]", "7", '{"id": "evt_x", "created": 1e400}']
)
def test_retry_passes_an_event_that_cannot_be_read(world: StripeWorld, payload: str):
    first, *others = fail_events(world)
    world.conn.execute(
        "UPDATE app.stripe_events SET payload = %s::jsonb WHERE id = %s",
        [payload, first],
    )
    expected = dict.fromkeys(others, DONE)
    assert retry(world) == {first: ("failed", "InvalidPayloadError"), **expected}
    assert retry(world) == {first: ("failed", "InvalidPayloadError")}
    assert world.events()[0][1:3] == ("failed", 3)


def test_retry_passes_an_event_that_is_refused(world: StripeWorld):
    first, *others = fail_events(world)
    refuse(world, "cus_1")
    expected = dict.fromkeys(others, DONE)
    assert retry(world) == {first: ("failed", "RuleError"), **expected}


def test_retry_passes_an_event_whose_customer_is_locked(world: StripeWorld):
    first, *others = fail_events(world)
    with held(world, "SELECT app.lock_stripe_customer('cus_1')"):
        found = retry(world)
    assert found.pop(first) in {("failed", "QueryCanceled")}
    assert found == dict.fromkeys(others, DONE)


def test_retry_passes_an_event_that_is_itself_locked(world: StripeWorld):
    first, *others = fail_events(world)
    with held(world, "SELECT FROM app.stripe_events WHERE id = %s FOR UPDATE", first):
        found = retry(world)
    assert found.pop(first)[0] == "failed"
    assert found == dict.fromkeys(others, DONE)


def test_retry_passes_events_deleted_or_done_since_they_were_listed(world: StripeWorld):
    names = fail_events(world)
    outcomes = retry_failed_events(world.conn)
    told = [next(outcomes)]
    world.conn.execute("DELETE FROM app.stripe_events WHERE id = %s", [names[1]])
    world.conn.execute(
        "UPDATE app.stripe_events SET status = 'applied', processed_at = now(),"
        " payload = NULL WHERE id = %s",
        [names[2]],
    )
    told += outcomes
    assert [(o.result, o.error) for o in told] == [
        ("applied", None),
        ("failed", "it was deleted"),
        ("duplicate", None),
    ]


def test_retry_takes_no_event_of_the_other_mode(world: StripeWorld):
    fail_events(world)
    found = [o.result for o in retry_failed_events(world.conn, livemode=True)]
    assert found == ["ignored"] * 3


def test_command_names_the_event_and_says_so_by_its_status(
    world: StripeWorld, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", world.url)
    first, *_ = fail_events(world)
    world.conn.execute(
        "UPDATE app.stripe_events SET payload = '{}' WHERE id = %s", [first]
    )
    code, out, err = run_cli("stripe", "retry")
    assert (code, err) == (1, "")
    line, total = out.splitlines()
    assert line.startswith(f"{first}  InvalidPayloadError: ")
    assert total == "2 applied, 1 failed"


# --- replay ---


def no_id(shapes: list[Any]) -> None:
    del shapes[0]["id"]


def odd_id(shapes: list[Any]) -> None:
    shapes[0]["id"] = "evt_\0"


def no_object(shapes: list[Any]) -> None:
    shapes[0]["data"] = None


def time_out_of_range(shapes: list[Any]) -> None:
    shapes[0]["created"] = TOO_FAR


def time_that_is_text(shapes: list[Any]) -> None:
    shapes[0]["created"] = "today"


def no_object_at_all(shapes: list[Any]) -> None:
    shapes[0] = None


def infinite(shapes: list[Any]) -> None:
    shapes[0]["created"] = float("inf")


TWISTS = [
    no_id,
    odd_id,
    no_object_at_all,
    time_out_of_range,
    time_that_is_text,
    infinite,
]


@pytest.fixture
def lost(world: StripeWorld) -> list[str]:
    """Three customers of whose creation no news has come."""
    customers = []
    for _ in range(3):
        customers.append(world.customer(world.user()))
        world.fake.advance(seconds=1)
    world.fake.deliveries.drop()
    world.fake.advance(seconds=2)
    return customers


@pytest.mark.parametrize("page_size", [2, 100])
@pytest.mark.parametrize("twist", [*TWISTS, no_object])
def test_replay_passes_an_event_that_is_unlike_stripes(
    world: StripeWorld, lost: list[str], twist: Twist, page_size: int
):
    told: list[Outcome] = []
    client: Any = Odd(world.client, "events", twist, lost[2])
    done = replay_events(
        world.conn, client, on_outcome=told.append, page_size=page_size
    )
    (failed,) = [o for o in told if o.result == "failed"]
    assert failed.error
    assert failed.event_id
    assert (done.results["applied"], done.results["failed"], done.seen) == (2, 1, 3)


def test_replay_passes_an_event_whose_customer_is_locked(
    world: StripeWorld, lost: list[str]
):
    with held(world, "SELECT app.lock_stripe_customer(%s)", lost[1]):
        done = replay_events(world.conn, world.client)
    assert (done.results["applied"], done.results["failed"]) == (2, 1)


def test_replay_passes_an_event_about_which_stripe_does_not_answer(
    world: StripeWorld, lost: list[str]
):
    subscription = world.subscribe(lost[1])
    world.fake.faults.add("error", path=f"/v1/subscriptions/{subscription}", times=None)
    told: list[Outcome] = []
    done = replay_events(world.conn, world.client, on_outcome=told.append)
    failed = [o for o in told if o.result == "failed"]
    assert failed
    assert {str(o.error).partition(":")[0] for o in failed} == {"StripeRequestError"}
    assert done.results["applied"] >= 3
    world.fake.faults.clear()
    assert replay_events(world.conn, world.client).results["failed"] == 0


# --- reconciliation ---


def run(world: StripeWorld, client: Any = None, **options: Any) -> list[Failure]:
    told: list[Failure] = []
    done = reconcile(
        world.conn, client or world.client, on_failure=told.append, **options
    )
    assert done.failed == len(told)
    return told


def known(world: StripeWorld) -> set[str]:
    rows = world.conn.execute("SELECT id FROM app.stripe_customers").fetchall()
    return {row[0] for row in rows}


def refused_id(shapes: list[Any]) -> None:
    shapes[0]["id"] = "odd_1"


def metadata_that_is_text(shapes: list[Any]) -> None:
    shapes[0]["metadata"] = "text"


def email_that_is_infinite(shapes: list[Any]) -> None:
    shapes[0]["email"] = float("inf")


@pytest.mark.parametrize("page_size", [2, 100])
@pytest.mark.parametrize("twist", [*TWISTS, refused_id, metadata_that_is_text])
def test_reconciliation_passes_a_customer_that_is_unlike_stripes(
    world: StripeWorld, lost: list[str], twist: Twist, page_size: int
):
    client = Odd(world.client, "customers", twist, lost[1])
    told = run(world, client, page_size=page_size)
    assert {one.object_type for one in told} == {"customers"}
    assert all(one.error for one in told)
    assert known(world) >= {lost[0], lost[2]}
    # What is as it should be again is found by the next run.
    assert run(world) == []
    assert known(world) == set(lost)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("customer", None),
        ("customer", 7),
        ("created", None),
        ("created", TOO_FAR),
        ("status", None),
        ("items", 7),
        ("items", {"data": [7]}),
        ("billing_cycle_anchor", "soon"),
        ("canceled_at", float("nan")),
        ("id", "odd_1"),
    ],
)
def test_reconciliation_passes_a_subscription_that_is_unlike_stripes(
    world: StripeWorld, lost: list[str], field: str, value: Any
):
    ours = [world.subscribe(customer) for customer in lost]
    world.fake.advance(seconds=2)

    def twist(shapes: list[Any]) -> None:
        shapes[0][field] = value

    told = run(world, Odd(world.client, "subscriptions", twist, ours[1]))
    assert [one.object_type for one in told] == ["subscriptions"]
    assert world.row(ours[0]).status == world.row(ours[2]).status == "active"


@pytest.mark.parametrize("is_dry_run", [False, True])
def test_reconciliation_passes_a_locked_customer(
    world: StripeWorld, lost: list[str], is_dry_run: bool
):
    with held(world, "SELECT app.lock_stripe_customer(%s)", lost[1]):
        told = run(world, dry_run=is_dry_run)
    if is_dry_run:
        assert told == []
        return
    assert [one.object_id for one in told] == [lost[1]]
    assert told[0].error.startswith("LockNotAvailable")
    assert known(world) == {lost[0], lost[2]}
    assert run(world) == []


def test_reconciliation_passes_a_locked_user(world: StripeWorld, lost: list[str]):
    assert run(world) == []
    world.conn.execute("UPDATE app.users SET created_at = created_at + '1 day'")
    held_row = "SELECT FROM app.users WHERE stripe_customer_id = %s FOR UPDATE"
    with held(world, held_row, lost[1]):
        told = run(world)
    assert [one.object_id for one in told] == [lost[1]]


def test_reconciliation_passes_an_object_about_which_stripe_does_not_answer(
    world: StripeWorld, lost: list[str]
):
    world.conn.execute(
        "INSERT INTO app.stripe_customers (id, as_of)"
        " VALUES ('cus_a', now()), ('cus_b', now())"
    )
    world.fake.faults.add("error", path="/v1/customers/cus_a", times=None)
    told = run(world)
    world.fake.faults.clear()
    assert [one.object_id for one in told] == ["cus_a"]
    assert world.customer_row("cus_b").is_deleted
    assert not world.customer_row("cus_a").is_deleted


def test_reconciliation_that_the_database_cannot_do_at_all_ends(
    world: StripeWorld, lost: list[str]
):
    """Each object would fail by the same error."""
    world.conn.execute("ALTER FUNCTION app.upsert_stripe_customers RENAME TO gone")
    with pytest.raises(Exception, match="upsert_stripe_customers"):
        run(world)


def test_command_names_the_object_and_says_so_by_its_status(
    world: StripeWorld, lost: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("STRIPE_API_BASE", world.fake.base_url)
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    refuse(world, lost[1])
    code, out, err = run_cli("stripe", "reconcile")
    assert (code, err) == (1, "")
    assert f"{lost[1]}: RuleError: " in out
    assert out.splitlines()[-1].endswith("; 1 failed")
    assert known(world) == {lost[0], lost[2]}
