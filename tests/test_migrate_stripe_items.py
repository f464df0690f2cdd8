"""Migrations 0007 to 0010 keep what users have, on data of the release before.

Each subscription becomes one item with its price and period; the functions that derive
entitlements from items take the place of the earlier ones.
"""

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from psycopg import errors

from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import MigrationError
from pyapp.users import create_user
from tests.support import execute, states
from tests.waiting import run_blocked, wait_for_lock, wait_for_waiter

NAMES = [file.name for file in read_migrations()]
BEFORE = NAMES.index("0007_relax_stripe_ids")
ITEMS = "0008_add_subscription_items"

# One user for each combination of status, price, period and customer, and users with
# two subscriptions, two customers, or a customer that is not mirrored.
FILL = """
UPDATE app.plans SET stripe_price_id = 'price_paid' WHERE id = 'paid';
INSERT INTO app.plans (id, monthly_credits, stripe_price_id)
VALUES ('team', 200000, 'price_team'), ('gone', 10, NULL);

CREATE TABLE public.given AS
SELECT
    row_number() OVER () AS n,
    s.status, p.price_id, t.anchor, t.starts_at, t.ends_at, c.is_deleted
FROM (
    VALUES ('active'), ('trialing'), ('past_due'), ('canceled'), ('incomplete'),
        ('unpaid'), ('paused'), ('of_the_future')
) AS s (status)
CROSS JOIN (
    VALUES ('price_paid'), ('price_team'), ('price_x'), (NULL)
) AS p (price_id)
CROSS JOIN (
    SELECT
        now() - interval '40 days', now() - interval '10 days',
        now() + interval '20 days'
    UNION ALL
    SELECT a, app.add_months(a, 1), app.add_months(a, 2)
    FROM (SELECT date_trunc('second', now() - interval '45 days')) AS m (a)
    UNION ALL
    SELECT
        now() - interval '1 year 3 months', now() - interval '3 months',
        now() + interval '9 months'
    UNION ALL
    SELECT
        now() - interval '80 days', now() - interval '70 days',
        now() - interval '40 days'
    UNION ALL
    SELECT NULL, NULL, NULL
) AS t (anchor, starts_at, ends_at)
CROSS JOIN (VALUES (FALSE), (TRUE)) AS c (is_deleted);

INSERT INTO app.users (id, email, quota_anchor, next_quota_reset, created_at)
SELECT
    md5('user-' || n)::uuid,
    'user' || n || '@example.com',
    now() - interval '5 days',
    CASE WHEN n % 3 = 0 THEN NULL ELSE now() + (n % 40 - 20) * interval '1 day' END,
    now() - interval '100 days'
FROM generate_series(1, 330) AS n;

INSERT INTO app.stripe_customers (id, user_id, is_deleted, created_at, as_of)
SELECT
    'cus_' || g.n, md5('user-' || g.n)::uuid, g.is_deleted, now() - interval '90 days',
    now() - interval '1 day'
FROM public.given AS g
UNION ALL
SELECT
    'cus_second_' || n, md5('user-' || n)::uuid, FALSE, NULL,
    now() - interval '2 days'
FROM generate_series(1, 40) AS n;

INSERT INTO app.stripe_subscriptions (
    id, customer_id, user_id, status, price_id, current_period_start,
    current_period_end, billing_cycle_anchor, created_at, as_of
)
SELECT
    'sub_' || g.n, 'cus_' || g.n, md5('user-' || g.n)::uuid, g.status, g.price_id,
    g.starts_at, g.ends_at, g.anchor, now() - interval '80 days',
    now() - interval '1 day'
FROM public.given AS g
UNION ALL
-- An earlier subscription that has ended, and one whose customer is not mirrored.
SELECT
    'sub_old_' || g.n, 'cus_' || g.n, md5('user-' || g.n)::uuid, 'canceled', 'price_x',
    g.starts_at - interval '2 years', g.ends_at - interval '2 years', NULL,
    now() - interval '2 years', now() - interval '1 year'
FROM public.given AS g
WHERE g.n % 7 = 0 AND g.ends_at IS NOT NULL
UNION ALL
SELECT
    'sub_new_' || n, 'cus_new_' || n, NULL, 'active', 'price_paid',
    now(), now() + interval '30 days', now(), now(), now()
FROM generate_series(321, 325) AS n;

UPDATE app.users AS u
SET stripe_customer_id = 'cus_new_' || n
FROM generate_series(321, 328) AS n
WHERE u.id = md5('user-' || n)::uuid;

SELECT app.sync_stripe_users(array_agg(u.id)) FROM app.users AS u;
"""
USERS = "SELECT u.* FROM app.users AS u ORDER BY u.id"
DIFFERENCES = """
SELECT u.email, e.differences, e.base_quota, u.base_quota
FROM app.stripe_entitlements AS e
INNER JOIN app.users AS u USING (id)
WHERE e.differences <> '{}'
"""
# As programs of the release before write a subscription, and record an event.
OLD_WRITE = """
INSERT INTO app.stripe_subscriptions (
    id, customer_id, status, price_id, current_period_start, current_period_end,
    created_at, as_of
)
VALUES (
    'sub_late', 'cus_late', 'active', 'price_paid', now(), now() + interval '30 days',
    now(), now()
)
"""
OLD_EVENT = """
SELECT app.apply_stripe_event(
    'evt_late', 'customer.subscription.updated', NULL, now(), '{}', 'cus_late',
    'subscriptions', %s::jsonb, TRUE
) AS result
"""
OLD_SNAPSHOT = """{
    "id": "sub_late", "customer_id": "cus_late", "status": "active",
    "price_id": "price_paid", "cancel_at_period_end": false, "is_provisional": false,
    "created_at": "2026-01-01T00:00:00Z", "as_of": "2026-01-01T00:00:00Z"
}"""


