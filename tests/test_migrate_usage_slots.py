"""Migrations 0023 to 0026 replace the table usage_daily while programs write messages.

At every commit between them, sums equal messages, and the quota check is exact.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql

from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate, rollback
from pyapp.errors import MigrationError
from tests.support import Server, execute, states
from tests.waiting import run_blocked, wait_for_lock, wait_for_waiter

FILES = {file.name: file for file in read_migrations()}
NAMES = list(FILES)
CREATE, FILL, READ, SWITCH = (
    "0023_create_usage_slots",
    "0024_fill_usage_slots",
    "0025_read_usage_slots",
    "0026_sum_usage_in_slots",
)
FIRST = NAMES.index(CREATE)
READ_COMMITTED = psycopg.IsolationLevel.READ_COMMITTED
REPEATABLE_READ = psycopg.IsolationLevel.REPEATABLE_READ
COLUMNS = """
    subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, model, cost,
    credits
"""
# Two messages an hour of each payer. The payers' periods begin within the days, and the
# amounts have more digits than a float.
ACCOUNTS = """
INSERT INTO app.users (id, email, quota_anchor)
SELECT
    md5('user-' || n)::uuid, 'user' || n || '@example.com',
    date_trunc('day', now(), '+00') - n * interval '7 hours 3 minutes'
FROM generate_series(1, 20) AS n;

INSERT INTO app.fingerprints (id, quota_anchor)
SELECT md5('fingerprint-' || n)::uuid, now() - n * interval '5 hours'
FROM generate_series(1, 5) AS n;
"""
MESSAGES = f"""
INSERT INTO app.messages ({COLUMNS})
SELECT
    a.id, gen_random_uuid(), a.user_id, a.fingerprint_id,
    now() - n * interval '31 minutes', n, 2 * n, 3 * n, 4 * n, 'm',
    1.00000000000000000001 * n, 0.10000000000000000003 * n
FROM (
    SELECT u.id, u.id AS user_id, NULL::uuid AS fingerprint_id FROM app.users AS u
    UNION ALL
    SELECT f.id, NULL, f.id FROM app.fingerprints AS f
) AS a
CROSS JOIN generate_series(1, %s) AS n
"""
# The first and the last day, for which no day before or after exists.
EDGES = f"""
INSERT INTO app.messages ({COLUMNS}, recorded_at)
SELECT
    u.id, gen_random_uuid(), u.id, NULL, t.time, 1, 2, 3, 4, 'm', 0.5, 0.25,
    LEAST(t.time, '294276-12-30 23:59:59+00')
FROM (SELECT id FROM app.users LIMIT 1) AS u
CROSS JOIN unnest(
    '{{4714-11-25 00:00+00 BC, 294276-12-31 23:59:59+00}}'::timestamptz[]
) AS t (time)
"""
ONE_MESSAGE = f"""
INSERT INTO app.messages ({COLUMNS})
SELECT
    u.id, gen_random_uuid(), u.id, NULL, now() - %s * interval '1 hour', 1, 2, 3, 4,
    'm', 0.5, 0.25
FROM app.users AS u
ORDER BY u.id
LIMIT %s
"""
ALL_BUT_FIRST = ONE_MESSAGE.replace("LIMIT %s", "OFFSET 1").replace("%s", "0")
# usage_drift compares the view, or the table, with messages.
WRONG_SUMS = "SELECT * FROM app.usage_drift"
WRONG_SLOTS = """
SELECT subject_id, day, messages, output_tokens, cost, credits FROM app.usage_daily
EXCEPT
SELECT
    subject_id, (starts_at AT TIME ZONE '+00')::date, sum(messages),
    sum(output_tokens), sum(cost), sum(credits)
