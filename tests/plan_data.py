"""A database that is large and skewed enough for realistic plans."""

import psycopg

# Triggers and foreign keys are disabled; the rows are consistent as inserted. User 0
# has a fifth of all messages; the others follow a steep distribution.
FILL = """
SET session_replication_role = replica;
SET work_mem = '128MB';
SET maintenance_work_mem = '128MB';
SELECT setseed(0.5);

-- The period began in the middle of a day.
CREATE TEMPORARY TABLE pg_temp.period ON COMMIT DROP AS
SELECT date_trunc('day', now(), 'UTC') - interval '228 hours' AS starts_at;

INSERT INTO app.users (
    id, email, referral_code, quota_anchor, next_quota_reset, stripe_customer_id,
    stripe_subscription_id, subscription_status
)
SELECT
    md5('user-' || n)::uuid,
    'user' || n || '@example.com',
    'ref-' || md5('user-' || n)::uuid,
    p.starts_at,
    CASE WHEN n <> 7 THEN app.add_months(p.starts_at, 1) END,
    CASE WHEN n % 4 = 0 THEN 'cus_' || n END,
    CASE WHEN n % 8 = 0 THEN 'sub_' || n END,
    CASE WHEN n % 8 = 0 THEN 'active' END
FROM generate_series(0, 5999) AS n
CROSS JOIN pg_temp.period AS p;

INSERT INTO app.fingerprints (id, sig_hash, quota_anchor, next_quota_reset)
SELECT
    md5('fingerprint-' || n)::uuid,
    md5(n::text),
    p.starts_at,
    app.add_months(p.starts_at, 1)
FROM generate_series(0, 2999) AS n
CROSS JOIN pg_temp.period AS p;

INSERT INTO app.sessions (token_hash, user_id, fingerprint_id, created_at, expires_at)
SELECT
    sha256(('token-' || n)::bytea),
    md5('user-' || floor(6000 * random() ^ 2))::uuid,
    md5('fingerprint-' || n % 3000)::uuid,
    now() - interval '60 days',
    now() + interval '1 hour' * (n - 1000)
FROM generate_series(0, 9999) AS n;

-- Building indexes afterwards is faster than maintaining them.
CREATE TEMPORARY TABLE pg_temp.definitions ON COMMIT DROP AS
SELECT x.relname AS name, pg_get_indexdef(i.indexrelid) AS definition
FROM pg_index AS i
INNER JOIN pg_class AS x ON x.oid = i.indexrelid
WHERE i.indrelid = 'app.messages'::regclass AND NOT i.indisprimary;

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT d.name FROM pg_temp.definitions AS d LOOP
        EXECUTE format('DROP INDEX app.%I', name);
    END LOOP;
END;
$$;

INSERT INTO app.messages (
    subject_id, id, user_id, fingerprint_id, finished_at, recorded_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, latency_ms,
    model, client_id, client_request_id, cost, credits
)
SELECT
    COALESCE(m.user_id, m.fingerprint_id),
    md5('message-' || m.n)::uuid,
    m.user_id,
    m.fingerprint_id,
    m.finished_at,
    m.finished_at,
    100, 200, 300, 400, 500,
    'model-' || m.n % 7,
    CASE WHEN m.n % 2 = 0 THEN 'client-' || m.n % 5000 END,
    CASE WHEN m.n % 2 = 0 THEN 'request-' || m.n / 4 END,
    0.001,
    0.12
FROM (
    SELECT
        n,
        now() - random() ^ 2 * interval '45 days' AS finished_at,
        CASE
            WHEN n % 10 = 0 THEN NULL
            WHEN n % 5 = 1 THEN md5('user-0')::uuid
            ELSE md5('user-' || floor(6000 * random() ^ 3))::uuid
        END AS user_id,
        CASE
            WHEN n % 10 = 0 THEN md5('fingerprint-' || floor(3000 * random() ^ 3))::uuid
        END AS fingerprint_id
    FROM generate_series(0, 299999) AS n
) AS m
ORDER BY m.finished_at;

DO $$
DECLARE
    definition text;
BEGIN
    FOR definition IN SELECT d.definition FROM pg_temp.definitions AS d LOOP
        EXECUTE definition;
    END LOOP;
END;
$$;

-- The rows of an eighth of payers lie across the start of the period, as if the anchor
-- had moved. User 0 has two rows for a span.
INSERT INTO app.usage_slots (
    subject_id, starts_at, ends_at, slot, messages, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost, credits
)
SELECT
    m.subject_id, p.starts_at, p.ends_at, m.slot, count(*),
    sum(m.input_tokens), sum(m.cache_creation_input_tokens),
    sum(m.cache_read_input_tokens), sum(m.output_tokens), sum(m.cost), sum(m.credits)
FROM (
    SELECT
        i.*,
        CASE
            WHEN get_byte(uuid_send(i.subject_id), 0) % 16 IN (0, 11)
                THEN '2026-01-01 00:00:00+00'
            ELSE (SELECT p.starts_at FROM pg_temp.period AS p)
        END AS anchor,
        CASE
            WHEN i.subject_id = md5('user-0')::uuid
                THEN get_byte(uuid_send(i.id), 0) % 2
            ELSE 0
        END AS slot
    FROM app.messages AS i
) AS m
CROSS JOIN LATERAL app.get_usage_span(m.anchor, m.finished_at) AS p
GROUP BY 1, 2, 3, 4
ORDER BY 2, 1;

SELECT app.create_payload_partitions((now() - interval '100 days')::date, 6);

INSERT INTO app.message_payloads (subject_id, message_id, finished_at, request)
SELECT m.subject_id, m.id, m.finished_at, '[{"role": "user"}]'
FROM app.messages AS m
LIMIT 30000;

INSERT INTO app.referrals (referrer_id, referred_id, status, credits, completed_at)
SELECT
    md5('user-' || n / 4)::uuid,
    md5('user-' || 2000 + n)::uuid,
    CASE WHEN n % 2 = 0 THEN 'completed' ELSE 'pending' END,
    500,
    CASE WHEN n % 2 = 0 THEN now() END
FROM generate_series(0, 3999) AS n;

INSERT INTO app.stripe_events (
    id, type, event_created_at, payload, status, last_error, received_at, processed_at
)
SELECT
    'evt_' || n,
    'customer.subscription.updated',
    now() - interval '1 minute' * n,
    CASE WHEN n % 10 = 0 THEN '{}'::jsonb END,
    CASE WHEN n % 200 = 0 THEN 'failed' ELSE 'applied' END,
    CASE WHEN n % 200 = 0 THEN 'out of order' END,
    now() - interval '1 minute' * n,
    CASE WHEN n % 200 <> 0 THEN now() - interval '1 minute' * n END
FROM generate_series(0, 19999) AS n;

INSERT INTO app.plans (id, monthly_credits)
SELECT 'plan-' || n, n FROM generate_series(0, 99) AS n;

INSERT INTO app.plan_prices (stripe_price_id, plan_id)
SELECT 'price_' || n, 'plan-' || n % 100 FROM generate_series(0, 3999) AS n;

-- Ten changes of a thousand prices, at ten providers.
INSERT INTO app.model_prices (
    provider, model, valid_from, input_price, cache_creation_price, cache_read_price,
    output_price
)
SELECT
    'provider-' || n % 10,
    'model-' || n / 100,
    now() - interval '30 days' * (n / 10 % 10),
    3,
    3.75,
    0.3,
    15
FROM generate_series(0, 9999) AS n;

-- Every fourth customer has a user; every tenth claims a user who does not exist.
INSERT INTO app.stripe_customers (
    id, user_id, claimed_user_id, claim_source, created_at, as_of
)
SELECT
    'cus_' || n,
    CASE WHEN n % 4 = 0 THEN md5('user-' || n % 6000)::uuid END,
    CASE
        WHEN n % 4 = 0 THEN md5('user-' || n % 6000)::uuid
        WHEN n % 10 = 1 THEN md5('user-' || 6000 + n)::uuid
    END,
    CASE WHEN n % 4 = 0 OR n % 10 = 1 THEN 'customer' END,
    now() - interval '1 hour' * n,
    now() - interval '1 second' * n
FROM generate_series(0, 9999) AS n;

INSERT INTO app.stripe_subscriptions (id, customer_id, status, created_at, as_of)
SELECT
    'sub_' || n,
    'cus_' || n % 8000,
    'active',
    now() - interval '1 hour' * n,
    now() - interval '1 second' * n
FROM generate_series(0, 9999) AS n;

INSERT INTO app.stripe_subscription_items (subscription_id, id, price_id)
SELECT 'sub_' || n / 2, 'si_' || n, 'price_' || n % 4000
FROM generate_series(0, 19999) AS n;

INSERT INTO app.stripe_sync_runs (kind, started_at, finished_at, outcome)
SELECT
    CASE WHEN n % 2 = 0 THEN 'reconcile' ELSE 'replay' END,
    now() - interval '1 hour' * n,
    now() - interval '1 hour' * n,
    'completed'
FROM generate_series(1, 4000) AS n;

RESET session_replication_role;
RESET work_mem;
RESET maintenance_work_mem;
"""


def fill(url: str) -> None:
    """Fill the database at *url* and run VACUUM ANALYZE."""
    with psycopg.connect(url, autocommit=True) as conn:
        with conn.transaction():
            conn.execute("SET LOCAL synchronous_commit = off")
            conn.execute(FILL)
        conn.execute("VACUUM ANALYZE")
