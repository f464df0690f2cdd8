"""A failed event or object is reported by its id, and the run goes on."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
import stripe

from pyapp._core.connection import connect
from pyapp.stripe_sync import (
    Outcome,
    Refusal,
    handle_webhook,
    reconcile,
    replay_events,
)
from pyapp.stripe_sync import client as api
from pyapp.stripe_sync.replay import retry_failed_events
from tests.fake_stripe import TEST_KEY, TEST_SECRET
from tests.stripe_world import StripeWorld, held, make_customer, make_subscription
from tests.support import run_cli

Change = Callable[[list[Any]], None]
TOO_FAR = 10**20


@pytest.fixture(autouse=True)
def _shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten lock waits, and skip waits between requests."""
    for module in ("runs", "transactions"):
        monkeypatch.setattr(f"pyapp.stripe_sync.{module}.DELIVERY_TIMEOUT", 0.3)
    monkeypatch.setattr(api, "sleep", lambda _: None)


@dataclass
class ChangedClient:
    """A client that applies *change* to one listed customer, or to its event."""

    client: Any
    object_type: str
    change: Change
    object_id: str

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        response = self.client.raw_request(method_, url_, **params)
        if url_ == f"/v1/{self.object_type}":
            shapes = response.data["data"]
            for place, shape in enumerate(shapes):
                listed = (
                    shape["data"]["object"] if self.object_type == "events" else shape
                )
                if listed["id"] == self.object_id:
                    one = [shape]
                    self.change(one)
                    shapes[place] = one[0]
        return response


def refuse(world: StripeWorld, customer: str) -> None:
    """Add a constraint that refuses one customer."""
    world.conn.execute(
        "ALTER TABLE app.stripe_customers ADD CONSTRAINT refused_customer"
        f" CHECK (id <> '{customer}') NOT VALID"
    )


# --- events ---


def fail_events(world: StripeWorld) -> list[str]:
    """Store three failed events that would now be applied; return their ids."""
    world.conn.execute(
        "ALTER TABLE app.stripe_customers"
        " ADD CONSTRAINT refused CHECK (id = '') NOT VALID"
    )
    ids = []
    for number in (1, 2, 3):
        outcome = world.handle_event("customer.created", make_customer(f"cus_{number}"))
        assert outcome.result == "failed"
        ids.append(outcome.event_id)
    world.conn.execute("ALTER TABLE app.stripe_customers DROP CONSTRAINT refused")
    return ids


def retry(world: StripeWorld) -> dict[str, tuple[str, str]]:
    """Return the result and the error class of each event."""
    return {
        o.event_id: (o.result, str(o.error or "").partition(":")[0])
        for o in retry_failed_events(world.conn)
    }


APPLIED = ("applied", "")


@pytest.mark.parametrize(
    "payload", ["{}", "[]", "7", '{"id": "evt_x", "created": 1e400}']
)
def test_retry_skips_an_unreadable_event(world: StripeWorld, payload: str):
    first, *others = fail_events(world)
    world.conn.execute(
        "UPDATE app.stripe_events SET payload = %s::jsonb WHERE id = %s",
        [payload, first],
    )
    expected = dict.fromkeys(others, APPLIED)
    assert retry(world) == {first: ("failed", "InvalidPayloadError"), **expected}
    assert retry(world) == {first: ("failed", "InvalidPayloadError")}
    assert world.events()[0][1:3] == ("failed", 3)


def test_retry_skips_a_refused_event(world: StripeWorld):
    first, *others = fail_events(world)
    refuse(world, "cus_1")
    expected = dict.fromkeys(others, APPLIED)
    assert retry(world) == {first: ("failed", "RuleError"), **expected}


def test_retry_skips_an_event_of_a_locked_customer(world: StripeWorld):
    first, *others = fail_events(world)
    with held(world.url, "SELECT app.lock_stripe_customer('cus_1')"):
        found = retry(world)
    assert found.pop(first) in {("failed", "QueryCanceled")}
    assert found == dict.fromkeys(others, APPLIED)