FROM app.usage_slots
GROUP BY 1, 2
"""
WRONG_QUOTAS = """
SELECT u.id, p.*
FROM app.users AS u
CROSS JOIN LATERAL (
    VALUES
        (u.quota_anchor, now()), (u.quota_anchor - interval '31 days', u.quota_anchor)
) AS p (starts_at, ends_at)
CROSS JOIN LATERAL app.sum_credits(u.id, p.starts_at, p.ends_at) AS s
WHERE s.credits_used <> (
    SELECT COALESCE(sum(m.credits), 0)
    FROM app.messages AS m
    WHERE m.subject_id = u.id
        AND m.finished_at >= p.starts_at
        AND m.finished_at < p.ends_at
)
"""
# As 32 writers and cuts leave them: parts of days, and rows of other slots.
SPREAD = """
SELECT app.cut_usage_day(v.subject_id, v.day) FROM app.uncut_usage AS v;
SELECT set_config('app.is_repairing', 'on', FALSE);
WITH taken AS (
    UPDATE app.usage_slots
    SET messages = messages - 1, credits = credits - 0.01, cost = cost - 0.001
    WHERE messages > 1 AND slot = 0
    RETURNING subject_id, starts_at, ends_at
)
INSERT INTO app.usage_slots (
    subject_id, starts_at, ends_at, slot, messages, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost, credits
)
SELECT subject_id, starts_at, ends_at, 31, 1, 0, 0, 0, 0, 0.001, 0.01 FROM taken
"""
DAMAGE = """
SELECT set_config('app.is_repairing', 'on', FALSE);
UPDATE app.usage_daily SET credits = credits + 1 WHERE day < '3000-01-01';
INSERT INTO app.usage_daily (
    subject_id, day, messages, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, cost, credits
)
SELECT subject_id, '2020-02-29', 1, 1, 1, 1, 1, 1, 1
FROM app.usage_daily LIMIT 1;
SELECT app.repair_usage_day(d.subject_id, d.day)
FROM app.usage_daily AS d
WHERE d.day < '3000-01-01'
"""


@pytest.fixture(scope="module")
def release_before(server: Server) -> Iterator[str]:
    """Return a database of the release before, with messages."""
    with scratch_database(server.url("postgres")) as url:
        migrate(url, count=FIRST)
        execute(url, ACCOUNTS, MESSAGES.replace("%s", "80"), EDGES)
        yield url


@pytest.fixture
def filled(release_before: str) -> Iterator[str]:
    """Return a copy of that database."""
    with scratch_database(release_before, template=release_before) as url:
        yield url


def migrate_to(url: str, name: str) -> None:
    """Apply all migrations up to *name*."""
    migrate(url, count=NAMES.index(name) + 1 - FIRST)


def record(conn: psycopg.Connection, rows: int = 1, hours: int = 0) -> None:
    """Insert one message of each of the first *rows* users, by one statement."""
    conn.execute(ONE_MESSAGE.encode(), [hours, rows])


def record_some(conn: psycopg.Connection) -> None:
    """Insert messages by one row and several, of today and the past."""
    record(conn)
    record(conn, rows=9, hours=30)
    conn.execute(EDGES.encode())
    require_exact(conn)


def daily_sums(conn: psycopg.Connection) -> list[tuple[str]]:
    """Return all rows of usage_daily as text, with every digit."""
    statement = "SELECT d::text FROM app.usage_daily AS d ORDER BY d.subject_id, d.day"
    return conn.execute(statement.encode()).fetchall()


def require_exact(conn: psycopg.Connection) -> None:
    """Assert that sums and quotas equal messages."""
    for statement in (WRONG_SUMS, WRONG_QUOTAS):
        assert conn.execute(statement.encode()).rowcount == 0


def test_sums_equal_messages_between_all_migrations(filled: str) -> None:
    """Up, down and up again, with messages, repairs and cuts in between."""
    with psycopg.connect(filled, autocommit=True) as conn:
        for name in NAMES[FIRST:]:
            before = daily_sums(conn)
            migrate(filled, count=1)
            assert daily_sums(conn) == before
            if name >= FILL:
                assert conn.execute(WRONG_SLOTS.encode()).rowcount == 0
            if name < SWITCH:
                execute(filled, DAMAGE)
            record_some(conn)
        execute(filled, SPREAD)
        require_exact(conn)
        for name in reversed(NAMES[FIRST:]):
            before = daily_sums(conn)
            rollback(filled)
            assert daily_sums(conn) == before
            if name > FILL:
                assert conn.execute(WRONG_SLOTS.encode()).rowcount == 0
            record_some(conn)
        before = daily_sums(conn)
        migrate(filled)
        assert daily_sums(conn) == before
        require_exact(conn)


@pytest.mark.parametrize("is_rollback", [False, True], ids=["forward", "rollback"])
@pytest.mark.parametrize(
    ("rows", "isolation"),
    [(1, READ_COMMITTED), (9, READ_COMMITTED), (9, REPEATABLE_READ)],
)
def test_writer_that_waits_for_the_migration_is_counted(
    filled: str, is_rollback: bool, rows: int, isolation: psycopg.IsolationLevel
) -> None:
    """Its trigger has begun, or its INSERT waits for the table of messages."""
    migrate_to(filled, SWITCH if is_rollback else READ)
    text = FILES[SWITCH].rollback_text if is_rollback else FILES[SWITCH].text
    with psycopg.connect(filled) as migration, psycopg.connect(filled) as writer:
        writer.isolation_level = isolation
        record(writer, rows)
        writer.commit()
        # Takes the snapshot of REPEATABLE READ.
        writer.execute("SELECT count(*) FROM app.users")
        migration.execute(text.encode())
        # The snapshot is older than the rows that the rollback writes.
        is_refused = is_rollback and isolation == REPEATABLE_READ
        refusal = pytest.raises(errors.SerializationFailure)
        with refusal if is_refused else nullcontext():
            run_blocked(migration, writer, record, rows=rows)
        writer.rollback()
        require_exact(writer)
        writer.rollback()
        record(writer, rows)
        require_exact(writer)


@pytest.mark.parametrize("is_rollback", [False, True], ids=["forward", "rollback"])
def test_transaction_that_has_read_the_sums_can_record(
    filled: str, is_rollback: bool
) -> None:
    """It holds a lock for which the migration waits, and needs further ones."""
    if is_rollback:
        migrate_to(filled, SWITCH)
    run: Callable[..., object] = rollback if is_rollback else migrate
    with ThreadPoolExecutor(1) as pool, psycopg.connect(filled) as program:
        program.execute("SELECT count(*) FROM app.usage_daily")
        program.execute(WRONG_QUOTAS.encode())
        migration = pool.submit(run, filled)
        wait_for_waiter(program)
        record(program)
        record(program, rows=9)
        program.commit()
        migration.result(20)
        require_exact(program)


@pytest.mark.parametrize("is_rollback", [False, True], ids=["forward", "rollback"])
def test_quota_check_does_not_wait(filled: str, is_rollback: bool) -> None:
    migrate_to(filled, SWITCH if is_rollback else READ)
    text = FILES[SWITCH].rollback_text if is_rollback else FILES[SWITCH].text
    with psycopg.connect(filled) as migration, psycopg.connect(filled) as reader:
        migration.execute(text.encode())
        reader.execute("SET lock_timeout = '1ms'")
        assert reader.execute(WRONG_QUOTAS.encode()).fetchall() == []


@pytest.fixture
def two_batches(filled: str) -> str:
    """Return that database with the days of two batches."""
    days = MESSAGES.replace("31 minutes", "31 hours").replace("%s", "50")
    execute(filled, days, "VACUUM FULL app.usage_daily")
    return filled


LOCK_DAY = "SELECT FROM app.usage_daily ORDER BY ctid LIMIT 1 FOR UPDATE"


def wait_for_sleep(conn: psycopg.Connection) -> int:
    """Return the process id of the run that waits until it can copy a locked day."""
    for _ in range(2000):
        # A transaction sees the activity as it was when it first looked.
        conn.execute("SELECT pg_stat_clear_snapshot()")
        row = conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            " AND datname = current_database()"
        ).fetchone()
        if row is not None:
            return int(row[0])
        time.sleep(0.01)
    raise AssertionError("no session ever waited")


def test_days_of_an_open_transaction_block_no_other_writer(filled: str) -> None:
    """The run copies them later, and keeps no lock until then."""
    migrate_to(filled, CREATE)
    with (
        ThreadPoolExecutor(1) as pool,
        psycopg.connect(filled) as importing,
        psycopg.connect(filled) as writer,
    ):
        record(importing)
        migration = pool.submit(migrate, filled, count=1)
        wait_for_sleep(writer)
        writer.execute("SET lock_timeout = '1s'")
        writer.execute(ALL_BUT_FIRST.encode())
        writer.commit()
        assert not migration.done()
        importing.rollback()
        migration.result(20)
        assert writer.execute(WRONG_SLOTS.encode()).rowcount == 0
        require_exact(writer)


def test_run_that_is_killed_in_a_batch_can_be_repeated(two_batches: str) -> None:
    """The rows that it has copied are kept, and follow usage_daily."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(two_batches) as conn:
        conn.execute(LOCK_DAY.replace("ctid", "ctid DESC").encode())
        migration = pool.submit(migrate, two_batches)
        killed = wait_for_sleep(conn)
        conn.execute("SELECT pg_terminate_backend(%s)", [killed])
        with pytest.raises(MigrationError):
            migration.result(20)
        conn.commit()
        assert states(two_batches)[FILL] == "pending"
        assert conn.execute("SELECT FROM app.usage_slots").rowcount > 500
        assert conn.execute(WRONG_SLOTS.encode()).rowcount == 1
        record(conn, rows=20)
        conn.commit()

        migrate(two_batches)
        require_exact(conn)


