"""Migration 0013 on a database that holds a larger referral than is now possible."""

import re
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import CheckViolation

from pyapp.data_check import check_data
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate, rollback
from tests.support import Server

REFERRALS = """
    INSERT INTO app.users (email)
    SELECT 'user' || n || '@example.com' FROM generate_series(1, 4) AS n;
    INSERT INTO app.referrals (referrer_id, referred_id, status, credits, completed_at)
    SELECT min(u.id::text)::uuid, max(u.id::text)::uuid, 'completed', 1e30, now()
    FROM app.users AS u
"""
ANOTHER = """
    INSERT INTO app.referrals (referrer_id, referred_id, credits)
    SELECT min(u.id::text)::uuid, max(u.id::text)::uuid, 1000001
    FROM app.users AS u
    WHERE u.referral_credits = 0
"""


def test_larger_referral_does_not_keep_the_repair_from_being_applied(
    empty_database: str, server: Server
):
    migrate(empty_database, count=12)
    with psycopg.connect(empty_database) as conn:
        conn.execute(REFERRALS.encode())

    migrate(empty_database, count=1)

    with psycopg.connect(empty_database) as conn:
        with pytest.raises(CheckViolation):
            conn.execute(ANOTHER.encode())
        conn.rollback()
        kept = conn.execute("SELECT max(credits) FROM app.referrals").fetchone()
        is_valid = conn.execute(
            "SELECT convalidated FROM pg_constraint"
            " WHERE conname = 'referrals_credits_is_amount_check'"
        ).fetchone()
    assert kept == (10**30,)
    assert is_valid == (False,)
    migrate(empty_database)
    result = check(empty_database, scratch_url=server.url("postgres"))
    reported = "".join(line for c in result.comparisons for _, line in c.report())
    assert "referrals_credits_is_amount_check" in reported

    rollback(empty_database, count=len(read_migrations()) - 12)
    with psycopg.connect(empty_database) as conn:
        assert conn.execute("SELECT FROM app.referrals").rowcount == 1


def test_larger_referral_is_corrected_as_the_changelog_says(
    empty_database: str, server: Server
):
    migrate(empty_database, count=12)
    with psycopg.connect(empty_database) as conn:
        conn.execute(REFERRALS.encode())
    migrate(empty_database)
    changelog = (
        Path(__file__).parents[1].joinpath("CHANGELOG.md").read_text(encoding="utf-8")
    )
    (correction,) = (
        block
        for block in re.findall(r"```sql\n(.*?)```", changelog, re.DOTALL)
        if "DISABLE TRIGGER USER" in block
    )

    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute(correction.encode())

    result = check(empty_database, scratch_url=server.url("postgres"))
    assert [line for c in result.comparisons for line in c.report()] == []
    assert check_data(empty_database, limit=1).remaining == 0
    with psycopg.connect(empty_database) as conn:
        totals = conn.execute(
            "SELECT referral_credits FROM app.users WHERE referral_credits > 0"
        ).fetchall()
    assert totals == [(1_000_000,), (1_000_000,)]
