"""Objects that a reconciliation refuses never stop the others."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.stripe_sync import Reconciliation, Refusal, reconcile
from pyapp.stripe_sync import client as api
from tests.fake_stripe import seeded_user_id
from tests.odd_objects import (
    RAISE,
    Change,
    OddClient,
    add_trigger,
    customer,
    replaced_by,
    setting,
    subscription,
    without,
)
from tests.role_logins import role_logins
from tests.role_statements import SYNC
from tests.stripe_world import StripeWorld, held, make_customer, stripe_world

NUMBER = 100


@pytest.fixture(autouse=True)
def _shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten lock waits, and skip waits between requests."""
    for module in ("runs", "transactions"):
        monkeypatch.setattr(f"pyapp.stripe_sync.{module}.DELIVERY_TIMEOUT", 0.1)
    monkeypatch.setattr(api, "sleep", lambda _: None)


@pytest.fixture
def world(database: str) -> Iterator[StripeWorld]:
    with stripe_world(database) as running:
        running.fake.seed_accounts(NUMBER, prices=("price_month",))
        for number in range(NUMBER):
            running.conn.execute(
                "INSERT INTO app.users (id, email) VALUES (%s, %s)",
                [seeded_user_id(number), f"seed{number}@example.com"],
            )
        running.fake.advance(seconds=2)
        yield running


@contextmanager
def refused_by_the_database(world: StripeWorld) -> Iterator[dict[str, str]]:
    """Refuse customers 60 to 99 in tens by the database; yield the expected kinds."""
    add_trigger(
        world,
        "refuse_71",
        "app.stripe_customers",
        f"NEW.id = '{customer(71)}'",
        "XY999",
    )
    add_trigger(
        world, "refuse_72", "app.users", f"NEW.id = '{seeded_user_id(72)}'", "42501"
    )
    world.conn.execute(
        "ALTER TABLE app.stripe_customers ADD CONSTRAINT own_rule"
        f" CHECK (id <> '{customer(98)}')"
    )
    world.conn.execute(
        f"CREATE UNIQUE INDEX own_index ON app.users ((1 / (stripe_customer_id"
        f" <> '{customer(99)}')::integer))"
        f" WHERE stripe_customer_id = '{customer(99)}'"
    )
    with ExitStack() as stack:
        lock = "SELECT app.lock_stripe_customer(%s)"
        stack.enter_context(held(world.url, lock, customer(50)))
        row = "SELECT FROM app.users WHERE id = %s FOR UPDATE"
        stack.enter_context(held(world.url, row, seeded_user_id(51)))
        yield {
            customer(50): "locked",
            customer(51): "locked",
            customer(71): "other",
            customer(72): "other",
            customer(98): "constraint",
            customer(99): "value",
        }


LONG = "cus_" + "x" * 300
# The first and the last in Stripe's list, and consecutive ones.
UNREADABLE: Mapping[str, Change] = {
    customer(0): replaced_by(None),
    customer(1): without("id"),
    customer(10): setting(metadata="text"),
    customer(11): setting(created=None),
    customer(12): setting(created=10**20),
    customer(13): setting(id=LONG),
    customer(14): setting(id="cus_\0"),
    customer(97): replaced_by([1]),
}
SHOWN = {
    "(not an object)": 2,
    "(no id)": 1,
    customer(10): 1,
    customer(11): 1,
    customer(12): 1,
    f"'{LONG[:56]}...": 1,
    "'cus_\\x00'": 1,
}


def run(
    world: StripeWorld, client: Any = None, **options: Any
) -> tuple[Reconciliation, list[Refusal]]:
    refusals: list[Refusal] = []
    done = reconcile(
        world.conn, client or world.client, on_refusal=refusals.append, **options
    )
    counted = Counter(one.kind for one in refusals)
    assert {kind: n for kind, n in done.refused.items() if n} == counted
    return done, refusals


def linked(conn: psycopg.Connection[Any]) -> set[str]:
    return {
        row[0]
        for row in conn.execute(
            "SELECT stripe_customer_id FROM app.users"
            " WHERE stripe_customer_id IS NOT NULL AND stripe_subscription_id <> ''"
        )
    }


@pytest.mark.parametrize("page_size", [1, 3, 100])
def test_refused_customers_do_not_stop_the_others(world: StripeWorld, page_size: int):
    """Fourteen of a hundred, in a dry run and in each run."""
    client: Any = OddClient(world.client, UNREADABLE)
    with refused_by_the_database(world) as kinds:
        others = {customer(number) for number in range(NUMBER)}
        others -= {*UNREADABLE, *kinds}
        for is_dry_run in (True, False, False):
            done, refusals = run(world, client, page_size=page_size, dry_run=is_dry_run)
            refused = Counter(
                one.object_id
                for one in refusals
                if one.kind == "unreadable" and one.object_type == "customers"
            )
            assert refused == SHOWN
            by_database = {
                one.object_id: one.kind
                for one in refusals
                if one.kind != "unreadable" and one.object_type == "customers"
            }
            assert by_database == kinds
            assert done.seen == {"customers": NUMBER, "subscriptions": NUMBER}
            assert linked(world.conn) == (set() if is_dry_run else others)


