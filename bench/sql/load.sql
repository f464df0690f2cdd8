-- name: create_bench_schema :rowcount
-- Objects of the benchmark, separate from the measured schema.
CREATE SCHEMA bench;

-- name: create_accounts :rowcount
-- Payers by number, because pgbench has numbers only; the first one is the hottest.
CREATE TABLE bench.accounts (
    n  integer PRIMARY KEY,
    id uuid NOT NULL
);

-- name: create_text_function :rowcount
-- Three kilobytes of incompressible, reproducible text.
CREATE FUNCTION bench.make_text(seed text)
RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN (
    SELECT
        string_agg(
            encode(sha512(convert_to(seed || n::text, 'UTF8')), 'base64'), ' '
        ) AS body
    FROM generate_series(1, 36) AS n
);

-- name: create_dropped_indexes :rowcount
-- Indexes are created after the load, as by a bulk restore.
CREATE TABLE bench.dropped_indexes AS
SELECT
    i.indexrelid::regclass::text AS name,
    pg_get_indexdef(i.indexrelid) AS definition
FROM pg_index AS i
WHERE i.indrelid = 'app.messages'::regclass
    AND NOT i.indisunique;

-- name: drop_indexes :rowcount
-- All except unique ones.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT d.name FROM bench.dropped_indexes AS d LOOP
        EXECUTE 'DROP INDEX ' || name;
    END LOOP;
END;
$$;

-- name: restore_indexes :rowcount
-- The indexes dropped before.
DO $$
DECLARE
    definition text;
BEGIN
    FOR definition IN SELECT d.definition FROM bench.dropped_indexes AS d LOOP
        EXECUTE definition;
    END LOOP;
END;
$$;

-- name: insert_users :rowcount
-- Accounts whose periods begin on every day of the month and at every hour.
WITH anchors AS (
    SELECT
        n,
        now() - make_interval(days => 365 + n % 29, mins => n) AS quota_anchor
    FROM generate_series(1, :users::integer) AS n
)

INSERT INTO app.users (email, quota_anchor, next_quota_reset)
SELECT
    'user' || a.n || '@bench.example' AS email,
    a.quota_anchor,
    app.get_period_end(a.quota_anchor, now()) AS next_quota_reset
FROM anchors AS a;

-- name: heat_account :rowcount
-- The first account is the hottest. Its period began at noon thirty days ago: nearly
-- all possible whole days, and half a day of messages at the start.
UPDATE app.users AS u
SET
    quota_anchor = h.quota_anchor,
    next_quota_reset = app.get_period_end(h.quota_anchor, now())
FROM bench.accounts AS a
CROSS JOIN LATERAL (
    SELECT
        date_trunc('day', now(), 'UTC') - interval '30 days' + interval '12 hours'
            AS quota_anchor
) AS h
WHERE u.id = a.id
    AND a.n = 1;

-- name: insert_accounts :rowcount
-- Numbered in order of their ids, which are random.
INSERT INTO bench.accounts (n, id)
SELECT
    row_number() OVER (ORDER BY u.id ASC) AS n,
    u.id
FROM app.users AS u;

-- name: insert_messages :rowcount
-- Ordered by time. 1 % belongs to the first account; the shares of the others decrease,
-- so that the busiest tenth has 28 %.
WITH draws AS (
    SELECT
        n,
        random() AS r,
        random() AS luck,
        now() - (1 - n / :total::double precision) * interval '365 days' AS finished_at,
        n % 100 = 0 AS is_hot
    FROM generate_series(:first::bigint, :last::bigint) AS n
)