def test_table_that_is_rewritten_between_batches_is_reported(two_batches: str) -> None:
    with (
        ThreadPoolExecutor(2) as pool,
        psycopg.connect(two_batches) as holder,
        psycopg.connect(two_batches, autocommit=True) as operator,
    ):
        holder.execute(LOCK_DAY.encode())
        migration = pool.submit(migrate, two_batches)
        wait_for_sleep(holder)
        rewriting = pool.submit(operator.execute, "VACUUM FULL app.usage_daily")
        wait_for_lock(holder, operator)
        holder.commit()
        with pytest.raises(MigrationError, match=f"{FILL} .* was rewritten while"):
            migration.result(20)
        rewriting.result(20)

        migrate(two_batches)
        require_exact(operator)


def test_view_of_another_schema_is_named(filled: str) -> None:
    """Until it is dropped, the former table stays, and all sums are exact."""
    execute(
        filled,
        "CREATE SCHEMA reports",
        "CREATE VIEW reports.days AS SELECT * FROM app.usage_daily",
    )
    with pytest.raises(MigrationError, match=r"view reports\.days depends on table"):
        migrate(filled)

    assert states(filled)[SWITCH] == "pending"
    with psycopg.connect(filled, autocommit=True) as conn:
        record(conn, rows=9)
        require_exact(conn)
        conn.execute("DROP VIEW reports.days")
        migrate(filled)
        require_exact(conn)


def test_roles_read_the_sums_before_their_privileges_are_renewed(filled: str) -> None:
    name = f'Re"porter {uuid4()}'
    role = sql.Identifier(name)
    quota = f"SELECT 1 FROM ({WRONG_QUOTAS}) AS q"
    with psycopg.connect(filled, autocommit=True) as conn:
        for statement in (
            "CREATE ROLE {}",
            "GRANT USAGE ON SCHEMA app TO {}",
            "GRANT SELECT ON app.usage_daily, app.users, app.messages TO {}",
            "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA app TO {}",
            "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA app FROM public",
            "ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM public",
        ):
            conn.execute(sql.SQL(statement).format(role))
        try:
            for step in (migrate, rollback, migrate):
                step(filled, count=len(NAMES) - FIRST)
                conn.execute(sql.SQL("SET ROLE {}").format(role))
                assert conn.execute("SELECT FROM app.usage_daily").rowcount > 0
                assert conn.execute(quota.encode()).fetchall() == []
                conn.execute("RESET ROLE")
        finally:
            conn.execute("RESET ROLE")
            conn.execute(sql.SQL("DROP OWNED BY {}").format(role))
            conn.execute(sql.SQL("DROP ROLE {}").format(role))