SUBSCRIPTION_CHANGES: Mapping[str, Change] = {
    subscription(0): replaced_by(None),
    subscription(1): without("id"),
    subscription(10): without("created", "start_date"),
    subscription(11): setting(status=None),
    subscription(12): setting(customer=None),
    subscription(13): setting(customer=7),
    subscription(14): setting(items={"data": [7]}),
    subscription(15): setting(items=7),
    subscription(98): setting(id="sub_\0"),
    subscription(99): replaced_by("text"),
}


@pytest.mark.parametrize("page_size", [1, 7, 100])
def test_refused_subscriptions_do_not_stop_the_others(
    world: StripeWorld, page_size: int
):
    others = {subscription(number) for number in range(NUMBER)}
    others -= {*SUBSCRIPTION_CHANGES}
    client: Any = OddClient(world.client, SUBSCRIPTION_CHANGES)
    for is_dry_run in (True, False, False):
        done, refusals = run(world, client, page_size=page_size, dry_run=is_dry_run)
        assert [one.object_type for one in refusals] == ["subscriptions"] * 10
        assert done.seen == {"customers": NUMBER, "subscriptions": NUMBER}
        stored = world.conn.execute("SELECT id FROM app.stripe_subscriptions")
        assert {row[0] for row in stored} == (set() if is_dry_run else others)


def test_refusal_of_a_user_is_foreseen(world: StripeWorld):
    """The customers that a dry run has rolled back count for their subscriptions."""
    add_trigger(
        world,
        "refuse_price",
        "app.users",
        "NEW.stripe_price_id = 'price_month' AND NEW.email LIKE 'seed7%'",
        "P0001",
    )
    foreseen = run(world, dry_run=True)[1]
    assert len(foreseen) == 11
    assert run(world)[1] == foreseen
    assert run(world)[1] == foreseen


def test_refusal_at_the_commit_is_foreseen(world: StripeWorld):
    text = RAISE.format(
        name="check_later",
        table="app.stripe_customers",
        condition=f"NEW.id = '{customer(5)}'",
        state="P0001",
    )
    text = text.replace("CREATE TRIGGER", "CREATE CONSTRAINT TRIGGER")
    text = text.replace("BEFORE", "AFTER")
    text = text.replace("FOR EACH", "DEFERRABLE INITIALLY DEFERRED FOR EACH")
    world.conn.execute(text.encode())
    foreseen = run(world, dry_run=True)[1]
    assert [one.object_id for one in foreseen] == [customer(5)]
    assert run(world)[1] == foreseen


def test_users_with_one_refused_customer_keep_the_other(world: StripeWorld):
    """One user has two refused customers, another one and a good one."""
    changes = {
        customer(20): setting(metadata=7),
        customer(21): setting(created="now", metadata=claim(20)),
        customer(22): setting(created=None),
        customer(23): setting(metadata=claim(22)),
    }
    done, refusals = run(world, OddClient(world.client, changes))
    assert {one.object_id for one in refusals} == {customer(n) for n in (20, 21, 22)}
    assert world.get_user(seeded_user_id(20)).stripe_customer_id is None
    assert world.get_user(seeded_user_id(22)).stripe_customer_id == customer(23)
    assert done.found["missing_here"] == 2 * NUMBER - 3


def claim(number: int) -> dict[str, str]:
    return {"user_id": str(seeded_user_id(number))}


def test_subscription_of_a_refused_customer_is_stored(world: StripeWorld):
    run(world, OddClient(world.client, {customer(20): setting(metadata=7)}))
    assert world.subscription_row(subscription(20)).customer_id == customer(20)
    assert world.get_user(seeded_user_id(20)).stripe_subscription_id is None
    _, refusals = run(world)
    assert refusals == []
    user = world.get_user(seeded_user_id(20))
    assert user.stripe_subscription_id == subscription(20)


def test_customer_refused_on_a_page_is_not_refused_again(world: StripeWorld):
    """The user's row names it, and no page has stored it."""
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = %s WHERE id = %s",
        [customer(30), seeded_user_id(30)],
    )
    client: Any = OddClient(world.client, {customer(30): setting(metadata=7)})
    for is_dry_run in (True, False):
        _, refusals = run(world, client, dry_run=is_dry_run)
        assert [one.object_id for one in refusals] == [customer(30)]