def test_retry_skips_a_locked_event(world: StripeWorld):
    first, *others = fail_events(world)
    with held(
        world.url, "SELECT FROM app.stripe_events WHERE id = %s FOR UPDATE", first
    ):
        found = retry(world)
    assert found.pop(first)[0] == "failed"
    assert found == dict.fromkeys(others, APPLIED)


REFUSE_EVENT = """
CREATE FUNCTION public.refuse_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.id = ANY(TG_ARGV) THEN
        RAISE EXCEPTION 'not this event' USING ERRCODE = 'XY999';
    END IF;
    RETURN NEW;
END;
$$;
CREATE TRIGGER refuse_event BEFORE INSERT OR UPDATE ON app.stripe_events
FOR EACH ROW EXECUTE FUNCTION public.refuse_event({})
"""


def test_retry_skips_an_event_that_cannot_be_stored(world: StripeWorld):
    first, *others = fail_events(world)
    world.conn.execute(REFUSE_EVENT.format(f"'{first}'").encode())
    found = {o.event_id: o for o in retry_failed_events(world.conn)}
    assert "it is not stored: " in str(found[first].error)
    assert (found[first].result, found[first].attempts) == ("failed", None)
    assert [found[other].result for other in others] == ["applied"] * 2


def test_retry_skips_events_changed_since_they_were_listed(world: StripeWorld):
    ids = fail_events(world)
    outcomes = retry_failed_events(world.conn)
    found = [next(outcomes)]
    world.conn.execute("DELETE FROM app.stripe_events WHERE id = %s", [ids[1]])
    world.conn.execute(
        "UPDATE app.stripe_events SET status = 'applied', processed_at = now(),"
        " payload = NULL WHERE id = %s",
        [ids[2]],
    )
    found += outcomes
    assert [(o.result, o.error) for o in found] == [
        ("applied", None),
        ("failed", "it was deleted"),
        ("duplicate", None),
    ]


def test_retry_ignores_events_of_the_other_mode(world: StripeWorld):
    fail_events(world)
    found = [o.result for o in retry_failed_events(world.conn, livemode=True)]
    assert found == ["ignored"] * 3