LATE = "id = 'sub_late'"
OLD_PAGE = """
SELECT s.id FROM app.upsert_stripe_subscriptions(
    jsonb_build_array(%s::jsonb), 'page', TRUE, FALSE
) AS s
"""
RUN = """
import sys
from pyapp.devtools.migrations.migrator import migrate
migrate(sys.argv[1])
"""


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(statement.encode()).fetchall()


@pytest.fixture
def filled(empty_database: str) -> str:
    """Return a database of the release before, whose users are in sync."""
    migrate(empty_database, count=BEFORE)
    execute(empty_database, FILL)
    assert query(empty_database, DIFFERENCES) == []
    return empty_database


def test_all_users_keep_what_they_have(filled: str):
    before = query(filled, USERS)
    paying = query(filled, "SELECT FROM app.users WHERE base_quota > 2500")

    migrate(filled)

    assert query(filled, USERS) == before
    assert query(filled, DIFFERENCES) == []
    execute(filled, "SELECT app.sync_stripe_users(array_agg(id)) FROM app.users")
    assert query(filled, USERS) == before
    assert len(paying) > 30


def test_each_subscription_has_its_price_and_period_as_an_item(filled: str):
    columns = "price_id, current_period_start, current_period_end"
    before = query(
        filled, f"SELECT id, id, {columns} FROM app.stripe_subscriptions ORDER BY id"
    )

    migrate(filled)

    assert before == query(
        filled,
        f"SELECT subscription_id, id, {columns} FROM app.stripe_subscription_items"
        " ORDER BY subscription_id",
    )
    assert query(filled, "SELECT * FROM app.plan_prices ORDER BY 1") == [
        ("price_paid", "paid"),
        ("price_team", "team"),
    ]


def test_rollback_and_repetition_keep_what_users_have(filled: str):
    before = query(filled, USERS)
    mirror = [
        query(filled, f"SELECT t::text FROM app.{table} AS t ORDER BY t.id")
        for table in ("stripe_customers", "plans")
    ]
    migrate(filled)

    rollback(filled, count=len(NAMES) - BEFORE)

    assert query(filled, USERS) == before
    assert query(filled, DIFFERENCES) == []
    assert query(filled, "SELECT stripe_price_id FROM app.plans ORDER BY id") == [
        (None,), (None,), (None,), ("price_paid",), ("price_team",),
    ]  # fmt: skip
    assert len(mirror[0]) == len(query(filled, "SELECT FROM app.stripe_customers"))

    migrate(filled)

    assert query(filled, USERS) == before
    assert query(filled, DIFFERENCES) == []


def test_rollback_loses_only_what_the_release_before_cannot_store(filled: str):
    migrate(filled)
    execute(
        filled,
        "INSERT INTO app.plan_prices VALUES ('a_yearly', 'paid'), ('other', 'paid')",
        "INSERT INTO app.stripe_subscription_items (subscription_id, id, price_id)"
        " SELECT s.id, 'si_meter', 'price_meter' FROM app.stripe_subscriptions AS s",
        "INSERT INTO app.stripe_customers"
        " (id, user_id, claimed_user_id, claim_source, as_of)"
        " SELECT 'tenant-7', u.id, u.id, 'customer', now() FROM app.users AS u LIMIT 1",
        "INSERT INTO app.stripe_subscriptions"
        " (id, customer_id, status, created_at, as_of)"
        " VALUES ('su_1', 'cus_1', 'active', now(), now()),"
        " ('sub_tenant', 'tenant-7', 'active', now(), now()),"
        " ('sub_none', 'cus_1', 'active', now(), now())",
        "UPDATE app.users SET stripe_customer_id = 'tenant-8',"
        " stripe_subscription_id = 'su_8', stripe_price_id = 'p',"
        " subscription_status = 'active' WHERE email = 'user330@example.com'",
    )

    rollback(filled, count=len(NAMES) - BEFORE)

    ids = "id IN ('tenant-7', 'su_1', 'sub_tenant', 'sub_none')"
    assert query(filled, f"SELECT FROM app.stripe_customers WHERE {ids}") == []
    assert query(filled, f"SELECT id FROM app.stripe_subscriptions WHERE {ids}") == [
        ("sub_none",)
    ]
    assert query(
        filled,
        "SELECT stripe_customer_id, stripe_subscription_id, subscription_status"
        " FROM app.users WHERE email = 'user330@example.com'",
    ) == [(None, None, None)]
    # The price that most subscriptions have is kept, and the item that has it.
    assert query(filled, "SELECT stripe_price_id FROM app.plans WHERE id = 'paid'") == [
        ("price_paid",)
    ]
    assert query(
        filled,
        "SELECT count(*) FROM app.stripe_subscriptions AS s"
        " INNER JOIN public.given AS g ON s.id = 'sub_' || g.n"
        " INNER JOIN app.plans AS p ON p.stripe_price_id = g.price_id"
        " WHERE s.price_id IS DISTINCT FROM g.price_id"
        " OR s.current_period_end IS DISTINCT FROM g.ends_at",
    ) == [(0,)]
    assert query(
        filled,
        "SELECT count(*) FROM app.stripe_subscriptions AS s"
        " INNER JOIN app.stripe_customers AS c ON c.id = s.customer_id"
        " WHERE s.user_id IS DISTINCT FROM c.user_id",
    ) == [(0,)]