def test_customer_of_a_users_row_is_reported_once(world: StripeWorld):
    """A dry run has rolled back the page that would have stored it."""
    world.conn.execute(
        "UPDATE app.users SET stripe_customer_id = %s WHERE id = %s",
        [customer(30), seeded_user_id(30)],
    )
    found = [run(world, dry_run=is_dry_run)[0].found for is_dry_run in (True, False)]
    assert found[0] == found[1]
    assert found[0]["missing_here"] == 2 * NUMBER


def test_refusals_of_objects_that_no_page_contains_are_reported(world: StripeWorld):
    """Two are deleted at Stripe, one is known by a checkout, one by a user's row."""
    run(world)
    gone = [customer(3), customer(4), "cus_checkout", "cus_user"]
    for deleted in gone[:2]:
        world.client.v1.customers.delete(deleted)
    world.conn.execute(
        "INSERT INTO app.stripe_customers (id, as_of) VALUES ('cus_checkout', now())"
    )
    world.conn.execute(
        "INSERT INTO app.users (email, stripe_customer_id)"
        " VALUES ('late@example.com', 'cus_user')"
    )
    listed = ", ".join(f"'{name}'" for name in gone if name != customer(3))
    add_trigger(
        world, "refuse", "app.stripe_customers", f"NEW.id IN ({listed})", "40999"
    )
    world.fake.advance(seconds=2)
    for is_dry_run in (True, False):
        _, refusals = run(world, dry_run=is_dry_run, page_size=7)
        assert {one.object_id: one.kind for one in refusals} == dict.fromkeys(
            gone[1:], "other"
        )
        assert world.customer_row(customer(3)).is_deleted is not is_dry_run


def test_policy_of_a_row_refuses_one_object(world: StripeWorld):
    """Its SQLSTATE is that of a missing privilege."""
    world.conn.execute(
        f"""
        ALTER TABLE app.stripe_customers ENABLE ROW LEVEL SECURITY;
        ALTER TABLE app.stripe_customers FORCE ROW LEVEL SECURITY;
        CREATE POLICY own_rule ON app.stripe_customers
        USING (TRUE) WITH CHECK (id <> '{customer(9)}')
        """
    )
    with role_logins(world.url) as logins, connect(logins[SYNC]) as conn:
        refusals: list[Refusal] = []
        reconcile(conn, world.client, on_refusal=refusals.append)
    assert [(one.object_id, one.kind) for one in refusals] == [(customer(9), "other")]


def test_refused_fetch_is_reported(world: StripeWorld):
    world.handle_event("customer.created", make_customer("cus_lost"))
    world.fake.faults.add(
        "error", path="/v1/customers/cus_lost", status=400, times=None
    )
    _, refusals = run(world)
    assert [(one.object_id, one.kind) for one in refusals] == [("cus_lost", "fetch")]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE app.stripe_customers RENAME COLUMN is_provisional TO other",
        "ALTER FUNCTION app.sync_stripe_users RENAME TO other",
        "ALTER ROLE CURRENT_USER IN DATABASE {database}"
        " SET default_transaction_read_only = on",
    ],
)
def test_error_of_every_object_ends_the_run(world: StripeWorld, change: str):
    database = world.conn.info.dbname
    world.conn.execute(change.format(database=database).encode())
    with connect(world.url) as conn, pytest.raises(psycopg.Error):
        reconcile(conn, world.client)


def test_locked_table_ends_the_run(world: StripeWorld):
    """Otherwise each object would wait for five seconds."""
    with held(world.url, "LOCK TABLE app.stripe_customers IN EXCLUSIVE MODE"):
        with pytest.raises(psycopg.errors.LockNotAvailable):
            run(world)
        refused = world.conn.execute(
            "SELECT outcome, counts -> 'refused' FROM app.stripe_sync_runs"
        ).fetchall()
        assert refused == [("failed", None)]
    assert run(world)[1] == []


def test_refusals_of_an_interrupted_page_are_counted_once(world: StripeWorld):
    client: Any = OddClient(world.client, UNREADABLE)
    pages = 0

    def stop(_: object) -> None:
        nonlocal pages
        pages += 1
        if pages == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconcile(world.conn, client, on_refusal=stop, page_size=10)
    done = reconcile(world.conn, client)
    assert done.is_resumed
    assert done.number_refused == len(UNREADABLE)


def test_counts_of_a_run_name_the_kinds(world: StripeWorld):
    with refused_by_the_database(world):
        # A lock of a customer is one of its subscription too.
        run(world, OddClient(world.client, UNREADABLE), dry_run=True)
    (counts,) = world.conn.execute(
        "SELECT jsonb_object_agg(k.key, k.value) FROM app.stripe_sync_runs AS r,"
        " jsonb_each(r.counts) AS k WHERE k.key LIKE 'refused%'"
    ).fetchall()[0]
    assert counts == {
        "refused": 15,
        "refused constraint": 1,
        "refused locked": 3,
        "refused other": 2,
        "refused unreadable": 8,
        "refused value": 1,
    }