def test_retry_command_names_the_event_and_exits_1(
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


@dataclass
class CuttingClient:
    """A client whose first request of an object finds the database's connection cut."""

    client: Any
    world: StripeWorld
    process: int

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        if url_.startswith("/v1/subscriptions/"):
            self.world.conn.execute(
                "SELECT pg_terminate_backend(%s, 5000)", [self.process]
            )
            raise stripe.RateLimitError("too many requests", http_status=429)
        return self.client.raw_request(method_, url_, **params)


@pytest.mark.parametrize("attempt", ["webhook", "replay", "reconcile"])
def test_lost_connection_during_a_fetch_is_reported_as_such(
    world: StripeWorld, attempt: str
):
    """The error of Stripe's API is not the one to report."""
    world.create_subscription()
    delivery = world.pop_deliveries("invoice.paid")[-1]
    gone = make_subscription("sub_gone", "cus_1")
    world.handle_event("customer.subscription.created", gone)
    world.fake.advance(seconds=2)
    with connect(world.url) as conn:
        client: Any = CuttingClient(world.client, world, conn.info.backend_pid)
        runs: dict[str, Callable[[], object]] = {
            "webhook": lambda: handle_webhook(
                conn, delivery.payload, delivery.signature, [TEST_SECRET], client
            ),
            "replay": lambda: replay_events(conn, client),
            "reconcile": lambda: reconcile(conn, client),
        }
        with pytest.raises(psycopg.OperationalError):
            runs[attempt]()


# --- replay ---


def no_id(shapes: list[Any]) -> None:
    del shapes[0]["id"]


def invalid_id(shapes: list[Any]) -> None:
    shapes[0]["id"] = "evt_\0"


def no_object(shapes: list[Any]) -> None:
    shapes[0]["data"] = None


def far_future(shapes: list[Any]) -> None:
    shapes[0]["created"] = TOO_FAR


def text_time(shapes: list[Any]) -> None:
    shapes[0]["created"] = "today"


def null_object(shapes: list[Any]) -> None:
    shapes[0] = None


def infinite_time(shapes: list[Any]) -> None:
    shapes[0]["created"] = float("inf")


CHANGES = [
    no_id,
    invalid_id,
    null_object,
    far_future,
    text_time,
    infinite_time,
]


@pytest.fixture
def lost(world: StripeWorld) -> list[str]:
    """Return three customers whose events were not delivered."""
    customers = []
    for _ in range(3):
        customers.append(world.create_customer(world.create_user()))
        world.fake.advance(seconds=1)
    world.fake.deliveries.drop()
    world.fake.advance(seconds=2)
    return customers


@pytest.mark.parametrize("page_size", [1, 2, 100])
@pytest.mark.parametrize("change", [*CHANGES, no_object])
def test_replay_skips_a_malformed_event(
    world: StripeWorld, lost: list[str], change: Change, page_size: int
):
    reported: list[Outcome] = []
    client: Any = ChangedClient(world.client, "events", change, lost[2])
    done = replay_events(
        world.conn, client, on_outcome=reported.append, page_size=page_size
    )
    (failed,) = [o for o in reported if o.result == "failed"]
    assert failed.error
    assert failed.event_id
    assert (done.results["applied"], done.results["failed"], done.seen) == (2, 1, 3)


def test_replay_skips_an_event_that_cannot_be_stored(
    world: StripeWorld, lost: list[str]
):
    first = world.client.v1.events.list({}).data[-1].id
    world.conn.execute(REFUSE_EVENT.format(f"'{first}'").encode())
    done = replay_events(world.conn, world.client)
    assert (done.results["applied"], done.results["failed"]) == (2, 1)


def test_replay_skips_an_event_of_a_locked_customer(
    world: StripeWorld, lost: list[str]
):
    with held(world.url, "SELECT app.lock_stripe_customer(%s)", lost[1]):
        done = replay_events(world.conn, world.client)
    assert (done.results["applied"], done.results["failed"]) == (2, 1)


def test_replay_skips_an_event_whose_fetch_fails(world: StripeWorld, lost: list[str]):
    subscription = world.subscribe(lost[1])
    world.fake.faults.add("error", path=f"/v1/subscriptions/{subscription}", times=None)
    reported: list[Outcome] = []
    done = replay_events(world.conn, world.client, on_outcome=reported.append)
    failed = [o for o in reported if o.result == "failed"]
    assert failed
    assert {str(o.error).partition(":")[0] for o in failed} == {"StripeRequestError"}
    assert done.results["applied"] >= 3
    world.fake.faults.clear()
    assert replay_events(world.conn, world.client).results["failed"] == 0


# --- reconciliation ---


def run(world: StripeWorld, client: Any = None, **options: Any) -> list[Refusal]:
    reported: list[Refusal] = []
    done = reconcile(
        world.conn, client or world.client, on_refusal=reported.append, **options
    )
    assert done.number_refused == len(reported)
    return reported


def known(world: StripeWorld) -> set[str]:
    rows = world.conn.execute("SELECT id FROM app.stripe_customers").fetchall()
    return {row[0] for row in rows}


def long_id(shapes: list[Any]) -> None:
    shapes[0]["id"] = "cus_" + "1" * 252


def text_metadata(shapes: list[Any]) -> None:
    shapes[0]["metadata"] = "text"


@pytest.mark.parametrize("page_size", [1, 2, 100])
@pytest.mark.parametrize("change", [*CHANGES, long_id, text_metadata])
def test_reconciliation_skips_a_malformed_customer(
    world: StripeWorld, lost: list[str], change: Change, page_size: int
):
    client = ChangedClient(world.client, "customers", change, lost[1])
    reported = run(world, client, page_size=page_size)
    assert {one.object_type for one in reported} == {"customers"}
    assert all(one.reason for one in reported)
    assert known(world) >= {lost[0], lost[2]}
    # The next run finds the object that is valid again.
    assert run(world) == []
    assert known(world) == set(lost)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("customer", None),
        ("customer", 7),
        ("created", TOO_FAR),
        ("status", None),
        ("items", 7),
        ("items", {"data": [7]}),
        ("billing_cycle_anchor", "soon"),
        ("canceled_at", float("nan")),
        ("id", "sub_" + "1" * 252),
    ],
)
def test_reconciliation_skips_a_malformed_subscription(
    world: StripeWorld, lost: list[str], field: str, value: Any
):
    ours = [world.subscribe(customer) for customer in lost]
    world.fake.advance(seconds=2)

    def change(shapes: list[Any]) -> None:
        shapes[0][field] = value

    reported = run(world, ChangedClient(world.client, "subscriptions", change, ours[1]))
    assert [one.object_type for one in reported] == ["subscriptions"]
    assert (
        world.subscription_row(ours[0]).status
        == world.subscription_row(ours[2]).status
        == "active"
    )


