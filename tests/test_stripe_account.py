"""A key of another Stripe account changes nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
import stripe

from pyapp.errors import OtherAccountError, StripeRequestError
from pyapp.stripe_sync import client as api
from pyapp.stripe_sync import reconcile, replay_events
from tests.fake_stripe import TEST_KEY, FakeStripe
from tests.stripe_world import START, StripeWorld, make_customer
from tests.support import run_cli

TABLES = ("users", "stripe_customers", "stripe_subscriptions", "stripe_events")


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "sleep", lambda seconds: None)


@pytest.fixture
def other() -> Iterator[FakeStripe]:
    """Return another account, with a customer of its own and a lost event."""
    with FakeStripe(seed=99, start=START) as fake:
        fake.client().v1.customers.create({"email": "eve@example.com"})
        fake.deliveries.drop()
        yield fake


def rows(world: StripeWorld) -> list[Any]:
    return [
        world.conn.execute(
            f"SELECT to_jsonb(t) FROM app.{table} AS t ORDER BY id".encode()
        ).fetchall()
        for table in TABLES
    ]


def check_refused(world: StripeWorld, client: stripe.StripeClient) -> None:
    before = rows(world)
    for run in (
        lambda: reconcile(world.conn, client, dry_run=True),
        lambda: reconcile(world.conn, client),
        lambda: replay_events(world.conn, client),
    ):
        with pytest.raises(OtherAccountError, match="nothing was changed"):
            run()
    assert rows(world) == before


def test_key_of_another_account_changes_nothing(world: StripeWorld, other: FakeStripe):
    for _ in range(6):
        world.create_subscribed_user()
    check_refused(world, other.client())
    assert world.reconcile() == []


def test_same_chosen_ids_do_not_make_it_the_same_account(
    world: StripeWorld, other: FakeStripe
):
    world.create_customer(world.create_user(), id="shop-user-1")
    assert world.handle_all() == ["applied"]
    other.advance(seconds=60)
    shop: Any = {"id": "shop-user-1"}
    other.client().v1.customers.create(shop)
    check_refused(world, other.client())


def test_key_of_the_other_mode_changes_nothing(world: StripeWorld):
    world.create_subscribed_user()
    before = rows(world)
    live = world.fake.client("sk_live_fake")
    for run in (reconcile, replay_events):
        with pytest.raises(StripeRequestError, match="a similar object exists in test"):
            run(world.conn, live)
    assert rows(world) == before


def test_account_with_one_known_object_is_the_same(world: StripeWorld):
    """The objects of a deleted test clock are missing, and deleted ones are not."""
    _, customer, _ = world.create_subscribed_user()
    world.fake.advance(seconds=5)
    for number in range(4):
        shape = make_customer(f"cus_clock{number}") | {"created": START + 2}
        world.handle_event("customer.created", shape)
    world.client.v1.customers.delete(customer)
    found = world.reconcile()
    assert len([one for one in found if one.kind == "missing_there"]) == 5
    # No live object is known any more.
    assert world.reconcile() == []


def test_new_account_fills_an_empty_database(world: StripeWorld, other: FakeStripe):
    reconcile(world.conn, other.client())
    assert len(rows(world)[1]) == 1


def test_command_names_the_way_out(
    world: StripeWorld, other: FakeStripe, monkeypatch: pytest.MonkeyPatch
):
    _, customer, subscription = world.create_subscribed_user()
    monkeypatch.setenv("DATABASE_URL", world.url)
    monkeypatch.setenv("STRIPE_API_BASE", other.base_url)
    monkeypatch.setenv("STRIPE_SECRET_KEY", TEST_KEY)
    for command in ("reconcile", "replay", "reconcile --dry-run --json"):
        assert run_cli("stripe", *command.split()) == (
            1,
            "",
            "error: the account of STRIPE_SECRET_KEY has none of the newest objects of"
            f" the database ({customer}, {subscription}); nothing was changed. Use the"
            " key of the right account; if its test data was deleted, run: pyapp stripe"
            " reconcile --cleared\n",
        )
    code, _, err = run_cli("stripe", "reconcile", "--cleared", "--every", "1h")
    assert (code, "--cleared cannot be used with --every" in err) == (2, True)
    with monkeypatch.context() as patch:
        patch.setenv("ENVIRONMENT", "production")
        patch.setenv("STRIPE_SECRET_KEY", "sk_live_fake")
        code, _, err = run_cli("stripe", "reconcile", "--cleared")
    assert (code, "needs a test key: live data is never cleared" in err) == (2, True)
    other.advance(seconds=60)
    assert run_cli("stripe", "reconcile", "--cleared")[0] == 0
    assert world.customer_row(customer).is_deleted