def test_subscription_written_before_the_lock_becomes_an_item(filled: str):
    with psycopg.connect(filled) as writer:
        writer.execute(OLD_WRITE)
        writer.execute("UPDATE app.plans SET stripe_price_id = 'p' WHERE id = 'gone'")
        thread = threading.Thread(target=migrate, args=[filled])
        thread.start()
        wait_for_waiter(writer)
        writer.commit()
        thread.join()

    assert set(states(filled).values()) == {"applied"}
    assert query(
        filled,
        "SELECT price_id FROM app.stripe_subscription_items WHERE id = 'sub_late'",
    ) == [("price_paid",)]
    assert ("p", "gone") in query(filled, "SELECT * FROM app.plan_prices")


def test_event_that_waits_for_the_migration_is_not_lost(filled: str):
    """Its statement fails, so that Stripe delivers it again."""
    migrate(filled, count=1)
    text = next(file.text for file in read_migrations() if file.name == ITEMS)
    with psycopg.connect(filled) as migration, psycopg.connect(filled) as delivery:
        migration.execute(text.encode())
        with pytest.raises(psycopg.Error):
            run_blocked(migration, delivery, deliver)

    assert query(filled, "SELECT FROM app.stripe_events") == []
    assert query(filled, f"SELECT FROM app.stripe_subscriptions WHERE {LATE}") == []


def test_program_of_the_release_before_fails_afterwards(filled: str):
    """No event gets an answer that the program would take for a result."""
    with psycopg.connect(filled) as conn:
        assert deliver(conn).fetchone() == ("applied",)
        conn.rollback()
    migrate(filled)

    with psycopg.connect(filled) as conn:
        for call in (deliver, lambda conn: conn.execute(OLD_PAGE, [OLD_SNAPSHOT])):
            with pytest.raises(errors.UndefinedFunction):
                call(conn)
            conn.rollback()
        with pytest.raises(errors.UndefinedColumn):
            conn.execute(OLD_WRITE)


@pytest.mark.parametrize("is_rollback", [False, True], ids=["forward", "rollback"])
def test_users_created_concurrently_cause_no_deadlock(filled: str, is_rollback: bool):
    """The INSERT reads plans for a default, after it has locked users."""
    migrate(filled, count=2 if is_rollback else 1)
    run: Callable[..., object] = rollback if is_rollback else migrate
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(filled) as reader,
        psycopg.connect(filled) as creator,
    ):
        # The last of the tables that the migration locks first.
        reader.execute("SELECT FROM app.stripe_subscriptions LIMIT 1")
        migration = pool.submit(run, filled, count=1)
        wait_for_waiter(reader)
        creation = pool.submit(create_user, creator, email="new@example.com")
        wait_for_lock(reader, creator)
        reader.commit()
        created = creation.result(20)
        creator.commit()
        migration.result(20)

    assert created.id in {row[0] for row in query(filled, USERS)}


def test_run_that_is_killed_while_it_waits_can_be_repeated(filled: str):
    before = query(filled, USERS)
    with psycopg.connect(filled) as reader:
        reader.execute("SELECT FROM app.stripe_subscriptions LIMIT 1")
        run = subprocess.Popen([sys.executable, "-c", RUN, filled])
        waiting = wait_for_waiter(reader)
        run.kill()
        run.wait()
        reader.execute("SELECT pg_terminate_backend(%s)", [waiting])
        reader.commit()
    found = states(filled)
    assert found[ITEMS] == "pending"

    migrate(filled)

    assert query(filled, USERS) == before
    assert query(filled, DIFFERENCES) == []


def test_migration_that_gets_no_lock_in_time_changes_nothing(filled: str):
    migrate(filled, count=1)
    with psycopg.connect(filled) as reader:
        reader.execute("SELECT FROM app.plans")
        with pytest.raises(MigrationError, match="waited too long for a lock"):
            migrate(filled)

    assert states(filled)[ITEMS] == "pending"
    assert query(filled, DIFFERENCES) == []
    migrate(filled)


def deliver(conn: psycopg.Connection) -> psycopg.Cursor:
    """Record an event as a program of the release before does."""
    return conn.execute(OLD_EVENT, [OLD_SNAPSHOT])
