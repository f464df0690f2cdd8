"""A filled database and the commands of docs/backup.md, for tests."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from psycopg import sql

from pyapp._core.connection import connect
from pyapp.payloads import create_payload_partitions

DOCS = Path(__file__).parents[1] / "docs"
# Accounts, both kinds of payers, completed and pending referrals, payloads of months
# with and without a partition, a plan of the operator's, and all of Stripe's tables.
FILL = """
INSERT INTO app.users (id, email, referral_limit)
SELECT md5('user' || n)::uuid, 'user' || n || '@example.com', 100
FROM generate_series(1, 20) AS n;
INSERT INTO app.fingerprints (id, sig_hash)
SELECT md5('fingerprint' || n)::uuid, 'hash' FROM generate_series(1, 5) AS n;
INSERT INTO app.plans (id, monthly_credits) VALUES ('team', 1e6);
INSERT INTO app.plan_prices (stripe_price_id, plan_id)
VALUES ('price_1', 'paid'), ('price_2', 'paid'), ('price_3', 'team');
INSERT INTO app.referrals (referrer_id, referred_id, status, credits)
SELECT md5('user' || n % 3 + 1)::uuid, md5('user' || n)::uuid, 'completed', 500 + n
FROM generate_series(4, 15) AS n;
INSERT INTO app.referrals (referrer_id, referred_id, credits)
VALUES (md5('user1')::uuid, md5('user16')::uuid, 100);
UPDATE app.users SET referral_credits = referral_credits + 1000
WHERE id = md5('user2')::uuid;
INSERT INTO app.messages (
    subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, model, cost,
    credits
)
SELECT
    p.id, md5('message' || n)::uuid, p.user_id, p.fingerprint_id,
    now() - n * interval '17 hours', n, 1, 2, 3, 'm', n * 0.000001, n * 0.00012
FROM generate_series(1, 300) AS n
CROSS JOIN LATERAL (
    SELECT id, id AS user_id, NULL::uuid AS fingerprint_id
    FROM app.users WHERE id = md5('user' || n % 20 + 1)::uuid AND n % 7 > 0
    UNION ALL
    SELECT id, NULL, id FROM app.fingerprints
    WHERE id = md5('fingerprint' || n % 5 + 1)::uuid AND n % 7 = 0
) AS p;
INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
SELECT m.subject_id, m.id, m.finished_at, '[{"role": "user"}]'
FROM app.messages AS m;
INSERT INTO app.sessions (token_hash, user_id, expires_at)
SELECT sha256(('token' || n)::bytea), md5('user' || n)::uuid, 'infinity'
FROM generate_series(1, 5) AS n;
INSERT INTO app.stripe_events (
    id, type, event_created_at, payload, status, last_error
)
VALUES ('evt_1', 'invoice.paid', now(), '{"a": 1}', 'failed', 'a reason');
INSERT INTO app.stripe_customers (id, user_id, claimed_user_id, claim_source, as_of)
VALUES
    ('cus_1', md5('user1')::uuid, NULL, NULL, now()),
    ('cus_2', md5('user2')::uuid, md5('user2')::uuid, 'customer', now()),
    ('cus_3', NULL, md5('user3')::uuid, 'reference', now()),
    ('cus_4', NULL, md5('user400')::uuid, 'checkout', now());
INSERT INTO app.stripe_subscriptions (id, customer_id, status, created_at, as_of)
VALUES ('sub_1', 'cus_1', 'active', now(), now());
INSERT INTO app.stripe_subscription_items (
    subscription_id, id, price_id, unit_amount, quantity
)
VALUES ('sub_1', 'si_1', 'price_1', 0.5, 3), ('sub_1', 'si_2', NULL, NULL, NULL);
INSERT INTO app.stripe_sync_runs (kind) VALUES ('reconcile'), ('replay');
"""
# By two writers at once, after another one has opened the day: they get two slots.
MESSAGE = """
INSERT INTO app.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
)
VALUES (
    md5('user1')::uuid, gen_random_uuid(), md5('user1')::uuid, now(), 1, 1, 2, 3, 'm',
    0.000001, 0.00012
)
"""
# Partitions are left out: a restore may put rows into other ones.
TABLES = """
    SELECT c.relname FROM pg_class AS c
    WHERE c.relnamespace = 'app'::regnamespace
        AND (c.relkind IN ('r', 'p') OR c.relname = 'usage_daily')
        AND NOT c.relispartition
    ORDER BY c.relname
"""


def commands_of(section: str) -> list[str]:
    """Return the commands of the section's console block, each on one line."""
    page = (DOCS / "backup.md").read_text(encoding="utf-8")
    body = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    block = re.search(r"^```console\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)
    assert block is not None, section
    text = block[1].replace("\\\n    ", "")
    assert all(line.startswith("$ ") for line in text.splitlines())
    return [line.removeprefix("$ ") for line in text.splitlines()]


def run(
    commands: list[str], folder: Path, url: str, new_url: str, *programs: Path
) -> subprocess.CompletedProcess[str]:
    """Run the commands in one shell, which stops at the first that fails."""
    scripts = Path(sysconfig.get_path("scripts"))
    paths = [*programs, scripts, Path(sys.executable).parent]
    return subprocess.run(
        ["/bin/sh", "-ec", "\n".join(commands)],
        cwd=folder,
        env=os.environ
        | {
            "PATH": ":".join([*map(str, paths), os.environ["PATH"]]),
            "DATABASE_URL": url,
            "NEW_URL": new_url,
            "LC_ALL": "C",
        },
        capture_output=True,
        text=True,
    )


def rows_of(url: str) -> dict[str, list[str]]:
    """Return all rows of the tables and of usage_daily, and the sequence's value."""
    with connect(url) as conn:
        found = {}
        for (table,) in conn.execute(TABLES).fetchall():
            name = sql.Identifier("app", table)
            query = sql.SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(name)
            found[table] = [row for (row,) in conn.execute(query)]
        last = conn.execute("SELECT last_value FROM app.stripe_sync_runs_id_seq")
        return found | {"sequence": [str(last.fetchone())]}


def without_slots(rows: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return *rows* without usage_slots: a restored message has the slot of a bulk."""
    return {table: found for table, found in rows.items() if table != "usage_slots"}


def fill(url: str) -> None:
    with connect(url) as conn:
        conn.execute(FILL.encode())
        conn.execute(MESSAGE.encode())
    with connect(url) as first, connect(url) as second:
        for conn in (first, second):
            conn.execute(MESSAGE.encode())
    with connect(url) as conn:
        # As it is when the months were made and referrals completed long ago.
        conn.execute("SET LOCAL session_replication_role = replica")
        conn.execute(
            "UPDATE app.referrals SET completed_at = completed_at - interval '1 day'"
        )
        # Rows of usage_slots lie across the new boundaries.
        conn.execute(
            "UPDATE app.users SET quota_anchor = quota_anchor - interval '5 hours'"
        )
    create_payload_partitions(url)
