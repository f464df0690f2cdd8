"""No session setting changes what function bodies of the schema store or return.

Every login may change the settings of context "user". Under each of them, the same
statements must store the same rows, or fail.
"""

import psycopg
import pytest
from psycopg import sql

from pyapp.roles import apply_roles
from tests.role_statements import APP, SYNC
from tests.test_sql_attacks import ALLOWED, REFUSED, ROWS, TIME, run

# Settings without a fixed list of values that could change a result.
VALUES = {
    "DateStyle": ["SQL, DMY", "German, DMY", "Postgres, YMD"],
    "TimeZone": ["UTC-14", "<utc>+12", "Asia/Kathmandu", "America/New_York"],
    "timezone_abbreviations": ["Australia", "India"],
    "client_encoding": ["LATIN1"],
    "extra_float_digits": ["-15"],
    "lc_monetary": ["C"],
    "lc_numeric": ["C"],
    "lc_time": ["C"],
    "plpgsql.extra_errors": ["all"],
    "plpgsql.extra_warnings": ["all"],
    "search_path": ["pg_temp, public", "", "public"],
    "work_mem": ["64kB"],
}
CHOICES = """
    SELECT
        s.name,
        CASE WHEN s.vartype = 'bool'
            THEN ARRAY[CASE s.setting WHEN 'on' THEN 'off' ELSE 'on' END]
            ELSE array_remove(s.enumvals, s.setting)
        END
    FROM pg_catalog.pg_settings AS s
    WHERE s.context = 'user' AND s.vartype IN ('bool', 'enum')
"""
# exit_on_error ends the session. The others belong to the transaction and cannot be set
# in a subtransaction.
LEFT_OUT = {"exit_on_error", "transaction_deferrable", "transaction_isolation"}

# Stored rows and results of functions. Times are numbers, which no setting formats.
STORED = f"""
    SELECT concat_ws(' ', d.subject_id, d.day - '2000-01-01'::date, d.messages,
        d.total_tokens, d.cost, d.credits)
    FROM app.usage_daily AS d
    UNION ALL
    SELECT concat_ws(' ', u.email, u.base_quota, u.referral_credits, u.referral_count,
        u.subscription_active, date_part('epoch', u.quota_period_start)::numeric,
        date_part('epoch', u.next_quota_reset)::numeric, u.stripe_customer_id,
        u.subscription_status)
    FROM app.users AS u
    UNION ALL
    SELECT concat_ws(' ', r.referrer_id, r.referred_id, r.status, r.credits)
    FROM app.referrals AS r
    UNION ALL
    SELECT concat_ws(' ', n,
        date_part('epoch', app.add_months(m.moment, n))::numeric,
        app.count_months('{TIME}', m.moment),
        date_part('epoch', app.get_period_end('{TIME}', m.moment))::numeric,
        date_part('epoch', app.get_quota_period_start(m.moment, '{TIME}'))::numeric)
    FROM generate_series(-14, 14) AS n,
        LATERAL (SELECT '{TIME}'::timestamptz + n * interval '31:41' AS moment) AS m
    ORDER BY 1
"""


@pytest.fixture
def owner(conn: psycopg.Connection) -> psycopg.Connection:
    """Return a connection of the owner with the roles and a few rows."""
    apply_roles(conn)
    conn.execute(ROWS.encode())
    # Replace now(), which differs between runs.
    conn.execute(
        "UPDATE app.users SET quota_anchor = %s, next_quota_reset = %s",
        [TIME, "2026-04-30 23:30:00+00"],
    )
    return conn


def store(conn: psycopg.Connection, name: str, value: str) -> list[str] | None:
    """Return the rows stored under a setting; None if a statement fails."""
    is_refused = False
    with conn.transaction(force_rollback=True):
        setting = sql.SQL("SELECT set_config({}, {}, TRUE)")
        conn.execute(setting.format(sql.Literal(name), sql.Literal(value)))
        for role in (APP, SYNC):
            conn.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(role)))
            # The first statement creates a user whose period starts now.
            for statement in ALLOWED[role][role == APP :]:
                is_refused |= run(conn, statement) is not None
            for statement in REFUSED[role]:
                assert run(conn, statement) is not None, (name, value, statement)
            conn.execute("RESET ROLE")
        rows = [row[0] for row in conn.execute(STORED.encode())]
    return None if is_refused else rows


def test_no_setting_changes_what_is_stored(owner: psycopg.Connection):
    choices = owner.execute(CHOICES.encode()).fetchall()
    tried = {name: values for name, values in choices if name not in LEFT_OUT} | VALUES
    expected = store(owner, "application_name", "usual")
    assert expected

    different, refused = [], set()
    for name, values in tried.items():
        for value in values:
            rows = store(owner, name, value)
            if rows is None:
                refused.add(name)
            elif rows != expected:
                different.append((name, value, sorted(set(rows) ^ set(expected))))

    assert different == []
    assert refused <= {"transaction_read_only"}
    assert len(tried) > 60
