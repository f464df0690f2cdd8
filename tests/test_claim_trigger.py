"""Many claims of Stripe customers: the trigger that takes them, and a page.

tests/test_stripe_claims.py has the rules of claims.
"""

import re

import psycopg
import pytest

from pyapp._core.queries import QUERIES, schema_text, sql_dir
from pyapp.users import create_user

CLAIM = """
    INSERT INTO app.stripe_customers (id, claimed_user_id, claim_source, as_of)
    SELECT 'cus_' || n, md5('user-' || n)::uuid, 'customer', now()
    FROM generate_series(1, %s) AS n
"""
CREATE = """
    INSERT INTO app.users (id, email)
    SELECT md5('user-' || n)::uuid, 'user' || n || '@example.com'
    FROM generate_series(%s::integer, %s) AS n
"""
LOCKS = """
    SELECT count(*) FROM pg_locks
    WHERE locktype = 'advisory' AND pid = pg_backend_pid()
"""
FETCHED = """
    SELECT idx_tup_fetch FROM pg_stat_xact_user_tables
    WHERE relid = 'app.stripe_customers'::regclass
"""
LINKED = "SELECT count(*) FROM app.stripe_customers WHERE user_id IS NOT NULL"


def count(conn: psycopg.Connection, query: str) -> int:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_only_customers_that_claim_a_new_user_are_locked(conn: psycopg.Connection):
    """A lock of another customer would make its deliveries wait."""
    conn.execute(CLAIM, [500])
    conn.execute("ANALYZE app.stripe_customers")

    create_user(conn, email="ada@example.com")
    assert count(conn, LOCKS) == 0
    conn.execute(CREATE, [501, 1500])
    assert count(conn, LOCKS) == 0
    conn.execute(CREATE, [7, 9])

    assert count(conn, LOCKS) == 3
    assert count(conn, LINKED) == 3


@pytest.mark.parametrize("rows", [1200, 100, 1])
def test_users_loaded_in_bulk_take_a_limited_number_of_locks(
    conn: psycopg.Connection, rows: int
):
    """The others wait for a reconciliation; the users are inserted in any case."""
    conn.execute(CLAIM, [1200])

    for first in range(1, 1201, rows):
        conn.execute(CREATE, [first, first + rows - 1])

    assert count(conn, "SELECT count(*) FROM app.users") == 1200
    assert count(conn, LOCKS) == count(conn, LINKED) == 1000


def test_conflicting_insert_takes_no_claim_of_a_user_that_exists(
    conn: psycopg.Connection,
):
    conn.execute(CREATE, [1, 1])
    conn.execute(CLAIM, [1])

    conn.execute(f"{CREATE} ON CONFLICT DO NOTHING".encode(), [1, 1])

    assert count(conn, LINKED) == 0


def test_page_reads_only_its_customers_with_old_statistics(conn: psycopg.Connection):
    """The index of pending claims looks as selective as the key, and smaller."""
    conn.execute(CLAIM, [1])
    conn.execute("ANALYZE app.stripe_customers")
    conn.execute(f"{CLAIM} ON CONFLICT DO NOTHING".encode(), [1000])
    conn.execute(
        "INSERT INTO app.stripe_customers (id, as_of)"
        " SELECT 'cus_other_' || n, now() FROM generate_series(1, 9000) AS n"
    )
    before = count(conn, FETCHED)

    conn.execute(
        "SELECT app.find_subscription_claims(jsonb_agg(jsonb_build_object("
        "'id', 'sub_' || n, 'customer_id', 'cus_other_' || n)), 'page', TRUE)"
        " FROM generate_series(1, 100) AS n"
    )

    assert count(conn, FETCHED) - before == 100


def test_roles_sql_grants_the_advisory_locks_that_the_schema_takes():
    """It shows how to revoke them from PUBLIC; the owner needs those of the trigger."""
    folder = sql_dir()
    texts = [
        schema_text(),
        *(path.read_text("utf-8") for path in (folder / "functions").glob("*.sql")),
        *(query.sql for query in QUERIES.values()),
    ]
    taken = set(re.findall(r"\bpg_(?:try_)?advisory\w*lock\w*", " ".join(texts)))
    roles = (folder / "roles.sql").read_text(encoding="utf-8")
    grant = re.search(r"^--     GRANT.*?;", roles, re.MULTILINE | re.DOTALL)
    assert grant is not None

    granted = set(re.findall(r"pg_\w+", grant[0]))

    assert taken - {"pg_advisory_unlock"} == granted