@pytest.mark.parametrize("is_dry_run", [False, True])
def test_reconciliation_skips_a_locked_customer(
    world: StripeWorld, lost: list[str], is_dry_run: bool
):
    with held(world.url, "SELECT app.lock_stripe_customer(%s)", lost[1]):
        reported = run(world, dry_run=is_dry_run)
    assert [(one.object_id, one.kind) for one in reported] == [(lost[1], "locked")]
    assert reported[0].reason.startswith("LockNotAvailable")
    assert known(world) == (set() if is_dry_run else {lost[0], lost[2]})
    assert run(world) == []


def test_reconciliation_skips_a_locked_user(world: StripeWorld, lost: list[str]):
    assert run(world) == []
    world.conn.execute("UPDATE app.users SET created_at = created_at + '1 day'")
    held_row = "SELECT FROM app.users WHERE stripe_customer_id = %s FOR UPDATE"
    with held(world.url, held_row, lost[1]):
        reported = run(world)
    assert [one.object_id for one in reported] == [lost[1]]


def test_reconciliation_skips_an_object_whose_fetch_fails(
    world: StripeWorld, lost: list[str]
):
    world.conn.execute(
        "INSERT INTO app.stripe_customers (id, as_of)"
        " VALUES ('cus_a', now()), ('cus_b', now())"
    )
    world.fake.faults.add("error", path="/v1/customers/cus_a", times=None)
    reported = run(world)
    world.fake.faults.clear()
    assert [one.object_id for one in reported] == ["cus_a"]
    assert world.customer_row("cus_b").is_deleted
    assert not world.customer_row("cus_a").is_deleted


def test_error_that_affects_all_objects_ends_the_run(
    world: StripeWorld, lost: list[str]
):
    """A missing function would fail every object."""
    world.conn.execute("ALTER FUNCTION app.upsert_stripe_customers RENAME TO gone")
    with pytest.raises(Exception, match="upsert_stripe_customers"):
        run(world)


def test_reconcile_command_names_the_object_and_exits_1(
    world: StripeWorld, lost: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("ENVIRONMENT", "local")
    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("STRIPE_API_BASE", world.fake.base_url)
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    refuse(world, lost[1])
    code, out, err = run_cli("stripe", "reconcile")
    assert (code, err) == (1, "")
    assert re.search(rf"^{lost[1]}  RuleError: new row ", out, re.MULTILINE)
    assert out.splitlines()[-2:] == [
        "refused: 1 (1 constraint)",
        "compared: 3 customers, 0 subscriptions",
    ]
    assert known(world) == {lost[0], lost[2]}