INSERT INTO app.messages (
    subject_id, id, user_id, finished_at, recorded_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, latency_ms,
    model, client_id, client_request_id, cost, credits
)
SELECT
    a.id AS subject_id,
    gen_random_uuid() AS id,
    a.id AS user_id,
    m.finished_at,
    m.finished_at AS recorded_at,
    (m.r * 2000)::integer AS input_tokens,
    (m.r * 300)::integer AS cache_creation_input_tokens,
    (m.r * 9000)::integer AS cache_read_input_tokens,
    (m.r * 800)::integer AS output_tokens,
    (m.r * 5000)::integer AS latency_ms,
    'model-' || m.n % 7 AS model,
    'client-' || (m.n / 40) AS client_id,
    'request-' || (m.n / 4) AS client_request_id,
    round((m.r * 0.05)::numeric, 6) AS cost,
    round((m.r * 6)::numeric, 6) AS credits
FROM draws AS m
INNER JOIN bench.accounts AS a
    ON a.n = CASE
        WHEN m.is_hot THEN 1
        ELSE 2 + floor((:users::integer - 1) * m.luck * (0.12 + 0.88 * m.luck))
    END;

-- name: insert_usage :rowcount
-- The rollup, because the load runs without triggers: one row of each span, ordered by
-- time, as the trigger would have inserted the rows.
INSERT INTO app.usage_slots (
    subject_id, starts_at, ends_at, slot, messages, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, cost, credits
)
SELECT
    m.subject_id,
    p.starts_at,
    p.ends_at,
    0 AS slot,
    count(*) AS messages,
    sum(m.input_tokens) AS input_tokens,
    sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
    sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
    sum(m.output_tokens) AS output_tokens,
    sum(m.cost) AS cost,
    sum(m.credits) AS credits
FROM app.messages AS m
INNER JOIN app.users AS u ON m.user_id = u.id
CROSS JOIN LATERAL app.get_usage_span(u.quota_anchor, m.finished_at) AS p
GROUP BY m.subject_id, p.starts_at, p.ends_at
ORDER BY p.starts_at ASC, min(m.finished_at) ASC;

-- name: insert_sessions :rowcount
-- One session for each account, each with its own fingerprint.
WITH devices AS (
    INSERT INTO app.fingerprints AS f (id, sig_hash)
    SELECT
        gen_random_uuid() AS id,
        'device' || a.n AS sig_hash
    FROM bench.accounts AS a
    RETURNING f.id, f.sig_hash
)

INSERT INTO app.sessions (token_hash, user_id, fingerprint_id, expires_at)
SELECT
    sha256(convert_to(a.n::text, 'UTF8')) AS token_hash,
    a.id AS user_id,
    d.id AS fingerprint_id,
    now() + interval '30 days' AS expires_at
FROM bench.accounts AS a
INNER JOIN devices AS d ON 'device' || a.n = d.sig_hash;

-- name: list_session_owners :many
-- Five owners of sessions.
SELECT
    s.token_hash,
    s.user_id
FROM app.sessions AS s
INNER JOIN bench.accounts AS a ON s.user_id = a.id
WHERE a.n BETWEEN 501 AND 505
ORDER BY a.n;

-- name: set_seed :one
-- Makes random() reproducible.
SELECT setseed(0.5)::text AS seeded;

-- name: list_ranked_accounts :many
-- Accounts by number of messages, busiest first.
SELECT
    s.subject_id,
    sum(s.messages) AS messages
FROM app.usage_slots AS s
INNER JOIN bench.accounts AS a ON s.subject_id = a.id
GROUP BY s.subject_id
ORDER BY messages DESC, s.subject_id ASC;

-- name: defer_commits :rowcount
-- The load need not survive a crash.
SET synchronous_commit = off;

-- name: trust_rows :rowcount
-- Disables triggers and foreign keys; the load is consistent by itself.
SET session_replication_role = replica;

-- name: distrust_rows :rowcount
-- The normal state.
SET session_replication_role = origin;

-- name: reset_commits :rowcount
-- The normal state.
RESET synchronous_commit;

-- name: vacuum :rowcount
-- As autovacuum would do in time; it skips tables without writes.
VACUUM (ANALYZE)
app.users, app.fingerprints, app.sessions,
app.messages, app.message_payloads, app.usage_slots;

-- name: read_setting :one
-- A setting of the server.
SELECT current_setting(:name) AS setting;
